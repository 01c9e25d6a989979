//! A Service's addresses, from inside a pod, through the programs on the node's cgroup.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use tests::{
    EndpointSlice, Service, net_error,
    probe::Proto,
    stage::{BACKENDS, Stage, TARGET, VIP4, VIP6, answered_by, at, mapped, serve},
};

#[test]
fn a_cluster_ip_reaches_every_backend_in_both_families_and_by_mapped_address() -> Result<()> {
    let stage = Stage::usual()?;
    for to in [at(VIP4, 80), at(VIP6, 80), mapped(VIP4, 80)] {
        answered_by(&stage.client().probe().connect_many(to, 60)?, &BACKENDS)?;
    }
    for to in [at(VIP4, 53), at(VIP6, 53), mapped(VIP4, 53)] {
        answered_by(&stage.client().probe().udp_many(to, 60)?, &BACKENDS)?;
        answered_by(
            &stage.client().probe().udp_connected_many(to, 60)?,
            &BACKENDS,
        )?;
    }
    Ok(())
}

#[test]
fn a_process_of_the_node_and_a_backend_itself_reach_the_service_too() -> Result<()> {
    let stage = Stage::usual()?;
    let node = stage.world.node("node-a").host();
    answered_by(&node.probe().connect_many(at(VIP4, 80), 60)?, &BACKENDS)?;
    // Hairpin: the backend is among those it reaches.
    let backend = stage.world.pod("backend-1");
    answered_by(&backend.probe().connect_many(at(VIP4, 80), 60)?, &BACKENDS)?;
    answered_by(&backend.probe().connect_many(at(VIP6, 80), 60)?, &BACKENDS)
}

#[test]
fn the_application_sees_the_address_it_dialled() -> Result<()> {
    let stage = Stage::usual()?;
    let probe = stage.client().probe();
    for vip in [at(VIP4, 80), at(VIP6, 80), mapped(VIP4, 80)] {
        let connection = probe.connect(vip)?;
        ensure!(
            connection.peer == vip,
            "TCP: {} is not {vip}",
            connection.peer
        );
    }
    for vip in [at(VIP4, 53), at(VIP6, 53), mapped(VIP4, 53)] {
        let socket = probe.udp_connected(vip)?;
        ensure!(socket.peer_name()? == vip, "UDP: {}", socket.peer_name()?);
        let answer = socket.exchange("hello")?;
        ensure!(answer.from == vip, "connected UDP: {}", answer.from);
        ensure!(answer.echo == "hello");
    }
    Ok(())
}

#[test]
fn the_backend_sees_the_address_of_the_client() -> Result<()> {
    let stage = Stage::usual()?;
    let client = stage.client();
    let answer = client.probe().connect(at(VIP4, 80))?.exchange("hello")?;
    ensure!(answer.client.ip() == client.ip4(), "{}", answer.client);
    let answer = client.probe().connect(at(VIP6, 80))?.exchange("hello")?;
    ensure!(answer.client.ip() == client.ip6(), "{}", answer.client);
    Ok(())
}

#[test]
fn an_address_that_belongs_to_no_service_is_left_alone() -> Result<()> {
    let stage = Stage::usual()?;
    let backend = stage.world.pod("backend-3");
    let to = SocketAddr::new(backend.ip4(), TARGET);
    let connection = stage.client().probe().connect(to)?;
    ensure!(connection.peer == to);
    ensure!(connection.exchange("x")?.name == "backend-3");
    // A known address with another port, and with the other protocol.
    ensure!(stage.frontend(VIP4, 81)?.is_none());
    ensure!(stage.counter("connect_translated")? == 0);
    Ok(())
}

#[test]
fn a_socket_that_dials_a_pod_after_a_service_sees_the_pod() -> Result<()> {
    let stage = Stage::usual()?;
    // One of them is the very backend that the Service led to.
    for name in BACKENDS {
        let socket = stage.client().probe().udp_connected(at(VIP4, 53))?;
        socket.exchange("x")?;
        let pod = SocketAddr::new(stage.world.pod(name).ip4(), TARGET);
        socket.connect(pod)?;
        ensure!(socket.peer_name()? == pod, "{}", socket.peer_name()?);
        let answer = socket.exchange("y")?;
        ensure!(answer.from == pod && answer.name == name, "{answer:?}");
    }
    Ok(())
}

