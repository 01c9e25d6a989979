//! The packet path on the host: rows of packets, judged byte for byte.

use anyhow::{Context, Result, bail, ensure};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proxy_common::{
    abi::Counter,
    datapath::{
        flow::{self, Flow},
        path::{self, Done, DropReason, Hook, Refusal, Verdict, Work},
    },
    wire::{Skip, bytes::Bytes, link::Link},
};
use tests::packet::{
    Make, Scene,
    make::{Told, Transport, fill_in},
    play, rows,
};

#[test]
fn every_row_comes_out_as_wanted() -> Result<()> {
    let rows = rows();
    for row in &rows {
        let mut maps = Scene::maps();
        let mut work = Work::default();
        for (i, step) in row.steps.iter().enumerate() {
            maps.ifindex = step.device;
            maps.is_for_another = Scene::is_for_another(step.link, &step.frame);
            maps.sent_on.set(step.is_sent_on);
            let mut packet = Bytes::new(step.frame.clone());
            let (verdict, answered) = play(step.hook, step.link, &mut packet, &maps, &mut work);
            ensure!(
                verdict == step.verdict,
                "{}, step {i}: {verdict:?}, wanted {:?}",
                row.name,
                step.verdict
            );
            let lost = matches!(verdict, Verdict::Reject(_) | Verdict::Drop(_));
            ensure!(
                !(answered && step.is_untold || lost && !answered && !step.out.is_empty()),
                "{}, step {i}: answered: {answered}",
                row.name
            );
            ensure!(
                step.out.is_empty() || packet.data == step.out,
                "{}, step {i}:\n     in {:02x?}\n    out {:02x?}\n wanted {:02x?}",
                row.name,
                step.frame,
                packet.data,
                step.out
            );
        }
    }
    ensure!(rows.len() > 90, "{} rows", rows.len());
    Ok(())
}

/// Also when a device fills in the checksum that is quoted: whoever sent the packet may have left it to
/// one.
#[test]
fn an_answer_is_sound_whoever_fills_in_the_quoted_checksum() -> Result<()> {
    for scene in Scene::BOTH {
        for transport in [tcp("S"), Transport::Udp] {
            for length in (0..70).chain(470..490).chain([1200, 1201]) {
                let vip = std::net::SocketAddr::new(scene.idle_vip(), 80);
                let mut make = Make::new(transport, scene.client(), vip);
                make.ethernet = false;
                make.payload = (0..=255).cycle().skip(length).take(length).collect();
                let mut packet = Bytes::new(make.frame());
                let mut work = Work::default();
                let maps = Scene::maps();
                let played = play(Hook::Ingress, Link::None, &mut packet, &maps, &mut work);
                ensure!(
                    played == (Verdict::Reject(Refusal::NoEndpoints), true),
                    "{played:?}"
                );
                sound(&packet.data).with_context(|| format!("{make:?}"))?;
                let quote = if scene.v6 { 48 } else { 28 };
                let region = quote + make.headers();
                let place = make.checksum_place().context("an Internet checksum")?;
                fill_in(&mut packet.data[region..], place);
                sound(&packet.data).with_context(|| format!("filled in: {make:?}"))?;
            }
        }
    }
    Ok(())
}

/// Whether all checksums of an ICMP message are right.
fn sound(packet: &[u8]) -> Result<()> {
    let sliced = SlicedPacket::from_ip(packet)?;
    match (sliced.net, sliced.transport) {
        (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Icmpv4(icmp))) => {
            let header = ip.header().to_header();
            ensure!(header.header_checksum == header.calc_header_checksum());
            let wanted = icmp.header().icmp_type.calc_checksum(icmp.payload());
            ensure!(icmp.checksum() == wanted, "{wanted:04x}");
        }
        (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(icmp))) => {
            let (src, dst) = (ip.header().source(), ip.header().destination());
            ensure!(icmp.is_checksum_valid(src, dst));
        }
        other => bail!("no ICMP: {other:?}"),
    }
    Ok(())
}

fn tcp(flags: &'static str) -> Transport {
    Transport::Tcp {
        flags,
        seq: 1,
        ack: 0,
    }
}

#[test]
fn answers_are_limited_and_saved_up() {
    let maps = Scene::maps();
    let scene = Scene::BOTH[0];
    let vip = std::net::SocketAddr::new(scene.idle_vip(), 80);
    let ask = |maps: &_| {
        let mut packet = Bytes::new(Make::new(tcp("S"), scene.client(), vip).frame());
        play(
            Hook::Ingress,
            Link::Ethernet,
            &mut packet,
            maps,
            &mut Work::default(),
        )
    };
    let ask_often = |maps: &_| (0..300).filter(|_| ask(maps).1).count();
    assert_eq!(ask_often(&maps), 100);
    assert_eq!(maps.counter(Counter::PacketAnswerLimited), 200);
    assert_eq!(maps.counter(Counter::PacketNoEndpoints), 300);
    for (later_ms, answers) in [(1, 1), (20, 20), (0, 0), (99, 99), (5000, 100)] {
        maps.now_ns.set(maps.now_ns.get() + later_ms * 1_000_000);
        assert_eq!(ask_often(&maps), answers, "after {later_ms} ms");
    }
}

