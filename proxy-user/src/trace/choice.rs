//! From whom a backend was chosen, read off what the datapath asked. Pure.

use std::collections::HashMap;

use proxy_common::{
    abi::{Backend, BackendStats, Client, Counter, Service, ServiceWord, SockAddr},
    datapath::traced::Lookup,
};

use crate::plan::address_of;

/// One that gets new connections of a service.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    pub id: u32,
    pub backend: Backend,
    /// In how many slots of the run it is.
    pub slots: u32,
    pub stats: BackendStats,
}

impl Candidate {
    pub(super) const fn address(&self) -> SockAddr {
        SockAddr::from_parts(self.backend.addr, self.backend.port_be)
    }

    pub(super) fn active(&self) -> u64 {
        u64::try_from(self.stats.active).unwrap_or(0)
    }
}

/// What gets new connections of a service, and which of them got this one.
#[derive(Clone, Debug)]
pub struct Choice {
    pub service: u32,
    pub word: ServiceWord,
    /// Each once, by address.
    pub candidates: Vec<Candidate>,
    pub backend_id: u32,
    pub backend: SockAddr,
    /// Not the scheduler's: the client had it already.
    pub is_kept: bool,
    /// Ids at which the scheduler looked, each once, in this order.
    pub looked_at: Vec<u32>,
    /// Those of them that were not to be had, if there were others.
    pub passed_over: Vec<u32>,
    /// How many connections the service had before, if that decides.
    pub turn: Option<u64>,
    /// Who dials, as the datapath knows it.
    pub client: Client,
}

impl Choice {
    pub(super) fn candidate(&self, id: u32) -> Option<&Candidate> {
        self.candidates.iter().find(|one| one.id == id)
    }

    /// Those that were looked at and might have been taken.
    pub(super) fn compared(&self) -> impl Iterator<Item = &Candidate> {
        let ids = self.looked_at.iter();
        ids.filter(|id| !self.passed_over.contains(id))
            .filter_map(|id| self.candidate(*id))
    }
}

/// Each backend of a run once, with the number of its slots: a run may have tens of thousands.
pub(super) fn candidates(
    word: ServiceWord,
    slot: impl Fn(u32) -> Option<u32>,
    backend: impl Fn(u32) -> Option<(Backend, BackendStats)>,
) -> Vec<Candidate> {
    let mut places: HashMap<u32, usize> = HashMap::new();
    let mut found: Vec<(u32, u32)> = Vec::new();
    for index in 0..word.count() {
        let Some(id) = slot(word.first_slot().wrapping_add(index)) else {
            continue;
        };
        let place = *places.entry(id).or_insert(found.len());
        match found.get_mut(place) {
            Some((_, slots)) => *slots += 1,
            None => found.push((id, 1)),
        }
    }
    let candidate = |(id, slots)| {
        let (backend, stats) = backend(id)?;
        Some(Candidate {
            id,
            backend,
            slots,
            stats,
        })
    };
    let mut found: Vec<Candidate> = found.into_iter().filter_map(candidate).collect();
    found.sort_by_key(|one| one.address().socket_addr());
    found
}

/// What was asked from the frontend on. What comes before is of an earlier flow.
pub(super) fn from_frontend(lookups: &[Lookup]) -> &[Lookup] {
    let is_frontend = |lookup: &Lookup| {
        if let Lookup::Frontend(key, found) = lookup {
            address_of(key).is_none() && found.is_some()
        } else {
            false
        }
    };
    let at = lookups.iter().position(is_frontend);
    at.map_or(&[], |at| &lookups[at..])
}

/// The service that was asked for a backend.
pub(super) fn service(lookups: &[Lookup]) -> Option<(u32, Option<Service>)> {
    from_frontend(lookups).iter().find_map(|lookup| {
        if let Lookup::Service(id, found) = lookup {
            Some((*id, *found))
        } else {
            None
        }
    })
}

/// Whatever became of the packet later. `avoid`: an id that it was not to get again, or 0.
pub(super) fn choice(
    lookups: &[Lookup],
    client: Client,
    avoid: u32,
    candidates: impl Fn(&Service) -> Vec<Candidate>,
) -> Option<Choice> {
    let (service, found) = service(lookups)?;
    let of_service = found?;
    let asked: Vec<&Lookup> = from_frontend(lookups)
        .iter()
        .take_while(|lookup| !is_of_what_follows(lookup))
        .collect();
    // The last question is whether the backend that was taken is one of the service.
    let last = asked.iter().rev().find_map(|lookup| {
        if let Lookup::Backend(id, found) = lookup {
            Some((*id, *found))
        } else {
            None
        }
    });
    let (backend_id, backend) = last?;
    let backend = backend.filter(|backend| backend.service == service)?;
    let mut looked_at = Vec::new();
    let mut passed_over = Vec::new();
    let mut turn = None;
    let mut candidates = candidates(&of_service);
    for (at, lookup) in asked.iter().enumerate() {
        if let Lookup::Slot(_, Some(id)) = lookup {
            add(&mut looked_at, *id);
            if avoid != 0 && *id == avoid {
                add(&mut passed_over, *id);
            }
        }
        if let Lookup::BackendStats(id, Some(stats)) = lookup {
            // As they were when they decided.
            if let Some(one) = candidates.iter_mut().find(|one| one.id == *id) {
                one.stats = *stats;
            }
            let next = asked.get(at + 1);
            if matches!(next, Some(Lookup::Count(Counter::BackendPassedOver))) {
                add(&mut passed_over, *id);
            }
        }
        if let Lookup::ServiceStats(_, stats) = lookup {
            turn = Some(stats.map_or(0, |stats| stats.connections));
        }
    }
    Some(Choice {
        service,
        word: of_service.word,
        candidates,
        backend_id,
        backend: SockAddr::from_parts(backend.addr, backend.port_be),
        is_kept: looked_at.is_empty(),
        looked_at,
        passed_over,
        turn,
        client,
    })
}

fn add(ids: &mut Vec<u32>, id: u32) {
    if !ids.contains(&id) {
        ids.push(id);
    }
}

/// Whether it was asked or written when the backend had been chosen.
fn is_of_what_follows(lookup: &Lookup) -> bool {
    if let Lookup::Count(counter) = lookup {
        return *counter != Counter::BackendPassedOver;
    }
    matches!(
        lookup,
        Lookup::AffinitySet(..)
            | Lookup::Route(..)
            | Lookup::FlowClaimed(..)
            | Lookup::FlowWritten(..)
            | Lookup::SocketFlowSet(..)
            | Lookup::UdpFlowSet(..)
            | Lookup::CountConnection(..)
    )
}
