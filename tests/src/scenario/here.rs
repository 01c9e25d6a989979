//! This node: an agent whose maps are in memory, and clients that the datapath answers from them.

use std::{
    collections::BTreeSet,
    mem,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result, ensure};
use proxy_common::{
    abi::{Addr, Counter, Device, Protocol, SockAddr},
    datapath::{
        fake::Maps,
        path::{self, Decision, Done, DropReason, Hook, Passed, Refusal, Route, Work},
        socket,
    },
    wire::{bytes::Bytes, link::Link},
};
use proxy_user::{
    maps::{Capacity, MapStore as _, fake::FakeStore},
    model::{
        BalancingDefaults, Event, Family, FrontendAddress, Model, Node, NodePortScope,
        scheduler_named,
    },
    plan::Planner,
    sync::Syncer,
};

use super::{
    cluster::{Cluster, NODE},
    expect::{Client, Expected, Outcome, Question},
};
use crate::packet::{Make, make::Transport};

const ROOM: Capacity = Capacity {
    frontends: 256,
    services: 128,
    backends: 256,
    slots: 256,
    source_ranges: 64,
    service_nets: 8,
};

const UPLINK: u32 = 2;
/// A pod's own device.
const POD: u32 = 3;
/// Enough that each of a handful of backends is chosen; the generator always starts the same.
const DIALS: usize = 200;
/// Of clients; connections that are kept count on from the second one.
const PORT: u16 = 40_000;
const KEPT_PORTS: u16 = 50_000;

/// Where the agent runs.
#[derive(Debug)]
pub(super) struct Site {
    addresses: Vec<IpAddr>,
    node_ports: NodePortScope,
    balancing: BalancingDefaults,
}

impl Site {
    pub(super) fn new(
        addresses: &[String],
        node_ports: &[String],
        scheduler: Option<&str>,
    ) -> Result<Self> {
        let mut balancing = BalancingDefaults::default();
        if let Some(name) = scheduler {
            balancing.scheduler =
                scheduler_named(name).with_context(|| format!("{name:?} is not a scheduler"))?;
        }
        let mut ips = addresses
            .iter()
            .map(|text| Ok(text.parse()?))
            .collect::<Result<Vec<IpAddr>>>()?;
        if ips.is_empty() {
            ips = ["192.168.0.2", "fd00:192::2"]
                .map(|ip| ip.parse().expect("an IP address"))
                .into();
        }
        ips.sort_unstable();
        Ok(Self {
            addresses: ips,
            node_ports: NodePortScope::parse(node_ports)?,
            balancing,
        })
    }

    fn own(&self, family: Family) -> Addr {
        let own = self.addresses.iter().find(|ip| Family::of(ip) == family);
        own.map_or_else(Addr::default, |ip| (*ip).into())
    }
}

/// A TCP connection that was begun.
#[derive(Debug)]
struct Connection {
    client: Client,
    src: SocketAddr,
    to: FrontendAddress,
    backend: SocketAddr,
}

#[derive(Debug)]
pub(super) struct Here {
    syncer: Syncer<FakeStore>,
    connections: Vec<Connection>,
    own: [Addr; 2],
}

impl Here {
    /// An agent that starts when there is nothing in the maps, and this in the cluster.
    pub(super) fn start(site: &Site, cluster: &Cluster) -> Result<Self> {
        let mut store = FakeStore::new(ROOM);
        let own = [Family::V4, Family::V6].map(|family| site.own(family));
        let device = Device {
            v4: own[0],
            v6: own[1],
            mtu: 1500,
            flags: 0,
        };
        let pod = Device {
            flags: Device::POD,
            ..device
        };
        store.maps.devices = [(UPLINK, device), (POD, pod)].into();
        Ok(Self {
            syncer: start(store, site, cluster)?,
            connections: Vec::new(),
            own,
        })
    }

    /// Another agent takes the maps over.
    pub(super) fn restart(&mut self, site: &Site, cluster: &Cluster) -> Result<()> {
        let mut store = mem::replace(self.syncer.store_mut(), FakeStore::new(ROOM));
        store.log.clear();
        self.syncer = start(store, site, cluster)?;
        let written = &self.syncer.store().log;
        ensure!(written.is_empty(), "a restart writes {written:?}");
        Ok(())
    }

    /// The events are of one sync.
    pub(super) fn apply(&mut self, events: impl IntoIterator<Item = Event>) -> Result<()> {
        for event in events {
            self.syncer.apply(event);
        }
        sync(&mut self.syncer)
    }

