//! Desired minus applied: which writes take the maps from what they hold to what the model asks for.
//!
//! The planner knows what the maps hold because every executed step is reported back to it; a plan
//! that is cut anywhere leaves it knowing exactly what was done.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
};

use proxy_common::abi::{
    Backend, Frontend, FrontendKey, FrontendKind, Protocol, ServiceName, ServiceWord, SockAddr, map,
};

use super::{
    ids::{Epoch, Full, IdPool, Run, RunPool},
    step::Step,
};
use crate::{
    maps::{Capacity, Observed},
    model::{Family, FrontendAddress, ObjectName, PortKey, PortSnapshot, Scope},
};

/// The desired state of all ports of one Service; none if it is gone.
#[derive(Clone, Debug)]
pub struct Change {
    pub service: ObjectName,
    pub ports: Vec<PortSnapshot>,
}

/// A Service port that was left as it is because a map has no room for it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Service {key}: {full}; it stays as it is until there is room")]
pub struct Refused {
    pub key: PortKey,
    pub full: Full,
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
    targets: HashMap<Arc<PortKey>, Target>,
}

/// What a port's switch leads to.
#[derive(Debug)]
struct Target {
    run: Option<Run>,
    slots: Vec<u32>,
    wanted: BTreeSet<SocketAddr>,
}

#[derive(Clone, Copy, Debug)]
struct KnownBackend {
    id: u32,
    /// No slot names it since the switch of this epoch.
    disused: Option<Epoch>,
}

/// What the maps hold of one port.
#[derive(Debug)]
struct Port {
    id: u32,
    word: ServiceWord,
    run: Option<Run>,
    slots: Vec<u32>,
    backends: BTreeMap<SocketAddr, KnownBackend>,
    frontends: BTreeSet<FrontendAddress>,
    /// Not wanted any more; its frontends are gone since this epoch.
    disused: Option<Epoch>,
}

#[derive(Debug)]
pub struct Planner {
    ports: BTreeMap<Arc<PortKey>, Port>,
    /// Owner of every frontend in the map, by service id.
    frontends: HashMap<FrontendAddress, (u32, FrontendKind)>,
    frontend_capacity: u32,
    service_ids: IdPool,
    backend_ids: IdPool,
    runs: RunPool,
    epoch: Epoch,
    /// Ports with something to reclaim.
    disused: BTreeSet<(Epoch, Arc<PortKey>)>,
    /// Found in the maps and owned by nobody; removed by the first plan.
    strays: Vec<Step>,
    unfreed: bool,
}

impl Planner {
    /// Recognises what an earlier agent left in the maps.
    pub fn adopt(capacity: Capacity, observed: &Observed) -> Self {
        let mut planner = Self {
            ports: BTreeMap::new(),
            frontends: HashMap::new(),
            frontend_capacity: capacity.frontends,
            // Element 0 of each array is never used.
            service_ids: IdPool::new(map::SERVICES, capacity.services.saturating_sub(1)),
            backend_ids: IdPool::new(map::BACKENDS, capacity.backends.saturating_sub(1)),
            runs: RunPool::new(map::SLOTS, capacity.slots),
            epoch: 1,
            disused: BTreeSet::new(),
            strays: Vec::new(),
            unfreed: false,
        };
        let mut owners: HashMap<u32, Arc<PortKey>> = HashMap::new();
        for (&id, name) in &observed.names {
            match parse_name(name) {
                Some(key) if !planner.ports.contains_key(&key) && planner.service_ids.adopt(id) => {
                    let key = Arc::new(key);
                    owners.insert(id, Arc::clone(&key));
                    planner.adopt_port(key, id, observed);
                }
                _ => planner.stray_service(id),
            }
        }
        for id in observed
            .words
            .keys()
            .filter(|id| !observed.names.contains_key(id))
        {
            planner.stray_service(*id);
        }
        for (&id, backend) in &observed.backends {
            let known = owners
                .get(&backend.service)
                .and_then(|key| planner.ports.get_mut(key));
            let address = SockAddr::from_parts(backend.addr, backend.port_be).socket_addr();
            if !planner.backend_ids.adopt(id) {
                continue;
            }
            match known {
                Some(port) if !port.backends.contains_key(&address) => {
                    port.backends
                        .insert(address, KnownBackend { id, disused: None });
                }
                _ => planner.strays.push(Step::ClearBackend { id }),
            }
        }
        for (key, frontend) in &observed.frontends {
            let owner = owners
                .get(&frontend.service)
                .and_then(|key| planner.ports.get_mut(key));
            let kind = FrontendKind::from_number(frontend.kind);
            match (owner, frontend_address(key), kind) {
                (Some(port), Some(address), Some(kind)) => {
                    port.frontends.insert(address);
                    planner.frontends.insert(address, (port.id, kind));
                }
                _ => planner.strays.push(Step::RemoveFrontend { key: *key }),
            }
        }
        planner
    }

