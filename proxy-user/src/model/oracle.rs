//! What histories are made of, and a plain account of what they mean: the rules of BEHAVIOUR, read without
//! ids, maps, or anything remembered.

use std::num::{NonZeroU16, NonZeroU32};

use proptest::prelude::*;

use super::{
    tests::{endpoint, ip, port, service, slice},
    *,
};
use crate::model::WeightKey;

pub(crate) const SERVICES: [&str; 3] = ["a", "b", "c"];

pub(crate) fn pick<T: Clone + std::fmt::Debug + 'static>(
    from: &'static [T],
) -> impl Strategy<Value = T> {
    prop::sample::select(from)
}

/// Of the addresses of [`any_endpoint`].
fn any_weights() -> impl Strategy<Value = Weights> {
    let weight = (pick(&["10.0.0.1", "10.0.0.2", "fd00::11", "*"]), 0u16..3);
    prop::collection::vec(weight, 0..3).prop_map(|given| {
        let mut weights = Weights::default();
        for (key, weight) in given {
            let key = key.parse().map_or(WeightKey::Any, WeightKey::Address);
            weights.add(key, weight);
        }
        weights
    })
}

pub(crate) fn any_service() -> impl Strategy<Value = Service> {
    let ips = || pick(&["10.96.0.1", "10.96.0.2", "fd96::1"]);
    (
        pick(&SERVICES),
        0i64..3,
        prop::collection::btree_set(ips(), 1..3),
        prop::collection::btree_set(ips(), 0..2),
        any::<[bool; 4]>(),
        prop::option::of(pick(&["10.0.0.0/8", "192.168.0.0/24", "fd00::/8"])),
        0u32..3,
        any_weights(),
    )
        .prop_map(
            |(
                text,
                created,
                ips,
                external,
                [local, outside_local, two_ports, node_port],
                range,
                affinity,
                weights,
            )| {
                let ips: Vec<&str> = ips.into_iter().collect();
                let mut service = service(text, created, &ips);
                service.external_ips = external.into_iter().map(ip).collect();
                if local {
                    service.internal_policy = TrafficPolicy::Local;
                }
                if outside_local {
                    service.external_policy = TrafficPolicy::Local;
                }
                if let Some(range) = range {
                    let range: IpNet = range.parse().expect("a range");
                    service.load_balancer_ips = vec![ip("192.0.2.1"), ip("fd97::1")];
                    service.source_ranges =
                        BTreeMap::from([(Family::of(&range.addr()), vec![range])]);
                }
                service.affinity_timeout_secs = NonZeroU32::new(affinity);
                service.balancing.weights = weights;
                if two_ports {
                    service.ports.push(port("b", 81));
                }
                if node_port {
                    service.ports[0].node_port = NonZeroU16::new(30080);
                }
                service
            },
        )
}

fn hints(from: &'static [&'static str]) -> impl Strategy<Value = Vec<Arc<str>>> {
    let hints = prop::sample::subsequence(from, 0..=from.len());
    hints.prop_map(|hints| hints.into_iter().map(Into::into).collect())
}

fn any_endpoint(family: Family) -> impl Strategy<Value = Endpoint> {
    let addresses = match family {
        Family::V4 => &["10.0.0.1", "10.0.0.2", LOCAL[1]],
        Family::V6 => &["fd00::11", "fd00::12", LOCAL[2]],
    };
    (
        pick(addresses),
        any::<[bool; 4]>(),
        hints(&["east", "west"]),
        hints(&["n1", "n2"]),
    )
        .prop_map(
            |(address, [ready, serving, terminating, here], zone_hints, node_hints)| Endpoint {
                ready,
                serving,
                terminating,
                node: here.then(|| "n1".into()),
                zone_hints: zone_hints.into(),
                node_hints: node_hints.into(),
                ..endpoint(address)
            },
        )
}

fn any_slice_of(family: Family) -> impl Strategy<Value = EndpointSlice> {
    (
        pick(&["s1", "s2", "s3", "s4"]),
        pick(&SERVICES),
        prop::collection::vec(any_endpoint(family), 0..4),
        pick(&["", "b"]),
    )
        .prop_map(move |(text, owner, endpoints, port)| {
            let mut slice = slice(text, owner, &[]);
            slice.family = family;
            slice.ports[0].name = port.into();
            slice.endpoints = endpoints;
            slice
        })
}

pub(crate) fn any_slice() -> impl Strategy<Value = EndpointSlice> {
    prop_oneof![2 => any_slice_of(Family::V4), 1 => any_slice_of(Family::V6)]
}

