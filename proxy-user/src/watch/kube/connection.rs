//! The connection to the API server, as one client that survives its servers: requests go to one that
//! answers, with the credentials that are in the files now, when it wishes to be asked, and end in a bounded
//! time.

use std::{
    error::Error,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::{Method, Request, Response, StatusCode, Uri, http::request::Parts};
use kube::client::Body;
use tokio::time::{Instant, sleep, timeout};

use super::{
    client::{Access, Configured, Files, Patience, client},
    contact::Contact,
    outage::chain,
    requests::Requests,
    retry_after,
    servers::Servers,
    turns::Turns,
};
use crate::watch::SourceError;

/// Clones are the same connection.
#[derive(Clone)]
pub struct Connection {
    client: kube::Client,
    shared: Arc<Shared>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("access", &self.shared.access)
            .finish_non_exhaustive()
    }
}

struct Shared {
    access: Access,
    patience: Patience,
    contact: Contact,
    requests: Requests,
    state: Mutex<State>,
    /// Held by who reads the files.
    reading: tokio::sync::Mutex<()>,
}

struct State {
    /// Of the files when they could last be read.
    config: kube::Config,
    files: Files,
    servers: Servers,
    link: Option<Link>,
    /// Why the files can't be read any more, as it was told.
    unreadable: Option<String>,
    /// Counts the links there were.
    links: u64,
    turns: Turns,
}

/// A client of one server, with the credentials of one moment.
#[derive(Clone)]
struct Link {
    number: u64,
    server: String,
    /// Of its URL, with the port if that names one.
    host: String,
    client: kube::Client,
}

fn host_of(url: &Uri) -> String {
    let host = url.host().unwrap_or_default();
    url.port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// A server that said nothing for too long.
#[derive(Debug)]
pub(super) struct Silence {
    secs: f32,
    instead: &'static str,
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} within {} s", self.instead, self.secs)
    }
}

impl Error for Silence {}

impl Connection {
    /// Nothing is connected yet. To be called on a runtime.
    ///
    /// # Errors
    /// There is no configuration, or no client can be made of it.
    pub async fn new(access: Access, patience: Patience) -> Result<Self, SourceError> {
        let Configured { config, files } = access.read().await?;
        if let Some(proxy) = &config.proxy_url {
            log::warn!(
                "API server {}: the proxy {proxy} is not used, connecting directly",
                config.cluster_url
            );
        }
        let servers = access.servers(&config)?;
        let server = servers.current().url.to_string();
        let host = host_of(&servers.current().url);
        let first =
            client(&config, servers.current(), &patience).map_err(|error| SourceError::Client {
                server: server.clone(),
                reason: chain(&error),
            })?;
        let namespace = config.default_namespace.clone();
        let shared = Arc::new(Shared {
            contact: Contact::new(server.clone()),
            requests: Requests::default(),
            access,
            patience,
            state: Mutex::new(State {
                config,
                files,
                servers,
                link: Some(Link {
                    number: 1,
                    server: server.clone(),
                    host,
                    client: first,
                }),
                unreadable: None,
                links: 1,
                turns: Turns::default(),
            }),
            reading: tokio::sync::Mutex::default(),
        });
        let service = {
            let shared = shared.clone();
            tower::service_fn(move |request| {
                let shared = shared.clone();
                async move { shared.send(request).await }
            })
        };
        Ok(Self {
            client: kube::Client::new(service, namespace),
            shared,
        })
    }

    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }

    pub fn contact(&self) -> Contact {
        self.shared.contact.clone()
    }

    pub fn requests(&self) -> Requests {
        self.shared.requests.clone()
    }

    pub(super) fn patience(&self) -> Patience {
        self.shared.patience
    }

    /// API servers that are asked when none of those that are configured answers: what
    /// `default/kubernetes` has, or had when its endpoints were last known.
    pub fn remember(&self, addresses: &[SocketAddr]) {
        self.shared.state().servers.remember(addresses);
    }
}

/// What matters here of a request.
struct Asked {
    path: String,
    /// The kind, of a list or watch.
    plural: String,
    watch: bool,
    /// Done twice, it is as if done once.
    repeatable: bool,
}

