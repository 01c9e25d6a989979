//! Flows of packets: where they are kept, how they live and when they end.
//!
//! A flow is two entries, one for each direction (see [`FlowEntry`]). It begins in HALF_OPEN, where a
//! flood of packets with invented senders pushes out only its like, and moves to FLOWS when its
//! client has shown that it hears the answers. FLOWS refuses what it has no room for: such a flow
//! stays in HALF_OPEN and works on.
//!
//! CPUs work on them at the same time, and no map compares before it writes. So an entry of the original
//! direction is put and forgotten only on behalf of its client's own packets, and one of the other direction
//! only by whoever takes the reply tuple (`snat`) or has it.

use crate::{
    abi::{
        Direction, FLOW_TOUCH_NS, FlowEntry, FlowTimeouts, FragmentKey, FragmentPorts, Protocol,
        SockAddr, Tuple,
    },
    wire::transport::tcp,
};

/// Which map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Table {
    HalfOpen = 0,
    Established = 1,
}

impl Table {
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        if number == Self::Established as u32 {
            Self::Established
        } else {
            Self::HalfOpen
        }
    }
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
    /// Makes the change to the entry that is there: of its state only the bits that it names, whatever
    /// another CPU has written meanwhile.
    #[must_use]
    fn amend(&self, table: Table, key: &Tuple, change: &Change) -> Amended;
    /// Whether there was one.
    fn forget(&self, table: Table, key: &Tuple) -> bool;
    /// Makes this CPU the only one that takes over the reply tuple `key`, until [`unlock`](Self::unlock).
    /// Whether no other is at it.
    #[must_use]
    fn lock(&self, key: &Tuple) -> bool;
    /// Only by whoever has locked it.
    fn unlock(&self, key: &Tuple);
    /// See [`timeout_ns`].
    fn timeout_ns(&self, protocol: u8, state: u8) -> u64;

    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts>;
    fn put_fragment(&self, key: &FragmentKey, ports: &FragmentPorts);
}

/// Bits of [`FlowEntry::state`].
pub mod state {
    /// The backend has answered.
    pub const REPLIED: u8 = 1;
    pub const FIN_ORIGINAL: u8 = 2;
    pub const FIN_REPLY: u8 = 4;
    /// The client said RST, and nothing since. A forged one does no harm while it talks; what the
    /// backend still had on the way changes nothing.
    pub const RESET_ORIGINAL: u8 = 8;
    /// The backend did.
    pub const RESET_REPLY: u8 = 32;
    pub const RESET: u8 = RESET_ORIGINAL | RESET_REPLY;
    /// The client hears the answers: the flow belongs in FLOWS, as soon as there is room.
    pub const PROVEN: u8 = 16;
    /// It is in FLOWS and one of its backend's connections (`BackendStats::active`). Both entries say so; it
    /// counts as long as that of the original direction is there.
    pub const COUNTED: u8 = 64;
    /// It began with the first packet of a TCP connection.
    pub const DIALLED: u8 = 128;
}

pub const SECOND_NS: u64 = 1_000_000_000;

/// How long flows live without packets, in seconds, by [`timeout_index`]. Programs look it up: each
/// question that the verifier has to follow both ways is one for each source port that is tried.
pub type TimeoutTable = [u32; 256];

/// Two bits that tell the three protocols apart, which are all that flows have, and six for the state.
#[inline(always)]
pub const fn timeout_index(protocol: u8, state: u8) -> usize {
    ((protocol & 3) as usize) << 6 | (state & 63) as usize
}

pub const fn timeout_table(timeouts: &FlowTimeouts) -> TimeoutTable {
    let mut table = [0; 256];
    let mut state = 0;
    while state < 64 {
        let mut at = 0;
        while at < Protocol::ALL.len() {
            let protocol = Protocol::ALL[at];
            table[timeout_index(protocol.number(), state)] = seconds(protocol, state, timeouts);
            at += 1;
        }
        state += 1;
    }
    table
}

/// How long a flow lives without packets.
pub fn timeout_ns(protocol: u8, state: u8, timeouts: &FlowTimeouts) -> u64 {
    let seconds =
        Protocol::from_number(protocol).map_or(0, |protocol| seconds(protocol, state, timeouts));
    u64::from(seconds) * SECOND_NS
}

