//! Entries of the packet path. Each family of devices has its own pair, so that no packet has to ask
//! whether its device has an Ethernet header.
//!
//! What an entry calls are global functions: the verifier goes through each of them once and by itself,
//! not once for each way that leads there, and each has its stack of 512 bytes nearly to itself. Before
//! 5.13 their arguments can only be the context and numbers; all else is in `KP_WORK`.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};
use proxy_common::{
    abi::{Counter, Kind, MonitorEvent, MonitorHook, SockAddr},
    datapath::{
        answer::{self, Cause},
        lookup::Tables as _,
        path::{self, Decision, Done, Hook, Node as _, Verdict, Work},
    },
    wire::link::Link,
};

use crate::{context::tc::Skb, maps, monitor};

/// What the steps of a packet's story return beside what the program itself returns, which is below:
/// that another step is to follow.
mod next {
    /// Added to a `Done`.
    pub(super) const CARRY_OUT: i32 = 0x100;
    /// Added to a `Cause`.
    pub(super) const ANSWER: i32 = 0x200;
    pub(super) const BEGIN: i32 = 0x300;
    pub(super) const FOLLOW: i32 = 0x301;
}

/// SAFETY of all uses: it is this CPU's own element, and no program of ours interrupts another; the kernel
/// made it of zeroes, which are a value, and nobody but these programs writes it. No step calls another.
#[inline(always)]
fn work() -> Option<*mut Work> {
    maps::WORK.get_ptr_mut(0)
}

#[inline(always)]
fn decide(skb: *mut __sk_buff, hook: Hook, link: Link) -> i32 {
    let Some(work) = work() else {
        return TC_ACT_UNSPEC;
    };
    // SAFETY: see `work`.
    let work = unsafe { &mut *work };
    let node = Skb::new(skb);
    match path::decide(hook, link, &node, &node, work) {
        Decision::Verdict(verdict) => decided(&node, verdict, work),
        Decision::Follows => next::FOLLOW,
        Decision::Begins => next::BEGIN,
    }
}

#[inline(always)]
fn decided(node: &Skb, verdict: Verdict, work: &mut Work) -> i32 {
    match verdict.done() {
        Some(done) => next::CARRY_OUT + done as i32,
        None => end(node, verdict, work),
    }
}

