//! NodePorts, for what runs on the node itself: pods and processes, through the socket path.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result, ensure};
use tests::{
    Pod, Service, net_error,
    probe::Proto,
    stage::{BACKENDS, Stage, VIP4, VIP6, answered_by, at, eventually, mapped, web_slices},
};

const NODE_PORT: u16 = 30080;

fn stage(node_port: u16) -> Result<Stage> {
    Stage::new(|world, manifests| {
        manifests.service(&service(node_port))?;
        web_slices(world, manifests, &BACKENDS)
    })
}

fn service(node_port: u16) -> Service {
    Service::new("web", [VIP4, VIP6])
        .kind("NodePort")
        .port("http", "TCP", 80, Some(node_port))
        .port("dns", "UDP", 53, Some(node_port))
}

/// The kind of every frontend with this port, by address.
fn addresses_of(stage: &Stage, port: u16) -> Result<Vec<IpAddr>> {
    let status = stage.agent.status()?;
    let frontends = status["frontends"].as_array().context("frontends")?;
    frontends
        .iter()
        .filter(|frontend| frontend["port"] == port && frontend["protocol"] == "TCP")
        .map(|frontend| {
            ensure!(frontend["kind"] == "NodePort", "{frontend}");
            Ok(frontend["address"]
                .as_str()
                .context("an address")?
                .parse()?)
        })
        .collect()
}

#[test]
fn it_answers_on_the_nodes_addresses_to_pods_and_to_the_node() -> Result<()> {
    let stage = stage(NODE_PORT)?;
    let node = stage.world.node("node-a");
    for ip in [node.ip4(), node.ip6()] {
        eventually("the node's address", || {
            let known = addresses_of(&stage, NODE_PORT)?;
            ensure!(known.contains(&ip), "{ip} not in {known:?}");
            Ok(())
        })?;
        let to = SocketAddr::new(ip, NODE_PORT);
        for from in [stage.client(), node.host()] {
            answered_by(&from.probe().connect_many(to, 60)?, &BACKENDS)?;
            answered_by(&from.probe().udp_many(to, 60)?, &BACKENDS)?;
            let connection = from.probe().connect(to)?;
            ensure!(connection.peer == to, "{} is not {to}", connection.peer);
        }
    }
    Ok(())
}

#[test]
fn on_localhost_it_answers_to_the_node_and_is_the_pods_own_in_a_pod() -> Result<()> {
    let stage = stage(NODE_PORT)?;
    let host = stage.world.node("node-a").host();
    for to in [
        at("127.0.0.1", NODE_PORT),
        at("::1", NODE_PORT),
        mapped("127.0.0.1", NODE_PORT),
    ] {
        answered_by(&host.probe().connect_many(to, 60)?, &BACKENDS)?;
        answered_by(&host.probe().udp_many(to, 60)?, &BACKENDS)?;
        let error = net_error(stage.client().probe().connect(to))?;
        ensure!(error.errno == "ECONNREFUSED", "{error}");
    }
    // What listens there in the pod is reached.
    let own = at("127.0.0.1", NODE_PORT);
    let _server = stage.client().probe().serve(Proto::Tcp, own, "client")?;
    answered_by(&stage.client().probe().connect_many(own, 10)?, &["client"])
}

#[test]
fn another_nodes_address_is_not_captured() -> Result<()> {
    let stage = stage(NODE_PORT)?;
    let other = stage.world.node("node-b");
    let to = SocketAddr::new(other.ip4(), NODE_PORT);
    let _server = other.host().probe().serve(Proto::Tcp, to, "node-b")?;
    answered_by(&stage.client().probe().connect_many(to, 20)?, &["node-b"])
}

fn binds(pod: &Pod, to: SocketAddr) -> Result<Result<(), Option<i32>>> {
    pod.netns()
        .enter(|| std::net::TcpListener::bind(to).map(drop))
        .map(|result| result.map_err(|error: io::Error| error.raw_os_error()))
}

