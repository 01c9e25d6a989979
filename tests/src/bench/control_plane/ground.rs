//! A node, its agent and an API server with this many Services.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, TcpListener},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::prctl;
use proxy_common::abi::FrontendKey;
use serde_json::Value;

use super::{
    Shape,
    maps::{Maps, key_of, key_of_address},
    objects::{self, TARGET},
    process,
};
use crate::{
    Agent, Source, World, apiserver::ApiServer, bench::report::Figure, cluster::kubeconfig,
    stage::serve,
};

/// The node on which it all happens, and the endpoints that really are there.
pub(super) const NODE: &str = "node-a";
pub(super) const CLIENT: &str = "client";
pub(super) const SERVERS: [&str; 2] = ["server-a", "server-b"];
/// Long enough that only a failure reaches it.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
const GLANCE: Duration = Duration::from_micros(10);
const IDLE: Duration = Duration::from_secs(5);

pub(super) struct Ground {
    // Stops before the world goes.
    pub(super) agent: Agent,
    pub(super) server: ApiServer,
    pub(super) maps: Maps,
    pub(super) world: World,
    pub(super) shape: Shape,
}

impl Ground {
    /// Starts the agent and measures that.
    pub(super) fn start(shape: Shape) -> Result<(Self, Vec<Figure>)> {
        // Else a short sleep takes 60 us.
        prctl::set_timerslack(1).context("timer slack")?;
        let world = World::builder()
            .node(NODE, [CLIENT, SERVERS[0], SERVERS[1]])
            .build()?;
        for name in SERVERS {
            serve(world.pod(name), TARGET)?;
        }
        let server = server_in(&world)?;
        server.apply(target_slice(&world, shape.endpoints, SERVERS[0]));
        server.apply(objects::service(0));
        for number in 1..shape.services {
            server.apply(objects::service(number));
            let endpoints = objects::ordinary(number, shape.endpoints, false);
            server.apply(objects::slice(number, 0, &endpoints));
        }
        server.hang(true);
        let source = Source::Kubeconfig(kubeconfig(&world, &server)?);
        let node = world.node(NODE);
        let agent = node.start_agent(source)?;
        // Logged once its maps are there.
        agent.wait_log("pins ", PATIENCE)?;
        sleep(Duration::from_millis(500));
        let maps = Maps::open(node.bpffs())?;
        let ground = Self {
            agent,
            server,
            maps,
            world,
            shape,
        };
        let figures = ground.measure_start()?;
        Ok((ground, figures))
    }

    pub(super) fn pid(&self) -> Result<u32> {
        self.agent.pid().context("the agent has ended")
    }

    pub(super) fn figure(
        &self,
        case: &str,
        value: f64,
        unit: &'static str,
        below: Option<f64>,
    ) -> Figure {
        Figure {
            case: case.to_owned(),
            services: self.shape.services,
            endpoints: self.shape.endpoints,
            value,
            unit,
            below,
        }
    }

