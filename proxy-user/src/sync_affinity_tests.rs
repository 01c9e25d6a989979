//! Session affinity from the objects to the backends that clients get, by random histories, against a
//! plain model of BEHAVIOUR S1-S6.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    num::{NonZeroU16, NonZeroU32},
};

use proptest::prelude::*;
use proxy_common::{
    abi::{Client as Source, FrontendKey, Protocol, SockAddr},
    datapath::{
        lookup::{Visit, choose},
        socket::{Verdict, connect},
    },
};

use super::*;
use crate::{
    maps::{Capacity, fake::FakeStore},
    model::{
        Endpoint, EndpointSlice, Family, Kind, Node, NodePortScope, Service, ServicePort,
        SlicePort, TrafficPolicy,
    },
};

/// Enough for a history in which nothing is ever reclaimed.
const ROOM: Capacity = Capacity {
    frontends: 16,
    services: 16,
    backends: 4096,
    slots: 4096,
    source_ranges: 4,
    service_nets: 4,
};

const ENDPOINTS: u8 = 5;
const SECOND_NS: u64 = 1_000_000_000;
const CLUSTER_IP: [u8; 4] = [10, 96, 0, 1];
const LOAD_BALANCER: [u8; 4] = [203, 0, 113, 1];
const PORTS: [(&str, u16); 2] = [("p", 80), ("q", 81)];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Client {
    /// One of several sockets of a pod.
    Pod(u8),
    /// By its address.
    Outside(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Absent,
    Ready,
    NotReady,
    Terminating,
}

impl State {
    fn is_serving(self) -> bool {
        matches!(self, Self::Ready | Self::Terminating)
    }
}

type States = [State; ENDPOINTS as usize];

#[derive(Clone, Debug)]
enum Act {
    Connect {
        client: Client,
        to_cluster_ip: bool,
        port: usize,
    },
    Elapse(u64),
    Endpoints(States),
    Affinity(Option<u32>),
    Restart,
    Settle,
}

fn address(endpoint: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, endpoint])
}

/// Those with even numbers.
fn is_here(endpoint: u8) -> bool {
    endpoint.is_multiple_of(2)
}

fn service(external_policy: TrafficPolicy, affinity: Option<u32>) -> Event {
    Event::ServiceApplied(Service {
        name: ObjectName::new("ns", "web"),
        created_secs: 0,
        cluster_ips: vec![CLUSTER_IP.into()],
        external_ips: Vec::new(),
        load_balancer_ips: vec![LOAD_BALANCER.into()],
        source_ranges: BTreeMap::new(),
        ports: PORTS
            .map(|(name, port)| ServicePort {
                name: name.into(),
                protocol: Protocol::Tcp,
                port: NonZeroU16::new(port).unwrap(),
                node_port: None,
            })
            .into(),
        internal_policy: TrafficPolicy::Cluster,
        external_policy,
        health_check: None,
        balancing: Default::default(),
        affinity_timeout_secs: affinity.and_then(NonZeroU32::new),
    })
}

fn slice(states: &States) -> Event {
    let endpoints = (0..ENDPOINTS)
        .zip(states)
        .filter(|(_, state)| **state != State::Absent);
    Event::SliceApplied(EndpointSlice {
        name: ObjectName::new("ns", "web-1"),
        service: ObjectName::new("ns", "web"),
        family: Family::V4,
        ports: PORTS
            .map(|(name, _)| SlicePort {
                name: name.into(),
                protocol: Protocol::Tcp,
                port: NonZeroU16::new(8080).unwrap(),
            })
            .into(),
        endpoints: endpoints
            .map(|(endpoint, state)| Endpoint {
                address: address(endpoint),
                ready: *state == State::Ready,
                serving: state.is_serving(),
                terminating: *state == State::Terminating,
                node: Some(if is_here(endpoint) { "here" } else { "there" }.into()),
                pod: None,
                hostname: None,
                zone: None,
                zone_hints: Default::default(),
                node_hints: Default::default(),
            })
            .collect(),
        triggered: None,
    })
}

