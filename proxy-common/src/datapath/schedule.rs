//! Which backend of a run a new connection gets, by the service's scheduler.
//!
//! None looks at more than a fixed number of slots, so the cost is the same for three backends and for
//! three thousand. Weights are in the run: a backend has as many slots as it says. Where the rule itself
//! compares weights they are read from the backends, if they differ.

use core::num::NonZeroU32;

use super::lookup::Tables;
use crate::abi::{Addr, Client, Counter, Scheduler, ServiceWord};

/// A question for [`pick`]. Numbers only: in the kernel it is asked of a function of its own, and before
/// Linux 5.13 such a one takes nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    pub service: u32,
    /// The service's: which slots, and by which rule.
    pub word: ServiceWord,
    /// [`hash_of_client`], where the rule asks for it.
    pub client: u64,
    /// [`hash_of`] what was dialled, where the rule asks for it.
    pub destination: u64,
    /// Not this backend, if there is another; 0: any.
    pub avoid: u32,
}

/// How often a backend that is passed over is replaced by another draw. With half of them out, one
/// connection in 256 is given to one of those.
const TRIES: u32 = 8;

/// How many backends are compared for the shortest queue: all, where there are no more.
pub const WINDOW: u32 = 16;

/// The fraction of the golden ratio: its multiples are far from one another.
pub const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The last step of splitmix64 (Steele, Lea, Flood 2014): every bit of the result depends on all.
#[inline(always)]
pub const fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The same on every node.
#[inline(always)]
pub fn hash_of(addr: &Addr) -> u64 {
    let [a, b, c, d] = addr.words;
    let high = (u32::from_be(a) as u64) << 32 | u32::from_be(b) as u64;
    let low = (u32::from_be(c) as u64) << 32 | u32::from_be(d) as u64;
    mix(mix(high.wrapping_add(STEP)) ^ low)
}

/// The same on every node, for packets; pods and nodes themselves are on one node only.
#[inline(always)]
pub fn hash_of_client(client: &Client) -> u64 {
    mix(hash_of(&client.addr) ^ client.netns)
}

impl Scheduler {
    /// Whether it asks who dials, or what.
    #[inline(always)]
    pub const fn looks_at_addresses(self) -> bool {
        matches!(
            self,
            Self::SourceHash | Self::DestinationHash | Self::Maglev
        )
    }
}

/// A number below `count`, as many for each.
#[inline(always)]
fn below(count: NonZeroU32, hash: u64) -> u32 {
    (hash >> 32) as u32 % count
}

/// The id of a backend for a new connection; 0 if the tables are damaged.
#[inline(always)]
pub fn pick(tables: &impl Tables, draw: &Draw) -> u32 {
    let word = draw.word;
    let Some(count) = NonZeroU32::new(word.count()) else {
        return 0;
    };
    let scheduler = word.scheduler();
    if matches!(scheduler, Scheduler::ShortestDelay | Scheduler::NeverQueue) {
        return shortest(tables, draw, count);
    }
    let seed = match scheduler {
        Scheduler::SourceHash | Scheduler::Maglev => draw.client,
        Scheduler::DestinationHash => draw.destination,
        Scheduler::RoundRobin => tables
            .service_stats(draw.service)
            .map_or(0, |stats| stats.connections),
        Scheduler::Random
        | Scheduler::LeastConnections
        | Scheduler::ShortestDelay
        | Scheduler::NeverQueue => tables.random() as u64,
    };
    let compares = matches!(scheduler, Scheduler::LeastConnections) && count.get() > 1;
    let mut first = 0;
    let mut attempt = 0;
    while attempt < TRIES {
        let index = if matches!(scheduler, Scheduler::RoundRobin) {
            below(count, seed.wrapping_add(attempt as u64) << 32)
        } else {
            below(
                count,
                mix(seed.wrapping_add(STEP.wrapping_mul(attempt as u64))),
            )
        };
        let mut id = in_slot(tables, word, index);
        let mut burden = tables.burden(draw, id);
        if compares {
            let other = in_slot(tables, word, another(count, index, seed, attempt));
            let its = tables.burden(draw, other);
            if its < burden {
                (id, burden) = (other, its);
            }
        }
        if burden != PASSED_OVER {
            return id;
        }
        if first == 0 {
            first = id;
        }
        attempt += 1;
    }
    first
}

