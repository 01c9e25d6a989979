//! Services (`pkg/proxy/serviceport.go`, `pkg/proxy/util/utils.go`).

use std::{
    collections::BTreeMap,
    net::IpAddr,
    num::{NonZeroU16, NonZeroU32},
};

use ipnet::IpNet;
use k8s_openapi::{api::core::v1 as core, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use proxy_common::abi::Protocol;

use super::{
    Ingested, LABEL_PROXY_NAME, Problems, Reason, address, balancing, has_label, object_name,
};
use crate::{
    hash::HashSet,
    model::{Event, Family, HealthCheckPort, Service, ServicePort, TrafficPolicy},
};

const KIND: &str = "Service";

pub fn service(service: core::Service) -> Ingested {
    let name = match object_name(KIND, &service.metadata) {
        Ok(name) => name,
        Err(problem) => return problem.into(),
    };
    let mut problems = Problems::of(KIND, &name);
    let proxied_elsewhere = has_label(&service.metadata, LABEL_PROXY_NAME);
    let spec = service
        .spec
        .filter(|spec| !proxied_elsewhere && has_cluster_ip(spec, &mut problems));
    let Some(spec) = spec else {
        return Ingested {
            event: Some(Event::ServiceGone(name)),
            problems: problems.found,
        };
    };

    let type_ = service_type(spec.type_.as_deref(), &mut problems);
    let external_ips = spec.external_ips.unwrap_or_default();
    // ExternalPolicyLocal() in pkg/api/v1/service/util.go: nothing else has external frontends.
    let external_policy_counts = type_ != Type::ClusterIp || !external_ips.is_empty();
    let external_policy = traffic_policy(
        spec.external_traffic_policy.as_deref(),
        "spec.externalTrafficPolicy",
        &mut problems,
    );
    let health_check = match spec.health_check_node_port {
        Some(port) if port != 0 && type_ == Type::LoadBalancer => problems
            .keep("spec.healthCheckNodePort", address::port(port))
            .filter(|_| external_policy == TrafficPolicy::Local)
            .map(|port| HealthCheckPort {
                port,
                uid: service.metadata.uid.as_deref().unwrap_or_default().into(),
            }),
        Some(_) | None => None,
    };
    let service = Service {
        created_secs: created_secs(&service.metadata),
        cluster_ips: cluster_ips(spec.cluster_ip, spec.cluster_ips, &mut problems),
        external_ips: addresses(
            external_ips
                .iter()
                .enumerate()
                .map(|(i, ip)| (format!("spec.externalIPs[{i}]"), ip.as_str())),
            &mut problems,
        ),
        load_balancer_ips: load_balancer_ips(service.status, &mut problems),
        source_ranges: source_ranges(
            &spec.load_balancer_source_ranges.unwrap_or_default(),
            &mut problems,
        ),
        ports: ports(spec.ports.unwrap_or_default(), &mut problems),
        internal_policy: traffic_policy(
            spec.internal_traffic_policy.as_deref(),
            "spec.internalTrafficPolicy",
            &mut problems,
        ),
        external_policy: if external_policy_counts {
            external_policy
        } else {
            TrafficPolicy::Cluster
        },
        health_check,
        affinity_timeout_secs: affinity_timeout_secs(
            spec.session_affinity.as_deref(),
            spec.session_affinity_config,
            &mut problems,
        ),
        balancing: balancing::balancing(&service.metadata, &mut problems),
        name,
    };
    Ingested {
        event: Some(Event::ServiceApplied(service)),
        problems: problems.found,
    }
}

/// What a deleted Service becomes; `None` if it has no name.
pub fn service_gone(meta: &ObjectMeta) -> Option<Event> {
    object_name(KIND, meta).ok().map(Event::ServiceGone)
}

/// `ShouldSkipService()` in `pkg/proxy/util/utils.go`: a Service without a ClusterIP has nothing to
/// translate, and an ExternalName is DNS's business even if it kept a ClusterIP from an earlier type.
fn has_cluster_ip(spec: &core::ServiceSpec, problems: &mut Problems) -> bool {
    if spec.type_.as_deref() == Some("ExternalName") {
        return false;
    }
    match spec.cluster_ip.as_deref() {
        Some("None") => false,
        None | Some("") => {
            problems.add("spec.clusterIP", Reason::NoClusterIp);
            false
        }
        Some(_) => true,
    }
}

#[derive(PartialEq, Eq)]
enum Type {
    ClusterIp,
    NodePort,
    LoadBalancer,
}

fn service_type(type_: Option<&str>, problems: &mut Problems) -> Type {
    match type_ {
        Some("NodePort") => Type::NodePort,
        Some("LoadBalancer") => Type::LoadBalancer,
        None | Some("" | "ClusterIP") => Type::ClusterIp,
        Some(other) => {
            problems.add("spec.type", Reason::UnknownValue(other.into()));
            Type::ClusterIp
        }
    }
}

fn traffic_policy(policy: Option<&str>, field: &str, problems: &mut Problems) -> TrafficPolicy {
    match policy {
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            problems.add(field, Reason::UnknownValue(other.into()));
            TrafficPolicy::Cluster
        }
    }
}