#[test]
fn a_live_node_port_can_not_be_bound_on_the_node() -> Result<()> {
    let stage = stage(NODE_PORT)?;
    let node = stage.world.node("node-a");
    let everywhere = ["0.0.0.0", "::", "127.0.0.1", "::1"].map(|ip| at(ip, NODE_PORT));
    let refused = |pod: &Pod, to: SocketAddr| -> Result<()> {
        let error = net_error(pod.probe().serve(Proto::Tcp, to, "x"))?;
        ensure!(error.errno == "EADDRINUSE", "{to}: {error}");
        let error = net_error(pod.probe().serve(Proto::Udp, to, "x"))?;
        ensure!(error.errno == "EADDRINUSE", "{to}: {error}");
        Ok(())
    };
    for to in everywhere {
        refused(node.host(), to)?;
    }
    refused(node.host(), SocketAddr::new(node.ip4(), NODE_PORT))?;
    // Another port, and the same port in a pod, are free.
    let _other = node
        .host()
        .probe()
        .serve(Proto::Tcp, at("0.0.0.0", NODE_PORT + 1), "x")?;
    for to in everywhere {
        let server = stage.client().probe().serve(Proto::Tcp, to, "x")?;
        server.stop()?;
    }
    // Programs see the sockets of the node's cgroup only: this thread is not in it.
    ensure!(binds(node.host(), at("0.0.0.0", NODE_PORT))? == Ok(()));

    // The port is free again as soon as it is no NodePort any more.
    stage.manifests.service(&service(NODE_PORT + 7))?;
    eventually("the old port to be free", || {
        node.host()
            .probe()
            .serve(Proto::Tcp, at("0.0.0.0", NODE_PORT), "x")?
            .stop()
    })?;
    refused(node.host(), at("0.0.0.0", NODE_PORT + 7))
}

#[test]
fn a_changed_node_port_answers_and_the_old_one_is_refused() -> Result<()> {
    let stage = stage(NODE_PORT)?;
    let host = stage.world.node("node-a").host();
    answered_by(
        &host.probe().connect_many(at("127.0.0.1", NODE_PORT), 60)?,
        &BACKENDS,
    )?;
    stage.manifests.service(&service(31000))?;
    eventually("the new port", || {
        answered_by(
            &host.probe().connect_many(at("127.0.0.1", 31000), 60)?,
            &BACKENDS,
        )
    })?;
    let error = net_error(host.probe().connect(at("127.0.0.1", NODE_PORT)))?;
    ensure!(error.errno == "ECONNREFUSED", "{error}");
    Ok(())
}

#[test]
fn addresses_of_the_node_are_followed() -> Result<()> {
    let stage = stage(NODE_PORT)?;
    let node = stage.world.node("node-a");
    let new: IpAddr = "192.0.2.77".parse()?;
    let answers = |wanted: bool| {
        eventually("the address to come or go", || {
            let known = addresses_of(&stage, NODE_PORT)?;
            ensure!(known.contains(&new) == wanted, "{known:?}");
            Ok(())
        })
    };
    answers(false)?;
    node.netns().ip(&format!("address add {new}/32 dev lo\n"))?;
    answers(true)?;
    let to = SocketAddr::new(new, NODE_PORT);
    answered_by(&stage.client().probe().connect_many(to, 60)?, &BACKENDS)?;
    node.netns().ip(&format!("address del {new}/32 dev lo\n"))?;
    answers(false)
}

#[test]
fn only_chosen_addresses_answer() -> Result<()> {
    let mut stage = stage(NODE_PORT)?;
    let node = stage.world.node("node-a");
    let own = node.ip4();
    node.netns().ip("address add 192.0.2.77/32 dev lo\n")?;
    stage.agent.stop()?;
    stage.agent.restart_with(
        tests::Source::Manifests(stage.manifests.path().to_owned()),
        &["--nodeport-addresses", "192.0.2.0/24"],
    )?;
    stage.agent.wait_ready(tests::stage::PATIENCE)?;
    eventually("the chosen address alone", || {
        let known = addresses_of(&stage, NODE_PORT)?;
        ensure!(
            known.contains(&"192.0.2.77".parse()?) && !known.contains(&own),
            "{known:?}"
        );
        Ok(())
    })
}
