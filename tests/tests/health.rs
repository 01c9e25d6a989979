//! What a load balancer, a kubelet and Prometheus ask the agent for (BEHAVIOUR section 1C), byte for
//! byte as kube-proxy answers.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, TcpListener},
    time::SystemTime,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::{
    EndpointSlice, ManifestDir, Node, Service, Source, World,
    apiserver::ApiServer,
    cluster::{self, Cluster, kubeconfig},
    http::{Reply, ask, get, is_refused},
    stage::{PATIENCE, Stage, VIP4, VIP6, at, eventually},
};

const HEALTHZ: u16 = 10256;
const METRICS: u16 = 10249;
const CHECK: u16 = 31500;

/// Of every answer; sorted.
const JSON_HEADERS: [&str; 2] = [
    "Content-Type: application/json",
    "X-Content-Type-Options: nosniff",
];

fn load_balancer(check: u16) -> Service {
    Service::new("web", [VIP4, VIP6])
        .kind("LoadBalancer")
        .spec("externalTrafficPolicy: Local")
        .spec(&format!("healthCheckNodePort: {check}"))
        .tcp("http", 80)
}

/// Endpoints of `web`: address, node, whether ready.
fn slice(endpoints: &[(&str, &str, bool)]) -> Value {
    let mut slice = EndpointSlice::v4("web", "web-4").tcp("http", 8080);
    for (address, node, ready) in endpoints {
        slice = slice.endpoint(address, node, *ready, true, !ready);
    }
    serde_yaml_ng::from_str(&slice.yaml()).expect("the builder writes YAML")
}

fn node_object(node: &Node, more: Value) -> Value {
    let mut object = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name()},
        "status": {"addresses": [
            {"type": "InternalIP", "address": node.ip4()},
            {"type": "InternalIP", "address": node.ip6()},
        ]},
    });
    for (key, value) in more.as_object().expect("fields") {
        for (name, value) in value.as_object().expect("fields") {
            object[key][name] = value.clone();
        }
    }
    object
}

/// With the Node object, and `web` with one endpoint here.
fn cluster() -> Result<Cluster> {
    Cluster::new(&[], |world, server| {
        server.apply(node_object(world.node("node-a"), json!({})));
        server.apply(cluster::service(&load_balancer(CHECK)));
        server.apply(slice(&[("10.0.0.1", "node-a", true)]));
        Ok(())
    })
}

fn ask_node(cluster: &Cluster, ip: IpAddr, port: u16, path: &str) -> Result<Reply> {
    let node = cluster.world.node("node-a");
    get(node.netns(), SocketAddr::new(ip, port), path)
}

/// What the health check of `web` says, asked over IPv4.
fn check(cluster: &Cluster, port: u16) -> Result<Reply> {
    ask_node(cluster, cluster.world.node("node-a").ip4(), port, "/")
}

fn check_body(count: usize) -> String {
    format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t}},\n\
         \t\"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": true\n}}"
    )
}

fn check_reply(count: usize) -> Reply {
    let body = check_body(count);
    Reply {
        status: if count > 0 {
            "HTTP/1.1 200 OK".into()
        } else {
            "HTTP/1.1 503 Service Unavailable".into()
        },
        headers: vec![
            format!("Content-Length: {}", body.len()),
            JSON_HEADERS[0].into(),
            JSON_HEADERS[1].into(),
            format!("X-Load-Balancing-Endpoint-Weight: {count}"),
        ],
        body,
    }
}

/// Until the answer is that one.
fn answers(cluster: &Cluster, wanted: &Reply) -> Result<()> {
    eventually("the health check to say so", || {
        let reply = check(cluster, CHECK)?;
        ensure!(reply == *wanted, "{reply:?}");
        Ok(())
    })
}

fn refuses(cluster: &Cluster, port: u16) -> Result<()> {
    eventually("nobody to listen there", || {
        let reply = check(cluster, port);
        ensure!(is_refused(&reply), "{reply:?}");
        Ok(())
    })
}

