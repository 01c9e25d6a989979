//! A node: planner, maps that are looked at after every write, and programs that run meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
};

use ipnet::IpNet;
use proptest::sample::Index;
use proxy_common::{
    abi::{
        Addr, Backend, Client as Source, Counter, Frontend, FrontendKey, ServiceName, ServiceWord,
        SockAddr, map,
    },
    datapath::{
        lookup::{NoChoice, Tables as _, Visit, choose},
        socket::{Socket as _, Stage, Verdict, closed, connect},
    },
};

use super::oracle::{
    CLIENTS, Client, Desired, Outcome, VIPS, judge, judge_with_little_room, local_twin, vip,
};
use crate::{
    audit::Audit,
    maps::{Capacity, MapStore, Observed, StoreError, fake::FakeStore},
    model::{FrontendAddress, ObjectName, PortKey},
    plan::{Done, Epoch, Plan, Planner, Report, Step, carry_out, execute},
};

/// A program that has read the word of a service and goes on later.
#[derive(Debug)]
struct Reader {
    service: u32,
    name: ServiceName,
    word: ServiceWord,
    /// What the slots named when it started.
    slots: Vec<u32>,
    backends: BTreeMap<u32, SocketAddr>,
    /// The grace period that waits for it.
    until: Option<Epoch>,
}

/// Somebody has connected to a backend, and stays.
#[derive(Debug)]
struct Connection {
    /// The backend's.
    id: u32,
    port: ServiceName,
    address: SocketAddr,
    /// No agent has begun since the backend was cleared: whose the id was can still be told.
    is_known: bool,
}

/// Which steps of the next plan fail.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failure {
    pub(super) after: usize,
    /// All from there on: the agent was killed. Else just this one.
    pub(super) cut: bool,
}

/// What a client may meet at a frontend.
#[derive(Debug, Default)]
struct Allowed {
    /// If it is let through.
    lists: Vec<Outcome>,
    may_pass: bool,
    may_be_barred: bool,
}

/// Checks everything after every step.
#[derive(Debug)]
struct Checked {
    inner: FakeStore,
    failure: Option<Failure>,
    allowed: BTreeMap<(FrontendAddress, Client), Allowed>,
    /// Frontends that must not miss a beat: backends before, backends after.
    steady: BTreeSet<(FrontendAddress, Client)>,
    /// Whether an address may be known as a ClusterIP, or may not be.
    known: BTreeMap<IpAddr, BTreeSet<bool>>,
    readers: Vec<Reader>,
    connections: Vec<Connection>,
}

fn address_of(backend: &Backend) -> SocketAddr {
    SockAddr::from_parts(backend.addr, backend.port_be).socket_addr()
}

fn frontend_of(store: &FakeStore, address: &FrontendAddress) -> Option<Frontend> {
    store
        .maps
        .frontends
        .get(&FrontendKey {
            addr: address.ip.into(),
            port_be: address.port.to_be(),
            protocol: address.protocol.number(),
            zero: 0,
        })
        .copied()
}

/// What the client meets; `None` if source ranges bar it.
fn dial(
    store: &FakeStore,
    address: &FrontendAddress,
    client: Client,
    cookie: u64,
) -> Option<Outcome> {
    if let Some(source) = client.source() {
        return dial_from(store, address, source);
    }
    let maps = &store.maps;
    maps.of_node.set(client == Client::Node);
    let count = |counter| maps.counter(counter);
    let before = [Counter::ConnectNotAllowed, Counter::ConnectUndefinedPort].map(count);
    let to = SockAddr::from(SocketAddr::new(address.ip, address.port));
    let socket = maps.socket(cookie);
    let verdict = connect(&socket, address.protocol, &to);
    // Whoever stays connected keeps the backend's id from others.
    if let Some(flow) = socket.flow()
        && socket.forget_flow()
    {
        closed(&socket, &flow, Stage::Connected);
    }
    if count(Counter::ConnectNotAllowed) > before[0] {
        assert_eq!(verdict, Verdict::Drop);
        return None;
    }
    Some(match verdict {
        // That there is no such frontend is all that counts here.
        Verdict::Refuse if count(Counter::ConnectUndefinedPort) > before[1] => Outcome::Pass,
        Verdict::Pass => Outcome::Pass,
        Verdict::Refuse => Outcome::Refuse,
        Verdict::Drop => Outcome::Drop,
        Verdict::Rewrite(to) => Outcome::To([to.socket_addr()].into()),
    })
}

