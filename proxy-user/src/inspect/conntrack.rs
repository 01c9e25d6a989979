//! FLOWS and HALF_OPEN: what becomes of packets that go on with what they began.

use std::net::SocketAddr;

use proxy_common::{
    abi::{Direction, FlowEntry, SockAddr, Tuple, Via},
    datapath::conntrack::{Table, state},
};
use serde::Serialize;

use super::{Filter, seconds_since};
use crate::{cli::output::Row, maps::Observed, plan::protocol_name};

/// One of the two entries of a flow.
#[derive(Debug, Serialize)]
pub(crate) struct FlowRow {
    protocol: &'static str,
    /// `original`: from the client; `reply`: from the backend.
    direction: &'static str,
    /// As the packet arrives.
    from: SocketAddr,
    to: SocketAddr,
    /// As it goes on.
    new_from: SocketAddr,
    new_to: SocketAddr,
    state: &'static str,
    /// Seconds since a recent packet; a second more or less.
    idle_secs: u64,
    service: String,
    service_id: u32,
    backend_id: u32,
    /// `stack`: the backend is on this node; `redirect`: elsewhere.
    via: &'static str,
    /// `established` or `half-open`.
    table: &'static str,
}

#[derive(Debug)]
struct Flow {
    table: Table,
    tuple: Tuple,
    entry: FlowEntry,
}

#[derive(Debug)]
pub(crate) struct Flows<'a> {
    observed: &'a Observed,
    filter: Filter,
    entries: Vec<Flow>,
}

impl<'a> Flows<'a> {
    pub(crate) fn new(observed: &'a Observed, filter: Filter) -> Self {
        Self {
            observed,
            filter,
            entries: Vec::new(),
        }
    }

    /// What a walk through one of the maps finds, if it is asked for.
    pub(crate) fn add(&mut self, table: Table, tuple: Tuple, entry: FlowEntry) {
        let flow = Flow {
            table,
            tuple,
            entry,
        };
        let service = self.observed.service_name(entry.service);
        if self.filter.admits(&service, flow.addresses()) {
            self.entries.push(flow);
        }
    }

    /// Both directions of a flow one after the other, flows by their clients.
    pub(crate) fn sort(&mut self) {
        self.entries.sort_unstable_by_key(Flow::sort_key);
        // One that moves from HALF_OPEN to FLOWS meanwhile is in both, and shown as established.
        self.entries.dedup_by_key(|flow| flow.tuple);
    }

    pub(crate) fn rows(&self, now_ns: u64) -> impl Iterator<Item = FlowRow> {
        self.entries.iter().map(move |flow| {
            let Flow {
                table,
                tuple,
                entry,
            } = flow;
            let [from, to, new_from, new_to] = flow.addresses();
            FlowRow {
                protocol: protocol_name(tuple.protocol),
                direction: match Direction::from_number(entry.direction) {
                    Direction::Original => "original",
                    Direction::Reply => "reply",
                },
                from,
                to,
                new_from,
                new_to,
                state: state_in_words(entry.state),
                idle_secs: seconds_since(entry.used_ns, now_ns),
                service: self.observed.service_name(entry.service).into_owned(),
                service_id: entry.service,
                backend_id: entry.backend_id,
                via: match Via::from_number(entry.via) {
                    Via::Stack => "stack",
                    Via::Redirect => "redirect",
                },
                table: match table {
                    Table::Established => "established",
                    Table::HalfOpen => "half-open",
                },
            }
        })
    }
}

/// An address and its port.
type InOrder = [u8; SockAddr::SIZE];

impl Flow {
    /// From, to, and both as they become.
    fn ends(&self) -> [SockAddr; 4] {
        let Tuple {
            src,
            dst,
            src_port_be,
            dst_port_be,
            ..
        } = self.tuple;
        [
            SockAddr::from_parts(src, src_port_be),
            SockAddr::from_parts(dst, dst_port_be),
            self.entry.src,
            self.entry.dst,
        ]
    }

    fn addresses(&self) -> [SocketAddr; 4] {
        self.ends().map(|end| end.socket_addr())
    }

    /// Addresses as they lie in memory, which is their order: there may be a million of them.
    fn sort_key(&self) -> (u8, InOrder, InOrder, u8, [InOrder; 2], bool) {
        let [from, to, new_from, new_to] = self.ends().map(SockAddr::to_bytes);
        let (client, frontend) = match Direction::from_number(self.entry.direction) {
            Direction::Original => (from, to),
            Direction::Reply => (new_to, new_from),
        };
        let half_open = matches!(self.table, Table::HalfOpen);
        let protocol = self.tuple.protocol;
        (
            protocol,
            client,
            frontend,
            self.entry.direction,
            [from, to],
            half_open,
        )
    }
}

/// The last that is known to have happened.
fn state_in_words(bits: u8) -> &'static str {
    const BOTH: u8 = state::FIN_ORIGINAL | state::FIN_REPLY;
    let has = |some: u8| bits & some != 0;
    if has(state::RESET_ORIGINAL) {
        "reset-by-client"
    } else if has(state::RESET_REPLY) {
        "reset-by-backend"
    } else if bits & BOTH == BOTH {
        "closed"
    } else if has(state::FIN_ORIGINAL) {
        "closed-by-client"
    } else if has(state::FIN_REPLY) {
        "closed-by-backend"
    } else if has(state::PROVEN) {
        "established"
    } else if has(state::REPLIED) {
        "answered"
    } else {
        "unanswered"
    }
}

