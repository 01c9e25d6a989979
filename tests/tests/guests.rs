//! Pods whose sockets no program of the node sees: virtual machines, other kernels. Their packets are
//! translated on the devices they come by.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use tests::{
    Pod, World,
    fleet::{Fleet, bulk, families, large_datagram, many_at_once, node_port, reached, slices},
    stage::{VIP4, VIP6, eventually},
};

const PORT: u16 = 30_080;

fn fleet(vxlan: bool) -> Result<Fleet> {
    let builder = World::builder()
        .node("node-a", ["near"])
        .guest("vm")
        .guest("other-vm")
        .node("node-b", ["far"]);
    let world = if vxlan { builder.vxlan() } else { builder }.build()?;
    let extra = ["--pod-devices", "guest*"];
    Fleet::start(world, &["node-a", "node-b"], &extra, |world, manifests| {
        manifests.service(&node_port("web", [VIP4, VIP6], PORT))?;
        slices(world, manifests, "web", &["near"])
    })
}

fn vips() -> [IpAddr; 2] {
    [VIP4, VIP6].map(|ip| ip.parse().expect("an address"))
}

fn reached_by(vm: &Pod, backend: &str) -> Result<()> {
    for (ip, seen) in vips().into_iter().zip(families(vm)) {
        let (tcp, udp) = (SocketAddr::new(ip, 80), SocketAddr::new(ip, 53));
        reached(vm, tcp, udp, &[(backend, seen)])?;
    }
    Ok(())
}

fn everything_reaches(fleet: &Fleet) -> Result<()> {
    let vm = fleet.world.pod("vm");
    for backend in ["near", "far", "other-vm"] {
        fleet.set_backends("web", &[backend])?;
        eventually(backend, || reached_by(vm, backend))?;
        for ip in vips() {
            bulk(vm, SocketAddr::new(ip, 80)).context(backend)?;
            many_at_once(vm, SocketAddr::new(ip, 80), 50).context(backend)?;
            large_datagram(vm, SocketAddr::new(ip, 53)).context(backend)?;
        }
    }
    Ok(())
}

#[test]
fn a_guest_reaches_backends_here_elsewhere_and_in_other_guests() -> Result<()> {
    everything_reaches(&fleet(false)?)
}

#[test]
fn a_guest_reaches_the_same_through_a_tunnel() -> Result<()> {
    everything_reaches(&fleet(true)?)
}

/// It must not see its own address as the client's: it would answer itself, past the node.
#[test]
fn a_guest_that_is_its_own_backend_reaches_itself() -> Result<()> {
    let fleet = fleet(false)?;
    let vm = fleet.world.pod("vm");
    fleet.set_backends("web", &["vm"])?;
    for (ip, own) in vips().into_iter().zip(families(vm)) {
        let to = SocketAddr::new(ip, 80);
        eventually("itself", || {
            let answer = vm.connect(to)?.exchange("me?")?;
            ensure!(
                answer.name == "vm" && answer.client.ip() != own,
                "{answer:?}"
            );
            Ok(())
        })?;
        let socket = vm.udp_connected(SocketAddr::new(ip, 53))?;
        let answer = socket.exchange("me?")?;
        ensure!(
            answer.name == "vm" && answer.client.ip() != own,
            "{answer:?}"
        );
        bulk(vm, to)?;
    }
    Ok(())
}

#[test]
fn a_guest_reaches_its_own_nodes_node_port() -> Result<()> {
    let fleet = fleet(false)?;
    let vm = fleet.world.pod("vm");
    let node = families(fleet.world.node("node-a").host());
    for backend in ["near", "far"] {
        fleet.set_backends("web", &[backend])?;
        for ip in node {
            let to = SocketAddr::new(ip, PORT);
            eventually(backend, || {
                let answer = vm.connect(to)?.exchange("who")?;
                ensure!(answer.name == backend, "{answer:?}");
                let answer = vm.udp_connected(to)?.exchange("who")?;
                ensure!(answer.name == backend, "{answer:?}");
                Ok(())
            })?;
            bulk(vm, to)?;
        }
    }
    Ok(())
}
