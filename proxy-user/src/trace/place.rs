//! Where a packet or call would meet kube-portal, if nobody says. Pure.

use std::net::IpAddr;

use proxy_common::{datapath::path::Hook, wire::link::Link};

use crate::devices::{Facts, Header};

/// What the command line may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum HookName {
    /// connect() of a pod of this node, or of a process on its own network.
    Connect,
    /// sendto() of such a one's unconnected UDP socket.
    Send,
    /// A packet that comes in by a device.
    Ingress,
    /// A packet that leaves by a device.
    Egress,
}

/// Whose socket it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A process on the node's own network.
    Node,
    Pod,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Connect,
    Send,
}

/// A hook, and for whom it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Socket(Call, Origin),
    Device {
        hook: Hook,
        ifindex: u32,
        link: Link,
    },
}

/// What is known of this node.
#[derive(Clone, Debug)]
pub(super) struct Situation<'a> {
    pub(super) facts: &'a Facts,
    /// Devices that run the packet path.
    pub(super) served: Vec<u32>,
    /// Those of them that lead to pods.
    pub(super) pods: Vec<u32>,
    /// By which device this node reaches the source, and whether another host carries it on.
    pub(super) to_source: Option<(u32, bool)>,
    /// The same for the destination.
    pub(super) to_destination: Option<(u32, bool)>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    #[error("no device of this node is called {0}")]
    NoDevice(String),
    #[error(
        "nothing says by which device packets from {0} come: no route leads there; give --device NAME"
    )]
    NoRoute(IpAddr),
    #[error("no route leads to {0}: give --device NAME, the device that the packet is to leave by")]
    NoWayOut(IpAddr),
    #[error(
        "the device {device}, by which packets from {source_ip} come, runs no program of kube-portal: they are \
         not translated there; give --device NAME for another, or --hook connect for a pod of this node"
    )]
    NotServed { device: String, source_ip: IpAddr },
    #[error("the device {0} has packets that the packet path can't read")]
    Unreadable(String),
    #[error("--device is for --hook ingress and --hook egress")]
    DeviceOfCall,
}

