//! Carries a plan out, and tells the planner what really happened.

use std::sync::Arc;

use super::{Change, Plan, Planned, Planner, Refused, Smaller, Step};
use crate::{
    hash::HashSet,
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

/// Steps that are handed to the store at a time: enough for system calls to cost nothing, and few
/// enough to make nobody wait.
const AT_A_TIME: usize = 1024;

/// Executes every step in order. A step that fails ends its own Service port's part of the plan (that
/// of both its lists: one names the other), and nobody else's.
pub fn execute(planner: &mut Planner, mut plan: Plan, store: &mut impl MapStore) -> Report {
    let mut report = Report::default();
    let mut stopped: HashSet<PortKey> = HashSet::default();
    let steps = std::mem::take(&mut plan.steps);
    let mut rest = &steps[..];
    while let Some(first) = rest.first() {
        if is_stopped(&stopped, first) {
            planner.abandon(&mut plan, first);
            rest = &rest[1..];
            continue;
        }
        let together: Vec<&Step> = rest
            .iter()
            .take(AT_A_TIME)
            .take_while(|planned| !is_stopped(&stopped, planned))
            .map(|planned| &planned.step)
            .collect();
        let (done, error) = store.execute_all(&together);
        let (executed, left) = rest.split_at(done);
        for planned in executed {
            log::trace!("Service {}: {}", planned.port, planned.step);
        }
        planner.all_done(&mut plan, executed);
        report.executed += done;
        rest = left;
        if let Some(error) = error
            && let Some((failed, left)) = left.split_first()
        {
            planner.abandon(&mut plan, failed);
            stopped.insert(failed.port.of_cluster());
            report.failed.push(Failed {
                step: failed.step.to_string(),
                key: Arc::clone(&failed.port),
                error,
            });
            rest = left;
        }
    }
    report
}

fn is_stopped(stopped: &HashSet<PortKey>, planned: &Planned) -> bool {
    !stopped.is_empty() && stopped.contains(&planned.port.of_cluster())
}

/// What came of several plans that were carried out.
#[derive(Debug, Default)]
pub struct Done {
    pub report: Report,
    pub refused: Vec<Refused>,
    pub smaller: Vec<Smaller>,
    /// Backends of UDP ports came or went.
    pub udp_moved: bool,
}

impl Done {
    fn add(&mut self, planner: &mut Planner, mut plan: Plan, store: &mut impl MapStore) {
        self.refused.append(&mut plan.refused);
        self.smaller.append(&mut plan.smaller);
        self.udp_moved |= plan.moves_udp();
        let report = execute(planner, plan, store);
        self.report.executed += report.executed;
        self.report.failed.extend(report.failed);
    }
}

/// Plans and executes what leads to `changes`, which are made one by one: all of a cluster's, and
/// the plan for them, would take more memory than all else. So of more than `at_once` Services, those
/// that concern nobody else are planned so many at a time. The others, and all that is removed, are in
/// the last plan.
pub fn carry_out(
    planner: &mut Planner,
    changes: impl ExactSizeIterator<Item = Change>,
    at_once: usize,
    store: &mut impl MapStore,
) -> Done {
    let mut done = Done::default();
    if changes.len() <= at_once {
        let changes: Vec<Change> = changes.collect();
        let plan = planner.plan(&changes);
        done.add(planner, plan, store);
        return done;
    }
    let mut alone = Vec::with_capacity(at_once);
    let mut last = Vec::new();
    for change in changes {
        if planner.concerns_others(&change) {
            last.push(change);
            continue;
        }
        alone.push(change);
        if alone.len() == at_once {
            let plan = planner.plan_part(&alone);
            done.add(planner, plan, store);
            alone.clear();
        }
    }
    let plan = planner.plan_part(&alone);
    done.add(planner, plan, store);
    let plan = planner.plan(&last);
    done.add(planner, plan, store);
    done
}
