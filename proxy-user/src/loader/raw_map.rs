//! A map of any layout, as bytes.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::Path,
};

use aya::maps::{MapData, MapError, MapInfo, MapType};

use super::{
    fdinfo::FdInfo,
    sys::{self, Attr, Batch, bpf, number},
};

/// Elements of one call, of tables and of what is remembered.
const ROOM: usize = 4096;
/// Where a batch begins: the number of a bucket or a key, and none of ours is longer.
const POSITION: usize = 64;
/// Where the next batch begins.
#[derive(Clone, Copy, Debug)]
pub struct Position([u8; POSITION]);

/// Keys and values, one after the other, and where those after them begin; `None` at the end.
#[derive(Debug)]
pub(super) struct Elements {
    pub(super) keys: Vec<u8>,
    pub(super) values: Vec<u8>,
    pub(super) next: Option<Position>,
}

/// `BPF_NOEXIST`.
const NO_EXIST: u64 = 1;

/// `BPF_MAP_*_ELEM` of `union bpf_attr`.
#[repr(C)]
#[derive(Debug, Default)]
struct Elem {
    map_fd: u32,
    zero: u32,
    key: u64,
    /// Or the next key.
    value: u64,
    flags: u64,
}

// SAFETY: integers only; whoever fills it gives addresses of buffers as large as the map's keys and values.
unsafe impl Attr for Elem {}

#[derive(Debug)]
pub(super) struct RawMap {
    fd: OwnedFd,
    id: u32,
    kind: Option<MapType>,
    key: usize,
    value: usize,
    entries: u32,
}

impl RawMap {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let other = |error: MapError| io::Error::other(format!("{}: {error}", path.display()));
        let data = MapData::from_pin(path).map_err(other)?;
        Self::of(&data)
    }

    pub(super) fn of(data: &MapData) -> io::Result<Self> {
        let info: MapInfo = data.info().map_err(io::Error::other)?;
        Ok(Self {
            fd: data.fd().as_fd().try_clone_to_owned()?,
            id: info.id(),
            kind: info.map_type().ok(),
            key: info.key_size() as usize,
            value: info.value_size() as usize,
            entries: info.max_entries(),
        })
    }

    /// Of no other map.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    pub(super) fn entries(&self) -> u32 {
        self.entries
    }

    pub(super) fn key_size(&self) -> usize {
        self.key
    }

    pub(super) fn is_array(&self) -> bool {
        self.kind == Some(MapType::Array)
    }

    /// What it takes of the kernel's memory in bytes, as the kernel says (`memlock`; before Linux 6.4 it
    /// reckons roughly).
    pub(super) fn memory_bytes(&self) -> Option<u64> {
        FdInfo::of(self.fd.as_fd())?
            .number("memlock")
            .filter(|bytes| *bytes > 0)
    }

    /// Every element, one by one.
    pub(super) fn each(&self, mut see: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        self.each_batch(|keys, values| {
            let elements = keys
                .chunks_exact(self.key)
                .zip(values.chunks_exact(self.value));
            elements.for_each(|(key, value)| see(key, value));
        })
    }

    /// Every element, keys and values of many one after the other. What comes and goes meanwhile may be
    /// missed or seen twice.
    pub(super) fn each_batch(&self, mut see: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        if self.kind == Some(MapType::LpmTrie) {
            return self.each_by_key(see);
        }
        let mut position = None;
        loop {
            let Elements { keys, values, next } = self.batch(position, ROOM)?;
            see(&keys, &values);
            if next.is_none() {
                return Ok(());
            }
            position = next;
        }
    }

    /// Up to `room` elements, or more if they can't be told apart from others, by one call
    /// (BPF_MAP_LOOKUP_BATCH, Linux 5.6).
    pub(super) fn batch(&self, from: Option<Position>, mut room: usize) -> io::Result<Elements> {
        loop {
            let mut keys = vec![0_u8; self.key * room];
            let mut values = vec![0_u8; self.value * room];
            let mut next = Position([0; POSITION]);
            let mut attr = Batch {
                in_batch: from.as_ref().map_or(0, |from| from.0.as_ptr() as u64),
                out_batch: next.0.as_mut_ptr() as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: u32::try_from(room).map_err(io::Error::other)?,
                map_fd: number(self.fd.as_raw_fd()),
                ..Batch::default()
            };
            let is_end = match bpf(sys::MAP_LOOKUP_BATCH, &mut attr) {
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
            keys.truncate(count * self.key);
            values.truncate(count * self.value);
            let next = (!is_end).then_some(next);
            return Ok(Elements { keys, values, next });
        }
    }

    /// Tries have no batches before Linux 5.13.
    fn each_by_key(&self, mut see: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        let mut key: Option<Vec<u8>> = None;
        loop {
            let mut next = vec![0_u8; self.key];
            let from = key.as_ref().map_or(0, |key| key.as_ptr() as u64);
            match self.call(sys::MAP_GET_NEXT_KEY, from, next.as_mut_ptr() as u64, 0) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
                Err(error) => return Err(error),
            }
            let mut value = vec![0_u8; self.value];
            let found = self.call(
                sys::MAP_LOOKUP_ELEM,
                next.as_ptr() as u64,
                value.as_mut_ptr() as u64,
                0,
            );
            if found.is_ok() {
                see(&next, &value);
            }
            key = Some(next);
        }
    }

    /// Writes all of them; how many found no room. Elements of arrays that are beyond the end are none.
    pub(super) fn put_all(&self, keys: &[u8], values: &[u8]) -> usize {
        let count = keys.len() / self.key;
        let fits = !self.is_array() || keys.chunks_exact(self.key).all(|key| self.has_index(key));
        let mut attr = Batch {
            keys: keys.as_ptr() as u64,
            values: values.as_ptr() as u64,
            count: u32::try_from(count).unwrap_or(0),
            map_fd: number(self.fd.as_raw_fd()),
            ..Batch::default()
        };
        if fits
            && self.kind != Some(MapType::LpmTrie)
            && bpf(sys::MAP_UPDATE_BATCH, &mut attr).is_ok()
        {
            return 0;
        }
        let elements = keys
            .chunks_exact(self.key)
            .zip(values.chunks_exact(self.value));
        elements
            .filter(|(key, _)| !self.is_array() || self.has_index(key))
            .filter(|(key, value)| self.put(key, value, 0).is_err())
            .count()
    }

    fn has_index(&self, key: &[u8]) -> bool {
        let index = key.first_chunk().copied().map(u32::from_ne_bytes);
        index.is_some_and(|index| index < self.entries)
    }

    /// Unless there is one, and there is room.
    pub(super) fn put_new(&self, key: &[u8], value: &[u8]) {
        let _there_or_no_room = self.put(key, value, NO_EXIST);
    }

    fn put(&self, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
        self.call(
            sys::MAP_UPDATE_ELEM,
            key.as_ptr() as u64,
            value.as_ptr() as u64,
            flags,
        )
    }

    /// Whether there was one does not matter.
    pub(super) fn remove(&self, key: &[u8]) {
        let _gone_already = self.call(sys::MAP_DELETE_ELEM, key.as_ptr() as u64, 0, 0);
    }

    fn call(&self, command: libc::c_int, key: u64, value: u64, flags: u64) -> io::Result<()> {
        let mut attr = Elem {
            map_fd: number(self.fd.as_raw_fd()),
            zero: 0,
            key,
            value,
            flags,
        };
        bpf(command, &mut attr).map(drop)
    }
}
