//! Services and EndpointSlices as a real API server sends them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::{Value, json};

/// The port of every Service, and of every endpoint.
pub(super) const PORT: u16 = 80;
pub(super) const TARGET: u16 = 8080;
/// The Service that is changed and dialled.
pub(super) const TARGET_SERVICE: &str = "target";
const NODES: usize = 200;

fn address(network: [u8; 4], number: usize) -> IpAddr {
    let number = u32::try_from(number).expect("fits the network");
    Ipv4Addr::from(u32::from(Ipv4Addr::from(network)) + number).into()
}

/// ClusterIP of a Service by number; number 0 is the target.
pub(super) fn vip(number: usize) -> SocketAddr {
    SocketAddr::new(address([10, 96, 0, 1], number), PORT)
}

/// An endpoint by number. Nobody is there.
pub(super) fn endpoint(number: usize) -> IpAddr {
    address([10, 128, 0, 1], number)
}

/// Another for the same number.
pub(super) fn other_endpoint(number: usize) -> IpAddr {
    address([10, 192, 0, 1], number)
}

pub(super) fn name(number: usize) -> String {
    if number == 0 {
        TARGET_SERVICE.to_owned()
    } else {
        format!("service-{number:05}")
    }
}

fn managed_fields(manager: &str, fields: &Value) -> Value {
    json!([{
        "manager": manager, "operation": "Update", "apiVersion": "v1",
        "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": fields,
    }])
}

fn uid(number: usize) -> String {
    format!("5f0c1c2e-8d3a-4b6f-9a51-{number:012x}")
}

pub(super) fn service(number: usize) -> Value {
    let ip = vip(number).ip().to_string();
    let name = name(number);
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": name, "namespace": namespace(number), "uid": uid(number),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "shop"},
            "annotations": {"meta.helm.sh/release-name": name},
            "managedFields": managed_fields("helm", &json!({
                "f:metadata": {"f:labels": {".": {}, "f:app.kubernetes.io/name": {}}},
                "f:spec": {"f:internalTrafficPolicy": {}, "f:ports": {".": {},
                    "k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:name": {}, "f:port": {},
                    "f:protocol": {}, "f:targetPort": {}}}, "f:selector": {}, "f:sessionAffinity": {},
                    "f:type": {}},
            })),
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
            "selector": {"app.kubernetes.io/name": name},
            "ports": [{"name": "http", "protocol": "TCP", "port": PORT, "targetPort": "http"}],
        },
        "status": {"loadBalancer": {}},
    })
}

pub(super) fn namespace(number: usize) -> String {
    format!("team-{}", number % 50)
}

/// Slice `part` of the Service by number, with these endpoints and whether they are ready.
pub(super) fn slice(number: usize, part: usize, endpoints: &[(IpAddr, bool)]) -> Value {
    let service = name(number);
    let namespace = namespace(number);
    let endpoints: Vec<Value> = endpoints
        .iter()
        .enumerate()
        .map(|(at, (ip, ready))| {
            json!({
                "addresses": [ip.to_string()],
                "conditions": {"ready": ready, "serving": ready, "terminating": false},
                "nodeName": format!("worker-{}.cluster.example", (number * 7 + at) % NODES),
                "zone": format!("zone-{}", at % 3),
                "targetRef": {
                    "kind": "Pod", "name": format!("{service}-6d4b75cb6d-{at:05}"),
                    "namespace": namespace, "uid": uid(number * 100 + at),
                },
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-x7k2{part}"), "generateName": format!("{service}-"),
            "namespace": namespace, "uid": uid(number), "generation": 3,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {
                "app.kubernetes.io/name": service,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": service,
            },
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z"},
            "ownerReferences": [{
                "apiVersion": "v1", "kind": "Service", "name": service, "uid": uid(number),
                "controller": true, "blockOwnerDeletion": true,
            }],
            "managedFields": managed_fields("kube-controller-manager", &json!({
                "f:addressType": {}, "f:endpoints": {},
                "f:metadata": {"f:annotations": {".": {},
                    "f:endpoints.kubernetes.io/last-change-trigger-time": {}},
                    "f:generateName": {}, "f:labels": {".": {}, "f:app.kubernetes.io/name": {},
                    "f:endpointslice.kubernetes.io/managed-by": {}, "f:kubernetes.io/service-name": {}},
                    "f:ownerReferences": {".": {}, "k:{\"uid\":\"5f0c1c2e\"}": {}}},
                "f:ports": {},
            })),
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": TARGET}],
        "endpoints": endpoints,
    })
}

/// All ready, with the first of them replaced or not.
pub(super) fn ordinary(number: usize, endpoints: usize, replaced: bool) -> Vec<(IpAddr, bool)> {
    (0..endpoints)
        .map(|at| {
            let id = number * endpoints + at;
            let ip = if replaced && at == 0 {
                other_endpoint(id)
            } else {
                endpoint(id)
            };
            (ip, true)
        })
        .collect()
}
