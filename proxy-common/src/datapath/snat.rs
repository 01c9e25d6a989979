//! Which source a flow's packets get: a reply tuple that is nobody else's.
//!
//! The map is the judge: a tuple is taken by inserting it where nothing was, so two CPUs can't both
//! have it. A flow that keeps its client's address asks for the client's own port first. If that is
//! taken (two frontends lead one client port to one backend), the port changes and the address stays,
//! as netfilter does it: the backend, its policies and its log still see the client.
//!
//! Beside the node's own address a port must not be one on which a socket of the node talks to that
//! backend, or could be talked to by it: its packets would be taken for the flow's.

use super::{
    conntrack::{Table, is_expired, opposite},
    path::{Node, Work},
};
use crate::abi::PortRange;

/// Ports that are tried for one flow. With nine of ten ports toward a backend taken, one new flow in
/// two finds one, and its client's next attempt another.
pub const TRIES: u32 = 8;

/// Takes a reply tuple for `work.entry`, whose source port it chooses, and leaves it in `work.key`.
///
/// Whether there was one. `keep_port`: the source is the client, whose port is tried first.
#[inline(always)]
pub fn claim(node: &impl Node, work: &mut Work, keep_port: bool, now_ns: u64) -> bool {
    let range = node.snat_ports();
    let protocol = work.flow.tuple.protocol;
    let start = node.random();
    let mut attempt = 0;
    while attempt < TRIES {
        if attempt != 0 || !keep_port {
            if range.count() == 0 {
                return false;
            }
            work.entry.src.port_be = PortRange::port_be(range, start.wrapping_add(attempt));
        }
        opposite(&work.entry, protocol, &mut work.key);
        let is_taken = !keep_port && node.has_socket(&work.key);
        if !is_taken && take(node, work, now_ns) {
            return true;
        }
        attempt += 1;
    }
    false
}

/// Inserts `work.reply` under `work.key`, unless a living flow has it.
///
/// A flow that moves to FLOWS is written there before it leaves HALF_OPEN. So whoever inserts into
/// HALF_OPEN first and looks at FLOWS then can't miss it.
#[inline(always)]
fn take(node: &impl Node, work: &mut Work, now_ns: u64) -> bool {
    if !node.claim(Table::HalfOpen, &work.key, &work.reply) {
        if !node.find(Table::HalfOpen, &work.key, &mut work.other)
            || !is_expired(&work.other, work.key.protocol, now_ns)
        {
            return false;
        }
        // Its time is over, and nobody has cleared it away yet.
        if !node.put(Table::HalfOpen, &work.key, &work.reply) {
            return false;
        }
    }
    if !node.find(Table::Established, &work.key, &mut work.other) {
        return true;
    }
    if is_expired(&work.other, work.key.protocol, now_ns) {
        node.forget(Table::Established, &work.key);
        return true;
    }
    node.forget(Table::HalfOpen, &work.key);
    false
}
