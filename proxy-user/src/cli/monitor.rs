use std::{
    collections::HashMap,
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use k8s_openapi::jiff::Timestamp;
use proxy_common::abi::{Counter, MonitorEvent, MonitorFilter};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};

use super::{CliError, PinArgs, filter::FilterArgs};
use crate::{
    expiry::monotonic_ns,
    inspect::{Filter, read},
    loader::device_name,
    maps::bpf::BpfStore,
    monitor::{
        event::{Context, Told},
        filter,
        listen::Listener,
    },
};

/// Decisions that are read at once.
const AT_ONCE: usize = 256;

#[derive(Args, Debug)]
pub(super) struct MonitorArgs {
    #[command(flatten)]
    pins: PinArgs,
    #[command(flatten)]
    filter: FilterArgs,
    /// Only these outcomes: translated, continued, refused, dropped, passed, noted, the name of a
    /// counter, or all [default: translated,refused,dropped,noted]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    outcome: Vec<String>,
    /// text: a line each; json: an object in each line.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// End after so many decisions.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// End after so many seconds.
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    #[default]
    Text,
    Json,
}

pub(super) fn execute(args: &MonitorArgs) -> Result<(), CliError> {
    let filter = args.filter.filter()?;
    let outcomes = filter::outcomes(&args.outcome).map_err(CliError::Usage)?;
    let pins = args.pins.pins()?;
    let store = pins.open_store()?;
    let mut listener = Listener::new(&pins)?;
    let lost_before = lost(&store);
    watch(args, &mut listener, &store, &filter, outcomes)?;
    drop(listener);
    match lost(&store).saturating_sub(lost_before) {
        0 => {}
        lost => eprintln!(
            "kube-portal: {lost} decisions more were made than could be read; ask for fewer with --outcome, --service or --address"
        ),
    }
    Ok(())
}

fn watch(
    args: &MonitorArgs,
    listener: &mut Listener,
    store: &BpfStore,
    filter: &Filter,
    outcomes: u64,
) -> Result<(), CliError> {
    let is_over = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register(signal, Arc::clone(&is_over)).map_err(|source| CliError::Io {
            what: "a signal handler",
            source,
        })?;
    }
    let end = args
        .seconds
        .and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds)));
    let mut left = args.limit.unwrap_or(u64::MAX);
    let mut devices = HashMap::new();
    let mut asked: Option<Instant> = None;
    while left > 0 && !is_over.load(Ordering::Relaxed) {
        let now = Instant::now();
        if end.is_some_and(|end| now >= end) {
            break;
        }
        if asked.is_none_or(|asked| now.duration_since(asked) >= Listener::RENEWAL) {
            // A Service that comes meanwhile is told of too.
            let services = filter::services(filter, store.names());
            listener.ask(MonitorFilter {
                outcomes: if services.is_some() { outcomes } else { 0 },
                until_ns: 0,
                addr: filter::addr(filter),
                services: services.unwrap_or_default(),
            })?;
            asked = Some(now);
        }
        let wait = end.map_or(Listener::RENEWAL, |end| {
            Listener::RENEWAL.min(end.saturating_duration_since(now))
        });
        for event in listener.read(AT_ONCE, wait)? {
            let now = (Timestamp::now(), monotonic_ns());
            let context = context(&event, store, &mut devices);
            let Some(told) = Told::new(&event, context, now) else {
                continue;
            };
            let service = told.service.as_deref().unwrap_or("?");
            if !filter.admits(service, told.addresses()) {
                continue;
            }
            if !show(args.output, &told)? {
                return Ok(());
            }
            left -= 1;
            if left == 0 {
                break;
            }
        }
    }
    Ok(())
}

fn context(event: &MonitorEvent, store: &BpfStore, devices: &mut HashMap<u32, String>) -> Context {
    Context {
        service: store
            .name(event.service)
            .map(|name| name.text().into_owned()),
        command: (event.tgid != 0)
            .then(|| read::command(event.tgid))
            .flatten(),
        device: (event.ifindex != 0).then(|| {
            let name = || device_name(event.ifindex);
            devices.entry(event.ifindex).or_insert_with(name).clone()
        }),
    }
}

fn lost(store: &BpfStore) -> u64 {
    store.counter(Counter::MonitorLost).unwrap_or(0)
}

/// Whether somebody still reads.
fn show(format: Format, told: &Told) -> Result<bool, CliError> {
    let mut out = anstream::stdout().lock();
    let result = match format {
        Format::Text => writeln!(out, "{}", told.line()),
        Format::Json => writeln!(out, "{}", serde_json::to_string(told).unwrap_or_default()),
    };
    match result.and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(source) => Err(CliError::Io {
            what: "standard output",
            source,
        }),
    }
}
