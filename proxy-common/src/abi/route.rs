//! How packets leave this node when no stack carries them: what the agent copies of the main routing
//! table.
//!
//! A copy, because the helper that asks the kernel (bpf_fib_lookup) is for GPL programs only, and these
//! are under the Apache licence.

use super::{addr::Addr, layout::abi_struct};

abi_struct! {
    /// Key of the map ROUTES, a longest-prefix trie.
    pub struct RouteKey {
        /// In bits; those of IPv4 count from 96.
        pub prefix_length: u32,
        pub addr: Addr,
    }

    /// Value of the map ROUTES.
    pub struct Route {
        pub ifindex: u32,
        /// `::` if whoever has the address is reached directly.
        pub gateway: Addr,
    }
}

impl RouteKey {
    /// Asks for the longest prefix of an address.
    #[inline(always)]
    pub const fn of(addr: Addr) -> Self {
        Self {
            prefix_length: 128,
            addr,
        }
    }
}
