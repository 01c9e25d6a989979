//! From a sock_addr hook to the traits of `proxy_common::datapath`.

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{
        bpf_get_current_pid_tgid, bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval,
    },
    programs::SockAddrContext,
};
use proxy_common::{
    abi::{Addr, MonitorEvent, SockAddr, SocketCookie, SocketFlow, UdpFlow, UdpFlowKey},
    datapath::{
        lookup::Tables as _,
        socket::{Added, Decision, Socket},
    },
};

use super::tables::{ANY, NOEXIST, is_of_node, reads_the_maps};
use crate::{maps, monitor};

const ECONNREFUSED: i32 = 111;
const EEXIST: i32 = -17;

/// What a forward hook returns to the kernel.
const ALLOW: i32 = 1;
const DENY: i32 = 0;

/// The hook's address is IPv4 or IPv6; everything behind it is the same.
#[derive(Clone, Copy)]
pub(crate) enum Family {
    V4,
    V6,
}

/// A hook's context, with the family its program is attached for.
pub(crate) struct Hook {
    ctx: SockAddrContext,
    family: Family,
}

impl Hook {
    #[inline(always)]
    pub(crate) fn new(ctx: SockAddrContext, family: Family) -> Self {
        Self { ctx, family }
    }

    /// IANA protocol number of the socket.
    #[inline(always)]
    pub(crate) fn protocol(&self) -> u32 {
        // SAFETY: the kernel passes a valid context; every field below is one the verifier allows.
        unsafe { (*self.ctx.sock_addr).protocol }
    }

    /// The address the hook is about: destination, or source of what was received.
    #[inline(always)]
    pub(crate) fn address(&self) -> SockAddr {
        let sa = self.ctx.sock_addr;
        // SAFETY: see `protocol`.
        let (addr, port) = unsafe {
            let addr = match self.family {
                Family::V4 => Addr::from_v4_word((*sa).user_ip4),
                Family::V6 => Addr {
                    words: [
                        (*sa).user_ip6[0],
                        (*sa).user_ip6[1],
                        (*sa).user_ip6[2],
                        (*sa).user_ip6[3],
                    ],
                },
            };
            (addr, (*sa).user_port)
        };
        // The context widens a 16-bit field.
        SockAddr::from_parts(addr, port as u16)
    }

    #[inline(always)]
    pub(crate) fn rewrite(&self, to: &SockAddr) {
        let sa = self.ctx.sock_addr;
        // SAFETY: see `protocol`.
        unsafe {
            match self.family {
                Family::V4 => (*sa).user_ip4 = to.addr.words[3],
                Family::V6 => {
                    (*sa).user_ip6[0] = to.addr.words[0];
                    (*sa).user_ip6[1] = to.addr.words[1];
                    (*sa).user_ip6[2] = to.addr.words[2];
                    (*sa).user_ip6[3] = to.addr.words[3];
                }
            }
            (*sa).user_port = u32::from(to.port_be);
        }
    }

    /// Makes the system call fail with ECONNREFUSED; returns what the program must return.
    ///
    /// Without bpf_set_retval a denial is always EPERM, so the call is sent to a port where nobody
    /// can answer instead: `fallback`.
    #[inline(always)]
    pub(crate) fn refuse(&self, fallback: &SockAddr) -> i32 {
        if self.can_refuse() {
            // SAFETY: plain helper call.
            unsafe { bpf_set_retval(-ECONNREFUSED) };
            return DENY;
        }
        self.rewrite(fallback);
        ALLOW
    }
}

reads_the_maps!(Hook);

impl Socket for Hook {
    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: the helper takes the context.
        unsafe { bpf_get_socket_cookie(self.ctx.as_ptr()) }
    }

    #[inline(always)]
    fn tgid(&self) -> u32 {
        // SAFETY: plain helper call.
        (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32
    }

    #[inline(always)]
    fn can_refuse(&self) -> bool {
        maps::HAS_SET_RETVAL.load() != 0
    }

    #[inline(always)]
    fn netns(&self) -> u64 {
        // SAFETY: the helper takes the context.
        unsafe { bpf_get_netns_cookie(self.ctx.as_ptr()) }
    }

    #[inline(always)]
    fn is_of_node(&self) -> bool {
        is_of_node(self.ctx.as_ptr())
    }

    #[inline(always)]
    fn flow(&self) -> Option<SocketFlow> {
        let cookie = self.cookie();
        // SAFETY: see `frontend`; only this socket's own calls write the element.
        unsafe { maps::SOCKETS.get(SocketCookie { cookie }) }.copied()
    }

    #[inline(always)]
    fn add_flow(&self, flow: &SocketFlow) -> Added {
        let cookie = self.cookie();
        match maps::SOCKETS.insert(SocketCookie { cookie }, flow, NOEXIST) {
            Ok(()) => Added::Written,
            Err(EEXIST) => Added::Known,
            Err(_) => Added::NoRoom,
        }
    }

    #[inline(always)]
    fn set_flow(&self, flow: &SocketFlow) {
        let cookie = self.cookie();
        let _replaces_its_own_entry = maps::SOCKETS.insert(SocketCookie { cookie }, flow, ANY);
    }

    #[inline(always)]
    fn forget_flow(&self) -> bool {
        let cookie = self.cookie();
        maps::SOCKETS.remove(SocketCookie { cookie }).is_ok()
    }

    #[inline(always)]
    fn udp_flow(&self, key: &UdpFlowKey) -> Option<UdpFlow> {
        // SAFETY: see `frontend`.
        unsafe { maps::UDP_FLOWS.get(key) }.copied()
    }

    #[inline(always)]
    fn set_udp_flow(&self, key: &UdpFlowKey, flow: &UdpFlow) -> bool {
        maps::UDP_FLOWS.insert(key, flow, ANY).is_ok()
    }

    #[inline(always)]
    fn udp_reverse(&self, key: &UdpFlowKey) -> Option<SockAddr> {
        // SAFETY: see `frontend`.
        unsafe { maps::UDP_REVERSE.get(key) }.copied()
    }

    #[inline(always)]
    fn set_udp_reverse(&self, key: &UdpFlowKey, frontend: &SockAddr) -> bool {
        maps::UDP_REVERSE.insert(key, frontend, ANY).is_ok()
    }

    #[inline(always)]
    fn tell(&self, decision: &Decision) {
        if !monitor::is_asked_for(decision.outcome) {
            return;
        }
        monitor::tell(
            &self.ctx,
            &MonitorEvent {
                at_ns: self.now_ns(),
                netns: self.netns(),
                src: SockAddr::NONE,
                dst: decision.dialled,
                new_src: SockAddr::NONE,
                new_dst: decision.becomes,
                service: decision.service,
                backend_id: decision.backend_id,
                tgid: self.tgid(),
                ifindex: 0,
                outcome: decision.outcome.index() as u16,
                hook: decision.hook as u8,
                protocol: decision.protocol.number(),
                zero: 0,
            },
        );
    }
}
