use std::{collections::BTreeMap, net::IpAddr, num::NonZeroU16};

use proxy_common::abi::{FrontendKey, Protocol};

use super::*;
use crate::model::NodePortScope;
use crate::{
    maps::{Capacity, fake::FakeStore},
    model::{
        Endpoint, EndpointSlice, Family, Kind, Node, Service, ServicePort, SlicePort, TrafficPolicy,
    },
    plan::Step,
};

pub(super) const ROOM: Capacity = Capacity {
    frontends: 16,
    services: 16,
    backends: 16,
    slots: 16,
    source_ranges: 16,
    service_nets: 4,
};

pub(super) fn service(name: &str, last: u8) -> Event {
    Event::ServiceApplied(Service {
        name: ObjectName::new("ns", name),
        created_secs: 0,
        cluster_ips: vec![IpAddr::from([10, 96, 0, last])],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: BTreeMap::new(),
        ports: vec![ServicePort {
            name: "".into(),
            protocol: Protocol::Udp,
            port: NonZeroU16::MIN,
            node_port: None,
        }],
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        health_check: None,
        affinity_timeout_secs: None,
        balancing: Default::default(),
    })
}

/// The Service's only slice, with this many endpoints.
pub(super) fn endpoints(service: &str, count: u8) -> Event {
    let endpoint = |last| Endpoint {
        address: IpAddr::from([10, 0, 0, last]),
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        pod: None,
        hostname: None,
        zone: None,
        zone_hints: Default::default(),
        node_hints: Default::default(),
    };
    Event::SliceApplied(EndpointSlice {
        name: ObjectName::new("ns", service),
        service: ObjectName::new("ns", service),
        family: Family::V4,
        ports: vec![SlicePort {
            name: "".into(),
            protocol: Protocol::Udp,
            port: NonZeroU16::MIN,
        }],
        endpoints: (0..count).map(endpoint).collect(),
        triggered: None,
    })
}

/// An agent that starts on these maps.
pub(super) fn start(store: FakeStore) -> Syncer<FakeStore> {
    let planner = Planner::adopt(store.capacity(), &store.observe().unwrap());
    Syncer::new(
        Model::new(Node::default(), NodePortScope::Primary),
        planner,
        store,
    )
}

pub(super) fn list(syncer: &mut Syncer<FakeStore>, kind: Kind, events: Vec<Event>) {
    syncer.apply(Event::ListStarted(kind));
    events.into_iter().for_each(|event| syncer.apply(event));
    syncer.apply(Event::Listed(kind));
}

/// An agent that has listed these, and written them.
pub(super) fn started(
    store: FakeStore,
    services: Vec<Event>,
    slices: Vec<Event>,
) -> Syncer<FakeStore> {
    let mut syncer = start(store);
    list(&mut syncer, Kind::Service, services);
    list(&mut syncer, Kind::EndpointSlice, slices);
    assert!(syncer.sync().first);
    syncer
}

pub(super) fn frontends(syncer: &Syncer<FakeStore>) -> usize {
    syncer.store().observe().unwrap().frontend_count()
}

pub(super) fn settle(syncer: &mut Syncer<FakeStore>) {
    while let Some(epoch) = syncer.begin_grace() {
        syncer.passed(epoch);
    }
}

/// What is left of an agent that died.
fn left_behind(syncer: Syncer<FakeStore>) -> FakeStore {
    let mut store = syncer.store;
    store.log.clear();
    store.fail_after = None;
    store
}

#[test]
fn nothing_is_written_before_both_kinds_are_listed() {
    let old = started(
        FakeStore::new(ROOM),
        vec![service("gone", 1)],
        vec![endpoints("gone", 1)],
    );
    let mut syncer = start(left_behind(old));
    list(&mut syncer, Kind::Service, vec![service("new", 2)]);
    syncer.apply(endpoints("new", 1));
    let outcome = syncer.sync();
    assert!(!outcome.first && outcome.touched == 0);
    syncer.apply(Event::ListStarted(Kind::EndpointSlice));
    syncer.apply(endpoints("new", 1));
    syncer.sync();
    assert_eq!(syncer.store().log, []);
    syncer.apply(Event::Listed(Kind::EndpointSlice));
    assert!(syncer.sync().first);
    assert!(!syncer.store().log.is_empty());
}

#[test]
fn the_first_sync_removes_what_an_earlier_agent_left_and_nobody_lists() {
    let both = || vec![service("a", 1), service("b", 2)];
    let slices = || vec![endpoints("a", 1), endpoints("b", 2)];
    let old = started(FakeStore::new(ROOM), both(), slices());
    let mut syncer = started(left_behind(old), vec![service("a", 1)], slices());
    settle(&mut syncer);
    let maps = &syncer.store().maps;
    // Its frontend and its address.
    assert_eq!((maps.frontends.len(), maps.backends.len()), (2, 1));
    assert_eq!(syncer.store().names.len(), 1);
}

#[test]
fn a_restart_without_changes_writes_nothing() {
    let old = started(
        FakeStore::new(ROOM),
        vec![service("a", 1), service("none", 2)],
        vec![endpoints("a", 3)],
    );
    let syncer = started(
        left_behind(old),
        vec![service("a", 1), service("none", 2)],
        vec![endpoints("a", 3)],
    );
    assert_eq!(syncer.store().log, []);
}

