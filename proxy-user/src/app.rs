//! The agent: wires source, syncer and kernel together, and lives until it is told to stop.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::JoinHandle,
};

use crate::{
    cli::CliError,
    config::{self, ConfigError, ConfigFile, Settings},
    loader::{self, Features, Loaded, Pins, Sizes},
    maps::{Capacity, MapStore as _, bpf::BpfStore},
    model::{Event, Model, Node, NodePortScope},
    plan::{Epoch, Planner},
    redial,
    sync::{Outcome, Syncer},
    watch,
};

#[derive(Clone, Debug)]
pub enum Source {
    Manifests(PathBuf),
    Kubernetes {
        /// Without it, what the environment says.
        kubeconfig: Option<PathBuf>,
        /// The server's URL, in place of what that says.
        master: Option<String>,
    },
}

#[derive(Clone, Debug)]
pub struct Config {
    pub source: Source,
    pub node_name: String,
    pub node_ports: NodePortScope,
    pub settings: Settings,
    /// When it changes, the agent ends.
    pub config_file: Option<ConfigFile>,
    pub cgroup_root: PathBuf,
    pub bpffs_root: PathBuf,
    pub sizes: Sizes,
}

/// Events that wait; a source that is faster than the maps is slowed down, not buffered.
const EVENT_QUEUE: usize = 1024;
/// Events folded into one plan at most, so that a flood can't keep the first of it from the maps.
const BATCH: usize = 4096;
const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";
const RETRY: Duration = Duration::from_secs(5);
/// Where the kernel can't be asked to wait for its readers: longer than any program can run.
const GRACE_BY_TIME: Duration = Duration::from_secs(1);

pub async fn run(config: Config) -> Result<(), CliError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(signal_error)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(signal_error)?;
    let mut reconfigured = tokio::spawn(reconfigured(config.config_file.clone()));
    let (events, received) = mpsc::channel(EVENT_QUEUE);
    tokio::spawn(watch::node_addr::run(events.clone()));
    let mut source = start_source(&config, events).await?;

    let features = Features::probe();
    let pins = Pins::new(&config.bpffs_root);
    let (loaded, store) = loader::load(&pins, features, &config.sizes)?;
    log::info!(
        "node {}: cgroup {}, pins {}, about {} MiB of maps, refusal by {}",
        config.node_name,
        config.cgroup_root.display(),
        pins.directory().display(),
        config.sizes.memory_bytes() >> 20,
        if features.set_retval {
            "bpf_set_retval"
        } else {
            "a port where nobody listens (no bpf_set_retval before Linux 5.18)"
        }
    );
    for line in kept_sizes(&config.sizes, &store.capacity()) {
        log::warn!("{line}");
    }
    if !Path::new(KERNEL_BTF).exists() {
        log::info!("this kernel has no BTF ({KERNEL_BTF}); nothing is off, as no program needs it");
    }
    let observed = store.observe()?;
    if !observed.frontends.is_empty() {
        log::info!(
            "adopting {} frontends and {} backends of an earlier agent",
            observed.frontends.len(),
            observed.backends.len()
        );
    }
    let planner = Planner::adopt(store.capacity(), &observed);
    drop(observed);
    let node = Node {
        name: config.node_name.as_str().into(),
        ..Node::default()
    };
    let model = Model::new(node, config.node_ports.clone());
    let redialer = pins.open_store()?;
    let agent = Agent {
        syncer: Syncer::new(model, planner, store),
        loaded,
        config,
        received,
        grace: None,
        redial: Redial::Idle(Box::new(redialer)),
    };
    tokio::select! {
        result = agent.run() => result,
        ended = &mut source => match ended {
            Ok(result) => result,
            Err(error) => Err(CliError::Io { what: "the source", source: error.into() }),
        },
        ended = &mut reconfigured => Err(ended.map_or_else(
            |error| CliError::Io { what: "watching the configuration", source: error.into() },
            CliError::from,
        )),
        _ = terminate.recv() => stopped("SIGTERM"),
        _ = interrupt.recv() => stopped("SIGINT"),
    }
}

/// Never, without a file.
async fn reconfigured(file: Option<ConfigFile>) -> ConfigError {
    match file {
        Some(file) => config::changed(file).await,
        None => std::future::pending().await,
    }
}

/// Maps that are adopted have the size they were made with, whatever the flags say now.
fn kept_sizes(sizes: &Sizes, capacity: &Capacity) -> Vec<String> {
    [
        ("--max-frontends", sizes.frontends, capacity.frontends),
        ("--max-services", sizes.services, capacity.services),
        ("--max-backends", sizes.backends, capacity.backends),
    ]
    .into_iter()
    .filter(|(_, asked, there)| asked != there)
    .map(|(flag, asked, there)| {
        format!(
            "{flag} {asked} has no effect: the maps of the earlier agent are kept, with room for \
             {there}; to change it run `kube-portal cleanup` before"
        )
    })
    .collect()
}

fn signal_error(source: std::io::Error) -> CliError {
    CliError::Io {
        what: "signal handlers",
        source,
    }
}

