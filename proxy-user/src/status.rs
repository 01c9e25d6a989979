//! What the maps hold, in a form for people and for scripts.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use proxy_common::abi::{
    ABI_VERSION, Backend, Counter, Empty, Frontend, FrontendKind, Scheduler, ServiceAffinity,
    ServiceWord, SockAddr,
};
use serde::Serialize;

use crate::{
    cli::output,
    control::State,
    failover::shown::PassedOver,
    loader::{Hook, OnDevice},
    maps::{Capacity, Observed},
    plan::{address_of, protocol_name},
    watch::kube::{Freshness, span},
};

#[derive(Debug, Serialize)]
pub struct Status {
    pub abi_version: u32,
    /// What a running agent says; absent if none runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<State>,
    /// Programs whose link is pinned: they translate, agent or not.
    pub programs: Vec<String>,
    /// Devices that run the packet path.
    pub devices: Vec<DeviceStatus>,
    pub frontends: Vec<FrontendStatus>,
    /// Backends that get no new connections for a while: attempts to connect to them failed.
    pub(crate) passed_over: Vec<PassedOver>,
    /// Backends that get no new connections, and have some left.
    pub draining: Vec<DrainingStatus>,
    /// ServiceCIDRs: what is dialled there without being a ClusterIP is dropped.
    pub service_nets: Vec<String>,
    pub maps: BTreeMap<&'static str, MapUse>,
    pub counters: BTreeMap<&'static str, u64>,
}

/// Who keeps the maps.
fn agent_line(agent: Option<&State>) -> String {
    let Some(agent) = agent else {
        return "none runs: this is as the last one left it".to_owned();
    };
    match &agent.api_server {
        None => "runs".to_owned(),
        Some(Freshness {
            server,
            stale_secs: None,
            ..
        }) => format!("follows the API server {server}"),
        Some(Freshness {
            server,
            stale_secs: Some(secs),
            reason,
        }) => format!(
            "out of step with the API server {server} for {}: {}",
            span(Duration::from_secs(*secs)),
            reason.as_deref().unwrap_or_default()
        ),
    }
}

#[derive(Debug, Serialize)]
pub struct DeviceStatus {
    pub index: u32,
    pub name: String,
    /// By which mechanism, `tcx` or `clsact`; `null` if nothing of ours runs there.
    pub ingress: Option<&'static str>,
    pub egress: Option<&'static str>,
}

#[derive(Debug, Serialize)]
pub struct FrontendStatus {
    pub address: IpAddr,
    pub port: u16,
    pub protocol: String,
    pub kind: &'static str,
    /// `namespace/name:port`.
    pub service: String,
    pub service_id: u32,
    /// `translate`, `refuse` (no endpoints), `drop` (policy Local, none here) or `damaged`.
    pub verdict: &'static str,
    /// By which rule a new connection gets its backend; absent: there is none to get.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<&'static str>,
    /// Whether backends that don't answer are passed over; absent: there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failover: Option<bool>,
    /// Connections of this node to the Service port, by whatever address, that are open now.
    pub active: u64,
    pub backends: Vec<BackendStatus>,
    /// What clients from outside get, if it is not the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outside: Option<OutsideStatus>,
    /// Who else may dial it; absent: anyone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_ranges: Option<RangesStatus>,
    /// For how long a client keeps its backend; absent: not at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity_timeout_secs: Option<u32>,
}

/// The scheduler that isn't worth a word.
const USUAL: &str = Scheduler::Random.name();

impl FrontendStatus {
    pub(crate) fn sort_key(&self) -> (&str, IpAddr, u16, &str) {
        (&self.service, self.address, self.port, &self.protocol)
    }
}

#[derive(Debug, Serialize)]
pub struct OutsideStatus {
    pub service_id: u32,
    pub verdict: &'static str,
    pub backends: Vec<BackendStatus>,
}

#[derive(Debug, Serialize)]
pub struct RangesStatus {
    pub ranges: Vec<String>,
    pub node_allowed: bool,
    pub pods_allowed: bool,
}

#[derive(Clone, Debug, Serialize)]
pub struct BackendStatus {
    pub id: u32,
    pub address: IpAddr,
    pub port: u16,
    /// Gets new connections; otherwise it only keeps the flows it has.
    pub chosen: bool,
    /// On this node.
    pub local: bool,
    /// Connections of this node that it has.
    pub active: u64,
}

