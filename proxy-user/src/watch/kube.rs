//! A Kubernetes API server as the source.
//!
//! Four watches: Services and EndpointSlices with the selectors of kube-proxy
//! (`cmd/kube-proxy/app/server.go`), the own Node, and the ServiceCIDRs, which old servers don't have
//! and old ClusterRoles don't grant. While the server can't be reached nothing is deleted: what was
//! known last goes on working.

mod client;
mod loose;
mod outage;
mod wire;

use std::{collections::HashSet, fmt::Debug, pin::pin, time::Duration};

use futures::StreamExt;
use k8s_openapi::{
    api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Resource,
    runtime::{
        utils::Backoff,
        watcher::{self, DefaultBackoff, watcher},
    },
};
use tokio::{sync::mpsc, time::Instant};

pub use self::client::{client, client_config, cluster_config};
use self::{loose::Loose, outage::Outage, wire::Stripped};
use super::{SourceError, standing::Standing};
use crate::model::{
    Event, Kind, Node,
    ingest::{self, Ingested},
};

/// The server ends a watch after this time, and it is resumed; one that is silent for longer is dead.
const WATCH_TIMEOUT_SECS: u32 = 240;
/// A page of a list comes within this time, or the request hangs.
const LIST_TIMEOUT: Duration = Duration::from_secs(60);
/// How often it is looked whether an optional kind is served by now.
const ABSENT_PAUSE: Duration = Duration::from_secs(300);

const SERVICE_LABELS: &str = "!service.kubernetes.io/service-proxy-name";
/// Of Services: headless ones are never even sent.
const SERVICE_FIELDS: &str = "spec.clusterIP!=None";
const SLICE_LABELS: &str =
    "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless";

/// Runs until the receiver is gone.
pub async fn run(
    client: Client,
    node_name: String,
    tx: mpsc::Sender<Event>,
) -> Result<(), SourceError> {
    let config = watcher::Config::default().timeout(WATCH_TIMEOUT_SECS);

    let services = Watch {
        what: "Service",
        list: Some(Kind::Service),
        without_it: None,
        apply: ingest::service,
        gone: ingest::service_gone,
        tx: tx.clone(),
    };
    let slices = Watch {
        what: "EndpointSlice",
        list: Some(Kind::EndpointSlice),
        without_it: None,
        apply: ingest::slice,
        gone: ingest::slice_gone,
        tx: tx.clone(),
    };
    let service_cidrs = Watch {
        what: "ServiceCIDR",
        list: Some(Kind::ServiceCidr),
        without_it: Some(
            "what is dialled in a ServiceCIDR without being a ClusterIP is not dropped",
        ),
        apply: ingest::service_cidr,
        gone: ingest::service_cidr_gone,
        tx: tx.clone(),
    };
    let node = Watch {
        what: "Node",
        list: None,
        without_it: None,
        apply: |node: core::Node| ingest::node(node, &node_name),
        gone: |_: &ObjectMeta| Some(ingest::node_gone(&node_name)),
        tx: tx.clone(),
    };
    let watches = async {
        tokio::join!(
            services.run(
                Api::<Loose<core::Service>>::all(client.clone()),
                config.clone().labels(SERVICE_LABELS).fields(SERVICE_FIELDS),
            ),
            slices.run(
                Api::<Loose<discovery::EndpointSlice>>::all(client.clone()),
                config.clone().labels(SLICE_LABELS),
            ),
            service_cidrs.run(
                Api::<Loose<networking::ServiceCIDR>>::all(client.clone()),
                config.clone(),
            ),
            node.run(
                Api::<Loose<core::Node>>::all(client.clone()),
                config.clone().fields(&format!("metadata.name={node_name}")),
            ),
        )
    };
    tokio::select! {
        _ = watches => {}
        () = tx.closed() => {}
    }
    Ok(())
}

