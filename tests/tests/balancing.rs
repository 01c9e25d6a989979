//! By which rule new connections get their backends (docs/BALANCING.md), on both paths: sockets of pods, and packets
//! of a client outside. Backends say who they are, and that is counted. Where chance is part of a rule, a bound that it
//! crosses once in a million times is stated; where it is not, the figures are exact.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
};

use anyhow::{Context as _, Result, ensure};
use tests::{
    Pod, World,
    balance::{
        SIZES, ask, ask_as_crowd, ask_udp, ask_udp_connected, counted, crowd, in_turn, is_drawn_by,
        is_shared_by, numbered, open, open_udp, port, route_vips, tally, tcp, udp, weights,
    },
    fleet::{Fleet, slices},
    probe::client::Connection,
    stage::{PATIENCE, eventually},
};

const BACKENDS: [&str; 4] = ["near-1", "near-2", "far-1", "far-2"];
const ALIKE: [(&str, u32); 4] = [("near-1", 1), ("near-2", 1), ("far-1", 1), ("far-2", 1)];
const UNEVEN: [(&str, u32); 4] = [("near-1", 3), ("near-2", 1), ("far-1", 2), ("far-2", 1)];
const SCHEDULERS: [&str; 8] = ["random", "rr", "lc", "sed", "nq", "sh", "dh", "maglev"];

/// Of the Service with this scheduler, and where all backends are alike or have the weights of [`UNEVEN`].
fn number(scheduler: &str, is_weighted: bool) -> u16 {
    let at = SCHEDULERS.iter().position(|known| *known == scheduler);
    let at = u16::try_from(at.expect("a scheduler")).expect("few");
    1 + at + if is_weighted { 100 } else { 0 }
}

/// A pod and a client outside, each of whom dials the same addresses; and other pods.
fn world(others: usize) -> Result<World> {
    let pods = ["client", "near-1", "near-2"].map(str::to_owned);
    let others = (0..others).map(|number| format!("other-{number}"));
    World::builder()
        .node("node-a", pods.into_iter().chain(others))
        .node("node-b", ["far-1", "far-2"])
        .outside("laptop")
        .build()
}

/// Agents on `nodes`, and Services with these schedulers, each with even and with uneven weights.
fn fleet(world: World, nodes: &[&str], schedulers: &[&str]) -> Result<Fleet> {
    let fleet = Fleet::start(world, nodes, &SIZES, |world, manifests| {
        for scheduler in schedulers {
            for is_weighted in [false, true] {
                let name = format!(
                    "{scheduler}-{}",
                    if is_weighted { "uneven" } else { "even" }
                );
                let mut service = numbered(&name, number(scheduler, is_weighted))
                    .annotation("kube-portal.io/scheduler", scheduler)
                    // A machine that stands still for a second must not look like a dead backend.
                    .annotation("kube-portal.io/failover", "false");
                if is_weighted {
                    let uneven = weights(world, &UNEVEN);
                    service = service.annotation("kube-portal.io/weights", &uneven);
                }
                manifests.service(&service)?;
                slices(world, manifests, &name, &BACKENDS)?;
            }
        }
        Ok(())
    })?;
    route_vips(&fleet.world, "laptop", "node-a")?;
    for scheduler in schedulers {
        for to in tcp(number(scheduler, false)) {
            eventually("an answer", || ask(fleet.world.pod("laptop"), to))?;
        }
    }
    Ok(fleet)
}

/// Who dials by sockets, and who by packets.
fn both(fleet: &Fleet) -> [&Pod; 2] {
    ["client", "laptop"].map(|name| fleet.world.pod(name))
}

/// Both paths, both families, even and uneven weights.
fn everywhere(
    fleet: &Fleet,
    scheduler: &str,
    check: impl Fn(&Pod, [SocketAddr; 2], &[(&str, u32)]) -> Result<()>,
) -> Result<()> {
    for (is_weighted, wanted) in [(false, &ALIKE), (true, &UNEVEN)] {
        let number = number(scheduler, is_weighted);
        for from in both(fleet) {
            for to in tcp(number).into_iter().zip(udp(number)) {
                check(from, to.into(), wanted)
                    .with_context(|| format!("{scheduler}, {} to {}", from.name(), to.0))?;
            }
        }
    }
    Ok(())
}

