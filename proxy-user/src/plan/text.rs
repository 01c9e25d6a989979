//! What a plan changes, in words: pure, from what the maps hold before it and after it.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    net::{IpAddr, SocketAddr},
};

use proxy_common::abi::{
    Backend, Empty, Frontend, FrontendKey, FrontendKind, Scheduler, Service, ServiceWord, SockAddr,
};
use serde::Serialize;

use super::step::{address_of, protocol_name};
use crate::maps::Observed;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    Add,
    Change,
    Remove,
}

/// In the order they are told of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// A list of endpoints: of a Service port in one family.
    List,
    /// A ClusterIP as such, of which other ports are refused.
    Address,
    Frontend,
    SourceRange,
    Backend,
    ServiceCidr,
}

/// One thing that would be otherwise than it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// `namespace/name:port`; `-` for what is no Service's.
    pub service: String,
    pub verb: Verb,
    pub what: What,
    /// Which one: `10.96.0.10:80/TCP ClusterIP`.
    pub name: String,
    /// What of it is worth a word.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aspects: Vec<Aspect>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Aspect {
    pub of: &'static str,
    /// Absent for what is added.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// Absent for what is removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// Whose, what, and which: what is the same in both is what has the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Subject {
    service: String,
    what: What,
    /// Numbers in their order.
    at: Option<SocketAddr>,
    name: String,
}

/// Something that may be otherwise, and whether it is as usual.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fact {
    of: &'static str,
    /// Empty: it makes no difference.
    value: String,
    usual: bool,
}

type Facts = BTreeMap<Subject, Vec<Fact>>;

/// What differs, by Service. Ids, and where slots lie, make no difference.
pub fn lines(before: &Observed, after: &Observed) -> Vec<Line> {
    let (before, after) = (facts(before), facts(after));
    let mut lines: Vec<(&Subject, Line)> = Vec::new();
    for (subject, facts) in &before {
        let line = match after.get(subject) {
            None => Line::of(subject, Verb::Remove, noted(facts, false)),
            Some(now) if now == facts => continue,
            Some(now) => Line::of(subject, Verb::Change, differing(facts, now)),
        };
        lines.push((subject, line));
    }
    let new = after
        .iter()
        .filter(|(subject, _)| !before.contains_key(*subject));
    lines.extend(
        new.map(|(subject, facts)| (subject, Line::of(subject, Verb::Add, noted(facts, true)))),
    );
    lines.sort_by_key(|(subject, _)| *subject);
    lines.into_iter().map(|(_, line)| line).collect()
}

/// Of what comes or goes, what is not as usual.
fn noted(facts: &[Fact], comes: bool) -> Vec<Aspect> {
    let unusual = facts.iter().filter(|fact| !fact.usual);
    unusual
        .map(|fact| {
            let value = Some(fact.value.clone());
            let (before, after) = if comes { (None, value) } else { (value, None) };
            Aspect {
                of: fact.of,
                before,
                after,
            }
        })
        .collect()
}

fn differing(before: &[Fact], after: &[Fact]) -> Vec<Aspect> {
    let pairs = before.iter().zip(after);
    pairs
        .filter(|(before, after)| before != after)
        .filter(|(before, after)| !before.value.is_empty() && !after.value.is_empty())
        .map(|(before, after)| Aspect {
            of: after.of,
            before: Some(before.value.clone()),
            after: Some(after.value.clone()),
        })
        .collect()
}

