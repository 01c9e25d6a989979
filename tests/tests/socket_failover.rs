//! Backends that are really dead, and those that are not: what the kernel's programs see of attempts to
//! connect to them, and what the agent makes of it.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use proxy_common::abi::{Backend, BackendStats};
use proxy_user::{
    expiry::monotonic_ns,
    loader::Pins,
    maps::{MapStore as _, bpf::BpfStore},
};
use tests::{
    Agent, EndpointSlice, ManifestDir, Pod, Service, Source, World, bpf,
    cluster::{self, Cluster},
    probe::{BenchKind, BenchPlan, ChurnPlan, ChurnReport, Dial},
    stage::{PATIENCE, TARGET, VIP4, at, eventually, serve},
    wait,
};

/// Room for a few only: the tests read every element, over and over.
const SMALL: [&str; 4] = ["--max-services", "1024", "--max-backends", "1024"];
/// The annotation of a Service.
const FAILOVER: &str = "kube-portal.io/failover";
/// A port of the Service for UDP.
const DNS: u16 = 53;
/// As much as a client has, and less than the kernel needs to ask a third time.
const LIMIT: Duration = Duration::from_secs(3);
/// On any machine.
const SLOW: Duration = Duration::from_secs(180);
/// Of the first time out, and of what is done about it once it is over.
const BACK: Duration = Duration::from_secs(40);

/// A client and the backends of a Service, on one node.
struct Scene {
    // Stops before the world goes.
    agent: Agent,
    manifests: ManifestDir,
    world: World,
    names: Vec<String>,
}

impl Scene {
    fn new(backends: usize, arguments: &[&str]) -> Result<Self> {
        let names: Vec<String> = (0..backends)
            .map(|number| format!("web-{number}"))
            .collect();
        let pods = std::iter::once("client".to_owned()).chain(names.clone());
        let world = World::builder().node("node-a", pods).build()?;
        let mut slice = EndpointSlice::v4("web", "web-4")
            .tcp("http", TARGET)
            .udp("dns", TARGET);
        for name in &names {
            serve(world.pod(name), TARGET)?;
            slice = slice.ready(world.pod(name).ip4(), "node-a");
        }
        let manifests = ManifestDir::new()?;
        manifests.service(&web())?;
        manifests.slice(&slice)?;
        let source = Source::Manifests(manifests.path().to_owned());
        let arguments = [&SMALL, arguments].concat();
        let agent = world.node("node-a").start_agent_with(source, &arguments)?;
        agent.wait_ready(PATIENCE)?;
        Ok(Self {
            agent,
            manifests,
            world,
            names,
        })
    }

    fn client(&self) -> &Pod {
        self.world.pod("client")
    }

    fn pod(&self, number: usize) -> &Pod {
        self.world.pod(&self.names[number])
    }

    fn store(&self) -> Result<BpfStore> {
        let pins = self.agent.pins();
        let root = pins.ancestors().nth(2).context("a bpffs")?;
        Ok(Pins::new(root).open_store()?)
    }

    /// What is known of the TCP backends, in the order of their names.
    fn stats(&self) -> Result<Vec<BackendStats>> {
        let store = self.store()?;
        let backends = store.observe()?.backends;
        let stats = |name: &String| {
            let ip = self.world.pod(name).ip4();
            let id = backends.iter().find(|(_, backend)| {
                backend.flags & Backend::CHOSEN != 0
                    && backend.addr.ip() == ip
                    && backend.protocol == 6
            });
            let (id, _) = id.with_context(|| format!("no backend {name}"))?;
            Ok(store.stats_of_backend(*id)?)
        };
        self.names.iter().map(stats).collect()
    }

    fn failures(&self) -> Result<Vec<u32>> {
        Ok(self.stats()?.iter().map(|stats| stats.failures).collect())
    }

    /// Which backends are passed over now, by the map.
    fn out(&self) -> Result<Vec<usize>> {
        let (stats, now_ns) = (self.stats()?, monotonic_ns());
        let out = stats.iter().enumerate();
        let out = out.filter(|(_, stats)| stats.passed_over_until_ns > now_ns);
        Ok(out.map(|(number, _)| number).collect())
    }

