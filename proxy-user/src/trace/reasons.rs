//! Why it is this backend, in words. Pure.

use proxy_common::{
    abi::{Backend, BackendStats, Client, Protocol, Scheduler},
    datapath::schedule::WINDOW,
};

use super::{
    choice::{Candidate, Choice},
    place::{Origin, Place},
    question::Question,
};
use crate::failover::shown::{seconds, time_left};

/// Who tells of a choice: what was asked, where, and when.
pub(super) struct Reasons<'a> {
    pub(super) choice: &'a Choice,
    pub(super) question: Question,
    pub(super) place: Place,
    pub(super) now_ns: u64,
    /// A backend that has not answered the first packet, or 0.
    pub(super) avoid: u32,
}

fn connections(number: u64) -> String {
    match number {
        1 => "1 connection".to_owned(),
        number => format!("{number} connections"),
    }
}

/// How many of a hundred, with as many digits as make sense.
fn percent(share: f64) -> String {
    let text = format!("{:.1}", share * 100.0);
    format!("{} %", text.strip_suffix(".0").unwrap_or(&text))
}

impl Reasons<'_> {
    fn scheduler(&self) -> Scheduler {
        self.choice.word.scheduler()
    }

    /// Of the slots of the run, as of how many it is chosen.
    pub(super) fn share(&self, one: &Candidate) -> f64 {
        f64::from(one.slots) / f64::from(self.choice.word.count().max(1))
    }

    /// For how long a backend gets no new connections, and why.
    fn out(&self, stats: &BackendStats) -> Option<String> {
        let left = seconds(time_left(stats, self.now_ns)?);
        let why = match stats.failures {
            0 => "it has answered meanwhile".to_owned(),
            1 => "an attempt to connect failed".to_owned(),
            failures => format!("{failures} attempts to connect failed in a row"),
        };
        Some(format!("is passed over for {left} s more: {why}"))
    }

    fn is_out(&self, one: &Candidate) -> bool {
        self.choice.word.fails_over() && time_left(&one.stats, self.now_ns).is_some()
    }

    /// A candidate, and what is particular of it.
    pub(super) fn candidate(&self, one: &Candidate) -> String {
        let word = self.choice.word;
        let mut more = Vec::new();
        if one.backend.flags & Backend::LOCAL != 0 {
            more.push("this node".to_owned());
        }
        if word.is_weighted() {
            more.push(format!("weight {}", one.backend.weight));
        }
        let is_shared = match self.scheduler() {
            // A table can't be cut into equal parts.
            Scheduler::Maglev => self.choice.candidates.len() > 1,
            Scheduler::Random
            | Scheduler::RoundRobin
            | Scheduler::SourceHash
            | Scheduler::DestinationHash => word.is_weighted(),
            Scheduler::LeastConnections | Scheduler::ShortestDelay | Scheduler::NeverQueue => false,
        };
        if is_shared {
            more.push(percent(self.share(one)));
        }
        if self.is_out(one) {
            more.push("passed over".to_owned());
        }
        match more.is_empty() {
            true => one.address().to_string(),
            false => format!("{} ({})", one.address(), more.join(", ")),
        }
    }

    /// By which rule; `None` if there is nothing to choose.
    pub(super) fn rule(&self) -> Option<String> {
        let count = self.choice.candidates.len();
        if self.choice.is_kept || count < 2 {
            return None;
        }
        let is_weighted = self.choice.word.is_weighted();
        let by_weight = |otherwise: &'static str, weighted: &'static str| match is_weighted {
            true => weighted,
            false => otherwise,
        };
        let delay = by_weight("fewest connections", "smallest (connections + 1) / weight");
        let window = match self.choice.word.count() {
            slots if slots > WINDOW => format!("of {WINDOW} slots from anywhere on, "),
            _ => String::new(),
        };
        let scheduler = self.scheduler();
        let rule = match scheduler {
            Scheduler::Random => match is_weighted {
                true => "each is as likely as its weight says".to_owned(),
                false => format!("each of the {count} is as likely"),
            },
            Scheduler::RoundRobin => format!(
                "one after the other{}",
                by_weight("", ", each as often as its weight says")
            ),
            Scheduler::LeastConnections => format!(
                "of two at random, the one with fewer connections{}",
                by_weight("", " for its weight")
            ),
            Scheduler::ShortestDelay => format!("{window}the one with the {delay}"),
            Scheduler::NeverQueue => {
                format!("{window}an idle one; if none is, the one with the {delay}")
            }
            Scheduler::SourceHash => {
                "by a hash of the client: it gets the same one until the backends change".to_owned()
            }
            Scheduler::Maglev => {
                "by a hash of the client, alike on every node: it gets the same one, and most clients still do \
                 when the backends change"
                    .to_owned()
            }
            Scheduler::DestinationHash => format!(
                "by a hash of the address: whoever dials {} gets the same one until the backends change",
                self.question.destination.ip()
            ),
        };
        let is_tcp = self.question.protocol == Protocol::Tcp;
        let failover = match is_tcp && !self.choice.word.fails_over() {
            true => "; without failover",
            false => "",
        };
        Some(format!("{}: {rule}{failover}", scheduler.name()))
    }

    /// The chosen one, and why it is.
    pub(super) fn why(&self) -> String {
        let Choice {
            backend,
            backend_id,
            ..
        } = *self.choice;
        let own = self.choice.candidate(backend_id);
        let out = own.filter(|one| self.is_out(one));
        let out = out.and_then(|one| self.out(&one.stats));
        if self.choice.is_kept {
            return match out {
                None => format!("{backend}, kept by affinity"),
                Some(out) => {
                    format!("{backend}, kept by affinity, though for other clients it {out}")
                }
            };
        }
        let is_passed_over = self.choice.passed_over.contains(&backend_id);
        if self.choice.candidates.len() == 1 {
            return match (is_passed_over, out) {
                (true, Some(out)) => format!("{backend}, the only one, though it {out}"),
                (true, None) | (false, _) => format!("{backend}, the only one"),
            };
        }
        if is_passed_over {
            return format!(
                "{backend}, though it is to be passed over: so are all that were looked at"
            );
        }
        let by_hash_of = |what: &str| format!("{backend}, by the hash of {what}");
        match self.scheduler() {
            Scheduler::Random => format!("{backend}, by a draw; the next connection draws anew"),
            Scheduler::RoundRobin => match self.choice.turn.unwrap_or(0) {
                0 => format!("{backend}, whose turn it is before all others"),
                before => format!("{backend}, whose turn it is after {}", connections(before)),
            },
            Scheduler::LeastConnections => self.of_two(),
            Scheduler::ShortestDelay => self.of_many(),
            Scheduler::NeverQueue => match own.map(Candidate::active) {
                Some(0) => format!("{backend}, which is idle"),
                Some(_) | None => self.of_many(),
            },
            Scheduler::SourceHash | Scheduler::Maglev => match (self.place, self.is_unknown()) {
                (Place::Device { .. }, _) => by_hash_of(&self.question.source.ip().to_string()),
                (Place::Socket(_, Origin::Node), false) => {
                    by_hash_of("this node's network namespace")
                }
                (Place::Socket(_, Origin::Pod), false) => by_hash_of("the pod's network namespace"),
                (Place::Socket(..), true) => format!(
                    "{backend} for example: the client is not known, and any of the {} may be its own",
                    self.choice.candidates.len()
                ),
            },
            Scheduler::DestinationHash => by_hash_of(&self.question.destination.ip().to_string()),
        }
    }

    /// `10.0.0.5:80 with 3 connections at weight 2`.
    fn with(&self, one: &Candidate) -> String {
        let weight = match self.choice.word.is_weighted() {
            true => format!(" at weight {}", one.backend.weight),
            false => String::new(),
        };
        format!(
            "{} with {}{weight}",
            one.address(),
            connections(one.active())
        )
    }

    fn chosen(&self) -> String {
        match self.choice.candidate(self.choice.backend_id) {
            Some(one) => self.with(one),
            None => self.choice.backend.to_string(),
        }
    }

    fn of_two(&self) -> String {
        let chosen = self.chosen();
        // Earlier pairs were passed over whole.
        let other = self
            .choice
            .compared()
            .find(|one| one.id != self.choice.backend_id);
        let Some(other) = other else {
            return match self.choice.passed_over.is_empty() {
                true => format!("{chosen}, which was drawn twice"),
                false => format!("{chosen}, the only one drawn that is not passed over"),
            };
        };
        let load = |one: &Candidate| {
            let weight = match self.choice.word.is_weighted() {
                true => one.backend.weight.max(1),
                false => 1,
            };
            (one.active() << 16) / u64::from(weight)
        };
        let mine = self.choice.candidate(self.choice.backend_id).map(load);
        match mine == Some(load(other)) {
            true => format!("{chosen}; {} is no better", self.with(other)),
            false => format!("{chosen} rather than {}", self.with(other)),
        }
    }

    fn of_many(&self) -> String {
        let chosen = self.chosen();
        let compared: Vec<&Candidate> = self.choice.compared().collect();
        match compared.as_slice() {
            [] | [_] => format!("{chosen}, the only one that is not passed over"),
            [one, other] | [other, one] if one.id == self.choice.backend_id => {
                format!("{chosen} rather than {}", self.with(other))
            }
            all => format!("{chosen}, the first of the best of {} compared", all.len()),
        }
    }

    /// Whom the scheduler met, and did not take.
    pub(super) fn not_taken(&self) -> Vec<String> {
        let ids = self.choice.passed_over.iter();
        ids.filter(|id| **id != self.choice.backend_id)
            .filter_map(|id| self.choice.candidate(*id))
            .map(|one| {
                let address = one.address();
                match self.out(&one.stats) {
                    _ if one.id == self.avoid => {
                        format!("{address} has not answered the packet that this one repeats")
                    }
                    Some(out) => format!("{address} {out}"),
                    None => format!("{address} is passed over"),
                }
            })
            .collect()
    }

    /// Whether the scheduler goes by a client that is not known.
    fn is_unknown(&self) -> bool {
        is_unknown(&self.choice.client)
    }

    pub(super) fn needs_client(&self) -> bool {
        let is_by_client = matches!(self.scheduler(), Scheduler::SourceHash | Scheduler::Maglev);
        is_by_client
            && !self.choice.is_kept
            && self.choice.candidates.len() > 1
            && self.is_unknown()
    }
}

/// A socket whose network namespace nobody has named.
pub(super) const fn is_unknown(client: &Client) -> bool {
    client.addr.is_unspecified() && client.netns == 0
}
