//! ICMP errors about a translated flow: what is quoted becomes what the receiver once sent.
//!
//! The quoted packet went the opposite way, so its source becomes the flow's destination. Outside,
//! an address changes if those of the flow's own packets do, as netfilter does it: the error then
//! comes from an address that the receiver's network accepts, even when a router in between sent it.

use super::{
    flow::Flow,
    translate::{Failure, Hops, octets, outer_header, ports, written},
};
use crate::{
    abi::{Addr, FlowEntry, Protocol},
    wire::{
        checksum::{Diff, updated},
        icmp,
        link::Family,
        packet::{Covered, Packet, Store},
        transport::{tcp, udp},
    },
};

/// Changes the checksum at `place` within the quote, which no device and no helper knows as one.
#[inline(always)]
fn update_quoted(
    packet: &mut impl Packet,
    place: u32,
    diff: Diff,
    zero_is_none: bool,
) -> Result<Diff, Failure> {
    let old = u16::from_ne_bytes(packet.load(place).ok_or(Failure::NotWritten)?);
    if zero_is_none && old == 0 {
        return Ok(Diff::NONE);
    }
    let mut new = updated(old, diff);
    if zero_is_none && new == 0 {
        new = 0xffff;
    }
    written(packet.store(place, &new.to_ne_bytes(), Store::Balanced))?;
    Ok(Diff::NONE.half(old, new))
}

/// Writes both addresses of the quoted IP header; its own checksum is not touched.
#[inline(always)]
fn store_quoted(packet: &mut impl Packet, flow: &Flow, src: &Addr, dst: &Addr) -> bool {
    let network = flow.quoted_network;
    let how = Store::Balanced;
    match flow.family() {
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

/// Makes of the ICMP error that `flow` describes what `to` says.
#[inline(always)]
pub fn apply(
    packet: &mut impl Packet,
    flow: &Flow,
    to: &FlowEntry,
    hops: Hops,
) -> Result<(), Failure> {
    let family = flow.family();
    // Inside: the quoted packet's source is the tuple's destination.
    let addresses = Diff::NONE
        .words(&flow.tuple.dst.words, &to.dst.addr.words)
        .words(&flow.tuple.src.words, &to.src.addr.words);
    written(store_quoted(packet, flow, &to.dst.addr, &to.src.addr))?;
    let mut inside = addresses;
    if let Family::V4 = family {
        let place = flow.quoted_network + 10;
        inside = inside.and(update_quoted(packet, place, addresses, false)?);
    }
    let old_ports = ports(flow.tuple.dst_port_be, flow.tuple.src_port_be);
    let new_ports = ports(to.dst.port_be, to.src.port_be);
    written(packet.store(
        flow.quoted_transport,
        &new_ports.to_ne_bytes(),
        Store::Balanced,
    ))?;
    let changed_ports = Diff::NONE.word(old_ports, new_ports);
    inside = inside.and(changed_ports);
    // The quoted checksum is often cut off, and SCTP's can't be had without the whole packet.
    let checksum = match flow.protocol() {
        Some(Protocol::Tcp) => Some((flow.quoted_transport + tcp::CHECKSUM, false)),
        Some(Protocol::Udp) => Some((flow.quoted_transport + udp::CHECKSUM, true)),
        Some(Protocol::Sctp) | None => None,
    };
    if let Some((place, zero_is_none)) = checksum
        && place + 2 <= flow.end
    {
        let diff = addresses.and(changed_ports);
        inside = inside.and(update_quoted(packet, place, diff, zero_is_none)?);
    }
    // Outside.
    let src = if flow.tuple.src == to.src.addr {
        flow.outer_src
    } else {
        to.src.addr
    };
    let outside = outer_header(packet, flow, &src, &to.dst.addr, hops)?;
    let place = flow.transport + icmp::CHECKSUM;
    if let Family::V6 = family {
        written(packet.update_l4(place, outside, Covered::PseudoHeader, false))?;
    }
    written(packet.update_l4(place, inside, Covered::Payload, false))
}
