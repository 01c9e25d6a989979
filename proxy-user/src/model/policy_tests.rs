use std::{net::Ipv4Addr, sync::Arc};

use proptest::prelude::*;

use super::{TrafficPolicy::*, *};

/// An endpoint in a few letters: `n1` or `n2` its node, `R`eady, `S`erving, `T`erminating, then hints
/// `za`, `zb` (zones) and `hn1` (node), separated by spaces.
fn endpoint(text: &str) -> Endpoint {
    let mut words = text.split(' ');
    let node = words.next().expect("a node");
    let state = words.next().expect("a state");
    let hints: Vec<&str> = words.collect();
    let hinted = |prefix| -> Vec<Arc<str>> {
        hints
            .iter()
            .filter_map(|hint| hint.strip_prefix(prefix))
            .map(Into::into)
            .collect()
    };
    Endpoint {
        address: Ipv4Addr::new(10, 1, 0, 1).into(),
        ready: state.contains('R'),
        serving: state.contains('S'),
        terminating: state.contains('T'),
        node: (node != "-").then(|| node.into()),
        pod: None,
        hostname: None,
        zone: None,
        zone_hints: hinted("z").into(),
        node_hints: hinted("h").into(),
    }
}

struct Row {
    /// The case's name in kube-proxy's `TestCategorizeEndpoints`.
    name: &'static str,
    internal: TrafficPolicy,
    external: TrafficPolicy,
    accessible: bool,
    zone: Option<&'static str>,
    endpoints: &'static [&'static str],
    cluster: &'static [usize],
    local: &'static [usize],
    has_any: bool,
}

/// Cluster policies, not accessible from outside, on node n1 in zone a, with an endpoint somewhere.
const ROW: Row = Row {
    name: "",
    internal: Cluster,
    external: Cluster,
    accessible: false,
    zone: Some("a"),
    endpoints: &[],
    cluster: &[],
    local: &[],
    has_any: true,
};

