//! Maps with something in them, for tests.

use std::net::{IpAddr, SocketAddr};

use proxy_common::abi::{
    Addr, Backend, Empty, Frontend, FrontendKey, FrontendKind, Protocol, Service, ServiceAffinity,
    ServiceName, ServiceWord, SockAddr,
};

use super::Observed;
use crate::plan::address_entry;

pub(crate) const AFFINITY_PORT: u64 = 42;
/// Of `kube-system/dns:dns`, where it has one.
pub(crate) const UDP_BACKEND: u32 = 9;

pub(crate) fn addr(text: &str) -> Addr {
    text.parse::<IpAddr>().unwrap().into()
}

pub(crate) fn sock(text: &str) -> SockAddr {
    text.parse::<SocketAddr>().unwrap().into()
}

pub(crate) fn frontend(
    at: &str,
    protocol: Protocol,
    kind: FrontendKind,
    id: u32,
) -> (FrontendKey, Frontend) {
    let at = sock(at);
    let key = FrontendKey {
        addr: at.addr,
        port_be: at.port_be,
        protocol: protocol.number(),
        zero: 0,
    };
    let frontend = Frontend {
        service: id,
        outside_service: 0,
        kind: kind as u8,
        flags: 0,
        zero: [0; 2],
    };
    (key, frontend)
}

pub(crate) fn backend(at: &str, protocol: Protocol, service: u32, flags: u8) -> Backend {
    let at = sock(at);
    Backend {
        addr: at.addr,
        port_be: at.port_be,
        protocol: protocol.number(),
        flags,
        weight: 1,
        zero: 0,
        twin: 0,
        service,
    }
}

/// `default/web:http` (ids 1, and 2 for this node's endpoints) on a ClusterIP, a NodePort under policy Local
/// and a load balancer with ranges, with affinity; and `kube-system/dns:dns` (3) without endpoints.
pub(crate) fn observed() -> Observed {
    let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
    let mut observed = Observed::default();
    let node_port = FrontendKind::NodePort;
    let balancer = FrontendKind::LoadBalancer;
    let (port_key, port) = frontend("192.168.0.1:30080", tcp, node_port, 1);
    let (lb_key, lb) = frontend("203.0.113.9:80", tcp, balancer, 1);
    observed.frontends.extend([
        frontend("10.96.0.10:80", tcp, FrontendKind::ClusterIp, 1),
        frontend("10.96.0.20:53", udp, FrontendKind::ClusterIp, 3),
        address_entry("10.96.0.10".parse().unwrap()),
        (
            port_key,
            Frontend {
                outside_service: 2,
                ..port
            },
        ),
        (
            lb_key,
            Frontend {
                flags: Frontend::SOURCE_RANGES | Frontend::NODE_ALLOWED,
                ..lb
            },
        ),
    ]);
    let name = |text, protocol: Protocol, scope| {
        ServiceName::new(text, protocol.number(), 4, scope).unwrap()
    };
    observed.names.extend([
        (1, name("default/web:http", tcp, 0)),
        (2, name("default/web:http", tcp, 1)),
        (3, name("kube-system/dns:dns", udp, 0)),
    ]);
    let affinity = ServiceAffinity::new(10_800, AFFINITY_PORT);
    let service = |first, count| Service {
        word: ServiceWord::with_backends(first, count),
        affinity,
    };
    observed.services.extend([
        (1, service(0, 2)),
        (2, service(8, 1)),
        (3, ServiceWord::without_backends(Empty::Refuse).into()),
    ]);
    observed.slots.extend([(0, vec![1, 2]), (8, vec![4])]);
    let local = Backend::LOCAL | Backend::CHOSEN;
    observed.backends.extend([
        (1, backend("10.1.1.2:8080", tcp, 1, local)),
        (2, backend("10.1.2.2:8080", tcp, 1, Backend::CHOSEN)),
        (3, backend("10.1.2.3:8080", tcp, 1, 0)),
        (4, backend("10.1.1.2:8080", tcp, 2, local)),
    ]);
    let ranges = observed.source_ranges.entry(1).or_default();
    ranges.insert("10.0.0.0/8".parse().unwrap());
    observed
}

/// The same, and `kube-system/dns:dns` has a backend.
pub(crate) fn observed_with_udp() -> Observed {
    let mut observed = observed();
    let word = ServiceWord::with_backends(16, 1);
    observed.services.insert(3, word.into());
    observed.slots.insert(16, vec![UDP_BACKEND]);
    let dns = backend("10.1.1.3:5353", Protocol::Udp, 3, Backend::CHOSEN);
    observed.backends.insert(UDP_BACKEND, dns);
    observed
}