struct Watch<A, G> {
    what: &'static str,
    /// `None` for the Node: there is at most one, so its list is its absence or itself.
    list: Option<Kind>,
    /// Set for a kind that may not be served or not be granted: what is missing then.
    without_it: Option<&'static str>,
    apply: A,
    gone: G,
    tx: mpsc::Sender<Event>,
}

/// The receiver is gone.
struct Closed;

/// What is kept between the events of one watch.
#[derive(Default)]
struct State {
    standing: Standing,
    /// A list has begun whose beginning was not told: it may fail before it says anything.
    list_begins: bool,
    /// From `Init` to `InitDone`.
    listing: bool,
    /// Whom the list in progress brought: of the Node itself, else those with problems.
    listed: HashSet<String>,
    node: Option<Node>,
    /// It has been said that the kind is not served.
    absent: bool,
}

impl<A, G> Watch<A, G> {
    async fn run<K>(self, api: Api<Loose<K>>, config: watcher::Config)
    where
        K: Stripped + Clone + Debug + Send + 'static,
        A: Fn(K) -> Ingested,
        G: Fn(&ObjectMeta) -> Option<Event>,
    {
        let mut state = State::default();
        let mut backoff = DefaultBackoff::default();
        let mut outage = Outage::new(self.what);
        // Each round begins with a list.
        loop {
            let mut events = pin!(watcher(api.clone(), config.clone()));
            loop {
                let next = if state.listing {
                    tokio::time::timeout(LIST_TIMEOUT, events.next()).await
                } else {
                    Ok(events.next().await)
                };
                let error = match next {
                    Ok(Some(Ok(event))) => {
                        // An Init says only that the list is going to be asked for.
                        if !matches!(event, watcher::Event::Init) {
                            backoff.reset();
                            outage.over(Instant::now());
                            state.absent = false;
                        }
                        if self.tell(event, &mut state).await.is_err() {
                            return;
                        }
                        continue;
                    }
                    Ok(Some(Err(error))) => Some(error),
                    Ok(None) => break,
                    Err(_) => None,
                };
                // Nobody waits for an object that can't be had; while no server answers, the others can't
                // be had either.
                if error.as_ref().is_none_or(outage::is_answer)
                    && self.list.is_none()
                    && state.node.is_none()
                    && self.is_none(&mut state).await.is_err()
                {
                    return;
                }
                let mut pause = backoff.next().unwrap_or_default();
                let list_again = match &error {
                    Some(error)
                        if let (Some(missing), Some(reason)) =
                            (self.without_it, outage::withheld(error)) =>
                    {
                        if self.absent(reason, missing, &mut state).await.is_err() {
                            return;
                        }
                        pause += ABSENT_PAUSE;
                        true
                    }
                    Some(error) => {
                        outage.error(error, Instant::now());
                        outage::needs_list(error)
                    }
                    None => {
                        outage.hangs(LIST_TIMEOUT, Instant::now());
                        true
                    }
                };
                // Jittered, so that the nodes of a cluster don't come back all at once.
                tokio::time::sleep(pause).await;
                if list_again {
                    break;
                }
            }
        }
    }

    async fn tell<K>(
        &self,
        event: watcher::Event<Loose<K>>,
        state: &mut State,
    ) -> Result<(), Closed>
    where
        K: Stripped,
        A: Fn(K) -> Ingested,
        G: Fn(&ObjectMeta) -> Option<Event>,
    {
        match event {
            watcher::Event::Init => {
                state.list_begins = true;
                state.listing = true;
                state.listed.clear();
            }
            watcher::Event::InitApply(object) => {
                self.list_begins(state).await?;
                self.apply(object, state).await?;
            }
            watcher::Event::InitDone => {
                self.list_begins(state).await?;
                state.listing = false;
                let State {
                    standing, listed, ..
                } = state;
                standing.retain(|subject| listed.contains(subject));
                match self.list {
                    Some(kind) => self.send(Event::Listed(kind)).await?,
                    None if listed.is_empty() => {
                        log::warn!(
                            "{}: the API server has none of this name, so no zone is known; check --node-name",
                            self.what
                        );
                        self.is_none(state).await?;
                    }
                    None => {}
                }
            }
            watcher::Event::Apply(object) => self.apply(object, state).await?,
            watcher::Event::Delete(object) => {
                if let Some(event) = (self.gone)(object.meta()) {
                    state.standing.replace(&subject(&event), Vec::new());
                    self.send_changed(event, state).await?;
                }
            }
        }
        Ok(())
    }

