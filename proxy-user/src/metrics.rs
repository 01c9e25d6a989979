//! What /metrics shows: kube-proxy's names where the meaning is the same (`pkg/proxy/metrics`), and
//! ours, which begin with `kube_portal_`. docs/METRICS.md lists them all.

mod kernel;
mod process;
mod services;
mod slis;
mod text;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use hyper::StatusCode;
use k8s_openapi::jiff::Timestamp;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{
        MetricType,
        counter::Counter,
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::{Histogram, exponential_buckets, linear_buckets},
    },
    registry::Registry,
};
use proxy_common::abi::{ABI_VERSION, map};

use self::{kernel::Kernel, process::Process, text::Format};
pub(crate) use self::{
    kernel::{KernelView, Ours},
    slis::Slis,
};

use crate::{
    audit::Audited,
    expiry::Filling,
    failover::{News, Report},
    health::{Moment, ProxyHealth},
    keeper::Attached,
    maps::Capacity,
    model::{Event, WithoutLocal},
    plan::{IdChange, Used},
    server::Answer,
    watch::kube::{Contact, Requests},
};

type Labels = [(&'static str, &'static str); 1];
type Seconds = Gauge<f64, AtomicU64>;

#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    kernel: Arc<Kernel>,
    sync_duration: Histogram,
    last_synced: Seconds,
    last_queued: Seconds,
    network_programming: Histogram,
    endpoint_changes: Counter,
    endpoint_changes_pending: Gauge,
    service_changes: Counter,
    service_changes_pending: Gauge,
    healthz: Family<Labels, Counter>,
    livez: Family<Labels, Counter>,
    without_local: Family<Labels, Gauge>,
    not_programmed: Gauge,
    without_room: Gauge,
    refused: Family<Labels, Counter>,
    drift: Counter,
    last_audited: Seconds,
    entries: Family<Labels, Gauge>,
    capacity: Family<Labels, Gauge>,
    devices: Family<Labels, Gauge>,
    passed_over: Gauge,
    ejections: Counter,
    corrected: Counter,
}

/// What the metrics are asked of when they are shown, besides what they are told.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) health: Arc<Mutex<ProxyHealth>>,
    /// Service ports that have counters of their own.
    pub(crate) max_services: usize,
    /// Without an API server nothing is shown of it.
    pub(crate) api_server: Option<(Contact, Requests)>,
}

impl Metrics {
    pub(crate) fn new(asked: Asked) -> Self {
        let metrics = Self {
            registry: Registry::default(),
            kernel: Arc::new(Kernel::new(asked.max_services)),
            sync_duration: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            last_synced: Seconds::default(),
            last_queued: Seconds::default(),
            network_programming: Histogram::new(
                linear_buckets(0.25, 0.25, 2)
                    .chain(linear_buckets(1.0, 1.0, 59))
                    .chain(linear_buckets(60.0, 5.0, 12))
                    .chain(linear_buckets(120.0, 30.0, 7)),
            ),
            endpoint_changes: Counter::default(),
            endpoint_changes_pending: Gauge::default(),
            service_changes: Counter::default(),
            service_changes_pending: Gauge::default(),
            healthz: Family::default(),
            livez: Family::default(),
            without_local: Family::default(),
            not_programmed: Gauge::default(),
            without_room: Gauge::default(),
            refused: Family::default(),
            drift: Counter::default(),
            last_audited: Seconds::default(),
            entries: Family::default(),
            capacity: Family::default(),
            devices: Family::default(),
            passed_over: Gauge::default(),
            ejections: Counter::default(),
            corrected: Counter::default(),
        };
        // What has not happened yet is 0, not missing.
        for code in ["200", "503"] {
            let _zero = metrics.healthz.get_or_create(&[("code", code)]);
            let _zero = metrics.livez.get_or_create(&[("code", code)]);
        }
        metrics.set_without_local(WithoutLocal::default());
        for map in [
            map::FRONTENDS,
            map::SERVICES,
            map::BACKENDS,
            map::SLOTS,
            map::SOURCE_RANGES,
        ] {
            let _zero = metrics.refused.get_or_create(&[("map", label(map))]);
        }
        metrics.registered(asked)
    }

