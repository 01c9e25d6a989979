//! Services whose last change is not in the maps: which they are, why, and what of that is news.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    ops::Bound,
};

use serde::{Deserialize, Serialize};

use crate::{
    maps::StoreError,
    model::ObjectName,
    plan::{Failed, Refused},
};

/// Why a Service's last change is not in the maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What is wrong and what to do about it, without the Service's name at the beginning.
    pub reason: String,
    /// The map that has no room for it; `None` for anything else that went wrong.
    pub full: Option<&'static str>,
}

/// The same for whoever asks the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotProgrammed {
    /// `namespace/name`.
    pub service: String,
    /// The map that has no room for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_map: Option<String>,
    /// With what to do about it.
    pub reason: String,
}

impl From<&Refused> for Trouble {
    fn from(refused: &Refused) -> Self {
        Self {
            reason: refused.to_string(),
            full: Some(refused.full.map),
        }
    }
}

impl From<&Failed> for Trouble {
    fn from(failed: &Failed) -> Self {
        Self {
            reason: failed.to_string(),
            full: match &failed.error {
                StoreError::Full { map, .. } => Some(map),
                StoreError::NoMemory { .. }
                | StoreError::Map { .. }
                | StoreError::Shared(_)
                | StoreError::OutOfRange { .. } => None,
            },
        }
    }
}

/// Those that wait, by name.
#[derive(Debug, Default)]
pub struct Waiting {
    services: BTreeMap<ObjectName, Trouble>,
    /// The last one that was picked.
    last: Option<ObjectName>,
}

impl Waiting {
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// All of them, and how many of them for want of room.
    pub fn counts(&self) -> (usize, usize) {
        let full = self.services.values().filter(|t| t.full.is_some()).count();
        (self.services.len(), full)
    }

    #[cfg(test)]
    pub fn services(&self) -> BTreeSet<ObjectName> {
        self.services.keys().cloned().collect()
    }

    /// So many of them, each in its turn.
    pub fn pick(&mut self, at_most: usize) -> Vec<ObjectName> {
        let after = self.last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let rest = self.services.range((after, Bound::Unbounded));
        let picked: Vec<ObjectName> = rest
            .chain(&self.services)
            .map(|(service, _)| service.clone())
            .take(at_most.min(self.services.len()))
            .collect();
        self.last = picked.last().cloned();
        picked
    }

    /// These have been looked at, and this was wrong with some. Yields who waits now and did not
    /// before, or not for want of room.
    pub fn looked_at(
        &mut self,
        services: &BTreeSet<ObjectName>,
        troubles: impl Iterator<Item = (ObjectName, Trouble)>,
    ) -> Vec<(ObjectName, Trouble)> {
        let mut now: BTreeMap<ObjectName, Trouble> = BTreeMap::new();
        for (service, trouble) in troubles {
            // The first of its ports speaks for all.
            now.entry(service).or_insert(trouble);
        }
        if !self.services.is_empty() {
            for service in services
                .iter()
                .filter(|service| !now.contains_key(*service))
            {
                if self.services.remove(service).is_some() {
                    log::info!("Service {service}: nothing of it waits for the maps any more");
                }
            }
        }
        let mut news = Vec::new();
        for (service, trouble) in now {
            let is_new = match self.services.entry(service.clone()) {
                Entry::Vacant(entry) => {
                    entry.insert(trouble.clone());
                    true
                }
                Entry::Occupied(mut entry) => {
                    let before = entry.insert(trouble.clone());
                    before.full.is_none() && trouble.full.is_some()
                }
            };
            if is_new {
                news.push((service, trouble));
            }
        }
        news
    }

    pub fn told(&self) -> Vec<NotProgrammed> {
        self.services
            .iter()
            .map(|(service, trouble)| NotProgrammed {
                service: service.to_string(),
                full_map: trouble.full.map(str::to_owned),
                reason: trouble.reason.clone(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> ObjectName {
        ObjectName::new("ns", name)
    }

    fn trouble(full: Option<&'static str>) -> Trouble {
        Trouble {
            reason: "why".to_owned(),
            full,
        }
    }

    #[test]
    fn each_is_picked_in_its_turn() {
        let mut waiting = Waiting::default();
        assert_eq!(waiting.pick(2), []);
        let all = ["a", "b", "c"].map(|service| (name(service), trouble(None)));
        waiting.looked_at(&BTreeSet::new(), all.into_iter());
        assert_eq!(waiting.pick(2), [name("a"), name("b")]);
        assert_eq!(waiting.pick(2), [name("c"), name("a")]);
        assert_eq!(waiting.pick(usize::MAX), [name("b"), name("c"), name("a")]);
    }

    #[test]
    fn only_what_has_changed_is_news() {
        let mut waiting = Waiting::default();
        let a = BTreeSet::from([name("a")]);
        let mut news = |full: Option<Option<&'static str>>| {
            let troubles = full.map(|full| (name("a"), trouble(full)));
            let news = waiting.looked_at(&a, troubles.into_iter());
            (news.len(), waiting.counts())
        };
        assert_eq!(news(Some(None)), (1, (1, 0)));
        assert_eq!(news(Some(None)), (0, (1, 0)));
        assert_eq!(news(Some(Some("M"))), (1, (1, 1)));
        assert_eq!(news(Some(Some("M"))), (0, (1, 1)));
        assert_eq!(news(None), (0, (0, 0)));
        assert_eq!(news(Some(Some("M"))), (1, (1, 1)));
    }
}
