//! What becomes of each field of a KubeProxyConfiguration and of each flag of kube-proxy: the one
//! table that reading, flags, warnings, help and docs/MIGRATING.md are made from.

use serde_json::Value;

/// A field, and the flag of kube-proxy that sets it.
#[derive(Debug)]
pub(super) struct Field {
    /// In the file, with dots.
    pub(super) path: &'static str,
    pub(super) flag: Option<&'static str>,
    pub(super) kind: Kind,
    pub(super) effect: Effect,
}

/// How a flag's text becomes a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Bool,
    Int,
    Float,
    /// Comma-separated, or the flag several times.
    List,
    /// `name=true`, comma-separated, or the flag several times.
    Gates,
    /// `pattern=level`, comma-separated.
    Levels,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Effect {
    /// What it does.
    Here(&'static str),
    /// Why it has no meaning here.
    Nothing(&'static str),
}

impl Effect {
    /// As in help and docs.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Here(text) => (*text).to_owned(),
            Self::Nothing(text) => format!("no meaning: {text}"),
        }
    }

    /// What is said of somebody who asks for it; nothing if they get it.
    pub(super) fn warning(&self) -> Option<String> {
        match self {
            Self::Here(_) => None,
            Self::Nothing(text) => Some(format!("has no meaning here: {text}")),
        }
    }
}

const NO_MARKS: &str = "packets are translated without marks on them";
const NO_NETFILTER: &str = "nf_conntrack is not used, and left as it is";
const NO_IPVS: &str = "there is no IPVS";
const NO_WINDOWS: &str = "Windows only";
const NO_DELAY: &str = "a change costs only its own Service and is written at once, in batches; nothing is ever held back";
const MASQUERADE: &str = "an answer finds its way whoever dials: docs/PACKET-PATH.md, Masquerade";
const DETECT: &str = "pods are known by their sockets, or by their devices (--pod-devices), and not by ranges or names";
const SYNC_PERIOD: &str = "a change that waits for twice this time makes the node unhealthy; nothing is rewritten periodically";
const FEW_REQUESTS: &str = "one watch for each kind and a few Events are all that is asked of the API server, repeated with a growing delay";

const fn field(
    path: &'static str,
    flag: Option<&'static str>,
    kind: Kind,
    effect: Effect,
) -> Field {
    Field {
        path,
        flag,
        kind,
        effect,
    }
}

use Effect::{Here, Nothing};
use Kind::{Bool, Float, Gates, Int, Levels, List, Text};

