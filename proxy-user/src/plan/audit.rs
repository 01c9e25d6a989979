//! What the planner knows the maps to hold, as the steps that would write it: to be compared with what is
//! really there, where others may have written.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::{
    adopt, backends,
    planner::{Planner, frontend_address, frontend_key},
    step::Step,
};
use crate::model::PortKey;

/// A part of what the maps hold.
#[derive(Clone, Debug)]
pub enum Part {
    Port(Arc<PortKey>),
    Address(IpAddr),
    ServiceNet(IpNet),
}

impl Planner {
    /// Everything the maps hold, now.
    pub fn parts(&self) -> Vec<Part> {
        let mut keys: Vec<Arc<PortKey>> =
            self.ports.iter().map(|(key, _)| Arc::clone(key)).collect();
        // What is found is told in this order.
        keys.sort();
        let ports = keys.into_iter().map(Part::Port);
        let addresses = self.addresses.known().map(Part::Address);
        let nets = self
            .service_nets
            .known
            .iter()
            .copied()
            .map(Part::ServiceNet);
        ports.chain(addresses).chain(nets).collect()
    }

    /// The steps that would write the part, in the order that readers need; none if it has gone since.
    pub fn steps_of(&self, part: &Part) -> Vec<Step> {
        match part {
            Part::Port(key) => self.steps_of_port(key),
            Part::Address(ip) if self.addresses.is_known(ip) => vec![Step::PutAddress { ip: *ip }],
            Part::ServiceNet(net) if self.service_nets.known.contains(net) => {
                vec![Step::PutServiceNet { net: *net }]
            }
            Part::Address(_) | Part::ServiceNet(_) => Vec::new(),
        }
    }

    fn steps_of_port(&self, key: &PortKey) -> Vec<Step> {
        let Some(port) = self.ports.get(key) else {
            return Vec::new();
        };
        let service = port.id;
        let mut steps = vec![Step::PutName {
            service,
            name: adopt::name_of(key),
        }];
        steps.extend(
            port.backends
                .iter()
                .map(|(address, backend)| backends::write(key, service, address, backend)),
        );
        steps.extend(port.run.as_ref().map(|run| Step::WriteSlots {
            first: run.first,
            backend_ids: port.slots.clone(),
        }));
        let ranges = port.source_ranges.iter().copied();
        steps.extend(ranges.map(|range| Step::PutSourceRange { service, range }));
        steps.push(Step::Switch {
            service,
            word: port.word,
            affinity: port.affinity,
        });
        steps.extend(port.frontends.keys().filter_map(|address| {
            Some(Step::PutFrontend {
                key: frontend_key(address),
                frontend: *self.frontends.get(address)?,
            })
        }));
        steps
    }

    /// Whether the maps hold what `removal` would take away.
    pub fn knows(&self, removal: &Step) -> bool {
        match removal {
            Step::RemoveFrontend { key } => {
                frontend_address(key).is_some_and(|address| self.frontends.contains_key(&address))
            }
            Step::RemoveAddress { ip } => self.addresses.is_known(ip),
            Step::RemoveName { service } => self.owners.contains_key(service),
            Step::RemoveSourceRange { service, range } => self
                .owners
                .get(service)
                .and_then(|key| self.ports.get(key))
                .is_some_and(|port| port.source_ranges.contains(range)),
            Step::RemoveServiceNet { net } => self.service_nets.known.contains(net),
            Step::PutName { .. }
            | Step::WriteBackend { .. }
            | Step::WriteSlots { .. }
            | Step::Switch { .. }
            | Step::PutFrontend { .. }
            | Step::PutAddress { .. }
            | Step::PutSourceRange { .. }
            | Step::PutServiceNet { .. }
            | Step::ClearBackend { .. } => true,
        }
    }
}
