//! The agent goes and comes under load, as itself, as another build, with other pins: nobody who talks
//! to a Service notices.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, HashMap as BpfHashMap, Map, MapData};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use proxy_common::abi::{ABI_VERSION, Backend, Frontend, FrontendKey, ServiceName, map};
use proxy_user::loader::OBJECT;
use tests::{
    Agent, ManifestDir, Pod, Source, World, binaries, bpf,
    fleet::{Fleet, families, node_port, slices},
    probe::{
        ChurnPlan,
        client::{Connection, Udp},
    },
    stage::{PATIENCE, VIP4, VIP6, at, eventually, mapped},
    wait,
};

const PORT: u16 = 30_080;
const STICKY_PORT: u16 = 30_081;
const STICKY_VIPS: [&str; 2] = ["10.96.0.11", "fd96::11"];
const GONE_PORT: u16 = 30_082;
const GONE_VIPS: [&str; 2] = ["10.96.0.12", "fd96::12"];
/// One on the agent's node, one elsewhere.
const BACKENDS: [&str; 2] = ["near", "far"];
/// `status` and the test read every element.
const SMALL: [&str; 4] = ["--max-services", "256", "--max-backends", "256"];
/// Of each pair of client and address: both backends are among them, all but certainly.
const AT_ONCE: usize = 10;

fn fleet() -> Result<Fleet> {
    let world = World::builder()
        .node("node-a", ["client", "near"])
        .node("node-b", ["far"])
        .outside("laptop")
        .build()?;
    let fleet = Fleet::start(world, &["node-a"], &SMALL, |world, manifests| {
        manifests.service(&node_port("web", [VIP4, VIP6], PORT))?;
        let sticky = node_port("sticky", STICKY_VIPS, STICKY_PORT);
        manifests.service(&sticky.client_ip_affinity(10_800))?;
        slices(world, manifests, "web", &BACKENDS)?;
        slices(world, manifests, "sticky", &BACKENDS)
    })?;
    let client = fleet.world.pod("laptop");
    for to in node_ports(&fleet.world, PORT) {
        eventually("an answer", || client.connect(to)?.exchange("who"))?;
    }
    Ok(fleet)
}

fn node_ports(world: &World, port: u16) -> [SocketAddr; 2] {
    families(world.node("node-a").host()).map(|ip| SocketAddr::new(ip, port))
}

fn vips(vips: [&str; 2], port: u16) -> [SocketAddr; 2] {
    vips.map(|vip| at(vip, port))
}

/// What those who talk insist on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Strict {
    /// A UDP flow has its backend for ever, and a client with affinity too.
    All,
    /// Affinity may be forgotten, and a UDP flow may get another backend: it is never lost.
    Connections,
}

struct Load<'a> {
    stop: &'a AtomicBool,
    strict: Strict,
}

type Work<'a> = Box<dyn Fn(&AtomicU64) -> Result<()> + Send + 'a>;

/// How far each of those who talk has come, and how it ended.
struct Talk<'s> {
    what: String,
    rounds: &'s AtomicU64,
    ended: std::thread::ScopedJoinHandle<'s, Result<()>>,
}

