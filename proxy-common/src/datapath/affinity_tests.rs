//! BEHAVIOUR S1-S6 for sockets. The agent's tests play whole histories; packets have rows of their own.

use super::*;

const OTHER_VIP: &str = "203.0.113.1:30053";
const SECOND_NS: u64 = 1_000_000_000;
const TIMEOUT_SECS: u32 = 100;
const PORT: u64 = 4711;
/// More than luck gives to one of two.
const MANY: usize = 64;

/// A Service with affinity and two backends, at two addresses.
fn sticky() -> Maps {
    let mut maps = world(&[A, B], Empty::Refuse);
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let frontend = maps.frontends[&frontend_key(protocol, &at(VIP))];
        maps.frontends
            .insert(frontend_key(protocol, &at(OTHER_VIP)), frontend);
    }
    maps.now_ns.set(1000 * SECOND_NS);
    set_affinity(&mut maps, SERVICE, TIMEOUT_SECS);
    maps
}

fn set_affinity(maps: &mut Maps, service: u32, secs: u32) {
    maps.services.get_mut(&service).unwrap().affinity = if secs == 0 {
        ServiceAffinity::NONE
    } else {
        ServiceAffinity::new(secs, PORT)
    };
}

fn elapse(maps: &Maps, ns: u64) {
    maps.now_ns.set(maps.now_ns.get() + ns);
}

fn dial_tcp(maps: &Maps, to: &str) -> Verdict {
    dial(maps, Protocol::Tcp, to)
}

fn the_other(than: Verdict) -> &'static str {
    if than == rewrite(A) { B } else { A }
}

/// Whether new connections go to both backends.
fn is_spread(maps: &Maps) -> bool {
    let verdicts: Vec<_> = (0..MANY).map(|_| dial_tcp(maps, VIP)).collect();
    [A, B].iter().all(|at| verdicts.contains(&rewrite(at)))
}

#[test]
fn s1_a_client_keeps_its_backend_at_every_address_of_the_port() {
    let maps = sticky();
    let first = dial_tcp(&maps, VIP);
    for to in [VIP, OTHER_VIP, "[::ffff:10.96.0.1]:53"].repeat(MANY) {
        assert_eq!(dial_tcp(&maps, to), first);
    }
    assert_eq!(maps.affinity.borrow().len(), 1);
}

#[test]
fn s1_s6_every_network_namespace_is_a_client_of_its_own() {
    let maps = sticky();
    let mut seen = Vec::new();
    for netns in 1..MANY as u64 {
        maps.netns.set(netns);
        let first = dial_tcp(&maps, VIP);
        // Whatever the socket.
        let again = connect(&maps.socket(COOKIE + netns), Protocol::Tcp, &at(OTHER_VIP));
        assert_eq!(again, first);
        seen.push(first);
    }
    assert!(seen.contains(&rewrite(A)) && seen.contains(&rewrite(B)));
    assert_eq!(maps.affinity.borrow().len(), MANY - 1);
}

#[test]
fn s2_each_new_connection_begins_the_time_anew() {
    let maps = sticky();
    let first = dial_tcp(&maps, VIP);
    for _ in 0..MANY {
        elapse(&maps, u64::from(TIMEOUT_SECS) * SECOND_NS - 1);
        assert_eq!(dial_tcp(&maps, OTHER_VIP), first);
    }
}

#[test]
fn s2_after_the_timeout_a_client_is_led_anew() {
    let maps = sticky();
    let mut seen = Vec::new();
    for _ in 0..MANY {
        seen.push(dial_tcp(&maps, VIP));
        elapse(&maps, u64::from(TIMEOUT_SECS) * SECOND_NS);
    }
    assert!(seen.contains(&rewrite(A)) && seen.contains(&rewrite(B)));
}

#[test]
fn s2_the_datagrams_of_a_known_flow_do_not_begin_the_time_anew() {
    let maps = sticky();
    let first = send_to(&maps, VIP);
    let used_ns = || {
        let affinity = maps.affinity.borrow();
        affinity.values().next().unwrap().used_ns
    };
    let begun = used_ns();
    for _ in 0..5 {
        elapse(&maps, 50 * SECOND_NS);
        assert_eq!(send_to(&maps, VIP), first);
        assert_eq!(used_ns(), begun);
    }
    // The time has passed, and the flow goes on; other sockets are led anew.
    let others: Vec<_> = (0..MANY as u64)
        .map(|cookie| {
            elapse(&maps, u64::from(TIMEOUT_SECS) * SECOND_NS);
            send(&maps.socket(1000 + cookie), &at(VIP))
        })
        .collect();
    assert!(others.contains(&rewrite(A)) && others.contains(&rewrite(B)));
}