impl Asked {
    fn of(parts: &Parts) -> Self {
        let path = parts.uri.path().to_owned();
        let query = parts.uri.query().unwrap_or_default();
        Self {
            plural: path.rsplit('/').next().unwrap_or_default().to_owned(),
            watch: query
                .split('&')
                .any(|pair| pair == "watch=true" || pair == "watch=1"),
            repeatable: parts.method == Method::GET,
            path,
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Body>, kube::Error> {
        let (parts, body) = request.into_parts();
        let body = body.collect_bytes().await?;
        let asked = Asked::of(&parts);
        self.wait_turn(&asked).await;
        let mut left = self.state().servers.count();
        let mut failed: Vec<String> = Vec::new();
        loop {
            left -= 1;
            let link = self.link().await?;
            let answer = self.attempt(&link, &parts, body.clone(), &asked).await;
            let status = answer.as_ref().ok().map(Response::status);
            self.requests.count(status, &link.host, &parts.method);
            match &answer {
                Ok(response) => {
                    let status = response.status();
                    if status == StatusCode::UNAUTHORIZED {
                        // Whatever says who we are is read again for the next request.
                        self.drop_link(&link);
                    }
                    if status.is_server_error() && left > 0 && asked.repeatable {
                        failed.push(format!("API server {}: status {status}", link.server));
                        self.leave(&link);
                        continue;
                    }
                    if self.contact.moved(&link.server) {
                        failed.push(format!("going on with {}", link.server));
                        log::info!("{}", failed.join("; "));
                    }
                    let wish = retry_after::wish(status, response.headers(), SystemTime::now());
                    if let Some(pause) = wish {
                        self.state().turns.ask_pause(pause, Instant::now());
                    }
                    // Whether a list can be used is for its reader to say.
                    if status.is_success() && asked.watch {
                        for line in self.contact.answered(&asked.plural, Instant::now()) {
                            line.tell();
                        }
                    }
                }
                Err(error) => {
                    failed.push(format!("API server {}: {}", link.server, chain(error)));
                    self.leave(&link);
                    if left > 0 && (asked.repeatable || never_sent(error)) {
                        continue;
                    }
                    if failed.len() > 1 {
                        return Err(kube::Error::Service(failed.join("; ").into()));
                    }
                }
            }
            return answer;
        }
    }

    async fn wait_turn(&self, asked: &Asked) {
        loop {
            let pause = self.state().turns.pause(Instant::now());
            if pause.is_zero() {
                break;
            }
            sleep(pause).await;
        }
        if asked.watch {
            let wait = self.state().turns.watch(&asked.path, Instant::now());
            sleep(wait).await;
        }
    }

    async fn attempt(
        &self,
        link: &Link,
        parts: &Parts,
        body: Bytes,
        asked: &Asked,
    ) -> Result<Response<Body>, kube::Error> {
        let mut request = Request::new(Body::from(body));
        *request.method_mut() = parts.method.clone();
        *request.uri_mut() = parts.uri.clone();
        *request.headers_mut() = parts.headers.clone();
        let Patience { answer, whole, .. } = self.patience;
        let begun = link.client.send(request);
        let begun = within(answer, "no answer", begun);
        if asked.watch {
            return begun.await?;
        }
        let whole_answer = async {
            let (parts, body) = begun.await??.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok(Response::from_parts(parts, Body::from(body)))
        };
        within(whole, "no whole answer", whole_answer).await?
    }

    /// The one there is, unless its files have changed.
    async fn link(&self) -> Result<Link, kube::Error> {
        let known = |state: &State| state.link.clone().filter(|_| !state.files.changed());
        if let Some(link) = known(&self.state()) {
            return Ok(link);
        }
        let _one_reads = self.reading.lock().await;
        if let Some(link) = known(&self.state()) {
            return Ok(link);
        }
        let read = self.access.read().await;
        let mut state = self.state();
        match read {
            Ok(Configured { config, files }) => {
                state.config = config;
                state.files = files;
                state.unreadable = None;
            }
            Err(error) => {
                let line = error.to_string();
                if state.unreadable.as_ref() != Some(&line) {
                    log::warn!("{line}; until then what was read before is used");
                }
                state.unreadable = Some(line);
                state.files.settle();
            }
        }
        let made = client(&state.config, state.servers.current(), &self.patience);
        match (made, &state.link) {
            (Ok(client), _) => {
                state.links += 1;
                let link = Link {
                    number: state.links,
                    server: state.servers.current().url.to_string(),
                    host: host_of(&state.servers.current().url),
                    client,
                };
                state.link = Some(link.clone());
                Ok(link)
            }
            // Half of a pair of files was replaced.
            (Err(error), Some(link)) => {
                log::warn!(
                    "API server {}: no client can be made: {}; the one before is used",
                    state.servers.current().url,
                    chain(&error)
                );
                Ok(link.clone())
            }
            (Err(error), None) => Err(error),
        }
    }

    fn drop_link(&self, link: &Link) {
        let mut state = self.state();
        state.link.take_if(|known| known.number == link.number);
    }

    /// To the next server, unless somebody has gone there already.
    fn leave(&self, link: &Link) {
        let mut state = self.state();
        if state
            .link
            .take_if(|known| known.number == link.number)
            .is_none()
        {
            return;
        }
        let before = state.servers.current().clone();
        state.servers.go_on();
        if before != *state.servers.current() {
            state.turns.forget_pause();
        }
    }
}

/// There was no connection to send it on.
fn never_sent(error: &kube::Error) -> bool {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(cause) = next {
        if let Some(client) = cause.downcast_ref::<hyper_util::client::legacy::Error>() {
            return client.is_connect();
        }
        next = cause.source();
    }
    false
}

async fn within<T>(
    limit: Duration,
    instead: &'static str,
    work: impl Future<Output = T>,
) -> Result<T, kube::Error> {
    timeout(limit, work).await.map_err(|_| {
        kube::Error::Service(Box::new(Silence {
            secs: limit.as_secs_f32(),
            instead,
        }))
    })
}
