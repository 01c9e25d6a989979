//! `kube-portal trace` and the real path agree: on random packets with the loaded program, on random calls
//! with what became of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{HashMap as BpfHashMap, Map, MapData};
use proxy_common::{
    abi::{Counter, Protocol, Scheduler, SockAddr, UdpFlow, UdpFlowKey, map},
    datapath::{socket::Verdict, traced::Lookup},
};
use proxy_user::{
    expiry::monotonic_ns,
    loader::{AffinityMap, FlowMap, Pins},
    maps::{MapStore as _, bpf::BpfStore},
    trace::{
        Agreement, Call, HookName, Kind, Options, Origin, Outcome, Place, Question, Source, Story,
        Tracer, netns_of,
    },
};
use tests::{
    Service, World,
    fleet::{Fleet, node_port, slices},
    packet::damage::Dice,
    probe::{Dial, Dialled},
};

const PACKETS: usize = 10_000;
const CALLS: usize = 10_000;
/// Calls that are traced, and then made, and then looked at.
const BATCH: usize = 250;

const CIDRS: [&str; 2] = ["10.96.0.0/16", "fd96::/112"];
const EXTERNAL: [&str; 2] = ["198.51.100.7", "2001:db8::7"];

/// Name, what is special of it, and its endpoints.
type Sort = (
    &'static str,
    fn(Service) -> Service,
    &'static [&'static str],
);

/// A Service of every sort; each has a ClusterIP, a NodePort and a load balancer's address.
const SORTS: [Sort; 10] = [
    ("web", |service| service, &["near", "far", "away"]),
    ("empty", |service| service, &[]),
    (
        "outside-none-here",
        |service| service.spec("externalTrafficPolicy: Local"),
        &["far", "away"],
    ),
    (
        "outside-here",
        |service| service.spec("externalTrafficPolicy: Local"),
        &["near", "far"],
    ),
    (
        "inside-none-here",
        |service| service.spec("internalTrafficPolicy: Local"),
        &["far"],
    ),
    (
        "inside-here",
        |service| service.spec("internalTrafficPolicy: Local"),
        &["near", "far"],
    ),
    (
        "fenced",
        |service| {
            service.spec("loadBalancerSourceRanges: [\"192.168.50.101/32\", \"fd50::65/128\"]")
        },
        &["near", "far"],
    ),
    (
        "sticky",
        |service| service.client_ip_affinity(600),
        &["near", "far", "away"],
    ),
    ("guest", |service| service, &["vm", "node-a"]),
    (
        "cache",
        |service| {
            let service = service.annotation(SCHEDULER, "maglev");
            service.annotation(WEIGHTS, "node/node-b=2")
        },
        &["near", "far", "away"],
    ),
];

const SCHEDULER: &str = "kube-portal.io/scheduler";
const WEIGHTS: &str = "kube-portal.io/weights";

fn number(index: usize) -> u16 {
    u16::try_from(index).expect("a few")
}

fn vips(index: usize) -> [String; 2] {
    [
        format!("10.96.0.{}", 10 + index),
        format!("fd96::{}", 10 + index),
    ]
}

fn balancers(index: usize) -> [String; 2] {
    [
        format!("203.0.113.{}", 10 + index),
        format!("2001:db8:1::{}", 10 + index),
    ]
}

fn node_port_of(index: usize) -> u16 {
    30_080 + number(index)
}

fn fleet() -> Result<Fleet> {
    fleet_with(|index, service| SORTS[index].1(service))
}

/// Every scheduler, and weights that differ.
fn balanced(dice: &mut Dice) -> impl FnMut(usize, Service) -> Service {
    let first = dice.below(Scheduler::ALL.len());
    let weights: Vec<String> = (0..SORTS.len())
        .map(|_| {
            let (here, there) = (1 + dice.below(4), 1 + dice.below(4));
            format!("node/node-a={here}, node/node-b={there}")
        })
        .collect();
    println!("schedulers from {first} on, weights {weights:?}");
    move |index, service| {
        let (name, special, _) = SORTS[index];
        // One has a rule of its own.
        let service = match name {
            "cache" => service,
            _ => special(service),
        };
        let scheduler = Scheduler::ALL[(first + index) % Scheduler::ALL.len()];
        service
            .annotation(SCHEDULER, scheduler.name())
            .annotation(WEIGHTS, &weights[index])
    }
}