/// 24 tests, each of which fails once in a million times.
#[test]
fn random_gives_every_backend_as_many_as_its_weight_says() -> Result<()> {
    let fleet = fleet(world(0)?, &["node-a"], &["random"])?;
    everywhere(&fleet, "random", |from, [tcp, udp], wanted| {
        is_drawn_by(&from.connect_many(tcp, 700)?, wanted).context("TCP")?;
        is_drawn_by(&tally(in_turn(300, || ask_udp(from, udp))?), wanted).context("UDP")?;
        let connected = in_turn(300, || ask_udp_connected(from, udp))?;
        is_drawn_by(&tally(connected), wanted).context("connected UDP")
    })
}

#[test]
fn rr_goes_round_and_each_round_gives_everyone_what_its_weight_says() -> Result<()> {
    const ROUNDS: usize = 6;
    let fleet = fleet(world(0)?, &["node-a"], &["rr"])?;
    everywhere(&fleet, "rr", |from, [tcp, udp], wanted| {
        let round: u32 = wanted.iter().map(|(_, weight)| weight).sum();
        let round = usize::try_from(round)?;
        for (way, to, ask) in [
            ("TCP", tcp, ask as fn(&Pod, SocketAddr) -> Result<String>),
            ("UDP", udp, ask_udp),
            ("connected UDP", udp, ask_udp_connected),
        ] {
            let names = in_turn(ROUNDS * round, || ask(from, to))?;
            let first = &names[..round];
            ensure!(
                names.chunks(round).all(|next| next == first),
                "{way}: {names:?}"
            );
            is_shared_by(&tally(first.to_vec()), wanted).context(way)?;
        }
        Ok(())
    })?;
    // Two at the same moment may get the same one: still no worse than chance.
    for (is_weighted, wanted) in [(false, &ALIKE), (true, &UNEVEN)] {
        let [to, _] = tcp(number("rr", is_weighted));
        for from in both(&fleet) {
            let tallies = tests::balance::many_at_once(8, |_| from.connect_many(to, 140))?;
            let mut all = tests::probe::Tally::default();
            tallies.into_iter().for_each(|tally| all.merge(tally));
            is_drawn_by(&all, wanted)?;
        }
    }
    Ok(())
}

/// So many connections from each path stay open; who got them.
fn held<'a>(from: &'a Pod, to: SocketAddr, count: usize) -> Result<Vec<(Connection<'a>, String)>> {
    (0..count).map(|_| open(from, to)).collect()
}

fn names<T>(held: &[(T, String)]) -> impl Iterator<Item = String> + '_ {
    held.iter().map(|(_, name)| name.clone())
}

/// Until nothing of what the test has had open is counted.
fn all_gone(fleet: &Fleet) -> Result<()> {
    eventually("all to be closed", || {
        let open = counted(fleet.agent("node-a")?, &fleet.world)?;
        ensure!(open.is_empty(), "{open:?}");
        Ok(())
    })
}

