//! The configuration as kube-proxy's: a file that is watched, flags of the same names.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{
    EndpointSlice, ManifestDir, Service, Source, World, binaries,
    cluster::{self, Cluster, kubeconfig},
    http::{get, is_refused},
    stage::{BACKENDS, PATIENCE, Stage, VIP4, VIP6, answered_by, at, eventually, web_slices},
};

const NODE_PORT: u16 = 30080;
/// Another address of the node than that of its Node object.
const OTHER: &str = "192.0.2.77";
/// A score that anybody may set: to lower one takes a capability.
const CONFIG: &str = "\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
oomScoreAdj: 123
";

/// As kubelet mounts a ConfigMap: the file is a link through `..data`, which is swapped by rename.
fn mount(dir: &Path, version: &str, text: &str) -> Result<()> {
    fs::create_dir(dir.join(version))?;
    fs::write(dir.join(version).join("config.conf"), text)?;
    symlink(version, dir.join("..tmp"))?;
    fs::rename(dir.join("..tmp"), dir.join("..data"))?;
    let link = dir.join("config.conf");
    if link.symlink_metadata().is_err() {
        symlink("..data/config.conf", link)?;
    }
    Ok(())
}

fn run(program: &Path, args: &[&str]) -> Result<Output> {
    Command::new(program)
        .args(args)
        .env_remove("NODE_NAME")
        .env_remove("RUST_LOG")
        .output()
        .with_context(|| format!("{} {args:?}", program.display()))
}

/// A stage whose Service has a NodePort and whose Node object is there, and its agent reads `rest` of a
/// configuration file, which lies in the folder.
fn configured(rest: impl FnOnce(&tests::Node) -> String) -> Result<(Stage, tempfile::TempDir)> {
    let mut stage = Stage::new(|world, manifests| {
        let service = Service::new("web", [VIP4, VIP6]).kind("NodePort");
        manifests.service(&service.port("http", "TCP", 80, Some(NODE_PORT)))?;
        web_slices(world, manifests, &BACKENDS)?;
        let node = world.node("node-a");
        manifests.node("node-a", [node.ip4(), node.ip6()])
    })?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("config.conf");
    let node = stage.world.node("node-a");
    node.netns()
        .ip(&format!("address add {OTHER}/32 dev lo\n"))?;
    let rest = rest(node);
    fs::write(&file, format!("{CONFIG}{rest}"))?;
    let flag = format!("--config={}", file.display());
    let source = Source::Manifests(stage.manifests.path().to_owned());
    stage.agent.restart_with(source, &[&flag])?;
    stage.agent.wait_ready(PATIENCE)?;
    Ok((stage, dir))
}

/// NodePorts answer on these addresses, and on the node's loopback addresses.
fn node_ports_are_on(stage: &Stage, wanted: &[IpAddr]) -> Result<()> {
    let mut wanted: Vec<IpAddr> = wanted.to_vec();
    wanted.extend(["127.0.0.1", "::1"].map(|ip| at(ip, 0).ip()));
    wanted.sort_unstable();
    eventually("the NodePorts to be on their addresses", || {
        let status = stage.agent.status()?;
        let frontends = status["frontends"].as_array().context("frontends")?;
        let mut found = frontends
            .iter()
            .filter(|frontend| frontend["port"] == NODE_PORT)
            .map(|frontend| {
                Ok(frontend["address"]
                    .as_str()
                    .context("an address")?
                    .parse()?)
            })
            .collect::<Result<Vec<IpAddr>>>()?;
        found.sort_unstable();
        ensure!(found == wanted, "{found:?} are not {wanted:?}");
        Ok(())
    })
}

#[test]
fn node_ports_and_servers_are_where_the_file_says() -> Result<()> {
    let (stage, _dir) = configured(|node| {
        format!(
            "nodePortAddresses: [192.0.2.0/24, {}/128]\nhealthzBindAddress: {OTHER}:10300\n\
             metricsBindAddress: {}\n",
            node.ip6(),
            node.ip4(),
        )
    })?;
    let node = stage.world.node("node-a");
    let other = at(OTHER, NODE_PORT);
    node_ports_are_on(&stage, &[other.ip(), node.ip6()])?;
    answered_by(&stage.client().probe().connect_many(other, 60)?, &BACKENDS)?;

    let ask = |ip, port, path: &str| get(node.netns(), SocketAddr::new(ip, port), path);
    ensure!(ask(other.ip(), 10300, "/livez")?.code() == 200);
    // Without a port it is the usual one.
    ensure!(ask(node.ip4(), 10249, "/metrics")?.code() == 200);
    for port in [10256, 10249] {
        let usual = ask(at("127.0.0.1", 0).ip(), port, "/healthz");
        ensure!(is_refused(&usual), "{usual:?}");
    }
    Ok(())
}

