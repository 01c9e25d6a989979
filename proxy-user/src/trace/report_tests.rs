use std::net::SocketAddr;

use proxy_common::{
    abi::{Addr, AffinityKey, Client, Empty, FrontendKind, ServiceAffinity, ServiceWord},
    datapath::{conntrack::SECOND_NS, fake::Maps, path::Route},
    wire::link::Link,
};

use super::*;
use crate::trace::{frame, question::Question, story};

const ETH: u32 = 2;
const NOW_NS: u64 = 1000 * SECOND_NS;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

struct Fakes;

impl Names for Fakes {
    fn service(&self, id: u32) -> Option<(String, bool)> {
        match id {
            1 => Some(("default/web:http".to_owned(), false)),
            2 => Some(("default/web:http".to_owned(), true)),
            _ => None,
        }
    }

    fn device(&self, ifindex: u32) -> String {
        format!("eth{}", ifindex - ETH)
    }
}

/// The Service `web`, a NodePort of both lists: two endpoints, one of them on this node.
fn world() -> Maps {
    let mut maps = Maps {
        ifindex: ETH,
        ..Maps::default()
    };
    maps.now_ns.set(NOW_NS);
    for (text, kind, outside_service) in [
        ("10.96.0.1:80", FrontendKind::ClusterIp, 0),
        ("192.0.2.1:30080", FrontendKind::NodePort, 2),
    ] {
        let to = SockAddr::from(at(text));
        let key = FrontendKey {
            addr: to.addr,
            port_be: to.port_be,
            protocol: Protocol::Tcp.number(),
            zero: 0,
        };
        let frontend = Frontend {
            service: 1,
            outside_service,
            kind: kind as u8,
            flags: 0,
            zero: [0; 2],
        };
        maps.frontends.insert(key, frontend);
    }
    let cluster_ip = Addr::from(at("10.96.0.1:80").ip());
    let as_such = Frontend {
        service: 0,
        outside_service: 0,
        kind: FrontendKind::ClusterIp as u8,
        flags: 0,
        zero: [0; 2],
    };
    maps.frontends
        .insert(FrontendKey::of_address(cluster_ip), as_such);
    for (id, service, text, flags) in [
        (10, 1, "10.1.1.2:8080", Backend::LOCAL | Backend::CHOSEN),
        (11, 1, "10.1.2.2:8080", Backend::CHOSEN),
        (12, 2, "10.1.1.2:8080", Backend::LOCAL | Backend::CHOSEN),
    ] {
        let SockAddr { addr, port_be, .. } = at(text).into();
        let backend = Backend {
            addr,
            port_be,
            protocol: Protocol::Tcp.number(),
            flags,
            weight: 1,
            zero: 0,
            twin: 0,
            service,
        };
        maps.backends.insert(id, backend);
        maps.slots.insert(100 + id, id);
    }
    maps.services
        .insert(1, ServiceWord::with_backends(110, 2).into());
    maps.services
        .insert(2, ServiceWord::with_backends(112, 1).into());
    let gateway = "192.0.2.9:1";
    maps.routes.insert(
        Addr::from(at("10.1.2.2:1").ip()),
        Route {
            ifindex: ETH,
            gateway: at(gateway).ip().into(),
        },
    );
    maps.devices.insert(
        ETH,
        Device {
            v4: at("192.0.2.1:1").ip().into(),
            v6: Addr::default(),
            mtu: 1500,
            flags: 0,
        },
    );
    maps
}

fn empty(maps: &mut Maps, empty: Empty) {
    for id in [1, 2] {
        let word = ServiceWord::without_backends(empty);
        maps.services.insert(id, word.into());
    }
}

fn question(from: &str, to: &str) -> Question {
    Question {
        protocol: Protocol::Tcp,
        source: at(from),
        destination: at(to),
    }
}

fn candidates(maps: &Maps) -> impl Fn(&Service) -> Vec<(u32, Backend)> {
    |service| {
        let word = service.word;
        (0..word.count())
            .map(|index| {
                let id = maps.slots[&(word.first_slot() + index)];
                (id, maps.backends[&id])
            })
            .collect()
    }
}

/// What is printed of connect() of a pod.
fn connect(maps: &Maps, to: &str) -> String {
    let question = question("10.1.1.9:40000", to);
    let at = (Call::Connect, Origin::Pod);
    let story = story::call(&maps.socket(7), question, at, candidates(maps));
    text(&story)
}

