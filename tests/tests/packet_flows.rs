//! The life of flows on the host: beginnings, ends, floods, full tables, changed backends.

use std::net::SocketAddr;

use proxy_common::{
    abi::{AffinityKey, Backend, Client, Counter, FlowTimeouts, PortRange, ServiceWord},
    datapath::{
        conntrack,
        fake::Maps,
        path::{self, Done, DropReason, Hook, Passed, Refusal, Verdict, Work},
    },
    wire::{bytes::Bytes, link::Link},
};
use tests::packet::{Make, Scene, make::Transport};

const SECOND: u64 = 1_000_000_000;
const V4: Scene = Scene { v6: false };

fn run(maps: &Maps, hook: Hook, packet: &Make) -> (Verdict, Vec<u8>) {
    let mut bytes = Bytes::new(packet.frame());
    let verdict = path::run(hook, Link::Ethernet, &mut bytes, maps, &mut Work::default());
    (verdict, bytes.data)
}

fn ingress(maps: &Maps, packet: &Make) -> Verdict {
    run(maps, Hook::Ingress, packet).0
}

fn tcp(flags: &'static str, seq: u32, ack: u32) -> Transport {
    Transport::Tcp { flags, seq, ack }
}

fn to_vip(transport: Transport) -> Make {
    Make::new(transport, V4.client(), SocketAddr::new(V4.vip(), 80))
}

fn pod() -> SocketAddr {
    SocketAddr::new(V4.pod(), 8080)
}

/// SYN, SYN-ACK; then the client's acknowledgement of `ack`.
fn handshake(maps: &Maps, client: SocketAddr, ack: u32) {
    let mut packet = to_vip(tcp("S", 100, 0));
    packet.src = client;
    assert_eq!(ingress(maps, &packet), Verdict::Stack(Done::NewFlow));
    let answer = Make::new(tcp("SA", 9000, 101), pod(), client);
    assert_eq!(
        run(maps, Hook::Egress, &answer).0,
        Verdict::Stack(Done::Reversed)
    );
    packet.transport = tcp("A", 101, ack);
    assert_eq!(ingress(maps, &packet), Verdict::Stack(Done::Forwarded));
}

fn sizes(maps: &Maps) -> (usize, usize) {
    (
        maps.established.borrow().len(),
        maps.half_open.borrow().len(),
    )
}

#[test]
fn a_connection_is_established_by_acknowledging_the_syn_ack() {
    let maps = Scene::maps();
    handshake(&maps, V4.client(), 9001);
    assert_eq!(sizes(&maps), (2, 0));
    let maps = Scene::maps();
    handshake(&maps, V4.client(), 1234);
    assert_eq!(sizes(&maps), (0, 2), "a guess is no proof");
}

#[test]
fn a_flood_of_guesses_stays_among_the_half_open() {
    let maps = Scene::maps();
    handshake(&maps, V4.client(), 9001);
    for port in 1..2000 {
        handshake(&maps, SocketAddr::new(V4.client().ip(), port), 4321);
    }
    assert_eq!(maps.established.borrow().len(), 2);
    // All that LRU could push out is pushed out; the connection goes on.
    maps.half_open.borrow_mut().clear();
    let data = to_vip(tcp("A", 101, 9001));
    assert_eq!(ingress(&maps, &data), Verdict::Stack(Done::Forwarded));
}

#[test]
fn a_full_table_keeps_what_it_has_and_the_new_flow_works_on() {
    let mut maps = Scene::maps();
    maps.established_capacity = Some(3);
    handshake(&maps, V4.client(), 9001);
    let second = SocketAddr::new(V4.client().ip(), 41_000);
    handshake(&maps, second, 9001);
    assert_eq!(sizes(&maps), (2, 2));
    assert_eq!(maps.counter(Counter::FlowsFull), 1);
    // An hour later it is still known, because it has been proven; and moves when there is room.
    maps.now_ns.set(3600 * SECOND);
    maps.established_capacity = None;
    let mut data = to_vip(tcp("A", 101, 9500));
    data.src = second;
    assert_eq!(ingress(&maps, &data), Verdict::Stack(Done::Forwarded));
    assert_eq!(sizes(&maps), (4, 0));
}

