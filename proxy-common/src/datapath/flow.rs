//! A packet, as far as its translation is concerned.

use crate::{
    abi::{Addr, Protocol, Tuple},
    wire::{
        Skip, icmp,
        link::{self, Family, Link},
        network::{self, Extent, Fragment, Header},
        packet::Packet,
        transport::{sctp, tcp, udp},
    },
};

/// What a packet is to the flow it belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// It has a transport header.
    #[default]
    Whole = 0,
    /// It has one, and the rest of the packet comes in other fragments.
    FirstFragment = 1,
    /// It has none: its ports are those of its first fragment.
    LaterFragment = 2,
    /// An ICMP error that quotes a packet of the opposite direction.
    Error = 3,
    /// One of another protocol, or an ICMP echo request: of no flow, but to be answered if it is for
    /// a ClusterIP. Whole, because fragments of such are not looked at.
    WithoutPorts = 4,
}

/// What a packet says. For an ICMP error `tuple` is that of a packet going where the error goes: the
/// quoted packet's, reversed.
///
/// All bits 0 are a value, so it can live in memory that a BPF map owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Flow {
    pub tuple: Tuple,
    /// The addresses in the IP header: for an ICMP error not the tuple's.
    pub outer_src: Addr,
    pub outer_dst: Addr,
    /// Where the IP header is.
    pub network: u32,
    /// Where the transport or ICMP header is.
    pub transport: u32,
    /// Where the IP packet ends.
    pub end: u32,
    /// Where the quoted IP header is.
    pub quoted_network: u32,
    /// Where the quoted transport header is.
    pub quoted_transport: u32,
    pub fragment_id: u32,
    /// See [`Header::class`].
    pub class: u32,
    /// TCP's numbers, in host byte order.
    pub sequence: u32,
    pub acknowledgement: u32,
    pub tcp_flags: u8,
    /// VLAN tags in the frame.
    pub tags: u8,
    pub kind: Kind,
    /// [`Link::None`] is 1.
    pub no_link: u8,
}

impl Default for Flow {
    fn default() -> Self {
        let none = Addr { words: [0; 4] };
        Self {
            tuple: Tuple {
                src: none,
                dst: none,
                src_port_be: 0,
                dst_port_be: 0,
                protocol: 0,
                zero: [0; 3],
            },
            outer_src: none,
            outer_dst: none,
            network: 0,
            transport: 0,
            end: 0,
            quoted_network: 0,
            quoted_transport: 0,
            fragment_id: 0,
            class: 0,
            sequence: 0,
            acknowledgement: 0,
            tcp_flags: 0,
            tags: 0,
            kind: Kind::Whole,
            no_link: 0,
        }
    }
}

impl Flow {
    #[inline(always)]
    pub fn family(&self) -> Family {
        Family::of(&self.outer_dst)
    }

    #[inline(always)]
    pub fn link(&self) -> Link {
        if self.no_link == 0 {
            Link::Ethernet
        } else {
            Link::None
        }
    }

    /// `None` for [`Kind::WithoutPorts`] only.
    #[inline(always)]
    pub fn protocol(&self) -> Option<Protocol> {
        Protocol::from_number(self.tuple.protocol)
    }

    /// A first packet of a connection.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        self.tuple.protocol == Protocol::Tcp.number()
            && self.tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::SYN
    }

    /// Never answered (RFC 9293 §3.10.7.1).
    #[inline(always)]
    pub fn is_reset(&self) -> bool {
        self.tuple.protocol == Protocol::Tcp.number() && self.tcp_flags & tcp::RST != 0
    }
}

/// Fills `flow` from the packet.
#[inline(always)]
pub fn parse(packet: &impl Packet, link: Link, flow: &mut Flow) -> Result<(), Skip> {
    let found = link::parse(packet, link)?;
    let header = network::parse(packet, found.family, found.offset, Extent::Full)?;
    flow.tags = found.tags;
    flow.no_link = match link {
        Link::Ethernet => 0,
        Link::None => 1,
    };
    flow.network = found.offset;
    flow.transport = header.payload;
    flow.end = header.end;
    flow.outer_src = header.src;
    flow.outer_dst = header.dst;
    flow.fragment_id = header.fragment_id;
    flow.class = header.class;
    flow.tcp_flags = 0;
    if icmp::is_icmp(found.family, header.protocol) {
        return parse_icmp(packet, found.family, &header, flow);
    }
    set_addresses(&header, flow);
    let Some(protocol) = Protocol::from_number(header.protocol) else {
        return parse_other(&header, flow);
    };
    flow.kind = match header.fragment {
        Fragment::Whole => Kind::Whole,
        Fragment::First => Kind::FirstFragment,
        Fragment::Later => {
            flow.kind = Kind::LaterFragment;
            return Ok(());
        }
    };
    parse_transport(packet, protocol, flow)
}

