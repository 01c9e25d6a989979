//! What is remembered of a flow of packets, in both of its directions.

use super::{
    addr::{Addr, SockAddr},
    layout::abi_struct,
};

abi_struct! {
    /// Key of the maps FLOWS and HALF_OPEN: a packet's addresses as it arrives.
    ///
    /// A flow has two entries: one under what the client sends, one under what comes back.
    pub struct Tuple {
        /// Of the IP header.
        pub src: Addr,
        /// Of the IP header.
        pub dst: Addr,
        /// In network byte order as it lies in memory.
        pub src_port_be: u16,
        /// In network byte order as it lies in memory.
        pub dst_port_be: u16,
        /// IANA protocol number.
        pub protocol: u8,
        /// Always 0.
        pub zero: [u8; 3],
    }

    /// Value of the maps FLOWS and HALF_OPEN: what a packet becomes.
    ///
    /// Reversed, `src` and `dst` are the key of the opposite entry.
    pub struct FlowEntry {
        /// Monotonic time of a recent packet, at most [`FLOW_TOUCH_NS`] old.
        pub used_ns: u64,
        /// What the packet's source becomes.
        pub src: SockAddr,
        /// What its destination becomes.
        pub dst: SockAddr,
        /// Whose flow it is.
        pub service: u32,
        /// Which of its backends has it.
        pub backend_id: u32,
        /// The acknowledgement (host byte order) that proves the client has seen the SYN-ACK.
        pub proof: u32,
        /// A [`Direction`].
        pub direction: u8,
        /// A [`Via`].
        pub via: u8,
        /// Bits of `datapath::conntrack::state`.
        pub state: u8,
        /// Always 0.
        pub zero: u8,
    }

    /// Key of the map FRAGMENTS: what the fragments of a packet share.
    pub struct FragmentKey {
        /// As the fragment came.
        pub src: Addr,
        /// As the fragment came.
        pub dst: Addr,
        /// As it lies in the packet; 16 bits of it in IPv4.
        pub id: u32,
        /// IANA protocol number.
        pub protocol: u8,
        /// Always 0.
        pub zero: [u8; 3],
    }

    /// Value of the map FRAGMENTS: what only the first fragment says.
    pub struct FragmentPorts {
        /// When the first fragment came; after [`FRAGMENT_NS`] the id may belong to another packet.
        pub seen_ns: u64,
        /// In network byte order as it lies in memory.
        pub src_port_be: u16,
        /// In network byte order as it lies in memory.
        pub dst_port_be: u16,
        /// Always 0.
        pub zero: u32,
    }
}

/// Which of a flow's entries this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    /// From the client to the frontend.
    Original = 0,
    /// From the backend.
    Reply = 1,
}

impl Direction {
    #[inline(always)]
    pub const fn from_number(number: u8) -> Self {
        if number == Self::Reply as u8 {
            Self::Reply
        } else {
            Self::Original
        }
    }
}

/// How a flow's packets go on once they are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Via {
    /// The backend is on this node: through its network stack, where the CNI's rules see them.
    /// Replies are translated when they leave.
    Stack = 0,
    /// The backend is elsewhere: to the next device at once. Replies are translated when they arrive.
    Redirect = 1,
}

impl Via {
    #[inline(always)]
    pub const fn from_number(number: u8) -> Self {
        if number == Self::Redirect as u8 {
            Self::Redirect
        } else {
            Self::Stack
        }
    }
}

/// How many seconds flows live without packets, as far as that can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowTimeouts {
    pub tcp_established: u32,
    /// One side has closed.
    pub tcp_close_wait: u32,
    /// UDP that was not answered.
    pub udp: u32,
    /// UDP that goes both ways.
    pub udp_stream: u32,
}

impl FlowTimeouts {
    /// What kube-proxy sets (`pkg/proxy/apis/config/v1alpha1/defaults.go`), and for UDP, which it leaves
    /// alone, nf_conntrack's.
    pub const DEFAULT: Self = Self {
        tcp_established: 24 * 3600,
        tcp_close_wait: 3600,
        udp: 30,
        udp_stream: 120,
    };
}

/// A flow's time stamp is renewed only when it is older than this, to keep writes off the hot path.
pub const FLOW_TOUCH_NS: u64 = 1_000_000_000;

/// How long fragments of one packet are waited for: `net.ipv4.ipfrag_time`'s default.
pub const FRAGMENT_NS: u64 = 30 * 1_000_000_000;
