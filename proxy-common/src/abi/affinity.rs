//! Session affinity: what a service says of it, and what is remembered of its clients.

use super::{
    addr::{Addr, SockAddr},
    layout::abi_struct,
};

/// The second word of an element of SERVICES: whether a client keeps its backend, and for how long.
/// Eight aligned bytes, written with one store.
///
/// Bits 0..17 seconds (0: no affinity), 17..64 the Service port whose clients they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct ServiceAffinity(pub u64);

impl ServiceAffinity {
    pub const NONE: Self = Self(0);
    /// Longer than this doesn't fit; the API allows 86,400.
    pub const MAX_TIMEOUT_SECS: u32 = (1 << 17) - 1;
    const TIMEOUT_BITS: u32 = 17;

    /// `port`: a number that all lists of the Service port in one family share, and nobody else. Its
    /// low 47 bits count.
    #[inline(always)]
    pub const fn new(timeout_secs: u32, port: u64) -> Self {
        Self((timeout_secs & Self::MAX_TIMEOUT_SECS) as u64 | port << Self::TIMEOUT_BITS)
    }

    #[inline(always)]
    pub const fn is_on(self) -> bool {
        self.timeout_secs() != 0
    }

    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the low 17 bits are the field"
    )]
    pub const fn timeout_secs(self) -> u32 {
        self.0 as u32 & Self::MAX_TIMEOUT_SECS
    }

    #[inline(always)]
    pub const fn timeout_ns(self) -> u64 {
        self.timeout_secs() as u64 * 1_000_000_000
    }

    #[inline(always)]
    pub const fn port(self) -> u64 {
        self.0 >> Self::TIMEOUT_BITS
    }
}

abi_struct! {
    /// Who asks for a backend. A packet has a source address. A socket that dials has none yet; what
    /// stands for its pod, or for the node, is its network namespace.
    pub struct Client {
        /// `::` for a socket.
        pub addr: Addr,
        /// Cookie of the namespace; 0 for a packet.
        pub netns: u64,
    }

    /// Key of the map AFFINITY: a client of a Service port, whatever address of it was dialled.
    pub struct AffinityKey {
        /// [`ServiceAffinity::port`].
        pub port: u64,
        /// Who asks.
        pub client: Client,
    }

    /// Value of the map AFFINITY.
    pub struct AffinityEntry {
        /// Monotonic time of the client's last new connection.
        pub used_ns: u64,
        /// What it got.
        pub backend: SockAddr,
        /// It may be another's by now: the address tells.
        pub backend_id: u32,
    }
}

impl Client {
    #[inline(always)]
    pub const fn of_packet(source: Addr) -> Self {
        Self {
            addr: source,
            netns: 0,
        }
    }

    #[inline(always)]
    pub const fn of_socket(netns: u64) -> Self {
        Self {
            addr: Addr { words: [0; 4] },
            netns,
        }
    }
}

impl AffinityEntry {
    /// Whether the client has been away for longer than its affinity lasts.
    #[inline(always)]
    pub const fn is_expired(&self, timeout_ns: u64, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.used_ns) >= timeout_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_affinity_word_keeps_its_fields_apart() {
        let word = ServiceAffinity::new(86_400, u64::MAX);
        assert_eq!(word.timeout_secs(), 86_400);
        assert_eq!(word.port(), (1 << 47) - 1);
        let word = ServiceAffinity::new(ServiceAffinity::MAX_TIMEOUT_SECS, 5);
        assert_eq!(
            (word.timeout_secs(), word.port()),
            (ServiceAffinity::MAX_TIMEOUT_SECS, 5)
        );
        assert!(word.is_on() && !ServiceAffinity::NONE.is_on());
        assert!(!ServiceAffinity::new(0, 5).is_on());
    }

    #[test]
    fn an_entry_lasts_as_long_as_the_timeout_says_and_no_longer() {
        let entry = AffinityEntry {
            used_ns: 5_000_000_000,
            backend: SockAddr::from_parts(Addr::V4_LOOPBACK, 0),
            backend_id: 1,
        };
        let timeout_ns = ServiceAffinity::new(10, 0).timeout_ns();
        assert!(!entry.is_expired(timeout_ns, 14_999_999_999));
        assert!(entry.is_expired(timeout_ns, 15_000_000_000));
        // Another CPU's clock may be behind.
        assert!(!entry.is_expired(timeout_ns, 4_999_999_999));
    }

    #[test]
    fn no_socket_is_taken_for_a_packet() {
        let nobody = Client::of_packet(Addr { words: [0; 4] });
        assert_ne!(Client::of_socket(1), nobody);
    }
}
