//! What the maps say of a Service's backends.

use proxy_common::abi::{Backend, SockAddr};

use super::policy::{List, Seen};
use crate::maps::{StoreError, bpf::BpfStore};

/// Readings of a list that is being switched to other slots.
const READINGS: usize = 4;

/// The backends that get new connections, and of `others` those that belong to the service.
///
/// # Errors
/// The service is no element of its map.
pub(super) fn read(
    store: &BpfStore,
    service: u32,
    others: impl Iterator<Item = u32>,
) -> Result<List, StoreError> {
    let others: Vec<u32> = others.collect();
    let mut word = store.service(service)?.word;
    let mut ids = Vec::new();
    for _ in 0..READINGS {
        let slots = word.first_slot()..word.first_slot().saturating_add(word.count());
        ids.clear();
        ids.extend(slots.filter_map(|slot| store.slot(slot)));
        let now = store.service(service)?.word;
        if std::mem::replace(&mut word, now) == now {
            break;
        }
    }
    ids.extend(others);
    ids.sort_unstable();
    ids.dedup();
    let seen = |id: u32| {
        let backend = store.backend(id).filter(|_| id != 0)?;
        let stats = store.stats_of_backend(id).ok()?;
        (backend.service == service).then(|| Seen {
            id,
            at: SockAddr::from_parts(backend.addr, backend.port_be).socket_addr(),
            is_chosen: backend.flags & Backend::CHOSEN != 0,
            failures: stats.failures,
            until_ns: stats.passed_over_until_ns,
        })
    };
    Ok(List {
        service,
        fails_over: word.fails_over(),
        backends: ids.into_iter().filter_map(seen).collect(),
    })
}