/// In the order of the type.
#[rustfmt::skip]
pub(super) const FIELDS: &[Field] = &[
    field("apiVersion", None, Text, Here("must be kubeproxy.config.k8s.io/v1alpha1")),
    field("kind", None, Text, Here("must be KubeProxyConfiguration")),
    field("featureGates", Some("feature-gates"), Gates, Nothing("kube-portal has no feature gates; what kube-proxy's gates of today switch on is on, external IPs too")),
    field("clientConnection.kubeconfig", Some("kubeconfig"), Text, Here("the cluster to serve; without it $KUBECONFIG, ~/.kube/config, or the pod's service account")),
    field("clientConnection.acceptContentTypes", None, Text, Nothing("the API server is spoken to in JSON")),
    field("clientConnection.contentType", Some("kube-api-content-type"), Text, Nothing("the API server is spoken to in JSON")),
    field("clientConnection.qps", Some("kube-api-qps"), Float, Nothing(FEW_REQUESTS)),
    field("clientConnection.burst", Some("kube-api-burst"), Int, Nothing(FEW_REQUESTS)),
    field("logging.format", Some("logging-format"), Text, Here("`text`, or `json`: an object a line, with `ts` (milliseconds since 1970), `level`, `msg`")),
    field("logging.flushFrequency", Some("log-flush-frequency"), Text, Nothing("log lines are not buffered")),
    field("logging.verbosity", Some("v"), Int, Here("log level: 0-3 info, 4-5 debug, from 6 on trace ($RUST_LOG comes first)")),
    field("logging.vmodule", Some("vmodule"), Levels, Nothing("there are no such modules; set $RUST_LOG")),
    field("logging.options.text.splitStream", Some("log-text-split-stream"), Bool, Nothing("log lines go to standard error")),
    field("logging.options.text.infoBufferSize", Some("log-text-info-buffer-size"), Text, Nothing("log lines are not buffered")),
    field("logging.options.json.splitStream", Some("log-json-split-stream"), Bool, Nothing("log lines go to standard error")),
    field("logging.options.json.infoBufferSize", Some("log-json-info-buffer-size"), Text, Nothing("log lines are not buffered")),
    field("hostnameOverride", Some("hostname-override"), Text, Here("this node's name in the cluster; without it the host name. In lower case, without spaces around")),
    field("bindAddress", Some("bind-address"), Text, Here("the node's primary address, in place of the Node object's InternalIP of its family; an unspecified address only chooses the family of the two servers' default addresses")),
    field("healthzBindAddress", Some("healthz-bind-address"), Text, Here("where /healthz and /livez are answered, 0.0.0.0:10256 if not set; 0.0.0.0 and [::] stand for both families")),
    field("metricsBindAddress", Some("metrics-bind-address"), Text, Here("where /metrics, /configz, /proxyMode and /healthz are answered, 127.0.0.1:10249 if not set")),
    field("bindAddressHardFail", Some("bind-address-hard-fail"), Bool, Here("end if one of these two addresses can't be had; else it is tried again every 5 s")),
    field("enableProfiling", Some("profiling"), Bool, Nothing("there is no Go runtime to profile; use perf")),
    field("showHiddenMetricsForVersion", Some("show-hidden-metrics-for-version"), Text, Nothing("no metrics are hidden")),
    field("mode", Some("proxy-mode"), Text, Here("only which section (`iptables`, `ipvs`, `nftables`) is read, and the default of nodePortAddresses; Services are always translated with eBPF")),
    field("iptables.masqueradeBit", Some("iptables-masquerade-bit"), Int, Nothing(NO_MARKS)),
    field("iptables.masqueradeAll", Some("masquerade-all"), Bool, Nothing(MASQUERADE)),
    field("iptables.localhostNodePorts", Some("iptables-localhost-nodeports"), Bool, Nothing("NodePorts on 127.0.0.1 and ::1 are for the node's own processes only, and open nothing to others")),
    field("iptables.snatNodeInternalIP", None, Bool, Here("packets to backends elsewhere have the Node's InternalIP as their source, whatever device they leave by. Not set: the address of that device, an InternalIP if it has one")),
    field("iptables.syncPeriod", Some("iptables-sync-period"), Text, Here(SYNC_PERIOD)),
    field("iptables.minSyncPeriod", Some("iptables-min-sync-period"), Text, Nothing(NO_DELAY)),
    field("ipvs.syncPeriod", Some("ipvs-sync-period"), Text, Here(SYNC_PERIOD)),
    field("ipvs.minSyncPeriod", Some("ipvs-min-sync-period"), Text, Nothing(NO_DELAY)),
    field("ipvs.scheduler", Some("ipvs-scheduler"), Text, Here("in mode ipvs: by which rule backends are chosen where neither --scheduler nor the Service says it: rr, wrr, lc, wlc, sh, dh, sed, nq or mh. Any other counts as not set: random")),
    field("ipvs.excludeCIDRs", Some("ipvs-exclude-cidrs"), List, Nothing(NO_IPVS)),
    field("ipvs.strictARP", Some("ipvs-strict-arp"), Bool, Nothing("no address is put on a device, so none is answered for")),
    field("ipvs.tcpTimeout", Some("ipvs-tcp-timeout"), Text, Nothing(NO_IPVS)),
    field("ipvs.tcpFinTimeout", Some("ipvs-tcpfin-timeout"), Text, Nothing(NO_IPVS)),
    field("ipvs.udpTimeout", Some("ipvs-udp-timeout"), Text, Nothing(NO_IPVS)),
    field("nftables.masqueradeBit", None, Int, Nothing(NO_MARKS)),
    field("nftables.masqueradeAll", None, Bool, Nothing(MASQUERADE)),
    field("nftables.syncPeriod", None, Text, Here(SYNC_PERIOD)),
    field("nftables.minSyncPeriod", None, Text, Nothing(NO_DELAY)),
    field("winkernel.networkName", None, Text, Nothing(NO_WINDOWS)),
    field("winkernel.sourceVip", None, Text, Nothing(NO_WINDOWS)),
    field("winkernel.enableDSR", None, Bool, Nothing(NO_WINDOWS)),
    field("winkernel.rootHnsEndpointName", None, Text, Nothing(NO_WINDOWS)),
    field("winkernel.forwardHealthCheckVip", None, Bool, Nothing(NO_WINDOWS)),
    field("detectLocalMode", Some("detect-local-mode"), Text, Nothing(DETECT)),
    field("detectLocal.bridgeInterface", Some("pod-bridge-interface"), Text, Nothing(DETECT)),
    field("detectLocal.interfaceNamePrefix", Some("pod-interface-name-prefix"), Text, Nothing(DETECT)),
    field("clusterCIDR", Some("cluster-cidr"), Text, Nothing(DETECT)),
    field("nodePortAddresses", Some("nodeport-addresses"), List, Here("addresses of this node on which NodePorts answer: `primary` (the Node object's InternalIPs) or CIDRs. The node's own processes always reach them on 127.0.0.1 and ::1. Not set: `primary` with flags or in mode nftables, else all of them")),
    field("oomScoreAdj", Some("oom-score-adj"), Int, Here("written to /proc/self/oom_score_adj, -999 if not set")),
    field("conntrack.maxPerCore", Some("conntrack-max-per-core"), Int, Nothing(NO_NETFILTER)),
    field("conntrack.min", Some("conntrack-min"), Int, Nothing(NO_NETFILTER)),
    field("conntrack.tcpEstablishedTimeout", Some("conntrack-tcp-timeout-established"), Text, Here("when a TCP flow of the packet path that is silent is forgotten, 24 h if not set or 0")),
    field("conntrack.tcpCloseWaitTimeout", Some("conntrack-tcp-timeout-close-wait"), Text, Here("the same once one side has closed, 1 h if not set or 0")),
    field("conntrack.tcpBeLiberal", Some("conntrack-tcp-be-liberal"), Bool, Nothing(NO_NETFILTER)),
    field("conntrack.udpTimeout", Some("conntrack-udp-timeout"), Text, Here("the same for UDP that was not answered, 30 s if not set or 0")),
    field("conntrack.udpStreamTimeout", Some("conntrack-udp-timeout-stream"), Text, Here("the same for UDP that goes both ways, 120 s if not set or 0")),
    field("configSyncPeriod", Some("config-sync-period"), Text, Nothing("there is no cache to refresh: watches end every few minutes and are resumed")),
    field("portRange", None, Text, Nothing("kube-proxy does not read it either")),
    field("windowsRunAsService", None, Bool, Nothing(NO_WINDOWS)),
];

