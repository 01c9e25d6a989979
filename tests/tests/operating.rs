//! Every command of README.md and docs/OPERATING.md is run, and prints what they show.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tests::{
    ManifestDir, Node, Service, World, binaries,
    cluster::{Cluster, service, slice},
    documents::{Sample, USUAL, is_like, matches, samples, shape},
    fleet::{Fleet, endpoint_slices, node_port, slices},
    stage::{PATIENCE, VIP4, VIP6, at, eventually},
};

const DEMONSTRATION: &str = "cargo xtask run -- --once";
const DOCUMENTS: [&str; 2] = ["README.md", "docs/OPERATING.md"];
/// What can't be run here, how often it is there, and why not.
const NOT_RUN: [(&str, usize, &str); 9] = [
    ("cargo xtask run", 1, "stays up; --once is run"),
    (
        "cargo xtask run -- --kubeconfig",
        1,
        "would be the agent of this machine",
    ),
    (
        "cargo xtask run -- --manifests",
        1,
        "would be the agent of this machine",
    ),
    (
        "cargo xtask image",
        1,
        "an optimised build takes minutes; tests/container.rs makes the image and runs it",
    ),
    ("cargo xtask test", 1, "would run this test"),
    (
        "cargo test",
        1,
        "is run by cargo xtask test beside this test",
    ),
    ("cargo xtask bench", 3, "takes minutes"),
    ("kubectl", 3, "needs a cluster"),
    ("docker load", 1, "needs a container engine"),
];

/// These are run, and on the node of a scene.
fn is_typed_on_a_node(sample: &Sample) -> bool {
    ["kube-portal", "sysctl"].contains(&&*sample.words()[0])
}

fn document(name: &str) -> Result<Vec<Sample>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    let text = std::fs::read_to_string(&path)?;
    samples(&text).map_err(|why| anyhow::anyhow!("{name}: {why}"))
}

const VIP_EMPTY: &str = "10.96.0.12";
const VIP_CART: &str = "10.96.0.13";
const VIP_ADMIN: &str = "10.96.0.14";

/// Who has a node on which commands are typed; dropped, it is gone.
enum Stage {
    Fleet(Box<Fleet>),
    Cluster(Box<Cluster>),
    /// Without an agent.
    Empty(Box<World>, ManifestDir),
}

struct Scene {
    /// What `kube-portal run` has started here.
    agent: Option<Child>,
    stage: Stage,
    /// Where commands are typed. In its folder `services` is what is to be served.
    folder: tempfile::TempDir,
}

impl Scene {
    fn of(name: &str) -> Result<Self> {
        let stage = match name {
            USUAL => Stage::Fleet(Box::new(usual()?)),
            "full" => Stage::Fleet(Box::new(full()?)),
            "cut off" => Stage::Cluster(Box::new(cut_off()?)),
            "fresh" | "another" => {
                let world = World::builder().node("node-a", ["near"]).build()?;
                let manifests = ManifestDir::new()?;
                manifests.service(&Service::new("web", [VIP4]).tcp("http", 80))?;
                v4_slice(&world, &manifests, "web", "near")?;
                Stage::Empty(Box::new(world), manifests)
            }
            other => bail!("no scene is called \"{other}\""),
        };
        let folder = tempfile::tempdir()?;
        let scene = Self {
            agent: None,
            stage,
            folder,
        };
        let services = ManifestDir::at(scene.folder.path().join("services"))?;
        match &scene.stage {
            Stage::Fleet(fleet) => {
                copy(fleet.manifests.path(), services.path())?;
                // The agent is not told.
                v4_slice(&fleet.world, &services, "web", "near")?;
            }
            Stage::Empty(_, manifests) => copy(manifests.path(), services.path())?,
            Stage::Cluster(_) => {}
        }
        Ok(scene)
    }

    fn node(&self) -> &Node {
        let world = match &self.stage {
            Stage::Fleet(fleet) => &fleet.world,
            Stage::Cluster(cluster) => &cluster.world,
            Stage::Empty(world, _) => world,
        };
        world.node("node-a")
    }

    fn command(&self, sample: &Sample) -> Result<Command> {
        let words = sample.words();
        let node = self.node();
        let binary = binaries::kube_portal()?;
        let mut command = node.host().command(&binary.to_string_lossy())?;
        command.current_dir(self.folder.path()).args(&words[1..]);
        if !words.iter().any(|word| word == "--bpffs-root") {
            command.arg("--bpffs-root").arg(node.bpffs());
        }
        if ["check", "run"].contains(&&*words[1]) {
            command.arg("--cgroup-root").arg(node.cgroup());
        }
        Ok(command)
    }

