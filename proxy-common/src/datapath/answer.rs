//! How a sender is told that its packet goes no further: ICMP and ICMPv6 errors (DESIGN §3.2, rows 7
//! and 11; RFC 792, RFC 1122 §3.2.2, RFC 4443 §2.4).
//!
//! The packet itself becomes the answer: it is cut to what is quoted, gets headers in front of it, and
//! goes back where it came from.
//!
//! # Two checksums at once
//!
//! Packets of pods and of this node's processes mostly have a transport checksum that a device is yet
//! to fill in (CHECKSUM_PARTIAL), and no program can see or change that. Whoever fills it in writes
//! into the quote after we have summed it up. So the quoted field gets a value with which the sum
//! is the same before and after, see [`steady`]; nobody verifies a quoted checksum, which mostly
//! covers more than is quoted.
//!
//! SCTP's field is left as it is. Its CRC32c is left to a device only where the packet came from a
//! device of the same machine that has CRC offload (a pod's veth, loopback), the answer goes back there
//! without leaving the machine, and such devices never fill it in.

use super::{
    flow::{Flow, Kind},
    lookup::Tables,
    path::{DropReason, Node, Verdict, Work},
};
use crate::{
    abi::{Addr, Counter, Protocol},
    wire::{
        checksum::{Diff, fold, steady},
        icmp,
        link::{ETHERNET_LENGTH, Family, Link, MAX_TAGS},
        packet::{MAX_SUM, Packet, Store},
        transport::{tcp, udp},
    },
};

/// Why there is an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Cause {
    /// Nobody serves that port.
    Unreachable = 0,
    /// Its last hop was this one.
    TtlExceeded = 1,
    /// The device it would leave by takes only smaller ones.
    TooBig = 2,
}

impl Cause {
    /// `None`: this verdict is told to nobody.
    #[inline(always)]
    pub const fn of(verdict: Verdict) -> Option<Self> {
        match verdict {
            Verdict::Reject(_) => Some(Self::Unreachable),
            Verdict::Drop(DropReason::TtlExceeded) => Some(Self::TtlExceeded),
            Verdict::Drop(DropReason::TooBig) => Some(Self::TooBig),
            Verdict::Drop(_) | Verdict::Pass(_) | Verdict::Stack(_) | Verdict::Redirect(_) => None,
        }
    }

    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        if number == Self::TtlExceeded as u32 {
            Self::TtlExceeded
        } else if number == Self::TooBig as u32 {
            Self::TooBig
        } else {
            Self::Unreachable
        }
    }

    /// Type and code.
    #[inline(always)]
    const fn kind(self, family: Family) -> [u8; 2] {
        match (family, self) {
            (Family::V4, Self::Unreachable) => [3, 3],
            (Family::V4, Self::TtlExceeded) => [11, 0],
            (Family::V4, Self::TooBig) => [3, 4],
            (Family::V6, Self::Unreachable) => [1, 4],
            (Family::V6, Self::TtlExceeded) => [3, 0],
            (Family::V6, Self::TooBig) => [2, 0],
        }
    }
}

/// How many answers may be sent. Implemented for each CPU by itself, and by [`super::fake::Maps`].
pub trait Budget: Tables {
    /// When the next answer is due; times of the past are answers saved up.
    fn next_answer_ns(&self) -> u64;
    fn set_next_answer_ns(&self, due_ns: u64);
}

/// One answer each, on each CPU: 1000 a second, as `net.ipv4.icmp_msgs_per_sec` for a whole host.
pub const INTERVAL_NS: u64 = 1_000_000;
/// Answers that can be saved up; `net.ipv4.icmp_msgs_burst` has 50. One connection that dials a refusing
/// Service takes one, so this serves a node that has just started all of its pods.
pub const BURST: u64 = 100;

/// A token bucket (the generic cell rate algorithm): one time stamp is all there is to it.
#[inline(always)]
pub fn admit(budget: &impl Budget, now_ns: u64) -> bool {
    let saved_since = now_ns.saturating_sub((BURST - 1) * INTERVAL_NS);
    let mut due = budget.next_answer_ns();
    if due < saved_since {
        due = saved_since;
    }
    if due > now_ns {
        return false;
    }
    budget.set_next_answer_ns(due + INTERVAL_NS);
    true
}

