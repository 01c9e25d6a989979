//! Pure: from the text of one manifest file to objects, and one line for each thing wrong with it.

use std::{fmt, sync::Arc};

use k8s_openapi::api::{
    core::v1 as core, discovery::v1 as discovery, networking::v1 as networking,
};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};

use crate::model::{
    Event, ObjectName,
    ingest::{self, Ingested},
};

/// What an object is known by in a folder.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Key {
    Node(Arc<str>),
    Service(ObjectName),
    EndpointSlice(ObjectName),
    ServiceCidr(Arc<str>),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "Node {name}"),
            Self::Service(name) => write!(f, "Service {name}"),
            Self::EndpointSlice(name) => write!(f, "EndpointSlice {name}"),
            Self::ServiceCidr(name) => write!(f, "ServiceCIDR {name}"),
        }
    }
}

/// The content of one file.
#[derive(Debug, Default)]
pub(super) struct Manifest {
    /// In the order of the file, with the place each was found at.
    pub(super) objects: Vec<(Key, Event)>,
    /// Documents (or objects of a list) that can't be read.
    pub(super) broken: Vec<Broken>,
    /// One line for each value, object or document that is left out for another reason.
    pub(super) lines: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Broken {
    pub(super) line: String,
    /// Which object it would have been; `None` if it can't be told.
    pub(super) key: Option<Key>,
}

pub(super) fn parse(file: &str, text: &str, own_node: &str) -> Manifest {
    let mut reader = Reader {
        own_node,
        out: Manifest::default(),
    };
    if file.ends_with(".json") {
        reader.json(file, text);
    } else {
        for (number, document) in documents(text).into_iter().enumerate() {
            reader.yaml(&format!("{file}: document {}", number + 1), &document);
        }
    }
    reader.out
}

/// A YAML document and the number of lines before it.
#[derive(Debug, PartialEq, Eq)]
struct Document<'a> {
    lines_before: usize,
    text: &'a str,
}

/// Splits where YAML itself does, so that a broken document does not take the next ones along: a line
/// that begins with `---` is always a separator, even inside block and quoted scalars.
fn documents(text: &str) -> Vec<Document<'_>> {
    let mut found = Vec::new();
    let (mut start, mut start_line) = (0, 0);
    let (mut offset, mut content) = (0, false);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let rest = line.strip_prefix("---");
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace)) {
            if content {
                found.push(Document {
                    lines_before: start_line,
                    text: &text[start..offset],
                });
                (start, start_line) = (offset, number);
            }
            content = true;
        } else {
            // Comments and directives before the first separator belong to the document after it.
            let line = line.trim();
            content |= !line.is_empty() && !line.starts_with(['#', '%']);
        }
        offset += line.len();
    }
    if content {
        found.push(Document {
            lines_before: start_line,
            text: &text[start..],
        });
    }
    found
}

/// As much of any object as is needed to know what it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    api_version: Option<String>,
    kind: Option<String>,
    #[serde(default)]
    metadata: Option<HeadMeta>,
}

#[derive(Deserialize, Default)]
struct HeadMeta {
    name: Option<String>,
    namespace: Option<String>,
}

#[derive(Deserialize)]
struct List<V> {
    #[serde(default = "Vec::new")]
    items: Vec<V>,
}

/// What to do with an object, by its kind.
enum Use {
    Service,
    EndpointSlice,
    ServiceCidr,
    Node,
    /// A list, and the kind of those of its items that don't say theirs (`kubectl get --raw`).
    List(Option<(&'static str, &'static str)>),
    PassOver,
    Unknown,
}

fn use_of(api_version: &str, kind: &str) -> Use {
    match (api_version, kind) {
        ("v1", "Service") => Use::Service,
        ("discovery.k8s.io/v1", "EndpointSlice") => Use::EndpointSlice,
        ("networking.k8s.io/v1", "ServiceCIDR") => Use::ServiceCidr,
        ("v1", "Node") => Use::Node,
        ("v1", "List") => Use::List(None),
        ("v1", "ServiceList") => Use::List(Some(("v1", "Service"))),
        ("discovery.k8s.io/v1", "EndpointSliceList") => {
            Use::List(Some(("discovery.k8s.io/v1", "EndpointSlice")))
        }
        ("v1", "NodeList") => Use::List(Some(("v1", "Node"))),
        ("networking.k8s.io/v1", "ServiceCIDRList") => {
            Use::List(Some(("networking.k8s.io/v1", "ServiceCIDR")))
        }
        (_, "Service" | "EndpointSlice" | "ServiceCIDR" | "Node") => Use::Unknown,
        (_, kind) if WELL_KNOWN.contains(&kind) => Use::PassOver,
        _ => Use::Unknown,
    }
}