/// A slot beside `index`, each with equal probability.
#[inline(always)]
fn another(count: NonZeroU32, index: u32, seed: u64, attempt: u32) -> u32 {
    let Some(others) = NonZeroU32::new(count.get() - 1) else {
        return index;
    };
    let hash = mix(!seed.wrapping_add(STEP.wrapping_mul(attempt as u64)));
    (index + 1 + below(others, hash)) % count
}

#[inline(always)]
fn in_slot(tables: &impl Tables, word: ServiceWord, index: u32) -> u32 {
    let id = tables.slot(word.first_slot().wrapping_add(index));
    id.unwrap_or(0)
}

/// What [`burden`] says of a backend that is not to be taken, if there is another.
pub const PASSED_OVER: u64 = u64::MAX;

/// How much a backend has to do, for its weight, beside the others of its service: connections that live
/// and, where the rule says so, the one that is to come. 0 is idle. In fixed point, so that two of them can be
/// compared as they are.
///
/// In the kernel this is a function of its own, or the verifier would go through all that can come of it once
/// for each slot that is looked at.
#[inline(always)]
pub fn burden(tables: &impl Tables, draw: &Draw, id: u32) -> u64 {
    let word = draw.word;
    if is_passed_over(tables, word, id, draw.avoid) {
        return PASSED_OVER;
    }
    let scheduler = word.scheduler();
    let one_more = match scheduler {
        Scheduler::ShortestDelay | Scheduler::NeverQueue => 1,
        Scheduler::LeastConnections => 0,
        Scheduler::Random
        | Scheduler::RoundRobin
        | Scheduler::SourceHash
        | Scheduler::DestinationHash
        | Scheduler::Maglev => return 0,
    };
    let active = tables.backend_stats(id).map_or(0, |stats| stats.active);
    let active = if active < 0 { 0 } else { active as u64 };
    if active == 0 && matches!(scheduler, Scheduler::NeverQueue) {
        return 0;
    }
    let weight = if word.is_weighted() {
        tables.backend(id).map_or(1, |backend| backend.weight)
    } else {
        1
    };
    let weight = if weight == 0 { 1 } else { weight as u64 };
    ((active + one_more) << 16) / weight
}

/// As `ip_vs_sed.c` and `ip_vs_nq.c`, over [`WINDOW`] slots from anywhere on.
#[inline(always)]
fn shortest(tables: &impl Tables, draw: &Draw, count: NonZeroU32) -> u32 {
    let start = tables.random() % count;
    let (mut best, mut least) = (0, PASSED_OVER);
    let mut at = 0;
    while at < WINDOW && at < count.get() {
        let id = in_slot(tables, draw.word, (start + at) % count);
        let burden = tables.burden(draw, id);
        if burden == 0 {
            return id;
        }
        if best == 0 || burden < least {
            (best, least) = (id, burden);
        }
        at += 1;
    }
    best
}

/// Whether another is to be taken, if there is one: it is `avoid`, or has failed of late. That is counted.
#[inline(always)]
pub fn is_passed_over(tables: &impl Tables, word: ServiceWord, id: u32, avoid: u32) -> bool {
    if avoid != 0 && id == avoid {
        return true;
    }
    if !word.fails_over() {
        return false;
    }
    let Some(stats) = tables.backend_stats(id) else {
        return false;
    };
    let until_ns = stats.passed_over_until_ns;
    // The clock is read only if there is something to compare it with.
    if until_ns == 0 || (tables.now_ns() >= until_ns && is_tried(tables, stats.failures)) {
        return false;
    }
    tables.count(Counter::BackendPassedOver);
    true
}

/// Of the connections that a backend would get, one in so many tries it after its time, until one is answered.
/// What would be dialled within the second in which the first of them fails is not to fail with it.
const TRIAL: u32 = 16;

/// Whether this connection tries a backend whose time is over.
#[inline(always)]
fn is_tried(tables: &impl Tables, failures: u32) -> bool {
    failures == 0 || tables.random().is_multiple_of(TRIAL)
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
