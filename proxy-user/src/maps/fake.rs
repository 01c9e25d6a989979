//! The maps in memory, for tests: writes go where the host build of the datapath reads.

use std::collections::{BTreeSet, HashMap};

use ipnet::IpNet;
use proxy_common::{
    abi::{Addr, Backend, Counter, Service, ServiceName, ServiceWord, map},
    datapath::fake::Maps,
};

use super::{Capacity, MapStore, Observed, StoreError, prefix};
use crate::plan::{Step, address_entry};

#[derive(Debug)]
pub struct FakeStore {
    pub maps: Maps,
    pub names: HashMap<u32, ServiceName>,
    pub capacity: Capacity,
    /// Steps executed so far.
    pub log: Vec<Step>,
    /// Refuse the step after this many more.
    pub fail_after: Option<usize>,
}

impl FakeStore {
    pub fn new(capacity: Capacity) -> Self {
        Self {
            maps: Maps::default(),
            names: HashMap::new(),
            capacity,
            log: Vec::new(),
            fail_after: None,
        }
    }
}

fn bounded(map: &'static str, index: u32, capacity: u32) -> Result<(), StoreError> {
    if index < capacity {
        Ok(())
    } else {
        Err(StoreError::OutOfRange {
            map,
            index,
            capacity,
        })
    }
}

fn nets(prefixes: &[(Addr, u32)]) -> BTreeSet<IpNet> {
    prefixes
        .iter()
        .filter_map(|(addr, bits)| prefix::net(addr, *bits))
        .collect()
}

impl MapStore for FakeStore {
    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn execute(&mut self, step: &Step) -> Result<(), StoreError> {
        if let Some(left) = &mut self.fail_after {
            if *left == 0 {
                return Err(StoreError::Full {
                    map: map::FRONTENDS,
                    capacity: self.capacity.frontends,
                });
            }
            *left -= 1;
        }
        self.log.push(step.clone());
        match step {
            Step::PutName { service, name } => {
                self.names.insert(*service, *name);
            }
            Step::WriteBackend { id, backend } => {
                bounded(map::BACKENDS, *id, self.capacity.backends)?;
                self.maps.backends.insert(*id, *backend);
            }
            Step::WriteSlots { first, backend_ids } => {
                for (slot, id) in (*first..).zip(backend_ids) {
                    bounded(map::SLOTS, slot, self.capacity.slots)?;
                    self.maps.slots.insert(slot, *id);
                }
            }
            Step::Switch {
                service,
                word,
                affinity,
            } => {
                bounded(map::SERVICES, *service, self.capacity.services)?;
                let (word, affinity) = (*word, *affinity);
                self.maps
                    .services
                    .insert(*service, Service { word, affinity });
            }
            Step::PutFrontend { key, frontend } => {
                self.maps.frontends.insert(*key, *frontend);
            }
            Step::RemoveFrontend { key } => {
                self.maps.frontends.remove(key);
            }
            Step::PutAddress { ip } => {
                let (key, entry) = address_entry(*ip);
                self.maps.frontends.insert(key, entry);
            }
            Step::RemoveAddress { ip } => {
                self.maps.frontends.remove(&address_entry(*ip).0);
            }
            Step::PutSourceRange { service, range } => {
                let ranges = self.maps.source_ranges.entry(*service).or_default();
                let prefix = prefix::of_net(range);
                if !ranges.contains(&prefix) {
                    ranges.push(prefix);
                }
            }
            Step::RemoveSourceRange { service, range } => {
                if let Some(ranges) = self.maps.source_ranges.get_mut(service) {
                    ranges.retain(|known| *known != prefix::of_net(range));
                    if ranges.is_empty() {
                        self.maps.source_ranges.remove(service);
                    }
                }
            }
            Step::PutServiceNet { net } => {
                let prefix = prefix::of_net(net);
                if !self.maps.service_nets.contains(&prefix) {
                    self.maps.service_nets.push(prefix);
                }
            }
            Step::RemoveServiceNet { net } => {
                self.maps
                    .service_nets
                    .retain(|known| *known != prefix::of_net(net));
            }
            Step::ClearBackend { id } => {
                self.maps.backends.remove(id);
            }
            Step::RemoveName { service } => {
                self.names.remove(service);
            }
        }
        Ok(())
    }

