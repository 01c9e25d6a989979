//! The packet path in the kernel (root): the same rows as on the host, and what a packet costs.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use proxy_common::{
    abi::{
        Backend, BackendStats, Counter, Frontend, FrontendKey, FrontendKind, PortRange, Protocol,
        Scheduler, ServiceWord,
    },
    datapath::path::{Done, DropReason, Hook, Verdict, Work},
    wire::{bytes::Bytes, link::Link},
};
use socket2::{Domain, Socket, Type};
use tests::{
    netns::{Netns, ip_here},
    packet::{
        Make, Scene,
        damage::{Dice, frame, frames},
        kernel::{Kernel, PROGRAMS, code},
        make::Transport,
        play, rows,
    },
};

const SYN: Transport = Transport::Tcp {
    flags: "S",
    seq: 1,
    ack: 0,
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
            // A test run pretends an Ethernet header, and bpf_skb_adjust_room believes it. Such answers
            // are compared in packet_answers.rs.
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

/// The source ports that `packet` gets when it leaves, in many first packets.
fn ports_taken(kernel: &mut Kernel, packet: &Make) -> Result<BTreeSet<u16>> {
    let place = 14 + if packet.src.is_ipv4() { 20 } else { 40 };
    (0..64)
        .map(|_| {
            kernel.forget()?;
            let outcome = kernel.run(Hook::Ingress, Link::Ethernet, &packet.frame(), 1)?;
            ensure!(outcome.code == code(Verdict::Redirect(Done::NewFlow), false));
            Ok(u16::from_be_bytes([
                outcome.out[place],
                outcome.out[place + 1],
            ]))
        })
        .collect()
}

/// Of this node with the backend; a TCP one is still waiting for an answer.
fn talk(protocol: Transport, from: SocketAddr, to: SocketAddr) -> Result<Socket> {
    let kind = match protocol {
        Transport::Udp => Type::DGRAM,
        Transport::Tcp { .. } | Transport::Sctp => Type::STREAM,
    };
    let socket = Socket::new(Domain::for_address(from), kind, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&from.into())?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error.into()),
        Ok(()) | Err(_) => Ok(socket),
    }
}

#[test]
fn a_port_on_which_a_socket_of_the_node_talks_to_the_backend_is_not_taken() -> Result<()> {
    let range = PortRange {
        first: 61_007,
        last: 61_008,
    };
    let mut kernel = Kernel::load_with(range)?;
    for scene in Scene::BOTH {
        for transport in [SYN, Transport::Udp] {
            let to = SocketAddr::new(scene.far_vip(), 80);
            let packet = Make::new(transport, scene.client(), to);
            let both = BTreeSet::from([range.first, range.last]);
            ensure!(ports_taken(&mut kernel, &packet)? == both, "{transport:?}");
            let backend = SocketAddr::new(scene.far_pod(), 8080);
            let from = SocketAddr::new(scene.node(), range.first);
            let socket = talk(transport, from, backend)?;
            let taken = ports_taken(&mut kernel, &packet)?;
            ensure!(
                taken == BTreeSet::from([range.last]),
                "{transport:?}: {taken:?}"
            );
            drop(socket);
        }
    }
    Ok(())
}

#[test]
fn a_device_that_may_not_forward_is_named() -> Result<()> {
    let mut kernel = Kernel::load()?;
    for (scene, family) in Scene::BOTH.into_iter().zip(["ipv4", "ipv6"]) {
        let to = SocketAddr::new(scene.far_vip(), 80);
        let frame = Make::new(SYN, scene.client(), to).frame();
        std::fs::write(
            format!("/proc/sys/net/{family}/conf/uplink/forwarding"),
            "0",
        )?;
        let before = kernel.counters()?[&Counter::PacketForwardingOff];
        let outcome = kernel.run(Hook::Ingress, Link::Ethernet, &frame, 1)?;
        let off = Verdict::Drop(DropReason::ForwardingOff);
        ensure!(
            outcome.code == code(off, false),
            "returned {}",
            outcome.code
        );
        ensure!(kernel.counters()?[&Counter::PacketForwardingOff] == before + 1);
    }
    Ok(())
}