/// The same, as the packet path reads the maps.
fn dial_from(store: &FakeStore, address: &FrontendAddress, source: IpAddr) -> Option<Outcome> {
    let Some(frontend) = frontend_of(store, address) else {
        return Some(Outcome::Pass);
    };
    if frontend.flags & Frontend::SOURCE_RANGES != 0 {
        // All are IPv4, whose bits count from 96.
        let holds = |(addr, bits): &(Addr, u32)| {
            let length = u8::try_from(bits - 96).unwrap();
            IpNet::new(addr.ip(), length).unwrap().contains(&source)
        };
        let ranges = store.maps.source_ranges.get(&frontend.service);
        if !ranges.is_some_and(|ranges| ranges.iter().any(holds)) {
            return None;
        }
    }
    let service = match frontend.outside_service {
        0 => frontend.service,
        outside => outside,
    };
    let to = address.ip.into();
    let visit = || Visit {
        client: Source::of_packet(source.into()),
        dialled: &to,
        now_ns: 0,
    };
    Some(match choose(&store.maps, service, 0, visit) {
        Ok(choice) => Outcome::To([choice.address.socket_addr()].into()),
        Err(NoChoice::NoEndpoints) => Outcome::Refuse,
        Err(NoChoice::NoLocalEndpoint) => Outcome::Drop,
        Err(NoChoice::Damaged) => panic!("damaged: {frontend:?}"),
    })
}

fn fits(seen: &Outcome, allowed: &Outcome) -> bool {
    match (seen, allowed) {
        (Outcome::To(seen), Outcome::To(allowed)) => seen.is_subset(allowed),
        _ => seen == allowed,
    }
}

impl Checked {
    fn check(&self, step: &Step) {
        for (key, allowed) in &self.allowed {
            let (address, client) = key;
            for cookie in 0..3 {
                let seen = dial(&self.inner, address, *client, cookie);
                let fine = match &seen {
                    Some(seen) => {
                        allowed.may_pass && allowed.lists.iter().any(|list| fits(seen, list))
                    }
                    None => allowed.may_be_barred,
                };
                assert!(
                    fine,
                    "after `{step}` {address} gives {client:?} {seen:?}, none of {allowed:?}"
                );
                assert!(
                    matches!(seen, Some(Outcome::To(_))) || !self.steady.contains(key),
                    "after `{step}` {address} gives {client:?} {seen:?}, though it has backends throughout"
                );
            }
        }
        for (ip, allowed) in &self.known {
            let to = SockAddr::from(SocketAddr::new(*ip, 81));
            let socket = self.inner.maps.socket(0);
            let seen = connect(&socket, vip(0).protocol, &to) == Verdict::Refuse;
            assert!(allowed.contains(&seen), "after `{step}` {ip}: {seen}");
        }
        assert_eq!(
            self.inner.maps.counter(Counter::TableDamaged),
            0,
            "damaged after `{step}`"
        );
        for reader in &self.readers {
            self.check_reader(reader, step);
        }
        let capacity = self.inner.capacity;
        assert!(self.inner.maps.frontends.len() <= capacity.frontends as usize);
    }

    /// Connections are counted where new ones to the same backend will be, and nowhere else.
    fn check_connections(&self, step: &Step) {
        let Step::WriteBackend { id, backend } = step else {
            return;
        };
        let written = (&self.inner.names[&backend.service], address_of(backend));
        for connection in &self.connections {
            let is_same = (&connection.port, connection.address) == written;
            if connection.id == *id {
                assert!(is_same, "`{step}` counts {connection:?}");
            } else {
                assert!(
                    !is_same || !connection.is_known,
                    "`{step}` does not count {connection:?}"
                );
            }
        }
    }

    fn check_reader(&self, reader: &Reader, step: &Step) {
        let maps = &self.inner.maps;
        assert_eq!(
            self.inner.names.get(&reader.service),
            Some(&reader.name),
            "after `{step}` id {} means another service to a reader",
            reader.service
        );
        let first = reader.word.first_slot();
        // Nothing else writes slots, and tables are long.
        if matches!(step, Step::WriteSlots { .. }) {
            for (slot, id) in (first..).zip(&reader.slots) {
                let there = maps.slots.get(&slot);
                assert_eq!(there, Some(id), "slot {slot} after `{step}`");
            }
        }
        for (id, address) in &reader.backends {
            let backend = maps.backends.get(id).copied();
            let seen = backend.map(|backend| (backend.service, address_of(&backend)));
            assert_eq!(
                seen,
                Some((reader.service, *address)),
                "backend {id} after `{step}`"
            );
        }
    }
}

