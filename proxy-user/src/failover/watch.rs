//! Is told of attempts that failed, has the policy decide, and writes what it decides.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    thread,
    time::Duration,
};

use aya::maps::{Map, MapData, RingBuf};
use proxy_common::abi::{AttemptFailure, Counter, map};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use super::{list, news::News, policy::Policy};
use crate::{
    expiry::monotonic_ns,
    loader::{PinError, Pins},
    maps::bpf::{BpfStore, OpenError},
};

/// How often backends that failed are looked at though nothing is told.
const TICK: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};
/// After a look: a flood of failures costs ten looks a second.
const REST: Duration = Duration::from_millis(100);
/// Records read before a look; the buffer has room for fewer.
const RECORDS: usize = 1024;

/// What came of a look.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Backends that are passed over now.
    pub(crate) passed_over: usize,
    pub(crate) news: Vec<News>,
}

/// The last attempt to connect to a backend that failed.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    at_ns: u64,
    how: Option<Counter>,
}

#[derive(Debug)]
struct Watch {
    store: Arc<BpfStore>,
    policy: Policy,
    /// By service and backend; without an attempt, the maps say that it was passed over.
    told: BTreeMap<u32, BTreeMap<u32, Option<Attempt>>>,
}

/// Begins to watch, in a thread of its own: it waits for the kernel. What it has written when the process ends
/// ends by itself.
///
/// # Errors
/// The ring buffer of failures can't be opened.
pub(crate) fn start(
    pins: &Pins,
    store: Arc<BpfStore>,
    tell: impl Fn(Report) + Send + 'static,
) -> Result<(), PinError> {
    let failed = |source| OpenError::Open {
        map: map::FAILURES,
        source,
    };
    let data = MapData::from_pin(pins.map(map::FAILURES)).map_err(failed)?;
    let failures = RingBuf::try_from(Map::RingBuf(data)).map_err(failed)?;
    let watch = Watch {
        store,
        policy: Policy::default(),
        told: BTreeMap::new(),
    };
    let follow = move || {
        let error = watch.follow(failures, tell);
        log::error!(
            "failed attempts can't be read ({error}): no backend is passed over any more; restart the agent"
        );
    };
    let started = thread::Builder::new()
        .name("failover".to_owned())
        .spawn(follow);
    started
        .map(drop)
        .map_err(|error| failed(error.into()).into())
}

impl Watch {
    /// With what an earlier agent wrote.
    fn begin(&mut self) {
        let stats = match self.store.backend_stats() {
            Ok(stats) => stats,
            Err(error) => return log::debug!("failover: {error}"),
        };
        for (id, _) in (stats.iter()).filter(|(_, stats)| stats.passed_over_until_ns != 0) {
            let service = self.store.backend(*id).map_or(0, |backend| backend.service);
            self.told.entry(service).or_default().insert(*id, None);
        }
        // It belongs to nobody: whoever gets the id begins anew.
        self.told.remove(&0);
    }

    /// Returns when it can't.
    fn follow(mut self, mut failures: RingBuf<MapData>, tell: impl Fn(Report)) -> Errno {
        self.begin();
        loop {
            tell(self.look(monotonic_ns()));
            thread::sleep(REST);
            let mut ready = [PollFd::new(&failures, PollFlags::IN)];
            let wait = (!self.policy.is_empty()).then_some(TICK);
            match poll(&mut ready, wait.as_ref()) {
                Ok(_) | Err(Errno::INTR) => self.read(&mut failures),
                Err(error) => return error,
            }
        }
    }

    fn read(&mut self, failures: &mut RingBuf<MapData>) {
        for _ in 0..RECORDS {
            let Some(record) = failures.next() else {
                break;
            };
            // One of another size is none of ours.
            let Some(bytes) = record.first_chunk::<{ AttemptFailure::SIZE }>() else {
                continue;
            };
            let failure = AttemptFailure::from_bytes(*bytes);
            let attempt = Attempt {
                at_ns: failure.at_ns,
                how: Counter::from_index(failure.outcome),
            };
            let told = self.told.entry(failure.service).or_default();
            let last = told.entry(failure.backend_id).or_default();
            if last.is_none_or(|last| last.at_ns <= attempt.at_ns) {
                *last = Some(attempt);
            }
        }
    }

    fn look(&mut self, now_ns: u64) -> Report {
        let told = std::mem::take(&mut self.told);
        let mut services: BTreeSet<u32> = self.policy.services();
        services.extend(told.keys());
        let mut report = Report::default();
        let nobody = BTreeMap::new();
        for service in services {
            let theirs = told.get(&service).unwrap_or(&nobody);
            let ids: Vec<u32> = self.policy.backends(service).collect();
            let others = ids.into_iter().chain(theirs.keys().copied());
            let list = match list::read(&self.store, service, others) {
                Ok(list) => list,
                Err(error) => {
                    log::debug!("failover: {error}");
                    continue;
                }
            };
            let at = |(id, attempt): (&u32, &Option<Attempt>)| Some((*id, attempt.as_ref()?.at_ns));
            let failed = theirs.iter().filter_map(at).collect();
            for change in self.policy.look(now_ns, &list, &failed) {
                if let Some(until_ns) = change.write()
                    && let Err(error) = self.store.pass_over(change.id, until_ns)
                {
                    log::debug!("failover: {error}");
                }
                let attempt = theirs.get(&change.id).copied().flatten();
                let name = self.store.name(service);
                report.news.push(News {
                    service: name.map_or_else(String::new, |name| name.text().into_owned()),
                    change,
                    how: attempt.and_then(|attempt| attempt.how),
                });
            }
        }
        report.passed_over = self.policy.passed_over(now_ns);
        report
    }
}
