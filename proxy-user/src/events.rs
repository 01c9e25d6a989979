//! Events of the Kubernetes API (`events.k8s.io/v1`): told in passing, a few at a time. An API that
//! doesn't take them is no trouble for anybody.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    api::core::v1::{ObjectReference, Service},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::{sync::mpsc, time::timeout};

use crate::{
    audit::Audited,
    failover::{News, Reason},
    model::{HealthCheck, Note, ObjectName},
    sync::Outcome,
};

/// Notices that wait; further ones are dropped.
const QUEUE: usize = 64;
/// Between two notices.
const PACE: Duration = Duration::from_millis(200);
const TIMEOUT: Duration = Duration::from_secs(10);
/// What the API allows for a note, in bytes.
const NOTE_LIMIT: usize = 1024;

/// An Event, and the object it is about.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Notice {
    type_: EventType,
    reason: &'static str,
    action: &'static str,
    note: String,
    about: ObjectReference,
}

impl Notice {
    /// The agent runs (BEHAVIOUR P9).
    pub(crate) fn starting(node: &str) -> Self {
        Self {
            type_: EventType::Normal,
            reason: "Starting",
            action: "StartKubePortal",
            note: String::new(),
            about: about_node(node),
        }
    }

    /// The healthCheckNodePort of a Service can't be answered on.
    pub(crate) fn no_health_check(
        node: &str,
        service: &ObjectName,
        check: &HealthCheck,
        reasons: &str,
    ) -> Self {
        let note = format!(
            "node {node} failed to start healthcheck \"{service}\" on port {}: {reasons}",
            check.port
        );
        let mut notice = Self::warning(service, "FailedToStartServiceHealthcheck", "Listen", note);
        notice.about.uid = Some(check.uid.to_string()).filter(|uid| !uid.is_empty());
        notice
    }

    /// A map has no room for a Service's last change.
    pub(crate) fn no_room(node: &str, service: &ObjectName, reason: &str) -> Self {
        Self::warning(
            service,
            "MapFull",
            "Program",
            format!("node {node}: {reason}"),
        )
    }

    /// A Service's last change can't be written, for another reason.
    pub(crate) fn not_programmed(node: &str, service: &ObjectName, reason: &str) -> Self {
        let note = format!("node {node}: {reason}; it is tried again");
        Self::warning(service, "NotProgrammed", "Program", note)
    }

    /// Addresses of a Service belong to older ones. One notice, whatever their number.
    pub(crate) fn addresses_taken(service: &ObjectName, notes: &[&Note]) -> Self {
        Self::warning(service, "AddressTaken", "Program", first_of(notes))
    }

    /// Weights would leave a Service without endpoints.
    pub(crate) fn weights_ignored(node: &str, service: &ObjectName, note: &Note) -> Self {
        let note = format!("node {node}: {note}");
        Self::warning(service, "WeightsIgnored", "Program", note)
    }

    /// Parts of an object were left out, a line for each; `None` if none was.
    pub(crate) fn left_out(about: ObjectReference, lines: &[String]) -> Option<Self> {
        let note = first_of(lines);
        (!lines.is_empty()).then(|| Self::about(about, "PartLeftOut", "Read", note))
    }

    /// The maps had been changed by somebody else.
    pub(crate) fn maps_repaired(node: &str, audited: &Audited) -> Self {
        let note = format!(
            "somebody else has changed {} entries of kube-portal's maps, and {} of them are as they should be again: {}",
            audited.drifted,
            audited.repaired,
            audited.drift.first().map_or("", String::as_str)
        );
        Self::about(about_node(node), "MapsRepaired", "Audit", note)
    }

    /// A backend of a Service fails, or no longer does; `None` if that is no matter for the cluster.
    pub(crate) fn failover(node: &str, news: &News) -> Option<Self> {
        let reason = news.reason()?;
        let word = match reason {
            Reason::PassedOver => "BackendPassedOver",
            Reason::Kept => "BackendNotPassedOver",
            Reason::Returned => "BackendReturned",
        };
        let note = format!("node {node}: {news}");
        let mut notice = Self::warning(&news.service()?, word, "FailOver", note);
        if reason == Reason::Returned {
            notice.type_ = EventType::Normal;
        }
        Some(notice)
    }

    fn warning(
        service: &ObjectName,
        reason: &'static str,
        action: &'static str,
        note: String,
    ) -> Self {
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Service".into()),
            namespace: Some(service.namespace.to_string()),
            name: Some(service.name.to_string()),
            ..ObjectReference::default()
        };
        Self::about(about, reason, action, note)
    }

    fn about(
        about: ObjectReference,
        reason: &'static str,
        action: &'static str,
        mut note: String,
    ) -> Self {
        note.truncate(note.floor_char_boundary(NOTE_LIMIT));
        Self {
            type_: EventType::Warning,
            reason,
            action,
            note,
            about,
        }
    }
}

