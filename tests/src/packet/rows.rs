//! What goes in, what is said of it, and what comes out.

use std::net::{IpAddr, SocketAddr};

use proxy_common::{
    datapath::path::{Done, DropReason, Hook, Passed, Refusal, Verdict},
    wire::link::Link,
};

use super::{
    Scene,
    make::{Make, Told, Transport},
    scene::{GUEST, UPLINK},
};

/// One packet at one hook.
#[derive(Clone, Debug)]
pub struct Step {
    pub hook: Hook,
    pub link: Link,
    pub device: u32,
    /// It is what the step before has redirected.
    pub is_sent_on: bool,
    pub frame: Vec<u8>,
    pub verdict: Verdict,
    /// What leaves, if only as an answer; empty if that is looked at elsewhere.
    pub out: Vec<u8>,
    /// Nobody gets an answer.
    pub is_untold: bool,
}

/// Packets that follow one another, on a node that knows no flow.
#[derive(Clone, Debug)]
pub struct Row {
    pub name: String,
    pub steps: Vec<Step>,
}

fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

fn step(hook: Hook, frame: Vec<u8>, verdict: Verdict, out: Vec<u8>) -> Step {
    Step {
        hook,
        link: Link::Ethernet,
        device: UPLINK,
        is_sent_on: false,
        frame,
        verdict,
        out,
        is_untold: false,
    }
}

/// At the device of the pod here.
fn at_guest(step: Step) -> Step {
    Step {
        device: GUEST,
        ..step
    }
}

/// A redirection, which is left alone as it leaves.
fn redirected(frame: Vec<u8>, done: Done, out: Vec<u8>) -> [Step; 2] {
    let first = step(Hook::Ingress, frame, Verdict::Redirect(done), out.clone());
    let mut then = passed(Hook::Egress, out, Passed::SentOn);
    then.is_sent_on = true;
    [first, then]
}

/// Left as it is.
fn passed(hook: Hook, frame: Vec<u8>, why: Passed) -> Step {
    step(hook, frame.clone(), Verdict::Pass(why), frame)
}

fn lost(frame: Vec<u8>, verdict: Verdict) -> Step {
    step(Hook::Ingress, frame, verdict, Vec::new())
}

/// Not sent on, but answered.
fn answered(to: &Make, verdict: Verdict, answer: Vec<u8>) -> Step {
    Step {
        link: link_of(to),
        ..step(Hook::Ingress, to.frame(), verdict, answer)
    }
}

