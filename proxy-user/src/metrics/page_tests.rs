//! docs/METRICS.md, the alert rules and the dashboard name what is served, and docs/METRICS.md all of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use hyper::{Method, StatusCode};
use proxy_common::abi::{Counter, Protocol, ServiceStats, map};
use serde::Deserialize;
use serde_json::Value;

use super::{Asked, KernelView, Metrics};
use crate::{
    expiry::Filling,
    health::ProxyHealth,
    keeper::Attached,
    loader::{Account, Taken},
    maps::{StoreError, bpf::Active},
    model::{Family, ObjectName, PortKey, Scope},
    plan::IdChange,
    watch::kube::{Contact, Requests},
};

/// A kernel that has something to say of everything.
#[derive(Debug)]
struct Talkative;

impl KernelView for Talkative {
    fn outcomes(&self) -> Result<Vec<(Counter, u64)>, StoreError> {
        Ok(Counter::ALL.iter().map(|counter| (*counter, 1)).collect())
    }

    fn services(&self) -> Result<Vec<(u32, ServiceStats)>, StoreError> {
        let stats = ServiceStats {
            connections: 3,
            failures: 1,
        };
        Ok(vec![(1, stats)])
    }

    fn active(&self) -> Result<Active, StoreError> {
        Ok(Active {
            services: [(1, 2)].into(),
            draining: 1,
        })
    }

    fn programs(&self) -> Vec<Account> {
        vec![Account {
            program: "kp_connect4".into(),
            memory_bytes: 4096,
            verified: Some(1000),
            runs: Some((7, Duration::from_micros(1))),
        }]
    }

    fn maps(&self) -> Vec<Taken> {
        vec![Taken {
            map: map::FLOWS,
            entries: 1,
            bytes: 4096,
        }]
    }
}

fn everything() -> Metrics {
    let requests = Requests::default();
    requests.count(Some(StatusCode::OK), "10.0.0.1:6443", &Method::GET);
    let metrics = Metrics::new(Asked {
        health: Arc::new(Mutex::new(ProxyHealth::new(Duration::from_secs(60)))),
        max_services: 10,
        api_server: Some((Contact::new("https://10.0.0.1:6443/".into()), requests)),
    });
    metrics.set_kernel(Box::new(Talkative));
    let port = PortKey {
        service: ObjectName::new("default", "web"),
        port: "http".into(),
        protocol: Protocol::Tcp,
        family: Family::V4,
        scope: Scope::Cluster,
    };
    metrics.service_ids(vec![IdChange::Given(1, Arc::new(port))]);
    metrics.set_devices(Attached {
        devices: 1,
        failed: 0,
    });
    for map in ["frontends", "flows"] {
        metrics.set_map(Filling {
            map,
            entries: 1,
            capacity: 8,
        });
    }
    metrics
}

#[derive(Debug, PartialEq, Eq)]
struct Served {
    kind: String,
    labels: BTreeSet<String>,
}

/// What is served, by the names of families in the older text.
fn served() -> BTreeMap<String, Served> {
    let body = everything().answer("").body;
    let mut served: BTreeMap<String, Served> = BTreeMap::new();
    let mut last = String::new();
    for line in body.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' ')) {
            name.clone_into(&mut last);
            let family = Served {
                kind: kind.to_owned(),
                labels: BTreeSet::new(),
            };
            assert!(
                served.insert(last.clone(), family).is_none(),
                "{name} twice"
            );
        } else if !line.starts_with('#') {
            let (name, rest) = line.split_once(['{', ' ']).expect("a sample");
            assert!(name.starts_with(&last), "{name} in the family {last}");
            // No value has a quotation mark or a comma in it.
            let labels = rest.rsplit_once('}').map_or("", |(labels, _)| labels);
            let labels = labels.split(',').filter_map(|label| label.split_once('='));
            let labels = labels.map(|(name, _)| name.to_owned());
            let family = served.get_mut(&last).expect("a family");
            family.labels.extend(labels.filter(|name| name != "le"));
        }
    }
    served
}

