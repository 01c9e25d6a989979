//! The agent comes, goes, dies, comes twice; the kernel goes on.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{
    Agent, EndpointSlice, ManifestDir, Node, Service, Source, World, binaries, bpf,
    bpffs::Bpffs,
    probe::{ChurnPlan, ChurnReport, Proto},
    stage::{BACKENDS, PATIENCE, Stage, TARGET, VIP4, VIP6, answered_by, at, eventually, serve},
    wait,
};

fn churn_plan() -> ChurnPlan {
    ChurnPlan {
        threads: 2,
        ..ChurnPlan::new(at(VIP4, 80), BACKENDS)
    }
}

fn flawless(report: &ChurnReport) -> Result<()> {
    ensure!(
        report.tally.failed() == 0 && report.misdirected.is_empty() && report.attempts > 100,
        "{report:?}"
    );
    Ok(())
}

/// Any subcommand, on the node, its failure included.
fn kube_portal(node: &Node, args: &[&str]) -> Result<Output> {
    let binary = binaries::kube_portal()?;
    let mut command: Command = node.host().command(&binary.to_string_lossy())?;
    Ok(command
        .args(args)
        .arg("--bpffs-root")
        .arg(node.bpffs())
        .output()?)
}

fn one_line(output: &[u8]) -> Result<String> {
    let text = String::from_utf8(output.to_vec())?;
    ensure!(
        text.trim_end().lines().count() == 1,
        "not one line: {text:?}"
    );
    Ok(text.trim_end().to_owned())
}

/// Names pinned there, without the iterators that the kernel puts into every new bpffs
/// (kernel/bpf/preload).
fn pins(bpffs: &Path) -> Result<Vec<String>> {
    let names = fs::read_dir(bpffs)?.flatten();
    Ok(names
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.ends_with(".debug"))
        .collect())
}

fn translated(stage: &Stage) -> Result<()> {
    let probe = stage.client().probe();
    answered_by(&probe.connect_many(at(VIP4, 80), 60)?, &BACKENDS)?;
    answered_by(&probe.connect_many(at(VIP6, 80), 60)?, &BACKENDS)?;
    answered_by(&probe.udp_many(at(VIP4, 53), 60)?, &BACKENDS)?;
    answered_by(&probe.udp_connected_many(at(VIP6, 53), 40)?, &BACKENDS)
}

/// Frontends and backend ids, without counters.
fn tables(agent: &Agent) -> Result<Value> {
    Ok(agent.status()?["frontends"].take())
}

#[test]
fn connections_go_on_when_the_agent_stops_or_dies() -> Result<()> {
    let mut stage = Stage::usual()?;
    let before = tables(&stage.agent)?;
    stage.agent.stop()?;
    translated(&stage)?;
    stage.agent.restart()?;
    stage.agent.wait_ready(PATIENCE)?;
    stage.agent.kill();
    translated(&stage)?;
    // Needs no agent.
    ensure!(tables(&stage.agent)? == before);
    Ok(())
}

#[test]
fn a_restarted_agent_adopts_what_is_there_and_changes_nothing() -> Result<()> {
    let mut stage = Stage::usual()?;
    let before = tables(&stage.agent)?;
    for round in 0..3 {
        if round % 2 == 0 {
            stage.agent.kill();
        } else {
            stage.agent.stop()?;
        }
        stage.agent.restart()?;
        stage.agent.wait_ready(PATIENCE)?;
        stage.agent.wait_log("adopting 4 frontends", PATIENCE)?;
        stage
            .agent
            .wait_log("first sync done: 1 Services, 0 steps", PATIENCE)?;
        ensure!(tables(&stage.agent)? == before, "round {round}");
    }
    ensure!(
        stage.agent.count_log("WARN") == 0,
        "{:#?}",
        stage.agent.log()
    );
    // One program a hook, not one for each agent there was.
    for (hook, programs) in bpf::attached(stage.world.node("node-a").cgroup())? {
        ensure!(programs.len() == 1, "hook {hook}: {programs:?}");
    }
    translated(&stage)
}

