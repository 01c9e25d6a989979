//! A hash map that is written in batches (BPF_MAP_UPDATE_BATCH and BPF_MAP_DELETE_BATCH, Linux 5.6).

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use aya::maps::{HashMap, Map, MapData, MapError};

use crate::loader::sys::{self, Batch, bpf, number};

type Bytes<const N: usize> = [u8; N];

#[derive(Debug)]
pub(super) struct Hash<const K: usize, const V: usize> {
    /// For single elements.
    pub(super) map: HashMap<MapData, Bytes<K>, Bytes<V>>,
    /// The same map.
    fd: OwnedFd,
    pub(super) capacity: u32,
}

impl<const K: usize, const V: usize> Hash<K, V> {
    pub(super) fn new(data: MapData) -> Result<Self, MapError> {
        let capacity = data.info()?.max_entries();
        let fd = data.fd().as_fd().try_clone_to_owned()?;
        Ok(Self {
            map: HashMap::try_from(Map::HashMap(data))?,
            fd,
            capacity,
        })
    }

    /// Inserts or replaces, in order; how many of them, from the first on. What stopped it is for the
    /// next one alone to tell.
    pub(super) fn put_all(&mut self, keys: &[Bytes<K>], values: &[Bytes<V>]) -> usize {
        let count = keys.len().min(values.len());
        self.batch(
            sys::MAP_UPDATE_BATCH,
            count,
            keys.as_ptr() as u64,
            values.as_ptr() as u64,
        )
    }

    /// Removes, in order; how many of them, from the first on. One that isn't there stops it.
    pub(super) fn remove_all(&mut self, keys: &[Bytes<K>]) -> usize {
        self.batch(sys::MAP_DELETE_BATCH, keys.len(), keys.as_ptr() as u64, 0)
    }

    fn batch(&mut self, command: libc::c_int, count: usize, keys: u64, values: u64) -> usize {
        let Ok(wanted) = u32::try_from(count) else {
            return 0;
        };
        let mut attr = Batch {
            keys,
            values,
            count: wanted,
            map_fd: number(self.fd.as_raw_fd()),
            ..Batch::default()
        };
        if bpf(command, &mut attr).is_ok() {
            return count;
        }
        // An error before the first element leaves the number as it was.
        let done = if attr.count < wanted { attr.count } else { 0 };
        usize::try_from(done).unwrap_or(0)
    }
}
