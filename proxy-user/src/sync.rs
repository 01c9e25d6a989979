//! The only loop: events into the model, changes into a plan, the plan into the maps.

use std::{collections::BTreeSet, sync::Arc};

use k8s_openapi::jiff::Timestamp;

use crate::{
    audit::{Audit, Audited},
    hash::HashMap,
    maps::MapStore,
    model::{Event, HealthCheck, LocalState, Model, Note, ObjectName, PortKey, WithoutLocal},
    plan::{
        Change, Done, Epoch, Failed, IdChange, Planner, Refused, Report, Smaller, carry_out,
        execute,
    },
    waiting::{NotProgrammed, Trouble, Waiting},
};

/// Enough for the writes of a cold start to come in batches, few enough to cost no memory.
const AT_ONCE: usize = 256;
/// Services that are tried again when something was reclaimed: there may be thousands that find no room.
const TRIED_AGAIN: usize = 256;

/// Model, planner and maps of one node. No I/O but the maps', no clock, no tasks.
#[derive(Debug)]
pub struct Syncer<S> {
    model: Model,
    planner: Planner,
    store: S,
    /// Services whose last plan was not carried out whole.
    waiting: Waiting,
    /// What could not be reclaimed, and has been said.
    unreclaimed: BTreeSet<Arc<PortKey>>,
    /// Service ports that have fewer slots than they should, which has been said.
    smaller: HashMap<ObjectName, Vec<Smaller>>,
    synced: bool,
    /// Services in one plan at most, where they concern no others.
    at_once: usize,
    /// Of Services that have something to say of this node.
    local: HashMap<ObjectName, LocalState>,
    without_local: WithoutLocal,
}

/// What one sync did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Services looked at.
    pub touched: usize,
    pub report: Report,
    pub refused: Vec<Refused>,
    /// Service ports that have begun to have fewer slots than they should, or fewer than before.
    pub smaller: Vec<Smaller>,
    /// Services that have begun to wait.
    pub began_to_wait: Vec<(ObjectName, Trouble)>,
    /// What has begun to be wrong between objects.
    pub notes: Vec<Note>,
    /// Backends of UDP ports came or went: sockets may have to be dialled again.
    pub udp_moved: bool,
    /// The first of the Services that were looked at.
    pub one: Option<ObjectName>,
    /// This was the first sync.
    pub first: bool,
    /// It was a sync at all: everything that was wanted has been looked at.
    pub ran: bool,
    /// Health checks that came, changed or went.
    pub health_checks: Vec<(ObjectName, Option<HealthCheck>)>,
    /// Of all Services, now.
    pub without_local: WithoutLocal,
    /// When the changes of endpoints happened that this sync wrote.
    pub triggers: Vec<Timestamp>,
    /// What has become of service ids.
    pub id_changes: Vec<IdChange>,
}

impl<S: MapStore> Syncer<S> {
    pub fn new(model: Model, planner: Planner, store: S) -> Self {
        Self {
            model,
            planner,
            store,
            waiting: Waiting::default(),
            unreclaimed: BTreeSet::new(),
            smaller: HashMap::default(),
            synced: false,
            at_once: AT_ONCE,
            local: HashMap::default(),
            without_local: WithoutLocal::default(),
        }
    }

    pub fn model(&self) -> &Model {
        &self.model
    }

    pub fn planner(&self) -> &Planner {
        &self.planner
    }

    pub fn store(&self) -> &S {
        &self.store
    }

