//! The connection to the API server: servers that die, hang, vanish or ask for a pause, and credentials that
//! change under way.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    time::{Duration, Instant},
};

use proxy_user::{
    model::{Event, Kind},
    watch::kube::{self, Access, Connection, Contact, Patience},
};
use serde_json::{Value, json};
use tests::{
    apiserver::{ApiServer, Authority},
    netns::Netns,
};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

const IN_TIME: Duration = Duration::from_secs(30);

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "ns", "name": name},
        "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]},
    })
}

/// Whoever follows a server, and the Services it knows of.
struct Follower {
    contact: Contact,
    rx: mpsc::Receiver<Event>,
    task: JoinHandle<()>,
    services: BTreeSet<String>,
    lists: usize,
}

impl Follower {
    async fn start(access: Access, patience: Patience) -> Self {
        let connection = Connection::new(access, patience)
            .await
            .expect("a connection");
        let (tx, rx) = mpsc::channel(16);
        let contact = connection.contact();
        let task = tokio::spawn(async {
            kube::run(connection, "n1".into(), tx, None)
                .await
                .expect("it runs");
        });
        Self {
            contact,
            rx,
            task,
            services: BTreeSet::new(),
            lists: 0,
        }
    }

    async fn of(servers: &[&ApiServer]) -> Self {
        Self::start(access(servers), hasty()).await
    }

    /// Until this Service is known.
    async fn until_known(&mut self, name: &str) {
        let reached = timeout(IN_TIME, async {
            while !self.services.contains(name) {
                let event = self.rx.recv().await.expect("it runs");
                if let Event::ServiceApplied(service) = event {
                    self.services.insert(service.name.name.to_string());
                } else if let Event::Listed(Kind::Service) = event {
                    self.lists += 1;
                }
            }
        });
        if reached.await.is_err() {
            panic!("{name}: not in time: {:?}", self.contact.freshness());
        }
    }

    /// Until it is known that the state is out of date, for this reason.
    async fn until_stale(&self, reason: &str) {
        self.until(&format!("stale: {reason}"), |contact| {
            let told = contact.freshness().reason;
            contact.stale().is_some() && told.is_some_and(|told| told.contains(reason))
        })
        .await;
    }

    async fn until_fresh(&self) {
        self.until("fresh", |contact| contact.stale().is_none())
            .await;
    }

