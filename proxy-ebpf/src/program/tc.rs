//! Entries of the packet path. Each family of devices has its own pair, so that no packet has to ask
//! whether its device has an Ethernet header.

use aya_ebpf::{
    bindings::{TC_ACT_OK, TC_ACT_SHOT},
    macros::classifier,
    programs::TcContext,
};
use proxy_common::{
    datapath::path::{self, Hook, Verdict},
    wire::link::Link,
};

use crate::{context::tc::Skb, maps};

#[inline(always)]
fn run(ctx: TcContext, hook: Hook, link: Link) -> i32 {
    let Some(work) = maps::WORK.get_ptr_mut(0) else {
        return TC_ACT_OK;
    };
    // SAFETY: this CPU's own element, and no program of ours interrupts another; the kernel made it of
    // zeroes, which are a value, and nobody but these programs writes it.
    let work = unsafe { &mut *work };
    let node = Skb::new(ctx.skb.skb);
    let mut packet = node;
    match path::run(hook, link, &mut packet, &node, work) {
        Verdict::Pass(_) | Verdict::Stack(_) => TC_ACT_OK,
        Verdict::Redirect(_) => node.redirect(&work.hop),
        Verdict::Reject | Verdict::Drop(_) => TC_ACT_SHOT,
    }
}

#[classifier]
#[inline(always)]
pub(crate) fn kp_tc_ingress(ctx: TcContext) -> i32 {
    run(ctx, Hook::Ingress, Link::Ethernet)
}

#[classifier]
#[inline(always)]
pub(crate) fn kp_tc_egress(ctx: TcContext) -> i32 {
    run(ctx, Hook::Egress, Link::Ethernet)
}

/// For devices without an Ethernet header.
#[classifier]
#[inline(always)]
pub(crate) fn kp_tc_ingress_ip(ctx: TcContext) -> i32 {
    run(ctx, Hook::Ingress, Link::None)
}

/// For devices without an Ethernet header.
#[classifier]
#[inline(always)]
pub(crate) fn kp_tc_egress_ip(ctx: TcContext) -> i32 {
    run(ctx, Hook::Egress, Link::None)
}