#[inline(always)]
fn set_addresses(header: &Header, flow: &mut Flow) {
    flow.tuple = Tuple {
        src: header.src,
        dst: header.dst,
        src_port_be: 0,
        dst_port_be: 0,
        protocol: header.protocol,
        zero: [0; 3],
    };
}

#[inline(always)]
fn parse_other(header: &Header, flow: &mut Flow) -> Result<(), Skip> {
    match header.fragment {
        Fragment::Whole => {
            flow.kind = Kind::WithoutPorts;
            Ok(())
        }
        Fragment::First | Fragment::Later => Err(Skip::Protocol),
    }
}

#[inline(always)]
fn parse_transport(packet: &impl Packet, protocol: Protocol, flow: &mut Flow) -> Result<(), Skip> {
    let length = match protocol {
        Protocol::Tcp => tcp::LENGTH,
        Protocol::Udp => udp::LENGTH,
        Protocol::Sctp => sctp::LENGTH,
    };
    if flow.transport + length > flow.end {
        return Err(Skip::Truncated);
    }
    match protocol {
        Protocol::Tcp => {
            let bytes: [u8; 16] = packet.load(flow.transport).ok_or(Skip::Truncated)?;
            set_ports(&bytes, flow);
            flow.sequence = be_word(&bytes, 4);
            flow.acknowledgement = be_word(&bytes, 8);
            flow.tcp_flags = bytes[13];
            if u32::from(bytes[12] >> 4) * 4 < tcp::LENGTH {
                return Err(Skip::Length);
            }
        }
        Protocol::Udp => {
            let bytes: [u8; 8] = packet.load(flow.transport).ok_or(Skip::Truncated)?;
            set_ports(&bytes, flow);
        }
        Protocol::Sctp => {
            let bytes: [u8; 4] = packet.load(flow.transport).ok_or(Skip::Truncated)?;
            set_ports(&bytes, flow);
        }
    }
    Ok(())
}

#[inline(always)]
fn be_word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[inline(always)]
fn set_ports(bytes: &[u8], flow: &mut Flow) {
    flow.tuple.src_port_be = u16::from_ne_bytes([bytes[0], bytes[1]]);
    flow.tuple.dst_port_be = u16::from_ne_bytes([bytes[2], bytes[3]]);
}

/// An ICMP message: only errors about packets with ports are of interest, and echo requests.
#[inline(always)]
fn parse_icmp(
    packet: &impl Packet,
    family: Family,
    outer: &Header,
    flow: &mut Flow,
) -> Result<(), Skip> {
    match outer.fragment {
        Fragment::Whole => {}
        Fragment::First | Fragment::Later => return Err(Skip::Protocol),
    }
    let [kind] = packet.load(outer.payload).ok_or(Skip::Truncated)?;
    if icmp::is_echo_request(family, kind) {
        set_addresses(outer, flow);
        return parse_other(outer, flow);
    }
    if !icmp::is_error(family, kind) {
        return Err(Skip::Protocol);
    }
    let quote = outer.payload + icmp::QUOTE;
    let quoted = network::parse(packet, family, quote, Extent::Quoted)?;
    if Protocol::from_number(quoted.protocol).is_none() {
        return Err(Skip::Protocol);
    }
    match quoted.fragment {
        Fragment::Whole | Fragment::First => {}
        Fragment::Later => return Err(Skip::Protocol),
    }
    // RFC 792 promises these 8 bytes, and every router keeps to it.
    if quoted.payload + 8 > outer.end {
        return Err(Skip::Truncated);
    }
    let ports: [u8; 4] = packet.load(quoted.payload).ok_or(Skip::Truncated)?;
    flow.tuple = Tuple {
        src: quoted.dst,
        dst: quoted.src,
        src_port_be: u16::from_ne_bytes([ports[2], ports[3]]),
        dst_port_be: u16::from_ne_bytes([ports[0], ports[1]]),
        protocol: quoted.protocol,
        zero: [0; 3],
    };
    flow.quoted_network = quote;
    flow.quoted_transport = quoted.payload;
    flow.kind = Kind::Error;
    Ok(())
}
