//! What is read of an object: only what `ingest` asks for. The rest of the text is passed over, so it
//! never takes memory: managed fields, owners and all but the names of pods are most of what a server sends.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use k8s_openapi::{
    api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::Resource;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor},
};

use crate::model::ingest::{
    ANNOTATION_FAILOVER, ANNOTATION_SCHEDULER, ANNOTATION_TRIGGERED, ANNOTATION_WEIGHTS,
    LABEL_HEADLESS, LABEL_PROXY_NAME, LABEL_SERVICE_NAME, LABEL_ZONE,
};

/// An object of the API, and its part that is read.
pub(super) trait Stripped: Resource<DynamicType = ()> + Sized {
    type Read: DeserializeOwned + Into<Self>;
}

/// The labels and annotations that mean something to us.
const KEPT: [&str; 8] = [
    ANNOTATION_FAILOVER,
    ANNOTATION_SCHEDULER,
    ANNOTATION_TRIGGERED,
    ANNOTATION_WEIGHTS,
    LABEL_HEADLESS,
    LABEL_PROXY_NAME,
    LABEL_SERVICE_NAME,
    LABEL_ZONE,
];

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Meta {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    labels: Option<Kept>,
    annotations: Option<Kept>,
}

impl From<Meta> for ObjectMeta {
    fn from(meta: Meta) -> Self {
        Self {
            name: meta.name,
            namespace: meta.namespace,
            uid: meta.uid,
            resource_version: meta.resource_version,
            creation_timestamp: meta.creation_timestamp,
            deletion_timestamp: meta.deletion_timestamp,
            labels: meta.labels.map(|labels| labels.0),
            annotations: meta.annotations.map(|annotations| annotations.0),
            ..Self::default()
        }
    }
}

/// Of a map, the entries with a key of [`KEPT`].
#[derive(Debug, Default)]
pub(super) struct Kept(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Kept {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Kept;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Kept, A::Error> {
                let mut kept = BTreeMap::new();
                while let Some(Text(key)) = map.next_key()? {
                    if KEPT.contains(&key.as_ref()) {
                        kept.insert(key.into_owned(), map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Kept(kept))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

/// A string that is not copied if it need not be.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Debug, Deserialize)]
pub(super) struct Service {
    metadata: Option<Meta>,
    spec: Option<core::ServiceSpec>,
    status: Option<core::ServiceStatus>,
}

impl Stripped for core::Service {
    type Read = Service;
}

impl From<Service> for core::Service {
    fn from(read: Service) -> Self {
        Self {
            metadata: read.metadata.unwrap_or_default().into(),
            spec: read.spec,
            status: read.status,
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Node {
    metadata: Option<Meta>,
    spec: Option<core::NodeSpec>,
    status: Option<core::NodeStatus>,
}

impl Stripped for core::Node {
    type Read = Node;
}

impl From<Node> for core::Node {
    fn from(read: Node) -> Self {
        Self {
            metadata: read.metadata.unwrap_or_default().into(),
            spec: read.spec,
            status: read.status,
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct ServiceCidr {
    metadata: Option<Meta>,
    spec: Option<networking::ServiceCIDRSpec>,
}

impl Stripped for networking::ServiceCIDR {
    type Read = ServiceCidr;
}

impl From<ServiceCidr> for networking::ServiceCIDR {
    fn from(read: ServiceCidr) -> Self {
        Self {
            metadata: read.metadata.unwrap_or_default().into(),
            spec: read.spec,
            status: None,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EndpointSlice {
    metadata: Option<Meta>,
    address_type: Option<String>,
    endpoints: Option<Vec<Endpoint>>,
    ports: Option<Vec<discovery::EndpointPort>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    addresses: Option<Vec<String>>,
    conditions: Option<discovery::EndpointConditions>,
    hostname: Option<String>,
    node_name: Option<String>,
    target_ref: Option<TargetRef>,
    zone: Option<String>,
    hints: Option<discovery::EndpointHints>,
}

/// Its uid and the rest are never asked for.
#[derive(Debug, Deserialize)]
struct TargetRef {
    kind: Option<String>,
    name: Option<String>,
}

impl Stripped for discovery::EndpointSlice {
    type Read = EndpointSlice;
}

impl From<EndpointSlice> for discovery::EndpointSlice {
    fn from(read: EndpointSlice) -> Self {
        let endpoints = read.endpoints.unwrap_or_default().into_iter();
        Self {
            metadata: read.metadata.unwrap_or_default().into(),
            address_type: read.address_type.unwrap_or_default(),
            endpoints: endpoints.map(Into::into).collect(),
            ports: read.ports,
        }
    }
}

impl From<Endpoint> for discovery::Endpoint {
    fn from(read: Endpoint) -> Self {
        Self {
            addresses: read.addresses.unwrap_or_default(),
            conditions: read.conditions,
            hostname: read.hostname,
            node_name: read.node_name,
            target_ref: read.target_ref.map(|target| core::ObjectReference {
                kind: target.kind,
                name: target.name,
                ..core::ObjectReference::default()
            }),
            zone: read.zone,
            hints: read.hints,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::model::ingest;

    /// By way of what is read, and with all there is.
    fn both<K: Stripped + DeserializeOwned>(object: &Value) -> [K; 2] {
        let read: K::Read = serde_json::from_str(&object.to_string()).expect("readable");
        let whole = serde_json::from_value(object.clone()).expect("an object");
        [read.into(), whole]
    }

    #[test]
    fn all_that_says_how_a_service_is_balanced_is_read() {
        let object = json!({
            "metadata": {"namespace": "ns", "name": "web", "annotations": {
                "kube-portal.io/scheduler": "lc", "kube-portal.io/failover": "false",
                "kube-portal.io/weights": "web-0=2", "other": "x"}},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
        });
        let [read, whole] = both::<core::Service>(&object).map(ingest::service);
        assert_eq!(read, whole);
        let balanced = format!("{read:?}");
        assert!(
            balanced.contains("scheduler: Some(LeastConnections)"),
            "{balanced}"
        );
        assert!(balanced.contains("fails_over: Some(false)"), "{balanced}");

        let named = |patch: Value| {
            let mut endpoint = json!({"addresses": ["10.0.0.1"]});
            for (key, value) in patch.as_object().expect("an object") {
                endpoint[key] = value.clone();
            }
            let object = json!({
                "metadata": {"namespace": "ns", "name": "web-1",
                    "labels": {LABEL_SERVICE_NAME: "web"}},
                "addressType": "IPv4", "ports": [], "endpoints": [endpoint],
            });
            let [read, whole] = both::<discovery::EndpointSlice>(&object).map(ingest::slice);
            assert_eq!(read, whole, "{object}");
            read
        };
        let plain = named(json!({}));
        for patch in [
            json!({"targetRef": {"kind": "Pod", "name": "web-0", "uid": "u"}}),
            json!({"hostname": "first"}),
            json!({"nodeName": "big-1"}),
            json!({"zone": "eu-a"}),
        ] {
            assert_ne!(named(patch.clone()), plain, "{patch}");
        }
        let other = json!({"targetRef": {"kind": "Node", "name": "web-0"}});
        assert_eq!(named(other), plain);
    }
}
