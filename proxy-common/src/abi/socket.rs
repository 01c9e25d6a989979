//! What is remembered of a socket, so that an application sees the address it dialled.

use super::{addr::SockAddr, layout::abi_struct};

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
        /// Monotonic, a few milliseconds behind: when it dialled.
        pub since_ns: u64,
        /// 0 while parked.
        pub backend_id: u32,
        /// 0: a ClusterIP's port that no Service has.
        pub service: u32,
        /// UDP only: the process that connected it, in the initial pid namespace.
        pub tgid: u32,
        /// IANA protocol number.
        pub protocol: u8,
        /// TCP only: what became of the attempt to connect, a `datapath::failover::Attempt`; 0: not known.
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