/// Traffic goes on without the agent, as with kube-proxy (BEHAVIOUR P4).
fn stopped(signal: &str) -> Result<(), CliError> {
    log::info!("{signal}: stopping; programs and maps stay (`kube-portal cleanup` removes them)");
    Ok(())
}

async fn start_source(
    config: &Config,
    events: mpsc::Sender<Event>,
) -> Result<JoinHandle<Result<(), CliError>>, CliError> {
    let node_name = config.node_name.clone();
    Ok(match &config.source {
        Source::Manifests(directory) => {
            let directory = directory.clone();
            // Before anything is put into the kernel.
            watch::file::check(&directory)?;
            log::info!("source: the manifests in {}", directory.display());
            tokio::spawn(async move {
                watch::file::run(directory, node_name, events)
                    .await
                    .map_err(CliError::from)
            })
        }
        Source::Kubernetes { kubeconfig, master } => {
            let cluster =
                watch::kube::cluster_config(kubeconfig.as_deref(), master.as_deref()).await?;
            log::info!("source: the API server {}", cluster.cluster_url);
            tokio::spawn(async move {
                watch::kube::run(cluster, node_name, events)
                    .await
                    .map_err(CliError::from)
            })
        }
    })
}

struct Agent {
    syncer: Syncer<BpfStore>,
    loaded: Loaded,
    config: Config,
    received: mpsc::Receiver<Event>,
    /// The grace period that is running.
    grace: Option<JoinHandle<Epoch>>,
    redial: Redial,
}

/// One pass over the UDP sockets at a time.
enum Redial {
    Idle(Box<BpfStore>),
    Running {
        task: JoinHandle<Box<BpfStore>>,
        again: bool,
    },
    /// Between two states; never seen.
    Moving,
}

impl Agent {
    async fn run(mut self) -> Result<(), CliError> {
        let mut retry = tokio::time::interval(RETRY);
        retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let outcome = tokio::select! {
                event = self.received.recv() => {
                    let Some(event) = event else {
                        // The source has ended, and its task says why.
                        return std::future::pending().await;
                    };
                    self.syncer.apply(event);
                    for _ in 1..BATCH {
                        match self.received.try_recv() {
                            Ok(event) => self.syncer.apply(event),
                            Err(_) => break,
                        }
                    }
                    self.syncer.sync()
                }
                epoch = finished(&mut self.grace) => {
                    self.grace = None;
                    self.syncer.passed(epoch)
                }
                () = self.redial.finished() => Outcome::default(),
                _ = retry.tick(), if self.syncer.has_retries() => self.syncer.sync(),
            };
            self.after(&outcome)?;
        }
    }

    fn after(&mut self, outcome: &Outcome) -> Result<(), CliError> {
        if outcome.first {
            let attached = self.loaded.attach(&self.config.cgroup_root)?;
            log::info!(
                "first sync done: {} Services, {} steps, {} programs attached",
                self.syncer.model().service_count(),
                outcome.report.executed,
                attached.len()
            );
        } else if outcome.report.executed > 0 {
            log::debug!(
                "synced {} Services in {} steps",
                outcome.touched,
                outcome.report.executed
            );
        }
        if outcome.udp_moved {
            self.redial.start();
        }
        if self.grace.is_none()
            && let Some(epoch) = self.syncer.begin_grace()
        {
            self.grace = Some(tokio::task::spawn_blocking(move || {
                wait_for_readers();
                epoch
            }));
        }
        Ok(())
    }
}

/// Never, if no grace period is running.
async fn finished(grace: &mut Option<JoinHandle<Epoch>>) -> Epoch {
    match grace {
        // A task that can't end (the runtime is going down) has not waited for anybody.
        Some(task) => match task.await {
            Ok(epoch) => epoch,
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

/// Returns when every program that is running now has ended: they run inside RCU read sections, and
/// MEMBARRIER_CMD_GLOBAL is a grace period (kernel/sched/membarrier.c).
fn wait_for_readers() {
    let single_cpu = aya::util::online_cpus().is_ok_and(|cpus| cpus.len() == 1);
    // On one CPU, and with nohz_full, the call does not wait.
    if single_cpu || rustix::thread::membarrier(rustix::thread::MembarrierCommand::Global).is_err()
    {
        std::thread::sleep(GRACE_BY_TIME);
    }
}

impl Redial {
    fn start(&mut self) {
        *self = match std::mem::replace(self, Self::Moving) {
            Self::Idle(store) => Self::Running {
                task: tokio::task::spawn_blocking(move || {
                    let result = redial::pass(&store);
                    if result != redial::Redialled::default() {
                        log::info!(
                            "UDP sockets whose backend was gone: {} moved, {} parked until there is one, {} not found",
                            result.moved,
                            result.parked,
                            result.lost
                        );
                    }
                    store
                }),
                again: false,
            },
            Self::Running { task, .. } => Self::Running { task, again: true },
            Self::Moving => Self::Moving,
        };
    }

    /// Never, if none is running; starts another if something changed meanwhile.
    async fn finished(&mut self) {
        let Self::Running { task, again } = self else {
            return std::future::pending().await;
        };
        let again = *again;
        let Ok(store) = task.await else {
            return std::future::pending().await;
        };
        *self = Self::Idle(store);
        if again {
            self.start();
        }
    }
}
