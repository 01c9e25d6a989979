//! A BPF array that is written through shared memory: one store is one atomic change that programs
//! see at once, and costs no system call.

use std::{
    os::fd::AsFd,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use aya::maps::MapData;
use memmap2::{MmapOptions, MmapRaw};

use super::StoreError;

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

/// Of the map's memory, mapped in one piece. The kernel counts every page of a mapping as memory of the
/// process, whether it is touched or not.
const PIECE: usize = 256 << 10;

/// An array with BPF_F_MMAPABLE. Elements are 8-byte aligned in memory, whatever their size. A piece of
/// it is mapped when an element of it is first asked for, and stays.
#[derive(Debug)]
pub(super) struct SharedArray {
    name: &'static str,
    map: Arc<MapData>,
    pieces: Box<[OnceLock<MmapRaw>]>,
    stride: usize,
    capacity: u32,
}

impl SharedArray {
    pub(super) fn new(name: &'static str, map: MapData) -> Result<Self, SharedArrayError> {
        let info = map
            .info()
            .map_err(|source| SharedArrayError::Info { map: name, source })?;
        let stride = (info.value_size() as usize).next_multiple_of(8);
        let array = Self::unmapped(name, Arc::new(map), stride, info.max_entries());
        // A map that can't be mapped at all is found here.
        array.piece(0)?;
        Ok(array)
    }

    fn unmapped(name: &'static str, map: Arc<MapData>, stride: usize, capacity: u32) -> Self {
        let pieces = (stride * capacity as usize).div_ceil(PIECE);
        Self {
            name,
            map,
            pieces: (0..pieces).map(|_| OnceLock::new()).collect(),
            stride,
            capacity,
        }
    }

    /// For a look at all elements: what it maps is given back when it goes.
    pub(super) fn for_a_pass(&self) -> Self {
        Self::unmapped(self.name, Arc::clone(&self.map), self.stride, self.capacity)
    }

    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    fn piece(&self, number: usize) -> Result<&MmapRaw, SharedArrayError> {
        let piece = &self.pieces[number];
        if let Some(mapped) = piece.get() {
            return Ok(mapped);
        }
        let begin = number * PIECE;
        let size = self.stride * self.capacity as usize;
        let mapped = MmapOptions::new()
            .offset(begin as u64)
            .len(PIECE.min(size - begin))
            .map_raw(&self.map.fd().as_fd())
            .map_err(|source| SharedArrayError::Mmap {
                map: self.name,
                source,
            })?;
        // Another thread may have been first: one of the two is as good as the other.
        Ok(piece.get_or_init(|| mapped))
    }

    /// Byte `offset` of element `index`.
    fn at(&self, index: u32, offset: usize, size: usize) -> Result<*mut u8, StoreError> {
        const { assert!(PIECE.is_multiple_of(8)) };
        if index >= self.capacity || offset + size > self.stride {
            return Err(StoreError::OutOfRange {
                map: self.name,
                index,
                capacity: self.capacity,
            });
        }
        let byte = index as usize * self.stride + offset;
        let piece = self.piece(byte / PIECE)?;
        // SAFETY: the byte is one of the array, so it is in this piece; and the word that begins there is
        // too, as words of `size` bytes are aligned and end no later than a piece, whose size is a
        // multiple of theirs.
        Ok(unsafe { piece.as_mut_ptr().add(byte % PIECE) })
    }

    fn word32(&self, index: u32, offset: usize) -> Result<&AtomicU32, StoreError> {
        debug_assert!(offset.is_multiple_of(4));
        // SAFETY: inside the mapping, aligned (elements are 8-byte aligned), and shared with
        // programs only as memory that is read and written in whole words.
        self.at(index, offset, 4)
            .map(|at| unsafe { AtomicU32::from_ptr(at.cast()) })
    }

    fn word64(&self, index: u32, offset: usize) -> Result<&AtomicU64, StoreError> {
        debug_assert!(offset.is_multiple_of(8));
        // SAFETY: as in `word32`.
        self.at(index, offset, 8)
            .map(|at| unsafe { AtomicU64::from_ptr(at.cast()) })
    }

    /// Eight bytes of the element.
    pub(super) fn load_u64(&self, index: u32, offset: usize) -> Result<u64, StoreError> {
        Ok(self.word64(index, offset)?.load(Ordering::Acquire))
    }

    pub(super) fn store_u64(
        &self,
        index: u32,
        offset: usize,
        value: u64,
    ) -> Result<(), StoreError> {
        self.word64(index, offset)?.store(value, Ordering::Release);
        Ok(())
    }

    /// Adds to eight bytes of the element, also while programs do.
    pub(super) fn add_i64(&self, index: u32, offset: usize, by: i64) -> Result<(), StoreError> {
        let word = self.word64(index, offset)?;
        // Two's complement: to wrap is to subtract.
        word.fetch_add(by.cast_unsigned(), Ordering::AcqRel);
        Ok(())
    }

    pub(super) fn load_u32(&self, index: u32) -> Result<u32, StoreError> {
        Ok(self.word32(index, 0)?.load(Ordering::Acquire))
    }

    pub(super) fn store_u32(&self, index: u32, value: u32) -> Result<(), StoreError> {
        self.word32(index, 0)?.store(value, Ordering::Release);
        Ok(())
    }

    /// The element, word by word from the last to the first: what its last word guards is read
    /// after it. Words are as long as its size lets them be: a number is read whole.
    pub(super) fn load<const N: usize>(&self, index: u32) -> Result<[u8; N], StoreError> {
        const { assert!(N.is_multiple_of(4)) };
        let mut bytes = [0; N];
        if N.is_multiple_of(8) {
            for offset in (0..N).step_by(8).rev() {
                let word = self.load_u64(index, offset)?;
                bytes[offset..offset + 8].copy_from_slice(&word.to_ne_bytes());
            }
            return Ok(bytes);
        }
        for offset in (0..N).step_by(4).rev() {
            let word = self.word32(index, offset)?.load(Ordering::Acquire);
            bytes[offset..offset + 4].copy_from_slice(&word.to_ne_bytes());
        }
        Ok(bytes)
    }

    /// The element, word by word from the first to the last: its last word makes it valid.
    pub(super) fn store<const N: usize>(
        &self,
        index: u32,
        bytes: &[u8; N],
    ) -> Result<(), StoreError> {
        const { assert!(N.is_multiple_of(4)) };
        for offset in (0..N).step_by(4) {
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[offset..offset + 4]);
            let word = u32::from_ne_bytes(word);
            self.word32(index, offset)?.store(word, Ordering::Release);
        }
        Ok(())
    }
}
