//! `kube-portal top`: Services by what goes on in them.
//!
//! `read` takes a [`Sample`] of the maps; `rows` makes rows of two of them; `screen` is what a person does with
//! those, and `view` draws it. All but the first are pure.

pub(crate) mod read;
pub(crate) mod rows;
pub(crate) mod screen;
pub(crate) mod view;

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

/// What the maps say at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sample {
    /// Since some fixed moment.
    pub(crate) at: Duration,
    /// By `namespace/name:port`, all families and policies together.
    pub(crate) services: BTreeMap<String, Totals>,
}

/// Of a Service port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Since the Service came.
    pub(crate) connections: u64,
    pub(crate) failures: u64,
    pub(crate) backends: BTreeMap<SocketAddr, BackendTotals>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BackendTotals {
    /// Since the backend came.
    pub(crate) connections: u64,
    /// Now.
    pub(crate) active: u64,
    /// Gets new connections; otherwise it keeps those it has.
    pub(crate) is_chosen: bool,
    /// For a while it gets none all the same: attempts to connect to it failed.
    pub(crate) is_passed_over: bool,
    /// On this node.
    pub(crate) is_local: bool,
}

impl Totals {
    pub(crate) fn active(&self) -> u64 {
        self.backends.values().map(|backend| backend.active).sum()
    }
}
