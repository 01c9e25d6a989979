//! Events of the Kubernetes API (`events.k8s.io/v1`): told in passing, a few at a time. An API that
//! doesn't take them is no trouble for anybody.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, Service};
use kube::{
    Api,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::{sync::mpsc, time::timeout};

use crate::model::{HealthCheck, ObjectName};

/// Notices that wait; further ones are dropped.
const QUEUE: usize = 64;
/// Between two notices.
const PACE: Duration = Duration::from_millis(200);
const TIMEOUT: Duration = Duration::from_secs(10);
/// What the API allows for a note, in bytes.
const NOTE_LIMIT: usize = 1024;

/// An Event, and the object it is about.
#[derive(Clone, Debug)]
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
            about: ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Node".into()),
                name: Some(node.into()),
                // By this `kubectl describe node` finds the events of kubelets and proxies.
                uid: Some(node.into()),
                ..ObjectReference::default()
            },
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

    fn warning(
        service: &ObjectName,
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
            about: ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Service".into()),
                namespace: Some(service.namespace.to_string()),
                name: Some(service.name.to_string()),
                ..ObjectReference::default()
            },
        }
    }
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
pub(crate) struct Events(mpsc::Sender<Notice>);

impl Events {
    pub(crate) fn start(client: kube::Client, node_name: String) -> Self {
        let (tx, notices) = mpsc::channel(QUEUE);
        tokio::spawn(publish(client, node_name, notices));
        Self(tx)
    }

    /// Returns at once.
    pub(crate) fn tell(&self, notice: Notice) {
        if let Err(error) = self.0.try_send(notice) {
            log::debug!("an Event was dropped: {error}");
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
                "the Event {} can't be recorded: {reason}; nothing else is off; grant create and patch on events.k8s.io events",
                notice.reason
            );
        }
        tokio::time::sleep(PACE).await;
    }
}
