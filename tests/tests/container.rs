//! What is shipped: the image, and the DaemonSet that runs it.

use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::Probe};
use packaging::Image;
use serde_json::{Value, json};
use tests::{
    Agent, Service, World,
    apiserver::{ApiServer, Authority},
    binaries, cluster,
    container::{Account, Container, DAEMON_SET, Permissions, granted_by_role, permission_for},
    fleet::{endpoint_slices, families, node_port, reached},
    http,
    stage::{PATIENCE, TARGET, VIP4, VIP6, at, eventually, serve},
};

const PORT: u16 = 30_080;
const TOKEN: &str = "of-the-service-account";
const EPOCH: u64 = 1_700_000_000;
/// A program of no importance, as most are.
const NOBODY: u32 = 65_534;
const SHORT: Duration = Duration::from_millis(300);

/// The archive, made once.
fn archive() -> &'static Path {
    static ARCHIVE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = ARCHIVE.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let image = Image::of(&binaries::kube_portal().expect("built")).expect("an image");
        let output = folder.path().join("image.tar");
        let tag = "registry.example/kube-portal:test";
        image
            .write_archive(&output, Some(tag), EPOCH, Some("c0ffee"))
            .expect("an archive");
        tar(&["-xf", "image.tar"], folder.path()).expect("tar");
        folder
    });
    folder.path()
}

fn tar(args: &[&str], folder: &Path) -> Result<String> {
    said(Command::new("tar").args(args).current_dir(folder))
}

fn said(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

fn read(file: &str) -> Result<Value> {
    let path = archive().join(file);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(serde_json::from_str(&text)?)
}

/// The file that a descriptor names, after its size and digest have been looked at by somebody else.
fn blob(descriptor: &Value) -> Result<String> {
    let digest = descriptor["digest"].as_str().context("no digest")?;
    let hash = digest.strip_prefix("sha256:").context("another hash")?;
    let file = format!("blobs/sha256/{hash}");
    let sum = said(Command::new("sha256sum").arg(&file).current_dir(archive()))?;
    ensure!(sum.starts_with(hash), "{file}: {sum}");
    let size = fs::metadata(archive().join(&file))?.len();
    ensure!(descriptor["size"] == size, "{descriptor}: {size}");
    Ok(file)
}

/// The files of the image, as an engine would unpack them, in a new folder.
fn unpacked(at: &Path) -> Result<()> {
    let docker = read("manifest.json")?;
    let layer = docker[0]["Layers"][0].as_str().context("no layer")?;
    fs::create_dir_all(at)?;
    let from = archive().join(layer);
    tar(&["-xzf", from.to_str().context("a path")?], at).map(drop)
}

#[test]
fn the_archive_is_an_oci_layout_and_one_of_docker_with_the_same_blobs() -> Result<()> {
    ensure!(read("oci-layout")? == json!({"imageLayoutVersion": "1.0.0"}));
    let index = read("index.json")?;
    let entry = &index["manifests"][0];
    let names = json!({
        "io.containerd.image.name": "registry.example/kube-portal:test",
        "org.opencontainers.image.ref.name": "test",
    });
    ensure!(entry["annotations"] == names, "{entry}");
    let manifest = read(&blob(entry)?)?;
    let config_file = blob(&manifest["config"])?;
    let layer_file = blob(&manifest["layers"][0])?;
    ensure!(manifest["layers"].as_array().map(Vec::len) == Some(1));
    let docker = json!([{
        "Config": config_file,
        "RepoTags": ["registry.example/kube-portal:test"],
        "Layers": [layer_file],
    }]);
    ensure!(read("manifest.json")? == docker);

    let config = read(&config_file)?;
    ensure!(config["os"] == "linux" && config["created"] == "2023-11-14T22:13:20Z");
    ensure!(config["config"]["Entrypoint"] == json!(["/usr/local/bin/kube-portal"]));
    let labels = &config["config"]["Labels"];
    ensure!(
        labels["org.opencontainers.image.version"] == env!("CARGO_PKG_VERSION")
            && labels["org.opencontainers.image.licenses"] == env!("CARGO_PKG_LICENSE")
            && labels["org.opencontainers.image.revision"] == "c0ffee"
            && labels["kube-portal.abi"] == json!(proxy_common::abi::ABI_VERSION.to_string()),
        "{labels}"
    );
    // What is named is the layer as it is without gzip.
    let script = format!("gzip -dc {layer_file} | sha256sum");
    let sum = said(
        Command::new("sh")
            .args(["-c", &script])
            .current_dir(archive()),
    )?;
    let hash = sum.split_whitespace().next().context("no hash")?;
    ensure!(config["rootfs"]["diff_ids"] == json!([format!("sha256:{hash}")]));
    Ok(())
}

#[test]
fn the_image_holds_the_binary_and_its_libraries_all_roots_and_of_one_time() -> Result<()> {
    let layer = read("manifest.json")?[0]["Layers"][0].clone();
    let layer = layer.as_str().context("no layer")?;
    let list = tar(&["--utc", "--full-time", "-tvzf", layer], archive())?;
    let agent = binaries::kube_portal()?;
    let linked = said(Command::new("ldd").arg(&agent))?;
    let mut wanted: Vec<&str> = linked
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .collect();
    wanted.extend(["/usr/local/bin/kube-portal", "/usr/local/bin/kube-proxy"]);
    wanted.sort_unstable();
    let mut found = Vec::new();
    for line in list.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [mode, owner, _, day, time, path, ..] = words[..] else {
            anyhow::bail!("{line}");
        };
        ensure!(owner.ends_with("0/0") || owner == "root/root", "{line}");
        ensure!((day, time) == ("2023-11-14", "22:13:20"), "{line}");
        if !mode.starts_with('d') {
            found.push(format!("/{path}"));
        }
    }
    found.sort();
    ensure!(found == wanted, "{found:?}\n{wanted:?}");
    Ok(())
}

