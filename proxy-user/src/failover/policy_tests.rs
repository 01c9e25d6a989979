//! The policy in a world of its own: maps that are only numbers, backends that live and die.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::policy::{Change, FAILURES, FIRST, LONGEST, List, Policy, Seen, What, Why};

const SECOND: u64 = 1_000_000_000;
const SERVICE: u32 = 7;
const BEGIN: u64 = 1_000_000 * SECOND;

fn seen(id: u32) -> Seen {
    Seen {
        id,
        at: ([10, 1, 0, u8::try_from(id).unwrap()], 8080).into(),
        is_chosen: true,
        failures: 0,
        until_ns: 0,
    }
}

/// The maps, and the agent that looks at them.
#[derive(Clone, Debug)]
struct World {
    now_ns: u64,
    list: List,
    /// What was told since the agent last looked.
    told: BTreeMap<u32, u64>,
}

impl World {
    fn of(count: u32) -> Self {
        Self {
            now_ns: BEGIN,
            list: List {
                service: SERVICE,
                fails_over: true,
                backends: (1..=count).map(seen).collect(),
            },
            told: BTreeMap::new(),
        }
    }

    fn backend(&mut self, id: u32) -> &mut Seen {
        let mut backends = self.list.backends.iter_mut();
        backends.find(|backend| backend.id == id).unwrap()
    }

    fn fails(&mut self, id: u32, times: u32) {
        self.backend(id).failures += times;
        self.told.insert(id, self.now_ns);
    }

    fn answers(&mut self, id: u32) {
        self.backend(id).failures = 0;
    }

    fn wait(&mut self, seconds: u64) {
        self.now_ns += seconds * SECOND;
    }

    fn look(&mut self, policy: &mut Policy) -> Vec<Change> {
        let told = std::mem::take(&mut self.told);
        let changes = policy.look(self.now_ns, &self.list, &told);
        for change in &changes {
            if let Some(until_ns) = change.write() {
                self.backend(change.id).until_ns = until_ns;
            }
        }
        changes
    }

    fn out(&self) -> BTreeSet<u32> {
        let backends = self.list.backends.iter();
        let out = backends.filter(|seen| seen.is_chosen && seen.until_ns > self.now_ns);
        out.map(|seen| seen.id).collect()
    }

    fn chosen(&self) -> usize {
        let backends = self.list.backends.iter();
        backends.filter(|seen| seen.is_chosen).count()
    }
}

/// For how many seconds each is passed over from now on.
fn lengths(changes: &[Change]) -> Vec<(u32, u64)> {
    let length = |change: &Change| match change.what {
        What::PassedOver { length, .. } => Some((change.id, length.as_secs())),
        What::Kept { .. } | What::Back(_) => None,
    };
    changes.iter().filter_map(length).collect()
}

fn back(changes: &[Change]) -> Vec<(u32, Why)> {
    let back = |change: &Change| match change.what {
        What::Back(why) => Some((change.id, why)),
        What::Kept { .. } | What::PassedOver { .. } => None,
    };
    changes.iter().filter_map(back).collect()
}

fn kept(changes: &[Change]) -> Vec<u32> {
    let kept = |change: &&Change| matches!(change.what, What::Kept { .. });
    changes.iter().filter(kept).map(|one| one.id).collect()
}

#[test]
fn a_backend_is_passed_over_from_the_third_failure_in_a_row() {
    let (mut world, mut policy) = (World::of(10), Policy::default());
    for _ in 1..FAILURES {
        world.fails(3, 1);
        assert_eq!(world.look(&mut policy), []);
    }
    world.answers(3);
    world.fails(3, FAILURES - 1);
    assert_eq!(world.look(&mut policy), []);
    world.fails(3, 1);
    assert_eq!(lengths(&world.look(&mut policy)), [(3, 10)]);
    assert_eq!(world.out(), [3].into());
}

