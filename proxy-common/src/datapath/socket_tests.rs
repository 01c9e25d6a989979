use std::{net::SocketAddr, string::ToString};

use super::*;
use crate::{
    abi::{Backend, Empty, Frontend, FrontendKind, ServiceAffinity, ServiceWord},
    datapath::fake::{Maps, backend},
};

const VIP: &str = "10.96.0.1:53";
const A: &str = "10.0.0.1:5353";
const B: &str = "10.0.0.2:5353";
const PARK: &str = "127.0.0.1:1";
const ELSEWHERE: &str = "192.0.2.1:9";
const SERVICE: u32 = 1;
const COOKIE: u64 = 77;

fn at(text: &str) -> SockAddr {
    text.parse::<SocketAddr>().unwrap().into()
}

fn rewrite(text: &str) -> Verdict {
    Verdict::Rewrite(at(text))
}

fn shown(address: Option<SockAddr>) -> Option<String> {
    address.map(|address| address.to_string())
}

/// One Service with a frontend for TCP and UDP; ids of the backends count from 10.
fn world(backends: &[&str], empty: Empty) -> Maps {
    let mut maps = Maps::default();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let frontend = Frontend {
            service: SERVICE,
            outside_service: 0,
            kind: FrontendKind::ClusterIp as u8,
            flags: 0,
            zero: [0; 2],
        };
        maps.frontends
            .insert(frontend_key(protocol, &at(VIP)), frontend);
    }
    switch(&mut maps, backends, empty);
    maps
}

fn switch(maps: &mut Maps, backends: &[&str], empty: Empty) {
    maps.backends.clear();
    for (index, text) in (0..).zip(backends) {
        // An address keeps its id, as the planner sees to.
        let id = if *text == B { 11 } else { 10 };
        maps.backends.insert(id, backend(at(text), SERVICE));
        maps.slots.insert(100 + index, id);
    }
    let count = u32::try_from(backends.len()).unwrap();
    let word = if backends.is_empty() {
        ServiceWord::without_backends(empty)
    } else {
        ServiceWord::with_backends(100, count)
    };
    maps.services.insert(SERVICE, word.into());
}

fn dial(maps: &Maps, protocol: Protocol, to: &str) -> Verdict {
    connect(&maps.socket(COOKIE), protocol, &at(to))
}

fn send_to(maps: &Maps, to: &str) -> Verdict {
    send(&maps.socket(COOKIE), &at(to))
}

mod connecting {
    use super::*;

    #[test]
    fn a_frontend_leads_to_a_backend_and_is_shown_as_the_peer() {
        let maps = world(&[A], Empty::Refuse);
        assert_eq!(dial(&maps, Protocol::Tcp, VIP), rewrite(A));
        let socket = maps.socket(COOKIE);
        assert_eq!(shown(peer_name(&socket, &at(A))).as_deref(), Some(VIP));
        assert_eq!(maps.counter(Counter::ConnectTranslated), 1);
        assert_eq!(maps.counter(Counter::PeernameReversed), 1);
    }

    #[test]
    fn every_backend_gets_its_share() {
        let maps = world(&[A, B], Empty::Refuse);
        let to_a = (0..1000)
            .filter(|_| dial(&maps, Protocol::Tcp, VIP) == rewrite(A))
            .count();
        assert!((400..600).contains(&to_a), "{to_a} of 1000");
    }

    #[test]
    fn no_endpoint_anywhere_is_refused_and_not_remembered() {
        let maps = world(&[], Empty::Refuse);
        assert_eq!(dial(&maps, Protocol::Tcp, VIP), Verdict::Refuse);
        assert_eq!(maps.counter(Counter::ConnectRefused), 1);
        assert_eq!(maps.socket(COOKIE).flow(), None);
    }

    #[test]
    fn endpoints_on_other_nodes_only_are_no_reason_to_refuse() {
        let maps = world(&[], Empty::Drop);
        assert_eq!(dial(&maps, Protocol::Tcp, VIP), Verdict::Drop);
        assert_eq!(maps.counter(Counter::ConnectNoLocalEndpoint), 1);
    }

