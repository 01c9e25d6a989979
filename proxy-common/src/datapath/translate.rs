//! A packet's addresses and ports become others, and its checksums follow.
//!
//! Internet checksums are changed by the difference. SCTP's CRC32c covers the ports but no addresses;
//! it too is changed by the difference (see [`crc32c`]), except that
//! * 0 stays 0: so is it before a device fills it in (veth and every other virtual device of a pod),
//!   and when both ends do without (RFC 9653);
//! * the CRC of a fragmented packet depends on the length of all fragments, which the first one
//!   doesn't say: if its ports have to change it is dropped. SCTP cuts its messages itself and sets
//!   "don't fragment", so this takes effort to meet.

use super::flow::{Flow, Kind};
use crate::{
    abi::{Addr, FlowEntry, Protocol},
    wire::{
        checksum::Diff,
        crc32c,
        link::Family,
        packet::{Covered, Packet, Store},
        transport::{sctp, tcp, udp},
    },
};

/// Why a packet couldn't be translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Failure {
    /// A byte of it couldn't be written.
    NotWritten,
    /// See above.
    SctpFragment,
}

#[inline(always)]
pub(super) fn written(ok: bool) -> Result<(), Failure> {
    if ok { Ok(()) } else { Err(Failure::NotWritten) }
}

#[inline(always)]
const fn octets(addr: &Addr) -> [u8; 16] {
    let [a, b, c, d] = addr.words;
    let (a, b, c, d) = (
        a.to_ne_bytes(),
        b.to_ne_bytes(),
        c.to_ne_bytes(),
        d.to_ne_bytes(),
    );
    [
        a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2],
        d[3],
    ]
}

/// Writes both addresses of the IP header at `network`; its own checksum is not touched.
#[inline(always)]
pub(super) fn store_addresses(
    packet: &mut impl Packet,
    family: Family,
    network: u32,
    src: &Addr,
    dst: &Addr,
    how: Store,
) -> bool {
    match family {
        Family::V4 => {
            packet.store(network + 12, &src.words[3].to_ne_bytes(), how)
                && packet.store(network + 16, &dst.words[3].to_ne_bytes(), how)
        }
        Family::V6 => {
            packet.store(network + 8, &octets(src), how)
                && packet.store(network + 24, &octets(dst), how)
        }
    }
}

/// Writes the addresses of the outer header, with its checksum; how they changed.
#[inline(always)]
pub(super) fn outer_addresses(
    packet: &mut impl Packet,
    flow: &Flow,
    src: &Addr,
    dst: &Addr,
) -> Result<Diff, Failure> {
    let diff = Diff::NONE
        .words(&flow.outer_src.words, &src.words)
        .words(&flow.outer_dst.words, &dst.words);
    match flow.family() {
        Family::V4 => {
            written(store_addresses(
                packet,
                Family::V4,
                flow.network,
                src,
                dst,
                Store::Balanced,
            ))?;
            written(packet.update_l3(flow.network + 10, diff))?;
        }
        Family::V6 => written(store_addresses(
            packet,
            Family::V6,
            flow.network,
            src,
            dst,
            Store::Counted,
        ))?,
    }
    Ok(diff)
}

/// Makes of the packet that `flow` describes what `to` says. Not for ICMP errors.
#[inline(always)]
pub fn apply(packet: &mut impl Packet, flow: &Flow, to: &FlowEntry) -> Result<(), Failure> {
    let Some(protocol) = flow.protocol() else {
        return Err(Failure::NotWritten);
    };
    let new_ports = ports(to.src.port_be, to.dst.port_be);
    let old_ports = ports(flow.tuple.src_port_be, flow.tuple.dst_port_be);
    let has_ports = !matches!(flow.kind, Kind::LaterFragment);
    let ports_change = has_ports && old_ports != new_ports;
    // Before anything is written.
    if let Protocol::Sctp = protocol
        && ports_change
        && matches!(flow.kind, Kind::FirstFragment)
    {
        return Err(Failure::SctpFragment);
    }
    let addresses = outer_addresses(packet, flow, &to.src.addr, &to.dst.addr)?;
    if !has_ports {
        return Ok(());
    }
    let ports = Diff::NONE.word(old_ports, new_ports);
    if ports_change {
        written(packet.store(flow.transport, &new_ports.to_ne_bytes(), Store::Balanced))?;
    }
    let (checksum, zero_is_none) = match protocol {
        Protocol::Tcp => (flow.transport + tcp::CHECKSUM, false),
        Protocol::Udp => (flow.transport + udp::CHECKSUM, true),
        Protocol::Sctp => {
            return if ports_change {
                update_crc(packet, flow, old_ports ^ new_ports)
            } else {
                Ok(())
            };
        }
    };
    written(packet.update_l4(checksum, addresses, Covered::PseudoHeader, zero_is_none))?;
    if ports_change {
        written(packet.update_l4(checksum, ports, Covered::Payload, zero_is_none))?;
    }
    Ok(())
}

