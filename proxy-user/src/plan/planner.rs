//! Desired minus applied: which writes take the maps from what they hold to what the model asks for.
//!
//! The planner knows what the maps hold because every executed step is reported back to it; a plan
//! that is cut anywhere leaves it knowing exactly what was done.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;
use proxy_common::abi::{
    Backend, Frontend, FrontendKey, FrontendKind, Protocol, ServiceAffinity, ServiceWord, map,
};

use super::{
    addresses::{self, Addresses, ServiceNets},
    adopt, affinity,
    backend_ids::BackendIds,
    backends::{self, List},
    ids::{Epoch, Full, IdPool, Run, RunPool, WaitsFor, remedy},
    ports::Ports,
    run::{self, Draw, Shortage, Slots},
    sorted::Sorted,
    step::{Phase, Step},
};
use crate::{
    hash::{HashMap, HashSet},
    model::{Family, FrontendAddress, ObjectName, PortKey, PortSnapshot, Scope, SourceRanges},
};

/// The desired state of all ports of one Service; none if it is gone.
#[derive(Clone, Debug)]
pub struct Change {
    pub service: ObjectName,
    pub ports: Vec<PortSnapshot>,
    /// Its ClusterIPs.
    pub addresses: Vec<IpAddr>,
}

/// A Service port that was left as it is because a map has no room for it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "Service {key}: {full}; it stays as it is until there is room; {remedy}", remedy = .full.remedy()
)]
pub struct Refused {
    pub key: PortKey,
    pub full: Full,
}

/// A Service port whose table or run is smaller than its scheduler and weights ask for: it works, but
/// shares are less exact.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "Service {key}: {slots} slots instead of {wanted}, because the map {map} has not more to spare; its backends' shares are less exact; {remedy}",
    map = map::SLOTS, remedy = remedy(map::SLOTS)
)]
pub struct Smaller {
    pub key: PortKey,
    /// That it gets.
    pub slots: u32,
    pub wanted: u32,
}

/// A step and the port it is for.
#[derive(Clone, Debug)]
pub struct Planned {
    pub port: Arc<PortKey>,
    pub step: Step,
}

/// Steps in the order they must be executed.
#[derive(Debug, Default)]
pub struct Plan {
    pub steps: Vec<Planned>,
    pub refused: Vec<Refused>,
    pub smaller: Vec<Smaller>,
    pub(super) targets: HashMap<Arc<PortKey>, Target>,
    /// Ids that backends have again, and what those waited for.
    pub(super) taken_again: HashMap<u32, WaitsFor>,
}

/// What a port's switch leads to.
#[derive(Debug)]
pub(super) struct Target {
    /// Another one than it has.
    pub(super) run: Option<Run>,
    pub(super) slots: Vec<u32>,
    /// Sorted.
    pub(super) wanted: Vec<SocketAddr>,
}

impl Target {
    pub(super) fn wants(&self, address: &SocketAddr) -> bool {
        self.wanted.binary_search(address).is_ok()
    }
}

impl Plan {
    /// Whether it makes a difference to connected UDP sockets.
    pub fn moves_udp(&self) -> bool {
        self.steps.iter().any(|planned| {
            planned.port.protocol == Protocol::Udp
                && matches!(
                    planned.step,
                    Step::Switch { .. } | Step::ClearBackend { .. } | Step::PutFrontend { .. }
                )
        })
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct KnownBackend {
    pub(super) id: u32,
    /// [`Backend::flags`].
    pub(super) flags: u8,
    /// [`Backend::weight`].
    pub(super) weight: u16,
    /// [`Backend::twin`].
    pub(super) twin: u32,
    /// No slot names it since the switch of this epoch.
    pub(super) disused: Option<Epoch>,
}

/// What the maps hold of one port.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) id: u32,
    pub(super) word: ServiceWord,
    pub(super) affinity: ServiceAffinity,
    pub(super) run: Option<Run>,
    pub(super) slots: Vec<u32>,
    pub(super) backends: Sorted<SocketAddr, KnownBackend>,
    /// Those that name it, for whomever.
    pub(super) frontends: Sorted<FrontendAddress, ()>,
    pub(super) source_ranges: BTreeSet<IpNet>,
    /// Not wanted any more; its frontends are gone since this epoch.
    pub(super) disused: Option<Epoch>,
}

#[derive(Debug)]
pub struct Planner {
    pub(super) ports: Ports,
    /// Whose service id is whose.
    pub(super) owners: HashMap<u32, Arc<PortKey>>,
    /// Every frontend in the map.
    pub(super) frontends: HashMap<FrontendAddress, Frontend>,
    pub(super) frontend_capacity: u32,
    pub(super) addresses: Addresses,
    pub(super) service_nets: ServiceNets,
    pub(super) source_ranges_used: u64,
    pub(super) source_range_capacity: u32,
    pub(super) service_ids: IdPool,
    pub(super) backend_ids: BackendIds,
    pub(super) runs: RunPool,
    pub(super) epoch: Epoch,
    /// Ports with something to reclaim.
    pub(super) disused: BTreeSet<(Epoch, Arc<PortKey>)>,
    /// Frontends that a port gave up and that are left in the map for another port to take over.
    pub(super) given_up: BTreeMap<FrontendAddress, Arc<PortKey>>,
    /// Removals of what was found in the maps and is owned by nobody, until they are done.
    pub(super) strays: Vec<Step>,
    pub(super) unfreed: bool,
    /// Since somebody last asked.
    pub(super) id_changes: Vec<IdChange>,
}

/// A service id has come to stand for a port, or does no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdChange {
    Given(u32, Arc<PortKey>),
    TakenBack(u32),
}

