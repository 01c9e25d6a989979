//! What it costs when a client outside dials a NodePort whose backend is on another node.
//!
//! ```text
//!   client --- node-a --- node-b --- server        three times, alive at the same time
//! ```
//!
//! In one world the nodes only route to the pod's address, in one they carry kube-proxy's rules, in one
//! kube-portal: node-b too, as a service proxy runs on every node of a cluster. They are loaded in turn
//! (A, B, C, C, B, A); a block compares the sums. Netfilter tracks every connection of a namespace that has
//! a hook, so each has nodes of its own.

use std::{fmt::Write as _, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use super::{
    Args,
    kube_proxy::{self, Port},
    report::{Row, median, spread},
};
use crate::{
    Agent, ManifestDir, Source, World,
    probe::{LoadKind, LoadPlan, Proto},
    stage::eventually,
};

const TCP: u16 = 9000;
const BULK: u16 = 9001;
const NODE_PORT: u16 = 30_080;
const BULK_NODE_PORT: u16 = 30_081;
const PATIENCE: Duration = Duration::from_secs(120);
/// Each serves one connection at a time; more than clients, as closing takes a moment.
const ACCEPTORS: usize = 8;
/// So many ask at the same time: enough that no CPU idles.
const CLIENTS: usize = 4;

/// What the nodes do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Side {
    /// Routes to the pod's address.
    Plain,
    /// Rules of kube-proxy's shape.
    Nftables,
    KubePortal,
}

/// The nodes that carry rules or an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum On {
    Every,
    /// Only node-a, which is dialled.
    First,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "routing to the pod",
            Self::Nftables => "kube-proxy's nftables",
            Self::KubePortal => "kube-portal",
        }
    }
}

/// What is measured: name, kind, clients, what one more is worth, unit.
struct Case {
    name: &'static str,
    kind: LoadKind,
    clients: usize,
    scale: f64,
    unit: &'static str,
}

const CASES: [Case; 4] = [
    Case {
        name: "connect-request-close",
        kind: LoadKind::Crr,
        clients: CLIENTS,
        scale: 1.0,
        unit: "1/s",
    },
    Case {
        name: "UDP request-response",
        kind: LoadKind::UdpRr,
        clients: CLIENTS,
        scale: 1.0,
        unit: "1/s",
    },
    Case {
        name: "UDP one way, packets",
        kind: LoadKind::UdpSend,
        clients: 1,
        scale: 1e-3,
        unit: "k/s",
    },
    Case {
        name: "TCP bulk",
        kind: LoadKind::Bulk,
        clients: 1,
        scale: 8e-9,
        unit: "Gbit/s",
    },
];

pub(super) fn with_services(args: &Args, services: usize) -> Result<Vec<Row>> {
    let grounds = args
        .sides
        .iter()
        .map(|side| Ground::new(*side, services, args.on).with_context(|| side.name()))
        .collect::<Result<Vec<Ground>>>()?;
    let time = Duration::from_millis(args.millis);
    let mut rows = Vec::new();
    for case in &CASES {
        for ground in &grounds {
            ground.rate(case, time)?;
        }
        // By side, then by block.
        let mut rates = vec![Vec::new(); grounds.len()];
        for block in 0..args.blocks {
            let mut sums = vec![0.0; grounds.len()];
            for at in (0..grounds.len()).chain((0..grounds.len()).rev()) {
                sums[at] += grounds[at].rate(case, time)? / 2.0;
            }
            let mut line = format!("{}, block {}/{}:", case.name, block + 1, args.blocks);
            for (ground, rate) in grounds.iter().zip(&sums) {
                let _ = write!(line, " {} {rate:.1}", ground.side.name());
            }
            eprintln!("{line} {}", case.unit);
            rates
                .iter_mut()
                .zip(sums)
                .for_each(|(rates, rate)| rates.push(rate));
        }
        for (at, ground) in grounds.iter().enumerate() {
            for (base, other) in grounds.iter().enumerate().take(at) {
                let ratios: Vec<f64> = rates[at]
                    .iter()
                    .zip(&rates[base])
                    .map(|(this, other)| this / other)
                    .collect();
                rows.push(Row {
                    case: format!("{}, {}", case.name, ground.side.name()),
                    services,
                    baseline: other.side.name().into(),
                    value: median(&rates[at]),
                    unit: case.unit,
                    ratio: median(&ratios),
                    spread: spread(&ratios),
                });
            }
        }
    }
    Ok(rows)
}

