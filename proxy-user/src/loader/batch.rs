//! The map of established flows, read in batches.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::Path,
};

use aya::maps::{HashMap as BpfHashMap, Map, MapData, MapError};
use proxy_common::abi::{FlowEntry, Tuple, map};

use super::sys::{self, Attr, bpf, number};
use crate::maps::bpf::OpenError;

/// `batch` of `union bpf_attr`.
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

// SAFETY: integers only; `FlowMap::batch` gives addresses of buffers with room for `count` elements,
// and of the four bytes in which a hash map says where it is.
unsafe impl Attr for Batch {}

type Entries = BpfHashMap<MapData, [u8; Tuple::SIZE], [u8; FlowEntry::SIZE]>;

/// KP_FLOWS: a plain hash, which doesn't mind being read. (KP_HALF_OPEN does: reading an entry of an
/// LRU map says that it is in use.)
#[derive(Debug)]
pub struct FlowMap {
    map: Entries,
    /// The same map.
    fd: OwnedFd,
    capacity: u32,
}

/// Where the next batch begins.
#[derive(Clone, Copy, Debug)]
pub struct Position(u32);

/// What one call read, and where the next one begins; `None` at the end.
pub(super) type Read = (Vec<(Tuple, FlowEntry)>, Option<Position>);

impl FlowMap {
    pub fn new(data: MapData) -> Result<Self, OpenError> {
        let open = |source| OpenError::Open {
            map: map::FLOWS,
            source,
        };
        let capacity = data.info().map_err(open)?.max_entries();
        let duplicate = data.fd().as_fd().try_clone_to_owned();
        let fd = duplicate.map_err(|error| open(MapError::IoError(error)))?;
        let map = Entries::try_from(Map::HashMap(data)).map_err(open)?;
        Ok(Self { map, fd, capacity })
    }

    pub fn from_pin(path: &Path) -> Result<Self, OpenError> {
        let data = MapData::from_pin(path).map_err(|source| OpenError::Open {
            map: map::FLOWS,
            source,
        })?;
        Self::new(data)
    }

    /// Entries there is room for.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Up to `room` entries, by one call (BPF_MAP_LOOKUP_BATCH, Linux 5.6). What comes and goes meanwhile may be missed or seen twice.
    pub fn batch(&self, from: Option<Position>, room: usize) -> io::Result<Read> {
        let mut room = room;
        loop {
            let mut keys = vec![[0_u8; Tuple::SIZE]; room];
            let mut values = vec![[0_u8; FlowEntry::SIZE]; room];
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
            let entries = keys
                .into_iter()
                .zip(values)
                .take(count)
                .map(|(key, value)| (Tuple::from_bytes(key), FlowEntry::from_bytes(value)))
                .collect();
            return Ok((entries, (!is_end).then_some(Position(next))));
        }
    }

    pub fn get(&self, key: &Tuple) -> Option<FlowEntry> {
        let bytes = self.map.get(&key.to_bytes(), 0).ok()?;
        Some(FlowEntry::from_bytes(bytes))
    }

    pub fn put(&mut self, key: &Tuple, entry: &FlowEntry) -> Result<(), MapError> {
        self.map.insert(key.to_bytes(), entry.to_bytes(), 0)
    }

    /// Whether there was one does not matter.
    pub fn remove(&mut self, key: &Tuple) {
        let _gone_already = self.map.remove(&key.to_bytes());
    }

    /// Entries there are now.
    pub fn count(&self) -> io::Result<usize> {
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