    fn measure_start(&self) -> Result<Vec<Figure>> {
        let pid = self.pid()?;
        let cpu_before = process::cpu_time(pid)?;
        let (empty, _) = process::resident_mib(pid)?;
        let began = Instant::now();
        self.server.hang(false);
        let mut awaited: Vec<FrontendKey> = (0..self.shape.services)
            .flat_map(|number| {
                let vip = objects::vip(number);
                [key_of(vip), key_of_address(vip.ip())]
            })
            .collect();
        // What is there stays, so each is looked at until it is.
        let programmed = watch(|| {
            while awaited.last().is_some_and(|key| self.maps.has(key)) {
                awaited.pop();
            }
            Ok(awaited.is_empty())
        })?;
        let lists = ["services", "endpointslices"].map(|resource| self.server.listed_at(resource));
        let listed = lists.into_iter().flatten().max().context("not listed")?;
        self.check_all(|number| objects::ordinary(number, self.shape.endpoints, false))?;
        self.agent.wait_ready(PATIENCE)?;
        sleep(Duration::from_secs(2));
        let cpu = process::cpu_time(pid)? - cpu_before;
        let (resident, of_maps) = process::resident_mib(pid)?;
        let idle_before = process::cpu_time(pid)?;
        sleep(IDLE);
        let idle = process::cpu_time(pid)? - idle_before;

        let all = self.shape.services * self.shape.endpoints;
        let start_below = match all {
            0..=20_000 => 100.0,
            20_001..=100_000 => 1000.0,
            _ => 2000.0,
        };
        let resident_below = (all <= 100_000).then_some(60.0);
        Ok(vec![
            self.figure(
                "start: lists sent -> all programmed",
                millis(programmed.saturating_duration_since(listed)),
                "ms",
                Some(start_below),
            ),
            self.figure(
                "start: lists asked for -> all programmed",
                millis(programmed - began),
                "ms",
                None,
            ),
            self.figure(
                "start: processor time of the agent",
                millis(cpu),
                "ms",
                None,
            ),
            self.figure("resident before the lists", empty, "MiB", None),
            self.figure("resident", resident, "MiB", resident_below),
            self.figure("resident, of which maps mapped in", of_maps, "MiB", None),
            self.figure(
                "idle",
                idle.as_secs_f64() / IDLE.as_secs_f64() * 100.0,
                "% core",
                Some(1.0),
            ),
        ])
    }

    /// Compares the maps with what all Services but the target have.
    pub(super) fn check_all(&self, endpoints: impl Fn(usize) -> Vec<(IpAddr, bool)>) -> Result<()> {
        for number in 1..self.shape.services {
            let wanted: BTreeSet<SocketAddr> = endpoints(number)
                .into_iter()
                .map(|(ip, _)| SocketAddr::new(ip, TARGET))
                .collect();
            let checked = self.maps.check(&key_of(objects::vip(number)), &wanted);
            checked.with_context(|| objects::name(number))?;
        }
        Ok(())
    }

    /// Changes the target's slice, and yields when the maps hold it.
    pub(super) fn lead_target_to(&self, name: &str) -> Result<Instant> {
        let key = key_of(objects::vip(0));
        let service = self
            .maps
            .service_of(&key)
            .context("the target's frontend")?;
        let before = self.maps.word(service)?;
        let slice = target_slice(&self.world, self.shape.endpoints, name);
        self.server.apply(slice);
        let changed = watch(|| Ok(self.maps.word(service)? != before))?;
        let wanted = BTreeSet::from([SocketAddr::new(self.world.pod(name).ip4(), TARGET)]);
        self.maps.check(&key, &wanted)?;
        Ok(changed)
    }
}

/// When the condition first holds.
pub(super) fn watch(mut condition: impl FnMut() -> Result<bool>) -> Result<Instant> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if condition()? {
            return Ok(Instant::now());
        }
        if Instant::now() > deadline {
            bail!("the maps do not change within {PATIENCE:?}");
        }
        sleep(GLANCE);
    }
}

pub(super) fn server_in(world: &World) -> Result<ApiServer> {
    let netns = world.node(NODE).netns();
    let listener = netns.enter(|| TcpListener::bind("127.0.0.1:0"))??;
    let server = ApiServer::start(listener)?;
    server.apply(serde_json::json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE},
        "status": {"addresses": [{"type": "InternalIP", "address": world.node(NODE).ip4()}]},
    }));
    Ok(server)
}

/// Only one of its endpoints is ready: whoever dials it gets that one.
fn target_slice(world: &World, endpoints: usize, name: &str) -> Value {
    let others = (1..endpoints).map(|at| (objects::endpoint(at), false));
    let all: Vec<(IpAddr, bool)> = std::iter::once((world.pod(name).ip4(), true))
        .chain(others)
        .collect();
    objects::slice(0, 0, &all)
}

pub(super) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Fails unless one connection to the target is answered by `name`.
pub(super) fn obeyed(ground: &Ground, name: &str) -> Result<()> {
    let tally = ground
        .world
        .pod(CLIENT)
        .probe()
        .connect_many(objects::vip(0), 1)?;
    ensure!(tally.of(name) == 1, "dialled for {name}: {tally}");
    Ok(())
}
