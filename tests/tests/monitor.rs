//! What the programs tell and count: `kube-portal monitor`, and the counts of each Service and backend.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _},
    net::SocketAddr,
    process::{Child, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use proxy_common::abi::{MonitorFilter, map};
use proxy_user::{
    expiry::monotonic_ns,
    loader::{Features, Pins},
};
use serde_json::Value;
use tests::{
    Agent, Service, World,
    fleet::{Fleet, node_port, slices},
    stage::{PATIENCE, VIP4, VIP6, at, eventually},
};

const PORT: u16 = 30_080;
/// Of a Service without endpoints.
const EMPTY4: &str = "10.96.0.12";
const EMPTY6: &str = "fd96::12";
/// Without telling anything for so long there is nothing to tell.
const SILENCE: Duration = Duration::from_millis(500);

fn fleet() -> Result<Fleet> {
    fleet_with(&[])
}

fn fleet_with(extra: &[&str]) -> Result<Fleet> {
    let world = World::builder()
        .node("node-a", ["client", "near"])
        .node("node-b", ["far"])
        .outside("laptop")
        .build()?;
    Fleet::start(world, &["node-a"], extra, |world, manifests| {
        manifests.service(&node_port("web", [VIP4, VIP6], PORT))?;
        manifests.service(&Service::new("empty", [EMPTY4, EMPTY6]).tcp("http", 80))?;
        slices(world, manifests, "web", &["near", "far"])
    })
}

fn filter(agent: &Agent) -> Result<MonitorFilter> {
    let data = MapData::from_pin(agent.pins().join(map::MONITOR))?;
    let map: Array<_, [u8; MonitorFilter::SIZE]> = Array::try_from(Map::Array(data))?;
    Ok(MonitorFilter::from_bytes(map.get(&0, 0)?))
}

/// A running `kube-portal monitor -o json`.
struct Monitor {
    child: Child,
    lines: Receiver<String>,
}

impl Monitor {
    /// The programs tell it from now on.
    fn start(agent: &Agent, args: &[&str]) -> Result<Self> {
        let mut command = agent.subcommand(&["monitor", "-o", "json"])?;
        command
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let out = BufReader::new(child.stdout.take().context("stdout")?);
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            out.lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        eventually("the programs tell", || {
            let filter = filter(agent)?;
            ensure!(filter.outcomes != 0 && filter.until_ns > monotonic_ns());
            Ok(())
        })?;
        Ok(Self { child, lines })
    }

    /// The next so many decisions.
    fn next(&self, count: usize) -> Result<Vec<Value>> {
        let next =
            || -> Result<Value> { Ok(serde_json::from_str(&self.lines.recv_timeout(PATIENCE)?)?) };
        (0..count).map(|_| next()).collect()
    }

    /// Nothing more is told.
    fn is_silent(&self) -> Result<()> {
        match self.lines.recv_timeout(SILENCE) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            other => anyhow::bail!("{other:?}"),
        }
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(
            Pid::from_raw(i32::try_from(self.child.id())?),
            signal,
        )?)
    }

    /// Told to end; yields what it said on stderr.
    fn stop(mut self) -> Result<String> {
        self.signal(Signal::SIGTERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "{status}");
        let mut text = String::new();
        let mut stderr = self.child.stderr.take().context("stderr")?;
        stderr.read_to_string(&mut text)?;
        Ok(text)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How often each of these was told.
fn tally(told: &[Value], field: &str) -> BTreeMap<String, usize> {
    let mut tally = BTreeMap::new();
    for one in told {
        let value = one[field].as_str().unwrap_or("-").to_owned();
        *tally.entry(value).or_default() += 1;
    }
    tally
}

#[test]
fn each_new_connection_is_told_once_with_who_dialled_what_and_where_it_went() -> Result<()> {
    let fleet = fleet()?;
    let (world, agent) = (&fleet.world, fleet.agent("node-a")?);
    let client = world.pod("client");
    let monitor = Monitor::start(agent, &[])?;

    // Sockets.
    let answered = client.connect_many(at(VIP4, 80), 40)?;
    let told = monitor.next(40)?;
    monitor.is_silent()?;
    let pid = client.probe().pid().context("a probe")?;
    for one in &told {
        ensure!(
            one["kind"] == "translated"
                && one["outcome"] == "connect_translated"
                && one["hook"] == "connect"
                && one["protocol"] == "tcp"
                && one["pid"] == pid
                && one["command"] == "probe"
                && one["destination"] == format!("{VIP4}:80")
                && one["service"] == "default/web:http",
            "{one}"
        );
    }
    // What was told is what happened.
    let went = tally(&told, "new_destination");
    for (name, count) in &answered.names {
        let backend = SocketAddr::new(world.pod(name).ip4(), 8080).to_string();
        ensure!(
            went.get(&backend) == Some(&usize::try_from(*count)?),
            "{went:?} {answered}"
        );
    }

    // Datagrams: the first of a flow, and no other.
    let socket = client.udp_bound("[::]:0".parse::<SocketAddr>()?)?;
    for _ in 0..3 {
        socket.exchange_with(at(VIP6, 53), "?")?;
    }
    let told = monitor.next(1)?;
    monitor.is_silent()?;
    ensure!(
        told[0]["hook"] == "send" && told[0]["outcome"] == "send_new_flow",
        "{told:?}"
    );

    // Refused, and a bind to a port that is in use.
    ensure!(client.connect(at(EMPTY4, 80)).is_err());
    let told = monitor.next(1)?;
    ensure!(
        told[0]["kind"] == "refused"
            && told[0]["outcome"] == "connect_refused"
            && told[0]["service"] == "default/empty:http"
            && told[0]["new_destination"].is_null(),
        "{}",
        told[0]
    );
    if Features::probe().node_netns == 0 {
        println!(
            "no bind(): before Linux 5.14 only the initial network namespace is known as a node's"
        );
    } else {
        let taken = SocketAddr::from(([0, 0, 0, 0], PORT));
        ensure!(world.node("node-a").host().udp_bound(taken).is_err());
        let told = monitor.next(1)?;
        ensure!(
            told[0]["outcome"] == "bind_in_use"
                && told[0]["destination"] == format!("0.0.0.0:{PORT}"),
            "{}",
            told[0]
        );
    }

    // Packets: their first one, with the address that a backend elsewhere sees.
    let laptop = world.pod("laptop");
    let node = world.node("node-a").ip4();
    let answered = laptop.connect_many(SocketAddr::new(node, PORT), 40)?;
    ensure!(
        answered.failed() == 0 && answered.who().len() == 2,
        "{answered}"
    );
    let told = monitor.next(40)?;
    monitor.is_silent()?;
    for one in &told {
        ensure!(
            one["hook"] == "ingress"
                && one["outcome"] == "packet_new_flow"
                && one["service"] == "default/web:http"
                && one["pid"].is_null()
                && one["device"].is_string(),
            "{one}"
        );
        let is_far = one["new_destination"] == format!("{}:8080", world.pod("far").ip4());
        let source = one["new_source"].as_str().unwrap_or_default();
        ensure!(is_far == source.starts_with(&node.to_string()), "{one}");
    }
    ensure!(monitor.stop()?.is_empty());
    ensure!(filter(agent)?.outcomes == 0, "it is told on");
    Ok(())
}

#[test]
fn only_what_is_asked_for_is_told_and_a_service_that_comes_later_too() -> Result<()> {
    let fleet = fleet()?;
    let agent = fleet.agent("node-a")?;
    let client = fleet.world.pod("client");
    let monitor = Monitor::start(agent, &["--service", "web", "--outcome", "translated"])?;
    ensure!(
        filter(agent)?.services.iter().any(|id| *id != 0),
        "the kernel tells all"
    );
    ensure!(client.connect(at(EMPTY4, 80)).is_err());
    client.connect_many(at(VIP4, 80), 2)?;
    ensure!(
        tally(&monitor.next(2)?, "service") == BTreeMap::from([("default/web:http".into(), 2)])
    );
    monitor.is_silent()?;
    ensure!(monitor.stop()?.is_empty());

    let monitor = Monitor::start(agent, &["--address", EMPTY4, "--outcome", "refused"])?;
    ensure!(client.connect(at(EMPTY6, 80)).is_err() && client.connect(at(EMPTY4, 80)).is_err());
    ensure!(monitor.next(1)?[0]["destination"] == format!("{EMPTY4}:80"));
    monitor.is_silent()?;

    // There is one reader.
    let second = agent
        .call(&["monitor", "--limit", "1"])
        .unwrap_err()
        .to_string();
    ensure!(
        second.contains("another `kube-portal monitor` listens"),
        "{second}"
    );
    drop(monitor);

    // What is asked for is unknown: one line says so.
    let unknown = agent
        .call(&["monitor", "--outcome", "lost"])
        .unwrap_err()
        .to_string();
    ensure!(unknown.contains("no outcome has such a name"), "{unknown}");
    Ok(())
}

#[test]
fn a_listener_that_was_killed_is_told_nothing_for_long_and_one_that_sleeps_holds_up_nobody()
-> Result<()> {
    const MORE_THAN_FITS: usize = 3_000;
    let fleet = fleet()?;
    let agent = fleet.agent("node-a")?;
    let client = fleet.world.pod("client");
    let lost = || -> Result<u64> {
        agent.status()?["counters"]["monitor_lost"]
            .as_u64()
            .context("no counter")
    };
    let monitor = Monitor::start(agent, &[])?;
    monitor.signal(Signal::SIGKILL)?;
    drop(monitor);
    eventually("the lease is over", || {
        ensure!(filter(agent)?.until_ns < monotonic_ns());
        Ok(())
    })?;
    let answered = client.connect_many(at(VIP4, 80), MORE_THAN_FITS)?;
    ensure!(
        answered.failed() == 0 && lost()? == 0,
        "{answered}, {} lost",
        lost()?
    );

    let monitor = Monitor::start(agent, &[])?;
    monitor.signal(Signal::SIGSTOP)?;
    // It may have read what was there before.
    let answered = client.connect_many(at(VIP4, 80), MORE_THAN_FITS)?;
    ensure!(answered.failed() == 0, "{answered}");
    let missed = lost()?;
    monitor.signal(Signal::SIGCONT)?;
    if missed > 0 {
        let told = monitor.next(MORE_THAN_FITS - usize::try_from(missed)?)?;
        ensure!(tally(&told, "outcome").len() == 1);
        let said = monitor.stop()?;
        ensure!(
            said.contains(&format!("{missed} decisions more were made")),
            "{said}"
        );
    }
    Ok(())
}

#[test]
fn connections_and_failures_are_counted_for_each_service_and_backend() -> Result<()> {
    let fleet = fleet()?;
    let world = &fleet.world;
    let client = world.pod("client");
    let store = Pins::new(world.node("node-a").bpffs()).open_store()?;
    let by_name = || -> Result<BTreeMap<String, (u64, u64)>> {
        let mut sums: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for (id, stats) in store.service_stats()? {
            let name = store.name(id).context("a service without a name")?;
            let name = name.text().into_owned();
            let sum = sums.entry(name).or_default();
            (sum.0, sum.1) = (sum.0 + stats.connections, sum.1 + stats.failures);
        }
        Ok(sums)
    };
    ensure!(by_name()?.is_empty());

    let mut answered = client.connect_many(at(VIP4, 80), 30)?;
    let node = world.node("node-a").ip6();
    let from_outside = world
        .pod("laptop")
        .connect_many(SocketAddr::new(node, PORT), 20)?;
    for (name, count) in from_outside.names {
        *answered.names.entry(name).or_default() += count;
    }
    client.udp_many(at(VIP6, 53), 10)?;
    for _ in 0..3 {
        ensure!(client.connect(at(EMPTY4, 80)).is_err());
    }
    let counted = by_name()?;
    ensure!(
        counted
            == BTreeMap::from([
                ("default/web:http".into(), (50, 0)),
                ("default/web:dns".into(), (counted["default/web:dns"].0, 0)),
                ("default/empty:http".into(), (0, 3)),
            ]),
        "{counted:?}"
    );
    ensure!(
        (1..=10).contains(&counted["default/web:dns"].0),
        "{counted:?}"
    );
    for name in ["near", "far"] {
        let pod = world.pod(name);
        let mut count = 0;
        for (id, stats) in store.backend_stats()? {
            let backend = store.backend(id).context("a backend")?;
            let is_http = store
                .name(backend.service)
                .is_some_and(|name| name.text().ends_with(":http"));
            if is_http && [pod.ip4(), pod.ip6()].contains(&backend.addr.ip()) {
                count += stats.connections;
            }
        }
        ensure!(answered.names[name] == count, "{name}: {count}, {answered}");
    }

    // Who gets the ids next begins at 0.
    fleet.manifests.remove("default-web.yaml")?;
    eventually("the Service is gone", || {
        ensure!(
            !by_name()?
                .keys()
                .any(|name| name.starts_with("default/web"))
        );
        Ok(())
    })?;
    Ok(())
}

#[test]
fn the_programs_log_only_when_they_are_told_to() -> Result<()> {
    let dial = |fleet: &Fleet| -> Result<()> {
        fleet.world.pod("client").connect_many(at(VIP4, 80), 3)?;
        let node = SocketAddr::new(fleet.world.node("node-a").ip4(), PORT);
        fleet.world.pod("laptop").connect_many(node, 3)?;
        Ok(())
    };
    let quiet = fleet()?;
    dial(&quiet)?;
    let loud = fleet_with(&["--debug-programs"])?;
    dial(&loud)?;
    let agent = loud.agent("node-a")?;
    // A connect() and a packet: hooks 1 and 4, with what was dialled.
    let vip = format!("to ::ffff:{VIP4} 80");
    agent.wait_line(&["hook 1 outcome 0 protocol 6 service"], PATIENCE)?;
    agent.wait_line(&[&vip], PATIENCE)?;
    agent.wait_line(&["hook 4 outcome", "pid 0"], PATIENCE)?;
    agent.wait_line(&[&format!(" {PORT}")], PATIENCE)?;
    agent.wait_line(&["becomes to", " 8080"], PATIENCE)?;
    ensure!(quiet.agent("node-a")?.count_log("outcome") == 0);
    Ok(())
}

#[test]
fn top_shows_what_is_open_and_what_has_been() -> Result<()> {
    let fleet = fleet()?;
    let agent = fleet.agent("node-a")?;
    let client = fleet.world.pod("client");
    let open = (0..4)
        .map(|_| client.connect(at(VIP4, 80)))
        .collect::<Result<Vec<_>>>()?;
    ensure!(client.connect(at(EMPTY4, 80)).is_err());
    let look = |args: &[&str]| -> Result<Value> {
        let args = [&["top", "--once", "--json"], args].concat();
        Ok(serde_json::from_str(&agent.call(&args)?)?)
    };
    let rows = look(&["--sort", "active"])?;
    ensure!(
        rows[0]["service"] == "default/web:http"
            && rows[0]["active"] == 4
            && rows[0]["connections"] == 4
            && rows[0]["errors"] == 0
            && rows[0]["backends"] == 4,
        "{rows}"
    );
    let rows = look(&["--service", "empty"])?;
    ensure!(
        rows[0]["service"] == "default/empty:http" && rows[0]["errors"] == 1 && rows[1].is_null(),
        "{rows}"
    );
    for connection in open {
        connection.close()?;
    }
    eventually("they are closed", || {
        ensure!(look(&["--service", "web"])?[0]["active"] == 0);
        Ok(())
    })?;
    let text = agent.call(&["top"])?;
    ensure!(
        text.starts_with("SERVICE") && text.contains("default/web:http"),
        "{text}"
    );
    Ok(())
}
