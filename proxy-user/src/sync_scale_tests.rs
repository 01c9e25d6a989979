//! What an event costs among thousands of Services, and what becomes of a plan that is made in parts.

use std::{collections::BTreeMap, net::IpAddr, num::NonZeroU16};

use proptest::prelude::*;
use proxy_common::abi::Protocol;

use super::*;
use crate::{
    maps::{Capacity, fake::FakeStore},
    model::{
        Endpoint, EndpointSlice, Family, Kind, Node, NodePortScope, Service, ServicePort,
        SlicePort, TrafficPolicy,
    },
    plan::Step,
};

const ROOM: Capacity = Capacity {
    frontends: 1 << 14,
    services: 1 << 13,
    backends: 1 << 14,
    slots: 1 << 15,
    source_ranges: 16,
    service_nets: 4,
};

fn name(number: usize) -> ObjectName {
    ObjectName::new("ns", &format!("s{number:05}"))
}

fn service(number: usize, port: u16) -> Event {
    let [_, _, high, low] = u32::try_from(number).unwrap().to_be_bytes();
    Event::ServiceApplied(Service {
        name: name(number),
        created_secs: 0,
        cluster_ips: vec![IpAddr::from([10, 96, high, low])],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: BTreeMap::new(),
        ports: vec![ServicePort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: NonZeroU16::new(port).unwrap(),
            node_port: None,
        }],
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        health_check: None,
        balancing: Default::default(),
        affinity_timeout_secs: None,
    })
}

/// The Service's only slice.
fn endpoints(number: usize, last: &[u8]) -> Event {
    let [_, _, high, low] = u32::try_from(number).unwrap().to_be_bytes();
    let endpoint = |last: &u8| Endpoint {
        address: IpAddr::from([10 + *last, 0, high, low]),
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
        name: name(number),
        service: name(number),
        family: Family::V4,
        ports: vec![SlicePort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: NonZeroU16::MIN,
        }],
        endpoints: last.iter().map(endpoint).collect(),
        triggered: None,
    })
}

/// An agent that starts on these maps and lists so many Services with two endpoints each.
fn started(store: FakeStore, services: usize) -> Syncer<FakeStore> {
    let planner = Planner::adopt(store.capacity(), &store.observe().unwrap());
    let model = Model::new(Node::default(), NodePortScope::Primary);
    let mut syncer = Syncer::new(model, planner, store);
    syncer.apply(Event::ListStarted(Kind::Service));
    (0..services).for_each(|number| syncer.apply(service(number, 80)));
    syncer.apply(Event::Listed(Kind::Service));
    syncer.apply(Event::ListStarted(Kind::EndpointSlice));
    (0..services).for_each(|number| syncer.apply(endpoints(number, &[1, 2])));
    syncer.apply(Event::Listed(Kind::EndpointSlice));
    assert!(syncer.sync().first);
    syncer
}

fn settle(syncer: &mut Syncer<FakeStore>) {
    while let Some(epoch) = syncer.begin_grace() {
        syncer.passed(epoch);
    }
}

/// Every step that follows from each of these events, reclaiming included, and how many Services were
/// looked at.
fn costs(syncer: &mut Syncer<FakeStore>, subject: usize) -> Vec<(usize, Vec<&'static str>)> {
    let events = [
        endpoints(subject, &[1, 3]),
        endpoints(subject, &[1, 3]),
        endpoints(subject, &[]),
        endpoints(subject, &[1, 2]),
        service(subject, 81),
        Event::ServiceGone(name(subject)),
        service(subject, 80),
        Event::SliceGone(name(subject)),
        endpoints(subject, &[1, 2]),
    ];
    events
        .into_iter()
        .map(|event| {
            syncer.store_mut().log.clear();
            syncer.apply(event);
            let touched = syncer.sync().touched;
            settle(syncer);
            let steps = syncer.store().log.iter().map(kind_of).collect();
            (touched, steps)
        })
        .collect()
}

fn kind_of(step: &Step) -> &'static str {
    match step {
        Step::PutName { .. } => "put name",
        Step::WriteBackend { .. } => "write backend",
        Step::WriteSlots { .. } => "write slots",
        Step::Switch { .. } => "switch",
        Step::PutFrontend { .. } | Step::PutAddress { .. } => "put frontend",
        Step::RemoveFrontend { .. } | Step::RemoveAddress { .. } => "remove frontend",
        Step::PutSourceRange { .. } | Step::PutServiceNet { .. } => "put prefix",
        Step::RemoveSourceRange { .. } | Step::RemoveServiceNet { .. } => "remove prefix",
        Step::ClearBackend { .. } => "clear backend",
        Step::RemoveName { .. } => "remove name",
    }
}

#[test]
fn an_event_costs_the_same_among_thousands_of_services_as_alone() {
    let alone = costs(&mut started(FakeStore::new(ROOM), 1), 0);
    let among_others = costs(&mut started(FakeStore::new(ROOM), 5000), 2500);
    assert_eq!(among_others, alone);
    assert!(
        alone.iter().all(|(touched, _)| *touched <= 1),
        "others were looked at: {alone:?}"
    );
    // Told again, it is nothing.
    assert_eq!(alone[1], (0, vec![]));
    let longest = alone.iter().map(|(_, steps)| steps.len()).max();
    assert!(longest <= Some(12), "{alone:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// More Services than one plan has; a write fails somewhere, and is possible again later.
    #[test]
    fn a_first_sync_that_fails_part_way_ends_as_one_that_does_not(
        fail_after in 0usize..6000,
        services in 600usize..700,
    ) {
        let mut store = FakeStore::new(ROOM);
        store.fail_after = Some(fail_after);
        let mut syncer = started(store, services);
        syncer.store_mut().fail_after = None;
        syncer.sync();
        settle(&mut syncer);
        prop_assert!(!syncer.has_retries());
        let maps = syncer.store().observe().unwrap();
        prop_assert_eq!(maps.frontend_count(), services);
        prop_assert_eq!(maps.backends.len(), 2 * services);
        let used = syncer.planner().used();
        // Whoever starts now finds nothing to do, and counts the same.
        let mut store = syncer.store;
        store.log.clear();
        let next = started(store, services);
        prop_assert_eq!(&next.store().log, &[]);
        prop_assert_eq!(next.planner().used(), used);
    }
}
