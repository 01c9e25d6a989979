//! A cluster of agents: one on each node that is to have one, all reading one folder of manifests.

use std::net::IpAddr;

use anyhow::{Context as _, Result};

use crate::{
    Agent, EndpointSlice, ManifestDir, Service, Source, World,
    stage::{PATIENCE, TARGET, serve},
};

/// World, manifests and agents; drop it and all is gone.
#[derive(Debug)]
pub struct Fleet {
    // Stop before the world goes.
    pub agents: Vec<Agent>,
    pub manifests: ManifestDir,
    pub world: World,
}

impl Fleet {
    /// Every pod that is no guest, and every node's own network, serves TCP and UDP on [`TARGET`] in
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

/// Endpoints of both families, ports `http` (TCP) and `dns` (UDP) on [`TARGET`], each with the name of
/// the node it is on. A node's name is its own network: a hostNetwork pod.
pub fn slices(world: &World, manifests: &ManifestDir, service: &str, names: &[&str]) -> Result<()> {
    let fill = |slice: EndpointSlice, ip: fn(&crate::Pod) -> IpAddr| {
        let slice = slice.tcp("http", TARGET).udp("dns", TARGET);
        names.iter().fold(slice, |slice, name| {
            slice.ready(ip(world.place(name)), world.node_of(name).name())
        })
    };
    let v4 = EndpointSlice::v4(service, &format!("{service}-4"));
    let v6 = EndpointSlice::v6(service, &format!("{service}-6"));
    manifests.slice(&fill(v4, crate::Pod::ip4))?;
    manifests.slice(&fill(v6, crate::Pod::ip6))
}

/// A NodePort Service of both families: 80/TCP `http` and 53/UDP `dns`, on one node port.
pub fn node_port(name: &str, vips: [&str; 2], port: u16) -> Service {
    Service::new(name, vips)
        .kind("NodePort")
        .port("http", "TCP", 80, Some(port))
        .port("dns", "UDP", 53, Some(port))
}
