//! What the kernel counts as a backend's connections is what the backends' own kernels have open, and what clients
//! hold; however they end, it ends at 0. Nothing here waits for a while: it waits for a count, with a deadline.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tests::{
    EndpointSlice, Pod, World,
    balance::{
        Open, SIZES, counted, established, numbered, open, open_udp, route_vips, shown, tally, tcp,
        udp, weights,
    },
    fleet::{Fleet, families, slices},
    probe::{
        ChurnPlan, Dial,
        client::{Connection, Udp},
    },
    stage::{PATIENCE, TARGET, eventually},
};

const BACKENDS: [&str; 3] = ["near-1", "near-2", "far"];

fn fleet(extra: &[&str]) -> Result<Fleet> {
    let world = World::builder()
        .node("node-a", ["client", "near-1", "near-2"])
        .node("node-b", ["far"])
        .outside("laptop")
        .build()?;
    let flags = [&SIZES[..], extra].concat();
    let fleet = Fleet::start(world, &["node-a"], &flags, |world, manifests| {
        manifests.service(&numbered("web", 1))?;
        slices(world, manifests, "web", &BACKENDS)
    })?;
    route_vips(&fleet.world, "laptop", "node-a")?;
    for to in tcp(1) {
        let answer = || open(fleet.world.pod("laptop"), to)?.0.close();
        eventually("an answer", answer)?;
    }
    counts(&fleet, &Open::new(), "before")?;
    Ok(fleet)
}

fn both(fleet: &Fleet) -> [&Pod; 2] {
    ["client", "laptop"].map(|name| fleet.world.pod(name))
}

/// Until the kernel counts this.
fn counts(fleet: &Fleet, wanted: &Open, when: &str) -> Result<()> {
    eventually(when, || {
        let found = counted(fleet.agent("node-a")?, &fleet.world)?;
        ensure!(found == *wanted, "{found:?}, wanted: {wanted:?}");
        Ok(())
    })?;
    let found = shown(fleet.agent("node-a")?, &fleet.world)?;
    ensure!(
        found == *wanted,
        "{when}: status shows {found:?}, wanted: {wanted:?}"
    );
    Ok(())
}

/// Until the kernel counts just what the backends have, of which there are so many.
fn counts_what_is_open(fleet: &Fleet, all: usize, when: &str) -> Result<()> {
    eventually(when, || {
        let found = counted(fleet.agent("node-a")?, &fleet.world)?;
        let open = established(&fleet.world, &BACKENDS)?;
        ensure!(found == open, "{found:?}, the backends have {open:?}");
        let sum: i64 = open.values().sum();
        ensure!(sum == i64::try_from(all)?, "{open:?}, wanted {all} in all");
        Ok(())
    })
}

fn by_name<T>(held: &[(T, String)]) -> Result<Open> {
    let tally = tally(held.iter().map(|(_, name)| name.clone()));
    let count = |(name, count)| Ok((name, i64::try_from(count)?));
    tally.names.into_iter().map(count).collect()
}

fn connections(from: &Pod, count: usize) -> Result<Vec<(Connection<'_>, String)>> {
    let mut all = Vec::new();
    for to in tcp(1) {
        for _ in 0..count / 2 {
            all.push(open(from, to)?);
        }
    }
    Ok(all)
}

#[test]
fn as_many_as_are_open_are_counted_and_none_when_all_are_closed() -> Result<()> {
    let fleet = fleet(&[])?;
    for from in both(&fleet) {
        let mut held = connections(from, 60)?;
        counts(&fleet, &by_name(&held)?, "those that were opened")?;
        counts_what_is_open(&fleet, held.len(), "what the backends have")?;
        for (connection, _) in held.split_off(20) {
            connection.close()?;
        }
        counts(&fleet, &by_name(&held)?, "those that are left")?;
        counts_what_is_open(&fleet, held.len(), "what the backends have left")?;
        for (connection, _) in held {
            connection.close()?;
        }
        counts(&fleet, &Open::new(), "none")?;
    }
    Ok(())
}

