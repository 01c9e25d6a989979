//! What `kube-portal trace` runs: it asks the helpers what the packet path would ask them, and changes
//! nothing. Never attached.

use aya_ebpf::{bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};
use proxy_common::{
    abi::{Addr, Inquiry},
    datapath::{
        flow::Flow,
        path::{Node, Route, Way},
    },
    wire::{
        link::ETHERNET_LENGTH,
        packet::{Packet, Store},
    },
};

use crate::context::tc::Skb;

#[classifier]
pub(crate) fn kp_ask(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(ctx.skb.skb);
    if let Some(bytes) = skb.load(ETHERNET_LENGTH) {
        let mut inquiry = Inquiry::from_bytes(bytes);
        answer(&skb, &mut inquiry);
        // A question that stays without an answer says so itself.
        let _written = skb.store(ETHERNET_LENGTH, &inquiry.to_bytes(), Store::Balanced);
    }
    TC_ACT_UNSPEC
}

#[inline(always)]
fn answer(node: &impl Node, inquiry: &mut Inquiry) {
    if inquiry.kind == Inquiry::SOCKET {
        inquiry.answer = if node.has_socket(&inquiry.tuple) {
            Inquiry::YES
        } else {
            Inquiry::NO
        };
        return;
    }
    let flow = Flow {
        tuple: inquiry.tuple,
        outer_src: inquiry.tuple.src,
        outer_dst: inquiry.tuple.dst,
        class: inquiry.class,
        ..Flow::default()
    };
    let mut hop = Route {
        ifindex: 0,
        gateway: Addr::default(),
    };
    inquiry.answer = match node.route(&flow, &inquiry.to, &mut hop) {
        Way::Forward => Inquiry::YES,
        Way::Nowhere => Inquiry::NO,
        Way::ForwardingOff => Inquiry::FORWARDING_OFF,
    };
    inquiry.ifindex = hop.ifindex;
    inquiry.gateway = hop.gateway;
}
