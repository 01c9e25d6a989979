use proptest::prelude::*;
use proxy_common::abi::Scheduler;
use serde_json::{Value, json};

use super::*;
use crate::model::{
    ObjectName, ServiceBalancing, WeightKey, Weights,
    ingest::{ANNOTATION_FAILOVER, ANNOTATION_SCHEDULER, ANNOTATION_WEIGHTS},
};

/// A valid Service with `patch` merged into it.
fn with(patch: Value) -> Value {
    let mut object = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "ns", "name": "svc"},
        "spec": {"clusterIP": "10.0.0.1", "ports": [{"name": "http", "port": 80}]},
    });
    merge(&mut object, patch);
    object
}

fn merge(into: &mut Value, patch: Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, patch) => *into = patch,
    }
}

fn ingest(object: Value) -> (Option<Event>, Vec<String>) {
    let ingested = service(serde_json::from_value(object).expect("a Service"));
    let lines = ingested.problems.iter().map(ToString::to_string).collect();
    (ingested.event, lines)
}

fn applied(object: Value) -> (Service, Vec<String>) {
    match ingest(object) {
        (Some(Event::ServiceApplied(service)), problems) => (service, problems),
        other => panic!("{other:?}"),
    }
}

fn gone(object: Value) -> Vec<String> {
    let (event, problems) = ingest(object);
    assert_eq!(
        event,
        Some(Event::ServiceGone(ObjectName::new("ns", "svc")))
    );
    problems
}

fn ips(list: &[&str]) -> Vec<IpAddr> {
    list.iter()
        .map(|ip| ip.parse().expect("an address"))
        .collect()
}

fn port(name: &str, protocol: Protocol, port: u16, node_port: u16) -> ServicePort {
    ServicePort {
        name: name.into(),
        protocol,
        port: NonZeroU16::new(port).expect("not 0"),
        node_port: NonZeroU16::new(node_port),
    }
}

#[test]
fn a_plain_service_arrives_with_its_defaults() {
    let (service, problems) = applied(with(
        json!({"metadata": {"creationTimestamp": "1970-01-01T00:01:40Z"}}),
    ));
    assert_eq!(problems, [""; 0]);
    assert_eq!(
        service,
        Service {
            name: ObjectName::new("ns", "svc"),
            created_secs: 100,
            cluster_ips: ips(&["10.0.0.1"]),
            external_ips: vec![],
            load_balancer_ips: vec![],
            source_ranges: BTreeMap::new(),
            ports: vec![port("http", Protocol::Tcp, 80, 0)],
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            health_check: None,
            affinity_timeout_secs: None,
            balancing: Default::default(),
        }
    );
}

#[test]
fn w1_a_service_labelled_for_another_proxy_is_gone_whatever_the_value() {
    for value in ["cilium", ""] {
        assert_eq!(
            gone(with(
                json!({"metadata": {"labels": {LABEL_PROXY_NAME: value}}})
            )),
            [""; 0]
        );
    }
}

#[test]
fn w6_headless_and_external_name_services_are_gone() {
    assert_eq!(gone(with(json!({"spec": {"clusterIP": "None"}}))), [""; 0]);
    assert_eq!(
        gone(with(json!({"spec": {"type": "ExternalName"}}))),
        [""; 0]
    );
    let no_spec = json!({"metadata": {"namespace": "ns", "name": "svc"}, "spec": null});
    assert_eq!(gone(no_spec), [""; 0]);
    assert_eq!(
        gone(with(json!({"spec": {"clusterIP": ""}}))),
        [
            "Service ns/svc: spec.clusterIP: the Service has no address of its own; \
             write its address in spec.clusterIP (or None if it is to be headless)"
        ]
    );
}

