//! Folds events and answers what a Service should look like now. The cost of an event is that of its
//! Service, never that of the cluster.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    sync::Arc,
};

use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;
use proxy_common::abi::{Empty, FrontendKind, Protocol};

use super::{
    Balancing, BalancingDefaults, Endpoint, EndpointSlice, Event, Family, FrontendAddress, Kind,
    LocalState, Node, NodePortScope, ObjectName, PortKey, PortSnapshot, Scope, Service,
    ServiceBalancing, ServicePort, SourceRanges, TrafficPolicy, Weights,
    claims::{Claim, Claims},
    ingest::ANNOTATION_WEIGHTS,
    names::Names,
    policy,
};
use crate::hash::{HashMap, HashSet};

/// Something the operator should read once; not an error of ours.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Note {
    #[error(
        "Service {loser}: {address} already belongs to Service {owner}, which is older; this \
         address of {loser} is left out until {owner} gives it up"
    )]
    AddressTaken {
        address: FrontendAddress,
        owner: ObjectName,
        loser: ObjectName,
    },
    #[error(
        "EndpointSlice {slice}: Service {service} does not exist or has no cluster IP; the slice \
         is kept until it does"
    )]
    NoService {
        slice: ObjectName,
        service: ObjectName,
    },
    #[error(
        "EndpointSlice {slice}: Service {service} has no {family} address; the slice is not used"
    )]
    OtherFamily {
        slice: ObjectName,
        service: ObjectName,
        family: Family,
    },
    #[error(
        "Service {service}: {ANNOTATION_WEIGHTS} has 0 for every endpoint that could serve; as there \
         would be none left, each counts as 1; give one of them another weight"
    )]
    NoWeight { service: ObjectName },
}

/// Everything known of one Service name.
#[derive(Debug, Default)]
struct Entry {
    service: Option<Box<Service>>,
    /// It was there, and its slices are about to follow it.
    deleted: bool,
    /// Sorted by name.
    slices: Vec<EndpointSlice>,
    /// Said already.
    notes: Vec<Note>,
}

impl Entry {
    fn find(&self, slice: &ObjectName) -> Result<usize, usize> {
        self.slices.binary_search_by(|known| known.name.cmp(slice))
    }
}

/// Progress of one kind's list.
#[derive(Debug, Default)]
enum List {
    #[default]
    Never,
    /// What the list has named so far, and whether an earlier list was complete.
    Running {
        seen: HashSet<ObjectName>,
        before: bool,
    },
    Complete,
}

impl List {
    fn was_complete(&self) -> bool {
        match self {
            Self::Never => false,
            Self::Running { before, .. } => *before,
            Self::Complete => true,
        }
    }
}

/// The model of the cluster's Services, as this node needs it.
#[derive(Debug, Default)]
pub struct Model {
    node: Node,
    /// Takes the place of the Node's address of its family.
    primary_ip: Option<IpAddr>,
    balancing: BalancingDefaults,
    entries: HashMap<ObjectName, Entry>,
    slice_service: HashMap<ObjectName, ObjectName>,
    claims: Claims,
    names: Names,
    node_ports: NodePortScope,
    /// Sorted.
    local_ips: Vec<IpAddr>,
    /// Where NodePorts answer: what `node_ports` selects of `local_ips`.
    node_port_ips: Vec<IpAddr>,
    services: List,
    slices: List,
    service_cidrs: BTreeMap<Arc<str>, Vec<IpNet>>,
    service_cidr_list: List,
    service_nets_touched: bool,
    touched: BTreeSet<ObjectName>,
    /// When what touched Services since the last call happened out there, as far as it is known.
    triggers: Vec<Timestamp>,
    notes: Vec<Note>,
    awaited: Awaited,
}

/// What is still to be heard of the node itself.
#[derive(Debug, Default)]
struct Awaited {
    node: bool,
    addresses: bool,
}

impl Model {
    pub fn new(node: Node, node_ports: NodePortScope) -> Self {
        let mut model = Self {
            node,
            node_ports,
            ..Self::default()
        };
        model.select_node_port_ips();
        model
    }

