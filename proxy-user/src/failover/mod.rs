//! Backends that don't answer are passed over by new connections for a while.
//!
//! The programs count attempts that failed since one was answered, and tell each (KP_FAILURES). `watch` is
//! told, reads what the maps say of the Service's backends (`list`), has `policy` decide, writes until when a
//! backend is passed over, and has it told (`news`). The time ends by itself: without an agent everybody
//! is back after five minutes at most. `shown` is what the maps say, for those who only look.

mod list;
mod news;
mod policy;
#[cfg(test)]
mod policy_tests;
pub(crate) mod shown;
mod watch;

pub(crate) use news::{News, Reason};
pub(crate) use watch::{Report, start};
