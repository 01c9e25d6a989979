//! Attempts to connect to a backend: which of them failed. What follows from it, the agent decides.

use super::lookup::{Tables, live};
use crate::abi::{AttemptFailure, Counter, SockAddr};

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Attempt {
    Answered = 1,
    /// (The number behind that of an answer.) By a reset, or by somebody on the way who said that it can't be reached.
    Refused = 2,
    /// Not within the time after which a client asks again (RFC 6298: 1 s), or gives up.
    Unanswered = 3,
}

/// In place of an [`Attempt`]: nothing has become of it yet, and TCP tells when something does.
pub const WATCHED: u8 = 4;

impl Attempt {
    #[inline(always)]
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Answered),
            2 => Some(Self::Refused),
            3 => Some(Self::Unanswered),
            _ => None,
        }
    }
}

/// A TCP connection of `service` to the backend, which is at `address` unless the id is another's by now.
#[inline(always)]
pub fn note(
    tables: &impl Tables,
    attempt: Attempt,
    service: u32,
    backend_id: u32,
    address: &SockAddr,
) {
    let outcome = match attempt {
        Attempt::Answered => {
            // Most have failed never: nothing is written.
            if tables
                .backend_stats(backend_id)
                .is_some_and(|stats| stats.failures != 0)
            {
                tables.note_answer(backend_id);
            }
            return;
        }
        Attempt::Refused => Counter::AttemptRefused,
        Attempt::Unanswered => Counter::AttemptUnanswered,
    };
    let fails_over = tables
        .service(service)
        .is_some_and(|service| service.word.fails_over());
    if !fails_over
        || live(tables, service, backend_id).is_none_or(|choice| choice.address != *address)
    {
        return;
    }
    tables.count(outcome);
    tables.note_failure(&AttemptFailure {
        at_ns: tables.now_ns(),
        service,
        backend_id,
        outcome: outcome.index(),
        zero: 0,
    });
}
