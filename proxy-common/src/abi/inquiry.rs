//! What `kube-portal trace` asks of the kernel's helpers, by a program of its own (`kp_ask`). In no map: it
//! goes there and back as the bytes of a test run.

use super::{
    addr::{Addr, SockAddr},
    conntrack::Tuple,
    layout::abi_struct,
};

abi_struct! {
    /// A question, and its answer in the same place.
    pub struct Inquiry {
        /// Of the packet that is to be routed; or what a socket would have to hear.
        pub tuple: Tuple,
        /// What the packet is to become one for.
        pub to: SockAddr,
        /// [`Inquiry::ROUTE`] or [`Inquiry::SOCKET`].
        pub kind: u32,
        /// Of a packet: `Flow::class`.
        pub class: u32,
        /// Answer: [`Inquiry::NO`] and those after it.
        pub answer: u32,
        /// Answer: of a route, by which device.
        pub ifindex: u32,
        /// Answer: of a route, the next hop.
        pub gateway: Addr,
    }
}

impl Inquiry {
    /// `Node::route`.
    pub const ROUTE: u32 = 0;
    /// `Node::has_socket`.
    pub const SOCKET: u32 = 1;

    /// There is no route; no socket.
    pub const NO: u32 = 1;
    pub const YES: u32 = 2;
    /// The device may not forward.
    pub const FORWARDING_OFF: u32 = 3;
}
