//! The first packet of a connection, as bytes: a SYN, a datagram, an INIT.

use std::net::{IpAddr, SocketAddr};

use proxy_common::{abi::Protocol, wire::link::Link};

use super::question::Question;

/// Who it is from on the link; anybody.
const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 2];
const TTL: u8 = 64;
const DONT_FRAGMENT: u8 = 0x40;
/// Of a datagram; what it says doesn't matter.
const PAYLOAD: &[u8] = b"kube-portal trace";

/// `to`: the link-layer address of the device that gets it.
pub(super) fn make(question: &Question, link: Link, to: [u8; 6]) -> Vec<u8> {
    let Question {
        protocol,
        source,
        destination,
    } = *question;
    let mut segment = segment(protocol, source, destination);
    let place = match protocol {
        Protocol::Tcp => Some(16),
        Protocol::Udp => Some(6),
        Protocol::Sctp => None,
    };
    let length = u16::try_from(segment.len()).expect("short");
    let mut pseudo = octets(source.ip());
    pseudo.extend(octets(destination.ip()));
    pseudo.extend([0, protocol.number()]);
    pseudo.extend(length.to_be_bytes());
    match place {
        Some(place) => {
            let checksum = match checksum(&[&pseudo[..], &segment].concat()) {
                0 => 0xffff,
                sum => sum,
            };
            segment[place..place + 2].copy_from_slice(&checksum.to_be_bytes());
        }
        None => {
            let crc = crc32c(&segment);
            segment[8..12].copy_from_slice(&crc.to_le_bytes());
        }
    }
    let is_v4 = source.is_ipv4();
    let mut frame = Vec::new();
    if matches!(link, Link::Ethernet) {
        frame.extend(to);
        frame.extend(SENDER);
        frame.extend(if is_v4 { [0x08, 0x00] } else { [0x86, 0xdd] });
    }
    let mut header = if is_v4 {
        let mut header = vec![0x45, 0];
        header.extend((length + 20).to_be_bytes());
        header.extend([0, 1, DONT_FRAGMENT, 0, TTL, protocol.number(), 0, 0]);
        header
    } else {
        let mut header = vec![0x60, 0, 0, 0];
        header.extend(length.to_be_bytes());
        header.extend([protocol.number(), TTL]);
        header
    };
    header.extend(octets(source.ip()));
    header.extend(octets(destination.ip()));
    if is_v4 {
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    frame.extend(header);
    frame.extend(segment);
    frame
}

/// With a checksum of 0.
fn segment(protocol: Protocol, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(source.port().to_be_bytes());
    segment.extend(destination.port().to_be_bytes());
    match protocol {
        Protocol::Tcp => {
            segment.extend([0, 0, 0, 1, 0, 0, 0, 0]);
            // Five words, SYN, a window.
            segment.extend([5 << 4, 2, 0xfa, 0xf0, 0, 0, 0, 0]);
        }
        Protocol::Udp => {
            let length = u16::try_from(8 + PAYLOAD.len()).expect("short");
            segment.extend(length.to_be_bytes());
            segment.extend([0, 0]);
            segment.extend(PAYLOAD);
        }
        Protocol::Sctp => {
            // No verification tag, the checksum; INIT of 20 bytes: tag, window, streams, first number.
            segment.extend([0; 8]);
            segment.extend([
                1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 10, 0, 10, 0, 0, 0, 1,
            ]);
        }
    }
    segment
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let sum = bytes.chunks(2).fold(0_u32, |sum, pair| {
        let low = pair.get(1).copied().unwrap_or(0);
        (sum + u32::from(u16::from_be_bytes([pair[0], low]))) % 0xffff
    });
    !u16::try_from(sum).expect("below 65535")
}

/// RFC 9260, appendix A.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 }
        })
    })
}

#[cfg(test)]
mod tests {
    use proxy_common::{
        datapath::flow::{self, Flow, Kind},
        wire::bytes::Bytes,
    };

    use super::*;

    /// The datapath's own parser reads what was asked, also without a link layer.
    #[test]
    fn a_packet_is_read_as_what_was_asked() {
        for (source, destination) in [
            ("10.0.1.5:40000", "10.96.0.10:53"),
            ("[fd00::5]:40000", "[fd96::10]:53"),
        ] {
            for protocol in Protocol::ALL {
                for link in [Link::Ethernet, Link::None] {
                    let question = Question {
                        protocol,
                        source: source.parse().expect("an address"),
                        destination: destination.parse().expect("an address"),
                    };
                    let packet = Bytes::new(make(&question, link, [2, 0, 0, 0, 0, 1]));
                    let mut flow = Flow::default();
                    assert_eq!(flow::parse(&packet, link, &mut flow), Ok(()));
                    assert_eq!(flow.kind, Kind::Whole);
                    assert_eq!(flow.protocol(), Some(protocol));
                    assert_eq!(flow.tuple.src.ip(), question.source.ip());
                    assert_eq!(flow.tuple.dst.ip(), question.destination.ip());
                    assert_eq!(u16::from_be(flow.tuple.src_port_be), 40_000);
                    assert_eq!(u16::from_be(flow.tuple.dst_port_be), 53);
                    assert_eq!(flow.is_syn(), protocol == Protocol::Tcp);
                    assert_eq!(usize::try_from(flow.end), Ok(packet.data.len()));
                }
            }
        }
    }

    /// RFC 1071: over a part with its checksum in place the sum is 0, of which all ones is the complement.
    #[test]
    fn the_checksums_hold() {
        let question = Question {
            protocol: Protocol::Udp,
            source: "10.0.1.5:40000".parse().expect("an address"),
            destination: "10.96.0.10:53".parse().expect("an address"),
        };
        let packet = make(&question, Link::None, [0; 6]);
        assert_eq!(checksum(&packet[..20]), 0xffff);
        let mut covered = packet[12..20].to_vec();
        covered.extend([0, 17]);
        covered.extend(&packet[24..26]);
        covered.extend(&packet[20..]);
        assert_eq!(checksum(&covered), 0xffff);
    }
}
