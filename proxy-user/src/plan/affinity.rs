//! By which number the programs know the clients of a Service port.

use std::num::NonZeroU32;

use proxy_common::abi::ServiceAffinity;

use crate::{
    hash::fnv_1a,
    model::{Family, PortKey},
};

/// For all lists of a Service port in one family (BEHAVIOUR S1, S4). Made of its name alone, so it stays
/// the same whatever becomes of lists, ids and agents. Should two ports share it, a client of both
/// would change backends with each change of port: the names of 10,000 ports have such a pair once in
/// three million times.
pub(super) fn of(key: &PortKey, timeout_secs: Option<NonZeroU32>) -> ServiceAffinity {
    let Some(timeout_secs) = timeout_secs else {
        return ServiceAffinity::NONE;
    };
    let family = match key.family {
        Family::V4 => 4,
        Family::V6 => 6,
    };
    let name = key.service_port_name();
    let bytes = name
        .bytes()
        // No part of a name: "a" by the one protocol is not "b" by another.
        .chain([0, key.protocol.number(), family]);
    // Folded so that the low bits have a share of all.
    let hash = fnv_1a(bytes);
    ServiceAffinity::new(timeout_secs.get(), hash ^ (hash >> 47))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proxy_common::abi::Protocol;

    use super::*;
    use crate::model::{ObjectName, Scope};

    fn port(service: &str, port: &str, protocol: Protocol, family: Family) -> PortKey {
        PortKey {
            service: ObjectName::new("default", service),
            port: port.into(),
            protocol,
            family,
            scope: Scope::Cluster,
        }
    }

    #[test]
    fn every_port_has_a_number_of_its_own_and_both_its_lists_share_it() {
        let timeout = NonZeroU32::new(10_800);
        let mut numbers = BTreeSet::new();
        for service in ["web", "web2", "b"] {
            for name in ["", "http", "p"] {
                for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                    for family in Family::BOTH {
                        let cluster = port(service, name, protocol, family);
                        let local = PortKey {
                            scope: Scope::Local,
                            ..cluster.clone()
                        };
                        assert_eq!(of(&cluster, timeout), of(&local, timeout));
                        assert!(numbers.insert(of(&cluster, timeout).port()));
                    }
                }
            }
        }
    }

    #[test]
    fn the_number_is_the_same_whatever_the_timeout() {
        let port = port("web", "", Protocol::Tcp, Family::V4);
        let [short, long] = [1, 86_400].map(|secs| of(&port, NonZeroU32::new(secs)));
        assert_eq!(short.port(), long.port());
        assert_eq!((short.timeout_secs(), long.timeout_secs()), (1, 86_400));
        assert_eq!(of(&port, None), ServiceAffinity::NONE);
    }
}
