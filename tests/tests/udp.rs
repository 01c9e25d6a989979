//! UDP flows and what moves them: BEHAVIOUR C1 to C5.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use tests::{
    EndpointSlice, ManifestDir, Service, net_error,
    probe::{Answer, client::Udp},
    stage::{BACKENDS, Stage, TARGET, VIP4, VIP6, at, eventually, mapped, web_slices_on},
};

/// A lost datagram is no reason to wait long.
const SHORT: Duration = Duration::from_millis(300);

fn vips() -> [SocketAddr; 3] {
    [at(VIP4, 53), at(VIP6, 53), mapped(VIP4, 53)]
}

/// A socket that has a flow with `vip`, and what it knows of it.
struct Flow<'a> {
    socket: Udp<'a>,
    vip: SocketAddr,
    connected: bool,
    first: Answer,
}

impl<'a> Flow<'a> {
    fn connected(stage: &'a Stage, vip: SocketAddr) -> Result<Self> {
        let socket = stage.client().probe().udp_connected(vip)?;
        Self::begin(socket, vip, true)
    }

    fn unconnected(stage: &'a Stage, vip: SocketAddr) -> Result<Self> {
        let any = if vip.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
        let socket = stage
            .client()
            .probe()
            .udp_bound(any.parse::<SocketAddr>()?)?;
        Self::begin(socket, vip, false)
    }

    fn begin(socket: Udp<'a>, vip: SocketAddr, connected: bool) -> Result<Self> {
        let to = (!connected).then_some(vip);
        let first = socket.exchange_within(to, "first", SHORT * 5)?;
        ensure!(first.from == vip, "{first:?} is not from {vip}");
        Ok(Self {
            socket,
            vip,
            connected,
            first,
        })
    }

    /// Of both kinds, to every address.
    fn of_every_kind(stage: &'a Stage) -> Result<Vec<Self>> {
        let mut flows = Vec::new();
        for vip in vips() {
            flows.push(Self::connected(stage, vip)?);
            flows.push(Self::unconnected(stage, vip)?);
        }
        Ok(flows)
    }

    fn ask(&self, payload: &str) -> Result<Answer> {
        let to = (!self.connected).then_some(self.vip);
        self.socket.exchange_within(to, payload, SHORT)
    }

    /// From the address that was dialled, and to the port it was dialled from.
    fn check(&self, answer: &Answer) -> Result<()> {
        ensure!(
            answer.from == self.vip,
            "{answer:?} is not from {}",
            self.vip
        );
        ensure!(
            answer.client == self.first.client,
            "{answer:?}: it was {} before",
            self.first.client
        );
        if self.connected {
            let peer = self.socket.peer_name()?;
            ensure!(peer == self.vip, "getpeername: {peer}");
        }
        Ok(())
    }

    fn stays(&self) -> Result<()> {
        for number in 0..20 {
            let answer = self.ask(&number.to_string())?;
            self.check(&answer)?;
            ensure!(
                answer.name == self.first.name,
                "{answer:?} after {:?}",
                self.first
            );
        }
        Ok(())
    }

    /// Answered by one of these from some moment on.
    fn reaches(&self, names: &[&str]) -> Result<()> {
        eventually(&format!("{self} to reach {names:?}"), || {
            let answer = self.ask("moved?")?;
            self.check(&answer)?;
            ensure!(names.contains(&answer.name.as_str()), "{answer:?}");
            Ok(())
        })?;
        for _ in 0..5 {
            let answer = self.ask("settled?")?;
            self.check(&answer)?;
            ensure!(names.contains(&answer.name.as_str()), "{answer:?} again");
        }
        Ok(())
    }

    /// ECONNREFUSED, and never anything but that or an answer from before.
    fn is_refused(&self) -> Result<()> {
        eventually(&format!("{self} to be refused"), || {
            let error = net_error(self.ask("refused?"))?;
            ensure!(error.errno == "ECONNREFUSED", "{error}");
            Ok(())
        })?;
        let error = net_error(self.ask("refused again?"))?;
        ensure!(error.errno == "ECONNREFUSED", "again: {error}");
        if self.connected {
            let peer = self.socket.peer_name()?;
            ensure!(peer == self.vip, "getpeername: {peer}");
        }
        Ok(())
    }
}

impl std::fmt::Display for Flow<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if self.connected {
            "connected"
        } else {
            "unconnected"
        };
        write!(f, "{kind} socket of {}", self.vip)
    }
}