/// Most of a packet that is quoted: with IPv4's headers below the 576 bytes of RFC 1812 §4.3.2.3, with
/// IPv6's far below 1280 (RFC 4443 §2.4 c). As much as [`Packet::sum`] takes.
const MAX_QUOTE: u32 = MAX_SUM;
/// Bytes of the headers of an answer, IP's and ICMP's.
const V4_HEADERS: u32 = 20 + icmp::QUOTE;
const V6_HEADERS: u32 = 40 + icmp::QUOTE;
/// As Linux sends them.
const TTL: u8 = 64;
/// "Internetwork control", RFC 1812 §4.3.2.5.
const PRECEDENCE: u8 = 0xc0;
const DONT_FRAGMENT: u8 = 0x40;

/// Makes of the packet in hand the answer to its sender. `false`: it is answered by nothing.
#[inline(always)]
pub fn answer(
    cause: Cause,
    packet: &mut impl Packet,
    node: &(impl Node + Budget),
    work: &Work,
) -> bool {
    if !may_be_answered(&work.flow) {
        return false;
    }
    if !admit(node, node.now_ns()) {
        node.count(Counter::PacketAnswerLimited);
        return false;
    }
    if write(cause, packet, node, work).is_none() {
        node.count(Counter::PacketNotWritten);
        return false;
    }
    true
}

/// RFC 1122 §3.2.2, RFC 4443 §2.4 e: no answers to answers, to the second half of anything, or to many.
/// Frames to many are none of our business in the first place.
#[inline(always)]
fn may_be_answered(flow: &Flow) -> bool {
    matches!(
        flow.kind,
        Kind::Whole | Kind::FirstFragment | Kind::WithoutPorts
    ) && !flow.is_reset()
        && is_one_host(&flow.outer_src)
        && !is_group(&flow.outer_dst)
}

/// Multicast, or IPv4's broadcast (and what else is above it).
#[inline(always)]
fn is_group(addr: &Addr) -> bool {
    if addr.is_v4() {
        u32::from_be(addr.words[3]) >= 0xe000_0000
    } else {
        u32::from_be(addr.words[0]) >> 24 == 0xff
    }
}

/// Whether one host beyond a device can have this address.
#[inline(always)]
fn is_one_host(addr: &Addr) -> bool {
    if is_group(addr) {
        return false;
    }
    if addr.is_v4() {
        !matches!(u32::from_be(addr.words[3]) >> 24, 0 | 127)
    } else {
        // `::` and `::1`.
        addr.words[0] | addr.words[1] | addr.words[2] != 0 || u32::from_be(addr.words[3]) > 1
    }
}

/// Whom the answer is from. A port that nobody serves is the frontend's affair, as if a host of that
/// address had answered; the rest is told by this node, in the name of the device the packet came by.
///
/// If it is this node's own packet, its stack would throw away what claims to come from itself, and the
/// frontend stands in.
#[inline(always)]
fn source(cause: Cause, node: &impl Node, flow: &Flow) -> Addr {
    match cause {
        Cause::Unreachable => flow.outer_dst,
        Cause::TtlExceeded | Cause::TooBig => node
            .device(node.ifindex())
            .and_then(|device| device.source_like(&flow.outer_dst))
            .filter(|addr| *addr != flow.outer_src)
            .unwrap_or(flow.outer_dst),
    }
}

/// `None`: it couldn't be written.
#[inline(always)]
fn write(cause: Cause, packet: &mut impl Packet, node: &impl Node, work: &Work) -> Option<()> {
    let flow = &work.flow;
    let mut quoted = flow.end - flow.network;
    if quoted > MAX_QUOTE {
        quoted = MAX_QUOTE;
    }
    let headers = flow.transport - flow.network;
    // No packet in earnest has so many extension headers.
    if headers + tcp::LENGTH > MAX_QUOTE {
        return None;
    }
    written(packet.cut(flow.network + quoted))?;
    let sum = Diff(packet.sum(flow.network, headers)?).and(quoted_segment(
        packet,
        flow,
        quoted - headers,
    )?);
    let room = match flow.family() {
        Family::V4 => V4_HEADERS,
        Family::V6 => V6_HEADERS,
    };
    // All the rest needs what differs from answer to answer, and so comes later: the verifier went
    // through this once for each of them.
    put_link_in_front(packet, flow, room)?;
    let src = source(cause, node, flow);
    let [kind, code] = cause.kind(flow.family());
    let mtu = match cause {
        Cause::TooBig => node.device(work.hop.ifindex)?.mtu,
        Cause::Unreachable | Cause::TtlExceeded => 0,
    };
    match flow.family() {
        Family::V4 => {
            let total = u16::try_from(V4_HEADERS + quoted).ok()?.to_be_bytes();
            let mtu = u16::try_from(mtu).unwrap_or(u16::MAX).to_be_bytes();
            let mut words = [
                word([0x45, PRECEDENCE, total[0], total[1]]),
                // Never in fragments, so no number.
                word([0, 0, DONT_FRAGMENT, 0]),
                word([TTL, icmp::ICMP, 0, 0]),
                src.words[3],
                flow.outer_src.words[3],
                word([kind, code, 0, 0]),
                word([0, 0, mtu[0], mtu[1]]),
            ];
            let [ip @ .., message, rest] = words;
            words[2] |= second_half(fold(plus(Diff::NONE, &ip).0));
            words[5] |= second_half(fold(plus(sum, &[message, rest]).0));
            put::<7, { V4_HEADERS as usize }>(packet, flow, words)
        }
        Family::V6 => {
            let length = 8 + quoted;
            let [.., high, low] = length.to_be_bytes();
            let [a, b, c, d] = src.words;
            let [e, f, g, h] = flow.outer_src.words;
            let mut words = [
                word([0x60, 0, 0, 0]),
                word([high, low, icmp::ICMPV6, TTL]),
                a,
                b,
                c,
                d,
                e,
                f,
                g,
                h,
                word([kind, code, 0, 0]),
                mtu.to_be(),
            ];
            // The pseudo header; the rest of the fixed one is not covered.
            let [_, _, covered @ ..] = words;
            let sum = plus(sum, &[length.to_be(), word([0, 0, 0, icmp::ICMPV6])]);
            words[10] |= second_half(fold(plus(sum, &covered).0));
            put::<12, { V6_HEADERS as usize }>(packet, flow, words)
        }
    }
}

