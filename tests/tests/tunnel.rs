//! The same where nodes reach each other's pods through VXLAN, as with flannel.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use tests::{
    World,
    fleet::{
        Fleet, bulk, families, large_datagram, many_at_once, node_port, reached, refused, slices,
    },
    stage::{VIP4, VIP6, eventually},
};

const PORT: u16 = 30_080;
const BALANCER: [&str; 2] = ["203.0.113.9", "2001:db8::9"];
/// What is left of 1500 in the tunnel.
const TUNNEL_MTU: u16 = 1450;

/// `far` says in its segments that 1500 go, as on a node whose CNI forgot about the tunnel.
fn fleet() -> Result<Fleet> {
    let world = World::builder()
        .node("node-a", ["near"])
        .node("node-b", ["beyond"])
        .narrow_pod("far", TUNNEL_MTU)
        .node("node-c", [""; 0])
        .outside("laptop")
        .outside("tablet")
        .vxlan()
        .strict_rp_filter()
        .build()?;
    for client in ["laptop", "tablet"] {
        world.route(client, &BALANCER, "node-a")?;
    }
    Fleet::start(world, &["node-a", "node-b"], &[], |world, manifests| {
        let service = node_port("web", [VIP4, VIP6], PORT)
            .kind("LoadBalancer")
            .load_balancer(BALANCER);
        manifests.service(&service)?;
        slices(world, manifests, "web", &["near"])
    })
}

fn served_by(fleet: &Fleet, backend: &str) -> Result<()> {
    fleet.set_backends("web", &[backend])?;
    let node = fleet.world.node("node-a");
    let client = fleet.world.pod("laptop");
    let seen = if backend == "near" {
        families(client)
    } else {
        [node.inner_ip4(), node.inner_ip6()]
    };
    for (at, ip) in families(node.host()).into_iter().enumerate() {
        let to = SocketAddr::new(ip, PORT);
        let wanted = [(backend, seen[at])];
        eventually("the backend to answer", || reached(client, to, to, &wanted))?;
        let balancer = BALANCER[at].parse()?;
        let (tcp, udp) = (SocketAddr::new(balancer, 80), SocketAddr::new(balancer, 53));
        reached(client, tcp, udp, &wanted)?;
    }
    Ok(())
}

fn ports(fleet: &Fleet) -> [SocketAddr; 2] {
    families(fleet.world.node("node-a").host()).map(|ip| SocketAddr::new(ip, PORT))
}

#[test]
fn clients_reach_backends_behind_the_tunnel() -> Result<()> {
    let fleet = fleet()?;
    let client = fleet.world.pod("laptop");
    for backend in ["near", "beyond"] {
        served_by(&fleet, backend)?;
        for to in ports(&fleet) {
            bulk(client, to).with_context(|| format!("{to}, {backend}"))?;
            many_at_once(client, to, 100)?;
            // The first may be lost to the error that tells the client of the tunnel.
            let answer = eventually("fragments", || large_datagram(client, to))?;
            ensure!(answer.name == backend && answer.from == to);
        }
    }
    fleet.set_backends("web", &[])?;
    for to in ports(&fleet) {
        eventually("a refusal", || refused(client, to, to))?;
    }
    Ok(())
}

/// The node itself is the machine before the narrow link, and nothing of its stack sees the packet.
#[test]
fn what_does_not_fit_into_the_tunnel_is_told_by_the_node() -> Result<()> {
    let fleet = fleet()?;
    served_by(&fleet, "far")?;
    let learnt = |client: &tests::Pod, to: SocketAddr| -> Result<()> {
        let known = client.netns().ip(&format!("route get {}\n", to.ip()))?;
        ensure!(known.contains(&format!("mtu {TUNNEL_MTU}")), "{known}");
        Ok(())
    };
    for to in ports(&fleet) {
        let client = fleet.world.pod("laptop");
        bulk(client, to).with_context(|| to.to_string())?;
        learnt(client, to)?;

        let client = fleet.world.pod("tablet");
        // With its headers 1488 at most on the underlay, and more than the tunnel takes.
        let payload = "x".repeat(1440);
        let socket = client.udp_connected(to)?;
        eventually("an answer", || {
            let answer = socket.exchange(&payload)?;
            ensure!(answer.echo == payload && answer.name == "far");
            Ok(())
        })?;
        learnt(client, to)?;
    }
    Ok(())
}