#[test]
fn l6_a_health_check_node_port_answers_byte_for_byte() -> Result<()> {
    let cluster = cluster()?;
    answers(&cluster, &check_reply(1))?;
    let node = cluster.world.node("node-a");
    // Any path and method; without endpoints of its own family the Service counts none.
    for (method, path) in [("GET", "/healthz?x=1"), ("POST", "/a/b"), ("DELETE", "/")] {
        let reply = ask(
            node.netns(),
            SocketAddr::new(node.ip4(), CHECK),
            method,
            path,
        )?;
        ensure!(reply == check_reply(1), "{method} {path}: {reply:?}");
    }
    let head = ask(
        node.netns(),
        SocketAddr::new(node.ip4(), CHECK),
        "HEAD",
        "/",
    )?;
    ensure!(
        head == Reply {
            body: String::new(),
            ..check_reply(1)
        },
        "{head:?}"
    );
    let over_v6 = ask_node(&cluster, node.ip6(), CHECK, "/")?;
    ensure!(over_v6 == check_reply(0), "{over_v6:?}");

    cluster.server.apply(slice(&[
        ("10.0.0.1", "node-a", true),
        ("10.0.0.2", "node-a", true),
        ("10.0.0.3", "node-b", true),
    ]));
    answers(&cluster, &check_reply(2))
}

#[test]
fn test_health_check_node_port_when_terminating() -> Result<()> {
    let cluster = cluster()?;
    answers(&cluster, &check_reply(1))?;
    // It terminates and still serves: traffic goes there, and the check fails.
    cluster
        .server
        .apply(slice(&[("10.0.0.1", "node-a", false)]));
    answers(&cluster, &check_reply(0))?;
    let status = cluster.agent.status()?.to_string();
    ensure!(status.contains("10.0.0.1"), "{status}");
    cluster.server.apply(slice(&[("10.0.0.1", "node-b", true)]));
    answers(&cluster, &check_reply(0))?;
    cluster.server.apply(slice(&[("10.0.0.1", "node-a", true)]));
    answers(&cluster, &check_reply(1))
}

#[test]
fn a_health_check_follows_its_service() -> Result<()> {
    let cluster = cluster()?;
    let apply = |service: &Service| cluster.server.apply(cluster::service(service));
    answers(&cluster, &check_reply(1))?;
    apply(&load_balancer(CHECK + 1));
    eventually("the new port", || {
        ensure!(check(&cluster, CHECK + 1)? == check_reply(1));
        Ok(())
    })?;
    refuses(&cluster, CHECK)?;
    apply(&load_balancer(CHECK));
    answers(&cluster, &check_reply(1))?;
    // The policy, the type, the Service itself.
    let mut cluster_policy = cluster::service(&load_balancer(CHECK));
    cluster_policy["spec"]["externalTrafficPolicy"] = "Cluster".into();
    cluster.server.apply(cluster_policy);
    refuses(&cluster, CHECK)?;
    apply(&load_balancer(CHECK));
    answers(&cluster, &check_reply(1))?;
    ensure!(cluster.server.delete("Service", "default", "web"));
    refuses(&cluster, CHECK)
}

#[test]
fn it_listens_on_the_addresses_of_node_ports_only() -> Result<()> {
    let cluster = cluster()?;
    answers(&cluster, &check_reply(1))?;
    let loopback = ask_node(&cluster, at("127.0.0.1", 1).ip(), CHECK, "/");
    ensure!(is_refused(&loopback), "{loopback:?}");
    // Without a Node object the primary address isn't known: everywhere.
    ensure!(cluster.server.delete("Node", "", "node-a"));
    for ip in ["127.0.0.1", "::1"] {
        eventually("an answer on loopback", || {
            let reply = ask_node(&cluster, at(ip, 1).ip(), CHECK, "/")?;
            ensure!(
                reply.body == check_body(usize::from(ip != "::1")),
                "{reply:?}"
            );
            Ok(())
        })?;
    }
    Ok(())
}

/// Events with this reason.
fn told(server: &ApiServer, reason: &str) -> Vec<Value> {
    let mut events = server.posted();
    events.retain(|event| event["reason"] == reason);
    events
}