    /// With the node's primary address as configured, whatever the Node object says.
    pub fn with_primary_ip(mut self, primary_ip: Option<IpAddr>) -> Self {
        self.primary_ip = primary_ip;
        let node = std::mem::take(&mut self.node);
        self.node = self.as_configured(node);
        self.select_node_port_ips();
        self
    }

    /// With another balancing of the Services that don't say it themselves.
    pub fn with_balancing(mut self, balancing: BalancingDefaults) -> Self {
        if balancing != self.balancing {
            self.balancing = balancing;
            self.touched.extend(self.entries.keys().cloned());
        }
        self
    }

    fn as_configured(&self, mut node: Node) -> Node {
        if let Some(ip) = self.primary_ip {
            node.internal_ips
                .retain(|known| Family::of(known) != Family::of(&ip));
            node.internal_ips.insert(0, ip);
        }
        node
    }

    /// Those of the Node object, and the configured one.
    pub fn internal_ips(&self) -> &[IpAddr] {
        &self.node.internal_ips
    }

    /// Not ready before it has heard of the Node object, if only that there is none, and of the addresses
    /// here. Half of what decides over NodePorts and local endpoints would take them away for a moment
    /// from what an earlier agent left.
    pub fn that_waits_for_its_node(mut self) -> Self {
        self.awaited = Awaited {
            node: true,
            addresses: true,
        };
        self
    }

    /// Whether both kinds have been listed; before that nothing may be written (BEHAVIOUR W5).
    pub fn is_ready(&self) -> bool {
        self.services.was_complete()
            && self.slices.was_complete()
            && !self.awaited.node
            && !self.awaited.addresses
    }

    /// The Services whose desired state may have changed since the last call.
    pub fn take_touched(&mut self) -> BTreeSet<ObjectName> {
        std::mem::take(&mut self.touched)
    }

    /// Whether [`Self::take_touched`] would name anybody.
    pub fn is_touched(&self) -> bool {
        !self.touched.is_empty()
    }

    /// When the changes of endpoints happened that were applied since the last call.
    pub fn take_triggers(&mut self) -> Vec<Timestamp> {
        std::mem::take(&mut self.triggers)
    }

    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Where the servers of healthCheckNodePorts listen.
    pub fn health_check_addresses(&self) -> Vec<IpAddr> {
        self.node_ports
            .listen_addresses(&self.node_port_ips, &self.node)
    }

    /// What is to be said about the Service on this node.
    pub fn local_state(&self, name: &ObjectName) -> LocalState {
        match self.entries.get(name) {
            Some(Entry {
                service: Some(service),
                slices,
                ..
            }) => LocalState::of(service, slices, &self.node),
            Some(_) | None => LocalState::default(),
        }
    }

    /// The ServiceCIDRs, if they are known and may have changed since the last call.
    pub fn take_service_nets(&mut self) -> Option<BTreeSet<IpNet>> {
        std::mem::take(&mut self.service_nets_touched)
            .then(|| self.service_cidrs.values().flatten().copied().collect())
    }

