//! The flows of kube-proxy's own tests (`packetFlowTest` in pkg/proxy/nftables/proxier_test.go), with
//! real sockets and packets, in both families: who is reached, and what it sees of the client. The rows
//! are those of docs/PARITY.md.

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use tests::{
    EndpointSlice, ManifestDir, Service, World,
    fleet::{Fleet, families, reached, refused, silent},
    net_error,
    probe::Proto,
    stage::{TARGET, eventually},
};

/// The endpoints of a Service, by what is listed of them: `R`eady, `S`erving, `T`erminating.
type Endpoints = &'static [(&'static str, &'static str)];

/// What may be dialled of a Service. Ports are 80/TCP and 53/UDP, or the NodePort, unless it says so.
#[derive(Clone, Copy, Debug)]
enum To {
    ClusterIp,
    ClusterIpAt(u16, u16),
    ExternalIp,
    Balancer,
    SecondBalancer,
    /// A second address of a balancer that is also on node-a's device.
    BoundBalancer,
    BoundBalancerAt(u16, u16),
    /// On node-a's primary address.
    NodePort,
    /// On another address of node-a.
    SecondaryNodePort,
    Localhost,
    /// Inside the ServiceCIDR, and nobody's.
    Unallocated,
}
use To::*;

#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// Each of these, nobody else.
    Reaches(&'static [&'static str], Seen),
    Rejected,
    Dropped,
}
use Outcome::*;

/// As whom a backend sees the client, and where that is not what kube-proxy would show, why.
#[derive(Clone, Copy, Debug)]
enum Seen {
    /// As itself: nor does kube-proxy masquerade.
    Itself,
    /// As the node: kube-proxy masquerades too.
    Masqueraded,
    /// As the node if the backend is elsewhere, where kube-proxy always masquerades: the answer of a
    /// backend on this node passes here anyway.
    MasqueradedIfElsewhere,
    /// As itself, where kube-proxy masquerades: it is led to the backend where it dials, by its socket
    /// or on its own device, and so the answer comes to where it was dialled. A process of the node is
    /// itself the node.
    ItselfWithoutNeed,
}
use Seen::*;

struct Row {
    of: &'static str,
    service: &'static str,
    from: &'static [&'static str],
    to: &'static [To],
    outcome: Outcome,
}

const fn row(
    of: &'static str,
    service: &'static str,
    from: &'static [&'static str],
    to: &'static [To],
    outcome: Outcome,
) -> Row {
    Row {
        of,
        service,
        from,
        to,
        outcome,
    }
}

/// Pods by what sees their sockets: the socket path, and the packet path only.
const PODS: &[&str] = &["pod", "vm"];
const OUTER: &[To] = &[NodePort, ExternalIp, Balancer];
const NODE_PORT_AND_BALANCER: &[To] = &[NodePort, Balancer];

