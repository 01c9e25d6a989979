//! Maps of the kernel that refuse: a batch that stops part way, and one operation in ten that fails. What
//! the agent believes is what is in them, and in the end they say what a clean start writes.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU16,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use proxy_common::abi::{Empty, Frontend, FrontendKey, FrontendKind, Protocol, ServiceName};
use proxy_user::{
    audit::Audit,
    maps::{Capacity, MapStore, StoreError, bpf::BpfStore, faulty::Faulty, meaning},
    model::{
        Balancing, Endpoint, EndpointSlice, Event, Family, FrontendAddress, Kind, Model, Node,
        NodePortScope, ObjectName, PortKey, PortSnapshot, Scope, Service, ServicePort, SlicePort,
        TrafficPolicy,
    },
    plan::{Change, Planner, Step, carry_out},
    sync::Syncer,
};
use tests::{maps, packet::damage::Dice};

const ROOM: Capacity = Capacity {
    frontends: 4096,
    services: 2048,
    backends: 8192,
    slots: 16384,
    source_ranges: 256,
    service_nets: 16,
};

/// Few enough for a batch to be more than there is room for.
const TIGHT: Capacity = Capacity {
    frontends: 40,
    services: 40,
    ..ROOM
};

fn vip(number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 96, high, low).into()
}

fn key(number: u16) -> FrontendKey {
    FrontendKey {
        addr: vip(number).into(),
        port_be: 80u16.to_be(),
        protocol: Protocol::Tcp.number(),
        zero: 0,
    }
}

fn frontend(service: u32) -> Frontend {
    Frontend {
        service,
        outside_service: 0,
        kind: FrontendKind::ClusterIp as u8,
        flags: 0,
        zero: [0; 2],
    }
}

fn put(number: u16) -> Step {
    Step::PutFrontend {
        key: key(number),
        frontend: frontend(number.into()),
    }
}

fn all(store: &mut impl MapStore, steps: &[Step]) -> (usize, Option<StoreError>) {
    store.execute_all(&steps.iter().collect::<Vec<_>>())
}

#[test]
fn a_batch_that_finds_the_map_full_tells_how_far_it_came() -> Result<()> {
    let mut store = maps::make(TIGHT)?;
    let steps: Vec<Step> = (1..=50).map(put).collect();
    let (done, error) = all(&mut store, &steps);
    ensure!(
        matches!(error, Some(StoreError::Full { capacity: 40, .. })),
        "{error:?}"
    );
    let there = store.observe()?.frontends;
    ensure!(done == 40 && there.len() == 40, "{done}, {}", there.len());
    for number in 1..=40 {
        ensure!(there.get(&key(number)) == Some(&frontend(number.into())));
    }
    // What is there may be written again, and stops nothing.
    ensure!(all(&mut store, &steps[..40]).0 == 40);
    // Nor does an entry for which there is room after all.
    let more: Vec<Step> = std::iter::once(Step::RemoveFrontend { key: key(7) })
        .chain((41..=43).map(put))
        .collect();
    let (done, error) = all(&mut store, &more);
    ensure!(done == 2 && error.is_some(), "{done} {error:?}");
    ensure!(store.frontend(&key(41)).is_some() && store.frontend(&key(42)).is_none());

    let name = |id: u32| -> Result<Step> {
        let name = ServiceName::new(&format!("ns/s{id}"), 6, 4, 0).context("a short name")?;
        Ok(Step::PutName { service: id, name })
    };
    let names = (1..=50).map(name).collect::<Result<Vec<Step>>>()?;
    let (done, error) = all(&mut store, &names);
    ensure!(matches!(error, Some(StoreError::Full { .. })), "{error:?}");
    ensure!(done == 40 && store.observe()?.names.len() == 40, "{done}");
    Ok(())
}

#[test]
fn a_batch_of_removals_goes_on_behind_what_is_not_there() -> Result<()> {
    let mut store = maps::make(TIGHT)?;
    let steps: Vec<Step> = (1..=30).map(put).collect();
    ensure!(all(&mut store, &steps).0 == 30);
    let remove = |number| Step::RemoveFrontend { key: key(number) };
    for number in [1, 2, 13, 30] {
        store.execute(&remove(number))?;
    }
    let gone: Vec<Step> = (1..=31).map(remove).collect();
    let (done, error) = all(&mut store, &gone);
    ensure!(done == 31 && error.is_none(), "{done} {error:?}");
    ensure!(store.observe()?.frontends.is_empty());
    Ok(())
}