    pub fn take_notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }

    /// Services with an address to translate.
    pub fn service_count(&self) -> usize {
        self.entries
            .values()
            .filter(|entry| entry.service.is_some())
            .count()
    }

    pub fn apply(&mut self, event: Event) {
        match event {
            Event::ListStarted(kind) => {
                let list = self.list_mut(kind);
                *list = List::Running {
                    before: list.was_complete(),
                    seen: HashSet::default(),
                };
            }
            Event::Listed(kind) => self.listed(kind),
            Event::ServiceApplied(mut service) => {
                self.names.share_service(&mut service);
                self.saw(Kind::Service, &service.name);
                let name = service.name.clone();
                self.set_service(&name, Some(service));
            }
            Event::ServiceGone(name) => self.set_service(&name, None),
            Event::SliceApplied(mut slice) => {
                self.names.share_slice(&mut slice);
                self.saw(Kind::EndpointSlice, &slice.name);
                self.set_slice(slice);
            }
            Event::SliceGone(name) => self.remove_slice(&name),
            Event::ServiceCidrApplied(name, nets) => {
                self.saw(Kind::ServiceCidr, &ObjectName::new("", &name));
                self.service_cidrs.insert(name, nets);
                self.touch_service_nets();
            }
            Event::ServiceCidrGone(name) => {
                self.service_cidrs.remove(&name);
                self.touch_service_nets();
            }
            Event::LocalAddresses(ips) => {
                self.awaited.addresses = false;
                self.set_local_ips(ips);
            }
            Event::NodeChanged(node) => {
                self.awaited.node = false;
                let node = self.as_configured(node);
                if node != self.node {
                    let decides = node.name != self.node.name
                        || node.zone != self.node.zone
                        || node.internal_ips != self.node.internal_ips
                        || node.pod_cidrs != self.node.pod_cidrs;
                    self.node = node;
                    // Where endpoints are, and whom source ranges admit. Its taints decide nothing here.
                    if decides {
                        self.touched.extend(self.entries.keys().cloned());
                    }
                    self.select_node_port_ips();
                }
            }
        }
    }

    fn list_mut(&mut self, kind: Kind) -> &mut List {
        match kind {
            Kind::Service => &mut self.services,
            Kind::EndpointSlice => &mut self.slices,
            Kind::ServiceCidr => &mut self.service_cidr_list,
        }
    }

    fn saw(&mut self, kind: Kind, name: &ObjectName) {
        if let List::Running { seen, .. } = self.list_mut(kind) {
            seen.insert(name.clone());
        }
    }

    fn listed(&mut self, kind: Kind) {
        let List::Running { seen, .. } = std::mem::replace(self.list_mut(kind), List::Complete)
        else {
            return;
        };
        match kind {
            Kind::Service => {
                let gone: Vec<ObjectName> = self
                    .entries
                    .iter()
                    .filter(|(name, entry)| entry.service.is_some() && !seen.contains(*name))
                    .map(|(name, _)| name.clone())
                    .collect();
                for name in gone {
                    self.set_service(&name, None);
                }
            }
            Kind::EndpointSlice => {
                let gone: Vec<ObjectName> = self
                    .slice_service
                    .keys()
                    .filter(|name| !seen.contains(*name))
                    .cloned()
                    .collect();
                for name in gone {
                    self.remove_slice(&name);
                }
            }
            Kind::ServiceCidr => {
                self.service_cidrs
                    .retain(|name, _| seen.contains(&ObjectName::new("", name)));
                self.touch_service_nets();
            }
        }
    }

    /// Half of the first list would take away what an earlier agent knew.
    fn touch_service_nets(&mut self) {
        self.service_nets_touched |= self.service_cidr_list.was_complete();
    }

    /// Touches the Services for which it makes a difference.
    fn set_local_ips(&mut self, mut ips: Vec<IpAddr>) {
        ips.sort_unstable();
        if ips == self.local_ips {
            return;
        }
        let before = std::mem::replace(&mut self.local_ips, ips);
        let moved: HashSet<IpAddr> = {
            let differs = |ip: &IpAddr, other: &[IpAddr]| other.binary_search(ip).is_err();
            let gone = before.iter().filter(|ip| differs(ip, &self.local_ips));
            let come = self.local_ips.iter().filter(|ip| differs(ip, &before));
            gone.chain(come).copied().collect()
        };
        for (name, entry) in &self.entries {
            let endpoints = || entry.slices.iter().flat_map(|slice| &slice.endpoints);
            let concerned = entry.service.as_ref().is_some_and(|service| {
                !service.source_ranges.is_empty()
                    || endpoints().any(|endpoint| moved.contains(&endpoint.address))
            });
            if concerned {
                self.touched.insert(name.clone());
            }
        }
        self.select_node_port_ips();
    }

    fn set_service(&mut self, name: &ObjectName, service: Option<Service>) {
        let service = service.map(Box::new);
        let entry = self.entries.entry(name.clone()).or_default();
        if entry.service == service {
            if entry.service.is_none() && entry.slices.is_empty() {
                self.entries.remove(name);
            }
            return;
        }
        let old = entry.service.take();
        let claims = |service: &Option<Box<Service>>| match service {
            Some(service) => claims_of(service, &self.node_port_ips),
            None => Vec::new(),
        };
        let (old_claims, new_claims) = (claims(&old), claims(&service));
        entry.deleted = service.is_none();
        entry.service = service;
        if entry.service.is_none() && entry.slices.is_empty() {
            self.entries.remove(name);
        }
        self.touched.insert(name.clone());
        self.change_claims(&old_claims, new_claims);
    }

    fn change_claims(
        &mut self,
        old: &[(FrontendAddress, Claim)],
        new: Vec<(FrontendAddress, Claim)>,
    ) {
        for (address, claim) in old.iter().filter(|c| !new.contains(c)) {
            if let Some(heir) = self.claims.remove(address, claim) {
                self.touched.insert(heir.service);
            }
        }
        for (address, claim) in new.into_iter().filter(|c| !old.contains(c)) {
            if let Some(loser) = self.claims.add(address, claim) {
                self.touched.insert(loser.service);
            }
        }
    }

    /// Touches the Services that have a NodePort, if it makes a difference.
    fn select_node_port_ips(&mut self) {
        let ips = self.node_ports.select(&self.local_ips, &self.node);
        if ips == self.node_port_ips {
            return;
        }
        let before = std::mem::replace(&mut self.node_port_ips, ips);
        let mut changes = Vec::new();
        for (name, entry) in &self.entries {
            let Some(service) = &entry.service else {
                continue;
            };
            if service.ports.iter().any(|port| port.node_port.is_some()) {
                self.touched.insert(name.clone());
                changes.push((
                    claims_of(service, &before),
                    claims_of(service, &self.node_port_ips),
                ));
            }
        }
        for (old, new) in changes {
            self.change_claims(&old, new);
        }
    }

    fn set_slice(&mut self, slice: EndpointSlice) {
        // A slice may change its owner: the label is mutable.
        if let Some(previous) = self.slice_service.get(&slice.name)
            && *previous != slice.service
        {
            self.remove_slice(&slice.name.clone());
        }
        self.slice_service
            .insert(slice.name.clone(), slice.service.clone());
        let entry = self.entries.entry(slice.service.clone()).or_default();
        let at = entry.find(&slice.name);
        if at.is_ok_and(|at| entry.slices[at] == slice) {
            return;
        }
        self.touched.insert(slice.service.clone());
        self.triggers.extend(slice.triggered);
        match at {
            Ok(at) => entry.slices[at] = slice,
            Err(at) => {
                // Nearly all have one.
                if entry.slices.is_empty() {
                    entry.slices.reserve_exact(1);
                }
                entry.slices.insert(at, slice);
            }
        }
    }

    fn remove_slice(&mut self, name: &ObjectName) {
        let Some(service) = self.slice_service.remove(name) else {
            return;
        };
        if let Some(entry) = self.entries.get_mut(&service) {
            if let Ok(at) = entry.find(name) {
                entry.slices.remove(at);
            }
            if entry.service.is_none() && entry.slices.is_empty() {
                self.entries.remove(&service);
            }
        }
        self.touched.insert(service);
    }

    /// What every port of the Service should look like; empty if there is nothing to translate.
    pub fn desired(&mut self, name: &ObjectName) -> Vec<PortSnapshot> {
        let Some(entry) = self.entries.get_mut(name) else {
            return Vec::new();
        };
        let here = Here {
            node: &self.node,
            local_ips: &self.local_ips,
            node_port_ips: &self.node_port_ips,
            balancing: self.balancing,
        };
        let (snapshots, notes) = snapshots(name, entry, &self.claims, &here);
        self.notes.extend(
            notes
                .iter()
                .filter(|note| !entry.notes.contains(note))
                .cloned(),
        );
        entry.notes = notes;
        snapshots
    }

    /// The addresses at which nothing but the Service's ports may be dialled (BEHAVIOUR A11).
    pub fn cluster_ips(&self, name: &ObjectName) -> Vec<IpAddr> {
        self.entries
            .get(name)
            .and_then(|entry| entry.service.as_ref())
            .map(|service| service.cluster_ips.clone())
            .unwrap_or_default()
    }
}

