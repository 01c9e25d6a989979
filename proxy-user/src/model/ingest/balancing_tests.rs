use std::collections::BTreeMap;

use proptest::prelude::*;
use proxy_common::abi::Scheduler;

use super::*;
use crate::model::scheduler_names;

fn read(annotations: &[(&str, &str)]) -> (ServiceBalancing, Vec<String>) {
    let own = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
    let meta = ObjectMeta {
        annotations: Some(annotations.iter().map(own).collect::<BTreeMap<_, _>>()),
        ..ObjectMeta::default()
    };
    let mut problems = Problems::of("Service", "ns/web");
    let balancing = balancing(&meta, &mut problems);
    let lines = problems.found.iter().map(ToString::to_string);
    (balancing, lines.collect())
}

fn weighed(text: &str) -> (Weights, Vec<String>) {
    let (balancing, problems) = read(&[(ANNOTATION_WEIGHTS, text)]);
    (balancing.weights, problems)
}

fn those(given: &[(WeightKey, u16)]) -> Weights {
    let mut weights = Weights::default();
    for (key, weight) in given {
        assert!(weights.add(*key, *weight));
    }
    weights
}

#[test]
fn what_is_not_said_or_blank_is_left_to_the_node() {
    assert_eq!(read(&[]), (ServiceBalancing::default(), vec![]));
    let blank = [
        (ANNOTATION_SCHEDULER, ""),
        (ANNOTATION_FAILOVER, " "),
        (ANNOTATION_WEIGHTS, " , "),
    ];
    assert_eq!(read(&blank), (ServiceBalancing::default(), vec![]));
}

#[test]
fn every_scheduler_is_known_by_its_name() {
    for scheduler in Scheduler::ALL {
        let (balancing, problems) = read(&[(ANNOTATION_SCHEDULER, scheduler.name())]);
        assert_eq!(balancing.scheduler, Some(scheduler));
        assert_eq!(problems, [""; 0]);
    }
    let (balancing, _) = read(&[(ANNOTATION_SCHEDULER, " wlc ")]);
    assert_eq!(balancing.scheduler, Some(Scheduler::LeastConnections));
}

#[test]
fn an_unknown_scheduler_costs_only_itself() {
    let (balancing, problems) = read(&[
        (ANNOTATION_SCHEDULER, "fastest"),
        (ANNOTATION_FAILOVER, "false"),
        (ANNOTATION_WEIGHTS, "*=2"),
    ]);
    let expected = ServiceBalancing {
        scheduler: None,
        fails_over: Some(false),
        weights: those(&[(WeightKey::Any, 2)]),
    };
    assert_eq!(balancing, expected);
    assert_eq!(
        problems,
        [format!(
            "Service ns/web: metadata.annotations[kube-portal.io/scheduler]: \"fastest\" is not a \
             scheduler; use {}; until then it is the node's own (--scheduler)",
            scheduler_names()
        )]
    );
}

#[test]
fn failover_is_true_or_false_and_nothing_else() {
    let failover = |text| {
        let (balancing, problems) = read(&[(ANNOTATION_FAILOVER, text)]);
        (balancing.fails_over, problems.len())
    };
    assert_eq!(failover("true"), (Some(true), 0));
    assert_eq!(failover("false"), (Some(false), 0));
    for text in ["off", "True", "1", "no"] {
        assert_eq!(failover(text), (None, 1), "{text}");
    }
}

#[test]
fn weights_are_for_pods_hostnames_addresses_nodes_zones_or_all() {
    let (weights, problems) = weighed(
        "web-0=3, 10.0.0.7 = 2,node/big-1=4 ,zone/eu-a=1000,*=0, fd00::0:1=5, web.first=6,",
    );
    assert_eq!(problems, [""; 0]);
    let name = NameHash::of;
    let expected = those(&[
        (WeightKey::Name(name("web-0")), 3),
        (WeightKey::Address([10, 0, 0, 7].into()), 2),
        (WeightKey::Node(name("big-1")), 4),
        (WeightKey::Zone(name("eu-a")), 1000),
        (WeightKey::Any, 0),
        (WeightKey::Address("fd00::1".parse().unwrap()), 5),
        (WeightKey::Name(name("web.first")), 6),
    ]);
    assert_eq!(weights, expected);
}

