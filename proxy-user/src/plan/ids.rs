//! Who may use which element of the id-indexed maps.

use std::collections::{BTreeMap, BTreeSet};

use proxy_common::abi::map;

/// There is no room left in a map; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the map {map} is full: {needed} more needed, {used} of {capacity} used{}", kept(*.by_connections))]
pub struct Full {
    pub map: &'static str,
    pub needed: u64,
    pub used: u64,
    pub capacity: u64,
    /// Those of the used that only connections of endpoints that are gone still name.
    pub by_connections: u64,
}

fn kept(by_connections: u64) -> String {
    match by_connections {
        0 => String::new(),
        count => format!(" ({count} of them by connections of endpoints that are gone)"),
    }
}

impl Full {
    /// What makes room.
    pub fn remedy(&self) -> &'static str {
        remedy(self.map)
    }
}

/// What makes room in a map.
pub fn remedy(map: &str) -> &'static str {
    match map {
        map::FRONTENDS => "start the agent with a larger --max-frontends",
        map::SERVICES | map::NAMES => "start the agent with a larger --max-services",
        map::SOURCE_RANGES => {
            "write fewer and wider loadBalancerSourceRanges, or start the agent with a larger --max-source-ranges"
        }
        map::SLOTS => "start the agent with a larger --max-slots or --max-backends",
        map::SERVICE_NETS => "write fewer and wider ServiceCIDRs",
        _ => "start the agent with a larger --max-backends",
    }
}

/// Counts grace periods: what is freed in one epoch may be used again when every program that ran
/// then has ended.
pub type Epoch = u64;

/// What an id that nobody has any more waits for, before it is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WaitsFor {
    /// That has not passed.
    Epoch(Epoch),
    /// To end.
    Connections,
}

/// Single ids, 1..=capacity. Id 0 is "none".
#[derive(Debug)]
pub(super) struct IdPool {
    map: &'static str,
    capacity: u32,
    /// All ids from here on are free.
    next: u32,
    free: BTreeSet<u32>,
    waiting: BTreeMap<u32, Epoch>,
    /// No program gives them to anybody any more, but there are connections that name them.
    busy: BTreeSet<u32>,
}

impl IdPool {
    pub(super) fn new(map: &'static str, capacity: u32) -> Self {
        Self {
            map,
            capacity,
            next: 1,
            free: BTreeSet::new(),
            waiting: BTreeMap::new(),
            busy: BTreeSet::new(),
        }
    }

    /// Ids that are taken, waiting or busy.
    pub(super) fn used(&self) -> u64 {
        u64::from(self.next - 1) - self.free.len() as u64
    }

    pub(super) fn room(&self) -> u64 {
        u64::from(self.capacity) - self.used()
    }

    pub(super) fn full(&self, needed: u64) -> Full {
        Full {
            map: self.map,
            needed,
            used: self.used(),
            capacity: self.capacity.into(),
            by_connections: self.busy.len() as u64,
        }
    }

    pub(super) fn take(&mut self) -> Result<u32, Full> {
        if let Some(id) = self.free.pop_first() {
            return Ok(id);
        }
        if self.next > self.capacity {
            return Err(self.full(1));
        }
        self.next += 1;
        Ok(self.next - 1)
    }

    /// Marks an id that was found in use. `false` if it can't be (out of range or taken).
    pub(super) fn adopt(&mut self, id: u32) -> bool {
        if id == 0 || id > self.capacity {
            return false;
        }
        if id >= self.next {
            self.free.extend(self.next..id);
            self.next = id + 1;
            return true;
        }
        self.free.remove(&id)
    }

    /// The id is free at once: no program has ever seen it.
    pub(super) fn give_back(&mut self, id: u32) {
        self.free.insert(id);
    }

    /// The id is free when the epoch has passed.
    pub(super) fn retire(&mut self, epoch: Epoch, id: u32) {
        self.waiting.insert(id, epoch);
    }

    /// Whether it is neither anybody's nor free.
    pub(super) fn is_waiting(&self, id: u32) -> bool {
        self.waiting.contains_key(&id) || self.busy.contains(&id)
    }

    /// Takes this very id, which waits, for what it stood for before: to programs and connections that
    /// know it, it means what it meant. `None` if it does not wait.
    pub(super) fn take_again(&mut self, id: u32) -> Option<WaitsFor> {
        if let Some(epoch) = self.waiting.remove(&id) {
            return Some(WaitsFor::Epoch(epoch));
        }
        self.busy.remove(&id).then_some(WaitsFor::Connections)
    }