    pub fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }

    /// The maps outlive the agent.
    pub fn into_store(self) -> S {
        self.store
    }

    pub fn apply(&mut self, event: Event) {
        log::debug!("{event}");
        self.model.apply(event);
    }

    /// The maps hold what was listed, and not only what an earlier agent left.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    pub fn has_retries(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// How many Services' last plan was not carried out whole, and of how many of them for want of room.
    pub fn waiting(&self) -> (usize, usize) {
        self.waiting.counts()
    }

    /// Which they are, and why.
    pub fn not_programmed(&self) -> Vec<NotProgrammed> {
        self.waiting.told()
    }

    /// Writes what has changed, and nothing else: what it costs is in proportion to that.
    pub fn sync_changes(&mut self) -> Outcome {
        self.sync_with(0)
    }

    /// Writes what has changed, and what could not be written before.
    pub fn sync(&mut self) -> Outcome {
        self.look_again();
        self.sync_with(usize::MAX)
    }

    /// Ids of backends that are gone are free when their last connection has ended, of which nobody tells.
    fn look_again(&mut self) {
        let Self { planner, store, .. } = self;
        planner.look_again(|id| store.is_busy(id));
    }

    /// So many of those that wait are tried again. Before both kinds have been listed, nothing at all
    /// is written.
    fn sync_with(&mut self, tried_again: usize) -> Outcome {
        if !self.model.is_ready() {
            return Outcome::default();
        }
        let mut touched = self.model.take_touched();
        touched.extend(self.waiting.pick(tried_again));
        let first = !std::mem::replace(&mut self.synced, true);
        if first {
            // Whatever an earlier agent left and the lists did not name goes with the first plan.
            touched.extend(self.planner.known_services());
        }
        if let Some(nets) = self.model.take_service_nets() {
            self.planner.want_service_nets(nets);
        }
        let model = &mut self.model;
        let changes = touched.iter().map(|service| Change {
            service: service.clone(),
            addresses: model.cluster_ips(service),
            ports: model.desired(service),
        });
        let Done {
            report,
            refused,
            smaller,
            udp_moved,
        } = carry_out(&mut self.planner, changes, self.at_once, &mut self.store);
        let began_to_wait = self.remember_troubles(&touched, &refused, &report);
        let smaller = self.tell_smaller(&touched, smaller);
        let notes = self.model.take_notes();
        for note in &notes {
            log::warn!("{note}");
        }
        let health_checks = touched
            .iter()
            .filter_map(|service| self.note_local_state(service))
            .collect();
        Outcome {
            touched: touched.len(),
            report,
            refused,
            smaller,
            one: touched.first().cloned(),
            began_to_wait,
            notes,
            udp_moved,
            first,
            ran: true,
            health_checks,
            without_local: self.without_local,
            triggers: self.model.take_triggers(),
            id_changes: self.planner.take_id_changes(),
        }
    }

    /// The Service's health check, if it is another than before.
    fn note_local_state(
        &mut self,
        service: &ObjectName,
    ) -> Option<(ObjectName, Option<HealthCheck>)> {
        let state = self.model.local_state(service);
        let before = self.local.remove(service).unwrap_or_default();
        self.without_local
            .replace(before.without_local, state.without_local);
        let check = state.health_check.clone();
        if state != LocalState::default() {
            self.local.insert(service.clone(), state);
        }
        (check != before.health_check).then(|| (service.clone(), check))
    }

    /// What went wrong is tried again later, and said once.
    fn remember_troubles(
        &mut self,
        touched: &BTreeSet<ObjectName>,
        refused: &[Refused],
        report: &Report,
    ) -> Vec<(ObjectName, Trouble)> {
        let refused = refused
            .iter()
            .map(|refused| (refused.key.service.clone(), refused.into()));
        let failed = report
            .failed
            .iter()
            .map(|failed| (failed.key.service.clone(), failed.into()));
        let news = self.waiting.looked_at(touched, refused.chain(failed));
        for (_, trouble) in &news {
            log::error!("{}", trouble.reason);
        }
        news
    }

    /// Those that are news: each once, as long as it stays so.
    fn tell_smaller(&mut self, touched: &BTreeSet<ObjectName>, now: Vec<Smaller>) -> Vec<Smaller> {
        let mut told = Vec::new();
        if !self.smaller.is_empty() {
            for service in touched {
                told.extend(self.smaller.remove(service).into_iter().flatten());
            }
        }
        for smaller in &now {
            let service = smaller.key.service.clone();
            let known = self.smaller.entry(service).or_default();
            known.push(smaller.clone());
        }
        let is_news = |smaller: &Smaller| !told.contains(smaller);
        let news: Vec<Smaller> = now.into_iter().filter(is_news).collect();
        for smaller in &news {
            log::warn!("{smaller}");
        }
        news
    }

    /// Looks at so many parts more of what the maps should hold; all that was found, at the end.
    pub fn audit(&mut self, audit: &mut Audit, parts: usize) -> Option<Audited> {
        let audited = audit.go_on(&self.planner, &mut self.store, parts);
        if audited.is_some() {
            self.look_again();
        }
        audited
    }

    /// The epoch to wait for, if something was freed.
    pub fn begin_grace(&mut self) -> Option<Epoch> {
        self.planner.begin_grace()
    }

    /// Every program that ran in `epoch` has ended: reclaims, then tries again what had no room.
    pub fn passed(&mut self, epoch: Epoch) -> Outcome {
        let store = &self.store;
        let plan = self.planner.passed(epoch, |id| store.is_busy(id));
        let udp_moved = plan.moves_udp();
        let report = execute(&mut self.planner, plan, &mut self.store);
        self.tell_unreclaimed(&report.failed);
        let mut outcome = if self.waiting.is_empty() {
            Outcome::default()
        } else {
            self.sync_with(TRIED_AGAIN)
        };
        outcome.id_changes.extend(self.planner.take_id_changes());
        outcome.udp_moved |= udp_moved;
        outcome.report.executed += report.executed;
        outcome.report.failed.extend::<Vec<Failed>>(report.failed);
        outcome
    }

    /// Once, as long as it lasts. The next grace period tries again.
    fn tell_unreclaimed(&mut self, failed: &[Failed]) {
        let before = std::mem::take(&mut self.unreclaimed);
        for failed in failed {
            if !before.contains(&failed.key) && self.unreclaimed.insert(Arc::clone(&failed.key)) {
                log::error!("{failed}; its room is not free yet, it is tried again");
            }
        }
        let still = failed.iter().map(|failed| Arc::clone(&failed.key));
        self.unreclaimed.extend(still);
    }
}

#[cfg(test)]
#[path = "sync_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "sync_audit_tests.rs"]
mod audit_tests;

#[cfg(test)]
#[path = "sync_affinity_tests.rs"]
mod affinity_tests;

#[cfg(test)]
#[path = "sync_counts_tests.rs"]
mod counts_tests;

#[cfg(test)]
#[path = "sync_room_tests.rs"]
mod room_tests;

#[cfg(test)]
#[path = "sync_scale_tests.rs"]
mod scale_tests;

#[cfg(test)]
#[path = "sync_fault_tests.rs"]
mod fault_tests;