/// A Service with one address and one endpoint.
fn change(number: u16) -> Change {
    let service = ObjectName::new("ns", &format!("s{number:02}"));
    let [_, last] = number.to_be_bytes();
    let endpoint = SocketAddr::new(Ipv4Addr::new(10, 0, 0, last).into(), 8080);
    let address = FrontendAddress {
        ip: vip(number),
        port: 80,
        protocol: Protocol::Tcp,
    };
    Change {
        ports: vec![PortSnapshot {
            key: PortKey {
                service: service.clone(),
                port: "".into(),
                protocol: Protocol::Tcp,
                family: Family::V4,
                scope: Scope::Cluster,
            },
            frontends: vec![(address, FrontendKind::ClusterIp)],
            chosen: vec![endpoint],
            kept: Vec::new(),
            local: [].into(),
            empty: Empty::Refuse,
            affinity_timeout_secs: None,
            balancing: Balancing::default(),
            outside_is_local: false,
            source_ranges: None,
        }],
        addresses: Vec::new(),
        service,
    }
}

/// Every entry that the planner knows is there, and nothing else is but for `strangers`.
fn is_as_believed(planner: &Planner, store: &mut BpfStore, strangers: usize) -> Result<()> {
    for part in planner.parts() {
        for step in planner.steps_of(&part) {
            ensure!(store.holds(&step), "{step}: believed, and not there");
        }
    }
    let unknown = store.removals()?;
    let unknown = unknown.iter().filter(|step| !planner.knows(step));
    let unknown: Vec<String> = unknown.map(ToString::to_string).collect();
    ensure!(unknown.len() == strangers, "not known: {unknown:?}");
    Ok(())
}

#[test]
fn what_is_believed_after_a_batch_that_stopped_is_what_is_in_the_maps() -> Result<()> {
    let mut store = maps::make(TIGHT)?;
    let mut planner = Planner::adopt(TIGHT, &store.observe()?);
    // Somebody else takes room that the planner counts on.
    let strangers: Vec<Step> = (1000..1015).map(put).collect();
    ensure!(all(&mut store, &strangers).0 == 15);
    let changes: Vec<Change> = (1..=35).map(change).collect();
    let done = carry_out(&mut planner, changes.iter().cloned(), 64, &mut store);
    ensure!(done.refused.is_empty(), "{:?}", done.refused);
    let failed = &done.report.failed;
    // 25 frontends found room; each of the others failed for itself.
    ensure!(failed.len() == 10, "{failed:?}");
    ensure!(
        failed
            .iter()
            .all(|failed| matches!(failed.error, StoreError::Full { .. })),
        "{failed:?}"
    );
    is_as_believed(&planner, &mut store, 15)?;

    let removed: Vec<Step> = (1000..1015)
        .map(|number| Step::RemoveFrontend { key: key(number) })
        .collect();
    ensure!(all(&mut store, &removed).0 == 15);
    let done = carry_out(&mut planner, changes.iter().cloned(), 64, &mut store);
    ensure!(done.report.failed.is_empty(), "{:?}", done.report.failed);
    is_as_believed(&planner, &mut store, 0)?;

    let mut clean = maps::make(TIGHT)?;
    let mut fresh = Planner::adopt(TIGHT, &clean.observe()?);
    carry_out(&mut fresh, changes.into_iter(), 64, &mut clean);
    ensure!(meaning::lines(&store.observe()?) == meaning::lines(&clean.observe()?));
    Ok(())
}

/// What exists. Some addresses are wanted by several.
#[derive(Default)]
struct Objects {
    services: BTreeMap<usize, Service>,
    slices: BTreeMap<usize, EndpointSlice>,
}

const SERVICES: usize = 400;

fn any_service(number: usize, dice: &mut Dice) -> Service {
    let ip = |number: usize| vip(u16::try_from(number).expect("few"));
    let port = |name: &str, port| ServicePort {
        name: name.into(),
        protocol: Protocol::Tcp,
        port: NonZeroU16::new(port).expect("not zero"),
        node_port: None,
    };
    let others = (0..dice.below(2)).map(|_| ip(dice.below(SERVICES * 2)));
    let external_ips = others.collect();
    Service {
        name: ObjectName::new("ns", &format!("s{number}")),
        created_secs: 0,
        cluster_ips: vec![ip(number)],
        external_ips,
        load_balancer_ips: Vec::new(),
        source_ranges: BTreeMap::new(),
        ports: vec![port("a", 80), port("b", 81)]
            .into_iter()
            .take(1 + dice.below(2))
            .collect(),
        internal_policy: TrafficPolicy::Cluster,
        external_policy: [TrafficPolicy::Cluster, TrafficPolicy::Local][dice.below(2)],
        affinity_timeout_secs: None,
        health_check: None,
        balancing: Default::default(),
    }
}