#[test]
fn a_closed_connections_port_begins_anew() {
    let mut maps = Scene::maps();
    handshake(&maps, V4.client(), 9001);
    let syn = to_vip(tcp("S", 7000, 0));
    assert_eq!(ingress(&maps, &syn), Verdict::Stack(Done::Forwarded));
    assert_eq!(
        ingress(&maps, &to_vip(tcp("FA", 101, 9001))),
        Verdict::Stack(Done::Forwarded)
    );
    let fin = Make::new(tcp("FA", 9001, 102), pod(), V4.client());
    assert_eq!(
        run(&maps, Hook::Egress, &fin).0,
        Verdict::Stack(Done::Reversed)
    );
    // Where the backend has moved meanwhile.
    let moved = SocketAddr::new(V4.far_pod(), 8080);
    set_backend(&mut maps, 1, moved, Backend::LOCAL);
    let (verdict, out) = run(&maps, Hook::Ingress, &syn);
    assert_eq!(verdict, Verdict::Stack(Done::NewFlow));
    assert_eq!(out, syn.between(syn.src, moved).frame());
    // What the old backend's answers went by stays until its time is over.
    assert_eq!(sizes(&maps), (1, 2));
}

fn set_backend(maps: &mut Maps, id: u32, to: SocketAddr, flags: u8) {
    let backend = maps.backends.get_mut(&id).expect("a backend");
    backend.addr = to.ip().into();
    backend.port_be = to.port().to_be();
    backend.flags = flags;
}

/// Service `id` gets a backend of another number, and the old one goes.
fn replace_backend(maps: &mut Maps, id: u32, to: SocketAddr) {
    let mut backend = maps.backends.remove(&id).expect("a backend");
    backend.addr = to.ip().into();
    backend.port_be = to.port().to_be();
    maps.backends.insert(50, backend);
    maps.slots.insert(50, 50);
    let word = ServiceWord::with_backends(50, 1);
    maps.services.insert(id, word.into());
}

#[test]
fn a_udp_flow_leaves_a_backend_that_is_gone_and_tcp_stays() {
    let mut maps = Scene::maps();
    let datagram = to_vip(Transport::Udp);
    assert_eq!(ingress(&maps, &datagram), Verdict::Stack(Done::NewFlow));
    handshake(&maps, V4.client(), 9001);
    let moved = SocketAddr::new("10.1.0.77".parse().unwrap(), 9090);
    replace_backend(&mut maps, 2, moved);
    let (verdict, out) = run(&maps, Hook::Ingress, &datagram);
    assert_eq!(verdict, Verdict::Stack(Done::NewFlow));
    assert_eq!(out, datagram.between(datagram.src, moved).frame());
    // Down to nothing (BEHAVIOUR C3's hole).
    maps.backends.remove(&50);
    let word = ServiceWord::without_backends(proxy_common::abi::Empty::Refuse);
    maps.services.insert(2, word.into());
    assert_eq!(
        ingress(&maps, &datagram),
        Verdict::Reject(Refusal::NoEndpoints)
    );
    replace_backend(&mut maps, 1, moved);
    let data = to_vip(tcp("A", 101, 9001));
    let (verdict, out) = run(&maps, Hook::Ingress, &data);
    assert_eq!(verdict, Verdict::Stack(Done::Forwarded));
    assert_eq!(out, data.between(data.src, pod()).frame());
}

#[test]
fn a_udp_flow_leaves_a_backend_whose_number_another_endpoint_got() {
    let mut maps = Scene::maps();
    let datagram = to_vip(Transport::Udp);
    assert_eq!(ingress(&maps, &datagram), Verdict::Stack(Done::NewFlow));
    let moved = SocketAddr::new("10.1.0.77".parse().unwrap(), 9090);
    set_backend(&mut maps, 2, moved, Backend::LOCAL);
    let (verdict, out) = run(&maps, Hook::Ingress, &datagram);
    assert_eq!(verdict, Verdict::Stack(Done::NewFlow));
    assert_eq!(out, datagram.between(datagram.src, moved).frame());
}

/// The packet in the middle of nothing is anybody's, the backend's reset proves nothing, and 0 is what
/// no SYN-ACK has been seen with.
#[test]
fn a_reset_is_no_proof_that_the_client_hears() {
    let maps = Scene::maps();
    let stray = to_vip(tcp("A", 1, 0));
    assert_eq!(ingress(&maps, &stray), Verdict::Stack(Done::NewFlow));
    let reset = Make::new(tcp("R", 0, 0), pod(), V4.client());
    assert_eq!(
        run(&maps, Hook::Egress, &reset).0,
        Verdict::Stack(Done::Reversed)
    );
    assert_eq!(ingress(&maps, &stray), Verdict::Stack(Done::Forwarded));
    assert_eq!(sizes(&maps), (0, 2));
}

