//! What is printed of a story: for people, in the order in which things happen, and for scripts. Pure.

use std::net::SocketAddr;

use proxy_common::{
    abi::{
        AffinityEntry, Counter, Device, FlowEntry, Frontend, FrontendKey, Protocol, Service,
        SockAddr, Tuple, Via,
    },
    datapath::{
        path::{Hook, Verdict, Way},
        socket,
        traced::Lookup,
    },
};
use serde::Serialize;

use super::{
    choice,
    kernel::{Agreement, KernelRun},
    place::{Call, Origin, Place},
    reasons::{Reasons, is_unknown},
    story::{Kind, Outcome, PacketOutcome, Story, is_parked},
    words::{self, Names},
};
use crate::plan::address_of;

/// Columns of the words before the sentences.
const LABEL: usize = 10;
/// Where a line ends, if nothing says how wide the terminal is.
const WIDTH: usize = 80;
/// Backends that are listed one by one.
const LISTED: usize = 8;

/// One step of the story.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    pub what: &'static str,
    pub text: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub protocol: ProtocolName,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub verdict: Kind,
    /// Where it goes, if it is translated.
    pub backend: Option<SocketAddr>,
    /// Of whom the backend was chosen.
    pub candidates: Vec<SocketAddr>,
    /// The client had the backend already: no scheduler was asked.
    pub kept: bool,
    /// How it was chosen; absent if there was nothing to choose from, or it was kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choice: Option<ChoiceReport>,
    /// What is counted.
    pub counters: Vec<&'static str>,
    pub story: Vec<Line>,
    /// The verdict in a sentence.
    pub summary: String,
    /// Every question that the datapath asked, and what was found.
    pub lookups: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<KernelRun>,
}

/// By which rule a backend was chosen.
#[derive(Clone, Debug, Serialize)]
pub struct ChoiceReport {
    pub scheduler: &'static str,
    /// Whether backends that don't answer are passed over.
    pub failover: bool,
    /// Of the slots that the scheduler draws from, how many are each candidate's: 0 to 1, in the order of
    /// `candidates`.
    pub shares: Vec<f64>,
    /// At whom it looked, in this order.
    pub looked_at: Vec<LookedAt>,
    /// How many connections the Service port was given before, on this node, where that decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turn: Option<u64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct LookedAt {
    pub backend: SocketAddr,
    pub weight: u16,
    /// Connections of this node that it has.
    pub active: u64,
    /// It was not to be had, if there were others.
    pub passed_over: bool,
    /// Attempts to connect to it that failed since one was answered.
    pub failures: u32,
}

/// As Kubernetes spells it.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(transparent)]
pub struct ProtocolName(&'static str);

/// Collects the lines.
struct Teller<'a, N> {
    story: &'a Story,
    names: &'a N,
    now_ns: u64,
    lines: Vec<Line>,
}

impl Report {
    pub(super) fn new(story: &Story, names: &impl Names, why: &str, now_ns: u64) -> Self {
        let mut teller = Teller {
            story,
            names,
            now_ns,
            lines: Vec::new(),
        };
        teller.line("asked", story.question.to_string());
        teller.line("hook", why.to_owned());
        let summary = teller.tell();
        let counters = story.lookups.iter().filter_map(counted);
        Self {
            protocol: ProtocolName(story.question.protocol.name()),
            source: story.question.source,
            destination: story.question.destination,
            verdict: story.kind(),
            backend: story.backend(),
            candidates: story.candidates().collect(),
            kept: story.choice.as_ref().is_some_and(|choice| choice.is_kept),
            choice: reasons(story, now_ns).and_then(|reasons| ChoiceReport::new(&reasons)),
            counters: counters.map(Counter::name).collect(),
            story: teller.lines,
            summary,
            lookups: story
                .lookups
                .iter()
                .map(|lookup| words::lookup(lookup, names))
                .collect(),
            kernel: None,
        }
    }

    pub(super) fn add_notes(&mut self, notes: impl IntoIterator<Item = String>) {
        let lines = notes.into_iter().map(|text| Line { what: "note", text });
        self.story.extend(lines);
    }

    /// What becomes of its packets later.
    pub(crate) fn add_sequel(&mut self, text: String) {
        self.story.push(Line { what: "then", text });
    }

