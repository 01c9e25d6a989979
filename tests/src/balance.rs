//! What tests of balancing have in common: Services by scheduler, many clients, who answered how often, and what the
//! kernel counts.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU16, Ordering},
    },
};

use anyhow::{Context as _, Result, ensure};
use proxy_user::loader::Pins;
use serde_json::Value;

use crate::{
    Agent, Pod, Service, World,
    fleet::{families, node_port},
    probe::{
        Tally,
        client::{Connection, TIMEOUT, Udp},
    },
    stage::{TARGET, at},
};

/// Sizes with room for a few Services and their Maglev tables: tests read every element.
pub const SIZES: [&str; 6] = [
    "--max-services",
    "256",
    "--max-backends",
    "1024",
    "--max-slots",
    "131072",
];

/// A network of which every address is the client's; see [`crowd`].
const CROWD: [u8; 2] = [198, 18];

/// A Service with ports 80/TCP and 53/UDP of both families, of which `number` (below 200) gives the addresses
/// and the node port.
pub fn numbered(name: &str, number: u16) -> Service {
    let [v4, v6] = vips(number);
    node_port(name, [&v4, &v6], port(number))
}

/// ClusterIPs of [`numbered`].
pub fn vips(number: u16) -> [String; 2] {
    [format!("10.96.1.{number}"), format!("fd96::1:{number:x}")]
}

/// Node port of [`numbered`].
pub fn port(number: u16) -> u16 {
    30_100 + number
}

/// Where [`numbered`] is dialled, IPv4 and IPv6.
pub fn tcp(number: u16) -> [SocketAddr; 2] {
    vips(number).map(|ip| at(&ip, 80))
}

/// The same for UDP.
pub fn udp(number: u16) -> [SocketAddr; 2] {
    vips(number).map(|ip| at(&ip, 53))
}

/// Leads what an outside client has for ClusterIPs of [`numbered`] to a node.
pub fn route_vips(world: &World, client: &str, node: &str) -> Result<()> {
    world.route(
        client,
        &["10.96.1.0/24", "fd96::/112", "fd96::1:0/112"],
        node,
    )
}

/// The annotation for weights by pod; those not named have 1.
pub fn weights(world: &World, weights: &[(&str, u32)]) -> String {
    let of = |(name, weight): &(&str, u32)| {
        families(world.place(name)).map(|ip| format!("{ip}={weight}"))
    };
    weights.iter().flat_map(of).collect::<Vec<_>>().join(", ")
}

/// Connects, and asks who it is.
pub fn open<'a>(from: &'a Pod, to: SocketAddr) -> Result<(Connection<'a>, String)> {
    let connection = from.connect(to)?;
    let name = connection.exchange("who")?.name;
    Ok((connection, name))
}

/// The same, and closes.
pub fn ask(from: &Pod, to: SocketAddr) -> Result<String> {
    let (connection, name) = open(from, to)?;
    connection.close()?;
    Ok(name)
}

/// A connected UDP socket from a port that none had: packets of another with its port would be the same flow.
pub fn open_udp<'a>(from: &'a Pod, to: SocketAddr) -> Result<(Udp<'a>, String)> {
    let socket = from.udp(Some(fresh(to)), Some(to))?;
    let name = socket.exchange("who")?.name;
    Ok((socket, name))
}

/// From such a port, connected, and closed.
pub fn ask_udp_connected(from: &Pod, to: SocketAddr) -> Result<String> {
    let (socket, name) = open_udp(from, to)?;
    socket.close()?;
    Ok(name)
}

/// The same, not connected.
pub fn ask_udp(from: &Pod, to: SocketAddr) -> Result<String> {
    let socket = from.udp_bound(fresh(to))?;
    let name = socket.exchange_with(to, "who")?.name;
    socket.close()?;
    Ok(name)
}

fn fresh(like: SocketAddr) -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(10_000);
    let port = NEXT.fetch_add(1, Ordering::Relaxed);
    assert!(port < 30_000, "no port is left");
    at(if like.is_ipv6() { "::" } else { "0.0.0.0" }, port)
}

/// Asks so often, one after the other.
pub fn in_turn(count: usize, ask: impl Fn() -> Result<String>) -> Result<Vec<String>> {
    (0..count).map(|_| ask()).collect()
}

/// How often each answered.
pub fn tally(names: impl IntoIterator<Item = String>) -> Tally {
    let mut tally = Tally::default();
    for name in names {
        *tally.names.entry(name).or_default() += 1;
    }
    tally
}

/// What a chi-squared variable with 1, 2, ... degrees of freedom exceeds once in a million times.
const ONCE_IN_A_MILLION: [f64; 9] = [
    23.93, 27.63, 30.66, 33.38, 35.89, 38.26, 40.52, 42.70, 44.81,
];

/// Whether all went well, and names answered as independent draws by these weights would: fails once in a million
/// times if they are.
pub fn is_drawn_by(tally: &Tally, weights: &[(&str, u32)]) -> Result<()> {
    let all: u32 = weights.iter().map(|(_, weight)| weight).sum();
    let count = tally.answered();
    let known: u64 = weights.iter().map(|(name, _)| tally.of(name)).sum();
    ensure!(tally.failed() == 0 && known == count, "{tally}");
    let chi_squared: f64 = weights
        .iter()
        .map(|(name, weight)| {
            let expected = count as f64 * f64::from(*weight) / f64::from(all);
            (tally.of(name) as f64 - expected).powi(2) / expected
        })
        .sum();
    let bound = weights.len().checked_sub(2);
    let bound = bound.and_then(|at| ONCE_IN_A_MILLION.get(at));
    let bound = bound.context("as many as there are bounds for")?;
    ensure!(chi_squared < *bound, "chi-squared {chi_squared}: {tally}");
    Ok(())
}

