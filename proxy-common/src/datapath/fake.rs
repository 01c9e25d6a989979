//! The tables in memory: the same decisions, on the host.

use core::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};

use super::{
    answer::Budget,
    conntrack::{self, Amended, Change, Conntrack, Table},
    flow::Flow,
    lookup::Tables,
    path::{Node, Route, Way, Work},
    schedule::{self, Draw},
    socket::{Added, Decision, Socket},
};
use crate::abi::{
    Addr, AffinityEntry, AffinityKey, AttemptFailure, Backend, BackendStats, Counter, Device,
    FlowEntry, FlowTimeouts, FragmentKey, FragmentPorts, Frontend, FrontendKey, PortRange, Service,
    ServiceStats, SockAddr, SocketFlow, Tuple, UdpFlow, UdpFlowKey,
};

/// All maps of one node.
#[derive(Debug, Default)]
pub struct Maps {
    pub frontends: HashMap<FrontendKey, Frontend>,
    pub services: HashMap<u32, Service>,
    pub slots: HashMap<u32, u32>,
    pub backends: HashMap<u32, Backend>,
    pub affinity: RefCell<HashMap<AffinityKey, AffinityEntry>>,
    /// Nothing is written there.
    pub affinity_refuses: bool,
    /// By service; prefix lengths in bits of [`Addr`], those of IPv4 count from 96.
    pub source_ranges: HashMap<u32, Vec<(Addr, u32)>>,
    /// Prefix lengths as above.
    pub service_nets: Vec<(Addr, u32)>,
    pub flows: RefCell<HashMap<u64, SocketFlow>>,
    pub udp_flows: RefCell<HashMap<UdpFlowKey, UdpFlow>>,
    pub udp_reverse: RefCell<HashMap<UdpFlowKey, SockAddr>>,
    pub counters: RefCell<HashMap<u32, u64>>,
    pub service_stats: RefCell<HashMap<u32, ServiceStats>>,
    pub backend_stats: RefCell<HashMap<u32, BackendStats>>,
    /// What the agent was told of.
    pub failures: RefCell<Vec<AttemptFailure>>,
    /// What sockets were told of.
    pub told: RefCell<Vec<Decision>>,
    pub half_open: RefCell<HashMap<Tuple, FlowEntry>>,
    pub established: RefCell<HashMap<Tuple, FlowEntry>>,
    /// How many entries `established` takes; `None`: any number.
    pub established_capacity: Option<usize>,
    pub locks: RefCell<HashSet<Tuple>>,
    pub fragments: RefCell<HashMap<FragmentKey, FragmentPorts>>,
    pub devices: HashMap<u32, Device>,
    /// By destination; there are no prefixes here.
    pub routes: HashMap<Addr, Route>,
    /// Sources that no route is for.
    pub barred: HashSet<Addr>,
    pub forwarding_off: bool,
    /// What sockets of the node would get.
    pub sockets: HashSet<Tuple>,
    /// The frame is for another host.
    pub is_for_another: bool,
    /// The packet was redirected here.
    pub sent_on: Cell<bool>,
    /// `None`: [`PortRange::DEFAULT`].
    pub snat_ports: Option<PortRange>,
    pub inherited_until_ns: u64,
    /// `None`: [`FlowTimeouts::DEFAULT`].
    pub timeouts: Option<FlowTimeouts>,
    /// The device that packets come from.
    pub ifindex: u32,
    /// State of the generator; any sequence will do.
    pub seed: Cell<u64>,
    pub now_ns: Cell<u64>,
    pub next_answer_ns: Cell<u64>,
    /// Sockets are those of the node, not of a pod.
    pub of_node: Cell<bool>,
    /// Cookie of the network namespace whose sockets they are.
    pub netns: Cell<u64>,
    /// As a kernel without bpf_set_retval.
    pub cannot_refuse: bool,
}

impl Maps {
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters
            .borrow()
            .get(&counter.index())
            .copied()
            .unwrap_or(0)
    }

    /// A hook running for the socket with this cookie.
    pub fn socket(&self, cookie: u64) -> FakeSocket<'_> {
        FakeSocket { maps: self, cookie }
    }
}

