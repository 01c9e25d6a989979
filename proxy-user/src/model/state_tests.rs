use proxy_common::abi::Scheduler;

use super::*;
use crate::model::{NameHash, SlicePort, WeightKey};

pub(super) fn name(text: &str) -> ObjectName {
    ObjectName::new("ns", text)
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn port(name: &str, number: u16) -> ServicePort {
    ServicePort {
        name: name.into(),
        protocol: Protocol::Tcp,
        port: NonZeroU16::new(number).unwrap(),
        node_port: None,
    }
}

pub(super) fn service(text: &str, created_secs: i64, ips: &[&str]) -> Service {
    Service {
        name: name(text),
        created_secs,
        cluster_ips: ips.iter().map(|text| ip(text)).collect(),
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: BTreeMap::new(),
        ports: vec![port("", 80)],
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        health_check: None,
        affinity_timeout_secs: None,
        balancing: Default::default(),
    }
}

pub(super) fn endpoint(address: &str) -> Endpoint {
    Endpoint {
        address: ip(address),
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        pod: None,
        hostname: None,
        zone: None,
        zone_hints: Default::default(),
        node_hints: Default::default(),
    }
}

pub(super) fn slice(text: &str, service: &str, addresses: &[&str]) -> EndpointSlice {
    EndpointSlice {
        name: name(text),
        service: name(service),
        family: addresses.first().map_or(Family::V4, |a| Family::of(&ip(a))),
        ports: vec![SlicePort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: NonZeroU16::new(8080).unwrap(),
        }],
        endpoints: addresses.iter().map(|text| endpoint(text)).collect(),
        triggered: None,
    }
}

fn model(events: impl IntoIterator<Item = Event>) -> Model {
    let mut model = Model::new(Node::default(), NodePortScope::Primary);
    for event in events {
        model.apply(event);
    }
    model
}

/// `frontends -> chosen` of every port.
fn ways(model: &mut Model, service: &str) -> Vec<(Vec<String>, Vec<String>)> {
    let show = |port: &PortSnapshot| {
        (
            port.frontends.iter().map(|(a, _)| a.to_string()).collect(),
            port.chosen.iter().map(ToString::to_string).collect(),
        )
    };
    model.desired(&name(service)).iter().map(show).collect()
}

fn way(frontends: &[&str], chosen: &[&str]) -> (Vec<String>, Vec<String>) {
    let own = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
    (own(frontends), own(chosen))
}

#[test]
fn nothing_is_ready_before_both_kinds_are_listed() {
    let mut model = model([Event::ListStarted(Kind::Service)]);
    assert!(!model.is_ready());
    model.apply(Event::Listed(Kind::Service));
    model.apply(Event::SliceApplied(slice("s", "a", &["10.0.0.1"])));
    model.apply(Event::ListStarted(Kind::EndpointSlice));
    assert!(!model.is_ready());
    model.apply(Event::Listed(Kind::EndpointSlice));
    assert!(model.is_ready());
    // An agent waits for its node as well.
    let mut model = model.that_waits_for_its_node();
    assert!(!model.is_ready());
    model.apply(Event::LocalAddresses(Vec::new()));
    assert!(!model.is_ready());
    model.apply(Event::NodeChanged(Node::default()));
    assert!(model.is_ready());
    // A later list does not take it back.
    model.apply(Event::ListStarted(Kind::Service));
    assert!(model.is_ready());
}

#[test]
fn what_a_list_does_not_name_is_gone() {
    let mut model = model([
        Event::ServiceApplied(service("a", 0, &["10.96.0.1"])),
        Event::ServiceApplied(service("b", 0, &["10.96.0.2"])),
        Event::SliceApplied(slice("a-1", "a", &["10.0.0.1"])),
        Event::SliceApplied(slice("a-2", "a", &["10.0.0.2"])),
        Event::ListStarted(Kind::Service),
        Event::ServiceApplied(service("a", 0, &["10.96.0.1"])),
        Event::Listed(Kind::Service),
        Event::ListStarted(Kind::EndpointSlice),
        Event::SliceApplied(slice("a-2", "a", &["10.0.0.2"])),
        Event::Listed(Kind::EndpointSlice),
    ]);
    let expected = [way(&["10.96.0.1:80/TCP"], &["10.0.0.2:8080"])];
    assert_eq!(ways(&mut model, "a"), expected);
    assert_eq!(ways(&mut model, "b"), []);
}

