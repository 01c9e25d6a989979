//! One run of the datapath, and all that is to be told of it. Free of I/O: whatever answers its questions
//! is given.

use std::net::SocketAddr;

use proxy_common::{
    abi::{Client, Protocol, Service, SockAddr},
    datapath::{
        answer::{self, Budget, Cause},
        path::{self, DropReason, Hook, Node, Verdict, Work},
        socket::{self, Socket},
        traced::{Lookup, Traced},
    },
    wire::{bytes::Bytes, link::Link},
};

use super::{
    choice::{self, Candidate, Choice},
    place::{Call, Origin, Place},
    question::Question,
};

/// What was asked, what was looked up on the way, and what came of it.
#[derive(Clone, Debug)]
pub struct Story {
    pub question: Question,
    pub place: Place,
    /// In the order in which they were asked.
    pub lookups: Vec<Lookup>,
    pub outcome: Outcome,
    /// From whom a backend was chosen, if one was.
    pub choice: Option<Choice>,
}

#[derive(Clone, Debug)]
pub enum Outcome {
    /// No program runs for sockets of this protocol.
    NotOurs,
    Call(socket::Verdict),
    /// A datagram that a kernel without bpf_set_retval (before 5.18) can't refuse.
    Lost,
    Packet(Box<PacketOutcome>),
}

#[derive(Clone, Debug)]
pub struct PacketOutcome {
    pub verdict: Verdict,
    /// Its sender is told.
    pub answered: bool,
    pub before: Vec<u8>,
    pub after: Vec<u8>,
    pub work: Work,
}

/// The four things that can become of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Translated,
    /// Left as it is.
    Untouched,
    /// Whoever asked is told.
    Refused,
    /// Nobody is told.
    Dropped,
}

impl Story {
    pub fn kind(&self) -> Kind {
        match &self.outcome {
            Outcome::NotOurs => Kind::Untouched,
            Outcome::Lost => Kind::Dropped,
            Outcome::Call(verdict) => match verdict {
                socket::Verdict::Pass => Kind::Untouched,
                socket::Verdict::Rewrite(to) if is_parked(to) => Kind::Refused,
                socket::Verdict::Rewrite(_) => Kind::Translated,
                socket::Verdict::Refuse => Kind::Refused,
                socket::Verdict::Drop => Kind::Dropped,
            },
            Outcome::Packet(packet) => match packet.verdict {
                Verdict::Pass(_) => Kind::Untouched,
                Verdict::Stack(_) | Verdict::Redirect(_) => Kind::Translated,
                Verdict::Reject(_) => Kind::Refused,
                Verdict::Drop(DropReason::TtlExceeded | DropReason::TooBig) => Kind::Refused,
                Verdict::Drop(_) => Kind::Dropped,
            },
        }
    }

    /// The backend that it goes to.
    pub fn backend(&self) -> Option<SocketAddr> {
        let to = match &self.outcome {
            Outcome::Call(socket::Verdict::Rewrite(to)) if !is_parked(to) => *to,
            Outcome::Packet(packet) => {
                packet.verdict.done()?;
                packet.work.entry.dst
            }
            Outcome::NotOurs | Outcome::Call(_) | Outcome::Lost => return None,
        };
        Some(to.socket_addr())
    }

    /// Those that get new connections, each once.
    pub fn candidates(&self) -> impl Iterator<Item = SocketAddr> {
        let choices = self.choice.iter();
        choices
            .flat_map(|choice| &choice.candidates)
            .map(|one| one.address().socket_addr())
    }
}

pub(super) fn is_parked(to: &SockAddr) -> bool {
    *to == SockAddr::parked(&to.addr)
}

/// A packet at a device's hook. `candidates`: see [`Choice`].
pub(super) fn packet(
    node: &(impl Node + Budget),
    question: Question,
    (hook, ifindex, link): (Hook, u32, Link),
    frame: Vec<u8>,
    candidates: impl Fn(&Service) -> Vec<Candidate>,
) -> Story {
    let traced = Traced::new(node);
    let mut bytes = Bytes::new(frame.clone());
    let mut work = Work::default();
    let verdict = path::run(hook, link, &mut bytes, &traced, &mut work);
    let answered =
        Cause::of(verdict).is_some_and(|cause| answer::answer(cause, &mut bytes, &traced, &work));
    let lookups = traced.into_lookups();
    let client = Client::of_packet(question.source.ip().into());
    Story {
        question,
        place: Place::Device {
            hook,
            ifindex,
            link,
        },
        choice: choice::choice(&lookups, client, work.avoid, candidates),
        lookups,
        outcome: Outcome::Packet(Box::new(PacketOutcome {
            verdict,
            answered,
            before: frame,
            after: bytes.data,
            work,
        })),
    }
}

/// A call of a socket.
pub(super) fn call(
    socket: &impl Socket,
    question: Question,
    (call, origin): (Call, Origin),
    candidates: impl Fn(&Service) -> Vec<Candidate>,
) -> Story {
    let traced = Traced::new(socket);
    let can_refuse = socket.can_refuse();
    let to = question.destination.into();
    let verdict = match (call, question.protocol) {
        (_, Protocol::Sctp) | (Call::Send, Protocol::Tcp) => None,
        (Call::Connect, protocol) => Some(socket::connect(&traced, protocol, &to)),
        (Call::Send, Protocol::Udp) => Some(socket::send(&traced, &to)),
    };
    let lookups = traced.into_lookups();
    let client = Client::of_socket(socket.netns());
    let choice = choice::choice(&lookups, client, 0, candidates);
    Story {
        question,
        place: Place::Socket(call, origin),
        lookups,
        outcome: match verdict {
            // The call goes to a port where nobody listens, and an unconnected socket is never told.
            Some(socket::Verdict::Refuse) if !can_refuse && call == Call::Send => Outcome::Lost,
            Some(verdict) => Outcome::Call(verdict),
            None => Outcome::NotOurs,
        },
        choice,
    }
}
