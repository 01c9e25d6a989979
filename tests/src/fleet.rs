//! A cluster of agents: one on each node that is to have one, all reading one folder of manifests.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    Agent, EndpointSlice, ManifestDir, Pod, Service, Source, World, net_error,
    probe::{Answer, any_like},
    stage::{PATIENCE, TARGET, serve},
};

/// How long nothing has to come before it counts as silence; a refusal comes at once.
const SILENCE: Duration = Duration::from_millis(400);
/// How often one is asked for a uniform choice among this many to miss one of them, or one more that
/// must not be there, once in a billion times at most.
const fn rounds(backends: usize) -> usize {
    match backends {
        0 | 1 => 31,
        2 => 54,
        3 => 77,
        more => 25 * (more + 1),
    }
}

/// World, manifests and agents; drop it and all is gone.
#[derive(Debug)]
pub struct Fleet {
    // Stop before the world goes.
    pub agents: Vec<Agent>,
    pub manifests: ManifestDir,
    pub world: World,
}

impl Fleet {
    /// Every pod, and every node's own network, serves TCP and UDP on [`TARGET`] in
    /// both families under its name. The manifests hold a Node for every node; `prepare` writes the
    /// others. The first sync of every agent is waited for.
    pub fn start(
        world: World,
        agents_on: &[&str],
        extra: &[&str],
        prepare: impl FnOnce(&World, &ManifestDir) -> Result<()>,
    ) -> Result<Self> {
        let manifests = ManifestDir::new()?;
        for node in world.nodes() {
            serve(node.host(), TARGET)?;
            for pod in node.pods() {
                serve(world.pod(pod), TARGET)?;
            }
            manifests.node(node.name(), [node.ip4(), node.ip6()])?;
        }
        prepare(&world, &manifests)?;
        let agents = agents_on
            .iter()
            .map(|node| {
                let source = Source::Manifests(manifests.path().to_owned());
                world.node(node).start_agent_with(source, extra)
            })
            .collect::<Result<Vec<Agent>>>()?;
        for agent in &agents {
            agent.wait_ready(PATIENCE)?;
            // The socket path is ready before.
            agent.wait_log("attached by", PATIENCE)?;
        }
        Ok(Self {
            agents,
            manifests,
            world,
        })
    }

    /// The agent of a node.
    pub fn agent(&self, node: &str) -> Result<&Agent> {
        let found = self.agents.iter().find(|agent| agent.node() == node);
        found.with_context(|| format!("no agent on {node}"))
    }

    /// The same, to stop or restart it.
    pub fn agent_mut(&mut self, node: &str) -> Result<&mut Agent> {
        let found = self.agents.iter_mut().find(|agent| agent.node() == node);
        found.with_context(|| format!("no agent on {node}"))
    }

    /// Makes these the endpoints of a Service; the agents follow in their own time.
    pub fn set_backends(&self, service: &str, names: &[&str]) -> Result<()> {
        slices(&self.world, &self.manifests, service, names)
    }
}

/// Writes the slices of [`endpoint_slices`].
pub fn slices(world: &World, manifests: &ManifestDir, service: &str, names: &[&str]) -> Result<()> {
    endpoint_slices(world, service, names)
        .iter()
        .try_for_each(|slice| manifests.slice(slice))
}

/// Endpoints of both families, ports `http` (TCP) and `dns` (UDP) on [`TARGET`], each with the name of
/// the node it is on. A node's name is its own network: a hostNetwork pod.
pub fn endpoint_slices(world: &World, service: &str, names: &[&str]) -> [EndpointSlice; 2] {
    let fill = |slice: EndpointSlice, ip: fn(&crate::Pod) -> IpAddr| {
        let slice = slice.tcp("http", TARGET).udp("dns", TARGET);
        names.iter().fold(slice, |slice, name| {
            slice.ready(ip(world.place(name)), world.node_of(name).name())
        })
    };
    [
        fill(
            EndpointSlice::v4(service, &format!("{service}-4")),
            crate::Pod::ip4,
        ),
        fill(
            EndpointSlice::v6(service, &format!("{service}-6")),
            crate::Pod::ip6,
        ),
    ]
}

/// A NodePort Service of both families: 80/TCP `http` and 53/UDP `dns`, on one node port.
pub fn node_port(name: &str, vips: [&str; 2], port: u16) -> Service {
    Service::new(name, vips)
        .kind("NodePort")
        .port("http", "TCP", 80, Some(port))
        .port("dns", "UDP", 53, Some(port))
}

/// Both addresses of a pod, client or node.
pub fn families(pod: &Pod) -> [IpAddr; 2] {
    [pod.ip4(), pod.ip6()]
}

