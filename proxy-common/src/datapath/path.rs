//! The story of a packet, top to bottom (DESIGN §3.2).
//!
//! On its way in a packet belongs to a flow that is known, or is for a frontend and begins one, or is
//! none of our business. The backend decides how its flow goes on:
//! * on this node: the destination changes, the client's address stays, and the network stack carries
//!   it on, so that the CNI's rules see it. The answers get the frontend's address when they leave;
//! * elsewhere: the source becomes this node's as well, and the packet leaves at once. The answers
//!   come back to this node, where both changes are undone, and leave at once too.
//!
//! A pod behind a device of its own is not outside: its packets go through the stack wherever the
//! backend is, and keep their source. Only a pod that is its own backend gets this node's address.
//!
//! What is for a ClusterIP and no Service's is refused, on its way in and on its way out.
//!
//! Fragments follow their first one. ICMP errors go the way of the packets they would stop.

use super::{
    conntrack::{self, Amended, Change, Conntrack, Table, state},
    failover::{self, Attempt},
    flow::{self, Flow, Kind},
    icmp_error,
    lookup::{Choice, NoChoice, Tables, Visit, account, choose, lack, live},
    snat,
    translate::{self, Hops},
};
use crate::{
    abi::{
        Addr, Client, Counter, Device, Direction, FRAGMENT_NS, FlowEntry, FragmentKey,
        FragmentPorts, Frontend, FrontendKey, PortRange, Protocol, SockAddr, Tuple, Via,
    },
    wire::{
        link::{ETHERTYPE_V4, ETHERTYPE_V6, Family, Link},
        packet::{Packet, Store},
        transport::tcp,
    },
};

/// How a packet leaves this node when no stack carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Route {
    pub ifindex: u32,
    /// The next hop; the destination itself if it is reached directly.
    pub gateway: Addr,
}

/// What a node knows beside its tables. Implemented for the kernel and by [`super::fake::Maps`].
pub trait Node: Tables + Conntrack {
    fn snat_ports(&self) -> PortRange;
    /// Until this (monotonic) time a TCP connection that is not known here may be one of whoever served
    /// before, such as a kube-proxy; 0: never.
    fn inherited_until_ns(&self) -> u64;
    /// The device the hook runs for.
    fn ifindex(&self) -> u32;
    fn device(&self, ifindex: u32) -> Option<Device>;
    /// The kernel's routing, asked as for a packet of `flow` that is to become one for `dst`; the hop
    /// is written to `into`.
    fn route(&self, flow: &Flow, dst: &SockAddr, into: &mut Route) -> Way;
    /// Whether the frame was addressed to the device, not to all or, as promiscuous devices see it,
    /// to another host. Only for devices with an Ethernet header, on the way in.
    fn is_for_device(&self) -> bool;
    /// Whether the packet leaves because these programs redirected it. Says so once.
    fn is_sent_on(&self) -> bool;
    /// Whether a socket of this node would get packets of this tuple.
    fn has_socket(&self, tuple: &Tuple) -> bool;
    /// Whether SOURCE_RANGES lets `source` dial `service`.
    fn is_allowed(&self, service: u32, source: &Addr) -> bool;
    /// Whether SERVICE_NETS holds the address.
    fn is_in_service_nets(&self, addr: &Addr) -> bool;
}

/// What the kernel's routing says of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Way {
    /// It is reached by another hop.
    Forward,
    /// There is no route, or one that says no; or the destination is an address of this node.
    Nowhere,
    /// The device that the packet came from may not forward (`net.ipv*.conf.*.forwarding`).
    ForwardingOff,
}

/// All that is known of the packet in hand. Too large for the stack of a BPF program, so there it
/// lives in a per-CPU map.
///
/// All bits 0 are a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Work {
    pub flow: Flow,
    /// The key of the opposite entry.
    pub key: Tuple,
    /// What this packet becomes.
    pub entry: FlowEntry,
    /// What an answer becomes.
    pub reply: FlowEntry,
    /// Somebody else's entry that was looked at.
    pub other: FlowEntry,
    /// How it leaves, if it is redirected.
    pub hop: Route,
    /// The Service port that a packet of no known flow is for; 0: for none.
    pub service: u32,
    /// The index of the [`Counter`] of what became of it.
    pub outcome: u32,
    /// When it came; monotonic.
    pub now_ns: u64,
    /// The backend that a new flow is not to get, if there is another; 0: none.
    pub avoid: u32,
    /// The backend that has one connection more; 0: none.
    pub one_more: u32,
    /// The backend that has one connection less; 0: none.
    pub one_less: u32,
    /// An [`Attempt`] of which it tells; 0: of none.
    pub attempt: u32,
    /// Whose backend the attempt was for.
    pub tried_service: u32,
    /// Which.
    pub tried: u32,
    /// Where that was.
    pub tried_at: SockAddr,
    /// Of a known flow: the [`Table`] that it is in.
    pub table: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Hook {
    Ingress = 0,
    Egress = 1,
}