fn tcp(flags: &'static str, seq: u32, ack: u32) -> Transport {
    Transport::Tcp { flags, seq, ack }
}

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for scene in Scene::BOTH {
        let family = if scene.v6 { "v6" } else { "v4" };
        let mut add = |name: &str, steps: Vec<Step>| {
            rows.push(Row {
                name: format!("{family} {name}"),
                steps,
            });
        };
        let syn = tcp("S", 100, 0);
        for (name, transport) in [
            ("tcp", syn),
            ("udp", Transport::Udp),
            ("sctp", Transport::Sctp),
        ] {
            let base = Make::new(transport, scene.client(), at(scene.vip(), 80));
            add(
                &format!("{name} to a pod here, and back"),
                local(scene, &base),
            );
            for (what, change) in VARIANTS {
                let mut varied = base.clone();
                change(&mut varied);
                add(
                    &format!("{name} {what} to a pod here"),
                    local(scene, &varied),
                );
                let mut varied = base.between(scene.client(), at(scene.far_vip(), 80));
                change(&mut varied);
                add(
                    &format!("{name} {what} to a pod elsewhere"),
                    remote(scene, &varied),
                );
            }
            let base = base.between(scene.client(), at(scene.far_vip(), 80));
            add(
                &format!("{name} to a pod elsewhere, and back"),
                remote(scene, &base),
            );
            let mut old = base.clone();
            old.ttl = 1;
            add(&format!("{name} on its last hop"), last_hop(scene, &old));
            for (what, change) in [("as it is", (|_| {}) as Change)]
                .iter()
                .chain(VARIANTS)
                .chain(SIZES)
            {
                let mut varied = base.between(scene.client(), at(scene.idle_vip(), 80));
                change(&mut varied);
                let answer = varied.answer(scene.idle_vip(), Told::PortUnreachable);
                add(
                    &format!("{name} {what} to nobody"),
                    vec![answered(
                        &varied,
                        Verdict::Reject(Refusal::NoEndpoints),
                        answer,
                    )],
                );
            }
            add(&format!("{name} too big to leave"), too_big(scene, &base));
            if !matches!(transport, Transport::Sctp) {
                add(&format!("{name} in fragments"), fragments(scene, &base));
            }
            let mut base = base;
            // A quoted CRC stays what it was: it covers more than is quoted.
            base.checksum = !matches!(transport, Transport::Sctp);
            add(
                &format!("{name} too big for a pod here"),
                local_error(scene, &base),
            );
            add(
                &format!("{name} too big on the way"),
                remote_error(scene, &base),
            );
        }
        add("one port through two frontends", collision(scene));
        add("without endpoints", no_endpoints(scene));
        add("to nobody, from nobody to be told", not_told(scene));
        add("none of our business", strangers(scene));
        add("for another host", for_another_host(scene));
        add("from a pod to a pod elsewhere", from_guest(scene));
        add("from a pod to itself", hairpin(scene));
        add("to whom it asks", split(scene));
        add("from a range and from none", ranges(scene));
        add(
            "to a ClusterIP on its way in",
            unknown_ports(scene, Hook::Ingress),
        );
        add(
            "to a ClusterIP on its way out",
            unknown_ports(scene, Hook::Egress),
        );
        add("to a frontend on its way out", untranslated(scene));
        add("to where no route leads", no_route(scene));
        add(
            "to a process here without a node's name",
            own_backend(scene),
        );
        add("to a backend that is a frontend", odd(scene));
        add("to the backend that it got last", sticky(scene));
        for (what, client, port) in [
            ("that got none before", scene.other_client(), 80),
            ("that got one too long ago", scene.client(), 82),
            ("whose backend gets no new connections", scene.client(), 83),
        ] {
            let to = Make::new(Transport::Udp, client, at(scene.sticky_vip(), port));
            let name = format!("with affinity, from a client {what}");
            add(&name, remote(scene, &to));
        }
    }
    rows
}

type Change = fn(&mut Make);

/// Forms that a packet may have.
const VARIANTS: &[(&str, Change)] = &[
    ("with one tag", |make| make.tags = 1),
    ("with two tags", |make| make.tags = 2),
    ("with options", |make| make.options = true),
    ("without Ethernet", |make| make.ethernet = false),
    ("without payload", |make| make.payload.clear()),
    ("without checksum", |make| {
        // IPv6 knows none without, but what comes so goes on so.
        make.checksum = false;
    }),
];

/// Odd, and more than is quoted.
const SIZES: &[(&str, Change)] = &[
    ("of one byte", |make| make.payload.truncate(1)),
    ("of three bytes", |make| make.payload.truncate(3)),
    ("as long as a quote", |make| {
        make.payload = (0..=255).cycle().take(512 - make.headers()).collect();
    }),
    ("longer than a quote", |make| {
        make.payload = (0..=255).cycle().skip(3).take(1301).collect();
    }),
];

fn link_of(make: &Make) -> Link {
    if make.ethernet {
        Link::Ethernet
    } else {
        Link::None
    }
}

/// What an answer to `make` looks like between these two.
fn answer(make: &Make, src: SocketAddr, dst: SocketAddr) -> Make {
    let mut answer = make.between(src, dst);
    if let Transport::Tcp { seq, .. } = make.transport {
        answer.transport = tcp("SA", 9000, seq + 1);
    }
    answer
}