#[test]
fn w8_fields_that_kube_proxy_never_reads_change_nothing() {
    let (plain, _) = applied(with(json!({})));
    let (service, problems) = applied(with(json!({
        "metadata": {"annotations": {"service.kubernetes.io/topology-mode": "Auto"}},
        "spec": {
            "selector": {"app": "web"}, "publishNotReadyAddresses": true,
            "trafficDistribution": "PreferClose", "loadBalancerClass": "example.com/lb",
            "loadBalancerIP": "192.0.2.9", "allocateLoadBalancerNodePorts": false,
            "ports": [{"name": "http", "port": 80, "targetPort": "web", "appProtocol": "h2c"}],
        },
        "status": {"loadBalancer": {"ingress": [
            {"hostname": "lb.example", "ports": [{"port": 80, "protocol": "TCP"}]},
        ]}},
    })));
    assert_eq!(problems, [""; 0]);
    assert_eq!(service, plain);
}

#[test]
fn its_annotations_say_how_it_is_balanced() {
    let (plain, _) = applied(with(json!({})));
    let (service, problems) = applied(with(json!({"metadata": {"annotations": {
        ANNOTATION_SCHEDULER: "lc", ANNOTATION_FAILOVER: "perhaps", ANNOTATION_WEIGHTS: "*=2",
    }}})));
    let mut weights = Weights::default();
    weights.add(WeightKey::Any, 2);
    let balancing = ServiceBalancing {
        scheduler: Some(Scheduler::LeastConnections),
        fails_over: None,
        weights,
    };
    assert_eq!(service, Service { balancing, ..plain });
    assert_eq!(
        problems,
        [
            "Service ns/svc: metadata.annotations[kube-portal.io/failover]: \"perhaps\" is neither \"true\" nor \"false\"; use one of them; until then it is the node's own (--failover)"
        ]
    );
}

#[test]
fn w10_sloppy_addresses_are_normalised() {
    let (service, problems) = applied(with(json!({
        "spec": {"clusterIP": "010.0.0.001", "externalIPs": ["192.000.2.010", "::ffff:192.0.2.11", "192.0.2.10"]},
        "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.007"}]}},
    })));
    assert_eq!(problems, [""; 0]);
    assert_eq!(service.cluster_ips, ips(&["10.0.0.1"]));
    assert_eq!(service.external_ips, ips(&["192.0.2.10", "192.0.2.11"]));
    assert_eq!(service.load_balancer_ips, ips(&["198.51.100.7"]));
}

#[test]
fn a1_each_family_has_one_cluster_ip() {
    let (service, problems) = applied(with(
        json!({"spec": {"clusterIPs": ["10.0.0.1", "fd00::1", "10.0.0.2"]}}),
    ));
    assert_eq!(service.cluster_ips, ips(&["10.0.0.1", "fd00::1"]));
    assert_eq!(
        problems,
        [
            "Service ns/svc: spec.clusterIPs[2]: 10.0.0.2 is a second IPv4 address; keep one address of each family"
        ]
    );
}

#[test]
fn a2_one_port_number_serves_several_protocols() {
    let (service, problems) = applied(with(json!({"spec": {"ports": [
        {"name": "a", "port": 53, "protocol": "UDP"},
        {"name": "b", "port": 53, "protocol": "TCP"},
        {"name": "c", "port": 53, "protocol": "SCTP"},
    ]}})));
    assert_eq!(problems, [""; 0]);
    assert_eq!(
        service.ports,
        [
            port("a", Protocol::Udp, 53, 0),
            port("b", Protocol::Tcp, 53, 0),
            port("c", Protocol::Sctp, 53, 0),
        ]
    );
}