    async fn until(&self, what: &str, condition: impl Fn(&Contact) -> bool) {
        let reached = timeout(IN_TIME, async {
            while !condition(&self.contact) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        if reached.await.is_err() {
            panic!("{what}: not in time: {:?}", self.contact.freshness());
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Enough for a server that is alive, on a machine that is busy.
fn hasty() -> Patience {
    Patience {
        answer: Duration::from_secs(3),
        whole: Duration::from_secs(3),
        dead_peer: Duration::from_secs(3),
        ..Patience::default()
    }
}

fn access(servers: &[&ApiServer]) -> Access {
    let urls = servers
        .iter()
        .map(|server| format!("http://{}", server.addr()));
    Access {
        kubeconfig: None,
        servers: urls.collect(),
    }
}

fn server() -> ApiServer {
    ApiServer::on_loopback().expect("a server")
}

/// All of one cluster: what is applied to one is applied to all.
fn apply(servers: &[&ApiServer], object: &Value) {
    for server in servers {
        server.apply(object.clone());
    }
}

async fn server_until(server: &ApiServer, what: &str, condition: impl Fn(&ApiServer) -> bool) {
    let reached = timeout(IN_TIME, async {
        while !condition(server) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    if reached.await.is_err() {
        panic!("{what}: not in time: {:#?}", server.log());
    }
}

async fn until_watched(server: &ApiServer) {
    server_until(server, "it is watched", |server| {
        ["services", "endpointslices", "servicecidrs", "nodes"]
            .iter()
            .all(|kind| server.watches(kind) == 1)
    })
    .await;
}

#[tokio::test]
async fn nobody_asks_again_before_the_pause_is_over() {
    let server = server();
    server.apply(service("a"));
    // One request for each kind.
    server.fail_next_retry_after(4, 503, "2");
    let mut follower = Follower::of(&[&server]).await;
    follower.until_known("a").await;
    let asked = server.asked_at();
    let paused = asked[4] - asked[0];
    assert!(paused >= Duration::from_secs(2), "{paused:?}");
}

#[tokio::test]
async fn watches_that_end_at_once_do_not_become_a_flood() {
    let server = server();
    server.end_watches_at_once(true);
    server.apply(service("a"));
    let mut follower = Follower::of(&[&server]).await;
    follower.until_known("a").await;
    let watches = |server: &ApiServer| -> Vec<Instant> {
        let asked = server.log().into_iter().zip(server.asked_at());
        asked
            .filter(|(line, _)| line.contains("/services?") && line.contains("watch=true"))
            .map(|(_, at)| at)
            .collect()
    };
    server_until(&server, "nine watches", |server| watches(server).len() >= 9).await;
    let asked = watches(&server);
    let took = asked[8] - asked[0];
    assert!(took >= Duration::from_secs(1), "{took:?}");
    server.end_watches_at_once(false);
    until_watched(&server).await;
    server.apply(service("b"));
    follower.until_known("b").await;
}

#[tokio::test]
async fn a_list_that_stops_in_the_middle_is_asked_for_again() {
    let server = server();
    server.apply(service("a"));
    server.stall(Some("services"));
    let mut follower = Follower::of(&[&server]).await;
    follower.until_stale("no whole answer within 3 s").await;
    server.stall(None);
    follower.until_known("a").await;
    follower.until_fresh().await;
}

#[tokio::test]
async fn a_watch_that_is_silent_beyond_its_time_is_given_up() {
    let server = server();
    server.apply(service("a"));
    let patience = Patience {
        watch: Duration::from_secs(2),
        ..hasty()
    };
    let mut follower = Follower::start(access(&[&server]), patience).await;
    follower.until_known("a").await;
    until_watched(&server).await;
    // It keeps its connections, says nothing, and doesn't end what it should.
    server.hang(true);
    follower.until_stale("").await;
    server.apply(service("b"));
    server.hang(false);
    follower.until_known("b").await;
    follower.until_fresh().await;
}

#[tokio::test]
async fn a_server_that_accepts_and_says_nothing_is_left_for_the_next() {
    let (hung, good) = (server(), server());
    hung.hang(true);
    good.apply(service("a"));
    let mut follower = Follower::of(&[&hung, &good]).await;
    follower.until_known("a").await;
    until_watched(&good).await;
    follower.until_fresh().await;
    assert_eq!(
        follower.contact.freshness().server,
        format!("http://{}/", good.addr())
    );
}

#[tokio::test]
async fn a_server_that_dies_is_left_for_the_next_and_nothing_is_listed_again() {
    let (first, second) = (server(), server());
    apply(&[&first, &second], &service("a"));
    let mut follower = Follower::of(&[&first, &second]).await;
    follower.until_known("a").await;
    until_watched(&first).await;
    drop(first);
    until_watched(&second).await;
    second.apply(service("b"));
    follower.until_known("b").await;
    assert_eq!(follower.lists, 1);
    follower.until_fresh().await;
}

#[tokio::test]
async fn where_nobody_listens_and_where_nothing_works_is_passed_over() {
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a port");
    let nobody_at = nobody.local_addr().expect("an address");
    drop(nobody);
    let (broken, good) = (server(), server());
    broken.fail_next(usize::MAX, 503);
    good.apply(service("a"));
    let mut access = access(&[&broken, &good]);
    access.servers.insert(0, format!("http://{nobody_at}"));
    let mut follower = Follower::start(access, hasty()).await;
    follower.until_known("a").await;
    until_watched(&good).await;
}

#[tokio::test]
async fn what_was_never_sent_goes_to_the_next_server_whatever_it_is() {
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a port");
    let nobody_at = nobody.local_addr().expect("an address");
    drop(nobody);
    let good = server();
    let mut access = access(&[&good]);
    access.servers.insert(0, format!("http://{nobody_at}"));
    let connection = Connection::new(access, hasty())
        .await
        .expect("a connection");
    let request = http::Request::post("/apis/events.k8s.io/v1/namespaces/default/events");
    let request = request
        .body(br#"{"kind": "Event"}"#.to_vec())
        .expect("a request");
    let answer: Value = connection.client().request(request).await.expect("taken");
    assert_eq!(answer["kind"], "Event");
    assert_eq!(good.posted(), [answer]);
}

#[tokio::test]
async fn before_the_first_list_it_is_out_of_step() {
    let server = server();
    server.apply(service("a"));
    server.hold(Some("services"));
    let mut follower = Follower::of(&[&server]).await;
    follower.until_stale("services: not listed yet").await;
    server.hold(None);
    follower.until_known("a").await;
    follower.until_fresh().await;
}

#[tokio::test]
async fn a_broken_url_is_told_in_one_line() {
    for url in ["", "a", "10.0.0.1:6443", "/x"] {
        let access = Access {
            kubeconfig: None,
            servers: vec!["https://10.0.0.1".into(), url.into()],
        };
        let error = Connection::new(access, hasty()).await.expect_err(url);
        assert_eq!(
            error.to_string(),
            format!("API server {url:?}: write its URL, such as https://192.168.0.1:6443")
        );
    }
}

/// A folder of credentials, and the kubeconfig that names them.
struct Credentials {
    dir: tempfile::TempDir,
}

impl Credentials {
    fn new(server: &ApiServer) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let this = Self { dir };
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{"name": "test", "cluster": {
                "server": format!("https://{}", server.addr()), "certificate-authority": "ca.crt"}}],
            "users": [{"name": "test", "user": this.user()}],
        });
        this.write("kubeconfig", &config.to_string());
        this
    }

    fn user(&self) -> Value {
        json!({"tokenFile": self.path("token"), "client-certificate": "client.crt", "client-key": "client.key"})
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// In one step, as whoever rotates them does.
    fn write(&self, name: &str, text: &str) {
        let new = self.path("new");
        std::fs::write(&new, text).expect("written");
        std::fs::rename(new, self.path(name)).expect("put in place");
    }

    fn write_client(&self, clients: &Authority) {
        let client = clients.issue(&["node"]).expect("a certificate");
        self.write("client.crt", &client.pem());
        self.write("client.key", &client.key_pem());
    }

    fn access(&self) -> Access {
        Access {
            kubeconfig: Some(self.path("kubeconfig")),
            servers: Vec::new(),
        }
    }
}

/// A server with TLS that knows one token and the certificates of one authority.
struct Guarded {
    server: ApiServer,
    credentials: Credentials,
    authority: Authority,
    clients: Authority,
}

impl Guarded {
    fn new() -> Self {
        let authority = Authority::new("of servers").expect("an authority");
        let clients = Authority::new("of clients").expect("an authority");
        let server = server();
        let credentials = Credentials::new(&server);
        credentials.write("ca.crt", &authority.pem());
        credentials.write("token", "one");
        credentials.write_client(&clients);
        server.demand_token("one");
        server.apply(service("a"));
        let this = Self {
            server,
            credentials,
            authority,
            clients,
        };
        this.use_tls();
        this
    }

    /// With what it has now.
    fn use_tls(&self) {
        let identity = self.authority.issue(&["127.0.0.1"]).expect("a certificate");
        self.server
            .use_tls(&identity, Some(&self.clients))
            .expect("TLS");
    }

    async fn followed(&self) -> Follower {
        let mut follower = Follower::start(self.credentials.access(), hasty()).await;
        follower.until_known("a").await;
        until_watched(&self.server).await;
        follower
    }

    /// All connections are made anew, and work.
    async fn goes_on(&self, follower: &mut Follower, name: &str) {
        self.server.cut();
        self.server.apply(service(name));
        follower.until_known(name).await;
        until_watched(&self.server).await;
        follower.until_fresh().await;
    }
}

#[tokio::test]
async fn a_token_that_was_rotated_is_used_at_once() {
    let guarded = Guarded::new();
    let mut follower = guarded.followed().await;
    guarded.credentials.write("token", "two");
    guarded.server.demand_token("two");
    guarded.goes_on(&mut follower, "b").await;
    // The other way round: known to the server before it is in the file.
    guarded.server.demand_token("three");
    guarded.server.cut();
    follower.until_stale("Unauthorized").await;
    guarded.credentials.write("token", "three");
    guarded.goes_on(&mut follower, "c").await;
}

#[tokio::test]
async fn an_authority_that_was_rotated_is_believed_without_a_restart() {
    let mut guarded = Guarded::new();
    let mut follower = guarded.followed().await;
    guarded.authority = Authority::new("of servers").expect("an authority");
    guarded.use_tls();
    guarded.server.cut();
    follower.until_stale("certificate").await;
    guarded
        .credentials
        .write("ca.crt", &guarded.authority.pem());
    guarded.goes_on(&mut follower, "b").await;
}

#[tokio::test]
async fn a_client_certificate_that_was_rotated_is_shown_without_a_restart() {
    let mut guarded = Guarded::new();
    let mut follower = guarded.followed().await;
    guarded.clients = Authority::new("of clients").expect("an authority");
    guarded.credentials.write_client(&guarded.clients);
    guarded.use_tls();
    guarded.goes_on(&mut follower, "b").await;
}

#[tokio::test]
async fn files_that_are_half_written_change_nothing() {
    let guarded = Guarded::new();
    let mut follower = guarded.followed().await;
    let whole = std::fs::read_to_string(guarded.credentials.path("kubeconfig")).expect("read");
    guarded
        .credentials
        .write("kubeconfig", &whole[..whole.len() / 2]);
    guarded.credentials.write("ca.crt", "");
    guarded.goes_on(&mut follower, "b").await;
    // A key that does not fit its certificate.
    guarded.credentials.write("kubeconfig", &whole);
    guarded
        .credentials
        .write("ca.crt", &guarded.authority.pem());
    let other = guarded.clients.issue(&["node"]).expect("a certificate");
    guarded.credentials.write("client.crt", &other.pem());
    guarded.goes_on(&mut follower, "c").await;
    guarded.credentials.write("client.key", &other.key_pem());
    guarded.goes_on(&mut follower, "d").await;
}

/// As the API servers themselves write it.
fn api_servers(addresses: &[SocketAddr]) -> Value {
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|address| json!({"addresses": [address.ip()], "conditions": {"ready": true}}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "default", "name": "kubernetes",
            "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "endpoints": endpoints, "ports": [{"name": "https", "port": addresses[0].port(), "protocol": "TCP"}],
    })
}

#[tokio::test]
async fn the_endpoints_of_default_kubernetes_are_asked_when_no_configured_one_answers() {
    let guarded = Guarded::new();
    let listener = TcpListener::bind("127.0.0.2:0").expect("a port");
    let other = ApiServer::start(listener).expect("a server");
    // Its certificate names what the kubeconfig does, and not where it is found now.
    let identity = guarded
        .authority
        .issue(&["127.0.0.1"])
        .expect("a certificate");
    other
        .use_tls(&identity, Some(&guarded.clients))
        .expect("TLS");
    other.demand_token("one");
    apply(&[&guarded.server, &other], &api_servers(&[other.addr()]));
    other.apply(service("a"));
    let mut follower = guarded.followed().await;
    server_until(&guarded.server, "the slices are listed", |server| {
        server.watches("endpointslices") == 1
    })
    .await;
    let Guarded { server, .. } = guarded;
    drop(server);
    until_watched(&other).await;
    other.apply(service("b"));
    follower.until_known("b").await;
    follower.until_fresh().await;
}

#[tokio::test]
async fn an_endpoint_with_another_name_in_its_certificate_is_not_believed() {
    let guarded = Guarded::new();
    let listener = TcpListener::bind("127.0.0.2:0").expect("a port");
    let other = ApiServer::start(listener).expect("a server");
    let identity = guarded
        .authority
        .issue(&["127.0.0.2"])
        .expect("a certificate");
    other.use_tls(&identity, None).expect("TLS");
    guarded.server.apply(api_servers(&[other.addr()]));
    let follower = guarded.followed().await;
    let Guarded {
        server,
        credentials,
        ..
    } = guarded;
    drop(server);
    follower.until_stale("certificate").await;
    assert_eq!(other.log(), [""; 0]);
    drop(credentials);
}

/// A network of its own, with a server in it, and a rule that lets nothing arrive.
#[test]
fn a_peer_that_vanishes_is_noticed_and_found_again() {
    let name = format!("kpt-vanish-{}", std::process::id());
    let netns = Netns::create_all(&[name]).expect("a namespace").remove(0);
    netns.ip("link set lo up\n").expect("lo");
    netns
        .enter(|| {
            let server = server();
            server.apply(service("a"));
            // Its connections belong to this network, as this thread does.
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let patience = Patience {
                    connect: Duration::from_secs(2),
                    ..hasty()
                };
                let mut follower = Follower::start(access(&[&server]), patience).await;
                follower.until_known("a").await;
                until_watched(&server).await;
                netns
                    .nft(
                        "table inet t {
 chain c {
 type filter hook input priority 0; policy drop;
 }
}
",
                    )
                    .expect("a rule");
                follower
                    .until("it is noticed", |contact| contact.stale().is_some())
                    .await;
                netns.nft("flush ruleset\n").expect("no rule");
                server.apply(service("b"));
                follower.until_known("b").await;
                follower.until_fresh().await;
            });
        })
        .expect("a thread in it");
}
