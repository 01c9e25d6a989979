//! Pure: from the text of a configuration file to the type.

use std::collections::BTreeSet;

use serde::Deserialize as _;
use serde_json::Value;

use super::{
    fields::{self, Known},
    schema::{API_VERSION, KIND, KubeProxyConfiguration},
};

/// The configuration without defaults, and one line for each thing that was passed over. kube-proxy
/// reads strictly first, and falls back to a lenient reading with a log line (loadConfig in
/// cmd/kube-proxy/app/options.go): fields that it doesn't know, and fields said twice.
pub(super) fn read(text: &str) -> Result<(KubeProxyConfiguration, Vec<String>), String> {
    let mut warnings = Vec::new();
    let mut value = parse(text, &mut warnings)?;
    drop_nulls(&mut value);
    if !value.is_object() {
        return Err(format!(
            "it holds no object; write one with apiVersion: {API_VERSION} and kind: {KIND}"
        ));
    }
    for (key, expected) in [("apiVersion", API_VERSION), ("kind", KIND)] {
        match value.get(key).and_then(Value::as_str) {
            Some(found) if found == expected => {}
            Some(found) => {
                return Err(format!(
                    "{key}: {found:?} is not read here; only {expected}"
                ));
            }
            None => return Err(format!("{key}: it is missing; write {key}: {expected}")),
        }
    }
    let mut unknown = BTreeSet::new();
    find_unknown(&value, "", &mut unknown)?;
    for path in unknown {
        warnings.push(format!(
            "{path}: there is no such field in {KIND} {API_VERSION}; it is ignored"
        ));
    }
    let config = typed(&value).map_err(|(path, reason)| format!("{path}: {reason}"))?;
    Ok((config, warnings))
}

/// The path of the field that doesn't fit, and why.
pub(super) fn typed(value: &Value) -> Result<KubeProxyConfiguration, (String, String)> {
    serde_path_to_error::deserialize(value)
        .map_err(|error| (error.path().to_string(), error.inner().to_string()))
}

/// The first document, as kube-proxy. JSON is YAML.
fn parse(text: &str, warnings: &mut Vec<String>) -> Result<Value, String> {
    let mut documents = serde_yaml_ng::Deserializer::from_str(text)
        .map(serde_yaml_ng::Value::deserialize)
        .filter(|document| !matches!(document, Ok(serde_yaml_ng::Value::Null)));
    let first = documents.next();
    if documents.next().is_some() {
        warnings.push("only the first document of the file is read".to_owned());
    }
    match first {
        None => Ok(Value::Null),
        Some(Ok(document)) => serde_json::to_value(document).map_err(|error| error.to_string()),
        Some(Err(strict)) => {
            // Of a field said twice the last counts, which this reading does not mind.
            let lenient = serde_yaml_ng::Deserializer::from_str(text)
                .map(Value::deserialize)
                .find(|document| !matches!(document, Ok(Value::Null)));
            match lenient {
                Some(Ok(value)) => {
                    warnings.push(format!("{strict}; the last one counts"));
                    Ok(value)
                }
                _ => Err(format!("it is neither YAML nor JSON: {strict}")),
            }
        }
    }
}

/// To Go, null is not set.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(section) => {
            section.retain(|_, value| !value.is_null());
            section.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Fails where a section is none.
fn find_unknown(value: &Value, path: &str, unknown: &mut BTreeSet<String>) -> Result<(), String> {
    let Value::Object(section) = value else {
        return Err(format!("{path}: {value} is no section with fields"));
    };
    for (key, value) in section {
        let path = if path.is_empty() {
            key.clone()
        } else {
            format!("{path}.{key}")
        };
        match fields::known(&path) {
            Known::Field => {}
            Known::Section => find_unknown(value, &path, unknown)?,
            Known::No => {
                unknown.insert(path);
            }
        }
    }
    Ok(())
}
