//! What the packet path knows of this node: its devices, and the source ports it may use.

use super::{addr::Addr, layout::abi_struct};

abi_struct! {
    /// Value of the map DEVICES, by interface index.
    pub struct Device {
        /// What takes the client's place when a packet leaves by it: this node's address there, or
        /// else its primary one. `::` means none.
        pub v4: Addr,
        /// The same for IPv6.
        pub v6: Addr,
        /// In bytes, without the link layer.
        pub mtu: u32,
        /// Bits: [`Device::POD`].
        pub flags: u32,
    }
}

impl Device {
    /// A pod is at the other end, not the outside.
    pub const POD: u32 = 1;

    /// The address of the same family as `like`.
    #[inline(always)]
    pub const fn source_like(&self, like: &Addr) -> Option<Addr> {
        if like.is_v4() {
            if self.v4.is_v4() { Some(self.v4) } else { None }
        } else if self.v6.is_unspecified() || self.v6.is_v4() {
            None
        } else {
            Some(self.v6)
        }
    }
}

/// Source ports that nothing else on the node hands out. Both ends are inside.
///
/// The agent keeps it clear of the NodePort range (30000-32767) and of
/// `net.ipv4.ip_local_port_range`; an empty one (`last < first`) has no port to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl PortRange {
    /// Below both ranges' defaults, and above the ports where most services listen that are dialled
    /// from other machines: packet filters without a memory know those by their number.
    pub const DEFAULT: Self = Self {
        first: 10_000,
        last: 29_999,
    };

    #[inline(always)]
    pub const fn count(self) -> u32 {
        if self.last < self.first {
            0
        } else {
            (self.last - self.first) as u32 + 1
        }
    }

    /// The port at `index`, counted round and round. Only for a range that is not empty.
    #[inline(always)]
    pub const fn port_be(self, index: u32) -> u16 {
        let count = self.count();
        if count == 0 {
            return 0;
        }
        // Below 2^16, because `first + count - 1` is `last`.
        let port = self.first as u32 + index % count;
        ((port & 0xffff) as u16).to_be()
    }
}
