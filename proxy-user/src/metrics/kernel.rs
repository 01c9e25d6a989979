//! What the kernel knows of the programs and maps, asked for when it is shown.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};
use proxy_common::abi::{Counter, ServiceStats};

use super::services::{ServicePort, Services};
use crate::{
    loader::{Account, Pins, Programs, Taken},
    maps::{
        MapStore as _, StoreError,
        bpf::{Active, BpfStore},
    },
    plan::IdChange,
};

/// What is asked. Each costs some dozens of system calls at most.
pub(crate) trait KernelView: fmt::Debug + Send + Sync {
    fn outcomes(&self) -> Result<Vec<(Counter, u64)>, StoreError>;
    /// By service id.
    fn services(&self) -> Result<Vec<(u32, ServiceStats)>, StoreError>;
    fn active(&self) -> Result<Active, StoreError>;
    fn programs(&self) -> Vec<Account>;
    fn maps(&self) -> Vec<Taken>;
}

/// The maps and programs of this agent.
#[derive(Debug)]
pub(crate) struct Ours {
    pub(crate) store: Arc<BpfStore>,
    pub(crate) pins: Pins,
    pub(crate) programs: Programs,
}

impl KernelView for Ours {
    fn outcomes(&self) -> Result<Vec<(Counter, u64)>, StoreError> {
        self.store.counters()
    }

    fn services(&self) -> Result<Vec<(u32, ServiceStats)>, StoreError> {
        self.store.service_stats()
    }

    fn active(&self) -> Result<Active, StoreError> {
        self.store.active()
    }

    fn programs(&self) -> Vec<Account> {
        self.programs.accounts()
    }

    fn maps(&self) -> Vec<Taken> {
        self.pins.memory()
    }
}

/// Nothing is shown before there is a view.
#[derive(Debug)]
pub(super) struct Kernel {
    view: Mutex<Option<Box<dyn KernelView>>>,
    services: Mutex<Services>,
}

impl Kernel {
    pub(super) fn new(max_services: usize) -> Self {
        Self {
            view: Mutex::default(),
            services: Mutex::new(Services::new(max_services)),
        }
    }

    pub(super) fn set(&self, view: Box<dyn KernelView>) {
        match view.services() {
            Ok(counted) => lock(&self.services).begin(counted),
            Err(error) => log::debug!("metrics: {error}"),
        }
        *lock(&self.view) = Some(view);
    }

