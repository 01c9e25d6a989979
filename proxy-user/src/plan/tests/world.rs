//! A node: planner, maps that are looked at after every write, and programs that run meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use proxy_common::{
    abi::{Counter, FrontendKey, ServiceName, ServiceWord, SockAddr, map},
    datapath::socket::{Verdict, connect},
};

use super::oracle::{Desired, Outcome, VIPS, vip};
use crate::{
    maps::{Capacity, MapStore, Observed, StoreError, fake::FakeStore},
    model::{FrontendAddress, ObjectName, PortKey},
    plan::{Epoch, Plan, Planner, Report, Step, execute},
};

/// A program that has read the word of a service and goes on later.
#[derive(Debug)]
struct Reader {
    service: u32,
    name: ServiceName,
    word: ServiceWord,
    /// What the slots named when it started.
    backends: Vec<(u32, SocketAddr)>,
    /// The grace period that waits for it.
    until: Option<Epoch>,
}

/// Which steps of the next plan fail.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failure {
    pub(super) after: usize,
    /// All from there on: the agent was killed. Else just this one.
    pub(super) cut: bool,
}

/// Checks everything after every step.
#[derive(Debug)]
struct Checked {
    inner: FakeStore,
    failure: Option<Failure>,
    allowed: BTreeMap<FrontendAddress, Vec<Outcome>>,
    /// Frontends that must not miss a beat: backends before, backends after.
    steady: BTreeSet<FrontendAddress>,
    readers: Vec<Reader>,
}

fn dial(store: &FakeStore, address: &FrontendAddress, cookie: u64) -> Outcome {
    let to = SockAddr::from(SocketAddr::new(address.ip, address.port));
    let socket = store.maps.socket(cookie);
    match connect(&socket, address.protocol, &to) {
        Verdict::Pass => Outcome::Pass,
        Verdict::Refuse => Outcome::Refuse,
        Verdict::Drop => Outcome::Drop,
        Verdict::Rewrite(to) => Outcome::To([to.socket_addr()].into()),
    }
}

fn fits(seen: &Outcome, allowed: &Outcome) -> bool {
    match (seen, allowed) {
        (Outcome::To(seen), Outcome::To(allowed)) => seen.is_subset(allowed),
        _ => seen == allowed,
    }
}

impl Checked {
    fn check(&self, step: &Step) {
        for index in 0..VIPS {
            let address = vip(index);
            for cookie in 0..4 {
                let seen = dial(&self.inner, &address, cookie);
                let allowed = &self.allowed[&address];
                assert!(
                    allowed.iter().any(|allowed| fits(&seen, allowed)),
                    "after `{step}` {address} meets {seen:?}, none of {allowed:?}"
                );
                assert!(
                    matches!(seen, Outcome::To(_)) || !self.steady.contains(&address),
                    "after `{step}` {address} meets {seen:?}, though it has backends throughout"
                );
            }
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

    fn check_reader(&self, reader: &Reader, step: &Step) {
        let maps = &self.inner.maps;
        assert_eq!(
            self.inner.names.get(&reader.service),
            Some(&reader.name),
            "after `{step}` id {} means another service to a reader",
            reader.service
        );
        let first = reader.word.first_slot();
        for (slot, (id, address)) in (first..).zip(&reader.backends) {
            assert_eq!(
                maps.slots.get(&slot),
                Some(id),
                "slot {slot} after `{step}`"
            );
            let backend = maps.backends.get(id).copied();
            let seen = backend.map(|backend| {
                let at = SockAddr::from_parts(backend.addr, backend.port_be);
                (backend.service, at.socket_addr())
            });
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
                    flag: "--max-frontends",
                });
            }
            failure.after -= 1;
        }
        self.inner.execute(step)?;
        self.check(step);
        Ok(())
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
    desired: Desired,
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
                allowed: (0..VIPS).map(|i| (vip(i), vec![Outcome::Pass])).collect(),
                steady: BTreeSet::new(),
                readers: Vec::new(),
            },
            desired: Desired::default(),
            owners: BTreeMap::new(),
            retry: BTreeSet::new(),
            grace: None,
        }
    }

    pub(super) fn maps(&self) -> &FakeStore {
        &self.store.inner
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
            .filter(|service| old.ports_of(service) != self.desired.ports_of(service))
            .collect();
        self.sync(touched, failure);
    }

    fn sync(&mut self, mut touched: BTreeSet<ObjectName>, failure: Option<Failure>) {
        touched.append(&mut self.retry);
        let mut plan = self.planner.plan(&self.desired.changes(touched));
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
        for index in 0..VIPS {
            let address = vip(index);
            let owners = self.owners.entry(address).or_default();
            let allowed = self.store.allowed.get_mut(&address).unwrap();
            let after = self.desired.of(&address);
            let is_to = |outcome: &Outcome| matches!(outcome, Outcome::To(_));
            let new_owner = self.desired.owner(&address);
            let admitted = new_owner.is_some_and(|key| !self.retry.contains(&key.service));
            let only_cut = failure.is_none_or(|failure| failure.cut);
            if allowed.iter().all(is_to) && is_to(&after) && admitted && only_cut {
                self.store.steady.insert(address);
            }
            allowed.extend(owners.iter().map(|key| self.desired.of_port(key)));
            allowed.push(after);
            if new_owner.is_some() && !admitted {
                // Whoever had it gives it up, and whoever gets it has no room.
                allowed.push(Outcome::Pass);
            }
            owners.extend(new_owner.cloned());
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
                self.store
                    .allowed
                    .insert(address, vec![self.desired.of(&address)]);
                self.owners
                    .insert(address, owner.into_iter().cloned().collect());
            }
        }
        self.store.steady.clear();
        self.store.check(&Step::ClearBackend { id: 0 });
    }

    fn carry_out(&mut self, plan: Plan) -> Report {
        let report = execute(&mut self.planner, plan, &mut self.store);
        self.store.failure = None;
        self.retry.extend(
            report
                .failed
                .iter()
                .map(|failed| failed.key.service.clone()),
        );
        report
    }

    pub(super) fn retry(&mut self) {
        self.sync(BTreeSet::new(), None);
    }

    /// A program starts at every service that a frontend names.
    pub(super) fn start_readers(&mut self) {
        let inner = &self.store.inner;
        let readers = (0..VIPS).filter_map(|index| {
            let address = vip(index);
            let frontend = inner.maps.frontends.get(&FrontendKey {
                addr: address.ip.into(),
                port_be: address.port.to_be(),
                protocol: address.protocol.number(),
                zero: 0,
            })?;
            let word = inner.maps.services[&frontend.service];
            let backends = (word.first_slot()..word.first_slot() + word.count())
                .map(|slot| {
                    let id = inner.maps.slots[&slot];
                    let backend = inner.maps.backends[&id];
                    let at = SockAddr::from_parts(backend.addr, backend.port_be);
                    (id, at.socket_addr())
                })
                .collect();
            Some(Reader {
                service: frontend.service,
                name: inner.names[&frontend.service],
                word,
                backends,
                until: None,
            })
        });
        let readers: Vec<Reader> = readers.collect();
        self.store.readers.extend(readers);
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
            let plan = self.planner.passed(epoch);
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
        assert_eq!(fresh.used(), self.planner.used());
        let plan = fresh.plan(&self.desired.changes(super::oracle::all_services()));
        assert!(plan.steps.is_empty(), "a restart writes {:?}", plan.steps);
    }
}
