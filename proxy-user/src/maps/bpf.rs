//! The maps of the kernel.

use std::fmt;

use aya::maps::{HashMap as BpfHashMap, Map, MapData, MapError, PerCpuArray};
use proxy_common::abi::{
    Backend, Counter, Frontend, FrontendKey, ServiceName, ServiceWord, SocketFlow, map,
};

use super::{
    Capacity, MapStore, Observed, SharedArrayError, StoreError, shared_array::SharedArray,
};
use crate::plan::Step;

type Bytes<const N: usize> = [u8; N];

/// `BPF_ANY`.
const ANY: u64 = 0;

pub struct BpfStore {
    frontends: BpfHashMap<MapData, Bytes<{ FrontendKey::SIZE }>, Bytes<{ Frontend::SIZE }>>,
    frontend_capacity: u32,
    names: BpfHashMap<MapData, u32, Bytes<{ ServiceName::SIZE }>>,
    services: SharedArray,
    slots: SharedArray,
    backends: SharedArray,
    sockets: BpfHashMap<MapData, u64, Bytes<{ SocketFlow::SIZE }>>,
    socket_capacity: u32,
    counters: PerCpuArray<MapData, u64>,
}

impl fmt::Debug for BpfStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BpfStore")
            .field("capacity", &self.capacity())
            .finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the map {map} can't be opened: {source}")]
    Open { map: &'static str, source: MapError },
    #[error("the map {map} is missing in the kernel object")]
    Missing { map: &'static str },
    #[error(transparent)]
    Shared(#[from] SharedArrayError),
}

impl BpfStore {
    /// `open` gives the map of a name.
    pub fn open(
        mut open: impl FnMut(&'static str) -> Result<MapData, OpenError>,
    ) -> Result<Self, OpenError> {
        fn capacity(map: &'static str, data: &MapData) -> Result<u32, OpenError> {
            Ok(typed(map, data.info())?.max_entries())
        }
        let frontends = open(map::FRONTENDS)?;
        let frontend_capacity = capacity(map::FRONTENDS, &frontends)?;
        let sockets = open(map::SOCKETS)?;
        let socket_capacity = capacity(map::SOCKETS, &sockets)?;
        fn typed<T>(map: &'static str, result: Result<T, MapError>) -> Result<T, OpenError> {
            result.map_err(|source| OpenError::Open { map, source })
        }
        Ok(Self {
            frontends: typed(
                map::FRONTENDS,
                BpfHashMap::try_from(Map::HashMap(frontends)),
            )?,
            frontend_capacity,
            names: typed(
                map::NAMES,
                BpfHashMap::try_from(Map::HashMap(open(map::NAMES)?)),
            )?,
            services: SharedArray::new(map::SERVICES, open(map::SERVICES)?)?,
            slots: SharedArray::new(map::SLOTS, open(map::SLOTS)?)?,
            backends: SharedArray::new(map::BACKENDS, open(map::BACKENDS)?)?,
            sockets: typed(map::SOCKETS, BpfHashMap::try_from(Map::HashMap(sockets)))?,
            socket_capacity,
            counters: typed(
                map::COUNTERS,
                PerCpuArray::try_from(Map::PerCpuArray(open(map::COUNTERS)?)),
            )?,
        })
    }

    /// Connected sockets by cookie.
    pub fn sockets(&self) -> impl Iterator<Item = (u64, SocketFlow)> {
        // An entry that goes away during the walk ends nothing: the next walk sees the rest.
        self.sockets
            .iter()
            .flatten()
            .map(|(cookie, bytes)| (cookie, SocketFlow::from_bytes(bytes)))
    }

    /// What is remembered of the connected socket with this cookie.
    pub fn socket(&self, cookie: u64) -> Option<SocketFlow> {
        let bytes = self.sockets.get(&cookie, 0).ok()?;
        Some(SocketFlow::from_bytes(bytes))
    }

    pub fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.frontends
            .get(&key.to_bytes(), 0)
            .ok()
            .map(Frontend::from_bytes)
    }

    pub fn backend(&self, id: u32) -> Option<Backend> {
        self.backends.load(id).map(Backend::from_bytes)
    }

    /// Connected sockets that are remembered now, and for how many there is room.
    pub fn socket_use(&self) -> (usize, u32) {
        (self.sockets.keys().flatten().count(), self.socket_capacity)
    }
}

fn in_range<T>(array: &SharedArray, index: u32, result: Option<T>) -> Result<T, StoreError> {
    result.ok_or(StoreError::OutOfRange {
        map: array.name(),
        index,
        capacity: array.capacity(),
    })
}

fn map_error(
    map: &'static str,
    capacity: u32,
    flag: &'static str,
) -> impl Fn(MapError) -> StoreError {
    move |source| {
        let no_room = matches!(&source, MapError::SyscallError(error)
            if error.io_error.raw_os_error() == Some(E2BIG));
        if no_room {
            StoreError::Full {
                map,
                capacity,
                flag,
            }
        } else {
            StoreError::Map { map, source }
        }
    }
}

const E2BIG: i32 = 7;

/// Removing what is not there is done already.
fn removed(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(())
        }
        other => other,
    }
}