#[test]
fn sed_and_nq_keep_what_is_open_in_proportion_to_the_weights() -> Result<()> {
    const ROUNDS: usize = 4;
    let fleet = fleet(world(0)?, &["node-a"], &["sed", "nq"])?;
    for scheduler in ["sed", "nq"] {
        everywhere(&fleet, scheduler, |from, [tcp, _], wanted| {
            let round: u32 = wanted.iter().map(|(_, weight)| weight).sum();
            let round = usize::try_from(round)?;
            all_gone(&fleet)?;
            let open = held(from, tcp, ROUNDS * round)?;
            is_shared_by(&tally(names(&open)), wanted)?;
            // Who is rid of all of its connections has them back before anyone else gets one.
            let (given_up, kept): (Vec<_>, Vec<_>) =
                open.into_iter().partition(|(_, name)| name == "near-1");
            let count = given_up.len();
            for (connection, _) in given_up {
                connection.close()?;
            }
            eventually("near-1 to have none", || {
                let open = counted(fleet.agent("node-a")?, &fleet.world)?;
                ensure!(!open.contains_key("near-1"), "{open:?}");
                Ok(())
            })?;
            let again = held(from, tcp, count)?;
            ensure!(
                names(&again).all(|name| name == "near-1"),
                "{:?}",
                tally(names(&again))
            );
            for (connection, _) in again.into_iter().chain(kept) {
                connection.close()?;
            }
            all_gone(&fleet)
        })?;
    }
    // After all else, because flows of packets are counted until they are forgotten.
    for scheduler in ["sed", "nq"] {
        everywhere(&fleet, scheduler, |from, [_, udp], wanted| {
            let round: u32 = wanted.iter().map(|(_, weight)| weight).sum();
            let sockets = (0..round)
                .map(|_| {
                    let (socket, name) = open_udp(from, udp)?;
                    // A flow counts from its client's second datagram on.
                    socket.exchange("again")?;
                    Ok((socket, name))
                })
                .collect::<Result<Vec<_>>>()?;
            is_shared_by(&tally(names(&sockets)), wanted).context("UDP")
        })?;
    }
    Ok(())
}

#[test]
fn nq_lets_nobody_wait_while_anyone_is_idle_and_sed_does() -> Result<()> {
    let fleet = fleet(world(0)?, &["node-a"], &["sed", "nq"])?;
    for from in both(&fleet) {
        let mut all = Vec::new();
        for is_weighted in [true, false] {
            let [to, _] = tcp(number("nq", is_weighted));
            let open = held(from, to, BACKENDS.len())?;
            is_shared_by(&tally(names(&open)), &ALIKE)?;
            all.extend(open);
        }
        // With weights 3, 1, 2 and 1 the first three wait shortest at the first (1/3), the third (1/2) and the first
        // again (2/3).
        let [to, _] = tcp(number("sed", true));
        all.extend(held(from, to, 3)?);
        let by_sed: Vec<String> = names(&all[2 * BACKENDS.len()..]).collect();
        ensure!(by_sed == ["near-1", "far-1", "near-1"], "{by_sed:?}");
        all.into_iter()
            .try_for_each(|(connection, _)| connection.close())?;
        all_gone(&fleet)?;
    }
    Ok(())
}

const CONNECTIONS: usize = 200;
/// Of so many, one of four gets at most this many by chance once in ten million times.
const BY_CHANCE: usize = 20;

/// How many of [`CONNECTIONS`] a backend gets that ends none of its connections, while all others together have no
/// more than eight at a time.
fn given_to_a_slow_one(from: &Pod, to: SocketAddr) -> Result<usize> {
    const SLOW: &str = "far-1";
    let (mut slow, mut fast) = (Vec::new(), VecDeque::new());
    for _ in 0..CONNECTIONS {
        let (connection, name) = open(from, to)?;
        if name == SLOW {
            slow.push(connection);
        } else {
            fast.push_back(connection);
        }
        if fast.len() > 8 {
            fast.pop_front().map(Connection::close).transpose()?;
        }
    }
    let count = slow.len();
    slow.into_iter()
        .chain(fast)
        .try_for_each(Connection::close)?;
    Ok(count)
}

#[test]
fn a_slow_backend_gets_far_fewer_by_lc_sed_and_nq_than_by_chance() -> Result<()> {
    let fleet = fleet(world(0)?, &["node-a"], &["random", "lc", "sed", "nq"])?;
    for from in both(&fleet) {
        for to in 0..2 {
            let count = |scheduler| given_to_a_slow_one(from, tcp(number(scheduler, false))[to]);
            let random = count("random")?;
            ensure!(random > BY_CHANCE, "{random} by chance");
            for scheduler in ["lc", "sed", "nq"] {
                let few = count(scheduler)?;
                println!("{} {to}: {scheduler} {few}, random {random}", from.name());
                ensure!(few <= BY_CHANCE, "{scheduler}: {few}, by chance {random}");
            }
        }
    }
    Ok(())
}

