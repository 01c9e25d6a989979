//! The objects that exist, and what the agent makes of them.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::{
    api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use proxy_user::model::{
    Event, Kind,
    ingest::{self, Ingested},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::file::Change;

/// The node whose agent is looked at.
pub(super) const NODE: &str = "here";

/// Kind and name; the namespace is `default`.
type Key = (String, String);

#[derive(Debug, Default)]
pub(super) struct Cluster {
    objects: BTreeMap<Key, Value>,
}

impl Cluster {
    pub(super) fn change(&mut self, change: Change) -> Result<Ingested> {
        match change {
            Change::Apply(object) => {
                let key = key_of(&object)?;
                self.set(key, object)
            }
            Change::Patch(patch) => {
                let key = key_of(&patch)?;
                let mut object = self
                    .objects
                    .get(&key)
                    .with_context(|| format!("patch {}/{}: there is none", key.0, key.1))?
                    .clone();
                merge(&mut object, patch);
                self.set(key, object)
            }
            Change::Delete(kind, name) => {
                let key = (kind, name);
                ensure!(
                    self.objects.remove(&key).is_some(),
                    "delete {}/{}: there is none",
                    key.0,
                    key.1
                );
                gone(&key)
            }
        }
    }

    fn set(&mut self, key: Key, object: Value) -> Result<Ingested> {
        let ingested = ingest(&object).with_context(|| format!("{}/{}", key.0, key.1))?;
        self.objects.insert(key, object);
        Ok(ingested)
    }

    /// Deletes everything.
    pub(super) fn clear(&mut self) -> Vec<Event> {
        let objects = std::mem::take(&mut self.objects);
        objects
            .keys()
            .filter_map(|key| gone(key).ok()?.event)
            .collect()
    }

    /// What an agent is told that starts now.
    pub(super) fn list(&self) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        if !self.objects.contains_key(&("Node".into(), NODE.into())) {
            events.push(ingest::node_gone(NODE));
        }
        for kind in [Kind::ServiceCidr, Kind::EndpointSlice, Kind::Service] {
            events.push(Event::ListStarted(kind));
            for object in self.of(&kind.to_string()) {
                events.extend(ingest(object)?.event);
            }
            events.push(Event::Listed(kind));
        }
        for node in self.of("Node") {
            events.extend(ingest(node)?.event);
        }
        Ok(events)
    }

    fn of(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.objects
            .iter()
            .filter(move |((of, _), _)| of == kind)
            .map(|(_, object)| object)
    }
}

fn key_of(object: &Value) -> Result<Key> {
    let text = |field: &Value, what| {
        let text = field
            .as_str()
            .with_context(|| format!("an object without {what}: {object}"))?;
        Ok::<_, anyhow::Error>(text.to_owned())
    };
    ensure!(
        object["metadata"].get("namespace").is_none(),
        "objects are in the namespace `default`: {object}"
    );
    Ok((
        text(&object["kind"], "a kind")?,
        text(&object["metadata"]["name"], "a name")?,
    ))
}

fn ingest(object: &Value) -> Result<Ingested> {
    Ok(match object["kind"].as_str().unwrap_or_default() {
        "Service" => ingest::service(read::<core::Service>(object)?),
        "EndpointSlice" => ingest::slice(read::<discovery::EndpointSlice>(object)?),
        "ServiceCIDR" => ingest::service_cidr(read::<networking::ServiceCIDR>(object)?),
        "Node" => ingest::node(read::<core::Node>(object)?, NODE),
        kind => bail!("kind {kind:?} is not read"),
    })
}

fn gone((kind, name): &Key) -> Result<Ingested> {
    let meta = ObjectMeta {
        name: Some(name.clone()),
        ..ObjectMeta::default()
    };
    let event = match kind.as_str() {
        "Service" => ingest::service_gone(&meta),
        "EndpointSlice" => ingest::slice_gone(&meta),
        "ServiceCIDR" => ingest::service_cidr_gone(&meta),
        "Node" => (name == NODE).then(|| ingest::node_gone(NODE)),
        kind => bail!("kind {kind:?} is not read"),
    };
    Ok(Ingested {
        event,
        problems: Vec::new(),
    })
}

/// The object, if all of its fields are Kubernetes': one that is unknown or misspelt is lost on the way
/// there and back.
fn read<T: Serialize + DeserializeOwned>(object: &Value) -> Result<T> {
    let read: T = serde_json::from_value(object.clone())?;
    let back = serde_json::to_value(&read)?;
    if let Some(field) = lost(object, &back) {
        bail!("the field {field} is not known");
    }
    Ok(read)
}

fn lost(written: &Value, back: &Value) -> Option<String> {
    match (written, back) {
        (Value::Object(written), Value::Object(back)) => {
            written
                .iter()
                .find_map(|(name, value)| match (value, back.get(name)) {
                    (Value::Null, _) => None,
                    (_, None) => Some(format!(".{name}")),
                    (value, Some(back)) => lost(value, back).map(|rest| format!(".{name}{rest}")),
                })
        }
        (Value::Array(written), Value::Array(back)) => written
            .iter()
            .zip(back)
            .enumerate()
            .find_map(|(i, (value, back))| lost(value, back).map(|rest| format!("[{i}]{rest}"))),
        _ => None,
    }
}

/// RFC 7386.
fn merge(into: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *into = patch;
        return;
    };
    if !into.is_object() {
        *into = Value::Object(serde_json::Map::new());
    }
    for (name, value) in patch {
        if let Some(object) = into.as_object_mut() {
            if value.is_null() {
                object.remove(&name);
            } else {
                merge(object.entry(name).or_insert(Value::Null), value);
            }
        }
    }
}
