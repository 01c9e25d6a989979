//! The tables in memory: the same decisions, on the host.

use core::cell::{Cell, RefCell};
use std::collections::HashMap;

use super::{lookup::Tables, socket::Socket};
use crate::abi::{
    Backend, Counter, Frontend, FrontendKey, ServiceWord, SockAddr, SocketFlow, UdpFlow, UdpFlowKey,
};

/// All maps of one node.
#[derive(Debug, Default)]
pub struct Maps {
    pub frontends: HashMap<FrontendKey, Frontend>,
    pub services: HashMap<u32, ServiceWord>,
    pub slots: HashMap<u32, u32>,
    pub backends: HashMap<u32, Backend>,
    pub flows: RefCell<HashMap<u64, SocketFlow>>,
    pub udp_flows: RefCell<HashMap<UdpFlowKey, UdpFlow>>,
    pub udp_reverse: RefCell<HashMap<UdpFlowKey, SockAddr>>,
    pub counters: RefCell<HashMap<u32, u64>>,
    /// State of the generator; any sequence will do.
    pub seed: Cell<u64>,
    pub now_ns: Cell<u64>,
    /// Sockets are those of the node, not of a pod.
    pub of_node: Cell<bool>,
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

/// One socket's view of [`Maps`].
#[derive(Clone, Copy, Debug)]
pub struct FakeSocket<'a> {
    maps: &'a Maps,
    cookie: u64,
}

impl Tables for FakeSocket<'_> {
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.maps.frontends.get(key).copied()
    }

    fn service(&self, id: u32) -> Option<ServiceWord> {
        self.maps.services.get(&id).copied()
    }

    fn slot(&self, index: u32) -> Option<u32> {
        self.maps.slots.get(&index).copied()
    }

    fn backend(&self, id: u32) -> Option<Backend> {
        self.maps.backends.get(&id).copied()
    }

    fn random(&self) -> u32 {
        // splitmix64 (Steele, Lea, Flood 2014).
        let state = self.maps.seed.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.maps.seed.set(state);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        u32::try_from((z ^ (z >> 31)) >> 32).expect("32 bits")
    }

    fn count(&self, counter: Counter) {
        *self
            .maps
            .counters
            .borrow_mut()
            .entry(counter.index())
            .or_default() += 1;
    }
}

impl Socket for FakeSocket<'_> {
    fn cookie(&self) -> u64 {
        self.cookie
    }

    fn now_ns(&self) -> u64 {
        self.maps.now_ns.get()
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

    fn set_flow(&self, flow: &SocketFlow) -> bool {
        self.maps.flows.borrow_mut().insert(self.cookie, *flow);
        true
    }

    fn forget_flow(&self) {
        self.maps.flows.borrow_mut().remove(&self.cookie);
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
}
