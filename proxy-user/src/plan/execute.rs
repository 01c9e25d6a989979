//! Carries a plan out, and tells the planner what really happened.

use std::{collections::HashSet, sync::Arc};

use super::{Plan, Planner};
use crate::{
    maps::{MapStore, StoreError},
    model::PortKey,
};

/// A Service port whose plan stopped at a step that failed; what came before it is done.
#[derive(Debug, thiserror::Error)]
#[error("Service {key}: {step}: {error}")]
pub struct Failed {
    pub key: Arc<PortKey>,
    /// The step in words.
    pub step: String,
    pub error: StoreError,
}

/// What came of a plan.
#[derive(Debug, Default)]
pub struct Report {
    pub executed: usize,
    pub failed: Vec<Failed>,
}

/// Executes every step in order. A step that fails ends its own Service port's part of the plan (that
/// of both its lists: one names the other), and nobody else's.
pub fn execute(planner: &mut Planner, mut plan: Plan, store: &mut impl MapStore) -> Report {
    let mut report = Report::default();
    let mut stopped: HashSet<PortKey> = HashSet::new();
    for planned in std::mem::take(&mut plan.steps) {
        if stopped.contains(&planned.port.of_cluster()) {
            planner.abandon(&mut plan, &planned);
            continue;
        }
        match store.execute(&planned.step) {
            Ok(()) => {
                planner.done(&mut plan, &planned);
                report.executed += 1;
            }
            Err(error) => {
                planner.abandon(&mut plan, &planned);
                stopped.insert(planned.port.of_cluster());
                report.failed.push(Failed {
                    step: planned.step.to_string(),
                    key: planned.port,
                    error,
                });
            }
        }
    }
    report
}
