//! The addresses on this node's devices, followed by netlink. NodePorts answer on some of them.

use std::{net::IpAddr, time::Duration};

use futures::{StreamExt as _, TryStreamExt as _};
use rtnetlink::{
    Handle, MulticastGroup, new_multicast_connection,
    packet_route::address::{AddressAttribute, AddressMessage},
};
use tokio::sync::mpsc;

use crate::model::Event;

/// Before netlink is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// Changes come in bursts: a device that goes takes all its addresses with it.
const QUIET: Duration = Duration::from_millis(20);

/// Runs until the receiver is gone. A failure is told, and what was known stays.
pub async fn run(tx: mpsc::Sender<Event>) {
    let mut told = false;
    while let Err(error) = follow(&tx, &mut told).await {
        if !std::mem::replace(&mut told, true) {
            log::warn!(
                "addresses of the node: netlink: {error}; NodePorts keep those known so far, and it is tried again"
            );
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = tx.closed() => return,
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum NetlinkError {
    #[error("{0}")]
    Socket(#[from] std::io::Error),
    #[error("{0}")]
    List(#[from] rtnetlink::Error),
    #[error("the connection has ended")]
    Ended,
}

/// `Ok` when the receiver is gone.
async fn follow(tx: &mpsc::Sender<Event>, told: &mut bool) -> Result<(), NetlinkError> {
    // Listening before listing: a change in between is seen twice rather than never.
    let (connection, handle, mut changes) =
        new_multicast_connection(&[MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr])?;
    let connection = tokio::spawn(connection);
    let mut known = None;
    let result = loop {
        let ips = match list(&handle).await {
            Ok(ips) => ips,
            Err(error) => break Err(error.into()),
        };
        *told = false;
        if known.as_ref() != Some(&ips) {
            log::debug!("addresses of the node: {ips:?}");
            if tx.send(Event::LocalAddresses(ips.clone())).await.is_err() {
                break Ok(());
            }
            known = Some(ips);
        }
        tokio::select! {
            change = changes.next() => if change.is_none() {
                break Err(NetlinkError::Ended);
            },
            () = tx.closed() => break Ok(()),
        }
        tokio::time::sleep(QUIET).await;
        while let Ok(change) = tokio::time::timeout(Duration::ZERO, changes.next()).await {
            if change.is_none() {
                break;
            }
        }
    };
    connection.abort();
    result
}

/// Sorted, each once.
async fn list(handle: &Handle) -> Result<Vec<IpAddr>, rtnetlink::Error> {
    let messages: Vec<AddressMessage> = handle.address().get().execute().try_collect().await?;
    let mut ips: Vec<IpAddr> = messages.iter().filter_map(usable).collect();
    ips.sort_unstable();
    ips.dedup();
    Ok(ips)
}

/// The device's own address, if others can dial it: link-local ones mean something else on each link.
fn usable(message: &AddressMessage) -> Option<IpAddr> {
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        if let AddressAttribute::Local(ip) = attribute {
            local = Some(*ip);
        } else if let AddressAttribute::Address(ip) = attribute {
            address = Some(*ip);
        }
    }
    // IPv6 has no IFA_LOCAL but on point-to-point links, where IFA_ADDRESS is the peer's.
    let ip = local.or(address)?;
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    (!link_local).then_some(ip)
}