/// Those at a position have that number in their addresses and ports.
const SERVICES: &[(&str, &[&str], Endpoints)] = &[
    ("empty", &[BALANCED], &[]),
    ("one", &[], &[("here-1", "RS")]),
    ("own", &[BALANCED], &[("vm", "RS")]),
    ("two", &[], &[("here-1", "RS"), ("far", "RS")]),
    ("ports", &[], &[("here-1", "RS")]),
    (
        "ranges",
        &[BALANCED, RANGES],
        &[("here-1", "RS"), ("far", "RS")],
    ),
    ("node-ports", &[EXPOSED], &[("here-1", "RS")]),
    (
        "outside-local",
        &[BALANCED, OUTSIDE_LOCAL],
        &[("here-1", "RS"), ("far", "RS")],
    ),
    (
        "outside-cluster",
        &[BALANCED],
        &[("here-1", "RS"), ("far", "RS")],
    ),
    (
        "inside-cluster",
        &[],
        &[("here-1", "RS"), ("here-2", "RS"), ("far", "RS")],
    ),
    (
        "inside-local-1",
        &[BALANCED, INSIDE_LOCAL],
        &[("here-1", "RS"), ("far", "RS")],
    ),
    (
        "inside-local-2",
        &[INSIDE_LOCAL],
        &[("here-1", "RS"), ("here-2", "RS"), ("far", "RS")],
    ),
    ("inside-local-0", &[INSIDE_LOCAL], &[("far", "RS")]),
    (
        "leaving-some",
        &[BALANCED, OUTSIDE_LOCAL],
        &[
            ("here-1", "RS"),
            ("here-2", "RS"),
            ("here-3", "ST"),
            ("here-4", "T"),
            ("far", "RS"),
        ],
    ),
    (
        "leaving-here",
        &[BALANCED, OUTSIDE_LOCAL],
        &[
            ("here-2", "ST"),
            ("here-3", "ST"),
            ("here-4", "T"),
            ("far", "RS"),
        ],
    ),
    (
        "leaving-elsewhere",
        &[BALANCED, OUTSIDE_LOCAL],
        &[("here-4", "T"), ("far", "ST")],
    ),
    (
        "left",
        &[BALANCED, OUTSIDE_LOCAL],
        &[("here-4", "T"), ("far", "T")],
    ),
    (
        "cluster-leaving-some",
        &[BALANCED],
        &[
            ("here-1", "RS"),
            ("here-3", "ST"),
            ("here-4", "T"),
            ("far", "RS"),
        ],
    ),
    (
        "cluster-leaving",
        &[BALANCED],
        &[
            ("here-2", "ST"),
            ("here-3", "ST"),
            ("here-4", "T"),
            ("far", "ST"),
        ],
    ),
    (
        "cluster-leaving-one",
        &[BALANCED],
        &[("here-4", "T"), ("far", "ST")],
    ),
    (
        "cluster-left",
        &[BALANCED],
        &[("here-4", "T"), ("far", "T")],
    ),
    ("host-network", &[BALANCED], &[("node-a", "RS")]),
];

const EXPOSED: &str = "type: NodePort";
const BALANCED: &str = "type: LoadBalancer";
const OUTSIDE_LOCAL: &str = "externalTrafficPolicy: Local";
const INSIDE_LOCAL: &str = "internalTrafficPolicy: Local";
/// `laptop` and node-a.
const RANGES: &str = "loadBalancerSourceRanges: \
     [192.168.50.101/32, \"fd50::65/128\", 192.168.50.1/32, \"fd50::1/128\"]";