impl Load<'_> {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Acquire)
    }

    /// Long connections; every byte comes back.
    fn tcp(&self, from: &Pod, to: SocketAddr, rounds: &AtomicU64) -> Result<()> {
        let open: Vec<(Connection<'_>, String)> = (0..AT_ONCE)
            .map(|_| {
                let connection = from.connect(to)?;
                let name = connection.exchange("who")?.name;
                Ok((connection, name))
            })
            .collect::<Result<_>>()?;
        let line = "kube-portal ".repeat(300);
        while self.goes_on() {
            for (connection, name) in &open {
                let answer = connection.exchange(&line)?;
                ensure!(answer.name == *name && answer.echo == line, "not {name}");
                let peer = connection.peer_name()?;
                ensure!(peer == to, "its peer is {peer}");
            }
            rounds.fetch_add(1, Ordering::Release);
        }
        Ok(())
    }

    fn udp(&self, from: &Pod, to: SocketAddr, connected: bool, rounds: &AtomicU64) -> Result<()> {
        let any = if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
        let any: SocketAddr = any.parse()?;
        let target = (!connected).then_some(to);
        let ask =
            |socket: &Udp<'_>| socket.exchange_within(target, "datagram", Duration::from_secs(2));
        let open: Vec<(Udp<'_>, String)> = (0..AT_ONCE)
            .map(|_| {
                let socket = if connected {
                    from.udp_connected(to)?
                } else {
                    from.udp_bound(any)?
                };
                let name = ask(&socket)?.name;
                Ok((socket, name))
            })
            .collect::<Result<_>>()?;
        while self.goes_on() {
            for (socket, name) in &open {
                let answer = ask(socket)?;
                ensure!(answer.from == to, "{answer:?}");
                ensure!(
                    self.strict == Strict::Connections || answer.name == *name,
                    "{answer:?}, not {name}"
                );
            }
            rounds.fetch_add(1, Ordering::Release);
        }
        Ok(())
    }

    /// New connections of a client with affinity.
    fn affinity(&self, from: &Pod, to: SocketAddr, rounds: &AtomicU64) -> Result<()> {
        let first = from.connect(to)?.exchange("who")?.name;
        while self.goes_on() {
            let tally = from.connect_many(to, 5)?;
            let right = self.strict == Strict::Connections
                || tally.who().into_iter().all(|name| name == first);
            ensure!(tally.failed() == 0 && right, "{tally}, not {first}");
            rounds.fetch_add(1, Ordering::Release);
        }
        Ok(())
    }
}

/// Everybody talks while `act` does what it does; it is given something that waits until everybody
/// has come further.
fn under_load(
    world: &World,
    strict: Strict,
    act: impl FnOnce(&dyn Fn() -> Result<()>) -> Result<()>,
) -> Result<()> {
    let stop = AtomicBool::new(false);
    let load = Load {
        stop: &stop,
        strict,
    };
    let (client, laptop) = (world.pod("client"), world.pod("laptop"));
    let [web4, web6] = vips([VIP4, VIP6], 80);
    let [dns4, dns6] = vips([VIP4, VIP6], 53);
    let [node4, node6] = node_ports(world, PORT);
    let mut work: Vec<(String, Work<'_>)> = Vec::new();
    for (from, to) in [
        (client, web4),
        (client, web6),
        (laptop, node4),
        (laptop, node6),
    ] {
        let load = &load;
        work.push((
            format!("TCP from {} to {to}", from.name()),
            Box::new(move |rounds| load.tcp(from, to, rounds)),
        ));
    }
    for (from, to, connected) in [
        (client, dns4, true),
        (client, dns6, false),
        (client, mapped(VIP4, 53), false),
        (laptop, node4, true),
        (laptop, node6, false),
    ] {
        let load = &load;
        work.push((
            format!("UDP from {} to {to}", from.name()),
            Box::new(move |rounds| load.udp(from, to, connected, rounds)),
        ));
    }
    for (from, to) in [
        (client, at(STICKY_VIPS[0], 80)),
        (laptop, node_ports(world, STICKY_PORT)[1]),
    ] {
        let load = &load;
        work.push((
            format!("affinity of {} to {to}", from.name()),
            Box::new(move |rounds| load.affinity(from, to, rounds)),
        ));
    }
    let churns = [
        (client, web4),
        (client, web6),
        (laptop, node4),
        (laptop, node6),
    ]
    .into_iter()
    .map(|(from, to)| {
        let plan = ChurnPlan {
            threads: 1,
            pause: Duration::from_millis(2),
            ..ChurnPlan::new(to, BACKENDS)
        };
        Ok((to, from.churn(plan)?))
    })
    .collect::<Result<Vec<_>>>()?;
    let counters: Vec<AtomicU64> = work.iter().map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|scope| {
        let talks: Vec<Talk<'_>> = work
            .into_iter()
            .zip(&counters)
            .map(|((what, work), rounds)| Talk {
                what,
                rounds,
                ended: scope.spawn(move || work(rounds)),
            })
            .collect();
        let go_on = || -> Result<()> {
            let before: Vec<u64> = counters.iter().map(|c| c.load(Ordering::Acquire)).collect();
            wait::until("everybody to come further", PATIENCE, || {
                let further = talks.iter().zip(&before).all(|(talk, before)| {
                    talk.ended.is_finished() || talk.rounds.load(Ordering::Acquire) >= before + 2
                });
                further.then_some(())
            })?;
            for (_, churn) in &churns {
                churn.wait_attempts(30, PATIENCE)?;
            }
            let ended = talks.iter().find(|talk| talk.ended.is_finished());
            ensure!(
                ended.is_none(),
                "{} has ended",
                ended.map_or("", |talk| talk.what.as_str())
            );
            Ok(())
        };
        let acted = go_on().and_then(|()| act(&go_on)).and_then(|()| go_on());
        stop.store(true, Ordering::Release);
        for talk in talks {
            let what = talk.what;
            talk.ended
                .join()
                .map_err(|_| anyhow::anyhow!("panic: {what}"))?
                .context(what)?;
        }
        for (to, churn) in churns {
            let report = churn.stop()?;
            ensure!(
                report.tally.failed() == 0 && report.misdirected.is_empty() && report.attempts > 30,
                "{to}: {report:?}"
            );
        }
        acted
    })
}

fn directory(world: &World) -> PathBuf {
    let bpffs = world.node("node-a").bpffs();
    bpffs.join(format!("kube-portal/v{ABI_VERSION}"))
}

/// What every id stands for, and which address leads to which, read from the pinned maps.
#[derive(Debug, PartialEq, Eq)]
struct Ids {
    services: BTreeMap<u32, String>,
    backends: BTreeMap<u32, (u32, String)>,
    frontends: BTreeMap<Vec<u8>, (u32, u32)>,
}

fn ids(world: &World) -> Result<Ids> {
    let pin = |name| -> Result<MapData> { Ok(MapData::from_pin(directory(world).join(name))?) };
    let names: BpfHashMap<_, u32, [u8; ServiceName::SIZE]> =
        Map::HashMap(pin(map::NAMES)?).try_into()?;
    let frontends: BpfHashMap<_, [u8; FrontendKey::SIZE], [u8; Frontend::SIZE]> =
        Map::HashMap(pin(map::FRONTENDS)?).try_into()?;
    let backends: Array<_, [u8; Backend::SIZE]> = Map::Array(pin(map::BACKENDS)?).try_into()?;
    Ok(Ids {
        services: names
            .iter()
            .map(|entry| {
                let (id, bytes) = entry?;
                Ok((id, format!("{:?}", ServiceName::from_bytes(bytes))))
            })
            .collect::<Result<_>>()?,
        backends: (1..backends.len())
            .map(|id| -> Result<(u32, Backend)> {
                Ok((id, Backend::from_bytes(backends.get(&id, 0)?)))
            })
            .filter(|backend| !matches!(backend, Ok((_, Backend { service: 0, .. }))))
            .map(|backend| {
                let (id, backend) = backend?;
                let address = format!("{:?} {}", backend.addr, backend.port_be);
                Ok((id, (backend.service, address)))
            })
            .collect::<Result<_>>()?,
        frontends: frontends
            .iter()
            .map(|entry| {
                let (key, bytes) = entry?;
                let frontend = Frontend::from_bytes(bytes);
                Ok((key.to_vec(), (frontend.service, frontend.outside_service)))
            })
            .collect::<Result<_>>()?,
    })
}

/// Until the packet path is the new agent's too.
fn wait_back(agent: &Agent) -> Result<()> {
    agent.wait_ready(PATIENCE)?;
    agent.wait_line(&["eth0", "taken over from an earlier agent"], PATIENCE)?;
    Ok(())
}

/// The programs of the socket hooks by their digests.
fn digests(world: &World) -> Result<BTreeSet<[u32; 2]>> {
    let mut found = BTreeSet::new();
    for (hook, programs) in bpf::attached(world.node("node-a").cgroup())? {
        ensure!(programs.len() == 1, "hook {hook}: {programs:?}");
        for id in programs {
            found.insert(bpf::tag(id)?);
        }
    }
    Ok(found)
}

/// The agent with other programs: `r0 = 1` is said in 32 bits instead of 64, which means the same.
fn changed_build(dir: &Path) -> Result<PathBuf> {
    const WIDE: [u8; 8] = [0xb7, 0, 0, 0, 1, 0, 0, 0];
    const NARROW: u8 = 0xb4;
    let mut bytes = fs::read(binaries::kube_portal()?)?;
    let start = bytes
        .windows(OBJECT.len())
        .position(|window| window == OBJECT)
        .context("the kernel object in the agent: is it of another build than the tests?")?;
    let mut changed = 0;
    for instruction in bytes[start..start + OBJECT.len()].chunks_exact_mut(8) {
        if *instruction == WIDE {
            instruction[0] = NARROW;
            changed += 1;
        }
    }
    ensure!(changed > 0, "no such instruction");
    let path = dir.join("kube-portal-changed");
    fs::write(&path, bytes)?;
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(path)
}

#[test]
fn killed_stopped_and_upgraded_it_loses_nothing_and_keeps_ids_and_affinity() -> Result<()> {
    let mut fleet = fleet()?;
    let (world, agent) = (&fleet.world, &mut fleet.agents[0]);
    let changed = changed_build(world.dir())?;
    let before = ids(world)?;
    ensure!(before.backends.len() == 16, "{before:?}");
    let usual = digests(world)?;
    under_load(world, Strict::All, |go_on| {
        for round in 0..4 {
            if round % 2 == 0 {
                agent.kill();
            } else {
                agent.stop()?;
            }
            go_on().context("while it is away")?;
            // Round 1 is an upgrade, 3 takes it back.
            agent.use_binary((round == 1 || round == 2).then(|| changed.clone()));
            agent.restart()?;
            wait_back(agent)?;
            go_on().with_context(|| format!("after its return in round {round}"))?;
            ensure!(ids(world)? == before, "round {round}");
            ensure!(
                (digests(world)? == usual) == (round == 0 || round == 3),
                "round {round}: the programs of the other build"
            );
        }
        Ok(())
    })?;
    ensure!(agent.count_log("WARN") == 0, "{:#?}", agent.log());
    Ok(())
}

#[test]
fn a_changed_layout_is_switched_over_and_what_is_remembered_is_taken_along() -> Result<()> {
    let mut fleet = fleet()?;
    let (world, agent) = (&fleet.world, &mut fleet.agents[0]);
    let root = world.node("node-a").bpffs().join("kube-portal");
    under_load(world, Strict::Connections, |go_on| {
        agent.kill();
        // An agent of the version before: its Services, backends and affinity were laid out otherwise.
        fs::rename(directory(world), root.join("v2"))?;
        go_on().context("on the older pins")?;
        agent.restart()?;
        wait_back(agent)?;
        wait::until("the older pins to go", PATIENCE, || {
            (!root.join("v2").exists()).then_some(())
        })?;
        go_on().context("on the new pins")
    })?;
    let told = agent.wait_line(&["v2", "taken over", "new are"], PATIENCE)?;
    ensure!(
        told.contains(map::SERVICES) && told.contains(map::AFFINITY) && !told.contains("SOCKETS"),
        "{told}"
    );
    ensure!(names_in(&root)? == [format!("v{ABI_VERSION}")]);
    ensure!(digests(world)?.len() > 1);
    Ok(())
}

/// Each flag with a size of its own.
fn sizes(of: impl Fn(u32) -> u32) -> Vec<String> {
    [
        ("--max-frontends", 128),
        ("--max-services", 256),
        ("--max-backends", 256),
        ("--max-source-ranges", 64),
        ("--max-sockets", 4096),
        ("--max-udp-flows", 4096),
        ("--max-affinity", 4096),
    ]
    .into_iter()
    .flat_map(|(flag, size)| [flag.to_owned(), of(size).to_string()])
    .collect()
}

/// An API server that is not there.
fn nowhere(dir: &Path) -> Result<PathBuf> {
    let path = dir.join("nowhere");
    fs::write(
        &path,
        "apiVersion: v1\nkind: Config\ncurrent-context: it\n\
         clusters: [{name: it, cluster: {server: \"http://127.0.0.1:1\"}}]\n\
         users: [{name: it, user: {}}]\n\
         contexts: [{name: it, context: {cluster: it, user: it}}]\n",
    )?;
    Ok(path)
}

#[test]
fn maps_of_other_sizes_take_along_what_is_in_them() -> Result<()> {
    let mut fleet = fleet()?;
    let source = || Source::Manifests(fleet.manifests.path().to_owned());
    let (world, agent) = (&fleet.world, &mut fleet.agents[0]);
    let root = world.node("node-a").bpffs().join("kube-portal");
    let before = ids(world)?;
    under_load(world, Strict::All, |go_on| {
        // Smaller, larger, and as it was.
        for round in 0..3 {
            let sizes = sizes(|size| if round == 1 { size * 3 } else { size });
            let sizes: Vec<&str> = sizes.iter().map(String::as_str).collect();
            if round == 1 {
                // One that dies when it has made the maps, and hears of no Service.
                agent.restart_with(Source::Kubeconfig(nowhere(world.dir())?), &sizes)?;
                agent.wait_log("adopting", PATIENCE)?;
                go_on().context("before the new maps are used")?;
            } else {
                agent.restart_with(source(), &sizes)?;
            }
            agent.wait_line(&["made anew", map::FRONTENDS, map::SOCKETS], PATIENCE)?;
            if round == 1 {
                agent.restart_with(source(), &sizes)?;
            }
            wait_back(agent)?;
            wait::until("the earlier maps to go", PATIENCE, || {
                (names_in(&root).ok()?.len() == 1).then_some(())
            })?;
            go_on().with_context(|| format!("after round {round}"))?;
            ensure!(ids(world)? == before, "round {round}");
            let maps = &agent.status()?["maps"];
            let wanted = if round == 1 { 12_288 } else { 4096 };
            ensure!(
                maps["sockets"]["capacity"] == wanted && maps["affinity"]["capacity"] == wanted,
                "{maps}"
            );
            ensure!(agent.count_log("WARN") == 0, "{:#?}", agent.log());
        }
        Ok(())
    })?;
    // What does not fit any more stays as it is, and the rest is made smaller.
    let small = [
        "--max-frontends",
        "5",
        "--max-backends",
        "4",
        "--max-services",
        "100",
        "--max-flows",
        "1000",
    ];
    agent.restart_with(source(), &small)?;
    wait_back(agent)?;
    agent.wait_line(
        &[
            "WARN",
            "--max-frontends 5",
            "KP_FRONTENDS",
            "keeps its room for 128",
        ],
        PATIENCE,
    )?;
    agent.wait_line(
        &["WARN", "--max-backends 4", "keeps its room for 256"],
        PATIENCE,
    )?;
    agent.wait_line(
        &[
            "WARN",
            "--max-flows 1000 has no effect",
            "kube-portal cleanup",
        ],
        PATIENCE,
    )?;
    let maps = &agent.status()?["maps"];
    ensure!(
        maps["frontends"]["capacity"] == 128
            && maps["backends"]["capacity"] == 256
            && maps["services"]["capacity"] == 100,
        "{maps}"
    );
    ensure!(ids(world)? == before);
    Ok(())
}

#[test]
fn pins_that_somebody_took_away_are_replaced_under_load() -> Result<()> {
    let mut fleet = fleet()?;
    let (world, agent) = (&fleet.world, &mut fleet.agents[0]);
    let root = world.node("node-a").bpffs().join("kube-portal");
    under_load(world, Strict::Connections, |go_on| {
        agent.stop()?;
        fs::remove_file(directory(world).join(map::SLOTS))?;
        // What is under one of our names, and is not what it says.
        let devices = directory(world).join(map::DEVICES);
        fs::remove_file(&devices)?;
        fs::hard_link(directory(world).join(map::COUNTERS), &devices)?;
        go_on().context("while it is away")?;
        agent.restart()?;
        wait_back(agent)?;
        wait::until("the damaged pins to go", PATIENCE, || {
            (names_in(&root).ok()?.len() == 1).then_some(())
        })?;
        go_on().context("on the new pins")
    })?;
    let told = agent.wait_line(&["WARN", "not whole", map::SLOTS, "missing"], PATIENCE)?;
    ensure!(told.contains("1 more"), "{told}");
    let told = agent.wait_line(&["taken over", "new are"], PATIENCE)?;
    ensure!(
        !told.contains(map::AFFINITY) && told.contains(map::DEVICES),
        "{told}"
    );
    // The next one finds nothing to say.
    agent.restart()?;
    wait_back(agent)?;
    ensure!(agent.count_log("WARN") == 0, "{:#?}", agent.log());
    Ok(())
}

fn names_in(directory: &Path) -> Result<Vec<String>> {
    let mut names: Vec<String> = fs::read_dir(directory)?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

/// An agent without any Service, that is stopped.
fn stopped() -> Result<(World, ManifestDir, Agent)> {
    let world = World::builder().node("node-a", ["pod"]).build()?;
    let manifests = ManifestDir::new()?;
    let source = Source::Manifests(manifests.path().to_owned());
    let mut agent = world.node("node-a").start_agent_with(source, &SMALL)?;
    agent.wait_ready(PATIENCE)?;
    agent.stop()?;
    Ok((world, manifests, agent))
}

#[test]
fn a_half_made_directory_goes_and_is_told_of() -> Result<()> {
    let (world, _manifests, mut agent) = stopped()?;
    let root = world.node("node-a").bpffs().join("kube-portal");
    let begun = root.join("begun");
    fs::create_dir(&begun)?;
    fs::hard_link(directory(&world).join(map::FLOWS), begun.join(map::FLOWS))?;
    agent.restart()?;
    agent.wait_ready(PATIENCE)?;
    agent.wait_line(&["begun", "died while it started", "removed"], PATIENCE)?;
    ensure!(names_in(&root)? == [format!("v{ABI_VERSION}")]);
    // The pins that were whole are used.
    ensure!(agent.count_log("taken over") == 0 && agent.count_log("not whole") == 0);
    Ok(())
}

#[test]
fn what_others_put_among_the_pins_stays_and_is_told_of() -> Result<()> {
    let (world, _manifests, mut agent) = stopped()?;
    let directory = directory(&world);
    let theirs = directory.join("notes");
    fs::create_dir(&theirs)?;
    agent.restart()?;
    agent.wait_ready(PATIENCE)?;
    agent.wait_line(&["WARN", "not kube-portal's", "notes"], PATIENCE)?;
    // A directory has the name of a link.
    agent.stop()?;
    let link = directory.join("link_kp_connect4");
    fs::remove_file(&link)?;
    fs::create_dir(&link)?;
    agent.restart()?;
    agent.wait_ready(PATIENCE)?;
    agent.wait_line(&["not whole", "link_kp_connect4: not a link"], PATIENCE)?;
    let left = agent.wait_line(&["WARN", "aside0/link_kp_connect4", "by hand"], PATIENCE)?;
    ensure!(left.contains("left where it is"), "{left}");
    ensure!(digests(&world)?.len() > 1);
    agent.stop()?;
    let said = agent.cleanup()?;
    ensure!(
        said.matches("left alone").count() == 2 && said.contains("aside0/notes"),
        "{said}"
    );
    for (hook, programs) in bpf::attached(world.node("node-a").cgroup())? {
        ensure!(programs.is_empty(), "hook {hook}: {programs:?}");
    }
    Ok(())
}

#[test]
fn what_is_no_directory_in_the_place_of_ours_is_refused_in_one_line() -> Result<()> {
    let (world, _manifests, mut agent) = stopped()?;
    let bpffs = world.node("node-a").bpffs();
    fs::hard_link(directory(&world).join(map::COUNTERS), bpffs.join("theirs"))?;
    agent.cleanup()?;
    fs::rename(bpffs.join("theirs"), bpffs.join("kube-portal"))?;
    agent.restart()?;
    ensure!(agent.wait_exit(PATIENCE)?.code() == Some(1));
    agent.wait_line(&["kube-portal: not a directory", "--bpffs-root"], PATIENCE)?;
    ensure!(bpffs.join("kube-portal").is_file());
    Ok(())
}

#[test]
fn a_bpffs_can_not_be_unmounted_under_an_agent_and_one_that_was_is_told_of() -> Result<()> {
    let (world, _manifests, mut agent) = stopped()?;
    let bpffs = world.node("node-a").bpffs();
    agent.restart()?;
    agent.wait_ready(PATIENCE)?;
    let refused = umount2(bpffs, MntFlags::empty());
    ensure!(refused == Err(nix::errno::Errno::EBUSY), "{refused:?}");
    agent.stop()?;
    umount2(bpffs, MntFlags::empty())?;
    agent.restart()?;
    ensure!(agent.wait_exit(PATIENCE)?.code() == Some(3));
    let path = bpffs.display().to_string();
    agent.wait_line(&[&path, &format!("mount -t bpf bpf {path}")], PATIENCE)?;
    mount(
        Some("bpf"),
        bpffs,
        Some("bpf"),
        MsFlags::empty(),
        None::<&str>,
    )?;
    agent.restart()?;
    agent.wait_ready(PATIENCE)?;
    ensure!(digests(&world)?.len() > 1);
    Ok(())
}

/// The path of packets; that of sockets is in `cluster.rs` and `lifecycle.rs`.
#[test]
fn a_node_port_deleted_while_it_was_away_serves_until_everything_is_listed() -> Result<()> {
    let mut fleet = fleet()?;
    fleet
        .manifests
        .service(&node_port("gone", GONE_VIPS, GONE_PORT))?;
    slices(&fleet.world, &fleet.manifests, "gone", &BACKENDS)?;
    let (world, agent) = (&fleet.world, &mut fleet.agents[0]);
    let client = world.pod("laptop");
    let gone = node_ports(world, GONE_PORT);
    for to in gone {
        eventually("an answer", || client.connect(to)?.exchange("who"))?;
    }
    let open = client.connect(gone[0])?;
    agent.kill();
    for name in ["gone.yaml", "gone-4.slice.yaml", "gone-6.slice.yaml"] {
        fleet.manifests.remove(&format!("default-{name}"))?;
    }
    for to in gone {
        client.connect(to)?.exchange("who")?;
    }
    agent.restart()?;
    wait_back(agent)?;
    for to in gone {
        let error = tests::net_error(client.connect(to))?;
        ensure!(error.errno == "ECONNREFUSED", "{error}");
    }
    // Its connections are not cut.
    open.exchange("still there?")?;
    Ok(())
}
