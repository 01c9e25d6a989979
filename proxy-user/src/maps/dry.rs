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
        let run = |service: Service| {
            let word = service.word;
            (word.count() > 0).then(|| word.first_slot())
        };
        // Of slots only those are known that a word names.
        if let Some(before) = before.and_then(run)
            && Some(before) != run(service)
        {
            self.now.slots.remove(&before);
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

    fn is_busy(&self, backend: u32) -> bool {
        self.now.active.contains_key(&backend)
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        maps::fake::FakeStore,
        model::{
            Event, Kind, Model, Node, NodePortScope,
            oracle::{any_service, any_slice},
        },
        plan::Planner,
        sync::Syncer,
    };

    const ROOM: Capacity = Capacity {
        frontends: 64,
        services: 64,
        backends: 64,
        slots: 128,
        source_ranges: 16,
        service_nets: 4,
    };

    /// What an agent does that lists these, one after the other.
    fn steps(lists: &[(Vec<Event>, Vec<Event>)]) -> FakeStore {
        let store = FakeStore::new(ROOM);
        let planner = Planner::adopt(ROOM, &Observed::default());
        let model = Model::new(Node::default(), NodePortScope::Primary);
        let mut syncer = Syncer::new(model, planner, store);
        for (services, slices) in lists {
            for (kind, events) in [(Kind::Service, services), (Kind::EndpointSlice, slices)] {
                syncer.apply(Event::ListStarted(kind));
                events.iter().for_each(|event| syncer.apply(event.clone()));
                syncer.apply(Event::Listed(kind));
            }
            syncer.sync();
            while let Some(epoch) = syncer.begin_grace() {
                syncer.passed(epoch);
            }
        }
        syncer.into_store()
    }

    fn any_list() -> impl Strategy<Value = (Vec<Event>, Vec<Event>)> {
        let services = prop::collection::vec(any_service().prop_map(Event::ServiceApplied), 0..4);
        let slices = prop::collection::vec(any_slice().prop_map(Event::SliceApplied), 0..6);
        (services, slices)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn steps_lead_to_what_maps_in_memory_hold_after_them(
            lists in prop::collection::vec(any_list(), 1..4)
        ) {
            let fake = steps(&lists);
            let mut dry = DryStore::new(ROOM, Observed::default());
            for step in &fake.log {
                dry.execute(step).unwrap();
                prop_assert!(dry.holds(step), "{}", step);
            }
            prop_assert_eq!(dry.observe().unwrap(), fake.observe().unwrap());
            for step in &fake.log {
                // The maps remember slots that nobody names.
                if !matches!(step, Step::WriteSlots { .. }) {
                    prop_assert_eq!(dry.holds(step), fake.holds(step), "{}", step);
                }
            }
            let told = |steps: Vec<Step>| -> BTreeSet<String> {
                steps.iter().map(ToString::to_string).collect()
            };
            prop_assert_eq!(told(dry.removals().unwrap()), told(fake.removals().unwrap()));
        }
    }
}