/// The fewest connections for the weight of two slots: what is open stays near the weights' shares. Anyone is off by more
/// than the bound once in ten million runs (each connection more is ten times as rare, in 150,000 simulated runs); drawn
/// by chance, in every other run.
#[test]
fn lc_keeps_what_is_open_near_the_shares_of_the_weights() -> Result<()> {
    const ROUNDS: usize = 60;
    const OFF: u64 = 8;
    let fleet = fleet(world(0)?, &["node-a"], &["lc"])?;
    everywhere(&fleet, "lc", |from, [tcp, _], wanted| {
        let round: u32 = wanted.iter().map(|(_, weight)| weight).sum();
        let open = held(from, tcp, ROUNDS * usize::try_from(round)?)?;
        let tally = tally(names(&open));
        for (name, weight) in wanted {
            let share = u64::try_from(ROUNDS)? * u64::from(*weight);
            ensure!(
                tally.of(name).abs_diff(share) <= OFF,
                "{name}: {share} of {tally}"
            );
        }
        open.into_iter()
            .try_for_each(|(connection, _)| connection.close())?;
        all_gone(&fleet)
    })
}

/// As a pod does whose readiness probe failed for a moment. What it has had all the time it still has.
#[test]
fn a_backend_that_comes_back_with_its_connections_gets_no_more_than_others() -> Result<()> {
    let fleet = fleet(world(0)?, &["node-a"], &["sed"])?;
    let service = "sed-even";
    let [to, _] = tcp(number("sed", false));
    for from in both(&fleet) {
        let mut open = held(from, to, 10 * BACKENDS.len())?;
        for backends in [&BACKENDS[1..], &BACKENDS] {
            fleet.set_backends(service, backends)?;
            eventually("the change", || {
                let agent = fleet.agent("node-a")?;
                let status = agent.status()?;
                let frontends = status["frontends"].as_array().context("frontends")?;
                let it = frontends
                    .iter()
                    .find(|f| f["address"] == to.ip().to_string().as_str());
                let list = it.context("it")?["backends"]
                    .as_array()
                    .context("backends")?;
                let chosen = list.iter().filter(|backend| backend["chosen"] == true);
                ensure!(chosen.count() == backends.len());
                Ok(())
            })?;
        }
        let more = held(from, to, 3 * BACKENDS.len())?;
        is_shared_by(&tally(names(&more)), &ALIKE)?;
        open.extend(more);
        open.into_iter()
            .try_for_each(|(connection, _)| connection.close())?;
        all_gone(&fleet)?;
    }
    Ok(())
}

fn sole(names: impl IntoIterator<Item = String>) -> Result<String> {
    let names: BTreeSet<String> = names.into_iter().collect();
    ensure!(names.len() == 1, "{names:?}");
    names.into_iter().next().context("somebody")
}

/// In one of 4^11 runs all pods would be given the same backend.
#[test]
fn sh_and_maglev_give_every_pod_and_the_node_one_backend_each() -> Result<()> {
    let fleet = fleet(world(11)?, &["node-a"], &["sh", "maglev"])?;
    for scheduler in ["sh", "maglev"] {
        for is_weighted in [false, true] {
            let number = number(scheduler, is_weighted);
            let mut all = BTreeSet::new();
            let node = fleet.world.node("node-a");
            let pods = node.pods().iter().filter(|name| !name.starts_with("near"));
            let pods = pods.map(|name| fleet.world.pod(name));
            for from in pods.chain([node.host(), fleet.world.pod("laptop")]) {
                for to in tcp(number) {
                    let names = in_turn(12, || ask(from, to))?;
                    all.insert(sole(names).with_context(|| format!("{} to {to}", from.name()))?);
                }
                for to in udp(number) {
                    sole(in_turn(6, || ask_udp(from, to))?)?;
                    sole(in_turn(6, || ask_udp_connected(from, to))?)?;
                }
            }
            ensure!(all.len() > 1, "{scheduler}: {all:?}");
        }
    }
    Ok(())
}

