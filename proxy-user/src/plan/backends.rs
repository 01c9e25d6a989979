//! What is written of a backend: its flags, and where the same endpoint is in the Service port's other
//! list.

use std::{net::SocketAddr, sync::Arc};

use proxy_common::abi::{Backend, SockAddr};

use super::{
    planner::{KnownBackend, Plan, Planned, Planner},
    sorted::Sorted,
    step::Step,
};
use crate::{
    hash::HashMap,
    model::{PortKey, PortSnapshot},
};

/// A list of endpoints that is planned.
pub(super) struct List {
    pub(super) key: Arc<PortKey>,
    /// Its service id.
    pub(super) id: u32,
    /// Those that are wanted, and their ids.
    pub(super) backends: Sorted<SocketAddr, u32>,
}

impl Planner {
    /// Has each endpoint's backend in one list of a port name the one in the other. `from`: the first
    /// of the port's steps.
    pub(super) fn plan_twins(&self, plan: &mut Plan, from: usize, lists: &[List]) {
        let mut written: HashMap<u32, &mut Backend> = plan.steps[from..]
            .iter_mut()
            .filter_map(|planned| {
                if let Step::WriteBackend { id, backend } = &mut planned.step {
                    Some((*id, backend))
                } else {
                    None
                }
            })
            .collect();
        let mut steps = Vec::new();
        for list in lists {
            let other = lists.iter().find(|other| other.key != list.key);
            let known = self.ports.get(&list.key);
            for (address, id) in list.backends.iter() {
                let twin = other.and_then(|other| other.backends.get(address));
                let twin = twin.copied().unwrap_or(0);
                if let Some(backend) = written.get_mut(id) {
                    backend.twin = twin;
                } else if let Some(backend) = known.and_then(|port| port.backends.get(address))
                    && backend.twin != twin
                {
                    let backend = KnownBackend { twin, ..*backend };
                    steps.push(Planned {
                        port: Arc::clone(&list.key),
                        step: write(&list.key, list.id, address, &backend),
                    });
                }
            }
        }
        plan.steps.append(&mut steps);
    }
}

/// [`Backend::flags`] of a backend that is wanted.
pub(super) fn flags_of(snapshot: &PortSnapshot, address: &SocketAddr) -> u8 {
    let flag = |is_set, flag| if is_set { flag } else { 0 };
    flag(snapshot.local.contains(address), Backend::LOCAL)
        | flag(
            snapshot.chosen.binary_search(address).is_ok(),
            Backend::CHOSEN,
        )
}

pub(super) fn write(
    key: &PortKey,
    service: u32,
    address: &SocketAddr,
    backend: &KnownBackend,
) -> Step {
    let sock_addr = SockAddr::from(*address);
    let &KnownBackend {
        id,
        flags,
        weight,
        twin,
        ..
    } = backend;
    Step::WriteBackend {
        id,
        backend: Backend {
            addr: sock_addr.addr,
            port_be: sock_addr.port_be,
            protocol: key.protocol.number(),
            flags,
            weight,
            zero: 0,
            twin,
            service,
        },
    }
}