impl MapStore for Checked {
    fn capacity(&self) -> Capacity {
        self.inner.capacity
    }

    fn execute(&mut self, step: &Step) -> Result<(), StoreError> {
        if let Some(failure) = &mut self.failure {
            if failure.after == 0 {
                if !failure.cut {
                    self.failure = None;
                }
                return Err(StoreError::Full {
                    map: map::FRONTENDS,
                    capacity: 0,
                });
            }
            failure.after -= 1;
        }
        self.inner.execute(step)?;
        self.check(step);
        self.check_connections(step);
        Ok(())
    }

    fn holds(&self, step: &Step) -> bool {
        self.inner.holds(step)
    }

    fn is_busy(&self, backend: u32) -> bool {
        self.inner.is_busy(backend)
    }

    fn removals(&self) -> Result<Vec<Step>, StoreError> {
        self.inner.removals()
    }

    fn observe(&self) -> Result<Observed, StoreError> {
        self.inner.observe()
    }

    fn counters(&self) -> Result<Vec<(Counter, u64)>, StoreError> {
        self.inner.counters()
    }
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) planner: Planner,
    store: Checked,
    /// Services in one plan, where they concern no others.
    pub(super) at_once: usize,
    desired: Desired,
    /// What was desired before that.
    before: Desired,
    /// Whatever a list was to be at any time: it may still be that while plans fail.
    ever: BTreeMap<PortKey, Vec<Outcome>>,
    /// Ports that each frontend may belong to while plans fail.
    owners: BTreeMap<FrontendAddress, BTreeSet<PortKey>>,
    retry: BTreeSet<ObjectName>,
    grace: Option<Epoch>,
}

impl World {
    pub(super) fn new(capacity: Capacity) -> Self {
        let inner = FakeStore::new(capacity);
        Self {
            planner: Planner::adopt(capacity, &inner.observe().unwrap()),
            store: Checked {
                inner,
                failure: None,
                allowed: at_every_frontend()
                    .map(|key| {
                        let allowed = Allowed {
                            lists: vec![Outcome::Pass],
                            may_pass: true,
                            may_be_barred: false,
                        };
                        (key, allowed)
                    })
                    .collect(),
                steady: BTreeSet::new(),
                known: (0..VIPS).map(|i| (vip(i).ip, [false].into())).collect(),
                readers: Vec::new(),
                connections: Vec::new(),
            },
            at_once: usize::MAX,
            desired: Desired::default(),
            before: Desired::default(),
            ever: BTreeMap::new(),
            owners: BTreeMap::new(),
            retry: BTreeSet::new(),
            grace: None,
        }
    }

    pub(super) fn maps(&self) -> &FakeStore {
        &self.store.inner
    }

    /// Without a look after every step.
    pub(super) fn write(&mut self, plan: Plan) -> Report {
        execute(&mut self.planner, plan, &mut self.store.inner)
    }

    /// The maps hold what the planner knows, and nothing else.
    pub(super) fn is_as_known(&mut self) {
        let mut audit = Audit::of(&self.planner);
        audit.set_entries(self.store.removals().expect("in memory"));
        let found = audit.go_on(&self.planner, &mut self.store, usize::MAX);
        assert_eq!(found.map(|found| found.drift), Some(Vec::new()));
    }

    /// Services whose last plan was refused or failed.
    pub(super) fn unsettled(&self) -> &BTreeSet<ObjectName> {
        &self.retry
    }

    /// Plans and executes the way from here to `desired`, for the Services that differ.
    pub(super) fn want(&mut self, desired: Desired, failure: Option<Failure>) {
        let old = std::mem::replace(&mut self.desired, desired);
        let touched = super::oracle::all_services()
            .into_iter()
            .filter(|service| {
                old.ports_of(service) != self.desired.ports_of(service)
                    || old.addresses_of(service) != self.desired.addresses_of(service)
            })
            .collect();
        self.before = old;
        for key in self.desired.ports.keys() {
            let outcome = self.desired.of_port(key);
            self.ever.entry(key.clone()).or_default().push(outcome);
        }
        self.sync(touched, failure);
        self.before = self.desired.clone();
    }