/// Kinds that are often found in one file with Services, and are none of our business.
const WELL_KNOWN: &[&str] = &[
    "ClusterRole",
    "ClusterRoleBinding",
    "ConfigMap",
    "CronJob",
    "CustomResourceDefinition",
    "DaemonSet",
    "Deployment",
    "Endpoints",
    "Gateway",
    "HTTPRoute",
    "HorizontalPodAutoscaler",
    "Ingress",
    "IngressClass",
    "Job",
    "Kustomization",
    "LimitRange",
    "Namespace",
    "NetworkPolicy",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "Pod",
    "PodDisruptionBudget",
    "PriorityClass",
    "ReplicaSet",
    "ReplicationController",
    "ResourceQuota",
    "Role",
    "RoleBinding",
    "RuntimeClass",
    "Secret",
    "ServiceAccount",
    "StatefulSet",
    "StorageClass",
];

/// An object as far as it is read, and where it stands.
trait Source: Sized {
    fn head(&self) -> Result<Head, Misfit>;
    fn read<T: DeserializeOwned>(&self) -> Result<T, Misfit>;
    /// The objects of a list.
    fn items(&self) -> Result<Vec<Item>, Misfit>;
}

/// An item of a list. YAML and JSON are the same from here on, without line numbers.
type Item = serde_yaml_ng::Value;

/// Where and why the text is not the object it should be.
struct Misfit {
    line: Option<usize>,
    /// JSON path; empty for an error of syntax.
    field: String,
    reason: String,
}

struct YamlText<'a> {
    document: &'a Document<'a>,
    value: serde_yaml_ng::Value,
}

struct JsonText(serde_json::Value);

struct Reader<'a> {
    own_node: &'a str,
    out: Manifest,
}

impl Reader<'_> {
    fn json(&mut self, file: &str, text: &str) {
        let documents = serde_json::Deserializer::from_str(text).into_iter::<serde_json::Value>();
        for (number, document) in documents.enumerate() {
            let place = format!("{file}: document {}", number + 1);
            match document {
                Ok(value) if value.is_null() => {}
                Ok(value) => self.object(&place, &JsonText(value), None),
                Err(error) => self.broken(&place, Misfit::of_json(&error), None),
            }
        }
    }

    fn yaml(&mut self, place: &str, document: &Document<'_>) {
        // By way of a Value, which refuses the same key twice.
        match serde_yaml_ng::from_str::<serde_yaml_ng::Value>(document.text) {
            Ok(value) if value.is_null() => {}
            Ok(value) => self.object(place, &YamlText { document, value }, None),
            Err(error) => self.broken(
                place,
                Misfit::of_yaml(&error, String::new(), document.lines_before),
                None,
            ),
        }
    }

    fn object(
        &mut self,
        place: &str,
        source: &impl Source,
        default: Option<(&'static str, &'static str)>,
    ) {
        let head = match source.head() {
            Ok(head) => head,
            Err(misfit) => return self.broken(place, misfit, None),
        };
        let (default_version, default_kind) = default.unwrap_or(("", ""));
        let api_version = head.api_version.as_deref().unwrap_or(default_version);
        let kind = head.kind.as_deref().unwrap_or(default_kind);
        let meta = head.metadata.unwrap_or_default();
        let name = ObjectName::new(
            meta.namespace
                .as_deref()
                .filter(|ns| !ns.is_empty())
                .unwrap_or("default"),
            meta.name.as_deref().unwrap_or_default(),
        );
        match use_of(api_version, kind) {
            Use::Service => self.read(place, source, Key::Service(name), ingest::service),
            Use::EndpointSlice => {
                self.read(place, source, Key::EndpointSlice(name), |mut slice| {
                    apply_slice_defaults(&mut slice);
                    ingest::slice(slice)
                });
            }
            Use::ServiceCidr => self.read(
                place,
                source,
                Key::ServiceCidr(name.name),
                |cidr: networking::ServiceCIDR| ingest::service_cidr(cidr),
            ),
            Use::Node if &*name.name == self.own_node => {
                let own_node = self.own_node;
                self.read(place, source, Key::Node(name.name), |node: core::Node| {
                    ingest::node(node, own_node)
                });
            }
            Use::Node => log::debug!("{place}: Node {} is another node, passed over", name.name),
            Use::List(default) => match source.items() {
                Ok(items) => {
                    for (number, item) in items.iter().enumerate() {
                        self.object(&format!("{place}: items[{number}]"), item, default);
                    }
                }
                Err(misfit) => self.broken(place, misfit, None),
            },
            Use::PassOver => log::debug!("{place}: {kind} {name} is not read, passed over"),
            Use::Unknown => self.out.lines.push(if kind.is_empty() {
                format!("{place}: the object has no kind, passed over; is it a Kubernetes manifest?")
            } else {
                format!(
                    "{place}: kind {kind:?} of apiVersion {api_version:?} is not known, passed over; \
                     Service (v1), EndpointSlice (discovery.k8s.io/v1), ServiceCIDR \
                     (networking.k8s.io/v1) and Node (v1) are read"
                )
            }),
        }
    }

    fn read<T: DeserializeOwned>(
        &mut self,
        place: &str,
        source: &impl Source,
        key: Key,
        ingest: impl FnOnce(T) -> Ingested,
    ) {
        let object = match source.read() {
            Ok(object) => object,
            Err(misfit) => return self.broken(&format!("{place}: {key}"), misfit, Some(key)),
        };
        let ingested = ingest(object);
        for mut problem in ingested.problems {
            problem.file = Some(place.to_owned());
            self.out.lines.push(problem.to_string());
        }
        if let Some(event) = ingested.event {
            self.out.objects.push((key, event));
        }
    }

    fn broken(&mut self, place: &str, misfit: Misfit, key: Option<Key>) {
        let line = misfit
            .line
            .map(|line| format!("line {line}: "))
            .unwrap_or_default();
        let field = if misfit.field.is_empty() {
            String::new()
        } else {
            format!("{}: ", misfit.field)
        };
        let remedy = if misfit.field.is_empty() {
            "correct the syntax"
        } else {
            "correct the value"
        };
        self.out.broken.push(Broken {
            line: format!("{place}: {line}{field}{}; {remedy}", misfit.reason),
            key,
        });
    }
}