#[test]
fn a_list_that_starts_over_forgets_what_the_first_try_named() {
    let mut model = model([
        Event::ServiceApplied(service("a", 0, &["10.96.0.1"])),
        Event::ListStarted(Kind::Service),
        Event::ServiceApplied(service("a", 0, &["10.96.0.1"])),
        Event::ListStarted(Kind::Service),
        Event::Listed(Kind::Service),
    ]);
    assert_eq!(ways(&mut model, "a"), []);
}

#[test]
fn the_older_service_keeps_an_address_and_the_younger_inherits_it() {
    let vip = "10.96.0.1:80/TCP";
    let mut model = model([
        Event::ServiceApplied(service("young", 2, &["10.96.0.1"])),
        Event::ServiceApplied(service("old", 1, &["10.96.0.1"])),
    ]);
    assert_eq!(ways(&mut model, "old"), [way(&[vip], &[])]);
    assert_eq!(ways(&mut model, "young"), [way(&[], &[])]);
    model.take_touched();
    model.apply(Event::ServiceGone(name("old")));
    assert!(model.take_touched().contains(&name("young")));
    assert_eq!(ways(&mut model, "young"), [way(&[vip], &[])]);
    model.apply(Event::ServiceApplied(service("old", 1, &["10.96.0.1"])));
    assert!(model.take_touched().contains(&name("young")));
    assert_eq!(ways(&mut model, "young"), [way(&[], &[])]);
}

#[test]
fn the_same_service_twice_changes_nothing() {
    let mut model = model([
        Event::ServiceApplied(service("a", 1, &["10.96.0.1"])),
        Event::SliceApplied(slice("a-1", "a", &["10.0.0.1"])),
    ]);
    model.take_touched();
    model.apply(Event::ServiceApplied(service("a", 1, &["10.96.0.1"])));
    model.apply(Event::SliceApplied(slice("a-1", "a", &["10.0.0.1"])));
    model.apply(Event::ServiceGone(name("unknown")));
    model.apply(Event::SliceGone(name("unknown")));
    assert!(model.take_touched().is_empty());
}

#[test]
fn an_address_of_several_kinds_or_ports_has_one_owner() {
    let mut a = service("a", 1, &["10.96.0.1"]);
    a.external_ips = vec![ip("10.96.0.1"), ip("192.0.2.1")];
    a.load_balancer_ips = vec![ip("192.0.2.1")];
    a.ports = vec![port("one", 80), port("two", 80)];
    let mut model = model([Event::ServiceApplied(a)]);
    let one = way(&["10.96.0.1:80/TCP", "192.0.2.1:80/TCP"], &[]);
    assert_eq!(ways(&mut model, "a"), [one, way(&[], &[])]);
}

#[test]
fn a_slice_that_changes_its_owner_leaves_the_old_one() {
    let mut model = model([
        Event::ServiceApplied(service("a", 1, &["10.96.0.1"])),
        Event::ServiceApplied(service("b", 1, &["10.96.0.2"])),
        Event::SliceApplied(slice("s", "a", &["10.0.0.1"])),
    ]);
    model.take_touched();
    model.apply(Event::SliceApplied(slice("s", "b", &["10.0.0.1"])));
    assert_eq!(model.take_touched(), [name("a"), name("b")].into());
    assert_eq!(ways(&mut model, "a")[0].1, [""; 0]);
    assert_eq!(ways(&mut model, "b")[0].1, ["10.0.0.1:8080"]);
    model.apply(Event::SliceGone(name("s")));
    assert_eq!(ways(&mut model, "b")[0].1, [""; 0]);
}

