//! Label and field selectors, as far as service proxies use them.

use serde_json::Value;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    Exists(String),
    Absent(String),
    Equals(String, String),
    Differs(String, String),
}

impl Selector {
    /// `Err` with the part that is not understood.
    pub(super) fn parse(labels: Option<&str>, fields: Option<&str>) -> Result<Self, String> {
        let parse = |text: Option<&str>| -> Result<Vec<_>, String> {
            text.unwrap_or_default()
                .split(',')
                .filter(|part| !part.is_empty())
                .map(requirement)
                .collect()
        };
        Ok(Self {
            labels: parse(labels)?,
            fields: parse(fields)?,
        })
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object["metadata"]["labels"][key].as_str();
        let field = |key: &str| {
            let pointer = format!("/{}", key.replace('.', "/"));
            // A field that is not there is the empty string, unlike a label.
            Some(
                object
                    .pointer(&pointer)
                    .and_then(Value::as_str)
                    .unwrap_or_default(),
            )
        };
        self.labels.iter().all(|r| r.holds(label)) && self.fields.iter().all(|r| r.holds(field))
    }
}

impl Requirement {
    fn holds<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        match self {
            Self::Exists(key) => get(key).is_some(),
            Self::Absent(key) => get(key).is_none(),
            Self::Equals(key, value) => get(key) == Some(value),
            Self::Differs(key, value) => get(key) != Some(value),
        }
    }
}

fn requirement(part: &str) -> Result<Requirement, String> {
    let part = part.trim();
    if part.contains([' ', '(']) {
        return Err(format!("selector {part:?} is not supported"));
    }
    Ok(if let Some((key, value)) = part.split_once("!=") {
        Requirement::Differs(key.into(), value.into())
    } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        Requirement::Equals(key.into(), value.into())
    } else if let Some(key) = part.strip_prefix('!') {
        Requirement::Absent(key.into())
    } else {
        Requirement::Exists(part.into())
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_select() {
        let object = json!({"metadata": {"name": "n", "labels": {"a": "1", "e": ""}}, "spec": {"clusterIP": "None"}});
        for (labels, fields, matches) in [
            ("", "", true),
            ("a", "", true),
            ("!a", "", false),
            ("!e", "", false),
            ("!b", "", true),
            ("!x.io/b,a=1", "", true),
            ("a==2", "", false),
            ("b!=2", "", true),
            ("", "metadata.name=n", true),
            ("", "metadata.name=m", false),
            ("", "spec.clusterIP!=None", false),
            ("", "spec.other!=None", true),
            ("", "spec.other=", true),
        ] {
            let selector = Selector::parse(Some(labels), Some(fields)).expect("a selector");
            assert_eq!(selector.matches(&object), matches, "{labels:?} {fields:?}");
        }
        assert!(Selector::parse(Some("a in (b)"), None).is_err());
    }
}