fn agent(store: FakeStore, service: Event, slice: Event) -> Syncer<FakeStore> {
    let planner = Planner::adopt(store.capacity(), &store.observe().unwrap());
    let node = Node {
        name: "here".into(),
        ..Node::default()
    };
    let mut syncer = Syncer::new(Model::new(node, NodePortScope::Primary), planner, store);
    for (kind, object) in [(Kind::Service, service), (Kind::EndpointSlice, slice)] {
        syncer.apply(Event::ListStarted(kind));
        syncer.apply(object);
        syncer.apply(Event::Listed(kind));
    }
    assert!(syncer.sync().first);
    syncer
}

/// What a client got last.
#[derive(Clone, Copy, Debug)]
struct Last {
    endpoint: u8,
    at_ns: u64,
    /// Meanwhile the endpoint was gone, or the time over, or there was no affinity: whether the client is
    /// remembered is nobody's promise.
    is_void: bool,
}

/// What S1-S6 say, without ids, lists of slots or maps.
struct Plain {
    external_is_local: bool,
    affinity_secs: Option<u32>,
    states: States,
    now_ns: u64,
    last: BTreeMap<(usize, Client), Last>,
}

impl Plain {
    /// The ready ones, or else those that still serve (BEHAVIOUR §1B).
    fn list(&self, client: Client, to_cluster_ip: bool) -> BTreeSet<u8> {
        let is_outside = matches!(client, Client::Outside(_));
        let local = self.external_is_local && is_outside && !to_cluster_ip;
        let of = |wanted: State| {
            let state = |endpoint: &u8| self.states[usize::from(*endpoint)];
            let all = (0..ENDPOINTS).filter(move |endpoint| state(endpoint) == wanted);
            all.filter(move |endpoint| !local || is_here(*endpoint))
                .collect::<BTreeSet<u8>>()
        };
        let ready = of(State::Ready);
        if ready.is_empty() {
            of(State::Terminating)
        } else {
            ready
        }
    }

    fn is_over(&self, last: &Last) -> bool {
        self.affinity_secs
            .is_none_or(|secs| self.now_ns - last.at_ns >= u64::from(secs) * SECOND_NS)
    }

    /// Which endpoints may be the answer; the one that was, if it must be.
    fn allowed(&self, port: usize, client: Client, to_cluster_ip: bool) -> BTreeSet<u8> {
        let list = self.list(client, to_cluster_ip);
        match self.last.get(&(port, client)) {
            Some(last) if !last.is_void && !self.is_over(last) && list.contains(&last.endpoint) => {
                [last.endpoint].into()
            }
            _ => list,
        }
    }

    fn connected(&mut self, port: usize, client: Client, endpoint: u8) {
        let last = Last {
            endpoint,
            at_ns: self.now_ns,
            is_void: self.affinity_secs.is_none(),
        };
        self.last.insert((port, client), last);
    }

    fn set_affinity(&mut self, secs: Option<u32>) {
        let over: Vec<_> = self.last.values().map(|last| self.is_over(last)).collect();
        for (last, over) in self.last.values_mut().zip(over) {
            last.is_void |= over || secs.is_none();
        }
        self.affinity_secs = secs;
    }

    fn set_states(&mut self, states: States) {
        for last in self.last.values_mut() {
            last.is_void |= !states[usize::from(last.endpoint)].is_serving();
        }
        self.states = states;
    }
}