/// Cut into packets that fit, it fits; how large they are is the header's affair too.
#[test]
fn a_packet_that_a_device_will_cut_is_as_large_as_its_parts() {
    for scene in Scene::BOTH {
        let vip = std::net::SocketAddr::new(scene.far_vip(), 80);
        for transport in [tcp("S"), Transport::Udp] {
            let mut make = Make::new(transport, scene.client(), vip);
            make.payload.clear();
            let headers = make.packet().len();
            make.payload = vec![7; 9000];
            let most = u32::from(Scene::MTU) - u32::try_from(headers).expect("short");
            for (size, wanted) in [
                (most, Verdict::Redirect(Done::NewFlow)),
                (most + 1, Verdict::Drop(DropReason::TooBig)),
                (0, Verdict::Drop(DropReason::TooBig)),
            ] {
                let mut packet = Bytes::new(make.frame());
                packet.segment_size = size;
                let (maps, mut work) = (Scene::maps(), Work::default());
                let played = play(Hook::Ingress, Link::Ethernet, &mut packet, &maps, &mut work);
                assert_eq!(played.0, wanted, "{size}");
                let flows = maps.half_open.borrow().len();
                assert_eq!(flows == 0, played.1, "nothing is remembered of it");
            }
        }
    }
}

/// Its stack would not take what comes from its own address.
#[test]
fn the_node_itself_is_told_in_the_name_of_the_frontend() {
    for scene in Scene::BOTH {
        let vip = std::net::SocketAddr::new(scene.far_vip(), 80);
        let node = std::net::SocketAddr::new(scene.node(), 40_000);
        let mut make = Make::new(Transport::Udp, node, vip);
        make.ttl = 1;
        let mut packet = Bytes::new(make.frame());
        let (maps, mut work) = (Scene::maps(), Work::default());
        let played = play(Hook::Ingress, Link::Ethernet, &mut packet, &maps, &mut work);
        assert_eq!(played, (Verdict::Drop(DropReason::TtlExceeded), true));
        assert_eq!(
            packet.data,
            make.answer(scene.far_vip(), Told::TimeExceeded)
        );
    }
}

fn parsed(frame: Vec<u8>) -> Result<(), Skip> {
    flow::parse(&Bytes::new(frame), Link::Ethernet, &mut Flow::default())
}

/// What is wrong with a packet, by what is done to a sound one behind its Ethernet header.
#[test]
fn each_lie_has_a_name() {
    let [v4, v6] = Scene::BOTH.map(|scene| {
        let vip = std::net::SocketAddr::new(scene.vip(), 80);
        let mut make = Make::new(Transport::Udp, scene.client(), vip);
        make.options = scene.v6;
        make.frame()
    });
    type Damage = fn(&mut [u8]);
    let cases: [(&[u8], Damage, Skip); 13] = [
        (&v4, |_| {}, Skip::NotIp),
        (&v4, |ip| ip[0] = 0x65, Skip::Version),
        (&v4, |ip| ip[0] = 0x44, Skip::Length),
        (&v4, |ip| ip[2] = 0xff, Skip::Length),
        (&v4, |ip| ip[2..4].copy_from_slice(&[0, 19]), Skip::Length),
        (
            &v4,
            |ip| ip[2..4].copy_from_slice(&[0, 27]),
            Skip::Truncated,
        ),
        (&v4, |ip| ip[9] = 1, Skip::Protocol),
        (&v6, |ip| ip[0] = 0x45, Skip::Version),
        (&v6, |ip| ip[4] = 0xff, Skip::Length),
        (&v6, |ip| ip[40] = 58, Skip::Protocol),
        (&v6, |ip| ip[41] = 0xff, Skip::Truncated),
        // Segments left in a routing header.
        (
            &v6,
            |ip| {
                ip[6] = 43;
                ip[43] = 1;
            },
            Skip::SourceRouted,
        ),
        (
            &v6,
            |ip| {
                ip[8..18].fill(0);
                ip[18..20].fill(0xff);
            },
            Skip::MappedAddress,
        ),
    ];
    for (i, (sound, damage, wanted)) in cases.into_iter().enumerate() {
        assert_eq!(parsed(sound.to_vec()), Ok(()), "case {i}");
        let mut frame = sound.to_vec();
        damage(&mut frame[14..]);
        if wanted == Skip::NotIp {
            frame[12] = 0x99;
        }
        assert_eq!(parsed(frame), Err(wanted), "case {i}");
    }
    // Seven extension headers, each of eight bytes.
    let mut endless = v6[..54].to_vec();
    endless[18..20].copy_from_slice(&[0, 56]);
    for _ in 0..7 {
        endless.extend([60, 0, 1, 4, 0, 0, 0, 0]);
    }
    assert_eq!(parsed(endless), Err(Skip::Headers));
}

/// Wherever a packet ends, it says so, or what is missing was padding.
#[test]
fn no_beginning_of_a_packet_is_taken_for_it() {
    for step in rows().into_iter().flat_map(|row| row.steps) {
        let whole = step.frame.len();
        let maps = Scene::maps();
        for length in 0..whole {
            let mut packet = Bytes::new(&step.frame[..length]);
            let verdict = path::run(
                step.hook,
                step.link,
                &mut packet,
                &maps,
                &mut Work::default(),
            );
            assert!(matches!(verdict, Verdict::Pass(_)), "{length} of {whole}");
            assert_eq!(packet.data, step.frame[..length]);
        }
    }
}
