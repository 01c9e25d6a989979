//! Session affinity end to end (BEHAVIOUR S1-S6): sockets of pods and of the node, packets from outside
//! and from guests.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU16, Ordering},
};

use anyhow::{Context as _, Result, ensure};
use proxy_common::abi::{ABI_VERSION, AffinityEntry, AffinityKey, Client, map};
use proxy_user::{expiry::monotonic_ns, loader::AffinityMap};
use tests::{
    Pod, Service, World,
    fleet::{Fleet, families, node_port, slices},
    stage::{PATIENCE, VIP4, VIP6, eventually},
};

const PORT: u16 = 30_080;
const EXTERNAL: [&str; 2] = ["198.51.100.7", "2001:db8::7"];
const BALANCER: [&str; 2] = ["203.0.113.9", "2001:db8::9"];
const BACKENDS: [&str; 3] = ["near-1", "near-2", "far"];
/// More than luck gives to one of three.
const MANY: usize = 20;

/// Begins so many connections or flows, and yields who answered them.
type Ask = fn(&Pod, SocketAddr, usize) -> Result<BTreeSet<String>>;

const TCP: Ask = |from, to, count| {
    let tally = from.connect_many(to, count)?;
    ensure!(tally.failed() == 0, "{tally}");
    Ok(tally.who().into_iter().map(str::to_owned).collect())
};
const UDP: Ask = |from, to, count| {
    let answers = (0..count).map(|_| {
        let socket = from.udp_bound(fresh(to))?;
        let answer = socket.exchange_with(to, "?")?;
        socket.close()?;
        Ok(answer.name)
    });
    answers.collect()
};
const CONNECTED_UDP: Ask = |from, to, count| {
    let answers = (0..count).map(|_| {
        let socket = from.udp(Some(fresh(to)), Some(to))?;
        let answer = socket.exchange("?")?;
        socket.close()?;
        Ok(answer.name)
    });
    answers.collect()
};

/// A port that no socket had: a flow that a node knows goes on, also for another socket.
fn fresh(like: SocketAddr) -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(10_000);
    let port = NEXT.fetch_add(1, Ordering::Relaxed);
    assert!(port < PORT, "no port is left");
    let any = if like.is_ipv6() { "::" } else { "0.0.0.0" };
    SocketAddr::new(ip(any), port)
}

/// An agent on node-a, and the Service `web` with all [`BACKENDS`].
fn fleet(service: &Service, extra: &[&str]) -> Result<Fleet> {
    let world = World::builder()
        .node("node-a", ["client", "other", "near-1", "near-2"])
        .guest("vm")
        .node("node-b", ["far"])
        .outside("laptop")
        .outside("desktop")
        .build()?;
    let fleet = Fleet::start(world, &["node-a"], extra, |world, manifests| {
        manifests.service(service)?;
        slices(world, manifests, "web", &BACKENDS)
    })?;
    for client in ["laptop", "desktop"] {
        let all = [BALANCER, EXTERNAL, [VIP4, VIP6]].concat();
        fleet.world.route(client, &all, "node-a")?;
    }
    Ok(fleet)
}

fn plain() -> Service {
    node_port("web", [VIP4, VIP6], PORT)
        .kind("LoadBalancer")
        .external_ips(EXTERNAL)
        .load_balancer(BALANCER)
}