    /// What the maps hold an answer for.
    pub(super) fn frontends(&self) -> BTreeSet<FrontendAddress> {
        let keys = self.maps().frontends.keys();
        keys.filter_map(|key| {
            Some(FrontendAddress {
                ip: key.addr.ip(),
                port: u16::from_be(key.port_be),
                protocol: Protocol::from_number(key.protocol)?,
            })
        })
        .collect()
    }

    pub(super) fn is_empty(&self) -> Result<()> {
        let store = self.syncer.store();
        let left = (
            store.maps.frontends.len(),
            store.maps.backends.len(),
            store.names.len(),
            store.maps.source_ranges.len(),
            store.maps.service_nets.len(),
        );
        ensure!(
            left == (0, 0, 0, 0, 0),
            "frontends, backends, names, source ranges and ServiceCIDRs are left: {left:?}"
        );
        Ok(())
    }

    /// What comes of it, whatever is chosen.
    pub(super) fn outcome(&mut self, (to, client): &Question) -> Outcome {
        // None of them meets the connections that are kept.
        let kept = self.maps().half_open.take();
        let outcome = match client {
            Client::Outside | Client::At(_) => self.spread(|here| here.dial_by_packet(to, *client)),
            Client::Node => self.spread(|here| here.dial(to, *client)),
            Client::Pod => {
                // One with sockets of its own (a virtual machine) gets no less and no more.
                let by_socket = self.spread(|here| here.dial(to, *client));
                let by_packet = self.spread(|here| here.dial_by_packet(to, *client));
                if by_socket == by_packet {
                    by_socket
                } else {
                    Outcome::Odd(format!("{by_socket} (socket), {by_packet} (packet)"))
                }
            }
        };
        self.maps().half_open.replace(kept);
        outcome
    }

    /// What comes of dialling often.
    fn spread(&mut self, mut dial: impl FnMut(&mut Self) -> Outcome) -> Outcome {
        let mut all = BTreeSet::new();
        for _ in 0..DIALS {
            let found = dial(self);
            self.maps().half_open.borrow_mut().clear();
            let without = match found {
                Outcome::To(to) => {
                    all.extend(to);
                    continue;
                }
                Outcome::Reject
                | Outcome::Drop
                | Outcome::NoSuchPort
                | Outcome::NotOurs
                | Outcome::Odd(_) => found,
            };
            return if all.is_empty() {
                without
            } else {
                Outcome::Odd(format!("{}, and at times {without}", Outcome::To(all)))
            };
        }
        Outcome::To(all)
    }

    /// By a socket, and by its packets if it is left as it is.
    fn dial(&mut self, to: &FrontendAddress, client: Client) -> Outcome {
        match self.dial_by_socket(to, client == Client::Node) {
            Some(outcome) => outcome,
            None => self.dial_by_packet(to, client),
        }
    }

    /// `None` where packets go on to the address that was dialled.
    fn dial_by_socket(&self, to: &FrontendAddress, of_node: bool) -> Option<Outcome> {
        let maps = self.maps();
        maps.of_node.set(of_node);
        let undefined = maps.counter(Counter::ConnectUndefinedPort);
        let address = SockAddr::from(SocketAddr::new(to.ip, to.port));
        let verdict = socket::connect(&maps.socket(1), to.protocol, &address);
        match verdict {
            socket::Verdict::Pass | socket::Verdict::Drop => None,
            socket::Verdict::Rewrite(to) => Some(Outcome::To([to.socket_addr()].into())),
            socket::Verdict::Refuse if maps.counter(Counter::ConnectUndefinedPort) > undefined => {
                Some(Outcome::NoSuchPort)
            }
            socket::Verdict::Refuse => Some(Outcome::Reject),
        }
    }

    fn dial_by_packet(&mut self, to: &FrontendAddress, client: Client) -> Outcome {
        let src = SocketAddr::new(self.address_of(client, to.ip), PORT);
        let (verdict, work) = self.packet(client, src, to, "S");
        match verdict {
            path::Verdict::Pass(Passed::NotOurs) => Outcome::NotOurs,
            path::Verdict::Stack(Done::NewFlow) | path::Verdict::Redirect(Done::NewFlow) => {
                Outcome::To([work.entry.dst.socket_addr()].into())
            }
            path::Verdict::Reject(Refusal::NoEndpoints) => Outcome::Reject,
            path::Verdict::Reject(Refusal::UnknownPort) => Outcome::NoSuchPort,
            path::Verdict::Drop(
                DropReason::NoLocalEndpoint
                | DropReason::NotAllowed
                | DropReason::UnallocatedClusterIp,
            ) => Outcome::Drop,
            path::Verdict::Pass(_)
            | path::Verdict::Stack(_)
            | path::Verdict::Redirect(_)
            | path::Verdict::Drop(_) => Outcome::Odd(format!("{verdict:?}")),
        }
    }

