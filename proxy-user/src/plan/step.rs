//! One write, and the order of many.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use proxy_common::abi::{
    Backend, Frontend, FrontendKey, FrontendKind, Protocol, Scheduler, ServiceAffinity,
    ServiceName, ServiceWord,
};

/// One idempotent write to one map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    PutName {
        service: u32,
        name: ServiceName,
    },
    WriteBackend {
        id: u32,
        backend: Backend,
    },
    WriteSlots {
        first: u32,
        backend_ids: Vec<u32>,
    },
    /// The atomic moment: from here on readers see the new backends.
    Switch {
        service: u32,
        word: ServiceWord,
        affinity: ServiceAffinity,
    },
    PutFrontend {
        key: FrontendKey,
        frontend: Frontend,
    },
    RemoveFrontend {
        key: FrontendKey,
    },
    /// The address is a ClusterIP: undefined ports are rejected.
    PutAddress {
        ip: IpAddr,
    },
    RemoveAddress {
        ip: IpAddr,
    },
    /// Without host bits.
    PutSourceRange {
        service: u32,
        range: IpNet,
    },
    RemoveSourceRange {
        service: u32,
        range: IpNet,
    },
    /// Without host bits.
    PutServiceNet {
        net: IpNet,
    },
    RemoveServiceNet {
        net: IpNet,
    },
    ClearBackend {
        id: u32,
    },
    RemoveName {
        service: u32,
    },
}

/// Where in a plan a step belongs: referents first, deletes last and in reverse. What only makes the
/// programs reject or drop comes when all that it spares is there, and goes before any of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    RemovedServiceNets,
    Names,
    Backends,
    Slots,
    SourceRanges,
    Switches,
    Frontends,
    Addresses,
    RemovedAddresses,
    RemovedFrontends,
    RemovedSourceRanges,
    ServiceNets,
    Disused,
    ClearedBackends,
    RemovedNames,
}

impl Step {
    /// What takes the entry under `key` out of FRONTENDS.
    pub fn removal_of_frontend(key: &FrontendKey) -> Self {
        match address_of(key) {
            Some(ip) => Self::RemoveAddress { ip },
            None => Self::RemoveFrontend { key: *key },
        }
    }

    /// Whether it takes away an entry.
    pub fn is_removal(&self) -> bool {
        matches!(
            self,
            Self::RemoveFrontend { .. }
                | Self::RemoveAddress { .. }
                | Self::RemoveSourceRange { .. }
                | Self::RemoveServiceNet { .. }
                | Self::RemoveName { .. }
        )
    }

    /// What it is about, without the verb.
    pub fn subject(&self) -> String {
        let text = self.to_string();
        match text.strip_prefix("remove ") {
            Some(subject) => subject.to_owned(),
            None => text,
        }
    }

    pub fn phase(&self) -> Phase {
        match self {
            Self::PutName { .. } => Phase::Names,
            Self::WriteBackend { .. } => Phase::Backends,
            Self::WriteSlots { .. } => Phase::Slots,
            Self::Switch { word, .. } if *word == ServiceWord::default() => Phase::Disused,
            Self::Switch { .. } => Phase::Switches,
            Self::PutFrontend { .. } => Phase::Frontends,
            Self::RemoveFrontend { .. } => Phase::RemovedFrontends,
            Self::PutAddress { .. } => Phase::Addresses,
            Self::RemoveAddress { .. } => Phase::RemovedAddresses,
            Self::PutSourceRange { .. } => Phase::SourceRanges,
            Self::RemoveSourceRange { .. } => Phase::RemovedSourceRanges,
            Self::PutServiceNet { .. } => Phase::ServiceNets,
            Self::RemoveServiceNet { .. } => Phase::RemovedServiceNets,
            Self::ClearBackend { .. } => Phase::ClearedBackends,
            Self::RemoveName { .. } => Phase::RemovedNames,
        }
    }
}