impl Situation<'_> {
    fn link(&self, index: u32) -> Option<&crate::devices::Link> {
        self.facts.link(index)
    }

    fn name(&self, index: u32) -> String {
        self.link(index)
            .map_or_else(|| format!("device {index}"), |link| link.name.clone())
    }

    fn is_own(&self, ip: IpAddr) -> bool {
        let mut addresses = self.facts.addresses.iter();
        ip.is_loopback() || addresses.any(|address| address.ip == ip)
    }

    fn at_device(&self, hook: Hook, ifindex: u32) -> Result<Place, PlaceError> {
        let name = self.name(ifindex);
        let link = match self.link(ifindex).map(|link| link.header) {
            Some(Header::Ethernet) => Link::Ethernet,
            Some(Header::None) => Link::None,
            Some(Header::Other(_)) => return Err(PlaceError::Unreadable(name)),
            None => return Err(PlaceError::NoDevice(name)),
        };
        Ok(Place::Device {
            hook,
            ifindex,
            link,
        })
    }

    fn origin(&self, source: IpAddr) -> (Origin, String) {
        if self.is_own(source) {
            (
                Origin::Node,
                format!("a process of this node, whose address {source} is"),
            )
        } else {
            (Origin::Pod, format!("a pod of this node with {source}"))
        }
    }

    /// Where, and why there.
    pub(super) fn choose(
        &self,
        hook: Option<HookName>,
        device: Option<&str>,
        source: IpAddr,
        destination: IpAddr,
    ) -> Result<(Place, String), PlaceError> {
        let named = device
            .map(|name| {
                let mut links = self.facts.links.iter();
                links
                    .find(|link| link.name == name)
                    .map(|link| link.index)
                    .ok_or_else(|| PlaceError::NoDevice(name.to_owned()))
            })
            .transpose()?;
        let call = |call, what: &str| {
            let (origin, who) = self.origin(source);
            (Place::Socket(call, origin), format!("{what} of {who}"))
        };
        match (hook, named) {
            (Some(HookName::Connect | HookName::Send), Some(_)) => Err(PlaceError::DeviceOfCall),
            (Some(HookName::Connect), None) => Ok(call(Call::Connect, "connect()")),
            (Some(HookName::Send), None) => Ok(call(Call::Send, "sendto()")),
            (Some(HookName::Ingress) | None, Some(index)) => {
                let place = self.at_device(Hook::Ingress, index)?;
                Ok((place, format!("ingress of {}", self.name(index))))
            }
            (Some(HookName::Egress), Some(index)) => {
                let place = self.at_device(Hook::Egress, index)?;
                Ok((place, format!("egress of {}", self.name(index))))
            }
            (Some(HookName::Egress), None) => {
                let (index, _) = self
                    .to_destination
                    .ok_or(PlaceError::NoWayOut(destination))?;
                let place = self.at_device(Hook::Egress, index)?;
                let name = self.name(index);
                Ok((
                    place,
                    format!("egress of {name}, where the route to {destination} leads"),
                ))
            }
            (Some(HookName::Ingress), None) => {
                let (index, _) = self.to_source.ok_or(PlaceError::NoRoute(source))?;
                self.by_route(index, source)
            }
            (None, None) => self.guess(source),
        }
    }

    fn by_route(&self, index: u32, source: IpAddr) -> Result<(Place, String), PlaceError> {
        let name = self.name(index);
        let place = self.at_device(Hook::Ingress, index)?;
        let who = if self.pods.contains(&index) {
            ", a pod's device"
        } else {
            ""
        };
        Ok((
            place,
            format!("ingress of {name}{who}, where the route to {source} leads"),
        ))
    }

    fn guess(&self, source: IpAddr) -> Result<(Place, String), PlaceError> {
        if self.is_own(source) {
            let (origin, who) = self.origin(source);
            return Ok((
                Place::Socket(Call::Connect, origin),
                format!("connect() of {who}"),
            ));
        }
        let (index, is_via) = self.to_source.ok_or(PlaceError::NoRoute(source))?;
        if self.served.contains(&index) {
            return self.by_route(index, source);
        }
        let device = self.name(index);
        if is_via {
            return Err(PlaceError::NotServed {
                device,
                source_ip: source,
            });
        }
        Ok((
            Place::Socket(Call::Connect, Origin::Pod),
            format!(
                "connect() of a pod of this node: the route to {source} leads to {device}, which runs no \
                 packet path"
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::Address;

    const ETH: u32 = 2;
    const TUNNEL: u32 = 3;
    const POD: u32 = 4;
    const GUEST: u32 = 5;

    fn facts() -> Facts {
        let link = |index, name: &str, header| crate::devices::Link {
            index,
            name: name.to_owned(),
            kind: None,
            master: None,
            is_loopback: false,
            is_up: true,
            mtu: 1500,
            header,
        };
        Facts {
            links: vec![
                link(ETH, "eth0", Header::Ethernet),
                link(TUNNEL, "tun0", Header::None),
                link(POD, "veth4", Header::Ethernet),
                link(GUEST, "guest5", Header::Ethernet),
            ],
            addresses: vec![Address {
                index: ETH,
                ip: "192.168.50.1".parse().expect("an address"),
                is_global: true,
            }],
            ..Facts::default()
        }
    }

    fn place(
        hook: Option<HookName>,
        device: Option<&str>,
        source: &str,
        to_source: Option<(u32, bool)>,
    ) -> Result<(Place, String), PlaceError> {
        let facts = facts();
        let situation = Situation {
            facts: &facts,
            served: vec![ETH, TUNNEL, GUEST],
            pods: vec![GUEST],
            to_source,
            to_destination: Some((TUNNEL, true)),
        };
        let ip = |text: &str| text.parse().expect("an address");
        situation.choose(hook, device, ip(source), ip("10.96.0.1"))
    }

    const fn device(hook: Hook, ifindex: u32, link: Link) -> Place {
        Place::Device {
            hook,
            ifindex,
            link,
        }
    }

    #[test]
    fn an_address_of_the_node_is_a_process_that_connects() {
        for source in ["192.168.50.1", "127.0.0.1"] {
            let (at, why) = place(None, None, source, None).expect("a place");
            assert_eq!(at, Place::Socket(Call::Connect, Origin::Node));
            assert!(why.contains("a process of this node"), "{why}");
        }
    }

    #[test]
    fn who_is_behind_a_device_without_the_packet_path_is_a_pod_that_connects() {
        let (at, why) = place(None, None, "10.1.1.2", Some((POD, false))).expect("a place");
        assert_eq!(at, Place::Socket(Call::Connect, Origin::Pod));
        assert!(why.contains("veth4"), "{why}");
        // Behind a router there is no pod.
        let error = place(None, None, "10.9.9.9", Some((POD, true))).expect_err("no place");
        assert!(error.to_string().contains("veth4"), "{error}");
    }

    #[test]
    fn who_is_behind_a_device_with_the_packet_path_sends_packets() {
        let (at, why) = place(None, None, "203.0.113.7", Some((ETH, true))).expect("a place");
        assert_eq!(at, device(Hook::Ingress, ETH, Link::Ethernet));
        assert_eq!(why, "ingress of eth0, where the route to 203.0.113.7 leads");
        let (at, why) = place(None, None, "10.1.1.9", Some((GUEST, false))).expect("a place");
        assert_eq!(at, device(Hook::Ingress, GUEST, Link::Ethernet));
        assert!(why.contains("a pod's device"), "{why}");
        let error = place(None, None, "203.0.113.7", None).expect_err("no route");
        assert!(error.to_string().contains("--device"), "{error}");
    }

    #[test]
    fn what_is_named_is_what_is_traced() {
        let to = Some((ETH, true));
        let (at, _) = place(Some(HookName::Egress), None, "10.1.1.2", to).expect("a place");
        assert_eq!(at, device(Hook::Egress, TUNNEL, Link::None));
        let (at, _) = place(None, Some("tun0"), "10.1.1.2", to).expect("a place");
        assert_eq!(at, device(Hook::Ingress, TUNNEL, Link::None));
        let (at, _) = place(Some(HookName::Send), None, "10.1.1.2", to).expect("a place");
        assert_eq!(at, Place::Socket(Call::Send, Origin::Pod));
        assert_eq!(
            place(None, Some("eth9"), "10.1.1.2", to),
            Err(PlaceError::NoDevice("eth9".to_owned()))
        );
        assert_eq!(
            place(Some(HookName::Connect), Some("eth0"), "10.1.1.2", to),
            Err(PlaceError::DeviceOfCall)
        );
    }
}