impl MapStore for BpfStore {
    fn capacity(&self) -> Capacity {
        Capacity {
            frontends: self.frontend_capacity,
            services: self.services.capacity(),
            backends: self.backends.capacity(),
            slots: self.slots.capacity(),
        }
    }

    fn execute(&mut self, step: &Step) -> Result<(), StoreError> {
        match step {
            Step::PutName { service, name } => self
                .names
                .insert(service, name.to_bytes(), ANY)
                .map_err(map_error(
                    map::NAMES,
                    self.services.capacity(),
                    "--max-services",
                )),
            Step::WriteBackend { id, backend } => in_range(
                &self.backends,
                *id,
                self.backends.store(*id, &backend.to_bytes()),
            ),
            Step::WriteSlots { first, backend_ids } => {
                for (slot, id) in (*first..).zip(backend_ids) {
                    in_range(&self.slots, slot, self.slots.store_u32(slot, *id))?;
                }
                Ok(())
            }
            Step::Switch { service, word } => in_range(
                &self.services,
                *service,
                self.services.store_u64(*service, word.0),
            ),
            Step::PutFrontend { key, frontend } => self
                .frontends
                .insert(key.to_bytes(), frontend.to_bytes(), ANY)
                .map_err(map_error(
                    map::FRONTENDS,
                    self.frontend_capacity,
                    "--max-frontends",
                )),
            Step::RemoveFrontend { key } => removed(self.frontends.remove(&key.to_bytes()))
                .map_err(|source| StoreError::Map {
                    map: map::FRONTENDS,
                    source,
                }),
            Step::ClearBackend { id } => {
                // The service makes a backend valid: it goes first, and alone.
                let cleared = self.backends.load(*id).map(|bytes| Backend {
                    service: 0,
                    ..Backend::from_bytes(bytes)
                });
                let stored =
                    cleared.and_then(|backend| self.backends.store(*id, &backend.to_bytes()));
                in_range(&self.backends, *id, stored)
            }
            Step::RemoveName { service } => {
                removed(self.names.remove(service)).map_err(|source| StoreError::Map {
                    map: map::NAMES,
                    source,
                })
            }
        }
    }

    fn observe(&self) -> Result<Observed, StoreError> {
        let mut observed = Observed::default();
        for entry in self.frontends.iter() {
            let (key, value) = entry.map_err(|source| StoreError::Map {
                map: map::FRONTENDS,
                source,
            })?;
            observed
                .frontends
                .insert(FrontendKey::from_bytes(key), Frontend::from_bytes(value));
        }
        for entry in self.names.iter() {
            let (id, name) = entry.map_err(|source| StoreError::Map {
                map: map::NAMES,
                source,
            })?;
            observed.names.insert(id, ServiceName::from_bytes(name));
        }
        for id in 1..self.services.capacity() {
            let word = ServiceWord(self.services.load_u64(id).unwrap_or(0));
            if word == ServiceWord::default() {
                continue;
            }
            observed.words.insert(id, word);
            if word.count() > 0 {
                let first = word.first_slot();
                // A damaged word may name slots that don't exist; those read as 0.
                let count = word.count().min(self.slots.capacity());
                let ids = (0..count)
                    .map(|i| {
                        first
                            .checked_add(i)
                            .and_then(|slot| self.slots.load_u32(slot))
                            .unwrap_or(0)
                    })
                    .collect();
                observed.slots.insert(first, ids);
            }
        }
        for id in 1..self.backends.capacity() {
            if let Some(backend) = self.backend(id).filter(|backend| backend.service != 0) {
                observed.backends.insert(id, backend);
            }
        }
        Ok(observed)
    }

    fn counters(&self) -> Result<Vec<(Counter, u64)>, StoreError> {
        Counter::ALL
            .iter()
            .map(|counter| {
                let values =
                    self.counters
                        .get(&counter.index(), 0)
                        .map_err(|source| StoreError::Map {
                            map: map::COUNTERS,
                            source,
                        })?;
                Ok((*counter, values.iter().sum()))
            })
            .collect()
    }
}
