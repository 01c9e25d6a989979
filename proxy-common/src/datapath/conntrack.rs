//! Flows of packets: where they are kept, how they live and when they end.
//!
//! A flow is two entries, one for each direction (see [`FlowEntry`]). It begins in HALF_OPEN, where a
//! flood of packets with invented senders pushes out only its like, and moves to FLOWS when its
//! client has shown that it hears the answers. FLOWS refuses what it has no room for: such a flow
//! stays in HALF_OPEN and works on.

use crate::{
    abi::{Direction, FLOW_TOUCH_NS, FlowEntry, FragmentKey, FragmentPorts, Protocol, Tuple},
    wire::transport::tcp,
};

/// Which map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    HalfOpen,
    Established,
}

/// The maps of flows. Implemented by the kernel maps and by [`super::fake::Maps`].
pub trait Conntrack {
    /// Copies the entry to `into`. Whether there is one.
    fn find(&self, table: Table, key: &Tuple, into: &mut FlowEntry) -> bool;
    /// Writes the entry unless there is one. Whether it was written.
    #[must_use]
    fn claim(&self, table: Table, key: &Tuple, entry: &FlowEntry) -> bool;
    /// Writes the entry. Whether there was room.
    #[must_use]
    fn put(&self, table: Table, key: &Tuple, entry: &FlowEntry) -> bool;
    /// Writes the state, proof and time of `entry` into the one that is there. Whether there is one.
    #[must_use]
    fn amend(&self, table: Table, key: &Tuple, entry: &FlowEntry) -> bool;
    fn forget(&self, table: Table, key: &Tuple);

    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts>;
    fn put_fragment(&self, key: &FragmentKey, ports: &FragmentPorts);
}

/// Bits of [`FlowEntry::state`].
pub mod state {
    /// The backend has answered.
    pub const REPLIED: u8 = 1;
    pub const FIN_ORIGINAL: u8 = 2;
    pub const FIN_REPLY: u8 = 4;
    /// Somebody said RST, and nobody spoke since. A forged one does no harm while the two talk.
    pub const RESET: u8 = 8;
    /// The client hears the answers: the flow belongs in FLOWS, as soon as there is room.
    pub const PROVEN: u8 = 16;
}

const SECOND_NS: u64 = 1_000_000_000;

/// How long a flow lives without packets.
#[inline(always)]
pub fn timeout_ns(protocol: u8, state: u8) -> u64 {
    let proven = state & state::PROVEN != 0;
    let seconds = match (Protocol::from_number(protocol), proven) {
        (None, _) => 0,
        (Some(Protocol::Tcp), _) if state & state::RESET != 0 => 10,
        // nf_conntrack: SYN_SENT 120, SYN_RECV 60.
        (Some(Protocol::Tcp), false) => 60,
        (Some(Protocol::Tcp), true) => {
            match state & (state::FIN_ORIGINAL | state::FIN_REPLY) {
                // What kube-proxy sets for established connections and for CLOSE_WAIT, and
                // nf_conntrack's TIME_WAIT.
                0 => 24 * 3600,
                both if both == state::FIN_ORIGINAL | state::FIN_REPLY => 120,
                _ => 3600,
            }
        }
        // nf_conntrack's udp and udp_stream.
        (Some(Protocol::Udp), false) => 30,
        (Some(Protocol::Udp), true) => 120,
        // nf_conntrack: COOKIE_ECHOED 10 rounded up; ESTABLISHED, seven heartbeats.
        (Some(Protocol::Sctp), false) => 30,
        (Some(Protocol::Sctp), true) => 210,
    };
    seconds * SECOND_NS
}

#[inline(always)]
pub fn is_expired(entry: &FlowEntry, protocol: u8, now_ns: u64) -> bool {
    // Another CPU may have written a later time than this program has read.
    now_ns.saturating_sub(entry.used_ns) >= timeout_ns(protocol, entry.state)
}

const MILLISECOND_NS: u64 = 1_000_000;