/// Where the agent runs.
struct Here<'a> {
    node: &'a Node,
    local_ips: &'a [IpAddr],
    node_port_ips: &'a [IpAddr],
    balancing: BalancingDefaults,
}

impl Here<'_> {
    /// Whether the endpoint's packets reach it without leaving the node: it is a pod of this node, or
    /// a process that was given as an address only, as those of the Service `kubernetes` are.
    fn has(&self, address: &SocketAddr, endpoint: &Endpoint) -> bool {
        policy::is_local(endpoint, self.node) || self.local_ips.binary_search(&address.ip()).is_ok()
    }

    /// kube-proxy asks for the Node's own address (BEHAVIOUR L4); where there is no Node object, any
    /// address of the node will do.
    fn admits_node(&self, ranges: &[IpNet]) -> bool {
        let ips = if self.node.internal_ips.is_empty() {
            self.local_ips
        } else {
            &self.node.internal_ips
        };
        ips.iter()
            .filter(|ip| !ip.is_loopback())
            .any(|ip| ranges.iter().any(|range| range.contains(ip)))
    }

    /// Whether every pod of this node is admitted, as far as that can be told.
    fn admits_pods(&self, ranges: &[IpNet], family: Family) -> bool {
        let mut cidrs = self
            .node
            .pod_cidrs
            .iter()
            .filter(|cidr| Family::of(&cidr.addr()) == family)
            .peekable();
        cidrs.peek().is_some() && cidrs.all(|cidr| ranges.iter().any(|range| range.contains(cidr)))
    }

    fn source_ranges(&self, service: &Service, family: Family) -> Option<SourceRanges> {
        let ranges = service.source_ranges.get(&family)?;
        Some(SourceRanges {
            ranges: ranges.iter().copied().collect(),
            admit_node: self.admits_node(ranges),
            admit_pods: self.admits_pods(ranges, family),
        })
    }
}