    fn sync(&mut self, mut touched: BTreeSet<ObjectName>, failure: Option<Failure>) {
        touched.append(&mut self.retry);
        let store = &self.store;
        self.planner.look_again(|id| store.is_busy(id));
        self.planner.want_service_nets(self.desired.nets.clone());
        let changes = self.desired.changes(touched);
        if self.at_once < changes.len() {
            self.allow(failure);
            self.store.failure = failure;
            let Done {
                report, refused, ..
            } = carry_out(
                &mut self.planner,
                changes.into_iter(),
                self.at_once,
                &mut self.store,
            );
            assert_eq!(refused, [], "there is room for all");
            self.note(&report);
            self.disallow();
            return;
        }
        let mut plan = self.planner.plan(&changes);
        self.retry
            .extend(plan.refused.drain(..).map(|refused| refused.key.service));
        self.allow(failure);
        self.store.failure = failure;
        self.carry_out(plan);
        self.disallow();
    }

    /// Whatever was possible so far, and the new state; with it the owner's own way there.
    fn allow(&mut self, failure: Option<Failure>) {
        self.store.steady.clear();
        for (address, client) in at_every_frontend() {
            let owners = self.owners.entry(address).or_default();
            let allowed = self.store.allowed.get_mut(&(address, client)).unwrap();
            let after = self.desired.of(&address, client);
            let is_to = |outcome: &Outcome| matches!(outcome, Outcome::To(_));
            let new_owner = self.desired.owner(&address);
            let admitted = new_owner.is_some_and(|key| !self.retry.contains(&key.service));
            let only_cut = failure.is_none_or(|failure| failure.cut);
            let bars = self.desired.bars(&address, client);
            allowed.may_pass |= !bars;
            allowed.may_be_barred |= bars;
            let steady_before = allowed.lists.iter().all(is_to);
            allowed
                .lists
                .extend(owners.iter().map(|key| self.desired.of_port(key)));
            allowed.lists.push(after.clone());
            if let Client::Outside(_) = client {
                // On the way from one list of a port to the other, what each of them leads to.
                let lists = owners.iter().chain(new_owner);
                let fails = failure.is_some() || !self.retry.is_empty();
                for key in lists.flat_map(|key| [key.clone(), local_twin(key)]) {
                    if fails {
                        let ever = self.ever.get(&key).into_iter().flatten();
                        allowed.lists.extend(ever.cloned());
                    }
                    for state in [&self.before, &self.desired] {
                        if state.ports.contains_key(&key) {
                            allowed.lists.push(state.of_port(&key));
                        }
                    }
                }
                // Whoever had it goes its own way: it may admit others by now. If it is not taken
                // from it after all, it may even have given up its ranges.
                // Its ranges change before its frontends do.
                for key in owners.iter() {
                    allowed.may_be_barred |= !self.desired.admits(key, client);
                }
                for key in owners.iter().filter(|key| Some(*key) != new_owner) {
                    allowed.may_pass |= self.desired.admits(key, client);
                    if fails {
                        allowed.may_pass = true;
                        allowed.may_be_barred = true;
                    }
                }
            }
            let steady = match client {
                Client::Node | Client::Pod => steady_before && is_to(&after),
                Client::Outside(_) => allowed.lists.iter().all(is_to),
            };
            if steady && !allowed.may_be_barred && admitted && only_cut {
                self.store.steady.insert((address, client));
            }
            if new_owner.is_some() && !admitted {
                // Whoever had it gives it up, and whoever gets it has no room.
                allowed.lists.push(Outcome::Pass);
                allowed.may_pass = true;
            }
        }
        for index in 0..VIPS {
            let address = vip(index);
            let owners = self.owners.entry(address).or_default();
            owners.extend(self.desired.owner(&address).cloned());
            let known = self.store.known.entry(address.ip).or_default();
            known.insert(self.desired.knows(&address.ip));
        }
    }

    /// What belongs to a Service whose plan went through is exactly as desired.
    fn disallow(&mut self) {
        for index in 0..VIPS {
            let address = vip(index);
            let owner = self.desired.owner(&address);
            let settled = match owner {
                Some(key) => !self.retry.contains(&key.service),
                None => self.retry.is_empty(),
            };
            if settled {
                for client in CLIENTS {
                    let bars = self.desired.bars(&address, client);
                    let allowed = Allowed {
                        lists: vec![self.desired.of(&address, client)],
                        may_pass: !bars,
                        may_be_barred: bars,
                    };
                    self.store.allowed.insert((address, client), allowed);
                }
                self.owners
                    .insert(address, owner.into_iter().cloned().collect());
            }
        }
        if self.retry.is_empty() {
            for (ip, known) in &mut self.store.known {
                *known = [self.desired.knows(ip)].into();
            }
        }
        self.store.steady.clear();
        self.store.check(&Step::ClearBackend { id: 0 });
    }