#[test]
fn a8_external_ips_are_kept_and_only_the_bad_one_is_dropped() {
    let (service, problems) = applied(with(
        json!({"spec": {"externalIPs": ["192.0.2.1", "0.0.0.0", "", "127.0.0.1", "x\ny", "fd00::9"]}}),
    ));
    assert_eq!(service.external_ips, ips(&["192.0.2.1", "fd00::9"]));
    assert_eq!(
        problems,
        [
            "Service ns/svc: spec.externalIPs[1]: 0.0.0.0 is the unspecified address, which never leads to a Service; use a unicast address that is routable in the cluster",
            "Service ns/svc: spec.externalIPs[2]: there is no address; write one, or remove the entry",
            "Service ns/svc: spec.externalIPs[3]: 127.0.0.1 is a loopback address, which never leads to a Service; use a unicast address that is routable in the cluster",
            "Service ns/svc: spec.externalIPs[4]: \"x\\ny\" is not an IP address; write an IPv4 or IPv6 address without port or prefix length",
        ]
    );
}

#[test]
fn a9_load_balancer_addresses_are_captured_unless_they_are_proxied_or_names() {
    let (service, problems) = applied(with(json!({"status": {"loadBalancer": {"ingress": [
        {"ip": "192.0.2.1"},
        {"ip": "192.0.2.2", "ipMode": "VIP"},
        {"ip": "192.0.2.3", "ipMode": "Proxy"},
        {"hostname": "lb.example"},
        {"ip": "192.0.2.4", "ipMode": "Teleport"},
        {"ip": "169.254.169.254"},
    ]}}})));
    assert_eq!(service.load_balancer_ips, ips(&["192.0.2.1", "192.0.2.2"]));
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(
        problems[0].contains("ingress[4].ipMode: \"Teleport\""),
        "{problems:?}"
    );
    assert!(
        problems[1].contains("ingress[5].ip: 169.254.169.254 is a link-local"),
        "{problems:?}"
    );
}

#[test]
fn l2_source_ranges_limit_the_family_they_are_of_and_bad_ones_both() {
    let ranges = |list: Value| {
        let patch = json!({"spec": {"loadBalancerSourceRanges": list}});
        let (service, problems) = applied(with(patch));
        let show = |(family, ranges): (Family, Vec<IpNet>)| {
            let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
            format!("{family}: {}", ranges.join(" "))
        };
        let shown: Vec<String> = service.source_ranges.into_iter().map(show).collect();
        (shown.join("; "), problems)
    };
    let fine = |list| {
        let (shown, problems) = ranges(list);
        assert_eq!(problems, [""; 0]);
        shown
    };
    assert_eq!(fine(json!([])), "");
    assert_eq!(
        fine(json!([" 192.0.2.9/24", "192.0.2.0/24", "010.0.0.0/8 "])),
        "IPv4: 192.0.2.0/24 10.0.0.0/8"
    );
    assert_eq!(fine(json!(["fd00::/8"])), "IPv6: fd00::/8");
    assert_eq!(
        fine(json!(["192.0.2.0/24", "0.0.0.0/0", "fd00::/8"])),
        "IPv6: fd00::/8"
    );
    let (shown, problems) = ranges(json!(["192.0.2.0/24", "office"]));
    assert_eq!(shown, "IPv4: 192.0.2.0/24; IPv6: ");
    assert_eq!(
        problems,
        [
            "Service ns/svc: spec.loadBalancerSourceRanges[1]: \"office\" is not a range of addresses; \
             write a CIDR such as 192.0.2.0/24"
        ]
    );
    // Only a range that is none: nobody is meant, rather than everybody.
    assert_eq!(ranges(json!(["192.0.2.0/240"])).0, "IPv4: ; IPv6: ");
}

#[test]
fn e12_external_policy_local_counts_only_where_there_is_an_outside() {
    for (spec, honoured) in [
        (json!({"type": "NodePort"}), true),
        (json!({"type": "LoadBalancer"}), true),
        (
            json!({"type": "ClusterIP", "externalIPs": ["192.0.2.1"]}),
            true,
        ),
        (json!({"externalIPs": ["192.0.2.1"]}), true),
        (json!({"type": "ClusterIP"}), false),
        (json!({}), false),
    ] {
        let mut patch = json!({"spec": {"externalTrafficPolicy": "Local"}});
        merge(&mut patch, json!({"spec": spec}));
        let local = applied(with(patch)).0.external_policy == TrafficPolicy::Local;
        assert_eq!(local, honoured, "{spec}");
    }
    let internal = applied(with(json!({"spec": {"internalTrafficPolicy": "Local"}}))).0;
    assert_eq!(internal.internal_policy, TrafficPolicy::Local);
}