#[test]
fn the_families_of_a_dual_stack_service_are_apart() {
    let mut model = model([
        Event::ServiceApplied(service("a", 1, &["10.96.0.1", "fd96::1"])),
        Event::SliceApplied(slice("v4", "a", &["10.0.0.1"])),
        Event::SliceApplied(slice("v6", "a", &["fd00::1", "fd00::2"])),
    ]);
    let v4 = way(&["10.96.0.1:80/TCP"], &["10.0.0.1:8080"]);
    let v6 = way(&["[fd96::1]:80/TCP"], &["[fd00::1]:8080", "[fd00::2]:8080"]);
    assert_eq!(ways(&mut model, "a"), [v4, v6]);
}

#[test]
fn one_port_has_the_endpoints_of_all_slices_each_with_its_own_number() {
    let mut other = slice("two", "a", &["10.0.0.2", "10.0.0.1"]);
    other.ports[0].port = NonZeroU16::new(9090).unwrap();
    let mut model = model([
        Event::SliceApplied(slice("one", "a", &["10.0.0.1"])),
        Event::SliceApplied(other),
        Event::ServiceApplied(service("a", 1, &["10.96.0.1"])),
    ]);
    assert_eq!(
        ways(&mut model, "a")[0].1,
        ["10.0.0.1:8080", "10.0.0.1:9090", "10.0.0.2:9090"]
    );
}

/// BEHAVIOUR A7; among records that don't terminate, one that says ready is the pod's present one.
#[test]
fn of_two_records_of_one_address_the_livelier_wins_in_any_order() {
    let ready = endpoint("10.0.0.1");
    let unready = Endpoint {
        ready: false,
        ..ready.clone()
    };
    let ending = Endpoint {
        terminating: true,
        ready: false,
        ..ready.clone()
    };
    let records = [ready, unready, ending];
    for order in [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ] {
        let mut all = slice("s", "a", &["10.0.0.1"]);
        all.endpoints = order.iter().map(|&i| records[i].clone()).collect();
        let mut events = vec![Event::ServiceApplied(service("a", 1, &["10.96.0.1"]))];
        events.push(Event::SliceApplied(all));
        let mut together = model(events.clone());
        events.truncate(1);
        for (text, index) in ["x", "y", "z"].into_iter().zip(order) {
            let mut one = slice(text, "a", &["10.0.0.1"]);
            one.endpoints = vec![records[index].clone()];
            events.push(Event::SliceApplied(one));
        }
        let mut apart = model(events);
        for model in [&mut together, &mut apart] {
            assert_eq!(ways(model, "a")[0].1, ["10.0.0.1:8080"], "{order:?}");
        }
    }
}

#[test]
fn notes_are_said_once_and_again_when_they_come_back() {
    let said = |model: &mut Model, service: &str| {
        model.desired(&name(service));
        model.take_notes().len()
    };
    let mut model = model([
        Event::ServiceApplied(service("old", 1, &["10.96.0.1"])),
        Event::ServiceApplied(service("young", 2, &["10.96.0.1"])),
    ]);
    assert_eq!(
        [said(&mut model, "young"), said(&mut model, "young")],
        [1, 0]
    );
    model.apply(Event::ServiceGone(name("old")));
    assert_eq!(said(&mut model, "young"), 0);
    model.apply(Event::ServiceApplied(service("old", 1, &["10.96.0.1"])));
    assert_eq!([said(&mut model, "young"), said(&mut model, "old")], [1, 0]);
    model.apply(Event::SliceApplied(slice("s", "nobody", &["10.0.0.1"])));
    assert_eq!(
        [said(&mut model, "nobody"), said(&mut model, "nobody")],
        [1, 0]
    );
    model.apply(Event::SliceApplied(slice("v6", "old", &["fd00::1"])));
    assert_eq!([said(&mut model, "old"), said(&mut model, "old")], [1, 0]);
}

#[test]
fn a_slice_that_outlives_its_service_for_a_moment_is_not_worth_a_line() {
    let mut model = model([
        Event::ServiceApplied(service("a", 1, &["10.96.0.1"])),
        Event::SliceApplied(slice("s", "a", &["10.0.0.1"])),
        Event::ServiceGone(name("a")),
    ]);
    assert!(model.desired(&name("a")).is_empty());
    assert_eq!(model.take_notes(), []);
}

