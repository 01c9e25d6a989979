//! The program that is attached, run by BPF_PROG_TEST_RUN on the packet of a story: does it do the same?
//!
//! No device sees the packet. But the program writes into the maps that it uses: what was not there before
//! is taken out again, and what is counted stays counted.

use std::net::SocketAddr;

use aya::{TestRun as _, TestRunOptions, programs::SchedClassifier};
use proxy_common::{
    abi::{AffinityKey, Counter, FlowEntry, PortRange, Scheduler, ServiceWord, Tuple},
    datapath::{
        conntrack,
        path::{Verdict, Work},
        snat,
        traced::Lookup,
    },
    wire::link::Link,
};
use serde::Serialize;

use super::{
    Options, TraceError, Tracer,
    context::Context,
    live::Chance,
    place::Place,
    possible::{self, Burdens},
    story::{Outcome, PacketOutcome, Story},
};
use crate::loader::running_program;

/// `TC_ACT_UNSPEC` (-1), `TC_ACT_SHOT`, `TC_ACT_REDIRECT`.
const UNSPEC: u32 = u32::MAX;
const SHOT: u32 = 2;
const REDIRECT: u32 = 7;

/// So many turns are tried, if others connect at the same moment.
const TURNS: usize = 64;

/// What an answer is longer than its packet by, at most.
const ROOM: usize = 256;

/// What the program did.
#[derive(Clone, Debug, Serialize)]
pub struct KernelRun {
    pub program_id: u32,
    /// What it returned, in words.
    pub returned: String,
    /// The backend that it chose, which may be another than the story's.
    pub chose: Option<SocketAddr>,
    pub agreement: Agreement,
    /// What it wrote, and what became of that.
    pub written: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "result", content = "reason")]
pub enum Agreement {
    /// What it returned, and every byte.
    Agrees,
    /// As far as can be seen.
    AgreesInPart(String),
    Differs(String),
}

impl Agreement {
    pub const fn is_difference(&self) -> bool {
        matches!(self, Self::Differs(_))
    }
}

/// What a program returns for a verdict.
const fn code(verdict: Verdict, answered: bool) -> u32 {
    match verdict {
        Verdict::Pass(_) | Verdict::Stack(_) => UNSPEC,
        Verdict::Redirect(_) => REDIRECT,
        Verdict::Reject(_) | Verdict::Drop(_) if answered => REDIRECT,
        Verdict::Reject(_) | Verdict::Drop(_) => SHOT,
    }
}

fn code_words(code: u32) -> String {
    match code {
        UNSPEC => "TC_ACT_UNSPEC, go on".to_owned(),
        SHOT => "TC_ACT_SHOT, drop".to_owned(),
        REDIRECT => "TC_ACT_REDIRECT, send on at once".to_owned(),
        other => format!("{other}"),
    }
}

/// What the program left in the maps.
struct Left {
    /// Of the flow that it began.
    entry: Option<FlowEntry>,
    written: Vec<String>,
}