    #[test]
    fn another_address_port_or_protocol_is_not_ours() {
        let maps = world(&[A], Empty::Refuse);
        for (protocol, to) in [
            (Protocol::Tcp, ELSEWHERE),
            (Protocol::Tcp, "10.96.0.1:54"),
            (Protocol::Sctp, VIP),
        ] {
            assert_eq!(dial(&maps, protocol, to), Verdict::Pass);
        }
        assert!(maps.counters.borrow().is_empty());
    }

    #[test]
    fn a_v6_frontend_is_another_than_the_v4_one() {
        let maps = world(&[A], Empty::Refuse);
        assert_eq!(
            dial(&maps, Protocol::Tcp, "[::ffff:10.96.0.1]:53"),
            rewrite(A)
        );
        assert_eq!(dial(&maps, Protocol::Tcp, "[fd00::1]:53"), Verdict::Pass);
    }

    #[test]
    fn contradicting_maps_refuse_and_are_counted() {
        let damages: [fn(&mut Maps); 4] = [
            |maps| maps.services.clear(),
            |maps| *maps.services.get_mut(&SERVICE).unwrap() = ServiceWord::default().into(),
            |maps| maps.slots.clear(),
            |maps| maps.backends.get_mut(&10).unwrap().service = 2,
        ];
        for damage in damages {
            let mut maps = world(&[A], Empty::Refuse);
            damage(&mut maps);
            assert_eq!(dial(&maps, Protocol::Tcp, VIP), Verdict::Refuse);
            assert_eq!(maps.counter(Counter::TableDamaged), 1);
        }
    }

    #[test]
    fn a_udp_socket_that_dials_elsewhere_is_forgotten() {
        let maps = world(&[A], Empty::Refuse);
        // Its own backend's address is elsewhere too: from now on it dialled a pod.
        for elsewhere in [ELSEWHERE, A] {
            assert_eq!(dial(&maps, Protocol::Udp, VIP), rewrite(A));
            assert_eq!(dial(&maps, Protocol::Udp, elsewhere), Verdict::Pass);
            assert_eq!(maps.socket(COOKIE).flow(), None);
        }
    }

    #[test]
    fn a_udp_socket_keeps_its_peer_when_another_frontend_refuses() {
        let mut maps = world(&[A], Empty::Refuse);
        assert_eq!(dial(&maps, Protocol::Udp, VIP), rewrite(A));
        let flow = maps.socket(COOKIE).flow();
        switch(&mut maps, &[], Empty::Refuse);
        assert_eq!(dial(&maps, Protocol::Udp, VIP), Verdict::Refuse);
        assert_eq!(maps.socket(COOKIE).flow(), flow);
    }

    #[test]
    fn a_parked_socket_is_remembered_without_a_backend_and_dialled_again_later() {
        let mut maps = world(&[A], Empty::Refuse);
        assert_eq!(dial(&maps, Protocol::Udp, VIP), rewrite(A));
        let owner = maps.socket(COOKIE).flow().unwrap().tgid();
        assert_eq!(dial(&maps, Protocol::Udp, PARK), Verdict::Pass);
        let flow = maps.socket(COOKIE).flow().unwrap();
        assert_eq!((flow.frontend, flow.backend_id), (at(VIP), 0));
        assert_eq!(flow.backend, at(PARK));
        assert_eq!(maps.counter(Counter::SocketParked), 1);
        switch(&mut maps, &[B], Empty::Refuse);
        assert_eq!(dial(&maps, Protocol::Udp, VIP), rewrite(B));
        let flow = maps.socket(COOKIE).flow().unwrap();
        assert_eq!((flow.backend_id, flow.tgid()), (11, owner));
    }