/// Rows 1 and 3 of DESIGN's table: the client keeps its address.
fn local(scene: Scene, to: &Make) -> Vec<Step> {
    let pod = at(scene.pod(), 8080);
    let inside = to.between(to.src, pod);
    let reply = answer(to, pod, to.src);
    let shown = reply.between(to.dst, to.src);
    let mut steps = vec![
        step(
            Hook::Ingress,
            to.frame(),
            Verdict::Stack(Done::NewFlow),
            inside.frame(),
        ),
        // On its way up from the pod's device it is nobody's.
        passed(Hook::Ingress, reply.frame(), Passed::NotOurs),
        step(
            Hook::Egress,
            reply.frame(),
            Verdict::Stack(Done::Reversed),
            shown.frame(),
        ),
        step(
            Hook::Ingress,
            to.frame(),
            Verdict::Stack(Done::Forwarded),
            inside.frame(),
        ),
    ];
    if let Transport::Tcp { seq, .. } = to.transport {
        let mut more = to.clone();
        for flags in ["A", "FA", "R"] {
            more.transport = tcp(flags, seq + 1, 9001);
            steps.push(step(
                Hook::Ingress,
                more.frame(),
                Verdict::Stack(Done::Forwarded),
                more.between(to.src, pod).frame(),
            ));
        }
    }
    for step in &mut steps {
        step.link = link_of(to);
    }
    steps
}

/// Row 2: this node stands in for the client.
fn remote(scene: Scene, to: &Make) -> Vec<Step> {
    let pod = at(scene.far_pod(), 8080);
    let node = at(scene.node(), Scene::SNAT_PORTS.first);
    let outside = to.between(node, pod).forwarded();
    let reply = answer(to, pod, node);
    let shown = reply.between(to.dst, to.src).forwarded();
    let mut steps: Vec<_> = [
        redirected(to.frame(), Done::NewFlow, outside.frame()),
        redirected(reply.frame(), Done::Reversed, shown.frame()),
        redirected(to.frame(), Done::Forwarded, outside.frame()),
    ]
    .into_iter()
    .flatten()
    .collect();
    for step in &mut steps {
        if !to.ethernet {
            // Its addresses are left for the kernel to fill in.
            step.out[..12].fill(0);
            if step.is_sent_on {
                step.frame[..12].fill(0);
            } else {
                step.link = Link::None;
            }
        }
    }
    // Were the mark to be lost, it would be recognised as nobody's all the same.
    steps.push(passed(Hook::Egress, outside.frame(), Passed::NotOurs));
    steps.push(passed(Hook::Egress, shown.frame(), Passed::NotOurs));
    steps
}

/// By both lists; each time it is a new flow.
fn sticky(scene: Scene) -> Vec<Step> {
    (0..)
        .zip([80, 81, 80, 81])
        .flat_map(|(i, port)| {
            let mut client = scene.client();
            client.set_port(client.port() + i);
            let vip = at(scene.sticky_vip(), port);
            local(scene, &Make::new(Transport::Udp, client, vip))
        })
        .collect()
}

fn fragments(scene: Scene, to: &Make) -> Vec<Step> {
    let outside = to
        .between(
            at(scene.node(), Scene::SNAT_PORTS.first),
            at(scene.far_pod(), 8080),
        )
        .forwarded();
    let ([first, rest], [first_out, rest_out]) = (to.fragments(), outside.fragments());
    vec![
        passed(Hook::Ingress, rest.clone(), Passed::OrphanFragment),
        step(
            Hook::Ingress,
            first,
            Verdict::Redirect(Done::NewFlow),
            first_out,
        ),
        step(
            Hook::Ingress,
            rest,
            Verdict::Redirect(Done::Forwarded),
            rest_out,
        ),
    ]
}

/// An error about what the pod sent, from the client's side; and one about what it got, from its own.
fn local_error(scene: Scene, to: &Make) -> Vec<Step> {
    let to = &to.between(scene.client(), at(scene.vip(), 80));
    let pod = at(scene.pod(), 8080);
    let inside = to.between(to.src, pod);
    let reply = answer(to, pod, to.src);
    let shown = reply.between(to.dst, to.src);
    let router = at(scene.router(), 0);
    vec![
        step(
            Hook::Ingress,
            to.frame(),
            Verdict::Stack(Done::NewFlow),
            inside.frame(),
        ),
        step(
            Hook::Ingress,
            to.between(router, to.dst).too_big(&shown.packet()),
            Verdict::Stack(Done::ErrorTranslated),
            to.between(router, pod).too_big(&reply.packet()),
        ),
        step(
            Hook::Egress,
            reply.too_big(&inside.packet()),
            Verdict::Stack(Done::ErrorTranslated),
            shown.too_big(&to.packet()),
        ),
    ]
}