#[test]
fn a_port_that_is_taken_is_told_once_and_had_when_it_is_free() -> Result<()> {
    let mut taken = None;
    let cluster = Cluster::new(&[], |world, server| {
        let node = world.node("node-a");
        let to = SocketAddr::new(node.ip4(), CHECK);
        taken = Some(node.netns().enter(|| TcpListener::bind(to))??);
        server.apply(node_object(node, json!({})));
        let mut service = cluster::service(&load_balancer(CHECK));
        service["metadata"]["uid"] = "6c0f".into();
        server.apply(service);
        server.apply(slice(&[("10.0.0.1", "node-a", true)]));
        Ok(())
    })?;
    let node = cluster.world.node("node-a");
    let event = eventually("an Event", || {
        let events = told(&cluster.server, "FailedToStartServiceHealthcheck");
        events.first().cloned().context("none yet")
    })?;
    ensure!(
        event["type"] == "Warning"
            && event["action"] == "Listen"
            && event["metadata"]["namespace"] == "default"
            && event["reportingController"] == "kube-portal"
            && event["reportingInstance"] == "node-a",
        "{event}"
    );
    let wanted = json!({"apiVersion": "v1", "kind": "Service", "namespace": "default",
                        "name": "web", "uid": "6c0f"});
    ensure!(event["regarding"] == wanted, "{event}");
    let note = event["note"].as_str().context("a note")?;
    ensure!(
        note.starts_with("node node-a failed to start healthcheck \"default/web\" on port 31500: ")
            && note.contains(&node.ip4().to_string()),
        "{note}"
    );
    // The other address is served meanwhile.
    eventually("the other family", || {
        ensure!(ask_node(&cluster, node.ip6(), CHECK, "/")?.code() == 503);
        Ok(())
    })?;
    drop(taken);
    answers(&cluster, &check_reply(1))?;
    ensure!(cluster.agent.count_log("its health check can't listen on") == 1);
    ensure!(told(&cluster.server, "FailedToStartServiceHealthcheck").len() == 1);
    Ok(())
}

#[test]
fn what_is_wrong_with_a_service_is_told_at_the_service_once() -> Result<()> {
    let cluster = Cluster::new(&[], |world, server| {
        server.apply(node_object(world.node("node-a"), json!({})));
        // Both want it; the first by name has it.
        let both = ["192.0.2.7"];
        server.apply(cluster::service(
            &Service::new("a", ["10.96.0.31"])
                .tcp("http", 80)
                .external_ips(both),
        ));
        server.apply(cluster::service(
            &Service::new("b", ["10.96.0.32"])
                .tcp("http", 80)
                .external_ips(both),
        ));
        let mut odd = cluster::service(
            &Service::new("odd", ["10.96.0.33"])
                .tcp("http", 80)
                .external_ips(["192.0.2.300"]),
        );
        odd["metadata"]["uid"] = "7a1e".into();
        server.apply(odd);
        Ok(())
    })?;
    let event = |reason: &str| {
        eventually(reason, || {
            let events = told(&cluster.server, reason);
            events.first().cloned().context("none yet")
        })
    };
    let taken = event("AddressTaken")?;
    ensure!(
        taken["type"] == "Warning"
            && taken["regarding"]["kind"] == "Service"
            && taken["regarding"]["name"] == "b",
        "{taken}"
    );
    let note = taken["note"].as_str().context("a note")?;
    ensure!(
        note.contains("192.0.2.7:80/") && note.contains("default/a"),
        "{note}"
    );
    let left_out = event("PartLeftOut")?;
    ensure!(
        left_out["regarding"]["name"] == "odd" && left_out["regarding"]["uid"] == "7a1e",
        "{left_out}"
    );
    let note = left_out["note"].as_str().context("a note")?;
    ensure!(
        note.contains("spec.externalIPs[0]") && note.contains("192.0.2.300"),
        "{note}"
    );
    for reason in ["AddressTaken", "PartLeftOut"] {
        ensure!(told(&cluster.server, reason).len() == 1, "{reason} twice");
    }
    Ok(())
}

