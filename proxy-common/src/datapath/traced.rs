//! Whatever answers the decisions' questions, and a record of what was asked and what was found.

use core::cell::RefCell;
use std::vec::Vec;

use super::{
    answer::Budget,
    conntrack::{Amended, Change, Conntrack, Table},
    flow::Flow,
    lookup::Tables,
    path::{Node, Route, Way},
    schedule::{self, Draw},
    socket::{Added, Decision, Socket},
};
use crate::abi::{
    Addr, AffinityEntry, AffinityKey, AttemptFailure, Backend, BackendStats, Counter, Device,
    FlowEntry, FragmentKey, FragmentPorts, Frontend, FrontendKey, PortRange, Service, ServiceStats,
    SockAddr, SocketFlow, Tuple, UdpFlow, UdpFlowKey,
};

/// One question, and what was found. Those of the socket or packet in hand are none (its cookie, the
/// time, the device), nor are locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    Frontend(FrontendKey, Option<Frontend>),
    Service(u32, Option<Service>),
    /// By index: a backend id.
    Slot(u32, Option<u32>),
    Backend(u32, Option<Backend>),
    Affinity(AffinityKey, Option<AffinityEntry>),
    /// Whether there was room.
    AffinitySet(AffinityKey, AffinityEntry, bool),
    Random(u32),
    Count(Counter),
    /// `service` gave a connection to the backend.
    CountConnection(u32, u32),
    /// `service` had nobody.
    CountFailure(u32),
    ServiceStats(u32, Option<ServiceStats>),
    BackendStats(u32, Option<BackendStats>),
    /// The backend has so many connections more.
    Active(u32, i64),
    /// The backend has answered.
    Answer(u32),
    /// The backend has not.
    Failure(AttemptFailure),
    Flow(Table, Tuple, Option<FlowEntry>),
    /// Unless there was one; whether it was written.
    FlowClaimed(Table, Tuple, FlowEntry, bool),
    /// Whether there was room.
    FlowWritten(Table, Tuple, FlowEntry, bool),
    FlowAmended(Table, Tuple, Change, Amended),
    FlowForgotten(Table, Tuple),
    Fragment(FragmentKey, Option<FragmentPorts>),
    Device(u32, Option<Device>),
    /// From this source, for a packet to there.
    Route(Addr, SockAddr, Way, Route),
    /// Whether a socket of the node would get packets of the tuple.
    Socket(Tuple, bool),
    /// Whether the source may dial the service.
    SourceRange(u32, Addr, bool),
    /// Whether ClusterIPs come from where the address is.
    ServiceNet(Addr, bool),
    SocketFlow(Option<SocketFlow>),
    SocketFlowSet(SocketFlow, bool),
    UdpFlow(SockAddr, Option<UdpFlow>),
    UdpFlowSet(SockAddr, UdpFlow, bool),
}

/// `inner`, and all that it was asked.
#[derive(Debug)]
pub struct Traced<'a, T> {
    inner: &'a T,
    lookups: RefCell<Vec<Lookup>>,
}

impl<'a, T> Traced<'a, T> {
    pub const fn new(inner: &'a T) -> Self {
        Self {
            inner,
            lookups: RefCell::new(Vec::new()),
        }
    }

    /// In the order in which they were asked.
    pub fn into_lookups(self) -> Vec<Lookup> {
        self.lookups.into_inner()
    }

    fn note(&self, lookup: Lookup) {
        self.lookups.borrow_mut().push(lookup);
    }
}

