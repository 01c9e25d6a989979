//! What was really done: every executed step comes back here, and so does what a failed one had
//! reserved.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use proxy_common::abi::{Frontend, ServiceAffinity, ServiceWord, SockAddr};

use super::{
    ids::Run,
    planner::{IdChange, KnownBackend, Plan, Planned, Planner, Port, frontend_address, nobody},
    sorted::Sorted,
    step::Step,
};
use crate::model::{FrontendAddress, PortKey};

impl Planner {
    /// Records that these steps of `plan` have been executed, in this order.
    pub fn all_done(&mut self, plan: &mut Plan, steps: &[Planned]) {
        let is_backend = |planned: &Planned| matches!(planned.step, Step::WriteBackend { .. });
        // Those of one port come together, and are most of all steps.
        let together = |a: &Planned, b: &Planned| {
            is_backend(a) && is_backend(b) && Arc::ptr_eq(&a.port, &b.port)
        };
        for steps in steps.chunk_by(together) {
            match (steps, self.ports.get_mut(&steps[0].port)) {
                ([first, _, ..], Some(port)) if is_backend(first) => {
                    port.backends.reserve(steps.len());
                    for planned in steps {
                        backend_written(port, &planned.step);
                    }
                }
                _ => steps.iter().for_each(|planned| self.done(plan, planned)),
            }
        }
    }

    /// Records that a step of `plan` has been executed.
    pub fn done(&mut self, plan: &mut Plan, planned: &Planned) {
        let epoch = self.epoch;
        let key = &planned.port;
        if !self.strays.is_empty() && **key == nobody() {
            self.strays.retain(|step| *step != planned.step);
        }
        match &planned.step {
            Step::PutName { service, .. } => {
                self.owners.insert(*service, Arc::clone(key));
                let given = IdChange::Given(*service, Arc::clone(key));
                self.id_changes.push(given);
                self.ports.insert(
                    Arc::clone(key),
                    Port {
                        id: *service,
                        word: ServiceWord::default(),
                        affinity: ServiceAffinity::NONE,
                        run: None,
                        slots: Vec::new(),
                        backends: Sorted::default(),
                        frontends: Sorted::default(),
                        source_ranges: BTreeSet::new(),
                        disused: None,
                    },
                );
            }
            Step::WriteBackend { .. } => {
                if let Some(port) = self.ports.get_mut(key) {
                    backend_written(port, &planned.step);
                }
            }
            Step::WriteSlots { .. } => {}
            Step::Switch { word, affinity, .. } => self.switched(plan, key, *word, *affinity),
            Step::PutFrontend {
                key: address,
                frontend,
            } => {
                if let Some(address) = frontend_address(address) {
                    self.given_up.remove(&address);
                    let before = self.frontends.insert(address, *frontend);
                    for id in [frontend.service, frontend.outside_service] {
                        if let Some(port) = self.port_mut(id) {
                            port.frontends.insert(address, ());
                        }
                    }
                    for id in named_by(before) {
                        if !named_by(Some(*frontend)).contains(&id) {
                            self.lost_frontend(id, &address);
                        }
                    }
                }
            }
            Step::RemoveFrontend { key: address } => {
                if let Some(address) = frontend_address(address) {
                    self.given_up.remove(&address);
                    for id in named_by(self.frontends.remove(&address)) {
                        self.lost_frontend(id, &address);
                    }
                }
            }
            Step::PutAddress { ip } => self.addresses.put(*ip),
            Step::RemoveAddress { ip } => self.addresses.removed(*ip),
            Step::PutSourceRange { service, range } => {
                if self
                    .port_mut(*service)
                    .is_some_and(|port| port.source_ranges.insert(*range))
                {
                    self.source_ranges_used += 1;
                }
            }
            Step::RemoveSourceRange { service, range } => {
                let was_there = self
                    .port_mut(*service)
                    .is_none_or(|port| port.source_ranges.remove(range));
                if was_there {
                    self.source_ranges_used -= 1;
                }
            }
            Step::PutServiceNet { net } => drop(self.service_nets.known.insert(*net)),
            Step::RemoveServiceNet { net } => drop(self.service_nets.known.remove(net)),
            Step::ClearBackend { id } => {
                let mut former = None;
                if let Some(port) = self.ports.get_mut(key) {
                    let of_id = |(address, backend): (&SocketAddr, &KnownBackend)| {
                        (backend.id == *id).then_some(*address)
                    };
                    let address = port.backends.iter().find_map(of_id);
                    former = address.map(|address| (Arc::clone(key), address));
                    if let Some(address) = address {
                        port.backends.remove(&address);
                    }
                }
                self.backend_ids.retire(epoch, *id, former);
                self.unfreed = true;
            }
            Step::RemoveName { service } => {
                self.owners.remove(service);
                self.id_changes.push(IdChange::TakenBack(*service));
                if let Some(run) = self.ports.remove(key).and_then(|port| port.run) {
                    self.runs.retire(epoch, run);
                }
                self.service_ids.retire(epoch, *service);
                self.unfreed = true;
            }
        }
    }