    /// Attempts that failed, refused and unanswered, since the maps were made.
    fn failed(&self) -> Result<(u64, u64)> {
        let counters = &self.agent.status()?["counters"];
        let count = |name: &str| counters[name].as_u64().with_context(|| name.to_owned());
        Ok((count("attempt_refused")?, count("attempt_unanswered")?))
    }

    /// From now on nothing that is sent to it is answered, not even by a refusal.
    fn blackhole(&self, number: usize) -> Result<()> {
        self.pod(number).netns().nft(
            "table inet dead {\nchain input {\ntype filter hook input priority 0\nmeta l4proto { tcp, udp } drop\n}\n}\n",
        )
    }

    fn revive(&self, number: usize) -> Result<()> {
        self.pod(number).netns().nft("delete table inet dead\n")
    }

    /// Nobody listens any more.
    fn stop(&self, number: usize) {
        self.pod(number).probe().kill();
    }

    fn start(&self, number: usize) -> Result<()> {
        serve(self.pod(number), TARGET)
    }

    /// Waits until the kernel knows what follows from it for the Service.
    fn annotate(&self, failover: Option<&str>, fails_over: bool) -> Result<()> {
        let service = match failover {
            Some(value) => web().annotation(FAILOVER, value),
            None => web(),
        };
        self.manifests.service(&service)?;
        let store = self.store()?;
        let first = self.pod(0).ip4();
        let backends = store.observe()?.backends;
        let tcp = |one: &&Backend| one.addr.ip() == first && one.protocol == 6;
        let service = backends.values().find(tcp).context("a backend")?.service;
        wait::until("the annotation to count", PATIENCE, || {
            (store.service(service).ok()?.word.fails_over() == fails_over).then_some(())
        })
    }

    /// Clients that connect, ask and hang up, over and over, until so many have ended.
    fn clients(&self, threads: usize, attempts: u64) -> Result<ChurnReport> {
        let churn = self.client().churn(ChurnPlan {
            threads,
            pause: Duration::from_millis(20),
            timeout: LIMIT,
            ..ChurnPlan::new(vip(), Vec::<String>::new())
        })?;
        churn.wait_attempts(attempts, SLOW)?;
        churn.stop()
    }

    /// Has clients connect until that is so; yields what they saw.
    fn clients_until(
        &self,
        what: &str,
        threads: u32,
        time: Duration,
        mut is_so: impl FnMut() -> Result<bool>,
    ) -> Result<ChurnReport> {
        let churn = self.client().churn(ChurnPlan {
            threads: threads as usize,
            pause: Duration::from_millis(threads.into()),
            timeout: LIMIT,
            ..ChurnPlan::new(vip(), Vec::<String>::new())
        })?;
        let so = wait::until(what, time, || match is_so() {
            Ok(false) => {
                thread::sleep(Duration::from_millis(20));
                None
            }
            done => Some(done),
        });
        let report = churn.stop()?;
        so.with_context(|| format!("{report:?}"))??;
        Ok(report)
    }

    /// Has clients connect until the agent has told once that a backend answers again.
    fn clients_until_back(&self, what: &str) -> Result<ChurnReport> {
        self.clients_until(what, 32, BACK, || {
            Ok(self
                .agent
                .count_log("answers, and gets new connections again")
                == 1)
        })
    }

    /// A connect() that waits, and fails.
    fn wait_for_ever(&self) -> Result<()> {
        let plan = BenchPlan {
            kind: BenchKind::Connect,
            targets: vec![vip()],
            rounds: 1,
            warmup: 0,
            cpu: None,
            keep_samples: false,
        };
        let failed = self.client().bench(plan, PATIENCE);
        ensure!(failed.is_err(), "it should have failed");
        Ok(())
    }

    /// Dials many times at once, without waiting, and closes all sockets after a time.
    fn dial_for(
        &self,
        way: Dial,
        to: SocketAddr,
        count: usize,
        time: Duration,
    ) -> Result<Duration> {
        let begun = Instant::now();
        self.client().dial(vec![(way, to); count], |_| {
            thread::sleep(time);
            Ok(())
        })?;
        Ok(begun.elapsed())
    }
}