#[test]
fn s2_client_ip_affinity_lasts_three_hours_unless_it_says_otherwise() {
    let client_ip = |config: Value| {
        let spec = json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config});
        applied(with(json!({"spec": spec})))
    };
    let seconds = |seconds: i64| client_ip(json!({"clientIP": {"timeoutSeconds": seconds}}));
    for config in [json!(null), json!({}), json!({"clientIP": {}})] {
        let (service, problems) = client_ip(config);
        assert_eq!(service.affinity_timeout_secs, NonZeroU32::new(10_800));
        assert_eq!(problems, [""; 0]);
    }
    for valid in [1, 86_400] {
        let (service, problems) = seconds(valid);
        let wanted = NonZeroU32::new(valid.try_into().expect("positive"));
        assert_eq!(service.affinity_timeout_secs, wanted);
        assert_eq!(problems, [""; 0]);
    }
    for invalid in [i64::from(i32::MIN), -1, 0, 86_401] {
        let (service, problems) = seconds(invalid);
        assert_eq!(service.affinity_timeout_secs, NonZeroU32::new(10_800));
        assert_eq!(
            problems,
            [format!(
                "Service ns/svc: spec.sessionAffinityConfig.clientIP.timeoutSeconds: {invalid} is not \
                 a number of seconds that a client may keep its backend; use 1 to 86400; until then \
                 it is 10800"
            )]
        );
    }
}

#[test]
fn s5_without_client_ip_there_is_no_affinity_whatever_the_configuration() {
    let config = json!({"clientIP": {"timeoutSeconds": 5}});
    for affinity in [json!(null), json!(""), json!("None")] {
        let spec = json!({"sessionAffinity": affinity, "sessionAffinityConfig": config});
        let (service, problems) = applied(with(json!({"spec": spec})));
        assert_eq!(service.affinity_timeout_secs, None);
        assert_eq!(problems, [""; 0]);
    }
}

#[test]
fn a_bad_port_costs_only_itself() {
    let (service, problems) = applied(with(json!({"spec": {"ports": [
        {"name": "a", "port": 0},
        {"name": "b", "port": 70000},
        {"name": "c", "port": -1},
        {"name": "d", "port": 80, "protocol": "ICMP"},
        {"name": "e", "port": 80, "nodePort": 70000},
        {"name": "e", "port": 81},
        {"name": "f", "port": 80},
        {"name": "g", "port": 82, "nodePort": 30000},
        {"name": "h", "port": 83, "nodePort": 30000},
        {"name": "i", "port": 84, "nodePort": 0},
        {"name": "j", "port": 65535, "nodePort": 30000, "protocol": "UDP"},
    ]}})));
    assert_eq!(
        service.ports,
        [
            port("e", Protocol::Tcp, 80, 0),
            port("g", Protocol::Tcp, 82, 30000),
            port("h", Protocol::Tcp, 83, 0),
            port("i", Protocol::Tcp, 84, 0),
            port("j", Protocol::Udp, 65535, 30000),
        ]
    );
    assert_eq!(
        problems,
        [
            "Service ns/svc: spec.ports[0].port: 0 is not a port number; use 1 to 65535",
            "Service ns/svc: spec.ports[1].port: 70000 is not a port number; use 1 to 65535",
            "Service ns/svc: spec.ports[2].port: -1 is not a port number; use 1 to 65535",
            "Service ns/svc: spec.ports[3].protocol: \"ICMP\" is not a protocol of Services; use TCP, UDP or SCTP",
            "Service ns/svc: spec.ports[4].nodePort: 70000 is not a port number; use 1 to 65535",
            "Service ns/svc: spec.ports[5].name: an earlier port has the name \"e\" too; give each port a name of its own",
            "Service ns/svc: spec.ports[6].port: an earlier port has the number 80 too; keep one port for each number and protocol",
            "Service ns/svc: spec.ports[8].nodePort: an earlier port has the number 30000 too; keep one port for each number and protocol",
        ]
    );
}

