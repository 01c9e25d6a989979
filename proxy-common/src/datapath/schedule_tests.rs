use std::{collections::HashMap, vec::Vec};

use super::*;
use crate::{
    abi::{Backend, BackendStats, ServiceStats, SockAddr},
    datapath::{
        fake::{Maps, backend},
        lookup::{Visit, account, choose},
        traced::{Lookup, Traced},
    },
};

const SERVICE: u32 = 1;
const FIRST_SLOT: u32 = 100;

/// Backends 1 to n, with these weights, each in one slot of the run.
fn world(scheduler: Scheduler, weights: &[u16]) -> Maps {
    let mut maps = Maps::default();
    for (id, weight) in (1..).zip(weights) {
        let addr = Addr::from_v4_word(u32::to_be(0x0a00_0000 + id));
        let backend = Backend {
            weight: *weight,
            ..backend(SockAddr::from_parts(addr, 8080_u16.to_be()), SERVICE)
        };
        maps.backends.insert(id, backend);
        maps.slots.insert(FIRST_SLOT + id - 1, id);
    }
    let count = u32::try_from(weights.len()).unwrap();
    let is_weighted = weights.iter().any(|weight| *weight != 1);
    let word =
        ServiceWord::with_backends(FIRST_SLOT, count).scheduled(scheduler, true, is_weighted);
    maps.services.insert(SERVICE, word.into());
    maps
}

fn client(number: u32) -> Addr {
    Addr::from_v4_word((0xc000_0000 + number).to_be())
}

/// A connection of `from` to `to`, counted as the hooks count it.
fn connect(maps: &Maps, from: Addr, to: Addr, avoid: u32) -> u32 {
    let visit = || Visit {
        client: Client::of_packet(from),
        dialled: &to,
        now_ns: maps.now_ns.get(),
    };
    let choice = choose(maps, SERVICE, avoid, visit).unwrap();
    account(maps, Counter::PacketNewFlow, SERVICE, choice.backend_id);
    maps.add_active(choice.backend_id, 1);
    choice.backend_id
}

/// How many of `many` connections, each of another client, each backend got.
fn spread(maps: &Maps, many: u32) -> HashMap<u32, u32> {
    let mut got = HashMap::new();
    for number in 0..many {
        *got.entry(connect(maps, client(number), client(0), 0))
            .or_default() += 1;
    }
    got
}

fn active(maps: &Maps) -> Vec<i64> {
    let stats = maps.backend_stats.borrow();
    let ids = 1..=u32::try_from(maps.backends.len()).unwrap();
    ids.map(|id| stats.get(&id).map_or(0, |stats| stats.active))
        .collect()
}

/// The difference between the most and the least.
fn range(numbers: &[i64]) -> i64 {
    numbers.iter().max().unwrap() - numbers.iter().min().unwrap()
}

/// Pearson's statistic against equal shares.
fn chi_squared(got: &HashMap<u32, u32>, backends: u32, many: u32) -> f64 {
    let expected = f64::from(many) / f64::from(backends);
    (1..=backends)
        .map(|id| (f64::from(got.get(&id).copied().unwrap_or(0)) - expected).powi(2) / expected)
        .sum()
}

fn pass_over(maps: &Maps, ids: impl IntoIterator<Item = u32>, until_ns: u64) {
    for id in ids {
        let mut stats = maps.backend_stats.borrow_mut();
        stats.entry(id).or_default().passed_over_until_ns = until_ns;
    }
}

/// 99.99 % of all samples of ten equal shares are below (9 degrees of freedom); the generator's seed is fixed.
const CHI_SQUARED_9: f64 = 33.7;

#[test]
fn random_and_the_hashes_give_clients_equal_shares() {
    for scheduler in [Scheduler::Random, Scheduler::SourceHash, Scheduler::Maglev] {
        let maps = world(scheduler, &[1; 10]);
        let statistic = chi_squared(&spread(&maps, 50_000), 10, 50_000);
        assert!(statistic < CHI_SQUARED_9, "{scheduler:?}: {statistic}");
    }
}

#[test]
fn destination_hash_gives_addresses_equal_shares_and_each_one_backend() {
    let maps = world(Scheduler::DestinationHash, &[1; 10]);
    let mut got = HashMap::new();
    for number in 0..50_000 {
        let id = connect(&maps, client(number), client(number), 0);
        assert_eq!(connect(&maps, client(1), client(number), 0), id);
        *got.entry(id).or_default() += 1;
    }
    let statistic = chi_squared(&got, 10, 50_000);
    assert!(statistic < CHI_SQUARED_9, "{statistic}");
}

#[test]
fn round_robin_takes_one_after_the_other() {
    let maps = world(Scheduler::RoundRobin, &[1; 7]);
    let taken: Vec<u32> = (0..700)
        .map(|_| connect(&maps, client(1), client(0), 0))
        .collect();
    let expected: Vec<u32> = (0..700).map(|turn| turn % 7 + 1).collect();
    assert_eq!(taken, expected);
}