impl Tracer {
    /// Has the program that is attached where the story took place run on the same packet, and compares.
    ///
    /// # Errors
    /// It can't be run: no kernel runs a socket's programs so, or nothing is attached there, or the packet
    /// is one of a flow that the maps know, which a run would change.
    pub fn run_kernel(&mut self, story: &Story, options: Options) -> Result<KernelRun, TraceError> {
        let impossible = |reason: &str| TraceError::Kernel(reason.to_owned());
        let (hook, ifindex, link) = match story.place {
            Place::Device {
                hook,
                ifindex,
                link,
            } => (hook, ifindex, link),
            Place::Socket(..) => {
                return Err(impossible(
                    "no kernel runs the programs of sockets (cgroup sock_addr) by BPF_PROG_TEST_RUN; only \
                     those of devices can be compared, with --hook ingress or --hook egress",
                ));
            }
        };
        let Outcome::Packet(packet) = &story.outcome else {
            return Err(impossible("there is no packet to run it on"));
        };
        let program_id = self
            .program_at(hook, ifindex)
            .ok_or_else(|| impossible("no program of kube-portal is attached there"))?;
        let tuple = packet.work.flow.tuple;
        if self.live.half_open.get(&tuple).is_some() || self.live.flows.get(&tuple).is_some() {
            return Err(impossible(
                "the maps know a flow with these addresses and ports, and a run would change it; give the \
                 source another port",
            ));
        }
        let program = running_program(program_id).map_err(TraceError::Kernel)?;
        let affinity = affinity_keys(story);
        let before: Vec<_> = affinity
            .iter()
            .map(|key| (*key, self.live.affinity.get(key)))
            .collect();
        let limited = self.live.store.counter(Counter::PacketAnswerLimited);
        let scales = self.scales(story);
        let ran = run(&program, ifindex, &packet.before);
        let left = self.take_out(&tuple, &before, story)?;
        let (returned, out) = ran?;
        let limited = limited != self.live.store.counter(Counter::PacketAnswerLimited);
        let judge = |packet: &PacketOutcome| compare(packet, returned, &out, link, limited);
        let again = |chance| self.run(story.question, story.place, options, chance);
        // The program has chosen for itself: the same choice again.
        let agreement = match &left.entry {
            Some(entry) => {
                let chance = Chance::Settled {
                    backend_id: entry.backend_id,
                    number: self.port_draw(entry),
                };
                let agreement = match again(chance)?.outcome {
                    Outcome::Packet(packet) => judge(&packet),
                    Outcome::NotOurs | Outcome::Call(_) | Outcome::Lost => judge(packet),
                };
                match agreement {
                    Agreement::Agrees => self.weigh(story, options, scales.as_ref(), entry)?,
                    Agreement::AgreesInPart(_) | Agreement::Differs(_) => agreement,
                }
            }
            None => match judge(packet) {
                // What is dropped leaves nothing that tells what was chosen: any of them will do.
                Agreement::Differs(how) => Self::others(story)
                    .filter_map(|backend_id| {
                        let number = 0;
                        again(Chance::Settled { backend_id, number }).ok()
                    })
                    .find_map(|story| {
                        if let Outcome::Packet(packet) = story.outcome
                            && packet.verdict.done().is_none()
                            && !judge(&packet).is_difference()
                        {
                            let backend = story.choice?.backend;
                            Some(Agreement::AgreesInPart(format!(
                                "the program must have chosen another backend, such as {backend}"
                            )))
                        } else {
                            None
                        }
                    })
                    .unwrap_or(Agreement::Differs(how)),
                agreement @ (Agreement::Agrees | Agreement::AgreesInPart(_)) => agreement,
            },
        };
        Ok(KernelRun {
            program_id,
            returned: code_words(returned),
            chose: left.entry.map(|entry| entry.dst.socket_addr()),
            agreement,
            written: left.written,
        })
    }

    /// What the program has written of this flow and these clients goes out again.
    fn take_out(
        &mut self,
        tuple: &Tuple,
        affinity: &[(AffinityKey, Option<proxy_common::abi::AffinityEntry>)],
        story: &Story,
    ) -> Result<Left, TraceError> {
        let mut written = Vec::new();
        let entry = self.live.half_open.get(tuple);
        if let Some(entry) = &entry {
            let mut opposite = Work::default().key;
            conntrack::opposite(entry, tuple.protocol, &mut opposite);
            let is_ours = |there: &FlowEntry| conntrack::leads_to(there, tuple);
            let mut removed = 1;
            self.live.half_open.remove(tuple);
            if self
                .live
                .half_open
                .get(&opposite)
                .as_ref()
                .is_some_and(is_ours)
            {
                self.live.half_open.remove(&opposite);
                removed += 1;
            }
            written.push(format!("KP_HALF_OPEN: {removed} entries, taken out again"));
        }
        for (key, before) in affinity {
            let now = self.live.affinity.get(key);
            if now == *before {
                continue;
            }
            match before {
                Some(before) => {
                    let put = self.live.affinity.put(key, before);
                    put.map_err(|error| TraceError::Kernel(format!("KP_AFFINITY: {error}")))?;
                    written.push("KP_AFFINITY: the client's entry, put back as it was".to_owned());
                }
                None => {
                    self.live.affinity.remove(key);
                    written.push("KP_AFFINITY: an entry, taken out again".to_owned());
                }
            }
        }
        let counted = "the counters, also of the Service: one packet more, which stays counted";
        let choice = story.choice.as_ref().filter(|choice| !choice.is_kept);
        let goes_by_turns =
            choice.is_some_and(|choice| choice.word.scheduler() == Scheduler::RoundRobin);
        written.push(match goes_by_turns && entry.is_some() {
            true => format!("{counted}; a turn of the scheduler with it"),
            false => counted.to_owned(),
        });
        Ok(Left { entry, written })
    }

