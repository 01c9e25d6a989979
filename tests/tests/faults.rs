//! The API server cut at random, with objects that change all the time, are written twice and go: in the
//! end the maps say what those of an agent say that starts now.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use proxy_user::{
    loader::Pins,
    maps::{MapStore as _, meaning},
};
use serde_json::{Value, json};
use tests::{
    Source, World,
    apiserver::{ApiServer, Gone},
    bpffs::Bpffs,
    flaky::Flaky,
    packet::damage::Dice,
    stage::PATIENCE,
    wait,
};

const SERVICES: usize = 24;
const SLICES: usize = 40;
/// Small maps are read quickly.
const SMALL: [&str; 4] = ["--max-services", "512", "--max-backends", "4096"];
/// So much has to happen before it is good.
const CHANGES: usize = 1500;
const BROKEN: usize = 6;
/// For the lists and watches of Services, and of slices.
const REQUESTS: usize = 4;
/// After many failures in a row a watch waits for half a minute.
const BACK_OFF: Duration = Duration::from_secs(60);

fn any_service(dice: &mut Dice) -> Value {
    let number = dice.below(SERVICES);
    // Some want the same addresses.
    let external = (0..dice.below(3)).map(|_| format!("192.0.2.{}", dice.below(8)));
    let external: Vec<String> = external.collect();
    let ports = ["a", "b"].into_iter().take(1 + dice.below(2)).enumerate();
    let ports = ports.map(|(at, name)| json!({"name": name, "port": 80 + at, "protocol": "TCP"}));
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "default", "name": format!("s{number}"), "creationTimestamp": "2024-01-01T00:00:00Z"},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": format!("10.96.1.{number}"),
            "clusterIPs": [format!("10.96.1.{number}")],
            "ports": ports.collect::<Vec<Value>>(),
            "externalIPs": external,
        },
    });
    let spec = &mut service["spec"];
    if dice.below(3) == 0 {
        spec["internalTrafficPolicy"] = "Local".into();
    }
    if dice.below(3) == 0 {
        spec["sessionAffinity"] = "ClientIP".into();
        spec["sessionAffinityConfig"] =
            json!({"clientIP": {"timeoutSeconds": 1 + dice.below(100)}});
    }
    if dice.below(3) == 0 {
        spec["type"] = "LoadBalancer".into();
        spec["ports"][0]["nodePort"] = (30_000 + number).into();
        spec["externalTrafficPolicy"] = ["Cluster", "Local"][dice.below(2)].into();
        spec["loadBalancerSourceRanges"] = json!(["198.51.100.0/24"]);
        service["status"] =
            json!({"loadBalancer": {"ingress": [{"ip": format!("203.0.113.{number}")}]}});
    }
    service
}

fn any_slice(dice: &mut Dice) -> Value {
    let number = dice.below(SLICES);
    let endpoints = (0..dice.below(6)).map(|_| {
        let node = ["node-a", "elsewhere"][dice.below(2)];
        let (ready, terminating) = (dice.below(4) > 0, dice.below(4) == 0);
        json!({
            "addresses": [format!("10.1.7.{}", dice.below(12))],
            "conditions": {"ready": ready && !terminating, "serving": ready, "terminating": terminating},
            "nodeName": node,
        })
    });
    let endpoints: Vec<Value> = endpoints.collect();
    let port = |name| json!({"name": name, "port": 8080, "protocol": "TCP"});
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "namespace": "default", "name": format!("e{number}"),
            "labels": {"kubernetes.io/service-name": format!("s{}", number % SERVICES)},
        },
        "ports": [port("a"), port("b")],
        "endpoints": endpoints,
    })
}

