//! How many connections each backend has, counted from the entries that there are: once where an agent finds
//! them without their count, and with each sweep, to set right what has drifted.

use std::{fmt, io, sync::Arc};

use proxy_common::{
    abi::{BackendStats, Direction, FlowEntry, SockAddr, SocketFlow},
    datapath::conntrack::state::COUNTED,
};

use crate::{
    drift::{Drift, Seen, Stand},
    hash::{HashMap, HashSet},
    loader::{FlowMap, SocketMap},
    maps::{MapStore as _, StoreError, bpf::BpfStore},
};

/// Of a backend, by its id.
type Stats = (u32, BackendStats);

/// Connections by backend id.
pub type Counts = HashMap<u32, i64>;

/// Whether the entry is one that `BackendStats::active` counts.
pub fn is_counted(entry: &FlowEntry) -> bool {
    matches!(Direction::from_number(entry.direction), Direction::Original)
        && entry.state & COUNTED != 0
}

/// What a sweep counts.
#[derive(Debug)]
pub struct Tally {
    store: Arc<BpfStore>,
    counted: Counts,
}

impl Tally {
    pub fn new(store: Arc<BpfStore>) -> Self {
        Self {
            store,
            counted: Counts::default(),
        }
    }

    /// A sweep begins.
    pub fn begin(&mut self) {
        self.counted.clear();
    }

    pub fn flow(&mut self, entry: &FlowEntry) {
        if is_counted(entry) {
            *self.counted.entry(entry.backend_id).or_default() += 1;
        }
    }

    pub fn socket(&mut self, flow: &SocketFlow) {
        if flow.backend_id != 0 {
            *self.counted.entry(flow.backend_id).or_default() += 1;
        }
    }

    /// The agent has deleted the entry, and nobody else has.
    pub fn deleted(&self, entry: &FlowEntry) {
        if is_counted(entry) {
            self.store.add_active(entry.backend_id, -1);
        }
    }

    pub fn counts(&self) -> &Counts {
        &self.counted
    }
}

/// Counts every entry, and says so in the maps. Nobody but the agent may write the counts meanwhile.
///
/// # Errors
/// One of the maps can't be read.
pub fn at_start(
    store: &BpfStore,
    sockets: &SocketMap,
    flows: &FlowMap,
) -> Result<usize, RecountError> {
    let mut counted = std::collections::HashMap::new();
    sockets.each(|_, flow| {
        if flow.backend_id != 0 {
            *counted.entry(flow.backend_id).or_default() += 1;
        }
    })?;
    flows.each(|_, entry| {
        if is_counted(&entry) {
            *counted.entry(entry.backend_id).or_default() += 1;
        }
    })?;
    store.set_active(&counted)?;
    Ok(counted.len())
}

#[derive(Debug, thiserror::Error)]
pub enum RecountError {
    #[error("the maps of sockets and flows can't be read: {0}")]
    Entries(#[from] io::Error),
    #[error(transparent)]
    Counts(#[from] StoreError),
}

/// Compares, from sweep to sweep.
pub struct Recount {
    store: Arc<BpfStore>,
    drift: Drift,
    /// As it was when the sweep began.
    before: Option<Vec<Stats>>,
    /// Is told by how many connections counts were wrong.
    tell: Box<dyn Fn(u64) + Send>,
}

impl fmt::Debug for Recount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recount")
            .field("drift", &self.drift)
            .finish_non_exhaustive()
    }
}

impl Recount {
    pub fn new(store: Arc<BpfStore>, tell: impl Fn(u64) + Send + 'static) -> Self {
        Self {
            store,
            drift: Drift::default(),
            before: None,
            tell: Box::new(tell),
        }
    }

    /// A sweep of all entries is about to begin.
    pub fn begin(&mut self) {
        self.before = self.read();
    }