impl BackendStatus {
    /// With its connections behind it.
    fn cell(&self) -> String {
        let address = SocketAddr::new(self.address, self.port);
        format!("{address} ({})", self.active)
    }
}

/// A backend that is terminating, has weight 0, or is gone; in whichever lists of its Service port.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct DrainingStatus {
    /// `namespace/name:port`; absent: the endpoint is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Absent: of a connection from before the maps were made anew, nobody knows where it leads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Connections that are left.
    pub active: u64,
}

#[derive(Debug, Serialize)]
pub struct MapUse {
    pub used: usize,
    pub capacity: u32,
}

impl Status {
    pub fn new(
        observed: &Observed,
        capacity: Capacity,
        (sockets, socket_capacity): (usize, u32),
        counters: &[(Counter, u64)],
        programs: Vec<String>,
    ) -> Self {
        let source_ranges = observed.source_ranges.values().map(BTreeSet::len).sum();
        let slots = observed.slots.values().map(Vec::len).sum();
        Self {
            abi_version: ABI_VERSION,
            agent: None,
            programs,
            devices: Vec::new(),
            frontends: frontends(observed),
            passed_over: Vec::new(),
            draining: draining(observed),
            service_nets: observed
                .service_nets
                .iter()
                .map(ToString::to_string)
                .collect(),
            maps: BTreeMap::from([
                (
                    "frontends",
                    map_use(observed.frontends.len(), capacity.frontends),
                ),
                ("services", map_use(observed.names.len(), capacity.services)),
                (
                    "backends",
                    map_use(observed.backends.len(), capacity.backends),
                ),
                ("slots", map_use(slots, capacity.slots)),
                (
                    "source_ranges",
                    map_use(source_ranges, capacity.source_ranges),
                ),
                (
                    "service_nets",
                    map_use(observed.service_nets.len(), capacity.service_nets),
                ),
                ("sockets", map_use(sockets, socket_capacity)),
            ]),
            counters: counters
                .iter()
                .map(|(counter, value)| (counter.name(), *value))
                .collect(),
        }
    }

    /// What is on devices, and how many entries of flows (two each) there are and can be.
    pub fn set_packet_path(
        &mut self,
        on_devices: &[OnDevice],
        name: impl Fn(u32) -> String,
        (flows, capacity): (usize, u32),
    ) {
        let mut devices: BTreeMap<u32, DeviceStatus> = BTreeMap::new();
        for found in on_devices {
            let device = devices
                .entry(found.ifindex)
                .or_insert_with(|| DeviceStatus {
                    index: found.ifindex,
                    name: name(found.ifindex),
                    ingress: None,
                    egress: None,
                });
            match found.hook {
                Hook::Ingress => device.ingress = Some(found.mechanism.name()),
                Hook::Egress => device.egress = Some(found.mechanism.name()),
            }
        }
        self.devices = devices.into_values().collect();
        self.maps.insert("flow entries", map_use(flows, capacity));
    }

    /// How many clients of Services with affinity are known, and can be.
    pub fn set_affinity(&mut self, (clients, capacity): (usize, u32)) {
        self.maps.insert("affinity", map_use(clients, capacity));
    }

    pub(crate) fn set_passed_over(&mut self, passed_over: Vec<PassedOver>) {
        self.passed_over = passed_over;
    }

    pub fn set_agent(&mut self, state: State) {
        self.agent = Some(state);
    }

