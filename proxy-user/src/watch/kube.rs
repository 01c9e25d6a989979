//! A Kubernetes API server as the source.
//!
//! Four watches: Services and EndpointSlices with the selectors of kube-proxy
//! (`cmd/kube-proxy/app/server.go`), the own Node, and the ServiceCIDRs, which old servers don't have
//! and old ClusterRoles don't grant. While the server can't be reached nothing is deleted: what was
//! known last goes on working.

mod client;
mod connection;
mod contact;
mod loose;
mod outage;
mod pace;
mod requests;
mod retry_after;
mod servers;
mod turns;
mod wire;

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Debug,
    net::SocketAddr,
    pin::pin,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures::StreamExt;
use k8s_openapi::{
    api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Resource,
    runtime::{
        utils::Backoff,
        watcher::{self, DefaultBackoff, watcher},
    },
};
use tokio::{sync::mpsc, time::Instant};

pub(crate) use self::contact::span;
pub(crate) use self::outage::chain;
pub use self::{
    client::{Access, Patience},
    connection::Connection,
    contact::{Contact, Freshness},
    requests::Requests,
};
use self::{contact::Failure, loose::Loose, pace::Pace, wire::Stripped};
use super::{SourceError, standing::Standing};
use crate::{
    events::{self, Events, Notice},
    model::{
        Event, Kind, Node,
        ingest::{self, Ingested},
    },
};

/// How often it is looked whether an optional kind is served by now: the first time, and at most. A server
/// that has just started refuses everybody for some seconds, until it has read its roles.
const ABSENT_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_ABSENT_PAUSE: Duration = Duration::from_secs(300);
/// For so long the objects of a kind that was there are kept when it is withheld.
const WITHHELD_AT_ONCE: Duration = Duration::from_secs(60);

/// Of the port of `default/kubernetes`.
const API_SERVER_PORT: &str = "https";

const SERVICE_LABELS: &str = "!service.kubernetes.io/service-proxy-name";
/// Of Services: headless ones are never even sent.
const SERVICE_FIELDS: &str = "spec.clusterIP!=None";
const SLICE_LABELS: &str =
    "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless";

