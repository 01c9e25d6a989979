//! Files and command lines as they are found in clusters.

use std::collections::BTreeSet;

use clap::Parser;
use proxy_common::abi::{FlowTimeouts, Scheduler};
use tempfile::TempDir;

use super::{settings::Mode, *};
use crate::{devices::Source, model::NodePortScope};

/// What kubeadm puts into the ConfigMap kube-proxy: every field it knows, with zero values.
const KUBEADM: &str = r#"
apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 0
  contentType: ""
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: ""
  interfaceNamePrefix: ""
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: ""
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
kind: KubeProxyConfiguration
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: "0"
    text:
      infoBufferSize: "0"
  verbosity: 0
metricsBindAddress: ""
mode: ""
nftables:
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: ""
  rootHnsEndpointName: ""
  sourceVip: ""
"#;

/// kind's part of it: nodes that are containers, which share the host's conntrack.
const KIND: &str = "
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
conntrack:
  maxPerCore: 0
iptables:
  minSyncPeriod: 1s
";

/// Of the years when the fields were others.
const OLD: &str = "
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clusterCIDR: 10.244.0.0/16
mode: ipvs
conntrack: {max: null, maxPerCore: 32768, tcpEstablishedTimeout: 24h0m0s}
ipvs: {masqueradeAll: true, scheduler: rr, strictARP: true, minSyncPeriod: 5s, syncPeriod: 30s}
udpIdleTimeout: 250ms
";

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

#[derive(Debug, Parser)]
#[command(args_override_self = true)]
struct CommandLine {
    #[command(flatten)]
    flags: ProxyFlags,
}

fn flags(words: &[&str]) -> ProxyFlags {
    let words = std::iter::once("kube-proxy").chain(words.iter().copied());
    CommandLine::try_parse_from(words)
        .unwrap_or_else(|error| panic!("{error}"))
        .flags
}

fn with_flags(words: &[&str]) -> Result<Loaded, ConfigError> {
    load(&flags(words))
}

fn with_file(text: &str, words: &[&str]) -> (Result<Loaded, String>, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.conf");
    fs::write(&file, text).unwrap();
    let config = format!("--config={}", file.display());
    let words: Vec<&str> = words.iter().copied().chain([config.as_str()]).collect();
    let prefix = format!("--config {}: ", file.display());
    let result = with_flags(&words)
        .map(|mut loaded| {
            for line in &mut loaded.warnings {
                *line = line.replace(&prefix, "");
            }
            loaded
        })
        .map_err(|error| {
            let text = error.to_string();
            assert!(error.is_usage() && !text.contains('\n'), "{text}");
            let rest = text.strip_prefix(&prefix);
            rest.unwrap_or_else(|| panic!("{text} does not name the file"))
                .to_owned()
        });
    (result, dir)
}

