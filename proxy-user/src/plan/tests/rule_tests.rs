//! The rule by which backends are drawn: what a change of it writes, and what there is where slots are few.

use proxy_common::abi::{Backend, Scheduler, ServiceWord};

use super::{
    ROOM,
    oracle::{Desired, RANDOM, RuleSpec, all_services, one_by},
    world::World,
};
use crate::{
    maps::{Capacity, MapStore, Observed},
    plan::{Planner, Smaller, Step},
};

const MAGLEV: RuleSpec = RuleSpec {
    scheduler: Scheduler::Maglev,
    ..RANDOM
};

fn few(slots: u32) -> Capacity {
    Capacity { slots, ..ROOM }
}

/// Steps on the way from the first state to the second.
fn steps(from: &Desired, to: &Desired) -> Vec<Step> {
    let mut world = World::new(ROOM);
    world.want(from.clone(), None);
    let plan = world.planner.plan(&to.changes(all_services()));
    plan.steps.into_iter().map(|planned| planned.step).collect()
}

fn only_word(steps: &[Step]) -> ServiceWord {
    match steps {
        [Step::Switch { word, .. }] => *word,
        _ => panic!("{steps:?}"),
    }
}

#[test]
fn another_rule_for_the_same_slots_is_one_switch() {
    let random = one_by(RANDOM, 0, 0b111, &[0]);
    for scheduler in Scheduler::ALL {
        for fails_over in [false, true] {
            let rule = RuleSpec {
                scheduler,
                fails_over,
                ..RANDOM
            };
            let steps = steps(&random, &one_by(rule, 0, 0b111, &[0]));
            if scheduler == Scheduler::Maglev {
                let is_table = matches!(
                    &steps[..],
                    [Step::WriteSlots { backend_ids, .. }, Step::Switch { .. }]
                        if backend_ids.len() == 2039
                );
                assert!(is_table, "{steps:?}");
            } else if scheduler == Scheduler::Random && !fails_over {
                assert_eq!(steps, []);
            } else {
                let word = only_word(&steps);
                let found = (word.scheduler(), word.fails_over());
                assert_eq!(found, (scheduler, fails_over));
            }
        }
    }
}

#[test]
fn the_same_weight_for_all_writes_backends_and_leaves_slots_and_word() {
    let weights = [5; 7];
    let rule = RuleSpec { weights, ..RANDOM };
    let steps = steps(
        &one_by(RANDOM, 0, 0b111, &[0]),
        &one_by(rule, 0, 0b111, &[0]),
    );
    assert_eq!(steps.len(), 3);
    for step in &steps {
        assert!(
            matches!(
                step,
                Step::WriteBackend {
                    backend: Backend { weight: 5, .. },
                    ..
                }
            ),
            "{step}"
        );
    }
}

#[test]
fn the_rule_makes_no_difference_to_a_list_that_is_empty() {
    let steps = steps(&one_by(RANDOM, 0, 0, &[0]), &one_by(MAGLEV, 0, 0, &[0]));
    assert_eq!(steps, []);
}

#[test]
fn another_weight_writes_that_backend_and_the_slots() {
    let mut weights = [1; 7];
    weights[1] = 3;
    let rule = RuleSpec { weights, ..RANDOM };
    let steps = steps(
        &one_by(RANDOM, 0, 0b111, &[0]),
        &one_by(rule, 0, 0b111, &[0]),
    );
    let [
        Step::WriteBackend { id, backend },
        Step::WriteSlots { backend_ids, .. },
        Step::Switch { word, .. },
    ] = &steps[..]
    else {
        panic!("{steps:?}");
    };
    assert_eq!((backend.weight, backend_ids.len()), (3, 5));
    assert_eq!(backend_ids.iter().filter(|slot| *slot == id).count(), 3);
    assert!(word.is_weighted());
}

/// What a plan of these says, and the slots that the maps then hold.
fn planned(world: &mut World, desired: &Desired) -> (Vec<(u32, u32)>, usize) {
    let mut plan = world.planner.plan(&desired.changes(all_services()));
    assert_eq!(plan.refused, []);
    let smaller = std::mem::take(&mut plan.smaller);
    let smaller = smaller.iter().map(|told| (told.slots, told.wanted));
    let report = world.write(plan);
    assert!(report.failed.is_empty());
    let Observed { slots, .. } = world.maps().observe().unwrap();
    (smaller.collect(), slots.values().map(Vec::len).sum())
}

#[test]
fn where_slots_are_few_a_table_is_smaller_or_the_list_itself_and_that_is_told() {
    let desired = one_by(MAGLEV, 0, 0b111_1111, &[0]);
    for (slots, table, smaller) in [
        (4096, 2039, vec![]),
        (2048, 1021, vec![(1021, 2039)]),
        (1024, 509, vec![(509, 2039)]),
        (512, 251, vec![(251, 2039)]),
        (256, 7, vec![(7, 2039)]),
        (8, 7, vec![(7, 2039)]),
    ] {
        let mut world = World::new(few(slots));
        assert_eq!(planned(&mut world, &desired), (smaller.clone(), table));
        // It is as good as it can be.
        let plan = world.planner.plan(&desired.changes(all_services()));
        assert!(plan.steps.is_empty() && plan.smaller.len() == smaller.len());
        let mut fresh = Planner::adopt(few(slots), &world.maps().observe().unwrap());
        assert!(
            fresh
                .plan(&desired.changes(all_services()))
                .steps
                .is_empty()
        );
    }
}

#[test]
fn where_slots_are_few_weights_are_one_slot_each_and_that_is_told() {
    let weights = [100, 99, 98, 97, 1, 1, 1];
    let rule = RuleSpec { weights, ..RANDOM };
    let desired = one_by(rule, 0, 0b111_1111, &[0]);
    let mut world = World::new(few(1024));
    assert_eq!(planned(&mut world, &desired), (vec![], 397));
    let mut world = World::new(few(512));
    assert_eq!(planned(&mut world, &desired), (vec![(7, 397)], 7));
}

#[test]
fn a_table_leaves_room_for_what_others_need() {
    let mut world = World::new(few(4096));
    // One has a table; the other has what it needs.
    let mut desired = one_by(MAGLEV, 0, 0b11, &[0]);
    assert_eq!(planned(&mut world, &desired), (vec![], 2039));
    let other = one_by(MAGLEV, 1, 0b11, &[1]);
    desired.ports.extend(other.ports);
    assert_eq!(planned(&mut world, &desired), (vec![(2, 2039)], 2041));
}

#[test]
fn what_is_smaller_says_which_flag_helps() {
    let port = one_by(MAGLEV, 0, 1, &[0]).ports.into_keys().next();
    let smaller = Smaller {
        key: port.unwrap(),
        slots: 7,
        wanted: 2039,
    };
    let text = smaller.to_string();
    for part in [
        "ns/s0",
        "7 slots instead of 2039",
        "KP_SLOTS",
        "--max-slots",
    ] {
        assert!(text.contains(part), "{text}");
    }
}