/// Each has exactly its weight's share of the answers, of which there are a multiple of all weights.
pub fn is_shared_by(tally: &Tally, weights: &[(&str, u32)]) -> Result<()> {
    let all: u32 = weights.iter().map(|(_, weight)| weight).sum();
    let each = tally.answered() / u64::from(all);
    let wanted = weights
        .iter()
        .map(|(name, weight)| ((*name).to_owned(), each * u64::from(*weight)))
        .collect();
    ensure!(
        tally.failed() == 0 && tally.names == wanted,
        "{tally}, wanted: {wanted:?}"
    );
    Ok(())
}

/// Makes every address of a network the client's, and tells the nodes that it is behind the client.
pub fn crowd(world: &World, client: &Pod) -> Result<()> {
    let [a, b] = CROWD;
    client
        .netns()
        .ip(&format!("route add local {a}.{b}.0.0/16 dev lo"))?;
    for node in world.nodes() {
        let route = format!("route add {a}.{b}.0.0/16 via {}", client.ip4());
        node.netns().ip(&route)?;
    }
    Ok(())
}

/// An address of the network of [`crowd`].
pub fn of_crowd(number: u16) -> IpAddr {
    let [a, b] = CROWD;
    let [c, d] = number.to_be_bytes();
    [a, b, c, d].into()
}

/// Who answers each of the first `count` clients of the [`crowd`], some at a time.
pub fn ask_as_crowd(client: &Pod, count: u16, to: SocketAddr) -> Result<BTreeMap<u16, String>> {
    let asked = many_at_once(count, |number| {
        let from = SocketAddr::new(of_crowd(number), 0);
        let connection = client.connect_from(Some(from), to, TIMEOUT)?;
        let name = connection.exchange("who")?.name;
        connection.close()?;
        Ok(name)
    });
    asked.map(|names| (0..).zip(names).collect())
}

/// Does it for each number below `count`, in a few threads.
pub fn many_at_once<T: Send>(count: u16, work: impl Fn(u16) -> Result<T> + Sync) -> Result<Vec<T>> {
    let next = AtomicU16::new(0);
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        break;
                    }
                    let result = work(number);
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    done.push((number, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, result)| result).collect()
}

/// Connections by backend; who has none is left out.
pub type Open = BTreeMap<String, i64>;

/// What the kernel counts, by the pod at the backend's address, which an id that waits for its connections keeps; others
/// by `id <number>`.
pub fn counted(agent: &Agent, world: &World) -> Result<Open> {
    let directory = agent.pins();
    let root = directory.ancestors().nth(2).context("a bpffs")?;
    let store = Pins::new(root).open_store()?;
    let mut open = Open::new();
    for (id, stats) in store.backend_stats()? {
        if stats.active == 0 {
            continue;
        }
        let name = store
            .backend(id)
            .and_then(|backend| name_of(world, backend.addr.ip()));
        *open.entry(name.unwrap_or(format!("id {id}"))).or_default() += stats.active;
    }
    Ok(open)
}

/// The same as `kube-portal status` shows it: with backends that get new ones, and as what is left of others.
pub fn shown(agent: &Agent, world: &World) -> Result<Open> {
    let status = agent.status()?;
    let lists = status["frontends"].as_array().context("frontends")?.iter();
    let lists = lists.filter_map(|frontend| frontend["backends"].as_array());
    // All frontends of a Service port show the same.
    let chosen: BTreeMap<u64, &Value> = lists
        .flatten()
        .filter(|backend| backend["chosen"] == true)
        .filter_map(|backend| Some((backend["id"].as_u64()?, backend)))
        .collect();
    let draining = status["draining"].as_array().context("what is draining")?;
    let mut open = Open::new();
    for of in chosen.into_values().chain(draining) {
        let active = of["active"].as_i64().context("connections")?;
        let ip = of["address"].as_str().context("an address")?.parse()?;
        let name = name_of(world, ip).with_context(|| format!("nobody has {ip}"))?;
        if active != 0 {
            *open.entry(name).or_default() += active;
        }
    }
    Ok(open)
}

fn name_of(world: &World, ip: IpAddr) -> Option<String> {
    let nodes = world.nodes().iter().map(crate::Node::host);
    let mut all = world.pods().chain(nodes);
    let found = all.find(|pod| families(pod).contains(&ip));
    found.map(|pod| pod.name().to_owned())
}

const ESTABLISHED: &str = "01";

/// Connections that these pods' own kernels have established on [`TARGET`].
pub fn established(world: &World, names: &[&str]) -> Result<Open> {
    let mut open = Open::new();
    for name in names {
        let lines = world.place(name).netns().enter(|| -> Result<String> {
            // Of this thread: the process itself is elsewhere.
            let read = |file| std::fs::read_to_string(format!("/proc/thread-self/net/{file}"));
            Ok(read("tcp")? + &read("tcp6")?)
        })??;
        let local = format!(":{TARGET:04X}");
        let is_one = |line: &&str| {
            let mut words = line.split_ascii_whitespace().skip(1);
            let (at, _peer, state) = (words.next(), words.next(), words.next());
            at.is_some_and(|at| at.ends_with(&local)) && state == Some(ESTABLISHED)
        };
        let count = lines.lines().filter(is_one).count();
        if count > 0 {
            open.insert((*name).to_owned(), i64::try_from(count)?);
        }
    }
    Ok(open)
}