fn web() -> Service {
    Service::new("web", [VIP4]).tcp("http", 80).udp("dns", DNS)
}

fn vip() -> SocketAddr {
    at(VIP4, 80)
}

/// Of 1000.
fn share(report: &ChurnReport) -> u64 {
    report.tally.failed() * 1000 / report.attempts.max(1)
}

#[test]
fn a_backend_of_ten_that_drops_everything_fails_a_tenth_at_first_and_then_nobody() -> Result<()> {
    let scene = Scene::new(10, &["--failover", "false"])?;
    scene.blackhole(0)?;
    let before = scene.clients(64, 1000)?;
    println!(
        "without failover: {} of {}",
        before.tally.failed(),
        before.attempts
    );
    // Of 1000 attempts, five standard deviations are 4.7 %.
    ensure!((53..=147).contains(&share(&before)), "{before:?}");
    ensure!(scene.failed()? == (0, 0) && scene.failures()? == [0; 10]);

    scene.annotate(Some("true"), true)?;
    let first = scene.clients_until("the backend is passed over", 32, PATIENCE, || {
        Ok(scene.out()? == [0])
    })?;
    println!("meanwhile: {} of {}", first.tally.failed(), first.attempts);
    let line = scene.agent.wait_line(
        &["default/web:http", "gets no new connections for 10 s"],
        PATIENCE,
    )?;
    ensure!(line.contains("the last was not answered"), "{line}");
    let shown = scene.agent.status()?["passed_over"].clone();
    ensure!(
        shown[0]["address"] == scene.pod(0).ip4().to_string(),
        "{shown}"
    );
    println!("{}\n{line}", scene.agent.call(&["status"])?);

    // On a slow machine its first time may be over before the end.
    let after = scene.clients(64, 1000)?;
    println!(
        "passed over: {} of {}",
        after.tally.failed(),
        after.attempts
    );
    ensure!(after.tally.failed() * 200 < after.attempts, "{after:?}");
    ensure!(after.tally.of("web-0") == 0, "{after:?}");

    scene.revive(0)?;
    let back = scene.clients_until_back("the backend is back")?;
    ensure!(back.tally.failed() == 0, "{back:?}");
    ensure!(scene.failures()? == [0; 10] && scene.out()?.is_empty());
    let healthy = scene.clients(32, 400)?;
    ensure!(
        healthy.tally.failed() == 0 && healthy.tally.who().len() == 10,
        "{healthy:?}"
    );
    Ok(())
}

#[test]
fn a_backend_that_stays_dead_is_tried_again_and_passed_over_for_longer() -> Result<()> {
    let scene = Scene::new(10, &[])?;
    scene.blackhole(0)?;
    scene.clients_until(
        "it is passed over",
        32,
        PATIENCE,
        || Ok(scene.out()? == [0]),
    )?;
    let begun = Instant::now();
    // So many that those who wait are no relief.
    let report = scene.clients_until("it is so again", 200, BACK, || {
        Ok(scene.agent.count_log("gets no new connections for 20 s") == 1)
    })?;
    println!(
        "in {:?} after the first failures: {} of {}",
        begun.elapsed(),
        report.tally.failed(),
        report.attempts
    );
    ensure!(report.tally.failed() * 200 < report.attempts, "{report:?}");
    Ok(())
}

#[test]
fn a_backend_where_nobody_listens_is_passed_over_until_somebody_does() -> Result<()> {
    let scene = Scene::new(4, &[])?;
    scene.stop(1);
    let first =
        scene.clients_until(
            "it is passed over",
            32,
            PATIENCE,
            || Ok(scene.out()? == [1]),
        )?;
    ensure!(
        first
            .tally
            .errors
            .keys()
            .all(|errno| errno == "ECONNREFUSED"),
        "{first:?}"
    );
    let line = scene
        .agent
        .wait_line(&["default/web:http", "for 10 s"], PATIENCE)?;
    ensure!(line.contains("the last was refused"), "{line}");
    let (refused, unanswered) = scene.failed()?;
    ensure!(
        refused == first.tally.failed() && unanswered == 0,
        "{refused} {first:?}"
    );
    scene.start(1)?;
    let back = scene.clients_until_back("it is back")?;
    ensure!(back.tally.failed() == 0, "{back:?}");
    Ok(())
}

