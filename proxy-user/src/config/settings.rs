//! Pure: from a configuration with its defaults to what the agent works with, or why not.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use proxy_common::abi::{FlowTimeouts, Scheduler};

use super::{duration::Span, schema::KubeProxyConfiguration};
use crate::{
    devices::Source,
    model::{NodePortScope, scheduler_named},
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub kubeconfig: Option<PathBuf>,
    /// Trimmed and in lower case.
    pub node_name: Option<String>,
    /// The node's primary address, when it shall not be taken from the Node object.
    pub primary_address: Option<IpAddr>,
    /// `None`: no such server.
    pub healthz_bind_address: Option<SocketAddr>,
    /// `None`: no such server.
    pub metrics_bind_address: Option<SocketAddr>,
    /// A server that can't be bound ends the agent.
    pub bind_address_hard_fail: bool,
    pub verbosity: u32,
    pub log_format: LogFormat,
    pub mode: Mode,
    /// How Services are balanced that don't say it. `None`: nothing is said, or nothing that is known.
    pub scheduler: Option<Scheduler>,
    pub node_ports: NodePortScope,
    pub oom_score_adj: i16,
    pub snat_source: Source,
    /// When an idle flow is forgotten.
    pub timeouts: FlowTimeouts,
    /// Twice this is how long a change may wait before the node counts as unhealthy.
    pub sync_period: Duration,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    /// An object a line.
    Json,
}

/// kube-proxy's, which decides some defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Iptables,
    Ipvs,
    Nftables,
}

/// A value that can't be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Invalid {
    pub(super) path: &'static str,
    pub(super) value: String,
    pub(super) why: &'static str,
}

const POSITIVE: &str = "must be greater than 0";
const NOT_NEGATIVE: &str = "must not be negative; 0 leaves it as it is";
const A_SERVER: &str = "write an IP address and a port, such as 0.0.0.0:10256 or [::]:10256";
const CIDRS: &str = "write one CIDR, or one of each family, such as 10.244.0.0/16,fd00:10:244::/56";

/// What `pkg/proxy/apis/config/validation` refuses is refused, where it would be read.
pub(super) fn settings(config: &KubeProxyConfiguration) -> Result<Settings, Vec<Invalid>> {
    let mut check = Check::default();
    let mode = check.mode(&config.mode);
    let sync_period = check.section(config, mode);
    check.ranges(config);
    check.detect_local(config);
    let bind_address = check.address("bindAddress", &config.bind_address);
    let settings = Settings {
        kubeconfig: non_empty(&config.client_connection.kubeconfig).map(PathBuf::from),
        node_name: check.node_name(&config.hostname_override),
        primary_address: bind_address.filter(|ip| !ip.is_unspecified()),
        healthz_bind_address: check.server("healthzBindAddress", &config.healthz_bind_address),
        metrics_bind_address: check.server("metricsBindAddress", &config.metrics_bind_address),
        bind_address_hard_fail: config.bind_address_hard_fail,
        verbosity: config.logging.verbosity,
        log_format: check.log_format(&config.logging.format),
        mode,
        scheduler: match mode {
            Mode::Ipvs => scheduler_named(&config.ipvs.scheduler),
            Mode::Iptables | Mode::Nftables => None,
        },
        node_ports: check.node_ports(&config.node_port_addresses),
        oom_score_adj: check.oom_score_adj(config.oom_score_adj),
        snat_source: match (mode, config.iptables.snat_node_internal_ip) {
            (Mode::Iptables, Some(true)) => Source::InternalIp,
            _ => Source::OfDevice,
        },
        timeouts: check.timeouts(config),
        sync_period,
    };
    if check.invalid.is_empty() {
        Ok(settings)
    } else {
        Err(check.invalid)
    }
}

/// Collects what is wrong; what it yields then is not used.
#[derive(Default)]
struct Check {
    invalid: Vec<Invalid>,
}

impl Check {
    fn refuse(&mut self, path: &'static str, value: impl fmt::Display, why: &'static str) {
        self.invalid.push(Invalid {
            path,
            value: value.to_string(),
            why,
        });
    }

    fn log_format(&mut self, text: &str) -> LogFormat {
        match text {
            "json" => LogFormat::Json,
            "text" => LogFormat::Text,
            _ => {
                self.refuse("logging.format", text, "must be text or json");
                LogFormat::Text
            }
        }
    }