/// Addresses are hashed alike each time, so there is no chance in this. 600 clients come as near to the shares as
/// independent draws would.
#[test]
fn sh_and_maglev_spread_clients_by_weight_and_maglev_alike_from_every_node() -> Result<()> {
    const CLIENTS: u16 = 600;
    let fleet = fleet(world(0)?, &["node-a", "node-b"], &["sh", "maglev"])?;
    let laptop = fleet.world.pod("laptop");
    crowd(&fleet.world, laptop)?;
    for scheduler in ["sh", "maglev"] {
        for (is_weighted, wanted) in [(false, &ALIKE), (true, &UNEVEN)] {
            let number = number(scheduler, is_weighted);
            let nodes = ["node-a", "node-b"].map(|name| fleet.world.node(name).ip4());
            let [a, b] = nodes.map(|ip| SocketAddr::new(ip, port(number)));
            eventually("node-b to answer", || ask(laptop, b))?;
            let at_a = ask_as_crowd(laptop, CLIENTS, a)?;
            is_drawn_by(&tally(at_a.values().cloned()), wanted)
                .with_context(|| format!("{scheduler} {wanted:?}"))?;
            ensure!(
                at_a == ask_as_crowd(laptop, CLIENTS, a)?,
                "not the same again"
            );
            if scheduler == "maglev" {
                ensure!(
                    at_a == ask_as_crowd(laptop, CLIENTS, b)?,
                    "not the same elsewhere"
                );
            }
        }
    }
    Ok(())
}

/// Of the clients of others, at most one in twenty moves when one of eight backends goes; 7 of 8 would, if the hash were
/// that of a list.
#[test]
fn maglev_moves_few_clients_of_others_when_a_backend_goes_and_all_back_when_it_returns()
-> Result<()> {
    const CLIENTS: u16 = 1000;
    let backends: Vec<String> = (0..8).map(|number| format!("b-{number}")).collect();
    let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
    let world = World::builder()
        .node("node-a", backends.iter().copied())
        .outside("laptop")
        .build()?;
    let fleet = Fleet::start(world, &["node-a"], &SIZES, |world, manifests| {
        let service = numbered("web", 1).annotation("kube-portal.io/scheduler", "maglev");
        manifests.service(&service)?;
        slices(world, manifests, "web", &backends)
    })?;
    let laptop = fleet.world.pod("laptop");
    crowd(&fleet.world, laptop)?;
    let to = SocketAddr::new(fleet.world.node("node-a").ip4(), port(1));
    eventually("an answer", || ask(laptop, to))?;
    let before = ask_as_crowd(laptop, CLIENTS, to)?;
    let gone = "b-3";
    let left: Vec<&str> = backends
        .iter()
        .copied()
        .filter(|name| *name != gone)
        .collect();
    let follows = |names: &[&str]| -> Result<()> {
        fleet.set_backends("web", names)?;
        eventually("the maps to follow", || {
            let text = fleet.agent("node-a")?.status()?["frontends"][0]["backends"].clone();
            let chosen = text.as_array().context("backends")?;
            let chosen = chosen.iter().filter(|backend| backend["chosen"] == true);
            ensure!(chosen.count() == names.len());
            Ok(())
        })
    };
    follows(&left)?;
    let without = ask_as_crowd(laptop, CLIENTS, to)?;
    ensure!(without.values().all(|name| name != gone));
    let of_others = || before.iter().filter(|(_, name)| *name != gone);
    let moved = of_others()
        .filter(|(client, name)| without[client] != **name)
        .count();
    let others = of_others().count();
    println!("{moved} of {others} clients of others moved");
    ensure!(moved * 20 <= others, "{moved} of {others} moved");
    follows(&backends)?;
    ensure!(
        before == ask_as_crowd(laptop, CLIENTS, to)?,
        "not all came back"
    );
    Ok(())
}