#[rustfmt::skip] // One row, one line.
const ROWS: &[Row] = &[
    // TestNoEndpointsReject
    row("F1", "empty", &["pod", "vm", "node-a", "laptop"], &[ClusterIp, NodePort, ExternalIp, Balancer], Rejected),
    // TestClusterIPGeneral
    row("F2", "one", PODS, &[ClusterIp], Reaches(&["here-1"], Itself)),
    row("F3", "one", &["here-1"], &[ClusterIp], Reaches(&["here-1"], ItselfWithoutNeed)),
    row("F3 M4", "own", &["vm"], &[ClusterIp, NodePort, ExternalIp, Balancer], Reaches(&["vm"], Masqueraded)),
    row("F4", "two", PODS, &[ClusterIp], Reaches(&["here-1", "far"], Itself)),
    row("F5", "ports", PODS, &[ClusterIpAt(443, 443)], Reaches(&["here-1@8443"], Itself)),
    row("F6", "ports", PODS, &[ClusterIpAt(53, 53)], Reaches(&["here-1@dns"], Itself)),
    row("F7", "one", &["pod", "vm", "laptop"], &[ClusterIpAt(53, 80)], Rejected),
    row("F8", "one", &["pod", "vm", "laptop"], &[ClusterIpAt(443, 443)], Rejected),
    row("F9", "one", &["pod", "vm", "node-a", "laptop"], &[Unallocated], Dropped),
    // TestLoadBalancer
    row("F10", "ranges", PODS, &[ClusterIp], Reaches(&["here-1", "far"], Itself)),
    row("F11", "ranges", &["laptop", "stranger"], &[NodePort], Reaches(&["here-1", "far"], MasqueradedIfElsewhere)),
    row("F12", "ranges", &["laptop"], &[Balancer, SecondBalancer], Reaches(&["here-1", "far"], MasqueradedIfElsewhere)),
    row("F13", "ranges", &["stranger", "pod", "vm"], &[Balancer, SecondBalancer], Dropped),
    // From an address on the node to itself the kernel would choose that address as the source.
    row("F14", "ranges", &["node-a"], &[Balancer, SecondBalancer, BoundBalancer], Reaches(&["here-1", "far"], ItselfWithoutNeed)),
    // Ports of the balancer's address that are no Service's are for whoever has the address.
    row("A10", "ranges", &["laptop"], &[BoundBalancerAt(81, 81)], Reaches(&["node-a@bound"], Itself)),
    // TestNodePorts
    row("F15", "node-ports", PODS, &[ClusterIp], Reaches(&["here-1"], Itself)),
    row("F16", "node-ports", &["laptop"], &[NodePort], Reaches(&["here-1"], MasqueradedIfElsewhere)),
    row("F16", "node-ports", &["node-a"], &[NodePort], Reaches(&["here-1"], ItselfWithoutNeed)),
    row("F17", "node-ports", &["laptop"], &[SecondaryNodePort], Reaches(&["node-a@secondary"], Itself)),
    // kube-proxy: in mode iptables and IPv4 only.
    row("F18", "node-ports", &["node-a"], &[Localhost], Reaches(&["here-1"], ItselfWithoutNeed)),
    // TestExternalTrafficPolicyLocal
    row("F20", "outside-local", PODS, &[ClusterIp], Reaches(&["here-1", "far"], Itself)),
    row("F21 F41 F48", "outside-local", PODS, OUTER, Reaches(&["here-1", "far"], Itself)),
    row("F22 F43", "outside-local", &["laptop"], OUTER, Reaches(&["here-1"], Itself)),
    // TestExternalTrafficPolicyCluster
    row("F23 F38", "outside-cluster", PODS, &[ClusterIp], Reaches(&["here-1", "far"], Itself)),
    row("F24 F40", "outside-cluster", PODS, OUTER, Reaches(&["here-1", "far"], ItselfWithoutNeed)),
    row("F24 F40", "outside-cluster", &["laptop"], OUTER, Reaches(&["here-1", "far"], MasqueradedIfElsewhere)),
    // TestInternalTrafficPolicy
    row("F25", "inside-cluster", PODS, &[ClusterIp], Reaches(&["here-1", "here-2", "far"], Itself)),
    row("F26", "inside-local-1", PODS, &[ClusterIp], Reaches(&["here-1"], Itself)),
    row("F26", "inside-local-2", PODS, &[ClusterIp], Reaches(&["here-1", "here-2"], Itself)),
    row("F27", "inside-local-0", &["pod", "vm", "node-a", "laptop"], &[ClusterIp], Dropped),
    // TestTerminatingEndpointsTrafficPolicyLocal
    row("F29", "leaving-some", PODS, &[ClusterIp], Reaches(&["here-1", "here-2", "far"], Itself)),
    row("F29", "leaving-some", &["laptop"], &[Balancer], Reaches(&["here-1", "here-2"], Itself)),
    row("F30", "leaving-here", PODS, &[ClusterIp], Reaches(&["far"], Itself)),
    row("F30", "leaving-here", &["laptop"], &[Balancer], Reaches(&["here-2", "here-3"], Itself)),
    row("F31", "leaving-elsewhere", PODS, &[ClusterIp], Reaches(&["far"], Itself)),
    row("F31", "leaving-elsewhere", &["laptop"], &[Balancer], Dropped),
    row("F32", "left", PODS, &[ClusterIp], Rejected),
    row("F32", "left", &["laptop"], &[Balancer], Rejected),
    // TestTerminatingEndpointsTrafficPolicyCluster
    row("F34", "cluster-leaving-some", PODS, &[ClusterIp], Reaches(&["here-1", "far"], Itself)),
    row("F34", "cluster-leaving-some", &["laptop"], &[Balancer], Reaches(&["here-1", "far"], MasqueradedIfElsewhere)),
    row("F35", "cluster-leaving", PODS, &[ClusterIp], Reaches(&["here-2", "here-3", "far"], Itself)),
    row("F35", "cluster-leaving", &["laptop"], &[Balancer], Reaches(&["here-2", "here-3", "far"], MasqueradedIfElsewhere)),
    row("F36", "cluster-leaving-one", PODS, &[ClusterIp], Reaches(&["far"], Itself)),
    row("F36", "cluster-leaving-one", &["laptop"], &[Balancer], Reaches(&["far"], MasqueradedIfElsewhere)),
    row("F37", "cluster-left", PODS, &[ClusterIp], Rejected),
    row("F37", "cluster-left", &["laptop"], &[Balancer], Rejected),
    // A hostNetwork pod is the node.
    row("M8", "host-network", PODS, &[ClusterIp], Reaches(&["node-a"], Itself)),
    row("M8", "host-network", &["node-a"], &[ClusterIp, NodePort], Reaches(&["node-a"], ItselfWithoutNeed)),
    row("M8", "host-network", &["laptop"], &[ClusterIp, NodePort], Reaches(&["node-a"], MasqueradedIfElsewhere)),
    // TestInternalExternalMasquerade. Without a detector kube-proxy masquerades less to ClusterIPs (F47).
    row("F39 F47", "outside-cluster", &["node-a"], &[ClusterIp], Reaches(&["here-1", "far"], ItselfWithoutNeed)),
    row("F39 F47", "outside-cluster", &["laptop"], &[ClusterIp], Reaches(&["here-1", "far"], MasqueradedIfElsewhere)),
    row("F40", "outside-cluster", &["node-a"], &[NodePort, Balancer, Localhost], Reaches(&["here-1", "far"], ItselfWithoutNeed)),
    row("F42", "outside-local", &["node-a"], NODE_PORT_AND_BALANCER, Reaches(&["here-1", "far"], ItselfWithoutNeed)),
    row("F44", "outside-local", &["node-a"], &[ClusterIp], Reaches(&["here-1", "far"], ItselfWithoutNeed)),
    row("F44", "outside-local", &["laptop"], &[ClusterIp], Reaches(&["here-1", "far"], MasqueradedIfElsewhere)),
    row("F45", "inside-local-1", &["node-a"], &[ClusterIp], Reaches(&["here-1"], ItselfWithoutNeed)),
    row("F45", "inside-local-1", &["laptop"], &[ClusterIp], Reaches(&["here-1"], MasqueradedIfElsewhere)),
    row("F46", "inside-local-1", &["pod", "vm", "node-a"], NODE_PORT_AND_BALANCER, Reaches(&["here-1", "far"], ItselfWithoutNeed)),
    row("F46", "inside-local-1", &["laptop"], NODE_PORT_AND_BALANCER, Reaches(&["here-1", "far"], MasqueradedIfElsewhere)),
];

