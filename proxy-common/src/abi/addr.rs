use super::layout::abi_struct;

/// An IPv6 address in network byte order; an IPv4 address is its IPv4-mapped form (RFC 4291 §2.5.5.2).
///
/// One form for both families means one set of maps, and that a v6 socket dialling `::ffff:a.b.c.d`
/// needs no case of its own: on the wire it *is* IPv4.
#[repr(C)]
#[derive(Clone, Copy, Default, Hash)]
#[expect(
    clippy::derived_hash_with_manual_eq,
    reason = "the written-out comparison below is the one that would be derived"
)]
pub struct Addr {
    /// As they lie in memory: `words[0]` is the first four bytes of the address.
    pub words: [u32; 4],
}

/// Third word of every IPv4-mapped address, `::ffff:0:0`.
const V4_PREFIX: u32 = 0xffff_u32.to_be();

impl Addr {
    /// `word` as it lies in memory (`bpf_sock_addr.user_ip4`).
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self {
            words: [0, 0, V4_PREFIX, word],
        }
    }

    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == V4_PREFIX
    }

    pub const V4_LOOPBACK: Self = Self::from_v4_word(0x7f00_0001_u32.to_be());
    pub const V6_LOOPBACK: Self = Self {
        words: [0, 0, 0, 1_u32.to_be()],
    };

    /// `0.0.0.0` or `::`.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.words[0] == 0
            && self.words[1] == 0
            && self.words[3] == 0
            && (self.words[2] == 0 || self.words[2] == V4_PREFIX)
    }

    /// The loopback address of the same family.
    #[inline(always)]
    pub const fn loopback_like(&self) -> Self {
        if self.is_v4() {
            Self::V4_LOOPBACK
        } else {
            Self::V6_LOOPBACK
        }
    }
}

// Word by word, because a call to memcmp is something the verifier would have to walk through.
impl PartialEq for Addr {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        self.words[0] == other.words[0]
            && self.words[1] == other.words[1]
            && self.words[2] == other.words[2]
            && self.words[3] == other.words[3]
    }
}

impl Eq for Addr {}

abi_struct! {
    /// An address and a port, without a protocol.
    pub struct SockAddr {
        pub addr: Addr,
        /// In network byte order as it lies in memory.
        pub port_be: u16,
        /// Always 0.
        pub zero: u16,
    }
}

impl SockAddr {
    /// No address: all zeroes.
    pub const NONE: Self = Self {
        addr: Addr { words: [0; 4] },
        port_be: 0,
        zero: 0,
    };

    #[inline(always)]
    pub const fn from_parts(addr: Addr, port_be: u16) -> Self {
        Self {
            addr,
            port_be,
            zero: 0,
        }
    }

    /// Where a UDP socket is parked whose Service has no backend: nobody serves tcpmux by UDP (and
    /// only root could), so the kernel answers every datagram with "refused". Port 0 would be closed
    /// for certain, but a peer with port 0 counts as none: getpeername() fails with ENOTCONN, and
    /// send() of an IPv6 socket to a mapped address with EINVAL.
    #[inline(always)]
    pub const fn parked(like: &Addr) -> Self {
        Self::from_parts(like.loopback_like(), 1_u16.to_be())
    }

    /// Where nothing can listen: who dials this by TCP is refused.
    #[inline(always)]
    pub const fn closed(like: &Addr) -> Self {
        Self::from_parts(like.loopback_like(), 0)
    }
}

#[cfg(any(test, feature = "std"))]
mod host {
    use core::fmt;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

    use super::{Addr, SockAddr};

    impl From<IpAddr> for Addr {
        fn from(ip: IpAddr) -> Self {
            let octets = match ip {
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                IpAddr::V6(v6) => v6,
            }
            .octets();
            let word = |i: usize| {
                u32::from_ne_bytes([octets[i], octets[i + 1], octets[i + 2], octets[i + 3]])
            };
            Self {
                words: [word(0), word(4), word(8), word(12)],
            }
        }
    }

    impl From<Ipv4Addr> for Addr {
        fn from(ip: Ipv4Addr) -> Self {
            IpAddr::V4(ip).into()
        }
    }

    impl From<Ipv6Addr> for Addr {
        fn from(ip: Ipv6Addr) -> Self {
            IpAddr::V6(ip).into()
        }
    }

    impl Addr {
        /// IPv4 for the mapped form.
        pub fn ip(&self) -> IpAddr {
            let mut octets = [0u8; 16];
            for (chunk, word) in octets.chunks_exact_mut(4).zip(self.words) {
                chunk.copy_from_slice(&word.to_ne_bytes());
            }
            IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()
        }
    }

    impl fmt::Debug for Addr {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            fmt::Display::fmt(self, f)
        }
    }

    impl fmt::Display for Addr {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            fmt::Display::fmt(&self.ip(), f)
        }
    }

    impl From<SocketAddr> for SockAddr {
        fn from(addr: SocketAddr) -> Self {
            Self::from_parts(addr.ip().into(), addr.port().to_be())
        }
    }

    impl SockAddr {
        pub fn socket_addr(&self) -> SocketAddr {
            SocketAddr::new(self.addr.ip(), u16::from_be(self.port_be))
        }
    }

    impl fmt::Display for SockAddr {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            fmt::Display::fmt(&self.socket_addr(), f)
        }
    }
}

#[cfg(not(any(test, feature = "std")))]
impl core::fmt::Debug for Addr {
    fn fmt(&self, _: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use super::*;

    #[test]
    fn an_ipv4_address_and_its_mapped_form_are_one_key() {
        let v4: IpAddr = "10.96.0.10".parse().unwrap();
        let mapped: IpAddr = "::ffff:10.96.0.10".parse().unwrap();
        assert_eq!(Addr::from(v4), Addr::from(mapped));
        assert!(Addr::from(v4).is_v4());
        assert_eq!(Addr::from(mapped).ip(), v4);
    }

    #[test]
    fn a_word_from_the_kernel_is_the_same_address() {
        let ip: std::net::Ipv4Addr = "10.96.0.10".parse().unwrap();
        let word = u32::from_ne_bytes(ip.octets());
        assert_eq!(Addr::from_v4_word(word), Addr::from(ip));
    }

    #[test]
    fn sockets_are_parked_on_the_loopback_of_their_family() {
        let park = |ip: &str| SockAddr::parked(&Addr::from(ip.parse::<IpAddr>().unwrap()));
        assert_eq!(
            park("10.0.0.1").socket_addr(),
            "127.0.0.1:1".parse().unwrap()
        );
        assert_eq!(park("fd00::1").socket_addr(), "[::1]:1".parse().unwrap());
    }

    #[test]
    fn a_socket_address_survives_its_bytes() {
        for text in ["1.2.3.4:80", "[fd00::1]:65535"] {
            let addr: SocketAddr = text.parse().unwrap();
            let bytes = SockAddr::from(addr).to_bytes();
            assert_eq!(SockAddr::from_bytes(bytes).socket_addr(), addr);
        }
    }
}
