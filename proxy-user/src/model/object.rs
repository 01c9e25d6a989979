//! The Kubernetes objects as this project keeps them: stripped to the fields a Service proxy reads
//! (`pkg/proxy/serviceport.go`, `pkg/proxy/endpointslicecache.go`), already validated.
//!
//! Nothing here is optional because the API made it so: defaults are applied by [`super::ingest`].

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    num::{NonZeroU16, NonZeroU32},
    ops::Deref,
    sync::Arc,
};

use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;
use proxy_common::abi::Protocol;
use serde::{Deserialize, Serialize};

use super::{NameHash, ServiceBalancing};

/// Namespace and name of an object; printed as `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ObjectName {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ObjectName {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

/// Trees are searched by it: what is shared need not be read.
impl Ord for ObjectName {
    fn cmp(&self, other: &Self) -> Ordering {
        let shared = |a: &Arc<str>, b: &Arc<str>| {
            if Arc::ptr_eq(a, b) {
                Ordering::Equal
            } else {
                a.cmp(b)
            }
        };
        shared(&self.namespace, &other.namespace).then_with(|| shared(&self.name, &other.name))
    }
}

impl PartialOrd for ObjectName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The kinds that come in lists. Nothing is written before the first two have been listed (BEHAVIOUR
/// W5); nobody waits for the third.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Service,
    EndpointSlice,
    ServiceCidr,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::ServiceCidr => "ServiceCIDR",
        })
    }
}

/// `spec.internalTrafficPolicy` and `spec.externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficPolicy {
    #[default]
    Cluster,
    Local,
}

/// A Service that has to be translated. Headless, ExternalName and foreign-labelled Services never
/// become one (BEHAVIOUR W1, W6): they reach the model as their own absence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: ObjectName,
    /// `metadata.creationTimestamp`, seconds since the epoch; 0 where the source has none. The older
    /// of two Services that claim one address keeps it.
    pub created_secs: i64,
    /// `spec.clusterIPs` (or `spec.clusterIP`), one per family.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` with ipMode nil or VIP (BEHAVIOUR A9).
    pub load_balancer_ips: Vec<IpAddr>,
    /// `spec.loadBalancerSourceRanges`, by family: who may dial the load balancer's addresses. A
    /// family that is not there is open to all; an empty list admits nobody.
    pub source_ranges: BTreeMap<Family, Vec<IpNet>>,
    pub ports: Vec<ServicePort>,
    pub internal_policy: TrafficPolicy,
    /// `Local` only where kube-proxy honours it (BEHAVIOUR E12).
    pub external_policy: TrafficPolicy,
    /// `spec.sessionAffinity: ClientIP`: for how long a client keeps its backend after its last new
    /// connection.
    pub affinity_timeout_secs: Option<NonZeroU32>,
    /// Where load balancers ask whether this node has endpoints of the Service.
    pub health_check: Option<HealthCheckPort>,
    /// Annotations `kube-portal.io/scheduler`, `failover` and `weights`.
    pub balancing: ServiceBalancing,
}

impl Service {
    /// A Service has the families of its ClusterIPs: addresses and endpoints of another are not its
    /// business (BEHAVIOUR A1). If no ClusterIP could be read, they are not known, and none is left out.
    pub fn has_family(&self, family: Family) -> bool {
        let of_family = |ip| Family::of(ip) == family;
        self.cluster_ips.is_empty() || self.cluster_ips.iter().any(of_family)
    }

    /// Whether the port is reached by other addresses than ClusterIPs.
    pub fn is_externally_accessible(&self, port: &ServicePort) -> bool {
        !self.external_ips.is_empty()
            || !self.load_balancer_ips.is_empty()
            || port.node_port.is_some()
    }
}

/// `spec.healthCheckNodePort`, where kube-proxy answers on it: type LoadBalancer with
/// externalTrafficPolicy Local (`NeedsHealthCheck` in `pkg/api/v1/service/util.go`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheckPort {
    pub port: NonZeroU16,
    /// `metadata.uid` of the Service, for the Events about it; empty where the source has none.
    pub uid: Arc<str>,
}

