//! The tables that all rows are played before.

use std::net::{IpAddr, SocketAddr};

use proxy_common::{
    abi::{
        Addr, AffinityEntry, AffinityKey, Backend, Client, Device, Empty, Frontend, FrontendKey,
        FrontendKind, PortRange, Protocol, Service, ServiceAffinity, ServiceWord,
    },
    datapath::{fake::Maps, path::Route},
    wire::link::Link,
};

/// The device of [`Scene::router`]'s side.
pub const UPLINK: u32 = 7;
/// The device of [`Scene::pod`], which has hooks of its own.
pub const GUEST: u32 = 8;
/// The link-layer address of both.
pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A backend, before its family gives it numbers of its own.
struct Endpoint {
    number: u32,
    service: u32,
    ip: IpAddr,
    port: u16,
    flags: u8,
}

/// One address family's cast.
#[derive(Clone, Copy, Debug)]
pub struct Scene {
    pub v6: bool,
}

impl Scene {
    pub const BOTH: [Self; 2] = [Self { v6: false }, Self { v6: true }];

    /// Source ports for flows that leave: one, so that it is known.
    pub const SNAT_PORTS: PortRange = PortRange {
        first: 61_007,
        last: 61_007,
    };

    /// Of all devices.
    pub const MTU: u16 = 1500;

    fn ip(self, v4: &str, v6: &str) -> IpAddr {
        if self.v6 { v6 } else { v4 }.parse().expect("an address")
    }

    pub fn client(self) -> SocketAddr {
        SocketAddr::new(self.ip("198.51.100.7", "2001:db8:c::7"), 40_000)
    }

    /// Of two Services with the same backends.
    pub fn vip(self) -> IpAddr {
        self.ip("192.0.2.10", "2001:db8::10")
    }

    pub fn other_vip(self) -> IpAddr {
        self.ip("192.0.2.11", "2001:db8::11")
    }

    /// On this node.
    pub fn pod(self) -> IpAddr {
        self.ip("10.1.0.5", "fd00:1::5")
    }

    /// Of a Service that has the endpoint here for clients from outside, and the one elsewhere for pods.
    pub fn split_vip(self) -> IpAddr {
        self.ip("192.0.2.12", "2001:db8::12")
    }

    /// Of two Services that only [`Self::client`] and [`Self::pod`] may dial; port 81 has no endpoints.
    pub fn guarded_vip(self) -> IpAddr {
        self.ip("192.0.2.13", "2001:db8::13")
    }

    /// In no range.
    pub fn other_client(self) -> SocketAddr {
        SocketAddr::new(self.ip("198.51.100.8", "2001:db8:c::8"), 40_000)
    }

    /// Which the kernel's rules let go nowhere.
    pub fn barred_client(self) -> SocketAddr {
        SocketAddr::new(self.ip("198.51.100.9", "2001:db8:c::9"), 40_000)
    }

    /// A ClusterIP: port 80 in UDP like that of [`Self::vip`], 82 without endpoints, 83 without any here.
    pub fn cluster_ip(self) -> IpAddr {
        self.ip("10.96.0.10", "fd00:96::10")
    }

    /// From where ClusterIPs are taken, and free.
    pub fn free_cluster_ip(self) -> IpAddr {
        self.ip("10.96.0.11", "fd00:96::11")
    }

    fn service_net(self) -> (Addr, u32) {
        let ip = self.ip("10.96.0.0", "fd00:96::");
        // IPv4's count from 96: a /16.
        (ip.into(), 112)
    }

    /// Of a Service whose backend is where no route leads.
    pub fn lost_vip(self) -> IpAddr {
        self.ip("192.0.2.14", "2001:db8::14")
    }

    pub fn lost_pod(self) -> IpAddr {
        self.ip("10.3.0.9", "fd00:3::9")
    }

    /// Of a Service whose backend is a process of this node, named by its address alone.
    pub fn own_vip(self) -> IpAddr {
        self.ip("192.0.2.15", "2001:db8::15")
    }

