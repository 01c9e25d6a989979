//! Who has which address, and the `ip` commands that make it so.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::netns::Netns;
use crate::residue;
use crate::world::{Builder, OutsidePlan};

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
const FORWARDING: [(&str, &str); 4] = [
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    // Who is led here by a route is to stay: another way is never told.
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/eth0/send_redirects", "0"),
];
/// The bridge only bridges, and what is sent to its own address goes nowhere.
const UNDERLAY: [(&str, &str); 2] = [("ipv4/ip_forward", "0"), ("ipv6/conf/all/forwarding", "0")];
/// Where br_netfilter is there.
const BRIDGE_FILTER: [(&str, &str); 2] = [
    ("bridge/bridge-nf-call-iptables", "0"),
    ("bridge/bridge-nf-call-ip6tables", "0"),
];
/// The nodes' default route: whatever they send there by mistake can be counted there.
pub const SINK4: &str = "192.168.50.254";
pub const SINK6: &str = "fd50::fe";
/// VXLAN over IPv4 takes 50 bytes of the underlay's 1500.
const TUNNEL_MTU: u16 = 1450;

#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) nodes: Vec<NodeLayout>,
    pub(crate) outside: Vec<OutsideLayout>,
    vxlan: bool,
    strict_rp_filter: bool,
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
    /// Of its link, and whether its TCP says so (in its MSS).
    mtu: Option<(u16, bool)>,
}

/// A client on the underlay, or behind a router that is.
#[derive(Debug)]
pub(crate) struct OutsideLayout {
    pub(crate) name: String,
    pub(crate) ip4: Ipv4Addr,
    pub(crate) ip6: Ipv6Addr,
    number: u8,
    pub(crate) router: Option<RouterLayout>,
}

#[derive(Debug)]
pub(crate) struct RouterLayout {
    pub(crate) name: String,
    pub(crate) ip4: Ipv4Addr,
    pub(crate) ip6: Ipv6Addr,
    mtu: u16,
}

