//! The lookup table of Maglev (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load
//! Balancer", NSDI 2016, section 3.4): clients find their backend by `table[hash % size]`. It is made
//! of nothing but addresses, ports, turns and the size, so every node makes the same.

use std::net::{IpAddr, SocketAddr};

use crate::hash::fnv_1a;

/// Primes, each the largest below a power of two: a run takes a power of two.
pub(super) const SIZES: [u32; 9] = [251, 509, 1021, 2039, 4093, 8191, 16_381, 32_749, 65_521];

/// Entries for each turn: shares differ by 1 % at most.
const ENTRIES: usize = 100;

/// From the best one for so many turns to the smallest that has an entry for each; none if there are
/// more of them than any has.
pub(super) fn sizes(turns: usize) -> impl Iterator<Item = u32> {
    let is_enough = |size: u32| size as usize >= turns.saturating_mul(ENTRIES);
    let best = SIZES.iter().position(|size| is_enough(*size));
    let upto = best.unwrap_or(SIZES.len() - 1);
    let holds = move |size: &u32| *size as usize >= turns;
    SIZES[..=upto].iter().rev().copied().filter(holds)
}

/// `size` entries, each an index of `backends`. `size`: a prime, at least as many as `turns`. `turns`:
/// whose turn it is to choose an entry, as indexes, over and over.
pub(super) fn table(backends: &[SocketAddr], turns: &[u32], size: u32) -> Vec<u32> {
    const FREE: u32 = u32::MAX;
    let mut table = vec![FREE; size as usize];
    let mut next: Vec<Preferences> = backends
        .iter()
        .map(|backend| Preferences::of(backend, size))
        .collect();
    for turn in turns.iter().cycle().take(size as usize) {
        let preferences = &mut next[*turn as usize];
        loop {
            let entry = &mut table[preferences.at as usize];
            preferences.advance(size);
            if *entry == FREE {
                *entry = *turn;
                break;
            }
        }
    }
    table
}

/// In which order a backend wants entries: each once.
struct Preferences {
    at: u32,
    skip: u32,
}

impl Preferences {
    fn of(backend: &SocketAddr, size: u32) -> Self {
        let [offset, skip] = numbers_of(backend);
        let below = |number: u64, limit: u32| {
            u32::try_from(number % u64::from(limit)).expect("less than the limit")
        };
        Self {
            at: below(offset, size),
            skip: below(skip, size - 1) + 1,
        }
    }

    fn advance(&mut self, size: u32) {
        self.at += self.skip;
        if self.at >= size {
            self.at -= size;
        }
    }
}

/// Two numbers of a backend: the first two that SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) gives
/// when it begins with the FNV-1a hash of the address (4 or 16 bytes, as on the wire) and the port (2
/// bytes). FNV alone gives neighbours neighbouring numbers.
fn numbers_of(backend: &SocketAddr) -> [u64; 2] {
    const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
    let port = backend.port().to_be_bytes();
    let seed = match backend.ip() {
        IpAddr::V4(ip) => fnv_1a(ip.octets().into_iter().chain(port)),
        IpAddr::V6(ip) => fnv_1a(ip.octets().into_iter().chain(port)),
    };
    [1, 2].map(|step| mixed(seed.wrapping_add(GAMMA.wrapping_mul(step))))
}

fn mixed(mut number: u64) -> u64 {
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