/// An endpoint of `service` that gets new connections.
pub fn backend(at: SockAddr, service: u32) -> Backend {
    Backend {
        addr: at.addr,
        port_be: at.port_be,
        protocol: 0,
        flags: Backend::CHOSEN,
        weight: 1,
        zero: 0,
        twin: 0,
        service,
    }
}

/// One socket's view of [`Maps`].
#[derive(Clone, Copy, Debug)]
pub struct FakeSocket<'a> {
    maps: &'a Maps,
    cookie: u64,
}

impl Tables for Maps {
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.frontends.get(key).copied()
    }

    fn service(&self, id: u32) -> Option<Service> {
        self.services.get(&id).copied()
    }

    fn slot(&self, index: u32) -> Option<u32> {
        self.slots.get(&index).copied()
    }

    fn backend(&self, id: u32) -> Option<Backend> {
        self.backends.get(&id).copied()
    }

    fn affinity(&self, key: &AffinityKey) -> Option<AffinityEntry> {
        self.affinity.borrow().get(key).copied()
    }

    fn set_affinity(&self, key: &AffinityKey, entry: &AffinityEntry) -> bool {
        if self.affinity_refuses {
            return false;
        }
        self.affinity.borrow_mut().insert(*key, *entry);
        true
    }

    fn random(&self) -> u32 {
        // splitmix64.
        let state = self.seed.get().wrapping_add(schedule::STEP);
        self.seed.set(state);
        u32::try_from(schedule::mix(state) >> 32).expect("32 bits")
    }

    fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }

    fn service_stats(&self, id: u32) -> Option<ServiceStats> {
        Some(
            self.service_stats
                .borrow()
                .get(&id)
                .copied()
                .unwrap_or_default(),
        )
    }

    fn backend_stats(&self, id: u32) -> Option<BackendStats> {
        Some(
            self.backend_stats
                .borrow()
                .get(&id)
                .copied()
                .unwrap_or_default(),
        )
    }

    fn add_active(&self, backend_id: u32, change: i64) {
        let mut backends = self.backend_stats.borrow_mut();
        backends.entry(backend_id).or_default().active += change;
    }

    fn note_answer(&self, backend_id: u32) {
        let mut backends = self.backend_stats.borrow_mut();
        backends.entry(backend_id).or_default().failures = 0;
    }

    fn note_failure(&self, failure: &AttemptFailure) {
        let mut backends = self.backend_stats.borrow_mut();
        backends.entry(failure.backend_id).or_default().failures += 1;
        self.failures.borrow_mut().push(*failure);
    }

    fn pick(&self, draw: &Draw) -> u32 {
        schedule::pick(self, draw)
    }

    fn burden(&self, draw: &Draw, id: u32) -> u64 {
        schedule::burden(self, draw, id)
    }

    fn count(&self, counter: Counter) {
        *self
            .counters
            .borrow_mut()
            .entry(counter.index())
            .or_default() += 1;
    }

    fn count_connection(&self, service: u32, backend_id: u32) {
        let mut services = self.service_stats.borrow_mut();
        services.entry(service).or_default().connections += 1;
        let mut backends = self.backend_stats.borrow_mut();
        backends.entry(backend_id).or_default().connections += 1;
    }

    fn count_failure(&self, service: u32) {
        let mut services = self.service_stats.borrow_mut();
        services.entry(service).or_default().failures += 1;
    }
}

impl Tables for FakeSocket<'_> {
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.maps.frontend(key)
    }

    fn service(&self, id: u32) -> Option<Service> {
        self.maps.service(id)
    }

    fn slot(&self, index: u32) -> Option<u32> {
        self.maps.slot(index)
    }

    fn backend(&self, id: u32) -> Option<Backend> {
        self.maps.backend(id)
    }

    fn affinity(&self, key: &AffinityKey) -> Option<AffinityEntry> {
        Tables::affinity(self.maps, key)
    }

    fn set_affinity(&self, key: &AffinityKey, entry: &AffinityEntry) -> bool {
        self.maps.set_affinity(key, entry)
    }

    fn random(&self) -> u32 {
        self.maps.random()
    }

    fn now_ns(&self) -> u64 {
        Tables::now_ns(self.maps)
    }

    fn service_stats(&self, id: u32) -> Option<ServiceStats> {
        Tables::service_stats(self.maps, id)
    }

    fn backend_stats(&self, id: u32) -> Option<BackendStats> {
        Tables::backend_stats(self.maps, id)
    }

    fn add_active(&self, backend_id: u32, change: i64) {
        self.maps.add_active(backend_id, change);
    }

    fn note_answer(&self, backend_id: u32) {
        self.maps.note_answer(backend_id);
    }

    fn note_failure(&self, failure: &AttemptFailure) {
        self.maps.note_failure(failure);
    }

    fn pick(&self, draw: &Draw) -> u32 {
        self.maps.pick(draw)
    }

    fn burden(&self, draw: &Draw, id: u32) -> u64 {
        self.maps.burden(draw, id)
    }

    fn count(&self, counter: Counter) {
        self.maps.count(counter);
    }

    fn count_connection(&self, service: u32, backend_id: u32) {
        self.maps.count_connection(service, backend_id);
    }

    fn count_failure(&self, service: u32) {
        self.maps.count_failure(service);
    }
}

