//! Entries of the socket path.

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_RTO_CB, BPF_SOCK_OPS_RTO_CB_FLAG,
        BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, BPF_TCP_SYN_SENT,
    },
    helpers::generated::bpf_get_socket_cookie,
    macros::{cgroup_sock, cgroup_sock_addr, sock_ops},
    programs::{SockAddrContext, SockContext, SockOpsContext},
};
use proxy_common::{
    abi::{Protocol, SockAddr, SocketCookie, SocketFlow},
    datapath::{
        failover::Attempt,
        socket::{self, BindVerdict, Stage, Verdict},
    },
};

use crate::{
    context::{
        sock::Bound,
        sock_addr::{Family, Hook},
        tables::Kernel,
    },
    maps,
};

const ALLOW: i32 = 1;
const IPPROTO_TCP: u32 = Protocol::Tcp.number() as u32;
const IPPROTO_UDP: u32 = Protocol::Udp.number() as u32;
/// An MPTCP socket dials a TCP port.
const IPPROTO_MPTCP: u32 = 262;

#[inline(always)]
fn connect(ctx: SockAddrContext, family: Family) -> i32 {
    let hook = Hook::new(ctx, family);
    let protocol = match hook.protocol() {
        IPPROTO_TCP | IPPROTO_MPTCP => Protocol::Tcp,
        IPPROTO_UDP => Protocol::Udp,
        _ => return ALLOW,
    };
    let to = hook.address();
    match socket::connect(&hook, protocol, &to) {
        Verdict::Pass | Verdict::Drop => ALLOW,
        Verdict::Rewrite(backend) => {
            hook.rewrite(&backend);
            ALLOW
        }
        Verdict::Refuse => hook.refuse(&SockAddr::closed(&to.addr)),
    }
}

#[inline(always)]
fn sendmsg(ctx: SockAddrContext, family: Family) -> i32 {
    let hook = Hook::new(ctx, family);
    let to = hook.address();
    match socket::send(&hook, &to) {
        Verdict::Pass | Verdict::Drop => ALLOW,
        Verdict::Rewrite(backend) => {
            hook.rewrite(&backend);
            ALLOW
        }
        // An unconnected socket is never told of an ICMP error: without bpf_set_retval the datagram is
        // just lost. Port 0 is not a destination sendmsg accepts.
        Verdict::Refuse => hook.refuse(&SockAddr::parked(&to.addr)),
    }
}

#[inline(always)]
fn recvmsg(ctx: SockAddrContext, family: Family) -> i32 {
    let hook = Hook::new(ctx, family);
    if let Some(shown) = socket::receive(&hook, &hook.address()) {
        hook.rewrite(&shown);
    }
    ALLOW
}

#[inline(always)]
fn getpeername(ctx: SockAddrContext, family: Family) -> i32 {
    let hook = Hook::new(ctx, family);
    if let Some(shown) = socket::peer_name(&hook, &hook.address()) {
        hook.rewrite(&shown);
    }
    ALLOW
}

#[cgroup_sock_addr(connect4)]
pub(crate) fn kp_connect4(ctx: SockAddrContext) -> i32 {
    connect(ctx, Family::V4)
}

#[cgroup_sock_addr(connect6)]
pub(crate) fn kp_connect6(ctx: SockAddrContext) -> i32 {
    connect(ctx, Family::V6)
}

#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn kp_sendmsg4(ctx: SockAddrContext) -> i32 {
    sendmsg(ctx, Family::V4)
}

#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn kp_sendmsg6(ctx: SockAddrContext) -> i32 {
    sendmsg(ctx, Family::V6)
}

#[cgroup_sock_addr(recvmsg4)]
pub(crate) fn kp_recvmsg4(ctx: SockAddrContext) -> i32 {
    recvmsg(ctx, Family::V4)
}

#[cgroup_sock_addr(recvmsg6)]
pub(crate) fn kp_recvmsg6(ctx: SockAddrContext) -> i32 {
    recvmsg(ctx, Family::V6)
}

#[cgroup_sock_addr(getpeername4)]
pub(crate) fn kp_getpeername4(ctx: SockAddrContext) -> i32 {
    getpeername(ctx, Family::V4)
}