    /// Of a Service whose backend is [`Self::idle_vip`]:80.
    pub fn odd_vip(self) -> IpAddr {
        self.ip("192.0.2.16", "2001:db8::16")
    }

    /// Of Services with affinity, whose slots all name the endpoint elsewhere. [`Self::client`] got the
    /// one here: of port 80 a moment ago; of port 82 too long ago; of port 83 before it got no new
    /// connections any more. Port 81 is another list of the same Service port as 80.
    pub fn sticky_vip(self) -> IpAddr {
        self.ip("192.0.2.17", "2001:db8::17")
    }

    /// Of a Service whose backend is elsewhere.
    pub fn far_vip(self) -> IpAddr {
        self.ip("192.0.2.20", "2001:db8::20")
    }

    pub fn far_pod(self) -> IpAddr {
        self.ip("10.2.0.9", "fd00:2::9")
    }

    /// Of the node; never on the wire.
    pub fn localhost(self) -> IpAddr {
        self.ip("127.0.0.1", "::1")
    }

    /// Without endpoints: port 80 anywhere (for all protocols), port 81 on this node.
    pub fn idle_vip(self) -> IpAddr {
        self.ip("192.0.2.30", "2001:db8::30")
    }

    /// Who can't be a sender beyond a device.
    pub fn impossible_senders(self) -> Vec<IpAddr> {
        [
            ("0.0.0.0", "::"),
            ("127.0.0.1", "::1"),
            ("224.0.0.1", "ff02::1"),
            ("255.255.255.255", "ff05::2"),
        ]
        .map(|(v4, v6)| self.ip(v4, v6))
        .into()
    }

    pub fn node(self) -> IpAddr {
        self.ip("10.0.0.1", "fd00::1")
    }

    /// Of the node and the client.
    pub fn router(self) -> IpAddr {
        self.ip("10.0.0.254", "fd00::fe")
    }

    fn service(self, number: u32) -> u32 {
        number + if self.v6 { 100 } else { 0 }
    }

    pub fn frontends(self) -> Vec<(FrontendKey, Frontend)> {
        let tcp = Protocol::Tcp;
        let mut all = vec![(self.idle_vip(), 80, tcp, 7), (self.idle_vip(), 81, tcp, 8)];
        for (service, protocol) in [(1, tcp), (2, Protocol::Udp), (3, Protocol::Sctp)] {
            if service != 1 {
                all.push((self.idle_vip(), 80, protocol, 7));
            }
            all.push((self.vip(), 80, protocol, service));
            all.push((self.other_vip(), 80, protocol, service));
            all.push((self.far_vip(), 80, protocol, service + 3));
        }
        let udp = Protocol::Udp;
        all.push((self.split_vip(), 80, udp, 5));
        all.push((self.guarded_vip(), 80, udp, 2));
        all.push((self.guarded_vip(), 81, udp, 7));
        all.push((self.cluster_ip(), 80, udp, 2));
        all.push((self.cluster_ip(), 82, tcp, 7));
        all.push((self.cluster_ip(), 83, tcp, 8));
        all.push((self.lost_vip(), 80, udp, 9));
        all.push((self.own_vip(), 80, udp, 10));
        all.push((self.odd_vip(), 80, tcp, 11));
        for (port, service) in [(80, 12), (81, 14), (82, 16), (83, 18)] {
            all.push((self.sticky_vip(), port, udp, service));
        }
        // A NodePort as the node's own processes dial it.
        all.push((self.localhost(), 30080, Protocol::Udp, 2));
        let address = Frontend {
            service: 0,
            outside_service: 0,
            kind: FrontendKind::ClusterIp as u8,
            flags: 0,
            zero: [0; 2],
        };
        let known = FrontendKey::of_address(self.cluster_ip().into());
        let ports = all.into_iter().map(|(ip, port, protocol, service)| {
            let key = FrontendKey {
                addr: ip.into(),
                port_be: u16::to_be(port),
                protocol: protocol.number(),
                zero: 0,
            };
            let frontend = Frontend {
                service: self.service(service),
                outside_service: if ip == self.split_vip() {
                    self.service(2)
                } else {
                    0
                },
                kind: FrontendKind::LoadBalancer as u8,
                flags: if ip.is_loopback() {
                    Frontend::NODE_ONLY
                } else if ip == self.guarded_vip() {
                    Frontend::SOURCE_RANGES
                } else {
                    0
                },
                zero: [0; 2],
            };
            (key, frontend)
        });
        ports.chain([(known, address)]).collect()
    }

