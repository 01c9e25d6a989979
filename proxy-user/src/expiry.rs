//! Clears away flows that are over. Programs ignore and overwrite what has expired; this makes room
//! for others.

use std::{
    io,
    time::{Duration, Instant},
};

use proxy_common::{
    abi::{FlowEntry, FlowTimeouts, Tuple},
    datapath::conntrack::{is_expired, opposite, timeout_ns},
};
use rustix::time::{ClockId, clock_gettime};

use crate::loader::{FlowMap, Position};

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

/// Sweeps for ever. A failure is told once, and it is tried again.
pub async fn run(mut flows: FlowMap, timeouts: FlowTimeouts) {
    let mut told = false;
    loop {
        let begun = Instant::now();
        match sweep(&mut flows, &timeouts, REST).await {
            Ok(swept) => {
                told = false;
                log::debug!(
                    "flows: {} entries of {}, {} of them over and removed, {:?} of work",
                    swept.seen,
                    flows.capacity(),
                    swept.removed,
                    swept.busy
                );
            }
            Err(error) if !std::mem::replace(&mut told, true) => log::warn!(
                "the map of flows can't be read: {error}; flows that are over take up room until it can"
            ),
            Err(_) => {}
        }
        tokio::time::sleep(INTERVAL.saturating_sub(begun.elapsed())).await;
    }
}

/// Looks at every entry once.
pub async fn sweep(flows: &mut FlowMap, timeouts: &FlowTimeouts, rest: u32) -> io::Result<Swept> {
    let mut swept = Swept::default();
    let mut position = None;
    loop {
        let begun = Instant::now();
        let next = tokio::task::block_in_place(|| slice(flows, timeouts, position, &mut swept))?;
        let busy = begun.elapsed();
        swept.busy += busy;
        if next.is_none() {
            return Ok(swept);
        }
        position = next;
        tokio::time::sleep(busy.saturating_mul(rest)).await;
    }
}

fn slice(
    flows: &mut FlowMap,
    timeouts: &FlowTimeouts,
    from: Option<Position>,
    swept: &mut Swept,
) -> io::Result<Option<Position>> {
    let (entries, next) = flows.batch(from, SLICE)?;
    let now_ns = monotonic_ns();
    swept.seen += entries.len();
    for (tuple, entry) in entries {
        if is_silent(&entry, &tuple, timeouts, now_ns) && is_over(flows, &tuple, timeouts, now_ns) {
            flows.remove(&tuple);
            swept.removed += 1;
        }
    }
    Ok(next)
}

/// Whether neither direction lives, as of now: the batch is a moment old. The other direction's entry
/// is removed when the sweep comes to it.
fn is_over(flows: &FlowMap, tuple: &Tuple, timeouts: &FlowTimeouts, now_ns: u64) -> bool {
    let Some(entry) = flows.get(tuple) else {
        return false;
    };
    let mut key = *tuple;
    opposite(&entry, tuple.protocol, &mut key);
    let other = flows
        .get(&key)
        .filter(|other| leads_back(other, tuple) && !is_silent(other, tuple, timeouts, now_ns));
    is_silent(&entry, tuple, timeouts, now_ns) && other.is_none()
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
