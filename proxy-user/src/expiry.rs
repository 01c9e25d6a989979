//! Clears away what is over: flows, and clients whose affinity has ended. Programs ignore and overwrite
//! what has expired; this makes room for others.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use proxy_common::{
    abi::{FlowEntry, FlowTimeouts, Tuple},
    datapath::conntrack::{is_expired, opposite, timeout_ns},
};
use rustix::time::{ClockId, clock_gettime};

use crate::{
    loader::{AffinityMap, FlowMap, Position},
    maps::bpf::BpfStore,
};

/// Entries read by one call: about a millisecond.
const SLICE: usize = 4096;
/// From the beginning of one sweep to that of the next.
const INTERVAL: Duration = Duration::from_secs(10);
/// After each slice it rests this many times as long as that took: 2 % of a CPU at most, whatever the
/// size of the map.
const REST: u32 = 49;

/// What one sweep saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    pub seen: usize,
    pub removed: usize,
    /// Time it worked, without its rests.
    pub busy: Duration,
}

/// A map in which entries come to an end.
pub trait Expiring {
    /// In words.
    const WHAT: &str;

    fn capacity(&self) -> u32;

    /// Looks at a slice of it, and removes what is over.
    fn slice(&mut self, from: Option<Position>, swept: &mut Swept) -> io::Result<Option<Position>>;
}

/// Flows of packets.
#[derive(Debug)]
pub struct Flows {
    pub map: FlowMap,
    pub timeouts: FlowTimeouts,
}

/// Clients that keep their backends.
#[derive(Debug)]
pub struct Affinity {
    pub clients: AffinityMap,
    /// Knows for how long.
    pub store: Arc<BpfStore>,
}

/// Sweeps for ever.
pub async fn run(mut flows: Flows, mut affinity: Affinity) {
    let (mut flows_failed, mut affinity_failed) = (false, false);
    loop {
        let begun = Instant::now();
        sweep_and_tell(&mut flows, &mut flows_failed).await;
        sweep_and_tell(&mut affinity, &mut affinity_failed).await;
        tokio::time::sleep(INTERVAL.saturating_sub(begun.elapsed())).await;
    }
}

/// A failure is told once, and it is tried again.
async fn sweep_and_tell<E: Expiring>(map: &mut E, told: &mut bool) {
    match sweep(map, REST).await {
        Ok(swept) => {
            *told = false;
            log::debug!(
                "{}: {} entries of {}, {} of them over and removed, {:?} of work",
                E::WHAT,
                swept.seen,
                map.capacity(),
                swept.removed,
                swept.busy
            );
        }
        Err(error) if !std::mem::replace(told, true) => log::warn!(
            "the map of {} can't be read: {error}; what is over takes up room until it can",
            E::WHAT
        ),
        Err(_) => {}
    }
}

/// Looks at every entry once.
pub async fn sweep(map: &mut impl Expiring, rest: u32) -> io::Result<Swept> {
    let mut swept = Swept::default();
    let mut position = None;
    loop {
        let begun = Instant::now();
        let next = tokio::task::block_in_place(|| map.slice(position, &mut swept))?;
        let busy = begun.elapsed();
        swept.busy += busy;
        if next.is_none() {
            return Ok(swept);
        }
        position = next;
        tokio::time::sleep(busy.saturating_mul(rest)).await;
    }
}

impl Expiring for Flows {
    const WHAT: &str = "flows";

    fn capacity(&self) -> u32 {
        self.map.capacity()
    }

    fn slice(&mut self, from: Option<Position>, swept: &mut Swept) -> io::Result<Option<Position>> {
        let (entries, next) = self.map.batch(from, SLICE)?;
        let now_ns = monotonic_ns();
        swept.seen += entries.len();
        for (tuple, entry) in entries {
            if is_silent(&entry, &tuple, &self.timeouts, now_ns) && self.is_over(&tuple, now_ns) {
                self.map.remove(&tuple);
                swept.removed += 1;
            }
        }
        Ok(next)
    }
}

impl Expiring for Affinity {
    const WHAT: &str = "affinity";

    fn capacity(&self) -> u32 {
        self.clients.capacity()
    }

    fn slice(&mut self, from: Option<Position>, swept: &mut Swept) -> io::Result<Option<Position>> {
        let (entries, next) = self.clients.batch(from, SLICE)?;
        if entries.is_empty() {
            return Ok(next);
        }
        // Read later than the entries: whoever has one of them is there, if it still has affinity.
        let timeouts_ns = self.store.affinity_timeouts_ns();
        let now_ns = monotonic_ns();
        swept.seen += entries.len();
        for (key, entry) in entries {
            let is_over = timeouts_ns
                .get(&key.port)
                .is_none_or(|timeout_ns| entry.is_expired(*timeout_ns, now_ns));
            // The batch is a moment old: its client may have come again.
            if is_over && self.clients.get(&key) == Some(entry) {
                self.clients.remove(&key);
                swept.removed += 1;
            }
        }
        Ok(next)
    }
}

impl Flows {
    /// Whether neither direction lives, as of now: the batch is a moment old. The other direction's
    /// entry is removed when the sweep comes to it.
    fn is_over(&self, tuple: &Tuple, now_ns: u64) -> bool {
        let Some(entry) = self.map.get(tuple) else {
            return false;
        };
        let mut key = *tuple;
        opposite(&entry, tuple.protocol, &mut key);
        let other = self.map.get(&key).filter(|other| {
            leads_back(other, tuple) && !is_silent(other, tuple, &self.timeouts, now_ns)
        });
        is_silent(&entry, tuple, &self.timeouts, now_ns) && other.is_none()
    }
}

fn is_silent(entry: &FlowEntry, tuple: &Tuple, timeouts: &FlowTimeouts, now_ns: u64) -> bool {
    is_expired(
        entry,
        timeout_ns(tuple.protocol, entry.state, timeouts),
        now_ns,
    )
}

/// Whether this is the other direction's entry, not another flow's that took its place.
fn leads_back(other: &FlowEntry, tuple: &Tuple) -> bool {
    let mut key = *tuple;
    opposite(other, tuple.protocol, &mut key);
    key == *tuple
}

/// As bpf_ktime_get_ns has it.
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}
