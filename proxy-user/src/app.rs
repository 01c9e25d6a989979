//! The agent: wires source, syncer and kernel together, and lives until it is told to stop.

use std::{
    net::IpAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Notify, mpsc, oneshot, watch as latest},
    task::JoinHandle,
    time::Instant,
};

use crate::{
    auditing::Auditing,
    cli::CliError,
    config::{self, ConfigError, ConfigFile},
    control,
    devices::{self, Choice, Facts},
    events::Events,
    expiry, failover,
    keeper::{Inputs, Keeper},
    loader::{
        self, Claim, Cleaned, Features, Fixed, Loaded, Mechanism, PinError, Pins, Programs, Sizes,
        TcAttach,
    },
    maps::{MapStore as _, bpf::BpfStore},
    memory,
    metrics::Ours,
    model::{BalancingDefaults, Event, Model, Node, NodePortScope},
    plan::{Epoch, Planner},
    recount::{Recount, Tally},
    redial,
    sctp::SctpPorts,
    surfaces::{Surfaces, SurfacesConfig},
    sync::{Outcome, Syncer},
    watch::{
        self,
        kube::{Access, Connection, Contact, Patience},
    },
};

#[derive(Clone, Debug)]
pub enum Source {
    Manifests(PathBuf),
    Kubernetes(Access),
}

#[derive(Clone, Debug)]
pub struct Config {
    pub source: Source,
    pub node_name: String,
    pub node_ports: NodePortScope,
    /// In place of the Node object's of its family.
    pub primary_ip: Option<IpAddr>,
    /// Of Services that don't say it.
    pub balancing: BalancingDefaults,
    /// When it changes, the agent ends.
    pub config_file: Option<ConfigFile>,
    pub cgroup_root: PathBuf,
    pub bpffs_root: PathBuf,
    pub sizes: Sizes,
    pub surfaces: SurfacesConfig,
    /// How often the maps are compared with what they should hold; `None` for only when it is asked for.
    pub audit_interval: Option<Duration>,
    pub devices: Choice,
    pub snat_source: devices::Source,
    pub tc_attach: TcAttach,
    pub fixed: Fixed,
    /// The kernel is to count the runs of programs.
    pub bpf_stats: bool,
}

/// Events that wait; a source that is faster than the maps is slowed down, not buffered.
pub(crate) const EVENT_QUEUE: usize = 1024;
/// Events folded into one plan at most, so that a flood can't keep the first of it from the maps.
const BATCH: usize = 4096;
/// After events were synced. The first of a flood is written at once, and those that come meanwhile
/// are folded into the next plan, instead of a plan for each.
const REST: Duration = Duration::from_millis(1);
/// The Service port whose backends are the API servers.
pub(crate) const API_SERVERS: &str = "default/kubernetes:https";
const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";
const RETRY: Duration = Duration::from_secs(5);
/// Where the kernel can't be asked to wait for its readers: longer than any program can run.
const GRACE_BY_TIME: Duration = Duration::from_secs(1);

