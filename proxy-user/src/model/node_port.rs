//! On which of this node's addresses NodePorts answer (BEHAVIOUR N1).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{Family, Node};

/// `--nodeport-addresses`; the words are kube-proxy's (`pkg/proxy/util/nodeport_addresses.go`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortScope {
    /// The first InternalIP of each family of the Node object; every address while there is no such
    /// object.
    #[default]
    Primary,
    /// The addresses in these ranges. A family without a range keeps every address.
    Ranges(Vec<IpNet>),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScopeError {
    #[error("{0:?} is not a range of addresses; write `primary`, or CIDRs such as 192.168.0.0/16")]
    NotARange(String),
    #[error("`primary` can't be combined with ranges; give one or the other")]
    Both,
}

impl NodePortScope {
    /// From the values of the flag, in their order.
    pub fn parse<S: AsRef<str>>(values: &[S]) -> Result<Self, ScopeError> {
        let texts: Vec<&str> = values
            .iter()
            .map(|value| value.as_ref().trim())
            .filter(|value| !value.is_empty())
            .collect();
        match texts.as_slice() {
            [] | ["primary"] => Ok(Self::Primary),
            texts if texts.contains(&"primary") => Err(ScopeError::Both),
            texts => texts
                .iter()
                .map(|text| {
                    text.parse()
                        .map_err(|_| ScopeError::NotARange((*text).to_owned()))
                })
                .collect::<Result<_, _>>()
                .map(Self::Ranges),
        }
    }

    /// Of the node's own addresses those that answer, and the loopback addresses, which answer to the
    /// node's own processes only. Sorted, each once.
    pub(super) fn select(&self, local: &[IpAddr], node: &Node) -> Vec<IpAddr> {
        let answers = |ip: &IpAddr| match self {
            Self::Primary => node.internal_ips.is_empty() || node.internal_ips.contains(ip),
            Self::Ranges(ranges) => {
                let of_family = |range: &&IpNet| Family::of(&range.addr()) == Family::of(ip);
                !ranges.iter().any(|range| of_family(&range))
                    || ranges.iter().any(|range| range.contains(ip))
            }
        };
        let mut ips: Vec<IpAddr> = local
            .iter()
            .filter(|ip| !ip.is_loopback() && answers(ip))
            .copied()
            .chain([Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()])
            .collect();
        ips.sort_unstable();
        ips.dedup();
        ips
    }

    /// Where a server listens that answers on the addresses of [`Self::select`]: on those, or on
    /// the unspecified address of a family that is not narrowed
    /// (`pkg/proxy/healthcheck/service_health.go`). Not on loopback.
    pub(super) fn listen_addresses(&self, selected: &[IpAddr], node: &Node) -> Vec<IpAddr> {
        let mut ips = Vec::new();
        for family in Family::BOTH {
            let all = match self {
                Self::Primary => node.internal_ips.is_empty(),
                Self::Ranges(ranges) => {
                    let mut ranges = ranges
                        .iter()
                        .filter(|range| Family::of(&range.addr()) == family);
                    ranges.clone().next().is_none() || ranges.any(|range| range.prefix_len() == 0)
                }
            };
            if all {
                ips.push(match family {
                    Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
                    Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
                });
            } else {
                let of_family = |ip: &&IpAddr| Family::of(ip) == family && !ip.is_loopback();
                ips.extend(selected.iter().filter(of_family));
            }
        }
        ips
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        let mut ips: Vec<IpAddr> = texts.iter().map(|ip| ip.parse().unwrap()).collect();
        ips.sort_unstable();
        ips
    }

    const LOCAL: [&str; 5] = [
        "192.168.0.2",
        "10.1.0.1",
        "fd00::2",
        "127.0.0.53",
        "127.0.0.1",
    ];

    fn select(scope: &[&str], internal: &[&str]) -> Vec<IpAddr> {
        let node = Node {
            internal_ips: ips(internal),
            ..Node::default()
        };
        NodePortScope::parse(scope)
            .unwrap()
            .select(&ips(&LOCAL), &node)
    }

    #[test]
    fn primary_is_the_nodes_internal_address_of_each_family() {
        assert_eq!(
            select(&["primary"], &["192.168.0.2", "fd00::2"]),
            ips(&["192.168.0.2", "fd00::2", "127.0.0.1", "::1"])
        );
        // An address of the Node object that is not on any device is not ours to answer on.
        assert_eq!(select(&[], &["192.168.0.9"]), ips(&["127.0.0.1", "::1"]));
    }

    #[test]
    fn without_a_node_object_every_address_answers() {
        assert_eq!(
            select(&["primary"], &[]),
            ips(&["192.168.0.2", "10.1.0.1", "fd00::2", "127.0.0.1", "::1"])
        );
    }

    #[test]
    fn ranges_choose_in_their_family_and_leave_the_other_alone() {
        assert_eq!(
            select(&["10.0.0.0/8"], &["192.168.0.2"]),
            ips(&["10.1.0.1", "fd00::2", "127.0.0.1", "::1"])
        );
        assert_eq!(
            select(&["10.0.0.0/8", "fd11::/64"], &[]),
            ips(&["10.1.0.1", "127.0.0.1", "::1"])
        );
    }

    #[test]
    fn a_server_listens_on_the_chosen_addresses_or_on_all_of_a_family() {
        let listen = |scope: &[&str], internal: &[&str]| {
            let node = Node {
                internal_ips: ips(internal),
                ..Node::default()
            };
            let scope = NodePortScope::parse(scope).unwrap();
            scope.listen_addresses(&scope.select(&ips(&LOCAL), &node), &node)
        };
        assert_eq!(
            listen(&["primary"], &["192.168.0.2"]),
            ips(&["192.168.0.2"])
        );
        assert_eq!(listen(&["primary"], &[]), ips(&["0.0.0.0", "::"]));
        assert_eq!(
            listen(&["10.0.0.0/8"], &["192.168.0.2"]),
            ips(&["10.1.0.1", "::"])
        );
        assert_eq!(
            listen(&["0.0.0.0/0", "fd00::/64"], &[]),
            ips(&["0.0.0.0", "fd00::2"])
        );
    }

    #[test]
    fn a_value_that_is_no_range_is_named() {
        let parse = |values: &[&str]| NodePortScope::parse(values).unwrap_err().to_string();
        assert!(parse(&["10.0.0.0/40"]).contains("10.0.0.0/40"));
        assert!(parse(&["primary", "10.0.0.0/8"]).contains("combined"));
    }
}
