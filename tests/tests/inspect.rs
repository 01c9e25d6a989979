//! `kube-portal inspect`: each subcommand shows what has really happened, by name.

use std::{fs, net::SocketAddr};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{
    Agent, World,
    fleet::{Fleet, node_port, slices},
    http,
    stage::{TARGET, VIP4, VIP6, at, eventually},
};

const PORT: u16 = 30_080;

/// The Service `web` on node-a, with affinity, and `near` or `far` behind it.
fn fleet(backend: &str) -> Result<Fleet> {
    let world = World::builder()
        .node("node-a", ["client", "near"])
        .node("node-b", ["far"])
        .outside("laptop")
        .build()?;
    Fleet::start(world, &["node-a"], &[], |world, manifests| {
        let web = node_port("web", [VIP4, VIP6], PORT).client_ip_affinity(10_800);
        manifests.service(&web)?;
        slices(world, manifests, "web", &[backend])
    })
}

/// The lines after the header, in columns.
fn lines(agent: &Agent, args: &[&str]) -> Result<Vec<Vec<String>>> {
    let text = agent.call(&[&["inspect"], args].concat())?;
    let rows = text.lines().skip(1);
    let rows = rows.map(|line| line.split_whitespace().map(str::to_owned).collect());
    Ok(rows.collect())
}

/// The only line, whose columns from the first on are these but for those that are `*`.
fn only(lines: &[Vec<String>], wanted: &str) -> Result<()> {
    let wanted: Vec<&str> = wanted.split(' ').collect();
    let [line] = lines else {
        anyhow::bail!("not one line, wanted {wanted:?}: {lines:#?}");
    };
    let is_right = |(cell, wanted): (&String, &&str)| *wanted == "*" || cell == wanted;
    ensure!(
        line.len() >= wanted.len() && line.iter().zip(&wanted).all(is_right),
        "wanted {wanted:?}: {line:?}"
    );
    Ok(())
}

#[test]
fn frontends_and_backends_have_names_and_need_no_agent() -> Result<()> {
    let mut fleet = fleet("near")?;
    let near = SocketAddr::new(fleet.world.pod("near").ip4(), TARGET);
    fleet.agent_mut("node-a")?.stop()?;
    let agent = fleet.agent("node-a")?;
    let vip = at(VIP4, 80).to_string();
    only(
        &lines(agent, &["frontends", "--address", &vip])?,
        &format!("{vip} TCP ClusterIP default/web:http * translate 1 - 10800s any"),
    )?;
    only(
        &lines(
            agent,
            &[
                "backends",
                "--service",
                "web:http",
                "--address",
                "10.0.0.0/8",
            ],
        )?,
        &format!("{near} TCP default/web:http cluster chosen 0 here"),
    )?;
    ensure!(lines(agent, &["frontends", "-n", "kube-system"])?.is_empty());

    let text = agent.call(&["inspect", "backends", "--service", "default/web", "--json"])?;
    let all: Vec<Value> = serde_json::from_str(&text)?;
    // Two ports in two families.
    ensure!(all.len() == 4, "{text}");
    ensure!(all.iter().all(|one| one["local"] == true), "{text}");
    Ok(())
}

#[test]
fn sockets_shows_what_was_dialled_where_that_led_and_by_whom() -> Result<()> {
    let fleet = fleet("near")?;
    let agent = fleet.agent("node-a")?;
    let client = fleet.world.pod("client");
    let near = SocketAddr::new(fleet.world.pod("near").ip4(), TARGET);
    let (tcp, udp) = (at(VIP4, 80), at(VIP4, 53));
    let _connection = client.connect(tcp)?;
    let connected = client.udp_connected(udp)?;
    let unconnected = client.udp_bound(at("0.0.0.0", 0))?;
    unconnected.exchange_with(udp, "?")?;

    let of = |kind: &str, to: SocketAddr| -> Result<Vec<Vec<String>>> {
        let mut rows = lines(agent, &["sockets", "--address", &to.to_string()])?;
        rows.retain(|row| row[0] == kind);
        Ok(rows)
    };
    only(
        &of("connected", tcp)?,
        &format!("connected TCP {tcp} {near} default/web:http"),
    )?;
    let pid = client.probe().pid().context("a probe")?;
    let command = fs::read_to_string(format!("/proc/{pid}/comm"))?;
    let command = command.trim_end();
    only(
        &of("connected", udp)?,
        &format!("connected UDP {udp} {near} default/web:dns * - * {pid} {command}"),
    )?;
    only(
        &of("sends", udp)?,
        &format!("sends UDP {udp} {near} default/web:dns"),
    )?;
    only(
        &of("hears", udp)?,
        &format!("hears UDP {udp} {near} default/web:dns"),
    )?;

    connected.close()?;
    ensure!(of("connected", udp)?.is_empty(), "it is closed");
    Ok(())
}