fn any_slice(number: usize, dice: &mut Dice) -> EndpointSlice {
    let name = ObjectName::new("ns", &format!("s{number}"));
    let endpoint = |last: usize| Endpoint {
        address: Ipv4Addr::new(10, 1, 0, u8::try_from(last).expect("few")).into(),
        ready: dice.below(8) > 0,
        serving: true,
        terminating: false,
        node: (dice.below(3) == 0).then(|| "n1".into()),
        pod: None,
        hostname: None,
        zone: None,
        zone_hints: Default::default(),
        node_hints: Default::default(),
    };
    let count = [0, 1, 2, 5][number % 4];
    EndpointSlice {
        service: name.clone(),
        name,
        family: Family::V4,
        ports: ["a", "b"]
            .map(|name| SlicePort {
                name: name.into(),
                protocol: Protocol::Tcp,
                port: NonZeroU16::new(8080).expect("not zero"),
            })
            .into(),
        endpoints: (0..count).map(endpoint).collect(),
        triggered: None,
    }
}

impl Objects {
    fn change(&mut self, dice: &mut Dice) -> Event {
        let number = dice.below(SERVICES);
        match dice.below(8) {
            0..3 => {
                let service = any_service(number, dice);
                self.services.insert(number, service.clone());
                Event::ServiceApplied(service)
            }
            3..6 => {
                let slice = any_slice(number, dice);
                self.slices.insert(number, slice.clone());
                Event::SliceApplied(slice)
            }
            6 => {
                self.services.remove(&number);
                Event::ServiceGone(ObjectName::new("ns", &format!("s{number}")))
            }
            _ => {
                self.slices.remove(&number);
                Event::SliceGone(ObjectName::new("ns", &format!("s{number}")))
            }
        }
    }

    fn lists(&self) -> impl Iterator<Item = Event> {
        let services = self.services.values().cloned().map(Event::ServiceApplied);
        let slices = self.slices.values().cloned().map(Event::SliceApplied);
        std::iter::once(Event::ListStarted(Kind::Service))
            .chain(services)
            .chain([
                Event::Listed(Kind::Service),
                Event::ListStarted(Kind::EndpointSlice),
            ])
            .chain(slices)
            .chain([Event::Listed(Kind::EndpointSlice)])
    }
}

/// An agent that finds these maps and lists what exists.
fn start<S: MapStore>(store: S, objects: &Objects) -> Result<Syncer<S>> {
    let planner = Planner::adopt(store.capacity(), &store.observe()?);
    let node = Node {
        name: "n1".into(),
        ..Node::default()
    };
    let model = Model::new(node, NodePortScope::Primary);
    let mut syncer = Syncer::new(model, planner, store);
    objects.lists().for_each(|event| syncer.apply(event));
    Ok(syncer)
}

/// No program runs with these maps: nobody has to be waited for.
fn grace(syncer: &mut Syncer<impl MapStore>) -> bool {
    match syncer.begin_grace() {
        Some(epoch) => {
            syncer.passed(epoch);
            true
        }
        None => false,
    }
}

#[test]
fn with_one_operation_in_ten_failing_the_kernels_maps_come_to_say_what_a_clean_start_writes()
-> Result<()> {
    let mut dice = Dice::of_this_run();
    let seed = dice.0;
    let mut objects = Objects::default();
    for number in 0..SERVICES {
        let service = any_service(number, &mut dice);
        objects.services.insert(number, service);
        let slice = any_slice(number, &mut dice);
        objects.slices.insert(number, slice);
    }
    let store = Faulty::new(maps::make(ROOM)?, 0, seed);
    let mut syncer = start(store, &objects)?;
    syncer.store_mut().percent = 10;
    for round in 0..600 {
        let event = objects.change(&mut dice);
        syncer.apply(event);
        if dice.below(3) == 0 {
            syncer.sync();
        }
        if dice.below(4) == 0 {
            grace(&mut syncer);
        }
        if dice.below(100) == 0 || round == 20 {
            let mut store = syncer.into_store();
            store.percent = 0;
            syncer = start(store, &objects)?;
            syncer.store_mut().percent = 10;
        }
    }
    let faults = syncer.store().faults();
    ensure!(faults > 100, "{faults} faults");
    syncer.store_mut().percent = 0;
    let began = Instant::now();
    while {
        syncer.sync();
        grace(&mut syncer) || syncer.has_retries()
    } {
        ensure!(began.elapsed() < Duration::from_secs(20), "no end");
    }

    let mut clean = start(maps::make(ROOM)?, &objects)?;
    ensure!(clean.sync().first && !clean.has_retries());
    let there = meaning::lines(&syncer.store().observe()?);
    let wanted = meaning::lines(&clean.store().observe()?);
    let differ: Vec<&String> = there.symmetric_difference(&wanted).collect();
    ensure!(differ.is_empty(), "SEED={seed}: {differ:#?}");
    ensure!(
        syncer.planner().used() == clean.planner().used(),
        "SEED={seed}"
    );
    let mut audit = Audit::of(syncer.planner());
    audit.set_entries(syncer.store().removals()?);
    let found = syncer
        .audit(&mut audit, usize::MAX)
        .context("a whole one")?;
    ensure!(found.drifted == 0 && found.checked > 500, "{found:?}");
    Ok(())
}