#[test]
fn restarts_under_load_fail_no_connection() -> Result<()> {
    let mut stage = Stage::usual()?;
    let world = &stage.world;
    let manifests = ManifestDir::at(stage.manifests.path())?;
    let churn = world.pod("client").probe().churn(churn_plan())?;
    for round in 0..12 {
        match round % 3 {
            0 => {
                // Before that line it has no signal handlers, and ends as any process would.
                stage.agent.wait_log("source: ", PATIENCE)?;
                stage.agent.stop()?;
            }
            // In the middle of whatever it does.
            1 => stage.agent.kill(),
            _ => {
                stage.agent.kill();
                let some = &BACKENDS[round % 2..];
                tests::stage::web_slices(world, &manifests, some)?;
            }
        }
        stage.agent.restart()?;
        // Every other time it dies while it starts.
        if round % 2 == 0 {
            stage.agent.wait_ready(PATIENCE)?;
        }
        churn.wait_attempts(50, PATIENCE)?;
    }
    stage.agent.restart()?;
    stage.agent.wait_ready(PATIENCE)?;
    flawless(&churn.stop()?)
}

#[test]
fn what_was_deleted_while_the_agent_was_away_goes_with_its_first_sync() -> Result<()> {
    let mut stage = Stage::new(|world, manifests| {
        for (number, name) in BACKENDS.iter().enumerate() {
            let service = format!("svc-{number}");
            let vip = format!("10.96.1.{number}");
            manifests.service(&Service::new(&service, [vip]).tcp("http", 80))?;
            manifests.slice(
                &EndpointSlice::v4(&service, &service)
                    .tcp("http", TARGET)
                    .ready(world.pod(name).ip4(), "node-a"),
            )?;
        }
        Ok(())
    })?;
    let probe = stage.world.pod("client").probe();
    stage.agent.kill();
    stage.manifests.remove("default-svc-0.yaml")?;
    stage.manifests.remove("default-svc-0.slice.yaml")?;
    stage.manifests.remove("default-svc-1.slice.yaml")?;
    answered_by(&probe.connect_many(at("10.96.1.0", 80), 5)?, &["backend-1"])?;
    answered_by(&probe.connect_many(at("10.96.1.1", 80), 5)?, &["backend-2"])?;
    stage.agent.restart()?;
    stage.agent.wait_ready(PATIENCE)?;
    ensure!(stage.frontend("10.96.1.0", 80)?.is_none());
    let emptied = stage.frontend("10.96.1.1", 80)?.context("no frontend")?;
    ensure!(emptied["verdict"] == "refuse", "{emptied}");
    answered_by(&probe.connect_many(at("10.96.1.2", 80), 5)?, &["backend-3"])?;
    wait::until(
        "the backends of what is gone to be reclaimed",
        PATIENCE,
        || {
            let used = stage.agent.status().ok()?["maps"]["backends"]["used"].as_u64()?;
            (used == 1).then_some(())
        },
    )
}

#[test]
fn a_second_agent_on_the_same_pins_refuses_and_disturbs_nobody() -> Result<()> {
    let mut stage = Stage::usual()?;
    let before = tables(&stage.agent)?;
    let churn = stage.world.pod("client").probe().churn(churn_plan())?;
    let empty = ManifestDir::new()?;
    let mut second = stage
        .world
        .node("node-a")
        .start_agent(Source::Manifests(empty.path().to_owned()))?;
    let status = second.wait_exit(PATIENCE)?;
    ensure!(status.code() == Some(1), "{status}");
    let line = second.wait_line(&["another kube-portal is running"], PATIENCE)?;
    ensure!(
        line.contains("stop it first") && line.contains("--bpffs-root"),
        "{line}"
    );
    ensure!(stage.agent.is_running());
    churn.wait_attempts(200, PATIENCE)?;
    flawless(&churn.stop()?)?;
    ensure!(tables(&stage.agent)? == before);
    Ok(())
}