impl Layout {
    pub(crate) fn of(plan: Builder) -> Result<Self> {
        let number = |position: usize, first: u8| -> Result<u8> {
            let number = u8::try_from(position)
                .ok()
                .and_then(|n| n.checked_add(first));
            number
                .filter(|n| *n < 254)
                .context("too many nodes, pods or clients in this world")
        };
        let mut layout = Self {
            nodes: Vec::new(),
            outside: Vec::new(),
            vxlan: plan.vxlan,
            strict_rp_filter: plan.strict_rp_filter,
        };
        let inside = plan.vxlan.then_some((TUNNEL_MTU, true));
        for (at, (name, pods)) in plan.nodes.into_iter().enumerate() {
            let node = number(at, 1)?;
            let (ip4, ip6) = underlay_addresses(node);
            let pods = pods.into_iter().enumerate().map(|(at, pod)| {
                let number = number(at, 2)?;
                Ok(PodLayout {
                    name: pod.name,
                    number,
                    ip4: Ipv4Addr::new(10, 1, node, number),
                    ip6: Ipv6Addr::new(0xfd10, 1, node.into(), 0, 0, 0, 0, number.into()),
                    guest: pod.guest,
                    mtu: pod.narrow.map(|mtu| (mtu, false)).or(inside),
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
        for (at, plan) in plan.outside.into_iter().enumerate() {
            layout
                .outside
                .push(OutsideLayout::of(plan, number(at, 101)?));
        }
        let mut names = BTreeSet::new();
        for name in layout.namespaces() {
            if !names.insert(name) {
                bail!("{name}: named twice in this world");
            }
        }
        Ok(layout)
    }

    pub(crate) fn vxlan(&self) -> bool {
        self.vxlan
    }

    /// All namespaces in the order they are taken up: underlay, nodes each with its pods, clients
    /// each with its router before it.
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = &str> {
        std::iter::once("underlay")
            .chain(self.nodes.iter().flat_map(|node| {
                std::iter::once(node.name.as_str()).chain(node.pods.iter().map(|p| p.name.as_str()))
            }))
            .chain(self.outside.iter().flat_map(|client| {
                let router = client.router.iter().map(|router| router.name.as_str());
                router.chain(std::iter::once(client.name.as_str()))
            }))
    }

    /// Makes the bridge and every veth pair, each end already in its namespace.
    pub(crate) fn wire(&self, underlay: &Netns, world: &str) -> Result<()> {
        underlay.sysctls(&UNDERLAY)?;
        if underlay.enter(|| Path::new("/proc/sys/net/bridge").is_dir())? {
            underlay.sysctls(&BRIDGE_FILTER)?;
        }
        let ns = |name: &str| residue::netns_name(world, name);
        let mut lines = format!(
            "link add name br0 type bridge mcast_snooping 0\nlink set br0 up\n\
             addr add {SINK4}/24 dev br0\naddr add {SINK6}/64 dev br0 nodad\n"
        );
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
            let at_bridge = client.router.as_ref().map(|router| &router.name);
            port(
                at_bridge.unwrap_or(&client.name),
                format!("outside{}", client.number),
            );
        }
        for node in &self.nodes {
            for pod in &node.pods {
                let _ = writeln!(
                    lines,
                    "link add name {} netns {} type veth peer name eth0 netns {}",
                    pod.device(),
                    ns(&node.name),
                    ns(&pod.name)
                );
            }
        }
        for client in &self.outside {
            if let Some(router) = &client.router {
                let _ = writeln!(
                    lines,
                    "link add name client netns {} type veth peer name eth0 netns {}",
                    ns(&router.name),
                    ns(&client.name)
                );
            }
        }
        underlay.ip(&lines).map(drop)
    }

    /// How the pods of all nodes are reached from the underlay.
    fn pod_routes(&self, lines: &mut String) {
        for node in &self.nodes {
            node.pod_route(lines);
        }
    }

    /// How clients behind routers are reached.
    fn client_routes(&self, lines: &mut String) {
        for client in &self.outside {
            if let Some(RouterLayout { ip4, ip6, .. }) = &client.router {
                let _ = writeln!(
                    lines,
                    "route add {}/32 via {ip4}\nroute add {}/128 via {ip6}",
                    client.ip4, client.ip6
                );
            }
        }
    }
}

impl NodeLayout {
    pub(crate) fn configure(&self, netns: &Netns, layout: &Layout) -> Result<()> {
        netns.sysctls(&FORWARDING)?;
        if layout.strict_rp_filter {
            netns.sysctls(&[("ipv4/conf/all/rp_filter", "1")])?;
        }
        let Self { ip4, ip6, .. } = self;
        let mut lines = on_underlay(*ip4, *ip6);
        let _ = writeln!(
            lines,
            "route add default via {SINK4}\nroute add default via {SINK6}"
        );
        for pod in &self.pods {
            let (device, pod4, pod6) = (pod.device(), pod.ip4, pod.ip6);
            if let Some((mtu, _)) = pod.mtu {
                let _ = writeln!(lines, "link set {device} mtu {mtu}");
            }
            let _ = writeln!(
                lines,
                "link set {device} up\n\
                 addr add {GATEWAY4}/32 dev {device} scope link\n\
                 addr add {GATEWAY6}/64 dev {device} nodad\n\
                 route add {pod4}/32 dev {device} src {ip4}\n\
                 route add {pod6}/128 dev {device} src {ip6}"
            );
        }
        let others = || layout.nodes.iter().filter(|n| n.number != self.number);
        let mut tunnel = String::new();
        if layout.vxlan {
            self.tunnel(&mut lines);
            for other in others() {
                other.behind_tunnel(&mut lines, &mut tunnel);
            }
        } else {
            others().for_each(|other| other.pod_route(&mut lines));
        }
        layout.client_routes(&mut lines);
        netns.ip(&lines)?;
        netns.bridge(&tunnel)
    }

    /// Its address on the device of that kind: the first of its pods' network.
    pub(crate) fn tunnel_addresses(&self) -> (Ipv4Addr, Ipv6Addr) {
        let number = self.number;
        (
            Ipv4Addr::new(10, 1, number, 1),
            Ipv6Addr::new(0xfd10, 1, number.into(), 0, 0, 0, 0, 1),
        )
    }

    fn tunnel_mac(&self) -> String {
        format!("0e:00:00:00:01:{:02x}", self.number)
    }

    fn pod_route(&self, lines: &mut String) {
        let Self {
            number, ip4, ip6, ..
        } = self;
        let _ = writeln!(
            lines,
            "route add 10.1.{number}.0/24 via {ip4}\nroute add fd10:1:{number:x}::/48 via {ip6}"
        );
    }

    fn tunnel(&self, lines: &mut String) {
        let (tunnel4, tunnel6) = self.tunnel_addresses();
        let (mac, local) = (self.tunnel_mac(), self.ip4);
        let _ = writeln!(
            lines,
            "link add vxlan0 address {mac} mtu {TUNNEL_MTU} type vxlan \
             id 42 dstport 4789 local {local} dev eth0 nolearning\n\
             link set vxlan0 up\n\
             addr add {tunnel4}/32 dev vxlan0\naddr add {tunnel6}/128 dev vxlan0 nodad"
        );
    }

    /// How another node reaches its pods through the tunnel: routes and neighbours for `ip`, the
    /// machine to send to for `bridge`.
    fn behind_tunnel(&self, lines: &mut String, tunnel: &mut String) {
        let (tunnel4, tunnel6) = self.tunnel_addresses();
        let (mac, number, ip4) = (self.tunnel_mac(), self.number, self.ip4);
        let _ = writeln!(
            lines,
            "neigh add {tunnel4} lladdr {mac} dev vxlan0 nud permanent\n\
             neigh add {tunnel6} lladdr {mac} dev vxlan0 nud permanent\n\
             route add 10.1.{number}.0/24 via {tunnel4} dev vxlan0 onlink\n\
             route add {tunnel6}/128 dev vxlan0\n\
             route add fd10:1:{number:x}::/48 via {tunnel6} dev vxlan0 onlink"
        );
        let _ = writeln!(tunnel, "fdb append {mac} dev vxlan0 dst {ip4}");
    }
}

impl PodLayout {
    /// The node's end of its link: `pod2`, or `guest2`, so that a pattern can tell them apart.
    pub(crate) fn device(&self) -> String {
        let kind = if self.guest { "guest" } else { "pod" };
        format!("{kind}{}", self.number)
    }

    /// As a pod behind a node.
    pub(crate) fn configure(&self, netns: &Netns) -> Result<()> {
        let Self { ip4, ip6, .. } = self;
        let (link, mss4, mss6) = narrow(self.mtu);
        netns
            .ip(&format!(
                "link set lo up\n{link}link set eth0 up\n\
                 addr add {ip4}/32 dev eth0\naddr add {ip6}/128 dev eth0 nodad\n\
                 route add {GATEWAY4} dev eth0 scope link\nroute add default via {GATEWAY4}{mss4}\n\
                 route add default via {GATEWAY6} dev eth0{mss6}\n"
            ))
            .map(drop)
    }
}

impl OutsideLayout {
    fn of(plan: OutsidePlan, number: u8) -> Self {
        let (ip4, ip6) = underlay_addresses(number);
        match plan.router_mtu {
            None => Self {
                name: plan.name,
                ip4,
                ip6,
                number,
                router: None,
            },
            Some(mtu) => Self {
                ip4: Ipv4Addr::new(10, 77, number, 2),
                ip6: Ipv6Addr::new(0xfd77, number.into(), 0, 0, 0, 0, 0, 2),
                number,
                router: Some(RouterLayout {
                    name: format!("{}-router", plan.name),
                    ip4,
                    ip6,
                    mtu,
                }),
                name: plan.name,
            },
        }
    }

    /// As a machine on the underlay, or behind its router.
    pub(crate) fn configure(&self, netns: &Netns, layout: &Layout) -> Result<()> {
        let Self { ip4, ip6, .. } = self;
        let Some(router) = &self.router else {
            let mut lines = on_underlay(*ip4, *ip6);
            layout.pod_routes(&mut lines);
            layout.client_routes(&mut lines);
            return netns.ip(&lines).map(drop);
        };
        let (link, mss4, mss6) = narrow(Some((router.mtu, false)));
        netns
            .ip(&format!(
                "link set lo up\n{link}link set eth0 up\n\
                 addr add {ip4}/32 dev eth0\naddr add {ip6}/128 dev eth0 nodad\n\
                 route add {GATEWAY4} dev eth0 scope link\nroute add default via {GATEWAY4}{mss4}\n\
                 route add default via {GATEWAY6} dev eth0{mss6}\n"
            ))
            .map(drop)
    }

    /// The router before it.
    pub(crate) fn configure_router(
        &self,
        router: &RouterLayout,
        netns: &Netns,
        layout: &Layout,
    ) -> Result<()> {
        netns.sysctls(&FORWARDING)?;
        let mut lines = on_underlay(router.ip4, router.ip6);
        layout.pod_routes(&mut lines);
        let _ = writeln!(
            lines,
            "link set client mtu {}\nlink set client up\n\
             addr add {GATEWAY4}/32 dev client scope link\n\
             addr add {GATEWAY6}/64 dev client nodad\n\
             route add {}/32 dev client\nroute add {}/128 dev client",
            router.mtu, self.ip4, self.ip6
        );
        netns.ip(&lines).map(drop)
    }
}

/// The MTU of eth0, and what is appended to its IPv4 and IPv6 routes so that TCP tells its peer of an
/// ordinary 1500 all the same: the peer has to learn the truth from an ICMP error.
fn narrow(mtu: Option<(u16, bool)>) -> (String, &'static str, &'static str) {
    match mtu {
        None => (String::new(), "", ""),
        Some((mtu, true)) => (format!("link set eth0 mtu {mtu}\n"), "", ""),
        Some((mtu, false)) => (
            format!("link set eth0 mtu {mtu}\n"),
            " advmss 1460",
            " advmss 1440",
        ),
    }
}

fn underlay_addresses(number: u8) -> (Ipv4Addr, Ipv6Addr) {
    (
        Ipv4Addr::new(192, 168, 50, number),
        Ipv6Addr::new(0xfd50, 0, 0, 0, 0, 0, 0, number.into()),
    )
}

fn on_underlay(ip4: Ipv4Addr, ip6: Ipv6Addr) -> String {
    format!(
        "link set lo up\nlink set eth0 up\n\
         addr add {ip4}/24 dev eth0\naddr add {ip6}/64 dev eth0 nodad\n"
    )
}