pub async fn run(config: Config) -> Result<(), CliError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(signal_error)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(signal_error)?;
    let mut reconfigured = tokio::spawn(reconfigured(config.config_file.clone()));
    let (events, received) = mpsc::channel(EVENT_QUEUE);
    let (facts, seen_facts) = latest::channel(Facts::default());
    let filters = Arc::new(Notify::new());
    tokio::spawn(watch::node_net::run(watch::node_net::Listeners {
        events: events.clone(),
        facts,
        filters: Arc::clone(&filters),
    }));
    let (mut source, connection, notices) =
        start_source(&config.source, &config.node_name, events, true).await?;
    let contact = connection.as_ref().map(Connection::contact);
    let surfaces = Surfaces::start(
        &config.surfaces,
        &config.node_name,
        connection.as_ref(),
        notices,
    )?;

    let features = Features::probe();
    let mechanism = config.tc_attach.by(features).ok_or_else(|| {
        CliError::Usage(
            "--tc-attach tcx: this kernel has no links for devices (Linux 6.6 has); use auto or clsact"
                .to_owned(),
        )
    })?;
    let _kept_while_it_runs = config.bpf_stats.then(count_runs).flatten();
    let pins = Pins::new(&config.bpffs_root);
    let (mut loaded, store) = loader::load(&pins, features, &config.sizes, &config.fixed)?;
    for (level, line) in loaded.take_notes() {
        log::log!(level, "{line}");
    }
    log::info!(
        "node {}: cgroup {}, pins {}, refusal by {}",
        config.node_name,
        config.cgroup_root.display(),
        pins.directory().display(),
        if features.set_retval {
            "bpf_set_retval"
        } else {
            "a port where nobody listens (no bpf_set_retval before Linux 5.18)"
        }
    );
    if !Path::new(KERNEL_BTF).exists() {
        log::info!("this kernel has no BTF ({KERNEL_BTF}); nothing is off, as no program needs it");
    }
    let observed = store.observe()?;
    if !observed.frontends.is_empty() {
        log::info!(
            "adopting {} frontends and {} backends of an earlier agent",
            observed.frontend_count(),
            observed.backends.len()
        );
    }
    if let Some(connection) = &connection {
        connection.remember(&observed.backends_of(API_SERVERS));
    }
    let planner = Planner::adopt(store.capacity(), &observed);
    drop(observed);
    let node = Node {
        name: config.node_name.as_str().into(),
        ..Node::default()
    };
    let model = Model::new(node, config.node_ports.clone())
        .with_primary_ip(config.primary_ip)
        .with_balancing(config.balancing)
        .that_waits_for_its_node();
    let view = Arc::new(pins.share_store(&store)?);
    surfaces.set_kernel(Ours {
        store: Arc::clone(&view),
        pins: pins.clone(),
        programs: loaded.programs(),
    });
    failover::start(&pins, Arc::clone(&view), surfaces.failover())?;
    let requests =
        control::listen(&pins.directory(), &config.surfaces.configz).map_err(|source| {
            CliError::Io {
                what: "the socket on which the agent is asked",
                source,
            }
        })?;
    let auditing = Auditing::new(requests.audits, config.audit_interval, Arc::clone(&view));
    let (internal_ips, seen_internal_ips) = latest::channel(Vec::new());
    let agent = Agent {
        syncer: Syncer::new(model, planner, store),
        packet: Packet::Waiting(Box::new(Start {
            loaded,
            mechanism,
            view: Arc::clone(&view),
            inputs: Inputs {
                facts: seen_facts,
                internal_ips: seen_internal_ips,
                filters,
            },
        })),
        internal_ips,
        sctp: SctpPorts::new(!config.devices.pod_devices.is_empty()),
        config,
        received,
        grace: None,
        is_stuck: false,
        asked: requests.states,
        contact,
        auditing,
        redial: Redial::Idle(view),
        surfaces,
        listed: false,
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

/// As long as the descriptor is kept.
fn count_runs() -> Option<OwnedFd> {
    match Programs::count_runs() {
        Ok(kept) => Some(kept),
        Err(error) => {
            log::warn!(
                "--bpf-stats: {}; it needs Linux 5.8 and CAP_SYS_ADMIN, `sysctl kernel.bpf_stats_enabled=1` does the same",
                error.io_error
            );
            None
        }
    }
}

/// Never, without a file.
async fn reconfigured(file: Option<ConfigFile>) -> ConfigError {
    match file {
        Some(file) => config::changed(file).await,
        None => std::future::pending().await,
    }
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

type SourceTask = JoinHandle<Result<(), CliError>>;

/// With an API server, also the connection, and who tells Events there, if anybody `tells` any.
pub(crate) async fn start_source(
    source: &Source,
    node_name: &str,
    events: mpsc::Sender<Event>,
    tells: bool,
) -> Result<(SourceTask, Option<Connection>, Option<Events>), CliError> {
    let node_name = node_name.to_owned();
    Ok(match source {
        Source::Manifests(directory) => {
            let directory = directory.clone();
            // Before anything is put into the kernel.
            watch::file::check(&directory)?;
            log::info!("source: the manifests in {}", directory.display());
            let task = tokio::spawn(async move {
                watch::file::run(directory, node_name, events)
                    .await
                    .map_err(CliError::from)
            });
            (task, None, None)
        }
        Source::Kubernetes(access) => {
            let connection = Connection::new(access.clone(), Patience::default()).await?;
            log::info!(
                "source: the API server {}",
                connection.contact().freshness().server
            );
            let notices = tells.then(|| Events::start(connection.client(), node_name.clone()));
            let (watching, telling) = (connection.clone(), notices.clone());
            let task = tokio::spawn(async move {
                watch::kube::run(watching, node_name, events, telling)
                    .await
                    .map_err(CliError::from)
            });
            (task, Some(connection), notices)
        }
    })
}

struct Agent {
    syncer: Syncer<BpfStore>,
    packet: Packet,
    /// Tells the packet path.
    internal_ips: latest::Sender<Vec<IpAddr>>,
    config: Config,
    received: mpsc::Receiver<Event>,
    /// The grace period that is running.
    grace: Option<JoinHandle<Epoch>>,
    /// Something could not be reclaimed: the next grace period can wait a while.
    is_stuck: bool,
    /// Who asks for the state.
    asked: mpsc::Receiver<control::StateAsker>,
    /// With the API server.
    contact: Option<Contact>,
    auditing: Auditing,
    redial: Redial,
    surfaces: Surfaces,
    /// A list has ended whose memory was not given back yet.
    listed: bool,
    sctp: SctpPorts,
}

/// What begins with the first sync.
struct Start {
    loaded: Loaded,
    mechanism: Mechanism,
    /// Tells how long affinity lasts, and has the counts of connections.
    view: Arc<BpfStore>,
    inputs: Inputs,
}

enum Packet {
    /// For the first sync.
    Waiting(Box<Start>),
    /// The packet path is being put onto devices for the first time; then what is left of agents of
    /// other versions goes.
    Attaching {
        claim: Claim,
        attached: oneshot::Receiver<()>,
    },
    Running {
        _claim: Claim,
    },
    /// Between two states; never seen.
    Moving,
}

/// One pass over the UDP sockets at a time.
enum Redial {
    Idle(Arc<BpfStore>),
    Running {
        task: JoinHandle<Arc<BpfStore>>,
        again: bool,
    },
    /// Between two states; never seen.
    Moving,
}

impl Agent {
    async fn run(mut self) -> Result<(), CliError> {
        let mut retry = tokio::time::interval(RETRY);
        retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut rested = Instant::now();
        loop {
            let mut outcome = tokio::select! {
                event = next_event(&mut self.received, rested) => {
                    let Some(event) = event else {
                        // The source has ended, and its task says why.
                        return std::future::pending().await;
                    };
                    self.apply(event);
                    for _ in 1..BATCH {
                        match self.received.try_recv() {
                            Ok(event) => self.apply(event),
                            Err(_) => break,
                        }
                    }
                    let outcome = self.sync_changes();
                    rested = Instant::now() + REST;
                    outcome
                }
                epoch = finished(&mut self.grace) => {
                    self.grace = None;
                    let outcome = self.syncer.passed(epoch);
                    self.is_stuck = !outcome.report.failed.is_empty();
                    outcome
                }
                () = self.redial.finished() => Outcome::default(),
                () = self.packet.attached() => Outcome::default(),
                _ = retry.tick(), if self.is_stuck || self.syncer.has_retries() => {
                    self.is_stuck = false;
                    self.sync()
                }
                Some(asker) = self.asked.recv() => {
                    // It may have gone.
                    let _told = asker.send(control::State {
                        not_programmed: self.syncer.not_programmed(),
                        api_server: self.contact.as_ref().map(Contact::freshness),
                    });
                    Outcome::default()
                }
                () = self.auditing.is_due(), if self.syncer.is_synced() => {
                    if let Some(audited) = self.auditing.go_on(&mut self.syncer) {
                        self.surfaces.audited(&audited);
                    }
                    Outcome::default()
                }
            };
            self.surfaces.after_sync(&mut outcome, &self.syncer);
            self.after(&outcome)?;
        }
    }

    fn apply(&mut self, event: Event) {
        self.listed |= matches!(event, Event::Listed(_));
        self.surfaces.received(&event);
        for line in self.sctp.received(&event) {
            log::warn!("{line}");
        }
        self.syncer.apply(event);
    }

    fn sync_changes(&mut self) -> Outcome {
        self.surfaces.before_sync(&self.syncer);
        self.syncer.sync_changes()
    }

    fn sync(&mut self) -> Outcome {
        self.surfaces.before_sync(&self.syncer);
        self.syncer.sync()
    }

    fn after(&mut self, outcome: &Outcome) -> Result<(), CliError> {
        let internal_ips = self.syncer.model().internal_ips();
        self.internal_ips.send_if_modified(|known| {
            let differs = known != internal_ips;
            if differs {
                *known = internal_ips.to_vec();
            }
            differs
        });
        if outcome.first {
            let attached = self.packet.start(&self.config, &self.surfaces)?;
            log::info!(
                "first sync done: {} Services, {} steps, {} programs attached",
                self.syncer.model().service_count(),
                outcome.report.executed,
                attached.len()
            );
        } else if outcome.report.executed > 0 {
            log::debug!(
                "synced {} Services in {} steps, such as {}",
                outcome.touched,
                outcome.report.executed,
                outcome
                    .one
                    .as_ref()
                    .map_or_else(|| "none".to_owned(), ToString::to_string)
            );
        }
        if outcome.ran && std::mem::take(&mut self.listed) {
            tokio::spawn(memory::give_back_soon());
        }
        if outcome.udp_moved {
            self.redial.start();
        }
        if self.grace.is_none()
            && !self.is_stuck
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

impl Packet {
    /// Attaches the socket programs, whose names it yields, and has the packet path put onto devices.
    fn start(&mut self, config: &Config, surfaces: &Surfaces) -> Result<Vec<String>, CliError> {
        let Self::Waiting(start) = std::mem::replace(self, Self::Moving) else {
            return Ok(Vec::new());
        };
        let Start {
            mut loaded,
            mechanism,
            view,
            inputs,
        } = *start;
        let names = loaded.attach(&config.cgroup_root)?;
        let (claim, packet, swept) = loaded.into_packet_path(mechanism)?;
        let tally = || Tally::new(Arc::clone(&view));
        let flows = |map, tally| expiry::Flows {
            map,
            timeouts: config.fixed.timeouts,
            tally,
        };
        let all = expiry::All {
            flows: flows(swept.flows, Some(tally())),
            half_open: flows(swept.half_open, None),
            affinity: expiry::Affinity::new(swept.affinity, Arc::clone(&view)),
            sockets: expiry::Sockets {
                map: swept.sockets,
                tally: tally(),
            },
            udp_flows: swept.udp_flows,
        };
        let recount = Recount::new(Arc::clone(&view), surfaces.corrections());
        tokio::spawn(expiry::run(all, recount, surfaces.fillings()));
        let keeper =
            Keeper::new(packet, config.devices.clone(), config.snat_source).map_err(|source| {
                CliError::Io {
                    what: "netlink",
                    source,
                }
            })?;
        let (done, attached) = oneshot::channel();
        tokio::spawn(keeper.run(inputs, done, surfaces.attached()));
        *self = Self::Attaching { claim, attached };
        Ok(names)
    }

    /// Returns once, after the first pass over the devices; never if that is not under way.
    async fn attached(&mut self) {
        let Self::Attaching { attached, .. } = self else {
            return std::future::pending().await;
        };
        let _or_the_task_has_ended = attached.await;
        if let Self::Attaching { mut claim, .. } = std::mem::replace(self, Self::Moving) {
            told(claim.retire());
            *self = Self::Running { _claim: claim };
        }
    }
}

/// What went of earlier agents.
fn told(retired: Result<Cleaned, PinError>) {
    match retired {
        Ok(Cleaned { removed, kept }) => {
            if let Some(first) = removed.first() {
                log::info!(
                    "removed {} pins that an earlier agent used, such as {}",
                    removed.len(),
                    first.path.display()
                );
            }
            for path in kept {
                log::warn!(
                    "{}: not kube-portal's, left where it is; remove it by hand if nobody needs it",
                    path.display()
                );
            }
        }
        Err(error) => log::warn!(
            "what an earlier agent left can't be removed: {error}; `kube-portal cleanup` removes all"
        ),
    }
}

/// The next one, but not before `rested`.
async fn next_event(received: &mut mpsc::Receiver<Event>, rested: Instant) -> Option<Event> {
    if Instant::now() < rested {
        tokio::time::sleep_until(rested).await;
    }
    received.recv().await
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