    /// A slot has the number of its Service, and so has the backend it names.
    pub fn services(self) -> Vec<(u32, Service)> {
        let mut all: Vec<(u32, Service)> = self
            .endpoints()
            .filter(|endpoint| endpoint.number == endpoint.service)
            .map(|endpoint| {
                let id = self.service(endpoint.service);
                let word = ServiceWord::with_backends(id, 1);
                let affinity = self.affinity_of(endpoint.service);
                (id, Service { word, affinity })
            })
            .collect();
        for (number, empty) in [(7, Empty::Refuse), (8, Empty::Drop)] {
            let word = ServiceWord::without_backends(empty);
            all.push((self.service(number), word.into()));
        }
        all
    }

    fn affinity_of(self, service: u32) -> ServiceAffinity {
        let [secs, port] = match service {
            12 | 14 => [86_400, 12],
            16 => [1, 16],
            18 => [86_400, 18],
            _ => return ServiceAffinity::NONE,
        };
        ServiceAffinity::new(secs, self.service(port).into())
    }

    /// What the client got last.
    pub fn affinity(self, now_ns: u64) -> Vec<(AffinityKey, AffinityEntry)> {
        [(12, 13, now_ns), (16, 17, 0), (18, 19, now_ns)]
            .map(|(service, backend, used_ns)| {
                let key = AffinityKey {
                    port: self.affinity_of(service).port(),
                    client: Client::of_packet(self.client().ip().into()),
                };
                let entry = AffinityEntry {
                    used_ns,
                    backend: SocketAddr::new(self.pod(), 8080).into(),
                    backend_id: self.service(backend),
                };
                (key, entry)
            })
            .into()
    }

    pub fn backends(self) -> Vec<(u32, Backend)> {
        self.endpoints()
            .map(|endpoint| {
                let backend = Backend {
                    addr: endpoint.ip.into(),
                    port_be: endpoint.port.to_be(),
                    protocol: 0,
                    flags: endpoint.flags,
                    weight: 1,
                    zero: 0,
                    twin: match endpoint.number {
                        13 => self.service(15),
                        15 => self.service(13),
                        _ => 0,
                    },
                    service: self.service(endpoint.service),
                };
                (self.service(endpoint.number), backend)
            })
            .collect()
    }

    /// The one of each Service that has one; those with affinity have another that no slot names.
    fn endpoints(self) -> impl Iterator<Item = Endpoint> {
        const HERE: u8 = Backend::LOCAL | Backend::CHOSEN;
        const FAR: u8 = Backend::CHOSEN;
        let (pod, far) = (self.pod(), self.far_pod());
        [
            (1, 1, pod, HERE),
            (2, 2, pod, HERE),
            (3, 3, pod, HERE),
            (4, 4, far, FAR),
            (5, 5, far, FAR),
            (6, 6, far, FAR),
            (9, 9, self.lost_pod(), FAR),
            (10, 10, self.node(), FAR),
            (11, 11, self.idle_vip(), FAR),
            (12, 12, far, FAR),
            (13, 12, pod, HERE),
            (14, 14, far, FAR),
            (15, 14, pod, HERE),
            (16, 16, far, FAR),
            (17, 16, pod, HERE),
            (18, 18, far, FAR),
            (19, 18, pod, Backend::LOCAL),
        ]
        .into_iter()
        .map(|(number, service, ip, flags)| Endpoint {
            number,
            service,
            ip,
            port: if number == 11 { 80 } else { 8080 },
            flags,
        })
    }

