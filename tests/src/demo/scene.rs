//! What is built: nodes, pods, backends, the folder, and an agent on each node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::paint;
use crate::probe::Proto;
use crate::{Agent, EndpointSlice, ManifestDir, Pod, Service, Source, World};

pub(super) const WEB4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));
pub(super) const WEB6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 0x10));
pub(super) const ECHO: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 11));
pub(super) const EMPTY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 12));
pub(super) const HTTP_PORT: u16 = 80;
pub(super) const ECHO_PORT: u16 = 53;
/// Where the backends listen.
const HTTP_TARGET: u16 = 8080;
const ECHO_TARGET: u16 = 5353;
/// Backend and its node.
pub(super) const BACKENDS: [(&str, &str); 3] = [
    ("backend-1", "node-a"),
    ("backend-2", "node-a"),
    ("backend-3", "node-b"),
];
pub(super) const CLIENTS: [&str; 2] = ["client-a", "client-b"];
const WEB_ENDPOINTS: &str = "web-endpoints.yaml";
const NAMESPACE: &str = "demo";
const READY_TIMEOUT: Duration = Duration::from_secs(20);

/// The demonstration's world. Agents end before it does.
pub(super) struct Scene {
    agents: Vec<Agent>,
    pub(super) manifests: ManifestDir,
    pub(super) world: World,
    built: Duration,
    ready: Duration,
}

impl Scene {
    pub(super) fn build(dir: Option<&Path>) -> Result<Self> {
        let started = Instant::now();
        let world = World::builder()
            .node("node-a", ["backend-1", "backend-2", "client-a"])
            .node("node-b", ["backend-3", "client-b"])
            .build()?;
        for (name, _) in BACKENDS {
            let pod = world.pod(name);
            for ip in [pod.ip4(), pod.ip6()] {
                pod.serve_http((ip, HTTP_TARGET), name)?;
                pod.serve(Proto::Udp, (ip, ECHO_TARGET), name)?;
            }
        }
        let manifests = match dir {
            Some(dir) => ManifestDir::at(dir)?,
            None => ManifestDir::new()?,
        };
        // The agent is started inside other namespaces, yet in this directory.
        let mut scene = Self {
            agents: Vec::new(),
            manifests,
            world,
            built: started.elapsed(),
            ready: Duration::ZERO,
        };
        scene.write_manifests()?;
        let started = Instant::now();
        let folder = scene
            .manifests
            .path()
            .canonicalize()
            .context("the folder's path")?;
        for node in scene.world.nodes() {
            scene
                .agents
                .push(node.start_agent(Source::Manifests(folder.clone()))?);
        }
        for agent in &scene.agents {
            agent.wait_ready(READY_TIMEOUT)?;
        }
        scene.ready = started.elapsed();
        Ok(scene)
    }

    fn write_manifests(&self) -> Result<()> {
        let services = [
            (
                "web.yaml",
                Service::new("web", [WEB4, WEB6]).port("http", "TCP", HTTP_PORT, None),
            ),
            (
                "echo.yaml",
                Service::new("echo", [ECHO]).udp("echo", ECHO_PORT),
            ),
            (
                "empty.yaml",
                Service::new("empty", [EMPTY]).tcp("http", HTTP_PORT),
            ),
        ];
        for (file, service) in services {
            self.manifests
                .write(file, service.namespace(NAMESPACE).yaml())?;
        }
        self.write_web_endpoints(|_| true)?;
        let slice = EndpointSlice::v4("echo", "echo-1").udp("echo", ECHO_TARGET);
        self.write_slices(
            "echo-endpoints.yaml",
            &[self.fill(slice, Pod::ip4, |_| true)],
        )
    }

    /// Writes the slices of `web` with those backends only.
    pub(super) fn write_web_endpoints(&self, keep: impl Fn(&str) -> bool) -> Result<()> {
        let v4 = EndpointSlice::v4("web", "web-4").tcp("http", HTTP_TARGET);
        let v6 = EndpointSlice::v6("web", "web-6").tcp("http", HTTP_TARGET);
        let slices = [
            self.fill(v4, Pod::ip4, &keep),
            self.fill(v6, Pod::ip6, &keep),
        ];
        self.write_slices(WEB_ENDPOINTS, &slices)
    }

    fn fill(
        &self,
        slice: EndpointSlice,
        ip: impl Fn(&Pod) -> IpAddr,
        keep: impl Fn(&str) -> bool,
    ) -> EndpointSlice {
        let kept = BACKENDS.iter().filter(|(name, _)| keep(name));
        kept.fold(slice.namespace(NAMESPACE), |slice, (name, node)| {
            slice.ready(ip(self.world.pod(name)), node)
        })
    }

    fn write_slices(&self, file: &str, slices: &[EndpointSlice]) -> Result<()> {
        let documents: Vec<String> = slices.iter().map(EndpointSlice::yaml).collect();
        self.manifests.write(file, documents.join("---\n"))
    }

    /// Prints what was built.
    pub(super) fn describe(&self) {
        println!(
            "{}\n",
            paint::bold("kube-portal: two nodes on this machine")
        );
        let nodes: Vec<Vec<String>> = self
            .world
            .nodes()
            .iter()
            .map(|node| self.boxed(node))
            .collect();
        for line in 0..nodes.iter().map(Vec::len).max().unwrap_or(0) {
            let row: Vec<&str> = nodes
                .iter()
                .filter_map(|node| node.get(line))
                .map(String::as_str)
                .collect();
            println!("  {}", row.join("    "));
        }
        println!("  {:>19}{:>40}", "|", "|");
        println!("  {:>19}{:-<39}+", "+", "");
        println!("  {:>55}\n", "underlay 192.168.50.0/24  fd50::/64");
        let at = |ip, port| SocketAddr::from((ip, port)).to_string();
        let targets = BACKENDS.map(|(name, _)| name).join(", ");
        let web = format!("{}  {}", at(WEB4, HTTP_PORT), at(WEB6, HTTP_PORT));
        println!("  Service web    {web:<32} -> {targets}");
        println!(
            "  Service echo   {:<32} -> {targets}",
            at(ECHO, ECHO_PORT) + " UDP"
        );
        println!("  Service empty  {:<32} -> nobody", at(EMPTY, HTTP_PORT));
        let (built, ready) = (self.built, self.ready);
        let text = format!(
            "  built in {built:.0?}, both agents ready after {ready:.0?}; no NAT, no kube-proxy in there\n"
        );
        println!("{}", paint::dim(&text));
    }

    /// A node as a box, lines of equal width and equal number.
    fn boxed(&self, node: &crate::Node) -> Vec<String> {
        let title = format!(" {} {} {} ", node.name(), node.ip4(), node.ip6());
        let mut lines = vec![format!("+{title:-^34}+")];
        let mut inside = |text: String| lines.push(format!("| {text:<32} |"));
        let here = |pod: &&Pod| pod.cgroup().starts_with(node.cgroup());
        let mut pods: Vec<&Pod> = self.world.pods().filter(here).collect();
        pods.sort_by_key(|pod| pod.ip4());
        for pod in &pods {
            inside(format!("{:<10} {:<9} {}", pod.name(), pod.ip4(), pod.ip6()));
        }
        for _ in pods.len()..3 {
            inside(String::new());
        }
        inside("kube-portal".into());
        lines.push(format!("+{:-<34}+", ""));
        lines
    }
}
