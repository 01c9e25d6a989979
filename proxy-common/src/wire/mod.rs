//! Packets: reaching their bytes, reading what they are, keeping their checksums true.

#[cfg(any(test, feature = "std"))]
pub mod bytes;
pub mod checksum;
pub mod crc32c;
pub mod icmp;
pub mod link;
pub mod network;
pub mod packet;
pub mod transport;

/// Why a packet is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Skip {
    /// Neither IPv4 nor IPv6.
    NotIp,
    /// Nothing that a Service carries, and no error about it.
    Protocol,
    /// Its route is not finished: the destination is not the last one.
    SourceRouted,
    /// It ends before its headers do.
    Truncated,
    /// The version in the header is not the one announced.
    Version,
    /// A length that can't be.
    Length,
    /// More IPv6 extension headers, or longer ones, than are looked at.
    Headers,
    /// An IPv4-mapped address in an IPv6 header: never seen on a wire (RFC 4291 leaves it to hosts),
    /// and it would be taken for IPv4.
    MappedAddress,
}

impl Skip {
    /// Whether the packet is damaged, not merely foreign.
    #[inline(always)]
    pub const fn is_malformed(self) -> bool {
        match self {
            Self::NotIp | Self::Protocol | Self::SourceRouted => false,
            Self::Truncated
            | Self::Version
            | Self::Length
            | Self::Headers
            | Self::MappedAddress => true,
        }
    }
}