fn facts(observed: &Observed) -> Facts {
    let mut facts = Facts::new();
    let mut add = |subject: Subject, known: Vec<Fact>| {
        // Two entries that mean the same are one; only damaged maps have them.
        facts.entry(subject).or_insert(known);
    };
    let owners = observed.cluster_ip_owners();
    for (key, frontend) in &observed.frontends {
        let (subject, known) = match address_of(key) {
            Some(ip) => (address(owners.get(&ip), ip), Vec::new()),
            None => of_frontend(observed, key, frontend),
        };
        add(subject, known);
    }
    for id in observed.names.keys().chain(observed.services.keys()) {
        add(
            subject(observed, *id, What::List, None),
            of_list(observed, *id),
        );
    }
    let slotted = observed.slotted();
    for (id, backend) in &observed.backends {
        let at = SockAddr::from_parts(backend.addr, backend.port_be).socket_addr();
        let known = vec![
            yes_or_no("new connections", slotted.contains(id), Some(true)),
            yes_or_no("on this node", backend.flags & Backend::LOCAL != 0, None),
            Fact {
                of: "weight",
                value: backend.weight.to_string(),
                usual: backend.weight == 1,
            },
        ];
        let subject = subject(observed, backend.service, What::Backend, Some(at));
        add(subject, known);
    }
    for (id, ranges) in &observed.source_ranges {
        for range in ranges {
            let at = SocketAddr::new(range.addr(), 0);
            let mut subject = subject(observed, *id, What::SourceRange, Some(at));
            subject.name = range.to_string();
            add(subject, Vec::new());
        }
    }
    for net in &observed.service_nets {
        let subject = Subject {
            service: "-".to_owned(),
            what: What::ServiceCidr,
            at: Some(SocketAddr::new(net.addr(), 0)),
            name: net.to_string(),
        };
        add(subject, Vec::new());
    }
    facts
}

/// Something of the list with this id.
fn subject(observed: &Observed, id: u32, what: What, at: Option<SocketAddr>) -> Subject {
    let name = observed.names.get(&id);
    let protocol = name.map_or("?", |name| protocol_name(name.protocol));
    let mut text = match at {
        Some(at) => format!("{at}/{protocol}"),
        None => format!("{protocol} IPv{}", name.map_or(0, |name| name.family)),
    };
    let _string_is_infallible = match name.map(|name| name.scope) {
        Some(0) => Ok(()),
        Some(_) => text.write_str(" for clients from outside"),
        None => write!(text, " of service id {id}, which has no name"),
    };
    Subject {
        service: observed.service_name(id).into_owned(),
        what,
        at,
        name: text,
    }
}

/// A ClusterIP as such.
fn address(owner: Option<&String>, ip: IpAddr) -> Subject {
    Subject {
        service: owner.map_or_else(|| "?".to_owned(), String::clone),
        what: What::Address,
        at: Some(SocketAddr::new(ip, 0)),
        name: ip.to_string(),
    }
}

fn of_frontend(
    observed: &Observed,
    key: &FrontendKey,
    frontend: &Frontend,
) -> (Subject, Vec<Fact>) {
    let at = SockAddr::from_parts(key.addr, key.port_be).socket_addr();
    let protocol = protocol_name(key.protocol);
    let kind = FrontendKind::from_number(frontend.kind).map_or("?", FrontendKind::name);
    let subject = Subject {
        service: observed.service_name(frontend.service).into_owned(),
        what: What::Frontend,
        at: Some(at),
        name: format!("{at}/{protocol} {kind}"),
    };
    let admitted = |flag: u8, whom| (frontend.flags & flag != 0).then_some(whom);
    let sources = match admitted(Frontend::SOURCE_RANGES, "source ranges") {
        None => "any".to_owned(),
        Some(ranges) => [
            Some(ranges),
            admitted(Frontend::NODE_ALLOWED, "the node"),
            admitted(Frontend::PODS_ALLOWED, "its pods"),
        ]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(", "),
    };
    let facts = vec![
        Fact {
            of: "clients from outside",
            usual: frontend.outside_service == 0,
            value: match frontend.outside_service {
                0 => "all endpoints",
                _ => "endpoints of this node",
            }
            .to_owned(),
        },
        Fact {
            of: "sources",
            usual: sources == "any",
            value: sources,
        },
    ];
    (subject, facts)
}

fn of_list(observed: &Observed, id: u32) -> Vec<Fact> {
    let service = observed.services.get(&id).copied();
    let Service { word, affinity } = service.unwrap_or_else(|| ServiceWord::default().into());
    let verdict = match (word.count(), word.empty()) {
        (1.., _) => "translated",
        (0, Empty::Refuse) => "refused",
        (0, Empty::Drop) => "dropped",
        (0, Empty::Unused) => "not in use",
    };
    let affinity = match affinity.timeout_secs() {
        0 => "none".to_owned(),
        secs => format!("{secs} s"),
    };
    let (scheduler, failover) = match word.count() {
        0 => (String::new(), String::new()),
        _ => {
            let failover = if word.fails_over() { "yes" } else { "no" };
            (word.scheduler().name().to_owned(), failover.to_owned())
        }
    };
    vec![
        Fact {
            of: "new connections",
            value: verdict.to_owned(),
            usual: word.count() > 0,
        },
        Fact {
            of: "scheduler",
            usual: word.scheduler() == Scheduler::Random,
            value: scheduler,
        },
        Fact {
            of: "failover",
            usual: true,
            value: failover,
        },
        Fact {
            of: "affinity",
            usual: affinity == "none",
            value: affinity,
        },
    ]
}

