//! Rules of the shape of kube-proxy's nftables mode (kubernetes `pkg/proxy/nftables/proxier.go`): what
//! a packet has to pass is the same, chain by chain, in IPv4.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

/// One port of a Service with one endpoint.
#[derive(Debug)]
pub struct Port {
    pub name: String,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    pub vip: SocketAddr,
    pub node_port: Option<u16>,
    pub endpoint: SocketAddr,
}

/// Everything of one node; `pods` is the cluster's pod network.
pub fn ruleset(node: IpAddr, pods: &str, ports: &[Port]) -> String {
    let mut out = String::from(
        "table ip kube-proxy {\n\
         set cluster-ips { type ipv4_addr\n }\n\
         map no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict\n }\n\
         map no-endpoint-nodeports { type inet_proto . inet_service : verdict\n }\n\
         map firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict\n }\n\
         map service-ips { type ipv4_addr . inet_proto . inet_service : verdict\n }\n\
         map service-nodeports { type inet_proto . inet_service : verdict\n }\n",
    );
    let _ = writeln!(
        out,
        "set nodeport-ips {{ type ipv4_addr\n elements = {{ {node} }}\n }}"
    );
    out.push_str(
        "chain mark-for-masquerade { meta mark set meta mark or 0x4000\n }\n\
         chain masquerading {\n\
           meta mark and 0x4000 == 0 return\n\
           meta mark set meta mark xor 0x4000\n\
           masquerade fully-random\n }\n\
         chain reject-chain { reject\n }\n\
         chain cluster-ips-check { ip daddr @cluster-ips reject\n }\n\
         chain endpoints-check {\n\
           ip daddr . meta l4proto . th dport vmap @no-endpoint-services\n\
           ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports\n }\n\
         chain firewall-check { ip daddr . meta l4proto . th dport vmap @firewall-ips\n }\n\
         chain services {\n\
           ip daddr . meta l4proto . th dport vmap @service-ips\n\
           ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports\n }\n",
    );
    for (chain, kind, hook, priority, rule) in [
        (
            "filter-prerouting-pre-dnat",
            "filter",
            "prerouting",
            -110,
            "ct state new jump firewall-check",
        ),
        (
            "filter-output-pre-dnat",
            "filter",
            "output",
            -110,
            "ct state new jump firewall-check",
        ),
        (
            "filter-prerouting",
            "filter",
            "prerouting",
            -109,
            "ct state new jump endpoints-check",
        ),
        (
            "filter-input",
            "filter",
            "input",
            0,
            "ct state new jump endpoints-check",
        ),
        (
            "filter-forward",
            "filter",
            "forward",
            0,
            "ct state new jump endpoints-check",
        ),
        (
            "filter-forward-ips",
            "filter",
            "forward",
            1,
            "ct state new jump cluster-ips-check",
        ),
        (
            "filter-output",
            "filter",
            "output",
            0,
            "ct state new jump endpoints-check",
        ),
        ("nat-prerouting", "nat", "prerouting", -100, "jump services"),
        ("nat-output", "nat", "output", -100, "jump services"),
        (
            "nat-postrouting",
            "nat",
            "postrouting",
            100,
            "jump masquerading",
        ),
    ] {
        let _ = writeln!(
            out,
            "chain {chain} {{ type {kind} hook {hook} priority {priority};\n {rule}\n }}"
        );
    }
    for Port {
        name,
        protocol,
        vip,
        node_port,
        endpoint,
    } in ports
    {
        let (vip4, port) = (vip.ip(), vip.port());
        let chain = format!("{name}/{protocol}");
        let _ = writeln!(
            out,
            "chain endpoint-{chain} {{\n\
               ip saddr {} jump mark-for-masquerade\n\
               meta l4proto {protocol} dnat to {endpoint}\n }}\n\
             chain service-{chain} {{\n\
               ip daddr {vip4} {protocol} dport {port} ip saddr != {pods} jump mark-for-masquerade\n\
               numgen random mod 1 vmap {{ 0 : goto endpoint-{chain} }}\n }}",
            endpoint.ip()
        );
        if node_port.is_some() {
            let _ = writeln!(
                out,
                "chain external-{chain} {{ jump mark-for-masquerade\n goto service-{chain}\n }}"
            );
        }
    }
    out.push_str("}\n");
    for chunk in ports.chunks(500) {
        let services = elements(chunk, |port| {
            let Port {
                name,
                protocol,
                vip,
                ..
            } = port;
            let key = format!("{} . {protocol} . {}", vip.ip(), vip.port());
            Some(format!("{key} : goto service-{name}/{protocol}"))
        });
        let _ = writeln!(
            out,
            "add element ip kube-proxy service-ips {{ {services} }}"
        );
        let ips = elements(chunk, |port| {
            (port.protocol == "tcp").then(|| port.vip.ip().to_string())
        });
        let _ = writeln!(out, "add element ip kube-proxy cluster-ips {{ {ips} }}");
        let node_ports = elements(chunk, |port| {
            let Port { name, protocol, .. } = port;
            let node_port = port.node_port?;
            Some(format!(
                "{protocol} . {node_port} : goto external-{name}/{protocol}"
            ))
        });
        if !node_ports.is_empty() {
            let _ = writeln!(
                out,
                "add element ip kube-proxy service-nodeports {{ {node_ports} }}"
            );
        }
    }
    out
}

fn elements(ports: &[Port], element: impl Fn(&Port) -> Option<String>) -> String {
    let elements: Vec<String> = ports.iter().filter_map(element).collect();
    elements.join(", ")
}
