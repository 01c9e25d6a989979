//! Beside a kube-proxy and in its place; and the node as it was before.
//!
//! A kube-proxy is nothing but its rules here: those of its modes, in their shape, with one endpoint for
//! each Service.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    io::Write as _,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use tests::{
    Agent, ManifestDir, Node, Source, World,
    bench::kube_proxy::{self, Port},
    bpf,
    fleet::{node_port, slices},
    probe::ChurnPlan,
    stage::{PATIENCE, TARGET, at, eventually, serve},
    tc::tc,
    wait,
};

/// Service, its ClusterIP and NodePort, its backend: one on the node, one elsewhere.
const SERVICES: [(&str, &str, u16, &str); 2] = [
    ("web-near", "10.96.0.10", 30_080, "near"),
    ("web-far", "10.96.0.11", 30_081, "far"),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Nftables,
    /// By iptables of this kind: `nft`, `legacy`.
    Iptables(&'static str),
}

/// Runs a program on a node with this input.
fn run(node: &Node, program: &str, args: &[&str], input: &str) -> Result<String> {
    node.netns().enter(|| {
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("run {program} (is it installed? cargo xtask setup)"))?;
        child
            .stdin
            .take()
            .context("a pipe")?
            .write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!(
                "{program}: {}\n{input}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    })?
}

fn ports(world: &World) -> Vec<Port> {
    let mut ports = Vec::new();
    for (name, vip, node_port, backend) in SERVICES {
        for (protocol, port) in [("tcp", 80), ("udp", 53)] {
            ports.push(Port {
                name: format!("{name}-{protocol}"),
                protocol,
                vip: at(vip, port),
                node_port: Some(node_port),
                endpoint: SocketAddr::new(world.pod(backend).ip4(), TARGET),
            });
        }
    }
    ports
}

/// What mode iptables makes of it, and around it what the kubelet and others have there.
fn iptables_rules(ports: &[Port]) -> String {
    let mut nat = String::from(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-POSTROUTING - [0:0]\n\
         :KUBE-MARK-MASQ - [0:0]\n:KUBE-PROXY-CANARY - [0:0]\n\
         -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
         -A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE\n",
    );
    for (number, port) in ports.iter().enumerate() {
        let Port {
            name,
            protocol,
            vip,
            endpoint,
            ..
        } = port;
        let node_port = port.node_port.unwrap_or_default();
        let _ = writeln!(
            nat,
            ":KUBE-SVC-{number} - [0:0]\n:KUBE-SEP-{number} - [0:0]\n:KUBE-EXT-{number} - [0:0]\n\
             -A KUBE-SERVICES -d {} -p {protocol} -m comment --comment \"default/{name} cluster IP\" -m {protocol} --dport {} -j KUBE-SVC-{number}\n\
             -A KUBE-NODEPORTS -p {protocol} -m comment --comment default/{name} -m {protocol} --dport {node_port} -j KUBE-EXT-{number}\n\
             -A KUBE-EXT-{number} -j KUBE-MARK-MASQ\n\
             -A KUBE-EXT-{number} -j KUBE-SVC-{number}\n\
             -A KUBE-SVC-{number} -m comment --comment \"default/{name} -> {endpoint}\" -j KUBE-SEP-{number}\n\
             -A KUBE-SEP-{number} -s {} -j KUBE-MARK-MASQ\n\
             -A KUBE-SEP-{number} -p {protocol} -m {protocol} -j DNAT --to-destination {endpoint}",
            vip.ip(),
            vip.port(),
            endpoint.ip()
        );
    }
    nat.push_str(
        "-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\nCOMMIT\n",
    );
    nat.push_str(FILTER);
    nat
}

/// Of both families.
const FILTER: &str = "*filter\n:KUBE-FORWARD - [0:0]\n:KUBE-EXTERNAL-SERVICES - [0:0]\n\
     :KUBE-SERVICES - [0:0]\n:KUBE-PROXY-FIREWALL - [0:0]\n:KUBE-PROXY-CANARY - [0:0]\n\
     -A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES\n\
     -A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL\n\
     -A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n\
     -A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
     -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
     -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n\
     *mangle\n:KUBE-PROXY-CANARY - [0:0]\nCOMMIT\n";

/// The kubelet's, a CNI's, an administrator's.
const OTHERS_BY_IPTABLES: &str = "*nat\n:CNI-HOSTPORT-DNAT - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\n\
     :KUBE-ROUTER-NAT - [0:0]\n\
     -A PREROUTING -m comment --comment \"not ours -j KUBE-SERVICES\" -j CNI-HOSTPORT-DNAT\n\
     -A POSTROUTING -s 203.0.113.0/24 -j MASQUERADE\nCOMMIT\n\
     *filter\n:KUBE-FIREWALL - [0:0]\n:KUBE-POD-FW-A - [0:0]\n-A INPUT -j KUBE-FIREWALL\n\
     -A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP\nCOMMIT\n\
     *mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n";
const OTHERS_BY_NFT: &str = "table inet kube-proxy-not {
  chain forward {
    type filter hook forward priority 0;
  }
}
table ip cni {
  chain masquerading {
    type nat hook postrouting priority 100;
    ip saddr 203.0.113.0/24 masquerade
  }
}
";

impl Mode {
    fn restore(self, node: &Node, family: &str, rules: &str) -> Result<()> {
        let Self::Iptables(kind) = self else {
            bail!("no iptables");
        };
        let tool = format!("{family}-{kind}-restore");
        run(node, &tool, &["--noflush"], rules).map(drop)
    }

    fn others(self, node: &Node) -> Result<()> {
        match self {
            Self::Nftables => node.netns().nft(OTHERS_BY_NFT),
            Self::Iptables(_) => {
                self.restore(node, "iptables", OTHERS_BY_IPTABLES)?;
                let v6 = OTHERS_BY_IPTABLES.replace("203.0.113.0/24", "2001:db8::/64");
                self.restore(node, "ip6tables", &v6)
            }
        }
    }

    /// kube-proxy starts.
    fn serve(self, world: &World) -> Result<()> {
        let node = world.node("node-a");
        let ports = ports(world);
        if self == Self::Nftables {
            let rules = kube_proxy::ruleset(node.ip4(), "10.1.0.0/16", &ports);
            node.netns().nft(&rules)?;
            return node
                .netns()
                .nft("table ip6 kube-proxy {\n chain services {\n }\n}\n");
        }
        self.restore(node, "iptables", &iptables_rules(&ports))?;
        self.restore(node, "ip6tables", FILTER)
    }

    /// All rules, without counts.
    fn rules(self, node: &Node) -> Result<Vec<String>> {
        let saved = match self {
            Self::Nftables => run(node, "nft", &["list", "ruleset"], "")?,
            Self::Iptables(kind) => ["iptables", "ip6tables"]
                .map(|family| run(node, &format!("{family}-{kind}-save"), &[], ""))
                .into_iter()
                .collect::<Result<String>>()?,
        };
        Ok(saved
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split(" [").next().unwrap_or_default().to_owned())
            .collect())
    }
}

fn manifests(world: &World) -> Result<ManifestDir> {
    let manifests = ManifestDir::new()?;
    for node in world.nodes() {
        manifests.node(node.name(), [node.ip4(), node.ip6()])?;
    }
    for (name, vip, port, backend) in SERVICES {
        let vip6 = format!("fd96::{}", port - 30_000);
        manifests.service(&node_port(name, [vip, &vip6], port))?;
        slices(world, &manifests, name, &[backend])?;
    }
    Ok(manifests)
}

/// A backend on the node of the proxy, and one elsewhere.
fn two_nodes() -> Result<World> {
    let world = World::builder()
        .node("node-a", ["client", "near"])
        .node("node-b", ["far"])
        .outside("laptop")
        .build()?;
    for backend in ["near", "far"] {
        serve(world.pod(backend), TARGET)?;
    }
    Ok(world)
}

/// Starts kube-proxy, then the agent, then removes kube-proxy's rules, with connections that began under
/// each.
fn in_the_place_of(mode: Mode) -> Result<()> {
    let world = two_nodes()?;
    let node = world.node("node-a");
    mode.others(node)?;
    let before = mode.rules(node)?;
    mode.serve(&world)?;
    ensure!(mode.rules(node)? != before);
    // Mode ipvs leaves one; not every kernel knows the type.
    let has_dummies = node
        .netns()
        .ip(
            "link add kube-ipvs0 type dummy\naddr add 10.96.99.1/32 dev kube-ipvs0\n\
             link add nodelocaldns type dummy\n",
        )
        .is_ok();

    let (client, laptop) = (world.pod("client"), world.pod("laptop"));
    let mut ways = Vec::new();
    for (_, vip, node_port, backend) in SERVICES {
        ways.push((client, at(vip, 80), at(vip, 53), backend));
        let to = SocketAddr::new(node.ip4(), node_port);
        ways.push((laptop, to, to, backend));
    }
    let mut open = Vec::new();
    for (from, tcp, udp, backend) in &ways {
        let connection = eventually("kube-proxy to serve", || {
            let connection = from.connect(*tcp)?;
            connection.exchange("who")?;
            Ok(connection)
        })?;
        let socket = from.udp_connected(*udp)?;
        ensure!(connection.exchange("who")?.name == *backend);
        ensure!(socket.exchange("who")?.name == *backend);
        open.push((connection, socket, *backend));
    }
    let all_go_on = |when: &str| -> Result<()> {
        for (connection, socket, backend) in &open {
            for _ in 0..5 {
                let answer = connection.exchange("TCP").context(when.to_owned())?;
                ensure!(answer.name == *backend, "{when}: {answer:?}");
                let answer = socket.exchange("UDP").context(when.to_owned())?;
                ensure!(answer.name == *backend, "{when}: {answer:?}");
            }
        }
        Ok(())
    };
    all_go_on("under kube-proxy alone")?;
    let churns = ways
        .iter()
        .map(|(from, tcp, _, backend)| {
            from.churn(ChurnPlan {
                threads: 1,
                pause: std::time::Duration::from_millis(2),
                ..ChurnPlan::new(*tcp, [*backend])
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let new_ones = || -> Result<()> {
        churns
            .iter()
            .try_for_each(|churn| churn.wait_attempts(100, PATIENCE).map(drop))
    };
    new_ones()?;

    let manifests = manifests(&world)?;
    let mut agent = node.start_agent(Source::Manifests(manifests.path().to_owned()))?;
    agent.wait_ready(PATIENCE)?;
    agent.wait_log("attached by", PATIENCE)?;
    all_go_on("beside kube-proxy")?;
    new_ones()?;
    all_go_on("beside kube-proxy, later")?;

    let said = agent.call(&["cleanup", "--kube-proxy"])?;
    let left = mode.rules(node)?;
    ensure!(
        left == before,
        "{said}\nbefore: {before:#?}\nleft: {left:#?}"
    );
    let wanted: &[&str] = match mode {
        Mode::Nftables => &["table ip kube-proxy", "table ip6 kube-proxy"],
        Mode::Iptables(kind) => &["table nat", "table filter", "table mangle", kind],
    };
    for part in wanted {
        ensure!(said.contains(part), "{part} is not in {said}");
    }
    if has_dummies {
        let links = node.netns().ip("link show\n")?;
        ensure!(
            !links.contains("kube-ipvs0") && links.contains("nodelocaldns"),
            "{said}\n{links}"
        );
    }
    all_go_on("without kube-proxy's rules")?;
    new_ones()?;
    for churn in churns {
        let report = churn.stop()?;
        ensure!(
            report.tally.failed() == 0 && report.misdirected.is_empty() && report.attempts > 100,
            "{report:?}"
        );
    }
    ensure!(agent.is_running());
    let again = agent.call(&["cleanup", "--kube-proxy"])?;
    ensure!(again.contains("nothing of kube-proxy"), "{again}");
    ensure!(
        agent.status()?["frontends"]
            .as_array()
            .is_some_and(|all| !all.is_empty())
    );
    Ok(())
}

#[test]
fn it_takes_the_place_of_kube_proxy_in_mode_nftables() -> Result<()> {
    in_the_place_of(Mode::Nftables)
}

#[test]
fn it_takes_the_place_of_kube_proxy_in_mode_iptables() -> Result<()> {
    in_the_place_of(Mode::Iptables("nft"))
}

#[test]
fn it_takes_the_place_of_kube_proxy_in_mode_iptables_with_the_older_tables() -> Result<()> {
    in_the_place_of(Mode::Iptables("legacy"))
}

/// Everything about a node's network that an agent might change.
fn snapshot(node: &Node) -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for line in [
        "addr show",
        "route show table all",
        "-6 route show table all",
        "rule show",
        "neigh show nud permanent",
    ] {
        let args: Vec<&str> = line.split(' ').collect();
        all.insert(line.to_owned(), without_times(&run(node, "ip", &args, "")?));
    }
    for line in [
        "qdisc show",
        "filter show dev eth0 ingress",
        "filter show dev eth0 egress",
    ] {
        all.insert(line.to_owned(), tc(node.netns(), line)?);
    }
    all.insert("nft".into(), run(node, "nft", &["list", "ruleset"], "")?);
    node.netns()
        .enter(|| sysctls(Path::new("/proc/sys/net"), &mut all))??;
    Ok(all)
}

/// What counts down is no difference.
fn without_times(text: &str) -> String {
    let words = text.split_whitespace();
    words
        .filter(|word| !word.ends_with("sec"))
        .collect::<Vec<&str>>()
        .join(" ")
}

fn sysctls(directory: &Path, all: &mut BTreeMap<String, String>) -> Result<()> {
    // A count, and not a setting.
    const COUNTS: [&str; 1] = ["nf_conntrack_count"];
    for entry in fs::read_dir(directory)?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            sysctls(&path, all)?;
        } else if !COUNTS.iter().any(|count| path.ends_with(count))
            && let Ok(value) = fs::read_to_string(&path)
        {
            all.insert(path.display().to_string(), value);
        }
    }
    Ok(())
}

/// Maps of ours, of every world on this machine.
fn our_maps() -> BTreeSet<u32> {
    aya::maps::loaded_maps()
        .flatten()
        .filter(|info| {
            info.name_as_str()
                .is_some_and(|name| name.starts_with("KP_"))
        })
        .map(|info| info.id())
        .collect()
}

fn maps_of(agent: &Agent, world: &World) -> Result<BTreeSet<u32>> {
    let directory = world.node(agent.node()).bpffs().join("kube-portal");
    let mut found = BTreeSet::new();
    for version in fs::read_dir(directory)?.flatten() {
        for pin in fs::read_dir(version.path())?.flatten() {
            if pin.file_name().to_string_lossy().starts_with("KP_") {
                found.insert(aya::maps::MapInfo::from_pin(pin.path())?.id());
            }
        }
    }
    Ok(found)
}

#[test]
fn stopped_and_cleaned_up_after_the_node_is_as_it_was() -> Result<()> {
    for flags in [&[][..], &["--tc-attach", "clsact"]] {
        let world = two_nodes()?;
        let node = world.node("node-a");
        node.netns().nft(OTHERS_BY_NFT)?;
        let before = snapshot(node)?;
        let manifests = manifests(&world)?;
        let source = Source::Manifests(manifests.path().to_owned());
        let mut agent = node.start_agent_with(source, flags)?;
        agent.wait_ready(PATIENCE)?;
        agent.wait_log("attached by", PATIENCE)?;
        let laptop = world.pod("laptop");
        for (_, vip, node_port, _) in SERVICES {
            let to = SocketAddr::new(node.ip4(), node_port);
            eventually("an answer", || laptop.connect(to)?.exchange("who"))?;
            world.pod("client").connect(at(vip, 80))?.exchange("who")?;
        }
        let programs: BTreeSet<u32> = bpf::attached(node.cgroup())?
            .into_iter()
            .flat_map(|(_, programs)| programs)
            .collect();
        let maps = maps_of(&agent, &world)?;
        ensure!(
            programs.len() == 10 && maps.len() == proxy_common::abi::map::ALL.len(),
            "{programs:?} {maps:?}"
        );
        agent.stop()?;
        agent.cleanup()?;
        let after = snapshot(node)?;
        for (what, was) in &before {
            let is = after.get(what);
            ensure!(is == Some(was), "{flags:?}: {what}:\n{was}\nnow:\n{is:?}");
        }
        ensure!(after.len() == before.len(), "{flags:?}");
        wait::until("programs and maps to go", PATIENCE, || {
            let loaded = bpf::programs().ok()?;
            let gone =
                programs.iter().all(|id| !loaded.contains_key(id)) && our_maps().is_disjoint(&maps);
            gone.then_some(())
        })?;
        ensure!(!node.bpffs().join("kube-portal").exists());
    }
    Ok(())
}
