//! Which devices packets from outside come in by, and those of guests.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use super::{Facts, Header, Link, Pattern};

/// What the flags say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// `--devices`: exactly these, loopback excepted. `None`: whatever leads outside.
    pub devices: Option<Vec<Pattern>>,
    /// `--pod-devices`: at whose other end a guest is.
    pub pod_devices: Vec<Pattern>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    pub name: String,
    pub role: Role,
    pub header: Header,
    pub why: Why,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Outside,
    Pod,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Flag,
    DefaultRoute,
    InternalIp,
    Tunnel,
    GlobalAddress,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flag => "named by a flag",
            Self::DefaultRoute => "a default route",
            Self::InternalIp => "an InternalIP of the Node",
            Self::Tunnel => "a tunnel",
            Self::GlobalAddress => "a global address",
        })
    }
}

/// What a device is for, by its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// Carries packets between nodes.
    Tunnel,
    /// Pods are behind it, unless it says otherwise by a default route or an InternalIP.
    Inside,
    /// Carries nothing.
    Never,
    /// A network card, or something stacked on one.
    Outer,
}

fn class(kind: Option<&str>) -> Class {
    match kind {
        Some(
            "vxlan" | "geneve" | "ipip" | "sit" | "ip6tnl" | "gre" | "gretap" | "ip6gre"
            | "ip6gretap" | "erspan" | "ip6erspan" | "vti" | "vti6" | "xfrm" | "wireguard"
            | "bareudp",
        ) => Class::Tunnel,
        Some("veth" | "netkit" | "bridge" | "openvswitch") => Class::Inside,
        // Addresses that are to be local (kube-ipvs0, nodelocaldns), copies of packets, VRFs: there
        // the slaves count.
        Some("dummy" | "ifb" | "nlmon" | "vrf") => Class::Never,
        Some(_) | None => Class::Outer,
    }
}

/// By index. Devices that are down are chosen too: they may come up.
pub fn choose(facts: &Facts, internal_ips: &[IpAddr], choice: &Choice) -> BTreeMap<u32, Chosen> {
    facts
        .links
        .iter()
        .filter(|link| !link.is_loopback)
        .filter_map(|link| {
            let (role, why) = reason(link, facts, internal_ips, choice)?;
            let chosen = Chosen {
                name: link.name.clone(),
                role,
                header: link.header,
                why,
            };
            Some((link.index, chosen))
        })
        .collect()
}

