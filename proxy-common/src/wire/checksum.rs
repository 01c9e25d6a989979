//! The Internet checksum, changed by what changed (RFC 1624), never summed anew.
//!
//! Sums don't depend on byte order (RFC 1071 §2 B), so words are added as they lie in memory.

/// By how much a sum changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Diff(pub u32);

#[inline(always)]
const fn add(a: u32, b: u32) -> u32 {
    let (sum, carry) = a.overflowing_add(b);
    sum + carry as u32
}

impl Diff {
    pub const NONE: Self = Self(0);

    /// Four bytes at an even offset become others.
    #[inline(always)]
    pub const fn word(self, from: u32, to: u32) -> Self {
        Self(add(add(self.0, !from), to))
    }

    /// Two bytes at an even offset become others.
    #[inline(always)]
    pub const fn half(self, from: u16, to: u16) -> Self {
        self.word(from as u32, to as u32)
    }

    #[inline(always)]
    pub const fn words(self, from: &[u32; 4], to: &[u32; 4]) -> Self {
        self.word(from[0], to[0])
            .word(from[1], to[1])
            .word(from[2], to[2])
            .word(from[3], to[3])
    }

    #[inline(always)]
    pub const fn and(self, other: Self) -> Self {
        Self(add(self.0, other.0))
    }
}

/// The complement of a sum, in 16 bits.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) as u16)
}

/// The checksum after the change; the same arithmetic as the kernel's `csum_replace_by_diff`.
#[inline(always)]
pub const fn updated(checksum: u16, diff: Diff) -> u16 {
    fold(add(diff.0, !(checksum as u32)))
}

/// The sum of a pseudo header that a device goes on from, after the change.
#[inline(always)]
pub const fn updated_partial(sum: u16, diff: Diff) -> u16 {
    !fold(add(diff.0, sum as u32))
}