/// Runs until the receiver is gone.
pub async fn run(
    connection: Connection,
    node_name: String,
    tx: mpsc::Sender<Event>,
    notices: Option<Events>,
) -> Result<(), SourceError> {
    let client = connection.client();
    // The server ends a watch after this time, and it is resumed; one that is silent for longer is dead.
    let config = watcher::Config::default().timeout(connection.patience().watch_secs());
    let api_servers = ApiServers::new(connection.clone());

    let services = Watch {
        what: "Service",
        list: Some(Kind::Service),
        without_it: None,
        apply: ingest::service,
        gone: ingest::service_gone,
        tx: tx.clone(),
        contact: connection.contact(),
        notices: notices.clone(),
    };
    let slices = Watch {
        what: "EndpointSlice",
        list: Some(Kind::EndpointSlice),
        without_it: None,
        apply: |slice| ingest::slice(api_servers.kept(slice)),
        gone: ingest::slice_gone,
        tx: tx.clone(),
        contact: connection.contact(),
        notices: notices.clone(),
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
        contact: connection.contact(),
        notices: notices.clone(),
    };
    let node = Watch {
        what: "Node",
        list: None,
        without_it: None,
        apply: |node: core::Node| ingest::node(node, &node_name),
        gone: |_: &ObjectMeta| Some(ingest::node_gone(&node_name)),
        tx: tx.clone(),
        contact: connection.contact(),
        notices: notices.clone(),
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

/// The slices of `default/kubernetes`, whose endpoints are the API servers themselves.
struct ApiServers {
    connection: Connection,
    /// By name, when they last had endpoints.
    slices: Mutex<BTreeMap<String, discovery::EndpointSlice>>,
}

impl ApiServers {
    fn new(connection: Connection) -> Self {
        Self {
            connection,
            slices: Mutex::default(),
        }
    }

    /// Remembers them. An API server that stops takes itself out, and the last one leaves none: then the
    /// slice stays as it was. Else this node would refuse what leads to the API server, and if that is our
    /// own way to it, would never learn that it is back.
    fn kept(&self, slice: discovery::EndpointSlice) -> discovery::EndpointSlice {
        let labels = slice.metadata.labels.as_ref();
        let service = labels.and_then(|labels| labels.get(ingest::LABEL_SERVICE_NAME));
        let theirs = slice.metadata.namespace.as_deref() == Some("default")
            && service.is_some_and(|service| service == "kubernetes");
        let Some(name) = slice.metadata.name.clone().filter(|_| theirs) else {
            return slice;
        };
        let mut slices = self.slices.lock().unwrap_or_else(PoisonError::into_inner);
        if slice.endpoints.is_empty() {
            return slices.get(&name).cloned().unwrap_or(slice);
        }
        slices.insert(name, slice.clone());
        let addresses: Vec<SocketAddr> = slices.values().flat_map(api_servers).collect();
        self.connection.remember(&addresses);
        slice
    }
}

fn api_servers(slice: &discovery::EndpointSlice) -> impl Iterator<Item = SocketAddr> {
    let ports = slice.ports.iter().flatten();
    let port = ports
        .filter(|port| port.name.as_deref() == Some(API_SERVER_PORT))
        .find_map(|port| u16::try_from(port.port?).ok());
    let addresses = slice
        .endpoints
        .iter()
        .flat_map(|endpoint| &endpoint.addresses);
    addresses.filter_map(move |address| Some(SocketAddr::new(address.parse().ok()?, port?)))
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
    contact: Contact,
    /// Where troubles of objects are told, too.
    notices: Option<Events>,
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
    /// The list in progress has begun to come.
    answered: bool,
    /// Whom the list in progress brought: of the Node itself, else those with problems.
    listed: HashSet<String>,
    node: Option<Node>,
    /// It has been listed, and not been withheld since.
    known: bool,
    /// Since when the server has withheld the kind.
    withheld: Option<Instant>,
    /// It has been said that the kind is not served, and how long it is not asked for.
    absent: Option<Duration>,
}

impl State {
    /// Why the kind is not served, if that is to be believed.
    fn withheld_for_good(&mut self, error: &watcher::Error) -> Option<&'static str> {
        let reason = outage::withheld(error)?;
        let since = *self.withheld.get_or_insert_with(Instant::now);
        (!self.known || since.elapsed() >= WITHHELD_AT_ONCE).then_some(reason)
    }
}

impl<A, G> Watch<A, G> {
    async fn run<K>(self, api: Api<Loose<K>>, config: watcher::Config)
    where
        K: Stripped + k8s_openapi::Resource + Clone + Debug + Send + 'static,
        A: Fn(K) -> Ingested,
        G: Fn(&ObjectMeta) -> Option<Event>,
    {
        let mut state = State::default();
        let mut backoff = DefaultBackoff::default();
        let plural = K::URL_PATH_SEGMENT;
        self.contact.missed(plural, Instant::now());
        // Each round begins with a list.
        loop {
            let mut events = pin!(watcher(api.clone(), config.clone()));
            let mut pace = Pace::new(Instant::now());
            loop {
                // The pages of a list follow one another as fast as they are read.
                let event = if state.listing {
                    events.next().await
                } else {
                    pace.next(&mut events).await
                };
                let Some(event) = event else {
                    break;
                };
                let error = match event {
                    Ok(event) => {
                        // An Init says only that the list is going to be asked for.
                        if !matches!(event, watcher::Event::Init) {
                            backoff.reset();
                            state.absent = None;
                            state.withheld = None;
                            let is_done = matches!(event, watcher::Event::InitDone);
                            state.known |= is_done;
                            let first = !std::mem::replace(&mut state.answered, true);
                            if state.listing && (first || is_done) {
                                let over = self.contact.answered(plural, Instant::now());
                                over.into_iter().for_each(contact::Line::tell);
                            }
                        }
                        if self.tell(event, &mut state).await.is_err() {
                            return;
                        }
                        continue;
                    }
                    Err(error) => error,
                };
                // Nobody waits for an object that can't be had; while no server answers, the others can't
                // be had either.
                if (outage::is_answer(&error) || outage::is_silence(&error))
                    && self.list.is_none()
                    && state.node.is_none()
                    && self.is_none(&mut state).await.is_err()
                {
                    return;
                }
                if outage::is_gone(&error) {
                    // The server is there. How long it took to come back must not delay the list.
                    backoff.reset();
                }
                let mut pause = backoff.next().unwrap_or_default();
                let list_again = match (self.without_it, state.withheld_for_good(&error)) {
                    (Some(missing), Some(reason)) => {
                        self.contact.without(plural);
                        match self.absent(reason, missing, &mut state).await {
                            Ok(absent) => pause += absent,
                            Err(Closed) => return,
                        }
                        true
                    }
                    _ => {
                        self.failed(plural, &error);
                        outage::needs_list(&error)
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

    fn failed(&self, plural: &'static str, error: &watcher::Error) {
        if outage::is_gone(error) {
            // The ordinary way of the API to say that a watch was away for too long.
            log::info!(
                "{} watch: the server's history does not go back that far, listing again",
                self.what
            );
            self.contact.missed(plural, Instant::now());
            return;
        }
        let failure = Failure {
            what: self.what,
            plural,
            answered: outage::is_answer(error),
            reason: &outage::reason(error),
            remedy: outage::remedy(error),
        };
        self.contact.failed(failure, Instant::now()).tell();
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
                state.answered = false;
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
                    state.standing.replace(&event.subject(), Vec::new());
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
    /// Yields for how long it is not asked for.
    async fn absent(
        &self,
        reason: &str,
        missing: &str,
        state: &mut State,
    ) -> Result<Duration, Closed> {
        let pause = match state.absent {
            Some(before) => LONGEST_ABSENT_PAUSE.min(before * 2),
            None => {
                log::info!("{} watch: {reason}, so {missing}", self.what);
                ABSENT_PAUSE
            }
        };
        state.absent = Some(pause);
        state.known = false;
        if let Some(kind) = self.list {
            self.send(Event::ListStarted(kind)).await?;
            self.send(Event::Listed(kind)).await?;
        }
        Ok(pause)
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
        let subject = (self.gone)(object.meta()).map_or_else(String::new, |gone| gone.subject());
        let about = events::about(self.what, object.meta());
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
        let lines = state.standing.replace(&subject, lines);
        for line in &lines {
            log::warn!("{line}");
        }
        if let (Some(events), Some(about)) = (&self.notices, about)
            && let Some(notice) = Notice::left_out(about, &lines)
        {
            events.tell(notice);
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
