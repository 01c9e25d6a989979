use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;

use super::{Ingested, LABEL_ZONE, Problems, TAINT_TO_BE_DELETED, address};
use crate::model::{Event, Family, Node};

/// Only the agent's own Node matters, and of it the zone, the addresses, the pods' ranges, and whether it
/// stays (`pkg/proxy/node.go`).
pub fn node(node: core::Node, own_name: &str) -> Ingested {
    let own = node.metadata.name.as_deref() == Some(own_name);
    let mut problems = Problems::of("Node", own_name);
    let spec = node.spec.unwrap_or_default();
    let leaves = node.metadata.deletion_timestamp.is_some()
        || spec
            .taints
            .iter()
            .flatten()
            .any(|taint| taint.key == TAINT_TO_BE_DELETED);
    let pod_cidrs: Vec<_> = pod_cidrs(spec)
        .iter()
        .enumerate()
        .map(|(i, text)| problems.keep(format!("spec.podCIDRs[{i}]"), address::range(text)))
        .collect();
    let addresses = node.status.and_then(|status| status.addresses);
    let mut internal_ips: Vec<IpAddr> = Vec::new();
    for address in addresses.into_iter().flatten() {
        let ip = (address.type_ == "InternalIP")
            .then(|| address.address.parse::<IpAddr>().ok())
            .flatten();
        if let Some(ip) = ip
            && !internal_ips
                .iter()
                .any(|known| Family::of(known) == Family::of(&ip))
        {
            internal_ips.push(ip);
        }
    }
    let zone = node
        .metadata
        .labels
        .and_then(|mut labels| labels.remove(LABEL_ZONE))
        .filter(|zone| !zone.is_empty());
    Ingested {
        event: own.then(|| {
            Event::NodeChanged(Node {
                name: own_name.into(),
                zone: zone.map(Into::into),
                internal_ips,
                eligible: Some(!leaves),
                // Some of them are as good as none: what is asked is whether *all* pods are meant.
                pod_cidrs: pod_cidrs
                    .into_iter()
                    .collect::<Option<_>>()
                    .unwrap_or_default(),
            })
        }),
        problems: if own { problems.found } else { Vec::new() },
    }
}

fn pod_cidrs(spec: core::NodeSpec) -> Vec<String> {
    let listed = spec.pod_cidrs.unwrap_or_default();
    if listed.is_empty() {
        spec.pod_cidr
            .into_iter()
            .filter(|cidr| !cidr.is_empty())
            .collect()
    } else {
        listed
    }
}

/// Without its Node object the agent still runs where it runs, it only knows no zone.
pub fn node_gone(own_name: &str) -> Event {
    Event::NodeChanged(Node {
        name: own_name.into(),
        ..Node::default()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ingest(labels: serde_json::Value) -> Option<Event> {
        let object = json!({"metadata": {"name": "n1", "labels": labels}});
        node(serde_json::from_value(object).expect("a Node"), "n1").event
    }

    #[test]
    fn the_zone_is_the_label_and_an_empty_one_is_none() {
        let zone = |zone: Option<&str>| {
            Some(Event::NodeChanged(Node {
                name: "n1".into(),
                zone: zone.map(Into::into),
                eligible: Some(true),
                ..Node::default()
            }))
        };
        assert_eq!(ingest(json!({LABEL_ZONE: "a"})), zone(Some("a")));
        assert_eq!(ingest(json!({LABEL_ZONE: ""})), zone(None));
        assert_eq!(ingest(json!({})), zone(None));
    }

    #[test]
    fn its_first_internal_address_of_each_family_is_kept() {
        let object = json!({"metadata": {"name": "n1"}, "status": {"addresses": [
            {"type": "Hostname", "address": "n1"},
            {"type": "ExternalIP", "address": "203.0.113.1"},
            {"type": "InternalIP", "address": "192.168.0.2"},
            {"type": "InternalIP", "address": "192.168.0.3"},
            {"type": "InternalIP", "address": "fd00::2"},
        ]}});
        let ours = node(serde_json::from_value(object).expect("a Node"), "n1");
        let Some(Event::NodeChanged(ours)) = ours.event else {
            panic!("{ours:?}");
        };
        let wanted: Vec<IpAddr> = ["192.168.0.2", "fd00::2"]
            .map(|ip| ip.parse().expect("an IP"))
            .into();
        assert_eq!(ours.internal_ips, wanted);
    }

    #[test]
    fn w3_a_node_that_is_deleted_or_about_to_be_is_not_eligible() {
        let eligible = |object: serde_json::Value| {
            let ours = node(serde_json::from_value(object).expect("a Node"), "n1");
            let Some(Event::NodeChanged(ours)) = ours.event else {
                panic!("{ours:?}");
            };
            ours.eligible
        };
        let tainted = |key: &str| {
            json!({"metadata": {"name": "n1"}, "spec": {"taints": [
                {"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"},
                {"key": key, "effect": "NoSchedule"},
            ]}, "status": {"conditions": [{"type": "Ready", "status": "False"}]}})
        };
        assert_eq!(eligible(tainted("other")), Some(true));
        assert_eq!(eligible(tainted(TAINT_TO_BE_DELETED)), Some(false));
        let deleted =
            json!({"metadata": {"name": "n1", "deletionTimestamp": "2026-01-01T00:00:00Z"}});
        assert_eq!(eligible(deleted), Some(false));
        let gone = node_gone("n1");
        assert!(matches!(
            gone,
            Event::NodeChanged(Node { eligible: None, .. })
        ));
    }

    #[test]
    fn its_pod_ranges_are_all_known_or_none() {
        let ranges = |spec| {
            let object = json!({"metadata": {"name": "n1"}, "spec": spec});
            let ours = node(serde_json::from_value(object).expect("a Node"), "n1");
            let Some(Event::NodeChanged(node)) = ours.event else {
                panic!("{ours:?}");
            };
            let ranges: Vec<String> = node.pod_cidrs.iter().map(ToString::to_string).collect();
            (ranges.join(" "), ours.problems.len())
        };
        assert_eq!(
            ranges(json!({"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd01::/64"]})),
            ("10.1.0.0/24 fd01::/64".into(), 0)
        );
        assert_eq!(
            ranges(json!({"podCIDR": "10.1.0.0/24"})),
            ("10.1.0.0/24".into(), 0)
        );
        assert_eq!(ranges(json!({"podCIDR": ""})), (String::new(), 0));
        assert_eq!(
            ranges(json!({"podCIDRs": ["10.1.0.0/24", "fd01::"]})),
            (String::new(), 1)
        );
    }

    #[test]
    fn another_node_is_not_ours() {
        let object = json!({"metadata": {"name": "n2"}});
        let other = node(serde_json::from_value(object).expect("a Node"), "n1");
        assert_eq!(other.event, None);
    }
}
