//! Which source a flow's packets get: a reply tuple that is nobody else's.
//!
//! The map is the judge: a tuple is taken by inserting it where nothing was, so two CPUs can't both
//! have it. A flow that keeps its client's address asks for the client's own port first. If that is
//! taken (two frontends lead one client port to one backend), the port changes and the address stays,
//! as netfilter does it: the backend, its policies and its log still see the client.
//!
//! A flow has its port to itself for long after its last packet, as in netfilter. Thousands of short
//! connections to one backend, or a flood of first packets, would leave none: then a new flow takes one
//! from a flow that is done with it (`conntrack::is_done`).
//!
//! Beside the node's own address a port must not be one on which a socket of the node talks to that
//! backend, or could be talked to by it: its packets would be taken for the flow's.

use super::{
    conntrack::{Table, is_done, is_expired, opposite},
    path::{Node, Work},
};
use crate::abi::PortRange;

/// Ports that are tried for one flow. With nine of ten ports toward a backend taken, two new
/// flows in three find one, and the third at its client's next attempt.
pub const TRIES: u32 = 10;

/// From one try to the next. Taken ports gather where one try after another looks at the next one; a
/// prime reaches every port of every range.
const STRIDE: u32 = 2_654_435_761;

/// Tries for a port that nobody has, before one is taken from a flow that is done with it.
const PATIENT_TRIES: u32 = 1;

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
            let index = start.wrapping_add(attempt.wrapping_mul(STRIDE));
            work.entry.src.port_be = PortRange::port_be(range, index);
        }
        opposite(&work.entry, protocol, &mut work.key);
        let is_taken = !keep_port && node.has_socket(&work.key);
        if !is_taken && take(node, work, attempt >= PATIENT_TRIES, now_ns) {
            return true;
        }
        attempt += 1;
    }
    false
}

/// Inserts `work.reply` under `work.key`, unless a living flow has it; `pressed`, one that is not done
/// with it.
///
/// A flow that moves to FLOWS is written there before it leaves HALF_OPEN. So whoever inserts into
/// HALF_OPEN first and looks at FLOWS then can't miss it.
#[inline(always)]
fn take(node: &impl Node, work: &mut Work, pressed: bool, now_ns: u64) -> bool {
    if !node.claim(Table::HalfOpen, &work.key, &work.reply) {
        if !node.find(Table::HalfOpen, &work.key, &mut work.other)
            || !is_free(node, work, pressed, now_ns)
        {
            return false;
        }
        displace(node, work, Table::HalfOpen);
        // Another CPU may have been quicker.
        if !node.claim(Table::HalfOpen, &work.key, &work.reply) {
            return false;
        }
    }
    if !node.find(Table::Established, &work.key, &mut work.other) {
        return true;
    }
    if is_free(node, work, pressed, now_ns) {
        displace(node, work, Table::Established);
        return true;
    }
    node.forget(Table::HalfOpen, &work.key);
    false
}

/// Whether the flow of `work.other` gives up its port.
#[inline(always)]
fn is_free(node: &impl Node, work: &Work, pressed: bool, now_ns: u64) -> bool {
    let protocol = work.key.protocol;
    let timeout_ns = node.timeout_ns(protocol, work.other.state);
    is_expired(&work.other, timeout_ns, now_ns)
        || (pressed && is_done(&work.other, protocol, now_ns))
}

/// Forgets the flow of `work.other`, which is under `work.key`: a late packet of its client must not
/// come to the port's next owner.
#[inline(always)]
fn displace(node: &impl Node, work: &mut Work, table: Table) {
    opposite(&work.other, work.key.protocol, &mut work.victim);
    node.forget(table, &work.victim);
    node.forget(table, &work.key);
}
