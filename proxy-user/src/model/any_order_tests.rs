//! Random histories: what they end in does not depend on how they went, and is what a plain reading of the
//! rules says of what exists.

use std::num::NonZeroU16;

use proptest::prelude::*;

use super::{
    tests::{endpoint, ip, name, port, service, slice},
    *,
};

const SERVICES: [&str; 3] = ["a", "b", "c"];

fn pick<T: Clone + std::fmt::Debug + 'static>(from: &'static [T]) -> impl Strategy<Value = T> {
    prop::sample::select(from)
}

fn any_service() -> impl Strategy<Value = Service> {
    let ips = || pick(&["10.96.0.1", "10.96.0.2", "fd96::1"]);
    (
        pick(&SERVICES),
        0i64..3,
        prop::collection::btree_set(ips(), 1..3),
        prop::collection::btree_set(ips(), 0..2),
        any::<[bool; 4]>(),
        prop::option::of(pick(&["10.0.0.0/8", "192.168.0.0/24", "fd00::/8"])),
    )
        .prop_map(
            |(
                text,
                created,
                ips,
                external,
                [local, outside_local, two_ports, node_port],
                range,
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

fn any_slice() -> impl Strategy<Value = EndpointSlice> {
    prop_oneof![2 => any_slice_of(Family::V4), 1 => any_slice_of(Family::V6)]
}

/// One source's word: single objects, or a whole list.
fn any_events() -> impl Strategy<Value = Vec<Event>> {
    let slices = pick(&["s1", "s2", "s3", "s4"]);
    let bracket = |kind, events: Vec<Event>| {
        let mut all = vec![Event::ListStarted(kind)];
        all.extend(events);
        all.push(Event::Listed(kind));
        all
    };
    prop_oneof![
        4 => any_service().prop_map(|service| vec![Event::ServiceApplied(service)]),
        4 => any_slice().prop_map(|slice| vec![Event::SliceApplied(slice)]),
        1 => pick(&SERVICES).prop_map(|text| vec![Event::ServiceGone(name(text))]),
        1 => slices.prop_map(|text| vec![Event::SliceGone(name(text))]),
        1 => prop::collection::vec(any_service().prop_map(Event::ServiceApplied), 0..4)
            .prop_map(move |events| bracket(Kind::Service, events)),
        1 => prop::collection::vec(any_slice().prop_map(Event::SliceApplied), 0..4)
            .prop_map(move |events| bracket(Kind::EndpointSlice, events)),
        1 => (pick(&["n1", "n2"]), prop::option::of(pick(&["east", "west"]))).prop_map(|(node, zone)| vec![Event::NodeChanged(Node {
            name: node.into(),
            zone: zone.map(Into::into),
            internal_ips: if node == "n1" { vec![ip(LOCAL[0])] } else { Vec::new() },
            pod_cidrs: vec!["10.0.0.0/24".parse().expect("a range")],
            ..Node::default()
        })]),
        1 => (pick(&["x", "y"]), pick(&["10.96.0.0/12", "fd96::/108"]))
            .prop_map(|(cidr, net)| vec![Event::ServiceCidrApplied(cidr.into(), vec![net.parse().expect("a range")])]),
        1 => pick(&["x", "y"]).prop_map(|cidr| vec![Event::ServiceCidrGone(cidr.into())]),
        1 => pick(&["x", "y"]).prop_map(move |cidr| bracket(
            Kind::ServiceCidr,
            vec![Event::ServiceCidrApplied(cidr.into(), vec!["10.97.0.0/16".parse().expect("a range")])],
        )),
        1 => prop::sample::subsequence(LOCAL.to_vec(), 0..=LOCAL.len())
            .prop_map(|ips| vec![Event::LocalAddresses(
                ips.iter().map(|ip| ip.parse().expect("an IP")).collect(),
            )]),
    ]
}

/// The plain account: what exists in the end.
#[derive(Default)]
struct Account {
    services: BTreeMap<ObjectName, Service>,
    slices: BTreeMap<ObjectName, EndpointSlice>,
    cidrs: BTreeMap<Arc<str>, Vec<IpNet>>,
    node: Node,
    local: Vec<IpAddr>,
}

const LOCAL: [&str; 3] = ["192.168.0.2", "10.1.0.1", "fd00::2"];

impl Account {
    fn note(&mut self, event: &Event) {
        match event {
            // A list's objects follow at once: emptying first comes to the same.
            Event::ListStarted(Kind::Service) => self.services.clear(),
            Event::ListStarted(Kind::EndpointSlice) => self.slices.clear(),
            Event::ListStarted(Kind::ServiceCidr) => self.cidrs.clear(),
            Event::Listed(_) => {}
            Event::ServiceCidrApplied(name, nets) => {
                self.cidrs.insert(name.clone(), nets.clone());
            }
            Event::ServiceCidrGone(name) => drop(self.cidrs.remove(name)),
            Event::ServiceApplied(service) => {
                self.services.insert(service.name.clone(), service.clone());
            }
            Event::ServiceGone(name) => drop(self.services.remove(name)),
            Event::SliceApplied(slice) => {
                self.slices.insert(slice.name.clone(), slice.clone());
            }
            Event::SliceGone(name) => drop(self.slices.remove(name)),
            Event::NodeChanged(node) => self.node = node.clone(),
            Event::LocalAddresses(ips) => self.local.clone_from(ips),
        }
    }
}

/// What a client meets: backends, or what is done without any. `None`: nobody's address.
type Outcome = Option<Result<BTreeSet<SocketAddr>, Empty>>;

/// As the maps will say it.
fn meaning(
    written: &BTreeMap<ObjectName, Vec<PortSnapshot>>,
    address: &FrontendAddress,
    outside: bool,
) -> Outcome {
    let all = || written.values().flatten();
    let (port, kind) = all().find_map(|port| {
        let frontend = port.frontends.iter().find(|(known, _)| known == address);
        frontend.map(|(_, kind)| (port, *kind))
    })?;
    let twin = PortKey {
        scope: Scope::Local,
        ..port.key.clone()
    };
    let list = if outside && port.outside_is_local && kind != FrontendKind::ClusterIp {
        all()
            .find(|port| port.key == twin)
            .expect("both or neither")
    } else {
        port
    };
    Some(match list.chosen.as_slice() {
        [] => Err(list.empty),
        chosen => Ok(chosen.iter().copied().collect()),
    })
}

/// The rules of BEHAVIOUR §1B and of its rows A1, A7, A8, A9, N1, W7 and E8 to E10, one question at a time.
impl Account {
    /// Every address that could be somebody's, inside and outside.
    fn questions(&self) -> impl Iterator<Item = (FrontendAddress, bool)> {
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

    fn outcome(&self, address: &FrontendAddress, outside: bool) -> Outcome {
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
                    claims.push((
                        service.created_secs,
                        &service.name,
                        &port.name,
                        kind,
                        service,
                    ));
                }
            }
        }
        claims.sort_by_key(|(created, name, port, ..)| (*created, *name, *port));
        let (_, name, port, kind, service) = claims.into_iter().next()?;

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
        let policy = match (kind, outside) {
            (FrontendKind::ClusterIp, _) => service.internal_policy,
            (_, true) => service.external_policy,
            (_, false) => TrafficPolicy::Cluster,
        };
        let list = match policy {
            TrafficPolicy::Cluster => cluster,
            TrafficPolicy::Local => local,
        };
        Some(if !list.is_empty() {
            Ok(list)
        } else if ready.is_empty() && those(&lasts).is_empty() {
            Err(Empty::Refuse)
        } else {
            Err(Empty::Drop)
        })
    }
}

proptest! {
    #[test]
    fn only_what_exists_in_the_end_counts(
        history in prop::collection::vec(any_events(), 0..30),
        reversed in any::<bool>(),
    ) {
        let mut model = Model::new(Node::default(), NodePortScope::Primary);
        let mut account = Account::default();
        // What a syncer would have written: it asks only for what was touched.
        let mut written: BTreeMap<ObjectName, Vec<PortSnapshot>> = BTreeMap::new();
        let mut written_nets = None;
        let mut cidrs_listed = false;
        for events in history {
            for event in events {
                cidrs_listed |= event == Event::Listed(Kind::ServiceCidr);
                account.note(&event);
                model.apply(event);
            }
            for name in model.take_touched() {
                let desired = model.desired(&name);
                written.insert(name, desired);
            }
            written_nets = model.take_service_nets().or(written_nets);
        }
        let local = Event::LocalAddresses(account.local.clone());
        let services = account.services.values().cloned().map(Event::ServiceApplied);
        let slices = account.slices.values().cloned().map(Event::SliceApplied);
        let mut events: Vec<Event> = services.chain(slices).chain([local]).collect();
        if reversed {
            events.reverse();
        }
        let mut fresh = Model::new(account.node.clone(), NodePortScope::Primary);
        events.into_iter().for_each(|event| fresh.apply(event));
        let mut owners = HashMap::default();
        for text in SERVICES {
            let expected = fresh.desired(&name(text));
            prop_assert_eq!(&model.desired(&name(text)), &expected);
            prop_assert_eq!(written.get(&name(text)).cloned().unwrap_or_default(), expected.clone());
            for (address, _) in expected.iter().flat_map(|port| &port.frontends) {
                prop_assert_eq!(owners.insert(*address, text), None, "two owners");
            }
        }
        for (address, outside) in account.questions() {
            let expected = account.outcome(&address, outside);
            let found = meaning(&written, &address, outside);
            prop_assert_eq!(found, expected, "{}, from outside: {}", address, outside);
        }
        let nets: BTreeSet<IpNet> = account.cidrs.values().flatten().copied().collect();
        prop_assert_eq!(written_nets, cidrs_listed.then_some(nets));
        prop_assert_eq!(model.service_count(), fresh.service_count());
        prop_assert_eq!(model.entries.len(), fresh.entries.len(), "something is kept for nothing");
    }
}