#[test]
fn a_service_without_a_usable_cluster_ip_keeps_its_other_addresses() {
    let (service, problems) = applied(with(
        json!({"spec": {"clusterIP": "ten.0.0.1", "externalIPs": ["192.0.2.1"]}}),
    ));
    assert_eq!(service.cluster_ips, ips(&[]));
    assert_eq!(service.external_ips, ips(&["192.0.2.1"]));
    assert_eq!(problems.len(), 1);
}

#[test]
fn unknown_words_fall_back_to_the_default_and_are_reported() {
    let (service, problems) = applied(with(json!({"spec": {
        "type": "Portal", "internalTrafficPolicy": "local", "externalTrafficPolicy": "Near",
    }})));
    assert_eq!(service.internal_policy, TrafficPolicy::Cluster);
    assert_eq!(problems.len(), 3, "{problems:?}");
}

#[test]
fn a_service_without_a_name_is_reported_and_makes_no_event() {
    let (event, problems) = ingest(json!({"metadata": {}, "spec": {"clusterIP": "10.0.0.1"}}));
    assert_eq!(event, None);
    assert_eq!(
        problems,
        ["Service default/?: metadata.name: the object has no name; give it one"]
    );
    let (event, problems) = ingest(json!({"metadata": {"name": "a\nb"}}));
    assert_eq!(event, None);
    assert_eq!(problems.len(), 1);
    assert!(!problems[0].contains('\n'));
}

fn text() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        ".{0,12}".prop_map(Value::from),
        "[0-9a-f:.]{0,20}".prop_map(Value::from),
        prop::sample::select(vec![
            "None",
            "10.0.0.1",
            "fd00::1",
            "TCP",
            "Local",
            "LoadBalancer",
            "ExternalName",
            "Proxy",
            "ClientIP"
        ])
        .prop_map(Value::from),
    ]
}

fn number() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<i32>().prop_map(Value::from),
        (-1..65537i32).prop_map(Value::from)
    ]
}

prop_compose! {
    fn any_port()(name in text(), protocol in text(), port in any::<i32>(), node_port in number()) -> Value {
        json!({"name": name, "protocol": protocol, "port": port, "nodePort": node_port})
    }
}

prop_compose! {
    fn any_service()(
        name in text(), namespace in text(), type_ in text(), ip in text(),
        ips in prop::collection::vec(text().prop_map(|v| if v.is_null() { "".into() } else { v }), 0..4),
        ports in prop::collection::vec(any_port(), 0..4),
        internal in text(), external in text(), lb in text(), mode in text(),
        affinity in text(), timeout in number(), annotation in ".{0,12}",
    ) -> Value {
        json!({
            "metadata": {"name": name, "namespace": namespace, "annotations": {
                ANNOTATION_SCHEDULER: annotation, ANNOTATION_FAILOVER: annotation, ANNOTATION_WEIGHTS: annotation}},
            "spec": {"type": type_, "clusterIP": ip, "clusterIPs": ips, "externalIPs": ips, "ports": ports,
                "loadBalancerSourceRanges": ips, "internalTrafficPolicy": internal, "externalTrafficPolicy": external,
                "sessionAffinity": affinity, "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": timeout}}},
            "status": {"loadBalancer": {"ingress": [{"ip": lb, "ipMode": mode}]}},
        })
    }
}

proptest! {
    #[test]
    fn no_service_panics_and_every_problem_is_one_line(object in any_service()) {
        let (_, problems) = ingest(object);
        for line in problems {
            prop_assert!(!line.contains('\n'), "{line:?}");
        }
    }
}
