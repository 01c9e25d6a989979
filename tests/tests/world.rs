//! The world itself: pods reach each other directly, probes tell the truth, nothing is left behind.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::probe::{BenchKind, BenchPlan, ChurnPlan, Proto};
use tests::{EndpointSlice, ManifestDir, Pod, Service, World, net_error, residue, wait};

/// Set in the copy of the test's own process that is to be killed.
const VICTIM: &str = "KUBE_PORTAL_TEST_VICTIM";

fn two_nodes() -> Result<World> {
    World::builder()
        .node("node-a", ["client-a", "backend-1"])
        .node("node-b", ["client-b", "backend-2"])
        .outside("laptop")
        .build()
}

fn both_addresses(pod: &Pod) -> [IpAddr; 2] {
    [pod.ip4(), pod.ip6()]
}

#[test]
fn every_pod_reaches_every_other_pod_by_its_address() -> Result<()> {
    let started = Instant::now();
    let world = two_nodes()?;
    eprintln!("built in {:?}", started.elapsed());
    all_pairs(&world)
}

#[test]
fn every_pod_reaches_every_other_pod_through_a_tunnel_and_over_narrow_links() -> Result<()> {
    let world = World::builder()
        .node("node-a", ["client-a"])
        .guest("guest-a")
        .node("node-b", ["client-b"])
        .narrow_pod("narrow-b", 1400)
        .node("node-c", ["client-c"])
        .outside("laptop")
        .outside_behind_router("phone", 1300)
        .vxlan()
        .build()?;
    all_pairs(&world)?;
    // Through the tunnel, and not beside it.
    let tunnel = world.node("node-a").netns();
    let sent = tunnel.enter(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
    let line = sent.lines().find(|line| line.contains("vxlan0:"));
    let packets = line.and_then(|line| line.split_whitespace().nth(10)?.parse::<u64>().ok());
    ensure!(packets > Some(20), "{sent}");
    Ok(())
}

#[test]
fn a_strict_node_drops_what_came_by_another_way_than_its_answer_leaves() -> Result<()> {
    let world = World::builder()
        .node("node-a", ["client-a", "backend-1"])
        .outside("laptop")
        .strict_rp_filter()
        .build()?;
    let (client, server) = (world.pod("laptop"), world.pod("backend-1"));
    let to = (server.ip4(), 7000);
    server.serve(Proto::Tcp, to, "backend-1")?;
    client.connect(to)?;
    // An address that the node looks for elsewhere.
    let stolen = world.pod("client-a").ip4();
    client
        .netns()
        .ip(&format!("addr add {stolen}/32 dev lo\n"))?;
    let from = SocketAddr::new(stolen, 0);
    let timeout = Duration::from_millis(300);
    let error = net_error(client.connect_from(Some(from), to.into(), timeout))?;
    ensure!(error.errno == "TIMEOUT", "{error}");
    let sent = world.node("node-a").netns();
    let stats = sent.enter(|| std::fs::read_to_string("/proc/thread-self/net/netstat"))??;
    ensure!(ip_rp_filtered(&stats) > Some(0), "{stats}");
    Ok(())
}

/// Of /proc/net/netstat: a line of names, a line of values.
fn ip_rp_filtered(stats: &str) -> Option<u64> {
    let mut lines = stats.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let at = names
        .split(' ')
        .position(|name| name == "IPReversePathFilter")?;
    values.split(' ').nth(at)?.parse().ok()
}

/// The other side says 1460 bytes a segment, and a machine on the way corrects it.
#[test]
fn a_narrow_link_is_learnt_from_the_machine_before_it() -> Result<()> {
    let world = World::builder()
        .node("node-a", ["client-a"])
        .node("node-b", [""; 0])
        .narrow_pod("narrow-b", 1400)
        .outside_behind_router("phone", 1300)
        .build()?;
    for (client, server, mtu) in [("client-a", "narrow-b", 1400), ("client-a", "phone", 1300)] {
        let (client, server) = (world.pod(client), world.pod(server));
        for ip in both_addresses(server) {
            server.serve(Proto::Tcp, (ip, 7000), server.name())?;
            let line = "x".repeat(1 << 20);
            let answer = client.connect((ip, 7000))?.exchange(&line)?;
            ensure!(answer.echo == line);
            let known = client.netns().ip(&format!("route get {ip}\n"))?;
            ensure!(known.contains(&format!("mtu {mtu}")), "{known}");
        }
    }
    Ok(())
}

#[test]
fn a_nodes_default_route_ends_at_the_bridge_in_silence() -> Result<()> {
    let world = two_nodes()?;
    for ip in ["203.0.113.1", "2001:db8::1"] {
        let to = SocketAddr::new(ip.parse()?, 80);
        let timeout = Duration::from_millis(300);
        let error = net_error(world.pod("client-a").connect_within(to, timeout))?;
        ensure!(error.errno == "TIMEOUT", "{error}");
    }
    Ok(())
}

fn all_pairs(world: &World) -> Result<()> {
    let started = Instant::now();
    let hosts = || world.nodes().iter().map(tests::Node::host);
    let everyone: Vec<&Pod> = world.pods().chain(hosts()).collect();
    for server in &everyone {
        for ip in both_addresses(server) {
            server.serve(Proto::Tcp, (ip, 7000), server.name())?;
            server.serve(Proto::Udp, (ip, 7000), server.name())?;
        }
    }
    for client in &everyone {
        for server in &everyone {
            for ip in both_addresses(server) {
                let what = || format!("{} -> {} {ip}", client.name(), server.name());
                let tcp = client.connect((ip, 7000)).with_context(what)?;
                let answer = tcp.exchange("hello").with_context(what)?;
                ensure!(
                    answer.name == server.name() && answer.echo == "hello",
                    "{}",
                    what()
                );
                let mut own = both_addresses(client).to_vec();
                own.extend(
                    world
                        .nodes()
                        .iter()
                        .filter(|node| node.name() == client.name())
                        .flat_map(|node| [node.inner_ip4(), node.inner_ip6()]),
                );
                ensure!(own.contains(&answer.client.ip()), "{answer:?}");
                let udp = client.udp_many((ip, 7000), 1).with_context(what)?;
                ensure!(udp.of(server.name()) == 1, "{}: {udp}", what());
            }
        }
    }
    eprintln!("all pairs after {:?}", started.elapsed());
    Ok(())
}

#[test]
fn a_world_is_built_in_under_a_second() -> Result<()> {
    let times = (0..3)
        .map(|_| {
            let started = Instant::now();
            two_nodes().map(|_| started.elapsed())
        })
        .collect::<Result<Vec<Duration>>>()?;
    // The best of three: other tests build worlds at the same time.
    let best = times.iter().min().context("three times")?;
    ensure!(*best < Duration::from_secs(1), "{times:?}");
    Ok(())
}

#[test]
fn a_probe_is_in_its_cgroup_and_namespace_before_it_opens_sockets() -> Result<()> {
    let world = two_nodes()?;
    let pod = world.pod("client-a");
    pod.udp_bound((Ipv4Addr::UNSPECIFIED, 0))?;
    let pid = pod.pid().context("probe runs")?;
    let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let wanted = format!("0::/kube-portal-{}/node-a/client-a", world.id());
    ensure!(
        cgroups.lines().any(|line| line == wanted),
        "{wanted} not in {cgroups}"
    );
    let inside = pod.run("ip", &["-4", "-brief", "address", "show", "eth0"])?;
    ensure!(inside.contains("10.1.1.2/32"), "{inside}");
    Ok(())
}

#[test]
fn errors_are_named_and_bounded_in_time() -> Result<()> {
    let world = two_nodes()?;
    let client = world.pod("client-a");
    let refused = net_error(client.connect((world.pod("backend-2").ip4(), 9)))?;
    ensure!(refused.errno == "ECONNREFUSED", "{refused}");
    // Nobody has this address on the underlay, nor a route to answer by.
    let silent = net_error(client.connect_within(
        (Ipv4Addr::new(192, 168, 50, 77), 9),
        Duration::from_millis(200),
    ))?;
    ensure!(
        silent.errno == "TIMEOUT" && silent.elapsed_us < 1_000_000,
        "{silent}"
    );
    let taken = client.serve(Proto::Tcp, (client.ip4(), 80), "first")?;
    let again = net_error(client.serve(Proto::Tcp, (client.ip4(), 80), "second"))?;
    ensure!(again.errno == "EADDRINUSE", "{again}");
    taken.stop()?;
    let udp = client.udp_connected((world.pod("backend-2").ip4(), 9))?;
    let unreachable = net_error(udp.exchange("anyone?"))?;
    ensure!(unreachable.errno == "ECONNREFUSED", "{unreachable}");
    Ok(())
}

#[test]
fn the_family_of_the_address_is_that_of_the_socket() -> Result<()> {
    let world = two_nodes()?;
    let (client, server) = (world.pod("client-a"), world.pod("backend-2"));
    server.serve(Proto::Tcp, (server.ip4(), 80), "backend-2")?;
    let IpAddr::V4(ip4) = server.ip4() else {
        anyhow::bail!("ip4 is IPv4")
    };
    let mapped: SocketAddr = (ip4.to_ipv6_mapped(), 80).into();
    let connection = client.connect(mapped)?;
    ensure!(connection.peer == mapped, "{:?}", *connection);
    ensure!(connection.exchange("x")?.client.ip() == client.ip4());
    Ok(())
}

#[test]
fn udp_servers_answer_from_the_address_they_were_asked_at() -> Result<()> {
    let world = two_nodes()?;
    let (client, node) = (world.pod("client-a"), world.node("node-b"));
    let second: SocketAddr = "192.168.50.200:5353".parse()?;
    node.netns().ip("addr add 192.168.50.200/32 dev eth0")?;
    let anywhere = node
        .host()
        .serve(Proto::Udp, (Ipv4Addr::UNSPECIFIED, 5353), "host")?;
    node.host()
        .serve(Proto::Udp, (Ipv6Addr::UNSPECIFIED, 5353), "host")?;
    let udp = client.udp_bound((Ipv4Addr::UNSPECIFIED, 0))?;
    for to in [second, (node.ip4(), 5353).into()] {
        let answer = udp.exchange_with(to, "hi there")?;
        ensure!(answer.from == to && answer.echo == "hi there", "{answer:?}");
    }
    udp.connect(second)?;
    ensure!(udp.peer_name()? == second);
    ensure!(udp.exchange("again")?.from == second);
    let udp = client.udp_bound((Ipv6Addr::UNSPECIFIED, 0))?;
    ensure!(udp.exchange_with((node.ip6(), 5353), "v6")?.name == "host");
    anywhere.stop()?;
    node.host()
        .serve(Proto::Udp, (Ipv4Addr::UNSPECIFIED, 5353), "after")?;
    ensure!(client.udp_connected_many(second, 3)?.of("after") == 3);
    Ok(())
}

#[test]
fn http_is_served_to_curl_and_to_probes() -> Result<()> {
    let world = two_nodes()?;
    let (client, server) = (world.pod("client-b"), world.pod("backend-1"));
    let ip = server.ip4();
    server.serve_http((ip, 8080), "backend-1")?;
    ensure!(client.get_many((ip, 8080), 5)?.of("backend-1") == 5);
    let page = client.run("curl", &["-sS", "-m", "5", &format!("http://{ip}:8080/")])?;
    ensure!(page == format!("backend-1 ({ip})\n"), "{page}");
    Ok(())
}

#[test]
fn open_connections_outlive_their_listener_but_not_the_probe() -> Result<()> {
    let world = two_nodes()?;
    let (client, server) = (world.pod("client-a"), world.pod("backend-2"));
    let listener = server.serve(Proto::Tcp, (server.ip4(), 80), "backend-2")?;
    let connection = client.connect(listener.local)?;
    connection.exchange("before")?;
    let local = listener.local;
    listener.stop()?;
    ensure!(connection.exchange("after")?.name == "backend-2");
    ensure!(net_error(client.connect(local))?.errno == "ECONNREFUSED");
    server.kill();
    let gone = net_error(connection.exchange("anyone?"))?;
    ensure!(
        ["EOF", "ECONNRESET", "EPIPE"].contains(&gone.errno.as_str()),
        "{gone}"
    );
    connection.close()
}

#[test]
fn churn_tells_misdirected_connections_apart() -> Result<()> {
    let world = two_nodes()?;
    let (client, server) = (world.pod("client-a"), world.pod("backend-2"));
    let to: SocketAddr = (server.ip4(), 80).into();
    let listener = server.serve(Proto::Tcp, to, "backend-2")?;
    let churn = client.churn(ChurnPlan {
        threads: 2,
        ..ChurnPlan::new(to, ["backend-2"])
    })?;
    let good = churn.wait_attempts(100, Duration::from_secs(10))?;
    ensure!(
        good.misdirected.is_empty() && good.tally.failed() == 0,
        "{good:?}"
    );
    churn.allow(["backend-1"])?;
    churn.wait_attempts(10, Duration::from_secs(10))?;
    listener.stop()?;
    churn.wait_attempts(10, Duration::from_secs(10))?;
    let report = churn.stop()?;
    ensure!(report.misdirected.contains_key("backend-2"), "{report:?}");
    ensure!(
        report.tally.errors.contains_key("ECONNREFUSED"),
        "{report:?}"
    );
    ensure!(
        report.attempts == report.tally.answered() + report.tally.failed(),
        "{report:?}"
    );
    Ok(())
}

#[test]
fn benches_measure_every_target_in_turn() -> Result<()> {
    let world = two_nodes()?;
    let (client, server) = (world.pod("client-a"), world.pod("backend-1"));
    let targets = both_addresses(server).map(|ip| SocketAddr::from((ip, 90)));
    for target in targets {
        server.serve_fast(Proto::Tcp, target, 4)?;
        server.serve_fast(Proto::Udp, target, 1)?;
    }
    for kind in [
        BenchKind::Connect,
        BenchKind::Crr,
        BenchKind::Rr,
        BenchKind::UdpConnected,
        BenchKind::UdpUnconnected,
    ] {
        let plan = BenchPlan {
            kind,
            targets: targets.to_vec(),
            rounds: 200,
            warmup: 20,
            cpu: Some(0),
            keep_samples: true,
        };
        let results = client.bench(plan, Duration::from_secs(30))?;
        ensure!(results.len() == 2);
        for result in results {
            eprintln!("{kind:?} {} p50 {} ns", result.target, result.p50);
            ensure!(result.n == 200 && result.samples.len() == 200, "{result:?}");
            ensure!(0 < result.p01 && result.p01 <= result.p50 && result.p50 <= result.p99);
        }
    }
    Ok(())
}

#[test]
fn manifests_are_ordinary_yaml_and_replaced_at_once() -> Result<()> {
    let dir = ManifestDir::new()?;
    let service = Service::new("web", ["10.96.0.10", "fd96::10"])
        .namespace("demo")
        .port("http", "TCP", 80, Some(30080))
        .kind("NodePort")
        .client_ip_affinity(60);
    dir.service(&service)?;
    let slice = EndpointSlice::v4("web", "web-1")
        .namespace("demo")
        .tcp("http", 8080)
        .ready("10.1.1.3", "node-a")
        .endpoint("10.1.2.3", "node-b", false, true, true);
    dir.slice(&slice)?;
    let text = dir.read("demo-web.yaml")?;
    for line in [
        "  clusterIPs: [\"10.96.0.10\", \"fd96::10\"]",
        "  ipFamilies: [IPv4, IPv6]",
    ] {
        ensure!(
            text.lines().any(|found| found == line),
            "{line} not in:\n{text}"
        );
    }
    dir.rename("demo-web-1.slice.yaml", "other.yaml")?;
    dir.remove("other.yaml")?;
    let left: Vec<_> = std::fs::read_dir(dir.path())?.collect();
    ensure!(left.len() == 1, "{left:?}");
    Ok(())
}

#[test]
fn guests_are_on_a_node_yet_outside_its_cgroup() -> Result<()> {
    let world = World::builder()
        .node("node-a", ["pod"])
        .guest("vm")
        .build()?;
    let (pod, vm, node) = (world.pod("pod"), world.pod("vm"), world.node("node-a"));
    vm.serve(Proto::Tcp, (vm.ip6(), 80), "vm")?;
    ensure!(pod.connect_many((vm.ip6(), 80), 2)?.of("vm") == 2);
    ensure!(pod.cgroup().starts_with(node.cgroup()) && !vm.cgroup().starts_with(node.cgroup()));
    Ok(())
}

/// Devices, addresses and routes of the machine itself.
fn host_network() -> Result<Vec<String>> {
    let read = |path| std::fs::read_to_string(path).context(path);
    let devices = std::fs::read_dir("/sys/class/net")?.flatten();
    let mut state: Vec<String> = devices
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    state.sort();
    state.push(read("/proc/net/route")?);
    state.push(read("/proc/net/if_inet6")?);
    state.push(read("/proc/sys/net/ipv4/ip_forward")?);
    state.push(read("/proc/sys/net/ipv6/conf/all/accept_dad")?);
    Ok(state)
}

#[test]
fn the_machine_itself_is_left_alone() -> Result<()> {
    let before = host_network()?;
    let world = two_nodes()?;
    ensure!(host_network()? == before, "changed while a world stands");
    drop(world);
    ensure!(host_network()? == before, "changed by its end");
    Ok(())
}

#[test]
fn a_dropped_world_leaves_nothing() -> Result<()> {
    let world = two_nodes()?;
    let id = world.id().to_owned();
    for pod in world.pods() {
        pod.udp_bound((Ipv4Addr::UNSPECIFIED, 0))?;
    }
    // Somebody else's process in the pod, and a pin: neither keeps the world.
    let mut sleeper = world
        .pod("client-a")
        .command("sleep")?
        .arg("1000")
        .spawn()?;
    std::fs::create_dir(world.node("node-a").bpffs().join("kube-portal"))?;
    ensure!(residue::of_world(&id).len() > 5);
    let started = Instant::now();
    drop(world);
    eprintln!("dropped in {:?}", started.elapsed());
    ensure!(
        residue::of_world(&id).is_empty(),
        "{:?}",
        residue::of_world(&id)
    );
    ensure!(!sleeper.wait()?.success());
    Ok(())
}

#[test]
fn a_panic_inside_a_world_leaves_nothing() -> Result<()> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let outcome = std::thread::spawn(move || {
        let world = two_nodes().expect("a world");
        world
            .pod("client-a")
            .serve(Proto::Udp, (Ipv4Addr::UNSPECIFIED, 1), "x")
            .expect("serve");
        sender.send(world.id().to_owned()).expect("send");
        panic!("on purpose");
    })
    .join();
    ensure!(outcome.is_err());
    let id = receiver.recv()?;
    ensure!(
        residue::of_world(&id).is_empty(),
        "{:?}",
        residue::of_world(&id)
    );
    Ok(())
}