/// An error about what left for the backend: the client hears of it, with the addresses it knows.
fn remote_error(scene: Scene, to: &Make) -> Vec<Step> {
    let pod = at(scene.far_pod(), 8080);
    let node = at(scene.node(), Scene::SNAT_PORTS.first);
    let outside = to.between(node, pod).forwarded();
    let router = at(scene.router(), 0);
    let reply = answer(to, pod, node);
    let shown = reply.between(to.dst, to.src);
    // A quote has the age that its packet had.
    let mut quoted = to.clone();
    quoted.ttl -= 1;
    vec![
        step(
            Hook::Ingress,
            to.frame(),
            Verdict::Redirect(Done::NewFlow),
            outside.frame(),
        ),
        step(
            Hook::Ingress,
            to.between(router, node).too_big(&outside.packet()),
            Verdict::Redirect(Done::ErrorTranslated),
            to.between(to.dst, to.src)
                .forwarded()
                .too_big(&quoted.packet()),
        ),
        step(
            Hook::Ingress,
            to.between(router, to.dst).too_big(&shown.packet()),
            Verdict::Redirect(Done::ErrorTranslated),
            to.between(node, pod).forwarded().too_big(&reply.packet()),
        ),
    ]
}

/// The second flow gets another port; both answers find their way.
fn collision(scene: Scene) -> Vec<Step> {
    let pod = at(scene.pod(), 8080);
    let first = Make::new(Transport::Udp, scene.client(), at(scene.vip(), 80));
    let second = first.between(first.src, at(scene.other_vip(), 80));
    let moved = at(first.src.ip(), Scene::SNAT_PORTS.first);
    let back = |dst, frontend| {
        step(
            Hook::Egress,
            first.between(pod, dst).frame(),
            Verdict::Stack(Done::Reversed),
            first.between(frontend, first.src).frame(),
        )
    };
    vec![
        step(
            Hook::Ingress,
            first.frame(),
            Verdict::Stack(Done::NewFlow),
            first.between(first.src, pod).frame(),
        ),
        step(
            Hook::Ingress,
            second.frame(),
            Verdict::Stack(Done::NewFlow),
            first.between(moved, pod).frame(),
        ),
        back(first.src, first.dst),
        back(moved, second.dst),
    ]
}

/// Whether a flow begins or goes on with it: this node tells the sender.
fn last_hop(scene: Scene, old: &Make) -> Vec<Step> {
    let verdict = Verdict::Drop(DropReason::TtlExceeded);
    let answer = old.answer(scene.node(), Told::TimeExceeded);
    let mut young = old.clone();
    young.ttl = 64;
    let begin = remote(scene, &young).remove(0);
    vec![
        answered(old, verdict, answer.clone()),
        begin,
        answered(old, verdict, answer),
    ]
}

/// Of a size that the next device takes, and of one byte more, with "don't fragment" and without.
fn too_big(scene: Scene, to: &Make) -> Vec<Step> {
    let verdict = Verdict::Drop(DropReason::TooBig);
    let told = Told::TooBig { mtu: Scene::MTU };
    let mut fits = to.clone();
    fits.payload.clear();
    let room = usize::from(Scene::MTU) - fits.packet().len();
    fits.payload = (0..=255).cycle().take(room).collect();
    let mut more = fits.clone();
    more.payload.push(1);
    let answer = more.answer(scene.node(), told);
    vec![
        answered(&more, verdict, answer.clone()),
        remote(scene, &fits).remove(0),
        answered(&more, verdict, answer),
    ]
}

/// Senders that are none, and what has no header to quote. (What is sent to many is passed.)
fn not_told(scene: Scene) -> Vec<Step> {
    let to = Make::new(Transport::Udp, scene.client(), at(scene.idle_vip(), 80));
    let [first, rest] = to.fragments();
    let mut steps: Vec<_> = scene
        .impossible_senders()
        .into_iter()
        .map(|ip| to.between(at(ip, 4711), to.dst).frame())
        .map(|frame| Step {
            is_untold: true,
            ..lost(frame, Verdict::Reject(Refusal::NoEndpoints))
        })
        .collect();
    let about = first[14..].to_vec();
    steps.push(step(
        Hook::Ingress,
        first,
        Verdict::Reject(Refusal::NoEndpoints),
        to.answer_about_fragment(&about, scene.idle_vip()),
    ));
    steps.push(passed(Hook::Ingress, rest, Passed::OrphanFragment));
    steps
}