fn others(name: &str) -> Vec<&'static str> {
    BACKENDS
        .into_iter()
        .filter(|other| *other != name)
        .collect()
}

#[test]
fn a_flow_stays_with_its_backend_whatever_comes_and_goes_beside_it() -> Result<()> {
    let stage = Stage::usual()?;
    for make in [Flow::connected, Flow::unconnected] {
        for vip in vips() {
            let flow = make(&stage, vip)?;
            flow.stays()?;
            stage.set_backends(&[&flow.first.name])?;
            flow.stays()?;
            stage.set_backends(&BACKENDS)?;
            flow.stays()?;
        }
    }
    Ok(())
}

#[test]
fn a_flow_moves_when_its_endpoint_is_removed() -> Result<()> {
    let stage = Stage::usual()?;
    for make in [Flow::connected, Flow::unconnected] {
        for vip in vips() {
            let flow = make(&stage, vip)?;
            let rest = others(&flow.first.name);
            stage.set_backends(&rest)?;
            flow.reaches(&rest)?;
            stage.set_backends(&BACKENDS)?;
        }
    }
    Ok(())
}

#[test]
fn many_connected_sockets_move_at_once_and_the_others_stay() -> Result<()> {
    let stage = Stage::usual()?;
    let flows = (0..150)
        .map(|number| Flow::connected(&stage, vips()[number % 3]))
        .collect::<Result<Vec<_>>>()?;
    stage.set_backends(&others("backend-1"))?;
    for flow in flows {
        if flow.first.name == "backend-1" {
            flow.reaches(&others("backend-1"))?;
        } else {
            flow.stays()?;
        }
    }
    ensure!(stage.agent.count_log("not found") == stage.agent.count_log(" 0 not found"));
    Ok(())
}

#[test]
fn without_endpoints_a_flow_is_refused_rather_than_silent_and_comes_back() -> Result<()> {
    let stage = Stage::usual()?;
    let flows = Flow::of_every_kind(&stage)?;
    for round in ["backend-3", "backend-1"] {
        stage.set_backends(&[])?;
        for flow in &flows {
            flow.is_refused()?;
        }
        stage.set_backends(&[round])?;
        for flow in &flows {
            flow.reaches(&[round])?;
        }
    }
    Ok(())
}

#[test]
fn a_receiver_that_only_waits_is_woken_when_the_last_endpoint_goes_or_at_its_next_send()
-> Result<()> {
    let stage = Stage::usual()?;
    let flow = Flow::connected(&stage, at(VIP4, 53))?;
    stage.set_backends(&[])?;
    stage.agent.wait_log("1 parked", tests::stage::PATIENCE)?;
    flow.is_refused()
}

#[test]
fn a_flow_that_began_before_the_first_endpoint_works_once_there_is_one() -> Result<()> {
    let stage = Stage::new(|world, manifests| {
        manifests.service(
            &Service::new("web", [VIP4, VIP6])
                .tcp("http", 80)
                .udp("dns", 53),
        )?;
        tests::stage::web_slices(world, manifests, &[])
    })?;
    let socket = stage
        .client()
        .probe()
        .udp_bound("0.0.0.0:0".parse::<SocketAddr>()?)?;
    let error = net_error(socket.exchange_with(at(VIP4, 53), "x"))?;
    ensure!(error.errno == "ECONNREFUSED", "{error}");
    stage.set_backends(&["backend-2"])?;
    eventually("the same socket to be served", || {
        let answer = socket.exchange_within(Some(at(VIP4, 53)), "x", SHORT)?;
        ensure!(answer.name == "backend-2" && answer.from == at(VIP4, 53));
        Ok(())
    })
}

#[test]
fn a_flow_follows_a_change_of_the_target_port() -> Result<()> {
    let stage = Stage::new(|world, manifests| {
        // The same pod under another name, by which the port is told.
        let pod = world.pod("backend-1");
        for ip in [pod.ip4(), pod.ip6()] {
            let proto = tests::probe::Proto::Udp;
            pod.probe()
                .serve(proto, SocketAddr::new(ip, 9090), "new-port")?;
        }
        manifests.service(
            &Service::new("web", [VIP4, VIP6])
                .tcp("http", 80)
                .udp("dns", 53),
        )?;
        web_slices_on(world, manifests, TARGET, &["backend-1"])
    })?;
    let flows = Flow::of_every_kind(&stage)?;
    web_slices_on(&stage.world, &stage.manifests, 9090, &["backend-1"])?;
    for flow in &flows {
        flow.reaches(&["new-port"])?;
    }
    Ok(())
}

