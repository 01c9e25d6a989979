//! Clients outside the cluster: NodePorts, load balancers' addresses, external IPs, routed ClusterIPs.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use tests::{
    Pod, Service, World,
    fleet::{Fleet, bulk, families, many_at_once, node_port, reached, silent, slices},
    stage::{VIP4, VIP6, eventually},
};

const PORT: u16 = 30_080;
const EXTERNAL: [&str; 2] = ["198.51.100.7", "2001:db8::7"];
const BALANCER: [&str; 2] = ["203.0.113.9", "2001:db8::9"];

fn world() -> Result<World> {
    World::builder()
        .node("node-a", ["near", "neighbour"])
        .node("node-b", ["far"])
        .outside("laptop")
        .build()
}

/// Agents on both nodes, and the Service `web` with these endpoints.
fn fleet(service: &Service, backends: &[&str]) -> Result<Fleet> {
    Fleet::start(world()?, &["node-a", "node-b"], &[], |world, manifests| {
        manifests.service(service)?;
        slices(world, manifests, "web", backends)
    })
}

fn web() -> Service {
    node_port("web", [VIP4, VIP6], PORT)
}

fn everywhere() -> Service {
    web()
        .kind("LoadBalancer")
        .external_ips(EXTERNAL)
        .load_balancer(BALANCER)
}

/// What `backend` sees of a client that dials node-a, by family: itself, or node-a when it has to pass
/// the answer on.
fn seen_by(fleet: &Fleet, client: &Pod, backend: &str) -> [IpAddr; 2] {
    let node = fleet.world.node("node-a");
    if fleet.world.node_of(backend).name() == node.name() {
        families(client)
    } else {
        [node.inner_ip4(), node.inner_ip6()]
    }
}

/// These backends answer a client that dials these addresses of node-a, ports 80 and 53.
fn service_reached(
    fleet: &Fleet,
    client: &Pod,
    addresses: [IpAddr; 2],
    [tcp, udp]: [u16; 2],
    backends: &[&str],
) -> Result<()> {
    for (at, ip) in addresses.into_iter().enumerate() {
        let wanted: Vec<(&str, IpAddr)> = backends
            .iter()
            .map(|name| (*name, seen_by(fleet, client, name)[at]))
            .collect();
        reached(
            client,
            SocketAddr::new(ip, tcp),
            SocketAddr::new(ip, udp),
            &wanted,
        )?;
    }
    Ok(())
}

#[test]
fn a_pod_here_sees_the_client_and_a_pod_elsewhere_sees_the_node() -> Result<()> {
    let fleet = fleet(&web(), &["near"])?;
    let client = fleet.world.pod("laptop");
    let node = families(fleet.world.node("node-a").host());
    for backends in [&["near"][..], &["far"], &["near", "far"]] {
        fleet.set_backends("web", backends)?;
        eventually("the new backends to answer", || {
            service_reached(&fleet, client, node, [PORT, PORT], backends)
        })
        .with_context(|| format!("{backends:?}"))?;
    }
    Ok(())
}

#[test]
fn every_nodes_port_leads_to_all_backends() -> Result<()> {
    let world = World::builder()
        .node("node-a", [""; 0])
        .node("node-b", [""; 0])
        .node("node-c", ["far"])
        .outside("laptop")
        .build()?;
    let nodes = ["node-a", "node-b", "node-c"];
    let fleet = Fleet::start(world, &nodes, &[], |world, manifests| {
        manifests.service(&web())?;
        slices(world, manifests, "web", &["far"])
    })?;
    let client = fleet.world.pod("laptop");
    for name in nodes {
        let node = families(fleet.world.node(name).host());
        let seen = if name == "node-c" {
            families(client)
        } else {
            node
        };
        for (ip, seen) in node.into_iter().zip(seen) {
            let to = SocketAddr::new(ip, PORT);
            eventually(name, || reached(client, to, to, &[("far", seen)]))?;
        }
    }
    Ok(())
}

