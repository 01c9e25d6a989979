//! Ten backends, of which one drops all it is sent: who connects within three seconds. By packets of clients outside,
//! whose repeated SYN gets another backend; and by both paths, once the agent has the dead one passed over.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tests::{
    Pod, Service, World,
    balance::{SIZES, ask, ask_as_crowd, crowd, many_at_once, numbered, of_crowd, route_vips, tcp},
    fleet::{Fleet, slices},
    stage::{PATIENCE, TARGET, eventually, serve},
};

const BACKENDS: [&str; 10] = [
    "b-1", "b-2", "b-3", "b-4", "b-5", "b-6", "b-7", "b-8", "b-9", "b-10",
];
/// What a client waits. Its kernel repeats its SYN after one second, and at the latest after three.
const LIMIT: Duration = Duration::from_secs(3);
/// Clients that dial at once. If one in ten gets the dead backend and stays with it, 3 to 46 of them fail; fewer or more
/// do once in four million times.
const CLIENTS: u16 = 200;
const FAIL_BY_CHANCE: std::ops::RangeInclusive<usize> = 3..=46;

fn fleet(services: &[Service], extra: &[&str]) -> Result<Fleet> {
    let world = World::builder()
        .node(
            "node-a",
            ["client"].into_iter().chain(BACKENDS[..5].iter().copied()),
        )
        .node("node-b", BACKENDS[5..].iter().copied())
        .outside("laptop")
        .build()?;
    let flags = [&SIZES[..], extra].concat();
    let fleet = Fleet::start(world, &["node-a"], &flags, |world, manifests| {
        for (number, service) in services.iter().enumerate() {
            manifests.service(service)?;
            slices(world, manifests, &name(number + 1), &BACKENDS)?;
        }
        Ok(())
    })?;
    route_vips(&fleet.world, "laptop", "node-a")?;
    crowd(&fleet.world, fleet.world.pod("laptop"))?;
    for number in 1..=u16::try_from(services.len())? {
        for to in tcp(number) {
            // Both directions know their neighbours.
            eventually("an answer", || ask(fleet.world.pod("laptop"), to))?;
            let all = fleet.world.pod("laptop").connect_many(to, 100)?;
            ensure!(all.failed() == 0, "{all}");
        }
    }
    Ok(fleet)
}

fn name(number: usize) -> String {
    format!("web-{number}")
}

fn web(number: u16) -> Service {
    numbered(&name(number.into()), number)
}

/// From now on it answers nothing, and says so to nobody.
fn dies(pod: &Pod) -> Result<()> {
    pod.netns().nft(
        "table inet dead {\n chain input {\n  type filter hook input priority 0; policy drop;\n }\n}\n",
    )
}

fn lives_again(pod: &Pod) -> Result<()> {
    pod.netns().nft("delete table inet dead\n")
}

fn counter(fleet: &Fleet, name: &str) -> Result<u64> {
    let status = fleet.agent("node-a")?.status()?;
    status["counters"][name].as_u64().context("a counter")
}

/// What became of those who dialled.
#[derive(Debug, Default)]
struct Outcome {
    /// They heard nothing within [`LIMIT`].
    failed: usize,
    /// Who answered the others, and how long connect() took.
    answered: Vec<(String, Duration)>,
}

/// One of each source, all at the same moment.
fn dial_at_once(
    from: &Pod,
    to: SocketAddr,
    sources: impl Iterator<Item = Option<IpAddr>>,
) -> Result<Outcome> {
    let dial = |source: Option<IpAddr>| {
        let source = source.map(|ip| SocketAddr::new(ip, 0));
        match from.connect_from(source, to, LIMIT) {
            Ok(connection) => {
                let took = Duration::from_micros(connection.elapsed_us);
                let name = connection.exchange("who")?.name;
                connection.close()?;
                Ok(Some((name, took)))
            }
            Err(error) => {
                let error = tests::net_error::<()>(Err(error))?;
                ensure!(error.errno == "TIMEOUT", "{error}");
                Ok(None)
            }
        }
    };
    let outcomes = std::thread::scope(|scope| {
        let dialling: Vec<_> = sources
            .map(|source| scope.spawn(move || dial(source)))
            .collect();
        let joined = dialling
            .into_iter()
            .map(|one| one.join().expect("no panic"));
        joined.collect::<Result<Vec<_>>>()
    })?;
    Ok(Outcome {
        failed: outcomes.iter().filter(|one| one.is_none()).count(),
        answered: outcomes.into_iter().flatten().collect(),
    })
}