/// A kube-proxy's connections are in the stack's table.
#[test]
fn connections_that_began_before_the_first_agent_are_left_to_the_stack_for_a_while() {
    let mut maps = Scene::maps();
    maps.inherited_until_ns = maps.now_ns.get() + SECOND;
    for flags in ["A", "PA", "FA", "R"] {
        let packet = to_vip(tcp(flags, 101, 9001));
        assert_eq!(
            ingress(&maps, &packet),
            Verdict::Pass(Passed::NotOurs),
            "{flags}"
        );
    }
    assert_eq!(sizes(&maps), (0, 0));
    // New ones are served, also those that begin where an older one was.
    handshake(&maps, V4.client(), 9001);
    let data = to_vip(tcp("A", 101, 9001));
    assert_eq!(ingress(&maps, &data), Verdict::Stack(Done::Forwarded));
    // Later nobody is reckoned with any more: the backend's reset tells the client.
    let mut maps = Scene::maps();
    maps.inherited_until_ns = maps.now_ns.get();
    assert_eq!(ingress(&maps, &data), Verdict::Stack(Done::NewFlow));
}

/// What was on its way when the other side gave up, and arrives behind its reset.
#[test]
fn a_reset_holds_until_its_sender_speaks_again() {
    let maps = Scene::maps();
    handshake(&maps, V4.client(), 9001);
    let ends_in_seconds = |seconds: u64| {
        let at = |seconds: u64| maps.now_ns.get() + seconds * SECOND;
        let both = maps.established.borrow();
        both.len() == 2
            && both.values().all(|entry| {
                let timeout_ns = conntrack::timeout_ns(6, entry.state, &FlowTimeouts::DEFAULT);
                !conntrack::is_expired(entry, timeout_ns, at(seconds - 1))
                    && conntrack::is_expired(entry, timeout_ns, at(seconds))
            })
    };
    assert!(ends_in_seconds(24 * 3600));
    let from_client = |flags| ingress(&maps, &to_vip(tcp(flags, 101, 9001)));
    let from_pod = |flags| {
        let packet = Make::new(tcp(flags, 9001, 101), pod(), V4.client());
        run(&maps, Hook::Egress, &packet).0
    };
    assert_eq!(from_client("R"), Verdict::Stack(Done::Forwarded));
    assert!(ends_in_seconds(10));
    assert_eq!(from_pod("A"), Verdict::Stack(Done::Reversed));
    assert!(ends_in_seconds(10));
    // It was somebody else's.
    assert_eq!(from_client("A"), Verdict::Stack(Done::Forwarded));
    assert!(ends_in_seconds(24 * 3600));
    assert_eq!(from_pod("R"), Verdict::Stack(Done::Reversed));
    assert_eq!(from_client("A"), Verdict::Stack(Done::Forwarded));
    assert!(ends_in_seconds(10));
}

#[test]
fn a_device_that_may_not_forward_is_named() {
    let mut maps = Scene::maps();
    maps.forwarding_off = true;
    let packet = Make::new(
        tcp("S", 1, 0),
        V4.client(),
        SocketAddr::new(V4.far_vip(), 80),
    );
    assert_eq!(
        ingress(&maps, &packet),
        Verdict::Drop(DropReason::ForwardingOff)
    );
    assert_eq!(maps.counter(Counter::PacketForwardingOff), 1);
    assert_eq!(sizes(&maps), (0, 0));
}

#[test]
fn flows_end_when_their_time_is_over() {
    // (packet, how long it may be silent)
    let maps = Scene::maps();
    for (transport, seconds) in [(tcp("S", 1, 0), 60), (Transport::Udp, 30)] {
        let packet = to_vip(transport);
        maps.now_ns.set(1000 * SECOND);
        assert_eq!(ingress(&maps, &packet), Verdict::Stack(Done::NewFlow));
        maps.now_ns.set((1000 + seconds - 1) * SECOND);
        assert_eq!(ingress(&maps, &packet), Verdict::Stack(Done::Forwarded));
        // That packet renewed it, in both directions.
        maps.now_ns.set((1000 + 2 * seconds - 2) * SECOND);
        let back = Make::new(
            match transport {
                Transport::Tcp { .. } => tcp("SA", 1, 2),
                Transport::Udp | Transport::Sctp => transport,
            },
            pod(),
            V4.client(),
        );
        assert_eq!(
            run(&maps, Hook::Egress, &back).0,
            Verdict::Stack(Done::Reversed)
        );
        maps.now_ns.set((1000 + 3 * seconds - 2) * SECOND);
        assert_eq!(ingress(&maps, &packet), Verdict::Stack(Done::NewFlow));
    }
}

