//! What maps say, without the ids in it: two agents that know the same write the same lines. For tests.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use proxy_common::abi::{Backend, Frontend, FrontendKey, ServiceWord, SockAddr};

use super::Observed;
use crate::plan::address_of;

/// A line for each frontend, list of backends, and range. Whatever leads nowhere is a line of its own.
pub fn lines(observed: &Observed) -> BTreeSet<String> {
    let frontends = observed.frontends.iter();
    let frontends = frontends.map(|(key, frontend)| frontend_line(observed, key, frontend));
    let lists = observed.names.keys().map(|id| list_line(observed, *id));
    let nets = observed.service_nets.iter();
    let nobodys = observed.backends.values();
    let nobodys = nobodys.filter(|backend| !observed.names.contains_key(&backend.service));
    let nameless = observed.services.keys();
    let nameless = nameless.filter(|id| !observed.names.contains_key(id));
    let ranges = observed.source_ranges.iter();
    let ranges = ranges.filter(|(id, _)| !observed.names.contains_key(id));
    frontends
        .chain(lists)
        .chain(nets.map(|net| format!("service net {net}")))
        .chain(nobodys.map(|backend| format!("nobody's backend {}", at(backend))))
        .chain(nameless.map(|id| format!("service {id} without a name")))
        .chain(ranges.map(|(id, ranges)| format!("nobody's ({id}) source ranges {ranges:?}")))
        .collect()
}

/// The name of a list of backends: port, protocol, family and scope.
fn name(observed: &Observed, id: u32) -> String {
    match observed.names.get(&id) {
        Some(name) => {
            let (text, protocol) = (name.text(), name.protocol);
            format!("{text}/{protocol}/v{}/{}", name.family, name.scope)
        }
        None if id == 0 => "nothing".to_owned(),
        None => "an id that is not in use".to_owned(),
    }
}

fn at(backend: &Backend) -> SocketAddr {
    SockAddr::from_parts(backend.addr, backend.port_be).socket_addr()
}

fn frontend_line(observed: &Observed, key: &FrontendKey, frontend: &Frontend) -> String {
    if let Some(ip) = address_of(key) {
        return format!("address {ip} = {frontend:?}");
    }
    let address = SockAddr::from_parts(key.addr, key.port_be).socket_addr();
    format!(
        "frontend {address}/{} of kind {} with flags {} = {}, from outside {}",
        key.protocol,
        frontend.kind,
        frontend.flags,
        name(observed, frontend.service),
        name(observed, frontend.outside_service),
    )
}

fn list_line(observed: &Observed, id: u32) -> String {
    let service = observed.services.get(&id).copied();
    let service = service.unwrap_or_else(|| ServiceWord::default().into());
    let word = service.word;
    let backend = |id: &u32| match observed.backends.get(id) {
        Some(backend) => format!("{} of {}", at(backend), name(observed, backend.service)),
        None => "an id that is not in use".to_owned(),
    };
    let slots = observed.slots.get(&word.first_slot());
    let slots: Vec<String> = match word.count() {
        0 => vec![format!("{:?}", word.empty())],
        _ => slots.into_iter().flatten().map(backend).collect(),
    };
    let twin = |id: u32| match id {
        0 => String::new(),
        id => format!(", twin {}", backend(&id)),
    };
    let backends = observed.backends.values();
    let backends: BTreeMap<SocketAddr, String> = backends
        .filter(|backend| backend.service == id)
        .map(|backend| {
            let (protocol, flags) = (backend.protocol, backend.flags);
            let (weight, twin) = (backend.weight, twin(backend.twin));
            let text = format!("protocol {protocol}, flags {flags}, weight {weight}{twin}");
            (at(backend), text)
        })
        .collect();
    format!(
        "list {} = {slots:?} by {}{}{}, affinity {} s of port {:#x}, backends {backends:?}, source ranges {:?}",
        name(observed, id),
        word.scheduler().name(),
        if word.is_weighted() { ", weighted" } else { "" },
        if word.fails_over() {
            ", with failover"
        } else {
            ""
        },
        service.affinity.timeout_secs(),
        service.affinity.port(),
        observed.source_ranges.get(&id).cloned().unwrap_or_default(),
    )
}