    /// The backends that might have been chosen.
    fn others(story: &Story) -> impl Iterator<Item = u32> {
        let choice = story.choice.iter().filter(|choice| !choice.is_kept);
        choice.flat_map(|choice| choice.candidates.iter().map(|one| one.id))
    }

    /// The number with which the datapath draws the source port of this entry.
    fn port_draw(&self, entry: &FlowEntry) -> u32 {
        let PortRange { first, .. } = self.live.constants.snat_ports;
        let index = u32::from(u16::from_be(entry.src.port_be).wrapping_sub(first));
        let keeps_port = entry.via == proxy_common::abi::Via::Stack as u8;
        if keeps_port {
            // The first try was the client's own port.
            index.wrapping_sub(snat::STRIDE)
        } else {
            index
        }
    }

    /// What the scheduler goes by, now.
    fn scales(&self, story: &Story) -> Option<Scales> {
        let choice = story.choice.as_ref().filter(|choice| !choice.is_kept)?;
        let (service, word) = (choice.service, choice.word);
        let ids: Vec<u32> = choice.candidates.iter().map(|one| one.id).collect();
        let stats = self.live.store.service_stats_of(service);
        Some(Scales {
            word: self.live.store.service(service).ok()?.word,
            burdens: self.live.burdens(service, word, &ids),
            turn: stats.map_or(0, |stats| stats.connections),
        })
    }

    /// Whether the scheduler may have chosen the backend of this entry. `before`: [`Self::scales`] from before
    /// the program ran; `None`: it was not asked.
    fn weigh(
        &self,
        story: &Story,
        options: Options,
        before: Option<&Scales>,
        entry: &FlowEntry,
    ) -> Result<Agreement, TraceError> {
        let (Some(choice), Some(before), Some(after)) = (&story.choice, before, self.scales(story))
        else {
            return Ok(Agreement::Agrees);
        };
        let id = entry.backend_id;
        let (word, run) = (choice.word, self.live.slots(choice.word));
        let is_choice_of = |chance| -> Result<bool, TraceError> {
            let story = self.run(story.question, story.place, options, chance)?;
            Ok(story.choice.is_some_and(|choice| choice.backend_id == id))
        };
        let is_possible = match possible::may_draw(word, &run, &before.burdens, id) {
            Some(true) => true,
            Some(false) => possible::may_draw(word, &run, &after.burdens, id) == Some(true),
            None if id == choice.backend_id => true,
            // Others may have had turns, too.
            None => {
                let mut is_possible = is_choice_of(Chance::Drawn(options.seed))?;
                for turn in (before.turn..after.turn).take(TURNS) {
                    is_possible = is_possible || is_choice_of(Chance::Turn(turn, options.seed))?;
                }
                is_possible
            }
        };
        let chosen = entry.dst;
        let scheduler = word.scheduler().name();
        let other_turns = after.turn.saturating_sub(before.turn) > TURNS as u64;
        Ok(if is_possible {
            Agreement::Agrees
        } else if before.word != after.word || before.burdens != after.burdens || other_turns {
            Agreement::AgreesInPart(format!(
                "why it chose {chosen} can't be told: the Service or its connections changed while it ran"
            ))
        } else {
            Agreement::Differs(format!(
                "it chose {chosen}, which {scheduler} can't choose here"
            ))
        })
    }
}

/// What a scheduler goes by.
struct Scales {
    word: ServiceWord,
    burdens: Burdens,
    /// Connections that the service was given.
    turn: u64,
}

fn affinity_keys(story: &Story) -> Vec<AffinityKey> {
    let keys = story.lookups.iter().filter_map(|lookup| {
        if let Lookup::Affinity(key, _) | Lookup::AffinitySet(key, ..) = lookup {
            Some(*key)
        } else {
            None
        }
    });
    let mut keys: Vec<_> = keys.collect();
    keys.dedup();
    keys
}

