//! Hashes. Tables of what is looked up for every event: their hash is quicker than the standard library's, and as
//! random: nobody who names objects knows which of them collide.

use foldhash::fast::RandomState;

pub(crate) type HashMap<K, V> = std::collections::HashMap<K, V, RandomState>;
pub(crate) type HashSet<T> = std::collections::HashSet<T, RandomState>;

/// The 64-bit hash of Fowler, Noll and Vo: for what must be the same on every node and after every
/// restart.
pub(crate) fn fnv_1a(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_that_of_the_reference() {
        // From the tables of draft-eastlake-fnv.
        assert_eq!(fnv_1a("foobar".bytes()), 0x8594_4171_f739_67e8);
    }
}
