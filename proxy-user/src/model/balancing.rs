//! Pure: what a Service and its node say of how new connections are balanced (docs/BALANCING.md).

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::IpAddr,
    num::NonZeroU64,
};

use proxy_common::abi::Scheduler;

use super::Endpoint;

/// What holds for every Service of the node that doesn't say it itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalancingDefaults {
    pub scheduler: Scheduler,
    /// TCP backends that fail are passed over for a while.
    pub fails_over: bool,
}

impl Default for BalancingDefaults {
    fn default() -> Self {
        Self {
            scheduler: Scheduler::Random,
            fails_over: true,
        }
    }
}

/// What a Service's annotations say; what they don't is as [`BalancingDefaults`] has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceBalancing {
    pub scheduler: Option<Scheduler>,
    pub fails_over: Option<bool>,
    pub weights: Weights,
}

/// By the names that flags and annotations have, and IPVS's names for the same. `None` for any other.
pub fn scheduler_named(name: &str) -> Option<Scheduler> {
    let ours = match name {
        // Weights count with every scheduler.
        "wrr" => "rr",
        "wlc" => "lc",
        "mh" => "maglev",
        other => other,
    };
    Scheduler::ALL
        .into_iter()
        .find(|scheduler| scheduler.name() == ours)
}

/// As a list for people: `random, rr, ... or maglev`.
pub fn scheduler_names() -> String {
    let names = Scheduler::ALL.map(Scheduler::name);
    let (last, others) = names.split_last().expect("there are some");
    format!("{} or {last}", others.join(", "))
}

/// A name that is only ever compared. There are very many endpoints, and each has a pod's name of its own:
/// its hash takes an eighth of the room, and no Service has so many that two of them would be the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NameHash(NonZeroU64);

impl NameHash {
    pub fn of(name: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        Self(NonZeroU64::new(hasher.finish()).unwrap_or(NonZeroU64::MIN))
    }
}

/// Which endpoints a weight is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WeightKey {
    Address(IpAddr),
    /// Of a pod, or a hostname.
    Name(NameHash),
    Node(NameHash),
    Zone(NameHash),
    Any,
}

/// What is given out of 1 to those that have none, 0 to 1000.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Weights(BTreeMap<WeightKey, u16>);

impl Weights {
    pub const MAX: u16 = 1000;

    /// `false` if there is one for the key already, which stays.
    pub fn add(&mut self, key: WeightKey, weight: u16) -> bool {
        let first = !self.0.contains_key(&key);
        if first {
            self.0.insert(key, weight);
        }
        first
    }

    /// What is most particular about the endpoint counts.
    pub fn of(&self, endpoint: &Endpoint) -> u16 {
        if self.0.is_empty() {
            return 1;
        }
        let node = |node: &str| WeightKey::Node(NameHash::of(node));
        [
            Some(WeightKey::Address(endpoint.address)),
            endpoint.pod.map(WeightKey::Name),
            endpoint.hostname.map(WeightKey::Name),
            endpoint.node.as_deref().map(node),
            endpoint.zone.map(WeightKey::Zone),
            Some(WeightKey::Any),
        ]
        .into_iter()
        .flatten()
        .find_map(|key| self.0.get(&key))
        .copied()
        .unwrap_or(1)
    }
}

#[cfg(test)]
#[path = "balancing_tests.rs"]
mod tests;
