//! A small Kubernetes API server: lists and watches as the real one answers them, and every way they
//! break, on demand.
//!
//! HTTP/1.1, plain or with TLS, on a listener of the caller's (which may live in a network namespace), run by a
//! thread of its own, so tests may be asynchronous or not. Objects are JSON and are not validated.

mod http;
mod objects;
mod selector;
mod tls;

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::{runtime, sync::watch};
use tokio_rustls::rustls::ServerConfig;

use self::objects::Store;
pub use self::tls::{Authority, Identity};

/// How an expired `resourceVersion` is told (the real server does either).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gone {
    /// HTTP status 410.
    #[default]
    Status,
    /// Status 200 and an ERROR event.
    Event,
}

/// Stops when dropped.
#[derive(Debug)]
pub struct ApiServer {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Raised by 1 to close every connection; `None` to end.
    cuts: watch::Sender<Option<u64>>,
    hang: watch::Sender<bool>,
    /// The resource whose requests are not answered.
    held: watch::Sender<Option<String>>,
}

#[derive(Debug, Default)]
struct State {
    store: Store,
    gone: Gone,
    fail: Option<Failure>,
    /// A resource that is not served, and the status its requests get.
    withheld: Option<(String, u16)>,
    /// Of new connections; without it, they are plain.
    tls: Option<Arc<ServerConfig>>,
    /// The only one that is let in.
    token: Option<String>,
    /// A resource whose lists stop in the middle.
    stalled: Option<&'static str>,
    /// Watches are granted, and over.
    ends_watches: bool,
    log: Vec<String>,
    asked: Vec<Instant>,
    /// When the last page of each resource's list, and the last event of any watch, was handed to
    /// its connection.
    listed: BTreeMap<&'static str, Instant>,
    told: Option<Instant>,
    /// Open connections, by how many cuts there had been when they were accepted.
    connections: BTreeMap<u64, usize>,
}