impl Hook {
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        if number == Self::Egress as u32 {
            Self::Egress
        } else {
            Self::Ingress
        }
    }
}

/// Why a packet was left as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    NotOurs,
    Malformed,
    /// A later fragment without its first.
    OrphanFragment,
    /// What these programs have redirected, on its way out.
    SentOn,
}

/// Why nobody serves a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    NoEndpoints,
    /// A ClusterIP, but no port of its Service.
    UnknownPort,
}

/// What was done to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Done {
    NewFlow = 0,
    Forwarded = 1,
    Reversed = 2,
    ErrorTranslated = 3,
    /// A new flow instead of one whose backend did not answer.
    FailedOver = 4,
}

impl Done {
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        if number == Self::Forwarded as u32 {
            Self::Forwarded
        } else if number == Self::Reversed as u32 {
            Self::Reversed
        } else if number == Self::ErrorTranslated as u32 {
            Self::ErrorTranslated
        } else if number == Self::FailedOver as u32 {
            Self::FailedOver
        } else {
            Self::NewFlow
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// The packet goes on as it came.
    Pass(Passed),
    /// Translated; the network stack carries it on.
    Stack(Done),
    /// Translated; it leaves by `Work::hop`.
    Redirect(Done),
    /// Nobody serves it: its sender is to be told (port unreachable).
    Reject(Refusal),
    Drop(DropReason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum DropReason {
    NoLocalEndpoint,
    NotAllowed,
    UnallocatedClusterIp,
    OrphanFragment,
    StrayReset,
    NoSnatPort,
    NoSource,
    NoRoom,
    NoRoute,
    ForwardingOff,
    TtlExceeded,
    TooBig,
    SctpFragment,
    NotWritten,
    TableDamaged,
}

impl DropReason {
    #[inline(always)]
    pub const fn counter(self) -> Counter {
        match self {
            Self::NoLocalEndpoint => Counter::PacketNoLocalEndpoint,
            Self::NotAllowed => Counter::PacketNotAllowed,
            Self::UnallocatedClusterIp => Counter::PacketUnallocatedClusterIp,
            Self::OrphanFragment => Counter::PacketOrphanDropped,
            Self::StrayReset => Counter::PacketStrayReset,
            Self::NoSnatPort => Counter::PacketNoSnatPort,
            Self::NoSource => Counter::PacketNoSource,
            Self::NoRoom => Counter::PacketNoRoom,
            Self::NoRoute => Counter::PacketNoRoute,
            Self::ForwardingOff => Counter::PacketForwardingOff,
            Self::TtlExceeded => Counter::PacketTtlExceeded,
            Self::TooBig => Counter::PacketTooBig,
            Self::SctpFragment => Counter::PacketSctpFragment,
            Self::NotWritten => Counter::PacketNotWritten,
            Self::TableDamaged => Counter::TableDamaged,
        }
    }
}

impl From<translate::Failure> for DropReason {
    #[inline(always)]
    fn from(failure: translate::Failure) -> Self {
        match failure {
            translate::Failure::NotWritten => Self::NotWritten,
            translate::Failure::SctpFragment => Self::SctpFragment,
            translate::Failure::LastHop => Self::TtlExceeded,
        }
    }
}

impl Decision {
    const PASS: Self = Self::Verdict(Verdict::Pass(Passed::NotOurs));
}

impl Verdict {
    /// What [`carry_out`] is to do.
    #[inline(always)]
    pub const fn done(self) -> Option<Done> {
        match self {
            Self::Stack(done) | Self::Redirect(done) => Some(done),
            Self::Pass(_) | Self::Reject(_) | Self::Drop(_) => None,
        }
    }

    #[inline(always)]
    pub const fn counter(self) -> Counter {
        match self {
            Self::Pass(Passed::NotOurs) => Counter::PacketPassed,
            Self::Pass(Passed::Malformed) => Counter::PacketMalformed,
            Self::Pass(Passed::OrphanFragment) => Counter::PacketOrphanFragment,
            Self::Pass(Passed::SentOn) => Counter::PacketSentOn,
            Self::Stack(done) | Self::Redirect(done) => match done {
                Done::NewFlow => Counter::PacketNewFlow,
                Done::Forwarded => Counter::PacketForwarded,
                Done::Reversed => Counter::PacketReversed,
                Done::ErrorTranslated => Counter::PacketErrorTranslated,
                Done::FailedOver => Counter::PacketFailedOver,
            },
            Self::Reject(Refusal::NoEndpoints) => Counter::PacketNoEndpoints,
            Self::Reject(Refusal::UnknownPort) => Counter::PacketUnknownPort,
            Self::Drop(reason) => reason.counter(),
        }
    }
}

/// What [`decide`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Decision {
    Verdict(Verdict),
    /// The packet is of a known flow: [`follow`] is next.
    Follows,
    /// The packet is of no known flow: [`begin`] is next.
    Begins,
}

/// A packet at a hook of a device. Counts what becomes of it.
///
/// In the kernel the steps are functions of their own, see `program/tc.rs`.
#[inline(always)]
pub fn run(
    hook: Hook,
    link: Link,
    packet: &mut impl Packet,
    node: &impl Node,
    work: &mut Work,
) -> Verdict {
    let mut verdict = match decide(hook, link, packet, node, work) {
        Decision::Verdict(verdict) => verdict,
        Decision::Follows => follow(packet, node, work),
        Decision::Begins => begin(packet, node, work),
    };
    if let Some(done) = verdict.done() {
        verdict = carry_out(done, packet, node, work);
    }
    conclude(node, verdict, work);
    settle(node, verdict.counter(), work);
    verdict
}

/// Counts what became of the packet, and writes it down.
#[inline(always)]
pub fn conclude(tables: &impl Tables, verdict: Verdict, work: &mut Work) {
    let outcome = verdict.counter();
    tables.count(outcome);
    work.outcome = outcome.index();
}

/// Whether [`settle`] has something to do. Of most packets it has not.
#[inline(always)]
pub const fn is_to_be_settled(outcome: Counter, work: &Work) -> bool {
    outcome.is_begin() || outcome.is_failure() || work.one_more | work.one_less | work.attempt != 0
}

/// What the packet's Service and backends are to know of it.
#[inline(always)]
pub fn settle(tables: &impl Tables, outcome: Counter, work: &Work) {
    account(tables, outcome, work.service, work.entry.backend_id);
    if work.one_less != 0 {
        tables.add_active(work.one_less, -1);
    }
    if work.one_more != 0 {
        tables.add_active(work.one_more, 1);
    }
    if let Some(attempt) = Attempt::from_number(work.attempt) {
        let (service, id) = (work.tried_service, work.tried);
        failover::note(tables, attempt, service, id, &work.tried_at);
    }
}

/// What is to become of the packet, which is not touched yet. Flows are written down.
#[inline(always)]
pub fn decide(
    hook: Hook,
    link: Link,
    packet: &impl Packet,
    node: &impl Node,
    work: &mut Work,
) -> Decision {
    work.service = 0;
    work.avoid = 0;
    work.one_more = 0;
    work.one_less = 0;
    work.attempt = 0;
    match story(hook, link, packet, node, work) {
        Ok(decision) => decision,
        Err(reason) => Decision::Verdict(Verdict::Drop(reason)),
    }
}

/// A packet of a known flow, of which [`decide`] has said so.
#[inline(always)]
pub fn follow(packet: &impl Packet, node: &impl Node, work: &mut Work) -> Verdict {
    match further(packet, node, work) {
        Ok(verdict) => verdict,
        Err(reason) => Verdict::Drop(reason),
    }
}

/// A packet of no known flow, on its way in, of which [`decide`] has said that it begins one.
#[inline(always)]
pub fn begin(packet: &impl Packet, node: &impl Node, work: &mut Work) -> Verdict {
    match first(packet, node, work) {
        Ok(verdict) => verdict,
        Err(reason) => Verdict::Drop(reason),
    }
}

#[inline(always)]
fn story(
    hook: Hook,
    link: Link,
    packet: &impl Packet,
    node: &impl Node,
    work: &mut Work,
) -> Result<Decision, DropReason> {
    match (hook, link) {
        // As in IP forwarding: what every host on the link got would go on as many times.
        (Hook::Ingress, Link::Ethernet) if !node.is_for_device() => {
            return Ok(Decision::PASS);
        }
        (Hook::Egress, _) if node.is_sent_on() => {
            return Ok(Decision::Verdict(Verdict::Pass(Passed::SentOn)));
        }
        (Hook::Ingress | Hook::Egress, _) => {}
    }
    if let Err(skip) = flow::parse(packet, link, &mut work.flow) {
        let passed = if skip.is_malformed() {
            Passed::Malformed
        } else {
            Passed::NotOurs
        };
        return Ok(Decision::Verdict(Verdict::Pass(passed)));
    }
    if matches!(work.flow.kind, Kind::WithoutPorts) {
        return stranger(node, &work.flow).map(Decision::Verdict);
    }
    let now_ns = node.now_ns();
    work.now_ns = now_ns;
    if matches!(work.flow.kind, Kind::LaterFragment) && !learn_ports(node, &mut work.flow, now_ns) {
        return orphan(node, &work.flow.tuple.dst).map(Decision::Verdict);
    }
    if let Some(table) = conntrack::lookup(node, &work.flow.tuple, now_ns, &mut work.entry) {
        if !concerns(hook, &work.entry) {
            return Ok(Decision::PASS);
        }
        if goes_on(node, work, table, now_ns) {
            work.table = table as u32;
            return Ok(Decision::Follows);
        }
        // Its opposite entry ends as others do, or goes to whoever takes it.
        drop_original(node, work, table);
    }
    match (hook, work.flow.kind) {
        (Hook::Ingress, Kind::Whole | Kind::FirstFragment) => Ok(Decision::Begins),
        (Hook::Egress, Kind::Whole | Kind::FirstFragment) => {
            leaving(node, work).map(Decision::Verdict)
        }
        (_, Kind::LaterFragment | Kind::Error | Kind::WithoutPorts) => Ok(Decision::PASS),
    }
}

/// Deletes the entry under the packet's own tuple, which is `work.entry` and of the original direction.
/// Whoever deletes it counts.
#[inline(always)]
fn drop_original(node: &impl Node, work: &mut Work, table: Table) {
    if node.forget(table, &work.flow.tuple) && work.entry.state & state::COUNTED != 0 {
        work.one_less = work.entry.backend_id;
    }
}

/// Whether this hook is where packets of this entry are translated. Answers from backends of this
/// node pass the ingress of a pod's device first: there netfilter has yet to see them as they are.
#[inline(always)]
fn concerns(hook: Hook, entry: &FlowEntry) -> bool {
    match (
        hook,
        Direction::from_number(entry.direction),
        Via::from_number(entry.via),
    ) {
        (Hook::Ingress, Direction::Original, _)
        | (Hook::Ingress, Direction::Reply, Via::Redirect)
        | (Hook::Egress, Direction::Reply, Via::Stack) => true,
        (Hook::Ingress, Direction::Reply, Via::Stack)
        | (Hook::Egress, Direction::Original, _)
        | (Hook::Egress, Direction::Reply, Via::Redirect) => false,
    }
}

/// Whether the packet belongs to the flow whose entry was found.
#[inline(always)]
fn goes_on(node: &impl Node, work: &mut Work, table: Table, now_ns: u64) -> bool {
    if !matches!(work.flow.kind, Kind::Whole | Kind::FirstFragment)
        || matches!(
            Direction::from_number(work.entry.direction),
            Direction::Reply
        )
    {
        return true;
    }
    !begins_anew(node, work)
        && !is_given_up(node, work, table, now_ns)
        && (!conntrack::is_nearly_done(&work.entry, work.flow.tuple.protocol, now_ns)
            || snat::keep(node, work, table, now_ns))
}

/// Whether the packet of a client begins another flow under the tuple of this one: a connection after the
/// end of the last one, or a UDP datagram whose backend is gone. TCP and SCTP connections keep theirs: it
/// may be terminating, and it alone knows them (BEHAVIOUR C2, C6).
#[inline(always)]
fn begins_anew(node: &impl Node, work: &Work) -> bool {
    match work.flow.protocol() {
        Some(Protocol::Tcp) if work.flow.is_syn() => {
            if conntrack::is_closed(work.entry.state) {
                return true;
            }
        }
        Some(Protocol::Udp) => {}
        Some(Protocol::Tcp | Protocol::Sctp) | None => return false,
    }
    // Another endpoint of the Service may have got the number.
    match live(node, work.entry.service, work.entry.backend_id) {
        Some(choice) => choice.address != work.entry.dst,
        None => true,
    }
}

/// Whether the packet repeats a first one that its backend has not answered, and another backend may. What
/// the first one says after all goes nowhere then. A client with affinity stays where it is: one lost packet
/// would be enough to lead it away for hours.
#[inline(always)]
fn is_given_up(node: &impl Node, work: &mut Work, table: Table, now_ns: u64) -> bool {
    if !work.flow.is_syn()
        || matches!(table, Table::Established)
        || !conntrack::is_unanswered(&work.entry, now_ns)
    {
        return false;
    }
    let Some(service) = node.service(work.entry.service) else {
        return false;
    };
    if !service.word.fails_over() || service.word.count() < 2 || service.affinity.is_on() {
        return false;
    }
    work.avoid = work.entry.backend_id;
    tried(work, Attempt::Unanswered as u8);
    snat::release(node, work, table);
    true
}

/// What the packet tells of the attempt that is `work.entry`.
#[inline(always)]
fn tried(work: &mut Work, attempt: u8) {
    work.attempt = attempt as u32;
    work.tried_service = work.entry.service;
    work.tried = work.entry.backend_id;
    // The other end of an answer is where it comes from.
    work.tried_at = match Direction::from_number(work.entry.direction) {
        Direction::Original => work.entry.dst,
        Direction::Reply => SockAddr::from_parts(work.flow.tuple.src, work.flow.tuple.src_port_be),
    };
}

/// See [`follow`].
#[inline(always)]
fn further(packet: &impl Packet, node: &impl Node, work: &mut Work) -> Result<Verdict, DropReason> {
    let direction = Direction::from_number(work.entry.direction);
    let done = match (work.flow.kind, direction) {
        (Kind::Error, _) => Done::ErrorTranslated,
        (_, Direction::Original) => Done::Forwarded,
        (_, Direction::Reply) => Done::Reversed,
    };
    if matches!(work.flow.kind, Kind::Whole | Kind::FirstFragment) {
        let (table, now_ns) = (Table::from_number(work.table), work.now_ns);
        track(node, work, table, now_ns);
    }
    if matches!(Via::from_number(work.entry.via), Via::Redirect) {
        find_way(packet, node, work)?;
    }
    Ok(translated(work, done))
}

/// Where what the packet becomes goes next, and by which device, if it is known: it has to fit through.
#[inline(always)]
fn find_way(
    packet: &impl Packet,
    node: &impl Node,
    work: &mut Work,
) -> Result<Option<Device>, DropReason> {
    match node.route(&work.flow, &work.entry.dst, &mut work.hop) {
        Way::Forward => {}
        Way::Nowhere => return Err(DropReason::NoRoute),
        Way::ForwardingOff => return Err(DropReason::ForwardingOff),
    }
    // Also without "don't fragment": a redirection can't cut anything, and the sender of such a packet
    // that is told the MTU makes smaller ones, or fragments itself.
    let device = node.device(work.hop.ifindex);
    let mtu = device.map_or(0, |device| device.mtu);
    if mtu != 0 && translate::size(packet, &work.flow)? > mtu {
        return Err(DropReason::TooBig);
    }
    Ok(device)
}

/// Writes down that a flow is alive, where it stands, and in which table it belongs.
#[inline(always)]
fn track(node: &impl Node, work: &mut Work, table: Table, now_ns: u64) {
    let protocol = work.flow.tuple.protocol;
    let direction = Direction::from_number(work.entry.direction);
    let tcp_flags = work.flow.tcp_flags;
    let mut change = Change::of_packet(protocol, direction, tcp_flags, now_ns);
    match direction {
        Direction::Original => {
            let acknowledgement = work.flow.acknowledgement;
            if conntrack::is_proven(protocol, &work.entry, tcp_flags, acknowledgement) {
                change.set |= state::PROVEN;
            }
        }
        Direction::Reply => {
            if protocol == Protocol::Tcp.number() {
                if tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN | tcp::ACK {
                    change.proof = work.flow.sequence.wrapping_add(1);
                }
                // In the middle of a connection a reset says nothing of who might dial.
                if work.entry.state & (state::DIALLED | state::REPLIED) == state::DIALLED {
                    // Without a branch, see `conntrack::counted`.
                    let is_reset = (tcp_flags / tcp::RST) & 1;
                    tried(work, Attempt::Answered as u8 + is_reset);
                }
            }
        }
    }
    let moves =
        matches!(table, Table::HalfOpen) && (work.entry.state | change.set) & state::PROVEN != 0;
    let next = if moves {
        change.applied_to(Table::Established, work.entry.state)
    } else {
        change.applied_to(table, work.entry.state)
    };
    if next == work.entry.state
        && (change.proof == 0 || change.proof == work.entry.proof)
        && !conntrack::is_stale(&work.entry, now_ns)
    {
        return;
    }
    conntrack::opposite(&work.entry, protocol, &mut work.key);
    if node.find(table, &work.key, &mut work.other)
        && !conntrack::leads_to(&work.other, &work.flow.tuple)
    {
        // It was pushed out, and its place taken by another flow; or its client has begun anew.
        if matches!(direction, Direction::Original) {
            drop_original(node, work, table);
        }
        return;
    }
    work.entry.state = next;
    work.entry.used_ns = now_ns;
    if change.proof != 0 {
        work.entry.proof = change.proof;
    }
    if moves {
        conntrack::mirror(&work.entry, &work.flow.tuple, &mut work.reply);
        if establish(node, work) {
            return;
        }
        node.count(Counter::FlowsFull);
        // It stays where it is, for want of room, and is not counted there.
        work.entry.state &= !state::COUNTED;
    } else {
        let own = node.amend(table, &work.flow.tuple, &change);
        let opposite = node.amend(table, &work.key, &change);
        let original = match direction {
            Direction::Original => own,
            Direction::Reply => opposite,
        };
        recount(work, original);
        if own.was_there && opposite.was_there {
            return;
        }
        if original.was_there {
            work.entry.state = original.after;
        } else {
            work.one_more = if_any(next, work.entry.backend_id);
        }
    }
    // One was pushed out, or both stay where they are.
    conntrack::mirror(&work.entry, &work.flow.tuple, &mut work.reply);
    let _kept =
        node.put(table, &work.flow.tuple, &work.entry) && node.put(table, &work.key, &work.reply);
}

/// What a change of the flow's entry of the original direction, which alone counts, means to its backend.
#[inline(always)]
fn recount(work: &mut Work, original: Amended) {
    let Amended { before, after, .. } = original;
    work.one_more = if_any(after & !before, work.entry.backend_id);
    work.one_less = if_any(before & !after, work.entry.backend_id);
}

/// `id`, if the flow's bit [`state::COUNTED`] is set, else 0; see [`conntrack::counted`].
#[inline(always)]
const fn if_any(bit: u8, id: u32) -> u32 {
    ((bit / state::COUNTED) & 1) as u32 * id
}

/// Moves both entries of a flow, of whose client the packet is, to FLOWS. Whether there was room.
#[inline(always)]
fn establish(node: &impl Node, work: &mut Work) -> bool {
    if node.claim(Table::Established, &work.flow.tuple, &work.entry) {
        work.one_more = if_any(work.entry.state, work.entry.backend_id);
    } else if node.find(Table::Established, &work.flow.tuple, &mut work.other) {
        if conntrack::leads_to(&work.other, &work.key) {
            // Another CPU was quicker with a later packet, and knows more.
            let proven = Change {
                set: state::PROVEN,
                ..Change::alive(work.entry.used_ns)
            };
            let amended = node.amend(Table::Established, &work.flow.tuple, &proven);
            recount(work, amended);
            return true;
        }
        // One of an earlier flow was left.
        work.one_less = if_any(work.other.state, work.other.backend_id);
        if !node.put(Table::Established, &work.flow.tuple, &work.entry) {
            return false;
        }
        work.one_more = if_any(work.entry.state, work.entry.backend_id);
    } else {
        return false;
    }
    if !node.put(Table::Established, &work.key, &work.reply) {
        node.forget(Table::Established, &work.flow.tuple);
        work.one_more = 0;
        return false;
    }
    node.forget(Table::HalfOpen, &work.flow.tuple);
    node.forget(Table::HalfOpen, &work.key);
    true
}

/// See [`begin`].
#[inline(always)]
fn first(packet: &impl Packet, node: &impl Node, work: &mut Work) -> Result<Verdict, DropReason> {
    let now_ns = work.now_ns;
    let tuple = &work.flow.tuple;
    let Some(frontend) = node.frontend(&dialled(tuple)) else {
        return stranger(node, &work.flow);
    };
    // A loopback address on the wire is a forgery (CVE-2020-8558): the stack throws it away.
    if frontend.flags & Frontend::NODE_ONLY != 0 {
        return Ok(Verdict::Pass(Passed::NotOurs));
    }
    work.service = frontend.service;
    admit(node, &frontend, &tuple.src)?;
    let is_tcp = tuple.protocol == Protocol::Tcp.number();
    if is_tcp && work.flow.tcp_flags & tcp::SYN == 0 && now_ns < node.inherited_until_ns() {
        // The stack's table of connections knows it, or resets it.
        return Ok(Verdict::Pass(Passed::NotOurs));
    }
    // Any other packet in the middle of a connection goes to some backend, whose reset tells the
    // client that its connection is no more.
    if work.flow.is_reset() {
        return Err(DropReason::StrayReset);
    }
    let device = node.device(node.ifindex());
    let is_from_pod = device.is_some_and(|device| device.flags & Device::POD != 0);
    let service = if is_from_pod || frontend.outside_service == 0 {
        frontend.service
    } else {
        frontend.outside_service
    };
    work.service = service;
    let visit = || Visit {
        client: Client::of_packet(tuple.src),
        dialled: &tuple.dst,
        now_ns,
    };
    let choice = match choose(node, service, work.avoid, visit) {
        Ok(choice) => choice,
        Err(why) => return unserved(why),
    };
    if choice.address.addr.is_v4() != tuple.dst.is_v4() {
        return Err(DropReason::TableDamaged);
    }
    // A client that is its own backend would answer itself, and never through us (BEHAVIOUR M4). Its
    // packet leaves by the device it came from, because the stack takes no packet that came from
    // outside and has a source of its own.
    let is_hairpin = choice.address.addr == tuple.src;
    // An endpoint that somebody wrote by hand names no node.
    let is_own = device.is_some_and(|device| {
        device.source_like(&choice.address.addr) == Some(choice.address.addr)
    });
    let via = if !is_hairpin && (choice.is_local || is_own || is_from_pod) {
        Via::Stack
    } else {
        Via::Redirect
    };
    // What goes nowhere leaves nothing behind.
    if matches!(via, Via::Redirect) && translate::is_at_its_end(packet, &work.flow)? {
        return Err(DropReason::TtlExceeded);
    }
    remember(packet, node, work, &choice, via, now_ns)?;
    let done = if work.avoid != 0 && choice.backend_id != work.avoid {
        Done::FailedOver
    } else {
        Done::NewFlow
    };
    Ok(translated(work, done))
}

/// The key under which a frontend for packets of this tuple would be.
#[inline(always)]
fn dialled(tuple: &Tuple) -> FrontendKey {
    FrontendKey {
        addr: tuple.dst,
        port_be: tuple.dst_port_be,
        protocol: tuple.protocol,
        zero: 0,
    }
}

/// Whether `source` may dial the frontend. Asked before its endpoints are (BEHAVIOUR L3, R4).
#[inline(always)]
fn admit(node: &impl Node, frontend: &Frontend, source: &Addr) -> Result<(), DropReason> {
    if frontend.flags & Frontend::SOURCE_RANGES == 0 || node.is_allowed(frontend.service, source) {
        Ok(())
    } else {
        Err(DropReason::NotAllowed)
    }
}

#[inline(always)]
fn unserved(why: NoChoice) -> Result<Verdict, DropReason> {
    match why {
        NoChoice::NoEndpoints => Ok(Verdict::Reject(Refusal::NoEndpoints)),
        NoChoice::NoLocalEndpoint => Err(DropReason::NoLocalEndpoint),
        NoChoice::Damaged => Err(DropReason::TableDamaged),
    }
}

/// A packet of no known flow, on its way out: no hook has translated it, and none will. If it is for
/// a frontend that is served, it goes to whoever has that address.
#[inline(always)]
fn leaving(node: &impl Node, work: &mut Work) -> Result<Verdict, DropReason> {
    let flow = &work.flow;
    let is_reset = flow.is_reset();
    if flow.tuple.protocol == Protocol::Tcp.number() && !flow.is_syn() && !is_reset {
        // Of a connection that began; only beginnings are refused (BEHAVIOUR R6).
        return Ok(Verdict::Pass(Passed::NotOurs));
    }
    let Some(frontend) = node.frontend(&dialled(&flow.tuple)) else {
        return stranger(node, flow);
    };
    if frontend.flags & Frontend::NODE_ONLY != 0 {
        return Ok(Verdict::Pass(Passed::NotOurs));
    }
    work.service = frontend.service;
    admit(node, &frontend, &flow.tuple.src)?;
    match lack(node, frontend.service) {
        None => Ok(Verdict::Pass(Passed::NotOurs)),
        Some(_) if is_reset => Err(DropReason::StrayReset),
        Some(why) => unserved(why),
    }
}

/// A packet of no known flow that no frontend is for. ClusterIPs are nobody's but the Services'
/// (BEHAVIOUR A11-A13); left alone, it would go by the default route, and may come back.
#[inline(always)]
fn stranger(node: &impl Node, flow: &Flow) -> Result<Verdict, DropReason> {
    let is_reset = flow.is_reset();
    if flow.tuple.protocol == Protocol::Tcp.number() && flow.tcp_flags & tcp::SYN == 0 && !is_reset
    {
        // Most of what passes: spare it the questions. No connection begins this way, and none to
        // where beginnings are refused can go on.
        return Ok(Verdict::Pass(Passed::NotOurs));
    }
    let dst = &flow.tuple.dst;
    if node.frontend(&FrontendKey::of_address(*dst)).is_some() {
        return if is_reset {
            Err(DropReason::StrayReset)
        } else {
            Ok(Verdict::Reject(Refusal::UnknownPort))
        };
    }
    if node.is_in_service_nets(dst) {
        return Err(DropReason::UnallocatedClusterIp);
    }
    Ok(Verdict::Pass(Passed::NotOurs))
}

/// A later fragment whose first one has not come, or was translated by nobody. It can't be told what it
/// is for; if that is a ClusterIP, nobody beyond this node is to see it.
#[inline(always)]
fn orphan(node: &impl Node, dst: &Addr) -> Result<Verdict, DropReason> {
    if node.frontend(&FrontendKey::of_address(*dst)).is_some() || node.is_in_service_nets(dst) {
        Err(DropReason::OrphanFragment)
    } else {
        Ok(Verdict::Pass(Passed::OrphanFragment))
    }
}

/// Writes both entries of a new flow.
#[inline(always)]
fn remember(
    packet: &impl Packet,
    node: &impl Node,
    work: &mut Work,
    choice: &Choice,
    via: Via,
    now_ns: u64,
) -> Result<(), DropReason> {
    let tuple = &work.flow.tuple;
    let client = SockAddr::from_parts(tuple.src, tuple.src_port_be);
    work.entry = FlowEntry {
        used_ns: now_ns,
        src: client,
        dst: choice.address,
        service: choice.service,
        backend_id: choice.backend_id,
        proof: 0,
        direction: Direction::Original as u8,
        via: via as u8,
        state: if work.flow.is_syn() {
            state::DIALLED
        } else {
            0
        },
        zero: 0,
    };
    conntrack::mirror(&work.entry, tuple, &mut work.reply);
    let keep_port = matches!(via, Via::Stack);
    if matches!(via, Via::Redirect) {
        let source =
            find_way(packet, node, work)?.and_then(|device| device.source_like(&client.addr));
        work.entry.src.addr = source.ok_or(DropReason::NoSource)?;
    }
    if !snat::claim(node, work, keep_port, now_ns) {
        return Err(DropReason::NoSnatPort);
    }
    if !node.put(Table::HalfOpen, &work.flow.tuple, &work.entry) {
        node.forget(Table::HalfOpen, &work.key);
        return Err(DropReason::NoRoom);
    }
    Ok(())
}

/// What becomes of a packet for which `work.entry` is the answer.
#[inline(always)]
fn translated(work: &Work, done: Done) -> Verdict {
    match Via::from_number(work.entry.via) {
        Via::Stack => Verdict::Stack(done),
        Via::Redirect => Verdict::Redirect(done),
    }
}

/// Makes of the packet what `work.entry` says, when [`decide`] has said that this is what is done.
#[inline(always)]
pub fn carry_out(
    done: Done,
    packet: &mut impl Packet,
    node: &impl Node,
    work: &mut Work,
) -> Verdict {
    match rewrite(packet, node, work) {
        Ok(()) => translated(work, done),
        Err(reason) => Verdict::Drop(reason),
    }
}

#[inline(always)]
fn rewrite(packet: &mut impl Packet, node: &impl Node, work: &mut Work) -> Result<(), DropReason> {
    let redirect = matches!(Via::from_number(work.entry.via), Via::Redirect);
    let hops = if redirect { Hops::OneLess } else { Hops::Kept };
    if matches!(work.flow.kind, Kind::Error) {
        icmp_error::apply(packet, &work.flow, &work.entry, hops)?;
    } else {
        translate::apply(packet, &work.flow, &work.entry, hops)?;
    }
    if matches!(work.flow.kind, Kind::FirstFragment) {
        tell_fragments(node, &work.flow, node.now_ns());
    }
    if redirect {
        leave(packet, work)?;
    }
    Ok(())
}

/// Gives the packet the form in which a redirection takes it: an Ethernet header without tags. The
/// kernel fills it in, or takes it off for a device that has none.
#[inline(always)]
fn leave(packet: &mut impl Packet, work: &Work) -> Result<(), DropReason> {
    let ok = match work.flow.link() {
        Link::Ethernet => packet.strip_vlan(work.flow.tags),
        Link::None => {
            let ethertype = match work.flow.family() {
                Family::V4 => ETHERTYPE_V4,
                Family::V6 => ETHERTYPE_V6,
            };
            packet.add_ethernet() && packet.store(12, &ethertype.to_be_bytes(), Store::Balanced)
        }
    };
    if ok {
        Ok(())
    } else {
        Err(DropReason::NotWritten)
    }
}

#[inline(always)]
fn fragment_key(flow: &Flow) -> FragmentKey {
    FragmentKey {
        src: flow.tuple.src,
        dst: flow.tuple.dst,
        id: flow.fragment_id,
        protocol: flow.tuple.protocol,
        zero: [0; 3],
    }
}

/// What the later fragments of this first one will need.
#[inline(always)]
fn tell_fragments(node: &impl Node, flow: &Flow, now_ns: u64) {
    node.put_fragment(
        &fragment_key(flow),
        &FragmentPorts {
            seen_ns: now_ns,
            src_port_be: flow.tuple.src_port_be,
            dst_port_be: flow.tuple.dst_port_be,
            zero: 0,
        },
    );
}

/// The ports of a later fragment's first one. Whether it has come.
#[inline(always)]
fn learn_ports(node: &impl Node, flow: &mut Flow, now_ns: u64) -> bool {
    match node.fragment(&fragment_key(flow)) {
        Some(ports) if now_ns.saturating_sub(ports.seen_ns) < FRAGMENT_NS => {
            flow.tuple.src_port_be = ports.src_port_be;
            flow.tuple.dst_port_be = ports.dst_port_be;
            true
        }
        Some(_) | None => false,
    }
}
