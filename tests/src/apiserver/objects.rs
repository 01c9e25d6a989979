//! The objects, their history, and who is watching.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::selector::Selector;

/// A resource that is served: its place in the API and the kind of its objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Resource {
    /// The path before the resource's name (and before `namespaces/…`).
    pub(super) root: &'static str,
    pub(super) plural: &'static str,
    pub(super) api_version: &'static str,
    pub(super) kind: &'static str,
    pub(super) namespaced: bool,
}

const fn core(plural: &'static str, kind: &'static str, namespaced: bool) -> Resource {
    Resource {
        root: "/api/v1",
        plural,
        api_version: "v1",
        kind,
        namespaced,
    }
}

pub(super) const RESOURCES: &[Resource] = &[
    core("services", "Service", true),
    core("nodes", "Node", false),
    core("events", "Event", true),
    Resource {
        root: "/apis/events.k8s.io/v1",
        plural: "events",
        api_version: "events.k8s.io/v1",
        kind: "Event",
        namespaced: true,
    },
    Resource {
        root: "/apis/discovery.k8s.io/v1",
        plural: "endpointslices",
        api_version: "discovery.k8s.io/v1",
        kind: "EndpointSlice",
        namespaced: true,
    },
    Resource {
        root: "/apis/networking.k8s.io/v1",
        plural: "servicecidrs",
        api_version: "networking.k8s.io/v1",
        kind: "ServiceCIDR",
        namespaced: false,
    },
];

/// Kind, namespace, name.
type Key = (String, String, String);

#[derive(Debug)]
pub(super) struct Store {
    version: u64,
    objects: BTreeMap<Key, Arc<Value>>,
    history: Vec<Change>,
    /// Versions before this one can't be resumed from.
    oldest: u64,
    pages: HashMap<String, Page>,
    watches: Vec<Watch>,
    /// Those whose connections are being cut: dropping them would end them politely.
    forsaken: Vec<Watch>,
    pub(super) posted: Vec<Value>,
}

/// What became of one object at one version.
#[derive(Clone, Debug)]
struct Change {
    version: u64,
    before: Option<Arc<Value>>,
    after: Option<Arc<Value>>,
}

/// What a watch is told. Objects are shared with the store: they are written, not copied.
#[derive(Clone, Debug)]
pub(super) struct Told {
    type_: &'static str,
    object: Arc<Value>,
}

impl Told {
    /// A line as the real server writes it: the type comes first.
    pub(super) fn line(&self) -> String {
        format!(
            "{{\"type\":\"{}\",\"object\":{}}}\n",
            self.type_, self.object
        )
    }
}

/// The rest of a list that was asked for in pages, as of its first page.
#[derive(Debug)]
struct Page {
    version: u64,
    rest: Vec<Arc<Value>>,
}

#[derive(Debug)]
struct Watch {
    resource: Resource,
    namespace: Option<String>,
    selector: Selector,
    bookmarks: bool,
    /// Closed when dropped.
    tx: mpsc::UnboundedSender<Told>,
}

/// What a list or watch is about.
#[derive(Clone, Debug)]
pub(super) struct Query {
    pub(super) resource: Resource,
    pub(super) namespace: Option<String>,
    pub(super) selector: Selector,
}

/// The version asked for is not known any more.
#[derive(Debug)]
pub(super) struct Expired;

impl Default for Store {
    fn default() -> Self {
        Self {
            // To a watch 0 means "from whatever there is".
            version: 1,
            objects: BTreeMap::new(),
            history: Vec::new(),
            oldest: 0,
            pages: HashMap::new(),
            watches: Vec::new(),
            forsaken: Vec::new(),
            posted: Vec::new(),
        }
    }
}

