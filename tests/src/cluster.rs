//! A stage with an API server instead of a folder: changes reach the agent one by one, as fast as it
//! takes them.

use std::{
    net::{SocketAddr, TcpListener},
    path::PathBuf,
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    Agent, EndpointSlice, Pod, Service, Source, World,
    apiserver::ApiServer,
    stage::{PATIENCE, TARGET, serve},
};

/// World, API server and agent; drop it and all is gone.
#[derive(Debug)]
pub struct Cluster {
    // Stops before the world goes.
    pub agent: Agent,
    pub server: ApiServer,
    pub world: World,
    address: SocketAddr,
}

impl Cluster {
    /// One node with the pod `client` and these backends, which serve TCP and UDP on [`TARGET`] in
    /// both families. `prepare` fills the server before the agent starts; its first sync is waited
    /// for.
    pub fn new(
        backends: &[&str],
        prepare: impl FnOnce(&World, &ApiServer) -> Result<()>,
    ) -> Result<Self> {
        let cluster = Self::unsynced(backends, prepare)?;
        cluster.agent.wait_ready(PATIENCE)?;
        Ok(cluster)
    }

    /// The same, without waiting.
    pub fn unsynced(
        backends: &[&str],
        prepare: impl FnOnce(&World, &ApiServer) -> Result<()>,
    ) -> Result<Self> {
        let pods = ["client"].iter().chain(backends).copied();
        let world = World::builder().node("node-a", pods).build()?;
        Self::in_world(world, backends, prepare)
    }

    /// The same in a world that has `node-a` and these backends, whatever else is in it.
    pub fn in_world(
        world: World,
        backends: &[&str],
        prepare: impl FnOnce(&World, &ApiServer) -> Result<()>,
    ) -> Result<Self> {
        for name in backends {
            serve(world.pod(name), TARGET)?;
        }
        let listener = listen(&world, SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let server = ApiServer::start(listener)?;
        prepare(&world, &server)?;
        let kubeconfig = kubeconfig(&world, &server)?;
        // Room for a few only: `status` reads every element.
        let agent = world.node("node-a").start_agent_with(
            Source::Kubeconfig(kubeconfig),
            &["--max-services", "1024", "--max-backends", "1024"],
        )?;
        Ok(Self {
            agent,
            address: server.addr(),
            server,
            world,
        })
    }

    pub fn client(&self) -> &Pod {
        self.world.pod("client")
    }

    /// The server ends; nobody listens at its address.
    pub fn stop_server(&mut self) -> Result<()> {
        // Somewhere else, where nobody asks.
        self.server = ApiServer::on_loopback()?;
        Ok(())
    }

    /// Another server at the address of the first.
    pub fn start_server(&mut self, prepare: impl Fn(&World, &ApiServer)) -> Result<()> {
        let listener = crate::stage::eventually("the address to be free", || {
            listen(&self.world, self.address)
        })?;
        let world = &self.world;
        self.server = ApiServer::start_with(listener, |server| prepare(world, server))?;
        Ok(())
    }

    /// A slice of IPv4 endpoints of `service` with the ports `http` and `dns`.
    pub fn slice(&self, service: &str, backends: &[&str]) -> Value {
        slice(&self.world, service, backends)
    }
}

/// On the network of node-a.
fn listen(world: &World, at: SocketAddr) -> Result<TcpListener> {
    let netns = world.node("node-a").netns();
    netns
        .enter(|| TcpListener::bind(at))?
        .with_context(|| format!("listen on {at}"))
}

/// Writes the file that leads to the server.
pub fn kubeconfig(world: &World, server: &ApiServer) -> Result<PathBuf> {
    let path = world.dir().join("kubeconfig");
    server.kubeconfig(&path)?;
    Ok(path)
}

pub fn slice(world: &World, service: &str, backends: &[&str]) -> Value {
    let mut slice = EndpointSlice::v4(service, &format!("{service}-4"))
        .tcp("http", TARGET)
        .udp("dns", TARGET);
    for name in backends {
        slice = slice.ready(world.pod(name).ip4(), "node-a");
    }
    object(&slice.yaml())
}

/// As the server wants it.
pub fn service(service: &Service) -> Value {
    object(&service.yaml())
}

/// The same of any YAML.
pub fn object(yaml: &str) -> Value {
    serde_yaml_ng::from_str(yaml).expect("the builders write YAML")
}