#[test]
fn external_ips_and_load_balancer_addresses_are_served_inside() -> Result<()> {
    let stage = Stage::new(|world, manifests| {
        manifests.service(
            &Service::new("web", [VIP4, VIP6])
                .tcp("http", 80)
                .udp("dns", 53)
                .external_ips(["198.51.100.7", "2001:db8::7"])
                .load_balancer(["203.0.113.9", "2001:db8::9"]),
        )?;
        // ipMode Proxy: the traffic must leave for the load balancer (BEHAVIOUR A9).
        manifests.write(
            "proxy.yaml",
            "apiVersion: v1\nkind: Service\nmetadata: {name: proxied}\nspec:\n  type: LoadBalancer\n  clusterIP: 10.96.0.77\n  clusterIPs: [10.96.0.77]\n  ports: [{port: 80, protocol: TCP}]\nstatus:\n  loadBalancer:\n    ingress:\n    - {ip: 203.0.113.50, ipMode: Proxy}\n    - {ip: 203.0.113.51, ipMode: VIP}\n    - {hostname: lb.example}\n",
        )?;
        tests::stage::web_slices(world, manifests, &BACKENDS)
    })?;
    let probe = stage.client().probe();
    for ip in ["198.51.100.7", "2001:db8::7", "203.0.113.9", "2001:db8::9"] {
        answered_by(&probe.connect_many(at(ip, 80), 40)?, &BACKENDS)?;
        answered_by(&probe.udp_many(at(ip, 53), 40)?, &BACKENDS)?;
    }
    let kind = |ip: &str| -> Result<String> {
        Ok(stage.frontend(ip, 80)?.context("no frontend")?["kind"].to_string())
    };
    ensure!(kind("198.51.100.7")? == "\"ExternalIP\"");
    ensure!(kind("203.0.113.9")? == "\"LoadBalancer\"");
    ensure!(kind("203.0.113.51")? == "\"LoadBalancer\"");
    ensure!(stage.frontend("203.0.113.50", 80)?.is_none());
    Ok(())
}

#[test]
fn a_named_target_port_may_differ_from_endpoint_to_endpoint() -> Result<()> {
    let stage = Stage::new(|world, manifests| {
        serve(world.pod("backend-2"), 9090)?;
        manifests.service(&Service::new("web", [VIP4]).tcp("http", 80).tcp("admin", 81))?;
        manifests.slice(
            &EndpointSlice::v4("web", "web-a")
                .tcp("http", TARGET)
                .ready(world.pod("backend-1").ip4(), "node-a"),
        )?;
        manifests.slice(
            &EndpointSlice::v4("web", "web-b")
                .tcp("http", 9090)
                .tcp("admin", TARGET)
                .ready(world.pod("backend-2").ip4(), "node-a"),
        )
    })?;
    let probe = stage.client().probe();
    answered_by(
        &probe.connect_many(at(VIP4, 80), 40)?,
        &["backend-1", "backend-2"],
    )?;
    // Joined by the port's name: only one slice has it.
    answered_by(&probe.connect_many(at(VIP4, 81), 10)?, &["backend-2"])
}

#[test]
fn one_port_number_with_two_protocols_is_two_services() -> Result<()> {
    let stage = Stage::new(|world, manifests| {
        manifests.service(
            &Service::new("dns", [VIP4])
                .tcp("dns-tcp", 53)
                .udp("dns", 53),
        )?;
        manifests.slice(
            &EndpointSlice::v4("dns", "dns-tcp")
                .tcp("dns-tcp", TARGET)
                .ready(world.pod("backend-1").ip4(), "node-a"),
        )?;
        manifests.slice(
            &EndpointSlice::v4("dns", "dns-udp")
                .udp("dns", TARGET)
                .ready(world.pod("backend-2").ip4(), "node-a"),
        )
    })?;
    let probe = stage.client().probe();
    answered_by(&probe.connect_many(at(VIP4, 53), 20)?, &["backend-1"])?;
    answered_by(&probe.udp_many(at(VIP4, 53), 20)?, &["backend-2"])
}

