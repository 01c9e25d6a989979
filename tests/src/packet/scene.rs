//! The tables that all rows are played before.

use std::net::{IpAddr, SocketAddr};

use proxy_common::{
    abi::{
        Addr, Backend, Device, Empty, Frontend, FrontendKey, FrontendKind, PortRange, Protocol,
        ServiceWord,
    },
    datapath::{fake::Maps, path::Route},
};

/// The device of [`Scene::ROUTER`]'s side.
pub const UPLINK: u32 = 7;
/// A test run's packets come from the loopback device.
pub const LOOPBACK: u32 = 1;

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
        // A NodePort as the node's own processes dial it.
        all.push((self.localhost(), 30080, Protocol::Udp, 2));
        all.into_iter()
            .map(|(ip, port, protocol, service)| {
                let key = FrontendKey {
                    addr: ip.into(),
                    port_be: u16::to_be(port),
                    protocol: protocol.number(),
                    zero: 0,
                };
                let frontend = Frontend {
                    service: self.service(service),
                    outside_service: 0,
                    kind: FrontendKind::LoadBalancer as u8,
                    flags: if ip.is_loopback() {
                        Frontend::NODE_ONLY
                    } else {
                        0
                    },
                    zero: [0; 2],
                };
                (key, frontend)
            })
            .collect()
    }

    /// Slots and backends have the numbers of their Services.
    pub fn services(self) -> Vec<(u32, ServiceWord)> {
        let mut all: Vec<_> = (1..=6)
            .map(|n| {
                let id = self.service(n);
                (id, ServiceWord::with_backends(id, 1))
            })
            .collect();
        all.push((
            self.service(7),
            ServiceWord::without_backends(Empty::Refuse),
        ));
        all.push((self.service(8), ServiceWord::without_backends(Empty::Drop)));
        all
    }

    pub fn backends(self) -> Vec<(u32, Backend)> {
        (1..=6)
            .map(|n| {
                let is_far = n > 3;
                let backend = Backend {
                    addr: if is_far { self.far_pod() } else { self.pod() }.into(),
                    port_be: 8080_u16.to_be(),
                    protocol: 0,
                    flags: if is_far { 0 } else { Backend::LOCAL },
                    service: self.service(n),
                };
                (self.service(n), backend)
            })
            .collect()
    }

    pub fn device() -> Device {
        let [v4, v6] = Self::BOTH.map(|scene| Addr::from(scene.node()));
        Device {
            v4,
            v6,
            mtu: Self::MTU.into(),
            flags: 0,
        }
    }

    pub fn routes(self) -> Vec<(Addr, Route)> {
        [self.client().ip(), self.far_pod()]
            .map(|ip| {
                let route = Route {
                    ifindex: UPLINK,
                    gateway: self.router().into(),
                };
                (ip.into(), route)
            })
            .into()
    }

    /// Both families' tables, in memory.
    pub fn maps() -> Maps {
        let mut maps = Maps {
            snat_ports: Some(Self::SNAT_PORTS),
            ifindex: LOOPBACK,
            // A while after all budgets began.
            now_ns: 1_000_000_000_000.into(),
            ..Maps::default()
        };
        for scene in Self::BOTH {
            maps.frontends.extend(scene.frontends());
            maps.services.extend(scene.services());
            let backends = scene.backends();
            maps.slots.extend(backends.iter().map(|(id, _)| (*id, *id)));
            maps.backends.extend(backends);
            maps.routes.extend(scene.routes());
        }
        maps.devices = [(UPLINK, Self::device()), (LOOPBACK, Self::device())].into();
        maps
    }
}
