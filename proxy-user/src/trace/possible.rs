//! Whom a scheduler that draws may choose. Pure.

use std::collections::HashMap;

use proxy_common::{
    abi::{Scheduler, ServiceWord},
    datapath::schedule::{PASSED_OVER, WINDOW},
};

/// What each backend of a run has to do, by id, as `schedule::burden` says it.
pub(super) type Burdens = HashMap<u32, u64>;

/// Whether there are random numbers with which the scheduler chooses `id`; `None` if it draws nothing. `run`:
/// the ids in the service's slots.
pub(super) fn may_draw(word: ServiceWord, run: &[u32], burdens: &Burdens, id: u32) -> Option<bool> {
    let burden = |id: &u32| burdens.get(id).copied().unwrap_or(PASSED_OVER);
    let is_there = run.contains(&id);
    match word.scheduler() {
        Scheduler::RoundRobin
        | Scheduler::SourceHash
        | Scheduler::DestinationHash
        | Scheduler::Maglev => None,
        // Even who is passed over: all draws may meet such.
        Scheduler::Random => Some(is_there),
        Scheduler::LeastConnections => {
            let mine = burden(&id);
            // There is another slot whose backend has as much to do.
            let as_busy = run.iter().filter(|other| burden(other) >= mine).count();
            Some(is_there && (run.len() == 1 || as_busy >= 2))
        }
        Scheduler::ShortestDelay | Scheduler::NeverQueue => {
            let from = |start: usize| {
                let window = run.iter().cycle().skip(start);
                let window = window.take(run.len().min(WINDOW as usize));
                // The first of the least.
                window.min_by_key(|id| burden(id))
            };
            Some((0..run.len()).any(|start| from(start) == Some(&id)))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proxy_common::{
        abi::BackendStats,
        datapath::{
            fake::Maps,
            schedule::{self, Draw},
        },
    };

    use super::*;

    /// Service 1 with backends 1, 2, ... in so many slots each; connections as said; those with a negative
    /// number are passed over.
    fn maps(scheduler: Scheduler, of: &[(usize, i64)]) -> (Maps, Draw, Vec<u32>) {
        let mut maps = Maps::default();
        maps.now_ns.set(1);
        let mut run = Vec::new();
        for (id, (slots, active)) in (1..).zip(of) {
            run.extend(std::iter::repeat_n(id, *slots));
            let stats = BackendStats {
                active: (*active).max(0),
                passed_over_until_ns: if *active < 0 { 9 } else { 0 },
                ..BackendStats::default()
            };
            maps.backend_stats.borrow_mut().insert(id, stats);
        }
        maps.slots = (0..).zip(run.iter().copied()).collect();
        let count = u32::try_from(run.len()).expect("a few");
        let word = ServiceWord::with_backends(0, count).scheduled(scheduler, true, false);
        let draw = Draw {
            service: 1,
            word,
            client: 0,
            destination: 0,
            avoid: 0,
        };
        (maps, draw, run)
    }

    #[test]
    fn whom_the_datapath_draws_is_possible_and_who_is_possible_is_drawn() {
        let worlds: [&[(usize, i64)]; 6] = [
            &[(1, 0)],
            &[(1, 3), (1, 3), (1, 9)],
            &[(1, 0), (2, 5), (1, 2), (1, 0)],
            &[(1, -1), (1, 4), (1, 7)],
            &[(1, -1), (1, -1), (1, 7)],
            &[(1, 1); 40],
        ];
        for scheduler in [
            Scheduler::LeastConnections,
            Scheduler::ShortestDelay,
            Scheduler::NeverQueue,
        ] {
            for world in worlds {
                let (maps, draw, run) = maps(scheduler, world);
                let burden = |id: &u32| (*id, schedule::burden(&maps, &draw, *id));
                let burdens: Burdens = run.iter().map(burden).collect();
                let possible: BTreeSet<u32> = (run.iter().copied())
                    .filter(|id| may_draw(draw.word, &run, &burdens, *id) == Some(true))
                    .collect();
                // So many that none is missed.
                let drawn: BTreeSet<u32> =
                    (0..100_000).map(|_| schedule::pick(&maps, &draw)).collect();
                assert_eq!(drawn, possible, "{scheduler:?} of {world:?}");
            }
        }
    }

    #[test]
    fn what_draws_nothing_is_not_judged() {
        for scheduler in Scheduler::ALL {
            let (_, draw, run) = maps(scheduler, &[(1, 0), (1, 0)]);
            let is_judged = may_draw(draw.word, &run, &Burdens::new(), 1).is_some();
            let draws = !scheduler.looks_at_addresses() && scheduler != Scheduler::RoundRobin;
            assert_eq!(is_judged, draws, "{scheduler:?}");
        }
        let (_, draw, run) = maps(Scheduler::Random, &[(1, 0), (3, -1)]);
        for (id, wanted) in [(1, true), (2, true), (3, false)] {
            let found = may_draw(draw.word, &run, &Burdens::new(), id);
            assert_eq!(found, Some(wanted));
        }
    }
}