fn snapshots(
    name: &ObjectName,
    entry: &Entry,
    claims: &Claims,
    here: &Here<'_>,
) -> (Vec<PortSnapshot>, Vec<Note>) {
    let mut notes = Vec::new();
    let Some(service) = &entry.service else {
        if !entry.deleted {
            notes.extend(entry.slices.iter().map(|slice| Note::NoService {
                slice: slice.name.clone(),
                service: name.clone(),
            }));
        }
        return (Vec::new(), notes);
    };
    let mut snapshots = Vec::new();
    let mut families = HashSet::default();
    for port in &service.ports {
        for family in Family::BOTH {
            let wanted = frontends_of(service, port, family, here.node_port_ips);
            if wanted.is_empty() {
                continue;
            }
            families.insert(family);
            let mut owned = Vec::with_capacity(wanted.len());
            for (address, kind) in wanted {
                match claims.owner(&address) {
                    Some(owner) if owner.service != *name => notes.push(Note::AddressTaken {
                        address,
                        owner: owner.service.clone(),
                        loser: name.clone(),
                    }),
                    Some(owner) if owner.port == port.name => owned.push((address, kind)),
                    Some(_) | None => {}
                }
            }
            snapshots.extend(port_snapshots(
                service,
                port,
                family,
                owned,
                &entry.slices,
                here,
                &mut notes,
            ));
        }
    }
    if !service.ports.is_empty() {
        notes.extend(
            entry
                .slices
                .iter()
                .filter(|slice| !families.contains(&slice.family))
                .map(|slice| Note::OtherFamily {
                    slice: slice.name.clone(),
                    service: name.clone(),
                    family: slice.family,
                }),
        );
    }
    (snapshots, notes)
}