fn clients() -> impl Iterator<Item = Option<IpAddr>> {
    (0..CLIENTS).map(|number| Some(of_crowd(number)))
}

/// Of one address, by ports of their own.
fn anyone() -> impl Iterator<Item = Option<IpAddr>> {
    (0..CLIENTS).map(|_| None)
}

const FAILED_OVER: &str = "packet_failed_over";

/// None fails, though some had the dead backend first.
fn fails_over(fleet: &Fleet, number: u16, dead: &str) -> Result<()> {
    let laptop = fleet.world.pod("laptop");
    for to in tcp(number) {
        let before = counter(fleet, FAILED_OVER)?;
        let outcome = if to.is_ipv4() {
            dial_at_once(laptop, to, clients())
        } else {
            dial_at_once(laptop, to, anyone())
        }?;
        let moved = counter(fleet, FAILED_OVER)? - before;
        let slow = |took: &Duration| *took > Duration::from_millis(900);
        let slow = outcome
            .answered
            .iter()
            .filter(|(_, took)| slow(took))
            .count();
        println!(
            "{to}, {dead} is dead: {} failed, {slow} waited, {moved} SYNs moved",
            outcome.failed
        );
        // Half a percent.
        ensure!(
            outcome.failed <= usize::from(CLIENTS) / 200,
            "{} failed",
            outcome.failed
        );
        ensure!(
            moved > 0 && slow > 0,
            "{moved} SYNs moved, {slow} clients waited"
        );
        ensure!(outcome.answered.iter().all(|(name, _)| name != dead));
    }
    Ok(())
}

/// About one in ten fails, and nobody is moved.
fn does_not_fail_over(fleet: &Fleet, number: u16) -> Result<()> {
    let before = counter(fleet, FAILED_OVER)?;
    let [to, _] = tcp(number);
    let outcome = dial_at_once(fleet.world.pod("laptop"), to, clients())?;
    println!("without failover: {} of {CLIENTS} failed", outcome.failed);
    ensure!(
        FAIL_BY_CHANCE.contains(&outcome.failed),
        "{} failed",
        outcome.failed
    );
    ensure!(counter(fleet, FAILED_OVER)? == before);
    Ok(())
}

#[test]
fn a_repeated_syn_gets_another_backend_unless_the_annotation_says_no() -> Result<()> {
    let stays = web(2).annotation("kube-portal.io/failover", "false");
    let fleet = fleet(&[web(1), stays, web(3)], &[])?;
    // On the node that is dialled, and behind it; each time by a Service whose backends have not failed before.
    for (number, dead) in [(1, "b-2"), (3, "b-7")] {
        dies(fleet.world.pod(dead))?;
        fails_over(&fleet, number, dead)?;
        does_not_fail_over(&fleet, 2)?;
        lives_again(fleet.world.pod(dead))?;
    }
    Ok(())
}

#[test]
fn a_flag_turns_failover_off_for_those_services_that_say_nothing() -> Result<()> {
    let moves = web(2).annotation("kube-portal.io/failover", "true");
    let fleet = fleet(&[web(1), moves], &["--failover", "false"])?;
    dies(fleet.world.pod("b-9"))?;
    does_not_fail_over(&fleet, 1)?;
    fails_over(&fleet, 2, "b-9")
}

