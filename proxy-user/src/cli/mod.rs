//! The command line: what a node engineer types.

mod as_kube_proxy;
mod balancing;
mod check;
mod cleanup;
mod filter;
mod inspect;
mod log_lines;
mod manual;
mod monitor;
pub(crate) mod output;
mod plan;
mod run;
pub(crate) mod snat_ports;
mod source;
mod status;
mod top;
mod trace;

use std::{ffi::OsString, path::PathBuf, sync::LazyLock};

use clap::{Args, Parser, Subcommand};
use proxy_common::abi::ABI_VERSION;
use tokio::runtime::Builder;

use crate::{
    config::ConfigError,
    control::ControlError,
    loader::{LoadError, PinError, Pins, PreflightError, check_bpffs, check_node},
    maps::StoreError,
    monitor::listen::MonitorError,
    trace::TraceError,
};

/// Of the program, and of the maps and programs it shares with the kernel: agents of one ABI take those of
/// each other over as they are.
static VERSION: LazyLock<String> =
    LazyLock::new(|| format!("{} (ABI {ABI_VERSION})", env!("CARGO_PKG_VERSION")));

/// Translates Kubernetes Services in the kernel with eBPF, in place of kube-proxy.
///
/// `run` is the agent: it keeps the kernel's maps equal to the cluster's Services and EndpointSlices.
/// The programs it attaches stay when it stops, so traffic never depends on it; `cleanup` takes them
/// away.
#[derive(Debug, Parser)]
#[command(
    name = "kube-portal",
    version = VERSION.as_str(),
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong use, 3 this node can't run it, 4 nothing is pinned there, 5 the maps had been changed by somebody else, 6 something would change (plan), 7 the kernel differs from the trace"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent until it is told to stop. The default, when the first argument is an option or
    /// the program is called by the name kube-proxy.
    #[command(args_override_self = true)]
    Run(Box<run::RunArgs>),
    /// Look whether this node can run the agent, what would be off and what to do about it. Changes
    /// nothing; takes what `run` takes.
    #[command(args_override_self = true)]
    Check(Box<check::CheckArgs>),
    /// Show what is translated: frontends, backends, counters. Needs no running agent.
    Status(status::StatusArgs),
    /// Show decisions as they are made: what was translated, refused or dropped, whose it was, and why.
    Monitor(monitor::MonitorArgs),
    /// Show Services by new connections, active connections and errors, with each one's backends.
    Top(top::TopArgs),
    /// Look into the maps, entry by entry: frontends, backends, affinity, conntrack, sockets, counters; or at
    /// the running agent's configuration. All but that need no running agent.
    Inspect(inspect::InspectArgs),
    /// Show what would change in the maps if the agent ran now, and write nothing. Give it what `run` is
    /// given for source, node and configuration. Exit code 0: nothing; 6: something.
    Plan(Box<plan::PlanArgs>),
    /// Say where a connection would go, and why: every lookup, and the verdict, in words.
    ///
    /// The datapath's own functions run on the maps as they are now. Nothing is changed: what they would
    /// write stays in memory. Needs no running agent.
    Trace(trace::TraceArgs),
    /// Detach and remove every program, link, map and pin that is ours, and say what was removed; or, with
    /// --kube-proxy, what a kube-proxy left.
    Cleanup(cleanup::CleanupArgs),
    /// Print what a shell completes commands and options with: `source <(kube-portal completions bash)`.
    Completions(manual::CompletionsArgs),
    /// Write a man page for each command into a directory.
    Man(manual::ManArgs),
}

/// Where the pins are.
#[derive(Args, Clone, Debug)]
struct PinArgs {
    /// A mounted BPF filesystem; everything of ours is below DIR/kube-portal.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf", global = true)]
    bpffs_root: PathBuf,
}

