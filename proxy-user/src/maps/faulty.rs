//! A store whose operations fail at random, as those of a kernel that runs out of memory: for tests.

use std::{cell::Cell, io};

use aya::{maps::MapError, sys::SyscallError};
use proxy_common::abi::Counter;

use super::{Capacity, MapStore, Observed, StoreError};
use crate::plan::Step;

/// What a system call may say that worked a moment ago: out of memory, full, taken, interrupted, later.
const ERRORS: [i32; 5] = [
    libc::ENOMEM,
    libc::E2BIG,
    libc::EBUSY,
    libc::EINTR,
    libc::EAGAIN,
];

/// Of a batch the steps before the one that fails are carried out; of a step that writes several elements
/// (slots, which nobody reads before the switch), some of them.
#[derive(Debug)]
pub struct Faulty<S> {
    pub inner: S,
    /// Of a hundred operations so many fail; 0: none.
    pub percent: u64,
    dice: Cell<u64>,
    faults: Cell<u64>,
}

impl<S> Faulty<S> {
    /// The same seed gives the same faults.
    pub fn new(inner: S, percent: u64, seed: u64) -> Self {
        Self {
            inner,
            percent,
            dice: Cell::new(seed),
            faults: Cell::new(0),
        }
    }

    /// Operations that have failed.
    pub fn faults(&self) -> u64 {
        self.faults.get()
    }

    /// splitmix64 (Steele, Lea, Flood 2014).
    fn roll(&self) -> u64 {
        let state = self.dice.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.dice.set(state);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&self, limit: usize) -> usize {
        usize::try_from(self.roll() % limit.max(1) as u64).expect("below a usize")
    }

    fn fails(&self) -> bool {
        let fails = self.roll() % 100 < self.percent;
        self.faults.set(self.faults.get() + u64::from(fails));
        fails
    }

    fn error(&self) -> StoreError {
        let error = ERRORS[self.below(ERRORS.len())];
        StoreError::Map {
            map: "faulty",
            source: MapError::SyscallError(SyscallError {
                call: "bpf",
                io_error: io::Error::from_raw_os_error(error),
            }),
        }
    }
}

impl<S: MapStore> MapStore for Faulty<S> {
    fn capacity(&self) -> Capacity {
        self.inner.capacity()
    }

    fn execute(&mut self, step: &Step) -> Result<(), StoreError> {
        if !self.fails() {
            return self.inner.execute(step);
        }
        if let Step::WriteSlots { first, backend_ids } = step {
            self.inner.execute(&Step::WriteSlots {
                first: *first,
                backend_ids: backend_ids[..self.below(backend_ids.len())].to_vec(),
            })?;
        }
        Err(self.error())
    }

    fn execute_all(&mut self, steps: &[&Step]) -> (usize, Option<StoreError>) {
        let whole = steps.iter().position(|_| self.fails());
        let (done, error) = self
            .inner
            .execute_all(&steps[..whole.unwrap_or(steps.len())]);
        (done, error.or_else(|| whole.map(|_| self.error())))
    }

    fn holds(&self, step: &Step) -> bool {
        !self.fails() && self.inner.holds(step)
    }

    fn is_busy(&self, backend: u32) -> bool {
        self.fails() || self.inner.is_busy(backend)
    }

    fn removals(&self) -> Result<Vec<Step>, StoreError> {
        if self.fails() {
            return Err(self.error());
        }
        self.inner.removals()
    }

    fn observe(&self) -> Result<Observed, StoreError> {
        if self.fails() {
            return Err(self.error());
        }
        self.inner.observe()
    }

    fn counters(&self) -> Result<Vec<(Counter, u64)>, StoreError> {
        if self.fails() {
            return Err(self.error());
        }
        self.inner.counters()
    }
}
