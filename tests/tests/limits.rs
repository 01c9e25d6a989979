//! What is not for everybody, or for nobody: undefined ports of a ClusterIP, source ranges,
//! ServiceCIDRs, and lists of this node. What the socket path makes of them, and what is in the maps.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::{
    EndpointSlice, ManifestDir, Pod, Service,
    cluster::{Cluster, service},
    net_error,
    stage::{
        BACKENDS, PATIENCE, Stage, TARGET, VIP4, VIP6, answered_by, at, eventually, mapped,
        web_slices,
    },
};

const LB4: &str = "203.0.113.9";
const LB6: &str = "2001:db8::9";
const POD_CIDRS: &str = "\"10.1.0.0/16\", \"fd10:1::/32\"";

fn refused(pod: &Pod, port: u16) -> Result<()> {
    for to in [at(VIP4, port), at(VIP6, port), mapped(VIP4, port)] {
        let error = net_error(pod.probe().connect(to))?;
        ensure!(error.errno == "ECONNREFUSED", "TCP {to}: {error}");
        let error = net_error(pod.probe().udp_connected(to))?;
        ensure!(error.errno == "ECONNREFUSED", "connected UDP {to}: {error}");
        let any = if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
        let socket = pod.probe().udp_bound(any.parse::<SocketAddr>()?)?;
        let error = net_error(socket.exchange_with(to, "x"))?;
        ensure!(error.errno == "ECONNREFUSED", "UDP {to}: {error}");
    }
    Ok(())
}

#[test]
fn an_undefined_port_of_a_cluster_ip_is_refused_at_once_and_what_was_one_is_not() -> Result<()> {
    let stage = Stage::usual()?;
    let host = stage.world.node("node-a").host();
    refused(stage.client(), 81)?;
    refused(host, 81)?;
    ensure!(stage.counter("connect_undefined_port")? == 12);
    ensure!(stage.counter("send_undefined_port")? == 6);
    // Each protocol has its own ports.
    let error = net_error(stage.client().probe().connect(at(VIP4, 53)))?;
    ensure!(error.errno == "ECONNREFUSED", "{error}");
    answered_by(
        &stage.client().probe().connect_many(at(VIP4, 80), 60)?,
        &BACKENDS,
    )?;

    stage.manifests.remove("default-web.yaml")?;
    eventually("nothing to be left", || {
        let maps = &stage.agent.status()?["maps"];
        ensure!(maps["frontends"]["used"] == 0, "{maps}");
        Ok(())
    })
}

#[test]
fn an_sctp_port_of_which_pods_get_nothing_is_told_of_once() -> Result<()> {
    let service = Service::new("web", [VIP4, VIP6])
        .tcp("http", 80)
        .port("s1", "SCTP", 36_412, None);
    let stage = Stage::new(|_, manifests| manifests.service(&service))?;
    let line = "default/web:s1 is SCTP: clients outside reach it, pods do not";
    stage.agent.wait_log(line, PATIENCE)?;
    let changed = service.tcp("more", 81);
    stage.manifests.service(&changed)?;
    eventually("the change", || {
        stage.frontend(VIP4, 81)?.context("no port 81").map(drop)
    })?;
    ensure!(stage.agent.count_log("is SCTP") == 1);
    Ok(())
}

fn balanced(ranges: &str) -> Service {
    Service::new("web", [VIP4, VIP6])
        .tcp("http", 80)
        .udp("dns", 53)
        .kind("LoadBalancer")
        .load_balancer([LB4, LB6])
        .spec(&format!("loadBalancerSourceRanges: [{ranges}]"))
}