/// One of `spec.ports[]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty for the single unnamed port.
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub port: NonZeroU16,
    pub node_port: Option<NonZeroU16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub fn of(addr: &IpAddr) -> Self {
        match addr {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    pub fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// An EndpointSlice of a Service (label `kubernetes.io/service-name`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    pub name: ObjectName,
    pub service: ObjectName,
    pub family: Family,
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<Endpoint>,
    /// When the last change of a pod or of the Service happened that this slice shows (annotation
    /// `endpoints.kubernetes.io/last-change-trigger-time`).
    pub triggered: Option<Timestamp>,
}

/// One of a slice's `ports[]`, joined to a [`ServicePort`] by name and protocol (BEHAVIOUR W7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub port: NonZeroU16,
}

/// One of a slice's `endpoints[]`, with the defaults of BEHAVIOUR E1 applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub address: IpAddr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub node: Option<Arc<str>>,
    /// Name of the `targetRef`, if that is a pod.
    pub pod: Option<NameHash>,
    pub hostname: Option<NameHash>,
    pub zone: Option<NameHash>,
    /// `hints.forZones[].name`.
    pub zone_hints: Hints,
    /// `hints.forNodes[].name`.
    pub node_hints: Hints,
}

/// Names of zones or nodes. Most endpoints have none, and there are very many endpoints: none takes
/// the room of a pointer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints(Option<Box<HintNames>>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct HintNames {
    names: Vec<Arc<str>>,
}

impl From<Vec<Arc<str>>> for Hints {
    fn from(names: Vec<Arc<str>>) -> Self {
        Self((!names.is_empty()).then(|| Box::new(HintNames { names })))
    }
}

impl Deref for Hints {
    type Target = [Arc<str>];

    fn deref(&self) -> &[Arc<str>] {
        self.0.as_ref().map_or(&[], |hints| &hints.names)
    }
}

impl Hints {
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Arc<str>> {
        self.0.iter_mut().flat_map(|hints| &mut hints.names)
    }
}

/// What the policy needs to know of the node the agent runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    pub name: Arc<str>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// `status.addresses` of type InternalIP, the first of each family.
    pub internal_ips: Vec<IpAddr>,
    /// Whether it stays: neither being deleted nor about to be taken away by the cluster autoscaler
    /// (`NodeEligible` in `pkg/proxy/healthcheck/proxy_health.go`). `None` without a Node object.
    pub eligible: Option<bool>,
    /// `spec.podCIDRs`; empty where they are not known.
    pub pod_cidrs: Vec<IpNet>,
}

/// What a source tells the model. A list is `ListStarted`, the objects, `Listed`: whatever was known
/// before and was not in it is gone. Between lists, single objects come and go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    ListStarted(Kind),
    Listed(Kind),
    ServiceApplied(Service),
    ServiceGone(ObjectName),
    SliceApplied(EndpointSlice),
    SliceGone(ObjectName),
    /// A ServiceCIDR, by its name.
    ServiceCidrApplied(Arc<str>, Vec<IpNet>),
    ServiceCidrGone(Arc<str>),
    NodeChanged(Node),
    /// The addresses on this node's devices. Sorted.
    LocalAddresses(Vec<IpAddr>),
}

impl Event {
    /// The object it is about, in words.
    pub fn subject(&self) -> String {
        match self {
            Self::ServiceApplied(service) => format!("Service {}", service.name),
            Self::ServiceGone(name) => format!("Service {name}"),
            Self::SliceApplied(slice) => format!("EndpointSlice {}", slice.name),
            Self::SliceGone(name) => format!("EndpointSlice {name}"),
            Self::ServiceCidrApplied(name, _) | Self::ServiceCidrGone(name) => {
                format!("ServiceCIDR {name}")
            }
            Self::NodeChanged(node) => format!("Node {}", node.name),
            Self::LocalAddresses(_) => "addresses of the node".to_owned(),
            Self::ListStarted(kind) | Self::Listed(kind) => kind.to_string(),
        }
    }
}

/// What happened to which object, for the log.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subject = self.subject();
        match self {
            Self::ServiceApplied(_)
            | Self::SliceApplied(_)
            | Self::ServiceCidrApplied(..)
            | Self::NodeChanged(_)
            | Self::LocalAddresses(_) => write!(f, "{subject}: new or changed"),
            Self::ServiceGone(_) | Self::SliceGone(_) | Self::ServiceCidrGone(_) => {
                write!(f, "{subject}: gone")
            }
            Self::ListStarted(_) => write!(f, "{subject}: a list begins"),
            Self::Listed(_) => write!(f, "{subject}: listed"),
        }
    }
}
