//! BACKENDS: where Services lead.

use std::{collections::HashMap, net::SocketAddr};

use proxy_common::abi::{Backend, BackendStats, SockAddr};
use serde::Serialize;

use super::{Filter, NONE};
use crate::{
    cli::output::Row,
    failover::shown::{seconds, time_left},
    maps::Observed,
    plan::protocol_name,
};

/// What nobody knows.
const UNKNOWN: &str = "?";

#[derive(Debug, Serialize)]
pub(crate) struct BackendRow {
    /// `-` of one that is gone, and has only its connections left.
    service: String,
    /// Not known of every one that is gone.
    address: Option<SocketAddr>,
    protocol: &'static str,
    /// Of whose list of the Service port: `cluster`, or `node` for this node's endpoints.
    list: &'static str,
    id: u32,
    service_id: u32,
    /// Gets new connections; otherwise it only keeps those it has.
    chosen: bool,
    /// Connections of this node that it has.
    active: u64,
    /// On this node.
    local: bool,
    /// Its id in the other list; 0: it isn't there.
    twin: u32,
    /// Attempts to connect that failed since one was answered.
    failures: u32,
    /// For so many seconds it gets no new connections, if others can have them; `null`: it isn't passed over.
    passed_over_secs: Option<u64>,
}

/// Sorted by Service, then address. `stats`: those that are not all 0, by id.
pub(crate) fn rows(
    observed: &Observed,
    stats: &HashMap<u32, BackendStats>,
    now_ns: u64,
    filter: &Filter,
) -> Vec<BackendRow> {
    let slotted = observed.slotted();
    let of = |id: u32, service: String, list: &'static str, backend: Option<&Backend>| BackendRow {
        service,
        address: backend
            .map(|backend| SockAddr::from_parts(backend.addr, backend.port_be).socket_addr()),
        protocol: backend.map_or(UNKNOWN, |backend| protocol_name(backend.protocol)),
        list,
        id,
        service_id: backend.map_or(0, |backend| backend.service),
        chosen: slotted.contains(&id),
        active: observed.connections(id),
        local: backend.is_some_and(|backend| backend.flags & Backend::LOCAL != 0),
        twin: backend.map_or(0, |backend| backend.twin),
        failures: stats.get(&id).map_or(0, |stats| stats.failures),
        passed_over_secs: stats
            .get(&id)
            .and_then(|stats| time_left(stats, now_ns))
            .map(seconds),
    };
    let kept = observed.backends.iter().map(|(&id, backend)| {
        let list = match observed.names.get(&backend.service).map(|name| name.scope) {
            Some(0) => "cluster",
            Some(1) => "node",
            Some(_) | None => UNKNOWN,
        };
        let service = observed.service_name(backend.service).into_owned();
        of(id, service, list, Some(backend))
    });
    let gone = observed
        .gone()
        .map(|(id, backend)| of(id, NONE.to_owned(), NONE, backend));
    let mut rows: Vec<BackendRow> = kept
        .chain(gone)
        .filter(|row| filter.admits(&row.service, row.address))
        .collect();
    rows.sort_by(|a, b| {
        let key = |row: &BackendRow| (row.address, row.protocol, row.list, row.id);
        (&a.service, key(a)).cmp(&(&b.service, key(b)))
    });
    rows
}

impl BackendRow {
    fn state(&self) -> &'static str {
        match (self.chosen, self.service_id, self.active) {
            (true, ..) => "chosen",
            (false, 0, _) => "gone",
            (false, _, 0) => "kept",
            (false, ..) => "draining",
        }
    }
}

impl Row for BackendRow {
    const HEADER: &'static [&'static str] = &[
        "BACKEND",
        "PROTO",
        "SERVICE",
        "LIST",
        "STATE",
        "ACTIVE",
        "WHERE",
        "ID",
        "SERVICE-ID",
        "FAILED",
        "PASSED-OVER",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.address
                .map_or_else(|| UNKNOWN.to_owned(), |address| address.to_string()),
            self.protocol.to_owned(),
            self.service.clone(),
            self.list.to_owned(),
            self.state().to_owned(),
            self.active.to_string(),
            if self.local { "here" } else { "elsewhere" }.to_owned(),
            self.id.to_string(),
            self.service_id.to_string(),
            self.failures.to_string(),
            self.passed_over_secs
                .map_or_else(|| "-".to_owned(), |left| format!("{left}s")),
        ]
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::abi::Protocol;

    use super::super::fixture::{NOW_NS, backend, filter, observed, text};
    use super::*;

    #[test]
    fn a_row_says_whose_a_backend_is_and_whether_it_gets_more() {
        let failed = |failures, passed_over_until_ns| BackendStats {
            failures,
            passed_over_until_ns,
            ..BackendStats::default()
        };
        let stats = HashMap::from([
            (1, failed(2, NOW_NS)),
            (2, failed(3, NOW_NS + 6_000_000_001)),
        ]);
        let rows = rows(&observed(), &stats, NOW_NS, &Filter::default());
        assert_eq!(
            text(&rows),
            [
                "10.1.1.2:8080 TCP default/web:http cluster chosen 0 here 1 1 2 -",
                "10.1.1.2:8080 TCP default/web:http node chosen 0 here 4 2 0 -",
                "10.1.2.2:8080 TCP default/web:http cluster chosen 0 elsewhere 2 1 3 7s",
                "10.1.2.3:8080 TCP default/web:http cluster kept 0 elsewhere 3 1 0 -",
            ]
        );
    }

    #[test]
    fn a_backend_without_new_connections_is_drained_of_those_it_has() {
        let mut observed = observed();
        observed
            .active
            .extend([(1, 2), (3, 5), (7, 1), (8, 4), (4, -1)]);
        let gone = backend("10.1.2.9:8080", Protocol::Tcp, 0, 0);
        observed.gone.insert(7, gone);
        assert_eq!(
            text(&rows(
                &observed,
                &HashMap::new(),
                NOW_NS,
                &Filter::default()
            )),
            [
                "? ? - - gone 4 elsewhere 8 0 0 -",
                "10.1.2.9:8080 TCP - - gone 1 elsewhere 7 0 0 -",
                "10.1.1.2:8080 TCP default/web:http cluster chosen 2 here 1 1 0 -",
                // What is below 0 is about to be set right.
                "10.1.1.2:8080 TCP default/web:http node chosen 0 here 4 2 0 -",
                "10.1.2.2:8080 TCP default/web:http cluster chosen 0 elsewhere 2 1 0 -",
                "10.1.2.3:8080 TCP default/web:http cluster draining 5 elsewhere 3 1 0 -",
            ]
        );
        let admitted = |service, address| {
            let filter = filter(None, service, address);
            rows(&observed, &HashMap::new(), NOW_NS, &filter).len()
        };
        assert_eq!(admitted(Some("web"), None), 4);
        assert_eq!(admitted(None, Some("10.1.2.9")), 1);
    }

    #[test]
    fn rows_are_filtered_by_service_and_address() {
        let count = |service, address| {
            let filter = filter(None, service, address);
            rows(&observed(), &HashMap::new(), NOW_NS, &filter).len()
        };
        assert_eq!(count(Some("dns"), None), 0);
        assert_eq!(count(Some("web"), Some("10.1.1.0/24")), 2);
        assert_eq!(count(None, Some("10.1.2.3:8080")), 1);
    }
}