impl Row for FlowRow {
    const HEADER: &'static [&'static str] = &[
        "PROTO",
        "DIRECTION",
        "FROM",
        "TO",
        "NEW-FROM",
        "NEW-TO",
        "STATE",
        "IDLE",
        "SERVICE",
        "BACKEND-ID",
        "VIA",
        "TABLE",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.protocol.to_owned(),
            self.direction.to_owned(),
            self.from.to_string(),
            self.to.to_string(),
            self.new_from.to_string(),
            self.new_to.to_string(),
            self.state.to_owned(),
            format!("{}s", self.idle_secs),
            self.service.clone(),
            self.backend_id.to_string(),
            self.via.to_owned(),
            self.table.to_owned(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::abi::Protocol;

    use super::super::fixture::{NOW_NS, filter, observed, sock, text};
    use super::*;

    const CLIENT: &str = "192.168.0.9:40000";
    const NODE_PORT: &str = "192.168.0.1:30080";
    const SNAT: &str = "192.168.0.1:10000";
    const BACKEND: &str = "10.1.2.2:8080";

    fn entry(
        [from, to, new_from, new_to]: [&str; 4],
        direction: Direction,
        state: u8,
    ) -> (Tuple, FlowEntry) {
        let (from, to) = (sock(from), sock(to));
        let tuple = Tuple {
            src: from.addr,
            dst: to.addr,
            src_port_be: from.port_be,
            dst_port_be: to.port_be,
            protocol: Protocol::Tcp.number(),
            zero: [0; 3],
        };
        let entry = FlowEntry {
            used_ns: NOW_NS - 7_900_000_000,
            src: sock(new_from),
            dst: sock(new_to),
            service: 1,
            backend_id: 2,
            proof: 0,
            direction: direction as u8,
            via: Via::Redirect as u8,
            state,
            zero: 0,
        };
        (tuple, entry)
    }

    fn lines(filter: Filter) -> Vec<String> {
        let observed = observed();
        let mut flows = Flows::new(&observed, filter);
        let proven = state::PROVEN | state::REPLIED;
        let reply = [BACKEND, SNAT, NODE_PORT, CLIENT];
        let original = [CLIENT, NODE_PORT, SNAT, BACKEND];
        let other = ["192.168.0.10:1", NODE_PORT, "192.168.0.1:10001", BACKEND];
        for (table, entries, direction, state) in [
            (
                Table::HalfOpen,
                original,
                Direction::Original,
                state::REPLIED,
            ),
            (Table::Established, reply, Direction::Reply, proven),
            (Table::HalfOpen, other, Direction::Original, 0),
            (Table::Established, original, Direction::Original, proven),
        ] {
            let (tuple, entry) = entry(entries, direction, state);
            flows.add(table, tuple, entry);
        }
        flows.sort();
        text(&flows.rows(NOW_NS).collect::<Vec<_>>())
    }

    #[test]
    fn both_directions_of_a_flow_lie_together_and_one_that_moves_is_shown_once() {
        assert_eq!(
            lines(Filter::default()),
            [
                "TCP original 192.168.0.9:40000 192.168.0.1:30080 192.168.0.1:10000 10.1.2.2:8080 established 7s default/web:http 2 redirect established",
                "TCP reply 10.1.2.2:8080 192.168.0.1:10000 192.168.0.1:30080 192.168.0.9:40000 established 7s default/web:http 2 redirect established",
                "TCP original 192.168.0.10:1 192.168.0.1:30080 192.168.0.1:10001 10.1.2.2:8080 unanswered 7s default/web:http 2 redirect half-open",
            ]
        );
    }

    #[test]
    fn rows_are_filtered_by_any_of_their_four_addresses() {
        let count = |service, address| lines(filter(None, service, address)).len();
        for address in [CLIENT, SNAT] {
            assert_eq!(count(None, Some(address)), 2, "{address}");
        }
        assert_eq!(count(None, Some("10.1.0.0/16")), 3);
        assert_eq!(count(Some("web:http"), Some("192.168.0.10")), 1);
        assert_eq!(count(Some("dns"), None), 0);
    }

    #[test]
    fn a_state_is_the_last_thing_that_happened() {
        let proven = state::PROVEN | state::REPLIED;
        for (bits, words) in [
            (0, "unanswered"),
            (state::REPLIED, "answered"),
            (proven, "established"),
            (proven | state::FIN_ORIGINAL, "closed-by-client"),
            (proven | state::FIN_REPLY, "closed-by-backend"),
            (proven | state::FIN_ORIGINAL | state::FIN_REPLY, "closed"),
            (
                proven | state::FIN_REPLY | state::RESET_ORIGINAL,
                "reset-by-client",
            ),
            (state::RESET_REPLY, "reset-by-backend"),
        ] {
            assert_eq!(state_in_words(bits), words, "{bits:#b}");
        }
    }
}
