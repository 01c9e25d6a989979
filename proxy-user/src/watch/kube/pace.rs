//! In a flood of events a watch is not woken for each: they are read a few at a time.

use std::time::Duration;

use futures::{FutureExt as _, Stream, StreamExt as _};
use tokio::time::{Instant, sleep};

/// An event waits so long at most, once they come faster than [`MANY`] in [`WINDOW`].
const REST: Duration = Duration::from_millis(1);
const WINDOW: Duration = Duration::from_millis(5);
const MANY: u32 = 10;

/// How fast events come.
#[derive(Debug)]
pub(super) struct Pace {
    since: Instant,
    events: u32,
    flood: bool,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            events: 0,
            flood: false,
        }
    }

    /// The next one. Those that have come already are not kept waiting.
    pub(super) async fn next<S: Stream + Unpin>(&mut self, events: &mut S) -> Option<S::Item> {
        let next = match events.next().now_or_never() {
            Some(next) => next,
            None => {
                if self.is_flood(Instant::now()) {
                    sleep(REST).await;
                }
                events.next().await
            }
        };
        self.events += 1;
        next
    }

    /// No event is there.
    fn is_flood(&mut self, now: Instant) -> bool {
        let passed = now.duration_since(self.since);
        if passed >= WINDOW {
            // So many in each window that has passed.
            self.flood =
                u128::from(self.events) * WINDOW.as_nanos() >= u128::from(MANY) * passed.as_nanos();
            self.events = 0;
            self.since = now;
        }
        self.flood
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    const fn millis(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    #[test]
    fn it_rests_while_events_come_fast_and_not_when_they_come_one_by_one() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        let mut pass = |time: Duration, events: u32| {
            now += time;
            pace.events += events;
            pace.is_flood(now)
        };
        assert!(!pass(millis(60_000), 1), "after a long silence");
        assert!(!pass(millis(1), 1_000), "not known yet");
        assert!(pass(millis(4), 0), "a thousand in a window");
        assert!(pass(millis(2), 1), "still");
        assert!(pass(millis(4), 12), "2,000 a second and more");
        assert!(!pass(millis(50), 99), "fewer");
        assert!(!pass(millis(60_000), 1_000), "many, long ago");
    }

    #[tokio::test]
    async fn what_has_come_is_not_kept_waiting() {
        let began = Instant::now();
        let mut pace = Pace::new(began);
        pace.flood = true;
        let mut events = stream::iter(0..1000);
        let mut seen = 0;
        while pace.next(&mut events).await.is_some() {
            seen += 1;
        }
        assert_eq!(
            (seen, pace.since),
            (1000, began),
            "it never looked at the time"
        );
    }
}