    /// What the maps lack, with what to do about it; then three tables, and one of devices and of what is
    /// draining if there are any. `width` columns, if a terminal is watching.
    pub fn to_table(&self, width: Option<u16>) -> String {
        let mut out = String::new();
        let programs = match self.programs.len() {
            0 => "none: nothing is translated".to_owned(),
            _ => self.programs.join(" "),
        };
        let _string_is_infallible = writeln!(out, "agent: {}", agent_line(self.agent.as_ref()));
        let _string_is_infallible = writeln!(out, "programs attached: {programs}\n");
        let lacking = self.agent.iter().flat_map(|agent| &agent.not_programmed);
        let lines: Vec<String> = lacking.map(|service| service.reason.clone()).collect();
        if !lines.is_empty() {
            let _string_is_infallible = writeln!(
                out,
                "NOT IN THE MAPS ({} Services):\n{}\n",
                lines.len(),
                lines.join("\n")
            );
        }
        if !self.passed_over.is_empty() {
            let lines: Vec<String> = self.passed_over.iter().map(PassedOver::line).collect();
            let _string_is_infallible = writeln!(
                out,
                "PASSED OVER ({} backends):\n{}\n",
                lines.len(),
                lines.join("\n")
            );
        }
        if !self.devices.is_empty() {
            let mut table = output::table(width, &["DEVICE", "INDEX", "INGRESS", "EGRESS"]);
            for device in &self.devices {
                table.add_row([
                    device.name.clone(),
                    device.index.to_string(),
                    device.ingress.unwrap_or("-").to_owned(),
                    device.egress.unwrap_or("-").to_owned(),
                ]);
            }
            let _string_is_infallible = writeln!(out, "{table}\n");
        }
        if !self.draining.is_empty() {
            let mut table = output::table(width, &["DRAINING", "PROTO", "SERVICE", "LEFT"]);
            for backend in &self.draining {
                table.add_row(backend.cells());
            }
            let _string_is_infallible = writeln!(out, "{table}\n");
        }
        let header = ["FRONTEND", "PROTO", "KIND", "SERVICE", "ACTIVE", "BACKENDS"];
        let mut table = output::table(width, &header);
        for frontend in &self.frontends {
            let chosen = frontend.backends.iter().filter(|b| b.chosen);
            let rule = frontend.scheduler.filter(|name| *name != USUAL);
            let backends = match frontend.verdict {
                "translate" => chosen
                    .map(BackendStatus::cell)
                    .chain(rule.map(|name| format!("by {name}")))
                    .collect::<Vec<_>>()
                    .join("\n"),
                verdict => format!("none: {verdict}"),
            };
            table.add_row([
                SocketAddr::new(frontend.address, frontend.port).to_string(),
                frontend.protocol.clone(),
                frontend.kind.to_owned(),
                frontend.service.clone(),
                frontend.active.to_string(),
                backends,
            ]);
        }
        let _string_is_infallible = writeln!(out, "{table}\n");
        let mut table = output::table(width, &["MAP", "USED", "CAPACITY"]);
        for (name, map) in &self.maps {
            table.add_row([
                (*name).to_owned(),
                map.used.to_string(),
                map.capacity.to_string(),
            ]);
        }
        let _string_is_infallible = writeln!(out, "{table}\n");
        let mut table = output::table(width, &["COUNTER", "VALUE", "MEANING"]);
        for counter in Counter::ALL {
            let value = self.counters.get(counter.name()).copied().unwrap_or(0);
            table.add_row([
                counter.name().to_owned(),
                value.to_string(),
                counter.meaning().trim().to_owned(),
            ]);
        }
        let _string_is_infallible = write!(out, "{table}");
        out
    }
}

impl DrainingStatus {
    fn cells(&self) -> [String; 4] {
        let address = match (self.address, self.port) {
            (Some(address), Some(port)) => SocketAddr::new(address, port).to_string(),
            _ => "?".to_owned(),
        };
        [
            address,
            self.protocol.clone().unwrap_or_else(|| "?".to_owned()),
            self.service
                .clone()
                .unwrap_or_else(|| "(endpoint gone)".to_owned()),
            self.active.to_string(),
        ]
    }
}

/// Sorted by Service, those that are gone first.
fn draining(observed: &Observed) -> Vec<DrainingStatus> {
    let slotted = observed.slotted();
    let left = observed
        .backends
        .iter()
        .filter(|(id, _)| !slotted.contains(*id) && observed.connections(**id) > 0)
        .map(|(id, backend)| (*id, Some(backend)));
    // An endpoint has an id in each list of its Service port.
    let mut sums: BTreeMap<DrainingStatus, u64> = BTreeMap::new();
    for (id, backend) in left.chain(observed.gone()) {
        let at = backend
            .map(|backend| SockAddr::from_parts(backend.addr, backend.port_be).socket_addr());
        let service = backend.filter(|backend| backend.service != 0);
        let of = DrainingStatus {
            service: service.map(|backend| observed.service_name(backend.service).into_owned()),
            address: at.map(|at| at.ip()),
            port: at.map(|at| at.port()),
            protocol: backend.map(|backend| protocol_name(backend.protocol).to_owned()),
            active: 0,
        };
        *sums.entry(of).or_default() += observed.connections(id);
    }
    let sums = sums.into_iter();
    sums.map(|(of, active)| DrainingStatus { active, ..of })
        .collect()
}