impl<T: Tables> Tables for Traced<'_, T> {
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        let found = self.inner.frontend(key);
        self.note(Lookup::Frontend(*key, found));
        found
    }

    fn service(&self, id: u32) -> Option<Service> {
        let found = self.inner.service(id);
        self.note(Lookup::Service(id, found));
        found
    }

    fn slot(&self, index: u32) -> Option<u32> {
        let found = self.inner.slot(index);
        self.note(Lookup::Slot(index, found));
        found
    }

    fn backend(&self, id: u32) -> Option<Backend> {
        let found = self.inner.backend(id);
        self.note(Lookup::Backend(id, found));
        found
    }

    fn affinity(&self, key: &AffinityKey) -> Option<AffinityEntry> {
        let found = self.inner.affinity(key);
        self.note(Lookup::Affinity(*key, found));
        found
    }

    fn set_affinity(&self, key: &AffinityKey, entry: &AffinityEntry) -> bool {
        let written = self.inner.set_affinity(key, entry);
        self.note(Lookup::AffinitySet(*key, *entry, written));
        written
    }

    fn random(&self) -> u32 {
        let number = self.inner.random();
        self.note(Lookup::Random(number));
        number
    }

    fn now_ns(&self) -> u64 {
        self.inner.now_ns()
    }

    fn service_stats(&self, id: u32) -> Option<ServiceStats> {
        let found = self.inner.service_stats(id);
        self.note(Lookup::ServiceStats(id, found));
        found
    }

    fn backend_stats(&self, id: u32) -> Option<BackendStats> {
        let found = self.inner.backend_stats(id);
        self.note(Lookup::BackendStats(id, found));
        found
    }

    fn add_active(&self, backend_id: u32, change: i64) {
        self.inner.add_active(backend_id, change);
        self.note(Lookup::Active(backend_id, change));
    }

    fn note_answer(&self, backend_id: u32) {
        self.inner.note_answer(backend_id);
        self.note(Lookup::Answer(backend_id));
    }

    fn note_failure(&self, failure: &AttemptFailure) {
        self.inner.note_failure(failure);
        self.note(Lookup::Failure(*failure));
    }

    fn pick(&self, draw: &Draw) -> u32 {
        // Not the inner one's: what it looks up is to be seen.
        schedule::pick(self, draw)
    }

    fn burden(&self, draw: &Draw, id: u32) -> u64 {
        schedule::burden(self, draw, id)
    }

    fn count(&self, counter: Counter) {
        self.inner.count(counter);
        self.note(Lookup::Count(counter));
    }

    fn count_connection(&self, service: u32, backend_id: u32) {
        self.inner.count_connection(service, backend_id);
        self.note(Lookup::CountConnection(service, backend_id));
    }

    fn count_failure(&self, service: u32) {
        self.inner.count_failure(service);
        self.note(Lookup::CountFailure(service));
    }
}

impl<T: Conntrack> Conntrack for Traced<'_, T> {
    fn find(&self, table: Table, key: &Tuple, into: &mut FlowEntry) -> bool {
        let found = self.inner.find(table, key, into);
        self.note(Lookup::Flow(table, *key, found.then_some(*into)));
        found
    }

    fn claim(&self, table: Table, key: &Tuple, entry: &FlowEntry) -> bool {
        let claimed = self.inner.claim(table, key, entry);
        self.note(Lookup::FlowClaimed(table, *key, *entry, claimed));
        claimed
    }

    fn put(&self, table: Table, key: &Tuple, entry: &FlowEntry) -> bool {
        let written = self.inner.put(table, key, entry);
        self.note(Lookup::FlowWritten(table, *key, *entry, written));
        written
    }

    fn amend(&self, table: Table, key: &Tuple, change: &Change) -> Amended {
        let amended = self.inner.amend(table, key, change);
        self.note(Lookup::FlowAmended(table, *key, *change, amended));
        amended
    }

    fn forget(&self, table: Table, key: &Tuple) -> bool {
        let was_there = self.inner.forget(table, key);
        self.note(Lookup::FlowForgotten(table, *key));
        was_there
    }

    fn lock(&self, key: &Tuple) -> bool {
        self.inner.lock(key)
    }

    fn unlock(&self, key: &Tuple) {
        self.inner.unlock(key);
    }

    fn timeout_ns(&self, protocol: u8, state: u8) -> u64 {
        self.inner.timeout_ns(protocol, state)
    }

    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        let found = self.inner.fragment(key);
        self.note(Lookup::Fragment(*key, found));
        found
    }

    fn put_fragment(&self, key: &FragmentKey, ports: &FragmentPorts) {
        self.inner.put_fragment(key, ports);
    }
}