/// After the slices of these Services were deleted.
#[rustfmt::skip] // As above.
const ROWS_WITHOUT_SLICES: &[Row] = &[
    row("F28", "inside-local-0", PODS, &[ClusterIp], Rejected),
    row("F33", "leaving-some", PODS, &[ClusterIp], Rejected),
    row("F33", "leaving-some", &["laptop"], &[Balancer], Rejected),
    row("F33", "leaving-here", &["pod"], &[ClusterIp], Rejected),
    row("F33", "leaving-here", &["laptop"], &[Balancer], Rejected),
    row("F33", "leaving-elsewhere", &["pod"], &[ClusterIp], Rejected),
    row("F33", "leaving-elsewhere", &["laptop"], &[Balancer], Rejected),
    row("F37", "cluster-leaving", PODS, &[ClusterIp], Rejected),
    row("F37", "cluster-leaving", &["laptop"], &[Balancer], Rejected),
];

const CIDRS: [&str; 2] = ["10.96.0.0/16", "fd96::/112"];
const EXTERNAL: [&str; 2] = ["198.51.100.0/24", "2001:db8:e::/112"];
const BALANCERS: [&str; 2] = ["203.0.113.0/24", "2001:db8:b::/112"];
const SECONDARY: [&str; 2] = ["192.0.2.77", "2001:db8:2::77"];

