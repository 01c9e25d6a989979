//! `--snat-ports`: source ports that nobody else on the node uses.

use std::fs;

use proxy_common::abi::PortRange;

/// The default of the API server's --service-node-port-range.
pub(crate) const NODE_PORTS: PortRange = PortRange {
    first: 30_000,
    last: 32_767,
};
const LOCAL_PORTS: &str = "/proc/sys/net/ipv4/ip_local_port_range";

pub(super) fn parse(text: &str) -> Result<PortRange, String> {
    let ports = text.split_once('-').and_then(|(first, last)| {
        Some(PortRange {
            first: first.trim().parse().ok()?,
            last: last.trim().parse().ok()?,
        })
    });
    match ports {
        Some(ports) if ports.first > 0 && ports.first <= ports.last => Ok(ports),
        Some(_) | None => Err("write FIRST-LAST, such as 10000-29999, from 1 to 65535".to_owned()),
    }
}

/// Where sockets of the node get their ports, if the kernel says so.
pub(crate) fn local_ports() -> Option<PortRange> {
    let text = fs::read_to_string(LOCAL_PORTS).ok()?;
    let mut numbers = text.split_whitespace().map(str::parse);
    Some(PortRange {
        first: numbers.next()?.ok()?,
        last: numbers.next()?.ok()?,
    })
}

/// A line for each range that shares ports with these.
pub(crate) fn overlaps(snat: PortRange, local: Option<PortRange>) -> Vec<String> {
    let PortRange { first, last } = snat;
    let shares = |other: &PortRange| first <= other.last && other.first <= last;
    let mut lines = Vec::new();
    if shares(&NODE_PORTS) {
        lines.push(format!(
            "--snat-ports {first}-{last} overlaps the NodePort range {}-{}: answers of backends to such a \
             port may be taken for connections to a NodePort; choose ports outside, such as 10000-29999",
            NODE_PORTS.first, NODE_PORTS.last
        ));
    }
    if let Some(local) = local.filter(shares) {
        lines.push(format!(
            "--snat-ports {first}-{last} overlaps net.ipv4.ip_local_port_range {}-{}: a connection of this \
             node's own to a backend's address may be given a port that a translated flow has, and one of \
             the two then fails; make one of the ranges smaller",
            local.first, local.last
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ports(first: u16, last: u16) -> PortRange {
        PortRange { first, last }
    }

    #[test]
    fn a_range_is_two_ports_in_order() {
        assert_eq!(parse("10000-29999"), Ok(PortRange::DEFAULT));
        assert_eq!(parse("7-7"), Ok(ports(7, 7)));
        for bad in ["", "61000", "9-8", "0-5", "1-65536", "a-b", "1-2-3"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ranges_that_share_a_port_are_told() {
        let local = Some(ports(32_768, 60_999));
        assert_eq!(overlaps(PortRange::DEFAULT, local), Vec::<String>::new());
        assert_eq!(overlaps(PortRange::DEFAULT, None), Vec::<String>::new());
        let lines = overlaps(ports(60_999, 65_535), local);
        assert!(
            lines.len() == 1 && lines[0].contains("32768-60999"),
            "{lines:?}"
        );
        let lines = overlaps(ports(20_000, 40_000), local);
        assert!(
            lines.len() == 2 && lines[0].contains("30000-32767"),
            "{lines:?}"
        );
    }
}