/// Where every frontend leads, sorted by Service, then address.
pub(crate) fn frontends(observed: &Observed) -> Vec<FrontendStatus> {
    let mut by_service: HashMap<u32, Vec<BackendStatus>> = HashMap::new();
    // All lists and families of a Service port together.
    let mut active: HashMap<Cow<'_, str>, u64> = HashMap::new();
    let slotted = observed.slotted();
    let mut ids: Vec<_> = observed.backends.iter().collect();
    ids.sort_by_key(|(id, _)| **id);
    for (&id, backend) in ids {
        let address = SockAddr::from_parts(backend.addr, backend.port_be).socket_addr();
        let connections = observed.connections(id);
        *active
            .entry(observed.service_name(backend.service))
            .or_default() += connections;
        by_service
            .entry(backend.service)
            .or_default()
            .push(BackendStatus {
                id,
                address: address.ip(),
                port: address.port(),
                chosen: slotted.contains(&id),
                local: backend.flags & Backend::LOCAL != 0,
                active: connections,
            });
    }
    for backends in by_service.values_mut() {
        backends.sort_by_key(|backend| (backend.address, backend.port));
    }
    let list = |service: u32| {
        let word = observed
            .services
            .get(&service)
            .map_or_else(ServiceWord::default, |service| service.word);
        let verdict = match (word.count(), word.empty()) {
            (1.., _) => "translate",
            (0, Empty::Refuse) => "refuse",
            (0, Empty::Drop) => "drop",
            (0, Empty::Unused) => "damaged",
        };
        (
            verdict,
            by_service.get(&service).cloned().unwrap_or_default(),
            (word.count() > 0).then_some(word),
        )
    };
    let mut frontends: Vec<FrontendStatus> = observed
        .frontends
        .iter()
        .filter(|(key, _)| address_of(key).is_none())
        .map(|(key, frontend)| {
            let (verdict, backends, word) = list(frontend.service);
            FrontendStatus {
                address: key.addr.ip(),
                port: u16::from_be(key.port_be),
                protocol: protocol_name(key.protocol).to_owned(),
                kind: FrontendKind::from_number(frontend.kind).map_or("?", FrontendKind::name),
                active: (active.get(&observed.service_name(frontend.service)))
                    .copied()
                    .unwrap_or(0),
                service: observed.service_name(frontend.service).into_owned(),
                service_id: frontend.service,
                verdict,
                scheduler: word.map(|word| word.scheduler().name()),
                failover: word.map(ServiceWord::fails_over),
                backends,
                outside: (frontend.outside_service != 0).then(|| {
                    let (verdict, backends, _) = list(frontend.outside_service);
                    OutsideStatus {
                        service_id: frontend.outside_service,
                        verdict,
                        backends,
                    }
                }),
                affinity_timeout_secs: observed
                    .services
                    .get(&frontend.service)
                    .map(|service| service.affinity)
                    .filter(|affinity| affinity.is_on())
                    .map(ServiceAffinity::timeout_secs),
                source_ranges: (frontend.flags & Frontend::SOURCE_RANGES != 0).then(|| {
                    let ranges = observed.source_ranges.get(&frontend.service);
                    RangesStatus {
                        ranges: ranges
                            .into_iter()
                            .flatten()
                            .map(ToString::to_string)
                            .collect(),
                        node_allowed: frontend.flags & Frontend::NODE_ALLOWED != 0,
                        pods_allowed: frontend.flags & Frontend::PODS_ALLOWED != 0,
                    }
                }),
            }
        })
        .collect();
    frontends.sort_by(|a, b| a.sort_key().cmp(&b.sort_key()));
    frontends
}

fn map_use(used: usize, capacity: u32) -> MapUse {
    MapUse { used, capacity }
}

#[cfg(test)]
mod tests {
    use proxy_common::abi::Protocol;

    use super::*;
    use crate::maps::fixture;

    const ROOM: Capacity = Capacity {
        frontends: 8,
        services: 8,
        backends: 16,
        slots: 16,
        source_ranges: 8,
        service_nets: 8,
    };

    fn status() -> Status {
        let mut observed = fixture::observed();
        // On both lists of `default/web:http`: of those ids 1, 2 and 4 get new connections.
        observed.active.extend([(1, 2), (4, 1), (3, 5)]);
        // Of endpoints that are gone; one from before the maps were made anew.
        observed.active.extend([(7, 3), (8, 1), (2, -1)]);
        let gone = fixture::backend("10.1.2.9:8080", Protocol::Tcp, 0, 0);
        observed.gone.insert(7, gone);
        Status::new(&observed, ROOM, (0, 8), &[], Vec::new())
    }

