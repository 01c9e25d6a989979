use serde_json::{Value, json};

use super::*;
use crate::model::ObjectName;
use crate::model::{Event, Kind, Model, NodePortScope, ingest};

const HERE: &str = "n1";

fn service(spec: Value) -> Event {
    let mut object = json!({
        "metadata": {"namespace": "ns", "name": "lb", "uid": "1-2"},
        "spec": {
            "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000,
            "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd96::1"],
            "ports": [{"name": "a", "port": 80, "nodePort": 30080}, {"name": "b", "port": 443}],
        },
    });
    for (key, value) in spec.as_object().expect("fields") {
        object["spec"][key] = value.clone();
    }
    let object = serde_json::from_value(object).expect("a Service");
    ingest::service(object).event.expect("a name")
}

/// `address node ready serving terminating`, flags as 1 and 0.
fn slice(name: &str, family: &str, ports: &[(&str, u16)], endpoints: &[&str]) -> Event {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|text| {
            let fields: Vec<&str> = text.split(' ').collect();
            json!({"addresses": [fields[0]], "nodeName": fields[1], "conditions": {
                "ready": fields[2] == "1", "serving": fields[3] == "1",
                "terminating": fields[4] == "1",
            }})
        })
        .collect();
    let ports: Vec<Value> = ports
        .iter()
        .map(|(name, port)| json!({"name": name, "port": port}))
        .collect();
    let object = json!({
        "metadata": {"namespace": "ns", "name": name,
                     "labels": {ingest::LABEL_SERVICE_NAME: "lb"}},
        "addressType": family, "ports": ports, "endpoints": endpoints,
    });
    let object = serde_json::from_value(object).expect("an EndpointSlice");
    ingest::slice(object).event.expect("a name")
}

fn state(events: impl IntoIterator<Item = Event>) -> LocalState {
    let node = Node {
        name: HERE.into(),
        ..Node::default()
    };
    let mut model = Model::new(node, NodePortScope::Primary);
    for kind in [Kind::Service, Kind::EndpointSlice] {
        model.apply(Event::ListStarted(kind));
        model.apply(Event::Listed(kind));
    }
    events.into_iter().for_each(|event| model.apply(event));
    model.local_state(&ObjectName::new("ns", "lb"))
}

/// Over IPv4 and over IPv6.
fn counts(slices: impl IntoIterator<Item = Event>) -> (usize, usize) {
    let check = state([service(json!({}))].into_iter().chain(slices))
        .health_check
        .expect("a health check");
    assert_eq!((check.port.get(), &*check.uid), (31000, "1-2"));
    (
        check.local_endpoints(Family::V4),
        check.local_endpoints(Family::V6),
    )
}

#[test]
fn an_endpoint_counts_once_whatever_its_ports_and_slices() {
    let ports = [("a", 8080), ("b", 8443)];
    assert_eq!(
        counts([
            slice(
                "1",
                "IPv4",
                &ports,
                &["10.1.0.1 n1 1 1 0", "10.1.0.2 n1 1 1 0"]
            ),
            slice(
                "2",
                "IPv4",
                &ports[..1],
                &["10.1.0.1 n1 1 1 0", "10.2.0.1 n2 1 1 0"]
            ),
            slice("3", "IPv6", &ports, &["fd01::1 n1 1 1 0"]),
        ]),
        (2, 1)
    );
    // Without a port there is nothing to reach.
    assert_eq!(
        counts([slice("1", "IPv4", &[], &["10.1.0.1 n1 1 1 0"])]),
        (0, 0)
    );
}

#[test]
fn test_health_check_node_port_when_terminating() {
    let port = [("a", 8080)];
    let of = |endpoints: &[&str]| counts([slice("1", "IPv4", &port, endpoints)]).0;
    assert_eq!(of(&["10.1.0.1 n1 1 1 0", "10.1.0.2 n1 1 1 0"]), 2);
    assert_eq!(of(&["10.1.0.1 n1 0 1 1", "10.1.0.2 n1 0 1 1"]), 0);
    assert_eq!(of(&["10.1.0.1 n1 0 0 0", "10.1.0.2 n1 0 0 1"]), 0);
    // The pod that took over the address of one that terminates.
    let old = slice("1", "IPv4", &port, &["10.1.0.1 n1 0 1 1"]);
    let new = slice("2", "IPv4", &port, &["10.1.0.1 n1 1 1 0"]);
    assert_eq!(counts([old, new]).0, 1);
}

#[test]
fn a_service_of_one_family_answers_the_same_over_both() {
    let check = state([
        service(json!({"clusterIPs": ["10.96.0.1"]})),
        slice("1", "IPv4", &[("a", 8080)], &["10.1.0.1 n1 1 1 0"]),
    ])
    .health_check
    .expect("a health check");
    assert_eq!(check.local_endpoints(Family::V4), 1);
    assert_eq!(check.local_endpoints(Family::V6), 1);
}

#[test]
fn only_a_load_balancer_with_a_local_policy_has_a_health_check() {
    let has = |spec: Value| state([service(spec)]).health_check.is_some();
    assert!(has(json!({})));
    assert!(!has(json!({"type": "NodePort"})));
    assert!(!has(
        json!({"type": "ClusterIP", "externalIPs": ["192.0.2.1"]})
    ));
    assert!(!has(json!({"externalTrafficPolicy": "Cluster"})));
    assert!(!has(json!({"healthCheckNodePort": 0})));
    assert!(!has(json!({"healthCheckNodePort": 70000})));
}

#[test]
fn test_no_endpoints_metric() {
    let port = [("a", 8080), ("b", 8443)];
    let found = |spec: Value, endpoints: &[&str]| {
        let found = state([service(spec), slice("1", "IPv4", &port, endpoints)]).without_local;
        (found.internal, found.external)
    };
    let both = || json!({"internalTrafficPolicy": "Local"});
    // Only `a` can be dialled from outside.
    assert_eq!(found(both(), &["10.2.0.1 n2 1 1 0"]), (2, 1));
    assert_eq!(found(json!({}), &["10.2.0.1 n2 1 1 0"]), (0, 1));
    assert_eq!(
        found(both(), &["10.2.0.1 n2 1 1 0", "10.1.0.1 n1 0 1 1"]),
        (0, 0)
    );
    assert_eq!(found(both(), &["10.2.0.1 n2 0 0 1"]), (0, 0));
    assert_eq!(found(both(), &[]), (0, 0));
    let neither = json!({"externalTrafficPolicy": "Cluster"});
    assert_eq!(found(neither, &["10.2.0.1 n2 1 1 0"]), (0, 0));
}
