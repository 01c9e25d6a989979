//! What a client outside hears when nobody serves it: a refusal, or nothing.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use tests::{
    Service, World,
    fleet::{Fleet, families, node_port, reached, refused, silent, slices},
    stage::{VIP4, VIP6, eventually},
};

const PORT: u16 = 30_080;
const EXTERNAL: [&str; 2] = ["198.51.100.7", "2001:db8::7"];
const BALANCER: [&str; 2] = ["203.0.113.9", "2001:db8::9"];
const CIDRS: [&str; 2] = ["10.96.0.0/16", "fd96::/112"];
/// Inside them, and nobody's.
const UNALLOCATED: [&str; 2] = ["10.96.77.77", "fd96::7777"];

fn fleet(service: &Service, backends: &[&str]) -> Result<Fleet> {
    let world = World::builder()
        .node("node-a", ["near"])
        .guest("vm")
        .node("node-b", ["far"])
        .outside("laptop")
        .outside("stranger")
        .build()?;
    for client in ["laptop", "stranger"] {
        for prefixes in [EXTERNAL, BALANCER, CIDRS] {
            world.route(client, &prefixes, "node-a")?;
        }
    }
    let extra = ["--pod-devices", "guest*"];
    Fleet::start(world, &["node-a"], &extra, |world, manifests| {
        manifests.service(service)?;
        manifests.service_cidrs(&CIDRS)?;
        slices(world, manifests, "web", backends)
    })
}

fn everywhere() -> Service {
    node_port("web", [VIP4, VIP6], PORT)
        .kind("LoadBalancer")
        .external_ips(EXTERNAL)
        .load_balancer(BALANCER)
}

fn parsed(ips: [&str; 2]) -> [IpAddr; 2] {
    ips.map(|ip| ip.parse().expect("an address"))
}

#[test]
fn a_service_without_endpoints_refuses_on_every_address() -> Result<()> {
    let fleet = fleet(&everywhere(), &[])?;
    let client = fleet.world.pod("laptop");
    for ip in families(fleet.world.node("node-a").host()) {
        let to = SocketAddr::new(ip, PORT);
        eventually("the node port to refuse", || refused(client, to, to))?;
    }
    for ips in [[VIP4, VIP6], EXTERNAL, BALANCER] {
        for ip in parsed(ips) {
            let (tcp, udp) = (SocketAddr::new(ip, 80), SocketAddr::new(ip, 53));
            refused(client, tcp, udp)?;
            if ips[0] == VIP4 {
                refused(fleet.world.pod("vm"), tcp, udp).context("a guest")?;
            }
        }
    }
    // And serves as soon as there is one, also where it was refused a moment ago.
    fleet.set_backends("web", &["far"])?;
    let node = fleet.world.node("node-a");
    for (ip, seen) in families(node.host()).into_iter().zip(families(node.host())) {
        let to = SocketAddr::new(ip, PORT);
        eventually("an answer", || reached(client, to, to, &[("far", seen)]))?;
    }
    Ok(())
}

#[test]
fn a_port_that_a_cluster_ip_does_not_have_is_refused() -> Result<()> {
    let fleet = fleet(&everywhere(), &["near", "far"])?;
    for from in ["laptop", "vm"] {
        let from = fleet.world.pod(from);
        for ip in parsed([VIP4, VIP6]) {
            // 53 is UDP's, 80 is TCP's.
            for (tcp, udp) in [(81, 81), (53, 80)] {
                let (tcp, udp) = (SocketAddr::new(ip, tcp), SocketAddr::new(ip, udp));
                eventually("a refusal", || refused(from, tcp, udp))
                    .with_context(|| from.name().to_owned())?;
            }
        }
    }
    Ok(())
}

/// Counts what the nodes' default route takes out of the cluster.
const COUNT_LEAKS: &str = "table inet leaks {
  counter cluster { }
  counter other { }
  chain prerouting {
    type filter hook prerouting priority 0;
    ip daddr 10.96.0.0/16 counter name cluster
    ip6 daddr fd96::/112 counter name cluster
    ip daddr 203.0.113.77 counter name other
  }
}";

#[test]
fn an_address_of_a_service_cidr_that_is_nobodys_is_silent_and_goes_nowhere() -> Result<()> {
    let fleet = fleet(&everywhere(), &["near", "far"])?;
    fleet.world.underlay().nft(COUNT_LEAKS)?;
    let node = fleet.world.node("node-a").host();
    let world = &fleet.world;
    // Known to be served: the ServiceCIDRs are known too.
    let vip = SocketAddr::new(VIP4.parse()?, 80);
    eventually("the Service", || world.pod("near").connect(vip).map(drop))?;
    for ip in parsed(UNALLOCATED) {
        let to = SocketAddr::new(ip, 80);
        for from in [
            world.pod("laptop"),
            world.pod("vm"),
            world.pod("near"),
            node,
        ] {
            silent(from, to, to).with_context(|| from.name().to_owned())?;
        }
    }
    let leaks = |counter: &str| {
        world
            .underlay()
            .nft_counter(&format!("inet leaks {counter}"))
    };
    ensure!(leaks("cluster")? == 0, "{} packets", leaks("cluster")?);
    // They would have been seen.
    silent(
        world.pod("near"),
        "203.0.113.77:80".parse()?,
        "203.0.113.77:80".parse()?,
    )?;
    ensure!(leaks("other")? > 0);
    Ok(())
}

#[test]
fn source_ranges_bind_the_balancers_addresses_and_nothing_else() -> Result<()> {
    let allowed = "loadBalancerSourceRanges: [\"192.168.50.101/32\", \"fd50::65/128\"]";
    let fleet = fleet(&everywhere().spec(allowed), &["near"])?;
    let (laptop, stranger) = (fleet.world.pod("laptop"), fleet.world.pod("stranger"));
    let balancer = parsed(BALANCER);
    for (at, ip) in balancer.into_iter().enumerate() {
        let (tcp, udp) = (SocketAddr::new(ip, 80), SocketAddr::new(ip, 53));
        let seen = families(laptop)[at];
        eventually("the allowed client", || {
            reached(laptop, tcp, udp, &[("near", seen)])
        })?;
        silent(stranger, tcp, udp)?;
    }
    let node = families(fleet.world.node("node-a").host());
    for client in [laptop, stranger] {
        for (at, seen) in families(client).into_iter().enumerate() {
            let to = SocketAddr::new(node[at], PORT);
            reached(client, to, to, &[("near", seen)])?;
            let ip = parsed(EXTERNAL)[at];
            let (tcp, udp) = (SocketAddr::new(ip, 80), SocketAddr::new(ip, 53));
            reached(client, tcp, udp, &[("near", seen)])?;
        }
    }
    Ok(())
}