/// No API server stands between a folder and us, so what it fills in is filled in here: without it,
/// the usual slice with a single unnamed port would lead nowhere (BEHAVIOUR A5).
fn apply_slice_defaults(slice: &mut discovery::EndpointSlice) {
    for port in slice.ports.iter_mut().flatten() {
        port.name.get_or_insert_default();
    }
}

impl Source for YamlText<'_> {
    fn head(&self) -> Result<Head, Misfit> {
        self.read()
    }

    fn read<T: DeserializeOwned>(&self) -> Result<T, Misfit> {
        // From the text, not from the value: only the text knows its line numbers.
        let yaml = serde_yaml_ng::Deserializer::from_str(self.document.text);
        at_path(yaml)
            .map_err(|(path, error)| Misfit::of_yaml(&error, path, self.document.lines_before))
    }

    fn items(&self) -> Result<Vec<Item>, Misfit> {
        self.value.items()
    }
}

impl Source for Item {
    fn head(&self) -> Result<Head, Misfit> {
        self.read()
    }

    fn read<T: DeserializeOwned>(&self) -> Result<T, Misfit> {
        at_path(self).map_err(|(path, error)| Misfit::of_yaml(&error, path, 0))
    }

    fn items(&self) -> Result<Vec<Item>, Misfit> {
        Ok(self.read::<List<Item>>()?.items)
    }
}

impl Source for JsonText {
    fn head(&self) -> Result<Head, Misfit> {
        self.read()
    }

    fn read<T: DeserializeOwned>(&self) -> Result<T, Misfit> {
        at_path(&self.0).map_err(|(path, error)| Misfit {
            line: None,
            field: path,
            reason: one_line(&error.to_string()),
        })
    }

    fn items(&self) -> Result<Vec<Item>, Misfit> {
        Ok(self.read::<List<Item>>()?.items)
    }
}

/// The object, or the path of the field that does not fit and why.
fn at_path<'de, T: DeserializeOwned, D: Deserializer<'de>>(
    source: D,
) -> Result<T, (String, D::Error)> {
    serde_path_to_error::deserialize(source).map_err(|error| {
        let path = match error.path().to_string() {
            path if path == "." => "the object".to_owned(),
            path => path,
        };
        (path, error.into_inner())
    })
}

impl Misfit {
    fn of_yaml(error: &serde_yaml_ng::Error, field: String, lines_before: usize) -> Self {
        let mut reason = one_line(&error.to_string());
        let line = error.location().map(|location| {
            let place = format!(" at line {} column {}", location.line(), location.column());
            reason = reason.replacen(&place, "", 1);
            lines_before + location.line()
        });
        if let Some(rest) = reason.strip_prefix(&format!("{field}: ")) {
            reason = rest.to_owned();
        }
        Self {
            line,
            field,
            reason,
        }
    }

    fn of_json(error: &serde_json::Error) -> Self {
        let place = format!(" at line {} column {}", error.line(), error.column());
        Self {
            line: Some(error.line()),
            field: String::new(),
            reason: one_line(&error.to_string()).replacen(&place, "", 1),
        }
    }
}

/// The libraries' messages quote the text, which may go over lines.
fn one_line(message: &str) -> String {
    message.replace(['\n', '\r'], " ")
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
