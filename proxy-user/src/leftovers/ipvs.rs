//! Mode ipvs: the device that holds the Services' addresses, and the virtual servers at them.

use std::{collections::BTreeSet, net::IpAddr, path::Path};

use futures::TryStreamExt as _;
use rtnetlink::{
    Handle,
    packet_route::{
        address::AddressAttribute,
        link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
    },
};

use super::{Report, run};

const DEVICE: &str = "kube-ipvs0";
/// There if the kernel has IPVS.
const SERVERS: &str = "/proc/net/ip_vs";
/// kube-proxy's default of `--service-node-port-range`.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

pub(super) async fn remove(report: &mut Report) {
    let handle = match crate::loader::netlink() {
        Ok(handle) => handle,
        Err(error) => {
            report.failed.push(format!("netlink: {error}"));
            return;
        }
    };
    let Some((index, addresses)) = device(&handle).await else {
        return;
    };
    if Path::new(SERVERS).exists() {
        remove_servers(&addresses, report);
    }
    match handle.link().del(index).execute().await {
        Ok(()) => report.removed.push(format!("the device {DEVICE}")),
        Err(error) => report.failed.push(format!("the device {DEVICE}: {error}")),
    }
}

/// The device, if it is there.
pub(super) async fn find() -> Result<Option<String>, String> {
    let handle = crate::loader::netlink().map_err(|error| format!("netlink: {error}"))?;
    let device = device(&handle).await;
    Ok(device
        .map(|(_, addresses)| format!("the device {DEVICE} with {} addresses", addresses.len())))
}

/// Its index, and what addresses it has; only a dummy is kube-proxy's.
async fn device(handle: &Handle) -> Option<(u32, BTreeSet<IpAddr>)> {
    let name = handle.link().get().match_name(DEVICE.to_owned());
    let found: Vec<LinkMessage> = name.execute().try_collect().await.ok()?;
    let link = found.first()?;
    let is_dummy = link.attributes.iter().any(|attribute| {
        matches!(attribute, LinkAttribute::LinkInfo(infos)
            if infos.contains(&LinkInfo::Kind(InfoKind::Dummy)))
    });
    let index = link.header.index;
    let listed = handle.address().get().set_link_index_filter(index);
    let messages: Vec<_> = listed.execute().try_collect().await.unwrap_or_default();
    let addresses = messages
        .iter()
        .flat_map(|message| &message.attributes)
        .filter_map(|attribute| {
            if let AddressAttribute::Address(ip) = attribute {
                Some(*ip)
            } else {
                None
            }
        })
        .collect();
    is_dummy.then_some((index, addresses))
}

fn remove_servers(addresses: &BTreeSet<IpAddr>, report: &mut Report) {
    let saved = match run("ipvsadm", &["--save", "-n"], "") {
        Ok(Some(saved)) => saved,
        Ok(None) => {
            report.failed.push(format!(
                "{SERVERS} has virtual servers, and ipvsadm is not installed: they stay"
            ));
            return;
        }
        Err(error) => {
            report.failed.push(error);
            return;
        }
    };
    let commands = removals(&saved, addresses);
    if commands.is_empty() {
        return;
    }
    match run("ipvsadm", &["--restore"], &commands) {
        Ok(_) => report.removed.push(format!(
            "{} virtual servers (ipvsadm)",
            commands.lines().count()
        )),
        Err(error) => report.failed.push(error),
    }
}

/// What removes the servers at these addresses, and those of NodePorts. Servers at other ports of other
/// addresses are not kube-proxy's.
fn removals(saved: &str, addresses: &BTreeSet<IpAddr>) -> String {
    let is_kube_proxys = |server: &str| {
        let Ok(at) = server.parse::<std::net::SocketAddr>() else {
            return false;
        };
        addresses.contains(&at.ip()) || NODE_PORTS.contains(&at.port())
    };
    saved
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (command, protocol, server) = (words.next()?, words.next()?, words.next()?);
            (command == "-A" && is_kube_proxys(server)).then(|| format!("-D {protocol} {server}\n"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_at_the_devices_addresses_and_node_ports_go() {
        let saved = "-A -t 10.96.0.1:443 -s rr\n-a -t 10.96.0.1:443 -r 10.1.1.2:6443 -m -w 1\n\
                     -A -u [fd96::1]:53 -s rr\n-A -t 192.168.50.1:30080 -s rr\n\
                     -A -t 203.0.113.1:443 -s wlc\n-A -f 7 -s rr\n";
        let addresses = ["10.96.0.1", "fd96::1"].map(|ip| ip.parse().expect("an address"));
        assert_eq!(
            removals(saved, &addresses.into()),
            "-D -t 10.96.0.1:443\n-D -u [fd96::1]:53\n-D -t 192.168.50.1:30080\n"
        );
    }
}