    /// It was taken again, and has not been used.
    pub(super) fn wait_again(&mut self, id: u32, waits_for: WaitsFor) {
        match waits_for {
            WaitsFor::Epoch(epoch) => self.retire(epoch, id),
            WaitsFor::Connections => drop(self.busy.insert(id)),
        }
    }

    /// The id belongs to nobody, and is used again when its connections have ended: one that is not
    /// adopted.
    pub(super) fn keep_busy(&mut self, id: u32) {
        if self.adopt(id) {
            self.busy.insert(id);
        }
    }

    /// Every program that started in `epoch` or before has ended. `is_busy`: whether connections name the
    /// id.
    pub(super) fn passed(&mut self, epoch: Epoch, is_busy: impl Fn(u32) -> bool) {
        let busy = &mut self.busy;
        self.waiting.retain(|id, at| {
            if *at <= epoch {
                busy.insert(*id);
            }
            *at > epoch
        });
        self.look_again(is_busy);
    }

    /// Frees what is busy no more.
    pub(super) fn look_again(&mut self, is_busy: impl Fn(u32) -> bool) {
        let free = &mut self.free;
        self.busy.retain(|id| {
            let is_busy = is_busy(*id);
            if !is_busy {
                free.insert(*id);
            }
            is_busy
        });
    }
}

/// For ids that no connection names: those of Services.
pub(super) fn never_busy(_: u32) -> bool {
    false
}

/// A run of slots: `1 << order` of them from `first`, aligned to its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Run {
    pub(super) first: u32,
    pub(super) order: u32,
}

impl Run {
    /// Order of the smallest run that holds `count` slots, at least one.
    pub(super) fn order_for(count: usize) -> u32 {
        count.max(1).next_power_of_two().trailing_zeros()
    }
}

/// Runs of slots, as a buddy allocator (Knowlton 1965): neighbours join again when both are free, so
/// many small Services that come and go leave room for a large one.
#[derive(Debug)]
pub(super) struct RunPool {
    map: &'static str,
    capacity: u32,
    used: u64,
    /// First slots of free runs, by order.
    free: BTreeMap<u32, BTreeSet<u32>>,
    waiting: Vec<(Epoch, Run)>,
}

impl RunPool {
    /// `capacity` slots, of which a power of two is used.
    pub(super) fn new(map: &'static str, capacity: u32) -> Self {
        let order = capacity.max(1).ilog2();
        Self {
            map,
            capacity: 1 << order,
            used: 0,
            free: BTreeMap::from([(order, BTreeSet::from([0]))]),
            waiting: Vec::new(),
        }
    }

    pub(super) fn used(&self) -> u64 {
        self.used
    }

    /// Half of all slots stay free when such a run is taken.
    pub(super) fn has_room_to_spare(&self, order: u32) -> bool {
        self.used + (1 << order) <= u64::from(self.capacity / 2)
    }

    pub(super) fn take(&mut self, order: u32) -> Result<Run, Full> {
        let found = self
            .free
            .range(order..)
            .find_map(|(at, firsts)| firsts.first().map(|first| (*at, *first)));
        let Some((mut at, first)) = found else {
            return Err(Full {
                map: self.map,
                needed: 1 << order,
                used: self.used,
                capacity: self.capacity.into(),
                by_connections: 0,
            });
        };
        self.remove_free(at, first);
        while at > order {
            at -= 1;
            self.free.entry(at).or_default().insert(first + (1 << at));
        }
        self.used += 1 << order;
        Ok(Run { first, order })
    }

    /// Marks a run that was found in use. `false` if it can't be.
    pub(super) fn adopt(&mut self, run: Run) -> bool {
        if !run.first.is_multiple_of(1 << run.order) {
            return false;
        }
        let found = self.free.range(run.order..).find_map(|(at, firsts)| {
            let first = run.first & !((1 << at) - 1);
            firsts.contains(&first).then_some((*at, first))
        });
        let Some((mut at, mut first)) = found else {
            return false;
        };
        self.remove_free(at, first);
        while at > run.order {
            at -= 1;
            let upper = first + (1 << at);
            let (ours, other) = if run.first >= upper {
                (upper, first)
            } else {
                (first, upper)
            };
            self.free.entry(at).or_default().insert(other);
            first = ours;
        }
        self.used += 1 << run.order;
        true
    }

