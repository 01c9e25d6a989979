use super::*;

fn endpoint() -> Endpoint {
    Endpoint {
        address: [10, 0, 0, 7].into(),
        ready: true,
        serving: true,
        terminating: false,
        node: Some("big-1".into()),
        pod: Some(NameHash::of("web-0")),
        hostname: Some(NameHash::of("first")),
        zone: Some(NameHash::of("eu-a")),
        zone_hints: Default::default(),
        node_hints: Default::default(),
    }
}

/// All that can be said of [`endpoint`], from the most particular on.
fn keys() -> [WeightKey; 6] {
    [
        WeightKey::Address([10, 0, 0, 7].into()),
        WeightKey::Name(NameHash::of("web-0")),
        WeightKey::Name(NameHash::of("first")),
        WeightKey::Node(NameHash::of("big-1")),
        WeightKey::Zone(NameHash::of("eu-a")),
        WeightKey::Any,
    ]
}

#[test]
fn the_most_particular_key_counts_whatever_the_order() {
    for first in 0..keys().len() {
        let mut given: Vec<_> = keys().into_iter().zip(10u16..).skip(first).collect();
        for _ in 0..2 {
            given.reverse();
            let mut weights = Weights::default();
            for (key, weight) in &given {
                assert!(weights.add(*key, *weight));
            }
            let expected = 10 + u16::try_from(first).unwrap();
            assert_eq!(weights.of(&endpoint()), expected, "{weights:?}");
        }
    }
}

#[test]
fn who_is_not_meant_has_weight_1() {
    assert_eq!(Weights::default().of(&endpoint()), 1);
    let mut weights = Weights::default();
    for key in [
        WeightKey::Address([10, 0, 0, 8].into()),
        WeightKey::Name(NameHash::of("big-1")),
        WeightKey::Node(NameHash::of("eu-a")),
        WeightKey::Zone(NameHash::of("web-0")),
    ] {
        weights.add(key, 0);
    }
    assert_eq!(weights.of(&endpoint()), 1);
    let nameless = Endpoint {
        node: None,
        pod: None,
        hostname: None,
        zone: None,
        ..endpoint()
    };
    assert_eq!(weights.of(&nameless), 1);
}

#[test]
fn ipvs_names_are_taken_and_no_others() {
    for scheduler in Scheduler::ALL {
        assert_eq!(scheduler_named(scheduler.name()), Some(scheduler));
        assert!(scheduler_names().contains(scheduler.name()));
    }
    for (name, scheduler) in [
        ("wrr", Scheduler::RoundRobin),
        ("wlc", Scheduler::LeastConnections),
        ("mh", Scheduler::Maglev),
    ] {
        assert_eq!(scheduler_named(name), Some(scheduler));
    }
    for name in ["", "RR", " rr", "lblc", "lblcr", "ovf", "fo", "roundrobin"] {
        assert_eq!(scheduler_named(name), None, "{name}");
    }
}

/// There are 250,000 of them in a large cluster.
#[test]
fn what_weights_need_takes_24_bytes_of_an_endpoint() {
    assert_eq!(size_of::<Option<NameHash>>(), 8);
    assert_eq!(size_of::<Endpoint>(), 80);
}
