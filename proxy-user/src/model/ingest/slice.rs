//! EndpointSlices (`pkg/proxy/endpointslicecache.go`).

use std::sync::Arc;

use k8s_openapi::{
    api::discovery::v1 as discovery, apimachinery::pkg::apis::meta::v1::ObjectMeta, jiff::Timestamp,
};
use proxy_common::abi::Protocol;

use super::{
    ANNOTATION_TRIGGERED, Ingested, LABEL_HEADLESS, LABEL_PROXY_NAME, LABEL_SERVICE_NAME, Problems,
    Reason, address, has_label, object_name,
};
use crate::{
    hash::HashSet,
    model::{Endpoint, EndpointSlice, Event, Family, Hints, NameHash, ObjectName, SlicePort},
};

const KIND: &str = "EndpointSlice";

pub fn slice(mut slice: discovery::EndpointSlice) -> Ingested {
    let name = match object_name(KIND, &slice.metadata) {
        Ok(name) => name,
        Err(problem) => return problem.into(),
    };
    let mut problems = Problems::of(KIND, &name);
    let passed_over =
        has_label(&slice.metadata, LABEL_PROXY_NAME) || has_label(&slice.metadata, LABEL_HEADLESS);
    let service = slice
        .metadata
        .labels
        .as_mut()
        .and_then(|labels| labels.remove(LABEL_SERVICE_NAME))
        .filter(|service| !service.is_empty() && !passed_over);
    let family = service
        .as_ref()
        .and_then(|_| family(&slice.address_type, &mut problems));
    let (Some(service), Some(family)) = (service, family) else {
        return Ingested {
            event: Some(Event::SliceGone(name)),
            problems: problems.found,
        };
    };
    let slice = EndpointSlice {
        service: ObjectName {
            namespace: name.namespace.clone(),
            name: service.into(),
        },
        family,
        ports: ports(slice.ports.unwrap_or_default(), &mut problems),
        endpoints: endpoints(slice.endpoints, family, &mut problems),
        triggered: triggered(&slice.metadata),
        name,
    };
    Ingested {
        event: Some(Event::SliceApplied(slice)),
        problems: problems.found,
    }
}

/// What a deleted slice becomes; `None` if it has no name.
pub fn slice_gone(meta: &ObjectMeta) -> Option<Event> {
    object_name(KIND, meta).ok().map(Event::SliceGone)
}

/// It only tells how long the change took: one that can't be read is passed over.
fn triggered(meta: &ObjectMeta) -> Option<Timestamp> {
    meta.annotations
        .as_ref()?
        .get(ANNOTATION_TRIGGERED)?
        .parse()
        .ok()
}

fn family(address_type: &str, problems: &mut Problems) -> Option<Family> {
    match address_type {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        "FQDN" => None,
        other => {
            problems.add("addressType", Reason::UnknownValue(other.into()));
            None
        }
    }
}

/// A port without a name or a number ("all ports") is not for Services; kube-proxy passes over it.
fn ports(ports: Vec<discovery::EndpointPort>, problems: &mut Problems) -> Vec<SlicePort> {
    let mut kept: Vec<SlicePort> = Vec::with_capacity(ports.len());
    let mut seen: HashSet<(Arc<str>, Protocol)> = HashSet::default();
    for (i, port) in ports.into_iter().enumerate() {
        let (Some(name), Some(number)) = (port.name, port.port.filter(|number| *number != 0))
        else {
            continue;
        };
        let field = |name: &str| format!("ports[{i}].{name}");
        let number = problems.keep(field("port"), address::port(number));
        let protocol = problems.keep(
            field("protocol"),
            address::protocol(port.protocol.as_deref()),
        );
        let (Some(number), Some(protocol)) = (number, protocol) else {
            continue;
        };
        let name: Arc<str> = name.into();
        if !seen.insert((name.clone(), protocol)) {
            problems.add(field("name"), Reason::DuplicatePortName(name.to_string()));
            continue;
        }
        kept.push(SlicePort {
            name,
            protocol,
            port: number,
        });
    }
    kept
}

fn endpoints(
    endpoints: Vec<discovery::Endpoint>,
    family: Family,
    problems: &mut Problems,
) -> Vec<Endpoint> {
    let mut kept = Vec::with_capacity(endpoints.len());
    let mut seen = HashSet::default();
    for (i, endpoint) in endpoints.into_iter().enumerate() {
        // The API allows more addresses but never gave the others a meaning (KEP-752).
        let Some(text) = endpoint.addresses.first() else {
            continue;
        };
        let field = || format!("endpoints[{i}].addresses[0]");
        let addr = match address::usable_address(text) {
            Ok(addr) => addr,
            Err(reason) => {
                problems.add(field(), reason);
                continue;
            }
        };
        if Family::of(&addr) != family {
            let expected = family;
            problems.add(field(), Reason::OtherFamily { addr, expected });
            continue;
        }
        if !seen.insert(addr) {
            // Both are kept: which one counts is for the model to say, across all slices.
            problems.add(field(), Reason::RepeatedAddress(addr));
        }
        let conditions = endpoint.conditions.unwrap_or_default();
        let hints = endpoint.hints.unwrap_or_default();
        kept.push(Endpoint {
            address: addr,
            // A source that doesn't know counts as ready and serving (KEP-1672).
            ready: conditions.ready.unwrap_or(true),
            serving: conditions.serving.unwrap_or(true),
            terminating: conditions.terminating.unwrap_or(false),
            node: endpoint
                .node_name
                .filter(|node| !node.is_empty())
                .map(Into::into),
            pod: endpoint
                .target_ref
                .filter(|target| target.kind.as_deref() == Some("Pod"))
                .and_then(|target| hash(target.name)),
            hostname: hash(endpoint.hostname),
            zone: hash(endpoint.zone),
            zone_hints: names(hints.for_zones.unwrap_or_default(), |zone| zone.name),
            node_hints: names(hints.for_nodes.unwrap_or_default(), |node| node.name),
        });
    }
    kept
}

fn hash(name: Option<String>) -> Option<NameHash> {
    name.filter(|name| !name.is_empty())
        .map(|name| NameHash::of(&name))
}

fn names<T>(hints: Vec<T>, name: impl Fn(T) -> String) -> Hints {
    let names: Vec<Arc<str>> = hints.into_iter().map(|hint| name(hint).into()).collect();
    names.into()
}

#[cfg(test)]
#[path = "slice_tests.rs"]
mod tests;
