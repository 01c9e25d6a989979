//! Flows from outside while backends, agents and floods come and go.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use etherparse::PacketBuilder;
use socket2::{Domain, Protocol, Socket, Type};
use tests::{
    Pod, World,
    fleet::{Fleet, families, node_port, reached, refused, slices},
    probe::{ChurnPlan, client::TIMEOUT},
    stage::{PATIENCE, VIP4, VIP6, answered_by, at, eventually},
};

const PORT: u16 = 30_080;
const OTHER_PORT: u16 = 30_081;
const OTHER_VIPS: [&str; 2] = ["10.96.0.11", "fd96::11"];

fn fleet(extra: &[&str], backends: &[&str]) -> Result<Fleet> {
    let world = World::builder()
        .node("node-a", ["near"])
        .node("node-b", ["far"])
        .outside("laptop")
        .outside("attacker")
        .build()?;
    Fleet::start(world, &["node-a", "node-b"], extra, |world, manifests| {
        manifests.service(&node_port("web", [VIP4, VIP6], PORT))?;
        manifests.service(&node_port("other", OTHER_VIPS, OTHER_PORT))?;
        slices(world, manifests, "web", backends)?;
        slices(world, manifests, "other", backends)
    })
}

fn ports(fleet: &Fleet) -> [SocketAddr; 2] {
    families(fleet.world.node("node-a").host()).map(|ip| SocketAddr::new(ip, PORT))
}

/// Until both node ports of node-a answer.
fn ready(fleet: &Fleet) -> Result<()> {
    let client = fleet.world.pod("laptop");
    for to in ports(fleet) {
        for port in [PORT, OTHER_PORT] {
            let to = SocketAddr::new(to.ip(), port);
            eventually("an answer", || client.connect(to)?.exchange("who"))?;
        }
    }
    Ok(())
}

