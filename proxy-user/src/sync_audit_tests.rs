//! Whatever somebody else does to the maps, an audit finds and undoes it.

use std::net::IpAddr;

use proxy_common::abi::{
    Addr, Backend, Frontend, FrontendKey, FrontendKind, Service, ServiceName, ServiceWord,
};

use super::{
    tests::{ROOM, endpoints, list, service, start},
    *,
};
use crate::{
    maps::{Observed, fake::FakeStore},
    model::{Family, Kind},
};

/// A Service without endpoints, one with two, one with source ranges; and a ServiceCIDR.
fn settled() -> Syncer<FakeStore> {
    let Event::ServiceApplied(mut limited) = service("limited", 3) else {
        unreachable!("it makes no other");
    };
    limited.load_balancer_ips = vec![IpAddr::from([203, 0, 113, 3])];
    let ranges = ["198.51.100.0/24", "192.0.2.0/25"].map(|range| range.parse().unwrap());
    limited.source_ranges = [(Family::V4, ranges.into())].into();
    let mut syncer = start(FakeStore::new(ROOM));
    let cidr =
        Event::ServiceCidrApplied("kubernetes".into(), vec!["10.96.0.0/16".parse().unwrap()]);
    list(&mut syncer, Kind::ServiceCidr, vec![cidr]);
    let limited = Event::ServiceApplied(limited);
    let services = vec![service("none", 1), service("two", 2), limited];
    list(&mut syncer, Kind::Service, services);
    let slices = vec![endpoints("two", 2), endpoints("limited", 1)];
    list(&mut syncer, Kind::EndpointSlice, slices);
    assert!(syncer.sync().first);
    syncer
}

fn audited(syncer: &mut Syncer<FakeStore>) -> Audited {
    let mut audit = Audit::of(syncer.planner());
    audit.set_entries(syncer.store().removals().unwrap());
    // In as many pieces as there are parts.
    loop {
        if let Some(audited) = syncer.audit(&mut audit, 1) {
            return audited;
        }
    }
}

fn there(syncer: &Syncer<FakeStore>) -> Observed {
    syncer.store().observe().unwrap()
}

/// After each of these a map is not as it was.
type Damage = Box<dyn Fn(&mut FakeStore)>;

fn damages(there: &Observed) -> Vec<Damage> {
    let mut all: Vec<Damage> = Vec::new();
    for (key, entry) in there.frontends.clone() {
        all.push(Box::new(move |store| {
            store.maps.frontends.remove(&key);
        }));
        let elsewhere = Frontend {
            service: entry.service + 1,
            ..entry
        };
        all.push(Box::new(move |store| {
            store.maps.frontends.insert(key, elsewhere);
        }));
    }
    for id in there.names.keys().copied() {
        all.push(Box::new(move |store| {
            store.names.remove(&id);
        }));
        let other = ServiceName::new("ns/other", 6, 4, 0).unwrap();
        all.push(Box::new(move |store| {
            store.names.insert(id, other);
        }));
    }
    for (id, entry) in there.services.clone() {
        for word in [ServiceWord::default(), ServiceWord(entry.word.0 ^ 1)] {
            all.push(Box::new(move |store| {
                let affinity = entry.affinity;
                store.maps.services.insert(id, Service { word, affinity });
            }));
        }
    }
    for (id, entry) in there.backends.clone() {
        for damaged in [
            Backend {
                addr: Addr::from(IpAddr::from([192, 0, 2, 99])),
                ..entry
            },
            Backend {
                service: 0,
                ..entry
            },
            Backend {
                flags: entry.flags ^ Backend::LOCAL,
                ..entry
            },
        ] {
            all.push(Box::new(move |store| {
                store.maps.backends.insert(id, damaged);
            }));
        }
    }
    for (first, ids) in there.slots.clone() {
        for (slot, id) in (first..).zip(ids) {
            all.push(Box::new(move |store| {
                store.maps.slots.insert(slot, id + 1);
            }));
        }
    }
    for id in there.source_ranges.keys().copied() {
        all.push(Box::new(move |store| {
            store.maps.source_ranges.remove(&id);
        }));
        all.push(Box::new(move |store| {
            let ranges = store.maps.source_ranges.entry(id).or_default();
            ranges.push((Addr::from(IpAddr::from([0, 0, 0, 0])), 96));
        }));
    }
    all.push(Box::new(|store| store.maps.service_nets.clear()));
    all.push(Box::new(|store| {
        let net = (Addr::from(IpAddr::from([10, 0, 0, 0])), 104);
        store.maps.service_nets.push(net);
    }));
    // What nobody wrote.
    all.push(Box::new(|store| {
        let key = FrontendKey {
            addr: IpAddr::from([10, 96, 0, 77]).into(),
            port_be: 80u16.to_be(),
            protocol: 6,
            zero: 0,
        };
        let entry = Frontend {
            service: 1,
            outside_service: 0,
            kind: FrontendKind::ClusterIp as u8,
            flags: 0,
            zero: [0; 2],
        };
        store.maps.frontends.insert(key, entry);
        let address = FrontendKey::of_address(IpAddr::from([10, 96, 0, 78]).into());
        store.maps.frontends.insert(address, entry);
    }));
    all.push(Box::new(|store| {
        let name = ServiceName::new("ns/stray", 6, 4, 0).unwrap();
        store.names.insert(15, name);
    }));
    all
}

