//! Lookups and verdicts in words. Pure.

use std::time::Duration;

use proxy_common::{
    abi::{
        Addr, Counter, FlowEntry, Frontend, FrontendKey, FrontendKind, Protocol, Service, SockAddr,
        Tuple,
    },
    datapath::{
        conntrack::Table,
        path::{DropReason, Passed, Refusal, Way},
        traced::Lookup,
    },
};

use crate::watch::kube::span;

/// What numbers in the maps are called.
pub(super) trait Names {
    /// `namespace/name:port`, and whether these are the endpoints of this node only.
    fn service(&self, id: u32) -> Option<(String, bool)>;
    fn device(&self, ifindex: u32) -> String;
}

/// `10.96.0.1:80/TCP`.
pub(super) fn frontend_key(key: &FrontendKey) -> String {
    let at = SockAddr::from_parts(key.addr, key.port_be);
    format!("{at}/{}", protocol(key.protocol))
}

fn protocol(number: u8) -> String {
    Protocol::from_number(number).map_or_else(|| format!("protocol {number}"), |of| of.to_string())
}

pub(super) fn service(names: &impl Names, id: u32) -> String {
    match names.service(id) {
        Some((name, _)) => name,
        None => format!("service {id}, which has no name"),
    }
}

pub(super) fn kind(frontend: &Frontend) -> &'static str {
    FrontendKind::from_number(frontend.kind).map_or("unknown", FrontendKind::name)
}

/// How long ago.
pub(super) fn ago(then_ns: u64, now_ns: u64) -> String {
    let passed = Duration::from_nanos(now_ns.saturating_sub(then_ns));
    format!("{} ago", span(passed))
}

pub(super) fn seconds(seconds: u32) -> String {
    span(Duration::from_secs(seconds.into()))
}

/// `10.0.0.1:80 -> 10.0.0.2:80`.
pub(super) fn tuple(tuple: &Tuple) -> String {
    let src = SockAddr::from_parts(tuple.src, tuple.src_port_be);
    let dst = SockAddr::from_parts(tuple.dst, tuple.dst_port_be);
    format!("{src} -> {dst}")
}

fn entry(entry: &FlowEntry) -> String {
    format!("becomes {} -> {}", entry.src, entry.dst)
}

const fn table(table: Table) -> &'static str {
    match table {
        Table::HalfOpen => "KP_HALF_OPEN",
        Table::Established => "KP_FLOWS",
    }
}

fn found<T>(found: Option<&T>, words: impl FnOnce(&T) -> String) -> String {
    found.map_or_else(|| "nothing".to_owned(), words)
}

const fn yes(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

const fn done(done: bool) -> &'static str {
    if done { "written" } else { "not written" }
}

fn word(service: &Service) -> String {
    let word = service.word;
    let slots = match word.count() {
        0 => format!("no backends ({:?})", word.empty()),
        count => {
            let rule = word.scheduler().name();
            let from = word.first_slot();
            let weighted = if word.is_weighted() { ", weighted" } else { "" };
            let failover = if word.fails_over() {
                ""
            } else {
                ", no failover"
            };
            format!("{count} slots from {from} on, {rule}{weighted}{failover}")
        }
    };
    match service.affinity.timeout_secs() {
        0 => slots,
        secs => format!("{slots}, affinity for {}", seconds(secs)),
    }
}

