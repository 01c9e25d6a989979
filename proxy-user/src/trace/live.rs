//! The pinned maps as they are now, and one run of the datapath on them. What it writes stays in memory: a
//! trace changes nothing.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
};

use aya::maps::{HashMap as BpfHashMap, Map, MapData};
use proxy_common::{
    abi::Addr,
    abi::{
        AffinityEntry, AffinityKey, AttemptFailure, Backend, BackendStats, Counter, Device,
        FlowEntry, FragmentKey, FragmentPorts, Frontend, FrontendKey, PortRange, Service,
        ServiceStats, ServiceWord, SockAddr, SocketFlow, Tuple, UdpFlow, UdpFlowKey, map,
    },
    datapath::{
        answer::Budget,
        conntrack::{Amended, Change, Conntrack, SECOND_NS, Table, timeout_index},
        flow::Flow,
        lookup::Tables,
        path::{Node, Route, Way},
        schedule::{self, Draw},
        socket::{Added, Decision, Socket},
    },
};

use super::{
    choice::{self, Candidate},
    helpers::Helpers,
    possible::Burdens,
};
use crate::{
    expiry::monotonic_ns,
    loader::{AffinityMap, Constants, FlowMap, PinError, Pins},
    maps::bpf::{BpfStore, OpenError},
};

type DeviceMap = BpfHashMap<MapData, u32, [u8; Device::SIZE]>;

/// The maps, and what the running programs were loaded with.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) store: BpfStore,
    pub(super) flows: FlowMap,
    pub(super) half_open: FlowMap,
    pub(super) affinity: AffinityMap,
    devices: DeviceMap,
    pub(super) constants: Constants,
}

impl Live {
    pub(super) fn open(pins: &Pins, constants: Constants) -> Result<Self, PinError> {
        let store = pins.open_store()?;
        let open = |source| OpenError::Open {
            map: map::DEVICES,
            source,
        };
        let devices = MapData::from_pin(pins.map(map::DEVICES)).map_err(open)?;
        Ok(Self {
            store,
            flows: FlowMap::from_pin(&pins.map(map::FLOWS))?,
            half_open: FlowMap::half_open_from_pin(&pins.map(map::HALF_OPEN))?,
            affinity: AffinityMap::from_pin(&pins.map(map::AFFINITY))?,
            devices: DeviceMap::try_from(Map::HashMap(devices)).map_err(open)?,
            constants,
        })
    }

    pub(super) fn device(&self, ifindex: u32) -> Option<Device> {
        self.devices.get(&ifindex, 0).ok().map(Device::from_bytes)
    }

    /// What gets new connections of a service.
    pub(super) fn candidates(&self, service: &Service) -> Vec<Candidate> {
        choice::candidates(
            service.word,
            |slot| self.store.slot(slot),
            |id| {
                let stats = self.store.backend_stats_of(id).unwrap_or_default();
                Some((self.store.backend(id)?, stats))
            },
        )
    }

    /// The ids in the slots of a service.
    pub(super) fn slots(&self, word: ServiceWord) -> Vec<u32> {
        let slot = |index| self.store.slot(word.first_slot().wrapping_add(index));
        (0..word.count()).filter_map(slot).collect()
    }

    /// What these backends of a service have to do now.
    pub(super) fn burdens(&self, service: u32, word: ServiceWord, ids: &[u32]) -> Burdens {
        let run = Run::new(self, monotonic_ns(), Chance::Drawn(0));
        let draw = Draw {
            service,
            word,
            client: 0,
            destination: 0,
            avoid: 0,
        };
        let mut burdens = Burdens::new();
        for id in ids {
            let burden = || schedule::burden(&run, &draw, *id);
            burdens.entry(*id).or_insert_with(burden);
        }
        burdens
    }

    fn table(&self, table: Table) -> &FlowMap {
        match table {
            Table::Established => &self.flows,
            Table::HalfOpen => &self.half_open,
        }
    }
}

/// What a run does not take from the maps.
#[derive(Clone, Copy, Debug)]
pub(super) enum Chance {
    /// Any numbers, the same for the same seed.
    Drawn(u64),
    /// A scheduler that goes by turns had given out so many connections; any numbers.
    Turn(u64, u64),
    /// Whatever scheduler there is finds this backend, and every number is this one.
    Settled { backend_id: u32, number: u32 },
}

type Written = HashMap<Tuple, Option<FlowEntry>>;

/// One run.
#[derive(Debug)]
pub(super) struct Run<'a> {
    live: &'a Live,
    /// Of the packet path only.
    helpers: Option<&'a Helpers>,
    chance: Chance,
    rng: RefCell<fastrand::Rng>,
    now_ns: u64,
    ifindex: u32,
    is_of_node: bool,
    netns: u64,
    half_open: RefCell<Written>,
    established: RefCell<Written>,
    affinity: RefCell<HashMap<AffinityKey, AffinityEntry>>,
    socket: Cell<Option<SocketFlow>>,
    udp_flows: RefCell<HashMap<UdpFlowKey, UdpFlow>>,
    udp_reverse: RefCell<HashMap<UdpFlowKey, SockAddr>>,
    next_answer_ns: Cell<u64>,
    /// The first question the kernel did not answer.
    trouble: RefCell<Option<String>>,
}

