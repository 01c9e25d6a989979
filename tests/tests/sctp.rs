//! SCTP: where no program sees it, and where packets are translated. Skipped, and shown as ignored, on a
//! kernel without SCTP (CONFIG_IP_SCTP; `modprobe sctp`): that can't be known before they run, so this file
//! has a `main` of its own.

use std::{
    net::{IpAddr, SocketAddr},
    process::ExitCode,
};

use anyhow::{Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use tests::{
    EndpointSlice, ManifestDir, Pod, Service, World,
    fleet::{Fleet, families},
    probe::{
        Answer,
        client::TIMEOUT,
        sctp::{Way, is_there},
    },
    stage::{Stage, TARGET, VIP4, VIP6, at, eventually},
};

/// 36412 is that of S1AP, which mobile networks dial.
const PORT: u16 = 36_412;
const NODE_PORT: u16 = 30_412;

fn main() -> ExitCode {
    let skipped = !is_there();
    if skipped {
        eprintln!("these tests are skipped: this kernel has no SCTP (modprobe sctp)");
    }
    let trials = [
        Trial::test("no_hook_sees_a_socket_that_dials", || {
            shown(no_hook_sees_a_socket_that_dials())
        }),
        Trial::test("pods_on_named_devices_are_served", || {
            shown(pods_on_named_devices_are_served())
        }),
        Trial::test("clients_outside_are_served", || {
            shown(clients_outside_are_served())
        }),
    ];
    let trials = trials.map(|trial| trial.with_ignored_flag(skipped));
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit_code()
}

fn shown(result: Result<()>) -> Result<(), Failed> {
    result.map_err(|error| format!("{error:?}").into())
}

fn s1(service: Service) -> Service {
    service.port("s1", "SCTP", PORT, None)
}

fn s1_slices(world: &World, manifests: &ManifestDir, backends: &[&str]) -> Result<()> {
    let slices = [
        EndpointSlice::v4("web", "s1-4"),
        EndpointSlice::v6("web", "s1-6"),
    ];
    for (slice, ip) in slices.into_iter().zip([Pod::ip4, Pod::ip6]) {
        let slice = backends.iter().fold(
            slice.port("s1", "SCTP", TARGET).tcp("http", TARGET),
            |slice, name| slice.ready(ip(world.place(name)), world.node_of(name).name()),
        );
        manifests.slice(&slice)?;
    }
    Ok(())
}

fn vips() -> [IpAddr; 2] {
    [VIP4, VIP6].map(|ip| ip.parse().expect("an address"))
}

/// The dialled address answers as itself, whoever it leads to.
fn answered(from: &Pod, to: SocketAddr, way: Way) -> Result<Answer> {
    let answer = from.ask_sctp(to, way, TIMEOUT)?;
    ensure!(answer.from == to, "{way:?} to {to}: {answer:?}");
    Ok(answer)
}

/// TCP to the same address shows that the hooks are there.
fn no_hook_sees_a_socket_that_dials() -> Result<()> {
    let stage = Stage::new(|world, manifests| {
        manifests.service(&s1(Service::new("web", [VIP4, VIP6]).tcp("http", PORT)))?;
        s1_slices(world, manifests, &["backend-1"])
    })?;
    let client = stage.client();
    // The dialled address itself is in the client's own network.
    for (vip, bits) in [(VIP4, 32), (VIP6, 128)] {
        client
            .netns()
            .ip(&format!("addr add {vip}/{bits} dev lo nodad\n"))?;
        client.serve_sctp(at(vip, PORT), "untranslated")?;
    }
    let counters = || Ok::<_, anyhow::Error>(stage.agent.status()?["counters"].clone());
    let before = counters()?;
    for vip in [VIP4, VIP6] {
        for way in Way::ALL {
            let answer = answered(client, at(vip, PORT), way)?;
            ensure!(answer.name == "untranslated", "{way:?}: {answer:?}");
        }
    }
    ensure!(counters()? == before, "{before}");
    for vip in [VIP4, VIP6] {
        let answer = client.connect(at(vip, PORT))?.exchange("who")?;
        ensure!(answer.name == "backend-1", "{answer:?}");
    }
    ensure!(counters()? != before, "{before}");
    Ok(())
}

fn fleet(extra: &[&str]) -> Result<Fleet> {
    let world = World::builder()
        .node("node-a", ["client", "near"])
        .node("node-b", ["far"])
        .outside("outside")
        .build()?;
    let fleet = Fleet::start(world, &["node-a", "node-b"], extra, |world, manifests| {
        let service = Service::new("web", [VIP4, VIP6])
            .kind("NodePort")
            .tcp("http", 80);
        manifests.service(&service.port("s1", "SCTP", PORT, Some(NODE_PORT)))?;
        s1_slices(world, manifests, &["near"])
    })?;
    for name in ["client", "near", "far"] {
        let pod = fleet.world.pod(name);
        for ip in families(pod) {
            pod.serve_sctp((ip, TARGET), name)?;
        }
    }
    Ok(fleet)
}

fn pods_on_named_devices_are_served() -> Result<()> {
    let fleet = fleet(&["--pod-devices", "pod*"])?;
    let client = fleet.world.pod("client");
    for backend in ["near", "far", "client"] {
        s1_slices(&fleet.world, &fleet.manifests, &[backend])?;
        for (vip, own) in vips().into_iter().zip(families(client)) {
            let to = SocketAddr::new(vip, PORT);
            eventually(backend, || {
                let answer = answered(client, to, Way::Connect)?;
                ensure!(answer.name == backend, "{answer:?}");
                Ok(())
            })?;
            for way in Way::ALL {
                let answer = answered(client, to, way)?;
                // Who is its own backend must not see itself.
                let sees_itself = answer.client.ip() == own;
                ensure!(
                    answer.name == backend && sees_itself == (backend != "client"),
                    "{way:?}: {answer:?}"
                );
            }
            // What the socket path has translated is left alone.
            let answer = client.connect(SocketAddr::new(vip, 80))?.exchange("who")?;
            ensure!(
                answer.name == backend && answer.client.ip() == own,
                "TCP: {answer:?}"
            );
        }
    }
    Ok(())
}

fn clients_outside_are_served() -> Result<()> {
    let fleet = fleet(&[])?;
    let outside = fleet.world.pod("outside");
    let node = fleet.world.node("node-a").host();
    for backend in ["near", "far"] {
        s1_slices(&fleet.world, &fleet.manifests, &[backend])?;
        for (ip, own) in families(node).into_iter().zip(families(outside)) {
            let to = SocketAddr::new(ip, NODE_PORT);
            eventually(backend, || {
                let answer = answered(outside, to, Way::Connect)?;
                ensure!(answer.name == backend, "{answer:?}");
                Ok(())
            })?;
            for way in Way::ALL {
                let answer = answered(outside, to, way)?;
                let seen = if backend == "near" { own } else { ip };
                ensure!(
                    answer.name == backend && answer.client.ip() == seen,
                    "{way:?}: {answer:?}"
                );
            }
        }
    }
    Ok(())
}