#[test]
fn cleanup_refuses_while_an_agent_runs_and_leaves_nothing_afterwards() -> Result<()> {
    let mut stage = Stage::usual()?;
    let node = stage.world.node("node-a");
    let programs: BTreeSet<u32> = bpf::attached(node.cgroup())?
        .into_iter()
        .flat_map(|(_, programs)| programs)
        .collect();
    ensure!(programs.len() == 10, "{programs:?}");

    let refused = kube_portal(node, &["cleanup"])?;
    ensure!(
        refused.status.code() == Some(1) && refused.stdout.is_empty(),
        "{refused:?}"
    );
    let line = one_line(&refused.stderr)?;
    ensure!(
        line.contains("running") && line.contains("stop it first"),
        "{line}"
    );
    translated(&stage)?;

    stage.agent.stop()?;
    let node = stage.world.node("node-a");
    let cleaned = kube_portal(node, &["cleanup"])?;
    let told = String::from_utf8(cleaned.stdout)?;
    ensure!(
        cleaned.status.success() && cleaned.stderr.is_empty(),
        "{told}"
    );
    for wanted in [
        "removed link and program",
        "link_kp_connect4",
        "link_kp_sock_release",
        "link_kp_sock_ops",
        "removed map",
        "KP_FRONTENDS",
        "removed directory",
    ] {
        ensure!(told.contains(wanted), "{wanted} is not in:\n{told}");
    }
    ensure!(pins(node.bpffs())?.is_empty(), "{:?}", pins(node.bpffs())?);
    for (hook, programs) in bpf::attached(node.cgroup())? {
        ensure!(programs.is_empty(), "hook {hook}: {programs:?}");
    }
    wait::until("the programs to be unloaded", PATIENCE, || {
        let loaded = bpf::programs().ok()?;
        programs
            .iter()
            .all(|id| !loaded.contains_key(id))
            .then_some(())
    })?;
    // Nobody translates: the address leads nowhere.
    let attempt = stage
        .client()
        .probe()
        .connect_within(at(VIP4, 80), std::time::Duration::from_millis(300));
    ensure!(attempt.is_err(), "{attempt:?}");

    let again = kube_portal(node, &["cleanup"])?;
    ensure!(again.status.success(), "{again:?}");
    ensure!(
        one_line(&again.stdout)?.contains("nothing of kube-portal"),
        "{again:?}"
    );

    stage.agent.restart()?;
    stage.agent.wait_ready(PATIENCE)?;
    translated(&stage)
}

#[test]
fn cleanup_leaves_what_is_not_ours() -> Result<()> {
    let mut stage = Stage::usual()?;
    stage.agent.stop()?;
    let node = stage.world.node("node-a");
    // Of another tool, beside ours and among ours.
    let beside = node.bpffs().join("another-tool");
    let among = node.bpffs().join("kube-portal/another-tool");
    fs::create_dir(&beside)?;
    fs::create_dir(&among)?;
    let cleaned = kube_portal(node, &["cleanup"])?;
    ensure!(cleaned.status.success(), "{cleaned:?}");
    ensure!(beside.is_dir() && among.is_dir());
    fs::remove_dir(&among)?;
    ensure!(kube_portal(node, &["cleanup"])?.status.success());
    ensure!(!node.bpffs().join("kube-portal").exists());
    Ok(())
}

#[test]
fn status_without_any_agent_ever_says_so() -> Result<()> {
    let world = World::builder().node("node-a", ["pod"]).build()?;
    let output = kube_portal(world.node("node-a"), &["status"])?;
    ensure!(
        output.status.code() == Some(4) && output.stdout.is_empty(),
        "{output:?}"
    );
    let line = one_line(&output.stderr)?;
    ensure!(
        line.contains("nothing of kube-portal is pinned") && line.contains("--bpffs-root"),
        "{line}"
    );
    ensure!(pins(world.node("node-a").bpffs())?.is_empty());
    Ok(())
}

fn one_service(world: &World, vip: &str, backend: &str) -> Result<ManifestDir> {
    let manifests = ManifestDir::new()?;
    manifests.service(&Service::new("web", [vip]).tcp("http", 80))?;
    manifests.slice(
        &EndpointSlice::v4("web", "web-4")
            .tcp("http", TARGET)
            .ready(world.pod(backend).ip4(), "node-a"),
    )?;
    Ok(manifests)
}

fn leads_nowhere(world: &World, pod: &str, vip: &str) -> Result<()> {
    let within = std::time::Duration::from_millis(300);
    let attempt = world.pod(pod).probe().connect_within(at(vip, 80), within);
    ensure!(attempt.is_err(), "{pod} reached {vip}: {attempt:?}");
    Ok(())
}

