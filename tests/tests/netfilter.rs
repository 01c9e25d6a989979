//! Beside a CNI that filters by connection tracking: its rules see both directions of whatever passes a
//! pod's device with the same addresses, and a policy about a client bites although it dialled a
//! Service.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use tests::{
    World,
    fleet::{
        Fleet, bulk, families, large_datagram, many_at_once, node_port, reached, silent, slices,
    },
    stage::{VIP4, VIP6, eventually},
};

const PORT: u16 = 30_080;
const BALANCER: [&str; 2] = ["203.0.113.9", "2001:db8::9"];

/// What a CNI puts on a node: replies of known connections pass, what belongs to none is dropped, new
/// ones are subject to policies. The last rule but one is what rp_filter is, for IPv6.
const RULES: &str = "table inet cni {
  counter invalid { }
  counter reverse { }
  counter established { }
  counter guarded { }
  set blocked4 { type ipv4_addr; }
  set blocked6 { type ipv6_addr; }
  set guarded4 { type ipv4_addr; }
  set guarded6 { type ipv6_addr; }
  chain prerouting {
    type filter hook prerouting priority -300;
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
    meta nfproto ipv6 fib saddr . iif oif missing counter name reverse drop
  }
  chain input {
    type filter hook input priority 0;
    ct state invalid counter name invalid drop
  }
  chain forward {
    type filter hook forward priority 0;
    ct state invalid counter name invalid drop
    ct state established,related counter name established accept
    ip saddr @blocked4 ip daddr @guarded4 counter name guarded drop
    ip6 saddr @blocked6 ip6 daddr @guarded6 counter name guarded drop
  }
  chain output {
    type filter hook output priority 0;
    ct state invalid counter name invalid drop
  }
}";

fn fleet(vxlan: bool) -> Result<Fleet> {
    let builder = World::builder()
        .node("node-a", ["near"])
        .guest("vm")
        .node("node-b", ["far"])
        .outside("laptop")
        .outside("stranger")
        .strict_rp_filter();
    let world = if vxlan { builder.vxlan() } else { builder }.build()?;
    for node in world.nodes() {
        node.netns().nft(RULES)?;
    }
    for client in ["laptop", "stranger"] {
        world.route(client, &BALANCER, "node-a")?;
    }
    let extra = ["--pod-devices", "guest*"];
    Fleet::start(world, &["node-a", "node-b"], &extra, |world, manifests| {
        let service = node_port("web", [VIP4, VIP6], PORT)
            .kind("LoadBalancer")
            .load_balancer(BALANCER);
        manifests.service(&service)?;
        slices(world, manifests, "web", &["near"])
    })
}

/// NodePort and balancer, TCP and UDP, small and large.
fn everything_works(fleet: &Fleet) -> Result<()> {
    let (client, node) = (fleet.world.pod("laptop"), fleet.world.node("node-a"));
    let vm = fleet.world.pod("vm");
    for backend in ["near", "far", "node-a"] {
        fleet.set_backends("web", &[backend])?;
        let seen = if backend == "far" {
            [node.inner_ip4(), node.inner_ip6()]
        } else {
            families(client)
        };
        for (at, ip) in families(node.host()).into_iter().enumerate() {
            let to = SocketAddr::new(ip, PORT);
            let wanted = [(backend, seen[at])];
            eventually("the backend to answer", || reached(client, to, to, &wanted))
                .with_context(|| backend.to_owned())?;
            let balancer = BALANCER[at].parse()?;
            let (tcp, udp) = (SocketAddr::new(balancer, 80), SocketAddr::new(balancer, 53));
            reached(client, tcp, udp, &wanted)?;
            bulk(client, to).with_context(|| format!("{to}, {backend}"))?;
            many_at_once(client, to, 50)?;
            // The first may be lost to the error that tells the client of the tunnel.
            eventually("fragments", || large_datagram(client, to))
                .with_context(|| format!("{to}, {backend}"))?;
            let vip = [VIP4, VIP6][at].parse()?;
            bulk(vm, SocketAddr::new(vip, 80)).context("a guest")?;
            large_datagram(vm, SocketAddr::new(vip, 53)).context("a guest")?;
        }
    }
    Ok(())
}

fn count(fleet: &Fleet, node: &str, counter: &str) -> Result<u64> {
    let netns = fleet.world.node(node).netns();
    netns.nft_counter(&format!("inet cni {counter}"))
}

fn nothing_was_dropped(fleet: &Fleet) -> Result<()> {
    for node in ["node-a", "node-b"] {
        for counter in ["invalid", "reverse"] {
            let dropped = count(fleet, node, counter)?;
            ensure!(dropped == 0, "{node}: {dropped} packets {counter}");
        }
    }
    // They saw it: what is for a pod of the node is never led past them.
    let passed = count(fleet, "node-a", "established")?;
    ensure!(passed > 0, "no reply passed netfilter");
    Ok(())
}

#[test]
fn nothing_is_invalid_to_connection_tracking() -> Result<()> {
    let fleet = fleet(false)?;
    everything_works(&fleet)?;
    nothing_was_dropped(&fleet)
}

#[test]
fn nor_is_it_with_a_tunnel() -> Result<()> {
    let fleet = fleet(true)?;
    everything_works(&fleet)?;
    nothing_was_dropped(&fleet)
}

#[test]
fn a_policy_against_a_client_holds_for_what_it_sends_to_a_service() -> Result<()> {
    let fleet = fleet(false)?;
    let (laptop, stranger) = (fleet.world.pod("laptop"), fleet.world.pod("stranger"));
    let ([bad4, bad6], [near4, near6]) = (families(stranger), families(fleet.world.pod("near")));
    let node = fleet.world.node("node-a");
    node.netns().nft(&format!(
        "add element inet cni blocked4 {{ {bad4} }}\nadd element inet cni blocked6 {{ {bad6} }}\n\
         add element inet cni guarded4 {{ {near4} }}\nadd element inet cni guarded6 {{ {near6} }}\n"
    ))?;
    for (ip, seen) in families(node.host()).into_iter().zip(families(laptop)) {
        let to = SocketAddr::new(ip, PORT);
        eventually("the allowed client", || {
            reached(laptop, to, to, &[("near", seen)])
        })?;
        let before = count(&fleet, "node-a", "guarded")?;
        silent(stranger, to, to)?;
        let after = count(&fleet, "node-a", "guarded")?;
        ensure!(
            after >= before + 2,
            "{before} packets before, {after} after"
        );
        reached(laptop, to, to, &[("near", seen)])?;
    }
    nothing_was_dropped(&fleet)
}