impl Maps {
    fn table(&self, table: Table) -> &RefCell<HashMap<Tuple, FlowEntry>> {
        match table {
            Table::HalfOpen => &self.half_open,
            Table::Established => &self.established,
        }
    }
}

impl Conntrack for Maps {
    fn find(&self, table: Table, key: &Tuple, into: &mut FlowEntry) -> bool {
        match self.table(table).borrow().get(key) {
            Some(entry) => {
                *into = *entry;
                true
            }
            None => false,
        }
    }

    fn claim(&self, table: Table, key: &Tuple, entry: &FlowEntry) -> bool {
        if self.table(table).borrow().contains_key(key) {
            return false;
        }
        self.put(table, key, entry)
    }

    fn put(&self, table: Table, key: &Tuple, entry: &FlowEntry) -> bool {
        let mut entries = self.table(table).borrow_mut();
        if let (Table::Established, Some(capacity)) = (table, self.established_capacity)
            && entries.len() >= capacity
            && !entries.contains_key(key)
        {
            return false;
        }
        entries.insert(*key, *entry);
        true
    }

    fn amend(&self, table: Table, key: &Tuple, change: &Change) -> Amended {
        match self.table(table).borrow_mut().get_mut(key) {
            Some(entry) => change.make(table, entry),
            None => Amended::MISSING,
        }
    }

    fn forget(&self, table: Table, key: &Tuple) -> bool {
        self.table(table).borrow_mut().remove(key).is_some()
    }

    fn lock(&self, key: &Tuple) -> bool {
        self.locks.borrow_mut().insert(*key)
    }

    fn unlock(&self, key: &Tuple) {
        self.locks.borrow_mut().remove(key);
    }

    fn timeout_ns(&self, protocol: u8, state: u8) -> u64 {
        let timeouts = self.timeouts.unwrap_or(FlowTimeouts::DEFAULT);
        conntrack::timeout_ns(protocol, state, &timeouts)
    }

    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        self.fragments.borrow().get(key).copied()
    }

    fn put_fragment(&self, key: &FragmentKey, ports: &FragmentPorts) {
        self.fragments.borrow_mut().insert(*key, *ports);
    }
}

impl Node for Maps {
    fn snat_ports(&self) -> PortRange {
        self.snat_ports.unwrap_or(PortRange::DEFAULT)
    }