/// A lookup as it was asked: the map, the key, and what was found.
pub(super) fn lookup(lookup: &Lookup, names: &impl Names) -> String {
    let client = |addr: &Addr, netns: u64| {
        if netns != 0 {
            format!("network namespace {netns}")
        } else if addr.is_unspecified() {
            "a network namespace that is not known".to_owned()
        } else {
            addr.to_string()
        }
    };
    match lookup {
        Lookup::Frontend(key, frontend) => {
            let key = match crate::plan::address_of(key) {
                Some(ip) => format!("{ip} as such"),
                None => frontend_key(key),
            };
            let frontend = found(frontend.as_ref(), |frontend| {
                let outside = match frontend.outside_service {
                    0 => String::new(),
                    id => format!(", from outside {id}"),
                };
                match frontend.service {
                    0 => "a ClusterIP".to_owned(),
                    id => format!("{}, service {id}{outside}", kind(frontend)),
                }
            });
            format!("KP_FRONTENDS {key}: {frontend}")
        }
        Lookup::Service(id, service) => {
            format!("KP_SERVICES {id}: {}", found(service.as_ref(), word))
        }
        Lookup::Slot(index, id) => {
            let id = found(id.as_ref(), |id| format!("backend {id}"));
            format!("KP_SLOTS {index}: {id}")
        }
        Lookup::Backend(id, backend) => {
            let backend = found(backend.as_ref(), |backend| {
                let at = SockAddr::from_parts(backend.addr, backend.port_be);
                let weight = match backend.weight {
                    1 => String::new(),
                    weight => format!(", weight {weight}"),
                };
                format!("{at} of service {}{weight}", backend.service)
            });
            format!("KP_BACKENDS {id}: {backend}")
        }
        Lookup::Affinity(key, entry) => {
            let entry = found(entry.as_ref(), |entry| entry.backend.to_string());
            let client = client(&key.client.addr, key.client.netns);
            format!("KP_AFFINITY {client}: {entry}")
        }
        Lookup::AffinitySet(key, entry, _) => {
            let client = client(&key.client.addr, key.client.netns);
            format!("KP_AFFINITY {client}: would become {}", entry.backend)
        }
        Lookup::Random(number) => format!("a random number: {number}"),
        Lookup::Count(counter) => format!("KP_COUNTERS {}: would be one more", counter.name()),
        Lookup::CountConnection(id, backend_id) => {
            format!("KP_BACKEND_STATS {backend_id} of service {id}: would be one connection more")
        }
        Lookup::ServiceStats(id, stats) => {
            let stats = found(stats.as_ref(), |stats| {
                format!("{} connections so far", stats.connections)
            });
            format!("KP_SERVICE_STATS {id}: {stats}")
        }
        Lookup::BackendStats(id, stats) => {
            let stats = found(stats.as_ref(), |stats| {
                let active = stats.active.max(0);
                match stats.passed_over_until_ns {
                    0 => format!("{active} connections now"),
                    _ => format!(
                        "{active} connections now, passed over after {} failures",
                        stats.failures
                    ),
                }
            });
            format!("KP_BACKEND_STATS {id}: {stats}")
        }
        Lookup::Active(id, change) => {
            format!("KP_BACKEND_STATS {id}: would have {change:+} connections")
        }
        Lookup::Answer(id) => format!("KP_BACKEND_STATS {id}: would have no failures"),
        Lookup::Failure(failure) => {
            format!(
                "KP_BACKEND_STATS {}: would be one failure more",
                failure.backend_id
            )
        }
        Lookup::CountFailure(id) => format!("KP_SERVICE_STATS {id}: would be one failure more"),
        Lookup::Flow(at, key, there) => {
            let there = found(there.as_ref(), entry);
            format!("{} {}: {there}", table(*at), tuple(key))
        }
        Lookup::FlowClaimed(at, key, there, claimed) => format!(
            "{} {}: would be claimed, {} ({})",
            table(*at),
            tuple(key),
            entry(there),
            if *claimed { "free" } else { "taken" }
        ),
        Lookup::FlowWritten(at, key, there, written) => format!(
            "{} {}: would be {}, {}",
            table(*at),
            tuple(key),
            done(*written),
            entry(there)
        ),
        Lookup::FlowAmended(at, key, _, amended) => format!(
            "{} {}: {}",
            table(*at),
            tuple(key),
            if amended.was_there {
                "would be used now"
            } else {
                "not there"
            }
        ),
        Lookup::FlowForgotten(at, key) => {
            format!("{} {}: would be taken out", table(*at), tuple(key))
        }
        Lookup::Fragment(key, ports) => {
            let ports = found(ports.as_ref(), |_| "its ports".to_owned());
            format!(
                "KP_FRAGMENTS {} -> {} {}: {ports}",
                key.src, key.dst, key.id
            )
        }
        Lookup::Device(ifindex, device) => {
            let device = found(device.as_ref(), |device| {
                let pod = match device.flags & proxy_common::abi::Device::POD {
                    0 => "",
                    _ => ", a pod's",
                };
                format!("MTU {}{pod}", device.mtu)
            });
            format!("KP_DEVICES {}: {device}", names.device(*ifindex))
        }
        Lookup::Route(from, to, way, hop) => {
            let way = match way {
                Way::Forward => {
                    format!("by {} to {}", names.device(hop.ifindex), hop.gateway)
                }
                Way::Nowhere => "nowhere".to_owned(),
                Way::ForwardingOff => "forwarding is off".to_owned(),
            };
            format!("the route from {from} to {}: {way}", to.addr)
        }
        Lookup::Socket(key, has) => {
            format!("a socket that gets {}: {}", tuple(key), yes(*has))
        }
        Lookup::SourceRange(id, source, allowed) => {
            format!("KP_SOURCE_RANGES {id} {source}: {}", yes(*allowed))
        }
        Lookup::ServiceNet(addr, is_in) => format!("KP_SERVICE_NETS {addr}: {}", yes(*is_in)),
        Lookup::SocketFlow(flow) => {
            let flow = found(flow.as_ref(), |flow| flow.backend.to_string());
            format!("KP_SOCKETS this socket: {flow}")
        }
        Lookup::SocketFlowSet(flow, _) => format!(
            "KP_SOCKETS this socket: would become {} for {}",
            flow.backend, flow.frontend
        ),
        Lookup::UdpFlow(peer, flow) => {
            let flow = found(flow.as_ref(), |flow| format!("backend {}", flow.backend_id));
            format!("KP_UDP_FLOWS this socket to {peer}: {flow}")
        }
        Lookup::UdpFlowSet(peer, flow, _) => format!(
            "KP_UDP_FLOWS this socket to {peer}: would become backend {}",
            flow.backend_id
        ),
    }
}