/// Something happens to an object, or to the server.
fn happen(server: &ApiServer, dice: &mut Dice, newest: &mut Value) {
    match dice.below(100) {
        0..35 => {
            *newest = any_service(dice);
            server.apply(newest.clone());
        }
        35..75 => {
            *newest = any_slice(dice);
            server.apply(newest.clone());
        }
        // Again, and nothing is different but its version.
        75..80 => server.apply(newest.clone()),
        80..86 => {
            let name = format!("s{}", dice.below(SERVICES));
            server.delete("Service", "default", &name);
        }
        86..92 => {
            let name = format!("e{}", dice.below(SLICES));
            server.delete("EndpointSlice", "default", &name);
        }
        92 => {
            let net = ["10.96.0.0/16", "10.98.0.0/16"][dice.below(2)];
            server.apply(json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
                "metadata": {"name": format!("c{}", dice.below(2))},
                "spec": {"cidrs": [net]},
            }));
        }
        93 => server.bookmark(),
        94 if dice.below(30) == 0 => {
            server.fail_next(1 + dice.below(2), [500, 429, 503][dice.below(3)])
        }
        95 if dice.below(4) == 0 => {
            server.tell_gone([Gone::Status, Gone::Event][dice.below(2)]);
            server.compact();
        }
        96 if dice.below(8) == 0 => server.expire_watches(),
        97 if dice.below(16) == 0 => server.cut(),
        _ => {}
    }
}

fn requests(server: &ApiServer, resource: &str) -> usize {
    let log = server.log();
    log.iter().filter(|line| line.contains(resource)).count()
}

fn lines(bpffs: &Path) -> Result<BTreeSet<String>> {
    Ok(meaning::lines(&Pins::new(bpffs).open_store()?.observe()?))
}

#[test]
fn however_the_api_server_is_cut_the_maps_come_to_say_what_a_fresh_agent_writes() -> Result<()> {
    let mut dice = Dice::of_this_run();
    let seed = dice.0;
    let world = World::builder().node("node-a", ["client"]).build()?;
    let node = world.node("node-a");
    let listener = node
        .netns()
        .enter(|| std::net::TcpListener::bind("127.0.0.1:0"))??;
    let server = ApiServer::start(listener)?;
    server.apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"}}));
    let mut newest = any_service(&mut dice);
    for _ in 0..200 {
        happen(&server, &mut dice, &mut newest);
    }
    let road = Flaky::start(node.netns(), server.addr(), seed)?;
    let (good, bad) = (world.dir().join("good-road"), world.dir().join("bad-road"));
    server.kubeconfig(&good)?;
    let (there, here) = (server.addr().to_string(), road.addr().to_string());
    fs::write(&bad, fs::read_to_string(&good)?.replace(&there, &here))?;
    let mut agent = node.start_agent_with(Source::Kubeconfig(bad), &SMALL)?;

    let began = Instant::now();
    let mut changes = 0;
    while changes < CHANGES
        || road.broken() < BROKEN
        || requests(&server, "/services?") < REQUESTS
        || requests(&server, "/endpointslices?") < REQUESTS
    {
        ensure!(
            began.elapsed() < BACK_OFF,
            "SEED={seed}: after {changes} changes and {} broken connections: {:#?}",
            road.broken(),
            server.log()
        );
        happen(&server, &mut dice, &mut newest);
        changes += 1;
        if changes == CHANGES / 2 {
            agent.restart()?;
        }
        thread::sleep(Duration::from_millis(2));
    }
    road.get_better();

    let other = Bpffs::mount(world.dir().join("bpf-fresh"))?;
    let fresh = node.start_agent_on(other.path(), Source::Kubeconfig(good), &SMALL)?;
    fresh.wait_ready(PATIENCE)?;
    let differ = || -> Result<Vec<String>> {
        let (here, there) = (lines(node.bpffs())?, lines(other.path())?);
        ensure!(there.len() > SERVICES, "{there:#?}");
        Ok(here.symmetric_difference(&there).cloned().collect())
    };
    let same = wait::until("the same maps", BACK_OFF, || {
        differ().is_ok_and(|lines| lines.is_empty()).then_some(())
    });
    same.with_context(|| format!("SEED={seed}: {:#?}", differ()))?;
    for agent in [&agent, &fresh] {
        let text = agent.call(&["status", "--verify"])?;
        ensure!(text.ends_with("entries, all as they should be\n"), "{text}");
    }
    eprintln!(
        "{changes} changes, {} broken connections, {:?}",
        road.broken(),
        began.elapsed()
    );
    Ok(())
}
