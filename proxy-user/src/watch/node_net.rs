//! The devices, addresses and default routes of this node, followed by netlink. NodePorts answer on
//! some of the addresses; the packet path belongs on some of the devices.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, TryStreamExt as _};
use rtnetlink::{
    Handle, MulticastGroup, new_connection, new_multicast_connection,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{
            AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
        },
        link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteType},
    },
    sys::AsyncSocket as _,
};
use socket2::{SockFilter, SockRef};
use tokio::sync::{Notify, mpsc, watch};

use crate::{
    devices::{Address, Facts, Header, Link},
    model::Event,
};

/// Before netlink is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// Changes come in bursts: a device that goes takes all its addresses with it.
const QUIET: Duration = Duration::from_millis(20);

/// Who is told.
#[derive(Clone, Debug)]
pub struct Listeners {
    pub events: mpsc::Sender<Event>,
    pub facts: watch::Sender<Facts>,
    /// A qdisc or filter of some device was changed by somebody.
    pub filters: Arc<Notify>,
}

/// Runs until the receiver of events is gone. A failure is told, and what was known stays.
pub async fn run(to: Listeners) {
    let mut told = false;
    let mut known = None;
    while let Err(error) = follow(&to, &mut known, &mut told).await {
        // Nobody is to wait for what can't be had.
        if known.is_none()
            && to
                .events
                .send(Event::LocalAddresses(Vec::new()))
                .await
                .is_err()
        {
            return;
        }
        known.get_or_insert_default();
        if !std::mem::replace(&mut told, true) {
            log::warn!(
                "devices and addresses of the node: netlink: {error}; those known so far are kept, and it is tried again"
            );
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = to.events.closed() => return,
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum NetlinkError {
    #[error("{0}")]
    Socket(#[from] io::Error),
    #[error("{0}")]
    List(#[from] rtnetlink::Error),
    #[error("the connection has ended")]
    Ended,
}

type Message = NetlinkMessage<RouteNetlinkMessage>;

/// `Ok` when the receiver is gone.
async fn follow(
    to: &Listeners,
    known: &mut Option<Vec<IpAddr>>,
    told: &mut bool,
) -> Result<(), NetlinkError> {
    // Listening before listing: a change in between is seen twice rather than never.
    let (mut listening, _, mut changes) = new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Tc,
    ])?;
    SockRef::from(listening.socket_mut().socket_ref()).attach_filter(&default_routes_only())?;
    let (asking, handle, _) = new_connection()?;
    let tasks = [tokio::spawn(listening), tokio::spawn(asking)];
    let result = loop {
        let facts = match list(&handle).await {
            Ok(facts) => facts,
            Err(error) => break Err(error.into()),
        };
        *told = false;
        let ips = usable(&facts);
        if known.as_ref() != Some(&ips) {
            log::debug!("addresses of the node: {ips:?}");
            if to
                .events
                .send(Event::LocalAddresses(ips.clone()))
                .await
                .is_err()
            {
                break Ok(());
            }
            *known = Some(ips);
        }
        to.facts.send_if_modified(|old| {
            let differs = *old != facts;
            *old = facts;
            differs
        });
        match next_change(to, &mut changes).await {
            Some(true) => {}
            Some(false) => break Ok(()),
            None => break Err(NetlinkError::Ended),
        }
    };
    for task in tasks {
        task.abort();
    }
    result
}

/// Waits until something was changed that `list` tells of, and then until the burst is over. `false`
/// when the receiver is gone, `None` when the connection has ended.
async fn next_change(
    to: &Listeners,
    changes: &mut (impl futures::Stream<Item = (Message, rtnetlink::sys::SocketAddr)> + Unpin),
) -> Option<bool> {
    loop {
        let (message, _) = tokio::select! {
            change = changes.next() => change?,
            () = to.events.closed() => return Some(false),
        };
        let mut relist = concerns_list(to, &message);
        tokio::time::sleep(QUIET).await;
        while let Ok(change) = tokio::time::timeout(Duration::ZERO, changes.next()).await {
            relist |= concerns_list(to, &change?.0);
        }
        if relist {
            return Some(true);
        }
    }
}

/// Whether the lists have to be read again. Tells of filters at once.
fn concerns_list(to: &Listeners, message: &Message) -> bool {
    use RouteNetlinkMessage as M;
    let is_filter = matches!(
        &message.payload,
        NetlinkPayload::InnerMessage(
            M::NewQueueDiscipline(_)
                | M::DelQueueDiscipline(_)
                | M::NewTrafficFilter(_)
                | M::DelTrafficFilter(_)
                | M::NewTrafficChain(_)
                | M::DelTrafficChain(_),
        )
    );
    // Something was missed: it may have been anything.
    if is_filter || matches!(&message.payload, NetlinkPayload::Overrun(_)) {
        to.filters.notify_one();
    }
    !is_filter
}

/// A classic BPF program for the listening socket: a node that speaks BGP has a million routes, and
/// only those of prefix length 0 matter here.
fn default_routes_only() -> [SockFilter; 7] {
    const RTM_NEWROUTE: u16 = 24;
    const RTM_DELROUTE: u16 = 25;
    // Of `struct nlmsghdr`, and of `struct rtmsg` after its 16 bytes.
    const TYPE: u32 = 4;
    const DESTINATION_PREFIX_LENGTH: u32 = 16 + 1;
    let code = |parts: u32| u16::try_from(parts).expect("a 16-bit code");
    let load = |size, at| SockFilter::new(code(libc::BPF_LD | size | libc::BPF_ABS), 0, 0, at);
    // Two bytes are loaded as if in network byte order; netlink's are in the machine's.
    let is = |value, yes, no| {
        SockFilter::new(
            code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K),
            yes,
            no,
            value,
        )
    };
    let give = |bytes| SockFilter::new(code(libc::BPF_RET | libc::BPF_K), 0, 0, bytes);
    [
        load(libc::BPF_H, TYPE),
        is(RTM_NEWROUTE.to_be().into(), 1, 0),
        is(RTM_DELROUTE.to_be().into(), 0, 2),
        load(libc::BPF_B, DESTINATION_PREFIX_LENGTH),
        is(0, 0, 1),
        give(u32::MAX),
        give(0),
    ]
}

/// What there is now.
pub(crate) async fn facts() -> Result<Facts, String> {
    let handle = crate::loader::netlink().map_err(|error| error.to_string())?;
    list(&handle).await.map_err(|error| error.to_string())
}

pub(crate) async fn list(handle: &Handle) -> Result<Facts, rtnetlink::Error> {
    let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
    let addresses: Vec<AddressMessage> = handle.address().get().execute().try_collect().await?;
    let mut links: Vec<Link> = links.iter().filter_map(link).collect();
    links.sort_by_key(|link| link.index);
    let mut default_routes = BTreeSet::new();
    for destinations in [V4_ELSEWHERE, V6_ELSEWHERE] {
        default_routes.append(&mut default_route(handle, &destinations).await?);
    }
    Ok(Facts {
        links,
        addresses: addresses.iter().filter_map(address).collect(),
        default_routes,
    })
}

/// Addresses that are nobody's, so that only a default route leads there: of class E and of those for
/// documentation, and of IPv6 what is not assigned. Several, because some nodes blackhole some.
const V4_ELSEWHERE: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(240, 0, 0, 1)),
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)),
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
];
const V6_ELSEWHERE: [IpAddr; 3] = [
    IpAddr::V6(Ipv6Addr::new(0x4000, 0, 0, 0, 0, 0, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0x8000, 0, 0, 0, 0, 0, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

/// The devices of the default route. The kernel is asked for the route to an address that no other
/// one leads to (RTM_F_FIB_MATCH, Linux 4.13): a list would be all of a million routes.
async fn default_route(
    handle: &Handle,
    destinations: &[IpAddr],
) -> Result<BTreeSet<u32>, rtnetlink::Error> {
    for destination in destinations {
        let mut message = RouteMessage::default();
        let (family, bits, to) = match *destination {
            IpAddr::V4(ip) => (AddressFamily::Inet, 32, RouteAddress::Inet(ip)),
            IpAddr::V6(ip) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(ip)),
        };
        message.header = RouteHeader {
            address_family: family,
            destination_prefix_length: bits,
            flags: RouteFlags::FibMatch,
            ..RouteHeader::default()
        };
        message.attributes.push(RouteAttribute::Destination(to));
        let found: Result<Vec<RouteMessage>, _> =
            handle.route().get(message).execute().try_collect().await;
        match found {
            Ok(routes) => {
                let devices: BTreeSet<u32> = routes
                    .iter()
                    .filter(|route| {
                        route.header.destination_prefix_length == 0
                            && route.header.kind == RouteType::Unicast
                    })
                    .flat_map(devices_of)
                    .collect();
                if !devices.is_empty() {
                    return Ok(devices);
                }
            }
            // No route, or one that says so.
            Err(rtnetlink::Error::NetlinkError(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(BTreeSet::new())
}

/// By which device packets of this node go to `destination`, and whether another host is to carry them on;
/// `None`: nowhere.
pub(crate) async fn route_to(
    handle: &Handle,
    destination: IpAddr,
) -> Result<Option<(u32, bool)>, rtnetlink::Error> {
    let mut message = RouteMessage::default();
    let (family, bits, to) = match destination {
        IpAddr::V4(ip) => (AddressFamily::Inet, 32, RouteAddress::Inet(ip)),
        IpAddr::V6(ip) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(ip)),
    };
    message.header.address_family = family;
    message.header.destination_prefix_length = bits;
    message.attributes.push(RouteAttribute::Destination(to));
    let routes: Vec<RouteMessage> = match handle.route().get(message).execute().try_collect().await
    {
        Ok(routes) => routes,
        // No route, or one that says so.
        Err(rtnetlink::Error::NetlinkError(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(routes.first().and_then(|route| {
        let is_via = |attribute: &RouteAttribute| {
            matches!(
                attribute,
                RouteAttribute::Gateway(_) | RouteAttribute::Via(_)
            )
        };
        let device = devices_of(route).first().copied()?;
        Some((device, route.attributes.iter().any(is_via)))
    }))
}

/// The link-layer addresses of the devices that have one of Ethernet's, by index.
pub(crate) async fn ethernet_addresses(
    handle: &Handle,
) -> Result<BTreeMap<u32, [u8; 6]>, rtnetlink::Error> {
    let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
    let address = |link: &LinkMessage| {
        link.attributes.iter().find_map(|attribute| {
            if let LinkAttribute::Address(bytes) = attribute {
                <[u8; 6]>::try_from(bytes.as_slice()).ok()
            } else {
                None
            }
        })
    };
    Ok(links
        .iter()
        .filter_map(|link| Some((link.header.index, address(link)?)))
        .collect())
}

fn devices_of(route: &RouteMessage) -> Vec<u32> {
    let mut devices = Vec::new();
    for attribute in &route.attributes {
        if let RouteAttribute::Oif(index) = attribute {
            devices.push(*index);
        } else if let RouteAttribute::MultiPath(hops) = attribute {
            devices.extend(hops.iter().map(|hop| hop.interface_index));
        }
    }
    devices
}

fn link(message: &LinkMessage) -> Option<Link> {
    let (mut name, mut kind, mut master, mut slave_kind, mut mtu) = (None, None, 0, None, 0);
    for attribute in &message.attributes {
        if let LinkAttribute::IfName(text) = attribute {
            name = Some(text.clone());
        } else if let LinkAttribute::Mtu(bytes) = attribute {
            mtu = *bytes;
        } else if let LinkAttribute::Controller(index) = attribute {
            master = *index;
        } else if let LinkAttribute::LinkInfo(infos) = attribute {
            for info in infos {
                if let LinkInfo::Kind(text) = info {
                    kind = Some(text.to_string());
                } else if let LinkInfo::PortKind(text) = info {
                    slave_kind = Some(text.to_string());
                }
            }
        }
    }
    Some(Link {
        index: message.header.index,
        name: name?,
        kind,
        master: (master != 0).then(|| slave_kind.unwrap_or_default()),
        is_loopback: message.header.flags.contains(LinkFlags::Loopback),
        is_up: message.header.flags.contains(LinkFlags::Up),
        mtu,
        header: Header::of(message.header.link_layer_type.into()),
    })
}

fn address(message: &AddressMessage) -> Option<Address> {
    let (mut local, mut peer) = (None, None);
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    for attribute in &message.attributes {
        if let AddressAttribute::Local(ip) = attribute {
            local = Some(*ip);
        } else if let AddressAttribute::Address(ip) = attribute {
            peer = Some(*ip);
        } else if let AddressAttribute::Flags(all) = attribute {
            flags = *all;
        }
    }
    // IPv6 has no IFA_LOCAL but on point-to-point links, where IFA_ADDRESS is the peer's.
    let ip = local.or(peer)?;
    let unfit = AddressFlags::Deprecated | AddressFlags::Dadfailed;
    let temporary = ip.is_ipv6() && flags.contains(AddressFlags::Secondary);
    let unchecked = flags.contains(AddressFlags::Tentative)
        && !message
            .header
            .flags
            .contains(AddressHeaderFlags::Optimistic);
    Some(Address {
        index: message.header.index,
        ip,
        is_global: message.header.scope == AddressScope::Universe
            && !is_narrow(ip)
            && !flags.intersects(unfit)
            && !temporary
            && !unchecked,
    })
}

/// It means something else on each link, or to each node.
fn is_narrow(ip: IpAddr) -> bool {
    is_link_local(ip) || ip.is_loopback()
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// The node's own addresses, if others can dial them. Sorted, each once.
fn usable(facts: &Facts) -> Vec<IpAddr> {
    let mut ips: Vec<IpAddr> = facts
        .addresses
        .iter()
        .map(|address| address.ip)
        .filter(|ip| !is_link_local(*ip))
        .collect();
    ips.sort_unstable();
    ips.dedup();
    ips
}