/// What the program returns for a verdict, which is counted, or the step that is left.
#[inline(always)]
fn end(node: &Skb, verdict: Verdict, work: &mut Work) -> i32 {
    path::conclude(node, verdict, work);
    match verdict {
        // Not TC_ACT_OK, which would keep the packet from other programs of the device.
        Verdict::Pass(_) | Verdict::Stack(_) => TC_ACT_UNSPEC,
        Verdict::Redirect(_) => node.redirect(&work.hop),
        Verdict::Reject(_) | Verdict::Drop(_) => match Cause::of(verdict) {
            Some(cause) => next::ANSWER + cause as i32,
            None => TC_ACT_SHOT,
        },
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn kp_ingress(skb: *mut __sk_buff) -> i32 {
    decide(skb, Hook::Ingress, Link::Ethernet)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn kp_egress(skb: *mut __sk_buff) -> i32 {
    decide(skb, Hook::Egress, Link::Ethernet)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn kp_ingress_ip(skb: *mut __sk_buff) -> i32 {
    decide(skb, Hook::Ingress, Link::None)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn kp_egress_ip(skb: *mut __sk_buff) -> i32 {
    decide(skb, Hook::Egress, Link::None)
}

/// A packet of a known flow.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn kp_follow(skb: *mut __sk_buff) -> i32 {
    let Some(work) = work() else {
        return TC_ACT_UNSPEC;
    };
    // SAFETY: see `work`.
    let work = unsafe { &mut *work };
    let node = Skb::new(skb);
    let verdict = path::follow(&node, &node, work);
    decided(&node, verdict, work)
}

/// A packet of no known flow.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn kp_begin(skb: *mut __sk_buff) -> i32 {
    let Some(work) = work() else {
        return TC_ACT_UNSPEC;
    };
    // SAFETY: see `work`.
    let work = unsafe { &mut *work };
    let node = Skb::new(skb);
    let verdict = path::begin(&node, &node, work);
    decided(&node, verdict, work)
}

/// Makes of the packet what was decided.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn kp_carry_out(skb: *mut __sk_buff, done: u32) -> i32 {
    let Some(work) = work() else {
        return TC_ACT_SHOT;
    };
    // SAFETY: see `work`.
    let work = unsafe { &mut *work };
    let node = Skb::new(skb);
    let mut packet = node;
    let verdict = path::carry_out(Done::from_number(done), &mut packet, &node, work);
    end(&node, verdict, work)
}

/// Answers the packet.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn kp_answer(skb: *mut __sk_buff, cause: u32, hook: u32) -> i32 {
    let Some(work) = work() else {
        return TC_ACT_SHOT;
    };
    // SAFETY: see `work`.
    let work = unsafe { &*work };
    let node = Skb::new(skb);
    let mut packet = node;
    if answer::answer(Cause::from_number(cause), &mut packet, &node, work) {
        node.send_back(Hook::from_number(hook))
    } else {
        TC_ACT_SHOT
    }
}

/// Counts for its Service what became of the packet, and tells whoever listens. Not on the way of every
/// packet.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn kp_tell(skb: *mut __sk_buff, hook: u32) -> i32 {
    let Some(work) = work() else {
        return 0;
    };
    // SAFETY: see `work`.
    let work = unsafe { &*work };
    let Some(outcome) = Counter::from_index(work.outcome) else {
        return 0;
    };
    let node = Skb::new(skb);
    let entry = &work.entry;
    path::settle(&node, outcome, work);
    if !monitor::is_asked_for(outcome) {
        return 0;
    }
    let tuple = &work.flow.tuple;
    let is_translated = matches!(outcome.kind(), Kind::Translated | Kind::Continued);
    let (new_src, new_dst, service, backend_id) = if is_translated {
        (entry.src, entry.dst, entry.service, entry.backend_id)
    } else {
        (SockAddr::NONE, SockAddr::NONE, work.service, 0)
    };
    monitor::tell(
        &TcContext::new(skb),
        &MonitorEvent {
            at_ns: node.now_ns(),
            netns: 0,
            src: SockAddr::from_parts(tuple.src, tuple.src_port_be),
            dst: SockAddr::from_parts(tuple.dst, tuple.dst_port_be),
            new_src,
            new_dst,
            service,
            backend_id,
            tgid: 0,
            ifindex: node.ifindex(),
            outcome: work.outcome as u16,
            hook: match Hook::from_number(hook) {
                Hook::Ingress => MonitorHook::Ingress,
                Hook::Egress => MonitorHook::Egress,
            } as u8,
            protocol: tuple.protocol,
            zero: 0,
        },
    );
    0
}

/// The steps behind the first, which returned `code`.
#[inline(always)]
fn go_on(skb: *mut __sk_buff, code: i32, hook: Hook) -> i32 {
    let mut code = code;
    if code == next::FOLLOW {
        code = kp_follow(skb);
    }
    if matches!(hook, Hook::Ingress) && code == next::BEGIN {
        code = kp_begin(skb);
    }
    if code >= next::CARRY_OUT && code < next::ANSWER {
        code = kp_carry_out(skb, (code - next::CARRY_OUT) as u32);
    }
    if code >= next::ANSWER {
        code = kp_answer(skb, (code - next::ANSWER) as u32, hook as u32);
    }
    if let Some(work) = work()
        // SAFETY: see `work`.
        && let work = unsafe { &*work }
        && let Some(outcome) = Counter::from_index(work.outcome)
        && (path::is_to_be_settled(outcome, work) || monitor::is_asked_for(outcome))
    {
        kp_tell(skb, hook as u32);
    }
    code
}

#[classifier]
#[inline(always)]
pub(crate) fn kp_tc_ingress(ctx: TcContext) -> i32 {
    go_on(ctx.skb.skb, kp_ingress(ctx.skb.skb), Hook::Ingress)
}

#[classifier]
#[inline(always)]
pub(crate) fn kp_tc_egress(ctx: TcContext) -> i32 {
    go_on(ctx.skb.skb, kp_egress(ctx.skb.skb), Hook::Egress)
}

/// For devices without an Ethernet header.
#[classifier]
#[inline(always)]
pub(crate) fn kp_tc_ingress_ip(ctx: TcContext) -> i32 {
    go_on(ctx.skb.skb, kp_ingress_ip(ctx.skb.skb), Hook::Ingress)
}

/// For devices without an Ethernet header.
#[classifier]
#[inline(always)]
pub(crate) fn kp_tc_egress_ip(ctx: TcContext) -> i32 {
    go_on(ctx.skb.skb, kp_egress_ip(ctx.skb.skb), Hook::Egress)
}