/// A world with one way from the client to the server.
struct Ground {
    // Stop before their world goes.
    agents: Vec<Agent>,
    _manifests: ManifestDir,
    side: Side,
    world: World,
}

impl Ground {
    fn new(side: Side, services: usize, on: On) -> Result<Self> {
        let world = World::builder()
            .node("node-a", [""; 0])
            .node("node-b", ["server"])
            .outside("client")
            .build()?;
        let server = world.pod("server");
        for port in [TCP, BULK] {
            let at = SocketAddr::new(server.ip4(), port);
            match port {
                TCP => server.probe().serve_fast(Proto::Tcp, at, ACCEPTORS)?,
                _ => server.probe().serve_sink(at)?,
            };
        }
        let udp = SocketAddr::new(server.ip4(), TCP);
        server.probe().serve_fast(Proto::Udp, udp, 2)?;
        // Takes packets until it is full, and reads none.
        server
            .probe()
            .udp_bound(SocketAddr::new(server.ip4(), BULK))?;

        let carriers = match on {
            On::Every => world.nodes().iter().collect(),
            On::First => vec![world.node("node-a")],
        };
        let manifests = ManifestDir::new()?;
        let mut agents = Vec::new();
        eprintln!("{services} Services: preparing {}", side.name());
        match side {
            Side::Plain => both_ways_through(&world)?,
            Side::Nftables => {
                let ports = ports(services, server.ip4().to_string().parse()?);
                for node in carriers {
                    let rules = kube_proxy::ruleset(node.ip4(), "10.1.0.0/16", &ports);
                    node.netns().nft(&rules)?;
                }
            }
            Side::KubePortal => {
                for other in world.nodes() {
                    manifests.node(other.name(), [other.ip4(), other.ip6()])?;
                }
                for (file, text) in manifest_files(services, &server.ip4().to_string()) {
                    manifests.write(&file, text)?;
                }
                let source = Source::Manifests(manifests.path().to_owned());
                for node in carriers {
                    let agent = node.start_agent(source.clone())?;
                    agent.wait_ready(PATIENCE)?;
                    agents.push(agent);
                }
            }
        }
        let ground = Self {
            agents,
            _manifests: manifests,
            side,
            world,
        };
        let client = ground.world.pod("client").probe();
        eventually("the way to be there", || {
            client.connect(ground.target(TCP)).map(drop)?;
            client.connect(ground.target(BULK)).map(drop)
        })?;
        Ok(ground)
    }

    fn target(&self, port: u16) -> SocketAddr {
        let node_port = if port == TCP {
            NODE_PORT
        } else {
            BULK_NODE_PORT
        };
        match self.side {
            Side::Plain => SocketAddr::new(self.world.pod("server").ip4(), port),
            Side::Nftables | Side::KubePortal => {
                SocketAddr::new(self.world.node("node-a").ip4(), node_port)
            }
        }
    }

    /// Per second, in the case's unit.
    fn rate(&self, case: &Case, time: Duration) -> Result<f64> {
        let port = match case.kind {
            LoadKind::Crr | LoadKind::UdpRr => TCP,
            LoadKind::UdpSend | LoadKind::Bulk => BULK,
        };
        let plan = LoadPlan {
            kind: case.kind,
            to: self.target(port),
            threads: case.clients,
            time,
        };
        let before = self.arrived()?;
        let result = self.world.pod("client").probe().load(plan)?;
        if result.failed > 0 {
            let (name, failed, done) = (case.name, result.failed, result.done);
            eprintln!(
                "{name}, {}: {failed} failed, {done} did not",
                self.side.name()
            );
            for agent in &self.agents {
                eprintln!("{}", agent.status()?["counters"]);
            }
        }
        // What was sent may have been lost on the way.
        let done = if case.kind == LoadKind::UdpSend {
            self.arrived()? - before
        } else {
            result.done
        };
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let rate = done as f64 * 1e6 / result.elapsed_us as f64;
        Ok(rate * case.scale)
    }

