//! Pure: what each Service port was asked for, out of what the programs count by service id.
//!
//! A port has an id for each family and list (of the cluster, of this node), and an id stands for one port after
//! another. What is shown is the sum of what was counted while an id stood for the port, so it never falls as long
//! as the port lives. So many ports have a series of their own: whoever comes first keeps it until it goes. The
//! others are one series, however many they are. What there is now, connections, has the same series.

use std::{collections::BTreeMap, sync::Arc};

use proxy_common::abi::ServiceStats;

use crate::{
    hash::HashMap,
    model::{ObjectName, PortKey},
    plan::IdChange,
};

/// No object can have this name.
const OTHER: &str = "_other";

/// A port of a Service, whatever the family.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ServicePort {
    pub(super) service: ObjectName,
    pub(super) port: Arc<str>,
}

impl ServicePort {
    fn of(key: &PortKey) -> Self {
        Self {
            service: key.service.clone(),
            port: Arc::clone(&key.port),
        }
    }

    fn other() -> Self {
        Self {
            service: ObjectName::new(OTHER, OTHER),
            port: OTHER.into(),
        }
    }
}

/// What is known of a port as long as an id stands for it.
#[derive(Debug)]
struct Known {
    ids: usize,
    /// `None`: it is one of the others.
    own: Option<ServiceStats>,
}

#[derive(Debug)]
pub(super) struct Services {
    most: usize,
    owners: HashMap<u32, Arc<PortKey>>,
    ports: HashMap<ServicePort, Known>,
    /// Ports with a series of their own.
    shown: usize,
    /// Of all others.
    other: ServiceStats,
    /// What the programs had counted when it was last looked, by id.
    last: HashMap<u32, ServiceStats>,
}

impl Services {
    /// `most`: Service ports that have a series of their own.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            owners: HashMap::default(),
            ports: HashMap::default(),
            shown: 0,
            other: ServiceStats::default(),
            last: HashMap::default(),
        }
    }

    /// What was counted before this agent is not counted again.
    pub(super) fn begin(&mut self, counted: Vec<(u32, ServiceStats)>) {
        self.last = counted.into_iter().collect();
    }

    pub(super) fn follow(&mut self, changes: Vec<IdChange>) {
        for change in changes {
            match change {
                IdChange::Given(id, key) => self.given(id, key),
                IdChange::TakenBack(id) => self.taken_back(id),
            }
        }
    }

    fn given(&mut self, id: u32, key: Arc<PortKey>) {
        let has_room = self.shown < self.most;
        let known = self.ports.entry(ServicePort::of(&key)).or_insert_with(|| {
            self.shown += usize::from(has_room);
            Known {
                ids: 0,
                own: has_room.then(ServiceStats::default),
            }
        });
        known.ids += 1;
        self.owners.insert(id, key);
    }

    fn taken_back(&mut self, id: u32) {
        // It is counted from 0 for whoever gets it next.
        self.last.remove(&id);
        let Some(key) = self.owners.remove(&id) else {
            return;
        };
        let port = ServicePort::of(&key);
        if let Some(known) = self.ports.get_mut(&port) {
            known.ids -= 1;
            if known.ids == 0 {
                self.shown -= usize::from(known.own.is_some());
                self.ports.remove(&port);
            }
        }
    }

    /// `counted`: by id, what the programs have counted until now, those left out for whom it is 0. What is
    /// shown of each port, sorted, the others last.
    pub(super) fn count(
        &mut self,
        counted: Vec<(u32, ServiceStats)>,
    ) -> Vec<(ServicePort, ServiceStats)> {
        for (id, now) in &counted {
            let Some(key) = self.owners.get(id) else {
                continue;
            };
            let before = self.last.get(id).copied().unwrap_or_default();
            let known = self.ports.get_mut(&ServicePort::of(key));
            let own = known.and_then(|known| known.own.as_mut());
            add(own.unwrap_or(&mut self.other), before, *now);
        }
        self.last = counted.into_iter().collect();
        let own = self.ports.iter();
        let own: BTreeMap<&ServicePort, ServiceStats> = own
            .filter_map(|(port, known)| Some((port, known.own?)))
            .collect();
        let mut shown: Vec<_> = own
            .into_iter()
            .map(|(port, stats)| (port.clone(), stats))
            .collect();
        shown.push((ServicePort::other(), self.other));
        shown
    }

    /// `now`: how many there are by service id. The sums of each port that has a series of its own, sorted,
    /// and of the others last.
    pub(super) fn sum(&self, now: &std::collections::HashMap<u32, u64>) -> Vec<(ServicePort, u64)> {
        let own = self.ports.iter().filter(|(_, known)| known.own.is_some());
        let mut own: BTreeMap<&ServicePort, u64> = own.map(|(port, _)| (port, 0)).collect();
        let mut other = 0;
        for (id, count) in now {
            let Some(key) = self.owners.get(id) else {
                continue;
            };
            *own.get_mut(&ServicePort::of(key)).unwrap_or(&mut other) += count;
        }
        let own = own.into_iter().map(|(port, count)| (port.clone(), count));
        own.chain([(ServicePort::other(), other)]).collect()
    }
}