/// Client, router and backend are one namespace beyond the uplink. What test runs can't show: that a
/// redirected packet finds its neighbour, and passes the egress hook as one that was redirected.
#[test]
fn a_datagram_goes_through_devices_and_its_answer_comes_back() -> Result<()> {
    let mut kernel = Kernel::load()?;
    let name = format!("kp-packet-{}", std::process::id());
    let beyond = Netns::create_all(&[name])?.remove(0);
    ip_here(
        &[],
        &format!("link set uplink-peer netns {}\n", beyond.name()),
    )?;
    beyond.ip("link set lo up\nlink set uplink-peer up\n")?;
    kernel.attach("uplink", Link::Ethernet)?;
    for scene in Scene::BOTH {
        let (length, nodad) = if scene.v6 { (128, " nodad") } else { (32, "") };
        let (node, router, vip) = (scene.node(), scene.router(), scene.far_vip());
        let (client, pod) = (scene.client().ip(), scene.far_pod());
        beyond.ip(&format!(
            "addr add {router}/{length} dev uplink-peer{nodad}\n\
             addr add {client}/{length} dev lo\n\
             addr add {pod}/{length} dev lo\n\
             route add {node}/{length} dev uplink-peer\n\
             route add {vip}/{length} via {node} dev uplink-peer\n"
        ))?;
        let before = kernel.counters()?;
        beyond.enter(|| -> Result<()> {
            let server = UdpSocket::bind(SocketAddr::new(pod, 8080))?;
            let client = UdpSocket::bind(SocketAddr::new(client, 0))?;
            client.connect(SocketAddr::new(vip, 80))?;
            for socket in [&server, &client] {
                socket.set_read_timeout(Some(Duration::from_millis(200)))?;
            }
            // The device takes its time to come up.
            let deadline = Instant::now() + Duration::from_secs(20);
            let mut buffer = [0; 16];
            while Instant::now() < deadline {
                client.send(b"ask")?;
                let Ok((_, from)) = server.recv_from(&mut buffer) else {
                    continue;
                };
                ensure!(from == SocketAddr::new(node, Scene::SNAT_PORTS.first));
                server.send_to(b"answer", from)?;
                if let Ok(length) = client.recv(&mut buffer) {
                    ensure!(&buffer[..length] == b"answer");
                    return Ok(());
                }
            }
            bail!("no answer from {vip}")
        })??;
        let after = kernel.counters()?;
        let sent_on = after[&Counter::PacketSentOn] - before[&Counter::PacketSentOn];
        ensure!(sent_on >= 2, "{sent_on} were known as redirected");
    }
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
    let mut data = udp(scene.pod());
    data.transport = Transport::Tcp {
        flags: "A",
        seq: 1,
        ack: 1,
    };
    for (name, make) in [("TCP data", data), ("UDP", udp(scene.pod()))] {
        for hook in [Hook::Ingress, Hook::Egress] {
            let mean = kernel.run(hook, Link::Ethernet, &make.frame(), 1_000_000)?;
            let took = mean.nanoseconds;
            println!("{name}, none of ours, {hook:?}, a million in a row: {took} ns each");
        }
    }
    for (name, transport) in [("TCP", SYN), ("UDP", Transport::Udp)] {
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

/// A Service word whose backends are looked at in [`what_a_scheduler_costs`].
struct Balanced {
    name: String,
    word: ServiceWord,
}

/// `count` backends on this node, each with connections; every so manieth is passed over.
fn backends(service: u32, count: u32, out: Option<u32>) -> Vec<(Backend, BackendStats)> {
    let backend = |number: u32| Backend {
        addr: Scene::BOTH[0].pod().into(),
        port_be: 8080_u16.to_be(),
        protocol: 0,
        flags: Backend::LOCAL | Backend::CHOSEN,
        weight: u16::try_from(number % 5 + 1).expect("small"),
        zero: 0,
        twin: 0,
        service,
    };
    let stats = |number: u32| BackendStats {
        active: i64::from(number * 7 % 13) + 1,
        passed_over_until_ns: if out.is_some_and(|out| number.is_multiple_of(out)) {
            u64::MAX
        } else {
            0
        },
        ..BackendStats::default()
    };
    (0..count)
        .map(|number| (backend(number), stats(number)))
        .collect()
}

/// What the first packet of a flow takes by each scheduler, beside the same at random: all in turn, each
/// packet of another client. The first line is again the test's clock.
#[test]
fn what_a_scheduler_costs() -> Result<()> {
    const SERVICE: u32 = 50;
    const BLOCKS: usize = 9;
    const ROUNDS: usize = 400;
    let mut kernel = Kernel::load()?;
    let vip = std::net::IpAddr::from([192, 0, 2, 50]);
    kernel.add_service(
        &FrontendKey {
            addr: vip.into(),
            port_be: 80_u16.to_be(),
            protocol: Protocol::Tcp.number(),
            zero: 0,
        },
        &Frontend {
            service: SERVICE,
            outside_service: 0,
            kind: FrontendKind::ClusterIp as u8,
            flags: 0,
            zero: [0; 2],
        },
    )?;
    let mut first = 200;
    let mut runs = BTreeMap::new();
    for count in [10, 1000] {
        for out in [None, Some(10), Some(2)] {
            kernel.add_backends(first, &backends(SERVICE, count, out))?;
            runs.insert((count, out), ServiceWord::with_backends(first, count));
            first += count;
            if count > 10 {
                break;
            }
        }
    }
    let mut arp = vec![0; 60];
    arp[12..14].copy_from_slice(&[8, 6]);
    let mut clock: Vec<u128> = Vec::new();
    for _ in 0..BLOCKS * ROUNDS {
        let outcome = kernel.run(Hook::Ingress, Link::Ethernet, &arp, 1)?;
        clock.push(outcome.nanoseconds);
    }
    clock.sort_unstable();
    let clock = clock[clock.len() / 2];
    println!("not IP (the clock, above all): {clock} ns");

    for count in [10, 1000] {
        let word = runs[&(count, None)];
        let mut cases: Vec<Balanced> = Vec::new();
        let mut add = |name: String, word| cases.push(Balanced { name, word });
        for fails_over in [true, false] {
            for scheduler in Scheduler::ALL {
                let failover = if fails_over { "" } else { ", no failover" };
                let name = format!("{}{failover}", scheduler.name());
                add(name, word.scheduled(scheduler, fails_over, false));
            }
        }
        let random = word.scheduled(Scheduler::Random, true, false);
        add("random, once more".into(), random);
        for scheduler in [
            Scheduler::LeastConnections,
            Scheduler::ShortestDelay,
            Scheduler::NeverQueue,
        ] {
            let name = format!("{}, weights", scheduler.name());
            add(name, word.scheduled(scheduler, true, true));
        }
        for (out, share) in [(10, "one in ten"), (2, "half")] {
            let Some(word) = runs.get(&(count, Some(out))) else {
                continue;
            };
            for scheduler in [
                Scheduler::Random,
                Scheduler::LeastConnections,
                Scheduler::ShortestDelay,
            ] {
                let name = format!("{}, {share} passed over", scheduler.name());
                add(name, word.scheduled(scheduler, true, false));
            }
        }
        let mut times: Vec<Vec<f64>> = vec![Vec::new(); cases.len()];
        for block in 0..BLOCKS {
            let mut samples: Vec<Vec<u128>> = vec![Vec::new(); cases.len()];
            for round in 0..ROUNDS {
                if round % 16 == 0 {
                    kernel.forget()?;
                }
                for at in 0..cases.len() {
                    // Each comes behind each.
                    let at = (at * 7 + round) % cases.len();
                    kernel.set_service(SERVICE, cases[at].word.into())?;
                    let number = u16::try_from((block * ROUNDS + round) % 60_000)?;
                    let client = [198, 51, 100, u8::try_from(at)? + 1];
                    let from = SocketAddr::from((client, 1024 + number));
                    let packet = Make::new(SYN, from, SocketAddr::new(vip, 80));
                    let outcome = kernel.run(Hook::Ingress, Link::Ethernet, &packet.frame(), 1)?;
                    samples[at].push(outcome.nanoseconds);
                }
            }
            for (samples, times) in samples.iter_mut().zip(&mut times) {
                samples.sort_unstable();
                #[expect(clippy::cast_precision_loss, reason = "nanoseconds of one run")]
                times.push(samples[samples.len() / 2] as f64);
            }
        }
        println!(
            "{count} backends: first packet, and beside random (lowest..highest of {BLOCKS} blocks)"
        );
        for (case, of_case) in cases.iter().zip(&times) {
            let mut ratios: Vec<f64> = of_case.iter().zip(&times[0]).map(|(a, b)| a / b).collect();
            ratios.sort_by(f64::total_cmp);
            let mut sorted = of_case.clone();
            sorted.sort_by(f64::total_cmp);
            println!(
                "  {:<36} {:>5} ns  {:.3}  {:.3}..{:.3}",
                case.name,
                sorted[BLOCKS / 2],
                ratios[BLOCKS / 2],
                ratios[0],
                ratios[BLOCKS - 1]
            );
        }
    }
    let counters = kernel.counters()?;
    ensure!(counters[&Counter::TableDamaged] == 0, "{counters:?}");
    Ok(())
}
