//! What the packet path is to know of every device by which a packet may leave.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

use proxy_common::abi::{Addr, Device};

use super::{Chosen, Facts, Link, Role};

/// Which of the node's addresses takes a client's place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// The one by which the device is known that the packet leaves by.
    #[default]
    OfDevice,
    /// The Node's InternalIP, whatever the device; as before for a family in which none is here.
    InternalIp,
}

/// By index: every device but loopback, also where no program is attached, because packets leave by
/// it all the same.
pub fn entries(
    facts: &Facts,
    internal_ips: &[IpAddr],
    chosen: &BTreeMap<u32, Chosen>,
    source: Source,
) -> BTreeMap<u32, Device> {
    let of_node = [true, false].map(|v4| match source {
        Source::OfDevice => None,
        Source::InternalIp => internal(facts, internal_ips, v4),
    });
    let primary = [true, false].map(|v4| primary(facts, internal_ips, v4));
    facts
        .links
        .iter()
        .filter(|link| !link.is_loopback)
        .map(|link| {
            let [v4, v6] = [(true, 0), (false, 1)].map(|(v4, family)| {
                let ip = of_node[family]
                    .or_else(|| own(facts, internal_ips, link.index, v4))
                    .or(primary[family]);
                Addr::from(ip.unwrap_or(Ipv6Addr::UNSPECIFIED.into()))
            });
            let is_pod = chosen
                .get(&link.index)
                .is_some_and(|chosen| chosen.role == Role::Pod);
            let device = Device {
                v4,
                v6,
                mtu: link.mtu,
                flags: if is_pod { Device::POD } else { 0 },
            };
            (link.index, device)
        })
        .collect()
}

/// The global address by which a device is known: an InternalIP, else its first. The kernel has the
/// newest IPv6 address first, which may be a balancer's that another node has in a minute.
fn own(facts: &Facts, internal_ips: &[IpAddr], index: u32, v4: bool) -> Option<IpAddr> {
    let global = || {
        facts
            .addresses_of(index)
            .filter(move |address| address.is_global && address.ip.is_ipv4() == v4)
            .map(|address| address.ip)
    };
    global()
        .find(|ip| internal_ips.contains(ip))
        .or_else(|| global().next())
}

/// The first InternalIP of the family that is really here.
fn internal(facts: &Facts, internal_ips: &[IpAddr], v4: bool) -> Option<IpAddr> {
    let is_here = |ip: &&IpAddr| facts.addresses.iter().any(|address| address.ip == **ip);
    let of_family = internal_ips.iter().filter(|ip| ip.is_ipv4() == v4);
    of_family.copied().find(|ip| is_here(&ip))
}

/// The node's own address where a device has none: an InternalIP, else any global one, those of devices
/// that lead outside first.
fn primary(facts: &Facts, internal_ips: &[IpAddr], v4: bool) -> Option<IpAddr> {
    internal(facts, internal_ips, v4).or_else(|| {
        facts
            .addresses
            .iter()
            .filter(|address| address.is_global && address.ip.is_ipv4() == v4)
            .min_by_key(|address| {
                (
                    !facts.default_routes.contains(&address.index),
                    facts.link(address.index).map_or(u8::MAX, remoteness),
                    address.index,
                )
            })
            .map(|address| address.ip)
    })
}