/// The endpoint that the maps give the client; `None` if there is none.
fn dial(syncer: &Syncer<FakeStore>, client: Client, to: SocketAddr) -> Option<u8> {
    let maps = &syncer.store().maps;
    let sock_addr = SockAddr::from(to);
    let backend = match client {
        Client::Pod(pod) => {
            maps.netns.set(u64::from(pod) + 1);
            match connect(&maps.socket(7), Protocol::Tcp, &sock_addr) {
                Verdict::Rewrite(backend) => Some(backend),
                Verdict::Refuse | Verdict::Drop => None,
                Verdict::Pass => panic!("{to} is no frontend"),
            }
        }
        Client::Outside(number) => {
            let key = FrontendKey {
                addr: sock_addr.addr,
                port_be: sock_addr.port_be,
                protocol: Protocol::Tcp.number(),
                zero: 0,
            };
            let frontend = maps.frontends[&key];
            let service = match frontend.outside_service {
                0 => frontend.service,
                outside => outside,
            };
            let visit = || Visit {
                client: Source::of_packet(IpAddr::from([192, 0, 2, number]).into()),
                dialled: &key.addr,
                now_ns: maps.now_ns.get(),
            };
            choose(maps, service, 0, visit)
                .ok()
                .map(|choice| choice.address)
        }
    };
    backend.map(|backend| match backend.socket_addr().ip() {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(ip) => panic!("{ip} is no backend"),
    })
}

fn settle(syncer: &mut Syncer<FakeStore>) {
    while let Some(epoch) = syncer.begin_grace() {
        syncer.passed(epoch);
    }
}

fn live(external_is_local: bool, history: Vec<Act>) {
    let external = if external_is_local {
        TrafficPolicy::Local
    } else {
        TrafficPolicy::Cluster
    };
    let mut plain = Plain {
        external_is_local,
        affinity_secs: Some(3),
        states: [State::Ready; ENDPOINTS as usize],
        now_ns: 1_000 * SECOND_NS,
        last: BTreeMap::new(),
    };
    let object = |plain: &Plain| service(external, plain.affinity_secs);
    let mut syncer = agent(FakeStore::new(ROOM), object(&plain), slice(&plain.states));
    for (step, act) in history.into_iter().enumerate() {
        match act {
            Act::Connect {
                client,
                to_cluster_ip,
                port,
            } => {
                let ip = if to_cluster_ip {
                    CLUSTER_IP
                } else {
                    LOAD_BALANCER
                };
                syncer.store().maps.now_ns.set(plain.now_ns);
                let seen = dial(&syncer, client, SocketAddr::new(ip.into(), PORTS[port].1));
                let allowed = plain.allowed(port, client, to_cluster_ip);
                match seen {
                    Some(endpoint) => {
                        assert!(
                            allowed.contains(&endpoint),
                            "step {step}: {client:?} got {endpoint}, not one of {allowed:?}"
                        );
                        plain.connected(port, client, endpoint);
                    }
                    None => assert!(allowed.is_empty(), "step {step}: {client:?} got none"),
                }
            }
            Act::Elapse(ns) => plain.now_ns += ns,
            Act::Endpoints(states) => {
                plain.set_states(states);
                syncer.apply(slice(&states));
                assert!(syncer.sync().refused.is_empty());
            }
            Act::Affinity(secs) => {
                plain.set_affinity(secs);
                syncer.apply(object(&plain));
                assert!(syncer.sync().refused.is_empty());
            }
            Act::Restart => {
                let Syncer { store, .. } = syncer;
                syncer = agent(store, object(&plain), slice(&plain.states));
            }
            Act::Settle => settle(&mut syncer),
        }
    }
}

fn history() -> impl Strategy<Value = Vec<Act>> {
    let client = prop_oneof![
        (0u8..2).prop_map(Client::Pod),
        (0u8..2).prop_map(Client::Outside)
    ];
    let state = prop_oneof![
        4 => Just(State::Ready),
        1 => Just(State::Absent),
        1 => Just(State::NotReady),
        1 => Just(State::Terminating),
    ];
    let states = proptest::array::uniform5(state);
    let act = prop_oneof![
        12 => (client, any::<bool>(), 0..PORTS.len()).prop_map(|(client, to_cluster_ip, port)| {
            Act::Connect { client, to_cluster_ip, port }
        }),
        3 => (0..4 * SECOND_NS).prop_map(Act::Elapse),
        1 => Just(Act::Elapse(3 * SECOND_NS)),
        2 => states.prop_map(Act::Endpoints),
        1 => prop::option::weighted(0.7, 1u32..6).prop_map(Act::Affinity),
        1 => Just(Act::Restart),
        1 => Just(Act::Settle),
    ];
    prop::collection::vec(act, 1..60)
}

