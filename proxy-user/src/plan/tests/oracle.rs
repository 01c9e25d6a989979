//! What each frontend should reach, straight from the desired state: no ids, no maps, no order.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::{NonZeroU16, NonZeroU32},
};

use ipnet::IpNet;
use proptest::prelude::*;
use proxy_common::abi::{Empty, FrontendKind, Protocol, Scheduler, ServiceWord};

use super::paper;

use crate::{
    model::{
        Balancing, Family, FrontendAddress, ObjectName, PortKey, PortSnapshot, Scope, SourceRanges,
    },
    plan::Change,
};

pub(super) const VIPS: u8 = 5;
const SERVICES: u8 = 4;
const BACKENDS: u8 = 7;

pub(super) fn vip(index: u8) -> FrontendAddress {
    FrontendAddress {
        ip: IpAddr::V4(Ipv4Addr::new(10, 96, 0, index)),
        port: 80,
        protocol: Protocol::Tcp,
    }
}

pub(super) fn service_name(index: u8) -> ObjectName {
    ObjectName::new("ns", &format!("s{index}"))
}

/// What a client of a frontend meets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Pass,
    Refuse,
    Drop,
    To(BTreeSet<SocketAddr>),
}

/// Who dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Client {
    Node,
    Pod,
    /// From one of the places of [`range`].
    Outside(u8),
}

const RANGES: u8 = 3;

pub(super) const CLIENTS: [Client; 5] = [
    Client::Node,
    Client::Pod,
    Client::Outside(0),
    Client::Outside(1),
    Client::Outside(2),
];

fn range(index: u8) -> IpNet {
    IpNet::new(Ipv4Addr::new(203, 0, 113, index << 6).into(), 26).unwrap()
}

impl Client {
    /// Where it comes from, if that can be told.
    pub(super) fn source(self) -> Option<IpAddr> {
        match self {
            Self::Node | Self::Pod => None,
            Self::Outside(index) => Some(range(index).broadcast()),
        }
    }
}

/// One state of the whole cluster, as the model would ask for it.
#[derive(Clone, Default)]
pub(super) struct Desired {
    pub(super) ports: BTreeMap<PortKey, PortSnapshot>,
    pub(super) addresses: BTreeMap<ObjectName, Vec<IpAddr>>,
    pub(super) nets: BTreeSet<IpNet>,
}

/// One line a port: failing histories are read by people.
impl fmt::Debug for Desired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for port in self.ports.values() {
            let frontends: Vec<_> = port
                .frontends
                .iter()
                .map(|(vip, kind)| (vip.ip, kind))
                .collect();
            let (chosen, kept, local) = (&port.chosen, &port.kept, &port.local);
            write!(
                f,
                "{} {frontends:?} {chosen:?} {kept:?} {local:?} {:?} outside {} {:?} {:?}; ",
                port.key, port.empty, port.outside_is_local, port.source_ranges, port.balancing
            )?;
        }
        write!(f, "{:?} {:?}", self.addresses, self.nets)
    }
}

impl Desired {
    pub(super) fn changes(&self, services: impl IntoIterator<Item = ObjectName>) -> Vec<Change> {
        services
            .into_iter()
            .map(|service| Change {
                ports: self.ports_of(&service),
                addresses: self.addresses_of(&service),
                service,
            })
            .collect()
    }

    pub(super) fn ports_of(&self, service: &ObjectName) -> Vec<PortSnapshot> {
        self.ports
            .values()
            .filter(|port| port.key.service == *service)
            .cloned()
            .collect()
    }

    pub(super) fn addresses_of(&self, service: &ObjectName) -> Vec<IpAddr> {
        self.addresses.get(service).cloned().unwrap_or_default()
    }

    /// Whether the address is any Service's ClusterIP.
    pub(super) fn knows(&self, ip: &IpAddr) -> bool {
        self.addresses.values().flatten().any(|known| known == ip)
    }

    fn owned(&self, address: &FrontendAddress) -> Option<(&PortSnapshot, FrontendKind)> {
        self.ports.values().find_map(|port| {
            let owned = port.frontends.iter().find(|(owned, _)| owned == address);
            owned.map(|(_, kind)| (port, *kind))
        })
    }

