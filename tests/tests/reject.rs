//! No endpoints: refused at once, whatever the address; and what was open stays open.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tests::{
    EndpointSlice, ManifestDir, Service, World, net_error,
    probe::client::Connection,
    stage::{BACKENDS, Stage, TARGET, VIP4, VIP6, answered_by, at, eventually, mapped, web_slices},
};

const AT_ONCE: Duration = Duration::from_secs(1);

const V4: [&str; 3] = [VIP4, "198.51.100.7", "203.0.113.9"];
const V6: [&str; 3] = [VIP6, "2001:db8::7", "2001:db8::9"];

/// ClusterIP, external IP and load balancer, in both families and by mapped address.
fn every_address(port: u16) -> Vec<SocketAddr> {
    let v4 = V4.iter().map(|ip| at(ip, port));
    let v6 = V6.iter().map(|ip| at(ip, port));
    let mapped = V4.iter().map(|ip| mapped(ip, port));
    v4.chain(v6).chain(mapped).collect()
}

fn web(manifests: &ManifestDir) -> Result<()> {
    manifests.service(
        &Service::new("web", [VIP4, VIP6])
            .tcp("http", 80)
            .udp("dns", 53)
            .kind("LoadBalancer")
            .external_ips([V4[1], V6[1]])
            .load_balancer([V4[2], V6[2]]),
    )
}

fn stage_with(backends: &[&str]) -> Result<Stage> {
    Stage::new(|world, manifests| {
        web(manifests)?;
        web_slices(world, manifests, backends)
    })
}

fn refused<T: std::fmt::Debug>(what: &str, attempt: impl FnOnce() -> Result<T>) -> Result<()> {
    let start = Instant::now();
    let error = net_error(attempt()).context(what.to_owned())?;
    let elapsed = start.elapsed();
    ensure!(
        error.errno == "ECONNREFUSED" && elapsed < AT_ONCE,
        "{what}: {error}, {elapsed:?}"
    );
    Ok(())
}

/// Every way to dial, at every address.
fn all_refused(stage: &Stage) -> Result<()> {
    let probe = stage.client().probe();
    for to in every_address(80) {
        refused(&format!("TCP connect {to}"), || probe.connect(to))?;
    }
    for to in every_address(53) {
        refused(&format!("UDP connect {to}"), || probe.udp_connected(to))?;
        let any = if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
        let socket = probe.udp_bound(any.parse::<SocketAddr>()?)?;
        refused(&format!("UDP sendto {to}"), || {
            socket.exchange_with(to, "x")
        })?;
    }
    Ok(())
}

fn all_answered(stage: &Stage, by: &[&str]) -> Result<()> {
    let probe = stage.client().probe();
    for to in every_address(80) {
        answered_by(&probe.connect_many(to, 60)?, by).with_context(|| format!("TCP {to}"))?;
    }
    for to in every_address(53) {
        answered_by(&probe.udp_many(to, 60)?, by).with_context(|| format!("UDP {to}"))?;
        answered_by(&probe.udp_connected_many(to, 30)?, by)
            .with_context(|| format!("connected UDP {to}"))?;
    }
    Ok(())
}

/// Until every frontend says so.
fn verdict_is(stage: &Stage, verdict: &str) -> Result<()> {
    eventually(&format!("every frontend to {verdict}"), || {
        let status = stage.agent.status()?;
        let frontends = status["frontends"].as_array().context("no frontends")?;
        ensure!(frontends.len() == 2 * (V4.len() + V6.len()), "{status}");
        ensure!(
            frontends.iter().all(|f| f["verdict"] == verdict),
            "{frontends:?}"
        );
        Ok(())
    })
}

#[test]
fn a_service_without_any_slice_refuses_at_once_on_every_address() -> Result<()> {
    let stage = Stage::new(|_, manifests| web(manifests))?;
    all_refused(&stage)?;
    ensure!(stage.counter("connect_refused")? > 0 && stage.counter("send_refused")? > 0);
    Ok(())
}

#[test]
fn a_service_comes_back_with_its_first_endpoint_and_refuses_after_its_last() -> Result<()> {
    let stage = stage_with(&[])?;
    for round in 0..3 {
        all_refused(&stage).with_context(|| format!("round {round}"))?;
        stage.set_backends(&["backend-2"])?;
        verdict_is(&stage, "translate")?;
        all_answered(&stage, &["backend-2"]).with_context(|| format!("round {round}"))?;
        stage.set_backends(&[])?;
        verdict_is(&stage, "refuse")?;
    }
    all_refused(&stage)
}

#[test]
fn a_deleted_slice_is_as_good_as_an_empty_one() -> Result<()> {
    let stage = stage_with(&BACKENDS)?;
    all_answered(&stage, &BACKENDS)?;
    stage.manifests.remove("default-web-4.slice.yaml")?;
    stage.manifests.remove("default-web-6.slice.yaml")?;
    verdict_is(&stage, "refuse")?;
    all_refused(&stage)
}