const fn seconds(protocol: Protocol, state: u8, timeouts: &FlowTimeouts) -> u32 {
    let proven = state & state::PROVEN != 0;
    match (protocol, proven) {
        (Protocol::Tcp, _) if state & state::RESET != 0 => 10,
        // nf_conntrack: SYN_SENT 120, SYN_RECV 60.
        (Protocol::Tcp, false) => 60,
        (Protocol::Tcp, true) => match state & BOTH_CLOSED {
            0 => timeouts.tcp_established,
            // nf_conntrack's TIME_WAIT.
            BOTH_CLOSED => 120,
            _ => timeouts.tcp_close_wait,
        },
        (Protocol::Udp, false) => timeouts.udp,
        (Protocol::Udp, true) => timeouts.udp_stream,
        // nf_conntrack: COOKIE_ECHOED 10 rounded up; ESTABLISHED, seven heartbeats.
        (Protocol::Sctp, false) => 30,
        (Protocol::Sctp, true) => 210,
    }
}

const BOTH_CLOSED: u8 = state::FIN_ORIGINAL | state::FIN_REPLY;

#[inline(always)]
pub fn is_expired(entry: &FlowEntry, timeout_ns: u64, now_ns: u64) -> bool {
    // Another CPU may have written a later time than this program has read.
    now_ns.saturating_sub(entry.used_ns) >= timeout_ns
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
    is_silent_for(entry, protocol, now_ns, 100, 3000)
}

/// Whether it may be [`is_done`] to another CPU: half that silence, or less.
#[inline(always)]
pub fn is_nearly_done(entry: &FlowEntry, protocol: u8, now_ns: u64) -> bool {
    is_silent_for(entry, protocol, now_ns, 50, 1000)
}

/// Since when, in milliseconds, a closed one has to be silent, and one that is not proven.
#[inline(always)]
fn is_silent_for(entry: &FlowEntry, protocol: u8, now_ns: u64, closed: u64, unproven: u64) -> bool {
    let proven = entry.state & state::PROVEN != 0;
    let replied = entry.state & state::REPLIED != 0;
    let milliseconds = match Protocol::from_number(protocol) {
        Some(Protocol::Tcp) if is_closed(entry.state) => closed,
        Some(Protocol::Tcp) if !proven => unproven,
        Some(Protocol::Udp | Protocol::Sctp) if !proven && replied => unproven,
        Some(Protocol::Tcp | Protocol::Udp | Protocol::Sctp) | None => return false,
    };
    now_ns.saturating_sub(entry.used_ns) >= milliseconds * MILLISECOND_NS
}

/// What a packet changes of its flow's entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    pub used_ns: u64,
    /// 0: what it was.
    pub proof: u32,
    /// Bits of the state that are 1 from now on.
    pub set: u8,
    /// Bits of the state that are 0 from now on.
    pub clear: u8,
}

/// What came of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amended {
    pub was_there: bool,
    /// The state before; 0 if it was not there.
    pub before: u8,
    /// The state after; 0 if it was not there.
    pub after: u8,
}

impl Amended {
    pub const MISSING: Self = Self {
        was_there: false,
        before: 0,
        after: 0,
    };
}

impl Change {
    /// Of a packet that says nothing but that its flow is alive.
    #[inline(always)]
    pub const fn alive(used_ns: u64) -> Self {
        Self {
            used_ns,
            proof: 0,
            set: 0,
            clear: 0,
        }
    }

    /// Of a packet; whether it proves the flow is not told here.
    #[inline(always)]
    pub fn of_packet(protocol: u8, direction: Direction, tcp_flags: u8, used_ns: u64) -> Self {
        let (fin, reset, mut set) = match direction {
            Direction::Original => (state::FIN_ORIGINAL, state::RESET_ORIGINAL, 0),
            Direction::Reply => (state::FIN_REPLY, state::RESET_REPLY, state::REPLIED),
        };
        let mut clear = 0;
        if protocol == Protocol::Tcp.number() {
            clear = reset;
            if tcp_flags & tcp::FIN != 0 {
                set |= fin;
            }
            if tcp_flags & tcp::RST != 0 {
                set |= reset;
            }
        }
        Self {
            used_ns,
            proof: 0,
            set,
            clear,
        }
    }

