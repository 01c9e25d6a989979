//! SOCKETS, UDP_FLOWS and UDP_REVERSE: what was dialled by sockets here, and where they are connected.

use std::{borrow::Cow, collections::HashMap, net::SocketAddr};

use proxy_common::abi::{
    Frontend, FrontendKey, Protocol, SockAddr, SocketCookie, SocketFlow, UdpFlow, UdpFlowKey,
};
use serde::Serialize;

use super::{Filter, NONE, seconds_since};
use crate::{cli::output::Row, maps::Observed, plan::protocol_name};

#[derive(Debug, Serialize)]
pub(crate) struct SocketRow {
    /// `connected`, by connect(); `sends`, an unconnected socket to a frontend; `hears`, what it gets from a
    /// backend comes from the frontend.
    kind: &'static str,
    protocol: &'static str,
    dialled: SocketAddr,
    /// Absent: parked until its Service has a backend; or the flow's backend is gone, and the next datagram
    /// gets another.
    connected: Option<SocketAddr>,
    service: String,
    service_id: Option<u32>,
    backend_id: Option<u32>,
    /// The kernel's number of the socket, for life.
    cookie: u64,
    /// Of a connected UDP socket, in the initial pid namespace: who connected it.
    pid: Option<u32>,
    command: Option<String>,
    /// Seconds since a recent datagram.
    idle_secs: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
enum Found {
    Connected(SocketCookie, SocketFlow),
    Sends(UdpFlowKey, UdpFlow),
    Hears(UdpFlowKey, SockAddr),
}

#[derive(Debug)]
pub(crate) struct Sockets<'a> {
    observed: &'a Observed,
    filter: Filter,
    entries: Vec<Found>,
}

/// One entry, looked up.
struct Resolved {
    kind: &'static str,
    protocol: u8,
    dialled: SocketAddr,
    connected: Option<SocketAddr>,
    service_id: Option<u32>,
    backend_id: Option<u32>,
    cookie: u64,
}

impl<'a> Sockets<'a> {
    pub(crate) fn new(observed: &'a Observed, filter: Filter) -> Self {
        Self {
            observed,
            filter,
            entries: Vec::new(),
        }
    }

    pub(crate) fn add_connected(&mut self, cookie: SocketCookie, flow: SocketFlow) {
        self.add(Found::Connected(cookie, flow));
    }

    pub(crate) fn add_udp_flow(&mut self, key: UdpFlowKey, flow: UdpFlow) {
        self.add(Found::Sends(key, flow));
    }

    pub(crate) fn add_udp_reverse(&mut self, key: UdpFlowKey, frontend: SockAddr) {
        self.add(Found::Hears(key, frontend));
    }

    fn add(&mut self, found: Found) {
        let resolved = self.resolve(&found);
        let service = self.service_name(resolved.service_id);
        let addresses = [Some(resolved.dialled), resolved.connected];
        if self
            .filter
            .admits(&service, addresses.into_iter().flatten())
        {
            self.entries.push(found);
        }
    }

    fn service_name(&self, id: Option<u32>) -> Cow<'_, str> {
        id.map_or(Cow::Borrowed("?"), |id| self.observed.service_name(id))
    }

    /// By what was dialled, then by socket.
    pub(crate) fn sort(&mut self) {
        let mut entries = std::mem::take(&mut self.entries);
        let key = |found: &Found| {
            let resolved = self.resolve(found);
            let Resolved {
                kind,
                protocol,
                dialled,
                connected,
                cookie,
                ..
            } = resolved;
            (protocol, dialled, cookie, kind, connected)
        };
        entries.sort_by_cached_key(key);
        entries.dedup_by_key(|found| key(found));
        self.entries = entries;
    }

    fn resolve(&self, found: &Found) -> Resolved {
        match found {
            Found::Connected(SocketCookie { cookie }, flow) => Resolved {
                kind: "connected",
                protocol: flow.protocol,
                dialled: flow.frontend.socket_addr(),
                connected: (flow.backend_id != 0).then(|| flow.backend.socket_addr()),
                service_id: Some(flow.service),
                backend_id: (flow.backend_id != 0).then_some(flow.backend_id),
                cookie: *cookie,
            },
            Found::Sends(key, flow) => {
                let frontend = self.frontend(key.peer);
                let backend = self.observed.backends.get(&flow.backend_id);
                // As the programs see it: an id that serves another Service by now is no backend of this one.
                let live = backend.filter(|backend| {
                    frontend.is_some_and(|frontend| {
                        [frontend.service, frontend.outside_service].contains(&backend.service)
                    })
                });
                Resolved {
                    kind: "sends",
                    protocol: Protocol::Udp.number(),
                    dialled: key.peer.socket_addr(),
                    connected: live.map(|backend| {
                        SockAddr::from_parts(backend.addr, backend.port_be).socket_addr()
                    }),
                    service_id: frontend.map(|frontend| frontend.service),
                    backend_id: live.map(|_| flow.backend_id),
                    cookie: key.cookie,
                }
            }
            Found::Hears(key, frontend) => Resolved {
                kind: "hears",
                protocol: Protocol::Udp.number(),
                dialled: frontend.socket_addr(),
                connected: Some(key.peer.socket_addr()),
                service_id: self.frontend(*frontend).map(|frontend| frontend.service),
                backend_id: None,
                cookie: key.cookie,
            },
        }
    }

    fn frontend(&self, at: SockAddr) -> Option<&Frontend> {
        self.observed.frontends.get(&FrontendKey {
            addr: at.addr,
            port_be: at.port_be,
            protocol: Protocol::Udp.number(),
            zero: 0,
        })
    }

    /// `command` tells the name of a process of the initial pid namespace.
    pub(crate) fn rows(
        &self,
        now_ns: u64,
        command: impl Fn(u32) -> Option<String>,
    ) -> impl Iterator<Item = SocketRow> {
        self.entries.iter().map(move |found| {
            let resolved = self.resolve(found);
            let (pid, idle_secs) = match found {
                Found::Connected(_, flow) => ((flow.tgid() != 0).then_some(flow.tgid()), None),
                Found::Sends(_, flow) => (None, Some(seconds_since(flow.used_ns, now_ns))),
                Found::Hears(..) => (None, None),
            };
            SocketRow {
                kind: resolved.kind,
                protocol: protocol_name(resolved.protocol),
                dialled: resolved.dialled,
                connected: resolved.connected,
                service: self.service_name(resolved.service_id).into_owned(),
                service_id: resolved.service_id,
                backend_id: resolved.backend_id,
                cookie: resolved.cookie,
                pid,
                command: pid.and_then(&command),
                idle_secs,
            }
        })
    }
}

