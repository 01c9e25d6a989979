//! Where a plan is carried out, and what is found there.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use proxy_common::abi::{
    ABI_VERSION, Backend, Counter, Frontend, FrontendKey, FrontendKind, Service, ServiceName,
    SockAddr,
};

use crate::plan::{Step, address_of, remedy};

mod batch;
pub mod bpf;
pub mod dry;
pub mod fake;
pub mod faulty;
#[cfg(test)]
pub(crate) mod fixture;
pub mod meaning;
mod prefix;
mod shared_array;

pub use shared_array::SharedArrayError;

/// A map refused a write or couldn't be read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else has put entries into it, or it has fewer than it was made for.
    #[error(
        "the kernel has no room for another entry in the map {map} of {capacity}: {remedy}", remedy = remedy(map)
    )]
    Full { map: &'static str, capacity: u32 },
    #[error(
        "the kernel has no memory for another entry of the map {map}: free memory on the node, or raise the memory limit of the agent's cgroup"
    )]
    NoMemory { map: &'static str },
    #[error("the map {map}: {source}")]
    Map {
        map: &'static str,
        source: aya::maps::MapError,
    },
    #[error("the map {map}: index {index} is beyond its {capacity} elements")]
    OutOfRange {
        map: &'static str,
        index: u32,
        capacity: u32,
    },
    #[error(transparent)]
    Shared(#[from] SharedArrayError),
}

impl StoreError {
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. })
    }
}

/// How many elements each map has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    pub frontends: u32,
    pub services: u32,
    pub backends: u32,
    pub slots: u32,
    pub source_ranges: u32,
    pub service_nets: u32,
}

/// Everything the agent owns in the maps, as found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    pub frontends: HashMap<FrontendKey, Frontend>,
    pub names: HashMap<u32, ServiceName>,
    /// Those that are not all zero, by service id.
    pub services: HashMap<u32, Service>,
    /// Slots of their words, by first slot.
    pub slots: HashMap<u32, Vec<u32>>,
    /// Backends with a service, by id.
    pub backends: HashMap<u32, Backend>,
    /// By service id.
    pub source_ranges: HashMap<u32, BTreeSet<IpNet>>,
    pub service_nets: BTreeSet<IpNet>,
    /// [`BackendStats::active`](proxy_common::abi::BackendStats::active) by backend id, where it isn't 0.
    pub active: HashMap<u32, i64>,
    /// Backends without a service that have connections left, by id: what they were, where that is known.
    pub gone: HashMap<u32, Backend>,
}

impl Observed {
    /// Frontends without the addresses that are known as such.
    pub fn frontend_count(&self) -> usize {
        self.frontends
            .keys()
            .filter(|key| address_of(key).is_none())
            .count()
    }

    /// The steps that would remove every entry of the maps that have entries.
    fn removals(&self) -> Vec<Step> {
        let frontends = self.frontends.keys().map(Step::removal_of_frontend);
        let names = self.names.keys();
        let ranges = self.source_ranges.iter().flat_map(|(service, ranges)| {
            let service = *service;
            let ranges = ranges.iter().copied();
            ranges.map(move |range| Step::RemoveSourceRange { service, range })
        });
        let nets = self.service_nets.iter();
        frontends
            .chain(names.map(|service| Step::RemoveName { service: *service }))
            .chain(ranges)
            .chain(nets.map(|net| Step::RemoveServiceNet { net: *net }))
            .collect()
    }

    /// `namespace/name:port` of a service id; `?` if it has no name.
    pub fn service_name(&self, id: u32) -> Cow<'_, str> {
        self.names
            .get(&id)
            .map_or(Cow::Borrowed("?"), ServiceName::text)
    }

    /// The Service (`namespace/name`) of each ClusterIP.
    pub fn cluster_ip_owners(&self) -> HashMap<IpAddr, String> {
        let theirs = self.frontends.iter().filter(|(_, frontend)| {
            frontend.service != 0 && frontend.kind == FrontendKind::ClusterIp as u8
        });
        theirs
            .map(|(key, frontend)| {
                let name = self.service_name(frontend.service);
                let service = name.split(':').next().unwrap_or_default();
                (key.addr.ip(), service.to_owned())
            })
            .collect()
    }

    /// How many connections of this node the backend has.
    pub fn connections(&self, backend: u32) -> u64 {
        let active = self.active.get(&backend).copied().unwrap_or(0);
        // What is below 0 is about to be set right.
        u64::try_from(active).unwrap_or(0)
    }

    /// Backends of no Service that have connections left, with what is known of them.
    pub fn gone(&self) -> impl Iterator<Item = (u32, Option<&Backend>)> {
        let left = self.active.keys().filter(|id| self.connections(**id) > 0);
        left.filter(|id| !self.backends.contains_key(*id))
            .map(|id| (*id, self.gone.get(id)))
    }

    /// Ids of the backends that get new connections.
    pub fn slotted(&self) -> HashSet<u32> {
        self.slots.values().flatten().copied().collect()
    }

    /// Where the Service port of this name (`namespace/name:port`) leads, in any family; sorted.
    pub fn backends_of(&self, name: &str) -> Vec<SocketAddr> {
        let named = |id: &u32| self.names.get(id).is_some_and(|known| known.text() == name);
        let theirs = self
            .backends
            .values()
            .filter(|backend| named(&backend.service));
        let addresses =
            theirs.map(|backend| SockAddr::from_parts(backend.addr, backend.port_be).socket_addr());
        addresses.collect::<BTreeSet<_>>().into_iter().collect()
    }
}

/// The maps: of the kernel, or in memory.
pub trait MapStore {
    fn capacity(&self) -> Capacity;

    fn execute(&mut self, step: &Step) -> Result<(), StoreError>;

    /// The same of many, in order, until one fails: how many were done, and what the next one met.
    fn execute_all(&mut self, steps: &[&Step]) -> (usize, Option<StoreError>) {
        for (done, step) in steps.iter().enumerate() {
            if let Err(error) = self.execute(step) {
                return (done, Some(error));
            }
        }
        (steps.len(), None)
    }

    /// Whether the step would change nothing. An entry that can't be read is not there.
    fn holds(&self, step: &Step) -> bool;

    /// Whether connections name the backend's id; also if that can't be read.
    fn is_busy(&self, backend: u32) -> bool;

    /// The steps that would remove every entry of the maps that have entries: all but the arrays.
    fn removals(&self) -> Result<Vec<Step>, StoreError>;

    fn observe(&self) -> Result<Observed, StoreError>;

    /// Value of each counter, summed over CPUs.
    fn counters(&self) -> Result<Vec<(Counter, u64)>, StoreError>;
}

/// Name of the directory of pins below the bpffs root: one per layout of the maps.
pub fn pin_directory_name() -> String {
    format!("kube-portal/v{ABI_VERSION}")
}