/// Every address of the port in one family; an address of several kinds has the first. One that is a
/// load balancer's too has its source ranges.
fn frontends_of(
    service: &Service,
    port: &ServicePort,
    family: Family,
    node_port_ips: &[IpAddr],
) -> Vec<(FrontendAddress, FrontendKind)> {
    if !service.has_family(family) {
        return Vec::new();
    }
    let at_port =
        |ips: &[IpAddr], kind| -> Vec<_> { ips.iter().map(|ip| (*ip, port.port, kind)).collect() };
    let candidates = at_port(&service.cluster_ips, FrontendKind::ClusterIp)
        .into_iter()
        .chain(at_port(
            &service.load_balancer_ips,
            FrontendKind::LoadBalancer,
        ))
        .chain(at_port(&service.external_ips, FrontendKind::ExternalIp))
        .chain(port.node_port.into_iter().flat_map(|node_port| {
            node_port_ips
                .iter()
                .map(move |ip| (*ip, node_port, FrontendKind::NodePort))
        }));
    let mut frontends: Vec<(FrontendAddress, FrontendKind)> = Vec::new();
    for (ip, number, kind) in candidates.filter(|(ip, ..)| Family::of(ip) == family) {
        let address = FrontendAddress {
            ip,
            port: number.get(),
            protocol: port.protocol,
        };
        if !frontends.iter().any(|(known, _)| *known == address) {
            frontends.push((address, kind));
        }
    }
    frontends
}

fn claims_of(service: &Service, node_port_ips: &[IpAddr]) -> Vec<(FrontendAddress, Claim)> {
    let mut claims = Vec::new();
    for port in &service.ports {
        for family in Family::BOTH {
            for (address, kind) in frontends_of(service, port, family, node_port_ips) {
                claims.push((
                    address,
                    Claim {
                        created_secs: service.created_secs,
                        service: service.name.clone(),
                        port: port.name.clone(),
                        kind,
                    },
                ));
            }
        }
    }
    claims
}

/// A list of endpoints. Both in its order.
struct Weighed {
    chosen: Vec<(usize, NonZeroU16)>,
    /// Those of weight 0.
    drained: Vec<usize>,
}

/// `None`: all of them have weight 0.
fn weighed(weights: &Weights, list: &[usize], endpoints: &[&Endpoint]) -> Option<Weighed> {
    let mut weighed = Weighed {
        chosen: Vec::with_capacity(list.len()),
        drained: Vec::new(),
    };
    for &i in list {
        match NonZeroU16::new(weights.of(endpoints[i])) {
            Some(weight) => weighed.chosen.push((i, weight)),
            None => weighed.drained.push(i),
        }
    }
    (!weighed.chosen.is_empty() || list.is_empty()).then_some(weighed)
}

