//! The agent under test, running on a node.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::container::Container;
use crate::pod::Place;
use crate::world::Node;
use crate::{binaries, wait};

/// The line the agent logs once everything listed at its start is programmed.
const READY: &str = "first sync done";
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Lines of log shown in an error and when the test panics.
const LOG_TAIL: usize = 40;

/// Where the agent gets Services and EndpointSlices from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A folder of YAML.
    Manifests(PathBuf),
    /// An API server.
    Kubeconfig(PathBuf),
}

/// A running (or stopped) agent. Dropped, it is killed; what it left in the kernel stays until it
/// is cleaned up, adopted by the next agent of the node, or removed with the world.
#[derive(Debug)]
pub struct Agent {
    node: String,
    source: Source,
    extra: Vec<String>,
    cgroup_root: PathBuf,
    bpffs_root: PathBuf,
    /// Another than the usual build.
    binary: Option<PathBuf>,
    /// It runs in there, as the manifest of that says.
    container: Option<Container>,
    place: Arc<Place>,
    child: Option<Child>,
    log: Arc<Log>,
}

#[derive(Debug, Default)]
struct Log {
    state: Mutex<LogState>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct LogState {
    lines: Vec<String>,
    ended: bool,
}

impl Node {
    /// Starts an agent on this node; does not wait until it is ready.
    pub fn start_agent(&self, source: Source) -> Result<Agent> {
        self.start_agent_with(source, &[])
    }

    /// The same of another build.
    pub fn start_build(&self, binary: &Path, source: Source) -> Result<Agent> {
        let mut agent = self.agent(self.bpffs(), source, &[]);
        agent.use_binary(Some(binary.to_owned()));
        agent.start()?;
        Ok(agent)
    }

    /// The same with more arguments to `kube-portal run`.
    pub fn start_agent_with(&self, source: Source, extra: &[&str]) -> Result<Agent> {
        self.start_agent_on(self.bpffs(), source, extra)
    }

    /// The same on another bpffs than the node's own.
    pub fn start_agent_on(&self, bpffs: &Path, source: Source, extra: &[&str]) -> Result<Agent> {
        let mut agent = self.agent(bpffs, source, extra);
        agent.start()?;
        Ok(agent)
    }

    /// An agent in a container, which says where it finds everything; with more arguments.
    pub fn start_container(&self, container: Container, extra: &[&str]) -> Result<Agent> {
        let nowhere = Source::Kubeconfig(PathBuf::new());
        let mut agent = self.agent(self.bpffs(), nowhere, extra);
        agent.container = Some(container);
        agent.start()?;
        Ok(agent)
    }

    fn agent(&self, bpffs: &Path, source: Source, extra: &[&str]) -> Agent {
        Agent {
            node: self.name().to_owned(),
            source,
            extra: extra.iter().map(|arg| (*arg).to_owned()).collect(),
            cgroup_root: self.cgroup().to_owned(),
            bpffs_root: bpffs.to_owned(),
            binary: None,
            container: None,
            place: Arc::clone(self.agent_place()),
            child: None,
            log: Arc::default(),
        }
    }
}

impl Agent {
    /// The node it runs on.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Waits until everything listed at its start is programmed.
    pub fn wait_ready(&self, timeout: Duration) -> Result<()> {
        self.wait_log(READY, timeout)
    }

    /// Waits for a line of its log (since it was last started) that contains `text`.
    pub fn wait_log(&self, text: &str, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let mut state = self
            .log
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        loop {
            if state.lines.iter().any(|line| line.contains(text)) {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                let why = if state.ended {
                    "it has exited".into()
                } else {
                    format!("{timeout:?}")
                };
                bail!(
                    "agent of {}: no \"{text}\" ({why}); log:\n{}",
                    self.node,
                    state.tail()
                );
            }
            let waited = self.log.grown.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for a line of its log that contains every part, and yields it.
    pub fn wait_line(&self, parts: &[&str], timeout: Duration) -> Result<String> {
        let found = wait::until("a line", timeout, || {
            let has_all = |line: &String| parts.iter().all(|part| line.contains(part));
            self.log().into_iter().find(has_all)
        });
        found.map_err(|_| {
            anyhow::anyhow!(
                "agent of {}: no line with {parts:?}; log:\n{}",
                self.node,
                self.tail()
            )
        })
    }

    /// How many lines of its log contain `text`.
    pub fn count_log(&self, text: &str) -> usize {
        let state = self.log.state.lock();
        let state = state.unwrap_or_else(PoisonError::into_inner);
        state
            .lines
            .iter()
            .filter(|line| line.contains(text))
            .count()
    }

    /// Everything it has logged since it was last started.
    pub fn log(&self) -> Vec<String> {
        self.log
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .lines
            .clone()
    }

    /// Whether the process runs.
    pub fn is_running(&mut self) -> bool {
        self.child
            .as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// SIGTERM; waits for the end, which must be exit code 0.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        send(&child, Signal::SIGTERM)?;
        let what = format!("agent of {} to end after SIGTERM", self.node);
        let ended = wait::until(&what, STOP_TIMEOUT, || child.try_wait().transpose());
        let status: ExitStatus = match ended {
            Ok(status) => status.context("wait for agent")?,
            Err(error) => {
                reap(&mut child);
                bail!("{error}; log:\n{}", self.tail());
            }
        };
        if !status.success() {
            bail!(
                "agent of {} ended with {status}; log:\n{}",
                self.node,
                self.tail()
            );
        }
        Ok(())
    }

    /// Waits until it ends by itself, as it does with arguments it refuses.
    pub fn wait_exit(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let child = self
            .child
            .as_mut()
            .context("the agent was stopped or killed already")?;
        let what = format!("agent of {} to end by itself", self.node);
        let status = wait::until(&what, timeout, || child.try_wait().transpose())??;
        self.child = None;
        Ok(status)
    }

    /// SIGKILL, as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            reap(&mut child);
        }
    }

