//! IPv4 and IPv6 headers, with options, extension headers and fragments.

use super::{Skip, link::Family, packet::Packet};
use crate::abi::Addr;

/// What part of its packet this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fragment {
    /// All of it.
    Whole = 0,
    /// The one with the transport header; others follow.
    First = 1,
    /// One without a transport header.
    Later = 2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub src: Addr,
    pub dst: Addr,
    /// IANA protocol number of what it carries.
    pub protocol: u8,
    pub fragment: Fragment,
    pub fragment_id: u32,
    /// What routing may ask for beside addresses: IPv4's type of service; IPv6's traffic class and flow
    /// label as they lie in the packet.
    pub class: u32,
    /// Where what it carries begins.
    pub payload: u32,
    /// Where the packet ends by its own account; link-layer padding may follow.
    pub end: u32,
}

/// How much of a packet must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All that its header says.
    Full,
    /// The beginning, as ICMP quotes it.
    Quoted,
}

const V4_LENGTH: u32 = 20;
const V6_LENGTH: u32 = 40;
/// Extension headers of one packet that are looked at. RFC 8200 §4.1 recommends seven at most, of
/// which a packet in practice has one or two.
const MAX_EXTENSIONS: u32 = 6;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

#[inline(always)]
pub fn parse(
    packet: &impl Packet,
    family: Family,
    offset: u32,
    extent: Extent,
) -> Result<Header, Skip> {
    match family {
        Family::V4 => parse_v4(packet, offset, extent),
        Family::V6 => parse_v6(packet, offset, extent),
    }
}

#[inline(always)]
const fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[inline(always)]
const fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Where the packet ends, if that can be: `said` bytes after `offset`.
#[inline(always)]
fn end(packet: &impl Packet, offset: u32, said: u32, extent: Extent) -> Result<u32, Skip> {
    let end = offset + said;
    match extent {
        Extent::Full if end > packet.length() => Err(Skip::Length),
        Extent::Full | Extent::Quoted => Ok(end),
    }
}

#[inline(always)]
fn parse_v4(packet: &impl Packet, offset: u32, extent: Extent) -> Result<Header, Skip> {
    let bytes: [u8; V4_LENGTH as usize] = packet.load(offset).ok_or(Skip::Truncated)?;
    if bytes[0] >> 4 != 4 {
        return Err(Skip::Version);
    }
    let header = u32::from(bytes[0] & 0xf) * 4;
    let mut total = u32::from(half(&bytes, 2));
    let rest = packet.length().saturating_sub(offset);
    if total == 0 && rest > 0xffff {
        // One that a device will cut (BIG TCP, Linux 6.3): its length doesn't fit the field.
        total = rest;
    }
    if header < V4_LENGTH || total < header {
        return Err(Skip::Length);
    }
    let end = end(packet, offset, total, extent)?;
    let position = half(&bytes, 6);
    let more = position & 0x2000 != 0;
    let fragment = match (position & 0x1fff, more) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First,
        (_, _) => Fragment::Later,
    };
    Ok(Header {
        src: Addr::from_v4_word(word(&bytes, 12)),
        dst: Addr::from_v4_word(word(&bytes, 16)),
        protocol: bytes[9],
        fragment,
        fragment_id: u32::from(half(&bytes, 4)),
        class: u32::from(bytes[1]),
        payload: offset + header,
        end,
    })
}

#[inline(always)]
fn parse_v6(packet: &impl Packet, offset: u32, extent: Extent) -> Result<Header, Skip> {
    let bytes: [u8; V6_LENGTH as usize] = packet.load(offset).ok_or(Skip::Truncated)?;
    if bytes[0] >> 4 != 6 {
        return Err(Skip::Version);
    }
    let mut length = u32::from(half(&bytes, 4));
    let rest = packet.length().saturating_sub(offset + V6_LENGTH);
    if length == 0 && rest > 0xffff {
        // BIG TCP, see above.
        length = rest;
    }
    let end = end(packet, offset, V6_LENGTH + length, extent)?;
    let address = |at| Addr {
        words: [
            word(&bytes, at),
            word(&bytes, at + 4),
            word(&bytes, at + 8),
            word(&bytes, at + 12),
        ],
    };
    let (src, dst) = (address(8), address(24));
    if src.is_v4() || dst.is_v4() {
        return Err(Skip::MappedAddress);
    }
    let mut header = Header {
        src,
        dst,
        protocol: bytes[6],
        fragment: Fragment::Whole,
        fragment_id: 0,
        class: word(&bytes, 0) & 0x0fff_ffff_u32.to_be(),
        payload: offset + V6_LENGTH,
        end,
    };
    let mut seen = 0;
    while seen < MAX_EXTENSIONS {
        let step = extension(packet, &mut header)?;
        match step {
            Step::Next => {}
            Step::Done => {
                return if header.payload <= header.end {
                    Ok(header)
                } else {
                    Err(Skip::Length)
                };
            }
        }
        seen += 1;
    }
    Err(Skip::Headers)
}

enum Step {
    Next,
    Done,
}

/// Steps over one extension header.
#[inline(always)]
fn extension(packet: &impl Packet, header: &mut Header) -> Result<Step, Skip> {
    let this = header.protocol;
    if !matches!(
        this,
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION
    ) {
        return Ok(Step::Done);
    }
    let bytes: [u8; 8] = packet.load(header.payload).ok_or(Skip::Truncated)?;
    let said = u32::from(bytes[1]);
    header.protocol = bytes[0];
    header.payload += match this {
        FRAGMENT => 8,
        AUTHENTICATION => said * 4 + 8,
        _ => said * 8 + 8,
    };
    if this == ROUTING && bytes[3] != 0 {
        return Err(Skip::SourceRouted);
    }
    if this == FRAGMENT {
        let position = half(&bytes, 2);
        header.fragment_id = word(&bytes, 4);
        header.fragment = match (position & 0xfff8, position & 1) {
            // One "fragment" that is all of it (RFC 6946).
            (0, 0) => Fragment::Whole,
            (0, _) => Fragment::First,
            (_, _) => Fragment::Later,
        };
        if matches!(header.fragment, Fragment::Later) {
            // What follows is not a header.
            return Ok(Step::Done);
        }
    }
    Ok(Step::Next)
}
