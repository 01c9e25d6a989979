//! What is to be said of a Service on this node: to load balancers that ask for its health, and to
//! whoever watches the metrics.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU16,
    sync::Arc,
};

use super::{EndpointSlice, Family, Node, Service, TrafficPolicy, policy, state::merge};
use crate::hash::HashSet;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalState {
    pub health_check: Option<HealthCheck>,
    pub without_local: WithoutLocal,
}

/// How a Service with a healthCheckNodePort answers on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    pub port: NonZeroU16,
    /// `metadata.uid` of the Service.
    pub uid: Arc<str>,
    /// Distinct addresses of ready endpoints on this node, for each family the Service has.
    local: BTreeMap<Family, usize>,
}

impl HealthCheck {
    pub fn new(port: NonZeroU16, uid: &str, local: impl Into<BTreeMap<Family, usize>>) -> Self {
        Self {
            port,
            uid: uid.into(),
            local: local.into(),
        }
    }

    /// What is told to who asks over `family`. kube-proxy runs a proxier and a server for each
    /// family, so a dual-stack pod counts once in either; a Service of one family answers over both.
    pub fn local_endpoints(&self, family: Family) -> usize {
        let count = |family| self.local.get(&family).copied();
        count(family).or_else(|| count(family.other())).unwrap_or(0)
    }
}

/// Service ports that have endpoints, and a Local policy, but no endpoint here (`TestNoEndpointsMetric`
/// in `pkg/proxy/nftables/proxier_test.go`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WithoutLocal {
    /// By internalTrafficPolicy.
    pub internal: u32,
    /// By externalTrafficPolicy.
    pub external: u32,
}

impl WithoutLocal {
    /// In a sum over Services, what one of them adds.
    pub fn replace(&mut self, before: Self, now: Self) {
        self.internal = self.internal - before.internal + now.internal;
        self.external = self.external - before.external + now.external;
    }
}

impl LocalState {
    /// Costs what the Service's own endpoints cost, and nothing where no policy is Local.
    pub(super) fn of(service: &Service, slices: &[EndpointSlice], node: &Node) -> Self {
        Self {
            health_check: service.health_check.as_ref().map(|check| HealthCheck {
                port: check.port,
                uid: check.uid.clone(),
                local: families(service)
                    .map(|family| (family, local_ready(slices, family, node).len()))
                    .collect(),
            }),
            without_local: without_local(service, slices, node),
        }
    }
}

fn families(service: &Service) -> impl Iterator<Item = Family> {
    Family::BOTH
        .into_iter()
        .filter(|family| service.has_family(*family))
}

/// `LocalReadyEndpoints` in `pkg/proxy/endpointschangetracker.go`: whatever the port, and without the
/// terminating ones even while they get traffic.
fn local_ready(slices: &[EndpointSlice], family: Family, node: &Node) -> BTreeSet<IpAddr> {
    let ports: HashSet<_> = slices
        .iter()
        .filter(|slice| slice.family == family)
        .flat_map(|slice| &slice.ports)
        .map(|port| (&port.name, port.protocol))
        .collect();
    let mut ips = BTreeSet::new();
    for (name, protocol) in ports {
        let merged = merge(slices, name, protocol, family);
        let here = merged
            .values()
            .filter(|endpoint| endpoint.ready && policy::is_local(endpoint, node));
        ips.extend(here.map(|endpoint| endpoint.address));
    }
    ips
}

fn without_local(service: &Service, slices: &[EndpointSlice], node: &Node) -> WithoutLocal {
    let mut found = WithoutLocal::default();
    let local = TrafficPolicy::Local;
    if service.internal_policy != local && service.external_policy != local {
        return found;
    }
    for port in &service.ports {
        // A port is counted once, whichever family it misses.
        let (mut internal, mut external) = (false, false);
        let externally_accessible = service.is_externally_accessible(port);
        for family in families(service) {
            let merged = merge(slices, &port.name, port.protocol, family);
            let mut usable = merged
                .values()
                .filter(|endpoint| policy::is_usable(endpoint))
                .peekable();
            let missing =
                usable.peek().is_some() && !usable.any(|endpoint| policy::is_local(endpoint, node));
            internal |= missing && service.internal_policy == local;
            external |= missing && service.external_policy == local && externally_accessible;
        }
        found.internal += u32::from(internal);
        found.external += u32::from(external);
    }
    found
}

#[cfg(test)]
#[path = "local_tests.rs"]
mod tests;