#[test]
fn each_time_in_a_row_is_twice_as_long_up_to_five_minutes() {
    let (mut world, mut policy) = (World::of(2), Policy::default());
    world.fails(1, FAILURES);
    let mut seconds = Vec::new();
    for _ in 0..8 {
        let [(1, length)] = lengths(&world.look(&mut policy))[..] else {
            panic!("it is not passed over");
        };
        seconds.push(length);
        // What fails meanwhile had begun before.
        world.wait(length - 1);
        world.fails(1, 1);
        assert_eq!(world.look(&mut policy), []);
        world.wait(1);
        assert_eq!(
            world.look(&mut policy),
            [],
            "it is not tried before it is back"
        );
        world.fails(1, 1);
    }
    assert_eq!(seconds, [10, 20, 40, 80, 160, 300, 300, 300]);
}

#[test]
fn what_failed_while_it_was_out_is_no_new_failure_when_it_is_read_late() {
    let (mut world, mut policy) = (World::of(2), Policy::default());
    world.fails(1, FAILURES);
    world.look(&mut policy);
    world.wait(9);
    world.fails(1, 1);
    world.wait(1);
    assert_eq!(world.look(&mut policy), []);
    world.fails(1, 1);
    assert_eq!(lengths(&world.look(&mut policy)), [(1, 20)]);
}

#[test]
fn who_has_answered_for_as_long_as_it_was_out_begins_anew() {
    for (answers_for, then) in [(19, 40), (20, 10)] {
        let (mut world, mut policy) = (World::of(2), Policy::default());
        for length in [10, 20] {
            world.fails(1, FAILURES);
            assert_eq!(lengths(&world.look(&mut policy)), [(1, length)]);
            world.wait(length);
        }
        world.answers(1);
        assert_eq!(back(&world.look(&mut policy)), [(1, Why::Answers)]);
        assert_eq!(world.backend(1).until_ns, 0);
        world.wait(answers_for);
        assert_eq!(world.look(&mut policy), []);
        world.fails(1, FAILURES);
        assert_eq!(lengths(&world.look(&mut policy)), [(1, then)]);
    }
}

#[test]
fn who_is_never_tried_again_is_forgotten() {
    let (mut world, mut policy) = (World::of(2), Policy::default());
    world.fails(1, FAILURES);
    world.look(&mut policy);
    world.wait(10 + 599);
    assert_eq!(world.look(&mut policy), []);
    world.wait(1);
    assert_eq!(back(&world.look(&mut policy)), [(1, Why::Forgotten)]);
    assert_eq!(policy.services(), BTreeSet::new());
}

#[test]
fn half_of_the_backends_rounded_down_are_passed_over_at_most() {
    for (count, most) in [(1, 0), (2, 1), (3, 1), (4, 2), (10, 5), (11, 5)] {
        let (mut world, mut policy) = (World::of(count), Policy::default());
        for id in 1..=count {
            world.fails(id, FAILURES);
        }
        let changes = world.look(&mut policy);
        assert_eq!(world.out().len(), most, "of {count}");
        let others = count as usize - most;
        assert_eq!(kept(&changes).len(), others, "of {count}");
        // It is told once.
        for id in 1..=count {
            world.fails(id, 1);
        }
        assert_eq!(world.look(&mut policy), []);
    }
}

#[test]
fn those_who_failed_most_go_first_and_the_next_when_one_is_back() {
    let (mut world, mut policy) = (World::of(2), Policy::default());
    world.fails(1, FAILURES);
    world.fails(2, FAILURES + 1);
    let changes = world.look(&mut policy);
    assert_eq!(
        (lengths(&changes), kept(&changes)),
        (vec![(2, 10)], vec![1])
    );
    world.wait(10);
    assert_eq!(lengths(&world.look(&mut policy)), [(1, 10)]);
    assert_eq!(world.out(), [1].into());
}

#[test]
fn a_list_that_shrinks_takes_back_whoever_would_be_back_first() {
    let (mut world, mut policy) = (World::of(6), Policy::default());
    for id in [2, 1, 3] {
        world.fails(id, FAILURES);
        world.look(&mut policy);
        world.wait(1);
    }
    assert_eq!(world.out(), [1, 2, 3].into());
    world.list.backends.retain(|seen| seen.id < 5);
    assert_eq!(back(&world.look(&mut policy)), [(2, Why::TooMany)]);
    world.backend(4).is_chosen = false;
    assert_eq!(back(&world.look(&mut policy)), [(1, Why::TooMany)]);
    assert_eq!(world.out(), [3].into());
}

