//! Maps that refuse one write in ten, sources that repeat themselves, go back and start over, an agent that
//! dies: at no moment does a client meet what it never should have, and in the end the maps say what a clean
//! start writes. `model/oracle.rs` says what clients should meet, and the maps are read here by their
//! description in ARCHITECTURE.md.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
};

use proptest::prelude::*;
use proxy_common::abi::{Backend, Counter, Empty, FrontendKey, SockAddr};

use super::*;
use crate::{
    maps::{Capacity, Observed, StoreError, fake::FakeStore, faulty::Faulty, meaning},
    model::{
        Family, FrontendAddress, Kind, Node, NodePortScope, TrafficPolicy,
        oracle::{Account, LOCAL, Outcome as Meets, Owner, SERVICES, any_service, any_slice, pick},
    },
    plan::Step,
};

const ROOM: Capacity = Capacity {
    frontends: 128,
    services: 64,
    backends: 256,
    slots: 256,
    source_ranges: 32,
    service_nets: 8,
};

/// Of a hundred operations.
const FAULTS: u64 = 10;

const KINDS: [Kind; 3] = [Kind::Service, Kind::EndpointSlice, Kind::ServiceCidr];

/// A question to the maps: an address, and whether it is asked from outside.
type Question = (FrontendAddress, bool);

fn key_of(address: &FrontendAddress) -> FrontendKey {
    FrontendKey {
        addr: address.ip.into(),
        port_be: address.port.to_be(),
        protocol: address.protocol.number(),
        zero: 0,
    }
}

fn at(backend: &Backend) -> SocketAddr {
    SockAddr::from_parts(backend.addr, backend.port_be).socket_addr()
}

/// What the maps say to a question. Every way through them must lead somewhere.
fn ask(store: &FakeStore, (address, outside): &Question) -> Meets {
    let maps = &store.maps;
    let frontend = maps.frontends.get(&key_of(address))?;
    let id = match frontend.outside_service {
        list if *outside && list != 0 => list,
        _ => frontend.service,
    };
    let word = maps.services.get(&id).map(|service| service.word);
    let word = word.unwrap_or_else(|| panic!("{address} names {id}, which was never written"));
    if word.count() == 0 {
        assert_ne!(word.empty(), Empty::Unused, "{address} names {id}");
        return Some(Err(word.empty()));
    }
    let slots = word.first_slot()..word.first_slot() + word.count();
    let backends = slots.map(|slot| {
        let backend = &maps.backends[&maps.slots[&slot]];
        assert_eq!(backend.service, id, "{address}: {backend:?} in slot {slot}");
        at(backend)
    });
    Some(Ok(backends.collect()))
}

/// What may be met at an address, since it was last as it should be.
#[derive(Debug, Default)]
struct May {
    owners: BTreeSet<Owner>,
    policies: BTreeSet<bool>,
    lists: Vec<(bool, Meets)>,
    nothing: bool,
}

impl May {
    fn hear(&mut self, account: &Account, (address, outside): &Question) {
        let owner = account.owner(address);
        self.nothing |= owner.is_none();
        self.owners.extend(owner);
        for owner in &self.owners {
            let family = Family::of(&address.ip);
            let policy = account.policy(owner, *outside);
            self.policies.insert(policy == TrafficPolicy::Local);
            for policy in [TrafficPolicy::Cluster, TrafficPolicy::Local] {
                let list = Some(account.list(owner, family, policy));
                self.lists.push((policy == TrafficPolicy::Local, list));
            }
        }
    }

    fn allows(&self, meets: &Meets) -> bool {
        let mut lists = self.lists.iter();
        meets.is_none() && self.nothing
            || lists.any(|(policy, list)| self.policies.contains(policy) && list == meets)
    }
}

/// Looks at everything after every step.
#[derive(Debug)]
struct Judged {
    inner: FakeStore,
    may: BTreeMap<Question, May>,
    /// Whether an address may be known as a ClusterIP, or may not be.
    known: BTreeMap<IpAddr, BTreeSet<bool>>,
}

impl Judged {
    fn new(account: &Account) -> Self {
        let mut judged = Self {
            inner: FakeStore::new(ROOM),
            may: Account::questions()
                .map(|it| (it, May::default()))
                .collect(),
            known: Account::questions()
                .map(|it| (it.0.ip, BTreeSet::new()))
                .collect(),
        };
        judged.hear(account);
        judged
    }

    /// From now on this is wanted, too.
    fn hear(&mut self, account: &Account) {
        for (question, may) in &mut self.may {
            may.hear(account, question);
        }
        for (ip, known) in &mut self.known {
            known.insert(is_cluster_ip(account, ip));
        }
    }