    fn lines(text: &str, from: &str) -> Vec<String> {
        let lines = text.lines().skip_while(|line| !line.starts_with(from));
        lines
            .take_while(|line| !line.trim().is_empty())
            .map(|line| line.trim_end().to_owned())
            .collect()
    }

    #[test]
    fn what_is_draining_is_shown_with_what_is_left() {
        let text = status().to_table(None);
        assert_eq!(
            lines(&text, "DRAINING"),
            [
                "DRAINING       PROTO  SERVICE           LEFT",
                "?              ?      (endpoint gone)   1",
                "10.1.2.9:8080  TCP    (endpoint gone)   3",
                "10.1.2.3:8080  TCP    default/web:http  5",
            ]
        );
        let mut observed = fixture::observed();
        let none = Status::new(&observed, ROOM, (0, 8), &[], Vec::new());
        assert_eq!(lines(&none.to_table(None), "DRAINING"), [""; 0]);
        // The same endpoint in the port's other list.
        let twin = fixture::backend("10.1.2.3:8080", Protocol::Tcp, 2, 0);
        observed.backends.insert(5, twin);
        observed.active.extend([(3, 5), (5, 2)]);
        let both = draining(&observed);
        assert_eq!((both.len(), both[0].active), (1, 7));
    }

    #[test]
    fn a_service_port_is_shown_with_its_connections_and_those_of_each_backend() {
        let text = status().to_table(None);
        assert_eq!(
            lines(&text, "FRONTEND"),
            [
                "FRONTEND           PROTO  KIND          SERVICE              ACTIVE  BACKENDS",
                "10.96.0.10:80      TCP    ClusterIP     default/web:http     8       10.1.1.2:8080 (2)",
                "                                                                     10.1.2.2:8080 (0)",
                "192.168.0.1:30080  TCP    NodePort      default/web:http     8       10.1.1.2:8080 (2)",
                "                                                                     10.1.2.2:8080 (0)",
                "203.0.113.9:80     TCP    LoadBalancer  default/web:http     8       10.1.1.2:8080 (2)",
                "                                                                     10.1.2.2:8080 (0)",
                "10.96.0.20:53      UDP    ClusterIP     kube-system/dns:dns  0       none: refuse",
            ]
        );
    }

    #[test]
    fn a_scheduler_is_shown_where_it_is_another_than_most_have() {
        let mut observed = fixture::observed();
        let json = |observed: &Observed, at: usize| {
            serde_json::to_value(frontends(observed).swap_remove(at)).unwrap()
        };
        assert_eq!(json(&observed, 0)["scheduler"], "random");
        // None is served.
        assert_eq!(json(&observed, 3).get("scheduler"), None);
        let service = observed.services.get_mut(&1).unwrap();
        service.word = service.word.scheduled(Scheduler::Maglev, true, false);
        let of = json(&observed, 0);
        assert_eq!(
            (&of["scheduler"], &of["failover"]),
            (&"maglev".into(), &true.into())
        );
        let text = Status::new(&observed, ROOM, (0, 8), &[], Vec::new()).to_table(None);
        let shown = lines(&text, "FRONTEND");
        assert_eq!(shown[3].trim(), "by maglev");
    }

    #[test]
    fn a_terminal_of_eighty_columns_shows_each_connection_count_whole() {
        let text = status().to_table(Some(80));
        assert!(
            text.lines()
                .all(|line| line.trim_end().chars().count() <= 80)
        );
        let shown = lines(&text, "FRONTEND").join("\n");
        assert!(
            shown.contains("10.1.1.2:8080") && shown.contains("(2)"),
            "{shown}"
        );
        assert!(lines(&text, "DRAINING")[3].ends_with(" 5"), "{text}");
    }

    #[test]
    fn scripts_find_the_same_as_numbers() {
        let json = serde_json::to_value(status()).unwrap();
        assert_eq!(json["frontends"][0]["active"], 8);
        assert_eq!(json["frontends"][0]["backends"][0]["active"], 2);
        // What is below 0 is about to be set right.
        assert_eq!(json["frontends"][0]["backends"][1]["active"], 0);
        assert_eq!(
            json["draining"],
            serde_json::json!([
                { "active": 1 },
                { "address": "10.1.2.9", "port": 8080, "protocol": "TCP", "active": 3 },
                { "service": "default/web:http", "address": "10.1.2.3", "port": 8080,
                  "protocol": "TCP", "active": 5 },
            ])
        );
    }
}
