//! Who has which address, and the `ip` commands that make it so.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, bail};

use crate::netns::Netns;
use crate::residue;
use crate::world::PodPlan;

/// Where a pod's default route leads: every node answers to these on every pod device.
const GATEWAY4: &str = "169.254.1.1";
const GATEWAY6: &str = "fe80::1";

/// Addresses are usable at once (no duplicate detection: without a link-local address a router
/// cannot ask for a neighbour), and no inherited filter drops packets. An interface takes these
/// over when it is made, so they come first.
pub(crate) const SYSCTLS: [(&str, &str); 4] = [
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
];
const FORWARDING: [(&str, &str); 2] = [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")];

#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) nodes: Vec<NodeLayout>,
    pub(crate) outside: Vec<PodLayout>,
}

#[derive(Debug)]
pub(crate) struct NodeLayout {
    pub(crate) name: String,
    pub(crate) number: u8,
    pub(crate) ip4: Ipv4Addr,
    pub(crate) ip6: Ipv6Addr,
    pub(crate) pods: Vec<PodLayout>,
}

#[derive(Debug)]
pub(crate) struct PodLayout {
    pub(crate) name: String,
    pub(crate) number: u8,
    pub(crate) ip4: Ipv4Addr,
    pub(crate) ip6: Ipv6Addr,
    pub(crate) guest: bool,
}

impl Layout {
    pub(crate) fn of(nodes: Vec<(String, Vec<PodPlan>)>, outside: Vec<String>) -> Result<Self> {
        let mut names = BTreeSet::new();
        let all = nodes
            .iter()
            .flat_map(|(node, pods)| std::iter::once(node).chain(pods.iter().map(|(pod, _)| pod)));
        for name in all.chain(&outside) {
            if !names.insert(name.clone()) {
                bail!("{name}: named twice in this world");
            }
        }
        let number = |position: usize, first: u8| -> Result<u8> {
            let number = u8::try_from(position)
                .ok()
                .and_then(|n| n.checked_add(first));
            number
                .filter(|n| *n < 255)
                .context("too many nodes, pods or clients in this world")
        };
        let mut layout = Self {
            nodes: Vec::new(),
            outside: Vec::new(),
        };
        for (at, (name, pods)) in nodes.into_iter().enumerate() {
            let node = number(at, 1)?;
            let ip4 = Ipv4Addr::new(192, 168, 50, node);
            let ip6 = Ipv6Addr::new(0xfd50, 0, 0, 0, 0, 0, 0, node.into());
            let pods = pods.into_iter().enumerate().map(|(at, (name, guest))| {
                let number = number(at, 2)?;
                let ip4 = Ipv4Addr::new(10, 1, node, number);
                let ip6 = Ipv6Addr::new(0xfd10, 1, node.into(), 0, 0, 0, 0, number.into());
                Ok(PodLayout {
                    name,
                    number,
                    ip4,
                    ip6,
                    guest,
                })
            });
            let pods = pods.collect::<Result<_>>()?;
            layout.nodes.push(NodeLayout {
                name,
                number: node,
                ip4,
                ip6,
                pods,
            });
        }
        if layout.nodes.len() > 100 {
            bail!("more than 100 nodes in one world");
        }
        for (at, name) in outside.into_iter().enumerate() {
            let number = number(at, 101)?;
            let ip4 = Ipv4Addr::new(192, 168, 50, number);
            let ip6 = Ipv6Addr::new(0xfd50, 0, 0, 0, 0, 0, 0, number.into());
            layout.outside.push(PodLayout {
                name,
                number,
                ip4,
                ip6,
                guest: false,
            });
        }
        Ok(layout)
    }

    /// All namespaces in the order they are taken up: underlay, nodes each with its pods, clients.
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = &str> {
        std::iter::once("underlay")
            .chain(self.nodes.iter().flat_map(|node| {
                std::iter::once(node.name.as_str()).chain(node.pods.iter().map(|p| p.name.as_str()))
            }))
            .chain(self.outside.iter().map(|client| client.name.as_str()))
    }

    /// Makes the bridge and every veth pair, each end already in its namespace.
    pub(crate) fn wire(&self, underlay: &Netns, world: &str) -> Result<()> {
        let ns = |name: &str| residue::netns_name(world, name);
        let mut lines =
            String::from("link add name br0 type bridge mcast_snooping 0\nlink set br0 up\n");
        let mut port = |name: &str, port: String| {
            let _ = writeln!(
                lines,
                "link add name {port} type veth peer name eth0 netns {}\n\
                 link set {port} master br0 up",
                ns(name)
            );
        };
        for node in &self.nodes {
            port(&node.name, format!("node{}", node.number));
        }
        for client in &self.outside {
            port(&client.name, format!("outside{}", client.number));
        }
        for node in &self.nodes {
            for pod in &node.pods {
                let _ = writeln!(
                    lines,
                    "link add name pod{} netns {} type veth peer name eth0 netns {}",
                    pod.number,
                    ns(&node.name),
                    ns(&pod.name)
                );
            }
        }
        underlay.ip(&lines).map(drop)
    }

    /// How the pods of all nodes but `except` are reached from the underlay.
    fn pod_routes(&self, except: Option<u8>, lines: &mut String) {
        for node in self.nodes.iter().filter(|node| Some(node.number) != except) {
            let NodeLayout {
                number, ip4, ip6, ..
            } = node;
            let _ = writeln!(
                lines,
                "route add 10.1.{number}.0/24 via {ip4}\nroute add fd10:1:{number:x}::/48 via {ip6}"
            );
        }
    }
}

impl NodeLayout {
    pub(crate) fn configure(&self, netns: &Netns, layout: &Layout) -> Result<()> {
        netns.sysctls(&FORWARDING)?;
        let Self { ip4, ip6, .. } = self;
        let mut lines = on_underlay(*ip4, *ip6);
        for PodLayout {
            number,
            ip4: pod4,
            ip6: pod6,
            ..
        } in &self.pods
        {
            let _ = writeln!(
                lines,
                "link set pod{number} up\n\
                 addr add {GATEWAY4}/32 dev pod{number} scope link\n\
                 addr add {GATEWAY6}/64 dev pod{number} nodad\n\
                 route add {pod4}/32 dev pod{number} src {ip4}\n\
                 route add {pod6}/128 dev pod{number} src {ip6}"
            );
        }
        layout.pod_routes(Some(self.number), &mut lines);
        netns.ip(&lines).map(drop)
    }
}

impl PodLayout {
    /// As a pod behind a node.
    pub(crate) fn configure(&self, netns: &Netns) -> Result<()> {
        let Self { ip4, ip6, .. } = self;
        netns
            .ip(&format!(
                "link set lo up\nlink set eth0 up\n\
                 addr add {ip4}/32 dev eth0\naddr add {ip6}/128 dev eth0 nodad\n\
                 route add {GATEWAY4} dev eth0 scope link\nroute add default via {GATEWAY4}\n\
                 route add default via {GATEWAY6} dev eth0\n"
            ))
            .map(drop)
    }

    /// As a machine on the underlay.
    pub(crate) fn configure_outside(&self, netns: &Netns, layout: &Layout) -> Result<()> {
        let mut lines = on_underlay(self.ip4, self.ip6);
        layout.pod_routes(None, &mut lines);
        netns.ip(&lines).map(drop)
    }
}

fn on_underlay(ip4: Ipv4Addr, ip6: Ipv6Addr) -> String {
    format!(
        "link set lo up\nlink set eth0 up\n\
         addr add {ip4}/24 dev eth0\naddr add {ip6}/64 dev eth0 nodad\n"
    )
}