/// The kernel closes what the process had, after sending what was not read yet; or resets it.
#[test]
fn what_a_killed_process_had_is_counted_no_more() -> Result<()> {
    let fleet = fleet(&[])?;
    for from in both(&fleet) {
        for round in 0..3 {
            let held = connections(from, 100)?;
            counts(&fleet, &by_name(&held)?, "those that were opened")?;
            from.kill();
            counts(&fleet, &Open::new(), "none").with_context(|| format!("round {round}"))?;
            ensure!(established(&fleet.world, &BACKENDS)?.is_empty());
        }
    }
    Ok(())
}

#[test]
fn a_backend_that_is_killed_has_no_connections() -> Result<()> {
    let fleet = fleet(&[])?;
    for from in both(&fleet) {
        let held = connections(from, 60)?;
        counts(&fleet, &by_name(&held)?, "those that were opened")?;
        for name in BACKENDS {
            let pod = fleet.world.pod(name);
            pod.kill();
            tests::stage::serve(pod, TARGET)?;
        }
        if from.name() == "laptop" {
            // The backends' kernels have closed them, the client's has not: closed by one side, they are open.
            counts(&fleet, &by_name(&held)?, "those that one side has closed")?;
        }
        from.kill();
        counts(&fleet, &Open::new(), "none")?;
    }
    Ok(())
}

#[test]
fn connections_that_are_reset_are_counted_no_more() -> Result<()> {
    let fleet = fleet(&[])?;
    for from in both(&fleet) {
        let lasting = connections(from, 10)?;
        for to in tcp(1) {
            // Each is closed by a reset.
            let tally = from.connect_many(to, 300)?;
            ensure!(tally.failed() == 0, "{tally}");
            counts(&fleet, &by_name(&lasting)?, "those that last")?;
        }
        for (connection, _) in lasting {
            connection.close()?;
        }
        counts(&fleet, &Open::new(), "none")?;
    }
    Ok(())
}

/// Refused at once by the backend, and hung up on before the backend was there.
#[test]
fn attempts_that_came_to_nothing_are_not_counted() -> Result<()> {
    let fleet = fleet(&["--failover", "false"])?;
    for from in both(&fleet) {
        for _ in 0..10 {
            from.dial(vec![(Dial::Tcp, tcp(1)[0]); 20], |_| Ok(()))?;
        }
        counts(&fleet, &Open::new(), "none of those hung up at once")?;
    }
    for name in BACKENDS {
        fleet.world.pod(name).kill();
    }
    for from in both(&fleet) {
        for _ in 0..20 {
            let refused = tests::net_error(from.connect(tcp(1)[0]))?;
            ensure!(refused.errno == "ECONNREFUSED", "{refused}");
        }
        counts(&fleet, &Open::new(), "none of those refused")?;
    }
    Ok(())
}

/// By many threads at the same time, ends and beginnings are all seen.
fn does_not_drift(path: &str) -> Result<()> {
    let mut fleet = fleet(&[])?;
    let from = fleet.world.pod(path);
    let open = by_name(&connections(from, 40)?)?;
    let churns = tcp(1)
        .into_iter()
        .map(|to| {
            let threads = 4;
            from.churn(ChurnPlan {
                threads,
                ..ChurnPlan::new(to, BACKENDS)
            })
        })
        .collect::<Result<Vec<_>>>()?;
    for names in [&BACKENDS[..2], &BACKENDS[1..], &BACKENDS[..1], &BACKENDS] {
        fleet.set_backends("web", names)?;
        for churn in &churns {
            churn.wait_attempts(300, PATIENCE)?;
        }
    }
    for churn in churns {
        let tally = churn.stop()?.tally;
        ensure!(tally.failed() == 0, "{tally}");
    }
    counts(&fleet, &open, "those that last")?;
    // An agent that dies and comes back finds it so.
    let agent = fleet.agent_mut("node-a")?;
    agent.restart()?;
    agent.wait_ready(PATIENCE)?;
    counts(&fleet, &open, "those that last, by the next agent")?;
    fleet.world.pod(path).kill();
    counts(&fleet, &Open::new(), "none")
}

#[test]
fn counts_of_sockets_do_not_drift_under_churn_and_changes_of_the_backends() -> Result<()> {
    does_not_drift("client")
}

