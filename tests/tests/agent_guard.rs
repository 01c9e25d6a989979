//! The guard around the agent, with a stand-in that only behaves like one from the outside.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::{Source, World, binaries};

const STAND_IN: &str = r#"#!/bin/sh
case $1 in
status) echo '{"frontends":[],"counters":{"connects":1}}'; exit ;;
cleanup) echo "cleaned $3"; exit ;;
esac
trap 'echo bye >&2; exit 0' TERM
echo "args: $*" >&2
case $* in *--refuse*) echo "refused: no such thing" >&2; exit 3 ;; esac
echo "INFO first sync done" >&2
while :; do sleep 0.01; done
"#;
const TIMEOUT: Duration = Duration::from_secs(10);

fn a_node() -> Result<(World, Source)> {
    static STARTED: OnceLock<tempfile::TempDir> = OnceLock::new();
    STARTED.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("kube-portal");
        fs::write(&path, STAND_IN).expect("write the stand-in");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
        let probe = binaries::probe().expect("the probe");
        binaries::use_these(path, probe).expect("the first to settle them");
        dir
    });
    let world = World::builder().node("node-a", ["pod"]).build()?;
    let source = Source::Manifests(world.dir().to_owned());
    Ok((world, source))
}

#[test]
fn it_runs_in_the_nodes_namespace_with_the_nodes_roots() -> Result<()> {
    let (world, source) = a_node()?;
    let node = world.node("node-a");
    let agent = node.start_agent(source)?;
    agent.wait_ready(TIMEOUT)?;
    let log = agent.log().join("\n");
    for wanted in [
        format!("run --manifests {}", world.dir().display()),
        "--node-name node-a".to_owned(),
        format!("--cgroup-root {}", node.cgroup().display()),
        format!("--bpffs-root {}", node.bpffs().display()),
    ] {
        ensure!(log.contains(&wanted), "{wanted} not in {log}");
    }
    let pid = agent.pid().context("it runs")?;
    let own = fs::read_link(format!("/proc/{pid}/ns/net"))?;
    let wanted = node
        .netns()
        .enter(|| fs::read_link("/proc/thread-self/ns/net"))??;
    ensure!(own == wanted, "{own:?} is not {wanted:?}");
    ensure!(agent.status()?["counters"]["connects"] == 1);
    ensure!(
        agent
            .cleanup()?
            .contains(&node.bpffs().display().to_string())
    );
    Ok(())
}

#[test]
fn it_stops_is_killed_and_starts_again() -> Result<()> {
    let (world, source) = a_node()?;
    let mut agent = world.node("node-a").start_agent(source)?;
    agent.wait_ready(TIMEOUT)?;
    agent.stop()?;
    agent.wait_log("bye", TIMEOUT)?;
    agent.restart()?;
    agent.wait_ready(TIMEOUT)?;
    ensure!(agent.is_running());
    agent.kill();
    ensure!(!agent.is_running() && !agent.log().contains(&"bye".to_owned()));
    Ok(())
}

#[test]
fn waiting_for_one_that_ended_tells_its_log_at_once() -> Result<()> {
    let (world, source) = a_node()?;
    let mut agent = world
        .node("node-a")
        .start_agent_with(source, &["--refuse"])?;
    let started = Instant::now();
    let error = agent
        .wait_ready(TIMEOUT)
        .expect_err("it refuses")
        .to_string();
    ensure!(error.contains("refused: no such thing"), "{error}");
    ensure!(started.elapsed() < TIMEOUT);
    ensure!(agent.wait_exit(TIMEOUT)?.code() == Some(3));
    Ok(())
}
