//! Pure: which endpoints serve a ServicePort on this node.
//!
//! `CategorizeEndpoints` in `pkg/proxy/topology.go`; KEP-2086 (internalTrafficPolicy), KEP-1669
//! (terminating endpoints), KEP-2433 and KEP-3015 (hints). `BEHAVIOUR.md` section 1B.

use std::borrow::Borrow;

use super::{Endpoint, Node, TrafficPolicy};

/// What a Service says about who may serve whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    pub internal: TrafficPolicy,
    pub external: TrafficPolicy,
    /// The ServicePort has a NodePort, an external IP or a load balancer's address.
    pub externally_accessible: bool,
}

/// Indices of endpoints, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// For policy Cluster; also for pods and processes of this node that dial a frontend with
    /// `externalTrafficPolicy: Local`. Empty where nobody asks for it.
    pub cluster: Vec<usize>,
    /// For policy Local. Empty where no policy is Local.
    pub local: Vec<usize>,
    /// Some node has a usable endpoint. Without one a frontend rejects; with one, a frontend whose own
    /// list is empty drops, since elsewhere the Service works.
    pub has_any: bool,
    /// By what `cluster` was narrowed.
    pub topology: Topology,
}

/// How close to this node an endpoint has to be. Hints count only if *every* ready endpoint has one
/// of the kind and one of them points here: else the few hinted ones would take all the load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Topology {
    #[default]
    Anywhere,
    SameZone,
    SameNode,
}

pub fn categorize<E: Borrow<Endpoint>>(
    endpoints: &[E],
    policies: &Policies,
    node: &Node,
) -> Choice {
    let external_local =
        policies.externally_accessible && policies.external == TrafficPolicy::Local;
    let uses_local = policies.internal == TrafficPolicy::Local || external_local;
    let uses_cluster =
        policies.internal == TrafficPolicy::Cluster || policies.externally_accessible;

    let mut choice = Choice {
        has_any: endpoints.iter().map(E::borrow).any(is_usable),
        ..Choice::default()
    };
    if uses_cluster {
        choice.topology = topology(endpoints, node);
        choice.cluster = ready_or_still_serving(
            endpoints,
            |endpoint| choice.topology.admits(endpoint, node),
            |_| true,
        );
    }
    if uses_local {
        // Local traffic goes to what is here, whatever the hints say.
        let here = |endpoint: &Endpoint| is_local(endpoint, node);
        choice.local = ready_or_still_serving(endpoints, here, here);
    }
    choice
}

/// The ready ones among the preferred; if there are none, those among the fallback that terminate but
/// still answer, so that the last pods of a rollout are not cut off early (KEP-1669).
fn ready_or_still_serving<E: Borrow<Endpoint>>(
    endpoints: &[E],
    preferred: impl Fn(&Endpoint) -> bool,
    fallback: impl Fn(&Endpoint) -> bool,
) -> Vec<usize> {
    let ready = indices(endpoints, |endpoint| endpoint.ready && preferred(endpoint));
    if ready.is_empty() {
        indices(endpoints, |endpoint| {
            still_serving(endpoint) && fallback(endpoint)
        })
    } else {
        ready
    }
}

fn indices<E: Borrow<Endpoint>>(endpoints: &[E], wanted: impl Fn(&Endpoint) -> bool) -> Vec<usize> {
    endpoints
        .iter()
        .enumerate()
        .filter(|(_, endpoint)| wanted((*endpoint).borrow()))
        .map(|(index, _)| index)
        .collect()
}

fn still_serving(endpoint: &Endpoint) -> bool {
    endpoint.serving && endpoint.terminating
}

/// Whether it may be chosen at all: if there is nothing better, also while it ends.
pub fn is_usable(endpoint: &Endpoint) -> bool {
    endpoint.ready || still_serving(endpoint)
}

/// Whether the endpoint runs on this node.
pub fn is_local(endpoint: &Endpoint, node: &Node) -> bool {
    endpoint.node.as_ref() == Some(&node.name)
}

fn topology<E: Borrow<Endpoint>>(endpoints: &[E], node: &Node) -> Topology {
    for candidate in [Topology::SameNode, Topology::SameZone] {
        let mut ready = endpoints
            .iter()
            .map(E::borrow)
            .filter(|endpoint| endpoint.ready);
        let all_hinted = ready.clone().all(|endpoint| candidate.is_hinted(endpoint));
        if all_hinted && ready.any(|endpoint| candidate.admits(endpoint, node)) {
            return candidate;
        }
    }
    Topology::Anywhere
}

impl Topology {
    fn is_hinted(self, endpoint: &Endpoint) -> bool {
        match self {
            Self::Anywhere => true,
            Self::SameZone => !endpoint.zone_hints.is_empty(),
            Self::SameNode => !endpoint.node_hints.is_empty(),
        }
    }

    fn admits(self, endpoint: &Endpoint, node: &Node) -> bool {
        match self {
            Self::Anywhere => true,
            Self::SameZone => node
                .zone
                .as_ref()
                .is_some_and(|zone| endpoint.zone_hints.contains(zone)),
            Self::SameNode => endpoint.node_hints.contains(&node.name),
        }
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