    /// What the loaded program did.
    pub fn set_kernel(&mut self, run: KernelRun) {
        let chose = run.chose.map_or_else(String::new, |backend| {
            format!(" chose {backend} for itself, and")
        });
        self.story.push(Line {
            what: "kernel",
            text: format!(
                "the loaded program {}{chose} returned {}",
                run.program_id, run.returned
            ),
        });
        let written = run.written.iter().map(|text| Line {
            what: "wrote",
            text: text.clone(),
        });
        self.story.extend(written);
        let text = match &run.agreement {
            Agreement::Agrees if run.chose.is_some() => {
                "the kernel agrees: with the same choice the trace comes to the same bytes"
                    .to_owned()
            }
            Agreement::Agrees => "the kernel agrees".to_owned(),
            Agreement::AgreesInPart(why) => {
                format!("the kernel agrees as far as can be seen: {why}")
            }
            Agreement::Differs(how) => format!("THE KERNEL DIFFERS: {how}"),
        };
        self.story.push(Line {
            what: "compared",
            text,
        });
        self.kernel = Some(run);
    }

    /// For people; the verdict in the end. `lookups`: every one, too. `mark`: what is put around the verdict.
    pub fn to_text(
        &self,
        width: Option<u16>,
        lookups: bool,
        mark: impl Fn(&str) -> String,
    ) -> String {
        let width = width.map_or(WIDTH, usize::from).max(40);
        let mut text = String::new();
        for Line { what, text: line } in &self.story {
            text.push_str(&wrapped(what, line, width, |line| line.to_owned()));
        }
        if lookups {
            text.push('\n');
            for (number, lookup) in (1..).zip(&self.lookups) {
                text.push_str(&wrapped(&format!("{number:>3}"), lookup, width, |line| {
                    line.to_owned()
                }));
            }
        }
        text.push('\n');
        text.push_str(&wrapped("verdict", &self.summary, width, mark));
        text.trim_end().to_owned()
    }
}

