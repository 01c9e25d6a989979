//! The kernel's maps with their default sizes: a cluster that is larger than Kubernetes allows, and what
//! becomes of a Service for which there is no room.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU16,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use proxy_common::abi::{FlowTimeouts, PortRange, Protocol, map};
use proxy_user::{
    loader::{Features, Fixed, Pins, Sizes, load},
    maps::{MapStore as _, bpf::BpfStore},
    model::{
        Endpoint, EndpointSlice, Event, Family, Kind, Model, Node, NodePortScope, ObjectName,
        Service, ServicePort, SlicePort, TrafficPolicy,
    },
    plan::Planner,
    sync::{Outcome, Syncer},
};
use tests::World;

const SERVICES: u32 = 20_000;
const ENDPOINTS: u32 = 250_000;
/// The last two Services share what the others leave.
const EACH: u32 = 12;
const LARGE: u32 = (ENDPOINTS - (SERVICES - 2) * EACH) / 2;

fn name(number: u32) -> ObjectName {
    ObjectName::new("ns", &format!("s{number:05}"))
}

fn service(number: u32) -> Event {
    Event::ServiceApplied(Service {
        name: name(number),
        created_secs: 0,
        cluster_ips: vec![Ipv4Addr::from_bits(0x0a60_0000 + number).into()],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: BTreeMap::new(),
        ports: vec![ServicePort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: NonZeroU16::MIN,
            node_port: None,
        }],
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        health_check: None,
        balancing: Default::default(),
        affinity_timeout_secs: None,
    })
}

/// So many endpoints, from this address on.
fn endpoints(number: u32, first: u32, count: u32) -> Event {
    let endpoint = |address| Endpoint {
        address: IpAddr::from(Ipv4Addr::from_bits(address)),
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        pod: None,
        hostname: None,
        zone: None,
        zone_hints: Default::default(),
        node_hints: Default::default(),
    };
    Event::SliceApplied(EndpointSlice {
        name: name(number),
        service: name(number),
        family: Family::V4,
        ports: vec![SlicePort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: NonZeroU16::MIN,
        }],
        endpoints: (first..first + count).map(endpoint).collect(),
        triggered: None,
    })
}

const PODS: u32 = 0x0a80_0000;

fn slice(number: u32) -> Event {
    let first = PODS + number * EACH;
    match number {
        0..19_998 => endpoints(number, first, EACH),
        more => endpoints(number, first + (more - 19_998) * LARGE, LARGE),
    }
}

fn is_whole(outcome: &Outcome) -> Result<()> {
    ensure!(outcome.refused.is_empty(), "{:?}", outcome.refused.first());
    let failed = outcome.report.failed.first();
    ensure!(failed.is_none(), "{failed:?}");
    Ok(())
}

/// No program runs: there is nobody to wait for.
fn settle(syncer: &mut Syncer<BpfStore>) {
    while let Some(epoch) = syncer.begin_grace() {
        syncer.passed(epoch);
    }
}

#[test]
fn twenty_thousand_services_and_a_quarter_of_a_million_endpoints_have_room_to_change() -> Result<()>
{
    let world = World::builder().node("node-a", ["pod"]).build()?;
    let pins = Pins::new(world.node("node-a").bpffs());
    let fixed = Fixed {
        debug_programs: false,
        snat_ports: PortRange::DEFAULT,
        timeouts: FlowTimeouts::DEFAULT,
    };
    let (mut loaded, store) = load(&pins, Features::probe(), &Sizes::DEFAULT, &fixed)?;
    let notes = loaded.take_notes();
    let memory = notes
        .iter()
        .find(|(_, line)| line.contains("the maps take"));
    println!("{}", memory.context("no line about memory")?.1);
    let planner = Planner::adopt(store.capacity(), &store.observe()?);
    let model = Model::new(Node::default(), NodePortScope::Primary);
    let mut syncer = Syncer::new(model, planner, store);
    for (kind, of) in [
        (Kind::Service, service as fn(u32) -> Event),
        (Kind::EndpointSlice, slice),
    ] {
        syncer.apply(Event::ListStarted(kind));
        (0..SERVICES).for_each(|number| syncer.apply(of(number)));
        syncer.apply(Event::Listed(kind));
    }
    let begun = Instant::now();
    is_whole(&syncer.sync())?;
    println!("written within {:?}", begun.elapsed());
    let before = syncer.store().observe()?;
    ensure!(before.backends.len() == ENDPOINTS as usize);
    ensure!(before.frontend_count() == SERVICES as usize);
    let slots: usize = before.slots.values().map(Vec::len).sum();
    ensure!(slots == ENDPOINTS as usize);

    // All endpoints of a large Service are others at once, and then the first ones again.
    for first in [PODS + (1 << 22), PODS + (SERVICES - 2) * EACH] {
        syncer.apply(endpoints(SERVICES - 2, first, LARGE));
        is_whole(&syncer.sync_changes())?;
        settle(&mut syncer);
        let now = syncer.store().observe()?;
        ensure!(now.backends.len() == ENDPOINTS as usize);
    }

    // A Service too large for what is left changes nothing for anybody.
    let before = syncer.store().observe()?;
    let room = syncer.store().capacity().backends - ENDPOINTS;
    syncer.apply(service(SERVICES));
    syncer.apply(endpoints(SERVICES, PODS + (1 << 22), room));
    let outcome = syncer.sync_changes();
    let [refused] = &outcome.refused[..] else {
        anyhow::bail!("{:?}", outcome.refused);
    };
    ensure!(refused.full.map == map::BACKENDS && outcome.began_to_wait.len() == 1);
    let text = refused.to_string();
    ensure!(
        text.contains("--max-backends") && text.contains("250000 of 262143"),
        "{text}"
    );
    ensure!(syncer.store().observe()? == before);
    // When another goes, it comes by itself.
    syncer.apply(Event::ServiceGone(name(0)));
    is_whole(&syncer.sync_changes())?;
    settle(&mut syncer);
    ensure!(syncer.waiting() == (0, 0));
    let after = syncer.store().observe()?;
    ensure!(after.backends.len() == (ENDPOINTS - EACH + room) as usize);
    ensure!(after.frontend_count() == SERVICES as usize);
    Ok(())
}