    #[test]
    fn a_kernel_that_cannot_refuse_parks_udp_sockets_and_knows_them_later() {
        let mut maps = world(&[], Empty::Refuse);
        maps.cannot_refuse = true;
        assert_eq!(dial(&maps, Protocol::Tcp, VIP), Verdict::Refuse);
        assert_eq!(dial(&maps, Protocol::Udp, VIP), rewrite(PARK));
        let socket = maps.socket(COOKIE);
        assert_eq!(socket.flow().unwrap().backend_id, 0);
        assert_eq!(shown(peer_name(&socket, &at(PARK))).as_deref(), Some(VIP));
        assert_eq!(maps.counter(Counter::ConnectRefused), 2);
        switch(&mut maps, &[A], Empty::Refuse);
        assert_eq!(dial(&maps, Protocol::Udp, VIP), rewrite(A));
        assert_eq!(maps.socket(COOKIE).flow().unwrap().backend_id, 10);
    }

    #[test]
    fn only_udp_sockets_say_who_owns_them() {
        let maps = world(&[A], Empty::Refuse);
        assert_eq!(dial(&maps, Protocol::Tcp, VIP), rewrite(A));
        assert_eq!(maps.socket(COOKIE).flow().unwrap().tgid(), 0);
        assert_eq!(
            connect(&maps.socket(1), Protocol::Udp, &at(VIP)),
            rewrite(A)
        );
        assert_eq!(maps.socket(1).flow().unwrap().tgid(), maps.socket(1).tgid());
    }

    #[test]
    fn a_stale_entry_is_not_shown() {
        let maps = world(&[A], Empty::Refuse);
        let socket = maps.socket(COOKIE);
        assert_eq!(peer_name(&socket, &at(A)), None);
        assert_eq!(dial(&maps, Protocol::Tcp, VIP), rewrite(A));
        assert_eq!(peer_name(&socket, &at(ELSEWHERE)), None);
        assert_eq!(maps.counter(Counter::PeernameReversed), 0);
    }
}

mod sending {
    use super::*;

    fn later(maps: &Maps, ns: u64) {
        maps.now_ns.set(maps.now_ns.get() + ns);
    }

    #[test]
    fn the_first_datagram_makes_a_flow_and_its_answer_comes_from_the_frontend() {
        let maps = world(&[A], Empty::Refuse);
        assert_eq!(send_to(&maps, VIP), rewrite(A));
        assert_eq!(maps.counter(Counter::SendNewFlow), 1);
        let socket = maps.socket(COOKIE);
        assert_eq!(shown(receive(&socket, &at(A))).as_deref(), Some(VIP));
        assert_eq!(receive(&socket, &at(ELSEWHERE)), None);
        assert_eq!(receive(&maps.socket(1), &at(A)), None);
        assert_eq!(maps.counter(Counter::ReceiveReversed), 1);
    }

    #[test]
    fn a_known_flow_keeps_its_backend_whatever_the_service_chooses_now() {
        let mut maps = world(&[A], Empty::Refuse);
        assert_eq!(send_to(&maps, VIP), rewrite(A));
        switch(&mut maps, &[A, B], Empty::Refuse);
        maps.slots.insert(100, 11);
        for _ in 0..50 {
            assert_eq!(send_to(&maps, VIP), rewrite(A));
        }
        assert_eq!(maps.counter(Counter::SendKnownFlow), 50);
    }

    #[test]
    fn a_flow_in_use_never_grows_old() {
        let mut maps = world(&[A], Empty::Refuse);
        assert_eq!(send_to(&maps, VIP), rewrite(A));
        switch(&mut maps, &[A, B], Empty::Refuse);
        maps.slots.insert(100, 11);
        for _ in 0..10 {
            later(&maps, UDP_IDLE_NS - 1);
            assert_eq!(send_to(&maps, VIP), rewrite(A));
        }
    }

    #[test]
    fn a_flow_is_stamped_at_most_once_a_second() {
        let maps = world(&[A], Empty::Refuse);
        let stamp = || maps.udp_flows.borrow()[&flow_key(COOKIE, &at(VIP))].used_ns;
        for (pause, expected) in [(0, 0), (UDP_TOUCH_NS, 0), (1, UDP_TOUCH_NS + 1)] {
            later(&maps, pause);
            assert_eq!(send_to(&maps, VIP), rewrite(A));
            assert_eq!(stamp(), expected);
        }
    }