#[test]
fn counts_of_packets_do_not_drift_under_churn_and_changes_of_the_backends() -> Result<()> {
    does_not_drift("laptop")
}

#[test]
fn what_is_opened_and_closed_while_no_agent_runs_is_counted_too() -> Result<()> {
    let mut fleet = fleet(&[])?;
    let agent = |fleet: &mut Fleet, alive: bool| -> Result<()> {
        let agent = fleet.agent_mut("node-a")?;
        agent.kill();
        if alive {
            agent.restart()?;
            agent.wait_ready(PATIENCE)?;
        }
        Ok(())
    };
    // Those of the killed agent's time that outlive it, and those that don't; those of the time without one.
    for path in ["client", "laptop"] {
        let ids = |held: &[(Connection<'_>, String)]| by_name(held);
        let early = ids(&connections(fleet.world.pod(path), 40)?)?;
        counts(&fleet, &early, "the early ones")?;
        agent(&mut fleet, false)?;
        let pod = fleet.world.pod(path);
        let late = connections(pod, 40)?;
        let mut both = early.clone();
        for (name, count) in ids(&late)? {
            *both.entry(name).or_default() += count;
        }
        counts(&fleet, &both, "early and late ones, without an agent")?;
        for (connection, _) in late {
            connection.close()?;
        }
        let late = ids(&connections(pod, 20)?)?;
        let mut both = early.clone();
        for (name, count) in late {
            *both.entry(name).or_default() += count;
        }
        agent(&mut fleet, true)?;
        counts(&fleet, &both, "what is left, by the next agent")?;
        counts_what_is_open(&fleet, 60, "what the backends have")?;
        agent(&mut fleet, false)?;
        fleet.world.pod(path).kill();
        counts(&fleet, &Open::new(), "none, without an agent")?;
        agent(&mut fleet, true)?;
        counts(&fleet, &Open::new(), "none")?;
    }
    Ok(())
}

#[test]
fn connected_udp_sockets_are_connections_and_others_are_not() -> Result<()> {
    let fleet = fleet(&[])?;
    let client = fleet.world.pod("client");
    let mut held = Vec::new();
    for to in udp(1) {
        for _ in 0..30 {
            held.push(open_udp(client, to)?);
        }
        let asked = client.udp_many(to, 20)?;
        ensure!(asked.failed() == 0, "{asked}");
        let asked = client.udp_connected_many(to, 20)?;
        ensure!(asked.failed() == 0, "{asked}");
    }
    counts(&fleet, &by_name(&held)?, "the connected ones")?;
    // Connected again, each counts for whoever has it now; connected elsewhere, for nobody. No program sees a socket
    // that is disconnected (AF_UNSPEC): it counts until it is closed.
    for (at, (socket, name)) in held.iter_mut().enumerate() {
        let to = udp(1)[usize::from(socket.local.is_ipv6())];
        match at % 3 {
            0 => {
                socket.connect(to)?;
                *name = socket.exchange("who")?.name;
            }
            1 => {
                let ip = families(fleet.world.pod("near-1"))[usize::from(to.is_ipv6())];
                socket.connect(SocketAddr::new(ip, TARGET))?;
                socket.exchange("who")?;
            }
            _ => socket.disconnect()?,
        }
    }
    let left: Vec<(Udp<'_>, String)> = (0..)
        .zip(held)
        .filter_map(|(at, held)| (at % 3 != 1).then_some(held))
        .collect();
    counts(&fleet, &by_name(&left)?, "all but those elsewhere")?;
    for (socket, _) in left {
        socket.close()?;
    }
    counts(&fleet, &Open::new(), "none")?;
    for to in udp(1) {
        for _ in 0..20 {
            open_udp(client, to)?;
        }
    }
    client.kill();
    counts(&fleet, &Open::new(), "none of a killed process")
}

/// They are forgotten by the clock: two seconds of silence, and the agent's next look at them (every 10 s).
#[test]
fn udp_flows_of_packets_count_until_they_are_forgotten() -> Result<()> {
    let fleet = fleet(&[
        "--conntrack-udp-timeout=1s",
        "--conntrack-udp-timeout-stream=2s",
    ])?;
    let laptop = fleet.world.pod("laptop");
    let mut wanted = Open::new();
    let mut seen = Open::new();
    let begun = Instant::now();
    for to in udp(1) {
        for _ in 0..20 {
            let (socket, name) = open_udp(laptop, to)?;
            // The second datagram shows that the client hears the answers.
            socket.exchange("again")?;
            *wanted.entry(name).or_default() += 1;
        }
        // Flows that nobody has shown to be more than a question.
        for _ in 0..20 {
            open_udp(laptop, to)?;
        }
        seen = counted(fleet.agent("node-a")?, &fleet.world)?;
    }
    // On a machine that stood still some are forgotten already.
    ensure!(
        seen == wanted || begun.elapsed() > Duration::from_secs(2),
        "{seen:?}, wanted: {wanted:?}"
    );
    counts(&fleet, &Open::new(), "none")
}

/// The smallest that the flag takes.
const MAX_FLOWS: usize = 4096;

/// Flows that find no room work on among the half-open ones, and are not counted.
#[test]
fn a_full_table_of_flows_counts_those_in_it_and_none_when_all_are_closed() -> Result<()> {
    let fleet = fleet(&["--max-flows", &MAX_FLOWS.to_string()])?;
    let laptop = fleet.world.pod("laptop");
    let [to, _] = tcp(1);
    let status = || fleet.agent("node-a")?.status();
    let full = || -> Result<u64> {
        status()?["counters"]["flows_full"]
            .as_u64()
            .context("a counter")
    };
    let threads = 8;
    let mut all = 0;
    while full()? == 0 {
        ensure!(all < 4 * MAX_FLOWS, "{all} flows, and there still is room");
        let opened = tests::balance::many_at_once(threads, |_| {
            (0..128)
                .map(|_| open(laptop, to))
                .collect::<Result<Vec<_>>>()
        })?;
        all += opened.iter().map(Vec::len).sum::<usize>();
    }
    // A hash that is full for one is so for others; a few find room after all.
    let found = counted(fleet.agent("node-a")?, &fleet.world)?;
    let sum: i64 = found.values().sum();
    println!("{all} open, {sum} counted, {} without room", full()?);
    ensure!(
        sum > 0 && sum < i64::try_from(all)?,
        "{sum} counted of {all}"
    );
    laptop.kill();
    counts(&fleet, &Open::new(), "none")
}

/// A socket that can't be remembered is not counted, and takes nothing from those that are.
#[test]
fn a_full_table_of_sockets_counts_those_in_it_and_none_when_all_are_closed() -> Result<()> {
    const MAX_SOCKETS: i64 = 64;
    let fleet = fleet(&["--max-sockets", &MAX_SOCKETS.to_string()])?;
    let client = fleet.world.pod("client");
    let mut early = connections(client, 40)?;
    counts(&fleet, &by_name(&early)?, "the early ones")?;
    let late = connections(client, 200)?;
    let found = counted(fleet.agent("node-a")?, &fleet.world)?;
    let sum: i64 = found.values().sum();
    // A hash of the kernel may take a few less or more.
    ensure!((40..100).contains(&sum), "{sum} of 240 are counted");
    for (connection, _) in early.drain(..).chain(late) {
        connection.close()?;
    }
    counts(&fleet, &Open::new(), "none")
}

/// The endpoints of `web`, of which `leaving` is about to end, and serves.
fn drain(fleet: &Fleet, leaving: &str) -> Result<()> {
    let slice = |slice: EndpointSlice, family: usize| {
        let slice = slice.tcp("http", TARGET).udp("dns", TARGET);
        BACKENDS.iter().fold(slice, |slice, name| {
            let ip = families(fleet.world.pod(name))[family];
            let stays = *name != leaving;
            slice.endpoint(ip, fleet.world.node_of(name).name(), stays, true, !stays)
        })
    };
    fleet
        .manifests
        .slice(&slice(EndpointSlice::v4("web", "web-4"), 0))?;
    fleet
        .manifests
        .slice(&slice(EndpointSlice::v6("web", "web-6"), 1))
}

/// Nobody new gets to the backend that leaves, its connections go on, and their count falls to 0.
fn drains(fleet: &Fleet, leaving: &str, leave: impl FnOnce() -> Result<()>) -> Result<()> {
    let mut held = Vec::new();
    for from in both(fleet) {
        held.extend(connections(from, 40)?);
    }
    let (stay, mut old): (Vec<_>, Vec<_>) = held.into_iter().partition(|(_, n)| n != leaving);
    ensure!(!old.is_empty(), "{leaving} has none of 80");
    leave()?;
    let chosen = || -> Result<bool> {
        let status = fleet.agent("node-a")?.status()?;
        let ips = families(fleet.world.pod(leaving)).map(|ip| ip.to_string());
        let frontends = status["frontends"].as_array().context("frontends")?;
        Ok(frontends.iter().any(|frontend| {
            let backends = frontend["backends"].as_array();
            backends.into_iter().flatten().any(|backend| {
                let is_it = ips.iter().any(|ip| backend["address"] == ip.as_str());
                is_it && backend["chosen"] == true
            })
        }))
    };
    eventually("the backend to get no new ones", || {
        ensure!(!chosen()?);
        Ok(())
    })?;
    for from in both(fleet) {
        for (to, udp) in tcp(1).into_iter().zip(udp(1)) {
            // By chance it would be missed once in ten million times.
            let tally = from.connect_many(to, 40)?;
            ensure!(tally.failed() == 0 && tally.of(leaving) == 0, "{tally}");
            for _ in 0..20 {
                let name = tests::balance::ask_udp(from, udp)?;
                ensure!(name != leaving, "UDP");
            }
        }
    }
    let count = |left: usize| {
        eventually("the count of what is left", || {
            let found = shown(fleet.agent("node-a")?, &fleet.world)?;
            let found = found.get(leaving).copied().unwrap_or(0);
            ensure!(found == i64::try_from(left)?, "{found}, wanted: {left}");
            Ok(())
        })
    };
    // A few at a time, to the last.
    loop {
        count(old.len())?;
        if old.is_empty() {
            break;
        }
        for (connection, _) in &old {
            let answer = connection.exchange("still there?")?;
            ensure!(answer.name == leaving, "{answer:?}");
        }
        for (connection, _) in old.split_off(old.len() * 2 / 3) {
            connection.close()?;
        }
    }
    for (connection, name) in stay {
        let answer = connection.exchange("and you?")?;
        ensure!(answer.name == name, "{answer:?}");
        connection.close()?;
    }
    counts(fleet, &Open::new(), "none")
}

#[test]
fn a_backend_that_terminates_keeps_its_connections_until_they_end_and_gets_no_new_ones()
-> Result<()> {
    let fleet = fleet(&[])?;
    for leaving in ["near-1", "far"] {
        slices(&fleet.world, &fleet.manifests, "web", &BACKENDS)?;
        eventually("all to be back", || {
            let asked = fleet.world.pod("client").connect_many(tcp(1)[0], 60)?;
            tests::stage::answered_by(&asked, &BACKENDS)
        })?;
        drains(&fleet, leaving, || drain(&fleet, leaving))?;
    }
    Ok(())
}

#[test]
fn a_backend_of_weight_0_keeps_its_connections_until_they_end_and_gets_no_new_ones() -> Result<()> {
    let fleet = fleet(&[])?;
    for scheduler in ["random", "rr", "lc", "sed", "nq"] {
        let service = numbered("web", 1).annotation("kube-portal.io/scheduler", scheduler);
        fleet.manifests.service(&service)?;
        eventually("all to be back", || {
            let asked = fleet.world.pod("client").connect_many(tcp(1)[0], 60)?;
            tests::stage::answered_by(&asked, &BACKENDS)
        })?;
        drains(&fleet, "near-2", || {
            let weights = weights(&fleet.world, &[("near-2", 0)]);
            let service = service.annotation("kube-portal.io/weights", &weights);
            fleet.manifests.service(&service)
        })
        .with_context(|| scheduler.to_owned())?;
    }
    Ok(())
}
