//! Maps of the programs that the agent walks through, read in batches.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::Path,
};

use aya::maps::{HashMap as BpfHashMap, Map, MapData, MapError};
use proxy_common::abi::{
    AffinityEntry, AffinityKey, FlowEntry, SocketCookie, SocketFlow, Tuple, UdpFlow, UdpFlowKey,
    map,
};

use super::sys::{self, Batch, bpf, number};
use crate::maps::bpf::OpenError;

type Bytes<const N: usize> = [u8; N];

/// A hash map. (An LRU one doesn't mind either: a batch is no use of its entries.)
#[derive(Debug)]
struct Batches<const K: usize, const V: usize> {
    map: BpfHashMap<MapData, Bytes<K>, Bytes<V>>,
    /// The same map.
    fd: OwnedFd,
    capacity: u32,
}

/// Where the next batch begins.
#[derive(Clone, Copy, Debug)]
pub struct Position(u32);

/// What one call read, and where the next one begins; `None` at the end.
pub(super) type Read<K, V> = (Vec<(K, V)>, Option<Position>);

impl<const K: usize, const V: usize> Batches<K, V> {
    fn new(name: &'static str, data: MapData) -> Result<Self, OpenError> {
        let open = |source| OpenError::Open { map: name, source };
        let capacity = data.info().map_err(open)?.max_entries();
        let duplicate = data.fd().as_fd().try_clone_to_owned();
        let fd = duplicate.map_err(|error| open(MapError::IoError(error)))?;
        let map = BpfHashMap::try_from(Map::HashMap(data)).map_err(open)?;
        Ok(Self { map, fd, capacity })
    }

    fn batch(&self, from: Option<Position>, room: usize) -> io::Result<Read<Bytes<K>, Bytes<V>>> {
        let mut room = room;
        loop {
            let mut keys = vec![[0_u8; K]; room];
            let mut values = vec![[0_u8; V]; room];
            let start = from.map(|position| position.0);
            let mut next = 0_u32;
            let mut attr = Batch {
                in_batch: start
                    .as_ref()
                    .map_or(0, |start| std::ptr::from_ref(start) as u64),
                out_batch: std::ptr::from_mut(&mut next) as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: u32::try_from(room).map_err(io::Error::other)?,
                map_fd: number(self.fd.as_raw_fd()),
                elem_flags: 0,
                flags: 0,
            };
            let result = bpf(sys::MAP_LOOKUP_BATCH, &mut attr);
            let is_end = match result {
                Ok(_) => false,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                // A bucket has more than there is room for.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    room = room.saturating_mul(2);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let count = usize::try_from(attr.count).map_err(io::Error::other)?;
            let entries = keys.into_iter().zip(values).take(count).collect();
            return Ok((entries, (!is_end).then_some(Position(next))));
        }
    }

    fn count(&self) -> io::Result<usize> {
        const ROOM: usize = 8192;
        let (mut count, mut position) = (0, None);
        loop {
            let (entries, next) = self.batch(position, ROOM)?;
            count += entries.len();
            if next.is_none() {
                return Ok(count);
            }
            position = next;
        }
    }
}

/// Defines a map of this name, keys and values.
macro_rules! batched {
    ($(#[doc = $doc:literal])* $name:ident = $map:expr, $key:ty => $value:ty) => {
        $(#[doc = $doc])*
        #[derive(Debug)]
        pub struct $name(Batches<{ <$key>::SIZE }, { <$value>::SIZE }>);

        impl $name {
            pub fn new(data: MapData) -> Result<Self, OpenError> {
                Ok(Self(Batches::new($map, data)?))
            }

            pub fn from_pin(path: &Path) -> Result<Self, OpenError> {
                let data = MapData::from_pin(path)
                    .map_err(|source| OpenError::Open { map: $map, source })?;
                Self::new(data)
            }

            /// Entries there is room for.
            pub fn capacity(&self) -> u32 {
                self.0.capacity
            }

            /// Entries there are now.
            pub fn count(&self) -> io::Result<usize> {
                self.0.count()
            }

            /// Up to `room` entries, by one call (BPF_MAP_LOOKUP_BATCH, Linux 5.6). What comes and goes
            /// meanwhile may be missed or seen twice.
            pub fn batch(
                &self,
                from: Option<Position>,
                room: usize,
            ) -> io::Result<Read<$key, $value>> {
                let (entries, next) = self.0.batch(from, room)?;
                let typed = entries
                    .into_iter()
                    .map(|(key, value)| (<$key>::from_bytes(key), <$value>::from_bytes(value)));
                Ok((typed.collect(), next))
            }

            pub fn get(&self, key: &$key) -> Option<$value> {
                let bytes = self.0.map.get(&key.to_bytes(), 0).ok()?;
                Some(<$value>::from_bytes(bytes))
            }

            pub fn put(&mut self, key: &$key, value: &$value) -> Result<(), MapError> {
                self.0.map.insert(key.to_bytes(), value.to_bytes(), 0)
            }

            /// Whether there was one does not matter.
            pub fn remove(&mut self, key: &$key) {
                let _gone_already = self.0.map.remove(&key.to_bytes());
            }
        }
    };
}

batched! {
    /// KP_FLOWS.
    FlowMap = map::FLOWS, Tuple => FlowEntry
}

impl FlowMap {
    /// KP_HALF_OPEN, which is like it.
    pub fn half_open(data: MapData) -> Result<Self, OpenError> {
        Ok(Self(Batches::new(map::HALF_OPEN, data)?))
    }
}

batched! {
    /// KP_AFFINITY.
    AffinityMap = map::AFFINITY, AffinityKey => AffinityEntry
}

batched! {
    /// KP_SOCKETS.
    SocketMap = map::SOCKETS, SocketCookie => SocketFlow
}

batched! {
    /// KP_UDP_FLOWS.
    UdpFlowMap = map::UDP_FLOWS, UdpFlowKey => UdpFlow
}