#[cgroup_sock_addr(getpeername6)]
pub(crate) fn kp_getpeername6(ctx: SockAddrContext) -> i32 {
    getpeername(ctx, Family::V6)
}

#[inline(always)]
fn post_bind(ctx: SockContext, family: Family) -> i32 {
    let bound = Bound::new(ctx, family);
    let protocol = match bound.protocol() {
        IPPROTO_TCP | IPPROTO_MPTCP => Protocol::Tcp,
        IPPROTO_UDP => Protocol::Udp,
        _ => return ALLOW,
    };
    match socket::bind(&Kernel, protocol, &bound.address(), || bound.is_of_node()) {
        BindVerdict::Allow => ALLOW,
        BindVerdict::InUse => {
            bound.tell_in_use(protocol);
            bound.refuse()
        }
    }
}

#[cgroup_sock(post_bind4)]
pub(crate) fn kp_post_bind4(ctx: SockContext) -> i32 {
    post_bind(ctx, Family::V4)
}

#[cgroup_sock(post_bind6)]
pub(crate) fn kp_post_bind6(ctx: SockContext) -> i32 {
    post_bind(ctx, Family::V6)
}

/// The last close of a socket.
#[cgroup_sock(sock_release)]
pub(crate) fn kp_sock_release(ctx: SockContext) -> i32 {
    // SAFETY: the helper takes the context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.sock.cast()) };
    let key = SocketCookie { cookie };
    // SAFETY: only this socket's own calls write the element, and this is the last.
    let Some(flow) = unsafe { maps::SOCKETS.get(key) }.copied() else {
        return ALLOW;
    };
    // Or the agent was quicker, and has counted.
    if maps::SOCKETS.remove(key).is_ok() {
        // SAFETY: the kernel passes a valid socket.
        let stage = match unsafe { (*ctx.sock).state } {
            BPF_TCP_SYN_SENT => Stage::Dialling,
            BPF_TCP_CLOSE => Stage::Over,
            _ => Stage::Connected,
        };
        socket::closed(&Kernel, &flow, stage);
    }
    ALLOW
}

/// The kernel's TCP tells how a connection is getting on. This runs several times for every connection of
/// the node, at both ends: what isn't asked for costs least.
#[sock_ops]
pub(crate) fn kp_sock_ops(ctx: SockOpsContext) -> u32 {
    // The reply is left alone: other programs of the cgroup may have given it.
    const DONE: u32 = 1;
    // That it was refused is seen when it is closed.
    const REPEATED: u32 = BPF_SOCK_OPS_RTO_CB_FLAG;
    let attempt = match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => None,
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB if ctx.cb_flags() & REPEATED != 0 => {
            Some(Attempt::Answered)
        }
        BPF_SOCK_OPS_RTO_CB if state(&ctx) == BPF_TCP_SYN_SENT => Some(Attempt::Unanswered),
        _ => return DONE,
    };
    let Some(entry) = entry(&ctx) else {
        return DONE;
    };
    // SAFETY: see `entry`. Nobody else writes this byte.
    unsafe {
        let flow = *entry;
        let news = match attempt {
            Some(attempt) => socket::attempted(&Kernel, &flow, attempt),
            None => socket::watched(&Kernel, &flow),
        };
        if let Some(news) = news {
            (&raw mut (*entry).attempt).write_volatile(news);
            if attempt.is_none() {
                // Never taken back: somebody else may want to hear of the socket too.
                let _unwatched = ctx.set_cb_flags((ctx.cb_flags() | REPEATED) as i32);
            }
        }
    }
    DONE
}

/// What is remembered of the socket. It stays allocated until the program ends; if the socket is closed
/// meanwhile, the element may be another's, which dials at this very moment.
#[inline(always)]
fn entry(ctx: &SockOpsContext) -> Option<*mut SocketFlow> {
    // SAFETY: the helper takes the context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.ops.cast()) };
    maps::SOCKETS.get_ptr_mut(SocketCookie { cookie })
}

#[inline(always)]
fn state(ctx: &SockOpsContext) -> u32 {
    // SAFETY: the kernel passes a valid context.
    unsafe { (*ctx.ops).state }
}