    pub(super) fn give_back(&mut self, run: Run) {
        self.used -= 1 << run.order;
        let Run {
            mut first,
            mut order,
        } = run;
        let top = self.capacity.ilog2();
        while order < top {
            let buddy = first ^ (1 << order);
            if !self.free.get(&order).is_some_and(|f| f.contains(&buddy)) {
                break;
            }
            self.remove_free(order, buddy);
            first &= !(1 << order);
            order += 1;
        }
        self.free.entry(order).or_default().insert(first);
    }

    pub(super) fn retire(&mut self, epoch: Epoch, run: Run) {
        self.waiting.push((epoch, run));
    }

    pub(super) fn passed(&mut self, epoch: Epoch) {
        let (over, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|(at, _)| *at <= epoch);
        self.waiting = waiting;
        let over: Vec<(Epoch, Run)> = over;
        for (_, run) in over {
            self.give_back(run);
        }
    }

    fn remove_free(&mut self, order: u32, first: u32) {
        if let Some(firsts) = self.free.get_mut(&order) {
            firsts.remove(&first);
            if firsts.is_empty() {
                self.free.remove(&order);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_retired_id_waits_for_its_epoch() {
        let mut pool = IdPool::new("M", 1);
        let id = pool.take().unwrap();
        pool.retire(5, id);
        pool.passed(4, never_busy);
        assert_eq!(pool.take(), Err(pool.full(1)));
        pool.passed(5, never_busy);
        assert_eq!(pool.take(), Ok(id));
    }

    #[test]
    fn an_id_that_connections_name_waits_for_the_last_of_them() {
        let mut pool = IdPool::new("M", 2);
        let (old, other) = (pool.take().unwrap(), pool.take().unwrap());
        pool.retire(1, old);
        pool.retire(1, other);
        pool.passed(1, |id| id == old);
        assert_eq!(pool.take(), Ok(other));
        let full = pool.take().unwrap_err();
        assert_eq!((full.used, full.by_connections), (2, 1));
        assert_eq!(
            full.to_string(),
            "the map M is full: 1 more needed, 2 of 2 used \
             (1 of them by connections of endpoints that are gone)"
        );
        pool.look_again(|id| id == old);
        assert!(pool.take().is_err());
        pool.look_again(never_busy);
        assert_eq!((pool.used(), pool.take()), (1, Ok(old)));
    }

    #[test]
    fn an_id_that_was_found_busy_is_nobodys_until_it_is_not() {
        let mut pool = IdPool::new("M", 3);
        assert!(pool.adopt(1));
        // Of those only 3 is one that may be kept.
        for id in [0, 1, 3, 4] {
            pool.keep_busy(id);
        }
        assert_eq!((pool.used(), pool.take()), (2, Ok(2)));
        assert_eq!(pool.take().unwrap_err().by_connections, 1);
        pool.look_again(never_busy);
        assert_eq!(pool.take(), Ok(3));
    }

    #[test]
    fn an_adopted_id_is_not_given_to_another() {
        let mut pool = IdPool::new("M", 4);
        assert!(pool.adopt(3));
        assert!(!pool.adopt(3));
        assert!(!pool.adopt(0));
        assert!(!pool.adopt(5));
        let rest: Vec<u32> = std::iter::from_fn(|| pool.take().ok()).collect();
        assert_eq!(rest, [1, 2, 4]);
    }

    #[test]
    fn a_full_pool_of_runs_says_so_and_recovers() {
        let mut pool = RunPool::new("M", 8);
        let run = pool.take(3).unwrap();
        let full = pool.take(0).unwrap_err();
        assert_eq!((full.needed, full.used, full.capacity), (1, 8, 8));
        pool.give_back(run);
        assert!(pool.take(3).is_ok());
    }

    /// 20,000 Services with 250,000 endpoints in the 524,288 slots of the default, each changed some times:
    /// a Service of 5,000 endpoints finds its new slots beside the old ones at any moment.
    #[test]
    fn a_large_service_finds_slots_among_many_small_ones_that_come_and_go() {
        const LARGE: u32 = 13;
        let mut state = 1_u64;
        let mut random = move |below: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            usize::try_from(state >> 33).unwrap() % below
        };
        let mut size = move || match random(100) {
            // The worst there is: just more than a power of two, each with half of its slots unused.
            0..50 => (1 << random(3)) + 1,
            50..95 => 1 + random(20),
            95..99 => 20 + random(80),
            _ => 100 + random(500),
        };
        let mut pool = RunPool::new("M", 524_288);
        let mut endpoints = 0;
        let mut runs = Vec::new();
        while runs.len() < 20_000 {
            let count = size();
            endpoints += count;
            runs.push((count, pool.take(Run::order_for(count)).unwrap()));
        }
        while endpoints < 250_000 {
            endpoints += 1_000;
            runs.push((1_000, pool.take(Run::order_for(1_000)).unwrap()));
        }
        for round in 0..100_000 {
            let at = round * 7_919 % runs.len();
            let count = size();
            if endpoints + count > 252_000 + runs[at].0 {
                continue;
            }
            endpoints = endpoints + count - runs[at].0;
            // The new one before the old one is given back.
            let run = pool.take(Run::order_for(count)).unwrap();
            pool.give_back(std::mem::replace(&mut runs[at], (count, run)).1);
            if round % 100 == 0 {
                let large = pool.take(LARGE).unwrap();
                let new = pool.take(LARGE).unwrap();
                pool.give_back(large);
                pool.give_back(new);
            }
        }
    }

    proptest! {
        /// Connections come to ids that are taken, outlive what had the id, and end; what had it comes back
        /// for it, and may find no room after all; the pool is asked for ids, and told of grace periods, in any order. Now and then the agent begins anew.
        #[test]
        fn no_id_is_ever_given_out_while_connections_name_it(
            ops in prop::collection::vec((0_u8..8, any::<prop::sample::Index>()), 1..200),
        ) {
            const CAPACITY: u32 = 6;
            let mut pool = IdPool::new("M", CAPACITY);
            let mut taken: Vec<u32> = Vec::new();
            let mut connections: Vec<u32> = Vec::new();
            let mut epoch = 1;
            for (op, index) in ops {
                let busy: BTreeSet<u32> = connections.iter().copied().collect();
                let is_busy = |id: u32| busy.contains(&id);
                match op {
                    0 | 1 => {
                        if let Ok(id) = pool.take() {
                            prop_assert!(!is_busy(id) && !taken.contains(&id), "{id}");
                            taken.push(id);
                        }
                    }
                    2 if !taken.is_empty() => connections.push(taken[index.index(taken.len())]),
                    3 if !taken.is_empty() => {
                        pool.retire(epoch, taken.swap_remove(index.index(taken.len())));
                    }
                    4 if !connections.is_empty() => {
                        connections.swap_remove(index.index(connections.len()));
                    }
                    5 => {
                        pool.passed(epoch, is_busy);
                        epoch += 1;
                    }
                    6 => {
                        pool = IdPool::new("M", CAPACITY);
                        for id in &taken {
                            prop_assert!(pool.adopt(*id));
                        }
                        busy.iter().for_each(|id| pool.keep_busy(*id));
                    }
                    7 => {
                        let id = 1 + u32::try_from(index.index(CAPACITY as usize)).unwrap();
                        let is_waiting = pool.is_waiting(id);
                        let waited = pool.take_again(id);
                        prop_assert_eq!(waited.is_some(), is_waiting && !taken.contains(&id));
                        match waited {
                            Some(waits_for) if index.index(2) == 0 => pool.wait_again(id, waits_for),
                            Some(_) => taken.push(id),
                            None => {}
                        }
                    }
                    _ => pool.look_again(is_busy),
                }
                prop_assert!(pool.used() >= taken.len() as u64);
            }
            // In the end nothing is lost.
            pool.passed(epoch, never_busy);
            prop_assert_eq!(pool.used(), taken.len() as u64);
        }

        #[test]
        fn runs_never_overlap_and_join_again(ops in prop::collection::vec((any::<bool>(), 0u32..5, any::<prop::sample::Index>()), 1..200)) {
            let mut pool = RunPool::new("M", 64);
            let mut taken: Vec<Run> = Vec::new();
            for (take, order, index) in ops {
                if take || taken.is_empty() {
                    if let Ok(run) = pool.take(order) {
                        let end = run.first + (1 << run.order);
                        prop_assert!(end <= 64);
                        for other in &taken {
                            let other_end = other.first + (1 << other.order);
                            prop_assert!(end <= other.first || other_end <= run.first);
                        }
                        taken.push(run);
                    }
                } else {
                    pool.give_back(taken.swap_remove(index.index(taken.len())));
                }
                let used: u64 = taken.iter().map(|run| 1u64 << run.order).sum();
                prop_assert_eq!(pool.used(), used);
            }
            // A restarted agent finds the same runs, in any order.
            let mut adopted = RunPool::new("M", 64);
            for run in &taken {
                prop_assert!(adopted.adopt(*run));
                prop_assert!(!adopted.adopt(*run));
            }
            prop_assert_eq!(&adopted.free, &pool.free);
            for run in taken.drain(..) {
                pool.give_back(run);
            }
            prop_assert!(pool.take(6).is_ok());
        }
    }
}