    /// There is no Node of this name.
    async fn is_none(&self, state: &mut State) -> Result<(), Closed>
    where
        G: Fn(&ObjectMeta) -> Option<Event>,
    {
        match (self.gone)(&ObjectMeta::default()) {
            Some(gone) => self.send_changed(gone, state).await,
            None => Ok(()),
        }
    }

    /// The server has no such kind for us: there is none.
    async fn absent(&self, reason: &str, missing: &str, state: &mut State) -> Result<(), Closed> {
        if !std::mem::replace(&mut state.absent, true) {
            log::info!("{} watch: {reason}, so {missing}", self.what);
        }
        if let Some(kind) = self.list {
            self.send(Event::ListStarted(kind)).await?;
            self.send(Event::Listed(kind)).await?;
        }
        Ok(())
    }

    async fn list_begins(&self, state: &mut State) -> Result<(), Closed> {
        match self.list {
            Some(kind) if std::mem::take(&mut state.list_begins) => {
                self.send(Event::ListStarted(kind)).await
            }
            _ => Ok(()),
        }
    }

    async fn apply<K>(&self, object: Loose<K>, state: &mut State) -> Result<(), Closed>
    where
        K: Stripped,
        A: Fn(K) -> Ingested,
        G: Fn(&ObjectMeta) -> Option<Event>,
    {
        let subject = (self.gone)(object.meta()).map_or_else(String::new, |gone| subject(&gone));
        let (event, lines) = match object.object {
            Ok(object) => {
                let Ingested { event, problems } = (self.apply)(object);
                (event, problems.iter().map(ToString::to_string).collect())
            }
            // What it was before is kept while the watch lasts; a new list leaves it out.
            Err((field, reason)) => {
                let line = format!("{subject}: {field}: {reason}; correct the object");
                (None, vec![line])
            }
        };
        if state.listing && (!lines.is_empty() || self.list.is_none()) {
            state.listed.insert(subject.clone());
        }
        for line in state.standing.replace(&subject, lines) {
            log::warn!("{line}");
        }
        match event {
            Some(event) => self.send_changed(event, state).await,
            None => Ok(()),
        }
    }

    /// A Node's status changes all the time, what we read of it hardly ever.
    async fn send_changed(&self, event: Event, state: &mut State) -> Result<(), Closed> {
        if let Event::NodeChanged(node) = &event
            && state.node.replace(node.clone()).as_ref() == Some(node)
        {
            return Ok(());
        }
        self.send(event).await
    }

    async fn send(&self, event: Event) -> Result<(), Closed> {
        self.tx.send(event).await.map_err(|_| Closed)
    }
}

/// The object of an event, in words.
fn subject(event: &Event) -> String {
    match event {
        Event::ServiceApplied(service) => format!("Service {}", service.name),
        Event::ServiceGone(name) => format!("Service {name}"),
        Event::SliceApplied(slice) => format!("EndpointSlice {}", slice.name),
        Event::SliceGone(name) => format!("EndpointSlice {name}"),
        Event::ServiceCidrApplied(name, _) | Event::ServiceCidrGone(name) => {
            format!("ServiceCIDR {name}")
        }
        Event::NodeChanged(node) => format!("Node {}", node.name),
        Event::LocalAddresses(_) => "addresses of the node".to_owned(),
        Event::ListStarted(kind) | Event::Listed(kind) => kind.to_string(),
    }
}