    /// Packets the server's link has brought so far.
    fn arrived(&self) -> Result<u64> {
        let netns = self.world.pod("server").netns();
        let text = netns.enter(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
        let line = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("eth0:"));
        let packets = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        packets.with_context(|| format!("eth0 in {text}"))
    }
}

/// Both directions pass node-a, as with a NodePort.
fn both_ways_through(world: &World) -> Result<()> {
    let (client, server) = (world.pod("client"), world.pod("server"));
    world.route("client", &[&format!("{}/32", server.ip4())], "node-a")?;
    let back = format!(
        "route add {}/32 via {}\n",
        client.ip4(),
        world.node("node-a").ip4()
    );
    world.node("node-b").netns().ip(&back).map(drop)
}

/// The ClusterIP of a Service by number.
fn vip(number: usize) -> SocketAddr {
    let [_, a, b, c] = u32::try_from(number).expect("few Services").to_be_bytes();
    SocketAddr::from(([10, 96 + a, b, c], 80))
}

/// The Service in the middle is the one with node ports; all have the same endpoint.
fn ports(services: usize, server: std::net::Ipv4Addr) -> Vec<Port> {
    let mut ports = Vec::new();
    for number in 0..services {
        let middle = number == services / 2;
        let mut port = |protocol, name: &str, vip_port, node_port, target| {
            ports.push(Port {
                name: format!("bench/svc-{number}/{name}"),
                protocol,
                vip: SocketAddr::new(vip(number).ip(), vip_port),
                node_port: middle.then_some(node_port),
                endpoint: SocketAddr::from((server, target)),
            });
        };
        port("tcp", "main", 80, NODE_PORT, TCP);
        if middle {
            port("udp", "main", 80, NODE_PORT, TCP);
            port("tcp", "bulk", 81, BULK_NODE_PORT, BULK);
            port("udp", "bulk", 81, BULK_NODE_PORT, BULK);
        }
    }
    ports
}

/// The same as manifests, a thousand Services a file.
fn manifest_files(services: usize, endpoint: &str) -> Vec<(String, String)> {
    let numbers: Vec<usize> = (0..services).collect();
    let text = |number: usize| {
        let ip = vip(number).ip();
        let (kind, ports, targets) = if number == services / 2 {
            let mut ports = Vec::new();
            let mut targets = Vec::new();
            for (name, port, node_port, target) in [
                ("main", 80, NODE_PORT, TCP),
                ("bulk", 81, BULK_NODE_PORT, BULK),
            ] {
                for protocol in ["TCP", "UDP"] {
                    let id = format!(
                        "name: {name}-{}, protocol: {protocol}",
                        protocol.to_lowercase()
                    );
                    ports.push(format!("{{{id}, port: {port}, nodePort: {node_port}}}"));
                    targets.push(format!("{{{id}, port: {target}}}"));
                }
            }
            ("NodePort", ports.join(", "), targets.join(", "))
        } else {
            let port = "{name: main-tcp, protocol: TCP, port: ";
            ("ClusterIP", format!("{port}80}}"), format!("{port}{TCP}}}"))
        };
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: svc-{number}, namespace: bench}}\n\
             spec: {{type: {kind}, clusterIP: {ip}, clusterIPs: [{ip}], ports: [{ports}]}}\n\
             ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: svc-{number}-a, namespace: bench, labels: {{kubernetes.io/service-name: svc-{number}}}}}\n\
             addressType: IPv4\nports: [{targets}]\n\
             endpoints: [{{addresses: [{endpoint}], conditions: {{ready: true}}, nodeName: node-b}}]\n"
        )
    };
    numbers
        .chunks(1000)
        .map(|chunk| {
            let all: String = chunk.iter().map(|number| text(*number)).collect();
            (format!("services-{}.yaml", chunk[0]), all)
        })
        .collect()
}