impl<'a> Run<'a> {
    pub(super) fn new(live: &'a Live, now_ns: u64, chance: Chance) -> Self {
        let seed = match chance {
            Chance::Drawn(seed) | Chance::Turn(_, seed) => seed,
            Chance::Settled { .. } => 0,
        };
        Self {
            live,
            helpers: None,
            chance,
            rng: RefCell::new(fastrand::Rng::with_seed(seed)),
            now_ns,
            ifindex: 0,
            is_of_node: false,
            netns: 0,
            half_open: RefCell::default(),
            established: RefCell::default(),
            affinity: RefCell::default(),
            socket: Cell::new(None),
            udp_flows: RefCell::default(),
            udp_reverse: RefCell::default(),
            next_answer_ns: Cell::new(0),
            trouble: RefCell::default(),
        }
    }

    /// For a packet at this device.
    pub(super) fn at_device(self, ifindex: u32, helpers: &'a Helpers) -> Self {
        Self {
            helpers: Some(helpers),
            ifindex,
            ..self
        }
    }

    /// For a socket that was never used before. `netns`: cookie of its network namespace; 0: not known.
    pub(super) fn of_socket(self, is_of_node: bool, netns: u64) -> Self {
        Self {
            is_of_node,
            netns,
            ..self
        }
    }

    pub(super) fn into_trouble(self) -> Option<String> {
        self.trouble.into_inner()
    }

    fn ask<T>(&self, otherwise: T, question: impl FnOnce(&Helpers) -> Result<T, String>) -> T {
        let asked = match self.helpers {
            Some(helpers) => question(helpers),
            None => Err("only packets have routes".to_owned()),
        };
        asked.unwrap_or_else(|error| {
            self.trouble.borrow_mut().get_or_insert(error);
            otherwise
        })
    }

    fn written(&self, table: Table) -> &RefCell<Written> {
        match table {
            Table::Established => &self.established,
            Table::HalfOpen => &self.half_open,
        }
    }

    fn flow(&self, table: Table, key: &Tuple) -> Option<FlowEntry> {
        match self.written(table).borrow().get(key) {
            Some(written) => *written,
            None => self.live.table(table).get(key),
        }
    }

    fn write(&self, table: Table, key: &Tuple, entry: Option<FlowEntry>) {
        self.written(table).borrow_mut().insert(*key, entry);
    }
}

impl Tables for Run<'_> {
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.live.store.frontend(key)
    }

    fn service(&self, id: u32) -> Option<Service> {
        self.live.store.service(id).ok()
    }

    fn slot(&self, index: u32) -> Option<u32> {
        match self.chance {
            Chance::Settled { backend_id, .. } => Some(backend_id),
            Chance::Drawn(_) | Chance::Turn(..) => self.live.store.slot(index),
        }
    }

    fn backend(&self, id: u32) -> Option<Backend> {
        self.live.store.backend(id)
    }

    fn affinity(&self, key: &AffinityKey) -> Option<AffinityEntry> {
        let written = self.affinity.borrow().get(key).copied();
        written.or_else(|| self.live.affinity.get(key))
    }

    fn set_affinity(&self, key: &AffinityKey, entry: &AffinityEntry) -> bool {
        self.affinity.borrow_mut().insert(*key, *entry);
        true
    }

    fn random(&self) -> u32 {
        match self.chance {
            Chance::Settled { number, .. } => number,
            Chance::Drawn(_) | Chance::Turn(..) => self.rng.borrow_mut().u32(..),
        }
    }

    fn now_ns(&self) -> u64 {
        self.now_ns
    }

    fn service_stats(&self, id: u32) -> Option<ServiceStats> {
        let stats = self.live.store.service_stats_of(id);
        match self.chance {
            Chance::Turn(connections, _) => stats.map(|stats| ServiceStats {
                connections,
                ..stats
            }),
            Chance::Drawn(_) | Chance::Settled { .. } => stats,
        }
    }

    fn backend_stats(&self, id: u32) -> Option<BackendStats> {
        self.live.store.backend_stats_of(id)
    }

    fn add_active(&self, _backend_id: u32, _change: i64) {}

    fn note_answer(&self, _backend_id: u32) {}

    fn note_failure(&self, _failure: &AttemptFailure) {}

    fn pick(&self, draw: &Draw) -> u32 {
        schedule::pick(self, draw)
    }

    fn burden(&self, draw: &Draw, id: u32) -> u64 {
        schedule::burden(self, draw, id)
    }

    fn count(&self, _counter: Counter) {}

    fn count_connection(&self, _service: u32, _backend_id: u32) {}

    fn count_failure(&self, _service: u32) {}
}