#[test]
fn who_leaves_or_whose_service_does_without_is_cleared() {
    let passed_over = || {
        let (mut world, mut policy) = (World::of(4), Policy::default());
        world.fails(2, FAILURES);
        world.look(&mut policy);
        (world, policy)
    };
    let (mut world, mut policy) = passed_over();
    world.backend(2).is_chosen = false;
    assert_eq!(back(&world.look(&mut policy)), [(2, Why::Left)]);
    assert_eq!(policy.services(), BTreeSet::new());

    let (mut world, mut policy) = passed_over();
    world.list.fails_over = false;
    assert_eq!(back(&world.look(&mut policy)), [(2, Why::SwitchedOff)]);
    world.fails(2, FAILURES);
    assert_eq!(world.look(&mut policy), []);
}

#[test]
fn an_id_that_is_given_to_another_endpoint_begins_anew() {
    for has_answered in [false, true] {
        let (mut world, mut policy) = (World::of(2), Policy::default());
        world.fails(1, FAILURES);
        world.look(&mut policy);
        world.wait(10);
        if has_answered {
            world.answers(1);
            world.look(&mut policy);
        }
        let other = Seen {
            at: "10.9.9.9:1".parse().unwrap(),
            ..seen(1)
        };
        *world.backend(1) = other;
        assert_eq!(world.look(&mut policy), []);
        world.fails(1, FAILURES);
        assert_eq!(lengths(&world.look(&mut policy)), [(1, 10)]);
    }
}

#[test]
fn the_next_agent_goes_on_from_what_the_maps_say() {
    let (mut world, mut policy) = (World::of(2), Policy::default());
    for length in [10, 20] {
        world.fails(1, FAILURES);
        world.look(&mut policy);
        if length == 10 {
            world.wait(length);
        }
    }
    world.wait(5);
    let mut next = Policy::default();
    world.fails(2, FAILURES);
    // One is out, and so the other is kept.
    assert_eq!(kept(&world.look(&mut next)), [2]);
    assert_eq!(next.passed_over(world.now_ns), 1);
    world.answers(2);
    world.wait(15);
    world.fails(1, 1);
    // 15 s were left, so it had been 20.
    assert_eq!(lengths(&world.look(&mut next)), [(1, 40)]);
}

#[test]
fn a_time_that_nobody_writes_is_taken_back() {
    let (mut world, mut policy) = (World::of(4), Policy::default());
    world.backend(3).until_ns = u64::MAX;
    assert_eq!(back(&world.look(&mut policy)), [(3, Why::Damaged)]);
    assert_eq!(world.backend(3).until_ns, 0);
}

#[test]
fn lists_are_judged_each_by_itself() {
    let (mut one, mut policy) = (World::of(2), Policy::default());
    let mut other = one.clone();
    other.list.service = SERVICE + 1;
    one.fails(1, FAILURES);
    other.fails(2, FAILURES);
    assert_eq!(lengths(&one.look(&mut policy)), [(1, 10)]);
    assert_eq!(lengths(&other.look(&mut policy)), [(2, 10)]);
    assert_eq!(one.look(&mut policy), []);
    assert_eq!(policy.passed_over(BEGIN), 2);
    assert_eq!(policy.services(), [SERVICE, SERVICE + 1].into());
    assert_eq!(policy.backends(SERVICE).collect::<Vec<_>>(), [1]);
}

#[derive(Clone, Debug)]
enum Happens {
    Fails(u32, u32),
    Answers(u32),
    Waits(u64),
    Comes(u32),
    Goes(u32),
    Drains(u32),
    Toggles,
    Restarts,
    Looks,
}

fn happens() -> impl Strategy<Value = Happens> {
    use Happens::{Answers, Comes, Drains, Fails, Goes, Looks, Restarts, Toggles, Waits};
    let id = 1..=8_u32;
    prop_oneof![
        8 => (id.clone(), 1..4_u32).prop_map(|(id, times)| Fails(id, times)),
        3 => id.clone().prop_map(Answers),
        4 => (1..100_u64).prop_map(Waits),
        2 => id.clone().prop_map(Comes),
        1 => id.clone().prop_map(Goes),
        1 => id.prop_map(Drains),
        1 => Just(Toggles),
        1 => Just(Restarts),
        6 => Just(Looks),
    ]
}