/// `DefaultClientIPServiceAffinitySeconds` in `pkg/apis/core/v1/defaults.go`.
const DEFAULT_AFFINITY_TIMEOUT_SECS: NonZeroU32 = NonZeroU32::new(10_800).unwrap();
/// `MaxClientIPServiceAffinitySeconds` in `pkg/apis/core/types.go`.
const MAX_AFFINITY_TIMEOUT_SECS: u32 = 86_400;

/// `None` without affinity.
fn affinity_timeout_secs(
    affinity: Option<&str>,
    config: Option<core::SessionAffinityConfig>,
    problems: &mut Problems,
) -> Option<NonZeroU32> {
    match affinity {
        None | Some("" | "None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            problems.add("spec.sessionAffinity", Reason::UnknownValue(other.into()));
            return None;
        }
    }
    let timeout = config
        .and_then(|config| config.client_ip)
        .and_then(|client_ip| client_ip.timeout_seconds);
    let Some(timeout) = timeout else {
        return Some(DEFAULT_AFFINITY_TIMEOUT_SECS);
    };
    let valid = u32::try_from(timeout)
        .ok()
        .and_then(NonZeroU32::new)
        .filter(|secs| secs.get() <= MAX_AFFINITY_TIMEOUT_SECS);
    if valid.is_none() {
        problems.add(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            Reason::NotATimeout(timeout),
        );
    }
    Some(valid.unwrap_or(DEFAULT_AFFINITY_TIMEOUT_SECS))
}

fn created_secs(meta: &ObjectMeta) -> i64 {
    meta.creation_timestamp
        .as_ref()
        .map_or(0, |time| time.0.as_second())
}

/// One address per family. kube-proxy picks by `ipFamilies`; an address has its family anyway.
fn cluster_ips(
    first: Option<String>,
    all: Option<Vec<String>>,
    problems: &mut Problems,
) -> Vec<IpAddr> {
    let listed = all.unwrap_or_default();
    let fields: Vec<_> = if listed.is_empty() {
        first
            .iter()
            .map(|ip| ("spec.clusterIP".to_owned(), ip.as_str()))
            .collect()
    } else {
        listed
            .iter()
            .enumerate()
            .map(|(i, ip)| (format!("spec.clusterIPs[{i}]"), ip.as_str()))
            .collect()
    };
    let mut kept: Vec<IpAddr> = Vec::with_capacity(fields.len());
    for (field, ip) in fields {
        let Some(addr) = problems.keep(field.as_str(), address::usable_address(ip)) else {
            continue;
        };
        let family = Family::of(&addr);
        if kept.iter().any(|other| Family::of(other) == family) {
            problems.add(field, Reason::SecondOfFamily { addr, family });
        } else {
            kept.push(addr);
        }
    }
    kept
}

/// The usable ones, each once.
fn addresses<'a>(
    fields: impl Iterator<Item = (String, &'a str)>,
    problems: &mut Problems,
) -> Vec<IpAddr> {
    let mut kept = Vec::new();
    for (field, ip) in fields {
        if let Some(addr) = problems.keep(field, address::usable_address(ip))
            && !kept.contains(&addr)
        {
            kept.push(addr);
        }
    }
    kept
}

