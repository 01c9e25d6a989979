//! Clears away what is over: flows, and clients whose affinity has ended. Programs ignore and overwrite
//! what has expired; this makes room for others, and knows how much is in use. As it looks at every entry,
//! it also counts the connections of backends ([`Recount`]).

use std::{
    collections::HashMap,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use proxy_common::{
    abi::{AffinityEntry, AffinityKey, FlowEntry, FlowTimeouts, Tuple},
    datapath::conntrack::{is_expired, opposite, timeout_ns},
};
use rustix::time::{ClockId, clock_gettime};

use crate::{
    loader::{AffinityMap, Counted, FlowMap, Position, SocketMap},
    maps::bpf::BpfStore,
    recount::{Recount, Tally},
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

/// How full a map was when all of it was last looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filling {
    pub map: &'static str,
    pub entries: u64,
    pub capacity: u32,
}

/// A map in which entries come to an end.
pub trait Expiring {
    fn capacity(&self) -> u32;

    /// Looks at a slice of it, and removes what is over. A sweep begins without a position.
    fn slice(&mut self, from: Option<Position>, swept: &mut Swept) -> io::Result<Option<Position>>;
}

/// Flows of packets.
#[derive(Debug)]
pub struct Flows {
    pub map: FlowMap,
    pub timeouts: FlowTimeouts,
    /// Where they are counted: those of KP_FLOWS.
    pub tally: Option<Tally>,
}

/// Connected sockets. They go when they are closed.
#[derive(Debug)]
pub struct Sockets {
    pub map: SocketMap,
    pub tally: Tally,
}

/// Clients that keep their backends.
#[derive(Debug)]
pub struct Affinity {
    clients: AffinityMap,
    /// Knows for how long.
    store: Arc<BpfStore>,
    known: Known,
}

impl Affinity {
    pub fn new(clients: AffinityMap, store: Arc<BpfStore>) -> Self {
        Self {
            clients,
            store,
            known: Known::default(),
        }
    }
}

impl Expiring for Sockets {
    fn capacity(&self) -> u32 {
        self.map.capacity()
    }

    fn slice(&mut self, from: Option<Position>, swept: &mut Swept) -> io::Result<Option<Position>> {
        if from.is_none() {
            self.tally.begin();
        }
        let (entries, next) = self.map.batch(from, SLICE)?;
        swept.seen += entries.len();
        for (_, flow) in &entries {
            self.tally.socket(flow);
        }
        Ok(next)
    }
}

/// The flows of unconnected sockets go when others come.
impl Expiring for Counted {
    fn capacity(&self) -> u32 {
        self.capacity()
    }

    fn slice(&mut self, from: Option<Position>, swept: &mut Swept) -> io::Result<Option<Position>> {
        let (seen, next) = self.count(from, SLICE)?;
        swept.seen += seen;
        Ok(next)
    }
}

/// For how long clients keep their backends, by Service port, and since when that is known.
#[derive(Debug, Default)]
struct Known {
    timeouts_ns: HashMap<u64, u64>,
    since_ns: u64,
}

impl Known {
    /// Whether the client's time is over. A Service port that isn't known had no affinity; a client
    /// that came later may be of one that has it by now, and is left to the next sweep.
    fn is_over(&self, key: &AffinityKey, entry: &AffinityEntry, now_ns: u64) -> bool {
        match self.timeouts_ns.get(&key.port) {
            Some(timeout_ns) => entry.is_expired(*timeout_ns, now_ns),
            None => entry.used_ns < self.since_ns,
        }
    }
}

/// What is swept.
#[derive(Debug)]
pub struct All {
    pub flows: Flows,
    pub half_open: Flows,
    pub affinity: Affinity,
    pub sockets: Sockets,
    pub udp_flows: Counted,
}

/// Sweeps for ever, and tells after each sweep how full the map is.
pub async fn run(mut all: All, mut recount: Recount, tell: impl Fn(Filling)) {
    let mut failed = [false; 5];
    loop {
        let begun = Instant::now();
        sweep_and_tell("half_open", &mut all.half_open, &mut failed[0], &tell).await;
        sweep_and_tell("affinity", &mut all.affinity, &mut failed[1], &tell).await;
        sweep_and_tell("udp_flows", &mut all.udp_flows, &mut failed[2], &tell).await;
        // One after the other, so that little happens between the two looks at the counts.
        tokio::task::block_in_place(|| recount.begin());
        sweep_and_tell("flows", &mut all.flows, &mut failed[3], &tell).await;
        sweep_and_tell("sockets", &mut all.sockets, &mut failed[4], &tell).await;
        let whole = !failed[3] && !failed[4];
        if let Some(flows) = &all.flows.tally {
            let sockets = &all.sockets.tally;
            tokio::task::block_in_place(|| recount.end(whole, flows.counts(), sockets.counts()));
        }
        tokio::time::sleep(INTERVAL.saturating_sub(begun.elapsed())).await;
    }
}

/// A failure is told once, and it is tried again.
async fn sweep_and_tell(
    name: &'static str,
    map: &mut impl Expiring,
    told: &mut bool,
    tell: &impl Fn(Filling),
) {
    match sweep(map, REST).await {
        Ok(swept) => {
            *told = false;
            tell(Filling {
                map: name,
                entries: u64::try_from(swept.seen - swept.removed).unwrap_or(u64::MAX),
                capacity: map.capacity(),
            });
            log::debug!(
                "{name}: {} entries of {}, {} of them over and removed, {:?} of work",
                swept.seen,
                map.capacity(),
                swept.removed,
                swept.busy
            );
        }
        Err(error) if !std::mem::replace(told, true) => log::warn!(
            "the map of {name} can't be read: {error}; what is over takes up room until it can"
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
    fn capacity(&self) -> u32 {
        self.map.capacity()
    }

    fn slice(&mut self, from: Option<Position>, swept: &mut Swept) -> io::Result<Option<Position>> {
        if let (None, Some(tally)) = (from, &mut self.tally) {
            tally.begin();
        }
        let (entries, next) = self.map.batch(from, SLICE)?;
        let now_ns = monotonic_ns();
        swept.seen += entries.len();
        for (tuple, entry) in entries {
            if is_silent(&entry, &tuple, &self.timeouts, now_ns)
                && let Some(entry) = self.over(&tuple, now_ns)
            {
                let is_ours = self.map.remove(&tuple);
                if let (true, Some(tally)) = (is_ours, &self.tally) {
                    tally.deleted(&entry);
                }
                swept.removed += 1;
            } else if let Some(tally) = &mut self.tally {
                tally.flow(&entry);
            }
        }
        Ok(next)
    }
}

impl Expiring for Affinity {
    fn capacity(&self) -> u32 {
        self.clients.capacity()
    }

    fn slice(&mut self, from: Option<Position>, swept: &mut Swept) -> io::Result<Option<Position>> {
        let (entries, next) = self.clients.batch(from, SLICE)?;
        if entries.is_empty() {
            return Ok(next);
        }
        // Once a sweep: it reads all Services.
        if from.is_none() {
            self.known = Known {
                since_ns: monotonic_ns(),
                timeouts_ns: self.store.affinity_timeouts_ns(),
            };
        }
        let now_ns = monotonic_ns();
        swept.seen += entries.len();
        for (key, entry) in entries {
            // The batch is a moment old: its client may have come again.
            if self.known.is_over(&key, &entry, now_ns) && self.clients.get(&key) == Some(entry) {
                self.clients.remove(&key);
                swept.removed += 1;
            }
        }
        Ok(next)
    }
}

impl Flows {
    /// The entry as of now, if neither direction lives: the batch is a moment old. The other direction's
    /// entry is removed when the sweep comes to it.
    fn over(&self, tuple: &Tuple, now_ns: u64) -> Option<FlowEntry> {
        let entry = self.map.get(tuple)?;
        let mut key = *tuple;
        opposite(&entry, tuple.protocol, &mut key);
        let other = self.map.get(&key).filter(|other| {
            leads_back(other, tuple) && !is_silent(other, tuple, &self.timeouts, now_ns)
        });
        (is_silent(&entry, tuple, &self.timeouts, now_ns) && other.is_none()).then_some(entry)
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proxy_common::abi::{Client, SockAddr};

    use super::*;

    #[test]
    fn a_client_of_a_port_without_affinity_goes_unless_it_came_after_that_was_known() {
        let known = Known {
            timeouts_ns: [(7, 100)].into(),
            since_ns: 1000,
        };
        let is_over = |port, used_ns, now_ns| {
            let key = AffinityKey {
                port,
                client: Client::of_socket(1),
            };
            let entry = AffinityEntry {
                used_ns,
                backend: SockAddr::from_parts(Ipv4Addr::LOCALHOST.into(), 0),
                backend_id: 1,
            };
            known.is_over(&key, &entry, now_ns)
        };
        assert!(!is_over(7, 950, 1001));
        assert!(is_over(7, 850, 1001));
        assert!(is_over(8, 999, 1001));
        assert!(!is_over(8, 1000, 1001));
    }
}