fn has(world: &World, id: u32) -> bool {
    world.list.backends.iter().any(|seen| seen.id == id)
}

fn happen(world: &mut World, policy: &mut Policy, what: &Happens) {
    match *what {
        Happens::Fails(id, times) if has(world, id) => world.fails(id, times),
        Happens::Answers(id) if has(world, id) => world.answers(id),
        Happens::Waits(seconds) => world.wait(seconds),
        Happens::Comes(id) if has(world, id) => world.backend(id).is_chosen = true,
        Happens::Comes(id) => world.list.backends.push(seen(id)),
        Happens::Goes(id) => world.list.backends.retain(|seen| seen.id != id),
        Happens::Drains(id) if has(world, id) => world.backend(id).is_chosen = false,
        Happens::Toggles => world.list.fails_over = !world.list.fails_over,
        Happens::Restarts => *policy = Policy::default(),
        Happens::Looks | Happens::Fails(..) | Happens::Answers(_) | Happens::Drains(_) => {}
    }
}

proptest! {
    #[test]
    fn whatever_happens_half_are_left_and_all_come_back(
        count in 1..=8_u32,
        history in proptest::collection::vec(happens(), 1..80),
    ) {
        let (mut world, mut policy) = (World::of(count), Policy::default());
        for what in &history {
            happen(&mut world, &mut policy, what);
            // Told so far, for what is new is to be about these only.
            let told = world.told.clone();
            let before = world.clone();
            if !matches!(what, Happens::Looks) {
                continue;
            }
            let changes = world.look(&mut policy);
            let chosen = world.chosen();
            prop_assert!(world.out().len() <= chosen / 2, "{world:?}");
            prop_assert!(chosen == 0 || world.out().len() < chosen);
            prop_assert!(world.list.fails_over || world.out().is_empty());
            prop_assert_eq!(policy.passed_over(world.now_ns), world.out().len());
            for seen in &world.list.backends {
                let longest = world.now_ns + LONGEST.as_secs() * SECOND;
                prop_assert!(seen.until_ns <= longest);
            }
            for change in &changes {
                let then = before.list.backends.iter().find(|seen| seen.id == change.id).unwrap();
                if let What::PassedOver { length, until_ns, .. } = change.what {
                    prop_assert!(then.failures >= FAILURES && then.until_ns <= world.now_ns);
                    prop_assert!((FIRST..=LONGEST).contains(&length));
                    prop_assert_eq!(until_ns, world.now_ns + length.as_secs() * SECOND);
                }
                if let What::Kept { .. } = change.what {
                    prop_assert!(told.contains_key(&change.id));
                    prop_assert_eq!(world.out().len(), chosen / 2);
                }
            }
            // Who looks twice sees the same.
            prop_assert_eq!(world.look(&mut policy), []);
        }
        // Nobody does anything any more, not even the agent.
        world.wait(LONGEST.as_secs());
        prop_assert_eq!(world.out(), BTreeSet::new());
        // All are well, and nothing is remembered.
        for seen in &mut world.list.backends {
            seen.failures = 0;
        }
        world.told.clear();
        for _ in 0..2 {
            world.look(&mut policy);
            world.wait(LONGEST.as_secs());
        }
        prop_assert_eq!(policy.services(), BTreeSet::new());
        prop_assert!(world.list.backends.iter().all(|seen| seen.until_ns == 0));
    }

    #[test]
    fn the_order_in_which_backends_are_read_decides_nothing(
        history in proptest::collection::vec(happens(), 1..60),
    ) {
        let (mut world, mut policy) = (World::of(6), Policy::default());
        let (mut other, mut others) = (world.clone(), Policy::default());
        for what in &history {
            happen(&mut world, &mut policy, what);
            happen(&mut other, &mut others, what);
            other.list.backends.reverse();
            if matches!(what, Happens::Looks) {
                prop_assert_eq!(world.look(&mut policy), other.look(&mut others));
            }
        }
    }
}
