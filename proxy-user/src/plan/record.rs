//! What was really done: every executed step comes back here, and so does what a failed one had
//! reserved.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proxy_common::abi::{FrontendKind, ServiceWord, SockAddr};

use super::{
    planner::{KnownBackend, Plan, Planned, Planner, Port, frontend_address, nobody},
    step::Step,
};
use crate::model::{FrontendAddress, PortKey};

impl Planner {
    /// Records that a step of `plan` has been executed.
    pub fn done(&mut self, plan: &mut Plan, planned: &Planned) {
        let epoch = self.epoch;
        let key = &planned.port;
        if !self.strays.is_empty() && **key == nobody() {
            self.strays.retain(|step| *step != planned.step);
        }
        match &planned.step {
            Step::PutName { service, .. } => {
                self.ports.insert(
                    Arc::clone(key),
                    Port {
                        id: *service,
                        word: ServiceWord::default(),
                        run: None,
                        slots: Vec::new(),
                        backends: BTreeMap::new(),
                        frontends: BTreeSet::new(),
                        disused: None,
                    },
                );
            }
            Step::WriteBackend { id, backend } => {
                if let Some(port) = self.ports.get_mut(key) {
                    let address = SockAddr::from_parts(backend.addr, backend.port_be).socket_addr();
                    port.backends.insert(
                        address,
                        KnownBackend {
                            id: *id,
                            disused: None,
                        },
                    );
                }
            }
            Step::WriteSlots { .. } => {}
            Step::Switch { word, .. } => self.switched(plan, key, *word),
            Step::PutFrontend {
                key: address,
                frontend,
            } => {
                if let (Some(address), Some(kind), Some(port)) = (
                    frontend_address(address),
                    FrontendKind::from_number(frontend.kind),
                    self.ports.get_mut(key),
                ) {
                    port.frontends.insert(address);
                    self.frontends.insert(address, (frontend.service, kind));
                    if let Some(loser) = self.given_up.remove(&address).filter(|l| l != key) {
                        self.lost_frontend(&loser, &address);
                    }
                }
            }
            Step::RemoveFrontend { key: address } => {
                if let Some(address) = frontend_address(address) {
                    self.frontends.remove(&address);
                    self.given_up.remove(&address);
                    self.lost_frontend(key, &address);
                }
            }
            Step::ClearBackend { id } => {
                if let Some(port) = self.ports.get_mut(key) {
                    port.backends.retain(|_, backend| backend.id != *id);
                }
                self.backend_ids.retire(epoch, *id);
                self.unfreed = true;
            }
            Step::RemoveName { service } => {
                if let Some(run) = self.ports.remove(key).and_then(|port| port.run) {
                    self.runs.retire(epoch, run);
                }
                self.service_ids.retire(epoch, *service);
                self.unfreed = true;
            }
        }
    }

    /// From now on nobody comes to the port by this frontend.
    pub(super) fn lost_frontend(&mut self, key: &Arc<PortKey>, address: &FrontendAddress) {
        let Some(port) = self.ports.get_mut(key) else {
            return;
        };
        port.frontends.remove(address);
        if port.disused.is_some() {
            port.disused = Some(self.epoch);
            self.disused.insert((self.epoch, Arc::clone(key)));
            self.unfreed = true;
        }
    }

    fn switched(&mut self, plan: &mut Plan, key: &Arc<PortKey>, word: ServiceWord) {
        let Some(port) = self.ports.get_mut(key) else {
            return;
        };
        let word_changed = port.word != word;
        port.word = word;
        let Some(target) = plan.targets.remove(key) else {
            // Going out of use: the run is freed with the name.
            return;
        };
        if word_changed {
            if let Some(run) = std::mem::replace(&mut port.run, target.run) {
                self.runs.retire(self.epoch, run);
                self.unfreed = true;
            }
            port.slots = target.slots;
        }
        for (address, backend) in &mut port.backends {
            if !target.wanted.contains(address) && backend.disused.is_none() {
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
            Step::WriteBackend { id, .. } => self.backend_ids.give_back(*id),
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
            Step::WriteSlots { .. } | Step::PutFrontend { .. } | Step::RemoveFrontend { .. } => {}
        }
    }
}