    /// Whoever waits for nothing meets just what is wanted, and nothing else from now on.
    fn settle(&mut self, account: &Account, waiting: &BTreeSet<ObjectName>) {
        let strays_wait = waiting.contains(&ObjectName::new("", ""));
        for (question, may) in &mut self.may {
            if strays_wait || may.owners.iter().any(|it| waiting.contains(&it.service)) {
                continue;
            }
            let wanted = account.outcome(&question.0, question.1);
            assert_eq!(
                ask(&self.inner, question),
                wanted,
                "{question:?} waits for nothing"
            );
            *may = May::default();
            may.hear(account, question);
        }
        if waiting.is_empty() {
            for (ip, known) in &mut self.known {
                *known = [is_cluster_ip(account, ip)].into();
            }
            self.check(&"everything");
        }
    }

    fn newest_steps(&self) -> String {
        let steps = self.inner.log.iter().rev().skip(1).take(20);
        steps.map(|step| format!("\n  {step}")).collect()
    }

    fn check(&self, after: &dyn std::fmt::Display) {
        for (question, may) in &self.may {
            let meets = ask(&self.inner, question);
            assert!(
                may.allows(&meets),
                "after `{after}` {question:?} meets {meets:?}, and may meet {may:?}; before that{}",
                self.newest_steps()
            );
        }
        for (ip, allowed) in &self.known {
            let key = FrontendKey::of_address((*ip).into());
            let known = self.inner.maps.frontends.contains_key(&key);
            assert!(allowed.contains(&known), "after `{after}` {ip}: {known}");
        }
    }
}

fn is_cluster_ip(account: &Account, ip: &IpAddr) -> bool {
    let mut services = account.services.values();
    services.any(|service| service.cluster_ips.contains(ip))
}

impl MapStore for Judged {
    fn capacity(&self) -> Capacity {
        self.inner.capacity()
    }