/// A NodePort Service whose external policy is Local, and its endpoints by node.
fn outside_local(endpoints: &[(&str, Option<&str>)]) -> Model {
    let mut a = service("a", 1, &["10.96.0.1"]);
    a.external_policy = TrafficPolicy::Local;
    a.external_ips = vec![ip("192.0.2.1")];
    let mut s = slice("s", "a", &["10.0.0.1"]);
    s.endpoints = endpoints
        .iter()
        .map(|(address, node)| Endpoint {
            node: node.map(Into::into),
            ..endpoint(address)
        })
        .collect();
    let node = Node {
        name: "n1".into(),
        ..Node::default()
    };
    let mut model = Model::new(node, NodePortScope::Primary);
    model.apply(Event::ServiceApplied(a));
    model.apply(Event::SliceApplied(s));
    model
}

#[test]
fn e8_to_e10_outside_gets_the_local_list_and_the_node_all() {
    let mut model = outside_local(&[("10.0.0.1", Some("n1")), ("10.0.0.2", Some("n2"))]);
    let desired = model.desired(&name("a"));
    let [local, cluster] = desired.as_slice() else {
        panic!("{desired:?}");
    };
    assert_eq!((local.key.scope, local.frontends.len()), (Scope::Local, 0));
    assert_eq!(local.chosen, ["10.0.0.1:8080".parse().unwrap()]);
    assert_eq!(cluster.key.scope, Scope::Cluster);
    assert!(cluster.outside_is_local);
    assert_eq!((cluster.frontends.len(), cluster.chosen.len()), (2, 2));
}

#[test]
fn e8_an_empty_local_list_drops_if_there_are_endpoints_elsewhere_and_refuses_otherwise() {
    for (endpoints, expected) in [
        (&[("10.0.0.2", Some("n2"))][..], Empty::Drop),
        (&[], Empty::Refuse),
    ] {
        let local = &outside_local(endpoints).desired(&name("a"))[0];
        assert_eq!((local.chosen.len(), local.empty), (0, expected));
    }
}

#[test]
fn e12_without_an_address_for_the_outside_there_is_no_local_list() {
    let mut a = service("a", 1, &["10.96.0.1"]);
    a.external_policy = TrafficPolicy::Local;
    let mut model = model([Event::ServiceApplied(a)]);
    let desired = model.desired(&name("a"));
    assert_eq!(desired.len(), 1);
    assert!(!desired[0].outside_is_local);
}

#[test]
fn a_backend_is_local_by_its_node_or_by_its_address() {
    let mut model = outside_local(&[
        ("10.0.0.1", Some("n1")),
        ("10.0.0.2", Some("n2")),
        ("192.168.0.2", None),
    ]);
    model.apply(Event::ServiceApplied(service("other", 1, &["10.96.0.9"])));
    let local = |model: &mut Model| -> Vec<String> {
        let desired = model.desired(&name("a"));
        let cluster = desired.last().expect("a snapshot");
        cluster.local.iter().map(ToString::to_string).collect()
    };
    assert_eq!(local(&mut model), ["10.0.0.1:8080"]);
    model.take_touched();
    model.apply(Event::LocalAddresses(vec![
        ip("192.168.0.2"),
        ip("10.9.9.9"),
    ]));
    // Nobody else is looked at.
    assert_eq!(model.take_touched(), [name("a")].into());
    assert_eq!(local(&mut model), ["10.0.0.1:8080", "192.168.0.2:8080"]);
    model.apply(Event::LocalAddresses(vec![ip("192.168.0.2")]));
    assert!(model.take_touched().is_empty());
    model.apply(Event::LocalAddresses(Vec::new()));
    assert_eq!(model.take_touched(), [name("a")].into());
    assert_eq!(local(&mut model), ["10.0.0.1:8080"]);
}

#[test]
fn p8_a_configured_primary_address_takes_the_place_of_the_nodes_of_its_family() {
    let node = |internal: &[&str]| Node {
        name: "n1".into(),
        internal_ips: internal.iter().map(|text| ip(text)).collect(),
        ..Node::default()
    };
    let configured = Some(ip("192.0.2.7"));
    let mut model = Model::new(node(&[]), NodePortScope::Primary).with_primary_ip(configured);
    assert_eq!(model.internal_ips(), [ip("192.0.2.7")]);
    // The first is the primary one.
    model.apply(Event::NodeChanged(node(&["fd00::2", "192.168.0.2"])));
    assert_eq!(model.internal_ips(), [ip("192.0.2.7"), ip("fd00::2")]);
    let mut model =
        Model::new(node(&["192.168.0.2"]), NodePortScope::Primary).with_primary_ip(None);
    assert_eq!(model.internal_ips(), [ip("192.168.0.2")]);
    model.apply(Event::NodeChanged(node(&[])));
    assert_eq!(model.internal_ips(), [] as [IpAddr; 0]);
}

