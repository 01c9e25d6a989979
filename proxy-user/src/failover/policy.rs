//! Who is passed over, and for how long. Nothing here reads a clock or a map.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

/// So many attempts in a row must fail.
pub(super) const FAILURES: u32 = 3;
/// The first time; each further one in a row is twice as long.
pub(super) const FIRST: Duration = Duration::from_secs(10);
pub(super) const LONGEST: Duration = Duration::from_secs(300);
/// A backend of which nothing was heard for so long begins anew.
const FORGET: Duration = Duration::from_secs(600);

/// A Service's backends, of one list of one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct List {
    pub(super) service: u32,
    pub(super) fails_over: bool,
    pub(super) backends: Vec<Seen>,
}

/// What the maps say of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) id: u32,
    pub(super) at: SocketAddr,
    /// Gets new connections.
    pub(super) is_chosen: bool,
    /// Attempts that failed since one was answered.
    pub(super) failures: u32,
    /// Monotonic; 0 for not.
    pub(super) until_ns: u64,
}

/// Of a backend: what is to be written, and told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) id: u32,
    pub(super) at: SocketAddr,
    pub(super) what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// It is passed over until then; `times` in a row.
    PassedOver {
        until_ns: u64,
        length: Duration,
        times: u32,
        failures: u32,
    },
    /// It fails, and nothing is written: half of its list's `all` are passed over.
    Kept { failures: u32, all: usize },
    /// It is no longer passed over: 0 is written.
    Back(Why),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// After its time it was tried, and answers.
    Answers,
    /// It gets no new connections anyway.
    Left,
    /// The Service wants nobody to be passed over.
    SwitchedOff,
    /// There are fewer backends than there were, and more than half would be passed over.
    TooMany,
    /// The time is later than anybody writes.
    Damaged,
    /// Nobody has tried it for long.
    Forgotten,
}

impl Change {
    /// What `passed_over_until_ns` is to be.
    pub(super) fn write(&self) -> Option<u64> {
        match self.what {
            What::PassedOver { until_ns, .. } => Some(until_ns),
            What::Back(_) => Some(0),
            What::Kept { .. } => None,
        }
    }
}

/// Of a backend that fails, or did a while ago.
#[derive(Clone, Debug)]
struct Record {
    at: SocketAddr,
    /// How often in a row it was passed over; 0 for one that was only kept.
    times: u32,
    /// What was written last.
    until_ns: u64,
    /// When it last failed, or was no longer passed over.
    heard_ns: u64,
    /// Since when it answers again.
    answers_since_ns: Option<u64>,
    /// It would be passed over, if not half of the others were.
    waits: bool,
}

/// Backends by service id and backend id: each list is judged by itself.
#[derive(Debug, Default)]
pub(super) struct Policy {
    records: BTreeMap<(u32, u32), Record>,
}

fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The time for which a backend is passed over the first, second, ... time.
fn length(times: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(times.saturating_sub(1));
    FIRST.saturating_mul(doubled).min(LONGEST)
}

/// The other way round.
fn times(left: Duration) -> u32 {
    let longer = (1..).take_while(|times| length(*times) < left.min(LONGEST));
    1 + u32::try_from(longer.count()).unwrap_or(0)
}

impl Policy {
    /// Lists that may have to be looked at though nothing is told of them.
    pub(super) fn services(&self) -> BTreeSet<u32> {
        self.records.keys().map(|(service, _)| *service).collect()
    }

    /// Nobody has failed lately.
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Backends of a list of which something is known.
    pub(super) fn backends(&self, service: u32) -> impl Iterator<Item = u32> {
        let theirs = self.records.range((service, 0)..=(service, u32::MAX));
        theirs.map(|((_, id), _)| *id)
    }

    /// How many backends are passed over.
    pub(super) fn passed_over(&self, now_ns: u64) -> usize {
        let records = self.records.values();
        records.filter(|record| record.until_ns > now_ns).count()
    }