fn no_endpoints(scene: Scene) -> Vec<Step> {
    let make =
        |port, flags| Make::new(tcp(flags, 1, 0), scene.client(), at(scene.idle_vip(), port));
    let to = |port, flags| make(port, flags).frame();
    let reset = Make::new(tcp("R", 1, 0), scene.client(), at(scene.vip(), 80));
    vec![
        answered(
            &make(80, "S"),
            Verdict::Reject(Refusal::NoEndpoints),
            make(80, "S").answer(scene.idle_vip(), Told::PortUnreachable),
        ),
        lost(to(80, "R"), Verdict::Drop(DropReason::StrayReset)),
        lost(to(81, "S"), Verdict::Drop(DropReason::NoLocalEndpoint)),
        lost(reset.frame(), Verdict::Drop(DropReason::StrayReset)),
    ]
}

fn strangers(scene: Scene) -> Vec<Step> {
    let other = Make::new(Transport::Udp, scene.client(), at(scene.pod(), 53));
    let error = other.too_big(&other.packet());
    let mut short = other.frame();
    short.truncate(short.len() - 1);
    let to_localhost = Make::new(Transport::Udp, scene.client(), at(scene.localhost(), 30080));
    vec![
        passed(Hook::Ingress, to_localhost.frame(), Passed::NotOurs),
        passed(Hook::Ingress, other.frame(), Passed::NotOurs),
        passed(Hook::Egress, other.frame(), Passed::NotOurs),
        passed(Hook::Ingress, error, Passed::NotOurs),
        passed(Hook::Ingress, short, Passed::Malformed),
    ]
}

/// What a promiscuous device hears, and what every host on the link does.
fn for_another_host(scene: Scene) -> Vec<Step> {
    let to = Make::new(Transport::Udp, scene.client(), at(scene.vip(), 80)).frame();
    [[2, 0, 0, 0, 0, 9], [0xff; 6]]
        .map(|mac: [u8; 6]| {
            let mut frame = to.clone();
            frame[..6].copy_from_slice(&mac);
            passed(Hook::Ingress, frame, Passed::NotOurs)
        })
        .into()
}

/// Row 6 of DESIGN's table: through the stack wherever the backend is; its whole way.
fn from_guest(scene: Scene) -> Vec<Step> {
    let guest = at(scene.pod(), 5000);
    let to = Make::new(Transport::Udp, guest, at(scene.far_vip(), 80));
    let inside = to.between(guest, at(scene.far_pod(), 8080));
    let reply = answer(&inside, inside.dst, guest);
    let shown = reply.between(to.dst, guest);
    let router = at(scene.router(), 0);
    let error = reply.between(router, guest).too_big(&inside.packet());
    vec![
        at_guest(step(
            Hook::Ingress,
            to.frame(),
            Verdict::Stack(Done::NewFlow),
            inside.frame(),
        )),
        passed(Hook::Egress, inside.frame(), Passed::NotOurs),
        passed(Hook::Ingress, reply.frame(), Passed::NotOurs),
        at_guest(step(
            Hook::Egress,
            reply.frame(),
            Verdict::Stack(Done::Reversed),
            shown.frame(),
        )),
        at_guest(step(
            Hook::Ingress,
            to.frame(),
            Verdict::Stack(Done::Forwarded),
            inside.frame(),
        )),
        passed(Hook::Ingress, error.clone(), Passed::NotOurs),
        at_guest(step(
            Hook::Egress,
            error,
            Verdict::Stack(Done::ErrorTranslated),
            shown.too_big(&to.packet()),
        )),
    ]
}

/// Row 6 again: this node stands in for the client, or the answer would never leave the pod.
fn hairpin(scene: Scene) -> Vec<Step> {
    let guest = at(scene.pod(), 5000);
    let node = at(scene.node(), Scene::SNAT_PORTS.first);
    let to = Make::new(Transport::Udp, guest, at(scene.vip(), 80));
    let back = to.between(node, at(scene.pod(), 8080)).forwarded();
    let reply = to.between(back.dst, node);
    let shown = to.between(to.dst, guest).forwarded();
    [
        redirected(to.frame(), Done::NewFlow, back.frame()),
        redirected(reply.frame(), Done::Reversed, shown.frame()),
        redirected(to.frame(), Done::Forwarded, back.frame()),
    ]
    .into_iter()
    .flatten()
    .map(at_guest)
    .collect()
}

