//! The metrics that every Prometheus client has of its own process, under the names that all of them use.

use std::{fmt, fs};

use k8s_openapi::jiff::Timestamp;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};
use rustix::{
    param::{clock_ticks_per_second, page_size},
    process::{Resource, getrlimit},
    time::{ClockId, clock_gettime},
};

/// This process, asked when it is shown.
#[derive(Debug)]
pub(super) struct Process;

/// What `/proc/self/stat` says, in the kernel's units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    /// In user and kernel mode.
    cpu_ticks: u64,
    /// After the machine's start.
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    /// proc_pid_stat(5). The second field, a name in parentheses, may hold anything.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // They are numbered from 1, and the third is the first here.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: field(14)? + field(15)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

/// When the machine was started, in seconds since 1970.
fn started_at() -> f64 {
    let up = clock_gettime(ClockId::Boottime);
    #[expect(clippy::cast_precision_loss, reason = "a time to show")]
    let up = up.tv_sec as f64 + up.tv_nsec as f64 / 1e9;
    Timestamp::now().as_duration().as_secs_f64() - up
}

#[expect(clippy::cast_precision_loss, reason = "numbers to show")]
impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let stat = fs::read_to_string("/proc/self/stat").ok();
        if let Some(stat) = stat.as_deref().and_then(Stat::parse) {
            let ticks = clock_ticks_per_second() as f64;
            let cpu = stat.cpu_ticks as f64 / ticks;
            let family = encoder.encode_descriptor(
                "process_cpu_seconds",
                "Time that this process has spent on CPUs, in user and kernel mode",
                None,
                MetricType::Counter,
            )?;
            ConstCounter::new(cpu).encode(family)?;
            gauge(
                &mut encoder,
                "process_start_time_seconds",
                "When this process was started, since 1970",
                started_at() + stat.start_ticks as f64 / ticks,
            )?;
            gauge(
                &mut encoder,
                "process_resident_memory_bytes",
                "Memory of this process that is in RAM, the parts of maps that it has mapped included",
                stat.resident_pages as f64 * page_size() as f64,
            )?;
            gauge(
                &mut encoder,
                "process_virtual_memory_bytes",
                "Address space that this process has mapped",
                stat.virtual_bytes as f64,
            )?;
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            // That of the directory is one of them.
            gauge(
                &mut encoder,
                "process_open_fds",
                "File descriptors that are open",
                open.count().saturating_sub(1) as f64,
            )?;
        }
        if let Some(most) = getrlimit(Resource::Nofile).current {
            gauge(
                &mut encoder,
                "process_max_fds",
                "File descriptors that may be open",
                most as f64,
            )?;
        }
        Ok(())
    }
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: f64,
) -> Result<(), fmt::Error> {
    let family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    ConstGauge::new(value).encode(family)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_those_of_the_manual() {
        let text = "1 (a b) c) S 2 3 4 5 6 7 8 9 10 11 100 20 14 15 16 17 18 19 5000 65536 12 23";
        assert_eq!(
            Stat::parse(text),
            Some(Stat {
                cpu_ticks: 120,
                start_ticks: 5000,
                virtual_bytes: 65536,
                resident_pages: 12,
            })
        );
        assert_eq!(Stat::parse("1 (short) S 2 3"), None);
    }

    #[test]
    fn this_process_was_started_in_the_past_and_after_the_machine() {
        let stat = Stat::parse(&fs::read_to_string("/proc/self/stat").unwrap()).unwrap();
        assert!(stat.resident_pages > 0 && stat.virtual_bytes > 0);
        #[expect(clippy::cast_precision_loss, reason = "as above")]
        let age = stat.start_ticks as f64 / clock_ticks_per_second() as f64;
        let now = Timestamp::now().as_duration().as_secs_f64();
        assert!(started_at() > 0.0 && age > 0.0 && started_at() + age <= now + 0.1);
    }
}