    fn registered(mut self, asked: Asked) -> Self {
        self.registry.register_collector(Box::new(Process));
        let theirs = self.registry.sub_registry_with_prefix("kubeproxy");
        let mut shown = |name: &str, help: &str, metric: Shown| match metric {
            Shown::Histogram(metric) => theirs.register(name, help, metric),
            Shown::Seconds(metric) => theirs.register(name, help, metric),
            Shown::Counter(metric) => theirs.register(name, help, metric),
            Shown::Gauge(metric) => theirs.register(name, help, metric),
            Shown::Counters(metric) => theirs.register(name, help, metric),
        };
        shown(
            "sync_proxy_rules_duration_seconds",
            "How long it took to write changes into the maps",
            Shown::Histogram(self.sync_duration.clone()),
        );
        shown(
            "sync_proxy_rules_last_timestamp_seconds",
            "When changes were last written, all of them",
            Shown::Seconds(self.last_synced.clone()),
        );
        shown(
            "sync_proxy_rules_last_queued_timestamp_seconds",
            "When there was last something to write",
            Shown::Seconds(self.last_queued.clone()),
        );
        shown(
            "network_programming_duration_seconds",
            "From a change of a pod or Service to the maps, by the clock of who saw the change",
            Shown::Histogram(self.network_programming.clone()),
        );
        // The library appends the `_total` of counters.
        shown(
            "sync_proxy_rules_endpoint_changes",
            "EndpointSlices that came, changed or went",
            Shown::Counter(self.endpoint_changes.clone()),
        );
        shown(
            "sync_proxy_rules_endpoint_changes_pending",
            "Those that are not in the maps yet",
            Shown::Gauge(self.endpoint_changes_pending.clone()),
        );
        shown(
            "sync_proxy_rules_service_changes",
            "Services that came, changed or went",
            Shown::Counter(self.service_changes.clone()),
        );
        shown(
            "sync_proxy_rules_service_changes_pending",
            "Those that are not in the maps yet",
            Shown::Gauge(self.service_changes_pending.clone()),
        );
        shown(
            "proxy_healthz",
            "Answers of /healthz",
            Shown::Counters(self.healthz.clone()),
        );
        shown(
            "proxy_livez",
            "Answers of /livez",
            Shown::Counters(self.livez.clone()),
        );
        theirs.register_collector(Box::new(WithoutLocalEndpoints(self.without_local.clone())));
        let ours = self.registry.sub_registry_with_prefix("kube_portal");
        ours.register(
            "services_not_programmed",
            "Services whose last change is not in the maps, for want of room or by a failure; tried again",
            self.not_programmed.clone(),
        );
        ours.register(
            "services_without_room",
            "Those of them for which a map has no room",
            self.without_room.clone(),
        );
        ours.register(
            "services_refused",
            "How often a Service was refused that was not before, by the map that had no room",
            self.refused.clone(),
        );
        ours.register(
            "audit_drift",
            "Map entries that an audit found changed by somebody else, and wrote again or removed",
            self.drift.clone(),
        );
        ours.register(
            "audit_last_timestamp_seconds",
            "When all of the maps were last compared with what they should hold",
            self.last_audited.clone(),
        );
        ours.register(
            "map_entries",
            "Entries in use, those that wait for readers included; of what the programs write, when it was last swept",
            self.entries.clone(),
        );
        ours.register(
            "map_capacity",
            "Entries there is room for",
            self.capacity.clone(),
        );
        ours.register(
            "devices",
            "Devices of the packet path: those that run its programs, and those that ought to and can't be attached to",
            self.devices.clone(),
        );
        ours.register(
            "backends_passed_over",
            "Backends that get no new connections for a while, because attempts to connect to them failed",
            self.passed_over.clone(),
        );
        ours.register(
            "backend_ejections",
            "How often a backend was passed over for a while",
            self.ejections.clone(),
        );
        ours.register(
            "active_connections_corrected",
            "Connections by which the counts of backends had drifted from the entries there are, and were set right",
            self.corrected.clone(),
        );
        ours.register_collector(Box::new(Healthy(asked.health)));
        ours.register_collector(Box::new(Build));
        ours.register_collector(Box::new(self.kernel.clone()));
        if let Some((contact, requests)) = asked.api_server {
            ours.register_collector(Box::new(contact));
            self.registry.register(
                "rest_client_requests",
                "Requests to API servers, by what was answered",
                requests.family(),
            );
        }
        self
    }

