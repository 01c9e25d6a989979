//! Maps of the programs that somebody walks through, read in batches.

use std::{io, path::Path};

use aya::maps::{HashMap as BpfHashMap, Map, MapData, MapError};
use proxy_common::abi::{
    AffinityEntry, AffinityKey, FlowEntry, SockAddr, SocketCookie, SocketFlow, Tuple, UdpFlow,
    UdpFlowKey, map,
};

use super::raw_map::{Elements, Position, RawMap};
use crate::maps::bpf::OpenError;

type Bytes<const N: usize> = [u8; N];

/// A hash map. (An LRU one doesn't mind either: a batch is no use of its entries.)
#[derive(Debug)]
struct Batches<const K: usize, const V: usize> {
    map: BpfHashMap<MapData, Bytes<K>, Bytes<V>>,
    /// The same map.
    raw: RawMap,
}

/// What one call read, and where the next one begins; `None` at the end.
pub(super) type Read<K, V> = (Vec<(K, V)>, Option<Position>);

impl<const K: usize, const V: usize> Batches<K, V> {
    fn new(name: &'static str, data: MapData) -> Result<Self, OpenError> {
        let open = |source| OpenError::Open { map: name, source };
        let raw = RawMap::of(&data).map_err(|error| open(MapError::IoError(error)))?;
        let map = BpfHashMap::try_from(Map::HashMap(data)).map_err(open)?;
        Ok(Self { map, raw })
    }

    fn batch(&self, from: Option<Position>, room: usize) -> io::Result<Read<Bytes<K>, Bytes<V>>> {
        let Elements { keys, values, next } = self.raw.batch(from, room)?;
        let (keys, _) = keys.as_chunks();
        let (values, _) = values.as_chunks();
        let entries = keys.iter().copied().zip(values.iter().copied());
        Ok((entries.collect(), next))
    }

    fn count(&self) -> io::Result<usize> {
        let mut count = 0;
        self.raw.each_batch(|keys, _| count += keys.len() / K)?;
        Ok(count)
    }
}

fn pinned(map: &'static str, path: &Path) -> Result<MapData, OpenError> {
    MapData::from_pin(path).map_err(|source| OpenError::Open { map, source })
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
                Self::new(pinned($map, path)?)
            }

            /// Entries there is room for.
            pub fn capacity(&self) -> u32 {
                self.0.raw.entries()
            }

            /// Entries there are now.
            pub fn count(&self) -> io::Result<usize> {
                self.0.count()
            }

            /// Up to `room` entries, by one call. What comes and goes meanwhile may be missed or seen twice.
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

            /// Every entry, by as few calls as it takes. What comes and goes meanwhile may be missed or seen
            /// twice.
            pub fn each(&self, mut see: impl FnMut($key, $value)) -> io::Result<()> {
                self.0.raw.each_batch(|keys, values| {
                    let (keys, _) = keys.as_chunks();
                    let (values, _) = values.as_chunks();
                    for (key, value) in keys.iter().zip(values) {
                        see(<$key>::from_bytes(*key), <$value>::from_bytes(*value));
                    }
                })
            }

            pub fn get(&self, key: &$key) -> Option<$value> {
                let bytes = self.0.map.get(&key.to_bytes(), 0).ok()?;
                Some(<$value>::from_bytes(bytes))
            }

            pub fn put(&mut self, key: &$key, value: &$value) -> Result<(), MapError> {
                self.0.map.insert(key.to_bytes(), value.to_bytes(), 0)
            }

            /// Whether there was one: of all who remove it at once, one is told so.
            pub fn remove(&mut self, key: &$key) -> bool {
                self.0.map.remove(&key.to_bytes()).is_ok()
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

    pub fn half_open_from_pin(path: &Path) -> Result<Self, OpenError> {
        Self::half_open(pinned(map::HALF_OPEN, path)?)
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

batched! {
    /// KP_UDP_REVERSE: the frontend.
    UdpReverseMap = map::UDP_REVERSE, UdpFlowKey => SockAddr
}

/// A hash map of which it only matters how many entries it has.
#[derive(Debug)]
pub struct Counted(RawMap);

impl Counted {
    /// # Errors
    /// It is not pinned there, or can't be read.
    pub fn from_pin(path: &Path) -> io::Result<Self> {
        RawMap::open(path).map(Self)
    }

    /// Entries there is room for.
    pub fn capacity(&self) -> u32 {
        self.0.entries()
    }

    /// How many of up to `room` entries there are from here, and where the next begin; `None` at the end.
    pub fn count(
        &self,
        from: Option<Position>,
        room: usize,
    ) -> io::Result<(usize, Option<Position>)> {
        let Elements { keys, next, .. } = self.0.batch(from, room)?;
        Ok((keys.len() / self.0.key_size(), next))
    }
}