    fn execute(&mut self, step: &Step) -> Result<(), StoreError> {
        self.inner.execute(step)?;
        self.check(step);
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

/// What exists, by version: of each kind what happened to its objects.
type Truth = BTreeMap<Kind, Vec<Event>>;

fn after(changes: &[Event]) -> Account {
    let mut account = Account::default();
    changes.iter().for_each(|change| account.note(change));
    account
}

fn objects(account: Account) -> Vec<Event> {
    let services = account.services.into_values().map(Event::ServiceApplied);
    let slices = account.slices.into_values().map(Event::SliceApplied);
    let cidrs = account.cidrs.into_iter();
    let cidrs = cidrs.map(|(name, nets)| Event::ServiceCidrApplied(name, nets));
    services.chain(slices).chain(cidrs).collect()
}

/// One kind as its watch tells it.
#[derive(Debug, Default)]
struct Watch {
    /// Changes that a list or the watch has brought.
    version: usize,
    /// The rest of a list.
    list: VecDeque<Event>,
    last: Option<Event>,
}

impl Watch {
    /// The list as of so many changes before the newest that was heard: of another API server, which lags.
    fn relist(&mut self, kind: Kind, changes: &[Event], back: usize) {
        self.version = self.version.saturating_sub(back);
        self.list = [Event::ListStarted(kind)].into();
        self.list.extend(objects(after(&changes[..self.version])));
        self.list.push_back(Event::Listed(kind));
    }

    fn next(&mut self, changes: &[Event]) -> Option<Event> {
        let event = self.list.pop_front().or_else(|| {
            let change = changes.get(self.version)?;
            self.version += 1;
            Some(change.clone())
        });
        if !matches!(event, Some(Event::ListStarted(_) | Event::Listed(_))) {
            self.last = event.clone().or(self.last.take());
        }
        event
    }
}

#[derive(Clone, Debug)]
enum Act {
    /// So many events of a kind.
    Hear(Kind, usize),
    /// The newest event once more.
    Again(Kind),
    /// A list starts, also in the middle of one.
    Relist(Kind, usize),
    /// Something goes that was never there.
    Gone(Kind),
    Node(Node),
    Local(Vec<IpAddr>),
    Sync,
    Grace,
    Audit,
    /// The agent dies, and another one finds the maps so.
    Restart,
}

fn any_change() -> impl Strategy<Value = Event> {
    let name = |text: &str| ObjectName::new("ns", text);
    let nets = pick(&["10.96.0.0/12", "fd96::/108", "10.97.0.0/16"]);
    prop_oneof![
        6 => any_service().prop_map(Event::ServiceApplied),
        6 => any_slice().prop_map(Event::SliceApplied),
        2 => pick(&SERVICES).prop_map(move |text| Event::ServiceGone(name(text))),
        2 => pick(&["s1", "s2", "s3", "s4"]).prop_map(move |text| Event::SliceGone(name(text))),
        1 => (pick(&["x", "y"]), nets).prop_map(|(cidr, net)|
            Event::ServiceCidrApplied(cidr.into(), vec![net.parse().expect("a range")])),
        1 => pick(&["x", "y"]).prop_map(|cidr| Event::ServiceCidrGone(cidr.into())),
    ]
}

fn kind_of(change: &Event) -> Kind {
    match change {
        Event::ServiceApplied(_) | Event::ServiceGone(_) => Kind::Service,
        Event::SliceApplied(_) | Event::SliceGone(_) => Kind::EndpointSlice,
        Event::ServiceCidrApplied(..) | Event::ServiceCidrGone(_) => Kind::ServiceCidr,
        Event::ListStarted(_)
        | Event::Listed(_)
        | Event::NodeChanged(_)
        | Event::LocalAddresses(_) => unreachable!("a change of no object"),
    }
}

fn any_node() -> impl Strategy<Value = Node> {
    (
        pick(&["n1", "n2"]),
        prop::option::of(pick(&["east", "west"])),
    )
        .prop_map(|(node, zone)| Node {
            name: node.into(),
            zone: zone.map(Into::into),
            internal_ips: LOCAL[..usize::from(node == "n1")]
                .iter()
                .map(|ip| ip.parse().expect("an IP"))
                .collect(),
            pod_cidrs: vec!["10.0.0.0/24".parse().expect("a range")],
            ..Node::default()
        })
}

fn any_act() -> impl Strategy<Value = Act> {
    let kind = || pick(&KINDS);
    prop_oneof![
        10 => (pick(&KINDS[..2]), 1usize..6).prop_map(|(kind, count)| Act::Hear(kind, count)),
        2 => Just(Act::Hear(Kind::ServiceCidr, 2)),
        2 => kind().prop_map(Act::Again),
        2 => (kind(), 0usize..4).prop_map(|(kind, back)| Act::Relist(kind, back)),
        1 => kind().prop_map(Act::Gone),
        1 => any_node().prop_map(Act::Node),
        1 => prop::sample::subsequence(LOCAL.to_vec(), 0..=LOCAL.len()).prop_map(|ips|
            Act::Local(ips.iter().map(|ip| ip.parse().expect("an IP")).collect())),
        12 => Just(Act::Sync),
        5 => Just(Act::Grace),
        1 => Just(Act::Audit),
        1 => Just(Act::Restart),
    ]
}

/// A node: what it was told, the agent, and the maps that outlive it.
struct World {
    truth: Truth,
    watches: BTreeMap<Kind, Watch>,
    account: Account,
    syncer: Syncer<Faulty<Judged>>,
    at_once: usize,
}

impl World {
    fn new(changes: Vec<Event>, seed: u64, at_once: usize) -> Self {
        let mut truth: Truth = KINDS.map(|kind| (kind, Vec::new())).into();
        for change in changes {
            truth.entry(kind_of(&change)).or_default().push(change);
        }
        let account = Account::default();
        let store = Faulty::new(Judged::new(&account), FAULTS, seed);
        let mut world = Self {
            truth,
            watches: BTreeMap::new(),
            account,
            syncer: start(store),
            at_once,
        };
        world.begin();
        world
    }

    fn judged(&mut self) -> &mut Judged {
        &mut self.syncer.store_mut().inner
    }

    /// What a new agent asks for.
    fn begin(&mut self) {
        self.syncer.at_once = self.at_once;
        for kind in KINDS {
            let watch = self.watches.entry(kind).or_default();
            watch.relist(kind, &self.truth[&kind], 0);
        }
    }

    fn restart(self) -> Self {
        let mut world = Self {
            account: Account::default(),
            syncer: start(self.syncer.store),
            ..self
        };
        world.begin();
        world
    }

    fn tell(&mut self, event: Event) {
        self.account.note(&event);
        self.syncer.apply(event);
    }

    fn act(mut self, act: Act) -> Self {
        match act {
            Act::Hear(kind, count) => {
                for _ in 0..count {
                    let changes = &self.truth[&kind];
                    if let Some(event) = self.watches.entry(kind).or_default().next(changes) {
                        self.tell(event);
                    }
                }
            }
            Act::Again(kind) => {
                if let Some(event) = self.watches.entry(kind).or_default().last.clone() {
                    self.tell(event);
                }
            }
            Act::Relist(kind, back) => {
                let watch = self.watches.entry(kind).or_default();
                watch.relist(kind, &self.truth[&kind], back);
            }
            Act::Gone(kind) => self.tell(match kind {
                Kind::Service => Event::ServiceGone(ObjectName::new("ns", "never")),
                Kind::EndpointSlice => Event::SliceGone(ObjectName::new("ns", "never")),
                Kind::ServiceCidr => Event::ServiceCidrGone("never".into()),
            }),
            Act::Node(node) => self.tell(Event::NodeChanged(node)),
            Act::Local(ips) => self.tell(Event::LocalAddresses(ips)),
            Act::Sync => self.sync(),
            Act::Grace => {
                self.grace();
            }
            Act::Audit => {
                self.audit();
            }
            Act::Restart => return self.restart(),
        }
        self
    }

    fn sync(&mut self) {
        if !self.syncer.model().is_ready() {
            let before = self.syncer.store().inner.inner.log.len();
            assert!(!self.syncer.sync().ran);
            let after = self.syncer.store().inner.inner.log.len();
            assert_eq!(before, after, "it writes before it knows");
            return;
        }
        let account = self.account.clone();
        self.judged().hear(&account);
        let outcome = self.syncer.sync();
        assert!(outcome.ran && outcome.refused.is_empty(), "there is room");
        self.settle();
    }

    fn settle(&mut self) {
        let account = self.account.clone();
        let waiting = self.syncer.waiting.services();
        self.judged().settle(&account, &waiting);
    }

    /// Whether there was something to wait for.
    fn grace(&mut self) -> bool {
        let Some(epoch) = self.syncer.begin_grace() else {
            return false;
        };
        // It may try again what could not be written, with what was heard meanwhile.
        let account = self.account.clone();
        if self.syncer.model().is_ready() {
            self.judged().hear(&account);
        }
        let synced = self.syncer.passed(epoch).ran;
        if synced {
            self.settle();
        }
        true
    }

    fn audit(&mut self) -> Audited {
        let mut audit = Audit::of(self.syncer.planner());
        audit.set_entries(self.syncer.store().removals().unwrap_or_default());
        loop {
            if let Some(audited) = self.syncer.audit(&mut audit, 3) {
                return audited;
            }
        }
    }

    /// The rest of what happened is heard, and nothing fails any more.
    fn end_well(&mut self) {
        for kind in KINDS {
            let changes = self.truth[&kind].clone();
            while let Some(event) = self.watches.entry(kind).or_default().next(&changes) {
                self.tell(event);
            }
        }
        self.syncer.store_mut().percent = 0;
        for _ in 0..20 {
            self.sync();
            if !self.grace() && !self.syncer.has_retries() {
                return;
            }
        }
        panic!("no end: {:?}", self.syncer.waiting);
    }
}

/// An agent on these maps; one that can't read them is started again.
fn start(store: Faulty<Judged>) -> Syncer<Faulty<Judged>> {
    let observed = std::iter::repeat_with(|| store.observe()).flatten().next();
    let planner = Planner::adopt(store.capacity(), &observed.expect("it ends only so"));
    let model = Model::new(Node::default(), NodePortScope::Primary);
    Syncer::new(model, planner, store)
}

/// What an agent writes that finds nothing and knows all.
fn clean_start(truth: &Truth, account: &Account) -> Syncer<FakeStore> {
    let store = FakeStore::new(ROOM);
    let planner = Planner::adopt(ROOM, &Observed::default());
    let model = Model::new(account.node.clone(), NodePortScope::Primary);
    let mut syncer = Syncer::new(model, planner, store);
    syncer.apply(Event::LocalAddresses(account.local.clone()));
    for (kind, changes) in truth {
        syncer.apply(Event::ListStarted(*kind));
        for event in objects(after(changes)) {
            syncer.apply(event);
        }
        syncer.apply(Event::Listed(*kind));
    }
    assert!(syncer.sync().first && !syncer.has_retries());
    syncer
}

proptest! {
    // Some thousand writes each, after each of which everything is looked at.
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases / 2,
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_fails_and_is_told_twice_or_late_the_maps_come_to_say_what_a_clean_start_writes(
        changes in prop::collection::vec(any_change(), 10..120),
        acts in prop::collection::vec(any_act(), 20..200),
        seed in any::<u64>(),
        at_once in pick(&[1, 2, AT_ONCE]),
    ) {
        let mut world = World::new(changes, seed, at_once);
        for act in acts {
            world = world.act(act);
        }
        world.end_well();
        for (address, outside) in Account::questions() {
            let meets = ask(&world.syncer.store().inner.inner, &(address, outside));
            let wanted = world.account.outcome(&address, outside);
            prop_assert_eq!(meets, wanted, "{}, from outside: {}", address, outside);
        }
        let clean = clean_start(&world.truth, &world.account);
        let there = world.syncer.store().observe().expect("nothing fails any more");
        let wanted = clean.store().observe().expect("in memory");
        prop_assert_eq!(meaning::lines(&there), meaning::lines(&wanted));
        prop_assert_eq!(world.syncer.planner().used(), clean.planner().used(), "nothing leaks");
        prop_assert_eq!(world.audit().drift, Vec::<String>::new());
    }
}
