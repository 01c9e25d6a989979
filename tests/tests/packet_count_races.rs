//! Two CPUs with packets of one flow: whatever the order of what they do, a backend's count is that of the flows that
//! name it, and when the client has reset the connection it has none.

use std::net::SocketAddr;

use proxy_common::{
    abi::Direction,
    datapath::{
        conntrack::state,
        fake::Maps,
        path::{self, Done, Hook, Node, Verdict, Work},
    },
    wire::{bytes::Bytes, link::Link},
};
use tests::packet::{
    Make, Scene,
    cpus::{ALL, in_turns},
    make::Transport,
};

const V4: Scene = Scene { v6: false };
/// More calls of the maps than any of these packets make.
const CALLS: u32 = 60;

fn run(maps: &impl Node, packet: &Make) -> (Verdict, SocketAddr) {
    let mut bytes = Bytes::new(packet.frame());
    let mut work = Work::default();
    let verdict = path::run(Hook::Ingress, Link::Ethernet, &mut bytes, maps, &mut work);
    (verdict, work.entry.src.socket_addr())
}

fn client() -> SocketAddr {
    SocketAddr::new(V4.client().ip(), 1)
}

fn says(maps: &impl Node, flags: &'static str) -> (Verdict, SocketAddr) {
    let transport = Transport::Tcp {
        flags,
        seq: 2,
        ack: 1,
    };
    let to = SocketAddr::new(V4.far_vip(), 80);
    run(maps, &Make::new(transport, client(), to))
}

fn answers(maps: &impl Node, source: SocketAddr, flags: &'static str) {
    let transport = Transport::Tcp {
        flags,
        seq: 0,
        ack: 3,
    };
    let backend = SocketAddr::new(V4.far_pod(), 8080);
    let _whatever_becomes_of_it = run(maps, &Make::new(transport, backend, source));
}

/// What is counted, and the flows that are.
fn counts(maps: &Maps) -> (i64, usize) {
    let stats = maps.backend_stats.borrow();
    let active = stats.values().map(|stats| stats.active).sum();
    let flows = maps.established.borrow();
    let is_counted = |entry: &&proxy_common::abi::FlowEntry| {
        entry.state & state::COUNTED != 0 && entry.direction == Direction::Original as u8
    };
    (active, flows.values().filter(is_counted).count())
}

/// Whose packet, and its flags.
#[derive(Clone, Copy, Debug)]
enum Packet {
    Client(&'static str),
    Backend(&'static str),
}

use Packet::{Backend, Client};

/// The first CPU is somewhere in its first packet when the second begins; from some place on it goes on.
fn in_every_order(before: &[Packet], cpus: [&[Packet]; 2], judge: impl Fn(i64, usize) -> bool) {
    let mut wrong = Vec::new();
    let mut played = 0;
    // It has found its flow: in the first table, or in the second.
    let found = if before.is_empty() { 2 } else { 1 };
    for first in found..CALLS {
        let mut any = false;
        for second in 0..4 * CALLS {
            let maps = Scene::maps();
            let (verdict, source) = says(&maps, "S");
            assert_eq!(verdict, Verdict::Redirect(Done::NewFlow));
            answers(&maps, source, "SA");
            for packet in before {
                match packet {
                    Client(flags) => drop(says(&maps, flags)),
                    Backend(flags) => answers(&maps, source, flags),
                }
            }
            let plan = vec![(0, first), (1, second), (0, ALL), (1, ALL)];
            let (maps, _, used) = in_turns(maps, plan, |cpu, number| {
                for packet in cpus[number] {
                    match packet {
                        Client(flags) => drop(says(cpu, flags)),
                        Backend(flags) => answers(cpu, source, flags),
                    }
                }
            });
            if !used {
                break;
            }
            any = true;
            played += 1;
            let (active, flows) = counts(&maps);
            if !judge(active, flows) {
                wrong.push((first, second, active, flows));
            }
        }
        if !any {
            break;
        }
    }
    assert!(played > 0);
    assert!(
        wrong.is_empty(),
        "{before:?}, {cpus:?}: {} of {played} orders: (calls, then calls, active, counted flows) {:?}",
        wrong.len(),
        &wrong[..wrong.len().min(8)]
    );
}

#[test]
fn a_handshakes_last_packet_that_is_overtaken_by_data_counts_once() {
    in_every_order(&[], [&[Client("A")], &[Client("PA")]], |active, flows| {
        (active, flows) == (1, 1)
    });
}

#[test]

fn a_handshakes_last_packet_that_is_overtaken_by_the_whole_connection_does_not_bring_it_back() {
    for end in [Client("R"), Client("RA")] {
        let rest = [Client("PA"), Backend("PA"), end];
        in_every_order(&[], [&[Client("A")], &rest], |active, flows| {
            (active, flows) == (0, 0)
        });
    }
}

#[test]

fn a_reset_beside_an_answer_ends_the_count() {
    for other in ["A", "PA", "FA"] {
        for cpus in [
            [&[Client("RA")][..], &[Backend(other)][..]],
            [&[Backend(other)], &[Client("RA")]],
        ] {
            in_every_order(&[Client("A")], cpus, |active, flows| {
                (active, flows) == (0, 0)
            });
        }
    }
}

#[test]

fn both_ends_that_close_at_the_same_moment_end_the_count() {
    for cpus in [
        [&[Client("FA")][..], &[Backend("FA")][..]],
        [&[Backend("FA")], &[Client("FA")]],
        [&[Client("RA")], &[Backend("RA")]],
    ] {
        in_every_order(&[Client("A")], cpus, |active, flows| {
            (active, flows) == (0, 0)
        });
    }
}