/// KEP-1860: `ipMode: Proxy` means that traffic must really reach the load balancer.
fn load_balancer_ips(status: Option<core::ServiceStatus>, problems: &mut Problems) -> Vec<IpAddr> {
    let ingress = status
        .and_then(|status| status.load_balancer)
        .and_then(|lb| lb.ingress)
        .unwrap_or_default();
    let mut fields = Vec::with_capacity(ingress.len());
    for (i, ingress) in ingress.iter().enumerate() {
        // An entry with a hostname only is a matter of DNS.
        let Some(ip) = ingress.ip.as_deref().filter(|ip| !ip.is_empty()) else {
            continue;
        };
        match ingress.ip_mode.as_deref() {
            None | Some("" | "VIP") => {
                fields.push((format!("status.loadBalancer.ingress[{i}].ip"), ip));
            }
            Some("Proxy") => {}
            // Leaving an address to the load balancer is right for all clients, only slower.
            Some(other) => problems.add(
                format!("status.loadBalancer.ingress[{i}].ipMode"),
                Reason::UnknownValue(other.into()),
            ),
        }
    }
    addresses(fields.into_iter(), problems)
}

/// By family, as kube-proxy takes them: ranges of one family leave the other open, and the range of
/// all addresses opens its own. A range that can't be read would have limited somebody: as its family
/// can't be told, it limits both.
fn source_ranges(texts: &[String], problems: &mut Problems) -> BTreeMap<Family, Vec<IpNet>> {
    let mut ranges: BTreeMap<Family, Vec<IpNet>> = BTreeMap::new();
    for (i, text) in texts.iter().enumerate() {
        let field = format!("spec.loadBalancerSourceRanges[{i}]");
        match problems.keep(field, address::range(text)) {
            Some(range) => {
                let of_family = ranges.entry(Family::of(&range.addr())).or_default();
                if !of_family.contains(&range) {
                    of_family.push(range);
                }
            }
            None => {
                for family in Family::BOTH {
                    ranges.entry(family).or_default();
                }
            }
        }
    }
    ranges.retain(|_, ranges| !ranges.iter().any(|range| range.prefix_len() == 0));
    ranges
}

/// A ServicePort is known by name *and* protocol (`ServicePortName` in `pkg/proxy/types.go`), so only
/// a repetition of both is a duplicate.
fn ports(ports: Vec<core::ServicePort>, problems: &mut Problems) -> Vec<ServicePort> {
    let mut names: HashSet<(String, Protocol)> = HashSet::default();
    let mut numbers: HashSet<(NonZeroU16, Protocol)> = HashSet::default();
    let mut node_ports: HashSet<(NonZeroU16, Protocol)> = HashSet::default();
    let mut kept = Vec::with_capacity(ports.len());
    for (i, port) in ports.into_iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{i}].{name}");
        let number = problems.keep(field("port"), address::port(port.port));
        let protocol = problems.keep(
            field("protocol"),
            address::protocol(port.protocol.as_deref()),
        );
        let (Some(number), Some(protocol)) = (number, protocol) else {
            continue;
        };
        let name = port.name.unwrap_or_default();
        if names.contains(&(name.clone(), protocol)) {
            problems.add(field("name"), Reason::DuplicatePortName(name));
            continue;
        }
        if !numbers.insert((number, protocol)) {
            problems.add(field("port"), Reason::DuplicatePort(number.get()));
            continue;
        }
        let node_port = match port.node_port {
            None | Some(0) => None,
            Some(node_port) => problems
                .keep(field("nodePort"), address::port(node_port))
                .filter(|node_port| {
                    let first = node_ports.insert((*node_port, protocol));
                    if !first {
                        problems.add(field("nodePort"), Reason::DuplicatePort(node_port.get()));
                    }
                    first
                }),
        };
        kept.push(ServicePort {
            name: name.as_str().into(),
            protocol,
            port: number,
            node_port,
        });
        names.insert((name, protocol));
    }
    kept
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