/// Where the Service at this position is, and on which ports.
#[derive(Clone, Copy)]
struct Place(u16);

impl Place {
    fn of(service: &str) -> Self {
        let at = SERVICES.iter().position(|(name, ..)| *name == service);
        Self(u16::try_from(at.expect("a Service of the table")).expect("few Services") + 1)
    }

    fn cluster_ips(self) -> [IpAddr; 2] {
        self.at("10.96.0.", "fd96::")
    }

    fn external_ips(self) -> [IpAddr; 2] {
        self.at("198.51.100.", "2001:db8:e::")
    }

    fn balancers(self) -> [IpAddr; 2] {
        self.at("203.0.113.", "2001:db8:b::")
    }

    fn second_balancers(self) -> [IpAddr; 2] {
        Self(self.0 + 100).at("203.0.113.", "2001:db8:b::")
    }

    fn bound_balancers(self) -> [IpAddr; 2] {
        Self(self.0 + 200).at("203.0.113.", "2001:db8:b::")
    }

    fn at(self, v4: &str, v6: &str) -> [IpAddr; 2] {
        [format!("{v4}{}", self.0), format!("{v6}{:x}", self.0)]
            .map(|ip| ip.parse().expect("an address"))
    }

    fn node_port(self) -> u16 {
        30_100 + self.0
    }

    /// What to dial with TCP and with UDP.
    fn dialled(self, world: &World, to: To, family: usize) -> (SocketAddr, SocketAddr) {
        let usual = (80, 53);
        let node_port = (self.node_port(), self.node_port());
        let (ips, (tcp, udp)) = match to {
            ClusterIp => (self.cluster_ips(), usual),
            ClusterIpAt(tcp, udp) => (self.cluster_ips(), (tcp, udp)),
            ExternalIp => (self.external_ips(), usual),
            Balancer => (self.balancers(), usual),
            SecondBalancer => (self.second_balancers(), usual),
            BoundBalancer => (self.bound_balancers(), usual),
            BoundBalancerAt(tcp, udp) => (self.bound_balancers(), (tcp, udp)),
            NodePort => (families(world.node("node-a").host()), node_port),
            SecondaryNodePort => (parsed(SECONDARY), node_port),
            Localhost => (parsed(["127.0.0.1", "::1"]), node_port),
            Unallocated => (parsed(["10.96.77.77", "fd96::7777"]), usual),
        };
        let ip = ips[family];
        (SocketAddr::new(ip, tcp), SocketAddr::new(ip, udp))
    }
}

fn parsed(ips: [&str; 2]) -> [IpAddr; 2] {
    ips.map(|ip| ip.parse().expect("an address"))
}

fn service(name: &str, spec: &[&str]) -> Service {
    let place = Place::of(name);
    let service = Service::new(name, place.cluster_ips());
    let service = spec
        .iter()
        .fold(service, |service, line| service.spec(line));
    if name == "ports" {
        return service
            .tcp("https", 443)
            .udp("quic", 443)
            .tcp("dns-tcp", 53)
            .udp("dns", 53);
    }
    let is_exposed = spec.iter().any(|line| line.starts_with("type: "));
    let node_port = is_exposed.then(|| place.node_port());
    let service = service
        .port("http", "TCP", 80, node_port)
        .port("dns", "UDP", 53, node_port);
    if !spec.contains(&BALANCED) {
        return service;
    }
    let balancers = [
        place.balancers(),
        place.second_balancers(),
        place.bound_balancers(),
    ];
    service
        .external_ips(place.external_ips())
        .load_balancer(balancers.concat())
}