    fn run(&mut self, sample: &Sample) -> Result<Output> {
        let words = sample.words();
        if words[0] != "kube-portal" {
            let mut command = self.node().host().command(&words[0])?;
            return Ok(command.args(&words[1..]).output()?);
        }
        let mut command = self.command(sample)?;
        match &*words[1] {
            "run" if sample.exit_code == 0 => {
                let mut child = command.stderr(Stdio::piped()).spawn()?;
                let log = child.stderr.take().context("stderr")?;
                let (sender, lines) = std::sync::mpsc::channel();
                std::thread::spawn(move || {
                    std::io::BufRead::lines(std::io::BufReader::new(log))
                        .map_while(Result::ok)
                        .for_each(|line| drop(sender.send(line)));
                });
                self.agent = Some(child);
                let mut text = String::new();
                while !text.contains("attached by") {
                    text += &lines.recv_timeout(PATIENCE).context(text.clone())?;
                    text.push('\n');
                }
                Ok(Output {
                    status: std::process::ExitStatus::default(),
                    stdout: text.into_bytes(),
                    stderr: Vec::new(),
                })
            }
            "cleanup" => {
                self.stop()?;
                Ok(command.output()?)
            }
            "monitor" | "top" => self.with_traffic(|| Ok(command.output()?)),
            _ => Ok(command.output()?),
        }
    }

    /// With the places where a node has what is below this world's.
    fn as_on_a_node(&self, text: &str) -> String {
        let node = self.node();
        let text = text.replace(&*node.bpffs().to_string_lossy(), "/sys/fs/bpf");
        text.replace(&*node.cgroup().to_string_lossy(), "/sys/fs/cgroup")
    }

    fn stop(&mut self) -> Result<()> {
        if let Some(mut agent) = self.agent.take() {
            kill(Pid::from_raw(i32::try_from(agent.id())?), Signal::SIGTERM)?;
            ensure!(agent.wait()?.success());
        }
        Ok(())
    }

    /// While clients dial everything, over and over.
    fn with_traffic<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let Stage::Fleet(fleet) = &self.stage else {
            return work();
        };
        let world = &fleet.world;
        let (client, laptop) = (world.pod("client"), world.pod("laptop"));
        let node = world.node("node-a").ip4();
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    for to in [at(VIP4, 80), at(VIP_EMPTY, 80)] {
                        if let Ok(open) = client.connect(to) {
                            drop(open.close());
                        }
                    }
                    for port in [30_080, 30_081] {
                        let to = SocketAddr::new(node, port);
                        if let Ok(open) = laptop.connect_within(to, Duration::from_millis(50)) {
                            drop(open.close());
                        }
                    }
                }
            });
            let done = work();
            is_over.store(true, Ordering::Relaxed);
            done
        })
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            drop((agent.kill(), agent.wait()));
        }
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    for file in std::fs::read_dir(from)? {
        let file = file?;
        std::fs::copy(file.path(), to.join(file.file_name()))?;
    }
    Ok(())
}

/// Several Services, clients inside and outside, and connections that are open.
fn usual() -> Result<Fleet> {
    let world = World::builder()
        .node("node-a", ["client", "near"])
        .node("node-b", ["far"])
        .outside("laptop")
        .build()?;
    let fleet = Fleet::start(world, &["node-a"], &[], |world, manifests| {
        manifests.service_cidrs(&["10.96.0.0/16", "fd96::/112"])?;
        manifests.service(&node_port("web", [VIP4, VIP6], 30_080))?;
        slices(world, manifests, "web", &["near", "far"])?;
        manifests.service(&Service::new("empty", [VIP_EMPTY]).tcp("http", 80))?;
        let balanced = |name, vip, port, ip| {
            let service = Service::new(name, [vip]).kind("LoadBalancer");
            service
                .port("http", "TCP", 80, Some(port))
                .load_balancer([ip])
        };
        let cart = balanced("cart", VIP_CART, 30_081, "203.0.113.13");
        manifests.service(&cart.spec("externalTrafficPolicy: Local"))?;
        v4_slice(world, manifests, "cart", "far")?;
        let admin = balanced("admin", VIP_ADMIN, 30_082, "203.0.113.14");
        let admin = admin.port("dns", "UDP", 53, Some(30_082));
        manifests.service(&admin.spec("loadBalancerSourceRanges: [\"198.51.100.0/24\"]"))?;
        v4_slice(world, manifests, "admin", "near")
    })?;
    let world = &fleet.world;
    let (client, laptop) = (world.pod("client"), world.pod("laptop"));
    let node = |port| SocketAddr::new(world.node("node-a").ip4(), port);
    // They stay open as long as the world.
    laptop.connect(node(30_080))?;
    client.connect(at(VIP4, 80))?;
    client.udp_connected(at(VIP4, 53))?;
    let flow = laptop.udp_connected(node(30_082))?;
    flow.exchange("one")?;
    flow.exchange("two")?;
    // Of these outcomes one each.
    ensure!(client.connect(at(VIP_EMPTY, 80)).is_err());
    let dropped = laptop.connect_within(node(30_081), Duration::from_millis(50));
    ensure!(dropped.is_err());
    Ok(fleet)
}

fn v4_slice(world: &World, manifests: &ManifestDir, service: &str, name: &str) -> Result<()> {
    let [v4, _] = endpoint_slices(world, service, &[name]);
    manifests.slice(&v4)
}

