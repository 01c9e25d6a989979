//! The maps of the kernel.

use std::{collections::HashMap, fmt, mem::offset_of, sync::Arc};

use aya::maps::{
    HashMap as BpfHashMap, Map, MapData, MapError, PerCpuArray,
    lpm_trie::{Key, LpmTrie},
};
use ipnet::IpNet;
use proxy_common::abi::{
    Addr, Backend, BackendStats, Counter, Frontend, FrontendKey, NetKey, Service, ServiceAffinity,
    ServiceName, ServiceStats, ServiceWord, SocketFlow, SourceRange, SourceRangeKey, map,
};

use super::{
    Capacity, MapStore, Observed, SharedArrayError, StoreError, batch::Hash, prefix,
    shared_array::SharedArray,
};
use crate::plan::{Step, address_entry};

type Bytes<const N: usize> = [u8; N];

/// `BPF_ANY`.
const ANY: u64 = 0;

/// Of the tries only the keys say anything.
const PRESENT: u32 = 1;
/// The two words of a service.
const WORD_AT: usize = offset_of!(Service, word);
const AFFINITY_AT: usize = offset_of!(Service, affinity);
/// What a backend's failures lead to, and the failures (with what is always 0).
const PASSED_OVER_AT: usize = offset_of!(BackendStats, passed_over_until_ns);
const FAILURES_AT: usize = offset_of!(BackendStats, failures);
/// Of a backend's figures.
const CONNECTIONS_AT: usize = offset_of!(BackendStats, connections);
const ACTIVE_AT: usize = offset_of!(BackendStats, active);
/// Before the bits of a source range come those of its service.
const SERVICE_BITS: u32 = 32;

pub struct BpfStore {
    frontends: Hash<{ FrontendKey::SIZE }, { Frontend::SIZE }>,
    /// By service id, in the machine's order.
    names: Hash<4, { ServiceName::SIZE }>,
    services: Arc<SharedArray>,
    slots: Arc<SharedArray>,
    backends: Arc<SharedArray>,
    service_stats: Arc<SharedArray>,
    backend_stats: Arc<SharedArray>,
    sockets: BpfHashMap<MapData, u64, Bytes<{ SocketFlow::SIZE }>>,
    socket_capacity: u32,
    counters: PerCpuArray<MapData, u64>,
    source_ranges: LpmTrie<MapData, Bytes<{ SourceRange::SIZE }>, u32>,
    source_range_capacity: u32,
    service_nets: LpmTrie<MapData, Bytes<ADDR_SIZE>, u32>,
    service_net_capacity: u32,
}

const ADDR_SIZE: usize = size_of::<Addr>();

impl fmt::Debug for BpfStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BpfStore")
            .field("capacity", &self.capacity())
            .finish_non_exhaustive()
    }
}

/// Connections there are now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Active {
    /// By service id.
    pub services: HashMap<u32, u64>,
    /// Those of backends that get no new ones, or are gone.
    pub draining: u64,
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

/// Those that are mapped into memory.
type Arrays = [Arc<SharedArray>; 5];

