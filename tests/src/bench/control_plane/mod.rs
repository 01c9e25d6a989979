//! From the API server to the maps: how soon a change is there, how much it costs, and how long a node
//! takes to begin.
//!
//! The API server of this package runs in this process; the agent is the release build. Nothing is
//! asked of the agent: what the maps hold is read from their pins, by system calls of this process,
//! and what the agent takes is read from /proc.
//!
//! | part | from | to |
//! |---|---|---|
//! | start | the last page of the later list is about to be written to its connection | the maps hold every frontend and address; then all of them are compared with what was listed |
//! | changes, changed slice | the event is about to be written to the connection of the watch | the Service's word leads to the new endpoint; this is looked at every 10 us or so |
//! | changes, new and deleted Service | the same | its frontend is there and leads to its endpoints, or isn't |
//! | changes, first connection | the maps hold the change | a connection that is dialled then has been answered by the new endpoint, and the probe has told of it |
//! | flood | 5,000 slices a second are changed, each of another Service | processor time of the agent; after the last, how long until the maps hold it |
//! | rollout | 1,000 endpoints are replaced one by one while connections are made without pause | failed connections; a replaced endpoint stops listening 100 ms after its event |
//!
//! Objects are as large as those of a real server, with labels, owners and managed fields. While lists
//! are waited for, the agent has its maps already: loading programs is not part of the start.

mod changes;
mod flood;
mod ground;
mod maps;
mod objects;
mod process;
mod rollout;

use std::{fmt, str::FromStr};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use self::ground::Ground;
use super::{Args, report::Figure};

/// Services, and endpoints of each; written `100x2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    services: usize,
    endpoints: usize,
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('x');
        let numbers = parts.and_then(|(services, endpoints)| {
            Some(Self {
                services: services.parse().ok()?,
                endpoints: endpoints.parse().ok()?,
            })
        });
        numbers
            .filter(|shape| shape.services > 0 && (1..=100).contains(&shape.endpoints))
            .ok_or_else(|| "write <Services>x<endpoints, at most 100>, such as 100x2".to_owned())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.services, self.endpoints)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Part {
    /// Lists, memory, and what an agent takes that has nothing to do.
    Start,
    /// One change at a time.
    Changes,
    /// 5,000 changes a second.
    Flood,
    /// 1,000 endpoints replaced under load.
    Rollout,
}

pub(super) fn run(args: &Args) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for shape in &args.shapes {
        figures.extend(with_shape(args, *shape).with_context(|| shape.to_string())?);
    }
    if args.parts.contains(&Part::Rollout) {
        figures.extend(rollout::measure().context("rollout")?);
    }
    Ok(figures)
}

fn with_shape(args: &Args, shape: Shape) -> Result<Vec<Figure>> {
    let of = |part| args.parts.contains(&part);
    if !(of(Part::Start) || of(Part::Changes) || of(Part::Flood)) {
        return Ok(Vec::new());
    }
    eprintln!("{shape}: preparing");
    let (mut ground, mut figures) = Ground::start(shape)?;
    if of(Part::Changes) {
        figures.extend(changes::measure(&ground, args.changes).context("changes")?);
    }
    if of(Part::Flood) {
        figures.extend(flood::measure(&mut ground, args.seconds).context("flood")?);
    }
    for figure in &figures {
        eprintln!(
            "{shape}: {} {:.3} {}",
            figure.case, figure.value, figure.unit
        );
    }
    Ok(figures)
}
