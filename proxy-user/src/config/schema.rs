//! The type KubeProxyConfiguration, kubeproxy.config.k8s.io/v1alpha1, with kube-proxy's defaults.
//!
//! Fields: `staging/src/k8s.io/kube-proxy/config/v1alpha1/types.go`; defaults:
//! `pkg/proxy/apis/config/v1alpha1/defaults.go`. What each field does here is in
//! [`fields`](super::fields), nowhere else.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::duration::Span;

pub(super) const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
const GROUP: &str = "kubeproxy.config.k8s.io";
pub(super) const KIND: &str = "KubeProxyConfiguration";

/// If nothing is said.
pub(super) const OOM_SCORE_ADJ: i32 = -999;
const HEALTHZ_PORT: u16 = 10256;
const METRICS_PORT: u16 = 10249;

/// As Go has it: a field that is absent, null or zero is the same, except where it is an `Option`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct KubeProxyConfiguration {
    pub api_version: String,
    pub kind: String,
    pub feature_gates: BTreeMap<String, bool>,
    pub client_connection: ClientConnection,
    pub logging: Logging,
    pub hostname_override: String,
    pub bind_address: String,
    pub healthz_bind_address: String,
    pub metrics_bind_address: String,
    pub bind_address_hard_fail: bool,
    pub enable_profiling: bool,
    pub show_hidden_metrics_for_version: String,
    pub mode: String,
    pub iptables: Iptables,
    pub ipvs: Ipvs,
    pub nftables: Nftables,
    pub winkernel: Winkernel,
    pub detect_local_mode: String,
    pub detect_local: DetectLocal,
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: String,
    pub node_port_addresses: Vec<String>,
    pub oom_score_adj: Option<i32>,
    pub conntrack: Conntrack,
    pub config_sync_period: Span,
    pub port_range: String,
    pub windows_run_as_service: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClientConnection {
    pub kubeconfig: String,
    pub accept_content_types: String,
    pub content_type: String,
    pub qps: f64,
    pub burst: i32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Logging {
    pub format: String,
    /// A span, or a number of nanoseconds.
    pub flush_frequency: Value,
    pub verbosity: u32,
    pub vmodule: Vec<Value>,
    pub options: LoggingOptions,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LoggingOptions {
    pub text: LogRouting,
    pub json: LogRouting,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LogRouting {
    pub split_stream: bool,
    /// A quantity: a number of bytes, or text such as `64Ki`.
    pub info_buffer_size: Value,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Iptables {
    pub masquerade_bit: Option<i32>,
    pub masquerade_all: bool,
    pub localhost_node_ports: Option<bool>,
    #[serde(rename = "snatNodeInternalIP")]
    pub snat_node_internal_ip: Option<bool>,
    pub sync_period: Span,
    pub min_sync_period: Span,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Ipvs {
    pub sync_period: Span,
    pub min_sync_period: Span,
    pub scheduler: String,
    #[serde(rename = "excludeCIDRs")]
    pub exclude_cidrs: Vec<String>,
    #[serde(rename = "strictARP")]
    pub strict_arp: bool,
    pub tcp_timeout: Span,
    pub tcp_fin_timeout: Span,
    pub udp_timeout: Span,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Nftables {
    pub masquerade_bit: Option<i32>,
    pub masquerade_all: bool,
    pub sync_period: Span,
    pub min_sync_period: Span,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Winkernel {
    pub network_name: String,
    pub source_vip: String,
    #[serde(rename = "enableDSR")]
    pub enable_dsr: bool,
    pub root_hns_endpoint_name: String,
    pub forward_health_check_vip: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DetectLocal {
    pub bridge_interface: String,
    pub interface_name_prefix: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conntrack {
    pub max_per_core: Option<i32>,
    pub min: Option<i32>,
    pub tcp_established_timeout: Option<Span>,
    pub tcp_close_wait_timeout: Option<Span>,
    pub tcp_be_liberal: bool,
    pub udp_timeout: Span,
    pub udp_stream_timeout: Span,
}

impl KubeProxyConfiguration {
    /// Fills in what is not set, as kube-proxy does; the second time changes nothing.
    pub fn set_defaults(&mut self) {
        set(&mut self.api_version, API_VERSION);
        set(&mut self.kind, KIND);
        set(&mut self.bind_address, "0.0.0.0");
        let (healthz, metrics) = match self.bind_address.parse() {
            Ok(IpAddr::V4(_)) => ("0.0.0.0", "127.0.0.1"),
            Ok(IpAddr::V6(_)) | Err(_) => ("::", "::1"),
        };
        set(&mut self.healthz_bind_address, healthz);
        set(&mut self.metrics_bind_address, metrics);
        append_port(&mut self.healthz_bind_address, HEALTHZ_PORT);
        append_port(&mut self.metrics_bind_address, METRICS_PORT);

        // platformApplyDefaults in cmd/kube-proxy/app/server_linux.go.
        set(&mut self.mode, "iptables");
        if self.mode == "nftables" && self.node_port_addresses.is_empty() {
            self.node_port_addresses = vec!["primary".to_owned()];
        }
        set(&mut self.detect_local_mode, "ClusterCIDR");

        self.oom_score_adj.get_or_insert(OOM_SCORE_ADJ);
        self.iptables.masquerade_bit.get_or_insert(14);
        self.iptables.localhost_node_ports.get_or_insert(true);
        self.iptables.snat_node_internal_ip.get_or_insert(false);
        self.nftables.masquerade_bit.get_or_insert(14);
        for period in [
            &mut self.iptables.sync_period,
            &mut self.ipvs.sync_period,
            &mut self.nftables.sync_period,
        ] {
            set_span(period, Span::from_secs(30));
        }
        set_span(&mut self.iptables.min_sync_period, Span::from_secs(1));
        set_span(&mut self.nftables.min_sync_period, Span::from_secs(1));
        set_span(&mut self.config_sync_period, Span::from_secs(15 * 60));

        let conntrack = &mut self.conntrack;
        conntrack.max_per_core.get_or_insert(32 * 1024);
        conntrack.min.get_or_insert(128 * 1024);
        let day = Span::from_secs(24 * 3600);
        conntrack.tcp_established_timeout.get_or_insert(day);
        let hour = Span::from_secs(3600);
        conntrack.tcp_close_wait_timeout.get_or_insert(hour);

        let client = &mut self.client_connection;
        set(
            &mut client.content_type,
            "application/vnd.kubernetes.protobuf",
        );
        if client.qps == 0.0 {
            client.qps = 5.0;
        }
        if client.burst == 0 {
            client.burst = 10;
        }

        let logging = &mut self.logging;
        set(&mut logging.format, "text");
        if is_zero(&logging.flush_frequency) {
            logging.flush_frequency = "5s".into();
        }
        for routing in [&mut logging.options.text, &mut logging.options.json] {
            if is_zero(&routing.info_buffer_size) {
                routing.info_buffer_size = "0".into();
            }
        }
    }

    /// With nothing set.
    pub fn defaults() -> Self {
        let mut config = Self::default();
        config.set_defaults();
        config
    }

    /// What /configz says: the fields as in a file. kube-proxy has those of its Go type there.
    pub fn configz(&self) -> String {
        serde_json::json!({ GROUP: self.to_value() }).to_string()
    }

    /// The same for every field, as JSON.
    pub fn to_value(&self) -> Value {
        // Text keys and plain values only.
        serde_json::to_value(self).unwrap_or_default()
    }
}

fn set(field: &mut String, default: &str) {
    if field.is_empty() {
        default.clone_into(field);
    }
}

fn set_span(field: &mut Span, default: Span) {
    if field.is_zero() {
        *field = default;
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text == "0" || text.parse() == Ok(Span::ZERO),
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => false,
    }
}

/// kube-proxy's AppendPortIfNeeded: what is no address is left for validation.
fn append_port(address: &mut String, port: u16) {
    match address.parse() {
        Ok(IpAddr::V4(ip)) => *address = format!("{ip}:{port}"),
        Ok(IpAddr::V6(ip)) => *address = format!("[{ip}]:{port}"),
        Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_those_of_kube_proxy() {
        let config = KubeProxyConfiguration::defaults();
        let value = config.to_value();
        // Written down from pkg/proxy/apis/config/v1alpha1/defaults.go and its test.
        for (path, expected) in [
            ("/bindAddress", serde_json::json!("0.0.0.0")),
            ("/healthzBindAddress", "0.0.0.0:10256".into()),
            ("/metricsBindAddress", "127.0.0.1:10249".into()),
            ("/oomScoreAdj", (-999).into()),
            ("/mode", "iptables".into()),
            ("/detectLocalMode", "ClusterCIDR".into()),
            ("/iptables/masqueradeBit", 14.into()),
            ("/iptables/syncPeriod", "30s".into()),
            ("/iptables/minSyncPeriod", "1s".into()),
            ("/ipvs/syncPeriod", "30s".into()),
            ("/ipvs/minSyncPeriod", "0s".into()),
            ("/conntrack/maxPerCore", 32768.into()),
            ("/conntrack/min", 131_072.into()),
            ("/conntrack/tcpEstablishedTimeout", "24h0m0s".into()),
            ("/conntrack/tcpCloseWaitTimeout", "1h0m0s".into()),
            ("/conntrack/udpTimeout", "0s".into()),
            ("/configSyncPeriod", "15m0s".into()),
            ("/clientConnection/qps", 5.0.into()),
            ("/clientConnection/burst", 10.into()),
            ("/nodePortAddresses", Value::Array(Vec::new())),
        ] {
            assert_eq!(value.pointer(path), Some(&expected), "{path}");
        }
    }

    #[test]
    fn an_ipv6_bind_address_moves_the_servers_to_ipv6() {
        let mut config = KubeProxyConfiguration {
            bind_address: "::".into(),
            ..Default::default()
        };
        config.set_defaults();
        assert_eq!(config.healthz_bind_address, "[::]:10256");
        assert_eq!(config.metrics_bind_address, "[::1]:10249");
    }

    #[test]
    fn an_address_without_port_gets_the_usual_one() {
        let mut config = KubeProxyConfiguration {
            healthz_bind_address: "10.0.0.1".into(),
            metrics_bind_address: "fd00::1".into(),
            ..Default::default()
        };
        config.set_defaults();
        assert_eq!(config.healthz_bind_address, "10.0.0.1:10256");
        assert_eq!(config.metrics_bind_address, "[fd00::1]:10249");
    }

    #[test]
    fn mode_nftables_listens_for_node_ports_on_the_primary_address_only() {
        let mut config = KubeProxyConfiguration {
            mode: "nftables".into(),
            ..Default::default()
        };
        config.set_defaults();
        assert_eq!(config.node_port_addresses, ["primary"]);
    }

    #[test]
    fn defaults_are_set_once() {
        let once = KubeProxyConfiguration::defaults();
        let mut twice = once.clone();
        twice.set_defaults();
        assert_eq!(once, twice);
    }
}