impl Planner {
    /// What has become of service ids since the last time, in order; at first, which an earlier agent has
    /// given.
    pub fn take_id_changes(&mut self) -> Vec<IdChange> {
        std::mem::take(&mut self.id_changes)
    }

    /// Services that have something in the maps.
    pub fn known_services(&self) -> BTreeSet<ObjectName> {
        self.ports
            .iter()
            .filter(|(_, port)| port.disused.is_none())
            .map(|(key, _)| key.service.clone())
            .collect()
    }

    pub fn used(&self) -> Used {
        Used {
            frontends: self.frontends_used(),
            source_ranges: self.source_ranges_used,
            service_nets: self.service_nets.known.len() as u64,
            services: self.service_ids.used(),
            backends: self.backend_ids.used(),
            slots: self.runs.used(),
        }
    }

    /// Addresses as such are in the same map.
    fn frontends_used(&self) -> u64 {
        self.frontends.len() as u64 + self.addresses.used()
    }

    /// From the next plan on these are the ServiceCIDRs.
    pub fn want_service_nets(&mut self, nets: BTreeSet<IpNet>) {
        self.service_nets.wanted = Some(nets);
    }

    /// The steps that make the maps hold `changes`. Nothing is recorded as done; report each executed
    /// step with [`Self::done`].
    pub fn plan(&mut self, changes: &[Change]) -> Plan {
        self.plan_with(changes, true)
    }

    /// The same of Services that concern no others, and nothing but that: another plan follows.
    pub(super) fn plan_part(&mut self, changes: &[Change]) -> Plan {
        self.plan_with(changes, false)
    }

    /// Whether a frontend that the Service gets is that of another port, or something it has is to go.
    pub(super) fn concerns_others(&self, change: &Change) -> bool {
        let is_wanted = |address: &FrontendAddress| {
            let mut frontends = change.ports.iter().flat_map(|port| &port.frontends);
            frontends.any(|(frontend, _)| frontend == address)
        };
        let gives_up = |(key, port): (&Arc<PortKey>, &Port)| {
            !change.ports.iter().any(|wanted| wanted.key == **key)
                || port.disused.is_some()
                || !port.frontends.keys().all(is_wanted)
        };
        let takes_over = |snapshot: &PortSnapshot| {
            let mut owners = snapshot.frontends.iter().filter_map(|(address, _)| {
                let id = self.frontends.get(address)?.service;
                Some(self.owners.get(&id))
            });
            owners.any(|owner| owner.is_none_or(|owner| **owner != snapshot.key))
        };
        self.ports_of(&change.service).any(gives_up) || change.ports.iter().any(takes_over)
    }