/// What FRONTENDS holds of an address as such.
pub fn address_entry(ip: IpAddr) -> (FrontendKey, Frontend) {
    let entry = Frontend {
        service: 0,
        outside_service: 0,
        kind: FrontendKind::ClusterIp as u8,
        flags: 0,
        zero: [0; 2],
    };
    (FrontendKey::of_address(ip.into()), entry)
}

/// The address that the key is about as such, if it is about no port.
pub fn address_of(key: &FrontendKey) -> Option<IpAddr> {
    (*key == FrontendKey::of_address(key.addr)).then(|| key.addr.ip())
}

/// `?` for one that Services don't have.
pub fn protocol_name(number: u8) -> &'static str {
    Protocol::from_number(number).map_or("?", Protocol::name)
}

/// Of the slots of a run.
const MOST_TOLD: usize = 64;

fn show_key(key: &FrontendKey, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let address = std::net::SocketAddr::new(key.addr.ip(), u16::from_be(key.port_be));
    write!(f, "{address}/{}", protocol_name(key.protocol))
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PutName { service, name } => write!(f, "name service {service} {}", name.text()),
            Self::WriteBackend { id, backend } => {
                let address =
                    std::net::SocketAddr::new(backend.addr.ip(), u16::from_be(backend.port_be));
                write!(
                    f,
                    "backend {id} = {address}/{} of service {}",
                    protocol_name(backend.protocol),
                    backend.service
                )
            }
            Self::WriteSlots { first, backend_ids } => {
                // A table may have tens of thousands.
                let told = &backend_ids[..backend_ids.len().min(MOST_TOLD)];
                write!(f, "slots from {first} = {told:?}")?;
                match backend_ids.len() - told.len() {
                    0 => Ok(()),
                    more => write!(f, " and {more} more"),
                }
            }
            Self::Switch {
                service,
                word,
                affinity,
            } => {
                let (count, first) = (word.count(), word.first_slot());
                write!(f, "service {service} -> {count} slots from {first}")?;
                if word.scheduler() != Scheduler::Random {
                    write!(f, " by {}", word.scheduler().name())?;
                }
                match affinity.timeout_secs() {
                    0 => Ok(()),
                    secs => write!(f, ", affinity for {secs} s"),
                }
            }
            Self::PutFrontend { key, frontend } => {
                f.write_str("frontend ")?;
                show_key(key, f)?;
                write!(f, " = service {}", frontend.service)?;
                match frontend.outside_service {
                    0 => Ok(()),
                    outside => write!(f, ", from outside {outside}"),
                }
            }
            Self::RemoveFrontend { key } => {
                f.write_str("remove frontend ")?;
                show_key(key, f)
            }
            Self::PutAddress { ip } => write!(f, "address {ip}"),
            Self::RemoveAddress { ip } => write!(f, "remove address {ip}"),
            Self::PutSourceRange { service, range } => {
                write!(f, "source range {range} of service {service}")
            }
            Self::RemoveSourceRange { service, range } => {
                write!(f, "remove source range {range} of service {service}")
            }
            Self::PutServiceNet { net } => write!(f, "service net {net}"),
            Self::RemoveServiceNet { net } => write!(f, "remove service net {net}"),
            Self::ClearBackend { id } => write!(f, "clear backend {id}"),
            Self::RemoveName { service } => write!(f, "remove name of service {service}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_told_by_its_beginning_and_a_switch_by_its_rule() {
        let slots = |count: u32| Step::WriteSlots {
            first: 8,
            backend_ids: (0..count).collect(),
        };
        assert_eq!(slots(2).to_string(), "slots from 8 = [0, 1]");
        let text = slots(65_521).to_string();
        assert!(text.ends_with(", 63] and 65457 more"), "{text}");
        let switch = |scheduler| Step::Switch {
            service: 3,
            word: ServiceWord::with_backends(8, 2).scheduled(scheduler, true, false),
            affinity: ServiceAffinity::NONE,
        };
        let text = |scheduler| switch(scheduler).to_string();
        assert_eq!(text(Scheduler::Random), "service 3 -> 2 slots from 8");
        assert_eq!(
            text(Scheduler::Maglev),
            "service 3 -> 2 slots from 8 by maglev"
        );
    }
}