#[test]
fn a_client_keeps_its_backend_by_source_hash_and_maglev_whatever_it_dials() {
    for scheduler in [Scheduler::SourceHash, Scheduler::Maglev] {
        let maps = world(scheduler, &[1; 10]);
        for number in 0..100 {
            let id = connect(&maps, client(number), client(7), 0);
            for to in 0..10 {
                assert_eq!(connect(&maps, client(number), client(to), 0), id);
            }
        }
    }
}

/// Mitzenmacher 1996: with the less busy of two the fullest of n bins is log log n above the mean, with any of
/// n it is some deviations above.
#[test]
fn least_connections_keeps_backends_within_a_few_connections_of_one_another() {
    let [random, least] = [Scheduler::Random, Scheduler::LeastConnections].map(|scheduler| {
        let maps = world(scheduler, &[1; 20]);
        spread(&maps, 20_000);
        range(&active(&maps))
    });
    assert!(least <= 8, "{least}");
    assert!(random >= 60, "{random}");
}

#[test]
fn least_connections_takes_the_less_busy_of_two() {
    let maps = world(Scheduler::LeastConnections, &[1; 2]);
    for _ in 0..1000 {
        connect(&maps, client(1), client(0), 0);
        assert!(range(&active(&maps)) <= 1, "{:?}", active(&maps));
    }
}

#[test]
fn least_connections_goes_by_weight() {
    let maps = world(Scheduler::LeastConnections, &[1, 3]);
    for _ in 0..1000 {
        connect(&maps, client(1), client(0), 0);
    }
    assert_eq!(active(&maps), [250, 750]);
}

/// Every backend is looked at, in exact fractions.
fn shortest_of_all(active: &[i64], weights: &[u16]) -> Vec<u32> {
    let delay = |i: usize| (active[i] + 1, i64::from(weights[i]));
    let is_shorter = |a: (i64, i64), b: (i64, i64)| a.0 * b.1 < b.0 * a.1;
    let is_best = |i: &usize| (0..active.len()).all(|other| !is_shorter(delay(other), delay(*i)));
    let best = (0..active.len()).filter(is_best);
    best.map(|i| u32::try_from(i + 1).unwrap()).collect()
}

#[test]
fn shortest_delay_is_that_of_all_where_there_are_no_more_than_the_window() {
    let weights = [1, 2, 5, 1, 3, 10, 1, 1, 4, 2, 2, 1, 7, 1, 1, 1];
    let maps = world(Scheduler::ShortestDelay, &weights);
    for number in 0..2000 {
        let allowed = shortest_of_all(&active(&maps), &weights);
        let id = connect(&maps, client(number), client(0), 0);
        assert!(allowed.contains(&id), "{id} is none of {allowed:?}");
        // Connections end, too.
        let busy = active(&maps).iter().position(|active| *active > 20);
        if let Some(busy) = busy {
            maps.add_active(u32::try_from(busy + 1).unwrap(), -15);
        }
    }
}

#[test]
fn never_queue_takes_an_idle_backend_before_a_strong_one() {
    let weights = [100, 1, 1, 1, 1, 1, 1, 1, 1, 1];
    let maps = world(Scheduler::NeverQueue, &weights);
    for round in 0..10 {
        let idle: Vec<usize> = (0..10).filter(|i| active(&maps)[*i] == 0).collect();
        assert_eq!(idle.len(), 10 - round);
        let id = connect(&maps, client(1), client(0), 0);
        assert!(idle.contains(&(id as usize - 1)), "{id}");
    }
    for _ in 0..500 {
        let allowed = shortest_of_all(&active(&maps), &weights);
        let id = connect(&maps, client(1), client(0), 0);
        assert!(allowed.contains(&id), "{id} is none of {allowed:?}");
    }
}

#[test]
fn a_backend_that_is_passed_over_gets_nothing_until_its_time_is_over() {
    for scheduler in Scheduler::ALL {
        let maps = world(scheduler, &[1; 10]);
        maps.now_ns.set(1000);
        pass_over(&maps, [3], 2000);
        let mut got = HashMap::new();
        for number in 0..5000 {
            // As many addresses as there are clients, for the scheduler that goes by them.
            let id = connect(&maps, client(number), client(number), 0);
            *got.entry(id).or_insert(0) += 1;
        }
        // All of eight draws: one in 10^8.
        assert_eq!(got.get(&3), None, "{scheduler:?}");
        assert_eq!(got.len(), 9, "{scheduler:?}");
        if scheduler != Scheduler::NeverQueue && scheduler != Scheduler::ShortestDelay {
            assert!(maps.counter(Counter::BackendPassedOver) > 100);
        }
        maps.now_ns.set(2000);
        let back = (0..5000).filter(|number| {
            let id = connect(&maps, client(*number), client(*number), 0);
            maps.add_active(id, -1);
            id == 3
        });
        assert!(back.count() > 100, "{scheduler:?}");
    }
}