const ROWS: &[Row] = &[
    Row {
        name: "should use topology since all endpoints have hints, node has a zone label and and there are endpoints for the zone",
        endpoints: &["n1 RS za", "n2 RS zb", "n2 RS zc", "n1 RS za"],
        cluster: &[0, 3],
        ..ROW
    },
    Row {
        name: "eTP Local, topology ignored for Local endpoints",
        external: Local,
        accessible: true,
        endpoints: &["n1 RS za", "n1 RS zb", "n2 RS zc", "n2 RS za"],
        cluster: &[0, 3],
        local: &[0, 1],
        ..ROW
    },
    Row {
        name: "iTP Local, topology ignored for Local endpoints",
        internal: Local,
        accessible: true,
        endpoints: &["n1 RS za", "n1 RS zb", "n2 RS zc", "n2 RS za"],
        cluster: &[0, 3],
        local: &[0, 1],
        ..ROW
    },
    Row {
        name: "empty node labels",
        zone: None,
        endpoints: &["- RS za"],
        cluster: &[0],
        ..ROW
    },
    Row {
        name: "empty zone label",
        zone: None, // ingest makes none of an empty one
        endpoints: &["n2 RS za", "n2 RS zb"],
        cluster: &[0, 1],
        ..ROW
    },
    Row {
        name: "node in different zone, no endpoint filtering",
        zone: Some("z"),
        endpoints: &["n2 RS za", "n2 RS zb", "n2 RS zc"],
        cluster: &[0, 1, 2],
        ..ROW
    },
    Row {
        name: "unready endpoint",
        endpoints: &["n2 RS za", "n2 RS zb", "n2 - za", "n2 RS zc"],
        cluster: &[0],
        ..ROW
    },
    Row {
        name: "only unready endpoints in same zone (should not filter)",
        endpoints: &["n2 - za", "n2 RS zb", "n2 RS zc", "n2 - za"],
        cluster: &[1, 2],
        ..ROW
    },
    Row {
        name: "missing hints, no filtering applied",
        endpoints: &["n2 RS za", "n2 RS", "n2 RS zc", "n2 RS za"],
        cluster: &[0, 1, 2, 3],
        ..ROW
    },
    Row {
        name: "missing hints of an endpoint that is not ready don't matter",
        endpoints: &["n2 RS za", "n2 -", "n2 RS zc", "n2 ST"],
        cluster: &[0],
        ..ROW
    },
    Row {
        name: "multiple hints per endpoint, filtering includes any endpoint with zone included",
        zone: Some("c"),
        endpoints: &["n2 RS za zb zc", "n2 RS zb zc", "n2 RS zb zd", "n2 RS zc"],
        cluster: &[0, 1, 3],
        ..ROW
    },
    Row {
        // The gate is locked on since 1.35; without node hints the result is the same.
        name: "PreferSameNode falls back to same-zone when feature gate disabled",
        endpoints: &["n1 RS za", "n2 RS za", "n2 RS zb"],
        cluster: &[0, 1],
        ..ROW
    },
    Row {
        name: "PreferSameNode available",
        endpoints: &["n1 RS za hn1", "n2 RS za hn2", "n2 RS zb hn2"],
        cluster: &[0],
        ..ROW
    },
    Row {
        name: "PreferSameNode goes by the hint, not by where the endpoint runs",
        endpoints: &["n1 RS hn2", "n2 RS hn1 hn2"],
        cluster: &[1],
        ..ROW
    },
    Row {
        name: "PreferSameNode ignored if some endpoints unhinted",
        endpoints: &["n1 RS za hn1", "n2 RS za", "n2 RS za hn2"],
        cluster: &[0, 1, 2],
        ..ROW
    },
    Row {
        name: "PreferSameNode falls back to PreferSameZone if no endpoint for node",
        endpoints: &["n2 RS za hn2", "n3 RS za hn3", "n4 RS zb hn4"],
        cluster: &[0, 1],
        ..ROW
    },
    Row {
        name: "conflicting topology and localness require merging allEndpoints",
        internal: Cluster,
        external: Local,
        accessible: true,
        endpoints: &["n1 RS za", "n1 RS zb", "n2 RS za", "n2 RS zb"],
        cluster: &[0, 2],
        local: &[0, 1],
        ..ROW
    },
    Row {
        name: "internalTrafficPolicy: Local, with empty endpoints",
        internal: Local,
        has_any: false,
        ..ROW
    },
    Row {
        name: "internalTrafficPolicy: Local, but all endpoints are remote",
        internal: Local,
        endpoints: &["n2 RS", "n2 RS"],
        ..ROW
    },
    Row {
        name: "internalTrafficPolicy: Local, all endpoints are local",
        internal: Local,
        endpoints: &["n1 RS", "n1 RS"],
        local: &[0, 1],
        ..ROW
    },
    Row {
        name: "internalTrafficPolicy: Local, some endpoints are local",
        internal: Local,
        endpoints: &["n1 RS", "n2 RS"],
        local: &[0],
        ..ROW
    },
    Row {
        name: "Cluster traffic policy, endpoints not Ready",
        endpoints: &["n1 -", "n2 -"],
        has_any: false,
        ..ROW
    },
    Row {
        name: "Cluster traffic policy, some endpoints are Ready",
        endpoints: &["n1 -", "n2 RS"],
        cluster: &[1],
        ..ROW
    },
    Row {
        name: "Cluster traffic policy, all endpoints are terminating",
        accessible: true,
        endpoints: &["n1 ST", "n2 ST za", "n2 T"],
        cluster: &[0, 1],
        ..ROW
    },
    Row {
        name: "iTP: Local, eTP: Cluster, some endpoints local",
        internal: Local,
        accessible: true,
        endpoints: &["n1 RS", "n2 RS"],
        cluster: &[0, 1],
        local: &[0],
        ..ROW
    },
    Row {
        name: "iTP: Cluster, eTP: Local, some endpoints local",
        external: Local,
        accessible: true,
        endpoints: &["n1 RS", "n2 RS"],
        cluster: &[0, 1],
        local: &[0],
        ..ROW
    },
    Row {
        name: "iTP: Local, eTP: Local, some endpoints local",
        internal: Local,
        external: Local,
        accessible: true,
        endpoints: &["n1 RS", "n2 RS"],
        cluster: &[0, 1],
        local: &[0],
        ..ROW
    },
    Row {
        name: "iTP: Local, eTP: Local, all endpoints remote",
        internal: Local,
        external: Local,
        accessible: true,
        endpoints: &["n2 RS", "n3 RS"],
        cluster: &[0, 1],
        ..ROW
    },
    Row {
        name: "iTP: Local, eTP: Local, all endpoints remote and terminating",
        internal: Local,
        external: Local,
        accessible: true,
        endpoints: &["n2 ST", "n3 ST"],
        cluster: &[0, 1],
        ..ROW
    },
    Row {
        name: "iTP: Cluster, eTP: Local, with terminating endpoints",
        external: Local,
        accessible: true,
        endpoints: &["n1 -", "n1 ST", "n2 RS", "n2 ST"],
        cluster: &[2],
        local: &[1],
        ..ROW
    },
    Row {
        name: "externalTrafficPolicy ignored if not externally accessible",
        external: Local,
        endpoints: &["n1 RS", "n2 RS"],
        cluster: &[0, 1],
        ..ROW
    },
    Row {
        name: "no cluster endpoints for iTP:Local internal-only service",
        internal: Local,
        endpoints: &["n1 RS", "n2 RS"],
        local: &[0],
        ..ROW
    },
    Row {
        name: "empty endpoints",
        has_any: false,
        ..ROW
    },
    Row {
        name: "single endpoint not ready, not serving, not terminating",
        endpoints: &["n1 -"],
        has_any: false,
        ..ROW
    },
    Row {
        name: "serving alone is not enough",
        endpoints: &["n1 S"],
        has_any: false,
        ..ROW
    },
    Row {
        name: "ready while terminating is ready (publishNotReadyAddresses)",
        endpoints: &["n1 RT", "n2 ST"],
        cluster: &[0],
        ..ROW
    },
];

