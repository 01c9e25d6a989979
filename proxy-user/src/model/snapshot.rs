//! What the model asks for: the hand-over from `model` to `plan`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    num::{NonZeroU16, NonZeroU32},
    sync::Arc,
};

use ipnet::IpNet;

use proxy_common::abi::{Empty, FrontendKind, Protocol, Scheduler};

use super::{Family, ObjectName};

/// Which of a Service port's two lists of endpoints (BEHAVIOUR §1B).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    Cluster,
    Local,
}

/// The identity of a load-balanced thing (BEHAVIOUR W7) in one family and scope. Whatever has such a
/// key has one service id.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortKey {
    pub service: ObjectName,
    /// Name of the port; empty for the unnamed one.
    pub port: Arc<str>,
    pub protocol: Protocol,
    pub family: Family,
    pub scope: Scope,
}

impl PortKey {
    /// The same port's list of the whole cluster.
    pub fn of_cluster(&self) -> Self {
        Self {
            scope: Scope::Cluster,
            ..self.clone()
        }
    }

    /// `namespace/name:port`, the port's name left out if it has none.
    pub fn service_port_name(&self) -> String {
        if self.port.is_empty() {
            self.service.to_string()
        } else {
            format!("{}:{}", self.service, self.port)
        }
    }
}

impl fmt::Display for PortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} {}",
            self.service_port_name(),
            self.protocol,
            self.family
        )?;
        match self.scope {
            Scope::Cluster => Ok(()),
            Scope::Local => f.write_str(" local"),
        }
    }
}

/// What clients dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrontendAddress {
    pub ip: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
}

impl fmt::Display for FrontendAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}",
            SocketAddr::new(self.ip, self.port),
            self.protocol
        )
    }
}

/// The desired state of one [`PortKey`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSnapshot {
    pub key: PortKey,
    pub frontends: Vec<(FrontendAddress, FrontendKind)>,
    /// Backends that get new connections, sorted, each once.
    pub chosen: Vec<SocketAddr>,
    /// Backends that get no new connections but keep the flows they have: they still serve
    /// (BEHAVIOUR C2). Sorted, disjoint from `chosen`.
    pub kept: Vec<SocketAddr>,
    /// Those of both that are pods or processes of this node.
    pub local: BTreeSet<SocketAddr>,
    /// What to do when nothing is chosen.
    pub empty: Empty,
    /// `externalTrafficPolicy: Local`: clients from outside get what the same port has in
    /// [`Scope::Local`], wherever they dial but at a ClusterIP (BEHAVIOUR E8).
    pub outside_is_local: bool,
    /// Who may dial the load balancer's addresses; `None`: anyone.
    pub source_ranges: Option<SourceRanges>,
    /// A client keeps its backend for so long after its last new connection.
    pub affinity_timeout_secs: Option<NonZeroU32>,
    /// By which rule the chosen get new connections.
    pub balancing: Balancing,
}

/// By which rule backends get new connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balancing {
    pub scheduler: Scheduler,
    /// Backends that fail are passed over for a while.
    pub fails_over: bool,
    /// Of those of the chosen that have another weight than 1.
    pub weights: BTreeMap<SocketAddr, NonZeroU16>,
}

/// Source ranges of one family, and whom of this node they admit (BEHAVIOUR L1-L4).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceRanges {
    /// Without host bits.
    pub ranges: BTreeSet<IpNet>,
    pub admit_node: bool,
    pub admit_pods: bool,
}