#[test]
fn two_nodes_do_not_see_one_anothers_services() -> Result<()> {
    let world = World::builder()
        .node("node-a", ["client-a", "backend-a"])
        .node("node-b", ["client-b", "backend-b"])
        .build()?;
    for name in ["backend-a", "backend-b"] {
        serve(world.pod(name), TARGET)?;
    }
    // Even one address may mean different things.
    let a = one_service(&world, VIP4, "backend-a")?;
    let b = one_service(&world, VIP4, "backend-b")?;
    a.service(&Service::new("only-a", ["10.96.2.1"]).tcp("http", 80))?;
    let mut agents = Vec::new();
    for (node, manifests) in [("node-a", &a), ("node-b", &b)] {
        let source = Source::Manifests(manifests.path().to_owned());
        agents.push(world.node(node).start_agent(source)?);
    }
    for agent in &agents {
        agent.wait_ready(PATIENCE)?;
    }
    let client = |name: &str| world.pod(name).probe();
    answered_by(
        &client("client-a").connect_many(at(VIP4, 80), 60)?,
        &["backend-a"],
    )?;
    answered_by(
        &client("client-b").connect_many(at(VIP4, 80), 60)?,
        &["backend-b"],
    )?;
    let refused = tests::net_error(client("client-a").connect(at("10.96.2.1", 80)))?;
    ensure!(refused.errno == "ECONNREFUSED", "{refused}");
    leads_nowhere(&world, "client-b", "10.96.2.1")?;
    // One of them goes; the other does not notice.
    agents[0].stop()?;
    agents[0].cleanup()?;
    leads_nowhere(&world, "client-a", VIP4)?;
    answered_by(
        &client("client-b").connect_many(at(VIP4, 80), 60)?,
        &["backend-b"],
    )
}

#[test]
fn another_tools_programs_on_the_same_cgroup_keep_working_when_ours_go() -> Result<()> {
    let mut stage = Stage::usual()?;
    let node = stage.world.node("node-a");
    let bpffs = Bpffs::mount(stage.world.dir().join("bpf-another"))?;
    // The other tool is another agent, which knows another Service.
    let theirs = one_service(&stage.world, "10.96.3.1", "backend-3")?;
    let source = Source::Manifests(theirs.path().to_owned());
    let mut other = node.start_agent_on(bpffs.path(), source, &[])?;
    other.wait_ready(PATIENCE)?;
    for (hook, programs) in bpf::attached(node.cgroup())? {
        ensure!(programs.len() == 2, "hook {hook}: {programs:?}");
    }
    let probe = stage.world.pod("client").probe();
    translated(&stage)?;
    answered_by(
        &probe.connect_many(at("10.96.3.1", 80), 60)?,
        &["backend-3"],
    )?;
    let open = probe.connect(at("10.96.3.1", 80))?;

    // Ours are replaced, then removed.
    stage.agent.restart()?;
    stage.agent.wait_ready(PATIENCE)?;
    answered_by(
        &probe.connect_many(at("10.96.3.1", 80), 60)?,
        &["backend-3"],
    )?;
    stage.agent.stop()?;
    stage.agent.cleanup()?;
    for (hook, programs) in bpf::attached(stage.world.node("node-a").cgroup())? {
        ensure!(programs.len() == 1, "hook {hook}: {programs:?}");
    }
    leads_nowhere(&stage.world, "client", VIP4)?;
    answered_by(
        &probe.connect_many(at("10.96.3.1", 80), 60)?,
        &["backend-3"],
    )?;
    ensure!(open.exchange("x")?.name == "backend-3");
    ensure!(other.is_running());
    Ok(())
}