#[test]
fn flows_live_as_long_as_the_node_says() {
    let mut maps = Scene::maps();
    maps.timeouts = Some(FlowTimeouts {
        tcp_established: 100,
        tcp_close_wait: 50,
        udp: 7,
        udp_stream: 20,
    });
    let known = |packet: &Make| {
        let verdict = ingress(&maps, packet);
        let is_known = verdict == Verdict::Stack(Done::Forwarded);
        assert!(
            is_known || verdict == Verdict::Stack(Done::NewFlow),
            "{verdict:?}"
        );
        is_known
    };
    let pass = |seconds| maps.now_ns.set(maps.now_ns.get() + seconds * SECOND);
    let data = to_vip(tcp("A", 101, 9001));
    handshake(&maps, V4.client(), 9001);
    pass(99);
    assert!(known(&data));
    pass(100);
    assert!(!known(&data));
    pass(60);
    handshake(&maps, V4.client(), 9001);
    assert!(known(&to_vip(tcp("FA", 101, 9001))));
    pass(49);
    assert!(known(&data));
    pass(50);
    assert!(!known(&data));

    let datagram = to_vip(Transport::Udp);
    assert!(!known(&datagram));
    pass(6);
    assert!(known(&datagram));
    pass(7);
    assert!(!known(&datagram));
    let back = Make::new(Transport::Udp, pod(), V4.client());
    let answer = run(&maps, Hook::Egress, &back).0;
    assert_eq!(answer, Verdict::Stack(Done::Reversed));
    assert!(known(&datagram));
    pass(19);
    assert!(known(&datagram));
    pass(20);
    assert!(!known(&datagram));
}

#[test]
fn source_ports_run_out_and_are_said_to() {
    let mut maps = Scene::maps();
    maps.snat_ports = Some(PortRange {
        first: 61_000,
        last: 61_003,
    });
    let to = SocketAddr::new(V4.far_vip(), 80);
    let flow = |port| {
        let client = SocketAddr::new(V4.client().ip(), port);
        Make::new(tcp("S", 1, 0), client, to)
    };
    for port in 1..=4 {
        assert_eq!(
            ingress(&maps, &flow(port)),
            Verdict::Redirect(Done::NewFlow)
        );
    }
    let none = Verdict::Drop(DropReason::NoSnatPort);
    assert_eq!(ingress(&maps, &flow(5)), none);
    assert_eq!(maps.counter(Counter::PacketNoSnatPort), 1);
    // Nothing is left of it.
    assert_eq!(maps.half_open.borrow().len(), 8);
    // Clients that are silent after their SYN have to give way. The one that did finds out.
    maps.now_ns.set(maps.now_ns.get() + 3 * SECOND);
    assert_eq!(ingress(&maps, &flow(5)), Verdict::Redirect(Done::NewFlow));
    assert_eq!(ingress(&maps, &flow(5)), Verdict::Redirect(Done::Forwarded));
    let lost = (1..=4).filter(|port| ingress(&maps, &flow(*port)) == none);
    assert_eq!(lost.count(), 1);
    assert_eq!(maps.half_open.borrow().len(), 8);
}

#[test]
fn a_closed_connection_gives_its_source_port_to_the_next() {
    let mut maps = Scene::maps();
    maps.snat_ports = Some(PortRange {
        first: 61_000,
        last: 61_000,
    });
    let frontend = SocketAddr::new(V4.far_vip(), 80);
    let client = |port| SocketAddr::new(V4.client().ip(), port);
    let say = |port, flags| ingress(&maps, &Make::new(tcp(flags, 2, 1), client(port), frontend));
    let answer = |flags| {
        let from = SocketAddr::new(V4.far_pod(), 8080);
        let to = SocketAddr::new(V4.node(), 61_000);
        ingress(&maps, &Make::new(tcp(flags, 0, 2), from, to))
    };
    let none = Verdict::Drop(DropReason::NoSnatPort);
    assert_eq!(say(1, "S"), Verdict::Redirect(Done::NewFlow));
    assert_eq!(answer("SA"), Verdict::Redirect(Done::Reversed));
    assert_eq!(say(1, "A"), Verdict::Redirect(Done::Forwarded));
    assert_eq!(say(2, "S"), none);
    assert_eq!(say(1, "FA"), Verdict::Redirect(Done::Forwarded));
    maps.now_ns.set(maps.now_ns.get() + 10 * SECOND);
    assert_eq!(say(2, "S"), none, "the backend has more to say");
    assert_eq!(answer("FA"), Verdict::Redirect(Done::Reversed));
    assert_eq!(say(2, "S"), none, "the last packets are on their way");
    maps.now_ns.set(maps.now_ns.get() + SECOND / 10);
    assert_eq!(say(2, "S"), Verdict::Redirect(Done::NewFlow));
    assert_eq!(say(1, "A"), none, "it is another's now");
    assert_eq!(maps.established.borrow().len(), 0);
    // What comes back is the second client's.
    let mut work = Work::default();
    let from = SocketAddr::new(V4.far_pod(), 8080);
    let reply = Make::new(tcp("SA", 0, 2), from, SocketAddr::new(V4.node(), 61_000));
    let mut bytes = Bytes::new(reply.frame());
    let verdict = path::run(Hook::Ingress, Link::Ethernet, &mut bytes, &maps, &mut work);
    assert_eq!(verdict, Verdict::Redirect(Done::Reversed));
    assert_eq!(work.entry.dst.socket_addr(), client(2));
}

