use clap::{Args, Subcommand};

use super::{CliError, PinArgs, filter::FilterArgs, output};
use crate::{
    control::{self, ControlError},
    expiry::monotonic_ns,
    inspect::{
        Filter, backends, config, counters, frontends,
        read::{self, command},
        sockets::Commands,
    },
    loader::Pins,
    maps::{MapStore as _, Observed},
};

#[derive(Args, Debug)]
pub(super) struct InspectArgs {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    pins: PinArgs,
    /// One JSON array (of config: one object) instead of columns.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum What {
    /// What clients dial, and what becomes of it.
    Frontends(FilterArgs),
    /// Where Services lead.
    Backends(FilterArgs),
    /// Which clients keep which backend, and for how long.
    Affinity(FilterArgs),
    /// Flows of packets, a line for each direction.
    Conntrack(FilterArgs),
    /// What sockets of this node have dialled, and where that led.
    Sockets(FilterArgs),
    /// What came of all that the programs have looked at.
    Counters {
        /// Also those that are 0.
        #[arg(long)]
        all: bool,
    },
    /// The running agent's configuration, with every default.
    Config,
}

pub(super) fn execute(args: &InspectArgs) -> Result<(), CliError> {
    let json = args.json;
    // Before anything is read.
    let filter = match &args.what {
        What::Frontends(args)
        | What::Backends(args)
        | What::Affinity(args)
        | What::Conntrack(args)
        | What::Sockets(args) => args.filter()?,
        What::Counters { .. } | What::Config => Filter::default(),
    };
    let pins = args.pins.pins()?;
    let store = pins.open_store()?;
    let observed = || -> Result<Observed, CliError> { Ok(store.observe()?) };
    match args.what {
        What::Frontends(_) => {
            let rows = frontends::rows(&observed()?, &filter);
            output::print_rows(json, || rows.iter())
        }
        What::Backends(_) => {
            let stats = store.backend_stats()?.into_iter().collect();
            let rows = backends::rows(&observed()?, &stats, monotonic_ns(), &filter);
            output::print_rows(json, || rows.iter())
        }
        What::Affinity(_) => {
            let clients = read::clients(&pins, &observed()?, filter)?;
            let now_ns = monotonic_ns();
            output::print_rows(json, || clients.rows(now_ns))
        }
        What::Conntrack(_) => {
            let observed = observed()?;
            let flows = read::flows(&pins, &observed, filter)?;
            let now_ns = monotonic_ns();
            output::print_rows(json, || flows.rows(now_ns))
        }
        What::Sockets(_) => {
            let observed = observed()?;
            let sockets = read::sockets(&pins, &observed, filter)?;
            let now_ns = monotonic_ns();
            let commands = Commands::default();
            let command = |pid| commands.of(pid, command);
            output::print_rows(json, || sockets.rows(now_ns, command))
        }
        What::Counters { all } => {
            let rows = counters::rows(&store.counters()?, all);
            output::print_rows(json, || rows.iter())
        }
        What::Config => show_config(&pins, json),
    }
}

fn show_config(pins: &Pins, json: bool) -> Result<(), CliError> {
    let configz = control::configz(&pins.directory()).map_err(|error| match error {
        ControlError::NoAgent(pins) => CliError::NoConfig(pins),
        ControlError::Broken(_) | ControlError::Unreadable(_) => error.into(),
    })?;
    if json {
        return output::print(&output::json(&configz)?);
    }
    let rows = config::rows(&configz);
    output::print_rows(false, || rows.iter())
}