/// `externalTrafficPolicy: Local`: outside gets what is here, pods get all there is.
fn split(scene: Scene) -> Vec<Step> {
    let to = Make::new(Transport::Udp, scene.client(), at(scene.split_vip(), 80));
    let guest = to.between(at(scene.pod(), 5000), to.dst);
    let inside = |make: &Make, ip| make.between(make.src, at(ip, 8080)).frame();
    vec![
        step(
            Hook::Ingress,
            to.frame(),
            Verdict::Stack(Done::NewFlow),
            inside(&to, scene.pod()),
        ),
        at_guest(step(
            Hook::Ingress,
            guest.frame(),
            Verdict::Stack(Done::NewFlow),
            inside(&guest, scene.far_pod()),
        )),
    ]
}

fn ranges(scene: Scene) -> Vec<Step> {
    let to =
        |client, port| Make::new(Transport::Udp, client, at(scene.guarded_vip(), port)).frame();
    let (client, other) = (scene.client(), scene.other_client());
    let inside = Make::new(Transport::Udp, client, at(scene.pod(), 8080)).frame();
    let refused = Verdict::Drop(DropReason::NotAllowed);
    let without = Verdict::Reject(Refusal::NoEndpoints);
    vec![
        lost(to(other, 80), refused),
        // Endpoints or not (BEHAVIOUR R4).
        lost(to(other, 81), refused),
        lost(to(client, 81), without),
        step(
            Hook::Ingress,
            to(client, 80),
            Verdict::Stack(Done::NewFlow),
            inside,
        ),
        at_guest(lost(to(at(scene.pod(), 5000), 81), without)),
        at_guest(lost(to(other, 80), refused)),
        step(Hook::Egress, to(other, 80), refused, Vec::new()),
        step(Hook::Egress, to(other, 81), refused, Vec::new()),
        step(Hook::Egress, to(client, 81), without, Vec::new()),
    ]
}

/// BEHAVIOUR A11-A13, R6.
fn unknown_ports(scene: Scene, hook: Hook) -> Vec<Step> {
    let to = |transport, ip, port| Make::new(transport, scene.client(), at(ip, port));
    let known = |transport, port| to(transport, scene.cluster_ip(), port);
    let free = |transport| to(transport, scene.free_cluster_ip(), 80);
    let syn = tcp("S", 1, 0);
    let udp = known(Transport::Udp, 81);
    let refused = Verdict::Reject(Refusal::UnknownPort);
    let dropped = Verdict::Drop(DropReason::UnallocatedClusterIp);
    let reset = Verdict::Drop(DropReason::StrayReset);
    let ends = |frame, verdict| step(hook, frame, verdict, Vec::new());
    let leaves = |frame| passed(hook, frame, Passed::NotOurs);
    // What has no ports is answered like what has: BEHAVIOUR A11 is about every protocol.
    let told = |frame: Vec<u8>| {
        let out = match hook {
            Hook::Ingress => udp.answer_quoting(&frame[14..], udp.dst.ip(), Told::PortUnreachable),
            Hook::Egress => Vec::new(),
        };
        step(hook, frame, refused, out)
    };
    let mut steps = vec![
        ends(known(syn, 81).frame(), refused),
        // The same port in another protocol.
        ends(known(syn, 80).frame(), refused),
        ends(udp.frame(), refused),
        ends(known(Transport::Sctp, 81).frame(), refused),
        told(udp.echo(true)),
        told(udp.of(47, false)),
        told(udp.empty_of(47)),
        ends(known(tcp("R", 1, 0), 81).frame(), reset),
        ends(free(syn).frame(), dropped),
        ends(free(tcp("R", 1, 0)).frame(), dropped),
        ends(free(Transport::Udp).frame(), dropped),
        ends(free(Transport::Udp).echo(true), dropped),
        ends(free(Transport::Udp).of(47, false), dropped),
        // No answer to an answer, to an error, or to a piece.
        leaves(udp.echo(false)),
        leaves(udp.too_big(&udp.packet())),
        leaves(udp.of(47, true)),
        // No connection begins so.
        leaves(known(tcp("A", 1, 1), 81).frame()),
        leaves(free(tcp("A", 1, 1)).frame()),
        // The Service's neighbours beyond its net.
        leaves(to(Transport::Udp, scene.far_pod(), 80).echo(true)),
        leaves(to(Transport::Udp, scene.far_pod(), 80).of(47, false)),
    ];
    let [first, rest] = udp.fragments();
    steps.push(ends(first, refused));
    let orphan = Verdict::Drop(DropReason::OrphanFragment);
    steps.push(ends(rest, orphan));
    let [_, rest] = free(Transport::Udp).fragments();
    steps.push(ends(rest, orphan));
    let [_, rest] = to(Transport::Udp, scene.far_pod(), 80).fragments();
    steps.push(passed(hook, rest, Passed::OrphanFragment));
    let from_pod: Vec<_> = steps.iter().cloned().map(at_guest).collect();
    steps.extend(from_pod);
    steps
}