fn yes_or_no(of: &'static str, is: bool, usual: Option<bool>) -> Fact {
    Fact {
        of,
        value: if is { "yes" } else { "no" }.to_owned(),
        usual: usual.is_none_or(|usual| usual == is),
    }
}

impl Line {
    fn of(subject: &Subject, verb: Verb, aspects: Vec<Aspect>) -> Self {
        Self {
            service: subject.service.clone(),
            verb,
            what: subject.what,
            name: subject.name.clone(),
            aspects,
        }
    }
}

/// Without the Service: `+ backend 10.1.1.2:8080/TCP`.
impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.verb {
            Verb::Add => '+',
            Verb::Change => '~',
            Verb::Remove => '-',
        };
        let what = match self.what {
            What::List => "list",
            What::Address => "address",
            What::Frontend => "frontend",
            What::SourceRange => "source range",
            What::Backend => "backend",
            What::ServiceCidr => "ServiceCIDR",
        };
        write!(f, "{verb} {what} {}", self.name)?;
        let aspects: Vec<String> = self.aspects.iter().map(ToString::to_string).collect();
        match aspects.is_empty() {
            true => Ok(()),
            false => write!(f, " ({})", aspects.join("; ")),
        }
    }
}

impl fmt::Display for Aspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { of, before, after } = self;
        match (before, after) {
            (Some(before), Some(after)) => write!(f, "{of}: {before} -> {after}"),
            (one, other) => {
                let value = one.as_ref().or(other.as_ref());
                write!(f, "{of}: {}", value.map_or("", String::as_str))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::abi::{Protocol, ServiceAffinity};

    use super::*;
    use crate::{
        maps::fixture::{backend, frontend, observed, observed_with_udp},
        plan::address_entry,
    };

    fn told(before: &Observed, after: &Observed) -> Vec<String> {
        let lines = lines(before, after);
        lines
            .iter()
            .map(|line| format!("{}  {line}", line.service))
            .collect()
    }

    #[test]
    fn what_is_the_same_is_not_told_whatever_its_ids() {
        assert_eq!(told(&observed(), &observed()), [""; 0]);
        let mut moved = observed();
        for id in [1, 2, 3] {
            let backend = moved.backends.remove(&id).unwrap();
            moved.backends.insert(id + 100, backend);
        }
        moved.slots.remove(&0);
        moved.slots.insert(64, vec![102, 101]);
        let service = Service {
            word: ServiceWord::with_backends(64, 2),
            ..moved.services[&1]
        };
        moved.services.insert(1, service);
        assert_eq!(told(&observed(), &moved), [""; 0]);
    }

    #[test]
    fn a_first_plan_tells_everything_by_service() {
        assert_eq!(
            told(&Observed::default(), &observed()),
            [
                "default/web  + address 10.96.0.10",
                "default/web:http  + list TCP IPv4 (affinity: 10800 s)",
                "default/web:http  + list TCP IPv4 for clients from outside (affinity: 10800 s)",
                "default/web:http  + frontend 10.96.0.10:80/TCP ClusterIP",
                "default/web:http  + frontend 192.168.0.1:30080/TCP NodePort (clients from outside: endpoints of this node)",
                "default/web:http  + frontend 203.0.113.9:80/TCP LoadBalancer (sources: source ranges, the node)",
                "default/web:http  + source range 10.0.0.0/8",
                "default/web:http  + backend 10.1.1.2:8080/TCP",
                "default/web:http  + backend 10.1.1.2:8080/TCP for clients from outside",
                "default/web:http  + backend 10.1.2.2:8080/TCP",
                "default/web:http  + backend 10.1.2.3:8080/TCP (new connections: no)",
                "kube-system/dns:dns  + list UDP IPv4 (new connections: refused)",
                "kube-system/dns:dns  + frontend 10.96.0.20:53/UDP ClusterIP",
            ]
        );
    }

    #[test]
    fn a_service_that_gets_its_first_backend_is_no_longer_refused() {
        assert_eq!(
            told(&observed(), &observed_with_udp()),
            [
                "kube-system/dns:dns  ~ list UDP IPv4 (new connections: refused -> translated)",
                "kube-system/dns:dns  + backend 10.1.1.3:5353/UDP",
            ]
        );
        assert_eq!(
            told(&observed_with_udp(), &observed()),
            [
                "kube-system/dns:dns  ~ list UDP IPv4 (new connections: translated -> refused)",
                "kube-system/dns:dns  - backend 10.1.1.3:5353/UDP",
            ]
        );
    }

    #[test]
    fn what_changes_says_from_what_to_what() {
        let mut after = observed();
        // One backend drains, the other that drained is gone, and clients keep none.
        after.slots.insert(0, vec![1]);
        after.backends.remove(&3);
        let word = ServiceWord::with_backends(0, 1);
        after.services.insert(
            1,
            Service {
                word,
                affinity: ServiceAffinity::NONE,
            },
        );
        // The load balancer is open to anyone, the ClusterIP another Service's.
        let (key, open) = frontend(
            "203.0.113.9:80",
            Protocol::Tcp,
            FrontendKind::LoadBalancer,
            1,
        );
        after.frontends.insert(key, open);
        let (key, taken) = frontend("10.96.0.20:53", Protocol::Udp, FrontendKind::ClusterIp, 1);
        after.frontends.insert(key, taken);
        after.source_ranges.clear();
        after.service_nets.insert("10.96.0.0/12".parse().unwrap());
        assert_eq!(
            told(&observed(), &after),
            [
                "-  + ServiceCIDR 10.96.0.0/12",
                "default/web:http  ~ list TCP IPv4 (affinity: 10800 s -> none)",
                "default/web:http  + frontend 10.96.0.20:53/UDP ClusterIP",
                "default/web:http  ~ frontend 203.0.113.9:80/TCP LoadBalancer (sources: source ranges, the node -> any)",
                "default/web:http  - source range 10.0.0.0/8",
                "default/web:http  ~ backend 10.1.2.2:8080/TCP (new connections: yes -> no)",
                "default/web:http  - backend 10.1.2.3:8080/TCP (new connections: no)",
                "kube-system/dns:dns  - frontend 10.96.0.20:53/UDP ClusterIP",
            ]
        );
    }

    #[test]
    fn another_rule_or_weight_is_told_and_the_slots_are_not() {
        let mut after = observed();
        let word = ServiceWord::with_backends(64, 3).scheduled(Scheduler::Maglev, true, true);
        let service = Service {
            word,
            ..after.services[&1]
        };
        after.services.insert(1, service);
        after.slots.remove(&0);
        after.slots.insert(64, vec![1, 2, 1]);
        after.backends.get_mut(&1).unwrap().weight = 2;
        assert_eq!(
            told(&observed(), &after),
            [
                "default/web:http  ~ list TCP IPv4 (scheduler: random -> maglev; failover: no -> yes)",
                "default/web:http  ~ backend 10.1.1.2:8080/TCP (weight: 1 -> 2)",
            ]
        );
        let new = told(&Observed::default(), &after);
        for line in [
            "default/web:http  + list TCP IPv4 (scheduler: maglev; affinity: 10800 s)",
            "default/web:http  + backend 10.1.1.2:8080/TCP (weight: 2)",
        ] {
            assert!(new.iter().any(|new| new == line), "{new:?}");
        }
        // Without backends there is no rule.
        let word = ServiceWord::without_backends(Empty::Refuse);
        let mut empty = after.clone();
        empty.services.insert(1, Service { word, ..service });
        let lines = told(&after, &empty);
        assert_eq!(
            lines[0],
            "default/web:http  ~ list TCP IPv4 (new connections: translated -> refused)"
        );
    }

    #[test]
    fn what_belongs_to_nobody_is_told_by_its_id() {
        let mut found = observed();
        found
            .backends
            .insert(50, backend("10.9.9.9:1", Protocol::Tcp, 77, 0));
        found
            .frontends
            .extend([address_entry("10.96.0.99".parse().unwrap())]);
        assert_eq!(
            told(&found, &observed()),
            [
                "?  - address 10.96.0.99",
                "?  - backend 10.9.9.9:1/? of service id 77, which has no name (new connections: no)",
            ]
        );
    }
}