    /// What is to be done about a list as it is now. `failed`: when attempts last failed, by backend id, of those
    /// of which that was told since the last look.
    pub(super) fn look(
        &mut self,
        now_ns: u64,
        list: &List,
        failed: &BTreeMap<u32, u64>,
    ) -> Vec<Change> {
        let mut backends = list.backends.clone();
        backends.sort_by_key(|backend| backend.id);
        self.records.retain(|(service, id), record| {
            let is_it = |seen: &Seen| seen.at == record.at && seen.until_ns == record.until_ns;
            let place = backends.binary_search_by_key(id, |seen| seen.id);
            // One that says something else is another, or begins anew.
            *service != list.service || place.is_ok_and(|place| is_it(&backends[place]))
        });
        let mut changes = Vec::new();
        for seen in &mut backends {
            if let Some(why) = self.back(now_ns, list, seen) {
                seen.until_ns = 0;
                changes.push(Change::of(seen, What::Back(why)));
            }
        }
        backends.retain(|seen| list.fails_over && seen.is_chosen);
        let most = backends.len() / 2;
        let mut out = self.make_room(now_ns, list.service, &mut backends, most, &mut changes);

        let mut failing: Vec<&Seen> = (backends.iter())
            .filter(|seen| seen.until_ns <= now_ns && seen.failures >= FAILURES)
            .filter(|seen| {
                let waits = self.get(list.service, seen).is_some_and(|one| one.waits);
                // What failed while it was passed over had begun before, or was not given another.
                let again = failed.get(&seen.id).is_some_and(|at| *at >= seen.until_ns);
                waits || again
            })
            .collect();
        failing.sort_by_key(|seen| (Reverse(seen.failures), seen.id));
        for seen in failing {
            let record = self.records.entry((list.service, seen.id));
            let record = record.or_insert_with(|| Record::new(seen, now_ns));
            record.answers_since_ns = None;
            if failed.contains_key(&seen.id) {
                record.heard_ns = now_ns;
            }
            if out < most {
                out += 1;
                changes.push(Change::of(seen, record.pass_over(now_ns, seen.failures)));
            } else if !std::mem::replace(&mut record.waits, true) {
                let what = What::Kept {
                    failures: seen.failures,
                    all: backends.len(),
                };
                changes.push(Change::of(seen, what));
            }
        }
        changes
    }

    fn get(&self, service: u32, seen: &Seen) -> Option<&Record> {
        self.records.get(&(service, seen.id))
    }

    /// Whether it is no longer passed over, for a reason of its own; and what is known of it.
    fn back(&mut self, now_ns: u64, list: &List, seen: &Seen) -> Option<Why> {
        let key = (list.service, seen.id);
        let whole_service = (!list.fails_over).then_some(Why::SwitchedOff);
        let damaged = seen.until_ns > now_ns.saturating_add(ns(LONGEST));
        if let Some(why) = whole_service
            .or((!seen.is_chosen).then_some(Why::Left))
            .or(damaged.then_some(Why::Damaged))
        {
            self.records.remove(&key);
            return (seen.until_ns != 0).then_some(why);
        }
        if seen.until_ns != 0 {
            // It was passed over by an earlier agent.
            let record = self.records.entry(key);
            record.or_insert_with(|| Record {
                times: times(Duration::from_nanos(seen.until_ns.saturating_sub(now_ns))),
                until_ns: seen.until_ns,
                heard_ns: seen.until_ns,
                ..Record::new(seen, now_ns)
            });
        }
        let record = self.records.get_mut(&key)?;
        if seen.until_ns > now_ns {
            return None;
        }
        if seen.failures >= FAILURES {
            record.answers_since_ns = None;
            if now_ns < record.heard_ns.saturating_add(ns(FORGET)) {
                return None;
            }
            self.records.remove(&key);
            return (seen.until_ns != 0).then_some(Why::Forgotten);
        }
        record.waits = false;
        record.until_ns = 0;
        let since_ns = *record.answers_since_ns.get_or_insert(now_ns);
        if record.times == 0 || now_ns - since_ns >= ns(length(record.times)) {
            self.records.remove(&key);
        }
        (seen.until_ns != 0).then_some(Why::Answers)
    }

    /// Takes those back that are too many, the soonest to be back first; yields how many are out then.
    fn make_room(
        &mut self,
        now_ns: u64,
        service: u32,
        backends: &mut [Seen],
        most: usize,
        changes: &mut Vec<Change>,
    ) -> usize {
        let mut out: Vec<&mut Seen> = (backends.iter_mut())
            .filter(|seen| seen.until_ns > now_ns)
            .collect();
        out.sort_by_key(|seen| (seen.until_ns, seen.id));
        let too_many = out.len().saturating_sub(most);
        for seen in out.iter_mut().take(too_many) {
            seen.until_ns = 0;
            if let Some(record) = self.records.get_mut(&(service, seen.id)) {
                record.until_ns = 0;
                record.heard_ns = now_ns;
            }
            changes.push(Change::of(seen, What::Back(Why::TooMany)));
        }
        out.len() - too_many
    }
}

impl Change {
    fn of(seen: &Seen, what: What) -> Self {
        Self {
            id: seen.id,
            at: seen.at,
            what,
        }
    }
}

impl Record {
    fn new(seen: &Seen, now_ns: u64) -> Self {
        Self {
            at: seen.at,
            times: 0,
            until_ns: seen.until_ns,
            heard_ns: now_ns,
            answers_since_ns: None,
            waits: false,
        }
    }

    fn pass_over(&mut self, now_ns: u64, failures: u32) -> What {
        self.times = self.times.saturating_add(1);
        let length = length(self.times);
        self.until_ns = now_ns.saturating_add(ns(length));
        self.heard_ns = self.until_ns;
        self.waits = false;
        What::PassedOver {
            until_ns: self.until_ns,
            length,
            times: self.times,
            failures,
        }
    }
}