/// Stops the agent, which would think better of it, and has some backends passed over.
fn pass_over_some(fleet: &mut Fleet, store: &mut BpfStore, dice: &mut Dice) -> Result<usize> {
    fleet.agent_mut("node-a")?.stop()?;
    let until_ns = monotonic_ns() + 3_600_000_000_000;
    let mut some = 0;
    let mut ids: Vec<u32> = store.observe()?.backends.into_keys().collect();
    ids.sort_unstable();
    for id in ids {
        if dice.below(3) == 0 {
            store.pass_over(id, until_ns)?;
            some += 1;
        }
    }
    Ok(some)
}

fn fleet_with(mut rule: impl FnMut(usize, Service) -> Service) -> Result<Fleet> {
    let world = World::builder()
        .node("node-a", ["client", "near"])
        .guest("vm")
        .node("node-b", ["far", "away"])
        .outside("laptop")
        .outside("stranger")
        .build()?;
    let extra = ["--pod-devices", "guest*", "--snat-ports", "20000-20999"];
    let fleet = Fleet::start(world, &["node-a"], &extra, |world, manifests| {
        manifests.service_cidrs(&CIDRS)?;
        for (index, (name, _, endpoints)) in SORTS.into_iter().enumerate() {
            let vips = vips(index);
            let [v4, v6] = &vips;
            let service = node_port(name, [v4.as_str(), v6.as_str()], node_port_of(index))
                .kind("LoadBalancer")
                .load_balancer(balancers(index));
            let service = if index == 0 {
                service.external_ips(EXTERNAL)
            } else {
                service
            };
            manifests.service(&rule(index, service))?;
            slices(world, manifests, name, endpoints)?;
        }
        Ok(())
    })?;
    // The first device that is attached may be another.
    let agent = fleet.agent("node-a")?;
    agent.wait_line(&["guest", "attached by"], tests::stage::PATIENCE)?;
    Ok(fleet)
}

/// What is dialled: all that there is, and much that there is not.
fn destinations(world: &World) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    let mut put = |ip: &str, port: u16| {
        found.push(SocketAddr::new(ip.parse().expect("an address"), port));
    };
    for index in 0..SORTS.len() {
        for ip in vips(index).iter().chain(&balancers(index)) {
            // TCP's, UDP's, nobody's.
            for port in [80, 53, 81] {
                put(ip, port);
            }
        }
        for node in world.nodes() {
            for ip in [node.ip4(), node.ip6()] {
                put(&ip.to_string(), node_port_of(index));
            }
        }
        for ip in ["127.0.0.1", "::1"] {
            put(ip, node_port_of(index));
        }
    }
    for ip in EXTERNAL {
        put(ip, 80);
        put(ip, 8080);
    }
    // Unallocated ones, and others that are none of our business.
    for ip in ["10.96.77.77", "fd96::7777", "192.0.2.9", "2001:db8:9::9"] {
        put(ip, 80);
    }
    for pod in ["far", "near"] {
        for ip in [world.pod(pod).ip4(), world.pod(pod).ip6()] {
            put(&ip.to_string(), 8080);
        }
    }
    found
}

fn one<T: Copy>(dice: &mut Dice, all: &[T]) -> T {
    all[dice.below(all.len())]
}

