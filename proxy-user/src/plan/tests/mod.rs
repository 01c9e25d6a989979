//! The invariants of DESIGN §3.3, by random histories.

mod oracle;
pub(super) mod paper;
mod rule_tests;
mod world;

use oracle::{Desired, all_services, desired, one, outside};
use proptest::{prelude::*, sample::Index};
use proxy_common::abi::ServiceWord;
use world::{Failure, World};

use super::{Step, Used};
use crate::maps::Capacity;

const ROOM: Capacity = Capacity {
    frontends: 64,
    services: 64,
    backends: 256,
    slots: 1 << 20,
    source_ranges: 64,
    service_nets: 8,
};

/// Nothing is ever refused.
const AMPLE: Capacity = Capacity {
    backends: 1 << 16,
    slots: 1 << 24,
    services: 1 << 12,
    ..ROOM
};

const NOTHING: Used = Used {
    frontends: 0,
    source_ranges: 0,
    service_nets: 0,
    services: 0,
    backends: 0,
    slots: 0,
};

#[derive(Clone, Debug)]
enum Act {
    Want(Desired, Option<Failure>),
    Retry,
    StartReaders,
    BeginGrace,
    PassGrace(Option<Failure>),
    Restart,
    Connect(Vec<Index>),
    Close(Index),
}

fn failure() -> impl Strategy<Value = Option<Failure>> {
    let failure = (0usize..30, any::<bool>()).prop_map(|(after, cut)| Failure { after, cut });
    prop::option::weighted(0.3, failure)
}

fn history() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (desired(), failure()).prop_map(|(desired, failure)| Act::Want(desired, failure)),
        1 => Just(Act::Retry),
        2 => Just(Act::StartReaders),
        2 => Just(Act::BeginGrace),
        2 => failure().prop_map(Act::PassGrace),
        1 => Just(Act::Restart),
        2 => prop::collection::vec(any::<Index>(), 1..4).prop_map(Act::Connect),
        1 => any::<Index>().prop_map(Act::Close),
    ];
    prop::collection::vec(act, 1..14)
}

fn live(world: &mut World, history: Vec<Act>) {
    for act in history {
        match act {
            Act::Want(desired, failure) => world.want(desired, failure),
            Act::Retry => world.retry(),
            Act::StartReaders => world.start_readers(),
            Act::BeginGrace => {
                world.begin_grace();
            }
            Act::PassGrace(failure) => world.pass_grace(failure),
            Act::Restart => world.restart(),
            Act::Connect(to) => to.into_iter().for_each(|to| world.connect(to)),
            Act::Close(which) => world.close(which),
        }
    }
}

fn nothing_is_left(world: &mut World) {
    world.close_all();
    world.want(Desired::default(), None);
    world.settle();
    assert_eq!(world.planner.used(), NOTHING);
    assert_eq!(world.planner.backend_ids.remembered(), 0);
    let maps = world.maps();
    assert!(maps.maps.frontends.is_empty() && maps.names.is_empty());
    assert!(maps.maps.backends.is_empty());
    assert!(maps.maps.source_ranges.is_empty() && maps.maps.service_nets.is_empty());
    assert!(
        maps.maps
            .services
            .values()
            .all(|service| *service == ServiceWord::default().into())
    );
}

#[test]
fn a_frontend_that_moves_late_frees_its_old_service_all_the_same() {
    let mut world = World::new(ROOM);
    world.want(one(0, 1, &[0]), None);
    // Name, backend, slots and switch of the new owner succeed; it does not get the frontend.
    let failure = Failure {
        after: 4,
        cut: false,
    };
    world.want(one(1, 1, &[0]), Some(failure));
    assert_eq!(world.unsettled().len(), 1);
    world.begin_grace();
    world.pass_grace(None);
    world.settle();
    assert_eq!(world.planner.used().services, 1);
    nothing_is_left(&mut world);
}

#[test]
fn a_frontend_whose_new_service_goes_before_it_moved_goes_too() {
    let mut world = World::new(ROOM);
    world.want(one(0, 1, &[0]), None);
    let failure = Failure {
        after: 4,
        cut: false,
    };
    world.want(one(1, 1, &[0]), Some(failure));
    world.begin_grace();
    world.pass_grace(None);
    nothing_is_left(&mut world);
}