    /// It has ended, and has seen every entry; or it has failed, and nothing is known.
    pub fn end(&mut self, whole: bool, flows: &Counts, sockets: &Counts) {
        let Some(before) = self.before.take().filter(|_| whole) else {
            return;
        };
        let Some(after) = self.read() else {
            return;
        };
        // Of an id that there is not, as there were more once, nothing can be said.
        let capacity = self.store.capacity().backends;
        let seen = seen(&before, &after, flows, sockets).filter(|(id, _)| *id < capacity);
        let corrections = self.drift.judge(seen);
        let Some((first, by)) = corrections.first().copied() else {
            return;
        };
        for (id, by) in &corrections {
            self.store.add_active(*id, *by);
        }
        let wrong = corrections.iter().map(|(_, by)| by.unsigned_abs()).sum();
        (self.tell)(wrong);
        let backend = self.store.backend(first);
        let address = backend
            .map(|backend| SockAddr::from_parts(backend.addr, backend.port_be).socket_addr());
        log::info!(
            "the count of connections of {} backends had drifted and was set right, by {wrong} in all; such as that of {} (id {first}) by {by:+}",
            corrections.len(),
            address.map_or_else(
                || "one that is gone".to_owned(),
                |address| address.to_string()
            ),
        );
    }

    fn read(&self) -> Option<Vec<Stats>> {
        self.store
            .backend_stats()
            .inspect_err(|error| log::debug!("the counts of connections can't be read: {error}"))
            .ok()
    }
}

/// What was seen of each backend that has, had or should have connections; both in the order of ids. A
/// backend that is in neither had been given to nobody by then, and had none.
fn seen(
    before: &[Stats],
    after: &[Stats],
    flows: &Counts,
    sockets: &Counts,
) -> impl Iterator<Item = (u32, Seen)> {
    let stand = |stats: &[Stats], id| match stats.binary_search_by_key(&id, |(id, _)| *id) {
        Ok(at) => Stand {
            active: stats[at].1.active,
            connections: stats[at].1.connections,
        },
        Err(_) => Stand::default(),
    };
    let had = before.iter().chain(after).map(|(id, _)| *id);
    let counted = flows.keys().chain(sockets.keys()).copied();
    let ids: HashSet<u32> = had.chain(counted).collect();
    ids.into_iter().filter_map(move |id| {
        let count = |counts: &Counts| counts.get(&id).copied().unwrap_or(0);
        let seen = Seen {
            before: stand(before, id),
            after: stand(after, id),
            counted: count(flows) + count(sockets),
        };
        let matters = (seen.before.active, seen.after.active, seen.counted) != (0, 0, 0);
        matters.then_some((id, seen))
    })
}

#[cfg(test)]
mod tests {
    use proxy_common::abi::Via;

    use super::*;

    fn stats(backend: u32, connections: u64, active: i64) -> Stats {
        let stats = BackendStats {
            connections,
            active,
            ..BackendStats::default()
        };
        (backend, stats)
    }

    /// What would be corrected if it were seen three times.
    fn corrections(
        before: &[Stats],
        after: &[Stats],
        flows: &[(u32, i64)],
        sockets: &[(u32, i64)],
    ) -> Vec<(u32, i64)> {
        let [flows, sockets] = [flows, sockets].map(|of| of.iter().copied().collect());
        let mut drift = Drift::default();
        let mut judge = || drift.judge(seen(before, after, &flows, &sockets));
        assert_eq!([judge(), judge()], [vec![], vec![]]);
        judge()
    }

    #[test]
    fn sockets_and_flows_of_a_backend_are_counted_together() {
        let stands = [stats(1, 9, 5), stats(2, 9, 5), stats(4, 1, 0)];
        let found = corrections(&stands, &stands, &[(1, 3), (2, 3)], &[(1, 2), (2, 1)]);
        assert_eq!(found, [(2, -1)]);
    }

    #[test]
    fn an_id_that_is_on_one_side_only_is_judged_too() {
        // Entries of an endpoint that is gone, and whose count is 0.
        assert_eq!(
            corrections(&[], &[], &[(3, 1)], &[(8, 2)]),
            [(3, 1), (8, 2)]
        );
        // It came during the sweep, and may have been seen or not.
        let came = [stats(5, 2, 2)];
        assert_eq!(corrections(&[], &came, &[], &[(5, 1)]), []);
        // Its figures began anew.
        assert_eq!(corrections(&came, &[], &[], &[]), []);
    }

    #[test]
    fn only_the_original_entry_of_a_counted_flow_counts() {
        let mut entry = FlowEntry::from_bytes([0; FlowEntry::SIZE]);
        entry.via = Via::Stack as u8;
        assert!(!is_counted(&entry));
        entry.state = COUNTED | 17;
        assert!(is_counted(&entry));
        entry.direction = Direction::Reply as u8;
        assert!(!is_counted(&entry));
    }
}