    /// `all`: also what belongs to none of the Services.
    fn plan_with(&mut self, changes: &[Change], all: bool) -> Plan {
        let mut plan = Plan::default();
        // Who gets a frontend in this very plan: its old owner must not remove it.
        let mut taken: HashMap<FrontendAddress, Arc<PortKey>> = HashMap::default();
        let mut losers = Vec::new();
        let mut new = New::default();
        for change in changes {
            self.addresses.hold(&change.service, &change.addresses);
            let before = (plan.steps.len(), new.frontends, new.source_ranges);
            let refused_before = plan.refused.len();
            let is_known = self.ports_of(&change.service).next().is_some();
            let mut wanted = HashSet::default();
            let mut planned = Vec::new();
            for lists in in_lists(&change.ports).into_values() {
                wanted.extend(lists.iter().map(|snapshot| &snapshot.key));
                match self.plan_lists(&mut plan, &lists, &mut new) {
                    Ok(keys) => planned.extend(lists.into_iter().zip(keys)),
                    Err(refused) => plan.refused.push(refused),
                }
            }
            if plan.refused.len() == refused_before {
                self.reserve_addresses(&mut plan, &change.service, &change.addresses, &mut new);
            }
            if !is_known && plan.refused.len() > refused_before {
                // Whoever finds one of its ports would look for the others: it comes whole, or not yet.
                self.take_back(&mut plan, before.0);
                (new.frontends, new.source_ranges) = (before.1, before.2);
                plan.refused.truncate(refused_before + 1);
                continue;
            }
            for (snapshot, key) in planned {
                let addresses = snapshot.frontends.iter().map(|(address, _)| *address);
                taken.extend(addresses.map(|address| (address, Arc::clone(&key))));
                losers.push(key);
            }
            let gone: Vec<Arc<PortKey>> = self
                .ports_of(&change.service)
                .filter(|(key, _)| !wanted.contains(key.as_ref()))
                .map(|(key, _)| Arc::clone(key))
                .collect();
            for key in gone {
                self.plan_removal(&key);
                losers.push(key);
            }
        }
        for key in losers {
            self.plan_frontend_removals(&mut plan, &key, &taken);
        }
        let heirs = self.addresses.take_heirs();
        for (service, ip) in &heirs {
            self.reserve_addresses(&mut plan, service, &[*ip], &mut new);
        }
        let services = changes.iter().map(|change| &change.service);
        self.addresses
            .plan(&mut plan, services, &heirs, &new.addresses);
        if all {
            self.addresses.plan_removals(&mut plan);
            self.service_nets.plan(&mut plan);
            self.plan_given_up(&mut plan, &taken);
            self.plan_strays(&mut plan, &taken);
        }
        // Of a Service that is refused there is worse to tell.
        let refused: HashSet<&ObjectName> = plan
            .refused
            .iter()
            .map(|refused| &refused.key.service)
            .collect();
        plan.smaller
            .retain(|smaller| !refused.contains(&smaller.key.service));
        let emptied = self.emptied(&plan);
        // A Service whose ranges change and stay: whoever is admitted no more must not come in by a
        // frontend that it takes over.
        let restricted: HashSet<&PortKey> = changes
            .iter()
            .flat_map(|change| &change.ports)
            .filter(|snapshot| snapshot.source_ranges.is_some())
            .map(|snapshot| &snapshot.key)
            .collect();
        let late = self.late(&plan, &emptied);
        // Stable: within a phase, the order of the Services stays.
        plan.steps.sort_by_key(|planned| {
            let phase = planned.step.phase();
            if phase == Phase::RemovedSourceRanges && restricted.contains(&*planned.port) {
                return (Phase::SourceRanges, 3);
            }
            if let Step::PutFrontend { key, frontend } = &planned.step {
                return (phase, self.rank_of(key, frontend, &late));
            }
            if let Step::Switch { service, .. } = &planned.step
                && let Some(rank) = late.get(service)
            {
                return (Phase::Frontends, *rank);
            }
            let is_emptied = emptied.contains(&planned.port);
            (phase, if is_emptied { 2 } else { 0 })
        });
        plan
    }

    /// Ports that frontends name and that lose their last backend. Other ports may take over frontends of
    /// theirs in the same plan, and those frontends' clients must not be refused in between: such a
    /// switch comes after what others take, and before whatever is to name the port from then on.
    pub(super) fn emptied(&self, plan: &Plan) -> HashSet<Arc<PortKey>> {
        plan.steps
            .iter()
            .filter(|planned| {
                matches!(planned.step, Step::Switch { word, .. } if word.count() == 0)
                    && self
                        .ports
                        .get(&planned.port)
                        .is_some_and(|port| port.word.count() > 0 && !port.frontends.is_empty())
            })
            .map(|planned| Arc::clone(&planned.port))
            .collect()
    }