/// The plain account of what has been heard.
#[derive(Clone, Debug, Default)]
pub(crate) struct Account {
    pub(crate) services: BTreeMap<ObjectName, Service>,
    pub(crate) slices: BTreeMap<ObjectName, EndpointSlice>,
    pub(crate) cidrs: BTreeMap<Arc<str>, Vec<IpNet>>,
    pub(crate) node: Node,
    pub(crate) local: Vec<IpAddr>,
    /// Lists that have begun, and what they have named.
    lists: BTreeMap<Kind, BTreeSet<ObjectName>>,
}

/// Whose an address is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Owner {
    pub(crate) service: ObjectName,
    pub(crate) port: Arc<str>,
    pub(crate) kind: FrontendKind,
}

pub(crate) const LOCAL: [&str; 3] = ["192.168.0.2", "10.1.0.1", "fd00::2"];

impl Account {
    pub(crate) fn note(&mut self, event: &Event) {
        match event {
            Event::ListStarted(kind) => drop(self.lists.insert(*kind, BTreeSet::new())),
            Event::Listed(kind) => {
                let named = self.lists.remove(kind).unwrap_or_default();
                match kind {
                    Kind::Service => self.services.retain(|name, _| named.contains(name)),
                    Kind::EndpointSlice => self.slices.retain(|name, _| named.contains(name)),
                    Kind::ServiceCidr => self
                        .cidrs
                        .retain(|name, _| named.contains(&ObjectName::new("", name))),
                }
            }
            Event::ServiceCidrApplied(name, nets) => {
                self.saw(Kind::ServiceCidr, ObjectName::new("", name));
                self.cidrs.insert(name.clone(), nets.clone());
            }
            Event::ServiceCidrGone(name) => drop(self.cidrs.remove(name)),
            Event::ServiceApplied(service) => {
                self.saw(Kind::Service, service.name.clone());
                self.services.insert(service.name.clone(), service.clone());
            }
            Event::ServiceGone(name) => drop(self.services.remove(name)),
            Event::SliceApplied(slice) => {
                self.saw(Kind::EndpointSlice, slice.name.clone());
                self.slices.insert(slice.name.clone(), slice.clone());
            }
            Event::SliceGone(name) => drop(self.slices.remove(name)),
            Event::NodeChanged(node) => self.node = node.clone(),
            Event::LocalAddresses(ips) => self.local.clone_from(ips),
        }
    }

    fn saw(&mut self, kind: Kind, name: ObjectName) {
        if let Some(named) = self.lists.get_mut(&kind) {
            named.insert(name);
        }
    }
}

/// What a client meets: backends, or what is done without any. `None`: nobody's address.
pub(crate) type Outcome = Option<Result<BTreeSet<SocketAddr>, Empty>>;

/// The rules of BEHAVIOUR §1B and of its rows A1, A7, A8, A9, N1, W7 and E8 to E10, one question at a time.
impl Account {
    /// Every address that could be somebody's, inside and outside.
    pub(crate) fn questions() -> impl Iterator<Item = (FrontendAddress, bool)> {
        let ips = ["10.96.0.1", "10.96.0.2", "fd96::1", "192.0.2.1", "fd97::1"];
        let loopback = ["127.0.0.1", "::1"];
        let ips = ips.into_iter().chain(loopback).chain(LOCAL).map(ip);
        ips.flat_map(|ip| {
            [80, 81, 30080].into_iter().flat_map(move |port| {
                let protocol = Protocol::Tcp;
                [false, true].map(|outside| (FrontendAddress { ip, port, protocol }, outside))
            })
        })
    }

    fn has_node_ports(&self, ip: IpAddr) -> bool {
        let primary = &self.node.internal_ips;
        ip.is_loopback()
            || self.local.contains(&ip) && (primary.is_empty() || primary.contains(&ip))
    }

    fn kind(
        &self,
        service: &Service,
        port: &ServicePort,
        address: &FrontendAddress,
    ) -> Option<FrontendKind> {
        let has = |ips: &[IpAddr]| ips.contains(&address.ip) && port.port.get() == address.port;
        if port.protocol != address.protocol {
            None
        } else if has(&service.cluster_ips) {
            Some(FrontendKind::ClusterIp)
        } else if has(&service.load_balancer_ips) {
            Some(FrontendKind::LoadBalancer)
        } else if has(&service.external_ips) {
            Some(FrontendKind::ExternalIp)
        } else if port
            .node_port
            .is_some_and(|port| port.get() == address.port)
            && self.has_node_ports(address.ip)
        {
            Some(FrontendKind::NodePort)
        } else {
            None
        }
    }

