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
    conntrack::{Change, Table, is_done, is_expired, leads_to, opposite},
    path::{Node, Work},
};
use crate::abi::PortRange;

/// Ports that are tried for one flow. With nine of ten ports toward a backend taken, two new
/// flows in three find one, and the third at its client's next attempt.
pub const TRIES: u32 = 10;

/// From one try to the next. Taken ports gather where one try after another looks at the next one; a
/// prime reaches every port of every range.
pub const STRIDE: u32 = 2_654_435_761;

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
        if keep_port || !node.has_socket(&work.key) {
            match occupant(node, work, attempt >= PATIENT_TRIES, now_ns) {
                Occupant::None => return true,
                // Fails if another CPU was quicker. That is rare, and clients ask again.
                Occupant::GivesUp { claimed } => return take_over(node, work, claimed, now_ns),
                Occupant::Stays => {}
            }
        }
        attempt += 1;
    }
    false
}

/// Who has a tuple that a flow would like to have.
enum Occupant {
    /// It is the flow's now.
    None,
    /// `claimed`: nobody else gets it meanwhile.
    GivesUp {
        claimed: bool,
    },
    Stays,
}

/// Inserts `work.reply` under `work.key`, unless a flow has it; `pressed`, one that is done with it would
/// give it up.
///
/// Whoever has inserted into HALF_OPEN has it, if nobody has it in FLOWS: a flow that moves there is
/// written before it leaves.
#[inline(always)]
fn occupant(node: &impl Node, work: &mut Work, pressed: bool, now_ns: u64) -> Occupant {
    let claimed = node.claim(Table::HalfOpen, &work.key, &work.reply);
    let table = if claimed {
        Table::Established
    } else {
        Table::HalfOpen
    };
    if !node.find(table, &work.key, &mut work.other) {
        return if claimed {
            Occupant::None
        } else {
            Occupant::Stays
        };
    }
    if is_free(node, work, pressed, now_ns) {
        return Occupant::GivesUp { claimed };
    }
    if claimed {
        node.forget(Table::HalfOpen, &work.key);
    }
    Occupant::Stays
}

/// Takes the tuple from the flow that has it. Its client finds out (see [`keep`]).
#[inline(always)]
fn take_over(node: &impl Node, work: &mut Work, claimed: bool, now_ns: u64) -> bool {
    let is_locked = node.lock(&work.key);
    // Again: it may have been used before it was locked.
    let is_taken = is_locked
        && (!node.find(Table::Established, &work.key, &mut work.other)
            || is_free(node, work, true, now_ns))
        && (claimed
            || node.find(Table::HalfOpen, &work.key, &mut work.other)
                && is_free(node, work, true, now_ns)
                && node.put(Table::HalfOpen, &work.key, &work.reply));
    if is_taken {
        node.forget(Table::Established, &work.key);
    } else if claimed {
        node.forget(Table::HalfOpen, &work.key);
    }
    if is_locked {
        node.unlock(&work.key);
    }
    is_taken
}

/// Whether the flow of `work.other` gives up its port. One of the same client does: it has begun anew.
#[inline(always)]
fn is_free(node: &impl Node, work: &Work, pressed: bool, now_ns: u64) -> bool {
    let protocol = work.key.protocol;
    let timeout_ns = node.timeout_ns(protocol, work.other.state);
    is_expired(&work.other, timeout_ns, now_ns)
        || (pressed && is_done(&work.other, protocol, now_ns))
        || leads_to(&work.other, &work.flow.tuple)
}

/// Deletes the reply entry of `work.entry`'s flow, which its client begins anew, so that nothing that its
/// backend still says is taken for an answer. If somebody is taking the tuple, that is done already.
#[inline(always)]
pub fn release(node: &impl Node, work: &mut Work, table: Table) {
    opposite(&work.entry, work.flow.tuple.protocol, &mut work.key);
    if !node.lock(&work.key) {
        return;
    }
    if node.find(table, &work.key, &mut work.other) && leads_to(&work.other, &work.flow.tuple) {
        node.forget(table, &work.key);
    }
    node.unlock(&work.key);
}

/// Whether the flow of `work.entry`, which others may take the reply tuple of, still has it. If so, it is
/// in use again, and nobody takes it now.
#[inline(always)]
pub fn keep(node: &impl Node, work: &mut Work, table: Table, now_ns: u64) -> bool {
    opposite(&work.entry, work.flow.tuple.protocol, &mut work.key);
    if !node.lock(&work.key) {
        // Somebody is taking it.
        return false;
    }
    let is_kept =
        node.find(table, &work.key, &mut work.other) && leads_to(&work.other, &work.flow.tuple);
    if is_kept {
        let _there = node.amend(table, &work.key, &Change::alive(now_ns));
    }
    node.unlock(&work.key);
    is_kept
}