fn sticky() -> Service {
    plain().client_ip_affinity(10_800)
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn vip(port: u16) -> SocketAddr {
    SocketAddr::new(ip(VIP4), port)
}

/// The one backend that answered all.
fn sole(who: BTreeSet<String>) -> Result<String> {
    ensure!(who.len() == 1, "{who:?}");
    Ok(who.into_iter().collect())
}

fn entries(fleet: &Fleet) -> Result<AffinityMap> {
    let pins = fleet.world.node("node-a").bpffs();
    let pin = pins.join(format!("kube-portal/v{ABI_VERSION}"));
    Ok(AffinityMap::from_pin(&pin.join(map::AFFINITY))?)
}

fn all_entries(fleet: &Fleet) -> Result<Vec<(AffinityKey, AffinityEntry)>> {
    Ok(entries(fleet)?.batch(None, 4096)?.0)
}

/// As `status` counts them.
fn known_clients(fleet: &Fleet) -> Result<u64> {
    let used = &fleet.agent("node-a")?.status()?["maps"]["affinity"]["used"];
    used.as_u64().with_context(|| format!("no count: {used}"))
}

/// Every new connection from this client to any address of each Service port goes to one backend; TCP
/// and UDP are two ports, and each family is for itself.
fn keeps_its_backend(from: &Pod, places: &[[IpAddr; 2]], node: Option<[IpAddr; 2]>) -> Result<()> {
    for family in 0..2 {
        for (port, asks) in [(80, &[TCP][..]), (53, &[UDP, CONNECTED_UDP])] {
            let mut targets: Vec<SocketAddr> = places
                .iter()
                .map(|place| SocketAddr::new(place[family], port))
                .collect();
            targets.extend(node.map(|node| SocketAddr::new(node[family], PORT)));
            let first = sole(asks[0](from, targets[0], 1)?)?;
            for ask in asks {
                for to in &targets {
                    let answered = sole(ask(from, *to, MANY)?);
                    let answered = answered.with_context(|| format!("{} to {to}", from.name()))?;
                    ensure!(
                        answered == first,
                        "{} to {to}: {answered} after {first}",
                        from.name()
                    );
                }
            }
        }
    }
    Ok(())
}

fn everywhere() -> [[IpAddr; 2]; 3] {
    [[VIP4, VIP6], BALANCER, EXTERNAL].map(|ips| ips.map(ip))
}

#[test]
fn s1_s6_a_pod_and_the_node_keep_their_backends_at_every_address_of_the_port() -> Result<()> {
    let fleet = fleet(&sticky(), &[])?;
    let host = fleet.world.node("node-a").host();
    for from in [fleet.world.pod("client"), fleet.world.pod("other"), host] {
        keeps_its_backend(from, &everywhere(), Some(families(host)))?;
    }
    // Three clients of two ports in two families.
    let known = all_entries(&fleet)?;
    let clients: BTreeSet<u64> = known.iter().map(|(key, _)| key.client.netns).collect();
    ensure!(known.len() == 12 && clients.len() == 3, "{known:#?}");
    ensure!(known_clients(&fleet)? == 12);
    // An IPv6 socket that dials IPv4 is no other client.
    let client = fleet.world.pod("client");
    let first = sole(TCP(client, vip(80), 1)?)?;
    let mapped = tests::stage::mapped(VIP4, 80);
    ensure!(sole(TCP(client, mapped, MANY)?)? == first);
    ensure!(known_clients(&fleet)? == 12);
    Ok(())
}

#[test]
fn s1_s6_a_client_outside_or_in_a_guest_keeps_its_backend_at_every_address_of_the_port()
-> Result<()> {
    let fleet = fleet(&sticky(), &["--pod-devices", "guest*"])?;
    let node = families(fleet.world.node("node-a").host());
    let clients = ["laptop", "desktop", "vm"].map(|name| fleet.world.pod(name));
    let mut wanted = BTreeSet::new();
    for from in clients {
        eventually("an answer", || from.connect(vip(80))?.exchange("?"))?;
        keeps_its_backend(from, &everywhere(), Some(node))?;
        wanted.extend(families(from).map(|ip| Client::of_packet(ip.into()).addr.ip()));
    }
    let known = all_entries(&fleet)?;
    let seen: BTreeSet<IpAddr> = known.iter().map(|(key, _)| key.client.addr.ip()).collect();
    ensure!(known.len() == 12 && seen == wanted, "{known:#?}");
    Ok(())
}

/// Both paths.
fn both(fleet: &Fleet) -> [&Pod; 2] {
    ["client", "laptop"].map(|name| fleet.world.pod(name))
}

#[test]
fn s2_new_connections_refresh_the_time_and_packets_of_old_ones_do_not() -> Result<()> {
    for at in 0..2 {
        let fleet = fleet(&sticky(), &[])?;
        let from = both(&fleet)[at];
        let connection = eventually("an answer", || from.connect(vip(80)))?;
        let used = || -> Result<u64> {
            let known = all_entries(&fleet)?;
            ensure!(known.len() == 1, "{known:#?}");
            Ok(known[0].1.used_ns)
        };
        let begun = used()?;
        for _ in 0..5 {
            connection.exchange("still here")?;
        }
        ensure!(used()? == begun, "a packet is no new connection");
        // The packet path's clock ticks every few milliseconds.
        eventually("the time to begin anew", || {
            from.connect(vip(80))?.close()?;
            let again = used()?;
            ensure!(again > begun && again <= monotonic_ns(), "{begun}, {again}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn s2_who_comes_after_the_timeout_is_led_anew_and_what_is_over_is_swept() -> Result<()> {
    let fleet = fleet(&sticky(), &[])?;
    for from in both(&fleet) {
        for (ask, port) in [(TCP, 80), (UDP, 53)] {
            eventually("an answer", || sole(ask(from, vip(port), 1)?))?;
        }
    }
    ensure!(known_clients(&fleet)? == 4);
    // It may be changed at any time.
    fleet.manifests.service(&plain().client_ip_affinity(1))?;
    eventually("all to be swept", || {
        let known = known_clients(&fleet)?;
        ensure!(known == 0, "{known} clients");
        Ok(())
    })?;
    for from in both(&fleet) {
        let mut seen = BTreeSet::new();
        // About as many draws as seconds: that all are the same is one chance in ten million.
        eventually("another backend to be drawn", || {
            let last = all_entries(&fleet)?
                .into_iter()
                .map(|(_, entry)| entry.used_ns);
            let last = last.max().unwrap_or(0);
            // The packet path's clock may be a tick late.
            let away_ns = monotonic_ns().saturating_sub(last);
            ensure!(away_ns >= 1_050_000_000, "too early");
            seen.insert(sole(TCP(from, vip(80), 1)?)?);
            ensure!(seen.len() > 1, "only {seen:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn s3_when_its_backend_goes_a_client_gets_another_and_keeps_that() -> Result<()> {
    for at in 0..2 {
        let fleet = fleet(&sticky(), &[])?;
        let from = both(&fleet)[at];
        for (ask, port) in [(TCP, 80), (UDP, 53)] {
            fleet.set_backends("web", &BACKENDS)?;
            let first = eventually("an answer", || sole(ask(from, vip(port), 1)?))?;
            let others: Vec<&str> = BACKENDS.into_iter().filter(|b| *b != first).collect();
            fleet.set_backends("web", &others)?;
            let second = eventually("another to answer", || {
                let second = sole(ask(from, vip(port), MANY)?)?;
                ensure!(second != first, "still {first}");
                Ok(second)
            })?;
            // It comes back, and is nobody's any more.
            fleet.set_backends("web", &BACKENDS)?;
            eventually("it to be back", || backend_count(&fleet, BACKENDS.len()))?;
            ensure!(sole(ask(from, vip(port), MANY)?)? == second);
        }
    }
    Ok(())
}

/// Whether the Service has so many backends of TCP and IPv4.
fn backend_count(fleet: &Fleet, wanted: usize) -> Result<()> {
    let status = fleet.agent("node-a")?.status()?;
    let frontends = status["frontends"].as_array().context("frontends")?;
    let of_vip = |frontend: &&serde_json::Value| frontend["address"] == VIP4;
    for frontend in frontends.iter().filter(of_vip) {
        let backends = frontend["backends"].as_array().context("backends")?;
        let chosen = backends.iter().filter(|backend| backend["chosen"] == true);
        ensure!(chosen.count() == wanted, "{frontend}");
    }
    Ok(())
}

#[test]
fn s4_with_policy_local_a_client_keeps_a_backend_of_this_node_at_other_addresses_too() -> Result<()>
{
    let fleet = fleet(&sticky().spec("externalTrafficPolicy: Local"), &[])?;
    let balancer = SocketAddr::new(ip(BALANCER[0]), 80);
    for client in ["laptop", "desktop"] {
        let from = fleet.world.pod(client);
        let first = eventually("an answer", || sole(TCP(from, balancer, 1)?))?;
        ensure!(first != "far");
        // A ClusterIP leads to all; and back.
        for to in [vip(80), balancer, vip(80)] {
            ensure!(sole(TCP(from, to, MANY)?)? == first, "{client} to {to}");
        }
    }
    // The policy changes while they are away.
    let laptop = fleet.world.pod("laptop");
    let first = sole(TCP(laptop, vip(80), 1)?)?;
    fleet.manifests.service(&sticky())?;
    eventually("the list of this node to go", || {
        let status = fleet.agent("node-a")?.status()?;
        let frontends = status["frontends"].as_array().context("frontends")?;
        let outside = frontends.iter().any(|f| f.get("outside").is_some());
        ensure!(!outside);
        Ok(())
    })?;
    ensure!(sole(TCP(laptop, balancer, MANY)?)? == first);
    Ok(())
}

#[test]
fn s5_affinity_is_switched_off_and_on_for_new_connections() -> Result<()> {
    let fleet = fleet(&sticky(), &[])?;
    let all = BTreeSet::from(BACKENDS.map(str::to_owned));
    for from in both(&fleet) {
        let asks = [(TCP, 80), (UDP, 53)];
        let connection = eventually("an answer", || from.connect(vip(80)))?;
        let name = connection.exchange("?")?.name;
        for (ask, port) in asks {
            sole(ask(from, vip(port), MANY)?)?;
        }
        fleet.manifests.service(&plain())?;
        for (ask, port) in asks {
            eventually("all backends to answer", || {
                let who = ask(from, vip(port), 3 * MANY)?;
                ensure!(who.iter().eq(&all), "{who:?}");
                Ok(())
            })?;
        }
        fleet.manifests.service(&sticky())?;
        for (ask, port) in asks {
            let first = eventually("one to answer", || sole(ask(from, vip(port), MANY)?))?;
            ensure!(sole(ask(from, vip(port), MANY)?)? == first);
        }
        let still = connection.exchange("?")?.name;
        ensure!(
            still == name,
            "a connection stays where it is: {name}, {still}"
        );
    }
    Ok(())
}

#[test]
fn affinity_outlives_the_agent() -> Result<()> {
    let mut fleet = fleet(&sticky(), &[])?;
    let ask = |fleet: &Fleet, count| -> Result<Vec<String>> {
        let mut names = Vec::new();
        for from in both(fleet) {
            names.push(sole(TCP(from, vip(80), count)?)?);
            names.push(sole(UDP(from, vip(53), count)?)?);
        }
        Ok(names)
    };
    let first = eventually("an answer", || ask(&fleet, 1))?;
    let seconds = |fleet: &Fleet| -> Result<serde_json::Value> {
        let status = fleet.agent("node-a")?.status()?;
        Ok(status["frontends"][0]["affinity_timeout_secs"].clone())
    };
    ensure!(seconds(&fleet)? == 10_800);
    for _ in 0..2 {
        fleet.agent_mut("node-a")?.kill();
        ensure!(ask(&fleet, MANY)? == first, "without an agent");
        let agent = fleet.agent_mut("node-a")?;
        agent.restart()?;
        agent.wait_ready(PATIENCE)?;
        agent.wait_log("first sync done: 1 Services, 0 steps", PATIENCE)?;
        ensure!(ask(&fleet, MANY)? == first, "with another agent");
        ensure!(known_clients(&fleet)? == 4);
    }
    Ok(())
}

#[test]
fn the_table_is_bounded_and_a_full_one_serves_new_clients() -> Result<()> {
    const ROOM: u32 = 1024;
    let fleet = fleet(&sticky(), &["--max-affinity", &ROOM.to_string()])?;
    let laptop = fleet.world.pod("laptop");
    eventually("an answer", || sole(TCP(laptop, vip(80), 1)?))?;
    let (key, entry) = all_entries(&fleet)?.remove(0);
    let mut table = entries(&fleet)?;
    ensure!(table.capacity() == ROOM);
    for number in 0..10 * ROOM {
        let stranger = IpAddr::from(number.to_be_bytes());
        let client = Client::of_packet(stranger.into());
        let used_ns = monotonic_ns();
        table.put(
            &AffinityKey { client, ..key },
            &AffinityEntry { used_ns, ..entry },
        )?;
    }
    let known = known_clients(&fleet)?;
    ensure!((1..=u64::from(ROOM)).contains(&known), "{known} clients");
    for from in both(&fleet) {
        let first = sole(TCP(from, vip(80), 1)?)?;
        ensure!(sole(TCP(from, vip(80), MANY)?)? == first);
    }
    Ok(())
}