#[test]
fn the_program_runs_with_nothing_but_the_image_by_both_its_names() -> Result<()> {
    let folder = tempfile::tempdir()?;
    unpacked(folder.path())?;
    for name in ["kube-portal", "kube-proxy"] {
        let said = said(
            Command::new("chroot")
                .arg(folder.path())
                .arg(format!("/usr/local/bin/{name}"))
                .arg("--version")
                .env_clear()
                .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        )?;
        let wanted = format!(
            "kube-portal {} (ABI {})\n",
            env!("CARGO_PKG_VERSION"),
            proxy_common::abi::ABI_VERSION
        );
        ensure!(said == wanted, "{said:?}");
    }
    Ok(())
}

fn spec() -> Result<k8s_openapi::api::core::v1::Container> {
    let daemon_set: DaemonSet = serde_yaml_ng::from_str(DAEMON_SET)?;
    let pod = daemon_set.spec.and_then(|spec| spec.template.spec);
    let mut containers = pod.context("a pod")?.containers;
    containers.pop().context("a container")
}

/// A bit each.
fn capabilities() -> Result<u64> {
    let security = spec()?.security_context.context("a securityContext")?;
    let names = security
        .capabilities
        .and_then(|all| all.add)
        .unwrap_or_default();
    // Numbers of include/uapi/linux/capability.h.
    let number = |name: &String| match name.as_str() {
        "DAC_READ_SEARCH" => Ok(2),
        "NET_ADMIN" => Ok(12),
        "SYS_PTRACE" => Ok(19),
        "SYS_RESOURCE" => Ok(24),
        "PERFMON" => Ok(38),
        "BPF" => Ok(39),
        other => anyhow::bail!("{other} is new here: give its number"),
    };
    names.iter().map(|name| Ok(1 << number(name)?)).sum()
}

/// What /proc says of a process.
#[derive(Debug)]
struct Process {
    effective: u64,
    bounding: u64,
    no_new_privileges: bool,
}

fn process(pid: &str) -> Result<Process> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim).with_context(|| name.to_owned())
    };
    Ok(Process {
        effective: u64::from_str_radix(field("CapEff:")?, 16)?,
        bounding: u64::from_str_radix(field("CapBnd:")?, 16)?,
        no_new_privileges: field("NoNewPrivs:")? == "1",
    })
}

/// The agent of the DaemonSet, in the image, on node-a; and an API server that knows its ServiceAccount.
struct Shipped {
    agent: Agent,
    server: ApiServer,
    world: World,
}

/// How the agent learns where the API server is.
#[derive(PartialEq, Eq)]
enum Told {
    ByTheKubelet,
    /// As `deploy/example` has it; the ClusterIP that the kubelet names leads nowhere yet.
    ByFlag,
}

