//! Builds packets.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    EtherType, Ethernet2Header, IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type,
    IpFragOffset, IpNumber, Ipv4Header, Ipv4Options, Ipv6FragmentHeader, Ipv6Header,
    SingleVlanHeader, TcpHeader, UdpHeader, VlanId, icmpv4,
};

use super::scene::MAC;

#[derive(Clone, Copy, Debug)]
pub enum Transport {
    Tcp {
        flags: &'static str,
        seq: u32,
        ack: u32,
    },
    Udp,
    Sctp,
}

/// A packet to be.
#[derive(Clone, Debug)]
pub struct Make {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub transport: Transport,
    pub ttl: u8,
    /// VLAN tags.
    pub tags: u8,
    /// Options in IPv4, two extension headers in IPv6.
    pub options: bool,
    pub payload: Vec<u8>,
    /// UDP: whether it has a checksum. SCTP: the same.
    pub checksum: bool,
    pub ethernet: bool,
}

fn octets4(ip: IpAddr) -> [u8; 4] {
    match ip {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(_) => panic!("mixed families"),
    }
}

fn octets6(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V6(ip) => ip.octets(),
        IpAddr::V4(_) => panic!("mixed families"),
    }
}

/// Bit by bit, as RFC 9260 Appendix A has it.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 }
        })
    })
}

/// What a sender may be told of its packet.
#[derive(Clone, Copy, Debug)]
pub enum Told {
    PortUnreachable,
    TimeExceeded,
    TooBig { mtu: u16 },
}

/// The sum of words of two bytes, modulo 65535.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).fold(0, |sum, pair| {
        let second = pair.get(1).copied().unwrap_or(0);
        (sum + u32::from(u16::from_be_bytes([pair[0], second]))) % 65_535
    })
}