    fn packet(
        &mut self,
        client: Client,
        src: SocketAddr,
        to: &FrontendAddress,
        flags: &'static str,
    ) -> (path::Verdict, Work) {
        let transport = match to.protocol {
            Protocol::Tcp => Transport::Tcp {
                flags,
                seq: 1,
                ack: 1,
            },
            Protocol::Udp => Transport::Udp,
            Protocol::Sctp => Transport::Sctp,
        };
        let (hook, device) = match client {
            Client::Pod => (Hook::Ingress, POD),
            Client::Node => (Hook::Egress, UPLINK),
            Client::Outside | Client::At(_) => (Hook::Ingress, UPLINK),
        };
        let packet = Make::new(transport, src, SocketAddr::new(to.ip, to.port)).packet();
        let maps = &mut self.syncer.store_mut().maps;
        maps.ifindex = device;
        // Every backend is a hop away.
        let backends: Vec<Addr> = maps.backends.values().map(|backend| backend.addr).collect();
        for addr in backends {
            let hop = Route {
                ifindex: UPLINK,
                gateway: addr,
            };
            maps.routes.insert(addr, hop);
        }
        let mut work = Work::default();
        let packet = Bytes::new(packet);
        let verdict = match path::decide(hook, Link::None, &packet, maps, &mut work) {
            Decision::Verdict(verdict) => verdict,
            Decision::Follows => path::follow(&packet, maps, &mut work),
            Decision::Begins => path::begin(&packet, maps, &mut work),
        };
        path::settle(maps, verdict.counter(), &work);
        (verdict, work)
    }

    fn address_of(&self, client: Client, to: IpAddr) -> IpAddr {
        let own = self.own[usize::from(to.is_ipv6())].ip();
        let usual = |v4: &str, v6: &str| -> IpAddr {
            let text = if to.is_ipv4() { v4 } else { v6 };
            text.parse().expect("an IP address")
        };
        match client {
            Client::Pod => usual("10.1.0.200", "fd00:1::200"),
            Client::Node => own,
            Client::Outside => usual("203.0.113.2", "2001:db8:203::2"),
            Client::At(ip) => ip,
        }
    }

    /// Begins a TCP connection wherever that leads to a backend by packets.
    pub(super) fn connect_all(&mut self, expected: &Expected) {
        for (to, client) in expected.served() {
            if to.protocol != Protocol::Tcp || client == Client::Node {
                continue;
            }
            let number = u16::try_from(self.connections.len()).expect("a few");
            let src = SocketAddr::new(self.address_of(client, to.ip), KEPT_PORTS + number);
            let (_, work) = self.packet(client, src, &to, "S");
            self.connections.push(Connection {
                client,
                src,
                to,
                backend: work.entry.dst.socket_addr(),
            });
        }
    }

    /// Whatever has become of its Service and of its backend (BEHAVIOUR E17).
    pub(super) fn connections_go_on(&mut self) -> Result<()> {
        let connections = mem::take(&mut self.connections);
        for connection in &connections {
            let Connection {
                client, src, to, ..
            } = connection;
            let (verdict, work) = self.packet(*client, *src, to, "A");
            ensure!(
                verdict.done() == Some(Done::Forwarded)
                    && work.entry.dst.socket_addr() == connection.backend,
                "{connection:?} does not go on: {verdict:?}"
            );
        }
        self.connections = connections;
        Ok(())
    }

    fn maps(&self) -> &Maps {
        &self.syncer.store().maps
    }
}

fn start(store: FakeStore, site: &Site, cluster: &Cluster) -> Result<Syncer<FakeStore>> {
    let node = Node {
        name: NODE.into(),
        ..Node::default()
    };
    let model = Model::new(node, site.node_ports.clone())
        .with_balancing(site.balancing)
        .that_waits_for_its_node();
    let planner = Planner::adopt(store.capacity(), &store.observe()?);
    let mut syncer = Syncer::new(model, planner, store);
    syncer.apply(Event::LocalAddresses(site.addresses.clone()));
    for event in cluster.list()? {
        syncer.apply(event);
    }
    sync(&mut syncer)?;
    Ok(syncer)
}

/// Until nothing is left to do.
fn sync(syncer: &mut Syncer<FakeStore>) -> Result<()> {
    let outcome = syncer.sync();
    ensure!(outcome.ran, "the agent waits for something");
    while let Some(epoch) = syncer.begin_grace() {
        let _ = syncer.passed(epoch);
    }
    ensure!(!syncer.has_retries(), "{:?}", outcome.refused);
    Ok(())
}