#[test]
fn a_backend_whose_time_is_over_is_tried_by_few_until_one_is_answered() {
    for scheduler in Scheduler::ALL {
        let maps = world(scheduler, &[1; 10]);
        maps.now_ns.set(2000);
        pass_over(&maps, [3], 1000);
        let tried = |failures| {
            maps.backend_stats
                .borrow_mut()
                .entry(3)
                .or_default()
                .failures = failures;
            let gets = |number: &u32| {
                let id = connect(&maps, client(*number), client(*number), 0);
                maps.add_active(id, -1);
                id == 3
            };
            (0..16_000).filter(gets).count()
        };
        // Expected are 100 of 16,000, and a tenth.
        let (few, all) = (tried(5), tried(0));
        assert!((40..400).contains(&few), "{scheduler:?}: {few}");
        assert!(all > 1000, "{scheduler:?}: {all}");
    }
}

#[test]
fn with_half_of_the_backends_out_one_connection_in_a_hundred_meets_them_at_most() {
    for scheduler in Scheduler::ALL {
        let maps = world(scheduler, &[1; 10]);
        pass_over(&maps, 1..=5, 1000);
        let out =
            (0..20_000).filter(|number| connect(&maps, client(*number), client(*number), 0) <= 5);
        // Expected are 2^-8, 78.
        assert!(out.count() < 140, "{scheduler:?}");
    }
}

#[test]
fn where_all_are_passed_over_somebody_is_served_all_the_same() {
    for scheduler in Scheduler::ALL {
        let maps = world(scheduler, &[1; 3]);
        pass_over(&maps, 1..=3, 1000);
        assert!((1..=3).contains(&connect(&maps, client(1), client(0), 0)));
    }
}

#[test]
fn nobody_is_passed_over_where_the_service_does_not_fail_over() {
    let mut maps = world(Scheduler::Random, &[1; 2]);
    let word = ServiceWord::with_backends(FIRST_SLOT, 2);
    maps.services.insert(SERVICE, word.into());
    pass_over(&maps, [1], 1000);
    assert!(spread(&maps, 1000)[&1] > 400);
    assert_eq!(maps.counter(Counter::BackendPassedOver), 0);
}

#[test]
fn the_backend_to_avoid_is_taken_only_if_there_is_no_other() {
    for scheduler in Scheduler::ALL {
        let maps = world(scheduler, &[1; 10]);
        for number in 0..2000 {
            assert_ne!(connect(&maps, client(number), client(number), 4), 4);
        }
        let maps = world(scheduler, &[1]);
        assert_eq!(connect(&maps, client(1), client(0), 1), 1);
    }
}

#[test]
fn no_scheduler_looks_at_more_backends_where_there_are_more() {
    for scheduler in Scheduler::ALL {
        let slots = [20, 5000].map(|count| {
            let maps = world(scheduler, &std::vec![2; count]);
            let to = client(0);
            let traced = Traced::new(&maps);
            let visit = || Visit {
                client: Client::of_packet(client(1)),
                dialled: &to,
                now_ns: 0,
            };
            choose(&traced, SERVICE, 0, visit).unwrap();
            let lookups = traced.into_lookups();
            let slots = lookups
                .iter()
                .filter(|lookup| matches!(lookup, Lookup::Slot(..)));
            slots.count()
        });
        assert_eq!(slots[0], slots[1], "{scheduler:?}");
        assert!(slots[0] <= WINDOW as usize, "{scheduler:?}: {slots:?}");
    }
}

#[test]
fn a_count_below_nothing_is_nothing() {
    let maps = world(Scheduler::LeastConnections, &[1; 2]);
    let stats = BackendStats {
        active: -5,
        ..BackendStats::default()
    };
    maps.backend_stats.borrow_mut().insert(1, stats);
    maps.add_active(2, 1);
    let draw = Draw {
        service: SERVICE,
        word: maps.services[&SERVICE].word,
        client: 0,
        destination: 0,
        avoid: 0,
    };
    assert_eq!(burden(&maps, &draw, 1), 0);
    assert!(burden(&maps, &draw, 2) > 0);
}

/// Other nodes, and other builds, must come to the same numbers.
#[test]
fn hashes_of_addresses_are_what_they_were() {
    let v4: SockAddr = "192.0.2.1:80"
        .parse::<std::net::SocketAddr>()
        .unwrap()
        .into();
    let v6: SockAddr = "[2001:db8::1]:80"
        .parse::<std::net::SocketAddr>()
        .unwrap()
        .into();
    let hashes = [v4, v6].map(|at| hash_of_client(&Client::of_packet(at.addr)));
    assert_eq!(
        hashes,
        [11_597_830_021_446_571_728, 3_889_328_447_798_831_419]
    );
}

#[test]
fn counts_of_services_beyond_32_bits_go_on_round() {
    let maps = world(Scheduler::RoundRobin, &[1; 3]);
    let stats = ServiceStats {
        connections: u64::from(u32::MAX) + 1,
        failures: 0,
    };
    maps.service_stats.borrow_mut().insert(SERVICE, stats);
    assert_eq!(connect(&maps, client(1), client(0), 0), 1);
    assert_eq!(connect(&maps, client(1), client(0), 0), 2);
}