    pub(super) fn owner(&self, address: &FrontendAddress) -> Option<&PortKey> {
        self.owned(address).map(|(port, _)| &port.key)
    }

    /// Whether source ranges keep the client from the frontend.
    pub(super) fn bars(&self, address: &FrontendAddress, client: Client) -> bool {
        let limits = match self.owned(address) {
            Some((port, FrontendKind::LoadBalancer)) => port.source_ranges.as_ref(),
            _ => None,
        };
        limits.is_some_and(|limits| match client {
            Client::Node => !limits.admit_node,
            Client::Pod => !limits.admit_pods,
            Client::Outside(index) => !limits.ranges.contains(&range(index)),
        })
    }

    /// Whether the port's ranges, if it has any, have the client in them.
    pub(super) fn admits(&self, key: &PortKey, client: Client) -> bool {
        let limits = self
            .ports
            .get(key)
            .and_then(|port| port.source_ranges.as_ref());
        limits.is_some_and(|limits| match client {
            Client::Outside(index) => limits.ranges.contains(&range(index)),
            Client::Node | Client::Pod => false,
        })
    }

    pub(super) fn of_port(&self, key: &PortKey) -> Outcome {
        match self.ports.get(key) {
            None => Outcome::Pass,
            Some(port) if !port.chosen.is_empty() => {
                Outcome::To(port.chosen.iter().copied().collect())
            }
            Some(port) if port.empty == Empty::Drop => Outcome::Drop,
            Some(_) => Outcome::Refuse,
        }
    }

    /// What a client meets that is not barred.
    pub(super) fn of(&self, address: &FrontendAddress, client: Client) -> Outcome {
        let Some((port, kind)) = self.owned(address) else {
            return Outcome::Pass;
        };
        let is_outside = matches!(client, Client::Outside(_));
        if is_outside && port.outside_is_local && kind != FrontendKind::ClusterIp {
            self.of_port(&local_twin(&port.key))
        } else {
            self.of_port(&port.key)
        }
    }
}

pub(super) fn all_services() -> BTreeSet<ObjectName> {
    (0..SERVICES).map(service_name).collect()
}

pub(super) fn local_twin(key: &PortKey) -> PortKey {
    PortKey {
        scope: Scope::Local,
        ..key.clone()
    }
}

/// A port of a Service: what it chooses and keeps, and which of those are local, as sets of backend
/// numbers; whether it drops when it is empty; whether outside is local; source ranges (and the node,
/// and the pods) as a set; seconds of affinity; the rule.
type PortSpec = ([u8; 3], bool, bool, Option<u8>, u32, RuleSpec);

/// A scheduler, whether backends that fail are passed over, and the weight of each.
#[derive(Clone, Copy, Debug)]
pub(super) struct RuleSpec {
    pub(super) scheduler: Scheduler,
    pub(super) fails_over: bool,
    pub(super) weights: [u16; BACKENDS as usize],
}

/// As it was before there were others.
pub(super) const RANDOM: RuleSpec = RuleSpec {
    scheduler: Scheduler::Random,
    fails_over: false,
    weights: [1; BACKENDS as usize],
};

fn rule() -> impl Strategy<Value = RuleSpec> {
    let weight = prop_oneof![2 => Just(1), 1 => Just(2), 1 => Just(3), 1 => Just(6)];
    let weights = prop_oneof![
        4 => Just([1; BACKENDS as usize]),
        1 => Just([4; BACKENDS as usize]),
        2 => prop::array::uniform7(weight),
    ];
    // Tables are long, and every step is looked at.
    let scheduler = prop_oneof![
        12 => prop::sample::select(&Scheduler::ALL[..7]),
        1 => Just(Scheduler::Maglev),
    ];
    (scheduler, any::<bool>(), weights).prop_map(|(scheduler, fails_over, weights)| RuleSpec {
        scheduler,
        fails_over,
        weights,
    })
}

