//! Sysctls, ranges of ports, and addresses to listen on.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use proxy_common::abi::PortRange;

use super::finding::{Group, Level, Report};
use crate::cli::snat_ports::{self, NODE_PORTS};

#[derive(Clone, Debug)]
pub struct Network {
    /// `net.ipv4.ip_forward`; `None` if it can't be read.
    pub forwards_v4: Option<bool>,
    /// `net.ipv6.conf.all.forwarding`; `None` if there is no IPv6.
    pub forwards_v6: Option<bool>,
    /// A device that leads outside has an address of IPv6.
    pub has_v6: bool,
    /// Devices with strict reverse path filters.
    pub strict_rp_filter: Vec<String>,
    pub snat_ports: PortRange,
    /// `net.ipv4.ip_local_port_range`.
    pub local_ports: Option<PortRange>,
    /// Flag, and where it wants to listen.
    pub wanted: Vec<(&'static str, SocketAddr)>,
    /// Where somebody listens by TCP.
    pub listening: Vec<SocketAddr>,
    /// --bind-address-hard-fail.
    pub hard_fail: bool,
}

pub(super) fn judge(network: &Network, agent_runs: bool, report: &mut Report) {
    forwarding(network, report);
    ports(network, report);
    servers(network, agent_runs, report);
}

fn forwarding(network: &Network, report: &mut Report) {
    let group = Group::Network;
    let mut one = |what: &str, forwards, family| {
        match forwards {
        Some(true) => report.ok(group, what, "on"),
        Some(false) => report.warn(
            group,
            what,
            format!("off: {family} traffic from outside does not reach pods of this node, nor other nodes through it"),
            format!("sysctl -w {what}=1"),
        ),
        None => report.note(group, what, "can't be read"),
    }
    };
    one("net.ipv4.ip_forward", network.forwards_v4, "IPv4");
    if network.has_v6 {
        one("net.ipv6.conf.all.forwarding", network.forwards_v6, "IPv6");
    }
    if !network.strict_rp_filter.is_empty() {
        let found = format!(
            "strict on {}: what comes by a device that answers would not leave by is dropped, as ever",
            network.strict_rp_filter.join(", ")
        );
        report.note(group, "rp_filter", found);
    }
}

fn ports(network: &Network, report: &mut Report) {
    let group = Group::Network;
    let PortRange { first, last } = network.snat_ports;
    let overlaps = snat_ports::overlaps(network.snat_ports, network.local_ports);
    if overlaps.is_empty() {
        report.ok(
            group,
            "--snat-ports",
            format!("{first}-{last}, nobody else's"),
        );
    }
    for line in &overlaps {
        // What it overlaps, what follows from it; what to do.
        let (found, remedy) = line.rsplit_once("; ").unwrap_or((line, ""));
        let found = found.strip_prefix("--snat-ports ").unwrap_or(found);
        report.warn(group, "--snat-ports", found, remedy);
    }
    let what = "net.ipv4.ip_local_port_range";
    match network.local_ports {
        Some(local) if local.first <= NODE_PORTS.last && NODE_PORTS.first <= local.last => report.warn(
            group,
            what,
            format!(
                "{}-{} overlaps the NodePort range {}-{}: answers to a connection of this node's own may be taken for connections to a NodePort",
                local.first, local.last, NODE_PORTS.first, NODE_PORTS.last
            ),
            format!("sysctl -w {what}='32768 60999'"),
        ),
        Some(local) => {
            report.ok(group, what, format!("{}-{}", local.first, local.last));
        }
        None => {}
    }
}

/// The first listener in whose way another one at `at` would be.
fn taken(at: SocketAddr, listening: &[SocketAddr]) -> Option<SocketAddr> {
    let plain = |ip: IpAddr| ip.to_canonical();
    let is_any = |ip: IpAddr| ip.is_unspecified();
    let clashes = |other: &&SocketAddr| {
        let (one, two) = (plain(at.ip()), plain(other.ip()));
        // [::] stands for both families, unless its owner has said otherwise.
        let both = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        at.port() == other.port()
            && (one == two
                || one == both
                || two == both
                || one.is_ipv4() == two.is_ipv4() && (is_any(one) || is_any(two)))
    };
    listening.iter().find(clashes).copied()
}

fn servers(network: &Network, agent_runs: bool, report: &mut Report) {
    let group = Group::Network;
    for (flag, at) in &network.wanted {
        match taken(*at, &network.listening) {
            None => report.ok(group, *flag, format!("{at} is free")),
            Some(_) if agent_runs => {
                report.ok(group, *flag, format!("{at} is taken, as an agent runs"));
            }
            Some(by) => {
                let level = if network.hard_fail {
                    Level::Fail
                } else {
                    Level::Warn
                };
                let found = format!("{at} can't be had: somebody listens on {by}");
                let remedy = format!(
                    "stop them (a kube-proxy has these ports too), or give another address with {flag}"
                );
                report.add(level, group, *flag, found, Some(remedy));
            }
        }
    }
}

/// Addresses that are listened on, of /proc/net/tcp or /proc/net/tcp6.
pub(super) fn listeners(table: &str) -> Vec<SocketAddr> {
    const LISTEN: &str = "0A";
    let lines = table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let local = fields.next()?;
        (fields.nth(1)? == LISTEN).then_some(local)
    });
    lines.filter_map(address).collect()
}