/// Its maps have room for a few frontends.
fn full() -> Result<Fleet> {
    let world = World::builder()
        .node("node-a", ["client", "near"])
        .build()?;
    let fleet = Fleet::start(
        world,
        &["node-a"],
        &["--max-frontends", "8"],
        |world, manifests| {
            manifests.service(&Service::new("web", [VIP4]).tcp("http", 80))?;
            v4_slice(world, manifests, "web", "near")?;
            let many = Service::new("many", ["10.96.0.20"]).namespace("shop");
            let many = (8001..8020).fold(many, |many, port| many.tcp(&format!("p{port}"), port));
            manifests.service(&many)
        },
    )?;
    eventually("it to be told", || {
        let status = fleet.agent("node-a")?.call(&["status"])?;
        ensure!(status.contains("shop/many"), "{status}");
        Ok(())
    })?;
    Ok(fleet)
}

/// Its API server has gone.
fn cut_off() -> Result<Cluster> {
    let mut cluster = Cluster::new(&["near"], |world, server| {
        server.apply(service(&Service::new("web", [VIP4]).tcp("http", 80)));
        server.apply(slice(world, "web", &["near"]));
        Ok(())
    })?;
    cluster.stop_server()?;
    eventually("it to be noticed", || {
        let status = cluster.agent.call(&["status"])?;
        ensure!(status.contains("out of step"), "{status}");
        Ok(())
    })?;
    Ok(cluster)
}

/// The demonstration, as `cargo xtask run` starts it.
fn demonstration() -> Result<Output> {
    let (agent, probe) = (binaries::kube_portal()?, binaries::probe()?);
    let demo = probe.with_file_name("demo");
    let mut command = Command::new(demo);
    command.arg("--agent").arg(agent).arg("--probe").arg(probe);
    Ok(command.arg("--once").output()?)
}

fn text(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// What is wrong with the output, if anything.
fn differs(sample: &Sample, printed: String, code: Option<i32>) -> Option<String> {
    if code != Some(sample.exit_code) {
        return Some(format!("exit code {code:?}\n{printed}"));
    }
    let words = sample.words();
    let is_exact = words[0] == "kube-portal"
        && words[1] == "trace"
        && !words.iter().any(|word| word == "--kernel");
    let lines = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        let form = |line: &str| match is_exact {
            true => line.trim_end().to_owned(),
            false => shape(line),
        };
        lines.map(form).collect()
    };
    let (shown, found) = (lines(&sample.output), lines(&printed));
    let agrees = match words.get(1).map(String::as_str) {
        // In whatever order they come.
        Some("monitor") => {
            let is_one = |line: &String| shown.iter().any(|shown| is_like(shown, line));
            let is_there = |shown: &String| found.iter().any(|line| is_like(shown, line));
            !shown.is_empty() && shown.iter().all(is_there) && found.iter().all(is_one)
        }
        _ => matches(&shown, &found),
    };
    (!agrees).then_some(printed)
}

#[test]
fn every_command_of_the_documents_runs_and_prints_what_they_show() -> Result<()> {
    let mut scenes: BTreeMap<String, Scene> = BTreeMap::new();
    let mut wrong = String::new();
    let (mut run, mut left_out) = (0, 0);
    for name in DOCUMENTS {
        for sample in document(name)? {
            let (printed, code) = if is_typed_on_a_node(&sample) {
                let scene = match scenes.entry(sample.scene.clone()) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(new) => {
                        let scene = Scene::of(&sample.scene);
                        new.insert(scene.with_context(|| format!("scene {}", sample.scene))?)
                    }
                };
                let output = scene.run(&sample);
                let output = output.with_context(|| format!("{name}: {}", sample.command))?;
                (scene.as_on_a_node(&text(&output)), output.status.code())
            } else if sample.command == DEMONSTRATION {
                let output = demonstration()?;
                (text(&output), output.status.code())
            } else {
                left_out += 1;
                continue;
            };
            run += 1;
            if let Some(printed) = differs(&sample, printed, code) {
                wrong += &format!("{name}:{}: $ {}\n{printed}\n", sample.line, sample.command);
            }
        }
    }
    println!("{run} commands run, {left_out} left out");
    ensure!(wrong.is_empty(), "other things are printed:\n{wrong}");
    Ok(())
}

#[test]
fn each_command_that_is_not_run_is_named_with_the_reason() -> Result<()> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for name in DOCUMENTS {
        for sample in document(name)? {
            let command = &sample.command;
            if is_typed_on_a_node(&sample) || command == DEMONSTRATION {
                continue;
            }
            let named = NOT_RUN.iter().filter(|(begin, ..)| {
                let rest = command.strip_prefix(begin);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
            });
            let (begin, ..) = named
                .max_by_key(|(begin, ..)| begin.len())
                .with_context(|| format!("{name}:{}: {command}: run by nobody", sample.line))?;
            *seen.entry(begin).or_default() += 1;
        }
    }
    for (begin, count, why) in NOT_RUN {
        let found = seen.get(begin).copied().unwrap_or(0);
        ensure!(
            found == count,
            "{begin} ({why}): {found} times, not {count}"
        );
    }
    Ok(())
}