#[inline(always)]
fn written(ok: bool) -> Option<()> {
    ok.then_some(())
}

/// Four bytes as they lie in memory.
#[inline(always)]
const fn word(bytes: [u8; 4]) -> u32 {
    u32::from_ne_bytes(bytes)
}

/// A checksum as the second half of a word.
#[inline(always)]
const fn second_half(checksum: u16) -> u32 {
    let [a, b] = checksum.to_ne_bytes();
    word([0, 0, a, b])
}

#[inline(always)]
fn plus<const N: usize>(sum: Diff, words: &[u32; N]) -> Diff {
    let mut sum = sum;
    let mut at = 0;
    while at < N {
        sum = sum.word(0, words[at]);
        at += 1;
    }
    sum
}

/// The sum of the quote from the transport header on, `length` bytes, once its checksum field is steady.
#[inline(always)]
fn quoted_segment(packet: &mut impl Packet, flow: &Flow, length: u32) -> Option<Diff> {
    if length == 0 {
        return Some(Diff::NONE);
    }
    let sum = Diff(packet.sum(flow.transport, length)?);
    let place = match flow.protocol() {
        Some(Protocol::Tcp) => flow.transport + tcp::CHECKSUM,
        Some(Protocol::Udp) => flow.transport + udp::CHECKSUM,
        Some(Protocol::Sctp) | None => return Some(sum),
    };
    let old = u16::from_ne_bytes(packet.load(place)?);
    let rest = sum.half(old, 0);
    let new = steady(rest);
    written(packet.store(place, &new.to_ne_bytes(), Store::Counted))?;
    Some(rest.half(0, new))
}

/// Makes room in front of the quote, and puts the link layer's header in front of that: the packet's
/// own, tags and all, the other way round.
#[inline(always)]
fn put_link_in_front(packet: &mut impl Packet, flow: &Flow, room: u32) -> Option<()> {
    written(packet.make_room(flow.link(), room))?;
    if let Link::None = flow.link() {
        return Some(());
    }
    let to: [u8; 6] = packet.load(room)?;
    let from: [u8; 6] = packet.load(room + 6)?;
    let kind: [u8; 2] = packet.load(room + 12)?;
    written(
        packet.store(0, &from, Store::Balanced)
            && packet.store(6, &to, Store::Balanced)
            && packet.store(12, &kind, Store::Balanced),
    )?;
    let mut copied = ETHERNET_LENGTH;
    while copied < ETHERNET_LENGTH + 4 * MAX_TAGS && copied < flow.network {
        let tag: [u8; 4] = packet.load(room + copied)?;
        written(packet.store(copied, &tag, Store::Balanced))?;
        copied += 4;
    }
    Some(())
}

/// Writes the answer's IP and ICMP headers.
#[inline(always)]
fn put<const WORDS: usize, const BYTES: usize>(
    packet: &mut impl Packet,
    flow: &Flow,
    words: [u32; WORDS],
) -> Option<()> {
    let bytes = words.map(u32::to_ne_bytes);
    let bytes: &[u8; BYTES] = bytes.as_flattened().try_into().ok()?;
    written(packet.store(flow.network, bytes, Store::Balanced))
}
