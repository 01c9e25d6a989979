//! One write, and the order of many.

use std::fmt;

use proxy_common::abi::{Backend, Frontend, FrontendKey, Protocol, ServiceName, ServiceWord};

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
    },
    PutFrontend {
        key: FrontendKey,
        frontend: Frontend,
    },
    RemoveFrontend {
        key: FrontendKey,
    },
    ClearBackend {
        id: u32,
    },
    RemoveName {
        service: u32,
    },
}

/// Where in a plan a step belongs: referents first, deletes last and in reverse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Names,
    Backends,
    Slots,
    Switches,
    Frontends,
    RemovedFrontends,
    Disused,
    ClearedBackends,
    RemovedNames,
}

impl Step {
    pub fn phase(&self) -> Phase {
        match self {
            Self::PutName { .. } => Phase::Names,
            Self::WriteBackend { .. } => Phase::Backends,
            Self::WriteSlots { .. } => Phase::Slots,
            Self::Switch { word, .. } if *word == ServiceWord::default() => Phase::Disused,
            Self::Switch { .. } => Phase::Switches,
            Self::PutFrontend { .. } => Phase::Frontends,
            Self::RemoveFrontend { .. } => Phase::RemovedFrontends,
            Self::ClearBackend { .. } => Phase::ClearedBackends,
            Self::RemoveName { .. } => Phase::RemovedNames,
        }
    }
}

fn protocol(number: u8) -> &'static str {
    Protocol::from_number(number).map_or("?", Protocol::name)
}

fn show_key(key: &FrontendKey, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let address = std::net::SocketAddr::new(key.addr.ip(), u16::from_be(key.port_be));
    write!(f, "{address}/{}", protocol(key.protocol))
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
                    protocol(backend.protocol),
                    backend.service
                )
            }
            Self::WriteSlots { first, backend_ids } => {
                write!(f, "slots from {first} = {backend_ids:?}")
            }
            Self::Switch { service, word } => write!(
                f,
                "service {service} -> {} slots from {}",
                word.count(),
                word.first_slot()
            ),
            Self::PutFrontend { key, frontend } => {
                f.write_str("frontend ")?;
                show_key(key, f)?;
                write!(f, " = service {}", frontend.service)
            }
            Self::RemoveFrontend { key } => {
                f.write_str("remove frontend ")?;
                show_key(key, f)
            }
            Self::ClearBackend { id } => write!(f, "clear backend {id}"),
            Self::RemoveName { service } => write!(f, "remove name of service {service}"),
        }
    }
}