    #[test]
    fn an_idle_flow_is_a_new_flow() {
        let mut maps = world(&[A], Empty::Refuse);
        assert_eq!(send_to(&maps, VIP), rewrite(A));
        switch(&mut maps, &[A, B], Empty::Refuse);
        maps.slots.insert(100, 11);
        later(&maps, UDP_IDLE_NS);
        assert_eq!(send_to(&maps, VIP), rewrite(B));
        assert_eq!(maps.counter(Counter::SendNewFlow), 2);
    }

    #[test]
    fn a_flow_whose_backend_is_gone_moves() {
        let mut maps = world(&[A], Empty::Refuse);
        assert_eq!(send_to(&maps, VIP), rewrite(A));
        switch(&mut maps, &[B], Empty::Refuse);
        assert_eq!(send_to(&maps, VIP), rewrite(B));
        assert_eq!(maps.counter(Counter::SendMovedFlow), 1);
        let socket = maps.socket(COOKIE);
        assert_eq!(shown(receive(&socket, &at(B))).as_deref(), Some(VIP));
    }

    #[test]
    fn a_backend_id_of_another_service_is_no_backend() {
        let mut maps = world(&[A], Empty::Refuse);
        assert_eq!(send_to(&maps, VIP), rewrite(A));
        switch(&mut maps, &[B], Empty::Refuse);
        let reused = Backend {
            service: 2,
            ..maps.backends[&11]
        };
        maps.backends.insert(10, reused);
        assert_eq!(send_to(&maps, VIP), rewrite(B));
        assert_eq!(maps.counter(Counter::SendMovedFlow), 1);
    }

    #[test]
    fn without_endpoints_a_datagram_is_refused_or_dropped() {
        let maps = world(&[], Empty::Refuse);
        assert_eq!(send_to(&maps, VIP), Verdict::Refuse);
        assert_eq!(maps.counter(Counter::SendRefused), 1);
        let maps = world(&[], Empty::Drop);
        assert_eq!(send_to(&maps, VIP), Verdict::Drop);
        assert_eq!(maps.counter(Counter::SendNoLocalEndpoint), 1);
        assert_eq!(send_to(&maps, ELSEWHERE), Verdict::Pass);
    }

    #[test]
    fn a_connected_socket_that_names_its_frontend_reaches_its_own_backend() {
        let maps = world(&[A, B], Empty::Refuse);
        let own = dial(&maps, Protocol::Udp, VIP);
        for _ in 0..50 {
            assert_eq!(send_to(&maps, VIP), own);
        }
        assert!(maps.udp_flows.borrow().is_empty());
    }

    #[test]
    fn a_connected_socket_whose_backend_is_gone_is_given_another() {
        let mut maps = world(&[A], Empty::Refuse);
        assert_eq!(dial(&maps, Protocol::Udp, VIP), rewrite(A));
        switch(&mut maps, &[B], Empty::Refuse);
        assert_eq!(send_to(&maps, VIP), rewrite(B));
    }

    #[test]
    fn a_connected_socket_hears_its_peer_as_the_frontend() {
        let maps = world(&[A], Empty::Refuse);
        assert_eq!(dial(&maps, Protocol::Udp, VIP), rewrite(A));
        let socket = maps.socket(COOKIE);
        assert_eq!(shown(receive(&socket, &at(A))).as_deref(), Some(VIP));
        assert_eq!(receive(&socket, &at(B)), None);
    }
}

mod node_port {
    use super::*;

    const NODE: &str = "192.168.0.2:30080";
    const LOCALHOST: &str = "127.0.0.1:30080";
    const LOCALHOST6: &str = "[::1]:30080";

