//! The link layer: Ethernet with up to two VLAN tags, or nothing at all.

use super::{Skip, packet::Packet};
use crate::abi::Addr;

/// What a device puts in front of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    Ethernet,
    /// Tunnels: a packet begins with its IP header.
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Family {
    V4 = 0,
    V6 = 1,
}

impl Family {
    #[inline(always)]
    pub const fn of(addr: &Addr) -> Self {
        if addr.is_v4() { Self::V4 } else { Self::V6 }
    }
}

/// Bytes of an Ethernet header without tags.
pub const ETHERNET_LENGTH: u32 = 14;
pub const ETHERTYPE_V4: u16 = 0x0800;
pub const ETHERTYPE_V6: u16 = 0x86dd;
/// Tags in a frame that are looked behind.
pub const MAX_TAGS: u32 = 2;
/// 802.1Q and 802.1ad.
const VLAN_TAGS: [u16; 2] = [0x8100, 0x88a8];

/// Where IP begins, and after how many tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub family: Family,
    pub offset: u32,
    pub tags: u8,
}

#[inline(always)]
const fn is_tag(ethertype: u16) -> bool {
    ethertype == VLAN_TAGS[0] || ethertype == VLAN_TAGS[1]
}

#[inline(always)]
pub fn parse(packet: &impl Packet, link: Link) -> Result<Found, Skip> {
    let (mut offset, mut tags) = (0, 0);
    let family = match link {
        Link::None => {
            let [first] = packet.load(0).ok_or(Skip::Truncated)?;
            match first >> 4 {
                4 => Family::V4,
                6 => Family::V6,
                _ => return Err(Skip::NotIp),
            }
        }
        Link::Ethernet => {
            offset = ETHERNET_LENGTH;
            let mut ethertype = ethertype(packet, 12)?;
            if is_tag(ethertype) {
                (ethertype, offset, tags) = (self::ethertype(packet, 16)?, 18, 1);
                if is_tag(ethertype) {
                    (ethertype, offset, tags) = (self::ethertype(packet, 20)?, 22, 2);
                }
            }
            match ethertype {
                ETHERTYPE_V4 => Family::V4,
                ETHERTYPE_V6 => Family::V6,
                _ => return Err(Skip::NotIp),
            }
        }
    };
    Ok(Found {
        family,
        offset,
        tags,
    })
}

#[inline(always)]
fn ethertype(packet: &impl Packet, offset: u32) -> Result<u16, Skip> {
    packet
        .load(offset)
        .map(u16::from_be_bytes)
        .ok_or(Skip::Truncated)
}