    /// When among the frontends these ports are switched, by their ids: after each that is led elsewhere,
    /// which comes after the switch of where it is to lead. If they wait for one another, a client may be
    /// refused for a moment, and none reaches what it must not.
    fn late(&self, plan: &Plan, emptied: &HashSet<Arc<PortKey>>) -> HashMap<u32, u8> {
        let ports = emptied.iter().filter_map(|key| self.ports.get(key));
        let mut late: HashMap<u32, u8> = ports.map(|port| (port.id, 1)).collect();
        for _ in 0..late.len().min(MOST_IN_A_ROW) {
            let mut is_right = true;
            for planned in &plan.steps {
                let Step::PutFrontend { key, frontend } = &planned.step else {
                    continue;
                };
                let rank = self.rank_of(key, frontend, &late);
                for (before, now) in self.moves(key, frontend) {
                    if before != now
                        && let Some(switch) = late.get_mut(&before)
                        && *switch <= rank
                    {
                        *switch = rank + 1;
                        is_right = false;
                    }
                }
            }
            if is_right {
                break;
            }
        }
        late
    }

    /// After the switches of what it is to lead to and does not yet.
    fn rank_of(&self, key: &FrontendKey, frontend: &Frontend, late: &HashMap<u32, u8>) -> u8 {
        if late.is_empty() {
            return 0;
        }
        let moves = self.moves(key, frontend).into_iter();
        let switches = moves.filter_map(|(before, now)| late.get(&now).filter(|_| before != now));
        switches.max().map_or(0, |rank| rank + 1)
    }

    /// The ids to which the frontend led (0: none) and is to lead: those inside, those outside.
    fn moves(&self, key: &FrontendKey, frontend: &Frontend) -> [(u32, u32); 2] {
        let led = |frontend: &Frontend| match frontend.outside_service {
            0 => [frontend.service; 2],
            outside => [frontend.service, outside],
        };
        let before = frontend_address(key).and_then(|address| self.frontends.get(&address));
        let (before, now) = (before.map_or([0; 2], led), led(frontend));
        [(before[0], now[0]), (before[1], now[1])]
    }

    fn ports_of(&self, service: &ObjectName) -> impl Iterator<Item = (&Arc<PortKey>, &Port)> {
        self.ports.of(service)
    }

    /// Whether FRONTENDS has room for so many more.
    fn has_room(&self, needed: u64, new: &New) -> Result<(), Full> {
        let used = self.frontends_used() + new.frontends + new.addresses.len() as u64;
        let capacity = self.frontend_capacity.into();
        if needed == 0 || used + needed <= capacity {
            return Ok(());
        }
        Err(Full {
            map: map::FRONTENDS,
            needed,
            used,
            capacity,
            by_connections: 0,
        })
    }

    /// Those of the Service's addresses that are not in the map.
    fn reserve_addresses(
        &self,
        plan: &mut Plan,
        service: &ObjectName,
        ips: &[IpAddr],
        new: &mut New,
    ) {
        let is_new = |ip: &&IpAddr| !self.addresses.is_known(ip) && !new.addresses.contains(*ip);
        let missing: Vec<IpAddr> = ips.iter().filter(is_new).copied().collect();
        let Some(first) = missing.first() else {
            return;
        };
        match self.has_room(missing.len() as u64, new) {
            Ok(()) => new.addresses.extend(missing),
            Err(full) => plan.refused.push(Refused {
                key: addresses::key_of(service, *first),
                full,
            }),
        }
    }

    /// All lists of one Service port, or none of them. Those of this node come first: the others'
    /// frontends name them.
    fn plan_lists(
        &mut self,
        plan: &mut Plan,
        lists: &[&PortSnapshot],
        new: &mut New,
    ) -> Result<Vec<Arc<PortKey>>, Refused> {
        let before = (plan.steps.len(), new.frontends, new.source_ranges);
        let mut planned: Vec<List> = Vec::with_capacity(lists.len());
        for snapshot in lists {
            let local = planned.last().map_or(0, |list| list.id);
            match self.plan_port(plan, snapshot, local, new) {
                Ok(list) => planned.push(list),
                Err(full) => {
                    self.take_back(plan, before.0);
                    (new.frontends, new.source_ranges) = (before.1, before.2);
                    return Err(Refused {
                        key: snapshot.key.clone(),
                        full,
                    });
                }
            }
        }
        self.plan_twins(plan, before.0, &planned);
        Ok(planned.into_iter().map(|list| list.key).collect())
    }