/// One backend, which is never passed over: each attempt is counted.
#[test]
fn every_way_to_fail_is_seen_once_and_a_change_of_mind_is_none() -> Result<()> {
    let scene = Scene::new(1, &[])?;
    let ms = Duration::from_millis;
    scene.blackhole(0)?;
    // Given up before the kernel asks again.
    let took = scene.dial_for(Dial::Tcp, vip(), 5, ms(300))?;
    ensure!(
        scene.failed()? == (0, 5),
        "given up after {took:?}: {:?}",
        scene.failed()?
    );
    // Given up at once, as a client does that has another connection by then.
    wait::until("a time below 200 ms", PATIENCE, || {
        let before = scene.failed().ok()?;
        let took = scene.dial_for(Dial::Tcp, vip(), 5, ms(0)).ok()?;
        (took < ms(200)).then(|| {
            let after = scene.failed()?;
            ensure!(
                after == before,
                "{before:?}, then {after:?} by sockets closed within {took:?}"
            );
            anyhow::Ok(())
        })
    })??;
    // Not given up: the kernel asks again after 1 s, and more often.
    let (_, before) = scene.failed()?;
    scene.client().dial(vec![(Dial::Tcp, vip()); 5], |_| {
        wait::until("5 more", PATIENCE, || {
            (scene.failed().ok()? == (0, before + 5)).then_some(())
        })?;
        thread::sleep(ms(2500));
        Ok(())
    })?;
    ensure!(
        scene.failed()? == (0, before + 5),
        "once each: {:?}",
        scene.failed()?
    );
    // One that waits.
    scene.wait_for_ever()?;
    ensure!(scene.failed()? == (0, before + 6), "{:?}", scene.failed()?);
    ensure!(scene.failures()? == [u32::try_from(before)? + 6]);
    // One that is killed.
    scene
        .client()
        .dial(vec![(Dial::Tcp, vip()); 2], |_| {
            thread::sleep(ms(300));
            scene.client().probe().kill();
            Ok(())
        })
        .err()
        .context("the probe is gone")?;
    wait::until("the killed process's", PATIENCE, || {
        (scene.failed().ok()? == (0, before + 8)).then_some(())
    })?;

    scene.revive(0)?;
    scene.stop(0);
    let before = scene.failures()?[0];
    scene.dial_for(Dial::Tcp, vip(), 5, ms(100))?;
    scene.wait_for_ever()?;
    scene.wait_for_ever()?;
    let (refused, _) = scene.failed()?;
    ensure!(
        refused == 7 && scene.failures()? == [before + 7],
        "{refused}"
    );

    // The first that is answered ends the row.
    scene.start(0)?;
    ensure!(scene.client().connect_many(vip(), 1)?.failed() == 0);
    ensure!(scene.failures()? == [0] && scene.out()?.is_empty());
    Ok(())
}

#[test]
fn a_late_answer_is_an_answer() -> Result<()> {
    let scene = Scene::new(1, &[])?;
    scene.blackhole(0)?;
    let begun = Instant::now();
    scene.client().dial(vec![(Dial::Tcp, vip()); 4], |_| {
        wait::until("4 unanswered", PATIENCE, || {
            (scene.failures().ok()? == [4]).then_some(())
        })?;
        scene.revive(0)?;
        // The next time the kernel asks.
        wait::until("an answer", PATIENCE, || {
            (scene.failures().ok()? == [0]).then_some(())
        })
    })?;
    println!("answered within {:?}", begun.elapsed());
    Ok(())
}

