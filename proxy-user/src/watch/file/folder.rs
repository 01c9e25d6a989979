//! Pure: what a folder of manifests says, as the difference to what it said before.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use super::manifest::{self, Key};
use crate::{
    model::{Event, Kind, ingest},
    watch::standing::Standing,
};

/// File name to its text, or why it can't be read.
pub(super) type Texts = BTreeMap<String, Result<String, String>>;

/// The state of a folder as last read.
#[derive(Debug)]
pub(super) struct Folder {
    own_node: Arc<str>,
    files: BTreeMap<String, File>,
    /// What the model knows. Shared with [`File::objects`], so there is one copy.
    current: BTreeMap<Key, Arc<Event>>,
    standing: Standing,
    listed: bool,
}

#[derive(Debug, Default)]
struct File {
    hash: Option<u64>,
    objects: BTreeMap<Key, Arc<Event>>,
    lines: Vec<String>,
}

/// What has to be told after a reading.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Update {
    pub(super) events: Vec<Event>,
    /// Problems that were not told before, one line each.
    pub(super) lines: Vec<String>,
}

impl Folder {
    pub(super) fn new(own_node: &str) -> Self {
        Self {
            own_node: own_node.into(),
            files: BTreeMap::new(),
            current: BTreeMap::new(),
            standing: Standing::default(),
            listed: false,
        }
    }

    /// The first update is bracketed as a list; later ones tell single changes.
    pub(super) fn update(&mut self, texts: Texts) -> Update {
        let mut lines = Vec::new();
        self.files.retain(|name, _| texts.contains_key(name));
        self.standing
            .retain(|name| name.is_empty() || texts.contains_key(name));
        for (name, text) in texts {
            let mut file = self.files.remove(&name).unwrap_or_default();
            file.update(&name, text, &self.own_node);
            lines.extend(self.standing.replace(&name, file.lines.clone()));
            self.files.insert(name, file);
        }
        let (wanted, conflicts) = self.merge();
        lines.extend(self.standing.replace(WHOLE, conflicts));
        let events = self.difference(&wanted);
        self.current = wanted;
        Update { events, lines }
    }

    /// Of two files that define one object the first by name counts.
    fn merge(&self) -> (BTreeMap<Key, Arc<Event>>, Vec<String>) {
        let mut wanted: BTreeMap<Key, (&str, &Arc<Event>)> = BTreeMap::new();
        let mut conflicts = Vec::new();
        for (name, file) in &self.files {
            for (key, event) in &file.objects {
                if let Some((first, _)) = wanted.get(key) {
                    conflicts.push(format!(
                        "{name}: {key} is defined in {first} too, that one counts; remove one"
                    ));
                } else {
                    wanted.insert(key.clone(), (name, event));
                }
            }
        }
        if self.files.is_empty() {
            conflicts.push(
                "there is no manifest (*.yaml, *.yml, *.json) in the folder, no Service is translated; write some".into(),
            );
        }
        let wanted = wanted
            .into_iter()
            .filter(|(_, (_, event))| is_there(event))
            .map(|(key, (_, event))| (key, event.clone()))
            .collect();
        (wanted, conflicts)
    }

    fn difference(&mut self, wanted: &BTreeMap<Key, Arc<Event>>) -> Vec<Event> {
        // Unchanged files share their events with the last reading, which makes this cheap.
        let changed = wanted.iter().filter(|(key, event)| {
            let known = self.current.get(*key);
            !known.is_some_and(|known| Arc::ptr_eq(known, event) || known == *event)
        });
        let changed = changed.map(|(_, event)| Event::clone(event));
        if !std::mem::replace(&mut self.listed, true) {
            return bracketed(changed.collect(), &self.own_node);
        }
        let gone = self.current.keys().filter(|key| !wanted.contains_key(key));
        // What comes is told before what goes, so that nothing falls through in between.
        changed
            .chain(gone.map(|key| match key {
                Key::Node(name) => ingest::node_gone(name),
                Key::Service(name) => Event::ServiceGone(name.clone()),
                Key::EndpointSlice(name) => Event::SliceGone(name.clone()),
                Key::ServiceCidr(name) => Event::ServiceCidrGone(name.clone()),
            }))
            .collect()
    }
}

/// The subject of problems that are no single file's.
const WHOLE: &str = "";

fn is_there(event: &Event) -> bool {
    !matches!(event, Event::ServiceGone(_) | Event::SliceGone(_))
}

fn bracketed(events: Vec<Event>, own_node: &str) -> Vec<Event> {
    let (slices, others): (Vec<_>, Vec<_>) = events
        .into_iter()
        .partition(|event| matches!(event, Event::SliceApplied(_)));
    let (services, others): (Vec<_>, Vec<_>) = others
        .into_iter()
        .partition(|event| matches!(event, Event::ServiceApplied(_)));
    let (cidrs, nodes): (Vec<_>, Vec<_>) = others
        .into_iter()
        .partition(|event| matches!(event, Event::ServiceCidrApplied(..)));
    let mut list = nodes;
    if list.is_empty() {
        list.push(ingest::node_gone(own_node));
    }
    for (kind, events) in [
        (Kind::ServiceCidr, cidrs),
        (Kind::Service, services),
        (Kind::EndpointSlice, slices),
    ] {
        list.push(Event::ListStarted(kind));
        list.extend(events);
        list.push(Event::Listed(kind));
    }
    list
}

impl File {
    fn update(&mut self, name: &str, text: Result<String, String>, own_node: &str) {
        let text = match text {
            Ok(text) => text,
            Err(reason) => {
                self.hash = None;
                let kept = kept(!self.objects.is_empty());
                self.lines = vec![format!(
                    "{name}: it can't be read: {reason}; make it readable{kept}"
                )];
                return;
            }
        };
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        if self.hash.replace(hasher.finish()) == Some(hasher.finish()) {
            return;
        }
        let manifest = manifest::parse(name, &text, own_node);
        let mut before = std::mem::take(&mut self.objects);
        self.lines = manifest.lines;
        for (key, event) in manifest.objects {
            // An event that says the same stays the same one.
            let event = before
                .remove(&key)
                .filter(|known| **known == event)
                .unwrap_or_else(|| Arc::new(event));
            match self.objects.entry(key) {
                Entry::Vacant(vacant) => {
                    vacant.insert(event);
                }
                Entry::Occupied(taken) => self.lines.push(format!(
                    "{name}: {} is defined twice, the first counts; remove one",
                    taken.key()
                )),
            }
        }
        for broken in manifest.broken {
            let held: Vec<_> = match broken.key {
                Some(key) => before.remove_entry(&key).into_iter().collect(),
                None => std::mem::take(&mut before).into_iter().collect(),
            };
            self.lines
                .push(format!("{}{}", broken.line, kept(!held.is_empty())));
            for (key, event) in held {
                self.objects.entry(key).or_insert(event);
            }
        }
    }
}

/// A file that breaks must not take Services down that worked.
fn kept(any: bool) -> &'static str {
    if any {
        " (until then what was there before is kept)"
    } else {
        ""
    }
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;