#[test]
fn megabytes_and_many_connections_at_once_go_both_ways() -> Result<()> {
    let fleet = fleet(&web(), &["near"])?;
    let client = fleet.world.pod("laptop");
    for backend in ["near", "far"] {
        fleet.set_backends("web", &[backend])?;
        let node = families(fleet.world.node("node-a").host());
        eventually("the backend to answer", || {
            service_reached(&fleet, client, node, [PORT, PORT], &[backend])
        })?;
        for ip in node {
            let to = SocketAddr::new(ip, PORT);
            bulk(client, to).with_context(|| format!("{to}, {backend}"))?;
            many_at_once(client, to, 200).with_context(|| format!("{to}, {backend}"))?;
        }
    }
    Ok(())
}

#[test]
fn balancers_external_and_cluster_addresses_routed_to_a_node_are_served() -> Result<()> {
    let fleet = fleet(&everywhere(), &["near", "far"])?;
    let client = fleet.world.pod("laptop");
    for [v4, v6] in [BALANCER, EXTERNAL, [VIP4, VIP6]] {
        fleet.world.route("laptop", &[v4, v6], "node-a")?;
        let addresses = [v4.parse()?, v6.parse()?];
        eventually("the address to be served", || {
            service_reached(&fleet, client, addresses, [80, 53], &["near", "far"])
        })
        .with_context(|| format!("{v4} {v6}"))?;
        for ip in addresses {
            bulk(client, SocketAddr::new(ip, 80))?;
        }
    }
    Ok(())
}

/// A hostNetwork pod: its address is the node's own.
#[test]
fn a_process_on_a_nodes_network_can_be_a_backend() -> Result<()> {
    let fleet = fleet(&everywhere(), &["node-a"])?;
    let client = fleet.world.pod("laptop");
    let node = families(fleet.world.node("node-a").host());
    fleet.world.route("laptop", &BALANCER, "node-a")?;
    let balancer = [BALANCER[0].parse()?, BALANCER[1].parse()?];
    for backend in ["node-a", "node-b"] {
        fleet.set_backends("web", &[backend])?;
        eventually("the node port", || {
            service_reached(&fleet, client, node, [PORT, PORT], &[backend])
        })?;
        service_reached(&fleet, client, balancer, [80, 53], &[backend])?;
        bulk(client, SocketAddr::new(node[0], PORT))?;
    }
    Ok(())
}

#[test]
fn with_external_policy_local_only_backends_here_serve_and_all_see_the_client() -> Result<()> {
    let service = everywhere().spec("externalTrafficPolicy: Local");
    let fleet = fleet(&service, &["near", "far"])?;
    let client = fleet.world.pod("laptop");
    fleet.world.route("laptop", &BALANCER, "node-a")?;
    let balancer: [IpAddr; 2] = [BALANCER[0].parse()?, BALANCER[1].parse()?];
    for (name, backend) in [("node-a", "near"), ("node-b", "far")] {
        let node = fleet.world.node(name);
        for (ip, seen) in families(node.host()).into_iter().zip(families(client)) {
            let to = SocketAddr::new(ip, PORT);
            eventually(name, || reached(client, to, to, &[(backend, seen)]))?;
        }
    }
    service_reached(&fleet, client, balancer, [80, 53], &["near"])?;

    // None here: a balancer is to notice by its health check, not by a refusal.
    fleet.set_backends("web", &["far"])?;
    let node = families(fleet.world.node("node-a").host());
    for ip in node {
        let to = SocketAddr::new(ip, PORT);
        eventually("silence", || silent(client, to, to))?;
    }
    for ip in balancer {
        silent(client, SocketAddr::new(ip, 80), SocketAddr::new(ip, 53))?;
    }
    // What is on the node itself reaches all, as ever.
    for from in [
        fleet.world.pod("neighbour"),
        fleet.world.node("node-a").host(),
    ] {
        for ip in node {
            let to = SocketAddr::new(ip, PORT);
            tests::stage::answered_by(&from.connect_many(to, 10)?, &["far"])?;
            tests::stage::answered_by(&from.udp_many(to, 10)?, &["far"])?;
        }
    }
    Ok(())
}