fn file(text: &str) -> Loaded {
    let (result, _dir) = with_file(text, &[]);
    result.unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn refused(rest: &str) -> String {
    let (result, _dir) = with_file(&format!("{HEAD}{rest}"), &[]);
    match result {
        Ok(loaded) => panic!("{rest:?} was taken: {loaded:?}"),
        Err(line) => line,
    }
}

/// The field each warning is about.
fn warned(loaded: &Loaded) -> Vec<&str> {
    let names = loaded
        .warnings
        .iter()
        .filter_map(|line| line.split(':').next());
    names.collect()
}

#[test]
fn the_file_of_kubeadm_is_taken_with_a_line_for_what_is_not_as_usual() {
    let loaded = file(KUBEADM);
    assert_eq!(warned(&loaded), ["clusterCIDR", "nodePortAddresses"]);
    let settings = loaded.settings;
    assert_eq!(
        settings.kubeconfig,
        Some("/var/lib/kube-proxy/kubeconfig.conf".into())
    );
    assert_eq!(settings.node_name, None);
    assert_eq!(settings.mode, Mode::Iptables);
    // As kube-proxy in this mode: on every address.
    assert_eq!(settings.node_ports, NodePortScope::Ranges(Vec::new()));
    assert_eq!(settings.oom_score_adj, -999);
    assert_eq!(
        settings.healthz_bind_address,
        Some("0.0.0.0:10256".parse().unwrap())
    );
    assert_eq!(
        settings.metrics_bind_address,
        Some("127.0.0.1:10249".parse().unwrap())
    );
    let hour = 3600;
    assert_eq!(
        settings.timeouts,
        FlowTimeouts {
            tcp_established: 24 * hour,
            tcp_close_wait: hour,
            udp: 30,
            udp_stream: 120,
        }
    );
}

#[test]
fn zero_values_mean_what_absent_fields_mean() {
    let absent = format!(
        "{HEAD}clusterCIDR: 10.244.0.0/16\nclientConnection: {{kubeconfig: /var/lib/kube-proxy/kubeconfig.conf}}"
    );
    assert_eq!(file(KUBEADM).config, file(&absent).config);
}

#[test]
fn the_file_of_kind_is_taken_and_asks_for_nothing_that_is_not_done() {
    assert_eq!(warned(&file(KIND)), ["nodePortAddresses"]);
}

#[test]
fn fields_of_old_versions_are_passed_over_with_a_line_each() {
    let loaded = file(OLD);
    assert_eq!(
        warned(&loaded),
        [
            "ipvs.masqueradeAll",
            "udpIdleTimeout",
            "ipvs.minSyncPeriod",
            "ipvs.strictARP",
            "clusterCIDR",
            "nodePortAddresses"
        ]
    );
    assert!(loaded.warnings[1].contains("no such field"));
}

#[test]
fn json_is_read_as_yaml_is() {
    let text = r#"{"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "mode": "nftables", "nftables": {"masqueradeAll": true}, "oomScoreAdj": -10}"#;
    let settings = file(text).settings;
    assert_eq!(settings.mode, Mode::Nftables);
    assert_eq!(settings.oom_score_adj, -10);
    assert_eq!(settings.node_ports, NodePortScope::Primary);
}

#[test]
fn every_field_takes_effect_or_is_warned_about() {
    // A value for each field that is neither zero nor the default.
    let odd: &[(&str, &str)] = &[
        ("featureGates", "{SomeGate: true}"),
        ("clientConnection.kubeconfig", "/k"),
        ("clientConnection.acceptContentTypes", "application/json"),
        ("clientConnection.contentType", "application/json"),
        ("clientConnection.qps", "50"),
        ("clientConnection.burst", "100"),
        ("logging.format", "json"),
        ("logging.flushFrequency", "1000"),
        ("logging.verbosity", "4"),
        ("logging.vmodule", "[{filePattern: x, verbosity: 3}]"),
        ("logging.options.text.splitStream", "true"),
        ("logging.options.text.infoBufferSize", "64Ki"),
        ("logging.options.json.splitStream", "true"),
        ("logging.options.json.infoBufferSize", "64Ki"),
        ("hostnameOverride", "n1"),
        ("bindAddress", "10.0.0.1"),
        ("healthzBindAddress", "10.0.0.1:1"),
        ("metricsBindAddress", "10.0.0.1:2"),
        ("bindAddressHardFail", "true"),
        ("enableProfiling", "true"),
        ("showHiddenMetricsForVersion", "'1.35'"),
        ("mode", "ipvs"),
        ("iptables.masqueradeBit", "15"),
        ("iptables.masqueradeAll", "true"),
        ("iptables.localhostNodePorts", "false"),
        ("iptables.snatNodeInternalIP", "true"),
        ("iptables.syncPeriod", "10s"),
        ("iptables.minSyncPeriod", "2s"),
        ("ipvs.syncPeriod", "10s"),
        ("ipvs.minSyncPeriod", "2s"),
        ("ipvs.scheduler", "lc"),
        ("ipvs.excludeCIDRs", "[10.0.0.0/8]"),
        ("ipvs.strictARP", "true"),
        ("ipvs.tcpTimeout", "1s"),
        ("ipvs.tcpFinTimeout", "1s"),
        ("ipvs.udpTimeout", "1s"),
        ("nftables.masqueradeBit", "15"),
        ("nftables.masqueradeAll", "true"),
        ("nftables.syncPeriod", "10s"),
        ("nftables.minSyncPeriod", "2s"),
        ("winkernel.networkName", "n"),
        ("winkernel.sourceVip", "10.0.0.1"),
        ("winkernel.enableDSR", "true"),
        ("winkernel.rootHnsEndpointName", "e"),
        ("winkernel.forwardHealthCheckVip", "true"),
        ("detectLocalMode", "NodeCIDR"),
        ("detectLocal.bridgeInterface", "br0"),
        ("detectLocal.interfaceNamePrefix", "veth"),
        ("clusterCIDR", "10.0.0.0/8"),
        ("nodePortAddresses", "[10.0.0.0/8]"),
        ("oomScoreAdj", "0"),
        ("conntrack.maxPerCore", "1"),
        ("conntrack.min", "1"),
        ("conntrack.tcpEstablishedTimeout", "1h"),
        ("conntrack.tcpCloseWaitTimeout", "1m"),
        ("conntrack.tcpBeLiberal", "true"),
        ("conntrack.udpTimeout", "1s"),
        ("conntrack.udpStreamTimeout", "1s"),
        ("configSyncPeriod", "1m"),
        ("portRange", "1-2"),
        ("windowsRunAsService", "true"),
    ];
    let tried: BTreeSet<&str> = odd.iter().map(|(path, _)| *path).collect();
    let table: BTreeSet<&str> = FIELDS.iter().map(|field| field.path).collect();
    let untried: Vec<_> = table.difference(&tried).collect();
    assert_eq!(untried, [&"apiVersion", &"kind"]);
    for (path, value) in odd {
        let mut text = HEAD.to_owned();
        if let Some((mode @ ("ipvs" | "nftables"), _)) = path.split_once('.') {
            text += &format!("mode: {mode}");
        }
        for (depth, key) in path.split('.').enumerate() {
            text += &format!("\n{}{key}:", "  ".repeat(depth));
        }
        let loaded = file(&format!("{text} {value}\n"));
        let about: Vec<&str> = warned(&loaded);
        let told = about.iter().filter(|name| *name == path).count();
        let field = fields::find(path).unwrap();
        let wanted = usize::from(field.effect.warning().is_some());
        assert_eq!(told, wanted, "{path}: {:?}", loaded.warnings);
    }
}

#[test]
fn a_section_of_another_mode_is_said_not_to_be_read() {
    let loaded = file(&format!(
        "{HEAD}mode: nftables\niptables: {{syncPeriod: 45s}}"
    ));
    assert_eq!(loaded.settings.sync_period.as_secs(), 30);
    assert_eq!(
        loaded.warnings,
        ["iptables.syncPeriod: is not read in mode nftables"]
    );
}

#[test]
fn the_source_is_the_internal_ip_where_mode_iptables_asks_for_it() {
    for (rest, source, idle) in [
        ("", Source::OfDevice, false),
        (
            "iptables: {snatNodeInternalIP: false}",
            Source::OfDevice,
            false,
        ),
        (
            "iptables: {snatNodeInternalIP: true}",
            Source::InternalIp,
            false,
        ),
        (
            "mode: nftables\niptables: {snatNodeInternalIP: true}",
            Source::OfDevice,
            true,
        ),
        (
            "mode: ipvs\niptables: {snatNodeInternalIP: true}",
            Source::OfDevice,
            true,
        ),
    ] {
        let loaded = file(&format!("{HEAD}{rest}"));
        assert_eq!(loaded.settings.snat_source, source, "{rest}");
        let told = warned(&loaded).contains(&"iptables.snatNodeInternalIP");
        assert_eq!(told, idle, "{rest}: {:?}", loaded.warnings);
    }
}

#[test]
fn the_sync_period_is_that_of_the_mode() {
    let secs = |loaded: &Loaded| loaded.settings.sync_period.as_secs();
    assert_eq!(secs(&file(HEAD)), 30);
    for mode in ["iptables", "ipvs", "nftables"] {
        let loaded = file(&format!("{HEAD}mode: {mode}\n{mode}: {{syncPeriod: 45s}}"));
        assert_eq!(secs(&loaded), 45);
        assert!(
            !warned(&loaded).contains(&format!("{mode}.syncPeriod").as_str()),
            "{loaded:?}"
        );
    }
    // One flag for modes iptables and nftables, another for mode ipvs.
    let loaded = with_flags(&["--iptables-sync-period=45s"]).unwrap();
    assert_eq!((secs(&loaded), warned(&loaded)), (45, Vec::new()));
    for (mode, flag) in [
        ("nftables", "--ipvs-sync-period"),
        ("iptables", "--ipvs-sync-period"),
        ("ipvs", "--iptables-sync-period"),
    ] {
        let words = [format!("--proxy-mode={mode}"), format!("{flag}=45s")];
        let loaded = with_flags(&words.each_ref().map(String::as_str)).unwrap();
        assert_eq!((secs(&loaded), warned(&loaded)), (30, vec![flag]));
        assert_eq!(
            loaded.warnings,
            [format!("{flag}: is not read in mode {mode}")]
        );
    }
}

#[test]
fn the_scheduler_of_ipvs_counts_in_its_mode_and_by_its_names() {
    let asked = |mode: &str, name: &str| {
        let from_file = file(&format!("{HEAD}mode: {mode}\nipvs: {{scheduler: {name}}}"));
        let words = [
            format!("--proxy-mode={mode}"),
            format!("--ipvs-scheduler={name}"),
        ];
        let by_flags = with_flags(&words.each_ref().map(String::as_str)).unwrap();
        assert_eq!(from_file.settings.scheduler, by_flags.settings.scheduler);
        let warned = |loaded: &Loaded| {
            let lines = loaded.warnings.iter();
            lines
                .filter(|line| line.contains("scheduler"))
                .cloned()
                .collect::<Vec<_>>()
        };
        assert_eq!(warned(&from_file).len(), warned(&by_flags).len());
        (by_flags.settings.scheduler, warned(&by_flags))
    };
    for (name, scheduler) in [
        ("rr", Scheduler::RoundRobin),
        ("wrr", Scheduler::RoundRobin),
        ("wlc", Scheduler::LeastConnections),
        ("sh", Scheduler::SourceHash),
        ("dh", Scheduler::DestinationHash),
        ("sed", Scheduler::ShortestDelay),
        ("nq", Scheduler::NeverQueue),
        ("mh", Scheduler::Maglev),
    ] {
        assert_eq!(asked("ipvs", name), (Some(scheduler), vec![]), "{name}");
    }
    let blank = with_flags(&["--proxy-mode=ipvs", "--ipvs-scheduler="]).unwrap();
    assert_eq!(blank.settings.scheduler, None);
    assert!(!warned(&blank).contains(&"--ipvs-scheduler"));
    assert_eq!(
        asked("ipvs", "lblc"),
        (
            None,
            vec![
                "--ipvs-scheduler: \"lblc\" is not a scheduler of kube-portal and counts as not set: \
                 random, or what --scheduler says; use random, rr, lc, sh, dh, sed, nq or maglev"
                    .to_owned()
            ]
        )
    );
    assert_eq!(
        asked("nftables", "rr"),
        (
            None,
            vec!["--ipvs-scheduler: is not read in mode nftables".to_owned()]
        )
    );
}

#[test]
fn what_is_no_such_configuration_is_refused_in_one_line() {
    let refused = |text: &str| with_file(text, &[]).0.expect_err(text);
    for (text, parts) in [
        ("", ["holds no object", "KubeProxyConfiguration"]),
        ("just text", ["holds no object", "KubeProxyConfiguration"]),
        ("mode: iptables", ["apiVersion", "missing"]),
        (
            "apiVersion: v1\nkind: ConfigMap",
            ["apiVersion: \"v1\"", "kubeproxy.config.k8s.io/v1alpha1"],
        ),
        (
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeletConfiguration",
            ["kind: \"KubeletConfiguration\"", "KubeProxyConfiguration"],
        ),
        ("mode: [", ["neither YAML nor JSON", "line"]),
    ] {
        let line = refused(text);
        assert!(parts.iter().all(|part| line.contains(part)), "{line}");
    }
}

#[test]
fn a_value_of_the_wrong_type_is_refused_with_its_path() {
    for (rest, path) in [
        ("oomScoreAdj: high", "oomScoreAdj: "),
        ("iptables: {masqueradeAll: 3}", "iptables.masqueradeAll: "),
        ("iptables: {syncPeriod: 30}", "iptables.syncPeriod: "),
        ("iptables: [a]", "iptables: "),
        ("nodePortAddresses: 10.0.0.0/8", "nodePortAddresses: "),
        ("logging: {verbosity: -1}", "logging.verbosity: "),
        ("conntrack: {udpTimeout: soon}", "conntrack.udpTimeout: "),
    ] {
        let line = refused(rest);
        assert!(line.starts_with(path), "{rest}: {line}");
    }
}

#[test]
fn a_value_that_can_not_be_is_refused_with_its_path() {
    // From the tests of pkg/proxy/apis/config/validation.
    for (rest, path) in [
        ("mode: kernelspace", "mode: "),
        ("bindAddress: 10.10.12.11:2000", "bindAddress: "),
        ("healthzBindAddress: :10256", "healthzBindAddress: "),
        ("healthzBindAddress: 0.0.0.0:0", "healthzBindAddress: "),
        ("healthzBindAddress: 127.0.0.1:test", "healthzBindAddress: "),
        (
            "metricsBindAddress: 127.0.0.1:123456",
            "metricsBindAddress: ",
        ),
        ("clusterCIDR: 192.168.59.0", "clusterCIDR: "),
        ("clusterCIDR: 10.0.0.0/8,11.0.0.0/8", "clusterCIDR: "),
        ("clusterCIDR: 10.0.0.0/8,fd00::/8,fd01::/8", "clusterCIDR: "),
        ("configSyncPeriod: -1s", "configSyncPeriod: "),
        (
            "iptables: {syncPeriod: -5s, minSyncPeriod: -6s}",
            "iptables.syncPeriod: ",
        ),
        ("iptables: {minSyncPeriod: -1s}", "iptables.minSyncPeriod: "),
        ("iptables: {minSyncPeriod: 31s}", "iptables.minSyncPeriod: "),
        (
            "mode: nftables\nnftables: {syncPeriod: -1s}",
            "nftables.syncPeriod: ",
        ),
        ("iptables: {masqueradeBit: 32}", "iptables.masqueradeBit: "),
        ("clientConnection: {burst: -5}", "clientConnection.burst: "),
        ("conntrack: {maxPerCore: -1}", "conntrack.maxPerCore: "),
        (
            "conntrack: {tcpCloseWaitTimeout: -5s}",
            "conntrack.tcpCloseWaitTimeout: ",
        ),
        (
            "conntrack: {udpStreamTimeout: -5s}",
            "conntrack.udpStreamTimeout: ",
        ),
        ("oomScoreAdj: 1001", "oomScoreAdj: "),
        (
            "nodePortAddresses: [primary, 10.0.0.0/8]",
            "nodePortAddresses: ",
        ),
        ("nodePortAddresses: [10.0.0.300/8]", "nodePortAddresses: "),
        ("nodePortAddresses: ['']", "nodePortAddresses: "),
        ("detectLocalMode: Guess", "detectLocalMode: "),
        (
            "detectLocalMode: BridgeInterface",
            "detectLocal.bridgeInterface: ",
        ),
        (
            "detectLocalMode: InterfaceNamePrefix",
            "detectLocal.interfaceNamePrefix: ",
        ),
        ("hostnameOverride: '  '", "hostnameOverride: "),
    ] {
        let line = refused(rest);
        assert!(line.starts_with(path), "{rest}: {line}");
    }
    // All of it at once, in one line.
    let line = refused("mode: x\noomScoreAdj: 5000");
    assert!(
        line.contains("mode: \"x\"") && line.contains("; oomScoreAdj"),
        "{line}"
    );
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = with_flags(&["--config=/nowhere/at-all.conf"]).expect_err("no file");
    assert!(error.is_usage());
    assert!(error.to_string().contains("/nowhere/at-all.conf"));
}

#[test]
fn a_field_said_twice_counts_the_last_time() {
    let loaded = file(&format!("{HEAD}mode: ipvs\nmode: nftables"));
    assert_eq!(loaded.settings.mode, Mode::Nftables);
    assert!(
        loaded.warnings[0].contains("the last one counts"),
        "{loaded:?}"
    );
}

#[test]
fn only_the_first_document_is_read_and_the_rest_is_told() {
    let loaded = file(&format!("---\n{HEAD}mode: nftables\n---\nkind: Other\n"));
    assert_eq!(loaded.settings.mode, Mode::Nftables);
    assert_eq!(
        loaded.warnings,
        ["only the first document of the file is read"]
    );
}

#[test]
fn detectors_of_local_traffic_are_taken_and_said_to_have_no_meaning() {
    for (rest, told) in [
        (
            "clusterCIDR: 'fd00:10:244::/56,10.244.0.9/16'",
            vec!["clusterCIDR"],
        ),
        // Only what the mode asks for is looked at.
        (
            "detectLocalMode: NodeCIDR\nclusterCIDR: x",
            vec!["detectLocalMode", "clusterCIDR"],
        ),
        (
            "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: br0}",
            vec!["detectLocalMode", "detectLocal.bridgeInterface"],
        ),
        (
            "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: cali}",
            vec!["detectLocalMode", "detectLocal.interfaceNamePrefix"],
        ),
        (
            "iptables: {masqueradeAll: true}",
            vec!["iptables.masqueradeAll"],
        ),
    ] {
        let loaded = file(&format!("{HEAD}nodePortAddresses: [primary]\n{rest}"));
        assert_eq!(warned(&loaded), told, "{rest}");
        let is_plain = |line: &String| line.contains("has no meaning here");
        assert!(
            loaded.warnings.iter().all(is_plain),
            "{:?}",
            loaded.warnings
        );
    }
}

#[test]
fn node_port_addresses_may_be_words() {
    let ports = |list: &str| {
        file(&format!("{HEAD}nodePortAddresses: {list}"))
            .settings
            .node_ports
    };
    let ranges = |texts: &[&str]| {
        NodePortScope::Ranges(texts.iter().map(|text| text.parse().unwrap()).collect())
    };
    assert_eq!(ports("[primary]"), NodePortScope::Primary);
    assert_eq!(ports("[all]"), ranges(&["0.0.0.0/0", "::/0"]));
    assert_eq!(
        ports("[localhost, 10.0.0.0/8]"),
        ranges(&["127.0.0.0/8", "::1/128", "10.0.0.0/8"])
    );
}

#[test]
fn the_node_name_is_trimmed_and_lower_case_wherever_it_comes_from() {
    assert_eq!(node_name_of(" Worker-1\n").as_deref(), Some("worker-1"));
    assert_eq!(node_name_of(" \n"), None);
    let text = format!("{HEAD}hostnameOverride: ' From-File '");
    assert_eq!(file(&text).settings.node_name.as_deref(), Some("from-file"));
    // The flag comes first.
    let (loaded, _dir) = with_file(&text, &["--hostname-override= From-FLAG "]);
    let loaded = loaded.unwrap();
    assert_eq!(loaded.settings.node_name.as_deref(), Some("from-flag"));
    assert_eq!(warned(&loaded), ["nodePortAddresses"]);
    let named = with_flags(&["--node-name", "N2"]).unwrap();
    assert_eq!(named.settings.node_name.as_deref(), Some("n2"));
}

#[test]
fn with_a_file_other_flags_are_ignored_and_that_is_told() {
    let (loaded, _dir) = with_file(
        &format!("{HEAD}mode: nftables\n"),
        &["--cluster-cidr=10.0.0.0/8", "--v=4", "--oom-score-adj=-5"],
    );
    let loaded = loaded.unwrap();
    assert_eq!(loaded.settings.verbosity, 4);
    assert_eq!(loaded.settings.oom_score_adj, -999);
    assert_eq!(warned(&loaded), ["--cluster-cidr", "--oom-score-adj"]);
}

#[test]
fn the_command_line_of_a_daemon_set_is_taken() {
    // Rancher's and many hand-written ones.
    let loaded = with_flags(&[
        "--cluster-cidr=10.42.0.0/16,fd00:42::/56",
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-close-wait=0s",
        "--conntrack-tcp-timeout-established=0s",
        "--healthz-bind-address=127.0.0.1",
        "--hostname-override=k3s-server",
        "--kubeconfig=/var/lib/rancher/k3s/agent/kubeproxy.kubeconfig",
        "--proxy-mode=iptables",
        "--feature-gates=A=true,B=false",
        "--masquerade-all",
        "--profiling=false",
        "--v=2",
    ])
    .unwrap();
    let settings = &loaded.settings;
    assert_eq!(settings.node_name.as_deref(), Some("k3s-server"));
    assert_eq!(
        settings.healthz_bind_address,
        Some("127.0.0.1:10256".parse().unwrap())
    );
    let own = FlowTimeouts::DEFAULT;
    assert_eq!(settings.timeouts.tcp_established, own.tcp_established);
    assert_eq!(settings.node_ports, NodePortScope::Ranges(Vec::new()));
    assert_eq!(
        warned(&loaded),
        ["--feature-gates", "--masquerade-all", "--cluster-cidr"]
    );
}

#[test]
fn every_flag_of_kube_proxy_is_taken() {
    // The names in AddFlags of cmd/kube-proxy/app/options.go, with a value each.
    for word in [
        "--write-config-to=/x",
        "--cleanup",
        "--feature-gates=A=true",
        "--kubeconfig=/k",
        "--master=https://10.0.0.1",
        "--kube-api-content-type=application/json",
        "--kube-api-burst=20",
        "--kube-api-qps=7.5",
        "--hostname-override=n",
        "--bind-address=::",
        "--healthz-bind-address=0.0.0.0:1",
        "--metrics-bind-address=[::1]:2",
        "--bind-address-hard-fail=true",
        "--profiling",
        "--show-hidden-metrics-for-version=1.35",
        "--init-only=false",
        "--proxy-mode=ipvs",
        "--iptables-masquerade-bit=15",
        "--masquerade-all",
        "--iptables-localhost-nodeports=false",
        "--iptables-sync-period=1m",
        "--iptables-min-sync-period=2s",
        "--ipvs-sync-period=1m",
        "--ipvs-min-sync-period=2s",
        "--ipvs-scheduler=rr",
        "--ipvs-exclude-cidrs=10.0.0.0/8,11.0.0.0/8",
        "--ipvs-strict-arp",
        "--ipvs-tcp-timeout=1s",
        "--ipvs-tcpfin-timeout=1s",
        "--ipvs-udp-timeout=1s",
        "--detect-local-mode=NodeCIDR",
        "--pod-bridge-interface=br0",
        "--pod-interface-name-prefix=cali",
        "--cluster-cidr=10.0.0.0/8",
        "--nodeport-addresses=10.0.0.0/8",
        "--oom-score-adj=-998",
        "--conntrack-max-per-core=1",
        "--conntrack-min=1",
        "--conntrack-tcp-timeout-established=1h",
        "--conntrack-tcp-timeout-close-wait=1h",
        "--conntrack-tcp-be-liberal",
        "--conntrack-udp-timeout=1s",
        "--conntrack-udp-timeout-stream=1s",
        "--config-sync-period=1m",
        "--healthz-port=1",
        "--metrics-port=0",
        "-v=3",
        "--vmodule=a=1,b=2",
        "--log-flush-frequency=1s",
        "--logging-format=json",
    ] {
        if let Err(error) = with_flags(&[word]) {
            panic!("{word}: {error}");
        }
    }
}

#[test]
fn a_flag_that_can_not_be_is_refused_by_its_name() {
    for (word, name) in [
        ("--oom-score-adj=x", "--oom-score-adj"),
        ("--oom-score-adj=2000", "--oom-score-adj"),
        ("--masquerade-all=perhaps", "--masquerade-all"),
        ("--iptables-sync-period=-1s", "--iptables-sync-period"),
        ("--conntrack-udp-timeout=30", "--conntrack-udp-timeout"),
        ("--feature-gates=A", "--feature-gates"),
        ("--cluster-cidr=x", "--cluster-cidr"),
        (
            "--nodeport-addresses=10.0.0.0/8,primary",
            "--nodeport-addresses",
        ),
    ] {
        let error = with_flags(&[word]).expect_err(word);
        let line = error.to_string();
        assert!(line.starts_with(name) && error.is_usage(), "{word}: {line}");
    }
}

#[test]
fn of_a_flag_given_twice_the_last_counts_and_lists_grow() {
    let loaded = with_flags(&[
        "--oom-score-adj=-5",
        "--oom-score-adj",
        "-6",
        "--nodeport-addresses=10.0.0.0/8",
        "--nodeport-addresses=fd00::/8,192.168.0.0/16",
        "--master=https://a",
        "--master=https://b",
    ])
    .unwrap();
    assert_eq!(loaded.settings.oom_score_adj, -6);
    assert_eq!(
        loaded.config.node_port_addresses,
        ["10.0.0.0/8", "fd00::/8", "192.168.0.0/16"]
    );
}

#[test]
fn without_anything_it_behaves_as_mode_nftables() {
    let loaded = with_flags(&[]).unwrap();
    assert_eq!(loaded.settings.mode, Mode::Nftables);
    assert_eq!(loaded.settings.node_ports, NodePortScope::Primary);
    assert_eq!(loaded.warnings, Vec::<String>::new());
}

#[test]
fn a_blank_address_or_port_0_turns_a_server_off() {
    let off = with_flags(&["--healthz-bind-address=", "--metrics-port=0"]).unwrap();
    assert_eq!(off.settings.healthz_bind_address, None);
    assert_eq!(off.settings.metrics_bind_address, None);
    assert_eq!(off.warnings, Vec::<String>::new());
}

#[test]
fn what_is_written_reads_back_the_same() {
    let odd = [
        "--masquerade-all",
        "--cluster-cidr=10.0.0.0/8,fd00::/8",
        "--detect-local-mode=BridgeInterface",
        "--pod-bridge-interface=br0",
        "--conntrack-udp-timeout=90s",
        "--iptables-min-sync-period=1500ms",
        "--feature-gates=A=true",
        "--nodeport-addresses=10.0.0.0/8",
        "--kube-api-qps=7.5",
        "--vmodule=a=1",
        "--bind-address=::",
    ];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("written.yaml");
    let again = |loaded: &Loaded| {
        write(&loaded.config, &path).unwrap();
        let flag = format!("--config={}", path.display());
        let read = with_flags(&[&flag]).unwrap();
        assert_eq!(read.config, loaded.config);
        assert_eq!(read.settings, loaded.settings);
    };
    again(&with_flags(&[]).unwrap());
    again(&with_flags(&odd).unwrap());
    again(&file(KUBEADM));
    again(&file(OLD));
    again(&file(KIND));
}
