//! What the maps hold, entry by entry, with names beside the numbers: `kube-portal inspect`.
//!
//! `read` alone does I/O. Everything else is pure: what was read becomes rows, filtered and sorted. Of maps
//! that may have a million entries (flows, sockets, affinity) the entries are kept as they are, and each
//! becomes a row when its line is written.

pub(crate) mod affinity;
pub(crate) mod backends;
pub(crate) mod config;
pub(crate) mod conntrack;
pub(crate) mod counters;
mod filter;
pub(crate) mod frontends;
pub(crate) mod read;
pub(crate) mod sockets;

#[cfg(test)]
mod fixture;

pub(crate) use filter::{Filter, FilterError};

/// In place of what there is not.
const NONE: &str = "-";

/// Whole seconds since this moment, which may be one of another CPU's clock.
fn seconds_since(used_ns: u64, now_ns: u64) -> u64 {
    now_ns.saturating_sub(used_ns) / 1_000_000_000
}