impl BpfStore {
    /// `open` gives the map of a name.
    pub fn open(
        mut open: impl FnMut(&'static str) -> Result<MapData, OpenError>,
    ) -> Result<Self, OpenError> {
        let mut array =
            |name| -> Result<_, OpenError> { Ok(Arc::new(SharedArray::new(name, open(name)?)?)) };
        let arrays = [
            array(map::SERVICES)?,
            array(map::SLOTS)?,
            array(map::BACKENDS)?,
            array(map::SERVICE_STATS)?,
            array(map::BACKEND_STATS)?,
        ];
        Self::with_arrays(arrays, open)
    }

    /// Another view of the same maps. Each mapping of an array counts as memory of the process, so
    /// they are shared.
    pub fn share(
        &self,
        open: impl FnMut(&'static str) -> Result<MapData, OpenError>,
    ) -> Result<Self, OpenError> {
        let arrays = [
            &self.services,
            &self.slots,
            &self.backends,
            &self.service_stats,
            &self.backend_stats,
        ]
        .map(Arc::clone);
        Self::with_arrays(arrays, open)
    }

    fn with_arrays(
        [services, slots, backends, service_stats, backend_stats]: Arrays,
        mut open: impl FnMut(&'static str) -> Result<MapData, OpenError>,
    ) -> Result<Self, OpenError> {
        fn capacity(map: &'static str, data: &MapData) -> Result<u32, OpenError> {
            Ok(typed(map, data.info())?.max_entries())
        }
        let sockets = open(map::SOCKETS)?;
        let socket_capacity = capacity(map::SOCKETS, &sockets)?;
        let source_ranges = open(map::SOURCE_RANGES)?;
        let source_range_capacity = capacity(map::SOURCE_RANGES, &source_ranges)?;
        let service_nets = open(map::SERVICE_NETS)?;
        let service_net_capacity = capacity(map::SERVICE_NETS, &service_nets)?;
        fn typed<T>(map: &'static str, result: Result<T, MapError>) -> Result<T, OpenError> {
            result.map_err(|source| OpenError::Open { map, source })
        }
        Ok(Self {
            frontends: typed(map::FRONTENDS, Hash::new(open(map::FRONTENDS)?))?,
            names: typed(map::NAMES, Hash::new(open(map::NAMES)?))?,
            services,
            slots,
            backends,
            service_stats,
            backend_stats,
            sockets: typed(map::SOCKETS, BpfHashMap::try_from(Map::HashMap(sockets)))?,
            socket_capacity,
            counters: typed(
                map::COUNTERS,
                PerCpuArray::try_from(Map::PerCpuArray(open(map::COUNTERS)?)),
            )?,
            source_ranges: typed(
                map::SOURCE_RANGES,
                LpmTrie::try_from(Map::LpmTrie(source_ranges)),
            )?,
            source_range_capacity,
            service_nets: typed(
                map::SERVICE_NETS,
                LpmTrie::try_from(Map::LpmTrie(service_nets)),
            )?,
            service_net_capacity,
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
            .map
            .get(&key.to_bytes(), 0)
            .ok()
            .map(Frontend::from_bytes)
    }

    pub fn backend(&self, id: u32) -> Option<Backend> {
        self.backends.load(id).ok().map(Backend::from_bytes)
    }

    /// The backend id in a slot.
    pub fn slot(&self, index: u32) -> Option<u32> {
        self.slots.load_u32(index).ok()
    }

    /// `namespace/name:port` of a service.
    pub fn name(&self, service: u32) -> Option<ServiceName> {
        let bytes = self.names.map.get(&service.to_ne_bytes(), 0).ok()?;
        Some(ServiceName::from_bytes(bytes))
    }

    /// Of all services, by id.
    pub fn names(&self) -> impl Iterator<Item = (u32, String)> {
        let names = self.names.map.iter().flatten();
        names.map(|(id, name)| {
            let name = ServiceName::from_bytes(name);
            (u32::from_ne_bytes(id), name.text().into_owned())
        })
    }

    /// Whether a source range of the service holds the address.
    pub fn is_in_source_ranges(&self, service: u32, addr: &Addr) -> bool {
        let SourceRangeKey {
            prefix_length,
            range,
        } = SourceRangeKey::of(service, *addr);
        let key = Key::new(prefix_length, range.to_bytes());
        self.source_ranges.get(&key, 0).is_ok()
    }

    /// Whether ClusterIPs come from where the address is.
    pub fn is_in_service_nets(&self, addr: &Addr) -> bool {
        let key = Key::new(NetKey::of(*addr).prefix_length, addr_bytes(addr));
        self.service_nets.get(&key, 0).is_ok()
    }

    /// One of the counters.
    pub fn counter(&self, counter: Counter) -> Option<u64> {
        let values = self.counters.get(&counter.index(), 0).ok()?;
        Some(values.iter().sum())
    }

    pub fn service(&self, id: u32) -> Result<Service, StoreError> {
        service(&self.services, id)
    }

    /// How long clients keep their backends, by [`ServiceAffinity::port`].
    pub fn affinity_timeouts_ns(&self) -> HashMap<u64, u64> {
        let services = self.services.for_a_pass();
        (1..services.capacity())
            .filter_map(|id| Some(service(&services, id).ok()?.affinity))
            .filter(|affinity| affinity.is_on())
            .map(|affinity| (affinity.port(), affinity.timeout_ns()))
            .collect()
    }

    fn put_frontend(&mut self, key: &FrontendKey, frontend: &Frontend) -> Result<(), StoreError> {
        self.frontends
            .map
            .insert(key.to_bytes(), frontend.to_bytes(), ANY)
            .map_err(map_error(map::FRONTENDS, self.frontends.capacity))
    }

    fn remove_frontend(&mut self, key: &FrontendKey) -> Result<(), StoreError> {
        removed(self.frontends.map.remove(&key.to_bytes())).map_err(|source| StoreError::Map {
            map: map::FRONTENDS,
            source,
        })
    }

    /// With the id of their service.
    fn each_source_range(&self) -> impl Iterator<Item = Result<(u32, IpNet), StoreError>> {
        self.source_ranges.keys().filter_map(|key| {
            let key = match key.map_err(unreadable(map::SOURCE_RANGES)) {
                Ok(key) => key,
                Err(error) => return Some(Err(error)),
            };
            let SourceRange { service, addr } = SourceRange::from_bytes(key.data());
            let bits = key.prefix_len().checked_sub(SERVICE_BITS)?;
            Some(Ok((service, prefix::net(&addr, bits)?)))
        })
    }

    fn each_service_net(&self) -> impl Iterator<Item = Result<IpNet, StoreError>> {
        self.service_nets.keys().filter_map(|key| {
            let key = match key.map_err(unreadable(map::SERVICE_NETS)) {
                Ok(key) => key,
                Err(error) => return Some(Err(error)),
            };
            let mut bytes = [0; SourceRange::SIZE];
            bytes[SourceRange::SIZE - ADDR_SIZE..].copy_from_slice(&key.data());
            let SourceRange { addr, .. } = SourceRange::from_bytes(bytes);
            prefix::net(&addr, key.prefix_len()).map(Ok)
        })
    }

    /// Does as many of the steps as one system call can, from the first on; yields how many.
    fn batch(&mut self, steps: &[&Step]) -> usize {
        let put: Vec<_> = steps.iter().map_while(|step| frontend_put(step)).collect();
        if put.len() > 1 {
            let (keys, values): (Vec<_>, Vec<_>) = put.into_iter().unzip();
            return self.frontends.put_all(&keys, &values);
        }
        let gone: Vec<_> = steps.iter().map_while(|step| frontend_gone(step)).collect();
        if gone.len() > 1 {
            return self.frontends.remove_all(&gone);
        }
        let named: Vec<_> = steps
            .iter()
            .map_while(|step| {
                let Step::PutName { service, name } = step else {
                    return None;
                };
                Some((service.to_ne_bytes(), name.to_bytes()))
            })
            .collect();
        if named.len() > 1 {
            let (keys, values): (Vec<_>, Vec<_>) = named.into_iter().unzip();
            return self.names.put_all(&keys, &values);
        }
        let nameless: Vec<_> = steps
            .iter()
            .map_while(|step| {
                let Step::RemoveName { service } = step else {
                    return None;
                };
                Some(service.to_ne_bytes())
            })
            .collect();
        if nameless.len() > 1 {
            for id in &nameless {
                // What fails here is tried alone, and says why.
                if self.forget_stats(u32::from_ne_bytes(*id)).is_err() {
                    return 0;
                }
            }
            return self.names.remove_all(&nameless);
        }
        0
    }

    /// Of a Service that goes: who gets its id begins at 0.
    fn forget_stats(&self, service: u32) -> Result<(), StoreError> {
        let never = ServiceStats::default();
        self.service_stats.store(service, &never.to_bytes())
    }

    /// Whether the id stands for this endpoint of this service already.
    fn is_same_endpoint(&self, id: u32, backend: &Backend) -> Result<bool, StoreError> {
        let there = Backend::from_bytes(self.backends.load(id)?);
        let endpoint = |of: &Backend| (of.service, of.addr, of.port_be, of.protocol);
        Ok(endpoint(&there) == endpoint(backend))
    }

    /// Whoever gets the id next has not failed. An attempt of its last owner's may have been told since.
    fn forget_failures(&self, id: u32) -> Result<(), StoreError> {
        self.pass_over(id, 0)?;
        self.backend_stats.store_u64(id, FAILURES_AT, 0)
    }

    /// From now on the backend gets no new connections until then (monotonic), if others can have them.
    pub fn pass_over(&self, id: u32, until_ns: u64) -> Result<(), StoreError> {
        self.backend_stats.store_u64(id, PASSED_OVER_AT, until_ns)
    }

    /// Of one backend.
    pub fn stats_of_backend(&self, id: u32) -> Result<BackendStats, StoreError> {
        self.backend_stats.load(id).map(BackendStats::from_bytes)
    }

    /// How often each service was asked for, by id; those that never were are left out.
    pub fn service_stats(&self) -> Result<Vec<(u32, ServiceStats)>, StoreError> {
        counted(&self.service_stats, ServiceStats::from_bytes)
    }

    /// The same of backends, in the order of their ids.
    pub fn backend_stats(&self) -> Result<Vec<(u32, BackendStats)>, StoreError> {
        counted(&self.backend_stats, BackendStats::from_bytes)
    }

    pub fn service_stats_of(&self, id: u32) -> Option<ServiceStats> {
        let bytes = self.service_stats.load(id).ok()?;
        Some(ServiceStats::from_bytes(bytes))
    }

    pub fn backend_stats_of(&self, id: u32) -> Option<BackendStats> {
        let bytes = self.backend_stats.load(id).ok()?;
        Some(BackendStats::from_bytes(bytes))
    }

    /// The connections there are now, by service id; and those of backends that get no new ones.
    pub fn active(&self) -> Result<Active, StoreError> {
        let backends = self.backends.for_a_pass();
        let mut found = Active::default();
        for (id, stats) in self.backend_stats()? {
            let Ok(active @ 1..) = u64::try_from(stats.active) else {
                continue;
            };
            let backend = Backend::from_bytes(backends.load(id)?);
            if backend.service != 0 {
                *found.services.entry(backend.service).or_default() += active;
            }
            if backend.service == 0 || backend.flags & Backend::CHOSEN == 0 {
                found.draining += active;
            }
        }
        Ok(found)
    }

    /// Adds to the connections that a backend has, also while programs do. An id that there is not has
    /// none.
    pub fn add_active(&self, backend: u32, by: i64) {
        let _there_is_none = self.backend_stats.add_i64(backend, ACTIVE_AT, by);
    }

    /// How many connections each backend has, as nobody has counted them yet.
    pub fn set_active(&self, counted: &HashMap<u32, i64>) -> Result<(), StoreError> {
        for id in 1..self.backend_stats.capacity() {
            let active = counted.get(&id).copied().unwrap_or(0);
            let active = active.cast_unsigned();
            if self.backend_stats.load_u64(id, ACTIVE_AT)? != active {
                self.backend_stats.store_u64(id, ACTIVE_AT, active)?;
            }
        }
        Ok(())
    }

    /// Connected sockets that are remembered now, and for how many there is room.
    pub fn socket_use(&self) -> (usize, u32) {
        (self.sockets.keys().flatten().count(), self.socket_capacity)
    }
}

/// Elements that are not all 0, with their ids.
fn counted<T, const N: usize>(
    array: &SharedArray,
    of: impl Fn(Bytes<N>) -> T,
) -> Result<Vec<(u32, T)>, StoreError> {
    let array = array.for_a_pass();
    let mut found = Vec::new();
    for id in 1..array.capacity() {
        let stats = array.load(id)?;
        if stats != [0; N] {
            found.push((id, of(stats)));
        }
    }
    Ok(found)
}

fn service(services: &SharedArray, id: u32) -> Result<Service, StoreError> {
    Ok(Service {
        word: ServiceWord(services.load_u64(id, WORD_AT)?),
        affinity: ServiceAffinity(services.load_u64(id, AFFINITY_AT)?),
    })
}

fn unreadable(map: &'static str) -> impl Fn(MapError) -> StoreError {
    move |source| StoreError::Map { map, source }
}

fn map_error(map: &'static str, capacity: u32) -> impl Fn(MapError) -> StoreError {
    move |source| {
        let errno = if let MapError::SyscallError(error) = &source {
            error.io_error.raw_os_error()
        } else {
            None
        };
        match errno {
            Some(E2BIG | ENOSPC) => StoreError::Full { map, capacity },
            Some(libc::ENOMEM) => StoreError::NoMemory { map },
            _ => StoreError::Map { map, source },
        }
    }
}

/// What a hash says that is full, and what a trie says.
const E2BIG: i32 = 7;
const ENOSPC: i32 = 28;

fn source_range_key(service: u32, range: &IpNet) -> Key<Bytes<{ SourceRange::SIZE }>> {
    let (addr, bits) = prefix::of_net(range);
    Key::new(
        SERVICE_BITS + bits,
        SourceRange { service, addr }.to_bytes(),
    )
}

fn service_net_key(net: &IpNet) -> Key<Bytes<ADDR_SIZE>> {
    let (addr, bits) = prefix::of_net(net);
    Key::new(bits, addr_bytes(&addr))
}

/// The bytes of an address alone: those behind the service.
fn addr_bytes(addr: &Addr) -> Bytes<ADDR_SIZE> {
    let range = SourceRange {
        service: 0,
        addr: *addr,
    };
    let bytes = range.to_bytes();
    let mut key = [0; ADDR_SIZE];
    key.copy_from_slice(&bytes[bytes.len() - ADDR_SIZE..]);
    key
}

/// The entry that the step puts into FRONTENDS, if it is about that.
fn frontend_put(step: &Step) -> Option<(Bytes<{ FrontendKey::SIZE }>, Bytes<{ Frontend::SIZE }>)> {
    let (key, frontend) = if let Step::PutFrontend { key, frontend } = step {
        (*key, *frontend)
    } else if let Step::PutAddress { ip } = step {
        address_entry(*ip)
    } else {
        return None;
    };
    Some((key.to_bytes(), frontend.to_bytes()))
}

/// The key that the step takes out of FRONTENDS, if it is about that.
fn frontend_gone(step: &Step) -> Option<Bytes<{ FrontendKey::SIZE }>> {
    if let Step::RemoveFrontend { key } = step {
        Some(key.to_bytes())
    } else if let Step::RemoveAddress { ip } = step {
        Some(address_entry(*ip).0.to_bytes())
    } else {
        None
    }
}

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
            frontends: self.frontends.capacity,
            services: self.services.capacity(),
            backends: self.backends.capacity(),
            slots: self.slots.capacity(),
            source_ranges: self.source_range_capacity,
            service_nets: self.service_net_capacity,
        }
    }

    fn execute(&mut self, step: &Step) -> Result<(), StoreError> {
        match step {
            Step::PutName { service, name } => self
                .names
                .map
                .insert(service.to_ne_bytes(), name.to_bytes(), ANY)
                .map_err(map_error(map::NAMES, self.names.capacity)),
            Step::WriteBackend { id, backend } => {
                if !self.is_same_endpoint(*id, backend)? {
                    self.forget_failures(*id)?;
                }
                self.backends.store(*id, &backend.to_bytes())
            }
            Step::WriteSlots { first, backend_ids } => (*first..)
                .zip(backend_ids)
                .try_for_each(|(slot, id)| self.slots.store_u32(slot, *id)),
            Step::Switch {
                service,
                word,
                affinity,
            } => {
                self.services.store_u64(*service, AFFINITY_AT, affinity.0)?;
                self.services.store_u64(*service, WORD_AT, word.0)
            }
            Step::PutFrontend { key, frontend } => self.put_frontend(key, frontend),
            Step::RemoveFrontend { key } => self.remove_frontend(key),
            Step::PutAddress { ip } => {
                let (key, entry) = address_entry(*ip);
                self.put_frontend(&key, &entry)
            }
            Step::RemoveAddress { ip } => self.remove_frontend(&address_entry(*ip).0),
            Step::PutSourceRange { service, range } => self
                .source_ranges
                .insert(&source_range_key(*service, range), PRESENT, ANY)
                .map_err(map_error(map::SOURCE_RANGES, self.source_range_capacity)),
            Step::RemoveSourceRange { service, range } => {
                let key = source_range_key(*service, range);
                removed(self.source_ranges.remove(&key)).map_err(|source| StoreError::Map {
                    map: map::SOURCE_RANGES,
                    source,
                })
            }
            Step::PutServiceNet { net } => self
                .service_nets
                .insert(&service_net_key(net), PRESENT, ANY)
                .map_err(map_error(map::SERVICE_NETS, self.service_net_capacity)),
            Step::RemoveServiceNet { net } => {
                removed(self.service_nets.remove(&service_net_key(net))).map_err(|source| {
                    StoreError::Map {
                        map: map::SERVICE_NETS,
                        source,
                    }
                })
            }
            Step::ClearBackend { id } => {
                // The service makes a backend valid: it goes first, and alone.
                // Its connections are counted until the last of them has ended.
                self.backend_stats.store_u64(*id, CONNECTIONS_AT, 0)?;
                self.forget_failures(*id)?;
                let cleared = Backend {
                    service: 0,
                    ..Backend::from_bytes(self.backends.load(*id)?)
                };
                self.backends.store(*id, &cleared.to_bytes())
            }
            Step::RemoveName { service } => {
                self.forget_stats(*service)?;
                let gone = removed(self.names.map.remove(&service.to_ne_bytes()));
                gone.map_err(unreadable(map::NAMES))
            }
        }
    }

    fn execute_all(&mut self, steps: &[&Step]) -> (usize, Option<StoreError>) {
        let mut done = 0;
        while done < steps.len() {
            done += self.batch(&steps[done..]);
            // What a batch leaves is tried alone, and says why it can't be done.
            if let Some(step) = steps.get(done) {
                if let Err(error) = self.execute(step) {
                    return (done, Some(error));
                }
                done += 1;
            }
        }
        (done, None)
    }

    fn holds(&self, step: &Step) -> bool {
        let name = |service: &u32| self.names.map.get(&service.to_ne_bytes(), 0).ok();
        // The longest prefix that covers it: as good, as all say the same.
        let has_range = |service: &u32, range| {
            let key = source_range_key(*service, range);
            self.source_ranges.get(&key, 0).is_ok()
        };
        let has_net = |net| self.service_nets.get(&service_net_key(net), 0).is_ok();
        match step {
            Step::PutName {
                service,
                name: text,
            } => name(service) == Some(text.to_bytes()),
            Step::RemoveName { service } => name(service).is_none(),
            Step::WriteBackend { id, backend } => self.backend(*id) == Some(*backend),
            Step::ClearBackend { id } => self.backend(*id).is_none_or(|there| there.service == 0),
            Step::WriteSlots { first, backend_ids } => (*first..)
                .zip(backend_ids)
                .all(|(slot, id)| self.slots.load_u32(slot).is_ok_and(|there| there == *id)),
            Step::Switch {
                service,
                word,
                affinity,
            } => {
                let (word, affinity) = (*word, *affinity);
                self.service(*service)
                    .is_ok_and(|there| there == Service { word, affinity })
            }
            Step::PutFrontend { key, frontend } => self.frontend(key) == Some(*frontend),
            Step::RemoveFrontend { key } => self.frontend(key).is_none(),
            Step::PutAddress { ip } => {
                let (key, entry) = address_entry(*ip);
                self.frontend(&key) == Some(entry)
            }
            Step::RemoveAddress { ip } => self.frontend(&address_entry(*ip).0).is_none(),
            Step::PutSourceRange { service, range } => has_range(service, range),
            Step::RemoveSourceRange { service, range } => !has_range(service, range),
            Step::PutServiceNet { net } => has_net(net),
            Step::RemoveServiceNet { net } => !has_net(net),
        }
    }

    fn is_busy(&self, backend: u32) -> bool {
        // An id that can't be read is not given to anybody.
        let active = self.backend_stats.load_u64(backend, ACTIVE_AT);
        active.map_or(true, |active| active != 0)
    }

    fn removals(&self) -> Result<Vec<Step>, StoreError> {
        let mut steps = Vec::new();
        for key in self.frontends.map.keys() {
            let key = key.map_err(unreadable(map::FRONTENDS))?;
            steps.push(Step::removal_of_frontend(&FrontendKey::from_bytes(key)));
        }
        for id in self.names.map.keys() {
            let service = u32::from_ne_bytes(id.map_err(unreadable(map::NAMES))?);
            steps.push(Step::RemoveName { service });
        }
        for range in self.each_source_range() {
            let (service, range) = range?;
            steps.push(Step::RemoveSourceRange { service, range });
        }
        for net in self.each_service_net() {
            steps.push(Step::RemoveServiceNet { net: net? });
        }
        Ok(steps)
    }

    fn observe(&self) -> Result<Observed, StoreError> {
        let mut observed = Observed::default();
        for entry in self.frontends.map.iter() {
            let (key, value) = entry.map_err(unreadable(map::FRONTENDS))?;
            observed
                .frontends
                .insert(FrontendKey::from_bytes(key), Frontend::from_bytes(value));
        }
        for entry in self.names.map.iter() {
            let (id, name) = entry.map_err(unreadable(map::NAMES))?;
            observed
                .names
                .insert(u32::from_ne_bytes(id), ServiceName::from_bytes(name));
        }
        let [services, slots, backends] =
            [&self.services, &self.slots, &self.backends].map(|array| array.for_a_pass());
        for id in 1..services.capacity() {
            let service = service(&services, id)?;
            if service == ServiceWord::default().into() {
                continue;
            }
            observed.services.insert(id, service);
            let word = service.word;
            if word.count() > 0 {
                let first = word.first_slot();
                // A damaged word may name slots that don't exist; those read as 0.
                let count = word.count().min(slots.capacity());
                let ids = (0..count)
                    .map(|i| {
                        first
                            .checked_add(i)
                            .and_then(|slot| slots.load_u32(slot).ok())
                            .unwrap_or(0)
                    })
                    .collect();
                observed.slots.insert(first, ids);
            }
        }
        for range in self.each_source_range() {
            let (service, range) = range?;
            let ranges = observed.source_ranges.entry(service).or_default();
            ranges.insert(range);
        }
        observed.service_nets = self.each_service_net().collect::<Result<_, _>>()?;
        for (id, stats) in self.backend_stats()? {
            if stats.active != 0 {
                observed.active.insert(id, stats.active);
            }
        }
        for id in 1..backends.capacity() {
            let backend = Backend::from_bytes(backends.load(id)?);
            if backend.service != 0 {
                observed.backends.insert(id, backend);
            } else if backend.protocol != 0 && observed.active.contains_key(&id) {
                observed.gone.insert(id, backend);
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