    /// From now on what the kernel knows is shown, asked for through this.
    pub(crate) fn set_kernel(&self, view: Box<dyn KernelView>) {
        self.kernel.set(view);
    }

    /// Service ids have come to stand for other ports.
    pub(crate) fn service_ids(&self, changes: Vec<IdChange>) {
        self.kernel.service_ids(changes);
    }

    pub(crate) fn received(&self, event: &Event) {
        match event {
            Event::ServiceApplied(_) | Event::ServiceGone(_) => {
                self.service_changes.inc();
                self.service_changes_pending.inc();
            }
            Event::SliceApplied(_) | Event::SliceGone(_) => {
                self.endpoint_changes.inc();
                self.endpoint_changes_pending.inc();
            }
            Event::ListStarted(_)
            | Event::Listed(_)
            | Event::NodeChanged(_)
            | Event::ServiceCidrApplied(..)
            | Event::ServiceCidrGone(_)
            | Event::LocalAddresses(_) => {}
        }
    }

    pub(crate) fn queued(&self, now: Timestamp) {
        self.last_queued.set(now.as_duration().as_secs_f64());
    }

    /// A sync has ended; `whole` when nothing failed.
    pub(crate) fn synced(&self, now: Timestamp, took: Duration, whole: bool) {
        self.sync_duration.observe(took.as_secs_f64());
        self.endpoint_changes_pending.set(0);
        self.service_changes_pending.set(0);
        if whole {
            self.last_synced.set(now.as_duration().as_secs_f64());
        }
    }

    /// Clocks that differ may make it negative; it is then as good as nothing.
    pub(crate) fn programmed(&self, triggered: Timestamp, now: Timestamp) {
        let took = now.duration_since(triggered).as_secs_f64().max(0.0);
        self.network_programming.observe(took);
    }