proptest! {
    #[test]
    fn every_client_gets_what_s1_to_s6_allow_whatever_happens(
        external_is_local in any::<bool>(),
        history in history(),
    ) {
        live(external_is_local, history);
    }
}

/// Endpoints that `visits` new clients get; each comes twice, and gets the same.
fn spread(syncer: &Syncer<FakeStore>, clients: std::ops::Range<u8>) -> BTreeSet<u8> {
    let vip = SocketAddr::new(CLUSTER_IP.into(), 80);
    clients
        .map(|client| {
            let first = dial(syncer, Client::Pod(client), vip).unwrap();
            assert_eq!(dial(syncer, Client::Pod(client), vip), Some(first));
            first
        })
        .collect()
}

#[test]
fn s3_the_clients_of_an_endpoint_that_goes_are_spread_over_those_that_stay() {
    let mut states = [State::Ready; ENDPOINTS as usize];
    let object = || service(TrafficPolicy::Cluster, Some(10_800));
    let mut syncer = agent(FakeStore::new(ROOM), object(), slice(&states));
    assert_eq!(spread(&syncer, 0..200).len(), usize::from(ENDPOINTS));
    let vip = SocketAddr::new(CLUSTER_IP.into(), 80);
    let victims: Vec<u8> = (0..200)
        .filter(|client| dial(&syncer, Client::Pod(*client), vip) == Some(1))
        .collect();
    assert!(victims.len() > 20);
    // It goes, and after the grace period its number is given to another.
    states[1] = State::Absent;
    syncer.apply(slice(&states));
    syncer.sync();
    settle(&mut syncer);
    let spread: BTreeSet<u8> = victims
        .iter()
        .map(|client| dial(&syncer, Client::Pod(*client), vip).unwrap())
        .collect();
    assert_eq!(spread, [0, 2, 3, 4].into());
}

#[test]
fn s3_an_endpoint_that_only_finishes_its_connections_gets_no_new_ones() {
    for state in [State::Terminating, State::NotReady, State::Absent] {
        let mut states = [State::Ready; ENDPOINTS as usize];
        let object = service(TrafficPolicy::Cluster, Some(10_800));
        let mut syncer = agent(FakeStore::new(ROOM), object, slice(&states));
        spread(&syncer, 0..100);
        states[1] = state;
        syncer.apply(slice(&states));
        // Not even before the grace period has passed.
        syncer.sync();
        assert_eq!(spread(&syncer, 0..100), [0, 2, 3, 4].into());
    }
}

#[test]
fn s4_a_client_from_outside_keeps_its_backend_from_one_list_to_the_other() {
    let states = [State::Ready; ENDPOINTS as usize];
    let object = service(TrafficPolicy::Local, Some(10_800));
    let syncer = agent(FakeStore::new(ROOM), object, slice(&states));
    let [cluster_ip, balanced] =
        [CLUSTER_IP, LOAD_BALANCER].map(|ip| SocketAddr::new(ip.into(), 80));
    for number in 0..50 {
        // What is on this node is on both lists.
        let first = dial(&syncer, Client::Outside(number), balanced).unwrap();
        assert!(is_here(first));
        assert_eq!(
            dial(&syncer, Client::Outside(number), cluster_ip),
            Some(first)
        );
        assert_eq!(
            dial(&syncer, Client::Outside(number), balanced),
            Some(first)
        );
    }
    for number in 50..100 {
        // What is elsewhere is not on that of this node.
        let first = dial(&syncer, Client::Outside(number), cluster_ip).unwrap();
        let second = dial(&syncer, Client::Outside(number), balanced).unwrap();
        assert!(is_here(second));
        assert!(first == second || !is_here(first));
        assert_eq!(
            dial(&syncer, Client::Outside(number), cluster_ip),
            Some(second)
        );
    }
}
