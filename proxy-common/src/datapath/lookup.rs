//! Frontend to backend: the part that every hook shares.

use core::num::NonZeroU32;

use crate::abi::{
    AffinityEntry, AffinityKey, Backend, Client, Counter, Empty, Frontend, FrontendKey, Service,
    ServiceWord, SockAddr,
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
pub struct Visit {
    pub client: Client,
    /// Monotonic.
    pub now_ns: u64,
}

/// A backend of `service` for a new connection: the one that the client got last, if the Service port
/// has affinity and the backend is still among the chosen (BEHAVIOUR S1-S6), or any other, each with
/// equal probability (E16).
#[inline(always)]
pub fn choose(
    tables: &impl Tables,
    service: u32,
    visit: impl FnOnce() -> Visit,
) -> Result<Choice, NoChoice> {
    // Read once: everything below must belong to one version of the service.
    let Some(Service { word, affinity }) = tables.service(service) else {
        return Err(NoChoice::Damaged);
    };
    let Some(count) = NonZeroU32::new(word.count()) else {
        return Err(without(word));
    };
    if !affinity.is_on() {
        return draw(tables, service, word.first_slot(), count);
    }
    let Visit { client, now_ns } = visit();
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
        None => draw(tables, service, word.first_slot(), count)?,
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

/// The backend in one of the slots, each with equal probability.
#[inline(always)]
fn draw(
    tables: &impl Tables,
    service: u32,
    first_slot: u32,
    count: NonZeroU32,
) -> Result<Choice, NoChoice> {
    // `random % count` prefers low slots by count / 2^32: under 0.4 % at the largest count there is.
    let index = first_slot.wrapping_add(tables.random() % count);
    tables
        .slot(index)
        .and_then(|backend_id| live(tables, service, backend_id))
        .ok_or(NoChoice::Damaged)
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
