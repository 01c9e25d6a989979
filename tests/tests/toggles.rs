//! A Service that becomes another kind of Service while it is dialled: from a pod by the socket path, and
//! from outside by the packet path. What it has is reached, and what it has no more is not ours.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result, ensure};
use tests::{
    Agent, Service, World,
    cluster::{self, Cluster},
    fleet::{Fleet, endpoint_slices, families, reached, refused, silent, slices},
    stage::{PATIENCE, VIP4, VIP6, eventually},
};

const PORT: u16 = 30_080;
const OTHER_PORT: u16 = 30_081;
const EXTERNAL: &str = "198.51.100.7";
const OTHER_EXTERNAL: &str = "198.51.100.8";
const BALANCER: [&str; 2] = ["203.0.113.9", "2001:db8::9"];
/// The label by which a Service is another proxy's.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

fn world() -> Result<World> {
    World::builder()
        .node("node-a", ["client", "near"])
        .outside("laptop")
        .build()
}

/// Where a Service may be dialled, ports TCP and UDP.
#[derive(Clone, Copy, Debug)]
enum Place {
    At(&'static str),
    NodePort(u16),
}

use Place::{At, NodePort};

/// TCP and UDP.
type Pair = (SocketAddr, SocketAddr);

/// A world, its agent, and whoever tells the agent.
struct Story<'a> {
    world: &'a World,
    agent: &'a Agent,
    apply: &'a dyn Fn(&Service) -> Result<()>,
    /// Where the Service is reached.
    served: BTreeSet<Pair>,
}

impl Story<'_> {
    /// The Service becomes this one: it is reached at these places, in these families; at those it had
    /// before, no more.
    fn becomes(&mut self, what: &str, service: &Service, v6: bool, places: &[Place]) -> Result<()> {
        let served: BTreeSet<Pair> = places
            .iter()
            .flat_map(|place| self.pairs(*place))
            .filter(|(tcp, _)| v6 || tcp.is_ipv4())
            .collect();
        (self.apply)(service)?;
        eventually(what, || {
            self.frontends_are(&served)?;
            for from in ["client", "laptop"] {
                let client = self.world.pod(from);
                for (tcp, udp) in &served {
                    let seen = families(client)[usize::from(tcp.is_ipv6())];
                    reached(client, *tcp, *udp, &[("near", seen)])?;
                }
                for (tcp, udp) in self.served.difference(&served) {
                    if tcp.port() == udp.port() {
                        // The node itself answers that nobody listens at what was a NodePort.
                        refused(client, *tcp, *udp)?;
                    } else {
                        silent(client, *tcp, *udp)?;
                    }
                }
            }
            Ok(())
        })?;
        self.served = served;
        Ok(())
    }

    /// Leaves loopback aside.
    fn frontends_are(&self, served: &BTreeSet<Pair>) -> Result<()> {
        let status = self.agent.status()?;
        let mut found = BTreeSet::new();
        for frontend in status["frontends"].as_array().context("no frontends")? {
            let ip: IpAddr = frontend["address"]
                .as_str()
                .context("no address")?
                .parse()?;
            let port = u16::try_from(frontend["port"].as_u64().context("no port")?)?;
            if !ip.is_loopback() {
                found.insert(SocketAddr::new(ip, port));
            }
        }
        let wanted = served.iter().flat_map(|(tcp, udp)| [*tcp, *udp]).collect();
        ensure!(found == wanted, "{found:?}, wanted: {wanted:?}");
        Ok(())
    }

    fn pairs(&self, place: Place) -> Vec<Pair> {
        match place {
            At(ip) => {
                let ip: IpAddr = ip.parse().expect("an IP address");
                vec![(SocketAddr::new(ip, 80), SocketAddr::new(ip, 53))]
            }
            NodePort(port) => families(self.world.node("node-a").host())
                .map(|ip| (SocketAddr::new(ip, port), SocketAddr::new(ip, port)))
                .into(),
        }
    }

    fn play(&mut self) -> Result<()> {
        let (v4, both) = (false, true);
        self.becomes("ClusterIP", &plain([VIP4]), v4, &[At(VIP4)])?;
        let node_port = with_node_port([VIP4], PORT).kind("NodePort");
        self.becomes("NodePort", &node_port, v4, &[At(VIP4), NodePort(PORT)])?;
        let moved = with_node_port([VIP4], OTHER_PORT).kind("NodePort");
        let places = [At(VIP4), NodePort(OTHER_PORT)];
        self.becomes("another NodePort", &moved, v4, &places)?;
        let awaited = with_node_port([VIP4], OTHER_PORT).kind("LoadBalancer");
        self.becomes("a balancer that is awaited", &awaited, v4, &places)?;
        let balanced = awaited.load_balancer(BALANCER);
        let places = [At(VIP4), NodePort(OTHER_PORT), At(BALANCER[0])];
        self.becomes("the balancer's addresses", &balanced, v4, &places)?;
        let dual = with_node_port([VIP4, VIP6], OTHER_PORT)
            .kind("LoadBalancer")
            .load_balancer(BALANCER);
        let places = [
            At(VIP4),
            At(VIP6),
            NodePort(OTHER_PORT),
            At(BALANCER[0]),
            At(BALANCER[1]),
        ];
        self.becomes("IPv6 gained", &dual, both, &places)?;
        self.becomes(
            "IPv6 lost, and the balancer",
            &node_port,
            v4,
            &[At(VIP4), NodePort(PORT)],
        )?;
        let external = plain([VIP4]).external_ips([EXTERNAL]);
        let places = [At(VIP4), At(EXTERNAL)];
        self.becomes("an external IP", &external, v4, &places)?;
        let external = plain([VIP4]).external_ips([OTHER_EXTERNAL]);
        let places = [At(VIP4), At(OTHER_EXTERNAL)];
        self.becomes("another external IP", &external, v4, &places)?;
        self.becomes("headless", &plain(["None"]), v4, &[])?;
        let places = [At(VIP4), At(VIP6)];
        self.becomes("dual-stack ClusterIP", &plain([VIP4, VIP6]), both, &places)?;
        let name = plain([VIP4, VIP6])
            .kind("ExternalName")
            .spec("externalName: web.example");
        self.becomes("ExternalName, with its addresses", &name, v4, &[])?;
        self.becomes("ClusterIP again", &plain([VIP4]), v4, &[At(VIP4)])?;
        let labelled = plain([VIP4]).label(PROXY_NAME, "another");
        self.becomes("another proxy's", &labelled, v4, &[])?;
        self.becomes("ours again", &plain([VIP4]), v4, &[At(VIP4)])
    }
}

