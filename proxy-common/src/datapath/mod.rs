//! The decisions, free of hooks and maps: what happens to a connection or packet, given the tables.
//!
//! `socket` is the story of a connection, `path` that of a packet.

pub mod answer;
pub mod conntrack;
pub mod failover;
pub mod flow;
pub mod icmp_error;
pub mod lookup;
pub mod path;
pub mod schedule;
pub mod snat;
pub mod socket;
pub mod translate;

#[cfg(any(test, feature = "std"))]
pub mod fake;
#[cfg(any(test, feature = "std"))]
pub mod traced;