#[test]
fn an_audit_of_maps_that_nobody_touched_finds_nothing() {
    let mut syncer = settled();
    syncer.store_mut().log.clear();
    let audited = audited(&mut syncer);
    assert!(audited.checked >= 20, "{audited:?}");
    assert_eq!((audited.drifted, audited.drift.len()), (0, 0));
    assert_eq!(syncer.store().log, []);
}

#[test]
fn whatever_somebody_else_does_to_the_maps_is_named_and_undone() {
    let before = there(&settled());
    let count = damages(&before).len();
    assert!(count > 40, "{count}");
    for which in 0..count {
        let mut syncer = settled();
        damages(&before)[which](syncer.store_mut());
        assert_ne!(there(&syncer), before, "damage {which} does damage");
        let found = audited(&mut syncer);
        assert!(found.drifted > 0, "damage {which}");
        assert_eq!(found.drifted, found.repaired);
        assert_eq!(found.lines().count() as u64, found.drifted);
        assert_eq!(there(&syncer), before, "damage {which}: {found:?}");
        assert_eq!(audited(&mut syncer).drifted, 0, "damage {which}");
    }
}

#[test]
fn a_service_that_changes_during_an_audit_is_no_drift() {
    let mut syncer = settled();
    let mut audit = Audit::of(syncer.planner());
    audit.set_entries(syncer.store().removals().unwrap());
    assert_eq!(syncer.audit(&mut audit, 1), None);
    syncer.apply(Event::ServiceGone(ObjectName::new("ns", "two")));
    syncer.apply(service("new", 9));
    syncer.apply(endpoints("limited", 3));
    syncer.sync();
    while let Some(epoch) = syncer.begin_grace() {
        syncer.passed(epoch);
    }
    let before = there(&syncer);
    let found = std::iter::from_fn(|| Some(syncer.audit(&mut audit, 1))).find_map(|found| found);
    assert_eq!(found.map(|found| found.drift), Some(Vec::new()));
    assert_eq!(there(&syncer), before);
}

#[test]
fn what_cannot_be_repaired_is_named_and_found_again() {
    let mut syncer = settled();
    syncer.store_mut().maps.frontends.clear();
    syncer.store_mut().fail_after = Some(0);
    let found = audited(&mut syncer);
    assert!(found.drifted > 0 && found.repaired == 0, "{found:?}");
    assert!(found.drift[0].contains("ns/"), "{found:?}");
    syncer.store_mut().fail_after = None;
    let again = audited(&mut syncer);
    assert_eq!(again.drifted, found.drifted);
    assert_eq!(again.repaired, again.drifted);
}