    pub(crate) fn outcome(&self, address: &FrontendAddress, outside: bool) -> Outcome {
        let owner = self.owner(address)?;
        Some(self.list(
            &owner,
            Family::of(&address.ip),
            self.policy(&owner, outside),
        ))
    }

    /// Who of those that want it gets it.
    pub(crate) fn owner(&self, address: &FrontendAddress) -> Option<Owner> {
        let family = Family::of(&address.ip);
        let mut claims = Vec::new();
        for service in self.services.values() {
            if !service
                .cluster_ips
                .iter()
                .any(|ip| Family::of(ip) == family)
            {
                continue;
            }
            for port in &service.ports {
                if let Some(kind) = self.kind(service, port, address) {
                    claims.push((service.created_secs, &service.name, &port.name, kind));
                }
            }
        }
        claims.sort_by_key(|(created, name, port, _)| (*created, *name, *port));
        let (_, name, port, kind) = claims.into_iter().next()?;
        Some(Owner {
            service: name.clone(),
            port: Arc::clone(port),
            kind,
        })
    }

    /// By which of its lists the owner is reached; that of a Service that has gone is of the whole cluster.
    pub(crate) fn policy(&self, owner: &Owner, outside: bool) -> TrafficPolicy {
        let Some(service) = self.services.get(&owner.service) else {
            return TrafficPolicy::Cluster;
        };
        match (owner.kind, outside) {
            (FrontendKind::ClusterIp, _) => service.internal_policy,
            (_, true) => service.external_policy,
            (_, false) => TrafficPolicy::Cluster,
        }
    }

    pub(crate) fn list(
        &self,
        owner: &Owner,
        family: Family,
        policy: TrafficPolicy,
    ) -> Result<BTreeSet<SocketAddr>, Empty> {
        let (name, port) = (&owner.service, &owner.port);
        let mut endpoints: BTreeMap<SocketAddr, Endpoint> = BTreeMap::new();
        for slice in self.slices.values().filter(|slice| slice.service == *name) {
            for slice_port in &slice.ports {
                if slice.family != family || slice_port.name != *port {
                    continue;
                }
                for endpoint in &slice.endpoints {
                    let at = SocketAddr::new(endpoint.address, slice_port.port.get());
                    let worth = |e: &Endpoint| {
                        4 * u8::from(!e.terminating) + 2 * u8::from(e.ready) + u8::from(e.serving)
                    };
                    if endpoints
                        .get(&at)
                        .is_none_or(|known| worth(endpoint) > worth(known))
                    {
                        endpoints.insert(at, endpoint.clone());
                    }
                }
            }
        }
        let those = |wanted: &dyn Fn(&Endpoint) -> bool| -> BTreeSet<SocketAddr> {
            let wanted = endpoints.iter().filter(|(_, endpoint)| wanted(endpoint));
            wanted.map(|(at, _)| *at).collect()
        };
        let here = |e: &Endpoint| e.node.as_ref() == Some(&self.node.name);
        let lasts = |e: &Endpoint| e.serving && e.terminating;
        let for_node = |e: &Endpoint| e.node_hints.contains(&self.node.name);
        let for_zone = |e: &Endpoint| self.node.zone.iter().any(|z| e.zone_hints.contains(z));
        let ready = those(&|e| e.ready);
        let near = if those(&|e| e.ready && e.node_hints.is_empty()).is_empty()
            && !those(&|e| e.ready && for_node(e)).is_empty()
        {
            those(&|e| e.ready && for_node(e))
        } else if those(&|e| e.ready && e.zone_hints.is_empty()).is_empty()
            && !those(&|e| e.ready && for_zone(e)).is_empty()
        {
            those(&|e| e.ready && for_zone(e))
        } else {
            ready.clone()
        };
        let or_else =
            |list: BTreeSet<SocketAddr>, other| if list.is_empty() { other } else { list };
        let cluster = or_else(near, those(&lasts));
        let local = or_else(
            those(&|e| here(e) && e.ready),
            those(&|e| here(e) && lasts(e)),
        );
        let list = match policy {
            TrafficPolicy::Cluster => cluster,
            TrafficPolicy::Local => local,
        };
        let has_weight = |at: &&SocketAddr| {
            let weights = self
                .services
                .get(name)
                .map(|service| &service.balancing.weights);
            weights.is_none_or(|weights| weights.of(&endpoints[*at]) > 0)
        };
        let weighty: BTreeSet<SocketAddr> = list.iter().filter(has_weight).copied().collect();
        if !list.is_empty() {
            Ok(or_else(weighty, list))
        } else if ready.is_empty() && those(&lasts).is_empty() {
            Err(Empty::Refuse)
        } else {
            Err(Empty::Drop)
        }
    }
}