fn node(manifests: &ManifestDir, stage: &tests::World) -> Result<()> {
    let node = stage.node("node-a");
    manifests.write(
        "node.yaml",
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: node-a}}\nspec: {{podCIDRs: [{POD_CIDRS}]}}\n\
             status: {{addresses: [{{type: InternalIP, address: \"{}\"}}, {{type: InternalIP, address: \"{}\"}}]}}\n",
            node.ip4(),
            node.ip6()
        ),
    )
}

/// Whether pods and the node are let through to the load balancer's addresses.
fn admits(stage: &Stage, wanted_pods: bool, wanted_node: bool) -> Result<()> {
    eventually("the ranges to be those", || {
        for ip in [LB4, LB6] {
            let frontend = stage.frontend(ip, 80)?.context("no frontend")?;
            let ranges = &frontend["source_ranges"];
            ensure!(
                ranges["pods_allowed"] == wanted_pods && ranges["node_allowed"] == wanted_node,
                "{frontend}"
            );
        }
        Ok(())
    })?;
    let host = stage.world.node("node-a").host();
    for (pod, admitted) in [(stage.client(), wanted_pods), (host, wanted_node)] {
        for ip in [LB4, LB6] {
            let before = stage.counter("connect_not_allowed")?;
            if admitted {
                answered_by(&pod.probe().connect_many(at(ip, 80), 60)?, &BACKENDS)?;
                answered_by(&pod.probe().udp_many(at(ip, 53), 60)?, &BACKENDS)?;
                ensure!(stage.counter("connect_not_allowed")? == before);
            } else {
                // The address stays as it is: UDP sockets say whom they are connected to.
                let socket = pod.probe().udp_connected(at(ip, 53));
                ensure!(socket.is_ok() || net_error(socket).is_ok());
                ensure!(stage.counter("connect_not_allowed")? == before + 1);
            }
        }
        // The ClusterIP is for all.
        answered_by(&pod.probe().connect_many(at(VIP4, 80), 60)?, &BACKENDS)?;
    }
    Ok(())
}

#[test]
fn source_ranges_admit_pods_and_the_node_by_their_own() -> Result<()> {
    let mut stage = Stage::new(|world, manifests| {
        node(manifests, world)?;
        manifests.service(&balanced("\"192.0.2.0/24\", \"2001:db8:5::/48\""))?;
        web_slices(world, manifests, &BACKENDS)
    })?;
    admits(&stage, false, false)?;
    stage
        .manifests
        .service(&balanced("10.0.0.0/8, \"fd10::/16\""))?;
    admits(&stage, true, false)?;
    let own = stage.world.node("node-a");
    let node = format!("\"{}/32\", \"{}/128\"", own.ip4(), own.ip6());
    stage.manifests.service(&balanced(&node))?;
    admits(&stage, false, true)?;
    // The same after a restart.
    stage.agent.kill();
    stage.agent.restart()?;
    stage.agent.wait_ready(PATIENCE)?;
    admits(&stage, false, true)
}

fn everything(manifests: &ManifestDir, world: &tests::World) -> Result<()> {
    node(manifests, world)?;
    manifests.write(
        "cidr.yaml",
        "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: kubernetes}\n\
         spec: {cidrs: [10.96.0.0/12, \"fd96::/108\"]}\n",
    )?;
    manifests.service(&balanced("192.0.2.0/24").spec("externalTrafficPolicy: Local"))?;
    let mut slice = EndpointSlice::v4("web", "web-4")
        .tcp("http", TARGET)
        .udp("dns", TARGET);
    for (name, node) in BACKENDS.iter().zip(["node-a", "node-a", "node-b"]) {
        slice = slice.ready(world.pod(name).ip4(), node);
    }
    manifests.slice(&slice)
}

#[test]
fn a_restarted_agent_adopts_local_lists_ranges_addresses_and_service_cidrs() -> Result<()> {
    let mut stage = Stage::new(|world, manifests| everything(manifests, world))?;
    let tables = |stage: &Stage| -> Result<Value> {
        let status = stage.agent.status()?;
        Ok(json!([
            status["frontends"],
            status["service_nets"],
            status["maps"]
        ]))
    };
    let before = tables(&stage)?;
    ensure!(
        before[1] == json!(["10.96.0.0/12", "fd96::/108"]),
        "{before}"
    );
    // TCP and UDP each on ClusterIP and load balancer in two families, and the two ClusterIPs.
    ensure!(before[2]["frontends"]["used"] == 10, "{before}");
    let frontend = stage.frontend(LB4, 80)?.context("no frontend")?;
    let count = |list: &Value| {
        let chosen = |list: &Vec<Value>| list.iter().filter(|b| b["chosen"] == true).count();
        list.as_array().map(chosen)
    };
    ensure!(
        count(&frontend["backends"]) == Some(3)
            && count(&frontend["outside"]["backends"]) == Some(2),
        "{frontend}"
    );
    let local = frontend["backends"].as_array().context("backends")?;
    ensure!(
        local.iter().filter(|b| b["local"] == true).count() == 2,
        "{frontend}"
    );
    for round in 0..2 {
        stage.agent.kill();
        stage.agent.restart()?;
        stage.agent.wait_ready(PATIENCE)?;
        stage
            .agent
            .wait_log("first sync done: 1 Services, 0 steps", PATIENCE)
            .with_context(|| format!("round {round}"))?;
        ensure!(tables(&stage)? == before, "round {round}");
    }
    // What goes while nobody looks goes with the first sync.
    stage.agent.kill();
    for file in ["cidr.yaml", "default-web.yaml"] {
        stage.manifests.remove(file)?;
    }
    stage.agent.restart()?;
    stage.agent.wait_ready(PATIENCE)?;
    eventually("all to be gone", || {
        let maps = &stage.agent.status()?["maps"];
        for map in [
            "frontends",
            "services",
            "backends",
            "source_ranges",
            "service_nets",
        ] {
            ensure!(maps[map]["used"] == 0, "{maps}");
        }
        Ok(())
    })
}

#[test]
fn a_local_frontend_leads_pods_and_the_node_to_all_endpoints() -> Result<()> {
    let stage = Stage::new(|world, manifests| {
        everything(manifests, world)?;
        manifests.service(
            &Service::new("web", [VIP4])
                .tcp("http", 80)
                .udp("dns", 53)
                .kind("LoadBalancer")
                .load_balancer([LB4])
                .spec("externalTrafficPolicy: Local"),
        )
    })?;
    for pod in [stage.client(), stage.world.node("node-a").host()] {
        answered_by(&pod.probe().connect_many(at(LB4, 80), 60)?, &BACKENDS)?;
        answered_by(&pod.probe().udp_many(at(LB4, 53), 60)?, &BACKENDS)?;
    }
    Ok(())
}

fn cidr(net: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"}, "spec": {"cidrs": [net]},
    })
}

