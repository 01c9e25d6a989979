//! Nodes, pods and outside clients on one underlay.
//!
//! ```text
//!   outside-1 192.168.50.101      underlay: one bridge      192.168.50.0/24  fd50::/64
//!        |                               |
//!        +---------------+---------------+
//!                        |               |
//!                node-a .50.1      node-b .50.2             routes, no NAT, no conntrack
//!                 |      |            |      |              veth, /32 and /128
//!            10.1.1.2  10.1.1.3   10.1.2.2  10.1.2.3        fd10:1:<node>::<pod>
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};

use crate::bpffs::Bpffs;
use crate::cgroup::{self, Cgroup};
use crate::layout::{Layout, SYSCTLS};
use crate::netns::Netns;
use crate::pod::{Place, Pod};
use crate::residue;

/// A pod to be: its name, and whether it is a guest.
pub(crate) type PodPlan = (String, bool);

/// Says what a world consists of.
#[derive(Debug, Default)]
pub struct Builder {
    nodes: Vec<(String, Vec<PodPlan>)>,
    outside: Vec<String>,
}

impl Builder {
    /// A node and its pods; the first node is number 1, the first pod of each has host part 2.
    pub fn node<S: Into<String>>(
        mut self,
        name: impl Into<String>,
        pods: impl IntoIterator<Item = S>,
    ) -> Self {
        let pods = pods.into_iter().map(|pod| (pod.into(), false)).collect();
        self.nodes.push((name.into(), pods));
        self
    }

    /// A pod of the node named last whose sockets its cgroup programs cannot see, as that of a
    /// virtual machine: its processes are outside the node's cgroup. Panics without a node.
    pub fn guest(mut self, name: impl Into<String>) -> Self {
        let (_, pods) = self
            .nodes
            .last_mut()
            .expect("a guest needs a node before it");
        pods.push((name.into(), true));
        self
    }

    /// A client on the underlay that is no part of the cluster.
    pub fn outside(mut self, name: impl Into<String>) -> Self {
        self.outside.push(name.into());
        self
    }

    /// Builds it all.
    pub fn build(self) -> Result<World> {
        World::new(self)
    }
}

/// A node: its network namespace, cgroup root, bpffs and pods.
#[derive(Debug)]
pub struct Node {
    name: String,
    host: Pod,
    agent_place: Arc<Place>,
    bpffs: Bpffs,
    // Last: parents of the above.
    cgroup: Cgroup,
}

impl Node {
    /// Its name, as in `--node-name`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the underlay, IPv4.
    pub fn ip4(&self) -> IpAddr {
        self.host.ip4()
    }

    /// Its address on the underlay, IPv6.
    pub fn ip6(&self) -> IpAddr {
        self.host.ip6()
    }

    /// A process on the node's own network, below the node's cgroup: a hostNetwork pod.
    pub fn host(&self) -> &Pod {
        &self.host
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        self.host.netns()
    }

    /// The directory of its cgroup, root of its pods' cgroups: the agent's `--cgroup-root`.
    pub fn cgroup(&self) -> &Path {
        self.cgroup.path()
    }

    /// The mount point of its bpffs: the agent's `--bpffs-root`.
    pub fn bpffs(&self) -> &Path {
        self.bpffs.path()
    }

    pub(crate) fn agent_place(&self) -> &Arc<Place> {
        &self.agent_place
    }
}

/// Everything a test needs, gone without a trace when dropped.
#[derive(Debug)]
pub struct World {
    id: String,
    pods: BTreeMap<String, Pod>,
    nodes: Vec<Node>,
    _underlay: Netns,
    cgroup: Cgroup,
    run_dir: RunDir,
}

impl World {
    /// Starts describing a world.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// What its namespaces, cgroup and directory have in their names: `<pid>-<number>`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A node by its name; panics when there is none, as that is an error of the test itself.
    pub fn node(&self, name: &str) -> &Node {
        self.nodes
            .iter()
            .find(|node| node.name == name)
            .unwrap_or_else(|| panic!("no node {name} in this world"))
    }

