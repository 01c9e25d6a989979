//! What is remembered of a socket, so that an application sees the address it dialled.

use super::{addr::SockAddr, layout::abi_struct, protocol::Protocol};

abi_struct! {
    /// Key of the map SOCKETS: a connected socket, by the cookie the kernel gives it for life.
    pub struct SocketCookie {
        pub cookie: u64,
    }

    /// Value of the map SOCKETS, for a socket connected through a frontend.
    pub struct SocketFlow {
        /// What the application dialled.
        pub frontend: SockAddr,
        /// What it is connected to. If the kernel's peer is another address, the entry is stale.
        pub backend: SockAddr,
        /// 0 while parked.
        pub backend_id: u32,
        /// 0: a ClusterIP's port that no Service has.
        pub service: u32,
        /// UDP: the process that connected it, in the initial pid namespace. TCP: when it dialled, in
        /// milliseconds of the monotonic clock, its low 32 bits.
        pub tgid_or_ms: u32,
        /// IANA protocol number.
        pub protocol: u8,
        /// TCP only: what became of the attempt to connect, a `datapath::failover::Attempt`, or 4 while
        /// TCP is to tell it; 0: not known.
        pub attempt: u8,
        /// Always 0.
        pub zero: [u8; 2],
    }

    /// Key of the maps UDP_FLOWS (address: what an unconnected socket sends to) and UDP_REVERSE
    /// (address: who answers).
    pub struct UdpFlowKey {
        /// The socket's.
        pub cookie: u64,
        /// The address.
        pub peer: SockAddr,
        /// Always 0.
        pub zero: u32,
    }

    /// Value of the map UDP_FLOWS.
    pub struct UdpFlow {
        /// Monotonic time of a recent datagram, at most [`UDP_TOUCH_NS`] old.
        pub used_ns: u64,
        /// Where its datagrams go, as long as it is one of the Service's.
        pub backend_id: u32,
        /// Always 0.
        pub zero: u32,
    }
}

/// A flow this long without a datagram is a new flow: `nf_conntrack_udp_timeout_stream`'s default,
/// which is what kube-proxy's flows live by.
pub const UDP_IDLE_NS: u64 = 120 * 1_000_000_000;

/// A flow's time stamp is renewed only when it is older than this, to keep writes off the hot path.
pub const UDP_TOUCH_NS: u64 = 1_000_000_000;

impl SocketFlow {
    /// What `tgid_or_ms` is for TCP.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the low 32 bits are what is kept"
    )]
    pub const fn milliseconds(now_ns: u64) -> u32 {
        (now_ns / 1_000_000) as u32
    }

    /// Milliseconds since a TCP socket dialled, if they are less than 49 days.
    #[inline(always)]
    pub const fn waited_ms(&self, now_ns: u64) -> u32 {
        Self::milliseconds(now_ns).wrapping_sub(self.tgid_or_ms)
    }

    /// The process that connected a UDP socket; 0 for TCP.
    pub fn tgid(&self) -> u32 {
        if self.protocol == Protocol::Udp.number() {
            self.tgid_or_ms
        } else {
            0
        }
    }
}