fn balancing(rule: &RuleSpec, chosen: &[SocketAddr]) -> Balancing {
    let weights = addresses(u8::MAX >> (8 - BACKENDS))
        .into_iter()
        .zip(rule.weights);
    Balancing {
        scheduler: rule.scheduler,
        fails_over: rule.fails_over,
        weights: weights
            .filter(|(address, weight)| *weight != 1 && chosen.contains(address))
            .map(|(address, weight)| (address, NonZeroU16::new(weight).unwrap()))
            .collect(),
    }
}

/// The weights of the chosen, in their order.
fn weights_of(port: &PortSnapshot) -> Vec<u32> {
    let weight = |at| {
        port.balancing
            .weights
            .get(at)
            .map_or(1, |weight| weight.get())
    };
    port.chosen.iter().map(|at| u32::from(weight(at))).collect()
}

/// What the list of a port with backends must be, where there is room for all that is asked.
pub(super) fn judge(port: &PortSnapshot, word: ServiceWord, slots: &[SocketAddr]) {
    let (key, rule) = (&port.key, &port.balancing);
    let weights = weights_of(port);
    assert_eq!(word.scheduler(), rule.scheduler, "{key}");
    assert_eq!(word.fails_over(), rule.fails_over, "{key}");
    let differ = weights.iter().any(|weight| *weight != weights[0]);
    assert_eq!(word.is_weighted(), differ, "{key}");
    // What divides all of them: none is more than 6.
    let divisor = (1..7).rev().find(|d| weights.iter().all(|w| w % d == 0));
    let turns: Vec<u32> = weights.iter().map(|w| w / divisor.unwrap()).collect();
    let round: u32 = turns.iter().sum();
    if rule.scheduler == Scheduler::Maglev {
        assert!(round <= 101);
        let table = paper::table(&port.chosen, &turns, 2039).into_iter();
        let table: Vec<SocketAddr> = table.map(|i| port.chosen[i.unwrap()]).collect();
        assert!(slots == table, "{key}: another table");
        return;
    }
    assert_eq!(slots.len(), round as usize, "{key}");
    for (at, turns) in port.chosen.iter().zip(&turns) {
        let count = slots.iter().filter(|slot| *slot == at).count();
        assert_eq!(count, *turns as usize, "{at} of {key}");
    }
    if !differ {
        assert_eq!(slots, port.chosen, "{key}: one each, in order");
    }
}

/// Where there is less room: whoever is chosen has a slot, and nobody else.
pub(super) fn judge_with_little_room(port: &PortSnapshot, slots: &[SocketAddr]) {
    let slots: BTreeSet<&SocketAddr> = slots.iter().collect();
    assert_eq!(slots, port.chosen.iter().collect(), "{}", port.key);
}

fn addresses(set: u8) -> Vec<SocketAddr> {
    members(set, BACKENDS)
        .map(|i| SocketAddr::new(Ipv4Addr::new(10, 0, 0, i + 1).into(), 8080))
        .collect()
}

/// Every Service has up to three ports (one is the Local twin of another), and every frontend an
/// owner that may change from state to state.
pub(super) fn desired() -> impl Strategy<Value = Desired> {
    let set = || 0u8..1 << BACKENDS;
    let port = (
        [set(), set(), set()],
        any::<bool>(),
        any::<bool>(),
        prop::option::of(0u8..1 << (RANGES + 2)),
        0u32..3,
        rule(),
    );
    let ports = prop::collection::vec(prop::option::weighted(0.6, port), usize::from(SERVICES) * 3);
    let owners = prop::collection::vec(0usize..14, usize::from(VIPS));
    let kinds = prop::collection::vec(0u8..3, usize::from(VIPS));
    let addresses = prop::collection::vec(0u8..1 << VIPS, usize::from(SERVICES));
    (ports, owners, kinds, addresses, 0u8..4).prop_map(|(ports, owners, kinds, addresses, nets)| {
        let mut desired = build(&ports, &owners, &kinds);
        for (service, set) in (0..).zip(addresses) {
            let ips: Vec<IpAddr> = members(set, VIPS).map(|i| vip(i).ip).collect();
            if !ips.is_empty() {
                desired.addresses.insert(service_name(service), ips);
            }
        }
        desired.nets = members(nets, 2).map(range).collect();
        desired
    })
}

