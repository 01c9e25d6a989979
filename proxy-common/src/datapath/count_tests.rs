//! Whatever sockets do, a backend's count is that of the entries that name it.

use std::{collections::HashMap, net::SocketAddr, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::{
    abi::{FrontendKind, Scheduler, ServiceWord},
    datapath::fake::{Maps, backend},
};

const SERVICE: u32 = 1;

fn at(text: &str) -> SockAddr {
    text.parse::<SocketAddr>().unwrap().into()
}

fn vip(number: u8) -> SockAddr {
    at(&std::format!("10.96.0.{number}:80"))
}

fn world(backends: u8) -> Maps {
    let mut maps = Maps::default();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for number in 1..=2 {
            let frontend = Frontend {
                service: SERVICE,
                outside_service: 0,
                kind: FrontendKind::ClusterIp as u8,
                flags: 0,
                zero: [0; 2],
            };
            let key = frontend_key(protocol, &vip(number));
            maps.frontends.insert(key, frontend);
        }
    }
    for number in 1..=backends {
        let at = at(&std::format!("10.0.0.{number}:8080"));
        maps.backends.insert(number.into(), backend(at, SERVICE));
        maps.slots.insert(u32::from(number) - 1, number.into());
    }
    let word = ServiceWord::with_backends(0, backends.into());
    let word = word.scheduled(Scheduler::LeastConnections, true, false);
    maps.services.insert(SERVICE, word.into());
    maps
}

#[derive(Clone, Debug)]
enum Act {
    Dial(u64, bool, u8),
    /// To what is no Service's.
    DialElsewhere(u64, bool),
    Park(u64),
    Close(u64),
    /// The backend's id is another's from now on.
    Replace(u32),
}

fn act() -> impl Strategy<Value = Act> {
    let socket = 1..6_u64;
    prop_oneof![
        4 => (socket.clone(), any::<bool>(), 1..=2_u8)
            .prop_map(|(socket, udp, vip)| Act::Dial(socket, udp, vip)),
        1 => (socket.clone(), any::<bool>()).prop_map(|(socket, udp)| Act::DialElsewhere(socket, udp)),
        1 => socket.clone().prop_map(Act::Park),
        3 => socket.prop_map(Act::Close),
        1 => (1..=3_u32).prop_map(Act::Replace),
    ]
}

fn protocol(udp: bool) -> Protocol {
    if udp { Protocol::Udp } else { Protocol::Tcp }
}

fn play(maps: &mut Maps, act: &Act) {
    match *act {
        Act::Dial(cookie, udp, number) => {
            let _ = connect(&maps.socket(cookie), protocol(udp), &vip(number));
        }
        Act::DialElsewhere(cookie, udp) => {
            let to = at("192.0.2.1:9");
            let _ = connect(&maps.socket(cookie), protocol(udp), &to);
        }
        Act::Park(cookie) => {
            let park = SockAddr::parked(&vip(1).addr);
            let _ = connect(&maps.socket(cookie), Protocol::Udp, &park);
        }
        Act::Close(cookie) => {
            let flow = maps.socket(cookie).flow();
            if let Some(flow) = flow
                && maps.socket(cookie).forget_flow()
            {
                closed(&*maps, &flow, Stage::Connected);
            }
        }
        Act::Replace(id) => {
            let backend = maps.backends.get_mut(&id).unwrap();
            backend.addr = at(&std::format!("10.0.9.{id}:1")).addr;
        }
    }
}

fn counted(maps: &Maps) -> HashMap<u32, i64> {
    let stats = maps.backend_stats.borrow();
    let active = stats.iter().map(|(id, stats)| (*id, stats.active));
    active.filter(|(_, active)| *active != 0).collect()
}

fn entries(maps: &Maps) -> HashMap<u32, i64> {
    let mut entries = HashMap::new();
    for flow in maps.flows.borrow().values() {
        if flow.backend_id != 0 {
            *entries.entry(flow.backend_id).or_default() += 1;
        }
    }
    entries
}