impl Shipped {
    fn new(told: Told, extra: &[&str]) -> Result<Self> {
        let world = World::builder()
            .node("node-a", ["client", "near"])
            .node("node-b", ["far"])
            .outside("laptop")
            .build()?;
        for name in ["near", "far"] {
            serve(world.pod(name), TARGET)?;
        }
        let node = world.node("node-a");
        let listener = node.netns().enter(|| TcpListener::bind("127.0.0.1:0"))??;
        let authority = Authority::new("the cluster's")?;
        let identity = authority.issue(&["127.0.0.1"])?;
        let server = ApiServer::start_with(listener, |server| {
            server.use_tls(&identity, None).expect("certificates");
            server.demand_token(TOKEN);
            server.apply(json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"},
                "status": {"addresses": families(node.host()).map(|ip| json!({"type": "InternalIP", "address": ip}))},
            }));
            server.apply(cluster::service(&node_port("web", [VIP4, VIP6], PORT)));
        })?;
        let url = format!("https://{}", server.addr());
        let root: PathBuf = world.dir().join("root");
        unpacked(&root)?;
        let flag = format!("--apiserver={url}");
        let mut extra = extra.to_vec();
        let by_kubelet = match told {
            Told::ByTheKubelet => &url,
            Told::ByFlag => {
                extra.push(&flag);
                "https://10.96.0.1:443"
            }
        };
        let account = Account {
            url: by_kubelet,
            ca: &authority.pem(),
            token: TOKEN,
        };
        let entrypoint = read(&blob(
            &read(&blob(&read("index.json")?["manifests"][0])?)?["config"],
        )?)?;
        let entrypoint = entrypoint["config"]["Entrypoint"][0].clone();
        let entrypoint = entrypoint.as_str().context("no entrypoint")?;
        let container = Container::new(node, root, entrypoint, &account)?;
        let agent = node.start_container(container, &extra)?;
        let shipped = Self {
            agent,
            server,
            world,
        };
        shipped.set_backends(&["near", "far"]);
        shipped.agent.wait_ready(PATIENCE)?;
        shipped.agent.wait_log("attached by", PATIENCE)?;
        Ok(shipped)
    }

    fn set_backends(&self, names: &[&str]) {
        for slice in endpoint_slices(&self.world, "web", names) {
            self.server.apply(cluster::object(&slice.yaml()));
        }
    }

    /// Clients inside and outside are served.
    fn serves(&self) -> Result<()> {
        eventually("a pod to be served", || {
            for vip in [VIP4, VIP6] {
                let tally = self.world.pod("client").connect_many(at(vip, 80), 10)?;
                ensure!(tally.failed() == 0, "{tally}");
            }
            Ok(())
        })?;
        let node = self.world.node("node-a");
        let laptop = self.world.pod("laptop");
        let client = families(laptop);
        let from_here = families(node.host());
        for family in 0..2 {
            let to = SocketAddr::new(from_here[family], PORT);
            let wanted = [("near", client[family]), ("far", from_here[family])];
            eventually("a NodePort to be served", || {
                reached(laptop, to, to, &wanted)
            })?;
        }
        Ok(())
    }

    /// What was asked of the API server.
    fn asked(&self) -> Permissions {
        let log = self.server.log();
        log.iter().filter_map(|line| permission_for(line)).collect()
    }
}

