//! The packet path on the host: rows of packets, judged byte for byte.

use anyhow::{Result, ensure};
use proxy_common::{
    datapath::{
        flow::{self, Flow},
        path::{self, Verdict, Work},
    },
    wire::{Skip, bytes::Bytes, link::Link},
};
use tests::packet::{Make, Scene, make::Transport, rows};

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
            let verdict = path::run(step.hook, step.link, &mut packet, &maps, &mut work);
            ensure!(
                verdict == step.verdict,
                "{}, step {i}: {verdict:?}, wanted {:?}",
                row.name,
                step.verdict
            );
            let goes_on = !matches!(verdict, Verdict::Reject(_) | Verdict::Drop(_));
            ensure!(
                !goes_on || packet.data == step.out,
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
