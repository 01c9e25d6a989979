//! From a post_bind hook to what `proxy_common::datapath::socket::bind` asks for.

use aya_ebpf::{
    helpers::generated::{
        bpf_get_current_pid_tgid, bpf_get_netns_cookie, bpf_ktime_get_ns, bpf_set_retval,
    },
    programs::SockContext,
};
use proxy_common::abi::{Addr, Counter, MonitorEvent, MonitorHook, Protocol, SockAddr};

use super::{sock_addr::Family, tables::is_of_node};
use crate::{maps, monitor};

const EADDRINUSE: i32 = 98;
const DENY: i32 = 0;

/// A socket that has just been given its address.
pub(crate) struct Bound {
    ctx: SockContext,
    family: Family,
}

impl Bound {
    #[inline(always)]
    pub(crate) fn new(ctx: SockContext, family: Family) -> Self {
        Self { ctx, family }
    }

    /// IANA protocol number.
    #[inline(always)]
    pub(crate) fn protocol(&self) -> u32 {
        // SAFETY: the kernel passes a valid socket; every field below is one the verifier allows.
        unsafe { (*self.ctx.sock).protocol }
    }

    #[inline(always)]
    pub(crate) fn address(&self) -> SockAddr {
        let sk = self.ctx.sock;
        // SAFETY: see `protocol`.
        let (addr, port) = unsafe {
            let addr = match self.family {
                Family::V4 => Addr::from_v4_word((*sk).src_ip4),
                Family::V6 => Addr {
                    words: [
                        (*sk).src_ip6[0],
                        (*sk).src_ip6[1],
                        (*sk).src_ip6[2],
                        (*sk).src_ip6[3],
                    ],
                },
            };
            (addr, (*sk).src_port)
        };
        // Here, and nowhere else, the kernel shows a port in host order.
        SockAddr::from_parts(addr, (port as u16).to_be())
    }

    #[inline(always)]
    pub(crate) fn is_of_node(&self) -> bool {
        is_of_node(self.ctx.sock.cast())
    }

    /// Tells whoever listens that the port is in use.
    #[inline(always)]
    pub(crate) fn tell_in_use(&self, protocol: Protocol) {
        let outcome = Counter::BindInUse;
        if !monitor::is_asked_for(outcome) {
            return;
        }
        let ctx = self.ctx.sock.cast();
        // SAFETY: the helpers take the context or nothing.
        let (at_ns, netns, tgid) = unsafe {
            (
                bpf_ktime_get_ns(),
                bpf_get_netns_cookie(ctx),
                (bpf_get_current_pid_tgid() >> 32) as u32,
            )
        };
        monitor::tell(
            &self.ctx,
            &MonitorEvent {
                at_ns,
                netns,
                src: SockAddr::NONE,
                dst: self.address(),
                new_src: SockAddr::NONE,
                new_dst: SockAddr::NONE,
                service: 0,
                backend_id: 0,
                tgid,
                ifindex: 0,
                outcome: outcome.index() as u16,
                hook: MonitorHook::Bind as u8,
                protocol: protocol.number(),
                zero: 0,
            },
        );
    }

    /// Makes bind() fail; without bpf_set_retval the kernel says EPERM.
    #[inline(always)]
    pub(crate) fn refuse(&self) -> i32 {
        if maps::HAS_SET_RETVAL.load() != 0 {
            // SAFETY: plain helper call.
            unsafe { bpf_set_retval(-EADDRINUSE) };
        }
        DENY
    }
}