impl PinArgs {
    /// For a command that looks at them, on a node where there can be any.
    fn pins(&self) -> Result<Pins, CliError> {
        check_node()?;
        check_bpffs(&self.bpffs_root)?;
        Ok(Pins::new(&self.bpffs_root))
    }
}

/// Runs what asks netlink.
fn block_on<T>(work: impl Future<Output = T>) -> Result<T, CliError> {
    block_on_runtime(Builder::new_current_thread(), work)
}

fn block_on_runtime<T>(mut runtime: Builder, work: impl Future<Output = T>) -> Result<T, CliError> {
    Ok(runtime
        .enable_all()
        .build()
        .map_err(|source| CliError::Io {
            what: "the runtime",
            source,
        })?
        .block_on(work))
}

#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Source(#[from] crate::watch::SourceError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{what}: {source}")]
    Io {
        what: &'static str,
        source: std::io::Error,
    },
    /// With --bind-address-hard-fail.
    #[error("{0}")]
    Listen(String),
    #[error("the filters of devices: {0}")]
    Devices(String),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    #[error(
        "no agent runs here for the pins in {}, and only it knows its configuration: start it, or give `kube-portal run` its arguments and --write-config-to FILE, which starts nothing and writes what they amount to", .0.display()
    )]
    NoConfig(PathBuf),
    #[error(
        "somebody else has changed {drifted} entries of the maps; {repaired} of them are as they should be again"
    )]
    Drift { drifted: u64, repaired: u64 },
    #[error("the maps are not what the agent would make them")]
    WouldChange,
    #[error(
        "not all was listed{why} within {secs} s, so nothing can be planned; see that it is there and answers, or wait longer with --timeout"
    )]
    NotListed { secs: u64, why: String },
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error(
        "the loaded program {program_id} does something else than the trace: is it of another build than this command?"
    )]
    KernelDiffers { program_id: u32 },
    #[error("what kube-proxy left is not all gone: {0}")]
    Leftovers(String),
    /// `check` has printed them.
    #[error("{0} of these findings keep kube-portal from running here")]
    CannotRun(usize),
    #[error("{0}")]
    Usage(String),
}

impl CliError {
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Config(error) if error.is_usage() => 2,
            Self::Preflight(_) | Self::CannotRun(_) => 3,
            Self::Trace(error) if error.is_usage() => 2,
            Self::Pin(PinError::Nothing { .. })
            | Self::Trace(TraceError::Pin(PinError::Nothing { .. })) => 4,
            Self::KernelDiffers { .. } => 7,
            Self::Drift { .. } => 5,
            Self::WouldChange => 6,
            Self::Config(_)
            | Self::Control(_)
            | Self::Monitor(_)
            | Self::NoConfig(_)
            | Self::NotListed { .. }
            | Self::Load(_)
            | Self::Pin(_)
            | Self::Store(_)
            | Self::Source(_)
            | Self::Listen(_)
            | Self::Devices(_)
            | Self::Leftovers(_)
            | Self::Trace(_)
            | Self::Io { .. } => 1,
        }
    }
}

impl Cli {
    /// From the program's own arguments, its name included; ends the process if they can't be
    /// understood.
    pub fn from_command_line(args: impl IntoIterator<Item = OsString>) -> Self {
        Self::parse_from(as_kube_proxy::arguments(args))
    }

    pub fn execute(self) -> Result<(), CliError> {
        match self.command {
            Command::Run(args) => run::execute(*args),
            Command::Check(args) => check::execute(*args),
            Command::Status(args) => status::execute(&args),
            Command::Monitor(args) => monitor::execute(&args),
            Command::Top(args) => top::execute(&args),
            Command::Inspect(args) => inspect::execute(&args),
            Command::Plan(args) => plan::execute(*args),
            Command::Trace(args) => trace::execute(&args),
            Command::Cleanup(args) => cleanup::execute(&args),
            Command::Completions(args) => manual::completions(&args),
            Command::Man(args) => manual::man(&args),
        }
    }
}