    /// An id whose owner can't be told: taken until its removal has been seen by everyone.
    fn stray_service(&mut self, id: u32) {
        if id != 0 {
            self.service_ids.adopt(id);
            self.strays.push(Step::Switch {
                service: id,
                word: ServiceWord::default(),
            });
            self.strays.push(Step::RemoveName { service: id });
        }
    }

    fn adopt_port(&mut self, key: Arc<PortKey>, id: u32, observed: &Observed) {
        let word = observed.words.get(&id).copied().unwrap_or_default();
        let mut port = Port {
            id,
            word: ServiceWord::default(),
            run: None,
            slots: Vec::new(),
            backends: BTreeMap::new(),
            frontends: BTreeSet::new(),
            disused: None,
        };
        if word.count() == 0 {
            port.word = word;
        } else {
            let run = Run {
                first: word.first_slot(),
                order: Run::order_for(word.count() as usize),
            };
            // A run that can't be ours is left alone: the first plan switches to another.
            if let Some(slots) = observed.slots.get(&run.first)
                && self.runs.adopt(run)
            {
                port.word = word;
                port.run = Some(run);
                port.slots.clone_from(slots);
            }
        }
        self.ports.insert(key, port);
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
            frontends: self.frontends.len() as u64,
            services: self.service_ids.used(),
            backends: self.backend_ids.used(),
            slots: self.runs.used(),
        }
    }

    /// The steps that make the maps hold `changes`. Nothing is recorded as done; report each executed
    /// step with [`Self::done`].
    pub fn plan(&mut self, changes: &[Change]) -> Plan {
        let mut plan = Plan::default();
        // Who gets a frontend in this very plan: its old owner must not remove it.
        let taken: HashSet<FrontendAddress> = changes
            .iter()
            .flat_map(|change| &change.ports)
            .flat_map(|port| port.frontends.iter().map(|(address, _)| *address))
            .collect();
        let mut new_frontends = 0u64;
        for change in changes {
            let mut wanted = HashSet::new();
            for snapshot in &change.ports {
                wanted.insert(&snapshot.key);
                if let Err(full) = self.plan_port(&mut plan, snapshot, &taken, &mut new_frontends) {
                    plan.refused.push(Refused {
                        key: snapshot.key.clone(),
                        full,
                    });
                }
            }
            let gone: Vec<Arc<PortKey>> = self
                .ports_of(&change.service)
                .filter(|(key, _)| !wanted.contains(key.as_ref()))
                .map(|(key, _)| Arc::clone(key))
                .collect();
            for key in gone {
                self.plan_removal(&mut plan, &key, &taken);
            }
        }
        let nobody = Arc::new(nobody());
        let in_use = |step: &Step| {
            matches!(step, Step::RemoveFrontend { key }
                if frontend_address(key).is_some_and(|address| taken.contains(&address)))
        };
        plan.steps.extend(
            self.strays
                .drain(..)
                .filter(|step| !in_use(step))
                .map(|step| Planned {
                    port: Arc::clone(&nobody),
                    step,
                }),
        );
        // Stable: within a phase, the order of the Services stays.
        plan.steps.sort_by_key(|planned| planned.step.phase());
        plan
    }

    fn ports_of(&self, service: &ObjectName) -> impl Iterator<Item = (&Arc<PortKey>, &Port)> {
        let first = PortKey {
            service: service.clone(),
            port: "".into(),
            protocol: Protocol::Tcp,
            family: Family::V4,
            scope: Scope::Cluster,
        };
        self.ports
            .range(Arc::new(first)..)
            .take_while(move |(key, _)| key.service == *service)
    }

    fn plan_port(
        &mut self,
        plan: &mut Plan,
        snapshot: &PortSnapshot,
        taken: &HashSet<FrontendAddress>,
        new_frontends: &mut u64,
    ) -> Result<(), Full> {
        let key = Arc::new(snapshot.key.clone());
        let known = self.ports.get(&key);
        let additional = snapshot
            .frontends
            .iter()
            .filter(|(address, _)| !self.frontends.contains_key(address))
            .count() as u64;
        let frontends_used = self.frontends.len() as u64 + *new_frontends;
        if frontends_used + additional > u64::from(self.frontend_capacity) {
            return Err(Full {
                map: map::FRONTENDS,
                needed: additional,
                used: frontends_used,
                capacity: self.frontend_capacity.into(),
            });
        }

        let wanted: BTreeSet<SocketAddr> = snapshot
            .chosen
            .iter()
            .chain(&snapshot.kept)
            .copied()
            .collect();
        let missing: Vec<SocketAddr> = wanted
            .iter()
            .filter(|address| !known.is_some_and(|port| port.backends.contains_key(address)))
            .copied()
            .collect();
        if self.backend_ids.room() < missing.len() as u64 {
            return Err(self.backend_ids.full(missing.len() as u64));
        }
        let is_new = known.is_none();
        let id = match known {
            Some(port) => port.id,
            None => self.service_ids.take()?,
        };
        // Everything that can be refused is taken first.
        let mut ids: BTreeMap<SocketAddr, u32> = self
            .ports
            .get(&key)
            .map(|port| port.backends.iter().map(|(a, b)| (*a, b.id)).collect())
            .unwrap_or_default();
        for address in &missing {
            ids.insert(*address, self.backend_ids.take()?);
        }
        let slots: Vec<u32> = snapshot.chosen.iter().map(|address| ids[address]).collect();
        let unchanged = self.ports.get(&key).is_some_and(|port| {
            port.slots == slots
                && (port.word.count() as usize == slots.len())
                && (!slots.is_empty() || port.word == ServiceWord::without_backends(snapshot.empty))
        });
        let run = if unchanged || slots.is_empty() {
            None
        } else {
            match self.runs.take(Run::order_for(slots.len())) {
                Ok(run) => Some(run),
                Err(full) => {
                    for address in &missing {
                        self.backend_ids.give_back(ids[address]);
                    }
                    if is_new {
                        self.service_ids.give_back(id);
                    }
                    return Err(full);
                }
            }
        };
        *new_frontends += additional;

        let mut push = |step| {
            plan.steps.push(Planned {
                port: Arc::clone(&key),
                step,
            });
        };
        if is_new {
            push(Step::PutName {
                service: id,
                name: name_of(&key),
            });
        }
        for address in &missing {
            let sock_addr = SockAddr::from(*address);
            push(Step::WriteBackend {
                id: ids[address],
                backend: Backend {
                    addr: sock_addr.addr,
                    port_be: sock_addr.port_be,
                    protocol: key.protocol.number(),
                    // Only the packet path reads them, and it is not attached yet.
                    flags: 0,
                    service: id,
                },
            });
        }
        // A switch that changes nothing is still due when backends fall out of use: it dates them.
        let falls_out = self.ports.get(&key).is_some_and(|port| {
            port.backends
                .keys()
                .any(|address| !wanted.contains(address))
        });
        let word = match (run, slots.len()) {
            (Some(run), count) => {
                push(Step::WriteSlots {
                    first: run.first,
                    backend_ids: slots.clone(),
                });
                Some(ServiceWord::with_backends(
                    run.first,
                    u32::try_from(count).unwrap_or(u32::MAX),
                ))
            }
            (None, _) if unchanged && !falls_out => None,
            (None, _) if unchanged => self.ports.get(&key).map(|port| port.word),
            (None, _) => Some(ServiceWord::without_backends(snapshot.empty)),
        };
        if let Some(word) = word {
            push(Step::Switch { service: id, word });
        }
        for (address, kind) in &snapshot.frontends {
            if self.frontends.get(address) != Some(&(id, *kind)) {
                push(Step::PutFrontend {
                    key: frontend_key(address),
                    frontend: Frontend {
                        service: id,
                        kind: *kind as u8,
                        zero: [0; 3],
                    },
                });
            }
        }
        if let Some(port) = self.ports.get_mut(&key) {
            port.disused = None;
            for (address, backend) in &mut port.backends {
                if wanted.contains(address) {
                    backend.disused = None;
                }
            }
        }
        self.plan_frontend_removals(plan, &key, taken);
        plan.targets.insert(key, Target { run, slots, wanted });
        Ok(())
    }

    fn plan_removal(
        &mut self,
        plan: &mut Plan,
        key: &Arc<PortKey>,
        taken: &HashSet<FrontendAddress>,
    ) {
        self.plan_frontend_removals(plan, key, taken);
        let epoch = self.epoch;
        if let Some(port) = self.ports.get_mut(key) {
            // Readers may still hold the service id: the rest waits until they are gone.
            port.disused = Some(epoch);
            self.disused.insert((epoch, Arc::clone(key)));
            self.unfreed = true;
        }
    }

    fn plan_frontend_removals(
        &self,
        plan: &mut Plan,
        key: &Arc<PortKey>,
        taken: &HashSet<FrontendAddress>,
    ) {
        let Some(port) = self.ports.get(key) else {
            return;
        };
        for address in port.frontends.iter().filter(|a| !taken.contains(a)) {
            if self
                .frontends
                .get(address)
                .is_some_and(|(id, _)| *id == port.id)
            {
                plan.steps.push(Planned {
                    port: Arc::clone(key),
                    step: Step::RemoveFrontend {
                        key: frontend_key(address),
                    },
                });
            }
        }
    }

    /// Records that a step of `plan` has been executed.
    pub fn done(&mut self, plan: &mut Plan, planned: &Planned) {
        let epoch = self.epoch;
        let key = &planned.port;
        match &planned.step {
            Step::PutName { service, .. } => {
                self.ports.insert(
                    Arc::clone(key),
                    Port {
                        id: *service,
                        word: ServiceWord::default(),
                        run: None,
                        slots: Vec::new(),
                        backends: BTreeMap::new(),
                        frontends: BTreeSet::new(),
                        disused: None,
                    },
                );
            }
            Step::WriteBackend { id, backend } => {
                if let Some(port) = self.ports.get_mut(key) {
                    let address = SockAddr::from_parts(backend.addr, backend.port_be).socket_addr();
                    port.backends.insert(
                        address,
                        KnownBackend {
                            id: *id,
                            disused: None,
                        },
                    );
                }
            }
            Step::WriteSlots { .. } => {}
            Step::Switch { word, .. } => self.switched(plan, key, *word),
            Step::PutFrontend {
                key: address,
                frontend,
            } => {
                if let (Some(address), Some(kind), Some(port)) = (
                    frontend_address(address),
                    FrontendKind::from_number(frontend.kind),
                    self.ports.get_mut(key),
                ) {
                    port.frontends.insert(address);
                    self.frontends.insert(address, (frontend.service, kind));
                }
            }
            Step::RemoveFrontend { key: address } => {
                if let Some(address) = frontend_address(address) {
                    self.frontends.remove(&address);
                    if let Some(port) = self.ports.get_mut(key) {
                        port.frontends.remove(&address);
                    }
                }
            }
            Step::ClearBackend { id } => {
                if let Some(port) = self.ports.get_mut(key) {
                    port.backends.retain(|_, backend| backend.id != *id);
                }
                self.backend_ids.retire(epoch, *id);
                self.unfreed = true;
            }
            Step::RemoveName { service } => {
                if let Some(run) = self.ports.remove(key).and_then(|port| port.run) {
                    self.runs.retire(epoch, run);
                }
                self.service_ids.retire(epoch, *service);
                self.unfreed = true;
            }
        }
    }

    fn switched(&mut self, plan: &mut Plan, key: &Arc<PortKey>, word: ServiceWord) {
        let Some(port) = self.ports.get_mut(key) else {
            return;
        };
        let word_changed = port.word != word;
        port.word = word;
        let Some(target) = plan.targets.remove(key) else {
            // Going out of use: the run is freed with the name.
            return;
        };
        if word_changed {
            if let Some(run) = std::mem::replace(&mut port.run, target.run) {
                self.runs.retire(self.epoch, run);
                self.unfreed = true;
            }
            port.slots = target.slots;
        }
        for (address, backend) in &mut port.backends {
            if !target.wanted.contains(address) && backend.disused.is_none() {
                backend.disused = Some(self.epoch);
                self.disused.insert((self.epoch, Arc::clone(key)));
                self.unfreed = true;
            }
        }
    }

    /// What a step that failed, or was never tried, had reserved.
    pub fn abandon(&mut self, plan: &mut Plan, planned: &Planned) {
        match &planned.step {
            Step::PutName { service, .. } => self.service_ids.give_back(*service),
            Step::WriteBackend { id, .. } => self.backend_ids.give_back(*id),
            Step::Switch { .. } => {
                if let Some(run) = plan.targets.remove(&planned.port).and_then(|t| t.run) {
                    self.runs.give_back(run);
                }
            }
            Step::WriteSlots { .. }
            | Step::PutFrontend { .. }
            | Step::RemoveFrontend { .. }
            | Step::ClearBackend { .. }
            | Step::RemoveName { .. } => {}
        }
    }

    /// The epoch that a grace period beginning now ends; `None` if nothing waits for one.
    pub fn begin_grace(&mut self) -> Option<Epoch> {
        if !std::mem::take(&mut self.unfreed) {
            return None;
        }
        self.epoch += 1;
        Some(self.epoch - 1)
    }

    /// Every program that ran in `epoch` has ended. Returns the steps that reclaim what nobody can
    /// see any more; execute and report them as any other plan.
    pub fn passed(&mut self, epoch: Epoch) -> Plan {
        self.service_ids.passed(epoch);
        self.backend_ids.passed(epoch);
        self.runs.passed(epoch);
        let mut plan = Plan::default();
        while let Some((at, key)) = self.disused.pop_first() {
            if at > epoch {
                self.disused.insert((at, key));
                break;
            }
            let Some(port) = self.ports.get(&key) else {
                continue;
            };
            let named = |address| {
                self.frontends
                    .get(address)
                    .is_some_and(|(id, _)| *id == port.id)
            };
            // A frontend that could not be removed keeps what it names.
            let gone =
                port.disused.is_some_and(|at| at <= epoch) && !port.frontends.iter().any(named);
            let mut push = |step| {
                plan.steps.push(Planned {
                    port: Arc::clone(&key),
                    step,
                });
            };
            for backend in port.backends.values() {
                if gone || backend.disused.is_some_and(|at| at <= epoch) {
                    push(Step::ClearBackend { id: backend.id });
                }
            }
            if gone {
                push(Step::Switch {
                    service: port.id,
                    word: ServiceWord::default(),
                });
                push(Step::RemoveName { service: port.id });
            }
        }
        plan.steps.sort_by_key(|planned| planned.step.phase());
        plan
    }
}

