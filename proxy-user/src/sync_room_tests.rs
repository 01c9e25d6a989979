//! What finds no room: refused whole, told once, and let in when there is some.

use std::num::NonZeroU16;

use proxy_common::abi::Protocol;

use super::{
    tests::{ROOM, endpoints, frontends, list, service, settle, start, started},
    *,
};
use crate::{
    maps::{Capacity, fake::FakeStore},
    model::{Family, Kind, Scope, ServicePort},
};

/// Room for one Service of one port: its frontend and its address.
const FOR_ONE: Capacity = Capacity {
    frontends: 2,
    ..ROOM
};

fn waiting(syncer: &Syncer<FakeStore>) -> Vec<String> {
    let waiting = syncer.not_programmed();
    waiting.into_iter().map(|waiting| waiting.service).collect()
}

fn gone(name: &str) -> Event {
    Event::ServiceGone(ObjectName::new("ns", name))
}

#[test]
fn a_service_that_is_refused_is_news_once_and_again_when_it_is_refused_anew() {
    let mut syncer = started(
        FakeStore::new(FOR_ONE),
        vec![service("a", 1)],
        vec![endpoints("a", 1), endpoints("b", 1)],
    );
    syncer.apply(service("b", 2));
    let news = syncer.sync_changes().began_to_wait;
    let [(name, trouble)] = &news[..] else {
        panic!("{news:?}");
    };
    assert_eq!(*name, ObjectName::new("ns", "b"));
    assert_eq!(trouble.full, Some(proxy_common::abi::map::FRONTENDS));
    for part in ["ns/b", "KP_FRONTENDS", "2 of 2", "--max-frontends"] {
        assert!(trouble.reason.contains(part), "{}", trouble.reason);
    }
    assert_eq!(
        (syncer.waiting(), waiting(&syncer)),
        ((1, 1), vec!["ns/b".to_owned()])
    );
    // Neither a change of it nor another try is.
    syncer.apply(endpoints("b", 2));
    assert!(syncer.sync_changes().began_to_wait.is_empty());
    assert!(syncer.sync().began_to_wait.is_empty());
    // Room appears, and nobody says a word of it.
    syncer.apply(gone("a"));
    assert!(syncer.sync_changes().refused.is_empty());
    settle(&mut syncer);
    assert_eq!((syncer.waiting(), frontends(&syncer)), ((0, 0), 1));
    assert_eq!(syncer.store().names.len(), 1);
    // A frontend more than there is room for.
    syncer.apply(service("a", 1));
    assert_eq!(syncer.sync_changes().began_to_wait.len(), 1);
    syncer.apply(gone("a"));
    syncer.sync_changes();
    assert_eq!(syncer.waiting(), (0, 0));
    syncer.apply(service("a", 1));
    assert_eq!(syncer.sync_changes().began_to_wait.len(), 1);
}

#[test]
fn what_the_kernel_has_no_room_for_is_told_as_such() {
    let mut store = FakeStore::new(ROOM);
    store.fail_after = Some(0);
    let mut syncer = start(store);
    list(&mut syncer, Kind::Service, vec![service("a", 1)]);
    list(&mut syncer, Kind::EndpointSlice, vec![endpoints("a", 1)]);
    let outcome = syncer.sync();
    assert!(outcome.report.failed[0].error.is_full());
    assert_eq!((outcome.began_to_wait.len(), syncer.waiting()), (1, (1, 1)));
    assert!(
        outcome.began_to_wait[0]
            .1
            .reason
            .contains("--max-frontends")
    );
    syncer.store_mut().fail_after = None;
    assert!(syncer.sync().began_to_wait.is_empty());
    assert_eq!((syncer.waiting(), frontends(&syncer)), ((0, 0), 1));
}

