//! Ids of backends that are gone, while connections name them.

use std::collections::BTreeSet;

use proxy_common::abi::BackendStats;

use super::{
    tests::{ROOM, endpoints, list, service, settle, start, started},
    *,
};
use crate::{
    maps::{Capacity, fake::FakeStore},
    model::Kind,
};

fn set_active(syncer: &Syncer<FakeStore>, id: u32, active: i64) {
    let stats = BackendStats {
        active,
        ..BackendStats::default()
    };
    syncer
        .store()
        .maps
        .backend_stats
        .borrow_mut()
        .insert(id, stats);
}

fn ids(syncer: &Syncer<FakeStore>) -> BTreeSet<u32> {
    syncer
        .store()
        .observe()
        .unwrap()
        .backends
        .into_keys()
        .collect()
}

/// The Service `a` had two endpoints, ids 1 and 2, and lost the second, which keeps connections.
fn drained() -> Syncer<FakeStore> {
    let mut syncer = started(
        FakeStore::new(Capacity {
            backends: 4,
            ..ROOM
        }),
        vec![service("a", 1), service("b", 2)],
        vec![endpoints("a", 2)],
    );
    assert_eq!(ids(&syncer), [1, 2].into());
    set_active(&syncer, 2, 3);
    syncer.apply(endpoints("a", 1));
    syncer.sync();
    settle(&mut syncer);
    assert_eq!(ids(&syncer), [1].into());
    syncer
}

#[test]
fn the_id_of_a_backend_that_is_gone_is_used_again_after_its_last_connection() {
    let mut syncer = drained();
    syncer.apply(endpoints("b", 1));
    syncer.sync();
    settle(&mut syncer);
    assert_eq!(ids(&syncer), [1, 3].into());
    // The maps are full, and say by what.
    syncer.apply(endpoints("b", 2));
    let outcome = syncer.sync();
    let refused = outcome.refused[0].to_string();
    assert!(
        refused.contains("3 of 3 used (1 of them by connections of endpoints that are gone)"),
        "{refused}"
    );
    assert_eq!(ids(&syncer), [1, 3].into());
    set_active(&syncer, 2, 0);
    syncer.sync();
    assert!(!syncer.has_retries());
    assert_eq!(ids(&syncer), [1, 2, 3].into());
}

#[test]
fn an_endpoint_that_comes_back_is_counted_with_the_connections_it_has() {
    let mut syncer = drained();
    // Nobody else got it, and there is room for it though the maps are full.
    syncer.apply(endpoints("b", 1));
    syncer.sync();
    assert_eq!(syncer.planner().used().backends, 3);
    syncer.apply(endpoints("a", 2));
    let outcome = syncer.sync();
    assert!(outcome.refused.is_empty() && outcome.report.failed.is_empty());
    assert_eq!(ids(&syncer), [1, 2, 3].into());
    assert!(syncer.store().is_busy(2));
    // Its connections end, and it stays.
    set_active(&syncer, 2, 0);
    settle(&mut syncer);
    syncer.sync();
    assert_eq!(ids(&syncer), [1, 2, 3].into());
    assert_eq!(syncer.planner().used().backends, 3);
}

#[test]
fn an_agent_that_starts_gives_nobody_the_id_of_connections_from_before() {
    let mut syncer = start(drained().into_store());
    let slices = vec![endpoints("a", 1), endpoints("b", 2)];
    list(
        &mut syncer,
        Kind::Service,
        vec![service("a", 1), service("b", 2)],
    );
    list(&mut syncer, Kind::EndpointSlice, slices);
    assert_eq!(syncer.sync().refused.len(), 1);
    assert_eq!(syncer.planner().used().backends, 2);
    set_active(&syncer, 2, 0);
    syncer.sync();
    assert_eq!(ids(&syncer), [1, 2, 3].into());
}

#[test]
fn a_grace_period_that_ends_looks_at_all_ids_that_waited_for_connections() {
    let mut syncer = drained();
    set_active(&syncer, 2, 0);
    syncer.apply(endpoints("a", 0));
    syncer.sync();
    settle(&mut syncer);
    assert_eq!(syncer.planner().used().backends, 0);
}
