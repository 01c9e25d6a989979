use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tokio::runtime::Builder;

use super::{
    CliError, PinArgs,
    balancing::BalancingArgs,
    block_on_runtime, log_lines, output,
    source::{self, SourceArgs},
};
use crate::{
    config::{self, ProxyFlags},
    loader::{PinError, Sizes},
    maps::{MapStore as _, Observed},
    plan::text::{self, Line, Verb},
    rehearsal::{self, Rehearsed, Scene},
    waiting::NotProgrammed,
};

#[derive(Args, Debug)]
pub(super) struct PlanArgs {
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    pins: PinArgs,
    #[command(flatten)]
    proxy: ProxyFlags,
    #[command(flatten)]
    balancing: BalancingArgs,
    /// One JSON object instead of lines.
    #[arg(long)]
    json: bool,
    /// Give up if not all has been listed by then.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = super::run::interval)]
    timeout: Duration,
}

/// What would change.
#[derive(Debug, Serialize)]
struct Report {
    /// `maps`, or `nothing` where nothing is pinned.
    from: &'static str,
    would_change: bool,
    changes: Vec<Line>,
    added: usize,
    changed: usize,
    removed: usize,
    /// To the maps, all together.
    writes: usize,
    /// Services that find no room.
    not_programmed: Vec<NotProgrammed>,
}

pub(super) fn execute(args: PlanArgs) -> Result<(), CliError> {
    let proxy = &args.proxy;
    for (flag, given) in [
        ("--write-config-to", proxy.write_config_to.is_some()),
        ("--cleanup", proxy.cleanup == Some(true)),
        ("--init-only", proxy.init_only == Some(true)),
    ] {
        if given {
            let line = format!("{flag} is for `kube-portal run`; leave it out, plan does nothing");
            return Err(CliError::Usage(line));
        }
    }
    let loaded = config::load(proxy)?;
    // What is wrong with objects is worth a line here too.
    log_lines::start_with(
        "warn,kube_client=error,kube_runtime=error",
        loaded.settings.log_format,
    );
    for line in loaded.warnings {
        log::warn!("{line}");
    }
    let settings = loaded.settings;
    let balancing = args.balancing.defaults(&settings);
    let (from, found, capacity) = match args.pins.pins()?.open_store() {
        Ok(store) => ("maps", store.observe()?, store.capacity()),
        Err(PinError::Nothing { .. }) => {
            ("nothing", Observed::default(), Sizes::DEFAULT.capacity())
        }
        Err(error) => return Err(error.into()),
    };
    let scene = Scene {
        source: args.source.source(&args.proxy, settings.kubeconfig),
        node_name: source::node_name(settings.node_name)?,
        node_ports: settings.node_ports,
        primary_ip: settings.primary_address,
        balancing,
        found,
        capacity,
    };
    let rehearsed = block_on_runtime(
        Builder::new_current_thread(),
        rehearsal::rehearse(&scene, args.timeout),
    )??;
    let report = Report::new(from, &scene.found, rehearsed);
    if args.json {
        output::print(&output::json(&report)?)?;
    } else {
        if !report.changes.is_empty() {
            output::print_rows(false, || report.changes.iter())?;
        }
        output::print(&report.summary())?;
    }
    if report.would_change {
        Err(CliError::WouldChange)
    } else {
        Ok(())
    }
}

impl Report {
    fn new(from: &'static str, before: &Observed, rehearsed: Rehearsed) -> Self {
        let changes = text::lines(before, &rehearsed.after);
        let count = |verb| changes.iter().filter(|line| line.verb == verb).count();
        Self {
            from,
            would_change: !rehearsed.steps.is_empty(),
            added: count(Verb::Add),
            changed: count(Verb::Change),
            removed: count(Verb::Remove),
            writes: rehearsed.steps.len(),
            not_programmed: rehearsed.not_programmed,
            changes,
        }
    }

    fn summary(&self) -> String {
        let Self {
            added,
            changed,
            removed,
            writes,
            ..
        } = self;
        let mut text = match (self.would_change, self.changes.is_empty()) {
            (false, _) => "nothing would change".to_owned(),
            (true, true) => format!("{writes} writes that make no difference to anybody"),
            (true, false) => format!(
                "{added} to add, {changed} to change, {removed} to remove, in {writes} writes"
            ),
        };
        if self.from == "nothing" {
            text.push_str("; nothing is pinned yet");
        }
        match self.not_programmed.len() {
            0 => text,
            more => format!("{text}; {more} Services find no room"),
        }
    }
}

impl output::Row for Line {
    const HEADER: &'static [&'static str] = &["SERVICE", "CHANGE"];

    fn cells(&self) -> Vec<String> {
        vec![self.service.clone(), self.to_string()]
    }
}