    /// Starts it again, after `stop` or `kill` (or kills it first), with an empty log.
    pub fn restart(&mut self) -> Result<()> {
        self.kill();
        self.start()
    }

    /// The same from another source, or with other arguments.
    pub fn restart_with(&mut self, source: Source, extra: &[&str]) -> Result<()> {
        self.source = source;
        self.extra = extra.iter().map(|arg| (*arg).to_owned()).collect();
        self.restart()
    }

    /// From its next start on it is another build.
    pub fn use_binary(&mut self, binary: Option<PathBuf>) {
        self.binary = binary;
    }

    /// `kube-portal status --json`.
    pub fn status(&self) -> Result<serde_json::Value> {
        let text = self.call(&["status", "--json"])?;
        serde_json::from_str(&text).with_context(|| format!("kube-portal status --json: {text}"))
    }

    /// `kube-portal cleanup`: nothing of it is left in the kernel.
    pub fn cleanup(&self) -> Result<String> {
        self.call(&["cleanup"])
    }

    /// Any other subcommand on this node's bpffs; it has to go well.
    pub fn call(&self, args: &[&str]) -> Result<String> {
        let output = self.output(args)?;
        if !output.status.success() {
            let what = format!("kube-portal {} on {}", args.join(" "), self.node);
            let reason = String::from_utf8_lossy(&output.stderr);
            bail!("{what}: {}: {}", output.status, reason.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Any other subcommand on this node and its bpffs, to be started.
    pub fn subcommand(&self, args: &[&str]) -> Result<Command> {
        if let Some(container) = &self.container {
            return container.exec(&self.place, args);
        }
        let mut command = self.place.command(binaries::kube_portal()?)?;
        command.args(args).arg("--bpffs-root").arg(&self.bpffs_root);
        Ok(command)
    }

    /// Where its maps are pinned.
    pub fn pins(&self) -> PathBuf {
        let version = format!("v{}", proxy_common::abi::ABI_VERSION);
        self.bpffs_root.join("kube-portal").join(version)
    }

    /// The same, however it goes.
    pub fn output(&self, args: &[&str]) -> Result<Output> {
        self.subcommand(args)?
            .output()
            .with_context(|| format!("kube-portal {} on {}", args.join(" "), self.node))
    }

    fn start(&mut self) -> Result<()> {
        let binary = match &self.binary {
            Some(binary) => binary.clone(),
            None => binaries::kube_portal()?,
        };
        let mut command = self.command(&binary)?;
        let mut child = command
            .spawn()
            .with_context(|| format!("start {} on {}", binary.display(), self.node))?;
        let stderr = child.stderr.take();
        self.child = Some(child);
        self.log = Arc::default();
        let log = Arc::clone(&self.log);
        std::thread::spawn(move || {
            let lines = stderr
                .into_iter()
                .flat_map(|pipe| BufReader::new(pipe).lines());
            for line in lines.map_while(Result::ok) {
                log.update(|state| state.lines.push(line));
            }
            log.update(|state| state.ended = true);
        });
        Ok(())
    }

    fn command(&self, binary: &Path) -> Result<Command> {
        let mut command = match &self.container {
            Some(container) => container.agent(&self.place, &self.extra)?,
            None => self.bare_command(binary)?,
        };
        command
            // A Ctrl-C in the terminal is for whoever started this; it ends the rest in order.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if std::env::var_os("RUST_LOG").is_none() {
            // Each sync is told: tests count them.
            command.env(
                "RUST_LOG",
                "info,kube_client=error,kube_runtime=error,proxy_user::app=debug,kube_portal_ebpf=debug",
            );
        }
        Ok(command)
    }

    fn bare_command(&self, binary: &Path) -> Result<Command> {
        let mut command = self.place.command(binary)?;
        command.arg("run");
        match &self.source {
            Source::Manifests(dir) => command.arg("--manifests").arg(dir),
            Source::Kubeconfig(file) => command.arg("--kubeconfig").arg(file),
        };
        command
            .args(["--node-name", &self.node])
            .arg("--cgroup-root")
            .arg(&self.cgroup_root)
            .arg("--bpffs-root")
            .arg(&self.bpffs_root)
            .args(&self.extra);
        Ok(command)
    }

    fn tail(&self) -> String {
        self.log
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .tail()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- agent of {} ---\n{}---", self.node, self.tail());
        }
    }
}

impl Log {
    fn update(&self, change: impl FnOnce(&mut LogState)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.grown.notify_all();
    }
}

impl LogState {
    fn tail(&self) -> String {
        let from = self.lines.len().saturating_sub(LOG_TAIL);
        let lines = self.lines.iter().skip(from);
        lines.flat_map(|line| ["  ", line, "\n"]).collect()
    }
}

fn send(child: &Child, signal: Signal) -> Result<()> {
    let pid = i32::try_from(child.id()).context("process id")?;
    kill(Pid::from_raw(pid), signal).with_context(|| format!("{signal} to agent {pid}"))
}

fn reap(child: &mut Child) {
    // Both fail only when it has ended already.
    let _ = child.kill();
    let _ = child.wait();
}