fn members(set: u8, count: u8) -> impl Iterator<Item = u8> {
    (0..count).filter(move |i| set & (1 << i) != 0)
}

/// The first port of one Service, with the backends of a set.
pub(super) fn one(service: u8, chosen: u8, vips: &[u8]) -> Desired {
    one_by(RANDOM, service, chosen, vips)
}

pub(super) fn one_by(rule: RuleSpec, service: u8, chosen: u8, vips: &[u8]) -> Desired {
    let index = usize::from(service) * 3;
    let mut ports = vec![None; usize::from(SERVICES) * 3];
    ports[index] = Some(([chosen, 0, 0], false, false, None, 0, rule));
    let owner = |vip| {
        if vips.contains(&vip) {
            index
        } else {
            usize::MAX
        }
    };
    let owners: Vec<usize> = (0..VIPS).map(owner).collect();
    build(&ports, &owners, &[0; VIPS as usize])
}

/// A port of the first Service with external addresses, for clients from outside those of this node.
pub(super) fn outside(chosen: u8, here: u8, vips: &[u8]) -> Desired {
    let mut ports = vec![None; usize::from(SERVICES) * 3];
    ports[1] = Some(([chosen, 0, 0], false, true, None, 0, RANDOM));
    ports[2] = Some(([here, 0, 0], true, false, None, 0, RANDOM));
    let owner = |vip| if vips.contains(&vip) { 1 } else { usize::MAX };
    let owners: Vec<usize> = (0..VIPS).map(owner).collect();
    build(&ports, &owners, &[1; VIPS as usize])
}

fn build(ports: &[Option<PortSpec>], owners: &[usize], kinds: &[u8]) -> Desired {
    let mut desired = Desired::default();
    let mut keys = Vec::new();
    for (service, specs) in (0..).zip(ports.chunks(3)) {
        for ((port, scope), spec) in [
            ("", Scope::Cluster),
            ("b", Scope::Cluster),
            ("b", Scope::Local),
        ]
        .into_iter()
        .zip(specs)
        {
            let key = PortKey {
                service: service_name(service),
                port: port.into(),
                protocol: Protocol::Tcp,
                family: Family::V4,
                scope,
            };
            keys.push(key.clone());
            if let Some(([chosen, kept, local], drop, outside, ranges, affinity, rule)) = spec {
                let is_cluster = scope == Scope::Cluster;
                let has_twin = port == "b" && specs[2].is_some();
                let wanted = addresses(chosen | kept);
                desired.ports.insert(
                    key.clone(),
                    PortSnapshot {
                        key,
                        frontends: Vec::new(),
                        chosen: addresses(*chosen),
                        kept: addresses(kept & !chosen),
                        local: wanted
                            .into_iter()
                            .filter(|address| addresses(*local).contains(address))
                            .collect(),
                        empty: if *drop { Empty::Drop } else { Empty::Refuse },
                        affinity_timeout_secs: NonZeroU32::new(*affinity),
                        balancing: balancing(rule, &addresses(*chosen)),
                        outside_is_local: is_cluster && has_twin && *outside,
                        source_ranges: ranges.filter(|_| is_cluster).map(|set| SourceRanges {
                            ranges: members(set, RANGES).map(range).collect(),
                            admit_node: set & (1 << RANGES) != 0,
                            admit_pods: set & (2 << RANGES) != 0,
                        }),
                    },
                );
            }
        }
    }
    for (index, (owner, kind)) in (0..).zip(owners.iter().zip(kinds)) {
        let kind = match kind {
            0 => FrontendKind::ClusterIp,
            1 => FrontendKind::ExternalIp,
            _ => FrontendKind::LoadBalancer,
        };
        if let Some(port) = keys.get(*owner).and_then(|key| desired.ports.get_mut(key)) {
            port.frontends.push((vip(index), kind));
        }
    }
    desired
}
