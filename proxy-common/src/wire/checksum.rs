//! The Internet checksum, changed by what changed (RFC 1624), never summed anew.
//!
//! Sums don't depend on byte order (RFC 1071 §2 B), so words are added as they lie in memory.

/// By how much a sum changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Diff(pub u32);

/// With the carry from the top at the bottom; no branch, for the verifier's sake.
#[inline(always)]
const fn add(a: u32, b: u32) -> u32 {
    let sum = a as u64 + b as u64;
    (sum & 0xffff_ffff) as u32 + (sum >> 32) as u32
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

/// What to put into a checksum field so that a region's sum is the same whether a device fills the
/// field in or not; `rest` is the sum of the region without the field.
///
/// Filled in, the field makes the region sum up to the complement of what the field was, `-f`; not
/// filled in, to `rest + f`. So `2 f = -rest`, and 2 divides everything modulo 65535: by a rotation.
#[inline(always)]
pub const fn steady(rest: Diff) -> u16 {
    fold(rest.0).rotate_right(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum of words of two bytes, modulo 65535.
    fn sum(bytes: &[u8]) -> u64 {
        let words = bytes
            .chunks(2)
            .map(|pair| u64::from(pair[0]) * 256 + pair.get(1).copied().map_or(0, u64::from));
        words.sum::<u64>() % 65_535
    }

    /// What a device does that is told to fill in a checksum at `place` (skb_checksum_help).
    fn fill_in(bytes: &mut [u8], place: usize) {
        let checksum = !u16::try_from(sum(bytes)).unwrap();
        let checksum = if checksum == 0 { 0xffff } else { checksum };
        bytes[place..place + 2].copy_from_slice(&checksum.to_be_bytes());
    }

    #[test]
    fn a_steady_field_keeps_the_sum_when_a_device_fills_it_in() {
        let mut state = 1_u32;
        for length in (8..600).chain([8; 2000]) {
            let mut bytes: Vec<u8> = (0..length)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    state.to_be_bytes()[0]
                })
                .collect();
            if length % 7 == 0 {
                bytes.fill(if length % 2 == 0 { 0 } else { 0xff });
            }
            bytes[6..8].fill(0);
            let rest = Diff(bytes.chunks(4).fold(0, |sum, word| {
                let mut padded = [0; 4];
                padded[..word.len()].copy_from_slice(word);
                add(sum, u32::from_ne_bytes(padded))
            }));
            bytes[6..8].copy_from_slice(&steady(rest).to_ne_bytes());
            let before = sum(&bytes);
            fill_in(&mut bytes, 6);
            assert_eq!(sum(&bytes), before, "{bytes:02x?}");
        }
    }
}