/// (ready, serving, terminating) of each backend in turn.
fn conditions(
    world: &World,
    manifests: &ManifestDir,
    conditions: &[(bool, bool, bool)],
) -> Result<()> {
    let mut v4 = EndpointSlice::v4("web", "web-4")
        .tcp("http", TARGET)
        .udp("dns", TARGET);
    let mut v6 = EndpointSlice::v6("web", "web-6")
        .tcp("http", TARGET)
        .udp("dns", TARGET);
    for (name, &(ready, serving, terminating)) in BACKENDS.iter().zip(conditions) {
        let pod = world.pod(name);
        v4 = v4.endpoint(pod.ip4(), "node-a", ready, serving, terminating);
        v6 = v6.endpoint(pod.ip6(), "node-a", ready, serving, terminating);
    }
    manifests.slice(&v4)?;
    manifests.slice(&v6)
}

#[test]
fn an_endpoint_that_is_not_ready_is_not_used() -> Result<()> {
    const READY: (bool, bool, bool) = (true, true, false);
    const UNREADY: (bool, bool, bool) = (false, false, false);
    const NOT_YET: (bool, bool, bool) = (false, true, false);
    const DEAD: (bool, bool, bool) = (false, false, true);
    let stage = Stage::new(|world, manifests| {
        web(manifests)?;
        conditions(world, manifests, &[UNREADY, READY, DEAD])
    })?;
    all_answered(&stage, &["backend-2"])?;
    // Serving alone is not enough either: it must be terminating as well to be the last resort.
    conditions(&stage.world, &stage.manifests, &[UNREADY, NOT_YET, DEAD])?;
    verdict_is(&stage, "refuse")?;
    all_refused(&stage)?;
    conditions(&stage.world, &stage.manifests, &[READY, UNREADY, READY])?;
    verdict_is(&stage, "translate")?;
    all_answered(&stage, &["backend-1", "backend-3"])
}

#[test]
fn endpoints_that_terminate_and_still_serve_are_the_last_resort() -> Result<()> {
    const READY: (bool, bool, bool) = (true, true, false);
    const LEAVING: (bool, bool, bool) = (false, true, true);
    let stage = Stage::new(|world, manifests| {
        web(manifests)?;
        conditions(world, manifests, &[LEAVING, READY, LEAVING])
    })?;
    all_answered(&stage, &["backend-2"])?;
    conditions(&stage.world, &stage.manifests, &[LEAVING, LEAVING])?;
    eventually("those that leave are used", || {
        all_answered(&stage, &["backend-1", "backend-2"])
    })
}

fn still_open(connections: &[Connection<'_>], names: &[String], after: &str) -> Result<()> {
    for (connection, name) in connections.iter().zip(names) {
        let answer = connection
            .exchange("still there")
            .with_context(|| format!("after {after}: connection to {}", connection.peer))?;
        ensure!(answer.name == *name, "after {after}: {answer:?}");
        // What it dialled, however often it asks.
        let peer = connection.peer_name()?;
        ensure!(peer == connection.peer, "after {after}: {peer}");
    }
    Ok(())
}

#[test]
fn an_open_tcp_connection_survives_whatever_becomes_of_its_service() -> Result<()> {
    let mut stage = stage_with(&BACKENDS)?;
    let manifests = ManifestDir::at(stage.manifests.path())?;
    let world = &stage.world;
    let connections = every_address(80)
        .into_iter()
        .map(|to| world.pod("client").probe().connect(to))
        .collect::<Result<Vec<_>>>()?;
    let names = connections
        .iter()
        .map(|connection| Ok(connection.exchange("who")?.name))
        .collect::<Result<Vec<String>>>()?;

    web_slices(world, &manifests, &[])?;
    verdict_is(&stage, "refuse")?;
    all_refused(&stage)?;
    still_open(&connections, &names, "the endpoints were removed")?;

    manifests.service(&Service::new("web", [VIP4, VIP6]).tcp("http", 81))?;
    eventually("the port to change", || {
        ensure!(stage.frontend(VIP4, 80)?.is_none() && stage.frontend(VIP4, 81)?.is_some());
        Ok(())
    })?;
    still_open(&connections, &names, "the port was changed")?;

    manifests.remove("default-web.yaml")?;
    eventually("the Service to go", || {
        ensure!(stage.frontend(VIP4, 81)?.is_none());
        Ok(())
    })?;
    still_open(&connections, &names, "the Service was deleted")?;

    stage.agent.stop()?;
    still_open(&connections, &names, "the agent stopped")?;
    stage.agent.restart()?;
    stage.agent.wait_ready(tests::stage::PATIENCE)?;
    still_open(&connections, &names, "the agent came back")
}