/// `name` as given, the other backends ready.
fn condition(stage: &Stage, name: &str, ready: bool, serving: bool) -> Result<()> {
    let mut v4 = EndpointSlice::v4("web", "web-4")
        .tcp("http", TARGET)
        .udp("dns", TARGET);
    let mut v6 = EndpointSlice::v6("web", "web-6")
        .tcp("http", TARGET)
        .udp("dns", TARGET);
    for other in BACKENDS {
        let pod = stage.world.pod(other);
        let (ready, serving) = if other == name {
            (ready, serving)
        } else {
            (true, true)
        };
        v4 = v4.endpoint(pod.ip4(), "node-a", ready, serving, !ready);
        v6 = v6.endpoint(pod.ip6(), "node-a", ready, serving, !ready);
    }
    stage.manifests.slice(&v4)?;
    stage.manifests.slice(&v6)?;
    let ip = stage.world.pod(name).ip4().to_string();
    eventually("the endpoint's condition to be known", || {
        ensure!(stage.backends_of(VIP4, 53)?.contains(&ip) == ready);
        Ok(())
    })
}

#[test]
fn an_endpoint_that_leaves_but_still_serves_keeps_its_flows_and_gets_no_new_ones() -> Result<()> {
    let stage = Stage::usual()?;
    let flows = Flow::of_every_kind(&stage)?;
    for leaving in BACKENDS {
        condition(&stage, leaving, false, true)?;
        for flow in &flows {
            flow.stays()
                .with_context(|| format!("while {leaving} leaves"))?;
        }
        for vip in vips() {
            let probe = stage.client().probe();
            for tally in [probe.udp_many(vip, 30)?, probe.udp_connected_many(vip, 30)?] {
                ensure!(
                    tally.failed() == 0 && tally.of(leaving) == 0,
                    "{leaving}: {tally}"
                );
            }
        }
        condition(&stage, leaving, true, true)?;
    }
    // Once it does not serve any more, they go elsewhere.
    condition(&stage, "backend-2", false, false)?;
    for flow in &flows {
        if flow.first.name == "backend-2" {
            flow.reaches(&others("backend-2"))?;
        } else {
            flow.stays()?;
        }
    }
    Ok(())
}

#[test]
fn a_deleted_service_leaves_its_flows_alone_and_a_new_one_takes_them_over() -> Result<()> {
    let stage = Stage::usual()?;
    let flow = Flow::connected(&stage, at(VIP4, 53))?;
    stage.manifests.remove("default-web.yaml")?;
    eventually("the Service to go", || {
        ensure!(stage.frontend(VIP4, 53)?.is_none());
        Ok(())
    })?;
    flow.stays()?;
    let rest = others(&flow.first.name);
    tests::stage::web_slices(&stage.world, &stage.manifests, &rest)?;
    let service = Service::new("web", [VIP4, VIP6])
        .tcp("http", 80)
        .udp("dns", 53);
    stage.manifests.service(&service)?;
    flow.reaches(&rest)
}

#[test]
fn the_agent_moves_sockets_whose_backend_went_while_it_was_away() -> Result<()> {
    let mut stage = Stage::usual()?;
    stage.agent.kill();
    let manifests = ManifestDir::at(stage.manifests.path())?;
    // Still served by what is in the kernel.
    let (vip, probe) = (at(VIP4, 53), stage.world.pod("client").probe());
    let socket = probe.udp_connected(vip)?;
    let first = socket.exchange("first")?;
    let rest = others(&first.name);
    tests::stage::web_slices(&stage.world, &manifests, &rest)?;
    stage.agent.restart()?;
    eventually("the socket to move", || {
        let answer = socket.exchange_within(None, "moved?", SHORT)?;
        ensure!(
            answer.from == vip && answer.client == first.client,
            "{answer:?}"
        );
        ensure!(rest.contains(&answer.name.as_str()), "{answer:?}");
        Ok(())
    })
}

