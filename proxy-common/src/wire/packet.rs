//! Reaching the bytes of a packet. Implemented for the kernel's skb and by [`super::bytes::Bytes`].

use super::{checksum::Diff, link::Link};

/// Bytes that [`Packet::sum`] takes at most.
pub const MAX_SUM: u32 = 512;

/// What a checksum of the transport layer is told about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Covered {
    /// Addresses, which it covers through the pseudo header. If the device is to fill the checksum in
    /// (CHECKSUM_PARTIAL), the field holds the pseudo header's sum and must follow.
    PseudoHeader,
    /// The header or what it carries. If the device is to fill the checksum in, it will see that
    /// itself.
    Payload,
}

/// How bytes are replaced, as far as a checksum that a device made over the whole packet
/// (CHECKSUM_COMPLETE) is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// Another field of the packet changes by as much the other way: the sum stays.
    Balanced,
    /// The sum is told. For IPv6 addresses: `update_l4` with [`Covered::PseudoHeader`] takes from the
    /// sum what an IPv4 header checksum would have balanced, and IPv6 has none.
    Counted,
}

/// Offsets count from the first byte that the hook sees.
pub trait Packet {
    fn length(&self) -> u32;

    /// `None` if they are not all there.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;

    /// Whether they are all there, and could be written.
    #[must_use]
    fn store<const N: usize>(&mut self, offset: u32, bytes: &[u8; N], how: Store) -> bool;

    /// Updates the checksum at `offset` that covers nothing but what it stands in (IPv4's header).
    #[must_use]
    fn update_l3(&mut self, offset: u32, diff: Diff) -> bool;

    /// Updates the checksum of a transport protocol at `offset`. With `zero_is_none` a field of 0
    /// means that there is no checksum: it stays 0, and no other value becomes 0 (UDP).
    #[must_use]
    fn update_l4(&mut self, offset: u32, diff: Diff, covered: Covered, zero_is_none: bool) -> bool;

    /// Takes the VLAN tags off, `in_frame` of which are part of its bytes.
    #[must_use]
    fn strip_vlan(&mut self, in_frame: u8) -> bool;

    /// Puts an empty Ethernet header in front of a packet that came without one.
    #[must_use]
    fn add_ethernet(&mut self) -> bool;

    /// Payload of each of the packets that a device is to cut this one into, in bytes; 0: it is one.
    /// For SCTP it says nothing.
    fn segment_size(&self) -> u32;

    /// The sum of `length` bytes, 1 to [`MAX_SUM`], as they lie in memory from an even place on.
    fn sum(&self, offset: u32, length: u32) -> Option<u32>;

    /// Cuts off what is behind the first `length` bytes. It is one packet then.
    #[must_use]
    fn cut(&mut self, length: u32) -> bool;

    /// Puts `length` bytes in front, with whatever in them, and IP begins there for the kernel if
    /// there is no link layer; with one, what was its header has to be written anew.
    #[must_use]
    fn make_room(&mut self, link: Link, length: u32) -> bool;
}