impl SocketRow {
    /// Where nobody is.
    fn nowhere(&self) -> &'static str {
        match self.kind {
            "connected" => "parked",
            _ => "gone",
        }
    }
}

impl Row for SocketRow {
    const HEADER: &'static [&'static str] = &[
        "KIND",
        "PROTO",
        "DIALLED",
        "CONNECTED",
        "SERVICE",
        "BACKEND-ID",
        "IDLE",
        "COOKIE",
        "PID",
        "COMMAND",
    ];

    fn cells(&self) -> Vec<String> {
        fn known<T: ToString>(value: Option<&T>) -> String {
            value.map_or_else(|| NONE.to_owned(), T::to_string)
        }
        vec![
            self.kind.to_owned(),
            self.protocol.to_owned(),
            self.dialled.to_string(),
            self.connected
                .map_or_else(|| self.nowhere().to_owned(), |to| to.to_string()),
            self.service.clone(),
            known(self.backend_id.as_ref()),
            self.idle_secs
                .map_or_else(|| NONE.to_owned(), |secs| format!("{secs}s")),
            self.cookie.to_string(),
            known(self.pid.as_ref()),
            known(self.command.as_ref()),
        ]
    }
}

/// Names of processes, each asked for once.
#[derive(Debug, Default)]
pub(crate) struct Commands {
    known: std::cell::RefCell<HashMap<u32, Option<String>>>,
}

impl Commands {
    pub(crate) fn of(&self, pid: u32, ask: impl FnOnce(u32) -> Option<String>) -> Option<String> {
        let mut known = self.known.borrow_mut();
        known.entry(pid).or_insert_with(|| ask(pid)).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{NOW_NS, UDP_BACKEND, filter, observed_with_udp, sock, text};
    use super::*;

    fn connected(cookie: u64, protocol: Protocol, backend_id: u32, tgid: u32) -> Found {
        Found::Connected(
            SocketCookie { cookie },
            SocketFlow {
                frontend: sock("10.96.0.10:80"),
                backend: sock("10.1.1.2:8080"),
                backend_id,
                service: 1,
                tgid_or_ms: tgid,
                protocol: protocol.number(),
                attempt: 0,
                zero: [0; 2],
            },
        )
    }

    fn key(cookie: u64, peer: &str) -> UdpFlowKey {
        UdpFlowKey {
            cookie,
            peer: sock(peer),
            zero: 0,
        }
    }

    fn sends(cookie: u64, to: &str, backend_id: u32) -> Found {
        let flow = UdpFlow {
            used_ns: NOW_NS - 3_000_000_000,
            backend_id,
            zero: 0,
        };
        Found::Sends(key(cookie, to), flow)
    }

    fn lines(filter: Filter) -> Vec<String> {
        let observed = observed_with_udp();
        let mut sockets = Sockets::new(&observed, filter);
        for found in [
            Found::Hears(key(9, "10.1.1.3:5353"), sock("10.96.0.20:53")),
            sends(9, "10.96.0.20:53", UDP_BACKEND),
            // The id is another Service's.
            sends(8, "10.96.0.20:53", 1),
            connected(7, Protocol::Udp, 0, 4711),
            connected(6, Protocol::Tcp, 1, 0),
            connected(6, Protocol::Tcp, 1, 0),
            // The Service is gone.
            sends(5, "10.96.0.99:53", UDP_BACKEND),
        ] {
            sockets.add(found);
        }
        sockets.sort();
        let command = |pid| (pid == 4711).then(|| "a resolver".to_owned());
        text(&sockets.rows(NOW_NS, command).collect::<Vec<_>>())
    }

    #[test]
    fn a_row_says_what_was_dialled_and_where_that_led() {
        assert_eq!(
            lines(Filter::default()),
            [
                "connected TCP 10.96.0.10:80 10.1.1.2:8080 default/web:http 1 - 6 - -",
                "connected UDP 10.96.0.10:80 parked default/web:http - - 7 4711 a resolver",
                "sends UDP 10.96.0.20:53 gone kube-system/dns:dns - 3s 8 - -",
                "hears UDP 10.96.0.20:53 10.1.1.3:5353 kube-system/dns:dns - - 9 - -",
                "sends UDP 10.96.0.20:53 10.1.1.3:5353 kube-system/dns:dns 9 3s 9 - -",
                "sends UDP 10.96.0.99:53 gone ? - 3s 5 - -",
            ]
        );
    }

    #[test]
    fn rows_are_filtered_by_service_and_by_both_addresses() {
        let count = |service, address| lines(filter(None, service, address)).len();
        assert_eq!(count(Some("web"), None), 2);
        assert_eq!(count(None, Some("10.1.1.3:5353")), 2);
        assert_eq!(count(None, Some("10.96.0.20")), 3);
        assert_eq!(count(Some("dns"), Some("10.1.1.2")), 0);
    }
}
