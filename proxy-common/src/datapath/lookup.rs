//! Frontend to backend: the part that every hook shares.

use crate::abi::{Backend, Counter, Empty, Frontend, FrontendKey, ServiceWord, SockAddr};

/// The maps that decide where a connection goes. Implemented by the kernel maps and by
/// [`super::fake::Maps`].
pub trait Tables {
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend>;
    fn service(&self, id: u32) -> Option<ServiceWord>;
    /// The backend id in a slot.
    fn slot(&self, index: u32) -> Option<u32>;
    fn backend(&self, id: u32) -> Option<Backend>;
    fn random(&self) -> u32;
    fn count(&self, counter: Counter);
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

/// A backend of `service`, each with equal probability (BEHAVIOUR E16).
#[inline(always)]
pub fn choose(tables: &impl Tables, service: u32) -> Result<Choice, NoChoice> {
    // Read once: everything below must belong to one version of the service.
    let Some(word) = tables.service(service) else {
        return Err(NoChoice::Damaged);
    };
    let count = word.count();
    if count == 0 {
        return Err(without(word));
    }
    // `random % count` prefers low slots by count / 2^32: under 0.4 % at the largest count there is.
    let index = word.first_slot().wrapping_add(tables.random() % count);
    let Some(backend_id) = tables.slot(index) else {
        return Err(NoChoice::Damaged);
    };
    live(tables, service, backend_id).ok_or(NoChoice::Damaged)
}

/// Why `service` would give nobody a backend; `None` if it has some.
#[inline(always)]
pub fn lack(tables: &impl Tables, service: u32) -> Option<NoChoice> {
    match tables.service(service) {
        None => Some(NoChoice::Damaged),
        Some(word) if word.count() == 0 => Some(without(word)),
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
    let backend = tables.backend(backend_id)?;
    if backend.service != service {
        return None;
    }
    Some(Choice {
        backend_id,
        service,
        address: SockAddr::from_parts(backend.addr, backend.port_be),
        is_local: backend.flags & Backend::LOCAL != 0,
    })
}