/// A checksum that a device is to fill in holds the sum of the pseudo header; on veth all do.
#[test]
fn a_checksum_left_to_the_device_is_left_to_it() {
    for scene in Scene::BOTH {
        for transport in [tcp("S", 1, 0), Transport::Udp] {
            let maps = Scene::maps();
            let packet = Make::new(transport, scene.client(), SocketAddr::new(scene.vip(), 80));
            let wanted = packet.between(packet.src, SocketAddr::new(scene.pod(), 8080));
            let mut bytes = Bytes::new(packet.frame());
            bytes.partial = true;
            let network = if scene.v6 { 40 } else { 20 };
            let place = 14
                + network
                + match transport {
                    Transport::Tcp { .. } => 16,
                    Transport::Udp | Transport::Sctp => 6,
                };
            let partial = |make: &Make| pseudo_sum(make).to_be_bytes();
            bytes.data[place..place + 2].copy_from_slice(&partial(&packet));
            let verdict = path::run(
                Hook::Ingress,
                Link::Ethernet,
                &mut bytes,
                &maps,
                &mut Work::default(),
            );
            assert_eq!(verdict, Verdict::Stack(Done::NewFlow));
            let mut out = wanted.frame();
            out[place..place + 2].copy_from_slice(&partial(&wanted));
            assert_eq!(bytes.data, out);
        }
    }
}

/// Of addresses, length and protocol, added as RFC 1071 says.
fn pseudo_sum(make: &Make) -> u16 {
    let packet = make.packet();
    let (addresses, length, protocol) = if make.src.is_ipv4() {
        (&packet[12..20], packet.len() - 20, packet[9])
    } else {
        (&packet[8..40], packet.len() - 40, packet[6])
    };
    let mut sum: u32 = addresses
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    sum += u32::try_from(length).unwrap() + u32::from(protocol);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// The time of the client's last new connection to the Service whose affinity is its own.
fn last_visit(maps: &Maps) -> u64 {
    let client = Client::of_packet(V4.client().ip().into());
    let key = AffinityKey { port: 12, client };
    maps.affinity.borrow()[&key].used_ns
}

#[test]
fn s2_a_new_flow_begins_the_time_anew_and_a_packet_of_a_known_one_does_not() {
    let mut maps = Scene::maps();
    let mut datagram = to_vip(Transport::Udp);
    datagram.dst.set_ip(V4.sticky_vip());
    let begun = maps.now_ns.get();
    assert_eq!(ingress(&maps, &datagram), Verdict::Stack(Done::NewFlow));
    maps.now_ns.set(begun + SECOND);
    assert_eq!(ingress(&maps, &datagram), Verdict::Stack(Done::Forwarded));
    assert_eq!(last_visit(&maps), begun);
    datagram.src.set_port(40_001);
    assert_eq!(ingress(&maps, &datagram), Verdict::Stack(Done::NewFlow));
    assert_eq!(last_visit(&maps), begun + SECOND);
    // S5: what a client got is nothing to a Service without affinity, and is not written.
    let word = ServiceWord::with_backends(12, 1);
    maps.services.insert(12, word.into());
    maps.now_ns.set(begun + 2 * SECOND);
    datagram.src.set_port(40_002);
    assert_eq!(ingress(&maps, &datagram), Verdict::Redirect(Done::NewFlow));
    assert_eq!(last_visit(&maps), begun + SECOND);
}

#[test]
fn s2_after_the_timeout_a_client_begins_anew() {
    let maps = Scene::maps();
    let mut datagram = to_vip(Transport::Udp);
    datagram.dst.set_ip(V4.sticky_vip());
    let begun = maps.now_ns.get();
    maps.now_ns.set(begun + 86_400 * SECOND - 1);
    assert_eq!(ingress(&maps, &datagram), Verdict::Stack(Done::NewFlow));
    maps.now_ns.set(maps.now_ns.get() + 86_400 * SECOND);
    assert_eq!(ingress(&maps, &datagram), Verdict::Redirect(Done::NewFlow));
}