    /// Gives up the steps from this one on, and what they had reserved.
    fn take_back(&mut self, plan: &mut Plan, from: usize) {
        for planned in plan.steps.split_off(from) {
            self.abandon(plan, &planned);
        }
    }

    /// `local`: the service id of the same port's list of this node, if it has one.
    fn plan_port(
        &mut self,
        plan: &mut Plan,
        snapshot: &PortSnapshot,
        local: u32,
        new: &mut New,
    ) -> Result<List, Full> {
        let (key, known) = match self.ports.get_key_value(&snapshot.key) {
            Some((key, port)) => (Arc::clone(key), Some(port)),
            None => (Arc::new(snapshot.key.clone()), None),
        };
        let ranges = snapshot.source_ranges.as_ref().map(|limits| &limits.ranges);
        let missing_ranges: Vec<IpNet> = ranges
            .into_iter()
            .flatten()
            .filter(|range| !known.is_some_and(|port| port.source_ranges.contains(range)))
            .copied()
            .collect();
        let ranges_used = self.source_ranges_used + new.source_ranges;
        if ranges_used + missing_ranges.len() as u64 > u64::from(self.source_range_capacity) {
            return Err(Full {
                map: map::SOURCE_RANGES,
                needed: missing_ranges.len() as u64,
                used: ranges_used,
                capacity: self.source_range_capacity.into(),
                by_connections: 0,
            });
        }
        let additional = snapshot
            .frontends
            .iter()
            .filter(|(address, _)| !self.frontends.contains_key(address))
            .count() as u64;
        self.has_room(additional, new)?;

        let mut wanted = [&snapshot.chosen[..], &snapshot.kept[..]].concat();
        wanted.sort_unstable();
        let is_wanted = |address: &SocketAddr| wanted.binary_search(address).is_ok();
        let missing: Vec<SocketAddr> = wanted
            .iter()
            .filter(|address| !known.is_some_and(|port| port.backends.contains_key(address)))
            .copied()
            .collect();
        self.backend_ids.has_room(&key, &missing)?;
        let is_new = known.is_none();
        let id = match known {
            Some(port) => port.id,
            None => self.service_ids.take()?,
        };
        // Everything that can be refused is taken first.
        let mut ids = Sorted::default();
        ids.reserve(missing.len() + known.map_or(0, |port| port.backends.len()));
        for (address, backend) in known.into_iter().flat_map(|port| port.backends.iter()) {
            ids.insert(*address, backend.id);
        }
        for address in &missing {
            let (backend_id, waited) = self.backend_ids.take(&key, address)?;
            ids.insert(*address, backend_id);
            let waited = waited.map(|waited| (backend_id, waited));
            plan.taken_again.extend(waited);
        }
        let chosen_ids: Vec<u32> = snapshot
            .chosen
            .iter()
            .filter_map(|address| ids.get(address).copied())
            .collect();
        let held = known.filter(|port| port.run.is_some());
        let held = held.map(|port| &port.slots[..]);
        let taken = Draw::of(snapshot).take(&mut self.runs, &chosen_ids, held);
        let Slots {
            run,
            backend_ids: slots,
            shortage,
        } = match taken {
            Ok(slots) => slots,
            Err(full) => {
                for address in &missing {
                    if let Some(id) = ids.get(address) {
                        let waited = plan.taken_again.remove(id);
                        self.backend_ids.give_back(&key, *address, *id, waited);
                    }
                }
                if is_new {
                    self.service_ids.give_back(id);
                }
                return Err(full);
            }
        };
        plan.smaller
            .extend(shortage.map(|Shortage { slots, wanted }| Smaller {
                key: snapshot.key.clone(),
                slots,
                wanted,
            }));
        new.frontends += additional;
        new.source_ranges += missing_ranges.len() as u64;

        let mut push = |step| {
            plan.steps.push(Planned {
                port: Arc::clone(&key),
                step,
            });
        };
        if is_new {
            push(Step::PutName {
                service: id,
                name: adopt::name_of(&key),
            });
        }
        // A backend whose flags or weight change is written again where it is, also if that is all that is left to
        // do for it: clients with affinity go by them.
        for (address, backend_id) in ids.iter() {
            let written = known.and_then(|port| port.backends.get(address));
            let (flags, weight) = if is_wanted(address) {
                let flags = backends::flags_of(snapshot, address);
                (flags, run::weight_of(snapshot, address))
            } else {
                written.map_or((0, 1), |b| (b.flags & !Backend::CHOSEN, b.weight))
            };
            if written.is_some_and(|b| (b.flags, b.weight) == (flags, weight)) {
                continue;
            }
            let backend = KnownBackend {
                id: *backend_id,
                flags,
                weight,
                twin: written.map_or(0, |backend| backend.twin),
                disused: None,
            };
            push(backends::write(&key, id, address, &backend));
        }
        for range in missing_ranges {
            push(Step::PutSourceRange { service: id, range });
        }
        // A switch that changes nothing is still due when backends fall out of use: it dates them.
        let falls_out = known.is_some_and(|port| {
            port.backends
                .iter()
                .any(|(address, backend)| !is_wanted(address) && backend.disused.is_none())
        });
        let affinity = affinity::of(&key, snapshot.affinity_timeout_secs);
        if let Some(run) = run {
            push(Step::WriteSlots {
                first: run.first,
                backend_ids: slots.clone(),
            });
        }
        let run_or_held = run.or_else(|| known.and_then(|port| port.run));
        let word = match run_or_held {
            Some(run) if !slots.is_empty() => word_of(
                snapshot,
                run.first,
                u32::try_from(slots.len()).unwrap_or(u32::MAX),
            ),
            _ => ServiceWord::without_backends(snapshot.empty),
        };
        let is_as_it_was =
            !falls_out && known.is_some_and(|port| port.word == word && port.affinity == affinity);
        if !is_as_it_was {
            push(Step::Switch {
                service: id,
                word,
                affinity,
            });
        }
        for (address, kind) in &snapshot.frontends {
            let is_external = *kind != FrontendKind::ClusterIp;
            let frontend = Frontend {
                service: id,
                outside_service: if snapshot.outside_is_local && is_external {
                    local
                } else {
                    0
                },
                kind: *kind as u8,
                flags: flags_of(address, *kind, snapshot.source_ranges.as_ref()),
                zero: [0; 2],
            };
            if self.frontends.get(address) != Some(&frontend) {
                push(Step::PutFrontend {
                    key: frontend_key(address),
                    frontend,
                });
            }
        }
        for range in known
            .into_iter()
            .flat_map(|port| &port.source_ranges)
            .filter(|range| !ranges.is_some_and(|wanted| wanted.contains(range)))
        {
            push(Step::RemoveSourceRange {
                service: id,
                range: *range,
            });
        }
        if let Some(port) = self.ports.get_mut(&key) {
            port.disused = None;
            for (address, backend) in port.backends.iter_mut() {
                if is_wanted(address) {
                    backend.disused = None;
                }
            }
        }
        ids.retain(|address, _| is_wanted(address));
        plan.targets
            .insert(Arc::clone(&key), Target { run, slots, wanted });
        Ok(List {
            key,
            id,
            backends: ids,
        })
    }