#[test]
fn each_case_of_kube_proxys_table_comes_out_the_same() {
    for row in ROWS {
        let endpoints: Vec<_> = row.endpoints.iter().map(|text| endpoint(text)).collect();
        let node = Node {
            name: "n1".into(),
            zone: row.zone.map(Into::into),
            ..Node::default()
        };
        let policies = Policies {
            internal: row.internal,
            external: row.external,
            externally_accessible: row.accessible,
        };
        let choice = categorize(&endpoints, &policies, &node);
        assert_eq!(choice.cluster, row.cluster, "{}: cluster", row.name);
        assert_eq!(choice.local, row.local, "{}: local", row.name);
        assert_eq!(choice.has_any, row.has_any, "{}: has_any", row.name);
    }
}

#[test]
fn an_endpoint_of_no_node_is_not_local_even_to_a_node_without_a_name() {
    let nameless = Node::default();
    assert!(!is_local(&endpoint("- RS"), &nameless));
}

/// The rules once more, each as a sentence of the specification and without sharing a line with it:
/// one endpoint is judged at a time, by what holds for the whole set.
fn plain(
    endpoints: &[Endpoint],
    policies: &Policies,
    node: &Node,
) -> (Vec<usize>, Vec<usize>, bool) {
    let ready: Vec<&Endpoint> = endpoints.iter().filter(|e| e.ready).collect();
    let node_hints_work = ready.iter().filter(|e| e.node_hints.is_empty()).count() == 0
        && ready
            .iter()
            .filter(|e| e.node_hints.contains(&node.name))
            .count()
            > 0;
    let in_zone = |e: &Endpoint| match &node.zone {
        None => false,
        Some(zone) => e.zone_hints.contains(zone),
    };
    let zone_hints_work = ready.iter().filter(|e| e.zone_hints.is_empty()).count() == 0
        && ready.iter().filter(|e| in_zone(e)).count() > 0;

    let nobody_ready = ready.is_empty();
    let nobody_ready_here = !ready.iter().any(|e| e.node.as_deref() == Some(&*node.name));
    let (mut cluster, mut local, mut any) = (vec![], vec![], false);
    for (i, e) in endpoints.iter().enumerate() {
        let draining = e.terminating && e.serving;
        any = any || e.ready || draining;

        let cluster_wanted = match (policies.internal, policies.externally_accessible) {
            (Local, false) => false,
            (Cluster, _) | (_, true) => true,
        };
        let close = if node_hints_work {
            e.node_hints.contains(&node.name)
        } else if zone_hints_work {
            in_zone(e)
        } else {
            true
        };
        if cluster_wanted && ((e.ready && close) || (nobody_ready && draining)) {
            cluster.push(i);
        }

        let local_wanted = match (
            policies.internal,
            policies.external,
            policies.externally_accessible,
        ) {
            (Local, _, _) | (_, Local, true) => true,
            (Cluster, Cluster, _) | (Cluster, Local, false) => false,
        };
        let here = e.node.as_deref() == Some(&*node.name);
        if local_wanted && here && (e.ready || (nobody_ready_here && draining)) {
            local.push(i);
        }
    }
    (cluster, local, any)
}

prop_compose! {
    fn any_endpoint()(
        ready in any::<bool>(), serving in any::<bool>(), terminating in any::<bool>(),
        node in prop::option::of("n[12]"),
        zones in prop::collection::vec("[ab]", 0..3), nodes in prop::collection::vec("n[12]", 0..3),
    ) -> Endpoint {
        Endpoint {
            address: Ipv4Addr::new(10, 1, 0, 1).into(),
            ready, serving, terminating,
            node: node.map(Into::into),
            pod: None,
            hostname: None,
            zone: None,
            zone_hints: zones.into_iter().map(Into::into).collect::<Vec<Arc<str>>>().into(),
            node_hints: nodes.into_iter().map(Into::into).collect::<Vec<Arc<str>>>().into(),
        }
    }
}

fn any_policy() -> impl Strategy<Value = TrafficPolicy> {
    prop_oneof![Just(Cluster), Just(Local)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]
    #[test]
    fn the_choice_is_what_a_plain_reading_of_the_rules_gives(
        endpoints in prop::collection::vec(any_endpoint(), 0..6),
        internal in any_policy(), external in any_policy(), externally_accessible in any::<bool>(),
        zone in prop::option::of("[ab]"),
    ) {
        let node = Node { name: "n1".into(), zone: zone.map(Into::into), ..Node::default() };
        let policies = Policies { internal, external, externally_accessible };
        let choice = categorize(&endpoints, &policies, &node);
        prop_assert_eq!((choice.cluster, choice.local, choice.has_any), plain(&endpoints, &policies, &node));
    }
}