#[test]
fn what_could_not_be_cleared_is_cleared_after_the_next_grace_period() {
    let mut world = World::new(ROOM);
    world.want(one(0, 0b11, &[0]), None);
    world.want(one(0, 0b01, &[0]), None);
    world.begin_grace();
    world.pass_grace(Some(Failure {
        after: 0,
        cut: true,
    }));
    world.settle();
    assert_eq!(world.planner.used().backends, 1);
}

/// As after a readiness probe that failed for a moment, or a Service that is deleted and made again.
#[test]
fn a_backend_that_comes_back_has_the_id_that_its_connections_name() {
    for without in [one(0, 0b01, &[0]), Desired::default()] {
        let mut world = World::new(ROOM);
        world.want(one(0, 0b11, &[0]), None);
        for id in [1, 2, 2] {
            world.connect_to(id);
        }
        // Before its epoch has passed, and after.
        for graces in [1, 2, 3] {
            world.want(without.clone(), None);
            for _ in 0..graces {
                world.begin_grace();
                world.pass_grace(None);
            }
            // It is tried and fails, and what it was to have still waits.
            let failure = Failure {
                after: 0,
                cut: true,
            };
            world.want(one(0, 0b11, &[0]), Some(failure));
            // Others get other ids: the world looks at each that is written.
            world.want(one(1, 0b11, &[1]), None);
            world.begin_grace();
            world.pass_grace(None);
            world.want(one(2, 0b1111, &[2]), None);
            world.want(one(0, 0b11, &[0]), None);
            world.settle();
        }
        nothing_is_left(&mut world);
    }
}

/// From outside it would lead to an endpoint that is none any more.
#[test]
fn a_new_frontend_names_no_list_of_this_node_that_is_about_to_lose_its_last_backend() {
    let mut world = World::new(ROOM);
    world.want(outside(0b11, 0b01, &[0]), None);
    let after = outside(0b11, 0, &[0, 1]);
    let plan = world.planner.plan(&after.changes(all_services()));
    let steps: Vec<&Step> = plan.steps.iter().map(|planned| &planned.step).collect();
    let is_emptied = |step: &Step| matches!(step, Step::Switch { word, .. } if word.count() == 0);
    let emptied = steps.iter().position(|step| is_emptied(step));
    let named = steps
        .iter()
        .position(|step| matches!(step, Step::PutFrontend { .. }));
    assert!(emptied.is_some() && emptied < named, "{steps:?}");
}

proptest! {
    /// The checks after every single step are in `world`.
    #[test]
    fn any_history_leads_to_the_desired_state_and_leaks_nothing(history in history()) {
        let mut world = World::new(ROOM);
        live(&mut world, history);
        world.settle();
        assert!(world.unsettled().is_empty());
        world.is_as_known();
        world.all_is_in_place();
        assert_eq!(world.plan_again(), []);
        world.fresh_planner_has_nothing_to_do();
        nothing_is_left(&mut world);
    }

    #[test]
    fn any_history_leads_there_in_however_many_plans(history in history(), at_once in 1usize..4) {
        let mut world = World::new(AMPLE);
        world.at_once = at_once;
        live(&mut world, history);
        world.settle();
        assert!(world.unsettled().is_empty());
        world.is_as_known();
        world.all_is_in_place();
        assert_eq!(world.plan_again(), []);
        world.fresh_planner_has_nothing_to_do();
        nothing_is_left(&mut world);
    }

    #[test]
    fn a_second_plan_of_the_same_changes_is_empty(states in prop::collection::vec(desired(), 1..5)) {
        let mut world = World::new(ROOM);
        for state in states {
            world.want(state, None);
            assert_eq!(world.plan_again(), []);
        }
    }

    #[test]
    fn what_has_no_room_is_refused_and_costs_nobody_else(
        history in history(),
        frontends in 1u32..8,
        services in 2u32..10,
        backends in 2u32..24,
        slots in prop_oneof![1u32..40, 40u32..5000],
        source_ranges in 0u32..8,
        last in desired(),
    ) {
        let mut world = World::new(Capacity {
            frontends,
            services,
            backends,
            slots,
            source_ranges,
            service_nets: 8,
        });
        live(&mut world, history);
        world.want(last, None);
        nothing_is_left(&mut world);
    }
}
