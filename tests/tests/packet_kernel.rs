//! The packet path in the kernel (root): the same rows as on the host, and what a packet costs.

use anyhow::{Result, ensure};
use proxy_common::{
    abi::Counter,
    datapath::path::{Hook, Verdict, Work},
    wire::{bytes::Bytes, link::Link},
};
use tests::packet::{
    Make, Scene,
    damage::{Dice, frame, frames},
    kernel::{Kernel, PROGRAMS, code},
    make::Transport,
    play, rows,
};

#[test]
fn every_row_comes_out_as_on_the_host() -> Result<()> {
    let mut kernel = Kernel::load()?;
    let rows = rows();
    for row in &rows {
        kernel.forget()?;
        kernel.save_answers()?;
        let mut control = [0; 20];
        for (i, step) in row.steps.iter().enumerate() {
            let lost = matches!(step.verdict, Verdict::Reject(_) | Verdict::Drop(_));
            // A test run pretends an Ethernet header: without one the answer has no place. See
            // answers.rs.
            if lost && step.link == Link::None {
                continue;
            }
            let before = kernel.counters()?;
            if !step.is_sent_on {
                control = [0; 20];
            }
            let outcome =
                kernel.run_at(step.device, control, step.hook, step.link, &step.frame, 1)?;
            control = outcome.control;
            ensure!(
                (control != [0; 20]) == matches!(step.verdict, Verdict::Redirect(_)),
                "{}, step {i}: {control:?} behind {:?}",
                row.name,
                step.verdict
            );
            let mut wanted = before;
            *wanted.entry(step.verdict.counter()).or_default() += 1;
            let counted = kernel.counters()?;
            ensure!(
                [false, true].iter().any(|answered| {
                    (!answered || !step.is_untold)
                        && (*answered || !lost || step.out.is_empty())
                        && outcome.code == code(step.verdict, *answered)
                }) && counted == wanted,
                "{}, step {i}: returned {}, wanted {:?}; counted {counted:?}",
                row.name,
                outcome.code,
                step.verdict,
            );
            ensure!(
                step.out.is_empty() || outcome.out == step.out,
                "{}, step {i}:\n     in {:02x?}\n    out {:02x?}\n wanted {:02x?}",
                row.name,
                step.frame,
                outcome.out,
                step.out
            );
        }
    }
    println!("{} rows", rows.len());
    Ok(())
}

#[test]
fn the_verifier_has_room_left() -> Result<()> {
    let mut kernel = Kernel::load()?;
    for name in PROGRAMS {
        let info = kernel.program(name)?.info()?;
        // Told since 5.16.
        let verified = info.verified_instruction_count();
        println!("{name}: {verified:?} instructions verified");
        ensure!(
            verified.is_none_or(|count| count < 100_000),
            "{name}: {verified:?}"
        );
    }
    Ok(())
}