    /// Changes an entry of the table that nobody else has at hand.
    #[cfg(any(test, feature = "std"))]
    pub fn make(&self, table: Table, entry: &mut FlowEntry) -> Amended {
        let before = entry.state;
        entry.used_ns = self.used_ns;
        if self.proof != 0 {
            entry.proof = self.proof;
        }
        entry.state = self.applied_to(table, before);
        Amended {
            was_there: true,
            before,
            after: entry.state,
        }
    }

    /// The state of an entry in the table after the change.
    #[inline(always)]
    pub const fn applied_to(&self, table: Table, state: u8) -> u8 {
        let next = (state & !self.clear | self.set) & !state::COUNTED;
        match table {
            Table::HalfOpen => next,
            Table::Established => next | counted(next),
        }
    }
}

/// Whether both sides are done with it, so that its client's port may begin anew.
#[inline(always)]
pub const fn is_closed(state: u8) -> bool {
    state & state::RESET != 0 || state & BOTH_CLOSED == BOTH_CLOSED
}

/// How long a client of TCP waits at least before it repeats its first packet, less than RFC 6298's second
/// because clocks differ. What comes sooner is a copy that the network has made.
const REPEATED_NS: u64 = 500 * MILLISECOND_NS;

/// Whether a SYN in the original direction of a flow that is half open repeats one that had no answer.
#[inline(always)]
pub const fn is_unanswered(entry: &FlowEntry, now_ns: u64) -> bool {
    entry.state & !state::DIALLED == 0 && now_ns.saturating_sub(entry.used_ns) >= REPEATED_NS
}

/// [`state::COUNTED`] for a flow in FLOWS that is one of its backend's connections: it is proven and not
/// [closed](is_closed); else 0. Without a branch, each of which would double what the verifier has to follow.
#[inline(always)]
pub const fn counted(state: u8) -> u8 {
    let is_reset = state >> 3 | state >> 5;
    let is_closed = is_reset | (state >> 1 & state >> 2);
    (state >> 4 & !is_closed & 1) * state::COUNTED
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

/// Whether `entry`, which was found under `entry`'s flow's other key, leads to packets of `tuple`, or to
/// those of another flow that took its place.
#[inline(always)]
pub fn leads_to(entry: &FlowEntry, tuple: &Tuple) -> bool {
    entry.dst.addr == tuple.src
        && entry.dst.port_be == tuple.src_port_be
        && entry.src.addr == tuple.dst
        && entry.src.port_be == tuple.dst_port_be
}

/// The opposite of `entry`, which is under the key `tuple`.
#[inline(always)]
pub fn mirror(entry: &FlowEntry, tuple: &Tuple, into: &mut FlowEntry) {
    *into = *entry;
    into.src = SockAddr::from_parts(tuple.dst, tuple.dst_port_be);
    into.dst = SockAddr::from_parts(tuple.src, tuple.src_port_be);
    into.direction = match Direction::from_number(entry.direction) {
        Direction::Original => Direction::Reply as u8,
        Direction::Reply => Direction::Original as u8,
    };
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
    let lives = |entry: &FlowEntry| {
        !is_expired(entry, tracked.timeout_ns(key.protocol, entry.state), now_ns)
    };
    if tracked.find(Table::Established, key, into) && lives(into) {
        return Some(Table::Established);
    }
    if tracked.find(Table::HalfOpen, key, into) && lives(into) {
        return Some(Table::HalfOpen);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_for_every_protocol_and_state_what_the_rules_say() {
        let timeouts = FlowTimeouts {
            tcp_established: 1001,
            tcp_close_wait: 1002,
            udp: 1003,
            udp_stream: 1004,
        };
        let table = timeout_table(&timeouts);
        for protocol in Protocol::ALL.map(Protocol::number) {
            for state in 0..64 {
                let seconds = u64::from(table[timeout_index(protocol, state)]);
                let wanted = timeout_ns(protocol, state, &timeouts);
                assert_eq!(seconds * SECOND_NS, wanted, "{protocol}, {state}");
            }
        }
        for state in 0..64 {
            let is_active = state & state::PROVEN != 0 && !is_closed(state);
            assert_eq!(counted(state) != 0, is_active, "{state}");
        }
        let distinct: std::collections::BTreeSet<u32> = table.into_iter().collect();
        assert_eq!(
            distinct.into_iter().collect::<Vec<_>>(),
            [0, 10, 30, 60, 120, 210, 1001, 1002, 1003, 1004]
        );
    }
}