/// The times of a body of /healthz or /livez by the names of kube-proxy, and the body they make.
fn health_body(
    body: &str,
    node_eligible: Option<bool>,
) -> Result<(String, BTreeMap<&str, String>)> {
    let value: Value = serde_json::from_str(body)?;
    let mut times = BTreeMap::new();
    let mut time = |name, value: &Value| -> Result<String> {
        let text = value
            .as_str()
            .with_context(|| format!("{name} in {body}"))?;
        times.insert(name, text.to_owned());
        Ok(text.to_owned())
    };
    let last = time("last", &value["lastUpdated"])?;
    let current = time("current", &value["currentTime"])?;
    let v4 = time("v4", &value["status"]["IPv4"]["lastUpdated"])?;
    let v6 = time("v6", &value["status"]["IPv6"]["lastUpdated"])?;
    let eligible = node_eligible.map_or(String::new(), |is| format!("\"nodeEligible\":{is},"));
    let whole = format!(
        "{{\"lastUpdated\":\"{last}\",\"currentTime\":\"{current}\",{eligible}\"healthy\":true,\
         \"status\":{{\"IPv4\":{{\"lastUpdated\":\"{v4}\",\"healthy\":true}},\
         \"IPv6\":{{\"lastUpdated\":\"{v6}\",\"healthy\":true}}}}}}"
    );
    Ok((whole, times))
}

#[test]
fn healthz_and_livez_are_those_of_kube_proxy() -> Result<()> {
    let cluster = cluster()?;
    let node = cluster.world.node("node-a");
    eventually("the Node to be known", || {
        ensure!(ask_node(&cluster, node.ip4(), HEALTHZ, "/healthz")?.code() == 200);
        Ok(())
    })?;
    for ip in [
        node.ip4(),
        node.ip6(),
        at("127.0.0.1", 1).ip(),
        at("::1", 1).ip(),
    ] {
        for (path, eligible) in [("/healthz", Some(true)), ("/livez", None)] {
            let reply = ask_node(&cluster, ip, HEALTHZ, path)?;
            ensure!(reply.status == "HTTP/1.1 200 OK", "{reply:?}");
            let mut headers = vec![format!("Content-Length: {}", reply.body.len())];
            headers.extend(JSON_HEADERS.map(String::from));
            ensure!(reply.headers == headers, "{reply:?}");
            let (wanted, times) = health_body(&reply.body, eligible)?;
            ensure!(reply.body == wanted, "{} is not {wanted}", reply.body);
            ensure!(
                times["last"] == times["current"] && times["v4"] <= times["last"],
                "{times:?}"
            );
        }
    }
    let nowhere = ask_node(&cluster, node.ip4(), HEALTHZ, "/")?;
    ensure!(
        nowhere.code() == 404 && nowhere.body == "404 page not found\n",
        "{nowhere:?}"
    );
    Ok(())
}

#[test]
fn w3_a_node_that_leaves_fails_healthz_and_not_livez() -> Result<()> {
    let cluster = cluster()?;
    let node = cluster.world.node("node-a");
    let says = |code: u16, eligible: bool| {
        eventually(&format!("/healthz to say {code}"), || {
            let reply = ask_node(&cluster, node.ip4(), HEALTHZ, "/healthz")?;
            ensure!(reply.code() == code, "{reply:?}");
            let (wanted, _) = health_body(&reply.body, Some(eligible))?;
            ensure!(reply.body == wanted, "{reply:?}");
            ensure!(ask_node(&cluster, node.ip4(), HEALTHZ, "/livez")?.code() == 200);
            Ok(())
        })
    };
    says(200, true)?;
    let tainted = |key: &str| json!({"spec": {"taints": [{"key": key, "value": "1700000000", "effect": "NoSchedule"}]}});
    for more in [
        tainted("ToBeDeletedByClusterAutoscaler"),
        json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
    ] {
        cluster.server.apply(node_object(node, more));
        says(503, false)?;
        cluster.server.apply(node_object(
            node,
            tainted("node.kubernetes.io/unschedulable"),
        ));
        says(200, true)?;
    }
    ensure!(cluster.server.delete("Node", "", "node-a"));
    says(503, false)?;
    // Health checks of Services don't ask for the node.
    eventually("the health check of web", || {
        ensure!(check(&cluster, CHECK)? == check_reply(1));
        Ok(())
    })
}

fn metric(reply: &Reply, series: &str) -> Result<f64> {
    let line = reply
        .body
        .lines()
        .find_map(|line| line.strip_prefix(series));
    let value = line.with_context(|| format!("no {series} in {}", reply.body))?;
    Ok(value.trim().parse()?)
}