fn write_slices(
    world: &World,
    manifests: &ManifestDir,
    name: &str,
    endpoints: Endpoints,
) -> Result<()> {
    for family in 0..2 {
        let slice = match family {
            0 => EndpointSlice::v4(name, &format!("{name}-4")),
            _ => EndpointSlice::v6(name, &format!("{name}-6")),
        };
        let slice = if name == "ports" {
            slice
                .tcp("https", 8443)
                .udp("quic", 8443)
                .tcp("dns-tcp", 5353)
                .udp("dns", 53)
        } else {
            slice.tcp("http", TARGET).udp("dns", TARGET)
        };
        let slice = endpoints.iter().fold(slice, |slice, (pod, state)| {
            let (ip, node) = (families(world.place(pod))[family], world.node_of(pod));
            let is = |letter| state.contains(letter);
            slice.endpoint(ip, node.name(), is('R'), is('S'), is('T'))
        });
        manifests.slice(&slice)?;
    }
    Ok(())
}

/// What listens beside the servers of every pod.
fn serve_more(world: &World) -> Result<()> {
    let (pod, node) = (world.pod("here-1"), world.node("node-a").host());
    for ip in families(pod) {
        for (proto, port, name) in [
            (Proto::Tcp, 8443, "here-1@8443"),
            (Proto::Udp, 8443, "here-1@8443"),
            (Proto::Tcp, 5353, "here-1@dns"),
            (Proto::Udp, 53, "here-1@dns"),
            (Proto::Udp, 5353, "of the other protocol"),
            (Proto::Tcp, 53, "of the other protocol"),
        ] {
            pod.probe().serve(proto, SocketAddr::new(ip, port), name)?;
        }
    }
    let bound = Place::of("ranges").bound_balancers();
    let secondary = Place::of("node-ports").node_port();
    for (ips, port, name) in [
        (bound, 81, "node-a@bound"),
        (parsed(SECONDARY), secondary, "node-a@secondary"),
    ] {
        for ip in ips {
            node.netns().ip(&format!(
                "address add {ip}/{} dev eth0{}\n",
                if ip.is_ipv4() { 32 } else { 128 },
                if ip.is_ipv4() { "" } else { " nodad" }
            ))?;
            for proto in [Proto::Tcp, Proto::Udp] {
                node.probe().serve(proto, SocketAddr::new(ip, port), name)?;
            }
        }
    }
    Ok(())
}

fn fleet() -> Result<Fleet> {
    let world = World::builder()
        .node("node-a", ["pod", "here-1", "here-2", "here-3", "here-4"])
        .guest("vm")
        .node("node-b", ["far"])
        .outside("laptop")
        .outside("stranger")
        .build()?;
    for client in ["laptop", "stranger"] {
        for prefixes in [CIDRS, EXTERNAL, BALANCERS, SECONDARY] {
            world.route(client, &prefixes, "node-a")?;
        }
    }
    serve_more(&world)?;
    let extra = ["--pod-devices", "guest*"];
    Fleet::start(world, &["node-a"], &extra, |world, manifests| {
        manifests.service_cidrs(&CIDRS)?;
        for (name, spec, endpoints) in SERVICES {
            manifests.service(&service(name, spec))?;
            write_slices(world, manifests, name, endpoints)?;
        }
        Ok(())
    })
}

/// What `backend` sees of a client, by family.
fn seen_by(world: &World, backend: &str, client: &str, seen: Seen) -> [IpAddr; 2] {
    let itself = families(world.place(client));
    let node = families(world.node("node-a").host());
    let server = backend.split('@').next().unwrap_or(backend);
    match seen {
        Itself | ItselfWithoutNeed => itself,
        Masqueraded => node,
        MasqueradedIfElsewhere if world.node_of(server).name() == "node-a" => itself,
        MasqueradedIfElsewhere => node,
    }
}

