//! Two CPUs with a packet each: whatever the order of what they do with the flows, no client gets
//! another's answers.

use std::net::SocketAddr;

use proxy_common::{
    abi::PortRange,
    datapath::{
        fake::Maps,
        path::{self, Done, Hook, Node, Verdict, Work},
    },
    wire::{bytes::Bytes, link::Link},
};
use tests::packet::{
    Make, Scene,
    cpus::{ALL, Plan, in_turns},
    make::Transport,
};

const SECOND: u64 = 1_000_000_000;
const V4: Scene = Scene { v6: false };
/// More calls of the maps than any packet makes.
const CALLS: u32 = 100;

fn client(port: u16) -> SocketAddr {
    SocketAddr::new(V4.client().ip(), port)
}

fn backend() -> SocketAddr {
    SocketAddr::new(V4.far_pod(), 8080)
}

/// Addresses and verdict of what becomes of a packet.
fn run(maps: &impl Node, packet: &Make) -> (Verdict, SocketAddr, SocketAddr) {
    let mut bytes = Bytes::new(packet.frame());
    let mut work = Work::default();
    let verdict = path::run(Hook::Ingress, Link::Ethernet, &mut bytes, maps, &mut work);
    (
        verdict,
        work.entry.src.socket_addr(),
        work.entry.dst.socket_addr(),
    )
}

fn from_client(maps: &impl Node, port: u16, flags: &'static str) -> (Verdict, SocketAddr) {
    let transport = Transport::Tcp {
        flags,
        seq: 2,
        ack: 1,
    };
    let to = SocketAddr::new(V4.far_vip(), 80);
    let (verdict, source, _) = run(maps, &Make::new(transport, client(port), to));
    (verdict, source)
}

/// The client that gets what the backend says to this source.
fn answered(maps: &Maps, source: SocketAddr, flags: &'static str) -> Option<SocketAddr> {
    let transport = Transport::Tcp {
        flags,
        seq: 0,
        ack: 3,
    };
    let (verdict, _, to) = run(maps, &Make::new(transport, backend(), source));
    (verdict == Verdict::Redirect(Done::Reversed)).then_some(to)
}

/// So few source ports that every flow needs one that another has had.
fn scene(ports: u16, seed: u64) -> Maps {
    let mut maps = Scene::maps();
    maps.snat_ports = Some(PortRange {
        first: 61_000,
        last: 61_000 + ports - 1,
    });
    maps.seed.set(seed);
    maps
}

/// A flow at any stage, and the silence behind it.
#[derive(Clone, Copy, Debug)]
enum Past {
    /// Established, then reset by its client.
    Reset,
    /// Closed by both sides.
    Closed,
    /// Reset before it was established.
    ResetEarly,
    /// Its client never acknowledged the SYN-ACK.
    HalfOpen,
}

impl Past {
    const ALL: [Self; 4] = [Self::Reset, Self::Closed, Self::ResetEarly, Self::HalfOpen];

    fn happens(self, maps: &Maps, port: u16) {
        let (verdict, source) = from_client(maps, port, "S");
        assert_eq!(verdict, Verdict::Redirect(Done::NewFlow));
        assert_eq!(answered(maps, source, "SA"), Some(client(port)));
        let says = |flags| {
            let (verdict, _) = from_client(maps, port, flags);
            assert_eq!(verdict, Verdict::Redirect(Done::Forwarded));
        };
        match self {
            Self::Reset => {
                says("A");
                says("R");
            }
            Self::Closed => {
                says("A");
                says("FA");
                assert_eq!(answered(maps, source, "FA"), Some(client(port)));
            }
            Self::ResetEarly => says("R"),
            Self::HalfOpen => {}
        }
        maps.now_ns.set(maps.now_ns.get() + 4 * SECOND);
    }
}

type Packet = (u16, &'static str);

/// Plays both in turns: so many calls of the one, so many of the other, then one to its end and the
/// other to its end; for all such numbers and some seeds. Then asks `judge`, which gets the client's
/// port and the source of those that were let go.
fn in_every_order(
    past: Past,
    ports: u16,
    packets: [Packet; 2],
    judge: impl Fn(&Maps, &[(u16, SocketAddr)], &str),
) {
    let mut played = 0;
    for seed in 1..=3 {
        for first in 0..CALLS {
            let mut any = false;
            for second in 0..CALLS {
                let mut useful = false;
                for last in [0, 1] {
                    let plan: Plan = vec![(0, first), (1, second), (last, ALL), (1 - last, ALL)];
                    let maps = scene(ports, seed);
                    past.happens(&maps, 1);
                    let (maps, outcomes, used) = in_turns(maps, plan, |cpu, number| {
                        let (port, flags) = packets[number];
                        from_client(cpu, port, flags)
                    });
                    useful |= used;
                    let went: Vec<_> = packets
                        .iter()
                        .zip(outcomes)
                        .filter(|(_, (verdict, _))| matches!(verdict, Verdict::Redirect(_)))
                        .map(|((port, _), (_, source))| (*port, source))
                        .collect();
                    let place = format!(
                        "{past:?}, {ports} ports, {packets:?}, seed {seed}, {first} calls, then {second}"
                    );
                    judge(&maps, &went, &place);
                    played += 1;
                }
                if !useful {
                    break;
                }
                any = true;
            }
            if !any {
                break;
            }
        }
    }
    assert!(played > 100, "{played}");
}

/// Each that was let go has a source of its own, hears its answers, and keeps that source.
fn all_are_served(maps: &Maps, went: &[(u16, SocketAddr)], place: &str) {
    for (port, source) in went {
        assert_eq!(
            answered(maps, *source, "SA"),
            Some(client(*port)),
            "{place}: the answer to {port}, in {went:?}"
        );
        let next = from_client(maps, *port, "A");
        assert_eq!(
            next,
            (Verdict::Redirect(Done::Forwarded), *source),
            "{place}: {port} goes on, in {went:?}"
        );
    }
}

#[test]
fn a_client_that_begins_anew_takes_nothing_from_the_next_owner_of_its_port() {
    for past in Past::ALL {
        for ports in [1, 2] {
            in_every_order(past, ports, [(1, "S"), (2, "S")], all_are_served);
        }
    }
}

#[test]
fn two_clients_that_want_the_same_port_share_none() {
    for past in Past::ALL {
        for ports in [1, 2] {
            in_every_order(past, ports, [(2, "S"), (3, "S")], all_are_served);
        }
    }
}

/// The last packets of one that lost its port are nothing to the port's next owner.
#[test]
fn a_late_packet_takes_nothing_from_the_next_owner_of_its_port() {
    for past in Past::ALL {
        for flags in ["A", "R", "FA"] {
            in_every_order(past, 1, [(1, flags), (2, "S")], |maps, went, place| {
                let anew: Vec<_> = went
                    .iter()
                    .filter(|(port, _)| *port == 2)
                    .copied()
                    .collect();
                all_are_served(maps, &anew, place);
            });
        }
    }
}
