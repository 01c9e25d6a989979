//! AFFINITY: which clients keep which backend, and for how long.

use std::{collections::HashMap, net::SocketAddr};

use proxy_common::abi::{AffinityEntry, AffinityKey};
use serde::Serialize;

use super::{Filter, NONE, seconds_since};
use crate::{cli::output::Row, maps::Observed, plan::protocol_name};

#[derive(Debug, Serialize)]
pub(crate) struct AffinityRow {
    service: String,
    protocol: &'static str,
    /// Its address; or of a socket, `netns:` and the cookie of its network namespace.
    client: String,
    backend: SocketAddr,
    backend_id: u32,
    /// Seconds since its last new connection.
    idle_secs: u64,
    /// For how many seconds more a new connection gets that backend; absent if the Service has no affinity
    /// any more.
    left_secs: Option<u64>,
}

/// Of a Service port, by the number that its clients are known under.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Port {
    service: String,
    protocol: &'static str,
    timeout_secs: u32,
}

#[derive(Debug)]
pub(crate) struct Clients {
    ports: HashMap<u64, Port>,
    filter: Filter,
    entries: Vec<(AffinityKey, AffinityEntry)>,
}

impl Clients {
    pub(crate) fn new(observed: &Observed, filter: Filter) -> Self {
        let with_affinity = observed
            .services
            .iter()
            .filter(|(_, service)| service.affinity.is_on());
        let ports = with_affinity
            .map(|(id, service)| {
                let name = observed.names.get(id);
                let port = Port {
                    service: observed.service_name(*id).into_owned(),
                    protocol: name.map_or("?", |name| protocol_name(name.protocol)),
                    timeout_secs: service.affinity.timeout_secs(),
                };
                (service.affinity.port(), port)
            })
            .collect();
        Self {
            ports,
            filter,
            entries: Vec::new(),
        }
    }

    /// What a walk through the map finds, if it is asked for.
    pub(crate) fn add(&mut self, key: AffinityKey, entry: AffinityEntry) {
        let client = SocketAddr::new(key.client.addr.ip(), 0);
        let from = (key.client.netns == 0).then_some(client);
        let addresses = [Some(entry.backend.socket_addr()), from];
        if self
            .filter
            .admits(self.service(key.port), addresses.into_iter().flatten())
        {
            self.entries.push((key, entry));
        }
    }

    fn service(&self, port: u64) -> &str {
        self.ports.get(&port).map_or("?", |port| &port.service)
    }

    /// By Service, then client.
    pub(crate) fn sort(&mut self) {
        let mut entries = std::mem::take(&mut self.entries);
        entries.sort_by(|(a, _), (b, _)| {
            let client = |key: &AffinityKey| (key.port, key.client.netns, key.client.addr.ip());
            (self.service(a.port), client(a)).cmp(&(self.service(b.port), client(b)))
        });
        entries.dedup_by_key(|(key, _)| *key);
        self.entries = entries;
    }

    pub(crate) fn rows(&self, now_ns: u64) -> impl Iterator<Item = AffinityRow> {
        self.entries.iter().map(move |(key, entry)| {
            let port = self.ports.get(&key.port);
            let idle_secs = seconds_since(entry.used_ns, now_ns);
            AffinityRow {
                service: self.service(key.port).to_owned(),
                protocol: port.map_or("?", |port| port.protocol),
                client: match key.client.netns {
                    0 => key.client.addr.ip().to_string(),
                    cookie => format!("netns:{cookie}"),
                },
                backend: entry.backend.socket_addr(),
                backend_id: entry.backend_id,
                idle_secs,
                left_secs: port.map(|port| u64::from(port.timeout_secs).saturating_sub(idle_secs)),
            }
        })
    }
}

impl Row for AffinityRow {
    const HEADER: &'static [&'static str] = &[
        "CLIENT", "PROTO", "SERVICE", "BACKEND", "ID", "IDLE", "LEFT",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.client.clone(),
            self.protocol.to_owned(),
            self.service.clone(),
            self.backend.to_string(),
            self.backend_id.to_string(),
            format!("{}s", self.idle_secs),
            self.left_secs
                .map_or_else(|| NONE.to_owned(), |secs| format!("{secs}s")),
        ]
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::abi::Client;

    use super::super::fixture::{AFFINITY_PORT, NOW_NS, addr, filter, observed, sock, text};
    use super::*;

    fn clients(filter: Filter) -> Vec<String> {
        let mut clients = Clients::new(&observed(), filter);
        for (port, client, idle_secs, backend) in [
            (
                AFFINITY_PORT,
                Client::of_packet(addr("192.168.0.9")),
                5,
                "10.1.2.2:8080",
            ),
            (
                4711,
                Client::of_packet(addr("192.168.0.9")),
                1,
                "10.1.2.2:8080",
            ),
            (
                AFFINITY_PORT,
                Client::of_socket(77),
                10_801,
                "10.1.1.2:8080",
            ),
            (
                AFFINITY_PORT,
                Client::of_packet(addr("192.168.0.8")),
                0,
                "10.1.1.2:8080",
            ),
            // Seen twice.
            (
                AFFINITY_PORT,
                Client::of_socket(77),
                10_801,
                "10.1.1.2:8080",
            ),
        ] {
            let entry = AffinityEntry {
                used_ns: NOW_NS - idle_secs * 1_000_000_000,
                backend: sock(backend),
                backend_id: 1,
            };
            clients.add(AffinityKey { port, client }, entry);
        }
        clients.sort();
        text(&clients.rows(NOW_NS).collect::<Vec<_>>())
    }

    #[test]
    fn a_row_says_who_keeps_which_backend_and_for_how_long() {
        assert_eq!(
            clients(Filter::default()),
            [
                "192.168.0.9 ? ? 10.1.2.2:8080 1 1s -",
                "192.168.0.8 TCP default/web:http 10.1.1.2:8080 1 0s 10800s",
                "192.168.0.9 TCP default/web:http 10.1.2.2:8080 1 5s 10795s",
                "netns:77 TCP default/web:http 10.1.1.2:8080 1 10801s 0s",
            ]
        );
    }

    #[test]
    fn rows_are_filtered_by_client_and_by_backend() {
        let count = |service, address| clients(filter(None, service, address)).len();
        assert_eq!(count(None, Some("192.168.0.9")), 2);
        assert_eq!(count(Some("web"), Some("192.168.0.9")), 1);
        assert_eq!(count(None, Some("10.1.1.2:8080")), 2);
        // A socket has no address yet.
        assert_eq!(count(None, Some("::/0")), 0);
    }
}
