//! Pieces of YAML.

use std::fmt::Write as _;

pub(super) fn metadata(
    version: &str,
    kind: &str,
    name: &str,
    namespace: &str,
    labels: &[(String, String)],
) -> String {
    let mut yaml = format!(
        "apiVersion: {version}\nkind: {kind}\nmetadata:\n  name: {name}\n  namespace: {namespace}\n"
    );
    if !labels.is_empty() {
        let _ = writeln!(yaml, "  labels: {}", flow_map(labels));
    }
    yaml
}

pub(super) fn flow_map(pairs: &[(String, String)]) -> String {
    let pairs: Vec<String> = pairs
        .iter()
        .map(|(key, value)| format!("{key}: \"{value}\""))
        .collect();
    format!("{{{}}}", pairs.join(", "))
}

pub(super) fn quoted<A: ToString>(items: impl IntoIterator<Item = A>) -> String {
    let items: Vec<String> = items
        .into_iter()
        .map(|item| format!("\"{}\"", item.to_string()))
        .collect();
    items.join(", ")
}

/// One entry per line, so that a line removed by hand is an endpoint removed.
pub(super) fn list(yaml: &mut String, indent: &str, key: &str, items: &[String]) {
    if items.is_empty() {
        let _ = writeln!(yaml, "{indent}{key}: []");
        return;
    }
    let _ = writeln!(yaml, "{indent}{key}:");
    for item in items {
        let _ = writeln!(yaml, "{indent}- {item}");
    }
}