impl Store {
    pub(super) fn apply(&mut self, mut object: Value) {
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        let resource = RESOURCES
            .iter()
            .find(|resource| object["apiVersion"] == resource.api_version && kind == resource.kind)
            .unwrap_or_else(|| panic!("not served: {object}"));
        let name = object["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        assert!(!name.is_empty(), "no name: {object}");
        if resource.namespaced && object["metadata"]["namespace"].is_null() {
            object["metadata"]["namespace"] = "default".into();
        }
        let namespace = object["metadata"]["namespace"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let object = Arc::new(object);
        let before = self
            .objects
            .insert((kind, namespace, name), Arc::clone(&object));
        self.record(before, Some(object));
    }

    pub(super) fn delete(&mut self, kind: &str, namespace: &str, name: &str) -> bool {
        let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        let before = self.objects.remove(&key);
        let existed = before.is_some();
        if existed {
            self.version += 1;
            self.record(before, None);
        }
        existed
    }

    fn record(&mut self, before: Option<Arc<Value>>, after: Option<Arc<Value>>) {
        let change = Change {
            version: self.version,
            before,
            after,
        };
        self.watches.retain(|watch| {
            change
                .seen_by(&watch.resource, watch.namespace.as_deref(), &watch.selector)
                .is_none_or(|event| watch.tx.send(event).is_ok())
        });
        self.history.push(change);
    }

    pub(super) fn compact(&mut self) {
        // Not even the version of the last change can be resumed from.
        self.version += 1;
        self.oldest = self.version;
        self.history.clear();
        self.pages.clear();
    }

    pub(super) fn expire_watches(&mut self) {
        for watch in self.watches.drain(..) {
            let _ = watch.tx.send(gone_event());
        }
    }

    pub(super) fn forsake_watches(&mut self) {
        self.forsaken = std::mem::take(&mut self.watches);
    }

    pub(super) fn bookmark(&mut self) {
        let version = self.version;
        self.watches.retain(|watch| {
            !watch.bookmarks || watch.tx.send(bookmark(&watch.resource, version)).is_ok()
        });
    }

    pub(super) fn bookmark_of(&self, resource: &Resource) -> Told {
        bookmark(resource, self.version)
    }

    pub(super) fn watches(&self, resource: &str) -> usize {
        self.watches
            .iter()
            .filter(|watch| watch.resource.plural == resource && !watch.tx.is_closed())
            .count()
    }

    pub(super) fn get(&self, resource: &Resource, namespace: &str, name: &str) -> Option<&Value> {
        let key = (
            resource.kind.to_owned(),
            namespace.to_owned(),
            name.to_owned(),
        );
        self.objects.get(&key).map(Arc::as_ref)
    }

    fn matching(&self, query: &Query) -> Vec<Arc<Value>> {
        self.objects
            .iter()
            .filter(|((kind, namespace, _), object)| {
                kind == query.resource.kind
                    && query
                        .namespace
                        .as_ref()
                        .is_none_or(|wanted| wanted == namespace)
                    && query.selector.matches(object)
            })
            .map(|(_, object)| Arc::clone(object))
            .collect()
    }

    pub(super) fn list(
        &mut self,
        query: &Query,
        limit: usize,
        continue_token: Option<&str>,
    ) -> Result<Value, Expired> {
        let Page { version, mut rest } = match continue_token {
            None => Page {
                version: self.version,
                rest: self.matching(query),
            },
            Some(token) => self.pages.remove(token).ok_or(Expired)?,
        };
        let mut metadata = json!({"resourceVersion": version.to_string()});
        if limit > 0 && rest.len() > limit {
            let later = rest.split_off(limit);
            let token = format!("{}.{version}.{}", query.resource.plural, later.len());
            metadata["continue"] = token.clone().into();
            metadata["remainingItemCount"] = later.len().into();
            self.pages.insert(
                token,
                Page {
                    version,
                    rest: later,
                },
            );
        }
        // The real server leaves these two out of the items of a list.
        let items: Vec<Value> = rest
            .iter()
            .map(|item| {
                let mut item = Value::clone(item);
                if let Some(fields) = item.as_object_mut() {
                    fields.remove("kind");
                    fields.remove("apiVersion");
                }
                item
            })
            .collect();
        Ok(json!({
            "kind": format!("{}List", query.resource.kind),
            "apiVersion": query.resource.api_version,
            "metadata": metadata,
            "items": items,
        }))
    }

    /// Everything after `version` (from the current objects if 0), then what comes.
    pub(super) fn watch(
        &mut self,
        query: Query,
        version: u64,
        bookmarks: bool,
    ) -> Result<mpsc::UnboundedReceiver<Told>, Expired> {
        let (tx, rx) = mpsc::unbounded_channel();
        let backlog: Vec<Told> = if version == 0 {
            self.matching(&query)
                .into_iter()
                .map(|object| Told {
                    type_: "ADDED",
                    object,
                })
                .collect()
        } else if version < self.oldest {
            return Err(Expired);
        } else {
            self.history
                .iter()
                .filter(|change| change.version > version)
                .filter_map(|change| {
                    change.seen_by(&query.resource, query.namespace.as_deref(), &query.selector)
                })
                .collect()
        };
        for event in backlog {
            let _ = tx.send(event);
        }
        self.watches.push(Watch {
            resource: query.resource,
            namespace: query.namespace,
            selector: query.selector,
            bookmarks,
            tx,
        });
        Ok(rx)
    }
}

impl Change {
    /// To a watcher an object that begins to match is added, and one that ceases to is deleted.
    fn seen_by(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        selector: &Selector,
    ) -> Option<Told> {
        let visible = |object: &&Arc<Value>| {
            object["kind"] == resource.kind
                && namespace.is_none_or(|wanted| object["metadata"]["namespace"] == wanted)
                && selector.matches(object)
        };
        let before = self.before.as_ref().filter(visible);
        let after = self.after.as_ref().filter(visible);
        let (type_, object) = match (before, after) {
            (None, None) => return None,
            (None, Some(after)) => ("ADDED", after),
            (Some(_), Some(after)) => ("MODIFIED", after),
            (Some(before), None) => ("DELETED", self.after.as_ref().unwrap_or(before)),
        };
        let mut object = Arc::clone(object);
        // What is deleted has the version of its end; all else has its own already.
        if type_ == "DELETED" {
            let version = self.version.to_string().into();
            Arc::make_mut(&mut object)["metadata"]["resourceVersion"] = version;
        }
        Some(Told { type_, object })
    }
}

/// An object with nothing in it but what the real server can't leave out.
fn bookmark(resource: &Resource, version: u64) -> Told {
    let mut object = match resource.kind {
        "Service" => json!({"spec": {}, "status": {"loadBalancer": {}}}),
        "EndpointSlice" => json!({"addressType": "", "endpoints": null, "ports": null}),
        _ => json!({"spec": {}, "status": {}}),
    };
    object["kind"] = resource.kind.into();
    object["apiVersion"] = resource.api_version.into();
    object["metadata"] = json!({"resourceVersion": version.to_string()});
    Told {
        type_: "BOOKMARK",
        object: Arc::new(object),
    }
}

pub(super) fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message,
    })
}

pub(super) fn gone_event() -> Told {
    Told {
        type_: "ERROR",
        object: Arc::new(status(410, "Expired", "too old resource version")),
    }
}