    fn mode(&mut self, text: &str) -> Mode {
        match text {
            "nftables" => Mode::Nftables,
            "ipvs" => Mode::Ipvs,
            "iptables" => Mode::Iptables,
            _ => {
                let why = "must be iptables, ipvs, nftables or blank";
                self.refuse("mode", text, why);
                Mode::Iptables
            }
        }
    }

    /// The section of the mode: its period. The conversion is that of
    /// `pkg/proxy/apis/config/v1alpha1/conversion.go`.
    fn section(&mut self, config: &KubeProxyConfiguration, mode: Mode) -> Duration {
        let (iptables, ipvs, nftables) = (&config.iptables, &config.ipvs, &config.nftables);
        let (sync_path, sync, min_path, min) = match mode {
            Mode::Iptables => (
                "iptables.syncPeriod",
                iptables.sync_period,
                "iptables.minSyncPeriod",
                iptables.min_sync_period,
            ),
            Mode::Ipvs => (
                "ipvs.syncPeriod",
                ipvs.sync_period,
                "ipvs.minSyncPeriod",
                ipvs.min_sync_period,
            ),
            Mode::Nftables => (
                "nftables.syncPeriod",
                nftables.sync_period,
                "nftables.minSyncPeriod",
                nftables.min_sync_period,
            ),
        };
        let period = self.positive(sync_path, sync);
        self.not_negative(min_path, min);
        if min > sync {
            self.refuse(min_path, min, "must not be longer than syncPeriod");
        }
        period
    }

    /// Values that have no effect, but would be refused by kube-proxy.
    fn ranges(&mut self, config: &KubeProxyConfiguration) {
        for (path, bit) in [
            ("iptables.masqueradeBit", config.iptables.masquerade_bit),
            ("nftables.masqueradeBit", config.nftables.masquerade_bit),
        ] {
            if let Some(bit) = bit.filter(|bit| !(0..=31).contains(bit)) {
                self.refuse(path, bit, "must be within 0 to 31");
            }
        }
        for (path, count) in [
            (
                "clientConnection.burst",
                Some(config.client_connection.burst),
            ),
            ("conntrack.maxPerCore", config.conntrack.max_per_core),
            ("conntrack.min", config.conntrack.min),
        ] {
            if let Some(count) = count.filter(|count| *count < 0) {
                self.refuse(path, count, "must not be negative");
            }
        }
        self.positive("configSyncPeriod", config.config_sync_period);
        if config.mode == "ipvs" {
            let ipvs = &config.ipvs;
            self.not_negative("ipvs.tcpTimeout", ipvs.tcp_timeout);
            self.not_negative("ipvs.tcpFinTimeout", ipvs.tcp_fin_timeout);
            self.not_negative("ipvs.udpTimeout", ipvs.udp_timeout);
            for cidr in &ipvs.exclude_cidrs {
                self.cidr("ipvs.excludeCIDRs", cidr);
            }
        }
    }

    fn positive(&mut self, path: &'static str, span: Span) -> Duration {
        let duration = span.duration().filter(|duration| !duration.is_zero());
        duration.unwrap_or_else(|| {
            self.refuse(path, span, POSITIVE);
            Duration::ZERO
        })
    }

    /// `None` for 0.
    fn not_negative(&mut self, path: &'static str, span: Span) -> Option<Duration> {
        let Some(duration) = span.duration() else {
            self.refuse(path, span, NOT_NEGATIVE);
            return None;
        };
        (!duration.is_zero()).then_some(duration)
    }

    /// What is absent or 0 is kube-portal's own choice.
    fn timeouts(&mut self, config: &KubeProxyConfiguration) -> FlowTimeouts {
        let conntrack = &config.conntrack;
        let mut timeout = |path, span, default: u32| {
            self.not_negative(path, span).map_or(default, |time| {
                // A flow lives for a second at least: its time stamp is that coarse.
                u32::try_from(time.as_secs()).unwrap_or(u32::MAX).max(1)
            })
        };
        let own = FlowTimeouts::DEFAULT;
        FlowTimeouts {
            tcp_established: timeout(
                "conntrack.tcpEstablishedTimeout",
                conntrack.tcp_established_timeout.unwrap_or_default(),
                own.tcp_established,
            ),
            tcp_close_wait: timeout(
                "conntrack.tcpCloseWaitTimeout",
                conntrack.tcp_close_wait_timeout.unwrap_or_default(),
                own.tcp_close_wait,
            ),
            udp: timeout("conntrack.udpTimeout", conntrack.udp_timeout, own.udp),
            udp_stream: timeout(
                "conntrack.udpStreamTimeout",
                conntrack.udp_stream_timeout,
                own.udp_stream,
            ),
        }
    }