#[test]
fn configz_shows_the_file_with_every_default() -> Result<()> {
    let (stage, dir) = configured(|_| "conntrack: {udpTimeout: 90s}\n".to_owned())?;
    let netns = stage.world.node("node-a").netns();
    let reply = get(netns, at("127.0.0.1", 10249), "/configz")?;
    ensure!(
        reply.code() == 200
            && reply
                .headers
                .contains(&"Content-Type: application/json".to_owned()),
        "{reply:?}"
    );
    let shown: Value = serde_json::from_str(&reply.body)?;
    let (group, config) = shown
        .as_object()
        .and_then(|groups| groups.iter().next())
        .context("a group")?;
    ensure!(group == "kubeproxy.config.k8s.io", "{reply:?}");
    for (field, value) in [
        ("/kind", "KubeProxyConfiguration"),
        ("/mode", "nftables"),
        ("/nodePortAddresses/0", "primary"),
        ("/conntrack/udpTimeout", "1m30s"),
        ("/metricsBindAddress", "127.0.0.1:10249"),
    ] {
        ensure!(
            config.pointer(field) == Some(&value.into()),
            "{field}: {config}"
        );
    }
    // It is what --write-config-to writes.
    let written = dir.path().join("written.yaml");
    let flags = [
        format!("--config={}", dir.path().join("config.conf").display()),
        format!("--hostname-override={}", stage.agent.node()),
        format!("--write-config-to={}", written.display()),
    ];
    let output = run(
        &binaries::kube_portal()?,
        &flags.each_ref().map(String::as_str),
    )?;
    ensure!(output.status.success(), "{output:?}");
    let written: Value = serde_yaml_ng::from_str(&fs::read_to_string(written)?)?;
    ensure!(*config == written, "{config} is not {written}");
    Ok(())
}

#[test]
fn the_bind_address_is_the_primary_address_of_its_family() -> Result<()> {
    let (stage, _dir) = configured(|_| format!("bindAddress: {OTHER}\n"))?;
    let node = stage.world.node("node-a");
    node_ports_are_on(&stage, &[at(OTHER, 0).ip(), node.ip6()])
}

#[test]
fn fields_that_do_not_exist_or_are_said_twice_are_told_and_the_agent_runs() -> Result<()> {
    let rest = "udpIdleTimeout: 250ms\niptables: {masqueradeRandomly: true}\noomScoreAdj: 7\n";
    let (stage, dir) = configured(|_| rest.to_owned())?;
    let file = dir.path().join("config.conf");
    let file = file.to_str().context("a path")?;
    for parts in [
        ["WARN", file, "udpIdleTimeout", "no such field"],
        ["WARN", file, "iptables.masqueradeRandomly", "no such field"],
        ["WARN", file, "oomScoreAdj", "the last one counts"],
    ] {
        stage.agent.wait_line(&parts, PATIENCE)?;
    }
    let pid = stage.agent.pid().context("it runs")?;
    let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?;
    ensure!(score.trim() == "7", "oom_score_adj {score}");
    Ok(())
}

#[test]
fn what_does_not_take_effect_is_told_once_each() -> Result<()> {
    let rest = "featureGates: {A: true}\nclusterCIDR: 10.244.0.0/16\nconntrack: {maxPerCore: 1}\n";
    let (stage, _dir) = configured(|_| rest.to_owned())?;
    for (field, what) in [
        ("featureGates", "has no meaning here"),
        ("clusterCIDR", "has no meaning here"),
        ("conntrack.maxPerCore", "has no meaning here"),
    ] {
        let line = stage.agent.wait_line(&["WARN", field], PATIENCE)?;
        ensure!(line.contains(what), "{line}");
        ensure!(stage.agent.count_log(field) == 1, "{:?}", stage.agent.log());
    }
    ensure!(
        stage.agent.count_log(" WARN ") == 3,
        "{:?}",
        stage.agent.log()
    );
    Ok(())
}

#[test]
fn the_cluster_is_that_of_the_file_and_not_of_the_flag() -> Result<()> {
    let mut cluster = Cluster::new(&[], |_, server| {
        server.apply(cluster::service(
            &Service::new("web", [VIP4]).tcp("http", 80),
        ));
        let slice = EndpointSlice::v4("web", "web-4").tcp("http", 8080);
        server.apply(serde_yaml_ng::from_str(&slice.yaml())?);
        Ok(())
    })?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("config.conf");
    let named = kubeconfig(&cluster.world, &cluster.server)?;
    let rest = format!("clientConnection: {{kubeconfig: {}}}\n", named.display());
    fs::write(&file, format!("{CONFIG}{rest}"))?;
    let flag = format!("--config={}", file.display());
    let nowhere = Source::Kubeconfig("/nowhere/kubeconfig".into());
    cluster.agent.restart_with(nowhere, &[&flag])?;
    cluster
        .agent
        .wait_log("first sync done: 1 Services", PATIENCE)?;
    cluster
        .agent
        .wait_line(&["WARN", "--kubeconfig", "ignored"], PATIENCE)?;
    Ok(())
}