/// Words in lines of at most `width` columns, all behind the label.
fn wrapped(label: &str, text: &str, width: usize, mark: impl Fn(&str) -> String) -> String {
    let room = width.saturating_sub(LABEL).max(20);
    let mut lines: Vec<String> = Vec::new();
    for part in text.split('\n') {
        let mut line = String::new();
        for word in part.split(' ') {
            if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > room {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(line);
    }
    let mut out = String::new();
    for (index, line) in lines.iter().enumerate() {
        let label = if index == 0 { label } else { "" };
        let line = format!("{label:<LABEL$}{}", mark(line));
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

const fn counted(lookup: &Lookup) -> Option<Counter> {
    if let Lookup::Count(counter) = lookup {
        Some(*counter)
    } else {
        None
    }
}

/// To tell why it is this backend, if one was chosen.
fn reasons(story: &Story, now_ns: u64) -> Option<Reasons<'_>> {
    let avoid = match &story.outcome {
        Outcome::Packet(packet) => packet.work.avoid,
        Outcome::NotOurs | Outcome::Call(_) | Outcome::Lost => 0,
    };
    Some(Reasons {
        choice: story.choice.as_ref()?,
        question: story.question,
        place: story.place,
        now_ns,
        avoid,
    })
}

impl ChoiceReport {
    fn new(reasons: &Reasons<'_>) -> Option<Self> {
        let choice = reasons.choice;
        if choice.is_kept {
            return None;
        }
        let looked_at = |id: &u32| {
            let one = choice.candidate(*id)?;
            Some(LookedAt {
                backend: one.address().socket_addr(),
                weight: one.backend.weight,
                active: one.active(),
                passed_over: choice.passed_over.contains(id),
                failures: one.stats.failures,
            })
        };
        let candidates = choice.candidates.iter();
        Some(Self {
            scheduler: choice.word.scheduler().name(),
            failover: choice.word.fails_over(),
            shares: candidates.map(|one| reasons.share(one)).collect(),
            looked_at: choice.looked_at.iter().filter_map(looked_at).collect(),
            turn: choice.turn,
        })
    }
}

impl<N: Names> Teller<'_, N> {
    fn line(&mut self, what: &'static str, text: String) {
        self.lines.push(Line { what, text });
    }

    fn find<T>(&self, which: impl Fn(&Lookup) -> Option<T>) -> Option<T> {
        self.story.lookups.iter().find_map(which)
    }

    /// The frontend that was asked for, and what is under it.
    fn frontend(&self) -> Option<(FrontendKey, Option<Frontend>)> {
        self.find(|lookup| {
            if let Lookup::Frontend(key, found) = lookup
                && address_of(key).is_none()
            {
                Some((*key, *found))
            } else {
                None
            }
        })
    }

    /// Whether the address as such was asked for, and is a ClusterIP.
    fn cluster_ip(&self) -> Option<bool> {
        self.find(|lookup| {
            if let Lookup::Frontend(key, found) = lookup
                && address_of(key).is_some()
            {
                Some(found.is_some())
            } else {
                None
            }
        })
    }

    /// All lines; yields the verdict.
    fn tell(&mut self) -> String {
        let summary = match &self.story.outcome {
            Outcome::NotOurs => self.not_ours(),
            Outcome::Call(verdict) => {
                self.tables();
                self.call(*verdict)
            }
            Outcome::Lost => {
                self.tables();
                format!(
                    "dropped: {} (this kernel can't refuse a datagram of an unconnected socket)",
                    self.why_refused()
                )
            }
            Outcome::Packet(packet) => {
                self.flow(packet);
                self.tables();
                self.packet(packet)
            }
        };
        let mut counters: Vec<(Counter, usize)> = Vec::new();
        for counter in self.story.lookups.iter().filter_map(counted) {
            match counters.iter_mut().find(|(one, _)| *one == counter) {
                Some((_, times)) => *times += 1,
                None => counters.push((counter, 1)),
            }
        }
        for (counter, times) in counters {
            let text = words::counter(counter);
            self.line(
                "counter",
                match times {
                    1 => text,
                    times => format!("{text} ({times} times)"),
                },
            );
        }
        self.sees();
        summary
    }

    fn not_ours(&mut self) -> String {
        let question = self.story.question;
        let destination = question.destination;
        let what = match question.protocol {
            Protocol::Sctp => {
                "sockets of SCTP have no hooks: what pods send by SCTP is translated as packets, at devices \
                 named by --pod-devices"
            }
            Protocol::Tcp | Protocol::Udp => "only UDP has destinations that sendto() names",
        };
        self.line("program", what.to_owned());
        format!("left alone: it goes to {destination} as it is")
    }

    fn flow(&mut self, packet: &PacketOutcome) {
        let tuple = packet.work.flow.tuple;
        let of_key = |lookup: &Lookup| {
            if let Lookup::Flow(_, key, found) = lookup
                && *key == tuple
            {
                Some(*found)
            } else {
                None
            }
        };
        let lookups = self.story.lookups.iter().filter_map(of_key);
        let found: Vec<Option<FlowEntry>> = lookups.collect();
        if found.is_empty() {
            return;
        }
        let text = match found.into_iter().flatten().next() {
            None => "not known: this packet would begin one".to_owned(),
            Some(entry) => {
                let known = format!(
                    "known, last used {}: {} becomes {} -> {}",
                    words::ago(entry.used_ns, self.now_ns),
                    words::tuple(&tuple),
                    entry.src,
                    entry.dst
                );
                let counter = packet.verdict.counter();
                if packet.work.avoid != 0 {
                    format!(
                        "{known}; {} has not answered, so this packet, which repeats the first one, goes to {}",
                        entry.dst,
                        if counter == Counter::PacketNewFlow {
                            "it again: no other was to be had"
                        } else {
                            "another backend"
                        }
                    )
                } else if matches!(counter, Counter::PacketForwarded | Counter::PacketReversed) {
                    known
                } else {
                    format!("{known}; it is over, and this packet would begin another")
                }
            }
        };
        self.line("flow", text);
    }

    /// From the frontend to the choice.
    fn tables(&mut self) {
        let Some((key, frontend)) = self.frontend() else {
            return;
        };
        let at = words::frontend_key(&key);
        let Some(frontend) = frontend else {
            self.no_frontend(&key, &at);
            return;
        };
        let name = words::service(self.names, frontend.service);
        self.line(
            "frontend",
            format!("{} {at} of {name}", words::kind(&frontend)),
        );
        self.sources(&frontend);
        if frontend.flags & Frontend::NODE_ONLY != 0 {
            self.line(
                "node only",
                "a loopback address: it is for processes of this node".to_owned(),
            );
        }
        let Some((id, service)) = choice::service(&self.story.lookups) else {
            return;
        };
        self.policy(&frontend, id);
        let Some(service) = service else {
            return;
        };
        self.affinity(&service);
        match reasons(self.story, self.now_ns) {
            Some(reasons) => self.choice(&reasons),
            None if service.word.count() == 0 => {
                self.line("backends", "none".to_owned());
            }
            None => {}
        }
    }

    fn no_frontend(&mut self, key: &FrontendKey, at: &str) {
        let ip = key.addr;
        let nets = self.find(|lookup| {
            if let Lookup::ServiceNet(_, is_in) = lookup {
                Some(*is_in)
            } else {
                None
            }
        });
        let more = match (self.cluster_ip(), nets) {
            (Some(true), _) => {
                format!("; {ip} is a ClusterIP, but its Service has no such port and protocol")
            }
            (_, Some(true)) => {
                format!("; {ip} is in a ServiceCIDR, but no Service's")
            }
            (_, Some(false)) => {
                format!("; {ip} is no ClusterIP, and in no ServiceCIDR")
            }
            (Some(false), None) => format!("; {ip} is no ClusterIP"),
            (None, None) => String::new(),
        };
        self.line("frontend", format!("no Service has {at}{more}"));
    }

    fn sources(&mut self, frontend: &Frontend) {
        if frontend.flags & Frontend::SOURCE_RANGES == 0 {
            return;
        }
        let source = self.story.question.source.ip();
        let of_packet = self.find(|lookup| {
            if let Lookup::SourceRange(_, _, allowed) = lookup {
                Some(*allowed)
            } else {
                None
            }
        });
        let text = match (self.story.place, of_packet) {
            (Place::Device { .. }, Some(true)) => {
                format!("loadBalancerSourceRanges admit {source}")
            }
            (Place::Device { .. }, Some(false)) => {
                format!("no loadBalancerSourceRange has {source}")
            }
            // A known flow goes on, whatever the ranges say.
            (Place::Device { .. }, None) => return,
            (Place::Socket(_, origin), _) => {
                let (flag, who) = match origin {
                    Origin::Node => (Frontend::NODE_ALLOWED, "this node's own processes"),
                    Origin::Pod => (Frontend::PODS_ALLOWED, "this node's pods"),
                };
                let admit = if frontend.flags & flag != 0 {
                    "admit"
                } else {
                    "do not admit"
                };
                format!("loadBalancerSourceRanges {admit} {who}")
            }
        };
        self.line("sources", text);
    }

    /// Which list of endpoints it is.
    fn policy(&mut self, frontend: &Frontend, id: u32) {
        let is_local = self.names.service(id).is_some_and(|(_, is_local)| is_local);
        let text = match (frontend.outside_service, is_local) {
            (0, false) => "Cluster: endpoints of the whole cluster serve".to_owned(),
            (0, true) => "Local: only endpoints of this node serve".to_owned(),
            (outside, _) if outside == id => {
                "Local for clients from outside, as this one: only endpoints of this node serve"
                    .to_owned()
            }
            _ => {
                "Local for clients from outside; for pods and processes of this node, as this one, \
                  endpoints of the whole cluster serve"
                    .to_owned()
            }
        };
        self.line("policy", text);
    }

    fn affinity(&mut self, service: &Service) {
        if !service.affinity.is_on() || service.word.count() == 0 {
            return;
        }
        let lasts = words::seconds(service.affinity.timeout_secs());
        let asked = self.find(|lookup| {
            if let Lookup::Affinity(key, found) = lookup {
                Some((*key, *found))
            } else {
                None
            }
        });
        let Some((key, entry)) = asked else {
            return;
        };
        let is_kept = matches!(&self.story.choice, Some(choice) if choice.is_kept);
        let known = match entry {
            None => "this client has none yet".to_owned(),
            Some(entry) => self.known(&entry, service, is_kept),
        };
        self.line(
            "affinity",
            format!("ClientIP: a client keeps its backend for {lasts}; {known}"),
        );
        if is_unknown(&key.client) {
            self.unknown_client();
        }
    }

    /// The client is known by what was not said.
    fn unknown_client(&mut self) {
        let text = match self.story.place {
            Place::Socket(_, Origin::Node) => {
                "this node is known by its network namespace, whose cookie this kernel does not tell \
                 (Linux 5.14 does): what it has can't be looked up"
            }
            Place::Socket(_, Origin::Pod) | Place::Device { .. } => {
                "a pod is known by its network namespace, which an address does not tell: name a \
                 process of the pod by --netns PID to see what it has"
            }
        };
        let note = Line {
            what: "note",
            text: text.to_owned(),
        };
        if !self.lines.contains(&note) {
            self.lines.push(note);
        }
    }

    fn known(&self, entry: &AffinityEntry, service: &Service, is_kept: bool) -> String {
        let backend = entry.backend;
        let last = words::ago(entry.used_ns, self.now_ns);
        if is_kept {
            format!("this one has {backend}, last used {last}")
        } else if entry.is_expired(service.affinity.timeout_ns(), self.now_ns) {
            format!("this one had {backend}, last used {last}, too long ago")
        } else {
            format!("this one had {backend}, which gets no new connections any more")
        }
    }

    fn choice(&mut self, reasons: &Reasons<'_>) {
        let candidates = &reasons.choice.candidates;
        let lines = candidates.iter().take(LISTED);
        let mut lines: Vec<String> = lines.map(|one| reasons.candidate(one)).collect();
        let more = candidates.len().saturating_sub(LISTED);
        if more > 0 {
            lines.push(format!("and {more} more"));
        }
        self.line("backends", lines.join("\n"));
        if let Some(rule) = reasons.rule() {
            self.line("scheduler", rule);
        }
        let not_taken = reasons.not_taken();
        if !not_taken.is_empty() {
            self.line("not taken", not_taken.join("\n"));
        }
        self.line("choice", reasons.why());
        if reasons.needs_client() {
            self.unknown_client();
        }
    }

    fn call(&mut self, verdict: socket::Verdict) -> String {
        let question = self.story.question;
        let to = question.destination;
        let name = match self.story.place {
            Place::Socket(Call::Send, _) => "sendto()",
            Place::Socket(Call::Connect, _) | Place::Device { .. } => "connect()",
        };
        let frontend = self.frontend().and_then(|(_, frontend)| frontend);
        match verdict {
            socket::Verdict::Pass => match frontend {
                Some(_) => format!("left alone: {to} is for processes of this node only"),
                None => format!("left alone: no Service has {to}"),
            },
            socket::Verdict::Rewrite(backend) if is_parked(&backend) => {
                self.line(
                    "becomes",
                    format!("{name} to {backend}, where nobody listens"),
                );
                format!(
                    "refused: {} (this kernel lets UDP connect, and refuses its first datagram)",
                    self.why_refused()
                )
            }
            socket::Verdict::Rewrite(backend) => {
                self.line("becomes", format!("{name} to {backend}"));
                format!("translated: {to} is served by {backend}")
            }
            socket::Verdict::Refuse => format!("refused: {}", self.why_refused()),
            socket::Verdict::Drop => {
                let counters = self.find(counted);
                let why = match counters {
                    Some(Counter::ConnectNotAllowed | Counter::SendNotAllowed) => {
                        "the Service's loadBalancerSourceRanges do not admit it"
                    }
                    _other => {
                        "the policy is Local, and no endpoint of the Service is on this node; others are \
                         elsewhere"
                    }
                };
                format!("dropped: {why}")
            }
        }
    }

    fn why_refused(&self) -> &'static str {
        match self.find(counted) {
            Some(Counter::ConnectUndefinedPort | Counter::SendUndefinedPort) => {
                "the ClusterIP's Service has no such port and protocol"
            }
            Some(Counter::TableDamaged) => {
                "the maps contradict one another: `kube-portal status --verify` repairs them"
            }
            _other => "the Service has no endpoints",
        }
    }

    fn packet(&mut self, packet: &PacketOutcome) -> String {
        let to = self.story.question.destination;
        self.route();
        if packet.verdict.done().is_some() {
            self.becomes(packet);
        }
        let entry = &packet.work.entry;
        match packet.verdict {
            Verdict::Pass(why) => {
                let served = self.frontend().and_then(|(_, frontend)| frontend);
                match (served, self.story.place) {
                    (Some(frontend), _) if frontend.flags & Frontend::NODE_ONLY != 0 => {
                        "left alone: a loopback address from outside is a forgery, and the stack drops it"
                            .to_owned()
                    }
                    (
                        Some(_),
                        Place::Device {
                            hook: Hook::Egress, ..
                        },
                    ) => "left alone: the Service has endpoints, and what leaves for it goes to whoever \
                          has the address"
                        .to_owned(),
                    _ => format!("left alone: {}", words::passed(why)),
                }
            }
            Verdict::Stack(_) => {
                format!("translated: {to} is served by {}, on this node", entry.dst)
            }
            Verdict::Redirect(_) => format!("translated: {to} is served by {}", entry.dst),
            Verdict::Reject(why) => format!("refused: {}", words::refused(why)),
            Verdict::Drop(why) => format!("dropped: {}", words::dropped(why)),
        }
    }

    fn route(&mut self) {
        let asked = self.find(|lookup| {
            if let Lookup::Route(_, to, way, hop) = lookup {
                Some((*to, *way, *hop))
            } else {
                None
            }
        });
        let Some((to, way, hop)) = asked else {
            return;
        };
        let text = match way {
            Way::Forward if hop.gateway == to.addr => format!(
                "{} is reached by {}",
                to.addr,
                self.names.device(hop.ifindex)
            ),
            Way::Forward => format!(
                "{} is reached by {}, next hop {}",
                to.addr,
                self.names.device(hop.ifindex),
                hop.gateway
            ),
            Way::Nowhere => format!("none to {}", to.addr),
            Way::ForwardingOff => "the device may not forward".to_owned(),
        };
        self.line("route", text);
    }

    fn becomes(&mut self, packet: &PacketOutcome) {
        let (entry, tuple) = (&packet.work.entry, &packet.work.flow.tuple);
        let is_stack = matches!(Via::from_number(entry.via), Via::Stack);
        self.line("becomes", format!("{} -> {}", entry.src, entry.dst));
        let source = self.source(entry, tuple);
        if !source.is_empty() {
            self.line("source", source);
        }
        let on = if is_stack {
            "through this node's network stack, past its packet filters".to_owned()
        } else {
            format!(
                "out of {} at once",
                self.names.device(packet.work.hop.ifindex)
            )
        };
        self.line("goes on", on);
    }

    /// What became of the client's address and port.
    fn source(&self, entry: &FlowEntry, tuple: &Tuple) -> String {
        let client = SockAddr::from_parts(tuple.src, tuple.src_port_be);
        if entry.src == client {
            return "kept: the backend sees the client".to_owned();
        }
        let port = u16::from_be(entry.src.port_be);
        if entry.src.addr == client.addr {
            return format!(
                "the client's address is kept; its port is taken toward this backend, so it is {port}"
            );
        }
        let own = self.find(|lookup| {
            if let Lookup::Device(index, Some(device)) = lookup {
                (device.source_like(&entry.src.addr) == Some(entry.src.addr))
                    .then_some((*index, *device))
            } else {
                None
            }
        });
        let of = own.map_or_else(
            || "this node's".to_owned(),
            |(index, Device { .. })| format!("this node's on {}", self.names.device(index)),
        );
        let hairpin = if entry.dst.addr == client.addr {
            "the client is its own backend"
        } else {
            "the backend is on another node, and its answers have to come back here"
        };
        format!("{of}, port {port} of those kept for this: {hairpin}")
    }

    /// What the one who asked gets to see.
    fn sees(&mut self) {
        let to = self.story.question.destination;
        let protocol = self.story.question.protocol;
        let text = match (&self.story.outcome, self.story.kind()) {
            (Outcome::NotOurs, _) | (_, Kind::Untouched) => return,
            (Outcome::Call(_), Kind::Translated) => {
                format!("the application sees {to} as its peer")
            }
            (Outcome::Packet(_), Kind::Translated) => {
                format!("the client gets its answers from {to}")
            }
            (Outcome::Call(socket::Verdict::Rewrite(_)), Kind::Refused) => {
                "the application gets ECONNREFUSED at its first datagram".to_owned()
            }
            (Outcome::Call(_), Kind::Refused) => match self.story.place {
                Place::Socket(Call::Send, _) => "sendto() fails with ECONNREFUSED".to_owned(),
                Place::Socket(Call::Connect, _) | Place::Device { .. } => {
                    "connect() fails with ECONNREFUSED".to_owned()
                }
            },
            (Outcome::Lost, _) => "sendto() succeeds, and nobody answers".to_owned(),
            (Outcome::Call(_), Kind::Dropped) => {
                "the address stays as it is, and nobody answers: the application waits until its own \
                 timeout"
                    .to_owned()
            }
            (Outcome::Packet(packet), Kind::Refused) if packet.answered => match packet.verdict {
                Verdict::Reject(_) => {
                    let icmp = if to.is_ipv4() { "ICMP" } else { "ICMPv6" };
                    format!("the client gets {icmp} \"port unreachable\", that is ECONNREFUSED")
                }
                Verdict::Pass(_) | Verdict::Stack(_) | Verdict::Redirect(_) | Verdict::Drop(_) => {
                    "the client is told by ICMP".to_owned()
                }
            },
            (Outcome::Packet(_), Kind::Refused) => "the client may not be told".to_owned(),
            (Outcome::Packet(_), Kind::Dropped) => match protocol {
                Protocol::Tcp | Protocol::Sctp => {
                    "the client hears nothing, and tries again until its timeout".to_owned()
                }
                Protocol::Udp => "the client hears nothing".to_owned(),
            },
        };
        self.line("seen", text);
    }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