/// No flow begins on the way out.
fn untranslated(scene: Scene) -> Vec<Step> {
    let to = |transport, ip, port| Make::new(transport, at(scene.node(), 50_000), at(ip, port));
    let ip = scene.cluster_ip();
    let ends = |frame, verdict| step(Hook::Egress, frame, verdict, Vec::new());
    let leaves = |frame| passed(Hook::Egress, frame, Passed::NotOurs);
    vec![
        leaves(to(Transport::Udp, ip, 80).frame()),
        leaves(to(Transport::Udp, ip, 80).frame()),
        leaves(to(tcp("S", 1, 0), scene.far_vip(), 80).frame()),
        leaves(to(Transport::Udp, scene.localhost(), 30080).frame()),
        ends(
            to(tcp("S", 1, 0), ip, 82).frame(),
            Verdict::Reject(Refusal::NoEndpoints),
        ),
        ends(
            to(tcp("R", 1, 0), ip, 82).frame(),
            Verdict::Drop(DropReason::StrayReset),
        ),
        leaves(to(tcp("A", 1, 1), ip, 82).frame()),
        ends(
            to(tcp("S", 1, 0), ip, 83).frame(),
            Verdict::Drop(DropReason::NoLocalEndpoint),
        ),
    ]
}

fn no_route(scene: Scene) -> Vec<Step> {
    let lost_to = |client, ip| {
        lost(
            Make::new(Transport::Udp, client, at(ip, 80)).frame(),
            Verdict::Drop(DropReason::NoRoute),
        )
    };
    vec![
        lost_to(scene.client(), scene.lost_vip()),
        // The rules go by the client's address, as if its packet were forwarded.
        lost_to(scene.barred_client(), scene.far_vip()),
    ]
}

/// Row 3: the endpoint's address is this node's own.
fn own_backend(scene: Scene) -> Vec<Step> {
    let to = Make::new(Transport::Udp, scene.client(), at(scene.own_vip(), 80));
    let inside = to.between(to.src, at(scene.node(), 8080));
    let reply = to.between(inside.dst, to.src);
    vec![
        step(
            Hook::Ingress,
            to.frame(),
            Verdict::Stack(Done::NewFlow),
            inside.frame(),
        ),
        step(
            Hook::Egress,
            reply.frame(),
            Verdict::Stack(Done::Reversed),
            reply.between(to.dst, to.src).frame(),
        ),
    ]
}

/// What was redirected isn't judged again on its way out.
fn odd(scene: Scene) -> Vec<Step> {
    let to = Make::new(tcp("S", 1, 0), scene.client(), at(scene.odd_vip(), 80));
    let node = at(scene.node(), Scene::SNAT_PORTS.first);
    let out = to
        .between(node, at(scene.idle_vip(), 80))
        .forwarded()
        .frame();
    let mut steps: Vec<_> = redirected(to.frame(), Done::NewFlow, out.clone()).into();
    steps.push(step(
        Hook::Egress,
        out,
        Verdict::Reject(Refusal::NoEndpoints),
        Vec::new(),
    ));
    steps
}