/// What the program returned, and what it made of the packet.
fn run(
    program: &SchedClassifier,
    ifindex: u32,
    frame: &[u8],
) -> Result<(u32, Vec<u8>), TraceError> {
    let mut out = vec![0; frame.len() + ROOM];
    let context = Context::at_device(ifindex);
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(context.bytes()),
            repeat: 1,
            ..TestRunOptions::default()
        })
        .map_err(|error| TraceError::Kernel(format!("the test run failed: {error}")))?;
    out.truncate(usize::try_from(result.data_size_out).unwrap_or(0));
    Ok((result.return_value, out))
}

/// `limited`: the program has answered too many packets of late.
fn compare(
    expected: &PacketOutcome,
    returned: u32,
    out: &[u8],
    link: Link,
    limited: bool,
) -> Agreement {
    let PacketOutcome {
        verdict,
        answered,
        after,
        ..
    } = expected;
    let wanted = code(*verdict, *answered);
    if *answered && returned == SHOT && limited {
        return Agreement::AgreesInPart(
            "it answers no more packets for now: too many were answered of late".to_owned(),
        );
    }
    if returned != wanted {
        return Agreement::Differs(format!(
            "it returned {}; the trace has {}",
            code_words(returned),
            code_words(wanted)
        ));
    }
    if matches!(verdict, Verdict::Reject(_) | Verdict::Drop(_)) && !answered {
        return Agreement::Agrees;
    }
    if *answered && matches!(link, Link::None) {
        // A test run pretends an Ethernet header, and bpf_skb_adjust_room believes it.
        return Agreement::AgreesInPart(
            "a test run can't show the answer of a device without an Ethernet header".to_owned(),
        );
    }
    if out == after {
        return Agreement::Agrees;
    }
    let at = out.iter().zip(after).position(|(one, other)| one != other);
    Agreement::Differs(match at {
        Some(at) => format!(
            "byte {at} of the packet is {:#04x}; the trace has {:#04x}",
            out[at], after[at]
        ),
        None => format!(
            "the packet has {} bytes; the trace has {}",
            out.len(),
            after.len()
        ),
    })
}

#[cfg(test)]
mod tests {
    use proxy_common::datapath::path::{Done, Passed, Refusal};

    use super::*;

    fn expected(verdict: Verdict, answered: bool) -> PacketOutcome {
        PacketOutcome {
            verdict,
            answered,
            before: vec![1, 2, 3],
            after: vec![1, 2, 4],
            work: Work::default(),
        }
    }

    #[test]
    fn the_kernel_agrees_by_what_it_returns_and_by_every_byte() {
        let done = expected(Verdict::Stack(Done::NewFlow), false);
        let at = |code, bytes: &[u8]| compare(&done, code, bytes, Link::Ethernet, false);
        assert_eq!(at(UNSPEC, &[1, 2, 4]), Agreement::Agrees);
        for (code, bytes, why) in [
            (REDIRECT, &[1, 2, 4][..], "TC_ACT_REDIRECT"),
            (
                UNSPEC,
                &[1, 2, 3],
                "byte 2 of the packet is 0x03; the trace has 0x04",
            ),
            (UNSPEC, &[1, 2], "2 bytes"),
        ] {
            match at(code, bytes) {
                Agreement::Differs(reason) => assert!(reason.contains(why), "{reason}"),
                agrees @ (Agreement::Agrees | Agreement::AgreesInPart(_)) => panic!("{agrees:?}"),
            }
        }
    }

    #[test]
    fn what_can_not_be_seen_is_said() {
        let refused = expected(Verdict::Reject(Refusal::NoEndpoints), true);
        let of = |code, link, limited| compare(&refused, code, &[9], link, limited);
        let in_part = |agreement| matches!(agreement, Agreement::AgreesInPart(_));
        assert!(in_part(of(SHOT, Link::Ethernet, true)));
        assert!(in_part(of(REDIRECT, Link::None, false)));
        assert!(of(SHOT, Link::Ethernet, false).is_difference());
        assert!(of(REDIRECT, Link::Ethernet, false).is_difference());
        let passed = expected(Verdict::Pass(Passed::NotOurs), false);
        assert!(compare(&passed, SHOT, &[], Link::Ethernet, true).is_difference());
    }
}