#[test]
fn headless_external_name_and_foreign_services_are_ignored() -> Result<()> {
    let stage = Stage::new(|world, manifests| {
        manifests.write("ignored.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: headless}\nspec: {clusterIP: None, ports: [{port: 80}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: elsewhere}\nspec: {type: ExternalName, externalName: example.org, clusterIP: 10.96.0.30, clusterIPs: [10.96.0.30], ports: [{port: 80}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: foreign, labels: {service.kubernetes.io/service-proxy-name: other}}\nspec: {clusterIP: 10.96.0.31, clusterIPs: [10.96.0.31], ports: [{port: 80}]}\n")?;
        manifests.service(
            &Service::new("web", [VIP4, VIP6])
                .tcp("http", 80)
                .udp("dns", 53),
        )?;
        tests::stage::web_slices(world, manifests, &BACKENDS)
    })?;
    let status = stage.agent.status()?;
    let services: Vec<&str> = status["frontends"]
        .as_array()
        .context("frontends")?
        .iter()
        .filter_map(|frontend| frontend["service"].as_str())
        .collect();
    ensure!(
        services.iter().all(|name| name.starts_with("default/web:")),
        "{services:?}"
    );
    Ok(())
}

/// Chi-square with 2 degrees of freedom exceeds 27.6 once in a million runs.
#[test]
fn the_choice_of_a_backend_is_uniform() -> Result<()> {
    let stage = Stage::usual()?;
    let tally = stage.client().probe().connect_many(at(VIP4, 80), 10_000)?;
    answered_by(&tally, &BACKENDS)?;
    let expected = 10_000.0 / 3.0;
    let chi_square: f64 = BACKENDS
        .iter()
        .map(|name| {
            let difference = tally.of(name) as f64 - expected;
            difference * difference / expected
        })
        .sum();
    ensure!(chi_square < 27.6, "chi-square {chi_square}: {tally}");
    Ok(())
}

#[test]
fn an_unconnected_socket_gets_answers_from_the_address_it_sent_to() -> Result<()> {
    let stage = Stage::usual()?;
    let probe = stage.client().probe();
    for (bind, vip) in [
        ("0.0.0.0:0", at(VIP4, 53)),
        ("[::]:0", at(VIP6, 53)),
        ("[::]:0", mapped(VIP4, 53)),
    ] {
        let socket = probe.udp_bound(bind.parse::<SocketAddr>()?)?;
        let first = socket.exchange_with(vip, "one")?;
        ensure!(first.from == vip, "{} is not {vip}", first.from);
        // One flow, one backend, as with conntrack.
        for _ in 0..20 {
            let next = socket.exchange_with(vip, "more")?;
            ensure!(next.from == vip && next.name == first.name, "{next:?}");
        }
    }
    ensure!(stage.counter("send_known_flow")? >= 60);
    Ok(())
}

#[test]
fn one_unconnected_socket_talks_to_many_services_and_pods() -> Result<()> {
    let stage = Stage::new(|world, manifests| {
        for (index, name) in BACKENDS.iter().enumerate() {
            let service = format!("svc-{index}");
            manifests
                .service(&Service::new(&service, [format!("10.96.1.{index}")]).udp("dns", 53))?;
            manifests.slice(
                &EndpointSlice::v4(&service, &format!("{service}-a"))
                    .udp("dns", TARGET)
                    .ready(world.pod(name).ip4(), "node-a"),
            )?;
        }
        Ok(())
    })?;
    let socket = stage
        .client()
        .probe()
        .udp_bound("0.0.0.0:0".parse::<SocketAddr>()?)?;
    for round in 0..3 {
        for (index, name) in BACKENDS.iter().enumerate() {
            let vip = at(&format!("10.96.1.{index}"), 53);
            let answer = socket.exchange_with(vip, &format!("{round}"))?;
            ensure!(answer.from == vip && answer.name == *name, "{answer:?}");
        }
    }
    let pod = SocketAddr::new(stage.client().ip4(), TARGET);
    let _own = stage.client().probe().serve(Proto::Udp, pod, "client")?;
    ensure!(socket.exchange_with(pod, "x")?.from == pod);
    Ok(())
}

#[test]
fn nobody_listening_behind_a_service_is_refused_by_the_pod() -> Result<()> {
    let stage = Stage::new(|world, manifests| {
        manifests.service(&Service::new("web", [VIP4]).tcp("http", 80))?;
        manifests.slice(
            &EndpointSlice::v4("web", "web-4")
                .tcp("http", 1)
                .ready(world.pod("backend-1").ip4(), "node-a"),
        )
    })?;
    let error = net_error(stage.client().probe().connect(at(VIP4, 80)))?;
    ensure!(error.errno == "ECONNREFUSED", "{error}");
    ensure!(stage.counter("connect_translated")? == 1);
    ensure!(stage.counter("connect_refused")? == 0);
    Ok(())
}