#[test]
fn l4_source_ranges_admit_the_node_by_its_address_and_pods_by_all_their_ranges() {
    let limits = |ranges: &[&str], node: Node, local: &[&str]| {
        let mut a = service("a", 1, &["10.96.0.1"]);
        a.load_balancer_ips = vec![ip("192.0.2.1")];
        let ranges = ranges.iter().map(|net| net.parse().unwrap()).collect();
        a.source_ranges = BTreeMap::from([(Family::V4, ranges)]);
        let mut model = Model::new(node, NodePortScope::Primary);
        model.apply(Event::LocalAddresses(local.iter().map(|i| ip(i)).collect()));
        model.apply(Event::ServiceApplied(a));
        let limits = model.desired(&name("a")).remove(0).source_ranges;
        limits.map(|limits| (limits.admit_node, limits.admit_pods))
    };
    let node = |cidrs: &[&str]| Node {
        internal_ips: vec![ip("192.168.0.2")],
        pod_cidrs: cidrs.iter().map(|net| net.parse().unwrap()).collect(),
        ..Node::default()
    };
    let pods = &["10.1.0.0/24", "fd01::/64", "10.2.0.0/24"];
    for (ranges, node, local, expected) in [
        (
            &["203.0.113.0/24"][..],
            node(pods),
            &["203.0.113.9"][..],
            (false, false),
        ),
        (&["192.168.0.0/24"], node(pods), &[], (true, false)),
        (&["10.1.0.0/16"], node(pods), &[], (false, false)),
        (
            &["10.1.0.0/16", "10.2.0.0/16"],
            node(pods),
            &[],
            (false, true),
        ),
        (
            &["10.1.0.128/25", "10.2.0.0/16"],
            node(pods),
            &[],
            (false, false),
        ),
        // What is not known admits nobody.
        (&["10.0.0.0/8"], node(&["fd01::/64"]), &[], (false, false)),
        // Without a Node object, the node is where its addresses are.
        (
            &["10.9.0.0/16"],
            Node::default(),
            &["10.9.0.1"],
            (true, false),
        ),
        (
            &["127.0.0.0/8"],
            Node::default(),
            &["127.0.0.1"],
            (false, false),
        ),
        (&[], node(pods), &[], (false, false)),
    ] {
        assert_eq!(limits(ranges, node, local), Some(expected), "{ranges:?}");
    }
}

#[test]
fn l1_source_ranges_are_those_of_load_balancer_addresses() {
    let mut a = service("a", 1, &["10.96.0.1"]);
    a.external_ips = vec![ip("192.0.2.1"), ip("192.0.2.2")];
    a.source_ranges = BTreeMap::from([(Family::V4, Vec::new())]);
    let mut model = model([Event::ServiceApplied(a.clone())]);
    assert_eq!(model.desired(&name("a"))[0].source_ranges, None);
    a.load_balancer_ips = vec![ip("192.0.2.1")];
    model.apply(Event::ServiceApplied(a));
    let desired = model.desired(&name("a"));
    assert!(desired[0].source_ranges.is_some());
    let kinds: Vec<_> = desired[0].frontends.iter().map(|(_, kind)| *kind).collect();
    // An address of both kinds is limited.
    assert_eq!(
        kinds,
        [
            FrontendKind::ClusterIp,
            FrontendKind::LoadBalancer,
            FrontendKind::ExternalIp
        ]
    );
}

