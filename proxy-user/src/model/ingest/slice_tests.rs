use std::num::NonZeroU16;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn ingest(object: Value) -> (Option<Event>, Vec<String>) {
    let ingested = slice(serde_json::from_value(object).expect("an EndpointSlice"));
    let lines = ingested.problems.iter().map(ToString::to_string).collect();
    (ingested.event, lines)
}

fn object(labels: Value, address_type: &str, ports: Value, endpoints: Value) -> Value {
    json!({
        "metadata": {"namespace": "ns", "name": "svc-1", "labels": labels},
        "addressType": address_type, "ports": ports, "endpoints": endpoints,
    })
}

fn of_service(address_type: &str, ports: Value, endpoints: Value) -> (EndpointSlice, Vec<String>) {
    match ingest(object(
        json!({LABEL_SERVICE_NAME: "svc"}),
        address_type,
        ports,
        endpoints,
    )) {
        (Some(Event::SliceApplied(slice)), problems) => (slice, problems),
        other => panic!("{other:?}"),
    }
}

fn gone(object: Value) -> Vec<String> {
    let (event, problems) = ingest(object);
    assert_eq!(
        event,
        Some(Event::SliceGone(ObjectName::new("ns", "svc-1")))
    );
    problems
}

fn endpoint(address: &str) -> Endpoint {
    Endpoint {
        address: address.parse().expect("an address"),
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

fn port(name: &str, protocol: Protocol, port: u16) -> SlicePort {
    SlicePort {
        name: name.into(),
        protocol,
        port: NonZeroU16::new(port).expect("not 0"),
    }
}

#[test]
fn w2_slices_of_other_proxies_and_of_headless_services_are_gone() {
    for label in [LABEL_PROXY_NAME, LABEL_HEADLESS] {
        let labels = json!({LABEL_SERVICE_NAME: "svc", label: ""});
        assert_eq!(gone(object(labels, "IPv4", json!([]), json!([]))), [""; 0]);
    }
}

#[test]
fn a5_ports_without_name_or_number_are_passed_over() {
    let (slice, problems) = of_service(
        "IPv4",
        json!([
            {"port": 80},
            {"name": "all"},
            {"name": "zero", "port": 0},
            {"name": "", "port": 80, "protocol": null},
            {"name": "dns", "port": 53, "protocol": "UDP"},
        ]),
        json!([]),
    );
    assert_eq!(problems, [""; 0]);
    assert_eq!(
        slice.ports,
        [port("", Protocol::Tcp, 80), port("dns", Protocol::Udp, 53)]
    );
}

#[test]
fn a6_slices_without_a_service_or_of_names_are_gone() {
    assert_eq!(
        gone(object(json!({}), "IPv4", json!([]), json!([]))),
        [""; 0]
    );
    assert_eq!(
        gone(object(
            json!({LABEL_SERVICE_NAME: ""}),
            "IPv4",
            json!([]),
            json!([])
        )),
        [""; 0]
    );
    let service = json!({LABEL_SERVICE_NAME: "svc"});
    assert_eq!(
        gone(object(service.clone(), "FQDN", json!([]), json!([]))),
        [""; 0]
    );
    let problems = gone(object(service, "IP", json!([]), json!([])));
    assert_eq!(
        problems,
        [
            "EndpointSlice ns/svc-1: addressType: \"IP\" is not a value that this field has; correct the spelling, or upgrade kube-portal"
        ]
    );
}

#[test]
fn a6_only_the_first_address_of_an_endpoint_counts_and_none_is_skipped() {
    let (slice, problems) = of_service(
        "IPv4",
        json!([]),
        json!([{"addresses": ["10.1.0.1", "10.1.0.2"]}, {"addresses": []}, {"addresses": ["010.1.0.03"]}]),
    );
    assert_eq!(problems, [""; 0]);
    assert_eq!(
        slice.endpoints,
        [endpoint("10.1.0.1"), endpoint("10.1.0.3")]
    );
}

#[test]
fn a6_an_address_of_the_other_family_is_refused() {
    let (slice, problems) = of_service(
        "IPv6",
        json!([]),
        json!([{"addresses": ["10.1.0.1"]}, {"addresses": ["fd00::1"]}, {"addresses": ["::ffff:10.1.0.1"]}]),
    );
    assert_eq!(slice.endpoints, [endpoint("fd00::1")]);
    assert_eq!(
        problems,
        [
            "EndpointSlice ns/svc-1: endpoints[0].addresses[0]: 10.1.0.1 is not an IPv6 address; put it in a slice of its own addressType",
            "EndpointSlice ns/svc-1: endpoints[2].addresses[0]: 10.1.0.1 is not an IPv6 address; put it in a slice of its own addressType",
        ]
    );
}

#[test]
fn backends_that_only_the_node_itself_may_reach_are_refused() {
    for address in [
        "127.0.0.1",
        "0.0.0.0",
        "169.254.169.254",
        "224.0.0.1",
        "",
        "pod",
    ] {
        let (slice, problems) = of_service("IPv4", json!([]), json!([{"addresses": [address]}]));
        assert_eq!(slice.endpoints, [], "{address}");
        assert_eq!(problems.len(), 1, "{address}");
    }
}

#[test]
fn e1_a_condition_nobody_set_counts_as_ready_serving_and_not_terminating() {
    let (slice, _) = of_service(
        "IPv4",
        json!([]),
        json!([
            {"addresses": ["10.1.0.1"]},
            {"addresses": ["10.1.0.2"], "conditions": {"ready": false}, "nodeName": "n1"},
            {"addresses": ["10.1.0.3"], "conditions": {"serving": false, "terminating": true}, "nodeName": ""},
        ]),
    );
    let not_ready = Endpoint {
        ready: false,
        node: Some("n1".into()),
        ..endpoint("10.1.0.2")
    };
    let terminating = Endpoint {
        serving: false,
        terminating: true,
        ..endpoint("10.1.0.3")
    };
    assert_eq!(
        slice.endpoints,
        [endpoint("10.1.0.1"), not_ready, terminating]
    );
}

#[test]
fn hints_are_kept() {
    let (slice, _) = of_service(
        "IPv4",
        json!([]),
        json!([{"addresses": ["10.1.0.1"],
            "hints": {"forZones": [{"name": "a"}, {"name": "b"}], "forNodes": [{"name": "n1"}]}}]),
    );
    let hinted = Endpoint {
        zone_hints: vec!["a".into(), "b".into()].into(),
        node_hints: vec!["n1".into()].into(),
        ..endpoint("10.1.0.1")
    };
    assert_eq!(slice.endpoints, [hinted]);
}

#[test]
fn what_weights_go_by_is_kept() {
    let (slice, _) = of_service(
        "IPv4",
        json!([]),
        json!([
            {"addresses": ["10.1.0.1"], "targetRef": {"kind": "Pod", "name": "web-0"},
                "hostname": "first", "nodeName": "n1", "zone": "a"},
            {"addresses": ["10.1.0.2"], "targetRef": {"kind": "VirtualMachine", "name": "web-1"}},
            {"addresses": ["10.1.0.3"], "targetRef": {"kind": "Pod"}, "hostname": "", "zone": ""},
        ]),
    );
    let named = Endpoint {
        node: Some("n1".into()),
        pod: Some(NameHash::of("web-0")),
        hostname: Some(NameHash::of("first")),
        zone: Some(NameHash::of("a")),
        ..endpoint("10.1.0.1")
    };
    assert_eq!(
        slice.endpoints,
        [named, endpoint("10.1.0.2"), endpoint("10.1.0.3")]
    );
}

#[test]
fn a_bad_port_costs_only_itself() {
    let (slice, problems) = of_service(
        "IPv4",
        json!([
            {"name": "a", "port": 70000},
            {"name": "b", "port": 80, "protocol": "QUIC"},
            {"name": "c", "port": 80},
            {"name": "c", "port": 81},
            {"name": "c", "port": 81, "protocol": "UDP"},
        ]),
        json!([]),
    );
    assert_eq!(
        slice.ports,
        [port("c", Protocol::Tcp, 80), port("c", Protocol::Udp, 81)]
    );
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert_eq!(
        problems[0],
        "EndpointSlice ns/svc-1: ports[0].port: 70000 is not a port number; use 1 to 65535"
    );
}

proptest! {
    #[test]
    fn no_slice_panics_and_what_is_kept_is_of_its_family(
        address_type in "IPv4|IPv6|FQDN|.{0,3}",
        addresses in prop::collection::vec("[0-9a-f:.]{0,12}|10\\.0\\.0\\.[0-9]|fd00::[0-9a-f]|.{0,3}", 0..4),
        port in any::<i32>(), name in ".{0,3}", protocol in "TCP|UDP|.{0,4}",
    ) {
        let endpoints: Vec<_> = addresses.iter().map(|ip| json!({"addresses": [ip]})).collect();
        let ports = json!([{"name": name, "port": port, "protocol": protocol}]);
        let (event, problems) = ingest(object(json!({LABEL_SERVICE_NAME: "svc"}), &address_type, ports, endpoints.into()));
        prop_assert!(problems.iter().all(|line| !line.contains('\n')), "{problems:?}");
        if let Some(Event::SliceApplied(slice)) = event {
            for endpoint in slice.endpoints {
                prop_assert_eq!(Family::of(&endpoint.address), slice.family);
                prop_assert!(!endpoint.address.is_unspecified() && !endpoint.address.is_loopback());
            }
        }
    }
}

#[test]
fn an_address_listed_twice_is_told_and_both_records_are_kept() {
    let (slice, problems) = of_service(
        "IPv4",
        json!([{"name": "http", "port": 80}]),
        json!([
            {"addresses": ["10.1.0.1"], "conditions": {"terminating": true}},
            {"addresses": ["10.1.0.1"]},
        ]),
    );
    assert_eq!(slice.endpoints.len(), 2);
    assert_eq!(problems.len(), 1, "{problems:?}");
    for part in [
        "EndpointSlice ns/svc-1",
        "endpoints[1].addresses[0]",
        "10.1.0.1",
        "once",
    ] {
        assert!(problems[0].contains(part), "{part} not in {}", problems[0]);
    }
}