/// Who is to answer, and which address of the client it sees.
pub type Wanted<'a> = &'a [(&'a str, IpAddr)];

/// Asks by TCP, connected UDP and unconnected UDP until each of `wanted` must have answered each of them:
/// nobody else may, every answer comes from the address that was asked, and the server sees the
/// client as `wanted` says.
pub fn reached(from: &Pod, tcp: SocketAddr, udp: SocketAddr, wanted: Wanted<'_>) -> Result<()> {
    let mut ways: [(&str, BTreeSet<String>); 3] = [
        ("TCP", BTreeSet::new()),
        ("connected UDP", BTreeSet::new()),
        ("UDP", BTreeSet::new()),
    ];
    let any = any_like(udp);
    for _ in 0..rounds(wanted.len()) {
        let connection = from.connect(tcp)?;
        let by_tcp = connection.exchange("TCP")?;
        connection.close()?;
        let socket = from.udp_connected(udp)?;
        let by_connected = socket.exchange("connected")?;
        socket.close()?;
        let socket = from.udp_bound(any)?;
        let by_udp = socket.exchange_with(udp, "UDP")?;
        socket.close()?;
        let answers = [(by_tcp, tcp), (by_connected, udp), (by_udp, udp)];
        for ((answer, to), (way, seen)) in answers.into_iter().zip(&mut ways) {
            right(&answer, to, wanted)
                .with_context(|| format!("{way} from {} to {to}", from.name()))?;
            seen.insert(answer.name);
        }
    }
    for (way, seen) in ways {
        let (from, all) = (from.name(), wanted.len());
        ensure!(
            seen.len() == all,
            "{way} from {from} to {tcp}: only {seen:?} answered of {wanted:?}"
        );
    }
    Ok(())
}

fn right(answer: &Answer, to: SocketAddr, wanted: Wanted<'_>) -> Result<()> {
    let known = wanted.iter().find(|(name, _)| *name == answer.name);
    let (_, client) = known.with_context(|| format!("{answer:?}, wanted: {wanted:?}"))?;
    ensure!(
        answer.client.ip() == *client && answer.from == to,
        "{answer:?}, wanted: {wanted:?}"
    );
    Ok(())
}

/// TCP and connected UDP are told at once that nobody serves there.
pub fn refused(from: &Pod, tcp: SocketAddr, udp: SocketAddr) -> Result<()> {
    let error = net_error(from.connect(tcp)).with_context(|| format!("TCP to {tcp}"))?;
    ensure!(error.errno == "ECONNREFUSED", "TCP: {error}");
    let socket = from.udp_connected(udp);
    let error = net_error(socket.and_then(|socket| socket.exchange("anybody?")))
        .with_context(|| format!("UDP to {udp}"))?;
    ensure!(error.errno == "ECONNREFUSED", "UDP: {error}");
    Ok(())
}

/// TCP and UDP hear nothing at all.
pub fn silent(from: &Pod, tcp: SocketAddr, udp: SocketAddr) -> Result<()> {
    let error =
        net_error(from.connect_within(tcp, SILENCE)).with_context(|| format!("TCP to {tcp}"))?;
    ensure!(error.errno == "TIMEOUT", "TCP: {error}");
    let error = net_error(
        from.udp_connected(udp)?
            .exchange_within(None, "anybody?", SILENCE),
    )
    .with_context(|| format!("UDP to {udp}"))?;
    ensure!(error.errno == "TIMEOUT", "UDP: {error}");
    Ok(())
}

/// Sends a few megabytes and gets them back, over one connection.
pub fn bulk(from: &Pod, to: SocketAddr) -> Result<()> {
    let line = "kube-portal ".repeat(256 << 10);
    let answer = from.connect(to)?.exchange(&line)?;
    ensure!(
        answer.echo == line,
        "{} of {} bytes",
        answer.echo.len(),
        line.len()
    );
    Ok(())
}

/// Many connections open at once, each used twice.
pub fn many_at_once(from: &Pod, to: SocketAddr, count: usize) -> Result<()> {
    let connections = (0..count)
        .map(|_| from.connect(to))
        .collect::<Result<Vec<_>>>()?;
    let mut names = Vec::new();
    for connection in &connections {
        names.push(connection.exchange("first")?.name);
    }
    for (connection, name) in connections.iter().zip(names) {
        let answer = connection.exchange("second")?;
        ensure!(answer.name == name, "{answer:?}, first {name}");
    }
    connections
        .into_iter()
        .try_for_each(super::probe::client::Connection::close)
}

/// A datagram of 8 KB there and back: in fragments on every ordinary link.
pub fn large_datagram(from: &Pod, to: SocketAddr) -> Result<Answer> {
    let payload = "fragment ".repeat(900);
    let socket = from.udp_connected(to)?;
    let answer = socket.exchange(&payload)?;
    socket.close()?;
    let (length, wanted) = (answer.echo.len(), payload.len());
    ensure!(answer.echo == payload, "{length} of {wanted} bytes");
    Ok(answer)
}