fn nets(cluster: &Cluster, wanted: &Value) -> Result<()> {
    eventually("the ServiceCIDRs to be those", || {
        let nets = &cluster.agent.status()?["service_nets"];
        ensure!(nets == wanted, "{nets}");
        Ok(())
    })
}

#[test]
fn service_cidrs_of_the_api_server_are_followed() -> Result<()> {
    let cluster = Cluster::new(&["backend-1"], |world, server| {
        server.apply(cidr("10.96.0.0/12"));
        server.apply(service(&Service::new("web", [VIP4]).tcp("http", 80)));
        server.apply(tests::cluster::slice(world, "web", &["backend-1"]));
        Ok(())
    })?;
    nets(&cluster, &json!(["10.96.0.0/12"]))?;
    cluster.server.apply(cidr("10.96.0.0/16"));
    nets(&cluster, &json!(["10.96.0.0/16"]))?;
    ensure!(cluster.server.delete("ServiceCIDR", "", "kubernetes"));
    nets(&cluster, &json!([]))
}

#[test]
fn an_api_server_without_service_cidrs_is_served_all_the_same() -> Result<()> {
    for status in [403, 404] {
        let cluster = Cluster::new(&["backend-1"], |world, server| {
            server.withhold("servicecidrs", status);
            server.apply(service(&Service::new("web", [VIP4]).tcp("http", 80)));
            server.apply(tests::cluster::slice(world, "web", &["backend-1"]));
            Ok(())
        })?;
        let probe = cluster.client().probe();
        answered_by(&probe.connect_many(at(VIP4, 80), 10)?, &["backend-1"])?;
        cluster.agent.wait_log("ServiceCIDR watch: ", PATIENCE)?;
        let lines: Vec<String> = cluster.agent.log();
        let said: Vec<&String> = lines.iter().filter(|l| l.contains("ServiceCIDR")).collect();
        ensure!(said.len() == 1 && said[0].contains("INFO"), "{said:#?}");
    }
    Ok(())
}

#[test]
fn service_cidrs_that_are_never_listed_keep_nothing_waiting() -> Result<()> {
    let cluster = Cluster::new(&["backend-1"], |world, server| {
        server.hold(Some("servicecidrs"));
        server.apply(service(&Service::new("web", [VIP4]).tcp("http", 80)));
        server.apply(tests::cluster::slice(world, "web", &["backend-1"]));
        Ok(())
    })?;
    let probe = cluster.client().probe();
    answered_by(&probe.connect_many(at(VIP4, 80), 10)?, &["backend-1"])?;
    cluster.server.apply(cidr("10.96.0.0/12"));
    cluster.server.hold(None);
    nets(&cluster, &json!(["10.96.0.0/12"]))
}

