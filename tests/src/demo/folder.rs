//! The Services in the folder, read as any tool would read them, not as the agent does.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Deserialize;
use serde_yaml_ng::Value;

use super::ask::Target;
use crate::probe::Proto;

/// Changes whenever a file of the folder does.
pub(super) type Stamp = BTreeMap<PathBuf, (Option<SystemTime>, u64)>;

pub(super) fn stamp(dir: &Path) -> Stamp {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let metadata = fs::metadata(entry.path()).ok()?;
            Some((entry.path(), (metadata.modified().ok(), metadata.len())))
        })
        .collect()
}

/// ClusterIPs by Service name. What is not (yet) YAML is left out: somebody is typing.
pub(super) fn services(dir: &Path) -> BTreeMap<String, Vec<Target>> {
    let mut found = BTreeMap::new();
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    for path in entries
        .map(|entry| entry.path())
        .filter(|path| is_manifest(path))
    {
        let text = fs::read_to_string(&path).unwrap_or_default();
        for document in serde_yaml_ng::Deserializer::from_str(&text) {
            let Ok(value) = Value::deserialize(document) else {
                break;
            };
            if value["kind"] == "Service" {
                let name = value["metadata"]["name"].as_str().unwrap_or("?").to_owned();
                found.insert(name, targets(&value["spec"]));
            }
        }
    }
    found
}

fn is_manifest(path: &Path) -> bool {
    let hidden = path
        .file_name()
        .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().and_then(|extension| extension.to_str());
    !hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}

fn targets(spec: &Value) -> Vec<Target> {
    let many = spec["clusterIPs"]
        .as_sequence()
        .cloned()
        .unwrap_or_default();
    let ips = if many.is_empty() {
        vec![spec["clusterIP"].clone()]
    } else {
        many
    };
    let ips: Vec<IpAddr> = ips
        .iter()
        .filter_map(|ip| ip.as_str().and_then(|ip| ip.parse().ok()))
        .collect();
    let mut found = Vec::new();
    for port in spec["ports"].as_sequence().into_iter().flatten() {
        let number = port["port"]
            .as_u64()
            .and_then(|number| u16::try_from(number).ok());
        let proto = match port["protocol"].as_str() {
            None | Some("TCP") => Proto::Tcp,
            Some("UDP") => Proto::Udp,
            Some(_) => continue,
        };
        let Some(number) = number else { continue };
        found.extend(ips.iter().map(|ip| Target {
            proto,
            to: (*ip, number).into(),
        }));
    }
    found
}