#[test]
fn what_had_no_room_is_written_when_there_is_some() {
    let store = FakeStore::new(Capacity {
        backends: 4,
        ..ROOM
    });
    let mut syncer = started(
        store,
        vec![service("a", 1), service("b", 2)],
        vec![endpoints("a", 3), endpoints("b", 1)],
    );
    assert!(syncer.has_retries());
    assert_eq!(frontends(&syncer), 1);
    assert_eq!(syncer.sync().refused.len(), 1);
    syncer.apply(endpoints("a", 1));
    // Nobody asks for the other Service: it is remembered.
    settle(&mut syncer);
    syncer.sync();
    settle(&mut syncer);
    assert!(!syncer.has_retries());
    assert_eq!(frontends(&syncer), 2);
}

#[test]
fn a_step_that_fails_is_tried_again_by_the_next_sync() {
    let mut store = FakeStore::new(ROOM);
    store.fail_after = Some(3);
    let mut syncer = started(store, vec![service("a", 1)], vec![endpoints("a", 1)]);
    assert!(syncer.has_retries());
    assert!(syncer.store().maps.frontends.is_empty());
    syncer.store_mut().fail_after = None;
    let outcome = syncer.sync();
    assert!(outcome.report.failed.is_empty() && !syncer.has_retries());
    assert_eq!(frontends(&syncer), 1);
}

#[test]
fn a_service_that_goes_while_it_waits_for_a_retry_leaves_nothing() {
    let mut store = FakeStore::new(ROOM);
    store.fail_after = Some(3);
    let mut syncer = started(store, vec![service("a", 1)], vec![endpoints("a", 1)]);
    syncer.store_mut().fail_after = None;
    syncer.apply(Event::ServiceGone(ObjectName::new("ns", "a")));
    syncer.sync();
    settle(&mut syncer);
    assert!(syncer.store().names.is_empty() && syncer.store().maps.backends.is_empty());
    assert!(!syncer.has_retries());
}

#[test]
fn sockets_are_looked_at_only_when_backends_of_udp_ports_move() {
    let mut syncer = started(
        FakeStore::new(ROOM),
        vec![service("a", 1)],
        vec![endpoints("a", 2)],
    );
    syncer.apply(endpoints("a", 2));
    assert!(!syncer.sync().udp_moved);
    syncer.apply(endpoints("a", 1));
    assert!(syncer.sync().udp_moved);
    // The backend's id goes with the grace period: now its sockets are known to be without one.
    let epoch = syncer.begin_grace().unwrap();
    assert!(syncer.passed(epoch).udp_moved);
}

#[test]
fn an_address_of_two_services_that_one_failed_to_write_and_gave_up_is_written_for_the_other() {
    let two = || {
        let Event::ServiceApplied(mut other) = service("b", 1) else {
            unreachable!("it makes no other");
        };
        // Another port: nothing of it changes when the first moves away.
        other.ports[0].port = NonZeroU16::MAX;
        vec![service("a", 1), Event::ServiceApplied(other)]
    };
    let known = |syncer: &Syncer<FakeStore>| {
        let key = FrontendKey::of_address(IpAddr::from([10, 96, 0, 1]).into());
        syncer.store().maps.frontends.contains_key(&key)
    };
    let whole = started(FakeStore::new(ROOM), two(), vec![]);
    let is_address = |step: &Step| matches!(step, Step::PutAddress { .. });
    let before = whole.store().log.iter().position(is_address);
    assert!(known(&whole));

    let mut store = FakeStore::new(ROOM);
    store.fail_after = before;
    let mut syncer = started(store, two(), vec![]);
    assert!(!known(&syncer) && syncer.waiting().0 == 1);
    syncer.store_mut().fail_after = None;
    let waiting = syncer.waiting.services();
    let failed = waiting.first().expect("one waits").name.clone();
    syncer.apply(service(&failed, 2));
    syncer.sync();
    assert!(!syncer.has_retries() && known(&syncer));
}

#[test]
fn the_id_of_a_cleared_backend_is_used_for_another_after_another_grace_period_only() {
    let ids = |syncer: &Syncer<FakeStore>| -> BTreeSet<u32> {
        let backends = &syncer.store().maps.backends;
        let held = backends.iter().filter(|(_, backend)| backend.service != 0);
        held.map(|(id, _)| *id).collect()
    };
    let grace = |syncer: &mut Syncer<FakeStore>| {
        let epoch = syncer.begin_grace().expect("something was freed");
        syncer.passed(epoch);
    };
    let write = |syncer: &mut Syncer<FakeStore>, event| {
        syncer.apply(event);
        syncer.sync();
    };
    let store = FakeStore::new(ROOM);
    let services = vec![service("a", 1), service("b", 2)];
    let mut syncer = started(store, services, vec![endpoints("a", 2)]);
    let before = ids(&syncer);
    write(&mut syncer, endpoints("a", 1));
    grace(&mut syncer);
    let cleared: Vec<u32> = before.difference(&ids(&syncer)).copied().collect();
    assert_eq!(cleared.len(), 1, "one of {before:?}");

    // A program that read the slot before it was cleared may read the backend only now.
    write(&mut syncer, endpoints("b", 2));
    assert_eq!(ids(&syncer).len(), 3);
    assert!(!ids(&syncer).contains(&cleared[0]));

    grace(&mut syncer);
    write(&mut syncer, endpoints("b", 3));
    assert!(ids(&syncer).contains(&cleared[0]), "it is free again");
}