#[test]
fn sockets_made_before_the_first_agent_are_left_as_they_are() -> Result<()> {
    let world = World::builder()
        .node("node-a", ["client", "backend-1"])
        .build()?;
    serve(world.pod("backend-1"), TARGET)?;
    let pod = std::net::SocketAddr::new(world.pod("backend-1").ip4(), TARGET);
    let probe = world.pod("client").probe();
    let (tcp, udp) = (probe.connect(pod)?, probe.udp_connected(pod)?);
    let own = std::net::SocketAddr::new(world.pod("client").ip4(), 7000);
    let server = probe.serve(Proto::Tcp, own, "client")?;
    let manifests = one_service(&world, VIP4, "backend-1")?;
    let mut agent = world
        .node("node-a")
        .start_agent(Source::Manifests(manifests.path().to_owned()))?;
    agent.wait_ready(PATIENCE)?;
    for round in 0..2 {
        ensure!(tcp.exchange("x")?.name == "backend-1" && tcp.peer_name()? == pod);
        ensure!(udp.exchange("x")?.from == pod && udp.peer_name()? == pod);
        eventually("to be reached itself", || {
            answered_by(
                &world
                    .pod("backend-1")
                    .probe()
                    .connect_many(server.local, 5)?,
                &["client"],
            )
        })?;
        if round == 0 {
            agent.stop()?;
            agent.cleanup()?;
        }
    }
    Ok(())
}

#[test]
fn an_agent_that_is_killed_at_any_moment_leaves_working_traffic() -> Result<()> {
    let mut stage = Stage::usual()?;
    let world = &stage.world;
    let manifests = ManifestDir::at(stage.manifests.path())?;
    let churn = world.pod("client").probe().churn(churn_plan())?;
    for round in 0..40_u64 {
        let some = &BACKENDS[usize::try_from(round % 3)?..];
        tests::stage::web_slices(world, &manifests, some)?;
        stage.agent.restart()?;
        // Whatever it is doing by then.
        std::thread::sleep(std::time::Duration::from_millis(round * 8));
        stage.agent.kill();
    }
    stage.agent.restart()?;
    stage.agent.wait_ready(PATIENCE)?;
    flawless(&churn.stop()?)?;
    ensure!(stage.backends_of(VIP4, 80)?.len() == 3);
    for (hook, programs) in bpf::attached(stage.world.node("node-a").cgroup())? {
        ensure!(programs.len() == 1, "hook {hook}: {programs:?}");
    }
    ensure!(
        pins(&stage.world.node("node-a").bpffs().join("kube-portal"))?.len() == 1
            && stage.agent.count_log("WARN") == 0,
        "{:#?}",
        stage.agent.log()
    );
    translated(&stage)
}

#[test]
fn udp_flows_lose_nothing_while_agents_are_replaced() -> Result<()> {
    let mut stage = Stage::usual()?;
    let probe = stage.world.pod("client").probe();
    let done = std::sync::atomic::AtomicBool::new(false);
    let talk = &|vip: std::net::SocketAddr, connected: bool| -> Result<usize> {
        let any = if vip.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
        let socket = if connected {
            probe.udp_connected(vip)?
        } else {
            probe.udp_bound(any.parse::<std::net::SocketAddr>()?)?
        };
        let to = (!connected).then_some(vip);
        let timeout = std::time::Duration::from_secs(1);
        let first = socket.exchange_within(to, "first", timeout)?;
        let mut count = 0;
        while !done.load(std::sync::atomic::Ordering::Acquire) {
            let answer = socket.exchange_within(to, "more", timeout)?;
            ensure!(
                answer.from == vip && answer.name == first.name,
                "{answer:?} after {first:?}"
            );
            // New ones as well, in the middle of a replacement.
            let tally = probe.udp_connected_many(vip, 1)?;
            ensure!(tally.failed() == 0, "{tally}");
            count += 1;
        }
        Ok(count)
    };
    std::thread::scope(|scope| {
        let talks = [
            (at(VIP4, 53), true),
            (at(VIP4, 53), false),
            (at(VIP6, 53), true),
            (tests::stage::mapped(VIP4, 53), false),
        ]
        .map(|(vip, connected)| scope.spawn(move || talk(vip, connected)));
        let restarts = (0..6).try_for_each(|_| {
            stage.agent.restart()?;
            stage.agent.wait_ready(PATIENCE)
        });
        done.store(true, std::sync::atomic::Ordering::Release);
        for talk in talks {
            let count = talk.join().map_err(|_| anyhow::anyhow!("panic"))??;
            ensure!(count > 20, "{count}");
        }
        restarts
    })
}