#[derive(Clone, Debug)]
struct Failure {
    left: usize,
    status: u16,
    retry_after: Option<String>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic of one test thread must not hide behind another's.
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl ApiServer {
    pub fn start(listener: TcpListener) -> io::Result<Self> {
        Self::start_with(listener, |_| ())
    }

    /// Nothing is answered before `prepare` has returned.
    pub fn start_with(listener: TcpListener, prepare: impl FnOnce(&Self)) -> io::Result<Self> {
        let addr = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            cuts: watch::Sender::new(Some(0)),
            hang: watch::Sender::new(false),
            held: watch::Sender::new(None),
        });
        let server = Self {
            addr,
            shared: shared.clone(),
        };
        prepare(&server);
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        thread::Builder::new()
            .name("apiserver".into())
            .spawn(move || runtime.block_on(http::serve(listener, shared)))?;
        Ok(server)
    }

    /// On a free port of 127.0.0.1.
    pub fn on_loopback() -> io::Result<Self> {
        Self::start(TcpListener::bind("127.0.0.1:0")?)
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Creates or replaces an object, by its kind, namespace and name.
    ///
    /// # Panics
    /// If it is not an object of a kind that is served.
    pub fn apply(&self, object: Value) {
        self.shared.state().store.apply(object);
    }

    /// Whether there was one. The namespace of a Node is "".
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> bool {
        self.shared.state().store.delete(kind, namespace, name)
    }

    /// Forgets the history: whoever resumes from before now (or is in the middle of a paged list) is
    /// told 410 Gone. Watches that are connected go on.
    pub fn compact(&self) {
        self.shared.state().store.compact();
    }

    /// How 410 Gone is told from now on.
    pub fn tell_gone(&self, how: Gone) {
        self.shared.state().gone = how;
    }

    /// Ends every watch with an ERROR event 410, as after the server lost its cache.
    pub fn expire_watches(&self) {
        self.shared.state().store.expire_watches();
    }

    /// Sends a BOOKMARK to every watch that allows them.
    pub fn bookmark(&self) {
        self.shared.state().store.bookmark();
    }

    /// Closes every connection in the middle of whatever it is doing. When this returns, they are
    /// closed, and nothing that happens from then on was sent to them.
    pub fn cut(&self) {
        self.shared.state().store.forsake_watches();
        self.shared
            .cuts
            .send_modify(|cuts| *cuts = cuts.map(|cuts| cuts + 1));
        let now = self.shared.cuts.borrow().unwrap_or(u64::MAX);
        self.wait_until("connections are closed", |server| {
            server.shared.state().connections.range(..now).count() == 0
        });
    }

    /// While on, requests are accepted and not answered, and watches are silent.
    pub fn hang(&self, on: bool) {
        self.shared.hang.send_replace(on);
    }

    /// Does not answer requests for this resource ("services", "endpointslices", "nodes") until
    /// another or none is held.
    pub fn hold(&self, resource: Option<&str>) {
        self.shared.held.send_replace(resource.map(str::to_owned));
    }

    /// Answers every request for this resource with a status: an old server, or a role too small.
    pub fn withhold(&self, resource: &str, status: u16) {
        self.shared.state().withheld = Some((resource.to_owned(), status));
    }

    /// The opposite of [`Self::withhold`].
    pub fn grant_all(&self) {
        self.shared.state().withheld = None;
    }

    /// Answers the next `n` requests with a status.
    pub fn fail_next(&self, n: usize, status: u16) {
        self.fail(n, status, None);
    }

    /// As [`Self::fail_next`], asking to wait: seconds, or a date as HTTP writes it.
    pub fn fail_next_retry_after(&self, n: usize, status: u16, retry_after: &str) {
        self.fail(n, status, Some(retry_after.to_owned()));
    }

    fn fail(&self, left: usize, status: u16, retry_after: Option<String>) {
        self.shared.state().fail = Some(Failure {
            left,
            status,
            retry_after,
        });
    }

    /// New connections speak TLS: the server is `identity`, and with `clients` they need a certificate of
    /// theirs. Those there are go on.
    ///
    /// # Errors
    /// A certificate that can't be used.
    pub fn use_tls(&self, identity: &Identity, clients: Option<&Authority>) -> io::Result<()> {
        self.shared.state().tls = Some(identity.server(clients)?);
        Ok(())
    }

    /// Whoever has another token is not known (401).
    pub fn demand_token(&self, token: &str) {
        self.shared.state().token = Some(token.to_owned());
    }

    /// Lists of this resource stop in the middle of the answer, until another or none is stalled. Those that
    /// are stalled stay so.
    pub fn stall(&self, resource: Option<&'static str>) {
        self.shared.state().stalled = resource;
    }

    /// Watches are granted, and end at once with nothing said.
    pub fn end_watches_at_once(&self, on: bool) {
        self.shared.state().ends_watches = on;
    }

    /// How many watches of a resource ("services", "endpointslices", "nodes") are connected.
    pub fn watches(&self, resource: &str) -> usize {
        self.shared.state().store.watches(resource)
    }

    /// Method, path and query of every request so far.
    pub fn log(&self) -> Vec<String> {
        self.shared.state().log.clone()
    }

    /// When each request of [`Self::log`] came.
    pub fn asked_at(&self) -> Vec<Instant> {
        self.shared.state().asked.clone()
    }

    /// When the last page of the newest list of a resource was ready and about to be written to its
    /// connection; `None` before.
    pub fn listed_at(&self, resource: &str) -> Option<Instant> {
        self.shared.state().listed.get(resource).copied()
    }

    /// When the newest event of any watch was about to be written to its connection.
    pub fn told_at(&self) -> Option<Instant> {
        self.shared.state().told
    }

    /// Objects posted by clients (Events), oldest first.
    pub fn posted(&self) -> Vec<Value> {
        self.shared.state().store.posted.clone()
    }

    /// Writes a kubeconfig that leads here.
    pub fn kubeconfig(&self, path: &Path) -> io::Result<()> {
        self.kubeconfig_to(path, &format!("http://{}", self.addr))
    }

    /// The same with another URL for it.
    pub fn kubeconfig_to(&self, path: &Path, url: &str) -> io::Result<()> {
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{"name": "test", "cluster": {"server": url}}],
            "users": [{"name": "test", "user": {"token": "test"}}],
        });
        std::fs::write(path, config.to_string())
    }

    /// Waits until a condition of the server holds, blocking the thread.
    ///
    /// # Panics
    /// If it does not within 30 seconds.
    pub fn wait_until(&self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        for _ in 0..3000 {
            if condition(self) {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("{what}: not within 30 s; requests: {:#?}", self.log());
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.shared.cuts.send_replace(None);
    }
}