    /// A NodePort of the Service on the node's address and on both loopback addresses.
    fn node_port() -> Maps {
        let mut maps = world(&[A], Empty::Refuse);
        for (text, flags) in [
            (NODE, 0),
            (LOCALHOST, Frontend::NODE_ONLY),
            (LOCALHOST6, Frontend::NODE_ONLY),
        ] {
            let frontend = Frontend {
                service: SERVICE,
                outside_service: 0,
                kind: FrontendKind::NodePort as u8,
                flags,
                zero: [0; 2],
            };
            maps.frontends
                .insert(frontend_key(Protocol::Tcp, &at(text)), frontend);
        }
        maps
    }

    #[test]
    fn on_a_loopback_address_it_is_for_the_nodes_own_processes() {
        let maps = node_port();
        assert_eq!(dial(&maps, Protocol::Tcp, LOCALHOST), Verdict::Pass);
        assert_eq!(dial(&maps, Protocol::Tcp, NODE), rewrite(A));
        maps.of_node.set(true);
        assert_eq!(dial(&maps, Protocol::Tcp, LOCALHOST), rewrite(A));
        assert_eq!(dial(&maps, Protocol::Tcp, NODE), rewrite(A));
    }

    #[test]
    fn it_can_not_be_bound_where_it_answers_and_only_there() {
        let maps = node_port();
        let verdict = |protocol, text: &str, of_node| {
            bind(&maps.socket(COOKIE), protocol, &at(text), || of_node)
        };
        let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
        for text in [NODE, LOCALHOST, LOCALHOST6, "0.0.0.0:30080", "[::]:30080"] {
            assert_eq!(verdict(tcp, text, true), BindVerdict::InUse, "{text}");
            assert_eq!(verdict(tcp, text, false), BindVerdict::Allow, "{text}");
            assert_eq!(verdict(udp, text, true), BindVerdict::Allow, "{text}");
        }
        for text in ["0.0.0.0:30081", "10.1.0.1:30080", "127.0.0.2:30080", VIP] {
            assert_eq!(verdict(tcp, text, true), BindVerdict::Allow, "{text}");
        }
        assert_eq!(maps.counter(Counter::BindInUse), 5);
    }
}

mod undefined_port {
    use super::*;

    const OTHER_PORT: &str = "10.96.0.1:54";

    fn known() -> Maps {
        let mut maps = world(&[A], Empty::Refuse);
        let entry = Frontend {
            service: 0,
            outside_service: 0,
            kind: FrontendKind::ClusterIp as u8,
            flags: 0,
            zero: [0; 2],
        };
        maps.frontends
            .insert(FrontendKey::of_address(at(VIP).addr), entry);
        maps
    }

    #[test]
    fn of_a_cluster_ip_is_refused_and_the_defined_one_is_not() {
        let maps = known();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            assert_eq!(dial(&maps, protocol, OTHER_PORT), Verdict::Refuse);
            assert_eq!(dial(&maps, protocol, VIP), rewrite(A));
            assert_eq!(dial(&maps, protocol, ELSEWHERE), Verdict::Pass);
        }
        assert_eq!(send_to(&maps, OTHER_PORT), Verdict::Refuse);
        assert_eq!(send_to(&maps, ELSEWHERE), Verdict::Pass);
        assert_eq!(maps.counter(Counter::ConnectUndefinedPort), 2);
        assert_eq!(maps.counter(Counter::SendUndefinedPort), 1);
    }

    #[test]
    fn of_another_protocol_is_undefined_too() {
        let mut maps = known();
        maps.frontends
            .remove(&frontend_key(Protocol::Udp, &at(VIP)));
        assert_eq!(dial(&maps, Protocol::Udp, VIP), Verdict::Refuse);
        assert_eq!(dial(&maps, Protocol::Tcp, VIP), rewrite(A));
    }

    #[test]
    fn is_where_a_udp_socket_waits_if_the_kernel_cannot_refuse() {
        let mut maps = known();
        maps.cannot_refuse = true;
        assert_eq!(dial(&maps, Protocol::Tcp, OTHER_PORT), Verdict::Refuse);
        assert_eq!(dial(&maps, Protocol::Udp, OTHER_PORT), rewrite(PARK));
        let flow = maps.socket(COOKIE).flow().unwrap();
        assert_eq!((flow.frontend, flow.backend_id), (at(OTHER_PORT), 0));
        // The port is defined: whoever waits there is dialled again.
        let frontend = maps.frontends[&frontend_key(Protocol::Udp, &at(VIP))];
        maps.frontends
            .insert(frontend_key(Protocol::Udp, &at(OTHER_PORT)), frontend);
        assert_eq!(dial(&maps, Protocol::Udp, OTHER_PORT), rewrite(A));
    }
}

