//! The lookup table of Maglev (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load
//! Balancer", NSDI 2016, section 3.4): clients find their backend by `table[hash % size]`. It is made
//! of nothing but addresses, ports, turns and the size, so every node makes the same.
//!
//! Few clients move when a backend comes or goes, but only among tables of one size. So there are two,
//! and nearly every Service stays with the smaller one for ever.

use std::net::{IpAddr, SocketAddr};

use proxy_common::datapath::schedule::{STEP, mix};

use crate::hash::fnv_1a;

/// Primes, each the largest below a power of two: a run takes a power of two.
pub(super) const SIZES: [u32; 9] = [251, 509, 1021, 2039, 4093, 8191, 16_381, 32_749, 65_521];

/// What a Service should have: the first that is enough. The others are for where slots are few.
const WANTED: [u32; 2] = [2039, 65_521];

/// Entries for each turn: shares differ by one entry, 5 % at most.
const ENTRIES: usize = 20;

/// From the best one for so many turns to the smallest that has an entry for each; none if there are
/// more of them than any has.
pub(super) fn sizes(turns: usize) -> impl Iterator<Item = u32> {
    let is_enough = |size: &u32| *size as usize >= turns.saturating_mul(ENTRIES);
    let [_, largest] = WANTED;
    let best = WANTED.into_iter().find(is_enough).unwrap_or(largest);
    let holds = move |size: &u32| *size as usize >= turns && *size <= best;
    SIZES.iter().rev().copied().filter(holds)
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
    let port = backend.port().to_be_bytes();
    let seed = match backend.ip() {
        IpAddr::V4(ip) => fnv_1a(ip.octets().into_iter().chain(port)),
        IpAddr::V6(ip) => fnv_1a(ip.octets().into_iter().chain(port)),
    };
    [1, 2].map(|step| mix(seed.wrapping_add(STEP.wrapping_mul(step))))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, net::Ipv4Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::plan::tests::paper;

    /// That of the paper's measurements.
    const PAPER: u32 = 65_537;

    fn backends(count: u32) -> Vec<SocketAddr> {
        (0..count)
            .map(|number| SocketAddr::new(Ipv4Addr::from(0x0a01_0000 + number).into(), 8080))
            .collect()
    }

    fn in_turn(count: usize) -> Vec<u32> {
        (0..u32::try_from(count).unwrap()).collect()
    }

    /// Addresses, not indexes.
    fn entries(backends: &[SocketAddr], size: u32) -> Vec<SocketAddr> {
        table(backends, &in_turn(backends.len()), size)
            .into_iter()
            .map(|index| backends[index as usize])
            .collect()
    }

    #[test]
    fn sizes_are_the_largest_primes_below_powers_of_two() {
        let is_prime = |n: u32| {
            (2..n)
                .take_while(|d| d * d <= n)
                .all(|d| !n.is_multiple_of(d))
        };
        for size in SIZES {
            let power = size.next_power_of_two();
            assert!(is_prime(size) && !(size + 1..power).any(is_prime), "{size}");
        }
    }

    #[test]
    fn there_are_twenty_entries_for_each_turn_as_far_as_sizes_go() {
        let best = |turns| sizes(turns).next();
        assert_eq!((best(1), best(101)), (Some(2039), Some(2039)));
        assert_eq!((best(102), best(5000)), (Some(65_521), Some(65_521)));
        assert_eq!(sizes(30).collect::<Vec<_>>(), [2039, 1021, 509, 251]);
        assert_eq!(sizes(40_000).collect::<Vec<_>>(), [65_521]);
        assert_eq!(best(65_522), None);
    }

    /// Nodes of different versions must agree, too: an entry for each backend, once and for all.
    #[test]
    fn the_table_is_the_same_for_ever() {
        let mut backends = backends(3);
        backends.push("[fd00::7]:443".parse().unwrap());
        let table = table(&backends, &in_turn(4), 251);
        let first: Vec<u32> = table.into_iter().take(24).collect();
        let wanted = [
            2, 0, 3, 2, 2, 1, 0, 3, 3, 3, 0, 1, 3, 1, 2, 2, 0, 3, 2, 2, 1, 1, 3, 3,
        ];
        assert_eq!(first, wanted);
    }

    /// The paper, section 5.3: 1,000 backends have almost perfectly even shares. Whoever has one entry more
    /// than another differs by 1.5 % here, and by 1 % with 100 entries for each (section 3.4).
    #[test]
    fn a_thousand_backends_have_equal_shares() {
        let backends = backends(1000);
        let mut shares = vec![0_u32; backends.len()];
        for index in table(&backends, &in_turn(1000), PAPER) {
            shares[index as usize] += 1;
        }
        // 65.537 each.
        assert!(shares.iter().all(|share| [65, 66].contains(share)));
    }

    /// The paper, section 5.3: a few entries more change than those of the backends that go.
    #[test]
    fn few_clients_of_others_move_when_backends_go() {
        let all = backends(1000);
        let before = entries(&all, PAPER);
        // How many go, and what percentage of all entries changes at most besides theirs: measured
        // 0.6, 2.3, 3.3 and 3.5.
        for (gone, others_limit) in [(1, 1.0), (10, 3.0), (50, 4.0), (100, 5.0)] {
            let is_gone = |index: usize| index.is_multiple_of(1000 / gone);
            let left = all.iter().enumerate();
            let left: Vec<SocketAddr> = left
                .filter(|(index, _)| !is_gone(*index))
                .map(|(_, backend)| *backend)
                .collect();
            assert_eq!(left.len(), 1000 - gone);
            let there: BTreeSet<&SocketAddr> = left.iter().collect();
            let after = entries(&left, PAPER);
            let moved = before
                .iter()
                .zip(&after)
                .filter(|(before, after)| before != after && there.contains(before))
                .count();
            let percent = 100.0 * moved as f64 / f64::from(PAPER);
            assert!(percent < others_limit, "{gone} of 1000 go: {percent} %");
        }
    }

    #[test]
    fn one_of_few_that_goes_moves_few_clients_of_the_others() {
        for count in [2, 3, 5, 6, 10, 11, 21, 41, 82, 101] {
            let all = backends(count);
            let size = sizes(all.len()).next().unwrap();
            let before = entries(&all, size);
            for gone in &all {
                let left: Vec<SocketAddr> = all.iter().copied().filter(|b| b != gone).collect();
                let after = entries(&left, size);
                let moved = before.iter().zip(&after);
                let moved = moved.filter(|(b, a)| b != a && *b != gone).count();
                assert!(
                    moved * 20 <= size as usize,
                    "{moved} of {size}, {gone} of {count}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn it_is_the_table_of_the_paper(
            set in prop::collection::btree_set((any::<[u8; 4]>(), any::<bool>(), 1u16..4), 1..30),
            weights in prop::collection::vec(1u32..5, 30),
        ) {
            let mut backends: Vec<SocketAddr> = set
                .into_iter()
                .map(|(ip, is_v6, port)| {
                    let ip = Ipv4Addr::from(ip);
                    let v6 = IpAddr::V6(ip.to_ipv6_mapped());
                    SocketAddr::new(if is_v6 { v6 } else { ip.into() }, port)
                })
                .collect();
            backends.sort_unstable();
            let weights = &weights[..backends.len()];
            let turns = super::super::run::interleaved(weights);
            for size in [251, 1021] {
                let table = table(&backends, &turns, size);
                let paper = paper::table(&backends, weights, size.into());
                let table: Vec<Option<usize>> = table.into_iter().map(|i| Some(i as usize)).collect();
                prop_assert_eq!(table, paper);
            }
        }
    }
}