    pub(super) fn service_ids(&self, changes: Vec<IdChange>) {
        if !changes.is_empty() {
            lock(&self.services).follow(changes);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Collector for Kernel {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let view = lock(&self.view);
        let Some(view) = view.as_ref() else {
            return Ok(());
        };
        match view.outcomes() {
            Ok(outcomes) => encode_outcomes(&mut encoder, outcomes)?,
            Err(error) => log::debug!("metrics: {error}"),
        }
        match view.services() {
            Ok(counted) => {
                let shown = lock(&self.services).count(counted);
                encode_services(&mut encoder, &shown)?;
            }
            Err(error) => log::debug!("metrics: {error}"),
        }
        match view.active() {
            Ok(active) => {
                let sums = lock(&self.services).sum(&active.services);
                encode_active(&mut encoder, &sums, active.draining)?;
            }
            Err(error) => log::debug!("metrics: {error}"),
        }
        encode_programs(&mut encoder, &view.programs())?;
        encode_maps(&mut encoder, &view.maps())
    }
}

fn encode_outcomes(
    encoder: &mut DescriptorEncoder<'_>,
    outcomes: Vec<(Counter, u64)>,
) -> Result<(), fmt::Error> {
    let mut family = encoder.encode_descriptor(
        "datapath_outcomes",
        "What the programs decided, by reason; `kube-portal status` says what each means",
        None,
        MetricType::Counter,
    )?;
    for (counter, value) in outcomes {
        let labels = [
            ("reason", counter.name()),
            ("verdict", counter.kind().name()),
        ];
        ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

type Count = fn(&ServiceStats) -> u64;

fn encode_services(
    encoder: &mut DescriptorEncoder<'_>,
    services: &[(ServicePort, ServiceStats)],
) -> Result<(), fmt::Error> {
    let families: [(&str, &str, Count); 2] = [
        (
            "service_connections",
            "Connections and UDP flows that were given a backend, by Service port, since this agent was started",
            |stats| stats.connections,
        ),
        (
            "service_failures",
            "Connections, UDP flows and packets that were refused or dropped, by Service port, since this agent was started",
            |stats| stats.failures,
        ),
    ];
    for (name, help, of) in families {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (port, stats) in services {
            ConstCounter::new(of(stats)).encode(family.encode_family(&labels(port))?)?;
        }
    }
    Ok(())
}

fn labels(port: &ServicePort) -> [(&'static str, &str); 3] {
    [
        ("namespace", &port.service.namespace),
        ("service", &port.service.name),
        ("port", &port.port),
    ]
}

fn encode_active(
    encoder: &mut DescriptorEncoder<'_>,
    services: &[(ServicePort, u64)],
    draining: u64,
) -> Result<(), fmt::Error> {
    let mut family = encoder.encode_descriptor(
        "service_active_connections",
        "Connections through this node that are open now, by Service port",
        None,
        MetricType::Gauge,
    )?;
    for (port, count) in services {
        ConstGauge::new(*count).encode(family.encode_family(&labels(port))?)?;
    }
    let encoder = encoder.encode_descriptor(
        "draining_connections",
        "Those that are open now to backends that get no new ones: terminating, of weight 0, or gone",
        None,
        MetricType::Gauge,
    )?;
    ConstGauge::new(draining).encode(encoder)
}

fn encode_programs(
    encoder: &mut DescriptorEncoder<'_>,
    programs: &[Account],
) -> Result<(), fmt::Error> {
    let known = |what: fn(&Account) -> Option<u64>| {
        let values = programs
            .iter()
            .filter_map(|program| Some((program.program.as_str(), what(program)?)));
        values.collect::<Vec<_>>()
    };
    gauges(
        encoder,
        "program_memory_bytes",
        "Kernel memory of a program",
        "program",
        &known(|program| Some(program.memory_bytes)),
    )?;
    gauges(
        encoder,
        "program_verified_instructions",
        "Instructions that the kernel's verifier looked at to accept a program; it gives up at a million (Linux 5.16)",
        "program",
        &known(|program| program.verified),
    )?;
    let counted: Vec<_> = programs
        .iter()
        .filter_map(|program| Some((program.program.as_str(), program.runs?)))
        .collect();
    if counted.is_empty() {
        return Ok(());
    }
    let mut family = encoder.encode_descriptor(
        "program_runs",
        "How often a program was run while the kernel counted (--bpf-stats)",
        None,
        MetricType::Counter,
    )?;
    for (program, (runs, _)) in &counted {
        let labels = [("program", *program)];
        ConstCounter::new(*runs).encode(family.encode_family(&labels)?)?;
    }
    let mut family = encoder.encode_descriptor(
        "program_run_seconds",
        "How long these runs took",
        None,
        MetricType::Counter,
    )?;
    for (program, (_, time)) in &counted {
        let labels = [("program", *program)];
        ConstCounter::new(time.as_secs_f64()).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn encode_maps(encoder: &mut DescriptorEncoder<'_>, maps: &[Taken]) -> Result<(), fmt::Error> {
    let names: Vec<String> = maps
        .iter()
        .map(|taken| taken.map.trim_start_matches("KP_").to_lowercase())
        .collect();
    let values: Vec<_> = names
        .iter()
        .zip(maps)
        .map(|(name, taken)| (name.as_str(), taken.bytes))
        .collect();
    gauges(
        encoder,
        "map_memory_bytes",
        "Kernel memory of a map",
        "map",
        &values,
    )
}

/// A family with one label; none at all without a value.
fn gauges(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &'static str,
    values: &[(&str, u64)],
) -> Result<(), fmt::Error> {
    if values.is_empty() {
        return Ok(());
    }
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (value, number) in values {
        let labels = [(label, *value)];
        ConstGauge::new(*number).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