/// Whether a living flow would not be missed, if another needs its place:
/// * a connection that both sides have closed, or that was reset, and whose last packets had time to
///   arrive;
/// * one whose client didn't answer the SYN-ACK within the time in which it would have repeated its SYN
///   (RFC 6298: 1 s, then 2 s);
/// * a question that was answered: nothing says that another will follow.
#[inline(always)]
pub fn is_done(entry: &FlowEntry, protocol: u8, now_ns: u64) -> bool {
    let proven = entry.state & state::PROVEN != 0;
    let replied = entry.state & state::REPLIED != 0;
    let milliseconds = match Protocol::from_number(protocol) {
        Some(Protocol::Tcp) if is_closed(entry.state) => 100,
        Some(Protocol::Tcp) if !proven => 3000,
        Some(Protocol::Udp | Protocol::Sctp) if !proven && replied => 3000,
        Some(Protocol::Tcp | Protocol::Udp | Protocol::Sctp) | None => return false,
    };
    now_ns.saturating_sub(entry.used_ns) >= milliseconds * MILLISECOND_NS
}

/// The state after a packet.
#[inline(always)]
pub fn next_state(protocol: u8, state: u8, direction: Direction, tcp_flags: u8) -> u8 {
    let fin = match direction {
        Direction::Original => state::FIN_ORIGINAL,
        Direction::Reply => state::FIN_REPLY,
    };
    let mut next = state;
    if matches!(direction, Direction::Reply) {
        next |= state::REPLIED;
    }
    if protocol == Protocol::Tcp.number() {
        next &= !state::RESET;
        if tcp_flags & tcp::FIN != 0 {
            next |= fin;
        }
        if tcp_flags & tcp::RST != 0 {
            next |= state::RESET;
        }
    }
    next
}

/// Whether both sides are done with it, so that its client's port may begin anew.
#[inline(always)]
pub const fn is_closed(state: u8) -> bool {
    state & state::RESET != 0
        || state & (state::FIN_ORIGINAL | state::FIN_REPLY)
            == state::FIN_ORIGINAL | state::FIN_REPLY
}

/// Whether a packet of the original direction shows that its sender hears the answers.
#[inline(always)]
pub fn is_proven(protocol: u8, entry: &FlowEntry, tcp_flags: u8, acknowledgement: u32) -> bool {
    if entry.state & state::PROVEN != 0 {
        return true;
    }
    if entry.state & state::REPLIED == 0 {
        return false;
    }
    if protocol != Protocol::Tcp.number() {
        // As much as can be known, and what nf_conntrack calls assured.
        return true;
    }
    // The client of a slow handshake may have sent data by now, but it acknowledges in order, and the
    // first acknowledgement is that of the SYN-ACK. No SYN-ACK, no proof, whatever else the backend
    // said: its reset of a packet from nowhere can be had by anybody.
    entry.proof != 0
        && tcp_flags & (tcp::ACK | tcp::SYN | tcp::RST) == tcp::ACK
        && acknowledgement == entry.proof
}

/// Whether the entry's time stamp is worth a write.
#[inline(always)]
pub fn is_stale(entry: &FlowEntry, now_ns: u64) -> bool {
    now_ns.saturating_sub(entry.used_ns) >= FLOW_TOUCH_NS
}

/// The key of the opposite entry.
#[inline(always)]
pub fn opposite(entry: &FlowEntry, protocol: u8, into: &mut Tuple) {
    into.src = entry.dst.addr;
    into.dst = entry.src.addr;
    into.src_port_be = entry.dst.port_be;
    into.dst_port_be = entry.src.port_be;
    into.protocol = protocol;
    into.zero = [0; 3];
}

/// The table that holds a living entry under `key`, which is copied to `into`.
#[inline(always)]
pub fn lookup(
    tracked: &impl Conntrack,
    key: &Tuple,
    now_ns: u64,
    into: &mut FlowEntry,
) -> Option<Table> {
    if tracked.find(Table::Established, key, into) && !is_expired(into, key.protocol, now_ns) {
        return Some(Table::Established);
    }
    if tracked.find(Table::HalfOpen, key, into) && !is_expired(into, key.protocol, now_ns) {
        return Some(Table::HalfOpen);
    }
    None
}