    fn port_mut(&mut self, id: u32) -> Option<&mut Port> {
        self.ports.get_mut(self.owners.get(&id)?)
    }

    /// From now on nobody comes to the service by this frontend.
    fn lost_frontend(&mut self, id: u32, address: &FrontendAddress) {
        let Some(key) = self.owners.get(&id).cloned() else {
            return;
        };
        let Some(port) = self.ports.get_mut(&key) else {
            return;
        };
        port.frontends.remove(address);
        if port.disused.is_some() {
            port.disused = Some(self.epoch);
            self.disused.insert((self.epoch, key));
            self.unfreed = true;
        }
    }

    fn switched(
        &mut self,
        plan: &mut Plan,
        key: &Arc<PortKey>,
        word: ServiceWord,
        affinity: ServiceAffinity,
    ) {
        let Some(port) = self.ports.get_mut(key) else {
            return;
        };
        port.word = word;
        port.affinity = affinity;
        let Some(mut target) = plan.targets.remove(key) else {
            // Going out of use: the run is freed with the name.
            return;
        };
        let is_there = |run: &Run| word.count() > 0 && run.first == word.first_slot();
        // By another rule, backends may be drawn from the same run.
        if !port.run.as_ref().is_some_and(is_there) {
            if let Some(run) = std::mem::replace(&mut port.run, target.run) {
                self.runs.retire(self.epoch, run);
                self.unfreed = true;
            }
            port.slots = std::mem::take(&mut target.slots);
        }
        port.backends.shrink();
        for (address, backend) in port.backends.iter_mut() {
            if !target.wants(address) && backend.disused.is_none() {
                backend.disused = Some(self.epoch);
                self.disused.insert((self.epoch, Arc::clone(key)));
                self.unfreed = true;
            }
        }
    }

    /// What a step that failed, or was never tried, had reserved.
    pub fn abandon(&mut self, plan: &mut Plan, planned: &Planned) {
        match &planned.step {
            Step::PutName { service, .. } => self.service_ids.give_back(*service),
            Step::WriteBackend { id, backend } => {
                // One that is only written again keeps its id.
                let is_known = self
                    .ports
                    .get(&planned.port)
                    .is_some_and(|port| port.backends.values().any(|backend| backend.id == *id));
                if !is_known {
                    let address = SockAddr::from_parts(backend.addr, backend.port_be);
                    let waited = plan.taken_again.remove(id);
                    self.backend_ids
                        .give_back(&planned.port, address.socket_addr(), *id, waited);
                }
            }
            Step::Switch { .. } => {
                if let Some(run) = plan.targets.remove(&planned.port).and_then(|t| t.run) {
                    self.runs.give_back(run);
                }
            }
            // The next grace period that ends tries again.
            Step::ClearBackend { .. } | Step::RemoveName { .. } => {
                self.disused.insert((self.epoch, Arc::clone(&planned.port)));
                self.unfreed = true;
            }
            Step::RemoveSourceRange { .. }
                if self
                    .ports
                    .get(&planned.port)
                    .is_some_and(|port| port.disused.is_some()) =>
            {
                self.disused.insert((self.epoch, Arc::clone(&planned.port)));
                self.unfreed = true;
            }
            Step::WriteSlots { .. }
            | Step::PutFrontend { .. }
            | Step::RemoveFrontend { .. }
            | Step::PutAddress { .. }
            | Step::RemoveAddress { .. }
            | Step::PutSourceRange { .. }
            | Step::RemoveSourceRange { .. }
            | Step::PutServiceNet { .. }
            | Step::RemoveServiceNet { .. } => {}
        }
    }
}

/// If the step writes a backend, it is the port's.
fn backend_written(port: &mut Port, step: &Step) {
    if let Step::WriteBackend { id, backend } = step {
        let address = SockAddr::from_parts(backend.addr, backend.port_be).socket_addr();
        // One that falls out of use is written again before the switch dates it.
        let disused = port.backends.get(&address).and_then(|b| b.disused);
        port.backends.insert(
            address,
            KnownBackend {
                id: *id,
                flags: backend.flags,
                weight: backend.weight,
                twin: backend.twin,
                disused,
            },
        );
    }
}

/// The ids of a frontend's services.
fn named_by(frontend: Option<Frontend>) -> Vec<u32> {
    frontend
        .iter()
        .flat_map(|frontend| [frontend.service, frontend.outside_service])
        .filter(|id| *id != 0)
        .collect()
}
