//! Connections without end, while the test changes what they should reach.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::tcp::ask_once;
use super::{Ask, ChurnPlan, ChurnReport};

/// Runs until stopped or dropped.
#[derive(Debug)]
pub(super) struct Churn {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    started: Instant,
    stop: AtomicBool,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    report: ChurnReport,
    allowed: Arc<BTreeSet<String>>,
    last_good: Instant,
}

impl Churn {
    pub(super) fn start(plan: ChurnPlan) -> Self {
        let started = Instant::now();
        let allowed = Arc::new(plan.allowed.clone());
        let seen = Seen {
            report: ChurnReport::default(),
            allowed,
            last_good: started,
        };
        let shared = Arc::new(Shared {
            started,
            stop: AtomicBool::new(false),
            seen: Mutex::new(seen),
        });
        let threads = (0..plan.threads.max(1))
            .map(|_| {
                let (shared, plan) = (Arc::clone(&shared), plan.clone());
                thread::spawn(move || shared.work(&plan))
            })
            .collect();
        Self {
            shared,
            threads: Mutex::new(threads),
        }
    }

    pub(super) fn allow(&self, allowed: BTreeSet<String>) {
        self.shared.seen().allowed = Arc::new(allowed);
    }

    pub(super) fn report(&self) -> ChurnReport {
        self.shared.seen().report.clone()
    }

    pub(super) fn stop(&self) -> ChurnReport {
        self.shared.stop.store(true, Ordering::Release);
        for thread in self
            .threads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
        {
            let _ = thread.join();
        }
        self.report()
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
    }
}

impl Shared {
    fn work(&self, plan: &ChurnPlan) {
        while !self.stop.load(Ordering::Acquire) {
            // What is right is settled before dialling: a change meanwhile does not matter.
            let allowed = Arc::clone(&self.seen().allowed);
            let outcome = ask_once(plan.to, Ask::Line, plan.timeout);
            let mut seen = self.seen();
            seen.report.attempts += 1;
            match &outcome {
                Ok(name) if allowed.is_empty() || allowed.contains(name) => seen.good(),
                Ok(name) => *seen.report.misdirected.entry(name.clone()).or_default() += 1,
                Err(error) if seen.report.first_error.is_none() => {
                    let after = self.started.elapsed();
                    seen.report.first_error = Some(format!("{error}, {after:?} after the start"));
                }
                Err(_) => {}
            }
            seen.report.tally.add(outcome);
            drop(seen);
            if !plan.pause.is_zero() {
                thread::sleep(plan.pause);
            }
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn good(&mut self) {
        let gap = super::micros(self.last_good);
        self.report.longest_gap_us = self.report.longest_gap_us.max(gap);
        self.last_good = Instant::now();
    }
}
