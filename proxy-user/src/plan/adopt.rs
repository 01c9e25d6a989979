//! Recognises what an earlier agent left in the maps: ids by the names stored beside them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proxy_common::abi::{
    Protocol, Service, ServiceAffinity, ServiceName, ServiceWord, SockAddr, map,
};

use super::{
    addresses::{Addresses, ServiceNets},
    backend_ids::BackendIds,
    ids::{IdPool, Run, RunPool},
    planner::{IdChange, KnownBackend, Planner, Port, frontend_address},
    ports::Ports,
    sorted::Sorted,
    step::{Step, address_of},
};
use crate::{
    hash::HashMap,
    maps::{Capacity, Observed},
    model::{Family, ObjectName, PortKey, Scope},
};

impl Planner {
    /// Recognises what an earlier agent left in the maps.
    pub fn adopt(capacity: Capacity, observed: &Observed) -> Self {
        let mut planner = Self {
            ports: Ports::default(),
            owners: HashMap::default(),
            frontends: HashMap::default(),
            frontend_capacity: capacity.frontends,
            addresses: Addresses::default(),
            service_nets: ServiceNets {
                known: observed.service_nets.clone(),
                wanted: None,
            },
            source_ranges_used: 0,
            source_range_capacity: capacity.source_ranges,
            // Element 0 of each array is never used.
            service_ids: IdPool::new(map::SERVICES, capacity.services.saturating_sub(1)),
            backend_ids: BackendIds::new(capacity.backends.saturating_sub(1)),
            runs: RunPool::new(map::SLOTS, capacity.slots),
            epoch: 1,
            disused: BTreeSet::new(),
            given_up: BTreeMap::new(),
            strays: Vec::new(),
            unfreed: false,
            id_changes: Vec::new(),
        };
        for (&id, name) in &observed.names {
            match parse_name(name) {
                Some(key) if !planner.ports.contains_key(&key) && planner.service_ids.adopt(id) => {
                    let key = Arc::new(key);
                    planner.owners.insert(id, Arc::clone(&key));
                    planner.adopt_port(key, id, observed);
                }
                _ => planner.stray_service(id),
            }
        }
        for id in observed
            .services
            .keys()
            .filter(|id| !observed.names.contains_key(id))
        {
            planner.stray_service(*id);
        }
        for (&id, backend) in &observed.backends {
            let known = planner
                .owners
                .get(&backend.service)
                .and_then(|key| planner.ports.get_mut(key));
            let address = SockAddr::from_parts(backend.addr, backend.port_be).socket_addr();
            if !planner.backend_ids.adopt(id) {
                continue;
            }
            match known {
                Some(port) if !port.backends.contains_key(&address) => {
                    port.backends.insert(
                        address,
                        KnownBackend {
                            id,
                            flags: backend.flags,
                            weight: backend.weight,
                            twin: backend.twin,
                            disused: None,
                        },
                    );
                }
                _ => planner.strays.push(Step::ClearBackend { id }),
            }
        }
        // Those of nobody else are of endpoints that are gone.
        for id in observed.active.keys() {
            planner.backend_ids.keep_busy(*id);
        }
        for (key, frontend) in &observed.frontends {
            if let Some(ip) = address_of(key) {
                planner.addresses.adopt(ip);
                continue;
            }
            let named = [frontend.service, frontend.outside_service];
            let is_owned = |id| planner.owners.contains_key(&id);
            let known = is_owned(frontend.service)
                && (frontend.outside_service == 0 || is_owned(frontend.outside_service));
            match frontend_address(key) {
                Some(address) if known => {
                    for key in named.iter().filter_map(|id| planner.owners.get(id)) {
                        if let Some(port) = planner.ports.get_mut(key) {
                            port.frontends.insert(address, ());
                        }
                    }
                    planner.frontends.insert(address, *frontend);
                }
                _ => planner.strays.push(Step::RemoveFrontend { key: *key }),
            }
        }
        for (&service, ranges) in &observed.source_ranges {
            planner.source_ranges_used += ranges.len() as u64;
            let owner = planner.owners.get(&service).cloned();
            if let Some(port) = owner.and_then(|key| planner.ports.get_mut(&key)) {
                port.source_ranges.clone_from(ranges);
            } else {
                // Of those with a name or a word it is known already.
                if !observed.names.contains_key(&service)
                    && !observed.services.contains_key(&service)
                {
                    planner.stray_service(service);
                }
                planner
                    .strays
                    .extend(ranges.iter().map(|range| Step::RemoveSourceRange {
                        service,
                        range: *range,
                    }));
            }
        }
        let mut adopted: Vec<(&u32, &Arc<PortKey>)> = planner.owners.iter().collect();
        adopted.sort_by_key(|(_, key)| Arc::clone(key));
        let adopted = adopted.into_iter();
        planner.id_changes = adopted
            .map(|(id, key)| IdChange::Given(*id, Arc::clone(key)))
            .collect();
        planner
    }

    /// An id whose owner can't be told: taken until its removal has been seen by everyone.
    fn stray_service(&mut self, id: u32) {
        if id != 0 {
            self.service_ids.adopt(id);
            self.strays.push(Step::Switch {
                service: id,
                word: ServiceWord::default(),
                affinity: ServiceAffinity::NONE,
            });
            self.strays.push(Step::RemoveName { service: id });
        }
    }

    fn adopt_port(&mut self, key: Arc<PortKey>, id: u32, observed: &Observed) {
        let service = observed.services.get(&id).copied();
        let Service { word, affinity } = service.unwrap_or_else(|| ServiceWord::default().into());
        let mut port = Port {
            id,
            word: ServiceWord::default(),
            affinity,
            run: None,
            slots: Vec::new(),
            backends: Sorted::default(),
            frontends: Sorted::default(),
            source_ranges: BTreeSet::new(),
            disused: None,
        };
        if word.count() == 0 {
            port.word = word;
        } else {
            let run = Run {
                first: word.first_slot(),
                order: Run::order_for(word.count() as usize),
            };
            // A run that can't be ours is left alone: the first plan switches to another.
            if let Some(slots) = observed.slots.get(&run.first)
                && self.runs.adopt(run)
            {
                port.word = word;
                port.run = Some(run);
                port.slots.clone_from(slots);
            }
        }
        self.ports.insert(key, port);
    }
}

pub(super) fn name_of(key: &PortKey) -> ServiceName {
    let family = match key.family {
        Family::V4 => 4,
        Family::V6 => 6,
    };
    // The API server limits the parts so that they fit; a manifest's name may be anything, and an
    // over-long one is cut, which costs it nothing but its ids after a restart.
    let mut text = key.service_port_name();
    let mut end = text.len().min(144);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    ServiceName::new(&text, key.protocol.number(), family, key.scope as u8)
        .expect("cut to the size of the field")
}

fn parse_name(name: &ServiceName) -> Option<PortKey> {
    let text = name.text();
    let (namespace, rest) = text.split_once('/')?;
    let (service, port) = rest.split_once(':').unwrap_or((rest, ""));
    Some(PortKey {
        service: ObjectName::new(namespace, service),
        port: port.into(),
        protocol: Protocol::from_number(name.protocol)?,
        family: match name.family {
            4 => Family::V4,
            6 => Family::V6,
            _ => return None,
        },
        scope: match name.scope {
            0 => Scope::Cluster,
            1 => Scope::Local,
            _ => return None,
        },
    })
}
