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
    datapath::{
        answer::{self, Cause},
        path::{self, Hook, Verdict},
    },
    wire::link::Link,
};

use crate::{context::tc::Skb, maps};

/// Added to a [`Cause`]: what a packet's story ends with if there is an answer to send. Above all that a
/// TC program can return.
const ANSWER: i32 = 0x100;

#[inline(always)]
fn story(skb: *mut __sk_buff, hook: Hook, link: Link) -> i32 {
    let Some(work) = maps::WORK.get_ptr_mut(0) else {
        return TC_ACT_UNSPEC;
    };
    // SAFETY: this CPU's own element, and no program of ours interrupts another; the kernel made it of
    // zeroes, which are a value, and nobody but these programs writes it.
    let work = unsafe { &mut *work };
    let node = Skb::new(skb);
    let mut packet = node;
    match path::run(hook, link, &mut packet, &node, work) {
        // Not TC_ACT_OK, which would keep the packet from other programs of the device.
        Verdict::Pass(_) | Verdict::Stack(_) => TC_ACT_UNSPEC,
        Verdict::Redirect(_) => node.redirect(&work.hop),
        verdict @ (Verdict::Reject(_) | Verdict::Drop(_)) => match Cause::of(verdict) {
            Some(cause) => ANSWER + cause as i32,
            None => TC_ACT_SHOT,
        },
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn kp_ingress(skb: *mut __sk_buff) -> i32 {
    story(skb, Hook::Ingress, Link::Ethernet)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn kp_egress(skb: *mut __sk_buff) -> i32 {
    story(skb, Hook::Egress, Link::Ethernet)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn kp_ingress_ip(skb: *mut __sk_buff) -> i32 {
    story(skb, Hook::Ingress, Link::None)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn kp_egress_ip(skb: *mut __sk_buff) -> i32 {
    story(skb, Hook::Egress, Link::None)
}

/// Answers the packet of `KP_WORK`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn kp_answer(skb: *mut __sk_buff, cause: u32, hook: u32) -> i32 {
    let Some(work) = maps::WORK.get_ptr(0) else {
        return TC_ACT_SHOT;
    };
    // SAFETY: see `story`, which is over.
    let work = unsafe { &*work };
    let node = Skb::new(skb);
    let mut packet = node;
    if answer::answer(Cause::from_number(cause), &mut packet, &node, work) {
        node.send_back(Hook::from_number(hook))
    } else {
        TC_ACT_SHOT
    }
}

/// What becomes of a packet with this end of its story.
#[inline(always)]
fn act(skb: *mut __sk_buff, end: i32, hook: Hook) -> i32 {
    if end < ANSWER {
        return end;
    }
    kp_answer(skb, (end - ANSWER) as u32, hook as u32)
}

#[classifier]
#[inline(always)]
pub(crate) fn kp_tc_ingress(ctx: TcContext) -> i32 {
    act(ctx.skb.skb, kp_ingress(ctx.skb.skb), Hook::Ingress)
}

#[classifier]
#[inline(always)]
pub(crate) fn kp_tc_egress(ctx: TcContext) -> i32 {
    act(ctx.skb.skb, kp_egress(ctx.skb.skb), Hook::Egress)
}

/// For devices without an Ethernet header.
#[classifier]
#[inline(always)]
pub(crate) fn kp_tc_ingress_ip(ctx: TcContext) -> i32 {
    act(ctx.skb.skb, kp_ingress_ip(ctx.skb.skb), Hook::Ingress)
}

/// For devices without an Ethernet header.
#[classifier]
#[inline(always)]
pub(crate) fn kp_tc_egress_ip(ctx: TcContext) -> i32 {
    act(ctx.skb.skb, kp_egress_ip(ctx.skb.skb), Hook::Egress)
}
