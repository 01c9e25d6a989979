//! FRONTENDS: what clients dial, and what becomes of it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use proxy_common::abi::FrontendKind;

use super::{Filter, NONE};
use crate::{
    cli::output::Row,
    maps::Observed,
    plan::address_of,
    status::{BackendStatus, FrontendStatus, RangesStatus, frontends},
};

/// Sorted by Service, then address. A ClusterIP as such, of which every other port is refused, comes with
/// port 0 and no backends.
pub(crate) fn rows(observed: &Observed, filter: &Filter) -> Vec<FrontendStatus> {
    let mut rows = frontends(observed);
    rows.extend(reserved(observed));
    rows.retain(|row| filter.admits(&row.service, [SocketAddr::new(row.address, row.port)]));
    rows.sort_by(|a, b| a.sort_key().cmp(&b.sort_key()));
    rows
}

fn reserved(observed: &Observed) -> Vec<FrontendStatus> {
    let owners = observed.cluster_ip_owners();
    let addresses: BTreeSet<IpAddr> = observed.frontends.keys().filter_map(address_of).collect();
    addresses
        .into_iter()
        .map(|address| FrontendStatus {
            address,
            port: 0,
            protocol: NONE.to_owned(),
            kind: FrontendKind::ClusterIp.name(),
            service: owners
                .get(&address)
                .map_or_else(|| "?".to_owned(), String::clone),
            service_id: 0,
            verdict: "refuse",
            scheduler: None,
            failover: None,
            active: 0,
            backends: Vec::new(),
            outside: None,
            source_ranges: None,
            affinity_timeout_secs: None,
        })
        .collect()
}

impl Row for FrontendStatus {
    const HEADER: &'static [&'static str] = &[
        "FRONTEND", "PROTO", "KIND", "SERVICE", "ID", "VERDICT", "BACKENDS", "OUTSIDE", "AFFINITY",
        "SOURCES",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            match self.port {
                0 => self.address.to_string(),
                port => SocketAddr::new(self.address, port).to_string(),
            },
            self.protocol.clone(),
            self.kind.to_owned(),
            self.service.clone(),
            match self.service_id {
                0 => NONE.to_owned(),
                id => id.to_string(),
            },
            self.verdict.to_owned(),
            counts(&self.backends),
            self.outside.as_ref().map_or_else(
                || NONE.to_owned(),
                |outside| format!("{}:{}", outside.verdict, counts(&outside.backends)),
            ),
            self.affinity_timeout_secs
                .map_or_else(|| NONE.to_owned(), |secs| format!("{secs}s")),
            self.source_ranges
                .as_ref()
                .map_or_else(|| "any".to_owned(), sources),
        ]
    }
}

/// How many get new connections, and how many more keep those they have.
fn counts(backends: &[BackendStatus]) -> String {
    let chosen = backends.iter().filter(|backend| backend.chosen).count();
    match backends.len() - chosen {
        0 => chosen.to_string(),
        kept => format!("{chosen}+{kept}"),
    }
}

fn sources(ranges: &RangesStatus) -> String {
    let mut all = ranges.ranges.clone();
    all.extend(ranges.node_allowed.then(|| "node".to_owned()));
    all.extend(ranges.pods_allowed.then(|| "pods".to_owned()));
    match all.is_empty() {
        true => "nobody".to_owned(),
        false => all.join(","),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{filter, observed, text};
    use super::*;

    #[test]
    fn a_row_says_where_a_frontend_leads_and_for_whom() {
        assert_eq!(
            text(&rows(&observed(), &Filter::default())),
            [
                "10.96.0.10 - ClusterIP default/web - refuse 0 - - any",
                "10.96.0.10:80 TCP ClusterIP default/web:http 1 translate 2+1 - 10800s any",
                "192.168.0.1:30080 TCP NodePort default/web:http 1 translate 2+1 translate:1 10800s any",
                "203.0.113.9:80 TCP LoadBalancer default/web:http 1 translate 2+1 - 10800s 10.0.0.0/8,node",
                "10.96.0.20:53 UDP ClusterIP kube-system/dns:dns 3 refuse 0 - - any",
            ]
        );
    }

    #[test]
    fn rows_are_filtered_by_service_and_address() {
        let of = |namespace, service, address| {
            let rows = rows(&observed(), &filter(namespace, service, address));
            let lines = rows.iter().map(|row| row.cells().swap_remove(0));
            lines.collect::<Vec<_>>()
        };
        assert_eq!(of(Some("kube-system"), None, None), ["10.96.0.20:53"]);
        assert_eq!(
            of(None, None, Some("10.96.0.10")),
            ["10.96.0.10", "10.96.0.10:80"]
        );
        assert_eq!(
            of(None, Some("web:http"), Some("203.0.113.9:80")),
            ["203.0.113.9:80"]
        );
        assert_eq!(of(None, Some("nobody"), None), [""; 0]);
    }
}
