//! When the next request may go out: a server that asks for a pause gets it, and watches that end as soon
//! as they have begun come ever more slowly.
//!
//! kube's watcher asks again at once when a watch ends, which is right only if it lasted.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

/// A watch that ended sooner was refused, whatever its status said.
const YOUNG: Duration = Duration::from_secs(1);
/// So many may end young without a pause: connections that were cut.
const FREE: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Nobody goes before.
    not_before: Option<Instant>,
    /// By the path that is watched.
    watches: HashMap<String, Watched>,
}

#[derive(Debug)]
struct Watched {
    last: Instant,
    ended_young: u32,
}

impl Turns {
    /// The server asked for a pause.
    pub(super) fn ask_pause(&mut self, pause: Duration, now: Instant) {
        // Late rather than early, and not all nodes at once.
        let until = now + pause + pause.mul_f64(0.5 * fastrand::f64());
        self.not_before = Some(self.not_before.map_or(until, |known| known.max(until)));
    }

    /// Another server answers.
    pub(super) fn forget_pause(&mut self) {
        self.not_before = None;
    }

    /// How much of the pause is left.
    pub(super) fn pause(&self, now: Instant) -> Duration {
        self.not_before
            .map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }

    /// A watch of `path` is to begin now; how long it has to wait for that.
    pub(super) fn watch(&mut self, path: &str, now: Instant) -> Duration {
        let Some(known) = self.watches.get_mut(path) else {
            let first = Watched {
                last: now,
                ended_young: 0,
            };
            self.watches.insert(path.to_owned(), first);
            return Duration::ZERO;
        };
        let young = now.saturating_duration_since(known.last) < YOUNG;
        known.ended_young = if young { known.ended_young + 1 } else { 0 };
        let wait = match known.ended_young.checked_sub(FREE + 1) {
            None => Duration::ZERO,
            Some(more) => {
                let pause = FIRST_PAUSE.saturating_mul(1 << more.min(16));
                pause
                    .min(LONGEST_PAUSE)
                    .mul_f64(0.5 + 0.5 * fastrand::f64())
            }
        };
        known.last = now + wait;
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_kept_whole_and_at_most_half_as_long_again() {
        let now = Instant::now();
        let pause = Duration::from_secs(10);
        let mut seen = Vec::new();
        for _ in 0..50 {
            let mut turns = Turns::default();
            assert_eq!(turns.pause(now), Duration::ZERO);
            turns.ask_pause(pause, now);
            let left = turns.pause(now);
            assert!(left >= pause && left <= pause.mul_f64(1.5), "{left:?}");
            // A shorter one that is asked for later does not cut it.
            turns.ask_pause(Duration::from_secs(1), now);
            assert_eq!(turns.pause(now), left);
            assert_eq!(turns.pause(now + left), Duration::ZERO);
            turns.forget_pause();
            assert_eq!(turns.pause(now), Duration::ZERO);
            seen.push(left);
        }
        seen.sort();
        seen.dedup();
        assert!(seen.len() > 40, "not all nodes at once: {seen:?}");
    }

    #[test]
    fn watches_that_end_at_once_come_ever_more_slowly_and_those_that_last_at_once() {
        let mut turns = Turns::default();
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..20 {
            let wait = turns.watch("/services", now);
            now += wait + Duration::from_millis(1);
            waits.push(wait);
        }
        assert!(waits[..4].iter().all(Duration::is_zero), "{waits:?}");
        assert!(waits[4] >= FIRST_PAUSE / 2 && waits[4] <= FIRST_PAUSE);
        assert!(waits[19] >= LONGEST_PAUSE / 2 && waits[19] <= LONGEST_PAUSE);
        assert_eq!(turns.watch("/endpointslices", now), Duration::ZERO);
        assert_eq!(turns.watch("/services", now + YOUNG), Duration::ZERO);
    }
}