    fn inherited_until_ns(&self) -> u64 {
        self.inherited_until_ns
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn device(&self, ifindex: u32) -> Option<Device> {
        self.devices.get(&ifindex).copied()
    }

    fn route(&self, flow: &Flow, dst: &SockAddr, into: &mut Route) -> Way {
        if self.forwarding_off {
            return Way::ForwardingOff;
        }
        // As the kernel's IPv6 (rt6_need_strict): from or to a link's own addresses, a group or `::1`.
        let is_strict = |addr: &Addr| {
            let first = u32::from_be(addr.words[0]);
            !addr.is_v4()
                && (first >> 24 == 0xff
                    || first >> 22 == 0xfe80 >> 6
                    || addr.words == [0, 0, 0, 1_u32.to_be()])
        };
        if is_strict(&flow.outer_src) || is_strict(&dst.addr) {
            return Way::Nowhere;
        }
        match self.routes.get(&dst.addr) {
            Some(route) if !self.barred.contains(&flow.outer_src) => {
                *into = *route;
                Way::Forward
            }
            Some(_) | None => Way::Nowhere,
        }
    }

    fn is_for_device(&self) -> bool {
        !self.is_for_another
    }

    fn is_sent_on(&self) -> bool {
        self.sent_on.take()
    }

    fn has_socket(&self, tuple: &Tuple) -> bool {
        self.sockets.contains(tuple)
    }

    fn is_allowed(&self, service: u32, source: &Addr) -> bool {
        self.source_ranges
            .get(&service)
            .is_some_and(|ranges| is_in(ranges, source))
    }

    fn is_in_service_nets(&self, addr: &Addr) -> bool {
        is_in(&self.service_nets, addr)
    }
}

/// Whether one of the prefixes holds the address.
fn is_in(prefixes: &[(Addr, u32)], addr: &Addr) -> bool {
    let bits = |addr: &Addr| {
        let words = addr.words.map(|word| u128::from(u32::from_be(word)));
        words[0] << 96 | words[1] << 64 | words[2] << 32 | words[3]
    };
    prefixes
        .iter()
        .any(|(net, length)| (bits(net) ^ bits(addr)).leading_zeros() >= *length)
}

impl Budget for Maps {
    fn next_answer_ns(&self) -> u64 {
        self.next_answer_ns.get()
    }

    fn set_next_answer_ns(&self, due_ns: u64) {
        self.next_answer_ns.set(due_ns);
    }
}

impl Default for Work {
    fn default() -> Self {
        let none = SockAddr::from_parts(Addr::default(), 0);
        let entry = FlowEntry {
            used_ns: 0,
            src: none,
            dst: none,
            service: 0,
            backend_id: 0,
            proof: 0,
            direction: 0,
            via: 0,
            state: 0,
            zero: 0,
        };
        let flow = super::flow::Flow::default();
        Self {
            key: flow.tuple,
            flow,
            entry,
            reply: entry,
            other: entry,
            hop: Route {
                ifindex: 0,
                gateway: Addr::default(),
            },
            service: 0,
            outcome: 0,
            now_ns: 0,
            avoid: 0,
            one_more: 0,
            one_less: 0,
            attempt: 0,
            tried_service: 0,
            tried: 0,
            tried_at: none,
            table: 0,
        }
    }
}

impl Socket for FakeSocket<'_> {
    fn cookie(&self) -> u64 {
        self.cookie
    }

    fn netns(&self) -> u64 {
        self.maps.netns.get()
    }

    fn is_of_node(&self) -> bool {
        self.maps.of_node.get()
    }

    fn tgid(&self) -> u32 {
        4711
    }

    fn can_refuse(&self) -> bool {
        !self.maps.cannot_refuse
    }

    fn flow(&self) -> Option<SocketFlow> {
        self.maps.flows.borrow().get(&self.cookie).copied()
    }

    fn add_flow(&self, flow: &SocketFlow) -> Added {
        let mut flows = self.maps.flows.borrow_mut();
        if flows.contains_key(&self.cookie) {
            return Added::Known;
        }
        flows.insert(self.cookie, *flow);
        Added::Written
    }

    fn set_flow(&self, flow: &SocketFlow) {
        self.maps.flows.borrow_mut().insert(self.cookie, *flow);
    }

    fn forget_flow(&self) -> bool {
        self.maps.flows.borrow_mut().remove(&self.cookie).is_some()
    }

    fn udp_flow(&self, key: &UdpFlowKey) -> Option<UdpFlow> {
        self.maps.udp_flows.borrow().get(key).copied()
    }

    fn set_udp_flow(&self, key: &UdpFlowKey, flow: &UdpFlow) -> bool {
        self.maps.udp_flows.borrow_mut().insert(*key, *flow);
        true
    }

    fn udp_reverse(&self, key: &UdpFlowKey) -> Option<SockAddr> {
        self.maps.udp_reverse.borrow().get(key).copied()
    }

    fn set_udp_reverse(&self, key: &UdpFlowKey, frontend: &SockAddr) -> bool {
        self.maps.udp_reverse.borrow_mut().insert(*key, *frontend);
        true
    }

    fn tell(&self, decision: &Decision) {
        self.maps.told.borrow_mut().push(*decision);
    }
}