#[test]
fn the_metrics_server_answers_as_kube_proxys_does() -> Result<()> {
    let stage = Stage::usual()?;
    let netns = stage.world.node("node-a").netns();
    let ask = |path: &str| get(netns, at("127.0.0.1", METRICS), path);
    for (path, body) in [("/healthz", "ok"), ("/proxyMode", "ebpf")] {
        let reply = ask(path)?;
        ensure!(reply.code() == 200 && reply.body == body, "{reply:?}");
        ensure!(
            reply
                .headers
                .contains(&"Content-Type: text/plain; charset=utf-8".to_owned()),
            "{reply:?}"
        );
    }
    ensure!(ask("/nothing")?.code() == 404);
    // On loopback only.
    let outside = get(
        netns,
        SocketAddr::new(stage.world.node("node-a").ip4(), METRICS),
        "/metrics",
    );
    ensure!(is_refused(&outside), "{outside:?}");

    stage.client().probe().connect_many(at(VIP4, 80), 7)?;
    let reply = ask("/metrics")?;
    ensure!(
        reply.code() == 200
            && reply
                .headers
                .contains(&"Content-Type: text/plain; version=0.0.4; charset=utf-8".to_owned()),
        "{reply:?}"
    );
    let outcome =
        "kube_portal_datapath_outcomes_total{reason=\"connect_translated\",verdict=\"translated\"}";
    ensure!(metric(&reply, outcome)? == stage.counter("connect_translated")? as f64);
    ensure!(metric(&reply, outcome)? >= 7.0);
    // Two ports, each in two families, and the two addresses as such.
    ensure!(
        metric(&reply, "kube_portal_map_entries{map=\"frontends\"}")? == 6.0,
        "{reply:?}"
    );
    ensure!(metric(&reply, "kube_portal_map_capacity{map=\"frontends\"}")? == 131_072.0);
    // Those that are swept, soon after the start.
    eventually("the first sweep", || {
        let reply = ask("/metrics")?;
        for (map, capacity) in [
            ("flows", 524_288.0),
            ("half_open", 131_072.0),
            ("affinity", 65_536.0),
            ("sockets", 131_072.0),
            ("udp_flows", 65_536.0),
        ] {
            let of =
                |name: &str| metric(&reply, &format!("kube_portal_map_{name}{{map=\"{map}\"}}"));
            ensure!(
                of("entries")? == 0.0 && of("capacity")? == capacity,
                "{map}"
            );
        }
        Ok(())
    })?;
    ensure!(metric(&reply, "kube_portal_services_not_programmed")? == 0.0);
    ensure!(metric(&reply, "kube_portal_map_capacity{map=\"source_ranges\"}")? == 65_536.0);
    ensure!(
        metric(
            &reply,
            "kube_portal_services_refused_total{map=\"backends\"}"
        )? == 0.0
    );
    ensure!(metric(&reply, "kubeproxy_sync_proxy_rules_service_changes_total")? >= 1.0);
    ensure!(
        metric(
            &reply,
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending"
        )? == 0.0
    );
    ensure!(metric(&reply, "kubeproxy_sync_proxy_rules_duration_seconds_count")? >= 1.0);
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)?
        .as_secs_f64();
    let synced = metric(&reply, "kubeproxy_sync_proxy_rules_last_timestamp_seconds")?;
    ensure!(now - synced < 3600.0 && synced <= now, "{synced} at {now}");
    // Answers of /healthz are counted; without an API server no Node is missed.
    let healthz = get(netns, at("127.0.0.1", HEALTHZ), "/healthz")?;
    ensure!(healthz.code() == 200, "{healthz:?}");
    ensure!(
        metric(
            &ask("/metrics")?,
            "kubeproxy_proxy_healthz_total{code=\"200\"}"
        )? == 1.0
    );
    Ok(())
}