/// One snapshot for each list of endpoints that somebody asks for: those of the whole cluster, and
/// those of this node.
fn port_snapshots(
    service: &Service,
    port: &ServicePort,
    family: Family,
    frontends: Vec<(FrontendAddress, FrontendKind)>,
    slices: &[EndpointSlice],
    here: &Here<'_>,
    notes: &mut Vec<Note>,
) -> Vec<PortSnapshot> {
    let merged = merge(slices, &port.name, port.protocol, family);
    let endpoints: Vec<&Endpoint> = merged.values().copied().collect();
    let addresses: Vec<SocketAddr> = merged.keys().copied().collect();
    let policies = policy::Policies {
        internal: service.internal_policy,
        external: service.external_policy,
        externally_accessible: service.is_externally_accessible(port),
    };
    let choice = policy::categorize(&endpoints, &policies, here.node);
    let ServiceBalancing {
        scheduler,
        fails_over,
        weights,
    } = &service.balancing;
    let mut snapshot = |scope: Scope, frontends, list: &[usize]| {
        let list = weighed(weights, list, &endpoints).unwrap_or_else(|| {
            let note = Note::NoWeight {
                service: service.name.clone(),
            };
            if !notes.contains(&note) {
                notes.push(note);
            }
            Weighed {
                chosen: list.iter().map(|&i| (i, NonZeroU16::MIN)).collect(),
                drained: Vec::new(),
            }
        });
        let chosen: Vec<SocketAddr> = list.chosen.iter().map(|&(i, _)| addresses[i]).collect();
        let keeps = |i: usize| endpoints[i].serving || list.drained.binary_search(&i).is_ok();
        let kept: Vec<SocketAddr> = (0..endpoints.len())
            .filter(|&i| chosen.binary_search(&addresses[i]).is_err() && keeps(i))
            .map(|i| addresses[i])
            .collect();
        let other_weights = list
            .chosen
            .iter()
            .filter(|(_, weight)| *weight != NonZeroU16::MIN)
            .map(|&(i, weight)| (addresses[i], weight));
        let local = chosen
            .iter()
            .chain(&kept)
            .filter(|address| here.has(address, merged[*address]))
            .copied()
            .collect();
        PortSnapshot {
            key: PortKey {
                service: service.name.clone(),
                port: port.name.clone(),
                protocol: port.protocol,
                family,
                scope,
            },
            frontends,
            empty: if choice.has_any {
                Empty::Drop
            } else {
                Empty::Refuse
            },
            chosen,
            kept,
            local,
            outside_is_local: false,
            source_ranges: None,
            affinity_timeout_secs: service.affinity_timeout_secs,
            balancing: Balancing {
                scheduler: scheduler.unwrap_or(here.balancing.scheduler),
                // Only TCP tells who doesn't answer.
                fails_over: port.protocol == Protocol::Tcp
                    && fails_over.unwrap_or(here.balancing.fails_over),
                weights: other_weights.collect(),
            },
        }
    };
    let (internal, external): (Vec<_>, Vec<_>) = frontends
        .into_iter()
        .partition(|(_, kind)| *kind == FrontendKind::ClusterIp);
    let outside_is_local = service.external_policy == TrafficPolicy::Local && !external.is_empty();
    let mut snapshots = Vec::with_capacity(2);
    // Pods and processes of this node get all endpoints at external addresses, whatever the policy
    // (BEHAVIOUR E9, E10).
    let (to_local, to_cluster) = match service.internal_policy {
        TrafficPolicy::Cluster => (Vec::new(), [internal, external].concat()),
        TrafficPolicy::Local => (internal, external),
    };
    if service.internal_policy == TrafficPolicy::Local || outside_is_local {
        snapshots.push(snapshot(Scope::Local, to_local, &choice.local));
    }
    if service.internal_policy == TrafficPolicy::Cluster || !to_cluster.is_empty() {
        let balanced = to_cluster
            .iter()
            .any(|(_, kind)| *kind == FrontendKind::LoadBalancer);
        snapshots.push(PortSnapshot {
            outside_is_local,
            source_ranges: here.source_ranges(service, family).filter(|_| balanced),
            ..snapshot(Scope::Cluster, to_cluster, &choice.cluster)
        });
    }
    snapshots
}

/// Of several records of one address the highest counts. The pod that terminates is the old one when
/// its address is in use again (BEHAVIOUR A7); so is, among the others, the one that is not ready.
fn liveliness(endpoint: &Endpoint) -> (bool, bool, bool) {
    (!endpoint.terminating, endpoint.ready, endpoint.serving)
}

/// The endpoints of all slices for one port, each address once, whatever the order of the records.
pub(super) fn merge<'a>(
    slices: &'a [EndpointSlice],
    port_name: &Arc<str>,
    protocol: Protocol,
    family: Family,
) -> BTreeMap<SocketAddr, &'a Endpoint> {
    let mut merged: BTreeMap<SocketAddr, &Endpoint> = BTreeMap::new();
    for slice in slices.iter().filter(|slice| slice.family == family) {
        for port in slice
            .ports
            .iter()
            .filter(|port| port.name == *port_name && port.protocol == protocol)
        {
            for endpoint in &slice.endpoints {
                let address = SocketAddr::new(endpoint.address, port.port.get());
                let known = merged.entry(address).or_insert(endpoint);
                if liveliness(endpoint) > liveliness(known) {
                    *known = endpoint;
                }
            }
        }
    }
    merged
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "oracle.rs"]
pub(crate) mod oracle;

#[cfg(test)]
#[path = "any_order_tests.rs"]
mod any_order_tests;