/// What is printed of a packet from outside.
fn packet(maps: &Maps, to: &str) -> String {
    let question = question("198.51.100.7:40000", to);
    let frame = frame::make(&question, Link::Ethernet, MAC);
    let at = (Hook::Ingress, ETH, Link::Ethernet);
    text(&story::packet(maps, question, at, frame, candidates(maps)))
}

fn text(story: &Story) -> String {
    let report = Report::new(story, &Fakes, "here", NOW_NS);
    report.to_text(None, false, str::to_owned)
}

#[test]
fn a_call_that_is_translated_is_told_from_frontend_to_backend() {
    assert_eq!(
        connect(&world(), "10.96.0.1:80"),
        "\
asked     TCP 10.1.1.9:40000 -> 10.96.0.1:80
hook      here
frontend  ClusterIP 10.96.0.1:80/TCP of default/web:http
policy    Cluster: endpoints of the whole cluster serve
backends  10.1.1.2:8080 (this node)
          10.1.2.2:8080
choice    10.1.2.2:8080, by a draw: each of the 2 is as likely, and the next
          connection draws anew
becomes   connect() to 10.1.2.2:8080
counter   connect_translated: connect() to a frontend, sent to a backend
seen      the application sees 10.96.0.1:80 as its peer

verdict   translated: 10.96.0.1:80 is served by 10.1.2.2:8080"
    );
}

#[test]
fn a_call_that_nobody_serves_says_what_the_application_gets() {
    let mut maps = world();
    let text = connect(&maps, "10.96.0.1:81");
    assert!(
        text.contains(
            "\
frontend  no Service has 10.96.0.1:81/TCP; 10.96.0.1 is a ClusterIP, but its
          Service has no such port and protocol
"
        ),
        "{text}"
    );
    assert!(
        text.contains("seen      connect() fails with ECONNREFUSED"),
        "{text}"
    );
    empty(&mut maps, Empty::Refuse);
    let text = connect(&maps, "10.96.0.1:80");
    assert!(
        text.ends_with("verdict   refused: the Service has no endpoints"),
        "{text}"
    );
    empty(&mut maps, Empty::Drop);
    let text = connect(&maps, "10.96.0.1:80");
    assert!(
        text.contains("nobody answers: the application waits"),
        "{text}"
    );
    assert!(
        text.contains("verdict   dropped: the policy is Local"),
        "{text}"
    );
    let text = connect(&maps, "192.0.2.77:80");
    assert!(
        text.ends_with("verdict   left alone: no Service has 192.0.2.77:80"),
        "{text}"
    );
}

#[test]
fn affinity_says_what_the_client_has() {
    let mut maps = world();
    let service = Service {
        word: ServiceWord::with_backends(110, 2),
        affinity: ServiceAffinity::new(10_800, 5),
    };
    maps.services.insert(1, service);
    let text = connect(&maps, "10.96.0.1:80");
    assert!(
        text.contains(
            "affinity  ClientIP: a client keeps its backend for 3 h; this client has none yet"
        ),
        "{text}"
    );
    assert!(
        text.contains("name a process of the pod by --netns PID"),
        "{text}"
    );
    let key = AffinityKey {
        port: 5,
        client: Client::of_socket(4711),
    };
    let entry = |used_ns| AffinityEntry {
        used_ns,
        backend: at("10.1.1.2:8080").into(),
        backend_id: 10,
    };
    maps.netns.set(4711);
    maps.affinity
        .borrow_mut()
        .insert(key, entry(NOW_NS - 60 * SECOND_NS));
    let text = connect(&maps, "10.96.0.1:80");
    assert!(
        text.contains("this one has\n          10.1.1.2:8080, last used 60 s ago"),
        "{text}"
    );
    assert!(
        text.contains("choice    10.1.1.2:8080, kept by affinity"),
        "{text}"
    );
    assert!(!text.contains("--netns"), "{text}");
    maps.backends.get_mut(&10).expect("a backend").flags = 0;
    maps.affinity.borrow_mut().insert(key, entry(NOW_NS));
    let text = connect(&maps, "10.96.0.1:80");
    assert!(text.contains("gets no new connections any more"), "{text}");
}