#[test]
fn each_bad_entry_is_left_out_alone() {
    let good = those(&[(WeightKey::Name(NameHash::of("web-0")), 3)]);
    for bad in [
        "web-1",
        "web-1=",
        "=3",
        "web-1=-1",
        "web-1=+1",
        "web-1=1001",
        "web-1=1.5",
        "web-1=1=1",
        "web-1=99999999999",
        "node/=1",
        "zone/=1",
        "pod/web-1=1",
        "fd00::x=1",
        "a b=1",
        "node/a/b=1",
        "web-0=4",
        "**=1",
        "wéb=1",
    ] {
        let (weights, problems) = weighed(&format!("web-0=3,{bad}"));
        assert_eq!(weights, good, "{bad}");
        assert_eq!(problems.len(), 1, "{bad}");
        assert!(
            problems[0].contains(&format!("{bad:?} is no weight")),
            "{problems:?}"
        );
    }
}

#[test]
fn however_many_are_bad_it_is_told_in_one_line_of_bounded_length() {
    let text = format!("{}=1,web-0=2{}", "é ".repeat(1000), ",x".repeat(1000));
    let (weights, problems) = weighed(&text);
    assert_eq!(
        weights,
        those(&[(WeightKey::Name(NameHash::of("web-0")), 2)])
    );
    let [line] = problems.as_slice() else {
        panic!("{problems:?}");
    };
    assert!(
        line.contains("...\" (and 1000 more) is no weight"),
        "{line}"
    );
    assert!(line.len() < 400, "{line}");
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[a-z0-9=,*/: .-]{0,40}",
        "(web-[0-9]|10.0.0.[0-9]|node/n|zone/z|[*])=[0-9]{1,5}(,(web-[0-9]|[*])=[0-9]{1,4}){0,3}",
    ]
}

proptest! {
    #[test]
    fn no_text_panics_or_changes_what_another_annotation_says(
        scheduler in any_text(), failover in any_text(), weights in any_text(),
    ) {
        let all = [
            (ANNOTATION_SCHEDULER, scheduler.as_str()),
            (ANNOTATION_FAILOVER, &failover),
            (ANNOTATION_WEIGHTS, &weights),
        ];
        let (together, problems) = read(&all);
        let [by_scheduler, by_failover, by_weights] = all.map(|one| read(&[one]));
        let apart = ServiceBalancing {
            scheduler: by_scheduler.0.scheduler,
            fails_over: by_failover.0.fails_over,
            weights: by_weights.0.weights,
        };
        prop_assert_eq!(together, apart);
        let told = [by_scheduler.1, by_failover.1, by_weights.1].concat();
        prop_assert_eq!(&problems, &told);
        prop_assert!(problems.iter().all(|line| !line.contains('\n')), "{:?}", problems);
    }

    #[test]
    fn a_bad_entry_never_changes_what_the_others_say(
        good in prop::collection::btree_map("web-[0-9]{1,3}", 0u16..=1000, 0..5),
        bad in "[^=,]*", at in any::<prop::sample::Index>(),
    ) {
        let mut entries: Vec<String> = good.iter().map(|(name, weight)| format!("{name}={weight}")).collect();
        entries.insert(at.index(entries.len() + 1), bad);
        let pairs: Vec<_> = good.iter().map(|(name, weight)| (WeightKey::Name(NameHash::of(name)), *weight)).collect();
        prop_assert_eq!(weighed(&entries.join(",")).0, those(&pairs));
    }
}
