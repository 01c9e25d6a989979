//! A packet in memory: what the kernel's helpers do to an skb, done to a vector.

use super::{
    checksum::{Diff, updated, updated_partial},
    link::{ETHERNET_LENGTH, Link},
    packet::{Covered, MAX_SUM, Packet, Store},
};

/// A packet, and whether its transport checksum is left to the device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    pub data: Vec<u8>,
    /// CHECKSUM_PARTIAL: the field holds the sum of the pseudo header only.
    pub partial: bool,
    /// See [`Packet::segment_size`].
    pub segment_size: u32,
}

impl Bytes {
    pub fn new(data: impl Into<Vec<u8>>) -> Self {
        Self {
            data: data.into(),
            partial: false,
            segment_size: 0,
        }
    }

    fn place(&mut self, offset: u32, length: usize) -> Option<&mut [u8]> {
        let start = usize::try_from(offset).ok()?;
        self.data.get_mut(start..start.checked_add(length)?)
    }

    fn field(&mut self, offset: u32, change: impl FnOnce(u16) -> u16) -> bool {
        if offset % 2 == 1 {
            // The kernel's helpers refuse it too.
            return false;
        }
        let Some(place) = self.place(offset, 2) else {
            return false;
        };
        let old = u16::from_ne_bytes([place[0], place[1]]);
        place.copy_from_slice(&change(old).to_ne_bytes());
        true
    }
}

impl Packet for Bytes {
    fn length(&self) -> u32 {
        u32::try_from(self.data.len()).unwrap_or(u32::MAX)
    }

    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = usize::try_from(offset).ok()?;
        let bytes = self.data.get(start..start.checked_add(N)?)?;
        bytes.try_into().ok()
    }

    fn store<const N: usize>(&mut self, offset: u32, bytes: &[u8; N], _: Store) -> bool {
        match self.place(offset, N) {
            Some(place) => {
                place.copy_from_slice(bytes);
                true
            }
            None => false,
        }
    }

    fn update_l3(&mut self, offset: u32, diff: Diff) -> bool {
        self.field(offset, |sum| updated(sum, diff))
    }

    fn update_l4(&mut self, offset: u32, diff: Diff, covered: Covered, zero_is_none: bool) -> bool {
        let partial = self.partial;
        self.field(offset, |old| {
            if zero_is_none && old == 0 {
                return 0;
            }
            let new = match (partial, covered) {
                (false, _) => updated(old, diff),
                (true, Covered::PseudoHeader) => updated_partial(old, diff),
                (true, Covered::Payload) => old,
            };
            if zero_is_none && new == 0 {
                0xffff
            } else {
                new
            }
        })
    }

    fn strip_vlan(&mut self, in_frame: u8) -> bool {
        let tags = 4 * usize::from(in_frame);
        if self.data.len() < 12 + tags {
            return false;
        }
        self.data.drain(12..12 + tags);
        true
    }

    fn add_ethernet(&mut self) -> bool {
        self.data
            .splice(0..0, std::iter::repeat_n(0, ETHERNET_LENGTH as usize));
        true
    }

    fn segment_size(&self) -> u32 {
        self.segment_size
    }

    fn sum(&self, offset: u32, length: u32) -> Option<u32> {
        let start = usize::try_from(offset).ok()?;
        let length = usize::try_from(length).ok()?;
        if length == 0 || length > MAX_SUM as usize {
            return None;
        }
        let bytes = self.data.get(start..start.checked_add(length)?)?;
        let sum = bytes.chunks(2).fold(0, |sum, pair| {
            let second = pair.get(1).copied().unwrap_or(0);
            sum + u32::from(u16::from_ne_bytes([pair[0], second]))
        });
        Some(sum)
    }

    fn cut(&mut self, length: u32) -> bool {
        let Ok(length) = usize::try_from(length) else {
            return false;
        };
        self.segment_size = 0;
        let fits = length <= self.data.len();
        self.data.truncate(length);
        fits
    }

    fn make_room(&mut self, _: Link, length: u32) -> bool {
        self.data
            .splice(0..0, std::iter::repeat_n(0, length as usize));
        true
    }
}
