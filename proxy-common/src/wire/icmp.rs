//! ICMP and ICMPv6: which messages quote the packet they are about, and which ask for an echo.

use super::link::Family;

pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;
/// Where the quoted packet begins.
pub const QUOTE: u32 = 8;
/// Offset of the checksum.
pub const CHECKSUM: u32 = 2;

/// Whether `protocol` is this family's ICMP.
#[inline(always)]
pub const fn is_icmp(family: Family, protocol: u8) -> bool {
    match family {
        Family::V4 => protocol == ICMP,
        Family::V6 => protocol == ICMPV6,
    }
}

#[inline(always)]
pub const fn is_echo_request(family: Family, kind: u8) -> bool {
    match family {
        Family::V4 => kind == 8,
        Family::V6 => kind == 128,
    }
}

/// Errors about a packet: unreachable (with "too big" in IPv4), time exceeded, parameter problem;
/// in IPv6 also "too big". Redirects and source quenches are between a host and its router.
#[inline(always)]
pub const fn is_error(family: Family, kind: u8) -> bool {
    match family {
        Family::V4 => matches!(kind, 3 | 11 | 12),
        Family::V6 => matches!(kind, 1..=4),
    }
}
