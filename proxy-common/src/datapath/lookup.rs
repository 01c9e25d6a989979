//! Frontend to backend: the part that every hook shares.

use core::num::NonZeroU32;

use super::schedule::{self, Draw};
use crate::abi::{
    Addr, AffinityEntry, AffinityKey, AttemptFailure, Backend, BackendStats, Client, Counter,
    Empty, Frontend, FrontendKey, Scheduler, Service, ServiceStats, ServiceWord, SockAddr,
};

/// The maps that decide where a connection goes. Implemented by the kernel maps and by
/// [`super::fake::Maps`].
pub trait Tables {
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend>;
    fn service(&self, id: u32) -> Option<Service>;
    /// The backend id in a slot.
    fn slot(&self, index: u32) -> Option<u32>;
    fn backend(&self, id: u32) -> Option<Backend>;
    /// What a client of a Service port with affinity got last.
    fn affinity(&self, key: &AffinityKey) -> Option<AffinityEntry>;
    /// Whether there was room for it.
    fn set_affinity(&self, key: &AffinityKey, entry: &AffinityEntry) -> bool;
    fn random(&self) -> u32;
    /// Monotonic, a few milliseconds behind where that is cheaper.
    fn now_ns(&self) -> u64;
    fn service_stats(&self, id: u32) -> Option<ServiceStats>;
    fn backend_stats(&self, id: u32) -> Option<BackendStats>;
    /// Adds to [`BackendStats::active`].
    fn add_active(&self, backend_id: u32, change: i64);
    /// The backend has answered: [`BackendStats::failures`] is 0.
    fn note_answer(&self, backend_id: u32);
    /// Adds one to [`BackendStats::failures`], and tells the agent.
    fn note_failure(&self, failure: &AttemptFailure);
    /// [`schedule::pick`].
    fn pick(&self, draw: &Draw) -> u32;
    /// [`schedule::burden`].
    fn burden(&self, draw: &Draw, id: u32) -> u64;
    fn count(&self, counter: Counter);
    /// `service` gave a connection or flow to this backend.
    fn count_connection(&self, service: u32, backend_id: u32);
    /// `service` had nobody for a connection or flow.
    fn count_failure(&self, service: u32);
}

/// Counts what became of something that was for `service` (0: for none).
#[inline(always)]
pub fn account(tables: &impl Tables, outcome: Counter, service: u32, backend_id: u32) {
    if service == 0 {
        return;
    }
    if outcome.is_begin() {
        tables.count_connection(service, backend_id);
    } else if outcome.is_failure() {
        tables.count_failure(service);
    }
}

/// A backend that was chosen for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    pub backend_id: u32,
    pub service: u32,
    pub address: SockAddr,
    /// Whether it is on this node.
    pub is_local: bool,
}

/// Why no backend was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum NoChoice {
    /// No usable endpoint anywhere.
    NoEndpoints,
    /// Endpoints exist, but the policy is Local and none is here.
    NoLocalEndpoint,
    /// The maps contradict one another.
    Damaged,
}

/// Who asks, and when: asked for only where it matters.
#[derive(Clone, Copy, Debug)]
pub struct Visit<'a> {
    pub client: Client,
    pub dialled: &'a Addr,
    /// Monotonic.
    pub now_ns: u64,
}