impl Conntrack for Run<'_> {
    fn find(&self, table: Table, key: &Tuple, into: &mut FlowEntry) -> bool {
        match self.flow(table, key) {
            Some(entry) => {
                *into = entry;
                true
            }
            None => false,
        }
    }

    fn claim(&self, table: Table, key: &Tuple, entry: &FlowEntry) -> bool {
        let is_free = self.flow(table, key).is_none();
        if is_free {
            self.write(table, key, Some(*entry));
        }
        is_free
    }

    fn put(&self, table: Table, key: &Tuple, entry: &FlowEntry) -> bool {
        self.write(table, key, Some(*entry));
        true
    }

    fn amend(&self, table: Table, key: &Tuple, change: &Change) -> Amended {
        let Some(mut entry) = self.flow(table, key) else {
            return Amended::MISSING;
        };
        let amended = change.make(table, &mut entry);
        self.write(table, key, Some(entry));
        amended
    }

    fn forget(&self, table: Table, key: &Tuple) -> bool {
        let was_there = self.flow(table, key).is_some();
        self.write(table, key, None);
        was_there
    }

    fn lock(&self, _key: &Tuple) -> bool {
        true
    }

    fn unlock(&self, _key: &Tuple) {}

    fn timeout_ns(&self, protocol: u8, state: u8) -> u64 {
        let seconds = self.live.constants.timeouts[timeout_index(protocol, state)];
        u64::from(seconds) * SECOND_NS
    }

    /// A packet that is traced is whole.
    fn fragment(&self, _key: &FragmentKey) -> Option<FragmentPorts> {
        None
    }

    fn put_fragment(&self, _key: &FragmentKey, _ports: &FragmentPorts) {}
}

impl Node for Run<'_> {
    fn snat_ports(&self) -> PortRange {
        self.live.constants.snat_ports
    }

    fn inherited_until_ns(&self) -> u64 {
        self.live.constants.inherited_until_ns
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn device(&self, ifindex: u32) -> Option<Device> {
        self.live.device(ifindex)
    }

    fn route(&self, flow: &Flow, dst: &SockAddr, into: &mut Route) -> Way {
        let (way, hop) = self.ask((Way::Nowhere, *into), |helpers| {
            helpers.route(self.ifindex, flow, dst)
        });
        *into = hop;
        way
    }

    fn is_for_device(&self) -> bool {
        true
    }

    fn is_sent_on(&self) -> bool {
        false
    }

    fn has_socket(&self, tuple: &Tuple) -> bool {
        self.ask(false, |helpers| helpers.has_socket(self.ifindex, tuple))
    }

    fn is_allowed(&self, service: u32, source: &Addr) -> bool {
        self.live.store.is_in_source_ranges(service, source)
    }

    fn is_in_service_nets(&self, addr: &Addr) -> bool {
        self.live.store.is_in_service_nets(addr)
    }
}

impl Budget for Run<'_> {
    fn next_answer_ns(&self) -> u64 {
        self.next_answer_ns.get()
    }

    fn set_next_answer_ns(&self, due_ns: u64) {
        self.next_answer_ns.set(due_ns);
    }
}

impl Socket for Run<'_> {
    /// No socket has it.
    fn cookie(&self) -> u64 {
        0
    }

    fn tgid(&self) -> u32 {
        std::process::id()
    }

    fn netns(&self) -> u64 {
        self.netns
    }

    fn is_of_node(&self) -> bool {
        self.is_of_node
    }

    fn can_refuse(&self) -> bool {
        self.live.constants.can_refuse
    }

    fn flow(&self) -> Option<SocketFlow> {
        self.socket.get()
    }

    fn add_flow(&self, flow: &SocketFlow) -> Added {
        if self.socket.get().is_some() {
            return Added::Known;
        }
        self.socket.set(Some(*flow));
        Added::Written
    }

    fn set_flow(&self, flow: &SocketFlow) {
        self.socket.set(Some(*flow));
    }

    fn forget_flow(&self) -> bool {
        self.socket.take().is_some()
    }

    fn udp_flow(&self, key: &UdpFlowKey) -> Option<UdpFlow> {
        self.udp_flows.borrow().get(key).copied()
    }

    fn set_udp_flow(&self, key: &UdpFlowKey, flow: &UdpFlow) -> bool {
        self.udp_flows.borrow_mut().insert(*key, *flow);
        true
    }

    fn udp_reverse(&self, key: &UdpFlowKey) -> Option<SockAddr> {
        self.udp_reverse.borrow().get(key).copied()
    }

    fn set_udp_reverse(&self, key: &UdpFlowKey, frontend: &SockAddr) -> bool {
        self.udp_reverse.borrow_mut().insert(*key, *frontend);
        true
    }

    fn tell(&self, _decision: &Decision) {}
}