#[test]
fn the_daemonsets_agent_serves_moves_flows_restarts_and_cleans_up_with_its_capabilities_alone()
-> Result<()> {
    let mut shipped = Shipped::new(Told::ByTheKubelet, &["--max-services", "1024"])?;
    // The harness gave it what the manifest says.
    let ours = process("self")?;
    let its = process(&shipped.agent.pid().context("it runs")?.to_string())?;
    let wanted = capabilities()?;
    // A machine may withhold some from root.
    let had = wanted & ours.bounding;
    ensure!(
        its.effective == had && its.bounding == had,
        "{its:x?}, and {wanted:x} is granted"
    );
    ensure!(its.no_new_privileges, "{its:x?}");

    shipped.serves()?;
    let log = shipped.agent.log();
    let told: Vec<&String> = log
        .iter()
        .filter(|line| line.contains(" WARN") || had == wanted && line.contains("going on without"))
        .collect();
    ensure!(told.is_empty(), "{told:#?}");

    // A connected socket of a process that is not root's.
    let client = shipped.world.pod("client");
    client.probe().belong_to(NOBODY);
    let socket = client.probe().udp_connected(at(VIP4, 53))?;
    let first = socket.exchange_within(None, "first", SHORT * 5)?;
    let (gone, stays) = if first.name == "near" {
        ("near", "far")
    } else {
        ("far", "near")
    };
    shipped.set_backends(&[stays]);
    eventually("the flow to be moved", || {
        let answer = socket.exchange_within(None, "moved?", SHORT)?;
        ensure!(
            answer.name == stays && answer.client == first.client,
            "{answer:?}, not {gone}"
        );
        Ok(())
    })?;
    shipped.set_backends(&["near", "far"]);
    let kept = client.connect(at(VIP4, 80))?;

    shipped.agent.kill();
    shipped.world.pod("client").connect_many(at(VIP4, 80), 10)?;
    shipped.agent.restart()?;
    shipped.agent.wait_ready(PATIENCE)?;
    shipped.agent.wait_log("adopting", PATIENCE)?;
    shipped.serves()?;
    kept.exchange("still there")?;
    let status = shipped.agent.status()?;
    ensure!(
        status["frontends"]
            .as_array()
            .is_some_and(|all| !all.is_empty()),
        "{status}"
    );

    shipped.agent.stop()?;
    shipped.agent.cleanup()?;
    let pins = shipped.world.node("node-a").bpffs().join("kube-portal");
    ensure!(!pins.exists(), "{} is left", pins.display());
    let dialled = client.connect_many(at(VIP4, 80), 1)?;
    ensure!(dialled.failed() == 1, "{dialled}");
    Ok(())
}

#[test]
fn the_probes_of_the_daemonset_are_answered() -> Result<()> {
    let shipped = Shipped::new(Told::ByFlag, &["--max-services", "1024"])?;
    let spec = spec()?;
    let ports: BTreeMap<&str, i32> = spec
        .ports
        .iter()
        .flatten()
        .filter_map(|port| Some((port.name.as_deref()?, port.container_port)))
        .collect();
    let node = shipped.world.node("node-a");
    let probes = [
        &spec.startup_probe,
        &spec.liveness_probe,
        &spec.readiness_probe,
    ];
    for probe in probes {
        let get = probe
            .as_ref()
            .and_then(|probe: &Probe| probe.http_get.as_ref());
        let get = get.context("a probe by HTTP")?;
        let path = get.path.as_deref().context("a path")?;
        let port = serde_json::to_value(&get.port)?;
        let number = ports
            .get(port.as_str().context("a named port")?)
            .context("a port")?;
        // As the kubelet does, which asks the pod's address: the node's.
        let to = SocketAddr::new(node.ip4(), u16::try_from(*number)?);
        eventually(path, || {
            let reply = http::get(node.netns(), to, path)?;
            ensure!(reply.code() == 200, "{reply:?}");
            Ok(())
        })?;
    }
    let metrics = u16::try_from(*ports.get("metrics").context("a port for metrics")?)?;
    let reply = http::get(
        node.netns(),
        SocketAddr::from(([127, 0, 0, 1], metrics)),
        "/metrics",
    )?;
    ensure!(reply.code() == 200, "{reply:?}");
    Ok(())
}

#[test]
fn the_role_grants_what_the_agent_asks_for_and_nothing_else() -> Result<()> {
    let shipped = Shipped::new(Told::ByFlag, &["--max-services", "8"])?;
    // There is no room for it: an Event tells so, and a second time when it has gone and come again.
    let crowd = (1..=6).fold(Service::new("crowd", [VIP4]), |service, number| {
        service.tcp(&format!("port-{number}"), number)
    });
    let crowd = cluster::service(&crowd);
    shipped.server.apply(crowd.clone());
    eventually("an Event", || {
        let posted = shipped.server.posted();
        ensure!(
            posted.iter().any(|event| event["reason"] == "MapFull"),
            "{posted:?}"
        );
        Ok(())
    })?;
    shipped.server.delete("Service", "default", "crowd");
    eventually("it to be gone", || {
        let status = shipped.agent.status()?.to_string();
        ensure!(!status.contains("crowd"), "{status}");
        Ok(())
    })?;
    shipped.server.apply(crowd);
    let granted = granted_by_role()?;
    eventually("everything to be asked for", || {
        let asked = shipped.asked();
        ensure!(
            asked == granted,
            "asked for {asked:#?}, granted {granted:#?}"
        );
        Ok(())
    })
}