    fn plan_removal(&mut self, key: &Arc<PortKey>) {
        let epoch = self.epoch;
        if let Some(port) = self.ports.get_mut(key) {
            // Readers may still hold the service id: the rest waits until they are gone.
            port.disused = Some(epoch);
            self.disused.insert((epoch, Arc::clone(key)));
            self.unfreed = true;
        }
    }

    /// Removes what the port has and does not want, but for what another port takes over.
    fn plan_frontend_removals(
        &mut self,
        plan: &mut Plan,
        key: &Arc<PortKey>,
        taken: &HashMap<FrontendAddress, Arc<PortKey>>,
    ) {
        let Some(port) = self.ports.get(key) else {
            return;
        };
        for address in port.frontends.keys() {
            if self.frontends.get(address).map(|known| known.service) != Some(port.id) {
                continue;
            }
            match taken.get(address) {
                Some(taker) if taker == key => {
                    self.given_up.remove(address);
                }
                // Should the other one fail to take it, it is still known.
                Some(_) => {
                    self.given_up.insert(*address, Arc::clone(key));
                }
                None => {
                    self.given_up.remove(address);
                    plan.steps.push(Planned {
                        port: Arc::clone(key),
                        step: Step::RemoveFrontend {
                            key: frontend_key(address),
                        },
                    });
                }
            }
        }
    }