#[test]
fn a_service_of_several_ports_comes_whole_or_not_yet() {
    let several = |ports: std::ops::Range<u16>| {
        let Event::ServiceApplied(mut several) = service("b", 2) else {
            unreachable!()
        };
        several.ports = ports
            .map(|port| ServicePort {
                name: port.to_string().into(),
                port: NonZeroU16::new(port).unwrap(),
                ..several.ports[0].clone()
            })
            .collect();
        Event::ServiceApplied(several)
    };
    // One port, one address, and three more entries.
    let room = Capacity {
        frontends: 5,
        ..ROOM
    };
    let mut syncer = started(
        FakeStore::new(room),
        vec![service("a", 1)],
        vec![endpoints("a", 1)],
    );
    let before = syncer.store().maps.frontends.clone();
    // Three ports and an address.
    syncer.apply(several(1..4));
    assert_eq!(syncer.sync_changes().refused.len(), 1);
    assert_eq!(syncer.store().maps.frontends, before);
    assert_eq!(
        (syncer.store().names.len(), syncer.planner().used().services),
        (1, 1)
    );
    syncer.apply(several(1..3));
    syncer.sync_changes();
    assert_eq!(
        (syncer.waiting(), syncer.store().maps.frontends.len()),
        ((0, 0), 5)
    );
    // Once it is there, it keeps what it has.
    syncer.apply(several(1..4));
    assert_eq!(syncer.sync_changes().refused.len(), 1);
    assert_eq!(syncer.store().maps.frontends.len(), 5);
}

#[test]
fn an_event_costs_no_more_among_many_that_find_no_room() {
    let names: Vec<String> = (2..200).map(|number| format!("b{number}")).collect();
    let services = names
        .iter()
        .zip(2..)
        .map(|(name, last)| service(name, last));
    let slices = names.iter().map(|name| endpoints(name, 1));
    let mut syncer = started(
        FakeStore::new(FOR_ONE),
        [service("a", 1)].into_iter().chain(services).collect(),
        [endpoints("a", 1)].into_iter().chain(slices).collect(),
    );
    assert_eq!(syncer.waiting(), (198, 198));
    syncer.apply(endpoints("a", 2));
    assert_eq!(syncer.sync_changes().touched, 1);
    // One of them gets the room.
    syncer.apply(gone("a"));
    syncer.sync_changes();
    settle(&mut syncer);
    assert_eq!((syncer.waiting(), frontends(&syncer)), ((197, 197), 1));
}

#[test]
fn fewer_slots_than_wanted_are_news_once_and_again_when_they_are_fewer() {
    let mut syncer = start(FakeStore::new(ROOM));
    let key = |name: &str| PortKey {
        service: ObjectName::new("ns", name),
        port: "".into(),
        protocol: Protocol::Tcp,
        family: Family::V4,
        scope: Scope::Cluster,
    };
    let smaller = |name, slots| Smaller {
        key: key(name),
        slots,
        wanted: 1021,
    };
    let mut news = |touched: &[&str], now: &[Smaller]| {
        let touched = touched.iter().map(|name| ObjectName::new("ns", name));
        syncer.tell_smaller(&touched.collect(), now.to_vec())
    };
    assert_eq!(news(&["a", "b"], &[smaller("a", 509)]), [smaller("a", 509)]);
    assert_eq!(news(&["b"], &[]), []);
    assert_eq!(news(&["a"], &[smaller("a", 509)]), []);
    assert_eq!(news(&["a"], &[smaller("a", 251)]), [smaller("a", 251)]);
    assert_eq!(news(&["a"], &[]), []);
    assert_eq!(news(&["a"], &[smaller("a", 251)]), [smaller("a", 251)]);
}

#[test]
fn what_can_not_be_reclaimed_leaves_nobody_waiting_and_is_reclaimed_later() {
    let mut syncer = started(
        FakeStore::new(ROOM),
        vec![service("a", 1)],
        vec![endpoints("a", 1)],
    );
    syncer.apply(gone("a"));
    syncer.sync_changes();
    syncer.store_mut().fail_after = Some(0);
    for _ in 0..3 {
        let epoch = syncer.begin_grace().unwrap();
        assert!(!syncer.passed(epoch).report.failed.is_empty());
        assert_eq!((syncer.waiting(), syncer.unreclaimed.len()), ((0, 0), 1));
    }
    syncer.store_mut().fail_after = None;
    settle(&mut syncer);
    assert!(syncer.store().names.is_empty() && syncer.unreclaimed.is_empty());
}