/// Both ports as the four bytes they are in the packet.
#[inline(always)]
pub(super) const fn ports(src_be: u16, dst_be: u16) -> u32 {
    let (src, dst) = (src_be.to_ne_bytes(), dst_be.to_ne_bytes());
    u32::from_ne_bytes([src[0], src[1], dst[0], dst[1]])
}

#[inline(always)]
fn update_crc(packet: &mut impl Packet, flow: &Flow, change: u32) -> Result<(), Failure> {
    let place = flow.transport + sctp::CHECKSUM;
    let old = u32::from_le_bytes(packet.load(place).ok_or(Failure::NotWritten)?);
    if old == 0 {
        return Ok(());
    }
    let length = flow.end - flow.transport;
    let new = old ^ crc32c::change(u32::from_le(change), length);
    written(packet.store(place, &new.to_le_bytes(), Store::Balanced))
}

/// How large the packet is when it leaves, in bytes without the link layer: one that a device will cut
/// counts as one of its parts. Of SCTP's such packets no part is known to be too large.
#[inline(always)]
pub fn size(packet: &impl Packet, flow: &Flow) -> Result<u32, Failure> {
    let segment = packet.segment_size();
    if segment == 0 || !matches!(flow.kind, Kind::Whole) {
        return Ok(flow.end - flow.network);
    }
    let header = match flow.protocol() {
        Some(Protocol::Tcp) => {
            let [words] = packet
                .load(flow.transport + 12)
                .ok_or(Failure::NotWritten)?;
            u32::from(words >> 4) * 4
        }
        Some(Protocol::Udp) => udp::LENGTH,
        Some(Protocol::Sctp) | None => return Ok(0),
    };
    Ok(flow.transport - flow.network + header + segment)
}

/// Whether the packet has no hop left to go.
#[inline(always)]
pub fn is_at_its_end(packet: &impl Packet, flow: &Flow) -> Result<bool, Failure> {
    let place = flow.network
        + match flow.family() {
            Family::V4 => 8,
            Family::V6 => 7,
        };
    let [left] = packet.load(place).ok_or(Failure::NotWritten)?;
    Ok(left <= 1)
}

/// One hop less to live: `false` if that was the last, and nothing is changed.
#[inline(always)]
pub fn age(packet: &mut impl Packet, flow: &Flow) -> Result<bool, Failure> {
    match flow.family() {
        Family::V4 => {
            // With the protocol, to be at an even offset for the checksum.
            let place = flow.network + 8;
            let old: [u8; 2] = packet.load(place).ok_or(Failure::NotWritten)?;
            if old[0] <= 1 {
                return Ok(false);
            }
            let new = [old[0] - 1, old[1]];
            written(packet.store(place, &new, Store::Balanced))?;
            let diff = Diff::NONE.half(u16::from_ne_bytes(old), u16::from_ne_bytes(new));
            written(packet.update_l3(flow.network + 10, diff))?;
        }
        Family::V6 => {
            let place = flow.network + 7;
            let [old] = packet.load(place).ok_or(Failure::NotWritten)?;
            if old <= 1 {
                return Ok(false);
            }
            // Nothing balances it: where a sum over the whole packet was made, it has to know.
            written(packet.store(place, &[old - 1], Store::Counted))?;
        }
    }
    Ok(true)
}