fn reason(
    link: &Link,
    facts: &Facts,
    internal_ips: &[IpAddr],
    choice: &Choice,
) -> Option<(Role, Why)> {
    let named = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(&link.name));
    if named(&choice.pod_devices) {
        return Some((Role::Pod, Why::Flag));
    }
    if let Some(devices) = &choice.devices {
        return named(devices).then_some((Role::Outside, Why::Flag));
    }
    let class = class(link.kind.as_deref());
    // The master of a bond, bridge or team sees all its packets; a VRF only sorts them.
    if class == Class::Never || link.master.as_deref().is_some_and(|kind| kind != "vrf") {
        return None;
    }
    let mut addresses = facts.addresses_of(link.index);
    let why = if facts.default_routes.contains(&link.index) {
        Why::DefaultRoute
    } else if facts
        .addresses_of(link.index)
        .any(|address| internal_ips.contains(&address.ip))
    {
        Why::InternalIp
    } else {
        match class {
            // A route through it needs no address of its own, but that it is up.
            Class::Tunnel if link.is_up || addresses.next().is_some() => Why::Tunnel,
            Class::Outer if addresses.any(|address| address.is_global) => Why::GlobalAddress,
            Class::Tunnel | Class::Outer | Class::Inside | Class::Never => return None,
        }
    };
    Some((Role::Outside, why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::Address;

    #[derive(Default)]
    struct Node(Facts);

    impl Node {
        fn link(mut self, name: &str, kind: &str) -> Self {
            self.0.links.push(Link {
                index: u32::try_from(self.0.links.len()).unwrap() + 1,
                name: name.to_owned(),
                kind: (!kind.is_empty()).then(|| kind.to_owned()),
                master: None,
                is_loopback: name == "lo",
                is_up: true,
                mtu: 1500,
                header: Header::Ethernet,
            });
            self
        }

        fn last(&mut self) -> &mut Link {
            self.0.links.last_mut().unwrap()
        }

        fn slave_of(mut self, kind: &str) -> Self {
            self.last().master = Some(kind.to_owned());
            self
        }

        fn down(mut self) -> Self {
            self.last().is_up = false;
            self
        }

        fn address(mut self, ip: &str, is_global: bool) -> Self {
            let index = self.last().index;
            let ip = ip.parse().unwrap();
            self.0.addresses.push(Address {
                index,
                ip,
                is_global,
            });
            self
        }

        fn default_route(mut self) -> Self {
            let index = self.last().index;
            self.0.default_routes.insert(index);
            self
        }

        fn chosen(&self, internal: &[&str]) -> Vec<String> {
            let internal: Vec<IpAddr> = internal.iter().map(|ip| ip.parse().unwrap()).collect();
            choose(&self.0, &internal, &Choice::default())
                .into_values()
                .map(|chosen| {
                    assert_eq!(chosen.role, Role::Outside);
                    chosen.name
                })
                .collect()
        }

        fn named(&self, devices: Option<&[&str]>, pods: &[&str]) -> Vec<(String, Role)> {
            let choice = Choice {
                devices: devices.map(|devices| Pattern::parse_all(devices).unwrap()),
                pod_devices: Pattern::parse_all(pods).unwrap(),
            };
            choose(&self.0, &[], &choice)
                .into_values()
                .map(|chosen| (chosen.name, chosen.role))
                .collect()
        }
    }

    fn usual() -> Node {
        Node::default()
            .link("lo", "")
            .address("127.0.0.1", false)
            .address("192.0.2.1", true)
            .link("eth0", "")
            .address("10.0.0.4", true)
            .default_route()
            .link("cni0", "bridge")
            .address("10.244.0.1", true)
            .link("veth1", "veth")
            .slave_of("bridge")
            .link("cali1", "veth")
            .address("169.254.1.1", false)
            .link("kube-ipvs0", "dummy")
            .address("10.96.0.1", true)
            .down()
    }

    #[test]
    fn a_usual_nodes_uplink_is_chosen_and_nothing_of_its_pods() {
        assert_eq!(usual().chosen(&["10.0.0.4"]), ["eth0"]);
        assert_eq!(usual().chosen(&[]), ["eth0"]);
    }

    #[test]
    fn veths_and_bridges_count_if_they_lead_outside() {
        let node = Node::default()
            .link("eth0", "veth")
            .address("172.18.0.2", true)
            .default_route()
            .link("eth1", "veth")
            .address("172.19.0.2", true)
            .link("br-ex", "openvswitch")
            .address("10.0.0.4", true)
            .link("br0", "bridge")
            .address("10.1.0.4", true);
        assert_eq!(node.chosen(&[]), ["eth0"]);
        assert_eq!(
            node.chosen(&["172.19.0.2", "10.0.0.4"]),
            ["eth0", "eth1", "br-ex"]
        );
    }

    #[test]
    fn of_bonds_and_bridges_the_master_counts_and_of_vrfs_the_slave() {
        let node = Node::default()
            .link("eth0", "")
            .slave_of("bond")
            .link("eth1", "")
            .slave_of("bond")
            .link("bond0", "bond")
            .address("10.0.0.4", true)
            .link("bond0.7", "vlan")
            .address("10.7.0.4", true)
            .link("eth2", "")
            .address("10.2.0.4", true)
            .slave_of("vrf")
            .link("blue", "vrf")
            .address("10.3.0.4", true)
            .default_route()
            .link("eth3", "")
            .address("10.9.0.4", true)
            .slave_of("");
        assert_eq!(node.chosen(&[]), ["bond0", "bond0.7", "eth2"]);
    }

    #[test]
    fn tunnels_count_if_something_can_come_through_them() {
        let node = Node::default()
            .link("flannel.1", "vxlan")
            .address("10.244.0.0", true)
            .link("tunl0", "ipip")
            .down()
            .link("wg0", "wireguard")
            .link("gre1", "gre")
            .address("fe80::1", false)
            .down()
            .link("vxlan_sys_4789", "vxlan")
            .slave_of("openvswitch");
        assert_eq!(node.chosen(&[]), ["flannel.1", "wg0", "gre1"]);
    }

    #[test]
    fn a_device_that_is_down_is_chosen_and_one_without_a_global_address_is_not() {
        let node = Node::default()
            .link("eth0", "")
            .address("10.0.0.4", true)
            .down()
            .link("eth1", "")
            .address("fe80::1", false)
            .link("eth2", "");
        assert_eq!(node.chosen(&[]), ["eth0"]);
    }

    #[test]
    fn flags_override_everything_but_loopback() {
        let own = |name: &str, role| (name.to_owned(), role);
        assert_eq!(
            usual().named(Some(&["cni*", "lo"]), &[]),
            [own("cni0", Role::Outside)]
        );
        assert_eq!(
            usual().named(Some(&["*"]), &[]).len(),
            usual().0.links.len() - 1
        );
        assert_eq!(usual().named(Some(&["none"]), &[]), []);
        assert_eq!(
            usual().named(None, &["cali*"]),
            [own("eth0", Role::Outside), own("cali1", Role::Pod)]
        );
    }

    #[test]
    fn headers_are_told_by_the_type_of_the_device() {
        assert_eq!(Header::of(1), Header::Ethernet);
        for (name, arphrd) in [("tunl0", 768), ("sit0", 776), ("gre0", 778), ("wg0", 65534)] {
            assert_eq!(Header::of(arphrd), Header::None, "{name}");
        }
        assert_eq!(Header::of(32), Header::Other(32));
    }
}