fn plain<const N: usize>(addresses: [&str; N]) -> Service {
    Service::new("web", addresses)
        .tcp("http", 80)
        .udp("dns", 53)
}

fn with_node_port<const N: usize>(addresses: [&str; N], port: u16) -> Service {
    Service::new("web", addresses)
        .port("http", "TCP", 80, Some(port))
        .port("dns", "UDP", 53, Some(port))
}

/// What is dialled from outside comes to the node.
fn routes(world: &World) -> Result<()> {
    let addresses = [
        VIP4,
        VIP6,
        EXTERNAL,
        OTHER_EXTERNAL,
        BALANCER[0],
        BALANCER[1],
    ];
    world.route("laptop", &addresses, "node-a")
}

#[test]
fn a_service_in_a_folder_becomes_every_kind_of_service() -> Result<()> {
    let fleet = Fleet::start(world()?, &["node-a"], &[], |world, manifests| {
        slices(world, manifests, "web", &["near"])
    })?;
    routes(&fleet.world)?;
    let mut story = Story {
        world: &fleet.world,
        agent: fleet.agent("node-a")?,
        apply: &|service| fleet.manifests.service(service),
        served: BTreeSet::new(),
    };
    story.play()
}

#[test]
fn a_service_of_an_api_server_becomes_every_kind_of_service() -> Result<()> {
    let cluster = Cluster::in_world(world()?, &["near"], |world, server| {
        for slice in endpoint_slices(world, "web", &["near"]) {
            server.apply(cluster::object(&slice.yaml()));
        }
        Ok(())
    })?;
    cluster.agent.wait_ready(PATIENCE)?;
    cluster.agent.wait_log("attached by", PATIENCE)?;
    routes(&cluster.world)?;
    let mut story = Story {
        world: &cluster.world,
        apply: &|service| {
            cluster.server.apply(cluster::service(service));
            Ok(())
        },
        agent: &cluster.agent,
        served: BTreeSet::new(),
    };
    story.play()
}