/// Holds a world until it is killed.
fn be_the_victim() -> Result<()> {
    let world = two_nodes()?;
    let pod = world.pod("client-a");
    pod.serve(Proto::Udp, (pod.ip4(), 1), "x")?;
    let mut sleeper = world
        .pod("client-b")
        .command("sleep")?
        .arg("1000")
        .spawn()?;
    println!("\nholding {} {}", world.id(), sleeper.id());
    sleeper.wait()?;
    Ok(())
}

#[test]
fn what_a_killed_process_left_is_swept() -> Result<()> {
    if std::env::var_os(VICTIM).is_some() {
        return be_the_victim();
    }
    let mut victim = Command::new(std::env::current_exe()?)
        .args([
            "--exact",
            "what_a_killed_process_left_is_swept",
            "--nocapture",
        ])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .spawn()?;
    let pipe = victim.stdout.take().context("piped")?;
    let holding = BufReader::new(pipe)
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("holding ").map(str::to_owned))
        .context("the victim built no world")?;
    let (id, sleeper) = holding.split_once(' ').context("id and pid")?;
    // A living process's world is not swept.
    residue::sweep();
    ensure!(!residue::of_world(id).is_empty());
    victim.kill()?;
    victim.wait()?;
    residue::sweep();
    ensure!(
        residue::of_process(victim.id()).is_empty(),
        "{:?}",
        residue::of_world(id)
    );
    let sleeper: u32 = sleeper.parse()?;
    wait::until("the orphan's end", Duration::from_secs(5), || {
        (!residue::is_alive(sleeper)).then_some(())
    })
}

#[test]
fn the_kernel_lists_its_programs() -> Result<()> {
    // Whether there are any depends on the machine; that we can ask is what matters.
    let programs = tests::bpf::programs()?;
    let links = tests::bpf::links()?;
    eprintln!("{} programs, {} links", programs.len(), links.len());
    ensure!(links.values().all(|program| programs.contains_key(program)));
    Ok(())
}
