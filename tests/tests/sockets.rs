//! What is remembered of connected sockets: all that is needed, and nothing of those that are gone.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::{
    net_error,
    stage::{BACKENDS, PATIENCE, Stage, VIP4, VIP6, answered_by, at, eventually, mapped},
};

fn remembered(stage: &Stage) -> Result<u64> {
    let status = stage.agent.status()?;
    status["maps"]["sockets"]["used"]
        .as_u64()
        .context("no use of sockets")
}

fn remembers(stage: &Stage, wanted: u64) -> Result<()> {
    eventually(&format!("{wanted} sockets to be remembered"), || {
        let found = remembered(stage)?;
        ensure!(found == wanted, "{found}");
        Ok(())
    })
}

#[test]
fn nothing_is_remembered_of_sockets_that_are_closed() -> Result<()> {
    let stage = Stage::usual()?;
    let probe = stage.client().probe();
    for to in [at(VIP4, 80), at(VIP6, 80), mapped(VIP4, 80)] {
        answered_by(&probe.connect_many(to, 100)?, &BACKENDS)?;
        let (one, two) = (probe.connect(to)?, probe.connect(to)?);
        remembers(&stage, 2)?;
        one.close()?;
        remembers(&stage, 1)?;
        two.close()?;
        remembers(&stage, 0)?;
    }
    for to in [at(VIP4, 53), at(VIP6, 53), mapped(VIP4, 53)] {
        answered_by(&probe.udp_connected_many(to, 100)?, &BACKENDS)?;
        let one = probe.udp_connected(to)?;
        // Again, and once elsewhere.
        one.connect(to)?;
        remembers(&stage, 1)?;
        one.connect(std::net::SocketAddr::new(stage.client().ip4(), 9))
            .or_else(|_| one.connect(std::net::SocketAddr::new(stage.client().ip6(), 9)))?;
        remembers(&stage, 0)?;
        one.connect(to)?;
        remembers(&stage, 1)?;
        one.close()?;
        remembers(&stage, 0)?;
    }
    Ok(())
}

#[test]
fn nothing_is_remembered_of_connections_that_fail() -> Result<()> {
    let stage = Stage::usual()?;
    let probe = stage.client().probe();
    stage.set_backends(&[])?;
    for _ in 0..20 {
        ensure!(net_error(probe.connect(at(VIP4, 80)))?.errno == "ECONNREFUSED");
        ensure!(net_error(probe.udp_connected(at(VIP4, 53)))?.errno == "ECONNREFUSED");
    }
    remembers(&stage, 0)?;
    // Translated, and then nobody is there.
    tests::stage::web_slices(&stage.world, &stage.manifests, &BACKENDS)?;
    eventually("the backends to be back", || {
        ensure!(stage.backends_of(VIP4, 80)?.len() == 3);
        Ok(())
    })?;
    for name in BACKENDS {
        stage.world.pod(name).probe().kill();
    }
    for _ in 0..20 {
        ensure!(net_error(probe.connect(at(VIP4, 80)))?.errno == "ECONNREFUSED");
    }
    remembers(&stage, 0)
}

#[test]
fn nothing_is_remembered_of_a_process_that_is_killed() -> Result<()> {
    let stage = Stage::usual()?;
    let probe = stage.client().probe();
    for number in 0..50 {
        probe.connect(at(VIP4, 80))?;
        probe.udp_connected(if number % 2 == 0 {
            at(VIP4, 53)
        } else {
            at(VIP6, 53)
        })?;
    }
    remembers(&stage, 100)?;
    probe.kill();
    remembers(&stage, 0)
}

#[test]
fn what_is_remembered_outlives_the_agent() -> Result<()> {
    let mut stage = Stage::usual()?;
    let probe = stage.world.pod("client").probe();
    let (one, two) = (probe.connect(at(VIP4, 80))?, probe.connect(at(VIP6, 80))?);
    stage.agent.kill();
    ensure!(one.peer_name()? == at(VIP4, 80));
    let three = probe.connect(at(VIP4, 80))?;
    one.close()?;
    stage.agent.restart()?;
    stage.agent.wait_ready(PATIENCE)?;
    ensure!(two.peer_name()? == at(VIP6, 80) && three.peer_name()? == at(VIP4, 80));
    remembers(&stage, 2)
}

#[test]
fn a_full_map_costs_new_sockets_their_view_and_nobody_a_connection() -> Result<()> {
    let mut stage = Stage::usual()?;
    stage.agent.stop()?;
    stage.agent.cleanup()?;
    let source = tests::Source::Manifests(stage.manifests.path().to_owned());
    stage.agent.restart_with(source, &["--max-sockets", "64"])?;
    stage.agent.wait_ready(PATIENCE)?;
    let probe = stage.client().probe();
    let early = probe.connect(at(VIP4, 80))?;
    let many = (0..200)
        .map(|_| probe.connect(at(VIP4, 80)))
        .collect::<Result<Vec<_>>>()?;
    ensure!(stage.counter("socket_not_remembered")? > 0);
    for connection in &many {
        let answer = connection.exchange("x")?;
        ensure!(BACKENDS.contains(&answer.name.as_str()), "{answer:?}");
    }
    ensure!(early.peer_name()? == at(VIP4, 80));
    // Unconnected sockets need none of it.
    let unconnected = probe.udp_bound("0.0.0.0:0".parse::<std::net::SocketAddr>()?)?;
    let within = Duration::from_secs(1);
    let answer = unconnected.exchange_within(Some(at(VIP4, 53)), "x", within)?;
    ensure!(answer.from == at(VIP4, 53), "{answer:?}");
    for connection in many {
        connection.close()?;
    }
    remembers(&stage, 1)?;
    ensure!(probe.connect(at(VIP4, 80))?.peer == at(VIP4, 80));
    Ok(())
}