fn repository_file(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn the_page_has_a_row_for_each_metric_and_no_other() {
    let page = repository_file("docs/METRICS.md");
    let rows = page.lines().filter_map(|line| {
        let cells: Vec<&str> = line
            .strip_prefix("| `")?
            .split('|')
            .map(str::trim)
            .collect();
        let [name, kind, labels, whose, meaning, _] = cells[..] else {
            return None;
        };
        assert!(
            ["kube-proxy", "client-go", "Prometheus", "ours"].contains(&whose),
            "{line}"
        );
        assert_eq!(whose == "ours", name.starts_with("kube_portal_"), "{line}");
        assert!(!meaning.is_empty(), "{line}");
        let labels = labels
            .split(',')
            .map(|label| label.trim_matches([' ', '`']).to_owned());
        let row = Served {
            kind: kind.to_owned(),
            labels: labels.filter(|label| !label.is_empty()).collect(),
        };
        Some((name.trim_matches('`').to_owned(), row))
    });
    let rows: Vec<(String, Served)> = rows.collect();
    let count = rows.len();
    let rows: BTreeMap<String, Served> = rows.into_iter().collect();
    assert_eq!(rows.len(), count, "a row twice");
    assert_eq!(rows, served());
}

#[test]
fn every_verdict_is_on_the_page() {
    let page = repository_file("docs/METRICS.md");
    for kind in proxy_common::abi::Kind::ALL {
        assert!(page.contains(&format!("| `{}` |", kind.name())), "{kind:?}");
    }
}

/// Words of PromQL that stand where a metric could.
const WORDS: [&str; 6] = ["and", "or", "unless", "bool", "offset", "Inf"];
/// Before labels in parentheses.
const BEFORE_LABELS: [&str; 6] = [
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
];
/// Labels that Prometheus adds, and that of histograms.
const ADDED: [&str; 4] = ["job", "instance", "node", "le"];

/// The metrics that an expression names, each with the labels that are asked of it, and the labels by which it
/// groups, under "".
fn named(expression: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut rest = expression;
    let mut metric = String::new();
    while let Some(first) = rest.chars().next() {
        if first == '"' {
            let end = rest[1..].find('"').expect("a string ends") + 2;
            rest = &rest[end..];
        } else if first == '[' {
            rest = &rest[rest.find(']').expect("a range ends")..];
        } else if first == '{' {
            let end = rest.find('}').expect("matchers end");
            let matchers = rest[1..end]
                .split(',')
                .filter(|matcher| !matcher.is_empty());
            let labels = matchers.map(|matcher| {
                let name = matcher.split(['=', '!']).next().unwrap_or_default();
                name.trim().to_owned()
            });
            found.entry(metric.clone()).or_default().extend(labels);
            rest = &rest[end..];
        } else if first.is_ascii_digit() {
            rest = rest.trim_start_matches(|c: char| is_name(c) || c == '.');
            continue;
        } else if is_name(first) {
            let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
            let (name, after) = rest.split_at(end);
            rest = after;
            let next = after.trim_start();
            if BEFORE_LABELS.contains(&name) {
                let (labels, after) = next
                    .trim_start_matches('(')
                    .split_once(')')
                    .expect("labels");
                let labels = labels.split(',').map(|label| label.trim().to_owned());
                found.entry(String::new()).or_default().extend(labels);
                rest = after;
            } else if !["(", "by ", "without "]
                .iter()
                .any(|after| next.starts_with(after))
                && !WORDS.contains(&name)
            {
                name.clone_into(&mut metric);
                found.entry(metric.clone()).or_default();
            }
            continue;
        }
        rest = &rest[rest.chars().next().map_or(0, char::len_utf8)..];
    }
    found
}

/// What of the expression does not exist.
fn unknown(expression: &str, served: &BTreeMap<String, Served>) -> Vec<String> {
    let family = |name: &str| {
        served.get(name).or_else(|| {
            let suffixes = ["_bucket", "_sum", "_count"].into_iter();
            let mut bases = suffixes.filter_map(|suffix| name.strip_suffix(suffix));
            bases.find_map(|base| served.get(base).filter(|family| family.kind == "histogram"))
        })
    };
    let mut all: BTreeSet<&str> = ADDED.into();
    all.extend(
        served
            .values()
            .flat_map(|family| family.labels.iter())
            .map(String::as_str),
    );
    let mut unknown = Vec::new();
    for (name, labels) in named(expression) {
        // `up` is what Prometheus knows of its scrapes.
        let known = |label: &String| match name.as_str() {
            "" => all.contains(label.as_str()),
            _ => {
                let own = family(&name).is_some_and(|family| family.labels.contains(label));
                own || ADDED.contains(&label.as_str())
            }
        };
        if !["", "up"].contains(&name.as_str()) && family(&name).is_none() {
            unknown.push(name.clone());
        }
        let labels = labels.iter().filter(|label| !known(label));
        unknown.extend(labels.map(|label| format!("{name}{{{label}}}")));
    }
    unknown
}

#[test]
fn an_expression_is_taken_apart() {
    let expression = "sum by (node, map) (rate(a_total{job=\"b\", c!~\"d|e\"}[5m])) / 2e3 > on (node) f:g and absent(h) or clamp_max(i, 0.5)";
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(
        named(expression),
        BTreeMap::from([
            (String::new(), set(&["node", "map"])),
            ("a_total".into(), set(&["job", "c"])),
            ("f:g".into(), set(&[])),
            ("h".into(), set(&[])),
            ("i".into(), set(&[])),
        ])
    );
    let served = served();
    for (expression, wrong) in [
        (
            "rate(kubeproxy_sync_proxy_rules_duration_seconds_bucket[5m])",
            vec![],
        ),
        (
            "kube_portal_map_entries{mop=\"a\"}",
            vec!["kube_portal_map_entries{mop}"],
        ),
        (
            "kube_portal_map_entries_bucket",
            vec!["kube_portal_map_entries_bucket"],
        ),
        ("sum by (nothing) (up)", vec!["{nothing}"]),
        ("kube_portal_audit_drift", vec!["kube_portal_audit_drift"]),
    ] {
        assert_eq!(unknown(expression, &served), wrong, "{expression}");
    }
}

#[derive(Debug, Deserialize)]
struct Rules {
    groups: Vec<Group>,
}

#[derive(Debug, Deserialize)]
struct Group {
    rules: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
struct Rule {
    alert: String,
    expr: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

#[test]
fn alerts_ask_for_what_is_served_and_name_a_remedy() {
    let rules: Rules =
        serde_yaml_ng::from_str(&repository_file("deploy/monitoring/alerts.yaml")).unwrap();
    let served = served();
    let tried = repository_file("tests/monitoring/alerts.yaml");
    let alerts: Vec<Rule> = rules
        .groups
        .into_iter()
        .flat_map(|group| group.rules)
        .collect();
    assert!(alerts.len() > 10);
    for Rule {
        alert,
        expr,
        labels,
        annotations,
    } in &alerts
    {
        assert_eq!(unknown(expr, &served), [""; 0], "{alert}");
        assert!(
            ["warning", "critical"].contains(&labels["severity"].as_str()),
            "{alert}"
        );
        for annotation in ["summary", "description", "runbook"] {
            assert!(!annotations[annotation].is_empty(), "{alert}: {annotation}");
        }
        let (page, section) = annotations["runbook"].split_once('#').expect(alert);
        let sections = repository_file(page);
        let mut sections = sections.lines().filter_map(|line| line.strip_prefix("## "));
        assert!(
            sections.any(|title| anchor(title) == section),
            "{alert}: {page}#{section}"
        );
        assert!(
            tried.contains(&format!("alertname=\"{alert}\"")),
            "{alert} is not tried"
        );
    }
    let page = repository_file("docs/METRICS.md");
    let rows = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `KubePortal")?.split_once('`'));
    let rows: Vec<String> = rows.map(|(name, _)| format!("KubePortal{name}")).collect();
    let names: Vec<&String> = alerts.iter().map(|rule| &rule.alert).collect();
    assert_eq!(rows.iter().collect::<Vec<_>>(), names);
}

/// As renderers of Markdown make it.
fn anchor(title: &str) -> String {
    let kept = title
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn the_dashboard_asks_for_what_is_served() {
    fn expressions(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    if let Value::String(text) = value {
                        if key == "expr" {
                            found.push(text.clone());
                        } else if let Some(asked) = text.strip_prefix("label_values(") {
                            // What a variable may be.
                            let metric = asked.split(',').next();
                            found.push(metric.expect("a metric").to_owned());
                        }
                    }
                    expressions(value, found);
                }
            }
            Value::Array(values) => values.iter().for_each(|value| expressions(value, found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let dashboard: Value =
        serde_json::from_str(&repository_file("deploy/monitoring/dashboard.json")).unwrap();
    let mut found = Vec::new();
    expressions(&dashboard, &mut found);
    assert!(found.len() > 10);
    let served = served();
    for expression in found {
        assert_eq!(unknown(&expression, &served), [""; 0], "{expression}");
    }
}
