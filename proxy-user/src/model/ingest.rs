//! Pure: from the API's objects to ours ([`super::object`]): filters, defaults, and validation.
//!
//! kube-proxy trusts the API server's validation; a manifest folder has no API server in front, and
//! old objects were admitted under older rules, so everything that could misdirect traffic is judged
//! here again. A bad value costs only itself (an address, a port, an endpoint) and is reported as a
//! [`Problem`]; the rest of its object keeps working.

mod address;
mod balancing;
mod node;
mod problem;
mod service;
mod service_cidr;
mod slice;

pub use node::{node, node_gone};
pub use problem::{Problem, Reason};
pub use service::{service, service_gone};
pub use service_cidr::{service_cidr, service_cidr_gone};
pub use slice::{slice, slice_gone};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Event, ObjectName};

/// Anyone's proxy but kube-proxy's serves an object with this label, whatever its value
/// (`cmd/kube-proxy/app/server.go`).
pub const LABEL_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// On the EndpointSlices of headless Services (`cmd/kube-proxy/app/server.go`).
pub const LABEL_HEADLESS: &str = "service.kubernetes.io/headless";
/// Names the Service an EndpointSlice belongs to (`pkg/proxy/endpointslicecache.go`).
pub const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";
/// When what an EndpointSlice shows last changed (`pkg/proxy/endpointschangetracker.go`).
pub const ANNOTATION_TRIGGERED: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// On a Node that the cluster autoscaler is about to delete
/// (`pkg/proxy/healthcheck/proxy_health.go`).
pub const TAINT_TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";
/// The zone of a Node (`pkg/proxy/node.go`).
pub const LABEL_ZONE: &str = "topology.kubernetes.io/zone";

/// By which rule a Service is balanced on every node (docs/BALANCING.md).
pub const ANNOTATION_SCHEDULER: &str = "kube-portal.io/scheduler";
/// Whether backends of a Service that fail are passed over for a while.
pub const ANNOTATION_FAILOVER: &str = "kube-portal.io/failover";
/// How much of a Service's connections which endpoints get.
pub const ANNOTATION_WEIGHTS: &str = "kube-portal.io/weights";

/// What became of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ingested {
    /// `None` where the object can't be told apart from others (it has no name), or is another's Node.
    pub event: Option<Event>,
    pub problems: Vec<Problem>,
}

/// Collects the problems of one object.
struct Problems {
    kind: &'static str,
    name: String,
    found: Vec<Problem>,
}

impl Problems {
    fn of(kind: &'static str, name: impl ToString) -> Self {
        Self {
            kind,
            name: name.to_string(),
            found: Vec::new(),
        }
    }

    fn add(&mut self, field: impl Into<String>, reason: Reason) {
        self.found.push(Problem {
            file: None,
            object: format!("{} {}", self.kind, self.name),
            field: field.into(),
            reason,
        });
    }

    /// Keeps the value, or the reason why there is none.
    fn keep<T>(&mut self, field: impl Into<String>, value: Result<T, Reason>) -> Option<T> {
        value.map_err(|reason| self.add(field, reason)).ok()
    }
}

/// `Err` where the object has no name to know it by.
fn object_name(kind: &'static str, meta: &ObjectMeta) -> Result<ObjectName, Problem> {
    let namespace = match meta.namespace.as_deref() {
        None | Some("") => "default",
        Some(namespace) => namespace,
    };
    match meta.name.as_deref() {
        None | Some("") => Err(Problem {
            file: None,
            object: format!("{kind} {namespace}/?"),
            field: "metadata.name".into(),
            reason: Reason::NoName,
        }),
        // Names go into log lines and reports as they are. The API admits no such ones.
        Some(name) if !is_plain(name) || !is_plain(namespace) => Err(Problem {
            file: None,
            object: format!(
                "{kind} {}/{}",
                namespace.escape_debug(),
                name.escape_debug()
            ),
            field: "metadata.name".into(),
            reason: Reason::NotAName,
        }),
        Some(name) => Ok(ObjectName::new(namespace, name)),
    }
}

fn is_plain(name: &str) -> bool {
    name.bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"-.:_".contains(&b))
}

impl From<Problem> for Ingested {
    fn from(problem: Problem) -> Self {
        Self {
            event: None,
            problems: vec![problem],
        }
    }
}

fn has_label(meta: &ObjectMeta, label: &str) -> bool {
    meta.labels
        .as_ref()
        .is_some_and(|labels| labels.contains_key(label))
}