#[test]
fn of_ten_of_which_seven_are_dead_five_are_passed_over() -> Result<()> {
    let scene = Scene::new(10, &[])?;
    for number in 0..7 {
        scene.stop(number);
    }
    scene.clients_until("five are passed over", 32, PATIENCE, || {
        Ok(scene.out()?.len() == 5)
    })?;
    scene
        .agent
        .wait_line(&["of 10 backends no more than 5 are passed over"], PATIENCE)?;
    let out = scene.out()?;
    ensure!(
        out.len() <= 5 && out.iter().all(|number| *number < 7),
        "{out:?}"
    );
    let report = scene.clients(32, 1000)?;
    println!(
        "7 of 10 dead: {} of {} fail",
        report.tally.failed(),
        report.attempts
    );
    // Two dead ones are left among five, 40 %; without failover it were 70 %.
    ensure!(share(&report) < 550, "{report:?}");
    ensure!(scene.out()?.len() <= 5);
    Ok(())
}

#[test]
fn the_last_one_is_never_passed_over() -> Result<()> {
    let scene = Scene::new(2, &[])?;
    scene.stop(0);
    scene.stop(1);
    scene.clients_until("one is passed over", 32, PATIENCE, || {
        Ok(scene.out()?.len() == 1)
    })?;
    scene
        .agent
        .wait_line(&["of 2 backends no more than 1 are passed over"], PATIENCE)?;
    let out = scene.out()?;
    let other = 1 - out[0];
    // The one that is left is dead too; it is the one that comes back.
    scene.start(other)?;
    let report = scene.clients(8, 400)?;
    ensure!(share(&report) < 20, "{report:?}");

    let alone = Scene::new(1, &[])?;
    alone.stop(0);
    let tally = alone.client().connect_many(vip(), 20)?;
    ensure!(tally.failed() == 20, "{tally}");
    ensure!(alone.failures()? == [20] && alone.out()?.is_empty());
    alone.start(0)?;
    let tally = alone.client().connect_many(vip(), 20)?;
    ensure!(tally.failed() == 0 && alone.failures()? == [0], "{tally}");
    Ok(())
}

#[test]
fn healthy_backends_have_no_failures_whatever_clients_do() -> Result<()> {
    let scene = Scene::new(4, &[])?;
    let churn = scene.clients(32, 2000)?;
    ensure!(churn.tally.failed() == 0, "{churn:?}");
    for _ in 0..20 {
        // Closed while they dial, and reset.
        scene.dial_for(Dial::Tcp, vip(), 100, Duration::ZERO)?;
    }
    for _ in 0..50 {
        let connection = scene.client().connect(vip())?;
        connection.exchange("hello")?;
        connection.close()?;
    }
    // Resets by the other end, of connections that are established.
    let open: Vec<_> = (0..8)
        .map(|_| scene.client().connect(vip()))
        .collect::<Result<_>>()?;
    scene.stop(3);
    scene.start(3)?;
    drop(open);
    println!(
        "{} connections",
        scene.agent.status()?["counters"]["connect_translated"]
    );
    // Between the two a client may have been refused; none was dialling.
    ensure!(scene.failed()? == (0, 0), "{:?}", scene.failed()?);
    ensure!(scene.failures()? == [0; 4] && scene.out()?.is_empty());
    Ok(())
}

