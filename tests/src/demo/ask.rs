//! Requests in numbers.

use std::net::SocketAddr;

use anyhow::Result;

use crate::Pod;
use crate::probe::{Proto, Tally};

/// A first few, so that an address that does not answer is not waited for thirty times.
const FEW: usize = 2;
/// With those, enough that each of three backends is hit: missing one has a chance of 2 in 10^5.
const MANY: usize = 28;

/// An address to dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) proto: Proto,
    pub(super) to: SocketAddr,
}

/// Many requests from one client, or a few when none of those is answered.
pub(super) fn ask(client: &Pod, Target { proto, to }: Target) -> Result<Tally> {
    let many = |count| match proto {
        Proto::Tcp => client.get_many(to, count),
        Proto::Udp => client.udp_many(to, count),
    };
    let mut tally = many(FEW)?;
    if tally.answered() > 0 {
        tally.merge(many(MANY)?);
    }
    Ok(tally)
}