/// Kernel and host agree on packets that nobody thought of.
#[test]
fn damaged_packets_come_out_as_on_the_host() -> Result<()> {
    const CASES: u32 = 100_000;
    let mut kernel = Kernel::load()?;
    let mut dice = Dice(2);
    let frames = frames();
    let mut work = Work::default();
    let mut maps = Scene::maps();
    let mut translated = 0;
    for case in 0..CASES {
        // Soon enough that neither FLOWS nor HALF_OPEN is ever full in the kernel.
        if case % 400 == 0 {
            kernel.forget()?;
            maps = Scene::maps();
        }
        let (frame, link) = frame(&frames, &mut dice);
        // A test run takes no less.
        if frame.len() < 14 {
            continue;
        }
        let hook = [Hook::Ingress, Hook::Ingress, Hook::Egress][dice.below(3)];
        maps.is_for_another = Scene::is_for_another(link, &frame);
        let mut packet = Bytes::new(frame.clone());
        kernel.save_answers()?;
        maps.next_answer_ns.set(0);
        let (verdict, answered) = play(hook, link, &mut packet, &maps, &mut work);
        let outcome = match kernel.run(hook, link, &frame, 1) {
            Ok(outcome) => outcome,
            // Since 6.18 the kernel itself refuses what ends within the IP header.
            Err(_) if frame.len() < 14 + 40 => continue,
            Err(error) => return Err(error),
        };
        // See above.
        if answered && link == Link::None {
            continue;
        }
        ensure!(
            outcome.code == code(verdict, answered),
            "case {case}: returned {}, host {verdict:?}: {frame:02x?}",
            outcome.code
        );
        if let Verdict::Stack(_) | Verdict::Redirect(_) = verdict {
            translated += 1;
        }
        ensure!(
            !answered && matches!(verdict, Verdict::Reject(_) | Verdict::Drop(_))
                || outcome.out == packet.data,
            "case {case}: {verdict:?}\n     in {frame:02x?}\n kernel {:02x?}\n   host {:02x?}",
            outcome.out,
            packet.data
        );
    }
    println!("{CASES} cases, {translated} translated");
    ensure!(translated > CASES / 20, "{translated} translated");
    Ok(())
}

/// What one run of a program takes. Each is timed alone, because a second run would get what the first
/// made of the packet; so the clock is part of it, as the first line tells.
#[test]
fn what_a_packet_costs() -> Result<()> {
    const RUNS: usize = 5_000;
    let mut kernel = Kernel::load()?;
    let scene = Scene::BOTH[0];
    let median = |kernel: &mut Kernel, frame: &[u8], fresh: bool, hook| -> Result<u128> {
        let mut times = Vec::new();
        for _ in 0..if fresh { RUNS / 10 } else { RUNS } {
            if fresh {
                kernel.forget()?;
            }
            times.push(kernel.run(hook, Link::Ethernet, frame, 1)?.nanoseconds);
        }
        times.sort_unstable();
        Ok(times[times.len() / 2])
    };
    let mut arp = vec![0; 60];
    arp[12..14].copy_from_slice(&[8, 6]);
    let empty = median(&mut kernel, &arp, false, Hook::Ingress)?;
    println!("not IP (the clock, above all): {empty} ns");
    let udp = |ip| {
        Make::new(
            Transport::Udp,
            scene.client(),
            std::net::SocketAddr::new(ip, 80),
        )
    };
    let other = udp(scene.pod()).frame();
    let mean = kernel.run(Hook::Ingress, Link::Ethernet, &other, 1_000_000)?;
    println!(
        "none of ours, a million in a row: {} ns each",
        mean.nanoseconds
    );
    let syn = Transport::Tcp {
        flags: "S",
        seq: 1,
        ack: 0,
    };
    for (name, transport) in [("TCP", syn), ("UDP", Transport::Udp)] {
        for (place, ip) in [("here", scene.vip()), ("elsewhere", scene.far_vip())] {
            let mut packet = udp(ip);
            packet.transport = transport;
            let frame = packet.frame();
            let new = median(&mut kernel, &frame, true, Hook::Ingress)?;
            let known = median(&mut kernel, &frame, false, Hook::Ingress)?;
            println!("{name} to a pod {place}: first {new} ns, further {known} ns");
        }
    }
    let first = udp(scene.vip()).frame();
    kernel.run(Hook::Ingress, Link::Ethernet, &first, 1)?;
    let answer =
        udp(scene.vip()).between(std::net::SocketAddr::new(scene.pod(), 8080), scene.client());
    let before = kernel.counters()?[&Counter::PacketReversed];
    let back = median(&mut kernel, &answer.frame(), false, Hook::Egress)?;
    let reversed = kernel.counters()?[&Counter::PacketReversed] - before;
    ensure!(reversed == RUNS as u64, "{reversed} answers reversed");
    println!("an answer from a pod here: {back} ns");
    Ok(())
}