/// Events with this reason.
fn told(cluster: &Cluster, reason: &str) -> Vec<Value> {
    let mut events = cluster.server.posted();
    events.retain(|event| event["reason"] == reason);
    events
}

#[test]
fn a_service_without_room_is_told_of_everywhere_and_comes_by_itself_when_there_is_some()
-> Result<()> {
    let with_uid = |name: &str, ip: &str| {
        let mut object = service(&Service::new(name, [ip]).tcp("http", 80));
        object["metadata"]["uid"] = format!("uid-{name}").into();
        object
    };
    let mut cluster = Cluster::new(&["backend-1"], |world, server| {
        server.apply(with_uid("one", "10.96.0.71"));
        for name in ["one", "two", "three"] {
            server.apply(tests::cluster::slice(world, name, &["backend-1"]));
        }
        Ok(())
    })?;
    let source =
        tests::Source::Kubeconfig(tests::cluster::kubeconfig(&cluster.world, &cluster.server)?);
    // Each has a frontend and an address.
    cluster
        .agent
        .restart_with(source, &["--max-frontends", "4"])?;
    cluster.agent.wait_ready(PATIENCE)?;
    let waiting = |cluster: &Cluster, wanted: Value| {
        eventually("those to wait", || {
            let agent = &cluster.agent.status()?["agent"];
            let waiting = agent["not_programmed"].as_array().context("no agent")?;
            let names: Vec<&Value> = waiting.iter().map(|waits| &waits["service"]).collect();
            ensure!(json!(names) == wanted, "{agent}");
            Ok(waiting.clone())
        })
    };
    waiting(&cluster, json!([]))?;
    cluster.server.apply(with_uid("two", "10.96.0.72"));
    eventually("the second Service", || {
        ensure!(cluster.agent.status()?["maps"]["frontends"]["used"] == 4);
        Ok(())
    })?;
    cluster.server.apply(with_uid("three", "10.96.0.73"));
    let said = waiting(&cluster, json!(["default/three"]))?;
    ensure!(said[0]["full_map"] == "KP_FRONTENDS", "{said:?}");
    let event = eventually("an Event", || {
        let told = told(&cluster, "MapFull");
        told.first().cloned().context("none yet")
    })?;
    let wanted = json!({"apiVersion": "v1", "kind": "Service", "namespace": "default",
                        "name": "three", "uid": "uid-three"});
    ensure!(
        event["type"] == "Warning" && event["regarding"] == wanted,
        "{event}"
    );
    let table = cluster.agent.call(&["status"])?;
    let line = cluster
        .agent
        .wait_line(&["ERROR", "default/three"], PATIENCE)?;
    for text in [
        event["note"].as_str().context("a note")?,
        said[0]["reason"].as_str().context("a reason")?,
        &table,
        &line,
    ] {
        for part in ["default/three", "KP_FRONTENDS", "4 of 4", "--max-frontends"] {
            ensure!(text.contains(part), "no {part}: {text}");
        }
    }
    let probe = cluster.client().probe();
    let serves = |ip: &str| answered_by(&probe.connect_many(at(ip, 80), 10)?, &["backend-1"]);
    serves("10.96.0.71")?;
    serves("10.96.0.72")?;
    // Its changes, and other tries, are no news.
    let mut changed = with_uid("three", "10.96.0.73");
    changed["metadata"]["labels"] = json!({"a": "b"});
    cluster.server.apply(changed);
    ensure!(cluster.server.delete("Service", "default", "two"));
    eventually("the room to be had", || serves("10.96.0.73"))?;
    waiting(&cluster, json!([]))?;
    ensure!(told(&cluster, "MapFull").len() == 1 && cluster.agent.count_log("ERROR") == 1);
    // Refused anew, and told anew.
    cluster.server.apply(with_uid("two", "10.96.0.72"));
    waiting(&cluster, json!(["default/two"]))?;
    eventually("another Event", || {
        ensure!(told(&cluster, "MapFull").len() == 2);
        Ok(())
    })?;
    serves("10.96.0.71")?;
    serves("10.96.0.73")
}
