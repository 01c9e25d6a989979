//! The annotations that say how a Service is balanced (docs/BALANCING.md). What can't be read counts as
//! not said.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{
    ANNOTATION_FAILOVER, ANNOTATION_SCHEDULER, ANNOTATION_WEIGHTS, Problems, Reason, address,
    is_plain,
};
use crate::model::{NameHash, ServiceBalancing, WeightKey, Weights, scheduler_named};

/// Of text that can't be read, this much is repeated.
const SHOWN_BYTES: usize = 64;

pub(super) fn balancing(meta: &ObjectMeta, problems: &mut Problems) -> ServiceBalancing {
    // Blank is the way to take one back with `kubectl annotate --overwrite`.
    let said = |name: &str| {
        let annotations = meta.annotations.as_ref()?;
        Some(annotations.get(name)?.trim()).filter(|text| !text.is_empty())
    };
    let mut problem = |name: &str, reason| {
        problems.add(format!("metadata.annotations[{name}]"), reason);
    };
    let mut balancing = ServiceBalancing::default();
    if let Some(text) = said(ANNOTATION_SCHEDULER) {
        balancing.scheduler = scheduler_named(text);
        if balancing.scheduler.is_none() {
            problem(ANNOTATION_SCHEDULER, Reason::UnknownScheduler(short(text)));
        }
    }
    if let Some(text) = said(ANNOTATION_FAILOVER) {
        balancing.fails_over = text.parse().ok();
        if balancing.fails_over.is_none() {
            problem(ANNOTATION_FAILOVER, Reason::NotABool(short(text)));
        }
    }
    if let Some(text) = said(ANNOTATION_WEIGHTS) {
        let (weights, bad) = weights(text);
        balancing.weights = weights;
        if let [first, others @ ..] = bad.as_slice() {
            let (first, more) = (short(first), others.len());
            problem(ANNOTATION_WEIGHTS, Reason::NotWeights { first, more });
        }
    }
    balancing
}

/// Comma-separated entries `key=weight`, and those that are none. Of two for the same the first counts.
fn weights(text: &str) -> (Weights, Vec<&str>) {
    let mut weights = Weights::default();
    let entries = text.split(',').map(str::trim);
    let bad = entries.filter(|entry| {
        let mut added = || {
            let (key, weight) = entry.split_once('=')?;
            Some(weights.add(key_of(key.trim())?, weight_of(weight.trim())?))
        };
        !entry.is_empty() && added() != Some(true)
    });
    let bad = bad.collect();
    (weights, bad)
}

fn key_of(text: &str) -> Option<WeightKey> {
    let named = |name: &str| (!name.is_empty() && is_plain(name)).then(|| NameHash::of(name));
    if text == "*" {
        Some(WeightKey::Any)
    } else if let Some(node) = text.strip_prefix("node/") {
        named(node).map(WeightKey::Node)
    } else if let Some(zone) = text.strip_prefix("zone/") {
        named(zone).map(WeightKey::Zone)
    } else if let Some(address) = address::parse_sloppy(text) {
        Some(WeightKey::Address(address))
    } else {
        // No pod and no hostname has a colon: this was to be an address.
        let name = Some(text).filter(|text| !text.contains(':'));
        name.and_then(named).map(WeightKey::Name)
    }
}

fn weight_of(text: &str) -> Option<u16> {
    // u16::from_str would take a sign.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let weight = text.parse().ok().filter(|_| digits)?;
    (weight <= Weights::MAX).then_some(weight)
}

fn short(text: &str) -> String {
    let shown = &text[..text.floor_char_boundary(SHOWN_BYTES)];
    let dots = if shown.len() < text.len() { "..." } else { "" };
    format!("{shown}{dots}")
}

#[cfg(test)]
#[path = "balancing_tests.rs"]
mod tests;
