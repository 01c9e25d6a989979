//! Nodes, pods and outside clients on one underlay.
//!
//! ```text
//!   outside-1 192.168.50.101      underlay: one bridge      192.168.50.0/24  fd50::/64
//!        |                               |
//!        +---------------+---------------+
//!                        |               |
//!                node-a .50.1      node-b .50.2             routes (or VXLAN), no NAT, no conntrack
//!                 |      |            |      |              veth, /32 and /128
//!            10.1.1.2  10.1.1.3   10.1.2.2  10.1.2.3        fd10:1:<node>::<pod>
//! ```
//!
//! The nodes' default route leads to the bridge, which answers nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
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

/// A pod to be.
#[derive(Debug)]
pub(crate) struct PodPlan {
    pub(crate) name: String,
    pub(crate) guest: bool,
    /// A link with this MTU, which its TCP does not tell.
    pub(crate) narrow: Option<u16>,
}

/// A client to be.
#[derive(Debug)]
pub(crate) struct OutsidePlan {
    pub(crate) name: String,
    /// Behind a router, over a link with this MTU, which its TCP does not tell.
    pub(crate) router_mtu: Option<u16>,
}

/// Says what a world consists of.
#[derive(Debug, Default)]
pub struct Builder {
    pub(crate) nodes: Vec<(String, Vec<PodPlan>)>,
    pub(crate) outside: Vec<OutsidePlan>,
    pub(crate) vxlan: bool,
    pub(crate) strict_rp_filter: bool,
}

impl Builder {
    /// A node and its pods; the first node is number 1, the first pod of each has host part 2.
    pub fn node<S: Into<String>>(
        mut self,
        name: impl Into<String>,
        pods: impl IntoIterator<Item = S>,
    ) -> Self {
        let pods = pods.into_iter().map(|pod| PodPlan {
            name: pod.into(),
            guest: false,
            narrow: None,
        });
        self.nodes.push((name.into(), pods.collect()));
        self
    }

    /// A pod of the node named last whose sockets its cgroup programs cannot see, as that of a
    /// virtual machine: its processes are outside the node's cgroup, and the node's end of its link
    /// is called `guest<number>` instead of `pod<number>`. Panics without a node.
    pub fn guest(self, name: impl Into<String>) -> Self {
        self.pod(PodPlan {
            name: name.into(),
            guest: true,
            narrow: None,
        })
    }

    /// A pod of the node named last whose link has this MTU, though its TCP claims 1500: who sends
    /// more has to learn it from the node's ICMP errors. Panics without a node.
    pub fn narrow_pod(self, name: impl Into<String>, mtu: u16) -> Self {
        self.pod(PodPlan {
            name: name.into(),
            guest: false,
            narrow: Some(mtu),
        })
    }

    fn pod(mut self, pod: PodPlan) -> Self {
        let (_, pods) = self.nodes.last_mut().expect("a pod needs a node before it");
        pods.push(pod);
        self
    }

    /// A client on the underlay that is no part of the cluster.
    pub fn outside(mut self, name: impl Into<String>) -> Self {
        self.outside.push(OutsidePlan {
            name: name.into(),
            router_mtu: None,
        });
        self
    }

    /// A client behind a router that is on the underlay. The link between the two has this MTU,
    /// though the client's TCP claims 1500: the router says so by ICMP errors.
    pub fn outside_behind_router(mut self, name: impl Into<String>, mtu: u16) -> Self {
        self.outside.push(OutsidePlan {
            name: name.into(),
            router_mtu: Some(mtu),
        });
        self
    }

    /// Pods of two nodes reach each other by VXLAN, as with flannel. Their MTU is 1450.
    pub fn vxlan(mut self) -> Self {
        self.vxlan = true;
        self
    }

    /// Nodes drop IPv4 packets that came by another device than an answer would leave by.
    pub fn strict_rp_filter(mut self) -> Self {
        self.strict_rp_filter = true;
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
    tunnel: Option<(Ipv4Addr, Ipv6Addr)>,
    pods: Vec<String>,
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

    /// Its address toward the pods of other nodes: that of the VXLAN device, if there is one.
    pub fn inner_ip4(&self) -> IpAddr {
        self.tunnel.map_or(self.ip4(), |(ip4, _)| ip4.into())
    }

    /// The same, IPv6.
    pub fn inner_ip6(&self) -> IpAddr {
        self.tunnel.map_or(self.ip6(), |(_, ip6)| ip6.into())
    }

    /// Names of its pods.
    pub fn pods(&self) -> &[String] {
        &self.pods
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
    /// By the client behind it.
    routers: BTreeMap<String, Netns>,
    underlay: Netns,
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

    /// The node a pod (or the node's own network) is on; panics for a client outside.
    pub fn node_of(&self, name: &str) -> &Node {
        self.nodes
            .iter()
            .find(|node| node.name == name || node.pods.iter().any(|pod| pod == name))
            .unwrap_or_else(|| panic!("no node has a pod {name}"))
    }

    /// A pod, a client, or the process on a node's own network, by name; panics when there is none.
    pub fn place(&self, name: &str) -> &Pod {
        self.nodes
            .iter()
            .find(|node| node.name == name)
            .map_or_else(|| self.pod(name), Node::host)
    }

    /// Sends what a client outside (or the router before it) has for these addresses to a node, as a
    /// load balancer or a static route does.
    pub fn route(&self, client: &str, prefixes: &[&str], node: &str) -> Result<()> {
        let node = self.node(node);
        let mut lines = String::new();
        for prefix in prefixes {
            let via = if prefix.contains(':') {
                node.ip6()
            } else {
                node.ip4()
            };
            let _ = writeln!(lines, "route replace {prefix} via {via}");
        }
        let netns = self.routers.get(client);
        netns
            .unwrap_or_else(|| self.pod(client).netns())
            .ip(&lines)
            .map(drop)
    }

    /// The bridge between all, which is also where the nodes' default route ends.
    pub fn underlay(&self) -> &Netns {
        &self.underlay
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
        let layout = Layout::of(plan)?;
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
                tunnel: layout.vxlan().then(|| node.tunnel_addresses()),
                pods: node.pods.iter().map(|pod| pod.name.clone()).collect(),
                cgroup,
            });
        }
        let mut routers = BTreeMap::new();
        for client in &layout.outside {
            if let Some(router) = &client.router {
                let netns = next_ns()?;
                client.configure_router(router, &netns, &layout)?;
                routers.insert(client.name.clone(), netns);
            }
            let netns = Arc::new(next_ns()?);
            client.configure(&netns, &layout)?;
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
            routers,
            underlay,
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
