//! A BPF array that is written through shared memory: one store is one atomic change that programs
//! see at once, and costs no system call.

use std::{
    os::fd::AsFd,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use aya::maps::MapData;
use memmap2::{MmapOptions, MmapRaw};

#[derive(Debug, thiserror::Error)]
pub enum SharedArrayError {
    #[error("the map {map} can't be read: {source}")]
    Info {
        map: &'static str,
        source: aya::maps::MapError,
    },
    #[error("the map {map} can't be mapped into memory (BPF_F_MMAPABLE, Linux 5.5): {source}")]
    Mmap {
        map: &'static str,
        source: std::io::Error,
    },
}

/// An array with BPF_F_MMAPABLE. Elements are 8-byte aligned in memory, whatever their size.
#[derive(Debug)]
pub(super) struct SharedArray {
    name: &'static str,
    memory: MmapRaw,
    stride: usize,
    capacity: u32,
    /// Keeps the map.
    _map: MapData,
}

impl SharedArray {
    pub(super) fn new(name: &'static str, map: MapData) -> Result<Self, SharedArrayError> {
        let info = map
            .info()
            .map_err(|source| SharedArrayError::Info { map: name, source })?;
        let stride = (info.value_size() as usize).next_multiple_of(8);
        let capacity = info.max_entries();
        let memory = MmapOptions::new()
            .len(stride * capacity as usize)
            .map_raw(&map.fd().as_fd())
            .map_err(|source| SharedArrayError::Mmap { map: name, source })?;
        Ok(Self {
            name,
            memory,
            stride,
            capacity,
            _map: map,
        })
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Byte `offset` of element `index`; `None` beyond the end.
    fn at(&self, index: u32, offset: usize, size: usize) -> Option<*mut u8> {
        (index < self.capacity && offset + size <= self.stride).then(|| {
            // SAFETY: the assertion above keeps the result inside the mapping.
            unsafe {
                self.memory
                    .as_mut_ptr()
                    .add(index as usize * self.stride + offset)
            }
        })
    }

    fn word32(&self, index: u32, offset: usize) -> Option<&AtomicU32> {
        debug_assert!(offset.is_multiple_of(4));
        // SAFETY: inside the mapping, aligned (elements are 8-byte aligned), and shared with
        // programs only as memory that is read and written in whole words.
        self.at(index, offset, 4)
            .map(|at| unsafe { AtomicU32::from_ptr(at.cast()) })
    }

    fn word64(&self, index: u32, offset: usize) -> Option<&AtomicU64> {
        debug_assert!(offset.is_multiple_of(8));
        // SAFETY: as in `word32`.
        self.at(index, offset, 8)
            .map(|at| unsafe { AtomicU64::from_ptr(at.cast()) })
    }

    /// Eight bytes of the element; `None`: beyond the end.
    pub(super) fn load_u64(&self, index: u32, offset: usize) -> Option<u64> {
        Some(self.word64(index, offset)?.load(Ordering::Acquire))
    }

    pub(super) fn store_u64(&self, index: u32, offset: usize, value: u64) -> Option<()> {
        self.word64(index, offset)?.store(value, Ordering::Release);
        Some(())
    }

    pub(super) fn load_u32(&self, index: u32) -> Option<u32> {
        Some(self.word32(index, 0)?.load(Ordering::Acquire))
    }

    pub(super) fn store_u32(&self, index: u32, value: u32) -> Option<()> {
        self.word32(index, 0)?.store(value, Ordering::Release);
        Some(())
    }

    /// The element, word by word from the last to the first: what its last word guards is read
    /// after it.
    pub(super) fn load<const N: usize>(&self, index: u32) -> Option<[u8; N]> {
        const { assert!(N.is_multiple_of(4)) };
        let mut bytes = [0; N];
        for offset in (0..N).step_by(4).rev() {
            let word = self.word32(index, offset)?.load(Ordering::Acquire);
            bytes[offset..offset + 4].copy_from_slice(&word.to_ne_bytes());
        }
        Some(bytes)
    }

    /// The element, word by word from the first to the last: its last word makes it valid.
    pub(super) fn store<const N: usize>(&self, index: u32, bytes: &[u8; N]) -> Option<()> {
        const { assert!(N.is_multiple_of(4)) };
        for offset in (0..N).step_by(4) {
            let word = u32::from_ne_bytes(bytes[offset..offset + 4].try_into().ok()?);
            self.word32(index, offset)?.store(word, Ordering::Release);
        }
        Some(())
    }
}
