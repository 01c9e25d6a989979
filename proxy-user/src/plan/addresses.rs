//! What is known of addresses as such: which are ClusterIPs, and which ranges they come from. Both only
//! make the programs reject and drop.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use proxy_common::abi::{Protocol, map};

use super::{
    planner::{Plan, Planned, nobody},
    step::Step,
};
use crate::{
    hash::{HashMap, HashSet},
    model::{Family, ObjectName, PortKey, Scope},
};

/// An address may be that of several Services, with different ports: it is known while any of them
/// has it.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    /// In the map.
    known: HashSet<IpAddr>,
    /// In the map, and nobody's: left by an earlier agent, or given up.
    unheld: BTreeSet<IpAddr>,
    /// Nearly always one.
    holders: HashMap<IpAddr, Vec<ObjectName>>,
    of_service: HashMap<ObjectName, Vec<IpAddr>>,
    /// Given up by one of their holders before they came to be in the map.
    inherited: BTreeSet<IpAddr>,
}

impl Addresses {
    pub(super) fn adopt(&mut self, ip: IpAddr) {
        self.known.insert(ip);
        self.unheld.insert(ip);
    }

    pub(super) fn known(&self) -> impl Iterator<Item = IpAddr> {
        self.known.iter().copied()
    }

    pub(super) fn is_known(&self, ip: &IpAddr) -> bool {
        self.known.contains(ip)
    }

    /// How many are in the map.
    pub(super) fn used(&self) -> u64 {
        self.known.len() as u64
    }

    pub(super) fn hold(&mut self, service: &ObjectName, ips: &[IpAddr]) {
        for ip in self.of_service.remove(service).unwrap_or_default() {
            if let Some(holders) = self.holders.get_mut(&ip) {
                holders.retain(|holder| holder != service);
                if holders.is_empty() {
                    self.holders.remove(&ip);
                    if self.known.contains(&ip) {
                        self.unheld.insert(ip);
                    }
                } else if !self.known.contains(&ip) {
                    // It may have been the one that tried, and now nobody would.
                    self.inherited.insert(ip);
                }
            }
        }
        for ip in ips {
            self.unheld.remove(ip);
            let holders = self.holders.entry(*ip).or_default();
            if !holders.contains(service) {
                holders.reserve_exact(1);
                holders.push(service.clone());
            }
        }
        if !ips.is_empty() {
            self.of_service.insert(service.clone(), ips.to_vec());
        }
    }

    /// Who holds what was inherited since the last call and is not in the map.
    pub(super) fn take_heirs(&mut self) -> Vec<(ObjectName, IpAddr)> {
        std::mem::take(&mut self.inherited)
            .into_iter()
            .filter(|ip| !self.known.contains(ip))
            .filter_map(|ip| Some((self.holders.get(&ip)?.first()?.clone(), ip)))
            .collect()
    }

    /// Adds what leads to what is held by these Services, and to what was inherited. `reserved`: those there
    /// is room for.
    pub(super) fn plan<'a>(
        &'a self,
        plan: &mut Plan,
        services: impl Iterator<Item = &'a ObjectName>,
        heirs: &'a [(ObjectName, IpAddr)],
        reserved: &HashSet<IpAddr>,
    ) {
        let mut planned = HashSet::default();
        // Those are tried again as a whole.
        let refused: HashSet<ObjectName> = plan
            .refused
            .iter()
            .map(|refused| refused.key.service.clone())
            .collect();
        let held = services.flat_map(|service| {
            let ips = self.of_service.get(service).into_iter().flatten();
            ips.map(move |ip| (service, ip))
        });
        for (service, ip) in held.chain(heirs.iter().map(|(service, ip)| (service, ip))) {
            if !refused.contains(service) && reserved.contains(ip) && planned.insert(*ip) {
                plan.steps.push(Planned {
                    port: Arc::new(key_of(service, *ip)),
                    step: Step::PutAddress { ip: *ip },
                });
            }
        }
    }

    /// Takes away what nobody holds.
    pub(super) fn plan_removals(&self, plan: &mut Plan) {
        let nobody = Arc::new(nobody());
        plan.steps.extend(self.unheld.iter().map(|ip| Planned {
            port: Arc::clone(&nobody),
            step: Step::RemoveAddress { ip: *ip },
        }));
    }

    pub(super) fn put(&mut self, ip: IpAddr) {
        self.known.insert(ip);
    }

    pub(super) fn removed(&mut self, ip: IpAddr) {
        self.known.remove(&ip);
        self.unheld.remove(&ip);
    }
}

/// Whose plan the entry of an address belongs to.
pub(super) fn key_of(service: &ObjectName, ip: IpAddr) -> PortKey {
    PortKey {
        service: service.clone(),
        port: "".into(),
        protocol: Protocol::Tcp,
        family: Family::of(&ip),
        scope: Scope::Cluster,
    }
}

/// The ServiceCIDRs.
#[derive(Debug, Default)]
pub(super) struct ServiceNets {
    /// In the map.
    pub(super) known: BTreeSet<IpNet>,
    /// `None`: nobody has said yet; what is there stays.
    pub(super) wanted: Option<BTreeSet<IpNet>>,
}

impl ServiceNets {
    pub(super) fn plan(&self, plan: &mut Plan) {
        let Some(wanted) = &self.wanted else {
            return;
        };
        let key = Arc::new(PortKey {
            port: map::SERVICE_NETS.into(),
            ..nobody()
        });
        let come = wanted.difference(&self.known);
        let gone = self.known.difference(wanted);
        plan.steps.extend(
            gone.map(|net| Step::RemoveServiceNet { net: *net })
                .chain(come.map(|net| Step::PutServiceNet { net: *net }))
                .map(|step| Planned {
                    port: Arc::clone(&key),
                    step,
                }),
        );
    }
}