mod source_ranges {
    use super::*;

    /// The Service with source ranges that admit these.
    fn limited(flags: u8) -> Maps {
        let mut maps = world(&[A], Empty::Refuse);
        for frontend in maps.frontends.values_mut() {
            frontend.kind = FrontendKind::LoadBalancer as u8;
            frontend.flags = Frontend::SOURCE_RANGES | flags;
        }
        maps
    }

    #[test]
    fn admit_the_node_the_pods_both_or_neither() {
        for (flags, node, pods) in [
            (0, false, false),
            (Frontend::NODE_ALLOWED, true, false),
            (Frontend::PODS_ALLOWED, false, true),
            (Frontend::NODE_ALLOWED | Frontend::PODS_ALLOWED, true, true),
        ] {
            let maps = limited(flags);
            let expected = |admitted| if admitted { rewrite(A) } else { Verdict::Drop };
            for (of_node, admitted) in [(true, node), (false, pods)] {
                maps.of_node.set(of_node);
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    assert_eq!(dial(&maps, protocol, VIP), expected(admitted), "{flags}");
                    maps.socket(COOKIE).forget_flow();
                }
                assert_eq!(send_to(&maps, VIP), expected(admitted), "{flags}");
                maps.udp_flows.borrow_mut().clear();
            }
            let refused = u64::from(!node) + u64::from(!pods);
            assert_eq!(maps.counter(Counter::ConnectNotAllowed), 2 * refused);
            assert_eq!(maps.counter(Counter::SendNotAllowed), refused);
        }
    }

    /// BEHAVIOUR R4: whoever is not admitted learns nothing.
    #[test]
    fn come_before_having_no_endpoints() {
        let mut maps = limited(0);
        switch(&mut maps, &[], Empty::Refuse);
        assert_eq!(dial(&maps, Protocol::Tcp, VIP), Verdict::Drop);
        assert_eq!(maps.counter(Counter::ConnectRefused), 0);
    }

    #[test]
    fn that_close_leave_known_flows_alone() {
        let mut maps = limited(Frontend::PODS_ALLOWED);
        assert_eq!(send_to(&maps, VIP), rewrite(A));
        for frontend in maps.frontends.values_mut() {
            frontend.flags = Frontend::SOURCE_RANGES;
        }
        assert_eq!(send_to(&maps, VIP), rewrite(A));
        switch(&mut maps, &[B], Empty::Refuse);
        assert_eq!(send_to(&maps, VIP), Verdict::Drop);
    }
}

#[test]
fn a_call_that_leads_nowhere_ends_what_was_dialled_before_unless_it_was_the_same() {
    let mut maps = world(&[A], Empty::Refuse);
    assert_eq!(dial(&maps, Protocol::Udp, VIP), rewrite(A));
    switch(&mut maps, &[], Empty::Drop);
    assert_eq!(dial(&maps, Protocol::Udp, VIP), Verdict::Drop);
    assert!(maps.socket(COOKIE).flow().is_some());
    let frontend = maps.frontends[&frontend_key(Protocol::Udp, &at(VIP))];
    maps.frontends
        .insert(frontend_key(Protocol::Udp, &at(ELSEWHERE)), frontend);
    assert_eq!(dial(&maps, Protocol::Udp, ELSEWHERE), Verdict::Drop);
    assert_eq!(maps.socket(COOKIE).flow(), None);
}

#[path = "affinity_tests.rs"]
mod affinity;