    /// What nobody took over after all.
    fn plan_given_up(&self, plan: &mut Plan, taken: &HashMap<FrontendAddress, Arc<PortKey>>) {
        for (address, owner) in &self.given_up {
            if !taken.contains_key(address) {
                plan.steps.push(Planned {
                    port: Arc::clone(owner),
                    step: Step::RemoveFrontend {
                        key: frontend_key(address),
                    },
                });
            }
        }
    }

    fn plan_strays(&mut self, plan: &mut Plan, taken: &HashMap<FrontendAddress, Arc<PortKey>>) {
        let Self {
            strays, frontends, ..
        } = self;
        let removed = |step: &Step| {
            if let Step::RemoveFrontend { key } = step {
                frontend_address(key)
            } else {
                None
            }
        };
        strays.retain(|step| removed(step).is_none_or(|address| !frontends.contains_key(&address)));
        let nobody = Arc::new(nobody());
        plan.steps.extend(
            strays
                .iter()
                .filter(|step| removed(step).is_none_or(|address| !taken.contains_key(&address)))
                .map(|step| Planned {
                    port: Arc::clone(&nobody),
                    step: step.clone(),
                }),
        );
    }
}

/// Of a port that has backends. Without any, the rule makes no difference, and is left out.
fn word_of(snapshot: &PortSnapshot, first_slot: u32, count: u32) -> ServiceWord {
    let balancing = &snapshot.balancing;
    ServiceWord::with_backends(first_slot, count).scheduled(
        balancing.scheduler,
        balancing.fails_over,
        run::is_weighted(snapshot),
    )
}

/// Emptied ports that wait for one another: in practice one or two.
const MOST_IN_A_ROW: usize = 16;

/// What a plan adds to maps whose elements have no ids.
#[derive(Debug, Default)]
struct New {
    frontends: u64,
    source_ranges: u64,
    addresses: HashSet<IpAddr>,
}

/// The lists of each Service port, those of this node first.
fn in_lists(ports: &[PortSnapshot]) -> BTreeMap<PortKey, Vec<&PortSnapshot>> {
    let mut lists: BTreeMap<PortKey, Vec<&PortSnapshot>> = BTreeMap::new();
    for snapshot in ports {
        let of_port = lists.entry(snapshot.key.of_cluster()).or_default();
        of_port.push(snapshot);
        of_port.sort_by_key(|snapshot| std::cmp::Reverse(snapshot.key.scope));
    }
    lists
}

/// How much of each map is in use, waiting elements included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// With addresses as such.
    pub frontends: u64,
    pub source_ranges: u64,
    pub service_nets: u64,
    pub services: u64,
    pub backends: u64,
    pub slots: u64,
}

/// The key of steps that belong to no port.
pub(super) fn nobody() -> PortKey {
    PortKey {
        service: ObjectName::new("", ""),
        port: "".into(),
        protocol: Protocol::Tcp,
        family: Family::V4,
        scope: Scope::Cluster,
    }
}

pub(super) fn frontend_key(address: &FrontendAddress) -> FrontendKey {
    FrontendKey {
        addr: address.ip.into(),
        port_be: address.port.to_be(),
        protocol: address.protocol.number(),
        zero: 0,
    }
}

fn flags_of(address: &FrontendAddress, kind: FrontendKind, limits: Option<&SourceRanges>) -> u8 {
    match (kind, limits) {
        // A pod's loopback address is its own.
        (FrontendKind::NodePort, _) if address.ip.is_loopback() => Frontend::NODE_ONLY,
        (FrontendKind::LoadBalancer, Some(limits)) => {
            let admits = |admitted, flag| if admitted { flag } else { 0 };
            Frontend::SOURCE_RANGES
                | admits(limits.admit_node, Frontend::NODE_ALLOWED)
                | admits(limits.admit_pods, Frontend::PODS_ALLOWED)
        }
        _ => 0,
    }
}

pub(super) fn frontend_address(key: &FrontendKey) -> Option<FrontendAddress> {
    Some(FrontendAddress {
        ip: key.addr.ip(),
        port: u16::from_be(key.port_be),
        protocol: Protocol::from_number(key.protocol)?,
    })
}
