//! Keys of longest-prefix tries: who may dial a frontend, and where ClusterIPs come from.

use super::{addr::Addr, layout::abi_struct};

abi_struct! {
    /// What a [`SourceRangeKey`]'s prefix is a prefix of.
    pub struct SourceRange {
        /// In the order of its bytes in memory, all of it part of the prefix.
        pub service: u32,
        /// The range's, or the client's.
        pub addr: Addr,
    }

    /// Key of the map SOURCE_RANGES, a longest-prefix trie. Its value is 1.
    pub struct SourceRangeKey {
        /// In bits: 32 for the service, then those of the range; IPv4's count from 96.
        pub prefix_length: u32,
        /// The bits.
        pub range: SourceRange,
    }

    /// Key of the map SERVICE_NETS, a longest-prefix trie: the ServiceCIDRs. Its value is 1.
    pub struct NetKey {
        /// In bits; those of IPv4 count from 96.
        pub prefix_length: u32,
        pub addr: Addr,
    }
}

impl SourceRangeKey {
    /// Asks for the longest prefix of a client's address.
    #[inline(always)]
    pub const fn of(service: u32, addr: Addr) -> Self {
        Self {
            prefix_length: 32 + 128,
            range: SourceRange { service, addr },
        }
    }
}

impl NetKey {
    /// Asks for the longest prefix of an address.
    #[inline(always)]
    pub const fn of(addr: Addr) -> Self {
        Self {
            prefix_length: 128,
            addr,
        }
    }
}