fn about_node(node: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some(node.into()),
        // By this `kubectl describe node` finds the events of kubelets and proxies.
        uid: Some(node.into()),
        ..ObjectReference::default()
    }
}

/// An object of the API that Events may be about: those that somebody writes, or a controller of theirs.
pub(crate) fn about(kind: &str, meta: &ObjectMeta) -> Option<ObjectReference> {
    let api_version = match kind {
        "Service" => "v1",
        "EndpointSlice" => "discovery.k8s.io/v1",
        _ => return None,
    };
    Some(ObjectReference {
        api_version: Some(api_version.into()),
        kind: Some(kind.into()),
        namespace: meta.namespace.clone(),
        name: Some(meta.name.clone()?),
        uid: meta.uid.clone(),
        ..ObjectReference::default()
    })
}

/// An object in words.
fn named(about: &ObjectReference) -> String {
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    let (kind, name) = (text(&about.kind), text(&about.name));
    match &about.namespace {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    }
}

/// The first of several, and how many more there are.
fn first_of(all: &[impl ToString]) -> String {
    let first = all.first().map(ToString::to_string).unwrap_or_default();
    match all.len() {
        0 | 1 => first,
        more => format!("{first} (and {} more)", more - 1),
    }
}

/// What the cluster's operator is to know of a sync. One notice for each Service and reason: what stands is
/// not in the outcome of a later sync.
pub(crate) fn of_sync(node: &str, outcome: &Outcome) -> Vec<Notice> {
    let waiting = outcome.began_to_wait.iter();
    let mut notices: Vec<Notice> = waiting
        .map(|(service, trouble)| match trouble.full {
            Some(_) => Notice::no_room(node, service, &trouble.reason),
            None => Notice::not_programmed(node, service, &trouble.reason),
        })
        .collect();
    let mut taken: BTreeMap<&ObjectName, Vec<&Note>> = BTreeMap::new();
    for note in &outcome.notes {
        match note {
            Note::AddressTaken { loser, .. } => taken.entry(loser).or_default().push(note),
            Note::NoWeight { service } => {
                notices.push(Notice::weights_ignored(node, service, note));
            }
            Note::NoService { .. } | Note::OtherFamily { .. } => {}
        }
    }
    let taken = taken.iter();
    notices.extend(taken.map(|(loser, notes)| Notice::addresses_taken(loser, notes)));
    notices
}

/// By its uid `kubectl describe` finds the Events of a Service. The model keeps it only where it is needed
/// often, so the API is asked for it.
async fn find_uid(client: &kube::Client, about: &mut ObjectReference) {
    let (Some("Service"), Some(namespace), Some(name), None) = (
        about.kind.as_deref(),
        &about.namespace,
        &about.name,
        &about.uid,
    ) else {
        return;
    };
    let services = Api::<Service>::namespaced(client.clone(), namespace);
    if let Ok(Ok(service)) = timeout(TIMEOUT, services.get_metadata(name)).await {
        about.uid = service.metadata.uid;
    }
}

/// Where notices are handed in.
#[derive(Clone, Debug)]
pub struct Events(mpsc::Sender<Notice>);

impl Events {
    pub(crate) fn start(client: kube::Client, node_name: String) -> Self {
        let (tx, notices) = mpsc::channel(QUEUE);
        tokio::spawn(publish(client, node_name, notices));
        Self(tx)
    }

    /// Returns at once.
    pub(crate) fn tell(&self, notice: Notice) {
        if let Err(error) = self.0.try_send(notice) {
            let notice = error.into_inner();
            log::debug!(
                "the Event {} about {} is not told: too many wait",
                notice.reason,
                named(&notice.about)
            );
        }
    }
}