/// The client's node doesn't know for a while where the backend is: the first segment waits.
#[test]
fn a_backend_that_answers_late_but_within_a_second_has_not_failed() -> Result<()> {
    let scene = Scene::new(1, &[])?;
    let ip = scene.pod(0).ip4();
    let node = scene.world.node("node-a").netns();
    let device = "pod3";
    node.sysctls(&[
        ("ipv4/neigh/pod3/retrans_time_ms", "50"),
        ("ipv4/neigh/pod3/mcast_solicit", "60"),
    ])?;
    let quiet = |value| {
        scene
            .pod(0)
            .netns()
            .sysctls(&[("ipv4/conf/all/arp_ignore", value)])
    };
    let mut late = 0;
    for _ in 0..40 {
        let _not_there = node.ip(&format!("neigh del {ip} dev {device}\n"));
        quiet("8")?;
        let begun = Instant::now();
        let tally = thread::scope(|scope| {
            let client = scope.spawn(|| scene.client().connect_many(vip(), 1));
            thread::sleep(Duration::from_millis(500));
            let quiet = quiet("0");
            quiet.and(client.join().expect("it doesn't panic"))
        })?;
        let took = begun.elapsed();
        ensure!(tally.failed() == 0, "{tally}");
        // Otherwise the machine was too slow.
        if took < Duration::from_millis(950) {
            ensure!(scene.failed()?.1 == 0 || late == 0, "{:?}", scene.failed()?);
            late += u32::from(took > Duration::from_millis(450));
        }
        if late == 5 {
            println!("{:?} failed, answers after 500 ms", scene.failed()?);
            ensure!(scene.failures()? == [0] && scene.out()?.is_empty());
            return Ok(());
        }
    }
    bail!("only {late} answers were late enough, and not too late")
}

#[test]
fn what_is_no_tcp_connection_to_a_service_leaves_no_trace() -> Result<()> {
    let scene = Scene::new(2, &[])?;
    scene.blackhole(0)?;
    scene.stop(1);
    for number in 0..2 {
        let direct = SocketAddr::new(scene.pod(number).ip4(), TARGET);
        scene.dial_for(Dial::Tcp, direct, 20, Duration::from_millis(1500))?;
    }
    scene.dial_for(
        Dial::Tcp,
        at("192.168.50.77", 80),
        5,
        Duration::from_millis(400),
    )?;
    // A port that no Service has.
    scene.dial_for(Dial::Tcp, at(VIP4, 81), 5, Duration::from_millis(400))?;
    for way in [Dial::Udp, Dial::Send] {
        scene.dial_for(way, at(VIP4, DNS), 50, Duration::from_millis(400))?;
    }
    ensure!(
        scene
            .client()
            .udp_connected(at(VIP4, DNS))?
            .exchange_within(None, "?", Duration::from_millis(500))
            .is_err()
    );
    ensure!(scene.failed()? == (0, 0) && scene.failures()? == [0, 0]);
    ensure!(scene.out()?.is_empty());
    Ok(())
}

#[test]
fn what_the_annotation_says_comes_before_what_the_node_says() -> Result<()> {
    let mut scene = Scene::new(4, &[])?;
    scene.stop(0);
    scene.annotate(Some("false"), false)?;
    let off = scene.clients(16, 400)?;
    ensure!(off.tally.failed() > 10, "{off:?}");
    ensure!(scene.failed()? == (0, 0) && scene.failures()? == [0; 4] && scene.out()?.is_empty());

    let source = Source::Manifests(scene.manifests.path().to_owned());
    scene
        .agent
        .restart_with(source, &[&SMALL[..], &["--failover", "false"]].concat())?;
    scene.agent.wait_ready(PATIENCE)?;
    scene.annotate(None, false)?;
    let off = scene.clients(16, 400)?;
    ensure!(off.tally.failed() > 10, "{off:?}");
    ensure!(scene.failed()? == (0, 0) && scene.failures()? == [0; 4] && scene.out()?.is_empty());

    scene.annotate(Some("true"), true)?;
    scene.clients_until(
        "it is passed over",
        32,
        PATIENCE,
        || Ok(scene.out()? == [0]),
    )?;
    // Switched off while it is: it is back at once.
    scene.annotate(Some("false"), false)?;
    wait::until("it is back", PATIENCE, || {
        scene.out().ok()?.is_empty().then_some(())
    })
}

