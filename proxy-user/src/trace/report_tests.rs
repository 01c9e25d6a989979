use std::net::SocketAddr;

use proxy_common::{
    abi::{
        Addr, AffinityKey, Backend, BackendStats, Client, Empty, FrontendKind, Scheduler,
        ServiceAffinity, ServiceStats, ServiceWord,
    },
    datapath::{conntrack::SECOND_NS, fake::Maps, path::Route},
    wire::link::Link,
};

use super::*;
use crate::trace::{choice::Candidate, frame, question::Question, story};

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

fn candidates(maps: &Maps) -> impl Fn(&Service) -> Vec<Candidate> {
    |service| {
        let stats = maps.backend_stats.borrow();
        choice::candidates(
            service.word,
            |slot| maps.slots.get(&slot).copied(),
            |id| {
                let stats = stats.get(&id).copied().unwrap_or_default();
                Some((*maps.backends.get(&id)?, stats))
            },
        )
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
scheduler random: each of the 2 is as likely; without failover
choice    10.1.2.2:8080, by a draw; the next connection draws anew
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

/// The Service by another rule; backends 10 and 11 in so many slots, with so many connections.
fn ruled(scheduler: Scheduler, slots: [u16; 2], active: [i64; 2]) -> Maps {
    let mut maps = world();
    let mut slot = 200;
    for ((id, slots), active) in (10..).zip(slots).zip(active) {
        maps.backends.get_mut(&id).expect("a backend").weight = slots;
        for _ in 0..slots {
            maps.slots.insert(slot, id);
            slot += 1;
        }
        let stats = BackendStats {
            active,
            ..BackendStats::default()
        };
        maps.backend_stats.borrow_mut().insert(id, stats);
    }
    let word = ServiceWord::with_backends(200, slot - 200);
    let word = word.scheduled(scheduler, true, slots[0] != slots[1]);
    maps.services.insert(1, word.into());
    maps
}

/// The same, and attempts to connect to a backend have failed.
fn fails(maps: &Maps, id: u32) {
    let mut stats = maps.backend_stats.borrow_mut();
    let stats = stats.entry(id).or_default();
    stats.failures = 4;
    stats.passed_over_until_ns = NOW_NS + 8 * SECOND_NS;
}

/// In one line, from the backends to what becomes of it.
fn reasons(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let text = words.join(" ");
    let (_, text) = text.split_once(" backends ").expect("backends");
    let text = text.split(" becomes ").next().unwrap_or_default();
    let text = text.split(" route ").next().unwrap_or_default();
    text.to_owned()
}

#[test]
fn each_scheduler_says_why_it_is_this_backend() {
    for (scheduler, slots, active, wanted) in [
        (
            Scheduler::Random,
            [3, 1],
            [0, 0],
            "10.1.1.2:8080 (this node, weight 3, 75 %) 10.1.2.2:8080 (weight 1, 25 %) \
             scheduler random: each is as likely as its weight says \
             choice 10.1.1.2:8080, by a draw; the next connection draws anew",
        ),
        (
            Scheduler::RoundRobin,
            [1, 1],
            [0, 0],
            "10.1.1.2:8080 (this node) 10.1.2.2:8080 scheduler rr: one after the other \
             choice 10.1.2.2:8080, whose turn it is after 41 connections",
        ),
        (
            Scheduler::LeastConnections,
            [1, 1],
            [9, 3],
            "10.1.1.2:8080 (this node) 10.1.2.2:8080 \
             scheduler lc: of two at random, the one with fewer connections \
             choice 10.1.2.2:8080 with 3 connections rather than 10.1.1.2:8080 with 9 connections",
        ),
        (
            Scheduler::ShortestDelay,
            [4, 1],
            [5, 1],
            "10.1.1.2:8080 (this node, weight 4) 10.1.2.2:8080 (weight 1) \
             scheduler sed: the one with the smallest (connections + 1) / weight \
             choice 10.1.1.2:8080 with 5 connections at weight 4 rather than \
             10.1.2.2:8080 with 1 connection at weight 1",
        ),
        (
            Scheduler::NeverQueue,
            [1, 1],
            [1, 0],
            "10.1.1.2:8080 (this node) 10.1.2.2:8080 \
             scheduler nq: an idle one; if none is, the one with the fewest connections \
             choice 10.1.2.2:8080, which is idle",
        ),
        (
            Scheduler::DestinationHash,
            [1, 1],
            [0, 0],
            "10.1.1.2:8080 (this node) 10.1.2.2:8080 \
             scheduler dh: by a hash of the address: whoever dials 10.96.0.1 gets the same one until \
             the backends change choice BACKEND, by the hash of 10.96.0.1",
        ),
        (
            Scheduler::SourceHash,
            [1, 1],
            [0, 0],
            "10.1.1.2:8080 (this node) 10.1.2.2:8080 \
             scheduler sh: by a hash of the client: it gets the same one until the backends change \
             choice BACKEND, by the hash of the pod's network namespace",
        ),
        (
            Scheduler::Maglev,
            [4, 3],
            [0, 0],
            "10.1.1.2:8080 (this node, weight 4, 57.1 %) 10.1.2.2:8080 (weight 3, 42.9 %) \
             scheduler maglev: by a hash of the client, alike on every node: it gets the same one, \
             and most clients still do when the backends change \
             choice BACKEND, by the hash of the pod's network namespace",
        ),
    ] {
        let maps = ruled(scheduler, slots, active);
        maps.netns.set(4711);
        let connections = 41;
        let stats = ServiceStats {
            connections,
            ..ServiceStats::default()
        };
        maps.service_stats.borrow_mut().insert(1, stats);
        let text = connect(&maps, "10.96.0.1:80");
        let (_, served) = text.rsplit_once("is served by ").expect("a backend");
        let wanted = wanted.replace("BACKEND", served);
        assert_eq!(reasons(&text), wanted, "{scheduler:?}");
        assert!(!text.contains("--netns"), "{text}");
    }
}

/// Of the same story: what is told is the backend that it goes to.
#[test]
fn the_choice_is_where_it_goes_whatever_was_looked_at() {
    for scheduler in Scheduler::ALL {
        for (slots, failed) in [
            ([1, 1], None),
            ([3, 2], None),
            ([3, 2], Some(10)),
            ([1, 2], Some(11)),
        ] {
            let maps = ruled(scheduler, slots, [2, 1]);
            if let Some(id) = failed {
                fails(&maps, id);
            }
            for seed in 0..50 {
                maps.seed.set(seed);
                let question = question("10.1.1.9:40000", "10.96.0.1:80");
                let at = (Call::Connect, Origin::Pod);
                let story = story::call(&maps.socket(7), question, at, candidates(&maps));
                let choice = story.choice.as_ref().expect("a choice");
                assert_eq!(story.backend(), Some(choice.backend.socket_addr()));
                assert_eq!(choice.candidates.len(), 2);
                assert!(!choice.is_kept && !choice.looked_at.is_empty());
                assert!(choice.passed_over.iter().all(|id| Some(*id) == failed));
                let json = serde_json::to_value(Report::new(&story, &Fakes, "", NOW_NS));
                let json = json.expect("JSON");
                assert_eq!(json["choice"]["scheduler"], scheduler.name());
                assert_eq!(json["candidates"].as_array().map(Vec::len), Some(2));
                let shares = json["choice"]["shares"].as_array().expect("shares");
                let sum: f64 = shares.iter().filter_map(serde_json::Value::as_f64).sum();
                assert!((sum - 1.0).abs() < 1e-9, "{json}");
            }
        }
    }
}

#[test]
fn a_backend_that_is_passed_over_is_told_with_its_failures() {
    // The one whose turn it is has failed.
    let maps = ruled(Scheduler::RoundRobin, [1, 1], [0, 0]);
    fails(&maps, 10);
    let text = connect(&maps, "10.96.0.1:80");
    assert_eq!(
        reasons(&text),
        "10.1.1.2:8080 (this node, passed over) 10.1.2.2:8080 scheduler rr: one after the other \
         not taken 10.1.1.2:8080 is passed over for 8 s more: 4 attempts to connect failed in a row \
         choice 10.1.2.2:8080, whose turn it is before all others"
    );
    assert!(text.contains("counter   backend_passed_over: "), "{text}");
    fails(&maps, 11);
    let text = connect(&maps, "10.96.0.1:80");
    assert!(
        reasons(&text).ends_with("though it is to be passed over: so are all that were looked at"),
        "{text}"
    );
    assert!(text.contains("(8 times)"), "{text}");
}

#[test]
fn a_client_with_affinity_keeps_a_backend_that_is_passed_over_and_is_told_so() {
    let mut maps = ruled(Scheduler::LeastConnections, [1, 1], [0, 0]);
    let affinity = ServiceAffinity::new(10_800, 5);
    let word = maps.services[&1].word;
    maps.services.insert(1, Service { word, affinity });
    maps.netns.set(4711);
    let key = AffinityKey {
        port: 5,
        client: Client::of_socket(4711),
    };
    let entry = AffinityEntry {
        used_ns: NOW_NS,
        backend: at("10.1.1.2:8080").into(),
        backend_id: 10,
    };
    maps.affinity.borrow_mut().insert(key, entry);
    fails(&maps, 10);
    assert_eq!(
        reasons(&connect(&maps, "10.96.0.1:80")),
        "10.1.1.2:8080 (this node, passed over) 10.1.2.2:8080 choice 10.1.1.2:8080, kept by affinity, \
         though for other clients it is passed over for 8 s more: 4 attempts to connect failed in a row"
    );
}

#[test]
fn a_pod_that_is_not_known_has_any_backend_of_a_hash() {
    let maps = ruled(Scheduler::SourceHash, [1, 1], [0, 0]);
    let text = connect(&maps, "10.96.0.1:80");
    assert!(
        reasons(&text)
            .contains("for example: the client is not known, and any of the 2 may be its own"),
        "{text}"
    );
    assert!(text.contains("--netns PID"), "{text}");
    // A packet says who it is.
    let text = packet(&maps, "10.96.0.1:80");
    assert!(
        reasons(&text).ends_with("by the hash of 198.51.100.7"),
        "{text}"
    );
}

#[test]
fn a_repeated_first_packet_goes_to_another_backend_and_is_told_so() {
    let maps = ruled(Scheduler::RoundRobin, [1, 1], [0, 0]);
    let first = packet(&maps, "10.96.0.1:80");
    assert!(first.contains("choice    10.1.1.2:8080"), "{first}");
    maps.now_ns.set(NOW_NS + SECOND_NS);
    // Its turn again.
    maps.service_stats.borrow_mut().clear();
    let text = packet(&maps, "10.96.0.1:80");
    let flat: Vec<&str> = text.split_whitespace().collect();
    let flat = flat.join(" ");
    for wanted in [
        "10.1.1.2:8080 has not answered, so this packet, which repeats the first one, goes to another \
         backend",
        "not taken 10.1.1.2:8080 has not answered the packet that this one repeats",
        "choice 10.1.2.2:8080, whose turn it is",
        "counter packet_failed_over",
    ] {
        assert!(flat.contains(wanted), "no {wanted}:\n{text}");
    }
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
scheduler random: each of the 2 is as likely; without failover
choice    10.1.2.2:8080, by a draw; the next connection draws anew
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