    fn carry_out(&mut self, plan: Plan) -> Report {
        let report = execute(&mut self.planner, plan, &mut self.store);
        self.note(&report);
        report
    }

    fn note(&mut self, report: &Report) {
        self.store.failure = None;
        self.retry.extend(
            report
                .failed
                .iter()
                .map(|failed| failed.key.service.clone()),
        );
    }

    pub(super) fn retry(&mut self) {
        self.sync(BTreeSet::new(), None);
    }

    /// A program starts at every service that a frontend names.
    pub(super) fn start_readers(&mut self) {
        let inner = &self.store.inner;
        let services = (0..VIPS).flat_map(|index| {
            let frontend = frontend_of(inner, &vip(index));
            let named = frontend.map(|frontend| [frontend.service, frontend.outside_service]);
            named.into_iter().flatten().filter(|service| *service != 0)
        });
        let readers = services.map(|service| {
            let word = inner.maps.services[&service].word;
            let slots: Vec<u32> = (word.first_slot()..word.first_slot() + word.count())
                .map(|slot| inner.maps.slots[&slot])
                .collect();
            let at = |id: &u32| (*id, address_of(&inner.maps.backends[id]));
            let backends = slots.iter().map(at).collect();
            Reader {
                service,
                name: inner.names[&service],
                word,
                slots,
                backends,
                until: None,
            }
        });
        let readers: Vec<Reader> = readers.collect();
        self.store.readers.extend(readers);
    }

    /// Somebody connects to one of the backends there are, and stays.
    pub(super) fn connect(&mut self, which: Index) {
        let inner = &self.store.inner;
        let mut ids: Vec<u32> = inner.maps.backends.keys().copied().collect();
        ids.sort_unstable();
        if ids.is_empty() {
            return;
        }
        self.connect_to(ids[which.index(ids.len())]);
    }

    pub(super) fn connect_to(&mut self, id: u32) {
        let inner = &self.store.inner;
        let backend = inner.maps.backends[&id];
        inner.maps.add_active(id, 1);
        let connection = Connection {
            id,
            port: inner.names[&backend.service],
            address: address_of(&backend),
            is_known: true,
        };
        self.store.connections.push(connection);
    }

    /// One of those connections ends.
    pub(super) fn close(&mut self, which: Index) {
        let connections = &mut self.store.connections;
        if !connections.is_empty() {
            let connection = connections.swap_remove(which.index(connections.len()));
            self.store.inner.maps.add_active(connection.id, -1);
        }
    }

    pub(super) fn close_all(&mut self) {
        for connection in self.store.connections.drain(..) {
            self.store.inner.maps.add_active(connection.id, -1);
        }
    }

    pub(super) fn begin_grace(&mut self) -> bool {
        if self.grace.is_none() {
            self.grace = self.planner.begin_grace();
            for reader in &mut self.store.readers {
                reader.until = reader.until.or(self.grace);
            }
        }
        self.grace.is_some()
    }

    pub(super) fn pass_grace(&mut self, failure: Option<Failure>) {
        if let Some(epoch) = self.grace.take() {
            self.store
                .readers
                .retain(|reader| reader.until.is_none_or(|until| until > epoch));
            let store = &self.store;
            let plan = self.planner.passed(epoch, |id| store.is_busy(id));
            self.store.failure = failure;
            self.carry_out(plan);
        }
    }

    /// Retries and waits until nothing is left to do. Readers that are still there would wait for a
    /// grace period nobody needs; they end.
    pub(super) fn settle(&mut self) {
        for _ in 0..20 {
            self.retry();
            if !self.begin_grace() && self.retry.is_empty() {
                break;
            }
            self.pass_grace(None);
        }
        assert_eq!(
            self.planner.begin_grace(),
            None,
            "grace periods without end"
        );
        self.store.readers.clear();
    }