#[test]
fn s2_a_udp_flow_that_was_silent_too_long_is_a_new_one_of_the_same_client() {
    let mut maps = sticky();
    set_affinity(&mut maps, SERVICE, 86_400);
    let first = send_to(&maps, VIP);
    for _ in 0..MANY {
        elapse(&maps, UDP_IDLE_NS);
        assert_eq!(send_to(&maps, VIP), first);
    }
    assert_eq!(maps.counter(Counter::SendNewFlow), 1 + MANY as u64);
}

#[test]
fn s3_when_its_backend_goes_a_client_gets_another_and_keeps_that() {
    // Gone; serving on, but not chosen; another Service's, or another endpoint's, by now.
    let ends: [fn(&mut Backend); 4] = [
        |backend| backend.service = 0,
        |backend| backend.flags &= !Backend::CHOSEN,
        |backend| backend.service = 2,
        |backend| backend.addr = at(ELSEWHERE).addr,
    ];
    for end in ends {
        let mut maps = sticky();
        let first = dial_tcp(&maps, VIP);
        let other = the_other(first);
        let (gone, stays) = if other == B { (10, 11) } else { (11, 10) };
        let before = maps.backends[&gone];
        end(maps.backends.get_mut(&gone).unwrap());
        maps.slots.insert(100, stays);
        maps.services.get_mut(&SERVICE).unwrap().word = ServiceWord::with_backends(100, 1);
        assert_eq!(dial_tcp(&maps, VIP), rewrite(other));
        // It is back.
        maps.backends.insert(gone, before);
        maps.slots.extend([(100, 10), (101, 11)]);
        maps.services.get_mut(&SERVICE).unwrap().word = ServiceWord::with_backends(100, 2);
        for _ in 0..MANY {
            assert_eq!(dial_tcp(&maps, VIP), rewrite(other));
        }
    }
}

#[test]
fn s4_a_client_keeps_its_backend_in_the_ports_other_list_if_it_is_there() {
    let mut maps = sticky();
    // The list of this node has only A.
    let twin = Backend {
        service: 2,
        twin: 10,
        ..maps.backends[&10]
    };
    maps.backends.insert(20, twin);
    maps.backends.get_mut(&10).unwrap().twin = 20;
    maps.slots.insert(200, 20);
    maps.services
        .insert(2, ServiceWord::with_backends(200, 1).into());
    set_affinity(&mut maps, 2, TIMEOUT_SECS);
    let local = frontend_key(Protocol::Tcp, &at(OTHER_VIP));
    maps.frontends.get_mut(&local).unwrap().service = 2;
    for netns in 0..MANY as u64 {
        maps.netns.set(netns);
        let first = dial_tcp(&maps, VIP);
        assert_eq!(dial_tcp(&maps, OTHER_VIP), rewrite(A));
        // Who had to change keeps what it got.
        assert_eq!(dial_tcp(&maps, VIP), rewrite(A), "after {first:?}");
    }
}

#[test]
fn s5_affinity_is_switched_off_on_and_to_another_timeout_for_new_connections() {
    let mut maps = sticky();
    let first = dial_tcp(&maps, VIP);
    set_affinity(&mut maps, SERVICE, 0);
    assert!(is_spread(&maps));
    set_affinity(&mut maps, SERVICE, TIMEOUT_SECS);
    assert_eq!(dial_tcp(&maps, VIP), first);
    assert!(!is_spread(&maps));
    // Away for 50 seconds: too long for 50, not for 51.
    elapse(&maps, 50 * SECOND_NS);
    set_affinity(&mut maps, SERVICE, 51);
    assert_eq!(dial_tcp(&maps, VIP), first);
    set_affinity(&mut maps, SERVICE, 50);
    let mut seen = Vec::new();
    for _ in 0..MANY {
        elapse(&maps, 50 * SECOND_NS);
        seen.push(dial_tcp(&maps, VIP));
    }
    assert!(seen.contains(&rewrite(the_other(first))));
}

#[test]
fn a_service_without_affinity_leaves_no_trace_of_its_clients() {
    let maps = world(&[A, B], Empty::Refuse);
    assert!(is_spread(&maps));
    assert!(maps.affinity.borrow().is_empty());
}

#[test]
fn who_can_not_be_remembered_is_served_all_the_same_and_counted() {
    let mut maps = sticky();
    maps.affinity_refuses = true;
    assert!(is_spread(&maps));
    let counted = maps.counter(Counter::AffinityNotRemembered);
    assert_eq!(counted, MANY as u64);
}

#[test]
fn without_backends_affinity_helps_nobody() {
    let mut maps = sticky();
    assert!(matches!(dial_tcp(&maps, VIP), Verdict::Rewrite(_)));
    let service = maps.services.get_mut(&SERVICE).unwrap();
    service.word = ServiceWord::without_backends(Empty::Refuse);
    assert_eq!(dial_tcp(&maps, VIP), Verdict::Refuse);
}