/// What a device does that is told to fill in the checksum at `place` of a region.
pub fn fill_in(region: &mut [u8], place: usize) {
    let checksum = !u16::try_from(sum(region)).expect("below 65535");
    region[place..place + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// Tries all values of a checksum field until the sum of its region is the same when it is filled in.
fn steady(region: &[u8], place: usize) -> Vec<u8> {
    let mut region = region.to_vec();
    region[place..place + 2].fill(0);
    let rest = sum(&region);
    let field = (0..=u16::MAX)
        .find(|field| {
            let before = (rest + u32::from(*field)) % 65_535;
            let filled = !u16::try_from(before).expect("below 65535");
            before == (rest + u32::from(filled)) % 65_535
        })
        .expect("there is always one");
    region[place..place + 2].copy_from_slice(&field.to_be_bytes());
    region
}

const DESTINATION_OPTIONS: u8 = 60;
const HOP_BY_HOP: u8 = 0;
const FRAGMENT: u8 = 44;

impl Make {
    pub fn new(transport: Transport, src: SocketAddr, dst: SocketAddr) -> Self {
        Self {
            src,
            dst,
            transport,
            ttl: 64,
            tags: 0,
            options: false,
            payload: (0..33).collect(),
            checksum: true,
            ethernet: true,
        }
    }

    #[must_use]
    pub fn between(&self, src: SocketAddr, dst: SocketAddr) -> Self {
        Self {
            src,
            dst,
            ..self.clone()
        }
    }

    /// As it is when it has been forwarded: one hop older, without tags.
    #[must_use]
    pub fn forwarded(&self) -> Self {
        Self {
            ttl: self.ttl - 1,
            tags: 0,
            ethernet: true,
            ..self.clone()
        }
    }

    fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Tcp { .. } => 6,
            Transport::Udp => 17,
            Transport::Sctp => 132,
        }
    }

    /// The transport header and what it carries.
    fn segment(&self) -> Vec<u8> {
        let (src, dst) = (self.src.port(), self.dst.port());
        let mut bytes = match self.transport {
            Transport::Tcp { flags, seq, ack } => {
                let mut tcp = TcpHeader::new(src, dst, seq, 4096);
                tcp.acknowledgment_number = ack;
                tcp.syn = flags.contains('S');
                tcp.ack = flags.contains('A');
                tcp.fin = flags.contains('F');
                tcp.rst = flags.contains('R');
                tcp.checksum = if self.src.is_ipv4() {
                    tcp.calc_checksum_ipv4_raw(
                        octets4(self.src.ip()),
                        octets4(self.dst.ip()),
                        &self.payload,
                    )
                } else {
                    tcp.calc_checksum_ipv6_raw(
                        octets6(self.src.ip()),
                        octets6(self.dst.ip()),
                        &self.payload,
                    )
                }
                .expect("short");
                tcp.to_bytes().to_vec()
            }
            Transport::Udp => {
                let mut udp = UdpHeader {
                    source_port: src,
                    destination_port: dst,
                    length: u16::try_from(8 + self.payload.len()).expect("short"),
                    checksum: 0,
                };
                if self.checksum {
                    udp.checksum = if self.src.is_ipv4() {
                        udp.calc_checksum_ipv4_raw(
                            octets4(self.src.ip()),
                            octets4(self.dst.ip()),
                            &self.payload,
                        )
                    } else {
                        udp.calc_checksum_ipv6_raw(
                            octets6(self.src.ip()),
                            octets6(self.dst.ip()),
                            &self.payload,
                        )
                    }
                    .expect("short");
                }
                udp.to_bytes().to_vec()
            }
            Transport::Sctp => {
                let mut bytes = Vec::new();
                bytes.extend(src.to_be_bytes());
                bytes.extend(dst.to_be_bytes());
                bytes.extend([1, 2, 3, 4, 0, 0, 0, 0]);
                if self.checksum {
                    let whole: Vec<u8> = bytes.iter().chain(&self.payload).copied().collect();
                    bytes[8..12].copy_from_slice(&crc32c(&whole).to_le_bytes());
                }
                bytes
            }
        };
        bytes.extend(&self.payload);
        bytes
    }

    /// An IP packet that carries `payload`; `fragment`: offset in bytes, and whether more follow.
    fn network(&self, protocol: u8, payload: &[u8], fragment: Option<(u16, bool)>) -> Vec<u8> {
        let (offset, more) = fragment.unwrap_or((0, false));
        let offset = IpFragOffset::try_new(offset / 8).expect("13 bits");
        let mut bytes;
        if self.src.is_ipv4() {
            let mut ip = Ipv4Header::new(
                u16::try_from(payload.len()).expect("short"),
                self.ttl,
                IpNumber(protocol),
                octets4(self.src.ip()),
                octets4(self.dst.ip()),
            )
            .expect("short");
            ip.identification = 4711;
            ip.dont_fragment = fragment.is_none();
            ip.more_fragments = more;
            ip.fragment_offset = offset;
            if self.options {
                // Router alert, RFC 2113; and four times "no operation".
                ip.options = Ipv4Options::from([0x94, 4, 0, 0, 1, 1, 1, 1]);
                ip.total_len += 8;
            }
            ip.header_checksum = ip.calc_header_checksum();
            bytes = ip.to_bytes().to_vec();
        } else {
            let mut chain = Vec::new();
            let mut first = protocol;
            if self.options {
                first = HOP_BY_HOP;
                // Padding only, RFC 8200 §4.2; the second of 16 bytes.
                chain.extend([DESTINATION_OPTIONS, 0, 1, 4, 0, 0, 0, 0]);
                let next = if fragment.is_some() {
                    FRAGMENT
                } else {
                    protocol
                };
                chain.extend([next, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            } else if fragment.is_some() {
                first = FRAGMENT;
            }
            if fragment.is_some() {
                chain.extend(
                    Ipv6FragmentHeader::new(IpNumber(protocol), offset, more, 0x0815_4711)
                        .to_bytes(),
                );
            }
            let ip = Ipv6Header {
                payload_length: u16::try_from(chain.len() + payload.len()).expect("short"),
                next_header: IpNumber(first),
                hop_limit: self.ttl,
                source: octets6(self.src.ip()),
                destination: octets6(self.dst.ip()),
                ..Ipv6Header::default()
            };
            bytes = ip.to_bytes().to_vec();
            bytes.extend(chain);
        }
        bytes.extend(payload);
        bytes
    }

    fn link(&self, packet: Vec<u8>) -> Vec<u8> {
        if !self.ethernet {
            return packet;
        }
        let kind = if self.src.is_ipv4() {
            EtherType::IPV4
        } else {
            EtherType::IPV6
        };
        let of = |tags: u8| {
            if tags > 0 {
                EtherType::VLAN_TAGGED_FRAME
            } else {
                kind
            }
        };
        // What came without a header gets one that the kernel fills in.
        let mut bytes = Ethernet2Header {
            destination: MAC,
            source: [2, 0, 0, 0, 0, 2],
            ether_type: of(self.tags),
        }
        .to_bytes()
        .to_vec();
        for left in (0..self.tags).rev() {
            let tag = SingleVlanHeader {
                vlan_id: VlanId::try_new(100 + u16::from(left)).expect("12 bits"),
                ether_type: of(left),
                ..SingleVlanHeader::default()
            };
            bytes.extend(tag.to_bytes());
        }
        bytes.extend(packet);
        bytes
    }

    /// From the IP header on.
    pub fn packet(&self) -> Vec<u8> {
        self.network(self.protocol(), &self.segment(), None)
    }

    /// All of it.
    pub fn frame(&self) -> Vec<u8> {
        self.link(self.packet())
    }

    /// In two, 24 bytes into the segment.
    pub fn fragments(&self) -> [Vec<u8>; 2] {
        let segment = self.segment();
        let (first, rest) = segment.split_at(24);
        [(first, (0, true)), (rest, (24, false))]
            .map(|(part, at)| self.link(self.network(self.protocol(), part, Some(at))))
    }

    /// Where the transport checksum is in its header, if it is an Internet checksum.
    pub fn checksum_place(&self) -> Option<usize> {
        match self.transport {
            Transport::Tcp { .. } => Some(16),
            Transport::Udp => Some(6),
            Transport::Sctp => None,
        }
    }

    /// Bytes of IP headers.
    pub fn headers(&self) -> usize {
        self.packet().len() - self.segment().len()
    }

    /// The ICMP error with which `from` answers this packet, on its way back out of the device it came
    /// in by.
    pub fn answer(&self, from: IpAddr, told: Told) -> Vec<u8> {
        self.answer_about(&self.packet(), from, told)
    }

    /// "Port unreachable" about its first fragment.
    pub fn answer_about_fragment(&self, first: &[u8], from: IpAddr) -> Vec<u8> {
        self.answer_about(first, from, Told::PortUnreachable)
    }

    fn answer_about(&self, packet: &[u8], from: IpAddr, told: Told) -> Vec<u8> {
        let mut quoted = packet[..packet.len().min(512)].to_vec();
        if let Some(place) = self.checksum_place() {
            // The fragment header of IPv6.
            let more = packet.get(6) == Some(&FRAGMENT) && !self.src.is_ipv4();
            let headers = self.headers() + if more { 8 } else { 0 };
            let segment = steady(&quoted[headers..], place);
            quoted.splice(headers.., segment);
        }
        self.answer_quoting(&quoted, from, told)
    }

    /// An answer that quotes just this.
    pub fn answer_quoting(&self, quoted: &[u8], from: IpAddr, told: Told) -> Vec<u8> {
        let mut bytes;
        if self.src.is_ipv4() {
            use icmpv4::{DestUnreachableHeader as Unreachable, TimeExceededCode as Exceeded};
            let kind = match told {
                Told::PortUnreachable => Icmpv4Type::DestinationUnreachable(Unreachable::Port),
                Told::TimeExceeded => Icmpv4Type::TimeExceeded(Exceeded::TtlExceededInTransit),
                Told::TooBig { mtu } => {
                    let header = Unreachable::FragmentationNeeded { next_hop_mtu: mtu };
                    Icmpv4Type::DestinationUnreachable(header)
                }
            };
            let mut ip = Ipv4Header::new(
                u16::try_from(8 + quoted.len()).expect("short"),
                64,
                IpNumber::ICMP,
                octets4(from),
                octets4(self.src.ip()),
            )
            .expect("short");
            // Internetwork control: RFC 791's precedence 6.
            ip.dscp = 48.try_into().expect("6 bits");
            ip.dont_fragment = true;
            ip.header_checksum = ip.calc_header_checksum();
            bytes = ip.to_bytes().to_vec();
            bytes.extend(Icmpv4Header::with_checksum(kind, quoted).to_bytes());
        } else {
            use etherparse::icmpv6::{DestUnreachableCode as Unreachable, TimeExceededCode};
            let kind = match told {
                Told::PortUnreachable => Icmpv6Type::DestinationUnreachable(Unreachable::Port),
                Told::TimeExceeded => Icmpv6Type::TimeExceeded(TimeExceededCode::HopLimitExceeded),
                Told::TooBig { mtu } => Icmpv6Type::PacketTooBig { mtu: mtu.into() },
            };
            let ip = Ipv6Header {
                payload_length: u16::try_from(8 + quoted.len()).expect("short"),
                next_header: IpNumber::IPV6_ICMP,
                hop_limit: 64,
                source: octets6(from),
                destination: octets6(self.src.ip()),
                ..Ipv6Header::default()
            };
            bytes = ip.to_bytes().to_vec();
            let header = Icmpv6Header::with_checksum(kind, ip.source, ip.destination, quoted);
            bytes.extend(header.expect("short").to_bytes());
        }
        bytes.extend(quoted);
        let mut frame = self.link(bytes);
        if self.ethernet {
            let (to, from) = frame[..12].split_at_mut(6);
            to.swap_with_slice(from);
        }
        frame
    }

    /// Of a protocol without ports, between the same two; or its first fragment.
    pub fn of(&self, protocol: u8, is_fragment: bool) -> Vec<u8> {
        let fragment = is_fragment.then_some((0, true));
        self.link(self.network(protocol, &[0; 24], fragment))
    }

    /// Of a protocol without ports and without anything to say.
    pub fn empty_of(&self, protocol: u8) -> Vec<u8> {
        self.link(self.network(protocol, &[], None))
    }

    /// Asks for an echo, or is one.
    pub fn echo(&self, is_request: bool) -> Vec<u8> {
        let echo = IcmpEchoHeader { id: 1, seq: 2 };
        let payload = &self.payload;
        let (protocol, mut message) = if self.src.is_ipv4() {
            let kind = if is_request {
                Icmpv4Type::EchoRequest(echo)
            } else {
                Icmpv4Type::EchoReply(echo)
            };
            let header = Icmpv4Header::with_checksum(kind, payload);
            (1, header.to_bytes().to_vec())
        } else {
            let kind = if is_request {
                Icmpv6Type::EchoRequest(echo)
            } else {
                Icmpv6Type::EchoReply(echo)
            };
            let (src, dst) = (octets6(self.src.ip()), octets6(self.dst.ip()));
            let header = Icmpv6Header::with_checksum(kind, src, dst, payload);
            (58, header.expect("short").to_bytes().to_vec())
        };
        message.extend(payload);
        self.link(self.network(protocol, &message, None))
    }

    /// "Too big" about `quoted`, sent in this packet's place: addresses and hops are its own.
    pub fn too_big(&self, quoted: &[u8]) -> Vec<u8> {
        let (protocol, mut message) = if self.src.is_ipv4() {
            let kind = Icmpv4Type::DestinationUnreachable(
                icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 },
            );
            let header = Icmpv4Header::with_checksum(kind, quoted);
            (1, header.to_bytes().to_vec())
        } else {
            let kind = Icmpv6Type::PacketTooBig { mtu: 1400 };
            let header = Icmpv6Header::with_checksum(
                kind,
                octets6(self.src.ip()),
                octets6(self.dst.ip()),
                quoted,
            );
            (58, header.expect("short").to_bytes().to_vec())
        };
        message.extend(quoted);
        self.link(self.network(protocol, &message, None))
    }
}