/// How much of each map is in use, waiting elements included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    pub frontends: u64,
    pub services: u64,
    pub backends: u64,
    pub slots: u64,
}

/// The key of steps that belong to no port.
fn nobody() -> PortKey {
    PortKey {
        service: ObjectName::new("", ""),
        port: "".into(),
        protocol: Protocol::Tcp,
        family: Family::V4,
        scope: Scope::Cluster,
    }
}

fn frontend_key(address: &FrontendAddress) -> FrontendKey {
    FrontendKey {
        addr: address.ip.into(),
        port_be: address.port.to_be(),
        protocol: address.protocol.number(),
        zero: 0,
    }
}

fn frontend_address(key: &FrontendKey) -> Option<FrontendAddress> {
    Some(FrontendAddress {
        ip: key.addr.ip(),
        port: u16::from_be(key.port_be),
        protocol: Protocol::from_number(key.protocol)?,
    })
}

fn name_of(key: &PortKey) -> ServiceName {
    let family = match key.family {
        Family::V4 => 4,
        Family::V6 => 6,
    };
    // The API server limits the parts so that they fit; a manifest's name may be anything, and an
    // over-long one is cut, which costs it nothing but its ids after a restart.
    let mut text = key.service_port_name();
    let mut end = text.len().min(144);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    ServiceName::new(&text, key.protocol.number(), family, key.scope as u8)
        .expect("cut to the size of the field")
}

fn parse_name(name: &ServiceName) -> Option<PortKey> {
    let text = name.text();
    let (namespace, rest) = text.split_once('/')?;
    let (service, port) = rest.split_once(':').unwrap_or((rest, ""));
    Some(PortKey {
        service: ObjectName::new(namespace, service),
        port: port.into(),
        protocol: Protocol::from_number(name.protocol)?,
        family: match name.family {
            4 => Family::V4,
            6 => Family::V6,
            _ => return None,
        },
        scope: match name.scope {
            0 => Scope::Cluster,
            1 => Scope::Local,
            _ => return None,
        },
    })
}