/// In one of 4^15 runs all addresses would lead to the same backend.
#[test]
fn dh_gives_every_address_one_backend_whoever_dials_it_by_whichever_path() -> Result<()> {
    let addresses: Vec<String> = (1..=16)
        .map(|number| format!("198.51.100.{number}"))
        .collect();
    let fleet = Fleet::start(world(1)?, &["node-a"], &SIZES, |world, manifests| {
        let service = numbered("web", 1)
            .external_ips(&addresses)
            .annotation("kube-portal.io/scheduler", "dh");
        manifests.service(&service)?;
        slices(world, manifests, "web", &BACKENDS)
    })?;
    route_vips(&fleet.world, "laptop", "node-a")?;
    fleet
        .world
        .route("laptop", &["198.51.100.0/24"], "node-a")?;
    let laptop = fleet.world.pod("laptop");
    let mut by_address = BTreeMap::new();
    for ip in &addresses {
        let to = tests::stage::at(ip, 80);
        eventually("an answer", || ask(laptop, to))?;
        let mut names = Vec::new();
        for from in both(&fleet).into_iter().chain([fleet.world.pod("other-0")]) {
            names.extend(in_turn(5, || ask(from, to))?);
        }
        by_address.insert(ip, sole(names)?);
    }
    let all: BTreeSet<&String> = by_address.values().collect();
    ensure!(all.len() > 1, "{by_address:?}");
    // With one address they stand by.
    for to in tcp(1) {
        let names = both(&fleet).map(|from| in_turn(20, || ask(from, to)));
        let [by_socket, by_packet] = names;
        ensure!(sole(by_socket?)? == sole(by_packet?)?);
    }
    Ok(())
}

/// Whether so many in a row go round: by chance once in 4^19 times.
fn goes_round(from: &Pod, to: SocketAddr) -> Result<bool> {
    let names = in_turn(24, || ask(from, to))?;
    let is_round = is_shared_by(&tally(names[..4].to_vec()), &ALIKE).is_ok();
    Ok(is_round && names.chunks(4).all(|next| next == &names[..4]))
}

#[test]
fn an_annotation_comes_before_the_nodes_flag_and_affinity_before_both() -> Result<()> {
    let flags = [&SIZES[..], &["--scheduler", "rr", "--failover", "false"]].concat();
    let scheduler = |number, name: &str| {
        numbered(&format!("web-{number}"), number).annotation("kube-portal.io/scheduler", name)
    };
    let fleet = Fleet::start(world(0)?, &["node-a"], &flags, |world, manifests| {
        manifests.service(&numbered("web-1", 1))?;
        manifests.service(&scheduler(2, "random"))?;
        manifests.service(&scheduler(3, "maglev"))?;
        manifests.service(&scheduler(4, "fastest"))?;
        manifests.service(&numbered("web-5", 5).client_ip_affinity(10_800))?;
        (1..=5).try_for_each(|number| slices(world, manifests, &format!("web-{number}"), &BACKENDS))
    })?;
    route_vips(&fleet.world, "laptop", "node-a")?;
    for from in both(&fleet) {
        for at in 0..2 {
            let to = |number| tcp(number)[at];
            eventually("an answer", || ask(from, to(1)))?;
            ensure!(goes_round(from, to(1))?, "the flag");
            ensure!(!goes_round(from, to(2))?, "random");
            sole(in_turn(20, || ask(from, to(3)))?).context("maglev")?;
            ensure!(goes_round(from, to(4))?, "unknown");
            sole(in_turn(20, || ask(from, to(5)))?).context("affinity")?;
        }
    }
    let agent = fleet.agent("node-a")?;
    agent.wait_line(
        &["default/web-4", "\"fastest\" is not a scheduler", "WARN"],
        PATIENCE,
    )?;
    // A change of the annotation counts from the next connection on; and without it, the flag again.
    let [to, _] = tcp(1);
    for (service, round) in [
        (scheduler(1, "random"), false),
        (numbered("web-1", 1), true),
    ] {
        fleet.manifests.service(&service)?;
        eventually("the change", || {
            let found = goes_round(fleet.world.pod("client"), to)?;
            ensure!(found == round, "{found}");
            Ok(())
        })?;
    }
    Ok(())
}