#[test]
fn a_udp_flow_moves_on_when_its_backend_goes_and_is_refused_when_there_is_none() -> Result<()> {
    let fleet = fleet(&[], &["near", "far"])?;
    ready(&fleet)?;
    let client = fleet.world.pod("laptop");
    for to in ports(&fleet) {
        fleet.set_backends("web", &["near", "far"])?;
        let socket = client.udp_connected(to)?;
        let first = eventually("an answer", || socket.exchange("who"))?.name;
        let other = if first == "near" { "far" } else { "near" };
        for _ in 0..20 {
            let answer = socket.exchange("still you?")?;
            ensure!(answer.name == first, "{answer:?}, before: {first}");
        }
        for backend in [other, &first, other] {
            fleet.set_backends("web", &[backend])?;
            eventually("the other backend", || {
                let answer = socket.exchange("who now?")?;
                ensure!(answer.name == backend, "{answer:?}");
                Ok(())
            })?;
        }
        fleet.set_backends("web", &[])?;
        eventually("a refusal", || {
            let error = tests::net_error(socket.exchange("anybody?"))?;
            ensure!(error.errno == "ECONNREFUSED", "{error}");
            Ok(())
        })?;
        fleet.set_backends("web", &[&first])?;
        eventually("the first to be back", || {
            let answer = socket.exchange("you again?")?;
            ensure!(answer.name == first, "{answer:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_tcp_connection_stays_with_a_backend_that_was_removed() -> Result<()> {
    let fleet = fleet(&[], &["near"])?;
    ready(&fleet)?;
    let client = fleet.world.pod("laptop");
    let mut connections = Vec::new();
    for backend in ["near", "far"] {
        fleet.set_backends("web", &[backend])?;
        for to in ports(&fleet) {
            eventually("the backend", || {
                answered_by(&client.connect_many(to, 5)?, &[backend])
            })?;
            connections.push((client.connect(to)?, backend));
        }
    }
    fleet.set_backends("web", &[])?;
    for to in ports(&fleet) {
        eventually("new ones to be refused", || refused(client, to, to))?;
    }
    for (connection, backend) in &connections {
        let answer = connection.exchange("still there?")?;
        ensure!(answer.name == *backend, "{answer:?}");
    }
    Ok(())
}

#[test]
fn a_killed_agent_that_comes_back_loses_no_connection() -> Result<()> {
    let mut fleet = fleet(&[], &["near", "far"])?;
    ready(&fleet)?;
    let to = ports(&fleet);
    let client = fleet.world.pod("laptop");
    let open = to
        .into_iter()
        .flat_map(|to| [to; 4])
        .map(|to| {
            let connection = client.connect(to)?;
            let name = connection.exchange("who")?.name;
            let socket = client.udp_connected(to)?;
            let udp_name = socket.exchange("who")?.name;
            Ok((connection, name, socket, udp_name))
        })
        .collect::<Result<Vec<_>>>()?;
    let still_open = |when: &str| -> Result<()> {
        for (connection, name, socket, udp_name) in &open {
            let answer = connection.exchange("TCP").context(when.to_owned())?;
            ensure!(answer.name == *name, "{when}: {answer:?}");
            let answer = socket.exchange("UDP").context(when.to_owned())?;
            ensure!(answer.name == *udp_name, "{when}: {answer:?}");
        }
        Ok(())
    };
    let churns = to
        .into_iter()
        .map(|to| {
            let plan = ChurnPlan {
                threads: 2,
                pause: Duration::from_millis(2),
                ..ChurnPlan::new(to, ["near", "far"])
            };
            client.churn(plan)
        })
        .collect::<Result<Vec<_>>>()?;
    let go_on = || -> Result<()> {
        for churn in &churns {
            churn.wait_attempts(100, PATIENCE)?;
        }
        Ok(())
    };
    for agent in &mut fleet.agents {
        go_on()?;
        agent.kill();
        go_on()?;
        still_open("while it is dead")?;
        agent.restart()?;
        agent.wait_ready(PATIENCE)?;
        go_on()?;
        still_open("after its return")?;
    }
    for churn in churns {
        let report = churn.stop()?;
        ensure!(
            report.tally.failed() == 0 && report.misdirected.is_empty(),
            "{report:?}"
        );
    }
    Ok(())
}

/// Toward the backend both flows look the same, unless one gets another port.
#[test]
fn one_client_port_reaches_one_backend_through_two_services_at_once() -> Result<()> {
    let fleet = fleet(&[], &["near"])?;
    ready(&fleet)?;
    let client = fleet.world.pod("laptop");
    let mut port = 20_000;
    for backend in ["near", "far"] {
        fleet.set_backends("web", &[backend])?;
        fleet.set_backends("other", &[backend])?;
        for first in ports(&fleet) {
            let second = SocketAddr::new(first.ip(), OTHER_PORT);
            for to in [first, second] {
                eventually("the backend", || {
                    answered_by(&client.connect_many(to, 5)?, &[backend])
                })?;
            }
            port += 1;
            let any = if first.is_ipv6() { "::" } else { "0.0.0.0" };
            let from = at(any, port);
            let connections = [first, second]
                .into_iter()
                .map(|to| client.connect_from(Some(from), to, TIMEOUT))
                .collect::<Result<Vec<_>>>()?;
            let socket = client.udp_bound(from)?;
            for round in 0..20 {
                for (connection, to) in connections.iter().zip([first, second]) {
                    let line = format!("{round} to {to}");
                    for answer in [
                        connection.exchange(&line)?,
                        socket.exchange_with(to, &line)?,
                    ] {
                        ensure!(
                            answer.name == backend && answer.echo == line && answer.from == to,
                            "{answer:?}"
                        );
                    }
                }
            }
        }
    }
    Ok(())
}

/// Closed connections don't keep the node's source ports from the next ones.
#[test]
fn connections_in_quick_succession_do_not_run_out_of_source_ports() -> Result<()> {
    let fleet = fleet(&[], &["far"])?;
    ready(&fleet)?;
    let client = fleet.world.pod("laptop");
    for to in ports(&fleet) {
        // Closed by a reset.
        let tally = client.connect_many(to, 6_000)?;
        answered_by(&tally, &["far"]).with_context(|| format!("reset, {to}"))?;
    }
    // Closed in order, by the client.
    let to = ports(&fleet)[0];
    for number in 0..6_000 {
        let connection = client
            .connect(to)
            .with_context(|| format!("connection {number}"))?;
        connection.exchange("who")?;
        connection.close()?;
    }
    Ok(())
}

/// The smallest that the flag takes is too large to be flooded in a moment.
const HALF_OPEN: u32 = 4096;
const FLOOD: u32 = 100_000;

/// SYNs from addresses that are nobody's, each another.
fn flood(attacker: &Pod, to: SocketAddr) -> Result<()> {
    let IpAddr::V4(target) = to.ip() else {
        anyhow::bail!("{to} is not IPv4");
    };
    attacker.netns().enter(|| -> Result<()> {
        // IPPROTO_RAW: the packet brings its own header.
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))?;
        for number in 0..FLOOD {
            let source = Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + number);
            let port = 1024 + u16::try_from(number % 60_000)?;
            let packet = PacketBuilder::ipv4(source.octets(), target.octets(), 64)
                .tcp(port, to.port(), number, 64_000)
                .syn();
            let mut bytes = Vec::with_capacity(40);
            packet.write(&mut bytes, &[])?;
            socket.send_to(&bytes, &SocketAddr::new(target.into(), 0).into())?;
        }
        Ok(())
    })?
}

#[test]
fn a_flood_of_syns_pushes_out_no_established_flow() -> Result<()> {
    let fleet = fleet(&["--max-half-open", &HALF_OPEN.to_string()], &["near"])?;
    ready(&fleet)?;
    let (client, attacker) = (fleet.world.pod("laptop"), fleet.world.pod("attacker"));
    for backend in ["near", "far"] {
        fleet.set_backends("web", &[backend])?;
        let to = ports(&fleet)[0];
        eventually("the backend", || {
            answered_by(&client.connect_many(to, 5)?, &[backend])
        })?;
        let connections = (0..20)
            .map(|_| client.connect(to))
            .collect::<Result<Vec<_>>>()?;
        let sockets = (0..5)
            .map(|_| client.udp_connected(to))
            .collect::<Result<Vec<_>>>()?;
        let alive = |when: &str| -> Result<()> {
            for connection in &connections {
                let answer = connection.exchange(when);
                let answer = answer.with_context(|| format!("{when}, {backend}"))?;
                ensure!(answer.name == backend, "{when}: {answer:?}");
            }
            for socket in &sockets {
                let answer = socket.exchange(when);
                let answer = answer.with_context(|| format!("{when}, {backend}"))?;
                ensure!(answer.name == backend, "{when}: {answer:?}");
            }
            Ok(())
        };
        // Twice: a second packet after an answer proves a UDP client.
        alive("before")?;
        alive("before, again")?;
        std::thread::scope(|scope| -> Result<()> {
            let flood = scope.spawn(|| flood(attacker, to));
            while !flood.is_finished() {
                alive("meanwhile")?;
            }
            flood.join().expect("no panic")
        })?;
        alive("after")?;
        // And new ones come again.
        let node = fleet.world.node("node-a");
        let seen = if backend == "near" {
            client.ip4()
        } else {
            node.ip4()
        };
        eventually("new flows", || reached(client, to, to, &[(backend, seen)]))?;
    }
    Ok(())
}
