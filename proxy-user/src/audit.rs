//! The maps compared with what the planner knows they hold, a few parts at a time between other work, and
//! written again where somebody else has changed them.
//!
//! What is compared at a time is compared on the loop that alone writes, so nothing of its own is taken for
//! drift.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    maps::{MapStore, StoreError},
    model::PortKey,
    plan::{Part, Planner, Step},
};

/// What was found is kept as text up to this many; the rest is only counted.
const TOLD: usize = 100;

/// One pass over everything.
#[derive(Debug)]
pub struct Audit {
    /// From the last to the first.
    parts: Vec<Part>,
    /// What would remove every entry that was there when it began; `None` until they have been read.
    entries: Option<Vec<Step>>,
    audited: Audited,
}

/// What a pass has found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audited {
    /// Entries that were looked at.
    pub checked: u64,
    /// Those that were not as they should be.
    pub drifted: u64,
    /// Those of them that are now.
    pub repaired: u64,
    /// The first of them, a line each.
    pub drift: Vec<String>,
}

/// An entry that is not as it should be.
struct Drift<'a> {
    port: Option<&'a PortKey>,
    step: &'a Step,
    failed: Option<StoreError>,
}

impl fmt::Display for Drift<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(port) = self.port {
            write!(f, "Service {port}: ")?;
        }
        let (was, now) = if self.step.is_removal() {
            ("was nobody's", "gone now")
        } else {
            ("was missing or changed", "written again")
        };
        write!(f, "{} {was}; ", self.step.subject())?;
        match &self.failed {
            None => f.write_str(now),
            Some(error) => write!(f, "it stays so until the next audit: {error}"),
        }
    }
}

impl Audit {
    pub fn of(planner: &Planner) -> Self {
        let mut parts = planner.parts();
        parts.reverse();
        Self {
            parts,
            entries: None,
            audited: Audited::default(),
        }
    }

    /// All there is in the maps, read since it began: [`MapStore::removals`].
    pub fn set_entries(&mut self, entries: Vec<Step>) {
        self.entries = Some(entries);
    }

    /// Whether it has nothing to do before [`Self::set_entries`].
    pub fn waits(&self) -> bool {
        self.parts.is_empty() && self.entries.is_none()
    }

    /// Looks at so many parts more. All that was found, at the end.
    pub fn go_on(
        &mut self,
        planner: &Planner,
        store: &mut impl MapStore,
        parts: usize,
    ) -> Option<Audited> {
        for _ in 0..parts {
            if let Some(part) = self.parts.pop() {
                let port = match &part {
                    Part::Port(key) => Some(key.as_ref()),
                    Part::Address(_) | Part::ServiceNet(_) => None,
                };
                for step in planner.steps_of(&part) {
                    self.check(store, port, &step);
                }
            } else if let Some(step) = self.entries.as_mut()?.pop() {
                if !planner.knows(&step) {
                    self.check(store, None, &step);
                }
            } else {
                return Some(std::mem::take(&mut self.audited));
            }
        }
        None
    }

    fn check(&mut self, store: &mut impl MapStore, port: Option<&PortKey>, step: &Step) {
        self.audited.checked += 1;
        if store.holds(step) {
            return;
        }
        self.audited.drifted += 1;
        let failed = store.execute(step).err();
        if failed.is_none() {
            self.audited.repaired += 1;
        }
        if self.audited.drift.len() < TOLD {
            let drift = Drift { port, step, failed };
            self.audited.drift.push(drift.to_string());
        }
    }
}

impl Audited {
    /// The lines, and how many more there were.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        let more = self.drifted - self.drift.len() as u64;
        let last = (more > 0).then(|| format!("and {more} entries more"));
        self.drift.iter().cloned().chain(last)
    }
}
