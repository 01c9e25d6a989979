//! The running agent's configuration, a line for each field.

use serde::Serialize;
use serde_json::Value;

use crate::cli::output::Row;

#[derive(Debug, Serialize)]
pub(crate) struct FieldRow {
    field: String,
    value: String,
}

/// Of the configuration as /configz says it; fields by their path, sorted.
pub(crate) fn rows(configz: &Value) -> Vec<FieldRow> {
    let mut rows = Vec::new();
    for group in configz.as_object().into_iter().flat_map(|all| all.values()) {
        add("", group, &mut rows);
    }
    rows.sort_by(|a, b| a.field.cmp(&b.field));
    rows
}

fn add(path: &str, value: &Value, rows: &mut Vec<FieldRow>) {
    if let Value::Object(fields) = value
        && !fields.is_empty()
    {
        for (name, value) in fields {
            let dot = if path.is_empty() { "" } else { "." };
            add(&format!("{path}{dot}{name}"), value, rows);
        }
        return;
    }
    // Without the quotes, unless there is nothing between them.
    let text = value.as_str().filter(|text| !text.is_empty());
    rows.push(FieldRow {
        field: path.to_owned(),
        value: text.map_or_else(|| value.to_string(), str::to_owned),
    });
}

impl Row for FieldRow {
    const HEADER: &'static [&'static str] = &["FIELD", "VALUE"];

    fn cells(&self) -> Vec<String> {
        vec![self.field.clone(), self.value.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KubeProxyConfiguration;

    #[test]
    fn every_field_is_a_line() {
        let configz = KubeProxyConfiguration::defaults().configz();
        let configz: Value = serde_json::from_str(&configz).unwrap();
        let rows = rows(&configz);
        let value = |path: &str| {
            let row = rows.iter().find(|row| row.field == path);
            row.unwrap_or_else(|| panic!("no {path}")).value.as_str()
        };
        assert_eq!(value("conntrack.tcpEstablishedTimeout"), "24h0m0s");
        assert_eq!(value("healthzBindAddress"), "0.0.0.0:10256");
        assert_eq!(value("clusterCIDR"), "\"\"");
        assert!(rows.is_sorted_by(|a, b| a.field < b.field));
    }
}