    /// A pod or outside client by its name; panics when there is none.
    pub fn pod(&self, name: &str) -> &Pod {
        self.pods
            .get(name)
            .unwrap_or_else(|| panic!("no pod {name} in this world"))
    }

    /// All nodes, in the order they were named.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// All pods and outside clients by name.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// A directory of this world's own, removed with it.
    pub fn dir(&self) -> &Path {
        &self.run_dir.0
    }

    fn new(plan: Builder) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("needs root: use cargo xtask test");
        }
        residue::sweep();
        let layout = Layout::of(plan.nodes, plan.outside)?;
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let id = format!(
            "{}-{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );

        // Each of these removes itself, also when a later step fails.
        let run_dir = RunDir::create(residue::run_dir(&id))?;
        let root = Cgroup::create(residue::cgroup_dir(cgroup::mount_point()?, &id))?;
        let names: Vec<String> = layout
            .namespaces()
            .map(|name| residue::netns_name(&id, name))
            .collect();
        let namespaces = Netns::create_all(&names)?;
        for netns in &namespaces {
            netns.sysctls(&SYSCTLS)?;
        }
        let mut namespaces = namespaces.into_iter();
        let mut next_ns = || namespaces.next().context("fewer namespaces than asked for");
        let underlay = next_ns()?;
        layout.wire(&underlay, &id)?;

        let mut pods = BTreeMap::new();
        let mut nodes = Vec::new();
        for node in &layout.nodes {
            let netns = Arc::new(next_ns()?);
            node.configure(&netns, &layout)?;
            let cgroup = Cgroup::create(root.path().join(&node.name))?;
            let place = |netns: &Arc<Netns>, name: &str| -> Result<Place> {
                let cgroup = Cgroup::create(cgroup.path().join(name))?;
                Ok(Place {
                    netns: Arc::clone(netns),
                    cgroup,
                })
            };
            for pod in &node.pods {
                let netns = Arc::new(next_ns()?);
                pod.configure(&netns)?;
                let place = if pod.guest {
                    let cgroup = Cgroup::create(root.path().join(&pod.name))?;
                    Place { netns, cgroup }
                } else {
                    place(&netns, &pod.name)?
                };
                pods.insert(
                    pod.name.clone(),
                    Pod::new(&pod.name, pod.ip4, pod.ip6, place),
                );
            }
            let host = Pod::new(
                &node.name,
                node.ip4,
                node.ip6,
                place(&netns, "host-network")?,
            );
            nodes.push(Node {
                agent_place: Arc::new(place(&netns, "agent")?),
                bpffs: Bpffs::mount(run_dir.0.join(format!("bpf-{}", node.name)))?,
                name: node.name.clone(),
                host,
                cgroup,
            });
        }
        for client in &layout.outside {
            let netns = Arc::new(next_ns()?);
            client.configure_outside(&netns, &layout)?;
            let cgroup = Cgroup::create(root.path().join(&client.name))?;
            let pod = Pod::new(
                &client.name,
                client.ip4,
                client.ip6,
                Place { netns, cgroup },
            );
            pods.insert(client.name.clone(), pod);
        }
        Ok(Self {
            id,
            pods,
            nodes,
            _underlay: underlay,
            cgroup: root,
            run_dir,
        })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Everything that runs here at once; what is left by then, the guards remove.
        cgroup::kill_all(self.cgroup.path());
    }
}

/// /run/kube-portal-test/<id>.
#[derive(Debug)]
struct RunDir(PathBuf);

impl RunDir {
    fn create(path: PathBuf) -> Result<Self> {
        let create = || std::fs::create_dir_all(&path);
        // The end of another world removes the parent when it looks empty: then once more.
        create()
            .or_else(|_| create())
            .with_context(|| format!("create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        residue::remove_run_dir(&self.0);
    }
}