impl<T: Node> Node for Traced<'_, T> {
    fn snat_ports(&self) -> PortRange {
        self.inner.snat_ports()
    }

    fn inherited_until_ns(&self) -> u64 {
        self.inner.inherited_until_ns()
    }

    fn ifindex(&self) -> u32 {
        self.inner.ifindex()
    }

    fn device(&self, ifindex: u32) -> Option<Device> {
        let found = self.inner.device(ifindex);
        self.note(Lookup::Device(ifindex, found));
        found
    }

    fn route(&self, flow: &Flow, dst: &SockAddr, into: &mut Route) -> Way {
        let way = self.inner.route(flow, dst, into);
        self.note(Lookup::Route(flow.outer_src, *dst, way, *into));
        way
    }

    fn is_for_device(&self) -> bool {
        self.inner.is_for_device()
    }

    fn is_sent_on(&self) -> bool {
        self.inner.is_sent_on()
    }

    fn has_socket(&self, tuple: &Tuple) -> bool {
        let found = self.inner.has_socket(tuple);
        self.note(Lookup::Socket(*tuple, found));
        found
    }

    fn is_allowed(&self, service: u32, source: &Addr) -> bool {
        let allowed = self.inner.is_allowed(service, source);
        self.note(Lookup::SourceRange(service, *source, allowed));
        allowed
    }

    fn is_in_service_nets(&self, addr: &Addr) -> bool {
        let found = self.inner.is_in_service_nets(addr);
        self.note(Lookup::ServiceNet(*addr, found));
        found
    }
}

impl<T: Budget> Budget for Traced<'_, T> {
    fn next_answer_ns(&self) -> u64 {
        self.inner.next_answer_ns()
    }

    fn set_next_answer_ns(&self, due_ns: u64) {
        self.inner.set_next_answer_ns(due_ns);
    }
}

impl<T: Socket> Socket for Traced<'_, T> {
    fn cookie(&self) -> u64 {
        self.inner.cookie()
    }

    fn tgid(&self) -> u32 {
        self.inner.tgid()
    }

    fn netns(&self) -> u64 {
        self.inner.netns()
    }

    fn is_of_node(&self) -> bool {
        self.inner.is_of_node()
    }

    fn can_refuse(&self) -> bool {
        self.inner.can_refuse()
    }

    fn flow(&self) -> Option<SocketFlow> {
        let found = self.inner.flow();
        self.note(Lookup::SocketFlow(found));
        found
    }

    fn add_flow(&self, flow: &SocketFlow) -> Added {
        let added = self.inner.add_flow(flow);
        if added != Added::Known {
            self.note(Lookup::SocketFlowSet(*flow, added == Added::Written));
        }
        added
    }

    fn set_flow(&self, flow: &SocketFlow) {
        self.inner.set_flow(flow);
        self.note(Lookup::SocketFlowSet(*flow, true));
    }

    fn forget_flow(&self) -> bool {
        self.inner.forget_flow()
    }

    fn udp_flow(&self, key: &UdpFlowKey) -> Option<UdpFlow> {
        let found = self.inner.udp_flow(key);
        self.note(Lookup::UdpFlow(key.peer, found));
        found
    }

    fn set_udp_flow(&self, key: &UdpFlowKey, flow: &UdpFlow) -> bool {
        let written = self.inner.set_udp_flow(key, flow);
        self.note(Lookup::UdpFlowSet(key.peer, *flow, written));
        written
    }

    fn udp_reverse(&self, key: &UdpFlowKey) -> Option<SockAddr> {
        self.inner.udp_reverse(key)
    }

    fn set_udp_reverse(&self, key: &UdpFlowKey, frontend: &SockAddr) -> bool {
        self.inner.set_udp_reverse(key, frontend)
    }

    fn tell(&self, decision: &Decision) {
        self.inner.tell(decision);
    }
}

#[cfg(test)]
#[path = "traced_tests.rs"]
mod tests;