    fn node_name(&mut self, text: &str) -> Option<String> {
        let name = node_name(non_empty(text)?);
        if name.is_none() {
            self.refuse("hostnameOverride", text, "must not be blank");
        }
        name
    }

    fn address(&mut self, path: &'static str, text: &str) -> Option<IpAddr> {
        let address = text.parse().ok();
        if address.is_none() {
            self.refuse(path, text, "write an IPv4 or IPv6 address");
        }
        address
    }

    /// `None` if it is blank, which only a flag can say.
    fn server(&mut self, path: &'static str, text: &str) -> Option<SocketAddr> {
        let address = non_empty(text)?.parse().ok();
        let address = address.filter(|address: &SocketAddr| address.port() != 0);
        if address.is_none() {
            self.refuse(path, text, A_SERVER);
        }
        address
    }

    fn cidr(&mut self, path: &'static str, text: &str) -> Option<IpNet> {
        let net: Option<IpNet> = text.parse().ok();
        if net.is_none() {
            self.refuse(path, text, CIDRS);
        }
        net.map(|net| net.trunc())
    }

    /// How kube-proxy tells traffic of pods from other. Nothing here asks for it, but what can't be is
    /// refused.
    fn detect_local(&mut self, config: &KubeProxyConfiguration) {
        let (path, device) = match config.detect_local_mode.as_str() {
            "ClusterCIDR" => return self.cluster_cidr(&config.cluster_cidr),
            "NodeCIDR" => return,
            "BridgeInterface" => (
                "detectLocal.bridgeInterface",
                &config.detect_local.bridge_interface,
            ),
            "InterfaceNamePrefix" => (
                "detectLocal.interfaceNamePrefix",
                &config.detect_local.interface_name_prefix,
            ),
            other => {
                let why =
                    "must be ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix or blank";
                return self.refuse("detectLocalMode", other, why);
            }
        };
        if device.is_empty() {
            self.refuse(path, device, "this detectLocalMode needs it");
        }
    }

    fn cluster_cidr(&mut self, text: &str) {
        let Some(text) = non_empty(text) else {
            return;
        };
        let nets: Option<Vec<IpNet>> = text.split(',').map(|cidr| cidr.parse().ok()).collect();
        match nets.as_deref() {
            Some([_] | [IpNet::V4(_), IpNet::V6(_)] | [IpNet::V6(_), IpNet::V4(_)]) => {}
            _ => self.refuse("clusterCIDR", text, CIDRS),
        }
    }

    /// The words `all` and `localhost` are those of KEP-6032; they stand for ranges.
    fn node_ports(&mut self, values: &[String]) -> NodePortScope {
        if values.is_empty() {
            // Of no family a range: every address.
            return NodePortScope::Ranges(Vec::new());
        }
        let texts: Vec<&str> = values
            .iter()
            .flat_map(|value| match value.as_str() {
                "all" => vec!["0.0.0.0/0", "::/0"],
                "localhost" => vec!["127.0.0.0/8", "::1/128"],
                other => vec![other],
            })
            .collect();
        let blank = texts.iter().any(|text| text.trim().is_empty());
        NodePortScope::parse(&texts)
            .ok()
            .filter(|_| !blank)
            .unwrap_or_else(|| {
                let why = "write `primary` alone, or CIDRs such as 192.168.0.0/16";
                self.refuse("nodePortAddresses", values.join(","), why);
                NodePortScope::Primary
            })
    }

    fn oom_score_adj(&mut self, value: Option<i32>) -> i16 {
        let value = value.unwrap_or_default();
        let score = i16::try_from(value).ok();
        score
            .filter(|score| (-1000..=1000).contains(score))
            .unwrap_or_else(|| {
                self.refuse("oomScoreAdj", value, "must be within -1000 to 1000");
                0
            })
    }
}

fn non_empty(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// As nodeutil.GetHostname in `k8s.io/component-helpers` makes it of an override or a host name;
/// `None` if nothing is left.
pub(super) fn node_name(text: &str) -> Option<String> {
    non_empty(text.trim()).map(str::to_lowercase)
}