fn comes_out(world: &World, row: &Row, from: &str, to: To, family: usize) -> Result<()> {
    let client = world.place(from);
    let (tcp, udp) = Place::of(row.service).dialled(world, to, family);
    match row.outcome {
        Reaches(backends, seen) => {
            let wanted: Vec<(&str, IpAddr)> = backends
                .iter()
                .map(|name| (*name, seen_by(world, name, from, seen)[family]))
                .collect();
            reached(client, tcp, udp, &wanted)
        }
        Rejected => refused(client, tcp, udp),
        Dropped => silent(client, tcp, udp),
    }
}

/// Plays the rows in both families at once, and tells of all that come out otherwise.
fn play(world: &World, rows: &[Row]) -> Result<()> {
    let play = |family: usize| {
        let mut wrong = Vec::new();
        for row in rows {
            for from in row.from {
                for to in row.to {
                    if let Err(error) = comes_out(world, row, from, *to, family) {
                        let (of, service, outcome) = (row.of, row.service, row.outcome);
                        wrong.push(format!(
                            "{of}: {from} to {to:?} of {service}, wanted {outcome:?}: {error:#}"
                        ));
                    }
                }
            }
        }
        wrong
    };
    let wrong = thread::scope(|scope| {
        let other = scope.spawn(|| play(1));
        let mut wrong = play(0);
        wrong.extend(other.join().expect("no panic"));
        wrong
    });
    ensure!(
        wrong.is_empty(),
        "{} of them:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    Ok(())
}

#[test]
fn every_flow_of_kube_proxys_tests_comes_out_as_the_table_says() -> Result<()> {
    let fleet = fleet()?;
    let world = &fleet.world;
    play(world, ROWS)?;

    let mut names: Vec<&str> = ROWS_WITHOUT_SLICES.iter().map(|row| row.service).collect();
    names.dedup();
    for name in names {
        for family in [4, 6] {
            let slice = format!("default-{name}-{family}.slice.yaml");
            fleet.manifests.remove(&slice)?;
        }
    }
    eventually("the Services to be without endpoints", || {
        play(world, ROWS_WITHOUT_SLICES)
    })
}

/// A balancer answers for its own address: a node that did so too would draw traffic off.
#[test]
fn nobody_answers_for_the_address_of_a_balancer() -> Result<()> {
    /// Longer than a neighbour is asked for (three times a second).
    const ASKED_FOR: Duration = Duration::from_secs(8);
    let world = World::builder()
        .node("node-a", ["here-1"])
        .outside("laptop")
        .build()?;
    let fleet = Fleet::start(world, &["node-a"], &[], |world, manifests| {
        manifests.service(&service("empty", &[BALANCED]))?;
        write_slices(world, manifests, "empty", &[("here-1", "RS")])
    })?;
    let client = fleet.world.pod("laptop");
    let place = Place::of("empty");
    for ips in [place.balancers(), place.external_ips()] {
        for ip in ips {
            // As if it were on the link.
            client
                .netns()
                .ip(&format!("route replace {ip} dev eth0\n"))?;
            let to = SocketAddr::new(ip, 80);
            let error = net_error(client.connect_within(to, ASKED_FOR));
            let error = error.with_context(|| format!("{to}"))?;
            ensure!(error.errno == "EHOSTUNREACH", "{to}: {error}");
        }
    }
    // Where it is led to the node, it is served.
    for ip in place.balancers() {
        let node = families(fleet.world.node("node-a").host());
        let via = if ip.is_ipv4() { node[0] } else { node[1] };
        client
            .netns()
            .ip(&format!("route replace {ip} via {via}\n"))?;
        client.connect(SocketAddr::new(ip, 80))?;
    }
    Ok(())
}