#[test]
fn conntrack_shows_both_directions_of_a_flow_from_outside() -> Result<()> {
    let fleet = fleet("far")?;
    let agent = fleet.agent("node-a")?;
    let node = fleet.world.node("node-a").ip4();
    let far = SocketAddr::new(fleet.world.pod("far").ip4(), TARGET);
    let to = SocketAddr::new(node, PORT);
    let connection = fleet.world.pod("laptop").connect(to)?;
    let answer = connection.exchange("?")?;
    let laptop = connection.local;

    // As the backend sees it.
    let snat = answer.client;
    let rows = lines(agent, &["conntrack", "--address", &laptop.to_string()])?;
    let [original, reply] = rows.as_slice() else {
        anyhow::bail!("not two lines: {rows:#?}");
    };
    let end = "established * default/web:http * redirect established";
    only(
        std::slice::from_ref(original),
        &format!("TCP original {laptop} {to} {snat} {far} {end}"),
    )?;
    only(
        std::slice::from_ref(reply),
        &format!("TCP reply {far} {snat} {to} {laptop} {end}"),
    )?;

    connection.close()?;
    eventually("the flow to be closed", || {
        let rows = lines(agent, &["conntrack", "--address", &laptop.to_string()])?;
        ensure!(rows.iter().all(|row| row[6] == "closed"), "{rows:#?}");
        Ok(())
    })
}

#[test]
fn affinity_shows_who_keeps_which_backend_and_for_how_long() -> Result<()> {
    let fleet = fleet("far")?;
    let agent = fleet.agent("node-a")?;
    let laptop = fleet.world.pod("laptop");
    let far = SocketAddr::new(fleet.world.pod("far").ip4(), TARGET);
    laptop
        .connect(SocketAddr::new(fleet.world.node("node-a").ip4(), PORT))?
        .close()?;
    fleet.world.pod("client").connect(at(VIP4, 80))?.close()?;

    let own = laptop.ip4().to_string();
    let rows = lines(agent, &["affinity", "--address", &own])?;
    only(&rows, &format!("{own} TCP default/web:http {far}"))?;
    let seconds = |cell: &str| -> Result<u64> {
        let number = cell.strip_suffix('s').with_context(|| cell.to_owned())?;
        Ok(number.parse()?)
    };
    let (idle, left) = (seconds(&rows[0][5])?, seconds(&rows[0][6])?);
    ensure!(idle + left == 10_800, "{rows:?}");

    let mut rows = lines(agent, &["affinity", "--service", "default/web:http"])?;
    rows.retain(|row| row[0].starts_with("netns:"));
    only(&rows, &format!("* TCP default/web:http {far}"))
}

#[test]
fn counters_shows_what_has_counted_and_all_if_asked() -> Result<()> {
    let fleet = fleet("near")?;
    let agent = fleet.agent("node-a")?;
    let value = |rows: &[Vec<String>], name: &str| {
        let row = rows.iter().find(|row| row[0] == name);
        row.map(|row| row[1].clone())
    };
    fleet.world.pod("client").connect(at(VIP4, 80))?.close()?;
    let counted = lines(agent, &["counters"])?;
    ensure!(
        value(&counted, "connect_translated").as_deref() == Some("1"),
        "{counted:?}"
    );
    ensure!(value(&counted, "table_damaged").is_none(), "{counted:?}");
    let all = lines(agent, &["counters", "--all"])?;
    ensure!(
        value(&all, "table_damaged").as_deref() == Some("0"),
        "{all:?}"
    );
    Ok(())
}

#[test]
fn config_is_that_of_the_running_agent_and_without_one_it_says_how_to_get_it() -> Result<()> {
    let mut fleet = fleet("near")?;
    let agent = fleet.agent("node-a")?;
    let text = agent.call(&["inspect", "config", "--json"])?;
    let shown: Value = serde_json::from_str(&text)?;
    let netns = fleet.world.node("node-a").netns();
    let reply = http::get(netns, at("127.0.0.1", 10_249), "/configz")?;
    ensure!(
        shown == serde_json::from_str::<Value>(&reply.body)?,
        "{text}"
    );
    let rows = lines(agent, &["config"])?;
    let wanted = ["healthzBindAddress", "0.0.0.0:10256"].map(str::to_owned);
    ensure!(rows.contains(&wanted.to_vec()), "{rows:?}");

    fleet.agent_mut("node-a")?.stop()?;
    let error = refused(fleet.agent("node-a")?, &["config"])?;
    ensure!(
        error.contains("exit status: 1") && error.contains("--write-config-to"),
        "{error}"
    );
    Ok(())
}

#[test]
fn what_can_not_be_shown_is_told_in_one_line() -> Result<()> {
    let fleet = fleet("near")?;
    let agent = fleet.agent("node-a")?;
    for args in [
        &["frontends", "--address", "web"][..],
        &["conntrack", "--service", "a/b/c"],
        &["sockets", "-n", ""],
    ] {
        let error = refused(agent, args)?;
        ensure!(error.contains("exit status: 2"), "{error}");
        ensure!(error.lines().count() == 1, "{error}");
    }
    Ok(())
}

#[test]
fn where_nothing_is_pinned_that_is_said() -> Result<()> {
    let mut fleet = fleet("near")?;
    fleet.agent_mut("node-a")?.stop()?;
    let agent = fleet.agent("node-a")?;
    agent.cleanup()?;
    for what in ["frontends", "conntrack", "counters", "config"] {
        let error = refused(agent, &[what])?;
        ensure!(
            error.contains("exit status: 4") && error.contains("nothing of kube-portal is pinned"),
            "{error}"
        );
    }
    Ok(())
}

/// How the subcommand fails.
fn refused(agent: &Agent, args: &[&str]) -> Result<String> {
    match agent.call(&[&["inspect"], args].concat()) {
        Ok(text) => anyhow::bail!("{args:?}: {text}"),
        Err(error) => Ok(format!("{error:#}")),
    }
}
