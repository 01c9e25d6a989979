//! The agent and an API server, from the watch to the socket.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{
    Agent, EndpointSlice, Service, World,
    apiserver::{ApiServer, Gone},
    bpf,
    cluster::{Cluster, object, service, slice},
    probe::{ChurnPlan, ChurnReport},
    stage::{PATIENCE, VIP4, answered_by, at, eventually},
};

const BACKENDS: [&str; 3] = ["backend-1", "backend-2", "backend-3"];

fn web() -> Service {
    Service::new("web", [VIP4]).tcp("http", 80).udp("dns", 53)
}

fn fill(world: &World, server: &ApiServer, backends: &[&str]) {
    server.apply(service(&web()));
    server.apply(slice(world, "web", backends));
}

fn usual() -> Result<Cluster> {
    Cluster::new(&BACKENDS, |world, server| {
        fill(world, server, &BACKENDS);
        Ok(())
    })
}

fn served_by(cluster: &Cluster, names: &[&str]) -> Result<()> {
    eventually(&format!("to be served by {names:?}"), || {
        let probe = cluster.client().probe();
        answered_by(&probe.connect_many(at(VIP4, 80), 60)?, names)?;
        answered_by(&probe.udp_many(at(VIP4, 53), 60)?, names)
    })
}

fn churn_plan() -> ChurnPlan {
    ChurnPlan::new(at(VIP4, 80), BACKENDS)
}

fn flawless(report: &ChurnReport) -> Result<()> {
    ensure!(
        report.tally.failed() == 0 && report.misdirected.is_empty() && report.attempts > 0,
        "{report:?}"
    );
    Ok(())
}

#[test]
fn what_is_listed_is_served_and_what_changes_follows() -> Result<()> {
    let cluster = usual()?;
    served_by(&cluster, &BACKENDS)?;
    cluster.server.apply(cluster.slice("web", &["backend-2"]));
    served_by(&cluster, &["backend-2"])?;
    cluster.server.apply(service(
        &Service::new("more", ["10.96.0.20"]).tcp("http", 80),
    ));
    cluster.server.apply(cluster.slice("more", &["backend-3"]));
    let probe = cluster.client().probe();
    eventually("the new Service to be served", || {
        answered_by(
            &probe.connect_many(at("10.96.0.20", 80), 10)?,
            &["backend-3"],
        )
    })?;
    ensure!(cluster.server.delete("EndpointSlice", "default", "more-4"));
    eventually("it to be refused without its slice", || {
        let error = tests::net_error(probe.connect(at("10.96.0.20", 80)))?;
        ensure!(error.errno == "ECONNREFUSED", "{error}");
        Ok(())
    })?;
    ensure!(cluster.server.delete("Service", "default", "more"));
    eventually("it to be gone", || {
        let status = cluster.agent.status()?;
        ensure!(!status.to_string().contains("10.96.0.20"), "{status}");
        Ok(())
    })?;
    served_by(&cluster, &["backend-2"])
}

#[test]
fn nothing_is_written_before_both_kinds_are_listed() -> Result<()> {
    for (held, listed) in [
        ("endpointslices", "services"),
        ("services", "endpointslices"),
    ] {
        let cluster = Cluster::unsynced(&BACKENDS, |world, server| {
            fill(world, server, &BACKENDS);
            server.hold(Some(held));
            Ok(())
        })?;
        // Who watches has listed before.
        cluster
            .server
            .wait_until("the other list", |server| server.watches(listed) == 1);
        ensure!(cluster.server.watches(held) == 0);
        let status = eventually("the maps to be there", || cluster.agent.status())?;
        ensure!(
            status["frontends"].as_array().is_some_and(Vec::is_empty),
            "{status}"
        );
        for (hook, programs) in bpf::attached(cluster.world.node("node-a").cgroup())? {
            ensure!(programs.is_empty(), "hook {hook}: {programs:?}");
        }
        ensure!(cluster.agent.count_log("first sync done") == 0);
        cluster.server.hold(None);
        cluster.agent.wait_ready(PATIENCE)?;
        served_by(&cluster, &BACKENDS).with_context(|| format!("{held} were held"))?;
    }
    Ok(())
}

/// What leads where, whatever goes there at the moment.
fn translated(agent: &Agent) -> Result<Value> {
    fn without_counts(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.remove("active");
                fields.values_mut().for_each(without_counts);
            }
            Value::Array(items) => items.iter_mut().for_each(without_counts),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let mut frontends = agent.status()?["frontends"].take();
    without_counts(&mut frontends);
    Ok(frontends)
}

