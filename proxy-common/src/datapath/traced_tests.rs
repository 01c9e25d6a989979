use std::{net::SocketAddr, vec};

use super::*;
use crate::{
    abi::{FrontendKind, Protocol, ServiceWord},
    datapath::{
        fake::{Maps, backend},
        socket::{self, Verdict},
    },
};

fn at(text: &str) -> SockAddr {
    text.parse::<SocketAddr>().unwrap().into()
}

fn key(to: &SockAddr) -> FrontendKey {
    FrontendKey {
        addr: to.addr,
        port_be: to.port_be,
        protocol: Protocol::Tcp.number(),
        zero: 0,
    }
}

#[test]
fn every_question_is_recorded_with_what_was_found_in_the_order_of_asking() {
    let (vip, pod) = (at("10.96.0.1:80"), at("10.0.0.1:8080"));
    let frontend = Frontend {
        service: 3,
        outside_service: 0,
        kind: FrontendKind::ClusterIp as u8,
        flags: 0,
        zero: [0; 2],
    };
    let backend = Backend {
        protocol: 6,
        ..backend(pod, 3)
    };
    let service: Service = ServiceWord::with_backends(7, 1).into();
    let mut maps = Maps::default();
    maps.frontends.insert(key(&vip), frontend);
    maps.services.insert(3, service);
    maps.slots.insert(7, 20);
    maps.backends.insert(20, backend);
    let hook = maps.socket(1);
    let traced = Traced::new(&hook);
    let verdict = socket::connect(&traced, Protocol::Tcp, &vip);
    assert_eq!(verdict, Verdict::Rewrite(pod));
    let remembered = hook.flow().unwrap();
    let lookups = traced.into_lookups();
    let Lookup::Random(number) = lookups[2] else {
        panic!("{lookups:?}");
    };
    assert_eq!(
        lookups,
        vec![
            Lookup::Frontend(key(&vip), Some(frontend)),
            Lookup::Service(3, Some(service)),
            Lookup::Random(number),
            Lookup::Slot(7, Some(20)),
            Lookup::Backend(20, Some(backend)),
            Lookup::SocketFlowSet(remembered, true),
            Lookup::Active(20, 1),
            Lookup::Count(Counter::ConnectTranslated),
            Lookup::CountConnection(3, 20),
        ]
    );
}

#[test]
fn what_is_not_there_is_recorded_too() {
    let maps = Maps::default();
    let hook = maps.socket(1);
    let traced = Traced::new(&hook);
    let to = at("192.0.2.1:80");
    assert_eq!(socket::connect(&traced, Protocol::Tcp, &to), Verdict::Pass);
    assert_eq!(
        traced.into_lookups(),
        vec![
            Lookup::Frontend(key(&to), None),
            Lookup::Frontend(FrontendKey::of_address(to.addr), None),
        ]
    );
}