    /// Who may dial what.
    pub fn source_ranges(self) -> Vec<(u32, Addr)> {
        [self.client().ip(), self.pod()]
            .into_iter()
            .flat_map(|ip| [2, 7].map(|service| (self.service(service), ip.into())))
            .collect()
    }

    pub fn service_nets() -> Vec<(Addr, u32)> {
        Self::BOTH.map(Self::service_net).into()
    }

    pub fn devices() -> [(u32, Device); 2] {
        let [v4, v6] = Self::BOTH.map(|scene| Addr::from(scene.node()));
        let device = Device {
            v4,
            v6,
            mtu: Self::MTU.into(),
            flags: 0,
        };
        let guest = Device {
            flags: Device::POD,
            ..device
        };
        [(UPLINK, device), (GUEST, guest)]
    }

    fn routes(self) -> Vec<(Addr, Route)> {
        let mut all: Vec<_> = self
            .beyond_the_router()
            .into_iter()
            .map(|ip| (ip, UPLINK, self.router()))
            .collect();
        all.push((self.pod(), GUEST, self.pod()));
        all.into_iter()
            .map(|(ip, ifindex, gateway)| {
                let gateway = gateway.into();
                (ip.into(), Route { ifindex, gateway })
            })
            .collect()
    }

    fn beyond_the_router(self) -> [IpAddr; 5] {
        let clients = [self.client(), self.other_client(), self.barred_client()];
        let [client, other, barred] = clients.map(|client| client.ip());
        [client, other, barred, self.far_pod(), self.idle_vip()]
    }

    /// What `ip` is told in a namespace of its own to make the devices.
    pub fn links() -> String {
        let mac = MAC.map(|byte| format!("{byte:02x}")).join(":");
        let link = |(name, index)| {
            format!(
                "link add {name} index {index} address {mac} type veth peer name {name}-peer\n\
                 link set {name}-peer up\n\
                 link set {name} up\n"
            )
        };
        "link set lo up\n".to_owned() + &[("uplink", UPLINK), ("guest", GUEST)].map(link).concat()
    }

    /// What `ip` of this family is told to give the kernel the same routes.
    pub fn network(self) -> String {
        let (length, nodad) = if self.v6 { (128, " nodad") } else { (32, "") };
        let (node, router, pod) = (self.node(), self.router(), self.pod());
        let barred = self.barred_client().ip();
        let far = self
            .beyond_the_router()
            .map(|ip| format!("route add {ip}/{length} via {router} dev uplink\n"))
            .concat();
        format!(
            "addr add {node}/{length} dev uplink{nodad}\n\
             route add {router}/{length} dev uplink\n\
             route add {pod}/{length} dev guest\n\
             {far}\
             rule add from {barred}/{length} prohibit\n"
        )
    }

    /// Whether a device would take the frame for another host's.
    pub fn is_for_another(link: Link, frame: &[u8]) -> bool {
        matches!(link, Link::Ethernet) && !frame.starts_with(&MAC)
    }

    /// Both families' tables, in memory.
    pub fn maps() -> Maps {
        let mut maps = Maps {
            snat_ports: Some(Self::SNAT_PORTS),
            ifindex: UPLINK,
            devices: Self::devices().into(),
            service_nets: Self::service_nets(),
            // A while after all budgets began.
            now_ns: 1_000_000_000.into(),
            ..Maps::default()
        };
        for scene in Self::BOTH {
            maps.frontends.extend(scene.frontends());
            maps.services.extend(scene.services());
            let backends = scene.backends();
            maps.slots.extend(backends.iter().map(|(id, _)| (*id, *id)));
            maps.backends.extend(backends);
            let entries = scene.affinity(maps.now_ns.get());
            maps.affinity.borrow_mut().extend(entries);
            maps.routes.extend(scene.routes());
            maps.barred.insert(scene.barred_client().ip().into());
            for (service, addr) in scene.source_ranges() {
                maps.source_ranges
                    .entry(service)
                    .or_default()
                    .push((addr, 128));
            }
        }
        maps
    }
}
