use std::net::IpAddr;

use ipnet::IpNet;
use thiserror::Error;

use crate::model::Family;

/// A value that had to be left out of an object: which object, which field, why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{}{object}: {field}: {reason}; {}", prefix(.file), .reason.remedy())]
pub struct Problem {
    /// Set by a source that reads files.
    pub file: Option<String>,
    /// Kind and name, as `Service default/web`.
    pub object: String,
    /// JSON path of the value, as `spec.ports[1].port`.
    pub field: String,
    pub reason: Reason,
}

fn prefix(file: &Option<String>) -> String {
    file.as_ref()
        .map(|file| format!("{file}: "))
        .unwrap_or_default()
}

impl Problem {
    pub fn remedy(&self) -> &'static str {
        self.reason.remedy()
    }
}

/// Why a value can't be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Reason {
    #[error("the object has no name")]
    NoName,
    #[error("the name or the namespace has characters that names don't have")]
    NotAName,
    #[error("there is no address")]
    EmptyAddress,
    #[error("{0:?} is not an IP address")]
    NotAnAddress(String),
    #[error("{0:?} is not a range of addresses")]
    NotARange(String),
    #[error("{0} is every address there is")]
    EveryAddress(IpNet),
    #[error("{0} is {1}, which never leads to a Service")]
    SpecialAddress(IpAddr, SpecialAddress),
    #[error("{addr} is not an {expected} address")]
    OtherFamily { addr: IpAddr, expected: Family },
    #[error("{addr} is a second {family} address")]
    SecondOfFamily { addr: IpAddr, family: Family },
    #[error("{0} is listed before in this slice")]
    RepeatedAddress(IpAddr),
    #[error("the Service has no address of its own")]
    NoClusterIp,
    #[error("{0} is not a port number")]
    NotAPort(i32),
    #[error("{0} is not a number of seconds that a client may keep its backend")]
    NotATimeout(i32),
    #[error("{0:?} is not a protocol of Services")]
    UnknownProtocol(String),
    #[error("an earlier port has the name {0:?} too")]
    DuplicatePortName(String),
    #[error("an earlier port has the number {0} too")]
    DuplicatePort(u16),
    #[error("{0:?} is not a value that this field has")]
    UnknownValue(String),
    #[error("{0:?} is not a scheduler")]
    UnknownScheduler(String),
    #[error("{0:?} is neither \"true\" nor \"false\"")]
    NotABool(String),
    #[error("{first:?}{} is no weight of endpoints", others(*.more))]
    NotWeights { first: String, more: usize },
}

/// How many more entries than the one that is named.
fn others(count: usize) -> String {
    match count {
        0 => String::new(),
        count => format!(" (and {count} more)"),
    }
}

/// Addresses with a meaning of their own. As backends they would let a Service reach what only the
/// node itself may reach (CVE-2021-25737); as frontends they would capture traffic that is not ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SpecialAddress {
    #[error("the unspecified address")]
    Unspecified,
    #[error("a loopback address")]
    Loopback,
    #[error("a link-local address")]
    LinkLocal,
    #[error("a multicast address")]
    Multicast,
    #[error("the broadcast address")]
    Broadcast,
}

impl Reason {
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NoName => "give it one",
            Self::NotAName => "use lower-case letters, digits, '-' and '.'",
            Self::EmptyAddress => "write one, or remove the entry",
            Self::NotAnAddress(_) => "write an IPv4 or IPv6 address without port or prefix length",
            Self::NotARange(_) => "write a CIDR such as 192.0.2.0/24",
            Self::EveryAddress(_) => "write the range that ClusterIPs come from",
            Self::SpecialAddress(..) => "use a unicast address that is routable in the cluster",
            Self::OtherFamily { .. } => "put it in a slice of its own addressType",
            Self::SecondOfFamily { .. } => "keep one address of each family",
            Self::NoClusterIp => {
                "write its address in spec.clusterIP (or None if it is to be headless)"
            }
            Self::NotAPort(_) => "use 1 to 65535",
            Self::NotATimeout(_) => "use 1 to 86400; until then it is 10800",
            Self::UnknownProtocol(_) => "use TCP, UDP or SCTP",
            Self::RepeatedAddress(_) => {
                "list it once; it counts once, and a record that is not terminating comes first"
            }
            Self::DuplicatePortName(_) => "give each port a name of its own",
            Self::DuplicatePort(_) => "keep one port for each number and protocol",
            Self::UnknownValue(_) => "correct the spelling, or upgrade kube-portal",
            Self::UnknownScheduler(_) => {
                "use random, rr, lc, sh, dh, sed, nq or maglev; until then it is the node's own (--scheduler)"
            }
            Self::NotABool(_) => "use one of them; until then it is the node's own (--failover)",
            Self::NotWeights { .. } => {
                "write KEY=WEIGHT, each key once: a pod's name, a hostname, an address, node/NAME, zone/NAME or *, and 0 to 1000; the other entries count"
            }
        }
    }
}