#[test]
fn a_socket_whose_maker_has_ended_is_found_in_its_child() -> Result<()> {
    let stage = Stage::usual()?;
    // The shell dials, a child of it inherits the socket and answers each line; the shell ends.
    let script = format!(
        "exec 3<>/dev/udp/{VIP4}/53
         while read -r line; do
             printf '%s' \"$line\" >&3
             timeout 0.3 dd bs=2048 count=1 <&3 2>/dev/null || echo nothing
             echo
         done <&0 &
         exit 0"
    );
    let mut shell = stage
        .client()
        .command("bash")?
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    // Before wait(), which closes what it finds.
    let (Some(mut input), Some(output)) = (shell.stdin.take(), shell.stdout.take()) else {
        bail!("no pipes");
    };
    ensure!(shell.wait()?.success());
    let mut lines = BufReader::new(output).lines();
    let mut ask = || -> Result<String> {
        writeln!(input, "hello")?;
        loop {
            let line = lines.next().context("the child has ended")??;
            if let Some(name) = line.split(' ').next().filter(|name| !name.is_empty()) {
                return Ok(name.to_owned());
            }
        }
    };
    let first = ask()?;
    ensure!(BACKENDS.contains(&first.as_str()), "{first}");
    let rest = others(&first);
    stage.set_backends(&rest)?;
    eventually("the child's socket to move", || {
        let name = ask()?;
        ensure!(rest.contains(&name.as_str()), "{name}");
        Ok(())
    })
}

#[test]
fn a_socket_that_its_application_has_disconnected_is_left_alone() -> Result<()> {
    let stage = Stage::usual()?;
    for vip in vips() {
        let flow = Flow::connected(&stage, vip)?;
        flow.socket.disconnect()?;
        // Another one, to know when the agent has moved what it moves.
        let marker = loop {
            let marker = Flow::connected(&stage, vip)?;
            if marker.first.name == flow.first.name {
                break marker;
            }
        };
        let rest = others(&flow.first.name);
        stage.set_backends(&rest)?;
        marker.reaches(&rest)?;
        let error = net_error(flow.socket.peer_name())?;
        ensure!(error.errno == "ENOTCONN", "{vip}: {error}");
        stage.set_backends(&BACKENDS)?;
    }
    Ok(())
}

/// As long as no two questions are open at once: both would be answered by the same address.
#[test]
fn two_addresses_with_one_backend_are_told_apart_by_one_socket() -> Result<()> {
    let stage = Stage::new(|world, manifests| {
        manifests.service(
            &Service::new("web", [VIP4, VIP6])
                .tcp("http", 80)
                .udp("dns", 53)
                .external_ips(["198.51.100.7", "2001:db8::7"]),
        )?;
        tests::stage::web_slices(world, manifests, &["backend-1"])
    })?;
    for (bind, first, second) in [
        ("0.0.0.0:0", at(VIP4, 53), at("198.51.100.7", 53)),
        ("[::]:0", at(VIP6, 53), at("2001:db8::7", 53)),
        ("[::]:0", mapped(VIP4, 53), mapped("198.51.100.7", 53)),
    ] {
        let socket = stage
            .client()
            .probe()
            .udp_bound(bind.parse::<SocketAddr>()?)?;
        for round in 0..6 {
            for vip in [first, second, second, first] {
                let answer = socket.exchange_within(Some(vip), "x", SHORT)?;
                ensure!(
                    answer.from == vip,
                    "round {round}: {vip} was answered by {answer:?}"
                );
            }
        }
    }
    Ok(())
}

/// `... whose backend was gone: 12 moved, ...`
fn moved(line: &str) -> Option<usize> {
    let (before, _) = line.split_once(" moved")?;
    before.rsplit(' ').next()?.parse().ok()
}

#[test]
fn thousands_of_sockets_of_one_process_move_in_a_moment() -> Result<()> {
    let stage = Stage::usual()?;
    stage.set_backends(&["backend-1"])?;
    let flows = (0..4000)
        .map(|_| Flow::connected(&stage, at(VIP4, 53)))
        .collect::<Result<Vec<_>>>()?;
    let start = std::time::Instant::now();
    stage.set_backends(&["backend-2"])?;
    eventually("all of them to be moved", || {
        // In one pass, or in two when one had begun before the change.
        let moved: usize = stage
            .agent
            .log()
            .iter()
            .filter_map(|line| moved(line))
            .sum();
        ensure!(moved == flows.len(), "{moved}");
        Ok(())
    })?;
    let elapsed = start.elapsed();
    for flow in &flows {
        let answer = flow.ask("moved?")?;
        flow.check(&answer)?;
        ensure!(answer.name == "backend-2", "{answer:?}");
    }
    // A search of the process for each of them would look at 16 million descriptors.
    ensure!(elapsed < Duration::from_secs(5), "{elapsed:?}");
    Ok(())
}