/// Of the same family.
fn one_like(dice: &mut Dice, all: &[SocketAddr], source: IpAddr) -> SocketAddr {
    loop {
        let found = one(dice, all);
        if found.is_ipv4() == source.is_ipv4() {
            return found;
        }
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(work)
}

fn source(ip: IpAddr, port: u16) -> Source {
    Source {
        ip,
        port: Some(port),
    }
}

fn counters(store: &BpfStore) -> Result<BTreeMap<Counter, u64>> {
    Ok(store.counters()?.into_iter().collect())
}

fn counted(story: &Story) -> impl Iterator<Item = Counter> {
    story.lookups.iter().filter_map(|lookup| {
        if let Lookup::Count(counter) = lookup {
            Some(*counter)
        } else {
            None
        }
    })
}

/// Whether each of these counters has grown by as much as the traces say.
fn ensure_counted(
    before: &BTreeMap<Counter, u64>,
    after: &BTreeMap<Counter, u64>,
    wanted: &BTreeMap<Counter, u64>,
    which: impl Fn(Counter) -> bool,
) -> Result<()> {
    for counter in Counter::ALL.iter().filter(|counter| which(**counter)) {
        let grown = after[counter] - before[counter];
        let wanted = wanted.get(counter).copied().unwrap_or(0);
        ensure!(
            grown == wanted,
            "{}: {grown}, the traces have {wanted}",
            counter.name()
        );
    }
    Ok(())
}

/// Of all backends.
fn open_connections(store: &BpfStore) -> Result<i64> {
    let backends = store.backend_stats()?;
    Ok(backends.iter().map(|(_, stats)| stats.active).sum())
}

const fn is_drawn(scheduler: Scheduler) -> bool {
    !scheduler.looks_at_addresses() && !matches!(scheduler, Scheduler::RoundRobin)
}

/// Those that only the packets of a test count: others pass through the devices as well.
fn is_of_test_packets(counter: Counter) -> bool {
    matches!(
        counter,
        Counter::PacketNewFlow
            | Counter::PacketNoEndpoints
            | Counter::PacketNoLocalEndpoint
            | Counter::PacketNotAllowed
            | Counter::PacketUnknownPort
            | Counter::PacketUnallocatedClusterIp
            | Counter::PacketNoRoute
            | Counter::PacketNoSource
            | Counter::TableDamaged
    )
}

#[test]
fn the_trace_of_a_packet_is_what_the_loaded_program_does() -> Result<()> {
    let mut dice = Dice::of_this_run();
    let mut fleet = fleet_with(balanced(&mut dice))?;
    let pins = Pins::new(fleet.world.node("node-a").bpffs());
    let out = pass_over_some(&mut fleet, &mut pins.open_store()?, &mut dice)?;
    let world = &fleet.world;
    let node = world.node("node-a");
    let to = destinations(world);
    let laptop = world.pod("laptop");
    let vm = world.pod("vm");
    node.netns().enter(|| {
        block_on(async {
            let mut tracer = Tracer::open(&pins).await?;
            let question =
                |from, port, to, protocol| Question::new(source(from, port), to, protocol);
            let any = question(laptop.ip4(), 1, to[0], Protocol::Tcp)?;
            let (outside, why) = tracer.place(&any, None, None).await?;
            ensure!(matches!(outside, Place::Device { .. }), "{why}");
            let any = question(vm.ip4(), 1, to[0], Protocol::Tcp)?;
            let (guest, why) = tracer.place(&any, None, None).await?;
            ensure!(why.contains("a pod's device"), "{why}");
            let (egress, _) = tracer.place(&any, Some(HookName::Egress), None).await?;
            let store = pins.open_store()?;
            let before = counters(&store)?;
            let active = open_connections(&store)?;
            let mut wanted: BTreeMap<Counter, u64> = BTreeMap::new();
            let mut again = 0;
            let (mut passed_over, mut others) = (0, 0);
            let mut by: BTreeMap<Scheduler, u64> = BTreeMap::new();
            for number in 0..PACKETS {
                let (place, sources) = match dice.below(4) {
                    0 => (guest, vec![vm.ip4(), vm.ip6()]),
                    1 => (egress, vec![laptop.ip4(), node.ip4(), node.ip6(), vm.ip6()]),
                    _ => {
                        let stranger = world.pod("stranger");
                        let pods = [laptop, stranger].into_iter();
                        let mut sources: Vec<_> =
                            pods.flat_map(|pod| [pod.ip4(), pod.ip6()]).collect();
                        sources.push("172.16.9.9".parse()?);
                        sources.push(world.pod("far").ip4());
                        (outside, sources)
                    }
                };
                let from = one(&mut dice, &sources);
                let port = u16::try_from(1024 + dice.below(60_000))?;
                let to = one_like(&mut dice, &to, from);
                let protocol = one(&mut dice, &Protocol::ALL);
                let question = question(from, port, to, protocol)?;
                let options = Options {
                    seed: dice.roll(),
                    ..Options::default()
                };
                let what = || format!("packet {number}: {question} at {place:?}");
                loop {
                    let story = tracer.trace(question, place, options).with_context(what)?;
                    let run = tracer.run_kernel(&story, options).with_context(what)?;
                    let Outcome::Packet(packet) = &story.outcome else {
                        bail!("{}: no packet", what());
                    };
                    *wanted.entry(packet.verdict.counter()).or_default() += 1;
                    match &run.agreement {
                        Agreement::Agrees => {
                            if let (Some(choice), Some(chose)) = (&story.choice, run.chose) {
                                let scheduler = choice.word.scheduler();
                                passed_over += usize::from(!choice.passed_over.is_empty());
                                others += usize::from(Some(chose) != story.backend());
                                *by.entry(scheduler).or_default() += u64::from(!choice.is_kept);
                                ensure!(
                                    is_drawn(scheduler) || Some(chose) == story.backend(),
                                    "{}: {scheduler:?} chose {chose}",
                                    what()
                                );
                            }
                            break;
                        }
                        // It has answered too many of late: until it answers this one.
                        Agreement::AgreesInPart(_) => {
                            again += 1;
                            std::thread::sleep(Duration::from_millis(1));
                        }
                        Agreement::Differs(how) => {
                            let report = tracer.report(&story, "", &[]);
                            let text = report.to_text(None, true, str::to_owned);
                            bail!("{}: {how}\n{text}", what());
                        }
                    }
                }
            }
            ensure_counted(&before, &counters(&store)?, &wanted, is_of_test_packets)?;
            println!(
                "{PACKETS} packets, {again} of them again: {wanted:?}; by {by:?}, {passed_over} with some of {out} \
                 backends passed over, {others} drawn otherwise"
            );
            for scheduler in Scheduler::ALL {
                let seen = by.get(&scheduler).copied().unwrap_or(0);
                ensure!(seen > 20, "{scheduler:?}: {seen} times only");
            }
            ensure!(passed_over > 20 && others > 20, "{passed_over}, {others}");
            ensure!(open_connections(&store)? == active, "connections were counted");
            for counter in [
                Counter::PacketPassed,
                Counter::PacketNewFlow,
                Counter::PacketNoEndpoints,
                Counter::PacketNoLocalEndpoint,
                Counter::PacketNotAllowed,
                Counter::PacketUnknownPort,
                Counter::PacketUnallocatedClusterIp,
            ] {
                let seen = wanted.get(&counter).copied().unwrap_or(0);
                ensure!(seen > 20, "{}: {seen} times only", counter.name());
            }
            // Nothing is left of the runs.
            let half_open = FlowMap::half_open_from_pin(&pins.map(map::HALF_OPEN))?.count()?;
            let clients = AffinityMap::from_pin(&pins.map(map::AFFINITY))?.count()?;
            ensure!(half_open == 0 && clients == 0, "{half_open} {clients}");
            Ok(())
        })
    })?
}

/// Of a call: what the kernel remembers of its socket.
struct Sockets {
    store: BpfStore,
    udp_flows: BpfHashMap<MapData, [u8; UdpFlowKey::SIZE], [u8; UdpFlow::SIZE]>,
}

impl Sockets {
    fn open(pins: &Pins) -> Result<Self> {
        let udp_flows = MapData::from_pin(pins.map(map::UDP_FLOWS))?;
        Ok(Self {
            store: pins.open_store()?,
            udp_flows: BpfHashMap::try_from(Map::LruHashMap(udp_flows))?,
        })
    }

    /// Where the call went instead.
    fn backend(&self, way: Dial, to: SocketAddr, dialled: &Dialled) -> Option<SocketAddr> {
        let cookie = dialled.cookie;
        let backend = match way {
            Dial::Tcp | Dial::Udp => self.store.socket(cookie)?.backend,
            Dial::Send => {
                let peer = SockAddr::from(to);
                let key = UdpFlowKey {
                    cookie,
                    peer,
                    zero: 0,
                };
                let flow = UdpFlow::from_bytes(self.udp_flows.get(&key.to_bytes(), 0).ok()?);
                let backend = self.store.backend(flow.backend_id)?;
                SockAddr::from_parts(backend.addr, backend.port_be)
            }
        };
        Some(backend.socket_addr())
    }

    /// Whether that is what the trace says.
    fn agree(
        &self,
        story: &Story,
        way: Dial,
        dialled: &Dialled,
        is_own: impl Fn(IpAddr) -> bool,
    ) -> Result<()> {
        let to = story.question.destination;
        let backend = self.backend(way, to, dialled);
        let is_refused = dialled.errno.as_deref() == Some("ECONNREFUSED");
        let found = format!("{dialled:?}, sent to {backend:?}");
        let agrees = match story.kind() {
            Kind::Translated => {
                let is_certain = is_certain(story);
                backend.is_some_and(|backend| {
                    story.candidates().any(|one| one == backend)
                        && (!is_certain || story.backend() == Some(backend))
                })
            }
            // Where UDP can't be refused, it is parked.
            Kind::Refused => match story.outcome {
                Outcome::Call(Verdict::Rewrite(parked)) => backend == Some(parked.socket_addr()),
                Outcome::Call(_) | Outcome::Lost | Outcome::NotOurs | Outcome::Packet(_) => {
                    is_refused && backend.is_none()
                }
            },
            // An own address may refuse by itself.
            Kind::Untouched | Kind::Dropped => {
                backend.is_none() && (!is_refused || is_own(to.ip()))
            }
        };
        ensure!(agrees, "the trace has {:?}; {found}", story.kind());
        Ok(())
    }
}

/// Whether no call before it, and no draw, can make another of it. A socket's network namespace may not be
/// known.
fn is_certain(story: &Story) -> bool {
    let Some(choice) = &story.choice else {
        return false;
    };
    let scheduler = choice.word.scheduler();
    // Affinity goes first, and an earlier call of the batch may have got it.
    let has_affinity = story
        .lookups
        .iter()
        .any(|lookup| matches!(lookup, Lookup::Affinity(..)));
    let is_by_address = scheduler == Scheduler::DestinationHash
        || scheduler.looks_at_addresses() && choice.client.netns != 0;
    choice.is_kept || is_by_address && !has_affinity
}

fn is_of_calls(counter: Counter) -> bool {
    let name = counter.name();
    name.starts_with("connect_") || name.starts_with("send_")
}

#[test]
fn the_trace_of_a_call_is_what_becomes_of_it() -> Result<()> {
    let mut dice = Dice::of_this_run();
    let mut fleet = fleet_with(balanced(&mut dice))?;
    let pins = Pins::new(fleet.world.node("node-a").bpffs());
    let mut sockets = Sockets::open(&pins)?;
    let out = pass_over_some(&mut fleet, &mut sockets.store, &mut dice)?;
    let world = &fleet.world;
    let node = world.node("node-a");
    let (mut certain, mut by) = (0, BTreeMap::<Scheduler, u64>::new());
    let to = destinations(world);
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    let knows_netns = netns_of(std::process::id()).is_ok();
    let mut kept = 0;
    let before = counters(&sockets.store)?;
    let mut wanted: BTreeMap<Counter, u64> = BTreeMap::new();
    for batch in 0..CALLS / BATCH {
        let (place, origin) = match batch % 2 {
            0 => (world.pod("client"), Origin::Pod),
            _ => (node.host(), Origin::Node),
        };
        // The probe starts at its first request.
        place.probe().dial(Vec::new(), |_| Ok(()))?;
        let pid = place.probe().pid().context("no probe")?;
        let options = Options {
            seed: dice.roll(),
            // Linux 5.14 tells it.
            netns: netns_of(pid).unwrap_or(0),
        };
        let calls: Vec<(Dial, SocketAddr)> = (0..BATCH)
            .map(|_| {
                let way = one(&mut dice, &[Dial::Tcp, Dial::Udp, Dial::Send]);
                (way, one(&mut dice, &to))
            })
            .collect();
        let stories: Vec<Story> = node.netns().enter(|| {
            block_on(async {
                let tracer = Tracer::open(&pins).await?;
                let trace = |(way, to): &(Dial, SocketAddr)| {
                    let ip = if to.is_ipv4() {
                        place.ip4()
                    } else {
                        place.ip6()
                    };
                    let (call, protocol) = match way {
                        Dial::Tcp => (Call::Connect, Protocol::Tcp),
                        Dial::Udp => (Call::Connect, Protocol::Udp),
                        Dial::Send => (Call::Send, Protocol::Udp),
                    };
                    let question = Question::new(source(ip, 40_000), *to, protocol)?;
                    Ok(tracer.trace(question, Place::Socket(call, origin), options)?)
                };
                calls.iter().map(trace).collect::<Result<_>>()
            })
        })??;
        let is_own = |ip: IpAddr| ip.is_loopback() || ip == place.ip4() || ip == place.ip6();
        place.probe().dial(calls.clone(), |dialled| {
            for ((story, (way, to)), dialled) in stories.iter().zip(&calls).zip(dialled) {
                sockets
                    .agree(story, *way, dialled, is_own)
                    .with_context(|| format!("{way:?} of {} to {to}", place.name()))?;
            }
            Ok(())
        })?;
        for story in &stories {
            *kinds.entry(format!("{:?}", story.kind())).or_default() += 1;
            if let Some(choice) = &story.choice {
                kept += usize::from(choice.is_kept);
                *by.entry(choice.word.scheduler()).or_default() += 1;
            }
            certain += usize::from(is_certain(story));
            for counter in counted(story) {
                *wanted.entry(counter).or_default() += 1;
            }
        }
    }
    ensure_counted(&before, &counters(&sockets.store)?, &wanted, is_of_calls)?;
    println!(
        "{CALLS} calls: {kinds:?}, {kept} kept by affinity, {certain} certain, by {by:?}, {out} backends passed over: \
         {wanted:?}"
    );
    ensure!(
        certain > 50 && by.len() == Scheduler::ALL.len(),
        "{certain}, {by:?}"
    );
    ensure!(
        kinds.len() == 4 && kinds.values().all(|count| *count > 50),
        "{kinds:?}"
    );
    ensure!(kept > 50 || !knows_netns, "{kept} kept");
    Ok(())
}

/// The words of the command, and that it changes nothing.
#[test]
fn the_command_tells_the_story_and_changes_nothing() -> Result<()> {
    let fleet = fleet()?;
    let agent = fleet.agent("node-a")?;
    let world = &fleet.world;
    let laptop = format!("{}:40000", world.pod("laptop").ip4());
    let client = world.pod("client").ip4().to_string();
    let before = agent.status()?["counters"].clone();
    let of = |args: &[&str]| agent.call(&[&["trace"], args].concat());
    let pod = of(&[&client, "default/web:http"])?;
    println!("{pod}\n");
    for wanted in [
        "connect() of a pod of this node",
        "ClusterIP 10.96.0.10:80/TCP of default/web:http",
        "backends  10.1.1.3:8080 (this node)\n",
        "verdict   translated: 10.96.0.10:80 is served by ",
    ] {
        ensure!(pod.contains(wanted), "no \"{wanted}\":\n{pod}");
    }
    let long: BTreeSet<usize> = pod
        .lines()
        .map(str::len)
        .filter(|length| *length > 80)
        .collect();
    ensure!(long.is_empty(), "lines of {long:?} columns:\n{pod}");
    let port = format!("{}:{}", world.node("node-a").ip4(), node_port_of(2));
    let outside = of(&[&laptop, &port, "--lookups"])?;
    println!("{outside}\n");
    ensure!(
        outside.contains("dropped: the policy is Local"),
        "{outside}"
    );
    let json: serde_json::Value = serde_json::from_str(&of(&[&laptop, &port, "--json"])?)?;
    ensure!(json["verdict"] == "dropped", "{json}");
    // Its slots are a table of hundreds.
    let json: serde_json::Value =
        serde_json::from_str(&of(&[&laptop, "default/cache:http", "--json"])?)?;
    let (choice, all) = (&json["choice"], json["candidates"].as_array());
    ensure!(all.is_some_and(|all| all.len() == 3), "{json}");
    ensure!(choice["scheduler"] == "maglev", "{json}");
    ensure!(
        choice["looked_at"][0]["backend"] == json["backend"],
        "{json}"
    );
    let now = agent.status()?["counters"].clone();
    for counter in ["connect_translated", "packet_no_local_endpoint"] {
        ensure!(now[counter] == before[counter], "{counter}: {now}");
    }
    for (to, args) in [
        (&port, &["--kernel"][..]),
        (&"10.96.0.11:80".to_owned(), &["--kernel"]),
        (&"10.96.0.10:80".to_owned(), &["--kernel", "--seed", "7"]),
    ] {
        let text = of(&[&[laptop.as_str(), to.as_str()], args].concat())?;
        println!("{text}\n");
        ensure!(text.contains("the kernel agrees"), "{text}");
    }
    // What connect() leaves alone is dropped later.
    let stray = of(&[&client, "10.96.77.77:80"])?;
    println!("{stray}\n");
    for wanted in [
        "then      its packets meet the egress of eth0: dropped: the address is in a",
        "verdict   left alone: no Service has 10.96.77.77:80",
    ] {
        ensure!(stray.contains(wanted), "no \"{wanted}\":\n{stray}");
    }
    // A flow that is known goes on, and no run is to change it.
    let node = SocketAddr::new(world.node("node-a").ip4(), node_port_of(0));
    let open = world.pod("laptop").connect(node)?;
    let (local, node) = (open.local.to_string(), node.to_string());
    let known = of(&[&local, &node])?;
    println!("{known}\n");
    ensure!(known.contains("flow      known, last used "), "{known}");
    ensure!(known.contains("counter   packet_forwarded"), "{known}");
    let refused = of(&[&local, &node, "--kernel"]).expect_err("it would change the flow");
    ensure!(
        refused.to_string().contains("the maps know a flow"),
        "{refused}"
    );
    open.close()?;
    let again = |seed| of(&[&laptop, "10.96.0.10:80", "--seed", seed]);
    ensure!(again("7")? == again("7")?, "another draw of the same seed");
    Ok(())
}

#[test]
fn what_can_not_be_traced_is_told_in_one_line() -> Result<()> {
    let fleet = fleet()?;
    let agent = fleet.agent("node-a")?;
    let client = fleet.world.pod("client").ip4().to_string();
    for (args, wanted) in [
        (&["nobody", "10.96.0.10:80"][..], "\"nobody\" is no source"),
        (&[&client, "10.96.0.10"], "has no port: write 10.96.0.10:80"),
        (&[&client, "[fd96::10]:80"], "different families"),
        (
            &[&client, "default/none"],
            "no frontend in the maps is of a Service default/none",
        ),
        (
            &[&client, "default/web"],
            "has several ports; name one, as in default/web:",
        ),
        (
            &[&client, "10.96.0.10:80", "--kernel"],
            "no kernel runs the programs of sockets",
        ),
        (
            &[&client, "10.96.0.10:80", "--device", "eth9"],
            "no device of this node is called eth9",
        ),
    ] {
        let Err(error) = agent.call(&[&["trace"], args].concat()) else {
            bail!("{args:?} went well");
        };
        let error = error.to_string();
        ensure!(error.contains(wanted), "{args:?}: {error}");
        ensure!(error.trim().lines().count() == 1, "{args:?}: {error}");
    }
    Ok(())
}

/// Every block of docs/TRACE.md that begins with the command is what the command prints.
#[test]
fn the_documentation_shows_what_the_command_prints() -> Result<()> {
    let fleet = fleet()?;
    let agent = fleet.agent("node-a")?;
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/TRACE.md"))?;
    let (mut seen, mut wrong) = (0, String::new());
    for block in text.split("```").skip(1).step_by(2) {
        let Some(sample) = block.trim().strip_prefix("$ kube-portal ") else {
            continue;
        };
        let (command, wanted) = sample.split_once('\n').unwrap_or((sample, ""));
        let args: Vec<&str> = command.split_whitespace().collect();
        let printed = agent.call(&args)?;
        if without_ids(&printed) != without_ids(wanted) {
            wrong.push_str(&format!("$ kube-portal {command}\n{printed}\n"));
        }
        seen += 1;
    }
    ensure!(
        wrong.is_empty(),
        "the documentation has not what is printed:\n{wrong}"
    );
    ensure!(seen >= 4, "{seen} samples");
    Ok(())
}

/// Without the line about the loaded program, whose number is another each time.
fn without_ids(text: &str) -> String {
    match (text.find("\nkernel "), text.find("\nwrote ")) {
        (Some(from), Some(to)) => format!("{}{}", &text[..from], &text[to..]),
        _ => text.to_owned(),
    }
    .trim()
    .to_owned()
}