/// Words of four bytes, each as it lies in memory.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::with_capacity(16);
    for word in ip.as_bytes().chunks(8) {
        let word = u32::from_str_radix(str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fine() -> Network {
        Network {
            forwards_v4: Some(true),
            forwards_v6: Some(true),
            has_v6: true,
            strict_rp_filter: Vec::new(),
            snat_ports: PortRange::DEFAULT,
            local_ports: Some(PortRange {
                first: 32_768,
                last: 60_999,
            }),
            wanted: vec![("--healthz-bind-address", "0.0.0.0:10256".parse().unwrap())],
            listening: Vec::new(),
            hard_fail: false,
        }
    }

    fn bad(network: &Network) -> Vec<String> {
        let mut report = Report::default();
        judge(network, false, &mut report);
        report.bad()
    }

    #[test]
    fn a_usual_node_is_fine() {
        assert!(bad(&fine()).is_empty());
    }

    #[test]
    fn forwarding_that_is_off_matters_in_the_families_of_the_node() {
        let mut network = fine();
        network.forwards_v4 = Some(false);
        network.forwards_v6 = Some(false);
        assert_eq!(
            bad(&network),
            [
                "warn net.ipv4.ip_forward",
                "warn net.ipv6.conf.all.forwarding"
            ]
        );
        network.has_v6 = false;
        assert_eq!(bad(&network), ["warn net.ipv4.ip_forward"]);
        network.strict_rp_filter = vec!["eth0".to_owned()];
        network.forwards_v4 = None;
        assert_eq!(
            bad(&network),
            ["note net.ipv4.ip_forward", "note rp_filter"]
        );
    }

    #[test]
    fn ranges_of_ports_that_overlap_are_told_with_what_to_do() {
        let mut network = fine();
        network.snat_ports = PortRange {
            first: 60_000,
            last: 61_000,
        };
        let mut report = Report::default();
        judge(&network, false, &mut report);
        let finding = report.about("--snat-ports");
        assert!(
            finding
                .found
                .starts_with("60000-61000 overlaps net.ipv4.ip_local_port_range 32768-60999: "),
            "{finding}"
        );
        assert_eq!(
            finding.remedy.as_deref(),
            Some("make one of the ranges smaller")
        );
        network = fine();
        network.local_ports = Some(PortRange {
            first: 30_000,
            last: 65_535,
        });
        assert_eq!(bad(&network), ["warn net.ipv4.ip_local_port_range"]);
    }

    #[test]
    fn an_address_is_taken_by_itself_and_by_all_addresses() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        for (wanted, listening, is_taken) in [
            ("127.0.0.1:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "127.0.0.1:2", false),
            ("127.0.0.1:1", "192.0.2.1:1", false),
            ("0.0.0.0:1", "192.0.2.1:1", true),
            ("127.0.0.1:1", "0.0.0.0:1", true),
            ("127.0.0.1:1", "[::]:1", true),
            ("[::1]:1", "0.0.0.0:1", false),
            ("[::]:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "[::ffff:127.0.0.1]:1", true),
        ] {
            let found = taken(at(wanted), &[at(listening)]);
            assert_eq!(found.is_some(), is_taken, "{wanted} {listening}");
        }
    }

    #[test]
    fn a_taken_address_is_a_warning_unless_it_ends_the_agent_or_is_its_own() {
        let mut network = fine();
        network.listening = vec!["127.0.0.1:10256".parse().unwrap()];
        assert_eq!(bad(&network), ["warn --healthz-bind-address"]);
        network.hard_fail = true;
        assert_eq!(bad(&network), ["FAIL --healthz-bind-address"]);
        let mut report = Report::default();
        judge(&network, true, &mut report);
        assert!(report.bad().is_empty());
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn listeners_are_read_from_the_kernel_s_tables() {
        let table = "  sl  local_address rem_address   st tx_queue\n   \
                     0: 0100007F:2810 00000000:0000 0A 00000000:00000000\n   \
                     1: 0100007F:2811 0100007F:0016 01 00000000:00000000\n";
        assert_eq!(listeners(table), ["127.0.0.1:10256".parse().unwrap()]);
        let table = "head\n   0: 00000000000000000000000001000000:1F90 \
                     00000000000000000000000000000000:0000 0A 0\n";
        assert_eq!(listeners(table), ["[::1]:8080".parse().unwrap()]);
    }
}