/// Whether a path is a field, leads to fields, or neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    Field,
    Section,
    No,
}

pub(super) fn known(path: &str) -> Known {
    let below = |field: &Field| {
        field
            .path
            .strip_prefix(path)
            .is_some_and(|rest| rest.starts_with('.'))
    };
    if FIELDS.iter().any(|field| field.path == path) {
        Known::Field
    } else if FIELDS.iter().any(below) {
        Known::Section
    } else {
        Known::No
    }
}

pub(super) fn find(path: &str) -> Option<&'static Field> {
    FIELDS.iter().find(|field| field.path == path)
}

pub(super) fn at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(value, |value, key| value.get(key))
}

/// Puts a value where the path leads, making the sections on the way.
pub(super) fn put(value: &mut Value, path: &str, new: Value) {
    let mut place = value;
    for key in path.split('.') {
        if !place.is_object() {
            *place = Value::Object(serde_json::Map::new());
        }
        place = &mut place[key];
    }
    *place = new;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{super::schema::KubeProxyConfiguration, *};

    /// The paths of everything that is no section. The gates are a field with names of their own.
    fn leaves(value: &Value, path: &str, found: &mut Vec<String>) {
        let Some(section) = value.as_object().filter(|_| path != "featureGates") else {
            found.push(path.to_owned());
            return;
        };
        for (key, value) in section {
            let path = if path.is_empty() {
                key.clone()
            } else {
                format!("{path}.{key}")
            };
            leaves(value, &path, found);
        }
    }

    #[test]
    fn every_field_of_the_type_is_in_the_table_once_and_nothing_else_is() {
        let mut in_type = Vec::new();
        leaves(
            &KubeProxyConfiguration::default().to_value(),
            "",
            &mut in_type,
        );
        let of_type: BTreeSet<&str> = in_type.iter().map(String::as_str).collect();
        let of_table: BTreeSet<&str> = FIELDS.iter().map(|field| field.path).collect();
        assert_eq!(of_type, of_table);
        assert_eq!(of_table.len(), FIELDS.len(), "a field is there twice");
    }

    #[test]
    fn no_two_fields_have_the_same_flag() {
        let flags: Vec<_> = FIELDS.iter().filter_map(|field| field.flag).collect();
        let once: BTreeSet<_> = flags.iter().collect();
        assert_eq!(once.len(), flags.len());
    }

    #[test]
    fn paths_are_told_from_sections_and_typing_errors() {
        assert_eq!(known("logging.options"), Known::Section);
        assert_eq!(known("logging.verbosity"), Known::Field);
        assert_eq!(known("logging.verb"), Known::No);
        assert_eq!(known("iptable"), Known::No);
    }

    #[test]
    fn the_page_on_migrating_says_the_same() {
        let row = |field: &Field| {
            let flag = field
                .flag
                .map(|flag| format!("`--{flag}`"))
                .unwrap_or_default();
            format!("| `{}` | {flag} | {} |", field.path, field.effect.text())
        };
        let expected: Vec<String> = FIELDS.iter().map(row).collect();
        let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/MIGRATING.md"));
        let found: Vec<&str> = page
            .lines()
            .skip_while(|line| !line.starts_with("| `apiVersion`"))
            .take_while(|line| line.starts_with("| `"))
            .collect();
        assert!(
            found == expected,
            "the table of docs/MIGRATING.md should be:\n{}",
            expected.join("\n")
        );
    }
}