#[test]
fn the_time_goes_on_and_ends_without_an_agent_and_with_the_next() -> Result<()> {
    let mut scene = Scene::new(4, &[])?;
    scene.stop(0);
    scene.clients_until(
        "it is passed over",
        32,
        PATIENCE,
        || Ok(scene.out()? == [0]),
    )?;
    let (before, told) = (scene.stats()?, scene.failed()?);
    scene.agent.kill();
    ensure!(scene.stats()?[0] == before[0], "{before:?}");
    let without = scene.clients(16, 400)?;
    ensure!(without.tally.failed() == 0, "{without:?}");

    scene.agent.restart()?;
    scene.agent.wait_ready(PATIENCE)?;
    ensure!(
        scene.stats()?[0].passed_over_until_ns == before[0].passed_over_until_ns,
        "{:?} was {:?}",
        scene.stats()?[0],
        before[0]
    );
    ensure!(
        scene.failed()? == told,
        "counted again: {:?}",
        scene.failed()?
    );
    ensure!(scene.agent.count_log("gets no new connections") == 0);

    // It ends by itself, with nobody there; it is tried, and its answer counts.
    scene.agent.kill();
    scene.start(0)?;
    let back = scene.clients_until("it is tried again", 32, BACK, || {
        Ok(scene.out()?.is_empty() && scene.failures()? == [0; 4])
    })?;
    ensure!(
        back.tally.failed() == 0 && back.tally.of("web-0") > 0,
        "{back:?}"
    );
    scene.agent.restart()?;
    scene.agent.wait_ready(PATIENCE)?;
    wait::until("the next agent writes that it is back", PATIENCE, || {
        (scene.stats().ok()?[0].passed_over_until_ns == 0).then_some(())
    })
}

/// Whether it is attached before the agent's or after it.
#[test]
fn programs_of_other_tools_hear_and_say_what_they_did_before() -> Result<()> {
    let mut scene = Scene::new(1, &[])?;
    let cgroup = scene.world.node("node-a").cgroup().to_owned();
    // So late that no attempt of this test is repeated, if the reply is left as it is.
    let tool = bpf::attach_other_tool(&cgroup, 60_000)?;
    for round in 1..=2 {
        let heard = tool.heard(bpf::RTT_CB)?;
        let connection = scene.client().connect(vip())?;
        for _ in 0..5 {
            connection.exchange("hello")?;
        }
        connection.close()?;
        ensure!(tool.heard(bpf::TCP_CONNECT_CB)? >= round && tool.heard(bpf::RTT_CB)? > heard);

        scene.stop(0);
        let (refused, unanswered) = scene.failed()?;
        scene.dial_for(Dial::Tcp, vip(), 2, Duration::from_millis(100))?;
        ensure!(
            scene.failed()? == (refused + 2, unanswered),
            "{:?}",
            scene.failed()?
        );
        scene.start(0)?;
        scene.blackhole(0)?;
        scene.client().dial(vec![(Dial::Tcp, vip())], |_| {
            thread::sleep(Duration::from_millis(2500));
            ensure!(
                scene.failed()? == (refused + 2, unanswered),
                "it was repeated"
            );
            Ok(())
        })?;
        ensure!(
            scene.failed()? == (refused + 2, unanswered + 1),
            "{:?}",
            scene.failed()?
        );
        scene.revive(0)?;
        // The agent's programs are attached anew: after the other.
        scene.agent.stop()?;
        scene.agent.cleanup()?;
        scene.agent.restart()?;
        scene.agent.wait_ready(PATIENCE)?;
    }
    Ok(())
}

#[test]
fn the_service_is_told_in_events_that_a_backend_is_out_and_that_it_is_back() -> Result<()> {
    let backends = ["web-0", "web-1"];
    let cluster = Cluster::new(&backends, |world, server| {
        server.apply(cluster::service(&web()));
        server.apply(cluster::slice(world, "web", &backends));
        Ok(())
    })?;
    let told = |reason: &str, kind: &str| {
        eventually(reason, || {
            cluster.client().connect_many(vip(), 10)?;
            let posted = cluster.server.posted();
            let event = posted.iter().find(|event| event["reason"] == reason);
            let event = event.context("none yet")?;
            ensure!(
                event["type"] == kind && event["regarding"]["name"] == "web",
                "{event}"
            );
            println!("{}", event["note"]);
            Ok(())
        })
    };
    let dead = cluster.world.pod("web-0");
    dead.probe().kill();
    told("BackendPassedOver", "Warning")?;
    serve(dead, TARGET)?;
    told("BackendReturned", "Normal")
}