#[test]
fn a_change_with_a_trigger_time_is_timed_and_services_without_local_endpoints_are_counted()
-> Result<()> {
    let cluster = cluster()?;
    let metrics = || ask_node(&cluster, at("127.0.0.1", 1).ip(), METRICS, "/metrics");
    let count = "kubeproxy_network_programming_duration_seconds_count";
    let external =
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"external\"}";
    let says = |times: f64, without: f64| {
        eventually("the metrics to say so", || {
            let reply = metrics()?;
            ensure!(metric(&reply, count)? == times, "{reply:?}");
            ensure!(metric(&reply, external)? == without, "{reply:?}");
            Ok(())
        })
    };
    says(0.0, 0.0)?;
    let with_trigger = |time: &str, endpoints: &[(&str, &str, bool)]| {
        let mut object = slice(endpoints);
        object["metadata"]["annotations"] =
            json!({"endpoints.kubernetes.io/last-change-trigger-time": time});
        cluster.server.apply(object);
    };
    // Long before the agent, and after its start.
    with_trigger("2001-02-03T04:05:06Z", &[("10.0.0.9", "node-b", true)]);
    // The type has no NodePort and no address yet: nobody outside misses an endpoint.
    says(0.0, 0.0)?;
    cluster.server.apply(cluster::service(
        &load_balancer(CHECK).external_ips(["192.0.2.1"]),
    ));
    says(0.0, 1.0)?;
    with_trigger(
        "2999-02-03T04:05:06.123456789Z",
        &[("10.0.0.8", "node-a", true)],
    );
    says(1.0, 0.0)
}

#[test]
fn p9_the_start_is_told_and_an_api_that_takes_no_events_holds_nothing_up() -> Result<()> {
    let mut cluster = Cluster::unsynced(&[], |_, server| {
        // Not answered at all.
        server.hold(Some("events"));
        server.apply(cluster::service(&load_balancer(CHECK)));
        server.apply(slice(&[("10.0.0.1", "node-a", true)]));
        Ok(())
    })?;
    cluster.agent.wait_ready(PATIENCE)?;
    answers(&cluster, &check_reply(1))?;
    ensure!(told(&cluster.server, "Starting").is_empty());
    cluster.server.hold(None);
    let source = Source::Kubeconfig(kubeconfig(&cluster.world, &cluster.server)?);
    cluster.agent.restart_with(source, &[])?;
    let event = eventually("the Event", || {
        told(&cluster.server, "Starting")
            .last()
            .cloned()
            .context("none yet")
    })?;
    let wanted = json!({"apiVersion": "v1", "kind": "Node", "name": "node-a", "uid": "node-a"});
    ensure!(
        event["regarding"] == wanted && event["type"] == "Normal",
        "{event}"
    );
    Ok(())
}

#[test]
fn p10_an_address_that_is_taken_ends_the_agent_only_if_it_should() -> Result<()> {
    let world = World::builder().node("node-a", ["client"]).build()?;
    let node = world.node("node-a");
    let manifests = ManifestDir::new()?;
    let source = || Source::Manifests(manifests.path().to_owned());
    let to = SocketAddr::new(node.ip4(), 10300);
    let taken = node.netns().enter(|| TcpListener::bind(to))??;
    let address = to.to_string();
    let bind = [
        "--healthz-bind-address",
        &address,
        "--metrics-bind-address",
        "",
    ];

    let hard = [&bind[..], &["--bind-address-hard-fail"]].concat();
    let mut agent = node.start_agent_with(source(), &hard)?;
    let status = agent.wait_exit(PATIENCE)?;
    ensure!(status.code() == Some(1), "{status}");
    agent.wait_line(&["--healthz-bind-address", &address, "in use"], PATIENCE)?;

    let agent = node.start_agent_with(source(), &bind)?;
    agent.wait_ready(PATIENCE)?;
    let nothing = get(node.netns(), at("127.0.0.1", METRICS), "/metrics");
    ensure!(is_refused(&nothing), "{nothing:?}");
    drop(taken);
    eventually("the address to be had", || {
        ensure!(get(node.netns(), to, "/livez")?.code() == 200);
        Ok(())
    })?;
    ensure!(agent.count_log("in use") == 1, "{:?}", agent.log());
    Ok(())
}

#[test]
fn a_bind_address_that_is_none_is_refused_as_wrong_use() -> Result<()> {
    let world = World::builder().node("node-a", ["client"]).build()?;
    let node = world.node("node-a");
    let manifests = ManifestDir::new()?;
    let source = Source::Manifests(manifests.path().to_owned());
    let extra = ["--metrics-bind-address", "localhost:10249"];
    let mut agent = node.start_agent_with(source, &extra)?;
    ensure!(agent.wait_exit(PATIENCE)?.code() == Some(2));
    agent.wait_line(
        &["--metrics-bind-address", "localhost:10249", "IP address"],
        PATIENCE,
    )?;
    Ok(())
}