async fn publish(client: kube::Client, node_name: String, mut notices: mpsc::Receiver<Notice>) {
    let reporter = Reporter {
        controller: "kube-portal".into(),
        instance: Some(node_name),
    };
    let recorder = Recorder::new(client.clone(), reporter);
    let mut told = false;
    while let Some(mut notice) = notices.recv().await {
        find_uid(&client, &mut notice.about).await;
        let about = named(&notice.about);
        let event = Event {
            type_: notice.type_,
            reason: notice.reason.into(),
            action: notice.action.into(),
            note: Some(notice.note),
            secondary: None,
        };
        let published = timeout(TIMEOUT, recorder.publish(&event, &notice.about));
        let reason = match published.await {
            Ok(Ok(())) => {
                told = false;
                None
            }
            Ok(Err(error)) => Some(error.to_string().replace(['\n', '\r'], " ")),
            Err(_) => Some(format!("no answer within {} s", TIMEOUT.as_secs())),
        };
        if let Some(reason) = reason
            && !std::mem::replace(&mut told, true)
        {
            log::warn!(
                "the Event {} about {about} can't be recorded: {reason}; nothing else is off; grant create and patch on events.k8s.io events",
                notice.reason
            );
        }
        tokio::time::sleep(PACE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::waiting::Trouble;

    fn name(name: &str) -> ObjectName {
        ObjectName::new("ns", name)
    }

    fn told(notices: &[Notice]) -> Vec<String> {
        let told = |notice: &Notice| format!("{} {}", notice.reason, named(&notice.about));
        notices.iter().map(told).collect()
    }

    fn taken(loser: &str, port: u16) -> Note {
        let address = crate::model::FrontendAddress {
            ip: "192.0.2.1".parse().unwrap(),
            port,
            protocol: proxy_common::abi::Protocol::Tcp,
        };
        Note::AddressTaken {
            address,
            owner: name("older"),
            loser: name(loser),
        }
    }

    #[test]
    fn a_service_that_is_not_programmed_is_told_by_why() {
        let trouble = |full| Trouble {
            reason: "Service ns/a:http: why".to_owned(),
            full,
        };
        let outcome = Outcome {
            began_to_wait: vec![
                (name("a"), trouble(Some("KP_SLOTS"))),
                (name("b"), trouble(None)),
            ],
            ..Outcome::default()
        };
        let notices = of_sync("n1", &outcome);
        assert_eq!(
            told(&notices),
            ["MapFull Service ns/a", "NotProgrammed Service ns/b"]
        );
        assert_eq!(
            notices[1].note,
            "node n1: Service ns/a:http: why; it is tried again"
        );
    }

    #[test]
    fn the_loser_of_addresses_is_told_once_with_the_owner() {
        let outcome = Outcome {
            notes: vec![taken("new", 80), taken("new", 443), taken("newer", 80)],
            ..Outcome::default()
        };
        let notices = of_sync("n1", &outcome);
        assert_eq!(
            told(&notices),
            [
                "AddressTaken Service ns/new",
                "AddressTaken Service ns/newer"
            ]
        );
        assert!(
            notices[0]
                .note
                .contains("already belongs to Service ns/older")
                && notices[0].note.ends_with("(and 1 more)"),
            "{}",
            notices[0].note
        );
        assert_eq!(of_sync("n1", &Outcome::default()), []);
    }

    #[test]
    fn what_is_left_out_of_an_object_is_told_at_the_object() {
        let meta = ObjectMeta {
            name: Some("web".to_owned()),
            namespace: Some("ns".to_owned()),
            uid: Some("u".to_owned()),
            ..ObjectMeta::default()
        };
        let service = || about("Service", &meta).unwrap();
        let lines = ["spec.ports[0]: no".to_owned(), "more".to_owned()];
        let notice = Notice::left_out(service(), &lines).unwrap();
        assert_eq!(notice.note, "spec.ports[0]: no (and 1 more)");
        assert_eq!(notice.about.uid.as_deref(), Some("u"));
        assert_eq!(told(&[notice]), ["PartLeftOut Service ns/web"]);
        assert_eq!(Notice::left_out(service(), &[]), None);
        assert!(about("EndpointSlice", &meta).is_some());
        assert_eq!(about("Node", &meta), None);
    }

    #[test]
    fn a_repair_is_told_at_the_node_and_a_note_is_never_too_long() {
        let audited = Audited {
            checked: 9,
            drifted: 2,
            repaired: 2,
            drift: vec!["ä".repeat(NOTE_LIMIT)],
        };
        let notice = Notice::maps_repaired("n1", &audited);
        assert!(notice.note.len() <= NOTE_LIMIT && notice.note.contains("2 entries"));
        assert_eq!(told(&[notice]), ["MapsRepaired Node n1"]);
    }

    #[test]
    fn weights_that_leave_nobody_are_told_of_the_service() {
        let outcome = Outcome {
            notes: vec![Note::NoWeight { service: name("a") }],
            ..Outcome::default()
        };
        let notices = of_sync("n1", &outcome);
        assert_eq!(told(&notices), ["WeightsIgnored Service ns/a"]);
        let begin = "node n1: Service ns/a: kube-portal.io/weights has 0 for every endpoint";
        assert!(notices[0].note.starts_with(begin), "{}", notices[0].note);
    }

    #[test]
    fn the_page_has_every_event() {
        let page = include_str!("../../docs/LOGS.md");
        let page = page.split("## Events").nth(1).unwrap();
        let source = include_str!("events.rs").split("mod tests").next().unwrap();
        // Reasons are the only words in quotes that begin with a capital and have another.
        let reasons: std::collections::BTreeSet<&str> = source
            .split('"')
            .skip(1)
            .step_by(2)
            .filter(|text| {
                text.starts_with(|c: char| c.is_ascii_uppercase())
                    && text.chars().all(|c| c.is_ascii_alphabetic())
                    && !["Listen", "Program", "Read", "Audit", "Service", "Node"].contains(text)
                    && !["EndpointSlice", "StartKubePortal", "FailOver"].contains(text)
            })
            .collect();
        let listed: std::collections::BTreeSet<&str> = page
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
            .filter(|text| text.starts_with(|c: char| c.is_ascii_uppercase()))
            .collect();
        assert_eq!(reasons, listed);
    }
}