    /// Another agent: knows what the maps tell, and looks at every Service. It starts long after
    /// every program has ended.
    pub(super) fn restart(&mut self) {
        self.store.readers.clear();
        self.grace = None;
        let names = self.store.inner.names.clone();
        let backends = &self.store.inner.maps.backends;
        for connection in &mut self.store.connections {
            connection.is_known &= backends.contains_key(&connection.id);
        }
        let observed = self.store.observe().unwrap();
        self.planner = Planner::adopt(self.store.capacity(), &observed);
        let mut touched = super::oracle::all_services();
        touched.extend(self.planner.known_services());
        self.sync(touched, None);
        for (id, name) in &self.store.inner.names {
            let before = names.iter().find(|(_, before)| *before == name);
            assert!(
                before.is_none_or(|(before, _)| before == id),
                "an id changed"
            );
        }
    }

    /// Steps that a plan of everything would take now.
    pub(super) fn plan_again(&mut self) -> Vec<Step> {
        let changes = self.desired.changes(super::oracle::all_services());
        let plan = self.planner.plan(&changes);
        plan.steps.into_iter().map(|planned| planned.step).collect()
    }

    pub(super) fn fresh_planner_has_nothing_to_do(&mut self) {
        let observed = self.store.observe().unwrap();
        let mut fresh = Planner::adopt(self.store.capacity(), &observed);
        fresh.want_service_nets(self.desired.nets.clone());
        assert_eq!(fresh.used(), self.planner.used());
        let plan = fresh.plan(&self.desired.changes(super::oracle::all_services()));
        assert!(plan.steps.is_empty(), "a restart writes {:?}", plan.steps);
    }

    /// What no client meets, but the maps must hold all the same.
    pub(super) fn all_is_in_place(&self) {
        let observed = self.store.observe().unwrap();
        assert_eq!(observed.service_nets, self.desired.nets);
        let mut ranges: BTreeMap<u32, BTreeSet<IpNet>> = BTreeMap::new();
        for (id, name) in &observed.names {
            let port = self.desired.ports.values().find(|port| {
                port.key.service_port_name() == name.text() && port.key.scope as u8 == name.scope
            });
            let port = port.expect("a port that is wanted");
            if let Some(limits) = &port.source_ranges
                && !limits.ranges.is_empty()
            {
                ranges.insert(*id, limits.ranges.clone());
            }
            let service = &observed.services[id];
            let timeout = port.affinity_timeout_secs.map_or(0, NonZeroU32::get);
            assert_eq!(service.affinity.timeout_secs(), timeout, "{}", port.key);
            let word = service.word;
            if port.chosen.is_empty() {
                let without = ServiceWord::without_backends(port.empty);
                assert_eq!(word, without, "{}", port.key);
            } else {
                let slots = observed.slots[&word.first_slot()].iter();
                let slots: Vec<SocketAddr> =
                    slots.map(|id| address_of(&observed.backends[id])).collect();
                if self.store.inner.capacity.slots >= 1 << 16 {
                    judge(port, word, &slots);
                } else {
                    judge_with_little_room(port, &slots);
                }
            }
            let other_scope = 1 - name.scope;
            let other = observed
                .names
                .iter()
                .find(|(_, other)| other.text() == name.text() && other.scope == other_scope);
            if timeout != 0
                && let Some((other, _)) = other
                && observed.services[other].affinity.is_on()
            {
                let number = observed.services[other].affinity.port();
                assert_eq!(service.affinity.port(), number, "{}", port.key);
            }
            let backends = observed.backends.values().filter(|b| b.service == *id);
            for backend in backends {
                let at = address_of(backend);
                let has = |flag| backend.flags & flag != 0;
                let key = &port.key;
                assert_eq!(
                    has(Backend::LOCAL),
                    port.local.contains(&at),
                    "{at} of {key}"
                );
                assert_eq!(
                    has(Backend::CHOSEN),
                    port.chosen.contains(&at),
                    "{at} of {key}"
                );
                let twin = observed
                    .backends
                    .iter()
                    .find(|(_, twin)| {
                        other.is_some_and(|(other, _)| twin.service == *other)
                            && address_of(twin) == at
                    })
                    .map_or(0, |(id, _)| *id);
                assert_eq!(backend.twin, twin, "{at} of {key}");
                let weight = port.balancing.weights.get(&at);
                let weight = weight.map_or(1, |weight| weight.get());
                assert_eq!(backend.weight, weight, "{at} of {key}");
            }
        }
        assert_eq!(ranges, observed.source_ranges.into_iter().collect());
    }
}

fn at_every_frontend() -> impl Iterator<Item = (FrontendAddress, Client)> {
    (0..VIPS).flat_map(|index| CLIENTS.map(|client| (vip(index), client)))
}