/// Why a packet is left as it is, for the end of a sentence.
pub(super) const fn passed(why: Passed) -> &'static str {
    match why {
        Passed::NotOurs => "it is for no Service that is served here",
        Passed::Malformed => "its headers can't be",
        Passed::OrphanFragment => "it is a fragment whose first one has not come",
        Passed::SentOn => "kube-portal has redirected it",
    }
}

pub(super) const fn refused(why: Refusal) -> &'static str {
    match why {
        Refusal::NoEndpoints => "the Service has no endpoints",
        Refusal::UnknownPort => "the ClusterIP's Service has no such port and protocol",
    }
}

/// Why a packet is dropped, and what to do.
pub(super) const fn dropped(why: DropReason) -> &'static str {
    match why {
        DropReason::NoLocalEndpoint => {
            "the policy is Local, and no endpoint of the Service is on this node; others are elsewhere"
        }
        DropReason::NotAllowed => "the source is in none of the Service's loadBalancerSourceRanges",
        DropReason::UnallocatedClusterIp => {
            "the address is in a ServiceCIDR, and no Service has it"
        }
        DropReason::OrphanFragment => "it is a fragment whose first one has not come",
        DropReason::StrayReset => "it resets a connection that is not known",
        DropReason::NoSnatPort => {
            "every source port that was tried toward the backend is taken; see --snat-ports"
        }
        DropReason::NoSource => {
            "this node has no address of the family on the device by which it would leave"
        }
        DropReason::NoRoom => "the flow can't be remembered: KP_HALF_OPEN is full",
        DropReason::NoRoute => "this node has no route to the backend",
        DropReason::ForwardingOff => {
            "the device may not forward: see net.ipv4.conf.*.forwarding and net.ipv6.conf.*.forwarding"
        }
        DropReason::TtlExceeded => "its TTL or hop limit ends here",
        DropReason::TooBig => "it is too large for the device by which it would leave",
        DropReason::SctpFragment => "it is a fragment of SCTP, whose ports can't change",
        DropReason::NotWritten => "the packet can't be written",
        DropReason::TableDamaged => {
            "the maps contradict one another: `kube-portal status --verify` repairs them"
        }
    }
}

/// Name and meaning.
pub(super) fn counter(counter: Counter) -> String {
    let meaning = counter.meaning().trim();
    format!("{}: {}", counter.name(), meaning.trim_end_matches('.'))
}
