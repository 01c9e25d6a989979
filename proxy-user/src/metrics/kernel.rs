//! What the kernel knows of the programs and maps, asked for when it is shown.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};
use proxy_common::abi::Counter;

use crate::{
    loader::{Account, Pins, Programs, Taken},
    maps::{MapStore as _, StoreError, bpf::BpfStore},
};

/// What is asked. Each costs some dozens of system calls at most.
pub(crate) trait KernelView: fmt::Debug + Send + Sync {
    fn outcomes(&self) -> Result<Vec<(Counter, u64)>, StoreError>;
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

    fn programs(&self) -> Vec<Account> {
        self.programs.accounts()
    }

    fn maps(&self) -> Vec<Taken> {
        self.pins.memory()
    }
}

/// Nothing is shown before there is a view.
#[derive(Debug, Default)]
pub(super) struct Kernel(Mutex<Option<Box<dyn KernelView>>>);

impl Kernel {
    pub(super) fn set(&self, view: Box<dyn KernelView>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(view);
    }
}

impl Collector for Kernel {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let view = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(view) = view.as_ref() else {
            return Ok(());
        };
        match view.outcomes() {
            Ok(outcomes) => encode_outcomes(&mut encoder, outcomes)?,
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
        let labels = [("reason", counter.name())];
        ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
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
