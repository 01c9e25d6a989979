//! What each frontend should reach, straight from the desired state: no ids, no maps, no order.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use proptest::prelude::*;
use proxy_common::abi::{Empty, FrontendKind, Protocol};

use crate::{
    model::{Family, FrontendAddress, ObjectName, PortKey, PortSnapshot, Scope},
    plan::Change,
};

pub(super) const VIPS: u8 = 5;
const SERVICES: u8 = 4;
const BACKENDS: u8 = 7;

pub(super) fn vip(index: u8) -> FrontendAddress {
    FrontendAddress {
        ip: IpAddr::V4(Ipv4Addr::new(10, 96, 0, index)),
        port: 80,
        protocol: Protocol::Tcp,
    }
}

pub(super) fn service_name(index: u8) -> ObjectName {
    ObjectName::new("ns", &format!("s{index}"))
}

/// What a client of a frontend meets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Pass,
    Refuse,
    Drop,
    To(BTreeSet<SocketAddr>),
}

/// One state of the whole cluster, as the model would ask for it.
#[derive(Clone, Default)]
pub(super) struct Desired {
    pub(super) ports: BTreeMap<PortKey, PortSnapshot>,
}

/// One line a port: failing histories are read by people.
impl fmt::Debug for Desired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for port in self.ports.values() {
            let frontends: Vec<_> = port.frontends.iter().map(|(vip, _)| vip.ip).collect();
            let (chosen, kept) = (&port.chosen, &port.kept);
            write!(
                f,
                "{} {frontends:?} {chosen:?} {kept:?} {:?}; ",
                port.key, port.empty
            )?;
        }
        Ok(())
    }
}

impl Desired {
    pub(super) fn changes(&self, services: impl IntoIterator<Item = ObjectName>) -> Vec<Change> {
        services
            .into_iter()
            .map(|service| Change {
                ports: self.ports_of(&service),
                service,
            })
            .collect()
    }

    pub(super) fn ports_of(&self, service: &ObjectName) -> Vec<PortSnapshot> {
        self.ports
            .values()
            .filter(|port| port.key.service == *service)
            .cloned()
            .collect()
    }

    pub(super) fn owner(&self, address: &FrontendAddress) -> Option<&PortKey> {
        self.ports
            .values()
            .find(|port| port.frontends.iter().any(|(owned, _)| owned == address))
            .map(|port| &port.key)
    }

    pub(super) fn of_port(&self, key: &PortKey) -> Outcome {
        match self.ports.get(key) {
            None => Outcome::Pass,
            Some(port) if !port.chosen.is_empty() => {
                Outcome::To(port.chosen.iter().copied().collect())
            }
            Some(port) if port.empty == Empty::Drop => Outcome::Drop,
            Some(_) => Outcome::Refuse,
        }
    }

    pub(super) fn of(&self, address: &FrontendAddress) -> Outcome {
        self.owner(address)
            .map_or(Outcome::Pass, |key| self.of_port(key))
    }
}

pub(super) fn all_services() -> BTreeSet<ObjectName> {
    (0..SERVICES).map(service_name).collect()
}

/// A port of a Service: what it chooses and keeps, as sets of backend numbers.
type PortSpec = (u8, u8, bool);

fn addresses(set: u8) -> Vec<SocketAddr> {
    (0..BACKENDS)
        .filter(|i| set & (1 << i) != 0)
        .map(|i| SocketAddr::new(Ipv4Addr::new(10, 0, 0, i + 1).into(), 8080))
        .collect()
}

/// Every Service has up to three ports (one is the Local twin of another), and every frontend an
/// owner that may change from state to state.
pub(super) fn desired() -> impl Strategy<Value = Desired> {
    let port = prop::option::weighted(0.6, (0u8..1 << BACKENDS, 0u8..1 << BACKENDS, any::<bool>()));
    let ports = prop::collection::vec(port, usize::from(SERVICES) * 3);
    let owners = prop::collection::vec(0usize..14, usize::from(VIPS));
    let kinds = prop::collection::vec(any::<bool>(), usize::from(VIPS));
    (ports, owners, kinds).prop_map(|(ports, owners, kinds)| build(&ports, &owners, &kinds))
}

/// The first port of one Service, with the backends of a set.
pub(super) fn one(service: u8, chosen: u8, vips: &[u8]) -> Desired {
    let index = usize::from(service) * 3;
    let mut ports = vec![None; usize::from(SERVICES) * 3];
    ports[index] = Some((chosen, 0, false));
    let owner = |vip| {
        if vips.contains(&vip) {
            index
        } else {
            usize::MAX
        }
    };
    let owners: Vec<usize> = (0..VIPS).map(owner).collect();
    build(&ports, &owners, &[false; VIPS as usize])
}

fn build(ports: &[Option<PortSpec>], owners: &[usize], kinds: &[bool]) -> Desired {
    let mut desired = Desired::default();
    let mut keys = Vec::new();
    for (service, specs) in (0..).zip(ports.chunks(3)) {
        for ((port, scope), spec) in [
            ("", Scope::Cluster),
            ("b", Scope::Cluster),
            ("b", Scope::Local),
        ]
        .into_iter()
        .zip(specs)
        {
            let key = PortKey {
                service: service_name(service),
                port: port.into(),
                protocol: Protocol::Tcp,
                family: Family::V4,
                scope,
            };
            keys.push(key.clone());
            if let Some((chosen, kept, drop)) = spec {
                desired.ports.insert(
                    key.clone(),
                    PortSnapshot {
                        key,
                        frontends: Vec::new(),
                        chosen: addresses(*chosen),
                        kept: addresses(kept & !chosen),
                        empty: if *drop { Empty::Drop } else { Empty::Refuse },
                    },
                );
            }
        }
    }
    for (index, (owner, external)) in (0..).zip(owners.iter().zip(kinds)) {
        let kind = if *external {
            FrontendKind::ExternalIp
        } else {
            FrontendKind::ClusterIp
        };
        if let Some(port) = keys.get(*owner).and_then(|key| desired.ports.get_mut(key)) {
            port.frontends.push((vip(index), kind));
        }
    }
    desired
}
