//! Packets that are too large for a link on their way, and fragments: the machine that has to send less
//! learns it, whichever of the two addresses of a flow the error names.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use tests::{
    Pod, World,
    fleet::{Fleet, bulk, families, large_datagram, node_port, reached, slices},
    probe::Answer,
    stage::{VIP4, VIP6, eventually},
};

const PORT: u16 = 30_080;
const OUTER_MTU: u16 = 1300;
const INNER_MTU: u16 = 1400;
/// A datagram that an ordinary link takes in one piece, and none of those two.
const TOO_LARGE: usize = 1440;

/// `slim` and `thin` have narrow links, `phone` is behind one.
fn fleet(backend: &str) -> Result<Fleet> {
    let world = World::builder()
        .node("node-a", ["near"])
        .narrow_pod("slim", INNER_MTU)
        .node("node-b", ["far"])
        .narrow_pod("thin", INNER_MTU)
        .outside("laptop")
        .outside("tablet")
        .outside_behind_router("phone", OUTER_MTU)
        .build()?;
    let fleet = Fleet::start(world, &["node-a", "node-b"], &[], |world, manifests| {
        manifests.service(&node_port("web", [VIP4, VIP6], PORT))?;
        slices(world, manifests, "web", &[backend])
    })?;
    served_by(&fleet, backend)?;
    Ok(fleet)
}

fn served_by(fleet: &Fleet, backend: &str) -> Result<()> {
    fleet.set_backends("web", &[backend])?;
    let node = fleet.world.node("node-a");
    let client = fleet.world.pod("laptop");
    let here = fleet.world.node_of(backend).name() == node.name();
    for (at, ip) in families(node.host()).into_iter().enumerate() {
        let seen = if here { client } else { node.host() };
        let to = SocketAddr::new(ip, PORT);
        let wanted = [(backend, families(seen)[at])];
        eventually("the backend to answer", || reached(client, to, to, &wanted))?;
    }
    Ok(())
}

fn ports(fleet: &Fleet) -> [SocketAddr; 2] {
    families(fleet.world.node("node-a").host()).map(|ip| SocketAddr::new(ip, PORT))
}

/// What this machine has learnt of the way to an address.
fn has_learnt(pod: &Pod, to: IpAddr, mtu: u16) -> Result<()> {
    let known = pod.netns().ip(&format!("route get {to}\n"))?;
    ensure!(
        known.contains(&format!("mtu {mtu}")),
        "{} has not learnt {mtu}: {known}",
        pod.name()
    );
    Ok(())
}

#[test]
fn a_backend_learns_of_a_narrow_link_before_the_client() -> Result<()> {
    let fleet = fleet("near")?;
    let phone = fleet.world.pod("phone");
    for backend in ["near", "far"] {
        served_by(&fleet, backend)?;
        let server = fleet.world.pod(backend);
        // Whom it answers.
        let seen = if backend == "near" {
            families(phone)
        } else {
            families(fleet.world.node("node-a").host())
        };
        for (to, seen) in ports(&fleet).into_iter().zip(seen) {
            bulk(phone, to).with_context(|| format!("{to}, {backend}"))?;
            has_learnt(server, seen, OUTER_MTU)?;
        }
    }
    Ok(())
}

#[test]
fn a_client_learns_of_a_narrow_link_before_the_backend() -> Result<()> {
    let fleet = fleet("slim")?;
    for (backend, client) in [("slim", "laptop"), ("thin", "tablet")] {
        served_by(&fleet, backend)?;
        let client = fleet.world.pod(client);
        for to in ports(&fleet) {
            bulk(client, to).with_context(|| format!("{to}, {backend}"))?;
            has_learnt(client, to.ip(), INNER_MTU)?;
        }
    }
    Ok(())
}

/// Linux forbids routers to fragment a datagram that fits its own link, until it is told of a
/// narrower one; from then on it fragments by itself.
#[test]
fn a_datagram_that_may_not_be_fragmented_learns_the_path_too() -> Result<()> {
    let fleet = fleet("slim")?;
    for (backend, client) in [("slim", "laptop"), ("thin", "tablet")] {
        served_by(&fleet, backend)?;
        let client = fleet.world.pod(client);
        for to in ports(&fleet) {
            let payload = "x".repeat(TOO_LARGE);
            let socket = client.udp_connected(to)?;
            eventually("an answer", || {
                let answer = socket.exchange(&payload)?;
                ensure!(answer.echo == payload && answer.name == backend);
                Ok(())
            })
            .with_context(|| format!("{to}, {backend}"))?;
            has_learnt(client, to.ip(), INNER_MTU)?;
        }
    }
    Ok(())
}

#[test]
fn fragmented_datagrams_go_both_ways() -> Result<()> {
    let fleet = fleet("near")?;
    let client = fleet.world.pod("laptop");
    for backend in ["near", "far"] {
        served_by(&fleet, backend)?;
        for to in ports(&fleet) {
            for round in 0..20 {
                let answer = large_datagram(client, to)
                    .with_context(|| format!("{to}, {backend}, round {round}"))?;
                let right = answer.name == backend && answer.from == to;
                let Answer { name, from, .. } = answer;
                ensure!(right, "{name} {from} instead of {backend} {to}");
            }
        }
    }
    Ok(())
}