proptest! {
    #[test]
    fn a_backend_has_as_many_connections_as_entries_name_it(acts in prop::collection::vec(act(), 0..60)) {
        let mut maps = world(3);
        for act in &acts {
            play(&mut maps, act);
            prop_assert_eq!(counted(&maps), entries(&maps), "after {:?}", act);
        }
        for cookie in 1..6 {
            play(&mut maps, &Act::Close(cookie));
        }
        prop_assert_eq!(counted(&maps), HashMap::new());
    }
}

/// What was told of attempts that failed: backend and how.
fn failures(maps: &Maps) -> Vec<(u32, u32)> {
    let failures = maps.failures.borrow();
    let told = failures
        .iter()
        .map(|failure| (failure.backend_id, failure.outcome));
    told.collect()
}

fn dialled(maps: &Maps) -> SocketFlow {
    let _ = connect(&maps.socket(1), Protocol::Tcp, &vip(1));
    let mut flow = maps.socket(1).flow().unwrap();
    flow.attempt = watched(maps, &flow).unwrap_or_default();
    flow
}

#[test]
fn an_attempt_fails_once_whatever_the_kernel_says_later() {
    let maps = world(1);
    let mut flow = dialled(&maps);
    flow.attempt = attempted(&maps, &flow, Attempt::Unanswered).unwrap();
    assert_eq!(attempted(&maps, &flow, Attempt::Unanswered), None);
    assert_eq!(attempted(&maps, &flow, Attempt::Refused), None);
    maps.now_ns.set(3_000_000_000);
    closed(&maps, &flow, Stage::Dialling);
    assert_eq!(failures(&maps), [(1, Counter::AttemptUnanswered.index())]);
    assert_eq!(maps.backend_stats.borrow()[&1].failures, 1);
}

#[test]
fn a_late_answer_ends_a_row_of_failures_too() {
    let maps = world(1);
    let mut flow = dialled(&maps);
    flow.attempt = attempted(&maps, &flow, Attempt::Unanswered).unwrap();
    assert_eq!(maps.backend_stats.borrow()[&1].failures, 1);
    flow.attempt = attempted(&maps, &flow, Attempt::Answered).unwrap();
    assert_eq!(maps.backend_stats.borrow()[&1].failures, 0);
    // Nor is it a failure that it ends.
    assert_eq!(attempted(&maps, &flow, Attempt::Refused), None);
    assert_eq!(attempted(&maps, &flow, Attempt::Answered), None);
}

#[test]
fn an_answer_ends_a_row_of_failures() {
    let maps = world(1);
    for _ in 0..3 {
        let flow = dialled(&maps);
        attempted(&maps, &flow, Attempt::Refused).unwrap();
    }
    assert_eq!(maps.backend_stats.borrow()[&1].failures, 3);
    let flow = dialled(&maps);
    attempted(&maps, &flow, Attempt::Answered).unwrap();
    assert_eq!(maps.backend_stats.borrow()[&1].failures, 0);
    assert_eq!(maps.counter(Counter::AttemptRefused), 3);
}

#[test]
fn who_changes_his_mind_at_once_has_seen_no_failure() {
    let maps = world(1);
    let flow = dialled(&maps);
    maps.now_ns.set(u64::from(PATIENCE_MS) * 1_000_000 - 1);
    closed(&maps, &flow, Stage::Dialling);
    // One that was answered, or whose answer nobody saw.
    maps.now_ns.set(u64::from(PATIENCE_MS) * 10_000_000);
    closed(&maps, &flow, Stage::Connected);
    assert_eq!(failures(&maps), []);
    closed(&maps, &flow, Stage::Dialling);
    assert_eq!(failures(&maps), [(1, Counter::AttemptUnanswered.index())]);
}

#[test]
fn a_failure_is_not_that_of_another_endpoint_with_the_id_nor_of_a_service_without_failover() {
    let mut maps = world(1);
    let flow = dialled(&maps);
    play(&mut maps, &Act::Replace(1));
    attempted(&maps, &flow, Attempt::Refused).unwrap();
    assert_eq!(failures(&maps), []);

    let mut maps = world(1);
    let flow = dialled(&maps);
    assert_eq!(flow.attempt, WATCHED);
    let word = ServiceWord::with_backends(0, 1);
    maps.services.insert(SERVICE, word.into());
    assert_eq!(watched(&maps, &flow), None);
    attempted(&maps, &flow, Attempt::Refused).unwrap();
    assert_eq!(failures(&maps), []);
}
