//! Addresses, ports and protocols as the API writes them.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU16,
};

use ipnet::IpNet;
use proxy_common::abi::Protocol;

use super::problem::{Reason, SpecialAddress};

/// An address that may take part in a Service, as a frontend or as a backend.
pub(super) fn usable_address(text: &str) -> Result<IpAddr, Reason> {
    if text.is_empty() {
        return Err(Reason::EmptyAddress);
    }
    let addr = parse_sloppy(text).ok_or_else(|| Reason::NotAnAddress(text.into()))?;
    match special(addr) {
        None => Ok(addr),
        Some(special) => Err(Reason::SpecialAddress(addr, special)),
    }
}

/// Accepts what `k8s.io/utils/net.ParseIPSloppy` accepts of old objects: IPv4 octets with leading
/// zeros, read as decimal. IPv4-mapped IPv6 is IPv4, as in Go.
pub(super) fn parse_sloppy(text: &str) -> Option<IpAddr> {
    if !text.contains(':') {
        return parse_v4_sloppy(text).map(IpAddr::V4);
    }
    let addr: Ipv6Addr = match text.rsplit_once(':') {
        Some((head, tail)) if tail.contains('.') => {
            format!("{head}:{}", parse_v4_sloppy(tail)?).parse().ok()?
        }
        _ => text.parse().ok()?,
    };
    Some(IpAddr::V6(addr).to_canonical())
}

/// A range of addresses without its host bits, read as sloppily as `k8s.io/utils/net.ParseCIDRSloppy`;
/// whitespace around it is passed over, as the API's validation does.
pub(super) fn range(text: &str) -> Result<IpNet, Reason> {
    parse_range(text.trim()).ok_or_else(|| Reason::NotARange(text.into()))
}

fn parse_range(text: &str) -> Option<IpNet> {
    let (addr, length) = text.split_once('/')?;
    if length.is_empty() || !length.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let mut length: u8 = length.parse().ok()?;
    let parsed = parse_sloppy(addr)?;
    // ::ffff:10.0.0.0/104 is 10.0.0.0/8.
    if parsed.is_ipv4() && addr.contains(':') {
        length = length.checked_sub(96)?;
    }
    Some(IpNet::new(parsed, length).ok()?.trunc())
}

fn parse_v4_sloppy(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        // u8::from_str would take a sign.
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        *octet = part.parse().ok()?;
    }
    parts.next().is_none().then(|| octets.into())
}

fn special(addr: IpAddr) -> Option<SpecialAddress> {
    let (link_local, broadcast) = match addr {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.is_broadcast()),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), false),
    };
    if addr.is_unspecified() {
        Some(SpecialAddress::Unspecified)
    } else if addr.is_loopback() {
        Some(SpecialAddress::Loopback)
    } else if addr.is_multicast() {
        Some(SpecialAddress::Multicast)
    } else if link_local {
        Some(SpecialAddress::LinkLocal)
    } else if broadcast {
        Some(SpecialAddress::Broadcast)
    } else {
        None
    }
}

pub(super) fn port(number: i32) -> Result<NonZeroU16, Reason> {
    u16::try_from(number)
        .ok()
        .and_then(NonZeroU16::new)
        .ok_or(Reason::NotAPort(number))
}

/// TCP unless said otherwise.
pub(super) fn protocol(name: Option<&str>) -> Result<Protocol, Reason> {
    match name {
        None | Some("") | Some("TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(Reason::UnknownProtocol(other.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sloppy_addresses_are_read_as_go_reads_them() {
        for (text, addr) in [
            ("10.0.0.1", Some("10.0.0.1")),
            ("010.020.030.040", Some("10.20.30.40")),
            ("10.0.0.008", Some("10.0.0.8")),
            ("1.2.3.000000004", Some("1.2.3.4")),
            ("fd00::1", Some("fd00::1")),
            ("FD00:0000::0001", Some("fd00::1")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("::ffff:010.0.0.01", Some("10.0.0.1")),
            ("::ffff:a00:1", Some("10.0.0.1")),
            ("64:ff9b::1.2.3.4", Some("64:ff9b::102:304")),
            ("10.0.0", None),
            ("10.0.0.0.1", None),
            ("10.0.0.256", None),
            ("10.0.0.+1", None),
            ("10.0.0.-1", None),
            ("10.0.0.1 ", None),
            ("10.0.0.0x1", None),
            ("10.0.0.1:80", None),
            ("10.0.0.0/8", None),
            ("fd00::1%eth0", None),
            ("[fd00::1]", None),
            ("localhost", None),
        ] {
            assert_eq!(
                parse_sloppy(text),
                addr.map(|a| a.parse().expect("an address")),
                "{text}"
            );
        }
    }

    #[test]
    fn sloppy_ranges_are_read_and_lose_their_host_bits() {
        for (text, expected) in [
            ("10.0.0.0/8", Some("10.0.0.0/8")),
            (" 010.1.2.3/8\t", Some("10.0.0.0/8")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("fd00::1/64", Some("fd00::/64")),
            ("::ffff:10.1.2.3/104", Some("10.0.0.0/8")),
            ("::ffff:10.1.2.3/8", None),
            ("10.0.0.1", None),
            ("10.0.0.0/33", None),
            ("10.0.0.0/+8", None),
            ("10.0.0.0/", None),
            ("10.0.0.0/8/8", None),
            ("fd00::/129", None),
            ("office", None),
            ("", None),
        ] {
            let expected = expected.map(|net| net.parse().expect("a range"));
            assert_eq!(range(text).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn addresses_with_a_meaning_of_their_own_are_refused() {
        for (text, expected) in [
            ("0.0.0.0", SpecialAddress::Unspecified),
            ("::", SpecialAddress::Unspecified),
            ("::ffff:0.0.0.0", SpecialAddress::Unspecified),
            ("127.0.0.1", SpecialAddress::Loopback),
            ("127.255.0.9", SpecialAddress::Loopback),
            ("0127.0.0.1", SpecialAddress::Loopback),
            ("::1", SpecialAddress::Loopback),
            ("::ffff:127.0.0.1", SpecialAddress::Loopback),
            ("169.254.169.254", SpecialAddress::LinkLocal),
            ("fe80::1", SpecialAddress::LinkLocal),
            ("febf::1", SpecialAddress::LinkLocal),
            ("224.0.0.251", SpecialAddress::Multicast),
            ("239.1.1.1", SpecialAddress::Multicast),
            ("ff02::1", SpecialAddress::Multicast),
            ("255.255.255.255", SpecialAddress::Broadcast),
        ] {
            match usable_address(text) {
                Err(Reason::SpecialAddress(_, special)) => assert_eq!(special, expected, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
        assert_eq!(usable_address(""), Err(Reason::EmptyAddress));
    }
}
