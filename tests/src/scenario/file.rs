//! The form of a scenario file. Whatever is not known is an error, in manifests too.

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct File {
    pub(super) scenario: String,
    #[serde(default)]
    pub(super) rows: Vec<String>,
    #[serde(default)]
    pub(super) addresses: Vec<String>,
    #[serde(default)]
    pub(super) node_port_addresses: Vec<String>,
    pub(super) scheduler: Option<String>,
    pub(super) steps: Vec<Step>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Step {
    pub(super) when: String,
    #[serde(default)]
    apply: Vec<Value>,
    #[serde(default)]
    patch: Vec<Value>,
    #[serde(default)]
    delete: Vec<String>,
    #[serde(default)]
    pub(super) problems: Vec<String>,
    pub(super) expect: String,
}

/// What happens to one object.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Apply(Value),
    Patch(Value),
    /// Kind and name.
    Delete(String, String),
}

impl File {
    pub(super) fn parse(text: &str) -> Result<Self> {
        // By way of a YAML value, which refuses the same key twice.
        let value: serde_yaml_ng::Value = serde_yaml_ng::from_str(text)?;
        let file: Self = serde_yaml_ng::from_value(value)?;
        ensure!(!file.scenario.trim().is_empty(), "`scenario` says nothing");
        ensure!(!file.steps.is_empty(), "there are no steps");
        let is_row = |row: &String| {
            row.starts_with(|first: char| first.is_ascii_uppercase())
                && row[1..].parse::<u8>().is_ok()
        };
        if let Some(row) = file.rows.iter().find(|row| !is_row(row)) {
            anyhow::bail!("{row:?} is not a row such as E3");
        }
        Ok(file)
    }
}

impl Step {
    /// Deletions first: a name may be used again at once.
    pub(super) fn changes(&self) -> Result<Vec<Change>> {
        let deletions = self.delete.iter().map(|text| {
            let (kind, name) = text
                .split_once('/')
                .with_context(|| format!("delete {text:?}: write it as Kind/name"))?;
            Ok(Change::Delete(kind.into(), name.into()))
        });
        let applied = self.apply.iter().cloned().map(Change::Apply).map(Ok);
        let patched = self.patch.iter().cloned().map(Change::Patch).map(Ok);
        deletions.chain(applied).chain(patched).collect()
    }
}
