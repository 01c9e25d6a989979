use k8s_openapi::api::core::v1 as core;

use super::{Ingested, LABEL_ZONE};
use crate::model::{Event, Node};

/// Only the agent's own Node matters, and only its zone (`pkg/proxy/node.go`).
pub fn node(node: core::Node, own_name: &str) -> Ingested {
    let own = node.metadata.name.as_deref() == Some(own_name);
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
            })
        }),
        problems: Vec::new(),
    }
}

/// Without its Node object the agent still runs where it runs, it only knows no zone.
pub fn node_gone(own_name: &str) -> Event {
    Event::NodeChanged(Node {
        name: own_name.into(),
        zone: None,
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
        let zone = |zone: &str| {
            Some(Event::NodeChanged(Node {
                name: "n1".into(),
                zone: Some(zone.into()),
            }))
        };
        assert_eq!(ingest(json!({LABEL_ZONE: "a"})), zone("a"));
        assert_eq!(ingest(json!({LABEL_ZONE: ""})), Some(node_gone("n1")));
        assert_eq!(ingest(json!({})), Some(node_gone("n1")));
    }

    #[test]
    fn another_node_is_not_ours() {
        let object = json!({"metadata": {"name": "n2"}});
        let other = node(serde_json::from_value(object).expect("a Node"), "n1");
        assert_eq!(other.event, None);
    }
}