#[test]
fn half_of_the_first_list_of_service_cidrs_is_not_told() {
    let net: IpNet = "10.96.0.0/12".parse().unwrap();
    let mut model = model([
        Event::ListStarted(Kind::ServiceCidr),
        Event::ServiceCidrApplied("kubernetes".into(), vec![net]),
    ]);
    assert_eq!(model.take_service_nets(), None);
    model.apply(Event::Listed(Kind::ServiceCidr));
    assert_eq!(model.take_service_nets(), Some([net].into()));
    assert_eq!(model.take_service_nets(), None);
    model.apply(Event::ListStarted(Kind::ServiceCidr));
    model.apply(Event::Listed(Kind::ServiceCidr));
    assert_eq!(model.take_service_nets(), Some(BTreeSet::new()));
    assert!(!model.is_ready());
}

fn weights(given: &[(&str, u16)]) -> Weights {
    let mut weights = Weights::default();
    for (key, weight) in given {
        let key = key.parse().map_or(WeightKey::Any, WeightKey::Address);
        assert!(weights.add(key, *weight));
    }
    weights
}

/// Service `a` with endpoints 10.0.0.1 to 3, balanced like this.
fn balanced(balancing: ServiceBalancing) -> Model {
    let service = Service {
        balancing,
        ..service("a", 0, &["10.96.0.1"])
    };
    model([
        Event::ServiceApplied(service),
        Event::SliceApplied(slice("s", "a", &["10.0.0.1", "10.0.0.2", "10.0.0.3"])),
    ])
}

fn weighing(given: &[(&str, u16)]) -> Model {
    balanced(ServiceBalancing {
        weights: weights(given),
        ..ServiceBalancing::default()
    })
}

fn only_port(model: &mut Model) -> PortSnapshot {
    let mut ports = model.desired(&name("a"));
    assert_eq!(ports.len(), 1, "{ports:?}");
    ports.remove(0)
}

fn sockets(texts: &[&str]) -> Vec<SocketAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn what_a_service_says_of_its_balancing_comes_before_what_the_node_says() {
    let node = BalancingDefaults {
        scheduler: Scheduler::RoundRobin,
        fails_over: false,
    };
    let found = |service: ServiceBalancing, node| {
        let balancing = only_port(&mut balanced(service).with_balancing(node)).balancing;
        (balancing.scheduler, balancing.fails_over)
    };
    let silent = ServiceBalancing::default;
    assert_eq!(
        found(silent(), BalancingDefaults::default()),
        (Scheduler::Random, true)
    );
    assert_eq!(found(silent(), node), (Scheduler::RoundRobin, false));
    let says = ServiceBalancing {
        scheduler: Some(Scheduler::Maglev),
        fails_over: Some(true),
        ..silent()
    };
    assert_eq!(found(says, node), (Scheduler::Maglev, true));
}

#[test]
fn only_tcp_fails_over() {
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        let mut asked = service("a", 0, &["10.96.0.1"]);
        asked.ports[0].protocol = protocol;
        asked.balancing.fails_over = Some(true);
        let port = only_port(&mut model([Event::ServiceApplied(asked)]));
        assert_eq!(port.balancing.fails_over, protocol == Protocol::Tcp);
    }
}

#[test]
fn weights_other_than_1_are_told_by_address() {
    let mut model = weighing(&[("10.0.0.1", 3), ("10.0.0.2", 1), ("10.9.9.9", 7)]);
    let port = only_port(&mut model);
    assert_eq!(
        port.chosen,
        sockets(&["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080"])
    );
    let expected = [(
        "10.0.0.1:8080".parse().unwrap(),
        NonZeroU16::new(3).unwrap(),
    )];
    assert_eq!(port.balancing.weights, expected.into());
    // The endpoint that is not there may come.
    assert_eq!(model.take_notes(), []);
}

#[test]
fn an_endpoint_of_weight_0_gets_no_new_connections_and_keeps_its_own() {
    let mut model = weighing(&[("10.0.0.2", 0), ("*", 2)]);
    let port = only_port(&mut model);
    assert_eq!(port.chosen, sockets(&["10.0.0.1:8080", "10.0.0.3:8080"]));
    assert_eq!(port.kept, sockets(&["10.0.0.2:8080"]));
    let weighted: Vec<_> = port.balancing.weights.keys().copied().collect();
    assert_eq!(weighted, port.chosen);
    assert_eq!(port.empty, Empty::Drop);
    assert_eq!(model.take_notes(), []);
    // Also one that takes connections and says that it doesn't serve.
    let mut odd = slice("s", "a", &["10.0.0.1", "10.0.0.2"]);
    odd.endpoints[1].serving = false;
    model.apply(Event::SliceApplied(odd));
    assert_eq!(only_port(&mut model).kept, sockets(&["10.0.0.2:8080"]));
}