#[test]
fn a_restarted_agent_touches_nothing_while_a_list_is_outstanding() -> Result<()> {
    for (held, listed) in [
        ("endpointslices", "services"),
        ("services", "endpointslices"),
    ] {
        let mut cluster = usual()?;
        let before = translated(&cluster.agent)?;
        let churn = cluster.world.pod("client").probe().churn(churn_plan())?;
        cluster.agent.kill();
        cluster
            .server
            .wait_until("the old watch to end", |server| server.watches(listed) == 0);
        cluster.server.hold(Some(held));
        cluster.agent.restart()?;
        cluster
            .server
            .wait_until("the other list", |server| server.watches(listed) == 1);
        churn.wait_attempts(200, PATIENCE)?;
        ensure!(translated(&cluster.agent)? == before);
        cluster.server.hold(None);
        cluster.agent.wait_ready(PATIENCE)?;
        churn.wait_attempts(200, PATIENCE)?;
        ensure!(translated(&cluster.agent)? == before);
        flawless(&churn.stop()?).with_context(|| format!("{held} were held"))?;
    }
    Ok(())
}

#[test]
fn cut_connections_and_a_forgotten_history_lose_nothing() -> Result<()> {
    let cluster = usual()?;
    let churn = cluster.client().probe().churn(churn_plan())?;
    for round in 0..9 {
        let only = BACKENDS[round % BACKENDS.len()];
        let change = cluster.slice("web", &[only]);
        match round % 4 {
            // Changed while nobody watches.
            0 => {
                cluster.server.cut();
                cluster.server.apply(change);
            }
            // And the change can't be learned from the history.
            1 | 3 => {
                let how = if round == 1 {
                    Gone::Status
                } else {
                    Gone::Event
                };
                cluster.server.tell_gone(how);
                cluster.server.cut();
                cluster.server.apply(change);
                cluster.server.compact();
            }
            _ => {
                cluster.server.expire_watches();
                cluster.server.apply(change);
                cluster.server.fail_next(2, 500);
            }
        }
        served_by(&cluster, &[only]).with_context(|| format!("round {round}"))?;
    }
    flawless(&churn.stop()?)
}

#[test]
fn while_the_server_is_gone_everything_stays_and_what_changed_follows_when_it_is_back() -> Result<()>
{
    let mut cluster = usual()?;
    let before = translated(&cluster.agent)?;
    let probe = |cluster: &Cluster| -> Result<()> {
        let tally = cluster.client().probe().connect_many(at(VIP4, 80), 60)?;
        answered_by(&tally, &BACKENDS)
    };
    let metric = |cluster: &Cluster| -> Result<f64> {
        let netns = cluster.world.node("node-a").netns();
        let metrics = tests::http::get(netns, at("127.0.0.1", 10249), "/metrics")?;
        let line = metrics
            .body
            .lines()
            .find_map(|line| line.strip_prefix("kube_portal_state_stale_seconds "));
        Ok(line.context("no such metric")?.parse()?)
    };
    let followed = |cluster: &Cluster| -> Result<Value> {
        Ok(cluster.agent.status()?["agent"]["api_server"].take())
    };
    ensure!(metric(&cluster)? == 0.0);
    ensure!(followed(&cluster)?["stale_secs"] == Value::Null);
    cluster.stop_server()?;
    cluster.agent.wait_line(
        &["WARN", "API server http://", "last known state is kept"],
        PATIENCE,
    )?;
    ensure!(metric(&cluster)? > 0.0);
    let told = followed(&cluster)?;
    ensure!(
        told["stale_secs"].is_u64()
            && told["reason"]
                .as_str()
                .is_some_and(|reason| reason.contains("refused")),
        "{told}"
    );
    // For all watches together, and not in the words of a library.
    ensure!(cluster.agent.count_log("WARN ] API server") == 1);
    ensure!(cluster.agent.count_log("eof in poll") == 0);
    probe(&cluster)?;
    ensure!(translated(&cluster.agent)? == before);

    // An agent that comes while the server is gone adopts, and waits.
    cluster.agent.kill();
    cluster.agent.restart()?;
    cluster.agent.wait_log("adopting 2 frontends", PATIENCE)?;
    cluster.agent.wait_line(&["WARN", "API server"], PATIENCE)?;
    probe(&cluster)?;
    ensure!(translated(&cluster.agent)? == before);
    ensure!(cluster.agent.count_log("first sync done") == 0);

    cluster.start_server(|world, server| fill(world, server, &["backend-3"]))?;
    cluster.agent.wait_ready(PATIENCE)?;
    served_by(&cluster, &["backend-3"])?;
    eventually("all kinds to be followed", || {
        let told = followed(&cluster)?;
        ensure!(
            told["server"].is_string() && told["stale_secs"] == Value::Null,
            "{told}"
        );
        ensure!(metric(&cluster)? == 0.0);
        Ok(())
    })
}