/// How unlikely it is that others reach this node by an address there.
fn remoteness(link: &Link) -> u8 {
    match link.kind.as_deref() {
        None if link.is_loopback => 1,
        Some("dummy") => 3,
        Some("bridge" | "veth" | "netkit") => 2,
        Some(_) | None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::{Address, Header, Why};

    fn link(index: u32, name: &str, kind: Option<&str>) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind: kind.map(str::to_owned),
            master: None,
            is_loopback: name == "lo",
            is_up: true,
            mtu: 1000 + index,
            header: Header::Ethernet,
        }
    }

    fn facts(addresses: &[(u32, &str, bool)]) -> Facts {
        Facts {
            links: vec![
                link(1, "lo", None),
                link(2, "kube-ipvs0", Some("dummy")),
                link(3, "cni0", Some("bridge")),
                link(4, "eth0", None),
                link(5, "veth1", Some("veth")),
            ],
            addresses: addresses
                .iter()
                .map(|(index, ip, is_global)| Address {
                    index: *index,
                    ip: ip.parse().unwrap(),
                    is_global: *is_global,
                })
                .collect(),
            default_routes: [4].into(),
        }
    }

    /// Of one device: both addresses.
    fn sources(facts: &Facts, internal: &[&str], index: u32) -> [String; 2] {
        sources_by(facts, internal, index, Source::OfDevice)
    }

    fn sources_by(facts: &Facts, internal: &[&str], index: u32, source: Source) -> [String; 2] {
        let internal: Vec<IpAddr> = internal.iter().map(|ip| ip.parse().unwrap()).collect();
        let entry = entries(facts, &internal, &BTreeMap::new(), source)[&index];
        [entry.v4, entry.v6].map(|addr| addr.ip().to_string())
    }

    const USUAL: [(u32, &str, bool); 7] = [
        (1, "127.0.0.1", false),
        (2, "10.96.0.1", true),
        (3, "10.244.0.1", true),
        (4, "10.0.0.4", true),
        (4, "10.0.0.5", true),
        (4, "fe80::4", false),
        (4, "fd00::4", true),
    ];

    #[test]
    fn a_device_sends_from_its_first_global_address_of_the_family() {
        let facts = facts(&USUAL);
        assert_eq!(sources(&facts, &[], 4), ["10.0.0.4", "fd00::4"]);
        assert_eq!(sources(&facts, &[], 3), ["10.244.0.1", "fd00::4"]);
    }

    #[test]
    fn a_device_with_the_nodes_own_address_sends_from_that() {
        let mut addresses = vec![(4, "fd00::99", true)];
        addresses.extend(USUAL);
        let facts = facts(&addresses);
        let internal = ["10.0.0.5", "fd00::4"];
        assert_eq!(sources(&facts, &internal, 4), ["10.0.0.5", "fd00::4"]);
        // Of another device it is none.
        assert_eq!(sources(&facts, &internal, 3), ["10.244.0.1", "fd00::4"]);
    }

    #[test]
    fn a_device_without_one_sends_from_the_nodes_primary_address() {
        let facts = facts(&USUAL);
        assert_eq!(sources(&facts, &["10.0.0.5"], 5)[0], "10.0.0.5");
        // One that is not on this node is nobody's.
        assert_eq!(sources(&facts, &["10.0.0.77"], 5)[0], "10.0.0.4");
    }

    #[test]
    fn where_it_is_asked_for_every_device_sends_from_the_nodes_internal_ip() {
        let facts = facts(&USUAL);
        // The second of IPv4 is the node's too, but not its primary one.
        let internal = ["10.0.0.5", "10.244.0.1", "fd00::4"];
        for index in 2..=5 {
            assert_eq!(
                sources_by(&facts, &internal, index, Source::InternalIp),
                ["10.0.0.5", "fd00::4"]
            );
        }
        assert_eq!(sources(&facts, &internal, 3)[0], "10.244.0.1");
    }

    #[test]
    fn an_internal_ip_that_is_not_here_takes_nobodys_place() {
        let facts = facts(&USUAL);
        let by_device = ["10.244.0.1", "fd00::4"];
        for internal in [&[][..], &["10.0.0.77", "fd00::77"]] {
            assert_eq!(
                sources_by(&facts, internal, 3, Source::InternalIp),
                by_device
            );
        }
        // Each family for itself.
        assert_eq!(
            sources_by(&facts, &["10.0.0.77", "fd00::4"], 3, Source::InternalIp),
            by_device
        );
    }

    #[test]
    fn an_address_of_a_dummy_is_the_last_resort() {
        let only = facts(&[(2, "10.96.0.1", true), (3, "10.244.0.1", true)]);
        assert_eq!(sources(&only, &[], 5), ["10.244.0.1", "::"]);
        let dummy = facts(&[(2, "10.96.0.1", true)]);
        assert_eq!(sources(&dummy, &[], 5)[0], "10.96.0.1");
        let loopback = facts(&[(1, "192.0.2.1", true), (3, "10.244.0.1", true)]);
        assert_eq!(sources(&loopback, &[], 5)[0], "192.0.2.1");
    }

    #[test]
    fn every_device_but_loopback_has_an_entry_with_its_mtu() {
        let pod = Chosen {
            name: "veth1".to_owned(),
            role: Role::Pod,
            header: Header::Ethernet,
            why: Why::Flag,
        };
        let entries = entries(&facts(&USUAL), &[], &[(5, pod)].into(), Source::OfDevice);
        let found: Vec<_> = entries
            .iter()
            .map(|(index, entry)| (*index, entry.mtu, entry.flags))
            .collect();
        assert_eq!(
            found,
            [
                (2, 1002, 0),
                (3, 1003, 0),
                (4, 1004, 0),
                (5, 1005, Device::POD)
            ]
        );
    }
}