#[test]
fn a_packet_that_leaves_is_told_with_its_route_and_its_source() {
    let maps = world();
    let text = packet(&maps, "10.96.0.1:80");
    let port = text
        .split_once("becomes   192.0.2.1:")
        .and_then(|(_, rest)| rest.split(' ').next())
        .expect("a source port");
    assert_eq!(
        text.replace(port, "PORT"),
        "\
asked     TCP 198.51.100.7:40000 -> 10.96.0.1:80
hook      here
flow      not known: this packet would begin one
frontend  ClusterIP 10.96.0.1:80/TCP of default/web:http
policy    Cluster: endpoints of the whole cluster serve
backends  10.1.1.2:8080 (this node)
          10.1.2.2:8080
choice    10.1.2.2:8080, by a draw: each of the 2 is as likely, and the next
          connection draws anew
route     10.1.2.2 is reached by eth0, next hop 192.0.2.9
becomes   192.0.2.1:PORT -> 10.1.2.2:8080
source    this node's on eth0, port PORT of those kept for this: the backend is
          on another node, and its answers have to come back here
goes on   out of eth0 at once
counter   packet_new_flow: The first packet of a flow to a frontend, sent to a
          backend
seen      the client gets its answers from 10.96.0.1:80

verdict   translated: 10.96.0.1:80 is served by 10.1.2.2:8080"
    );
}

#[test]
fn a_packet_for_endpoints_of_this_node_keeps_its_source() {
    let maps = world();
    let first = packet(&maps, "192.0.2.1:30080");
    for wanted in [
        "policy    Local for clients from outside, as this one: only endpoints of this\n          node serve",
        "choice    10.1.1.2:8080, the only one",
        "becomes   198.51.100.7:40000 -> 10.1.1.2:8080",
        "source    kept: the backend sees the client",
        "goes on   through this node's network stack, past its packet filters",
        "verdict   translated: 192.0.2.1:30080 is served by 10.1.1.2:8080, on this node",
    ] {
        assert!(first.contains(wanted), "no {wanted}:\n{first}");
    }
    // The fake keeps what is written, and now knows the flow.
    let second = packet(&maps, "192.0.2.1:30080");
    assert!(
        second.contains("flow      known, last used 0 s ago"),
        "{second}"
    );
    assert!(second.contains("counter   packet_forwarded"), "{second}");
}

#[test]
fn a_packet_that_nobody_serves_says_what_the_client_gets() {
    let mut maps = world();
    let text = packet(&maps, "10.96.0.1:81");
    assert!(
        text.contains("seen      the client gets ICMP \"port unreachable\", that is ECONNREFUSED"),
        "{text}"
    );
    maps.service_nets
        .push((Addr::from(at("10.96.0.0:1").ip()), 112));
    let text = packet(&maps, "10.96.7.7:80");
    assert!(
        text.contains("10.96.7.7 is in a ServiceCIDR, but no\n          Service's"),
        "{text}"
    );
    assert!(
        text.contains("verdict   dropped: the address is in a ServiceCIDR, and no Service has it"),
        "{text}"
    );
    maps.routes.clear();
    maps.seed.set(0);
    let text = packet(&maps, "10.96.0.1:80");
    assert!(
        text.contains("choice    10.1.2.2:8080, by a draw"),
        "{text}"
    );
    assert!(text.contains("route     none to 10.1.2.2"), "{text}");
    assert!(
        text.contains("verdict   dropped: this node has no route to the backend"),
        "{text}"
    );
}

#[test]
fn lines_fit_the_terminal_and_every_lookup_is_told_on_demand() {
    let maps = world();
    let question = question("10.1.1.9:40000", "10.96.0.1:80");
    let place = (Call::Connect, Origin::Pod);
    let story = story::call(&maps.socket(7), question, place, candidates(&maps));
    let report = Report::new(&story, &Fakes, "here", NOW_NS);
    let narrow = report.to_text(Some(50), true, |line| format!("<{line}>"));
    assert!(
        narrow.lines().all(|line| line.chars().count() <= 52),
        "{narrow}"
    );
    assert!(
        narrow.contains("  1       KP_FRONTENDS 10.96.0.1:80/TCP:"),
        "{narrow}"
    );
    assert!(narrow.contains("verdict   <translated:"), "{narrow}");
    assert_eq!(report.lookups.len(), story.lookups.len());
    let json = serde_json::to_value(&report).expect("JSON");
    assert_eq!(json["protocol"], "TCP");
    assert_eq!(json["verdict"], "translated");
    assert_eq!(json["backend"], "10.1.2.2:8080");
    assert_eq!(json["candidates"].as_array().map(Vec::len), Some(2));
    assert_eq!(json["counters"][0], "connect_translated");
    assert_eq!(json["story"][1]["what"], "hook");
}
