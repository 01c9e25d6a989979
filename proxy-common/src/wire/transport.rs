//! Ports, and where transport protocols keep what a translation changes.

/// Bits of the flags byte of TCP.
pub mod tcp {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
    /// Offset of the checksum.
    pub const CHECKSUM: u32 = 16;
    pub const LENGTH: u32 = 20;
}

pub mod udp {
    /// Offset of the checksum.
    pub const CHECKSUM: u32 = 6;
    pub const LENGTH: u32 = 8;
}

pub mod sctp {
    /// Offset of the checksum, a little-endian CRC32c over header and chunks.
    pub const CHECKSUM: u32 = 8;
    pub const LENGTH: u32 = 12;
}