#[test]
fn weights_never_leave_a_service_without_endpoints() {
    let mut model = weighing(&[("*", 0)]);
    let port = only_port(&mut model);
    assert_eq!(port.chosen.len(), 3);
    assert_eq!((port.kept, port.balancing.weights), Default::default());
    let notes = model.take_notes();
    assert_eq!(notes, [Note::NoWeight { service: name("a") }]);
    assert_eq!(
        notes[0].to_string(),
        "Service ns/a: kube-portal.io/weights has 0 for every endpoint that could serve; as there \
         would be none left, each counts as 1; give one of them another weight"
    );
    // It is said once while it lasts.
    only_port(&mut model);
    assert_eq!(model.take_notes(), []);
    // Without any endpoint it is not the weights' doing.
    model.apply(Event::SliceGone(name("s")));
    only_port(&mut model);
    assert_eq!(model.take_notes(), []);
}

/// What is left over for nodes that have no other is not left to nobody either.
#[test]
fn each_list_of_a_service_is_weighed_by_itself() {
    let mut asked = service("a", 0, &["10.96.0.1"]);
    asked.ports[0].node_port = NonZeroU16::new(30080);
    asked.external_policy = TrafficPolicy::Local;
    asked.balancing.weights = weights(&[("10.0.0.1", 0), ("10.0.0.2", 5)]);
    let mut here = slice("s", "a", &["10.0.0.1", "10.0.0.2"]);
    here.endpoints[0].node = Some("n1".into());
    let node = Node {
        name: "n1".into(),
        ..Node::default()
    };
    let mut model = Model::new(node, NodePortScope::Primary);
    for event in [
        Event::LocalAddresses(vec![ip("192.168.0.2")]),
        Event::ServiceApplied(asked),
        Event::SliceApplied(here),
    ] {
        model.apply(event);
    }
    let ports = model.desired(&name("a"));
    let of = |scope| ports.iter().find(|port| port.key.scope == scope).unwrap();
    assert_eq!(of(Scope::Cluster).chosen, sockets(&["10.0.0.2:8080"]));
    assert_eq!(of(Scope::Cluster).kept, sockets(&["10.0.0.1:8080"]));
    assert_eq!(of(Scope::Local).chosen, sockets(&["10.0.0.1:8080"]));
    assert_eq!(model.take_notes(), [Note::NoWeight { service: name("a") }]);
}

#[test]
fn another_balancing_is_planned_again() {
    let mut model = balanced(ServiceBalancing::default());
    model.take_touched();
    let mut changed = service("a", 0, &["10.96.0.1"]);
    model.apply(Event::ServiceApplied(changed.clone()));
    assert!(!model.is_touched());
    for change in [
        |balancing: &mut ServiceBalancing| balancing.scheduler = Some(Scheduler::Random),
        |balancing: &mut ServiceBalancing| balancing.fails_over = Some(true),
        |balancing: &mut ServiceBalancing| balancing.weights = weights(&[("*", 0)]),
    ] {
        change(&mut changed.balancing);
        model.apply(Event::ServiceApplied(changed.clone()));
        assert_eq!(model.take_touched(), [name("a")].into());
    }
    // A pod of another name at the same address may have another weight.
    let mut renamed = slice("s", "a", &["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    renamed.endpoints[0].pod = Some(NameHash::of("web-0"));
    model.apply(Event::SliceApplied(renamed));
    assert_eq!(model.take_touched(), [name("a")].into());
    let same = model.with_balancing(BalancingDefaults::default());
    assert!(!same.is_touched());
    let mut other = same.with_balancing(BalancingDefaults {
        scheduler: Scheduler::RoundRobin,
        ..BalancingDefaults::default()
    });
    assert_eq!(other.take_touched(), [name("a")].into());
}