#[test]
fn a_client_with_affinity_is_not_moved() -> Result<()> {
    let fleet = fleet(&[web(1).client_ip_affinity(10_800)], &[])?;
    let laptop = fleet.world.pod("laptop");
    let [to, _] = tcp(1);
    let known = ask_as_crowd(laptop, CLIENTS, to)?;
    let dead = "b-4";
    let its: Vec<u16> = known
        .iter()
        .filter(|(_, name)| *name == dead)
        .map(|(client, _)| *client)
        .collect();
    ensure!(!its.is_empty(), "{dead} has none of {CLIENTS} clients");
    dies(fleet.world.pod(dead))?;
    let before = counter(&fleet, FAILED_OVER)?;
    let outcome = dial_at_once(laptop, to, clients())?;
    ensure!(
        outcome.failed == its.len() && outcome.answered.iter().all(|(name, _)| name != dead),
        "{} failed, {} have the dead one",
        outcome.failed,
        its.len()
    );
    ensure!(counter(&fleet, FAILED_OVER)? == before);
    lives_again(fleet.world.pod(dead))?;
    ensure!(
        ask_as_crowd(laptop, CLIENTS, to)? == known,
        "somebody was moved"
    );
    Ok(())
}

/// How a backend is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    Silent,
    Refuses,
}

/// Connects that fail within [`LIMIT`], of `count`.
fn failures(from: &Pod, to: SocketAddr, count: u16, limit: Duration) -> Result<usize> {
    let failed = many_at_once(count, |_| match from.connect_within(to, limit) {
        Ok(connection) => connection.close().map(|()| false),
        Err(error) => tests::net_error::<()>(Err(error)).map(|_| true),
    })?;
    Ok(failed.into_iter().filter(|failed| *failed).count())
}

/// Until the agent has it passed over, connects fail; then none does, on the path that found out and on the other. It is
/// tried again when it is back.
fn is_passed_over(death: Death, finder: &str) -> Result<()> {
    const COUNT: u16 = 400;
    let fleet = fleet(&[web(1)], &[])?;
    let dead = "b-5";
    let pod = fleet.world.pod(dead);
    match death {
        Death::Silent => dies(pod)?,
        Death::Refuses => pod.kill(),
    }
    let [to, _] = tcp(1);
    let agent = fleet.agent("node-a")?;
    let both = ["client", "laptop"].map(|name| fleet.world.pod(name));
    let finder = fleet.world.pod(finder);
    // Shorter than the second after which a SYN is repeated, longer than what counts as no attempt.
    let hurried = Duration::from_millis(600);
    let deadline = Instant::now() + PATIENCE;
    let (mut failed, mut tried) = (0, 0);
    while agent.count_log("gets no new connections for") == 0 {
        ensure!(
            Instant::now() < deadline,
            "it is not passed over after {failed} of {tried}"
        );
        let limit = if finder.name() == "client" {
            hurried
        } else {
            LIMIT
        };
        failed += failures(finder, to, 40, limit)?;
        tried += 40;
    }
    println!(
        "{death:?}, {}: {failed} of {tried} until it was passed over",
        finder.name()
    );
    for from in both {
        let failed = failures(from, to, COUNT, LIMIT)?;
        println!("{death:?}, {}: {failed} of {COUNT} after that", from.name());
        ensure!(
            failed * 200 <= usize::from(COUNT),
            "{failed} of {COUNT} failed"
        );
    }
    if finder.name() != "client" {
        return Ok(());
    }
    match death {
        Death::Silent => lives_again(pod)?,
        Death::Refuses => serve(pod, TARGET)?,
    }
    eventually("it to be tried again", || {
        let tally = finder.connect_many(to, 100)?;
        ensure!(tally.failed() == 0 && tally.of(dead) > 0, "{tally}");
        Ok(())
    })
}

#[test]
fn a_silent_backend_is_passed_over_after_sockets_have_failed() -> Result<()> {
    is_passed_over(Death::Silent, "client")
}

#[test]
fn a_silent_backend_is_passed_over_after_packets_have_failed() -> Result<()> {
    is_passed_over(Death::Silent, "laptop")
}

#[test]
fn a_backend_that_refuses_is_passed_over_after_sockets_have_failed() -> Result<()> {
    is_passed_over(Death::Refuses, "client")
}

#[test]
fn a_backend_that_refuses_is_passed_over_after_packets_have_failed() -> Result<()> {
    is_passed_over(Death::Refuses, "laptop")
}