/// What was counted since `before`; less than then means that it was begun anew.
fn add(sum: &mut ServiceStats, before: ServiceStats, now: ServiceStats) {
    let since = |before: u64, now: u64| now.checked_sub(before).unwrap_or(now);
    sum.connections += since(before.connections, now.connections);
    sum.failures += since(before.failures, now.failures);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proxy_common::abi::Protocol;

    use super::*;
    use crate::model::{Family, Scope};

    fn key(name: &str, family: Family) -> Arc<PortKey> {
        Arc::new(PortKey {
            service: ObjectName::new("ns", name),
            port: "http".into(),
            protocol: Protocol::Tcp,
            family,
            scope: Scope::Cluster,
        })
    }

    fn given(id: u32, name: &str) -> IdChange {
        IdChange::Given(id, key(name, Family::V4))
    }

    fn stats(connections: u64) -> ServiceStats {
        ServiceStats {
            connections,
            failures: 2 * connections,
        }
    }

    /// Names and connections.
    fn shown(services: &mut Services, counted: &[(u32, u64)]) -> Vec<(String, u64)> {
        let counted = counted.iter().map(|(id, count)| (*id, stats(*count)));
        let shown = services.count(counted.collect());
        shown
            .into_iter()
            .map(|(port, stats)| {
                assert_eq!(stats.failures, 2 * stats.connections);
                (port.service.name.to_string(), stats.connections)
            })
            .collect()
    }

    fn series(wanted: &[(&str, u64)]) -> Vec<(String, u64)> {
        wanted
            .iter()
            .map(|(name, count)| ((*name).to_owned(), *count))
            .collect()
    }

    #[test]
    fn a_port_is_the_sum_of_its_ids_and_goes_with_the_last_of_them() {
        let mut services = Services::new(9);
        services.follow(vec![
            given(1, "a"),
            IdChange::Given(2, key("a", Family::V6)),
        ]);
        assert_eq!(
            shown(&mut services, &[(1, 3), (2, 4)]),
            series(&[("a", 7), ("_other", 0)])
        );
        services.follow(vec![IdChange::TakenBack(2)]);
        assert_eq!(
            shown(&mut services, &[(1, 5)]),
            series(&[("a", 9), ("_other", 0)])
        );
        services.follow(vec![IdChange::TakenBack(1)]);
        assert_eq!(shown(&mut services, &[]), series(&[("_other", 0)]));
    }

    #[test]
    fn who_comes_first_keeps_its_series_and_a_free_one_is_for_who_comes_next() {
        let mut services = Services::new(1);
        services.follow(vec![given(1, "b"), given(2, "a")]);
        let both = [(1, 1), (2, 10)];
        assert_eq!(
            shown(&mut services, &both),
            series(&[("b", 1), ("_other", 10)])
        );
        services.follow(vec![IdChange::TakenBack(1), given(3, "c")]);
        services.follow(vec![IdChange::Given(4, key("a", Family::V6))]);
        assert_eq!(
            shown(&mut services, &[(2, 11), (3, 5), (4, 100)]),
            series(&[("c", 5), ("_other", 111)])
        );
        // What the others have had stays when one goes.
        services.follow(vec![IdChange::TakenBack(2), IdChange::TakenBack(4)]);
        assert_eq!(
            shown(&mut services, &[(3, 5)]),
            series(&[("c", 5), ("_other", 111)])
        );
    }

    #[test]
    fn what_there_is_now_is_summed_by_the_same_series() {
        let mut services = Services::new(1);
        services.follow(vec![
            given(1, "a"),
            IdChange::Given(2, key("a", Family::V6)),
            given(3, "b"),
            given(4, "c"),
        ]);
        let now = [(1, 5), (2, 1), (3, 20), (4, 300), (9, 7)].into();
        let sums = |services: &Services, now| -> Vec<(String, u64)> {
            let sums = services.sum(now).into_iter();
            sums.map(|(port, count)| (port.service.name.to_string(), count))
                .collect()
        };
        assert_eq!(sums(&services, &now), series(&[("a", 6), ("_other", 320)]));
        // A port without any is 0, and not missing.
        assert_eq!(
            sums(&services, &[].into()),
            series(&[("a", 0), ("_other", 0)])
        );
    }

    #[test]
    fn an_id_that_is_given_again_and_what_was_counted_before_the_agent_count_from_0() {
        let mut services = Services::new(9);
        services.begin(vec![(1, stats(1000))]);
        services.follow(vec![given(1, "a")]);
        assert_eq!(
            shown(&mut services, &[(1, 1002)]),
            series(&[("a", 2), ("_other", 0)])
        );
        services.follow(vec![IdChange::TakenBack(1), given(1, "b")]);
        assert_eq!(
            shown(&mut services, &[(1, 1003)]),
            series(&[("b", 1003), ("_other", 0)])
        );
    }

    proptest! {
        /// Whatever happens to ids: no series falls while it is there, there are no more than are allowed, and
        /// each thing that was counted is in one series.
        #[test]
        fn no_series_ever_falls_and_nothing_is_counted_twice_or_lost(
            most in 0_usize..4,
            steps in prop::collection::vec((0_u32..6, 0_usize..5, any::<bool>(), 0_u64..9), 1..60),
        ) {
            let mut services = Services::new(most);
            let mut counters: BTreeMap<u32, u64> = BTreeMap::new();
            let mut before: BTreeMap<String, u64> = BTreeMap::new();
            let (mut all, mut gone) = (0, 0);
            for (id, name, v6, more) in steps {
                let is_given = services.owners.contains_key(&id);
                if is_given && more == 0 {
                    counters.remove(&id);
                    services.follow(vec![IdChange::TakenBack(id)]);
                } else if is_given {
                    *counters.entry(id).or_default() += more;
                    all += more;
                } else {
                    let family = if v6 { Family::V6 } else { Family::V4 };
                    let key = key(&name.to_string(), family);
                    services.follow(vec![IdChange::Given(id, key)]);
                }
                let counted: Vec<(u32, u64)> =
                    counters.iter().map(|(id, count)| (*id, *count)).collect();
                let after: BTreeMap<String, u64> =
                    shown(&mut services, &counted).into_iter().collect();
                prop_assert!(after.len() <= most + 1);
                for (name, count) in &before {
                    match after.get(name) {
                        Some(after) => prop_assert!(count <= after, "{name}"),
                        None => gone += count,
                    }
                }
                prop_assert_eq!(after.values().sum::<u64>() + gone, all);
                before = after;
            }
        }
    }
}
