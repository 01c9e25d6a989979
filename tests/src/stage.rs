//! The usual stage of an end-to-end test: two nodes, three backends that serve, one client, a folder
//! of manifests, and the agent on the client's node.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{Agent, EndpointSlice, ManifestDir, Pod, Service, Source, World, probe::Proto, wait};

/// The port backends listen on.
pub const TARGET: u16 = 8080;
pub const VIP4: &str = "10.96.0.10";
pub const VIP6: &str = "fd96::10";
pub const BACKENDS: [&str; 3] = ["backend-1", "backend-2", "backend-3"];
/// Long enough that only a failure reaches it.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// World, manifests and agent; drop it and all is gone.
#[derive(Debug)]
pub struct Stage {
    // Stops before the world goes.
    pub agent: Agent,
    pub manifests: ManifestDir,
    pub world: World,
}

impl Stage {
    /// `prepare` writes the manifests the agent finds at its start. Every backend serves TCP and UDP
    /// on [`TARGET`], in both families.
    pub fn new(prepare: impl FnOnce(&World, &ManifestDir) -> Result<()>) -> Result<Self> {
        let world = World::builder()
            .node("node-a", ["client", "backend-1", "backend-2"])
            .node("node-b", ["backend-3"])
            .build()?;
        for name in BACKENDS {
            serve(world.pod(name), TARGET)?;
        }
        let manifests = ManifestDir::new()?;
        prepare(&world, &manifests)?;
        let agent = world
            .node("node-a")
            .start_agent(Source::Manifests(manifests.path().to_owned()))?;
        agent.wait_ready(PATIENCE)?;
        Ok(Self {
            agent,
            manifests,
            world,
        })
    }

    /// With the Service `web` (80/TCP) and `echo` (53/UDP) on both [`VIP4`] and [`VIP6`], served by
    /// all backends.
    pub fn usual() -> Result<Self> {
        Self::new(|world, manifests| {
            manifests.service(
                &Service::new("web", [VIP4, VIP6])
                    .tcp("http", 80)
                    .udp("dns", 53),
            )?;
            web_slices(world, manifests, &BACKENDS)
        })
    }

    pub fn client(&self) -> &Pod {
        self.world.pod("client")
    }

    /// Makes the named backends those of `web`, and waits until the maps say so.
    pub fn set_backends(&self, names: &[&str]) -> Result<()> {
        web_slices(&self.world, &self.manifests, names)?;
        let wanted: Vec<String> = {
            let mut ips: Vec<IpAddr> = names
                .iter()
                .map(|name| self.world.pod(name).ip4())
                .collect();
            ips.sort();
            ips.iter().map(ToString::to_string).collect()
        };
        wait::until("the maps follow the manifests", PATIENCE, || {
            (self.backends_of(VIP4, 80).ok()? == wanted).then_some(())
        })
    }

    /// Addresses of the chosen backends of a frontend, sorted, as `status` shows them.
    pub fn backends_of(&self, ip: &str, port: u16) -> Result<Vec<String>> {
        let frontend = self
            .frontend(ip, port)?
            .with_context(|| format!("no frontend {ip} {port}"))?;
        let backends = frontend["backends"].as_array().context("no backends")?;
        Ok(backends
            .iter()
            .filter(|backend| backend["chosen"] == true)
            .filter_map(|backend| Some(backend["address"].as_str()?.to_owned()))
            .collect())
    }

    /// The first frontend with this address and port, as `status` shows it.
    pub fn frontend(&self, ip: &str, port: u16) -> Result<Option<serde_json::Value>> {
        let status = self.agent.status()?;
        let frontends = status["frontends"].as_array().context("no frontends")?;
        Ok(frontends
            .iter()
            .find(|frontend| frontend["address"] == ip && frontend["port"] == port)
            .cloned())
    }

    /// One of the agent's counters.
    pub fn counter(&self, name: &str) -> Result<u64> {
        self.agent.status()?["counters"][name]
            .as_u64()
            .with_context(|| format!("no counter {name}"))
    }
}

/// Tries again until it goes well, and fails with the last error when [`PATIENCE`] is over.
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let mut last = None;
    let done = wait::until(what, PATIENCE, || match attempt() {
        Ok(value) => Some(value),
        Err(error) => {
            last = Some(error);
            None
        }
    });
    match (done, last) {
        (Ok(value), _) => Ok(value),
        (Err(late), Some(last)) => Err(last.context(late)),
        (Err(late), None) => Err(late),
    }
}

/// TCP and UDP on `port`, both families.
pub fn serve(pod: &Pod, port: u16) -> Result<()> {
    for ip in [pod.ip4(), pod.ip6()] {
        let at = SocketAddr::new(ip, port);
        pod.probe().serve(Proto::Tcp, at, pod.name())?;
        pod.probe().serve(Proto::Udp, at, pod.name())?;
    }
    Ok(())
}

/// The two slices of the Service `web`, ports `http` and `dns`.
pub fn web_slices(world: &World, manifests: &ManifestDir, backends: &[&str]) -> Result<()> {
    web_slices_on(world, manifests, TARGET, backends)
}

/// The same with backends that listen elsewhere.
pub fn web_slices_on(
    world: &World,
    manifests: &ManifestDir,
    port: u16,
    backends: &[&str],
) -> Result<()> {
    let mut v4 = EndpointSlice::v4("web", "web-4")
        .tcp("http", port)
        .udp("dns", port);
    let mut v6 = EndpointSlice::v6("web", "web-6")
        .tcp("http", port)
        .udp("dns", port);
    for name in backends {
        v4 = v4.ready(world.pod(name).ip4(), "node-a");
        v6 = v6.ready(world.pod(name).ip6(), "node-a");
    }
    manifests.slice(&v4)?;
    manifests.slice(&v6)
}

/// `ip` and `port` as one address.
pub fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an IP address"), port)
}

/// `ip` as an IPv6 socket dials it.
pub fn mapped(ip: &str, port: u16) -> SocketAddr {
    at(&format!("::ffff:{ip}"), port)
}

/// Fails unless exactly these names answered, and nothing failed.
pub fn answered_by(tally: &crate::probe::Tally, names: &[&str]) -> Result<()> {
    let wanted: std::collections::BTreeSet<&str> = names.iter().copied().collect();
    ensure!(
        tally.failed() == 0 && tally.who() == wanted,
        "wanted answers of {wanted:?}, got {tally}"
    );
    Ok(())
}
