//! Whoever dials what nobody serves is told (root): by real devices, with real senders, whose checksums are
//! left to the devices.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use proxy_common::wire::link::Link;
use tests::{
    netns::{Netns, ip_here},
    offload::{filling_in_off, vouching_off},
    packet::{
        Make, Scene,
        kernel::Kernel,
        make::{Told, Transport},
    },
    tun::Tun,
};

const TIME: Duration = Duration::from_secs(10);

/// Neighbours that need not be asked for.
fn neighbours(device: &str) -> String {
    let router = |scene: Scene| {
        format!(
            "neigh replace {} lladdr 02:00:00:00:00:01 dev {device}\n",
            scene.router()
        )
    };
    Scene::BOTH.map(router).concat()
}

/// What a process is told that dials it with TCP and with UDP.
fn refused(vip: IpAddr) -> Result<()> {
    let vip = SocketAddr::new(vip, 80);
    let error = TcpStream::connect_timeout(&vip, TIME)
        .err()
        .context("connected")?;
    ensure!(
        error.kind() == ErrorKind::ConnectionRefused,
        "TCP to {vip}: {error}"
    );
    for length in [0, 1, 32, 33, 700, 1401] {
        let socket = UdpSocket::bind(SocketAddr::new(
            if vip.is_ipv4() {
                [0; 4].into()
            } else {
                [0_u16; 8].into()
            },
            0,
        ))?;
        socket.connect(vip)?;
        socket.set_read_timeout(Some(TIME))?;
        socket.send(&vec![1; length])?;
        let error = socket.recv(&mut [0; 8]).err().context("an answer")?;
        ensure!(
            error.kind() == ErrorKind::ConnectionRefused,
            "UDP of {length} bytes to {vip}: {error}"
        );
    }
    Ok(())
}

#[test]
fn a_client_outside_is_refused() -> Result<()> {
    refuse_client(true)
}

/// The client leaves the checksum to a device; this node's device has to fill it in, within the quote;
/// and the client's device vouches for nothing.
#[test]
fn a_client_is_refused_when_the_quoted_checksum_is_filled_in_on_the_way() -> Result<()> {
    refuse_client(false)
}

fn refuse_client(offload: bool) -> Result<()> {
    let mut kernel = Kernel::load()?;
    kernel.attach("uplink", Link::Ethernet)?;
    let name = format!("kp-answers-{}-{offload}", std::process::id());
    let client = Netns::create_all(&[name])?.pop().context("a namespace")?;
    ip_here(
        &[],
        &format!("link set uplink-peer netns {}\n", client.name()),
    )?;
    let mut lines = "link set uplink-peer up\n".to_owned();
    for scene in Scene::BOTH {
        let (length, nodad) = if scene.v6 { (128, " nodad") } else { (32, "") };
        let (ip, router, vip) = (scene.client().ip(), scene.router(), scene.idle_vip());
        lines += &format!(
            "addr add {ip}/{length} dev uplink-peer{nodad}\n\
             route add {router}/{length} dev uplink-peer\n\
             route add {vip}/{length} via {router} dev uplink-peer\n"
        );
    }
    client.ip(&lines)?;
    client.ip(&neighbours("uplink-peer"))?;
    if !offload {
        filling_in_off("uplink")?;
    }
    client.enter(|| {
        if !offload {
            // Only for what comes in: what it sends is still without.
            vouching_off("uplink-peer")?;
        }
        for scene in Scene::BOTH {
            refused(scene.idle_vip())?;
        }
        anyhow::Ok(())
    })?
}

#[test]
fn a_process_of_the_node_is_refused() -> Result<()> {
    let mut kernel = Kernel::load()?;
    kernel.attach("uplink", Link::Ethernet)?;
    ip_here(&[], &neighbours("uplink"))?;
    for scene in Scene::BOTH {
        refused(scene.idle_vip())?;
    }
    Ok(())
}

#[test]
fn a_client_beyond_a_device_without_link_layer_is_answered() -> Result<()> {
    let mut kernel = Kernel::load()?;
    let mut tun = Tun::new("tunnel")?;
    ip_here(&[], "link set tunnel up\n")?;
    kernel.attach("tunnel", Link::None)?;
    let tcp = Transport::Tcp {
        flags: "S",
        seq: 1,
        ack: 0,
    };
    for scene in Scene::BOTH {
        let vip = SocketAddr::new(scene.idle_vip(), 80);
        for transport in [tcp, Transport::Udp, Transport::Sctp] {
            for length in [0, 1, 32, 33, 1301] {
                let mut make = Make::new(transport, scene.client(), vip);
                make.ethernet = false;
                make.payload = vec![7; length];
                let wanted = make.answer(vip.ip(), Told::PortUnreachable);
                tun.send(&make.frame())?;
                // The kernel sends packets of its own, to find routers.
                let answer = tun.receive(|packet| packet.len() == wanted.len())?;
                ensure!(
                    answer == wanted,
                    "{transport:?}, {length} bytes:\n    got {answer:02x?}\n wanted {wanted:02x?}"
                );
            }
        }
    }
    Ok(())
}
