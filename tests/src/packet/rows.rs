//! What goes in, what is said of it, and what comes out.

use std::net::{IpAddr, SocketAddr};

use proxy_common::{
    datapath::path::{Done, DropReason, Hook, Passed, Verdict},
    wire::link::Link,
};

use super::{
    Scene,
    make::{Make, Told, Transport},
};

/// One packet at one hook.
#[derive(Clone, Debug)]
pub struct Step {
    pub hook: Hook,
    pub link: Link,
    pub frame: Vec<u8>,
    pub verdict: Verdict,
    /// What leaves, if only as an answer; empty: nothing does.
    pub out: Vec<u8>,
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
        frame,
        verdict,
        out,
    }
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
                    vec![answered(&varied, Verdict::Reject, answer)],
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
    let mut steps = vec![
        step(
            Hook::Ingress,
            to.frame(),
            Verdict::Redirect(Done::NewFlow),
            outside.frame(),
        ),
        step(
            Hook::Ingress,
            reply.frame(),
            Verdict::Redirect(Done::Reversed),
            shown.frame(),
        ),
        step(
            Hook::Ingress,
            to.frame(),
            Verdict::Redirect(Done::Forwarded),
            outside.frame(),
        ),
    ];
    for step in &mut steps {
        step.link = link_of(to);
        if !to.ethernet {
            // Its addresses are left for the kernel to fill in.
            step.out[..12].fill(0);
        }
    }
    steps
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

/// Senders that are none, and packets that were sent to many.
fn not_told(scene: Scene) -> Vec<Step> {
    let to = Make::new(Transport::Udp, scene.client(), at(scene.idle_vip(), 80));
    let mut to_all = to.frame();
    to_all[..6].fill(0xff);
    let [first, rest] = to.fragments();
    let mut steps: Vec<_> = scene
        .impossible_senders()
        .into_iter()
        .map(|ip| to.between(at(ip, 4711), to.dst).frame())
        .chain([to_all])
        .map(|frame| lost(frame, Verdict::Reject))
        .collect();
    let about = first[14..].to_vec();
    steps.push(step(
        Hook::Ingress,
        first,
        Verdict::Reject,
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
            Verdict::Reject,
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