/// A backend of `service` for a new connection: the one that the client got last, if the Service port
/// has affinity and the backend is still among the chosen (BEHAVIOUR S1-S6), or one by the service's
/// scheduler. `avoid` (0: none) is one that the connection is not to get again, if there is another.
#[inline(always)]
pub fn choose<'a>(
    tables: &impl Tables,
    service: u32,
    avoid: u32,
    visit: impl FnOnce() -> Visit<'a>,
) -> Result<Choice, NoChoice> {
    // Read once: everything below must belong to one version of the service.
    let Some(Service { word, affinity }) = tables.service(service) else {
        return Err(NoChoice::Damaged);
    };
    let Some(count) = NonZeroU32::new(word.count()) else {
        return Err(without(word));
    };
    let mut draw = Draw {
        service,
        word,
        client: 0,
        destination: 0,
        avoid,
    };
    if !affinity.is_on() {
        if word.scheduler().looks_at_addresses() {
            draw.looked_at(&visit());
        }
        return drawn(tables, &draw, count);
    }
    let visit = visit();
    draw.looked_at(&visit);
    let Visit { client, now_ns, .. } = visit;
    let key = AffinityKey {
        port: affinity.port(),
        client,
    };
    let kept = match tables.affinity(&key) {
        Some(entry) if !entry.is_expired(affinity.timeout_ns(), now_ns) => {
            still_chosen(tables, service, &entry)
        }
        Some(_) | None => None,
    };
    let choice = match kept {
        Some(choice) => choice,
        None => drawn(tables, &draw, count)?,
    };
    // Each new connection begins the time anew (S2).
    let remembered = tables.set_affinity(
        &key,
        &AffinityEntry {
            used_ns: now_ns,
            backend: choice.address,
            backend_id: choice.backend_id,
        },
    );
    if !remembered {
        tables.count(Counter::AffinityNotRemembered);
    }
    Ok(choice)
}

impl Draw {
    #[inline(always)]
    fn looked_at(&mut self, visit: &Visit<'_>) {
        self.client = schedule::hash_of_client(&visit.client);
        self.destination = schedule::hash_of(visit.dialled);
    }
}

/// A backend by the service's scheduler. What most have, any slot with equal probability (E16), is decided
/// here; all else takes a call.
#[inline(always)]
fn drawn(tables: &impl Tables, draw: &Draw, count: NonZeroU32) -> Result<Choice, NoChoice> {
    let word = draw.word;
    let mut id = 0;
    if matches!(word.scheduler(), Scheduler::Random) {
        // `random % count` prefers low slots by count / 2^32: under 0.4 % at the largest count there is.
        let index = word.first_slot().wrapping_add(tables.random() % count);
        id = tables.slot(index).unwrap_or(0);
        if schedule::is_passed_over(tables, word, id, draw.avoid) {
            id = 0;
        }
    }
    if id == 0 {
        id = tables.pick(draw);
    }
    live(tables, draw.service, id).ok_or(NoChoice::Damaged)
}

/// The entry's backend, if new connections to `service` go to it. It was got from the same list, or from
/// the Service port's other one, where it has another id.
#[inline(always)]
fn still_chosen(tables: &impl Tables, service: u32, entry: &AffinityEntry) -> Option<Choice> {
    let mut id = entry.backend_id;
    let mut backend = tables.backend(id)?;
    if backend.service != service {
        id = backend.twin;
        backend = tables.backend(id)?;
    }
    let choice = choice_of(service, id, &backend)?;
    (backend.flags & Backend::CHOSEN != 0 && choice.address == entry.backend).then_some(choice)
}

/// Why `service` would give nobody a backend; `None` if it has some.
#[inline(always)]
pub fn lack(tables: &impl Tables, service: u32) -> Option<NoChoice> {
    match tables.service(service) {
        None => Some(NoChoice::Damaged),
        Some(Service { word, .. }) if word.count() == 0 => Some(without(word)),
        Some(_) => None,
    }
}

#[inline(always)]
fn without(word: ServiceWord) -> NoChoice {
    match word.empty() {
        Empty::Refuse => NoChoice::NoEndpoints,
        Empty::Drop => NoChoice::NoLocalEndpoint,
        Empty::Unused => NoChoice::Damaged,
    }
}

/// `backend_id`, if it is (still) a backend of `service`.
#[inline(always)]
pub fn live(tables: &impl Tables, service: u32, backend_id: u32) -> Option<Choice> {
    choice_of(service, backend_id, &tables.backend(backend_id)?)
}

#[inline(always)]
fn choice_of(service: u32, backend_id: u32, backend: &Backend) -> Option<Choice> {
    (backend.service == service).then_some(Choice {
        backend_id,
        service,
        address: SockAddr::from_parts(backend.addr, backend.port_be),
        is_local: backend.flags & Backend::LOCAL != 0,
    })
}
