//! Damaged, random and hostile packets on the host: nothing panics, and nothing is sent to where no
//! row of the tables leads.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use proxy_common::{
    abi::Addr,
    datapath::{
        flow::{self, Flow},
        path::{self, Hook, Verdict, Work},
    },
    wire::{bytes::Bytes, link::Link},
};
use tests::packet::{
    Scene,
    damage::{Dice, frame, frames},
};

const TIME: Duration = Duration::from_secs(8);
const CASES: u64 = 1_000_000;

#[test]
fn no_packet_does_harm() {
    let mut dice = Dice(1);
    let frames = frames();
    // Where packets may be sent: backends, and whoever sent a packet that was translated.
    let backends: HashSet<Addr> = Scene::BOTH
        .iter()
        .flat_map(|scene| scene.backends())
        .map(|(_, backend)| backend.addr)
        .collect();
    let mut maps = Scene::maps();
    let mut work = Work::default();
    let mut senders: HashSet<Addr> = HashSet::new();
    let started = Instant::now();
    let (mut cases, mut translated) = (0, 0);
    while cases < CASES && (cases % 1024 != 0 || started.elapsed() < TIME) {
        if cases % 4096 == 0 {
            maps = Scene::maps();
            senders.clear();
        }
        let (frame, link) = frame(&frames, &mut dice);
        let hook = [Hook::Ingress, Hook::Ingress, Hook::Egress][dice.below(3)];
        maps.is_for_another = Scene::is_for_another(link, &frame);
        let mut packet = Bytes::new(frame.clone());
        let verdict = path::run(hook, link, &mut packet, &maps, &mut work);
        cases += 1;
        match verdict {
            Verdict::Pass(_) => assert_eq!(packet.data, frame, "passed, but changed"),
            Verdict::Stack(_) | Verdict::Redirect(_) => {
                translated += 1;
                let source = work.flow.tuple.src;
                let mut after = Flow::default();
                let link = if matches!(verdict, Verdict::Redirect(_)) {
                    Link::Ethernet
                } else {
                    link
                };
                flow::parse(&packet, link, &mut after).expect("sound before, sound after");
                let to = after.outer_dst;
                assert!(
                    backends.contains(&to) || senders.contains(&to),
                    "sent to {to} from {frame:02x?}"
                );
                assert_eq!(after.kind, work.flow.kind);
                senders.insert(source);
            }
            Verdict::Reject(_) | Verdict::Drop(_) => {}
        }
    }
    println!("{cases} cases, {translated} translated");
    assert!(
        translated > cases / 20,
        "{translated} of {cases} translated"
    );
    assert_eq!(maps.counter(proxy_common::abi::Counter::TableDamaged), 0);
    assert_eq!(
        maps.counter(proxy_common::abi::Counter::PacketNotWritten),
        0
    );
}