/// `default/kubernetes`, and the API server as its only endpoint.
fn api_server(endpoint: Option<SocketAddr>) -> [Value; 2] {
    let service = Service::new("kubernetes", ["10.96.0.1"]).tcp("https", 443);
    let mut slice = EndpointSlice::v4("kubernetes", "kubernetes");
    if let Some(endpoint) = endpoint {
        slice = slice
            .tcp("https", endpoint.port())
            .ready(endpoint.ip(), "node-a");
    }
    [tests::cluster::service(&service), object(&slice.yaml())]
}

/// Whoever can reach the API server only through what it programs itself.
#[test]
fn behind_its_own_cluster_ip_the_api_server_is_found_again() -> Result<()> {
    let world = World::builder().node("node-a", ["client"]).build()?;
    let node = world.node("node-a");
    let listen = |at: SocketAddr| -> Result<TcpListener> {
        Ok(node.netns().enter(|| TcpListener::bind(at))??)
    };
    let server = ApiServer::start(listen(SocketAddr::new(node.ip4(), 0))?)?;
    let endpoint = server.addr();
    let apply = |server: &ApiServer, endpoint| {
        api_server(endpoint)
            .into_iter()
            .for_each(|it| server.apply(it))
    };
    apply(&server, Some(endpoint));
    let kubeconfig = world.dir().join("kubeconfig");
    let leads_to = |at: &str| server.kubeconfig_to(&kubeconfig, &format!("http://{at}"));
    let room = ["--max-services", "1024", "--max-backends", "1024"];

    // Nothing is programmed yet: it has to be told where an API server is.
    leads_to("10.96.0.1:443")?;
    let told = format!("http://192.168.50.1:1,http://{endpoint}");
    let first = [&room[..], &["--apiserver", &told]].concat();
    let source = tests::Source::Kubeconfig(kubeconfig.clone());
    let mut agent = node.start_agent_with(source.clone(), &first)?;
    agent.wait_ready(PATIENCE)?;

    // What it has programmed leads there.
    agent.restart_with(source.clone(), &room)?;
    agent.wait_ready(PATIENCE)?;
    ensure!(agent.status()?["agent"]["api_server"]["server"] == "http://10.96.0.1:443/");

    // An address that is out of date is made up for by what is remembered.
    leads_to("192.168.50.1:1")?;
    agent.restart_with(source.clone(), &room)?;
    agent.wait_ready(PATIENCE)?;
    ensure!(agent.status()?["agent"]["api_server"]["server"] == format!("http://{endpoint}/"));

    // The API server stops: it takes itself out first. Its address must not become one that refuses.
    leads_to("10.96.0.1:443")?;
    agent.restart_with(source.clone(), &room)?;
    agent.wait_ready(PATIENCE)?;
    apply(&server, None);
    server.apply(service(&web()));
    eventually("the last change to be there", || {
        ensure!(agent.status()?.to_string().contains("default/web:http"));
        Ok(())
    })?;
    drop(server);
    agent.kill();
    agent.restart()?;
    agent.wait_line(&["WARN", "API server http://"], PATIENCE)?;
    let listener = eventually("the address to be free", || listen(endpoint))?;
    let server = ApiServer::start_with(listener, |server| apply(server, None))?;
    agent.wait_ready(PATIENCE)?;
    drop((agent, server));
    Ok(())
}

#[test]
fn a_node_that_the_server_does_not_know_is_told_and_the_rest_works() -> Result<()> {
    let cluster = usual()?;
    cluster
        .agent
        .wait_line(&["WARN", "none of this name", "--node-name"], PATIENCE)?;
    served_by(&cluster, &BACKENDS)
}

/// A list of many, in pages, becomes one sync.
#[test]
fn a_thousand_services_come_in_with_one_sync() -> Result<()> {
    let cluster = Cluster::new(&BACKENDS, |world, server| {
        fill(world, server, &BACKENDS);
        for number in 0..1000 {
            let name = format!("many-{number}");
            let vip = format!("10.97.{}.{}", number / 250, number % 250 + 1);
            server.apply(service(&Service::new(&name, [vip]).tcp("http", 80)));
            server.apply(slice(world, &name, &["backend-2"]));
        }
        Ok(())
    })?;
    cluster
        .agent
        .wait_log("first sync done: 1001 Services", PATIENCE)?;
    let probe = cluster.client().probe();
    for vip in ["10.97.0.1", "10.97.1.250", "10.97.3.250"] {
        answered_by(&probe.connect_many(at(vip, 80), 5)?, &["backend-2"])?;
    }
    served_by(&cluster, &BACKENDS)
}
