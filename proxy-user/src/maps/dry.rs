//! Maps that are only supposed: what was found in the real ones, as it would be after some steps.

use proxy_common::abi::{Counter, Service, ServiceWord};

use super::{Capacity, MapStore, Observed, StoreError};
use crate::plan::{Step, address_entry};

/// Takes every step, and touches no map.
#[derive(Debug)]
pub struct DryStore {
    capacity: Capacity,
    now: Observed,
    /// Steps so far, in order.
    steps: Vec<Step>,
}

impl DryStore {
    pub fn new(capacity: Capacity, found: Observed) -> Self {
        Self {
            capacity,
            now: found,
            steps: Vec::new(),
        }
    }

    /// What the maps would hold by now, and the steps that led there.
    pub fn into_outcome(self) -> (Observed, Vec<Step>) {
        (self.now, self.steps)
    }

    fn switch(&mut self, id: u32, service: Service) {
        let unused = Service::from(ServiceWord::default());
        let before = if service == unused {
            self.now.services.remove(&id)
        } else {
            self.now.services.insert(id, service)
        };
        // Of slots only those are known that a word names.
        let before = before.map_or(unused, |before| before).word;
        if before.count() > 0 && before.first_slot() != service.word.first_slot() {
            self.now.slots.remove(&before.first_slot());
        }
    }
}

impl MapStore for DryStore {
    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn execute(&mut self, step: &Step) -> Result<(), StoreError> {
        self.steps.push(step.clone());
        let now = &mut self.now;
        match step {
            Step::PutName { service, name } => {
                now.names.insert(*service, *name);
            }
            Step::RemoveName { service } => {
                now.names.remove(service);
            }
            Step::WriteBackend { id, backend } => {
                now.backends.insert(*id, *backend);
            }
            Step::ClearBackend { id } => {
                now.backends.remove(id);
            }
            Step::WriteSlots { first, backend_ids } => {
                now.slots.insert(*first, backend_ids.clone());
            }
            Step::Switch {
                service,
                word,
                affinity,
            } => {
                let (word, affinity) = (*word, *affinity);
                self.switch(*service, Service { word, affinity });
            }
            Step::PutFrontend { key, frontend } => {
                now.frontends.insert(*key, *frontend);
            }
            Step::RemoveFrontend { key } => {
                now.frontends.remove(key);
            }
            Step::PutAddress { ip } => {
                now.frontends.extend([address_entry(*ip)]);
            }
            Step::RemoveAddress { ip } => {
                now.frontends.remove(&address_entry(*ip).0);
            }
            Step::PutSourceRange { service, range } => {
                now.source_ranges
                    .entry(*service)
                    .or_default()
                    .insert(*range);
            }
            Step::RemoveSourceRange { service, range } => {
                if let Some(ranges) = now.source_ranges.get_mut(service) {
                    ranges.remove(range);
                    if ranges.is_empty() {
                        now.source_ranges.remove(service);
                    }
                }
            }
            Step::PutServiceNet { net } => {
                now.service_nets.insert(*net);
            }
            Step::RemoveServiceNet { net } => {
                now.service_nets.remove(net);
            }
        }
        Ok(())
    }

    fn holds(&self, step: &Step) -> bool {
        let now = &self.now;
        let ranges = |service| now.source_ranges.get(service);
        let has_range =
            |service, range| ranges(service).is_some_and(|ranges| ranges.contains(range));
        match step {
            Step::PutName { service, name } => now.names.get(service) == Some(name),
            Step::RemoveName { service } => !now.names.contains_key(service),
            Step::WriteBackend { id, backend } => now.backends.get(id) == Some(backend),
            Step::ClearBackend { id } => !now.backends.contains_key(id),
            Step::WriteSlots { first, backend_ids } => now.slots.get(first) == Some(backend_ids),
            Step::Switch {
                service,
                word,
                affinity,
            } => {
                let there = now.services.get(service).copied();
                let (word, affinity) = (*word, *affinity);
                there.unwrap_or(ServiceWord::default().into()) == Service { word, affinity }
            }
            Step::PutFrontend { key, frontend } => now.frontends.get(key) == Some(frontend),
            Step::RemoveFrontend { key } => !now.frontends.contains_key(key),
            Step::PutAddress { ip } => {
                let (key, entry) = address_entry(*ip);
                now.frontends.get(&key) == Some(&entry)
            }
            Step::RemoveAddress { ip } => !now.frontends.contains_key(&address_entry(*ip).0),
            Step::PutSourceRange { service, range } => has_range(service, range),
            Step::RemoveSourceRange { service, range } => !has_range(service, range),
            Step::PutServiceNet { net } => now.service_nets.contains(net),
            Step::RemoveServiceNet { net } => !now.service_nets.contains(net),
        }
    }

    fn removals(&self) -> Result<Vec<Step>, StoreError> {
        Ok(self.now.removals())
    }

    fn observe(&self) -> Result<Observed, StoreError> {
        Ok(self.now.clone())
    }

    /// Nothing has happened.
    fn counters(&self) -> Result<Vec<(Counter, u64)>, StoreError> {
        Ok(Counter::ALL.iter().map(|counter| (*counter, 0)).collect())
    }
}