    fn holds(&self, step: &Step) -> bool {
        let maps = &self.maps;
        let has_range = |service: &u32, range| {
            let ranges = maps.source_ranges.get(service);
            ranges.is_some_and(|ranges| ranges.contains(&prefix::of_net(range)))
        };
        let has_net = |net| maps.service_nets.contains(&prefix::of_net(net));
        match step {
            Step::PutName { service, name } => self.names.get(service) == Some(name),
            Step::RemoveName { service } => !self.names.contains_key(service),
            Step::WriteBackend { id, backend } => maps.backends.get(id) == Some(backend),
            Step::ClearBackend { id } => !maps.backends.contains_key(id),
            Step::WriteSlots { first, backend_ids } => (*first..)
                .zip(backend_ids)
                .all(|(slot, id)| maps.slots.get(&slot) == Some(id)),
            Step::Switch {
                service,
                word,
                affinity,
            } => {
                let (word, affinity) = (*word, *affinity);
                let there = maps.services.get(service).copied();
                there.unwrap_or(ServiceWord::default().into()) == Service { word, affinity }
            }
            Step::PutFrontend { key, frontend } => maps.frontends.get(key) == Some(frontend),
            Step::RemoveFrontend { key } => !maps.frontends.contains_key(key),
            Step::PutAddress { ip } => {
                let (key, entry) = address_entry(*ip);
                maps.frontends.get(&key) == Some(&entry)
            }
            Step::RemoveAddress { ip } => !maps.frontends.contains_key(&address_entry(*ip).0),
            Step::PutSourceRange { service, range } => has_range(service, range),
            Step::RemoveSourceRange { service, range } => !has_range(service, range),
            Step::PutServiceNet { net } => has_net(net),
            Step::RemoveServiceNet { net } => !has_net(net),
        }
    }

    fn is_busy(&self, backend: u32) -> bool {
        let stats = self.maps.backend_stats.borrow();
        stats.get(&backend).is_some_and(|stats| stats.active != 0)
    }

    fn removals(&self) -> Result<Vec<Step>, StoreError> {
        Ok(self.observe()?.removals())
    }

    fn observe(&self) -> Result<Observed, StoreError> {
        let services: HashMap<u32, Service> = self
            .maps
            .services
            .iter()
            .filter(|(_, service)| **service != ServiceWord::default().into())
            .map(|(id, service)| (*id, *service))
            .collect();
        let slots = services
            .values()
            .map(|service| service.word)
            .filter(|word| word.count() > 0)
            .map(|word| {
                let first = word.first_slot();
                let ids = (first..first + word.count())
                    .map(|slot| self.maps.slots.get(&slot).copied().unwrap_or(0))
                    .collect();
                (first, ids)
            })
            .collect();
        let stats = self.maps.backend_stats.borrow();
        let active: HashMap<u32, i64> = (stats.iter())
            .filter(|(_, stats)| stats.active != 0)
            .map(|(id, stats)| (*id, stats.active))
            .collect();
        let backends: HashMap<u32, Backend> = self
            .maps
            .backends
            .iter()
            .filter(|(_, backend)| backend.service != 0)
            .map(|(id, backend)| (*id, *backend))
            .collect();
        Ok(Observed {
            frontends: self.maps.frontends.clone(),
            names: self.names.clone(),
            services,
            slots,
            backends,
            source_ranges: self
                .maps
                .source_ranges
                .iter()
                .map(|(service, ranges)| (*service, nets(ranges)))
                .collect(),
            service_nets: nets(&self.maps.service_nets),
            gone: (active.keys())
                .filter_map(|id| Some((*id, *self.maps.backends.get(id)?)))
                .filter(|(_, backend)| backend.service == 0)
                .collect(),
            active,
        })
    }

    fn counters(&self) -> Result<Vec<(Counter, u64)>, StoreError> {
        Ok(Counter::ALL
            .iter()
            .map(|counter| (*counter, self.maps.counter(*counter)))
            .collect())
    }
}