#[test]
fn a_server_that_can_not_be_had_ends_an_agent_whose_file_asks_for_that() -> Result<()> {
    let world = World::builder().node("node-a", ["client"]).build()?;
    let node = world.node("node-a");
    let taken = SocketAddr::new(node.ip4(), 10300);
    let _taken = node
        .netns()
        .enter(|| std::net::TcpListener::bind(taken))??;
    let (manifests, dir) = (ManifestDir::new()?, tempfile::tempdir()?);
    let file = dir.path().join("config.conf");
    let rest = format!("healthzBindAddress: {taken}\nbindAddressHardFail: true\n");
    fs::write(&file, format!("{CONFIG}{rest}"))?;
    let flag = format!("--config={}", file.display());
    let source = Source::Manifests(manifests.path().to_owned());
    let mut agent = node.start_agent_with(source, &[&flag])?;
    let status = agent.wait_exit(PATIENCE)?;
    ensure!(status.code() == Some(1), "{status}");
    agent.wait_line(&[&taken.to_string(), "in use"], PATIENCE)?;
    Ok(())
}

#[test]
fn the_agent_ends_when_its_config_map_says_something_else() -> Result<()> {
    let mut stage = Stage::usual()?;
    let config_map = tempfile::tempdir()?;
    mount(config_map.path(), "..1", CONFIG)?;
    let flag = format!("--config={}/config.conf", config_map.path().display());
    let source = || Source::Manifests(stage.manifests.path().to_owned());
    stage
        .agent
        .restart_with(source(), &[&flag, "--cluster-cidr=10.0.0.0/8"])?;
    stage.agent.wait_ready(PATIENCE)?;
    stage
        .agent
        .wait_line(&["WARN", "--cluster-cidr", "ignored"], PATIENCE)?;
    let pid = stage.agent.pid().context("it runs")?;
    let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?;
    ensure!(score.trim() == "123", "oom_score_adj {score}");

    // The same again, as kubelet writes it when another key of the ConfigMap changes.
    mount(config_map.path(), "..2", CONFIG)?;
    // Noticed and seen through: the change of a backend comes later and is in effect.
    stage.set_backends(&["backend-2"])?;
    ensure!(stage.agent.is_running(), "the same content ended it");

    mount(config_map.path(), "..3", &CONFIG.replace("123", "5"))?;
    let status = stage.agent.wait_exit(PATIENCE)?;
    ensure!(status.code() == Some(1), "{status}");
    stage.agent.wait_log("its content has changed", PATIENCE)?;
    // Nobody notices until it is started again.
    let probe = stage.client().probe();
    answered_by(&probe.connect_many(at(VIP4, 80), 20)?, &["backend-2"])?;
    stage.agent.restart()?;
    stage.agent.wait_ready(PATIENCE)?;
    stage.set_backends(&BACKENDS)
}

#[test]
fn a_file_or_flag_that_can_not_be_ends_the_start_with_one_line() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("config.conf");
    fs::write(&file, format!("{CONFIG}clusterCIDR: 10.0.0.300/8\n"))?;
    let file = file.to_str().context("a path")?;
    for (args, parts) in [
        (
            vec!["--config", file],
            [file, "clusterCIDR", "10.0.0.300/8"],
        ),
        (
            vec!["--config", "/nowhere/config.conf"],
            ["/nowhere/config.conf", "can't be read", "No such file"],
        ),
        (
            vec!["--oom-score-adj=5000"],
            ["--oom-score-adj", "5000", "1000"],
        ),
    ] {
        let output = run(&binaries::kube_portal()?, &args)?;
        let told = String::from_utf8(output.stderr)?;
        ensure!(output.status.code() == Some(2), "{args:?}: {told}");
        ensure!(
            told.lines().count() == 1 && parts.iter().all(|part| told.contains(part)),
            "{args:?}: {told}"
        );
    }
    Ok(())
}

#[test]
fn called_kube_proxy_it_writes_a_configuration_that_reads_back_the_same() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let kube_proxy = dir.path().join("kube-proxy");
    symlink(binaries::kube_portal()?, &kube_proxy)?;
    let (first, second) = (dir.path().join("1.yaml"), dir.path().join("2.yaml"));
    let write = |args: &[&str], file: &Path| -> Result<String> {
        let flag = format!("--write-config-to={}", file.display());
        let output = run(&kube_proxy, &[args, &[flag.as_str()]].concat())?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{told}");
        Ok(fs::read_to_string(file)?)
    };
    let flags = [
        "--cluster_cidr=10.244.0.0/16",
        "--masquerade-all",
        "--conntrack-udp-timeout=90s",
        "-v=2",
    ];
    let written = write(&flags, &first)?;
    for line in [
        "kind: KubeProxyConfiguration",
        "clusterCIDR: 10.244.0.0/16",
        "udpTimeout: 1m30s",
        "oomScoreAdj: -999",
    ] {
        ensure!(written.contains(line), "no {line:?} in\n{written}");
    }
    let config = format!("--config={}", first.display());
    ensure!(write(&[&config], &second)? == written);
    Ok(())
}