    pub(crate) fn set_without_local(&self, count: WithoutLocal) {
        let set = |policy: &'static str, count: u32| {
            self.without_local
                .get_or_create(&[("traffic_policy", policy)])
                .set(count.into());
        };
        set("internal", count.internal);
        set("external", count.external);
    }

    pub(crate) fn audited(&self, now: Timestamp, audited: &Audited) {
        self.drift.inc_by(audited.drifted);
        self.last_audited.set(now.as_duration().as_secs_f64());
    }

    /// How many Services wait, and how many of them for room.
    pub(crate) fn set_not_programmed(&self, (services, without_room): (usize, usize)) {
        let set = |gauge: &Gauge, count| gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        set(&self.not_programmed, services);
        set(&self.without_room, without_room);
    }

    pub(crate) fn refused(&self, map: &'static str) {
        self.refused.get_or_create(&[("map", label(map))]).inc();
    }

    pub(crate) fn set_maps(&self, used: Used, capacity: Capacity) {
        for (map, entries, capacity) in [
            ("frontends", used.frontends, capacity.frontends),
            ("services", used.services, capacity.services),
            ("backends", used.backends, capacity.backends),
            ("slots", used.slots, capacity.slots),
            ("source_ranges", used.source_ranges, capacity.source_ranges),
            ("service_nets", used.service_nets, capacity.service_nets),
        ] {
            self.set_map(Filling {
                map,
                entries,
                capacity,
            });
        }
    }

    pub(crate) fn set_map(&self, filling: Filling) {
        let Filling {
            map,
            entries,
            capacity,
        } = filling;
        let labels = [("map", map)];
        self.entries
            .get_or_create(&labels)
            .set(i64::try_from(entries).unwrap_or(i64::MAX));
        self.capacity.get_or_create(&labels).set(capacity.into());
    }

    pub(crate) fn asked_healthz(&self, status: StatusCode) {
        self.healthz.get_or_create(&code(status)).inc();
    }

    pub(crate) fn asked_livez(&self, status: StatusCode) {
        self.livez.get_or_create(&code(status)).inc();
    }

    /// Of a look at backends that failed.
    pub(crate) fn passed_over(&self, report: &Report) {
        let now = i64::try_from(report.passed_over).unwrap_or(i64::MAX);
        self.passed_over.set(now);
        let new = report.news.iter().filter(|news| News::is_passed_over(news));
        self.ejections.inc_by(new.count() as u64);
    }

    /// Counts of connections had drifted by so many.
    pub(crate) fn corrected(&self, connections: u64) {
        self.corrected.inc_by(connections);
    }

    /// Of the packet path's devices.
    pub(crate) fn set_devices(&self, attached: Attached) {
        for (state, count) in [("attached", attached.devices), ("failed", attached.failed)] {
            self.devices
                .get_or_create(&[("state", state)])
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// What /metrics answers; reads the maps. `accept`: what the client says it can read.
    pub(crate) fn answer(&self, accept: &str) -> Answer {
        text::answer(&self.registry, Format::wanted(accept))
    }
}

/// A metric under a name of kube-proxy.
enum Shown {
    Histogram(Histogram),
    Seconds(Seconds),
    Counter(Counter),
    Gauge(Gauge),
    Counters(Family<Labels, Counter>),
}

/// `frontends` of KP_FRONTENDS.
fn label(name: &'static str) -> &'static str {
    match name {
        map::FRONTENDS => "frontends",
        map::SERVICES | map::NAMES => "services",
        map::BACKENDS => "backends",
        map::SLOTS => "slots",
        map::SOURCE_RANGES => "source_ranges",
        map::SERVICE_NETS => "service_nets",
        other => other,
    }
}

fn code(status: StatusCode) -> Labels {
    let code = if status == StatusCode::OK {
        "200"
    } else {
        "503"
    };
    [("code", code)]
}

/// A gauge, whatever kube-proxy's name for it says. What tells counters from gauges by name would take
/// offence, so its type is left open.
#[derive(Debug)]
struct WithoutLocalEndpoints(Family<Labels, Gauge>);

impl Collector for WithoutLocalEndpoints {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let encoder = encoder.encode_descriptor(
            "sync_proxy_rules_no_local_endpoints_total",
            "Service ports with a Local policy that have endpoints, but none on this node; a gauge",
            None,
            MetricType::Unknown,
        )?;
        self.0.encode(encoder)
    }
}

#[derive(Debug)]
struct Healthy(Arc<Mutex<ProxyHealth>>);

impl Collector for Healthy {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let now = Moment::now();
        let (good, healthy) = {
            let health = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            (health.is_good(now), health.is_healthy(now))
        };
        let mut family = encoder.encode_descriptor(
            "healthy",
            "1 if this check would say 200 now, else 0",
            None,
            MetricType::Gauge,
        )?;
        for (check, healthy) in [("healthz", good), ("livez", healthy)] {
            let labels = [("check", check)];
            ConstGauge::new(i64::from(healthy)).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// Which build this is.
#[derive(Debug)]
struct Build;

impl Collector for Build {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut family = encoder.encode_descriptor(
            "build_info",
            "1; the labels say which version this is, and which layout its maps have",
            None,
            MetricType::Gauge,
        )?;
        let labels = [
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("abi", ABI_VERSION.to_string()),
        ];
        ConstGauge::new(1_i64).encode(family.encode_family(&labels)?)
    }
}

impl Collector for Contact {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let encoder = encoder.encode_descriptor(
            "state_stale_seconds",
            "For how long the Services, EndpointSlices, ServiceCIDRs or the Node could not be followed; 0 while they can",
            None,
            MetricType::Gauge,
        )?;
        let stale = self.stale().unwrap_or_default();
        ConstGauge::new(stale.as_secs_f64()).encode(encoder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;

    fn metrics() -> Metrics {
        Metrics::new(Asked {
            health: Arc::new(Mutex::new(ProxyHealth::new(Duration::from_secs(60)))),
            max_services: 1000,
            api_server: None,
        })
    }

    fn lines(metrics: &Metrics, start: &str) -> Vec<String> {
        let body = metrics.answer("").body;
        let lines = body.lines().filter(|line| line.starts_with(start));
        lines.map(str::to_owned).collect()
    }

    #[test]
    fn the_names_and_labels_are_those_of_kube_proxy() {
        let metrics = metrics();
        let name = ObjectName::new("ns", "a");
        metrics.received(&Event::ServiceGone(name.clone()));
        metrics.received(&Event::SliceGone(name.clone()));
        metrics.received(&Event::SliceGone(name));
        metrics.asked_healthz(StatusCode::SERVICE_UNAVAILABLE);
        metrics.set_without_local(WithoutLocal {
            internal: 2,
            external: 1,
        });
        let pending = "kubeproxy_sync_proxy_rules_endpoint_changes";
        assert_eq!(
            lines(&metrics, pending),
            [format!("{pending}_total 2"), format!("{pending}_pending 2")]
        );
        let service = "kubeproxy_sync_proxy_rules_service_changes";
        assert_eq!(
            lines(&metrics, &format!("{service}_total")),
            [format!("{service}_total 1")]
        );
        let mut codes = lines(&metrics, "kubeproxy_proxy_healthz_total");
        codes.sort();
        assert_eq!(
            codes,
            [
                "kubeproxy_proxy_healthz_total{code=\"200\"} 0",
                "kubeproxy_proxy_healthz_total{code=\"503\"} 1"
            ]
        );
        let mut policies = lines(
            &metrics,
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
        );
        policies.sort();
        assert_eq!(
            policies,
            [
                "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"external\"} 1",
                "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"internal\"} 2"
            ]
        );
        let now: Timestamp = "1970-01-01T00:01:40.5Z".parse().unwrap();
        metrics.queued(now);
        metrics.synced(now, Duration::from_millis(3), false);
        assert_eq!(lines(&metrics, pending)[1], format!("{pending}_pending 0"));
        let last = "kubeproxy_sync_proxy_rules_last";
        assert_eq!(
            lines(&metrics, last),
            [
                format!("{last}_timestamp_seconds 0.0"),
                format!("{last}_queued_timestamp_seconds 100.5")
            ]
        );
        metrics.programmed("1970-01-01T00:01:40Z".parse().unwrap(), now);
        let programming = "kubeproxy_network_programming_duration_seconds";
        assert_eq!(
            lines(&metrics, &format!("{programming}_sum")),
            [format!("{programming}_sum 0.5")]
        );
        let duration = "kubeproxy_sync_proxy_rules_duration_seconds";
        assert_eq!(
            lines(&metrics, &format!("{duration}_count")),
            [format!("{duration}_count 1")]
        );
    }

    #[test]
    fn a_map_has_its_entries_and_its_room_under_one_label() {
        let metrics = metrics();
        assert_eq!(lines(&metrics, "kube_portal_map_"), [""; 0]);
        for entries in [7, 5] {
            metrics.set_map(Filling {
                map: "half_open",
                entries,
                capacity: 128,
            });
        }
        assert_eq!(
            lines(&metrics, "kube_portal_map_"),
            [
                "kube_portal_map_entries{map=\"half_open\"} 5",
                "kube_portal_map_capacity{map=\"half_open\"} 128"
            ]
        );
    }
}

#[cfg(test)]
mod page_tests;
