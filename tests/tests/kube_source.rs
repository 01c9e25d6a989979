//! The real client of the agent against the small API server, in every way a connection can break.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use proxy_user::{
    model::{Event, Kind, Node, ObjectName},
    watch::kube::{self, Access, Connection, Contact, Patience},
};
use serde_json::{Value, json};
use tests::apiserver::{ApiServer, Gone};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

const IN_TIME: Duration = Duration::from_secs(30);

fn service(name: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "ns", "name": name, "managedFields": [{"manager": "kubectl"}]},
        "spec": {"clusterIP": ip, "ports": [{"port": 80}]},
    })
}

fn labelled(mut object: Value, label: &str) -> Value {
    object["metadata"]["labels"][label] = "".into();
    object
}

fn slice(service: &str) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": "ns", "name": format!("{service}-1"), "labels": {"kubernetes.io/service-name": service}},
        // As the real server writes an empty one.
        "addressType": "IPv4", "endpoints": null, "ports": null,
    })
}

fn node(zone: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": zone}}})
}

/// A running source, and what a model would know of it.
struct Source {
    rx: mpsc::Receiver<Event>,
    task: JoinHandle<()>,
    contact: Contact,
    /// Service name to its address.
    services: BTreeMap<String, String>,
    slices: BTreeSet<String>,
    service_cidrs: BTreeMap<String, String>,
    zone: Option<String>,
    /// Endpoints of `default/kubernetes`.
    api_servers: Vec<String>,
    /// What the list in progress has not brought so far.
    unseen: BTreeMap<Kind, BTreeSet<String>>,
    lists: BTreeMap<Kind, usize>,
    /// Service events in short, outside lists.
    changes: Vec<String>,
}

impl Source {
    async fn start(server: &ApiServer) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = dir.path().join("kubeconfig");
        server.kubeconfig(&file).expect("a kubeconfig");
        Self::start_with(&file).await
    }

    async fn start_with(kubeconfig: &Path) -> Self {
        Self::start_by(access(kubeconfig), Patience::default()).await
    }

    async fn start_by(access: Access, patience: Patience) -> Self {
        let connection = Connection::new(access, patience).await;
        Self::start_on(connection.expect("a connection"))
    }

    fn start_on(connection: Connection) -> Self {
        let (tx, rx) = mpsc::channel(16);
        let contact = connection.contact();
        let task = tokio::spawn(async {
            kube::run(connection, "n1".into(), tx, None)
                .await
                .expect("it runs");
        });
        Self {
            rx,
            task,
            contact,
            services: BTreeMap::new(),
            slices: BTreeSet::new(),
            service_cidrs: BTreeMap::new(),
            zone: None,
            api_servers: Vec::new(),
            unseen: BTreeMap::new(),
            lists: BTreeMap::new(),
            changes: Vec::new(),
        }
    }

    /// Folds events until the condition holds.
    async fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let reached = timeout(IN_TIME, async {
            while !condition(self) {
                let event = self.rx.recv().await.expect("a running source");
                self.fold(event);
            }
        });
        if reached.await.is_err() {
            panic!(
                "{what}: not in time: {:?} {:?} {:?}",
                self.services, self.slices, self.lists
            );
        }
    }

    /// Waits for something outside, and folds nothing meanwhile: nothing is expected.
    async fn until_idle(&mut self, what: &str, condition: impl Fn() -> bool) {
        let reached = timeout(IN_TIME, async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        assert!(reached.await.is_ok(), "{what}: not in time");
    }

    async fn until_listed(&mut self, times: usize) {
        self.until("both kinds are listed", |source| {
            [Kind::Service, Kind::EndpointSlice]
                .iter()
                .all(|kind| source.lists.get(kind) >= Some(&times))
        })
        .await;
    }

    async fn until_services(&mut self, expected: &[(&str, &str)]) {
        let expected: BTreeMap<String, String> = expected
            .iter()
            .map(|(name, ip)| ((*name).into(), (*ip).into()))
            .collect();
        self.until(&format!("{expected:?}"), |source| {
            source.services == expected
        })
        .await;
    }

    fn fold(&mut self, event: Event) {
        let name = |name: &ObjectName| name.name.to_string();
        let in_list = |source: &Self| source.unseen.contains_key(&Kind::Service);
        match event {
            Event::ListStarted(kind) => {
                let known = match kind {
                    Kind::Service => self.services.keys().cloned().collect(),
                    Kind::EndpointSlice => self.slices.clone(),
                    Kind::ServiceCidr => self.service_cidrs.keys().cloned().collect(),
                };
                self.unseen.insert(kind, known);
            }
            Event::Listed(kind) => {
                for gone in self.unseen.remove(&kind).expect("a list that had begun") {
                    match kind {
                        Kind::Service => drop(self.services.remove(&gone)),
                        Kind::EndpointSlice => drop(self.slices.remove(&gone)),
                        Kind::ServiceCidr => drop(self.service_cidrs.remove(&gone)),
                    }
                }
                *self.lists.entry(kind).or_default() += 1;
            }
            Event::ServiceApplied(service) => {
                let ip = service.cluster_ips[0].to_string();
                if !in_list(self) {
                    self.changes.push(format!("+{} {ip}", name(&service.name)));
                }
                self.see(Kind::Service, &service.name);
                self.services.insert(name(&service.name), ip);
            }
            Event::ServiceGone(gone) => {
                if !in_list(self) {
                    self.changes.push(format!("-{}", name(&gone)));
                }
                self.services.remove(&name(&gone));
            }
            Event::SliceApplied(slice) => {
                if &*slice.service.name == "kubernetes" {
                    let endpoints = slice.endpoints.iter();
                    self.api_servers = endpoints.map(|it| it.address.to_string()).collect();
                }
                self.see(Kind::EndpointSlice, &slice.name);
                self.slices.insert(name(&slice.name));
            }
            Event::SliceGone(gone) => {
                self.slices.remove(&name(&gone));
            }
            Event::ServiceCidrApplied(name, nets) => {
                self.see(Kind::ServiceCidr, &ObjectName::new("", &name));
                let nets: Vec<String> = nets.iter().map(ToString::to_string).collect();
                self.service_cidrs.insert(name.to_string(), nets.join(" "));
            }
            Event::ServiceCidrGone(name) => drop(self.service_cidrs.remove(&*name)),
            Event::LocalAddresses(ips) => panic!("the API server knows none: {ips:?}"),
            Event::NodeChanged(Node { name, zone, .. }) => {
                assert_eq!(&*name, "n1");
                self.zone = zone.map(|zone| zone.to_string());
            }
        }
    }

    fn see(&mut self, kind: Kind, name: &ObjectName) {
        if let Some(unseen) = self.unseen.get_mut(&kind) {
            unseen.remove(&*name.name);
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn access(kubeconfig: &Path) -> Access {
    Access {
        kubeconfig: Some(kubeconfig.to_owned()),
        servers: Vec::new(),
    }
}

fn server() -> ApiServer {
    ApiServer::on_loopback().expect("a server")
}

/// Like [`ApiServer::wait_until`], but lets the source go on.
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

fn all_watching(server: &ApiServer) -> bool {
    ["services", "endpointslices", "nodes"]
        .iter()
        .all(|resource| server.watches(resource) == 1)
}

/// A list of everything in one namespace of names.
fn fill(server: &ApiServer, count: usize) {
    for i in 0..count {
        server.apply(service(&format!("s{i:04}"), "10.0.0.1"));
    }
}

fn count_lists(server: &ApiServer, resource: &str) -> usize {
    let is_list = |line: &&String| line.contains(resource) && !line.contains("watch=");
    server.log().iter().filter(is_list).count()
}

#[tokio::test]
async fn the_first_list_comes_in_pages_and_leaves_out_what_is_not_ours() {
    let server = server();
    fill(&server, 1203);
    server.apply(slice("s0000"));
    server.apply(service("headless", "None"));
    server.apply(labelled(
        service("foreign", "10.0.0.2"),
        "service.kubernetes.io/service-proxy-name",
    ));
    server.apply(labelled(
        slice("foreign"),
        "service.kubernetes.io/service-proxy-name",
    ));
    server.apply(labelled(
        slice("headless"),
        "service.kubernetes.io/headless",
    ));
    server.apply(node("a"));
    let mut source = Source::start(&server).await;
    source.until_listed(1).await;
    source
        .until("the zone is known", |source| {
            source.zone.as_deref() == Some("a")
        })
        .await;
    assert_eq!(source.services.len(), 1203);
    assert_eq!(source.slices, BTreeSet::from(["s0000-1".to_owned()]));
    assert_eq!(count_lists(&server, "/services"), 3, "{:#?}", server.log());
    // Left out by the server, not by us.
    let log = server.log().join("\n");
    assert!(
        log.contains("fieldSelector=spec.clusterIP%21%3DNone"),
        "{log}"
    );
    assert!(log.contains("labelSelector=%21service.kubernetes.io%2Fservice-proxy-name%2C%21service.kubernetes.io%2Fheadless"), "{log}");
}

#[tokio::test]
async fn changes_come_in_order() {
    let server = server();
    let mut source = Source::start(&server).await;
    source.until_listed(1).await;
    let mut expected = Vec::new();
    for i in 1..=50 {
        server.apply(service("a", &format!("10.0.0.{i}")));
        expected.push(format!("+a 10.0.0.{i}"));
    }
    server.delete("Service", "ns", "a");
    expected.push("-a".into());
    source
        .until("the last change", |source| {
            source.changes.len() >= expected.len()
        })
        .await;
    assert_eq!(source.changes, expected);
}

#[tokio::test]
async fn cut_connections_lose_nothing_and_repeat_nothing() {
    let server = server();
    let mut source = Source::start(&server).await;
    source.until_listed(1).await;
    let mut expected = Vec::new();
    for i in 1..=20 {
        server.apply(service("a", &format!("10.0.0.{i}")));
        expected.push(format!("+a 10.0.0.{i}"));
        if i % 5 == 0 {
            source
                .until("the changes so far", |source| source.changes.len() == i)
                .await;
            server_until(&server, "the watches are up", all_watching).await;
            server.cut();
        }
    }
    source
        .until("the last change", |source| {
            source.changes.len() >= expected.len()
        })
        .await;
    assert_eq!(source.changes, expected);
    assert_eq!(source.lists[&Kind::Service], 1, "resumed, not listed again");
}

/// Whatever happened while the source was away, it must end where a fresh list would.
async fn everything_changes_while_away(
    server: &ApiServer,
    source: &mut Source,
    away: impl FnOnce(&ApiServer),
) {
    for object in [
        service("kept", "10.0.0.1"),
        service("deleted", "10.0.0.2"),
        service("moved", "10.0.0.3"),
        slice("deleted"),
    ] {
        server.apply(object);
    }
    source
        .until_services(&[
            ("deleted", "10.0.0.2"),
            ("kept", "10.0.0.1"),
            ("moved", "10.0.0.3"),
        ])
        .await;
    source
        .until("the slice", |source| source.slices.len() == 1)
        .await;
    server_until(server, "the watches are up", all_watching).await;
    server.hang(true);
    server.delete("Service", "ns", "deleted");
    server.delete("EndpointSlice", "ns", "deleted-1");
    server.apply(service("moved", "10.0.0.9"));
    server.apply(service("new", "10.0.0.4"));
    away(server);
    server.hang(false);
    source
        .until_services(&[
            ("kept", "10.0.0.1"),
            ("moved", "10.0.0.9"),
            ("new", "10.0.0.4"),
        ])
        .await;
    source
        .until("the slice is gone", |source| source.slices.is_empty())
        .await;
}

#[tokio::test]
async fn deletes_missed_while_the_history_was_lost_are_noticed_when_it_is_told_by_status() {
    let server = server();
    let mut source = Source::start(&server).await;
    source.until_listed(1).await;
    everything_changes_while_away(&server, &mut source, |server| {
        server.compact();
        server.cut();
    })
    .await;
    source.until_listed(2).await;
}

#[tokio::test]
async fn deletes_missed_while_the_history_was_lost_are_noticed_when_it_is_told_by_an_event() {
    let server = server();
    server.tell_gone(Gone::Event);
    let mut source = Source::start(&server).await;
    source.until_listed(1).await;
    everything_changes_while_away(&server, &mut source, |server| {
        server.compact();
        server.cut();
    })
    .await;
    source.until_listed(2).await;
}

#[tokio::test]
async fn a_watch_that_expires_while_connected_lists_again() {
    let server = server();
    let mut source = Source::start(&server).await;
    source.until_listed(1).await;
    server.apply(service("a", "10.0.0.1"));
    source.until_services(&[("a", "10.0.0.1")]).await;
    server_until(&server, "the watches are up", all_watching).await;
    server.compact();
    server.expire_watches();
    source.until_listed(2).await;
    server.apply(service("a", "10.0.0.2"));
    source.until_services(&[("a", "10.0.0.2")]).await;
}

#[tokio::test]
async fn a_list_whose_history_is_lost_between_two_pages_begins_anew() {
    let server = server();
    fill(&server, 1100);
    let mut source = Source::start(&server).await;
    // The channel is small, so the source is held up within the first page.
    server_until(&server, "the first page", |server| {
        count_lists(server, "/services") == 1
    })
    .await;
    server.compact();
    server.delete("Service", "ns", "s0001");
    source.until_listed(1).await;
    assert_eq!(source.services.len(), 1099);
}

#[tokio::test]
async fn bookmarks_let_a_quiet_watch_resume_where_the_history_begins() {
    let server = server();
    server.apply(slice("quiet"));
    let mut source = Source::start(&server).await;
    source.until_listed(1).await;
    server_until(&server, "the watches are up", all_watching).await;
    // Much happens to Services, nothing to slices; then the past is forgotten.
    for i in 1..=10 {
        server.apply(service("a", &format!("10.0.0.{i}")));
    }
    source.until_services(&[("a", "10.0.0.10")]).await;
    server.compact();
    server.bookmark();
    // What follows the bookmark in the streams proves that it has arrived.
    server.apply(service("b", "10.0.0.99"));
    server.apply(slice("other"));
    server.apply(node("b"));
    source
        .until_services(&[("a", "10.0.0.10"), ("b", "10.0.0.99")])
        .await;
    source
        .until("the slice", |source| source.slices.len() == 2)
        .await;
    source
        .until("the node", |source| source.zone.is_some())
        .await;
    server.cut();
    server.apply(slice("last"));
    source
        .until("the slice after the cut", |source| source.slices.len() == 3)
        .await;
    assert_eq!(
        source.lists[&Kind::EndpointSlice],
        1,
        "resumed, not listed again"
    );
    assert_eq!(source.lists[&Kind::Service], 1, "resumed, not listed again");
}

#[tokio::test]
async fn errors_at_the_start_are_retried() {
    let sources = [500, 503, 429, 403].map(async |status| {
        let server = server();
        server.apply(service("a", "10.0.0.1"));
        server.fail_next_retry_after(2, status, "1");
        let mut source = Source::start(&server).await;
        source.until_listed(1).await;
        assert_eq!(source.services.len(), 1, "{status}");
    });
    futures::future::join_all(sources).await;
}

#[tokio::test]
async fn an_object_that_cannot_be_read_costs_only_itself() {
    let unreadable = |name| {
        let mut object = service(name, "10.0.0.1");
        object["spec"]["ports"][0]["port"] = "eighty".into();
        object
    };
    let server = server();
    server.apply(unreadable("a"));
    server.apply(service("b", "10.0.0.1"));
    let mut source = Source::start(&server).await;
    source.until_listed(1).await;
    source.until_services(&[("b", "10.0.0.1")]).await;
    server.apply(unreadable("b"));
    server.apply(service("c", "10.0.0.1"));
    source
        .until_services(&[("b", "10.0.0.1"), ("c", "10.0.0.1")])
        .await;
    server.apply(service("a", "10.0.0.1"));
    server.delete("Service", "ns", "b");
    source
        .until_services(&[("a", "10.0.0.1"), ("c", "10.0.0.1")])
        .await;
    assert_eq!(source.lists[&Kind::Service], 1, "no need to list again");
}

#[tokio::test]
async fn a_server_that_comes_up_later_is_found() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("an address");
    let server = ApiServer::start(listener).expect("a server");
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("kubeconfig");
    server.kubeconfig(&file).expect("a kubeconfig");
    drop(server);
    let mut source = Source::start_with(&file).await;
    let server = loop {
        // The port is ours again as soon as the first server's thread is gone.
        if let Ok(listener) = std::net::TcpListener::bind(addr) {
            break ApiServer::start(listener).expect("a server");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    server.apply(service("a", "10.0.0.1"));
    source.until_services(&[("a", "10.0.0.1")]).await;
    source.until_listed(1).await;
}

#[tokio::test]
async fn a_service_labelled_at_run_time_goes_and_comes_back() {
    let server = server();
    let mut source = Source::start(&server).await;
    source.until_listed(1).await;
    server.apply(service("a", "10.0.0.1"));
    source.until_services(&[("a", "10.0.0.1")]).await;
    server.apply(labelled(
        service("a", "10.0.0.1"),
        "service.kubernetes.io/service-proxy-name",
    ));
    source.until_services(&[]).await;
    server.apply(service("a", "10.0.0.1"));
    source.until_services(&[("a", "10.0.0.1")]).await;
    server.apply(service("a", "None"));
    source.until_services(&[]).await;
    assert_eq!(source.changes, ["+a 10.0.0.1", "-a", "+a 10.0.0.1", "-a"]);
}

#[tokio::test]
async fn a_node_that_keeps_its_zone_says_nothing() {
    let server = server();
    server.apply(node("a"));
    let mut source = Source::start(&server).await;
    source
        .until("the zone", |source| source.zone.as_deref() == Some("a"))
        .await;
    source.until_listed(1).await;
    source
        .until("the ServiceCIDRs are listed", |source| {
            source.lists.contains_key(&Kind::ServiceCidr)
        })
        .await;
    for _ in 0..3 {
        server.apply(node("a"));
    }
    server.apply(node("b"));
    let mut told = 0;
    while source.zone.as_deref() != Some("b") {
        let event = timeout(IN_TIME, source.rx.recv())
            .await
            .expect("in time")
            .expect("a running source");
        told += 1;
        source.fold(event);
    }
    assert_eq!(told, 1);
    server.delete("Node", "", "n1");
    source
        .until("no zone", |source| source.zone.is_none())
        .await;
}

#[tokio::test]
async fn a_watch_ends_with_a_bookmark_when_its_time_is_over() {
    let server = server();
    server.apply(service("a", "10.0.0.1"));
    let addr = server.addr();
    let answer = tokio::task::spawn_blocking(move || {
        use std::io::{Read, Write};
        let mut connection = std::net::TcpStream::connect(addr).expect("connected");
        let request = "GET /api/v1/services?watch=1&resourceVersion=0&allowWatchBookmarks=true&timeoutSeconds=1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        connection.write_all(request.as_bytes()).expect("asked");
        let mut answer = String::new();
        connection.read_to_string(&mut answer).expect("answered");
        answer
    });
    let answer = timeout(IN_TIME, answer)
        .await
        .expect("in time")
        .expect("no panic");
    let added = answer.find("\"ADDED\"").expect("the object");
    let bookmark = answer.find("\"BOOKMARK\"").expect("the bookmark");
    assert!(
        added < bookmark && answer.ends_with("0\r\n\r\n"),
        "{answer}"
    );
}

#[tokio::test]
async fn the_source_ends_when_nobody_listens() {
    let server = server();
    let mut source = Source::start(&server).await;
    source.until_listed(1).await;
    source.rx.close();
    timeout(IN_TIME, &mut source.task)
        .await
        .expect("in time")
        .expect("no panic");
}

#[tokio::test]
async fn a_bad_kubeconfig_is_told_in_one_line() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("kubeconfig");
    let missing = Connection::new(access(&file), Patience::default())
        .await
        .expect_err("no file")
        .to_string();
    assert_eq!(
        missing,
        format!(
            "kubeconfig {}: No such file or directory (os error 2); make it readable, or name another with --kubeconfig",
            file.display()
        )
    );
    for (text, remedy) in [
        ("clusters: [", "correct the YAML"),
        ("apiVersion: v1\nkind: Config\n", "correct current-context"),
        (
            "apiVersion: v1\nkind: Config\ncurrent-context: x\n",
            "correct current-context",
        ),
        (
            "current-context: x\ncontexts: [{name: x, context: {cluster: c, user: u}}]\nclusters: [{name: c, cluster: {server: 'https://a', certificate-authority: /nowhere}}]\nusers: []\n",
            "correct the certificates",
        ),
    ] {
        std::fs::write(&file, text).expect("written");
        let error = Connection::new(access(&file), Patience::default())
            .await
            .expect_err(text)
            .to_string();
        assert!(
            error.starts_with(&format!("kubeconfig {}: ", file.display())),
            "{error}"
        );
        assert!(error.contains(remedy) && !error.contains('\n'), "{error}");
    }
}

fn service_cidr(name: &str, net: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": name}, "spec": {"cidrs": [net]},
    })
}

async fn until_service_cidrs(source: &mut Source, expected: &[(&str, &str)]) {
    let expected: BTreeMap<String, String> = expected
        .iter()
        .map(|(name, net)| ((*name).into(), (*net).into()))
        .collect();
    source
        .until(&format!("{expected:?}"), |source| {
            source.service_cidrs == expected
        })
        .await;
}

#[tokio::test]
async fn service_cidrs_come_change_and_go() {
    let server = server();
    server.apply(service_cidr("kubernetes", "10.96.0.0/12"));
    let mut source = Source::start(&server).await;
    until_service_cidrs(&mut source, &[("kubernetes", "10.96.0.0/12")]).await;
    server.apply(service_cidr("more", "fd96::/108"));
    let both = [("kubernetes", "10.96.0.0/12"), ("more", "fd96::/108")];
    until_service_cidrs(&mut source, &both).await;
    server.delete("ServiceCIDR", "", "kubernetes");
    until_service_cidrs(&mut source, &[("more", "fd96::/108")]).await;
}

#[tokio::test]
async fn service_cidrs_that_are_withheld_are_none_and_the_rest_is_listed() {
    for status in [403, 404] {
        let server = server();
        server.withhold("servicecidrs", status);
        server.apply(service("a", "10.0.0.1"));
        let mut source = Source::start(&server).await;
        source.until_listed(1).await;
        source.until_services(&[("a", "10.0.0.1")]).await;
        source
            .until("they are listed as none", |source| {
                source.lists.get(&Kind::ServiceCidr) == Some(&1)
            })
            .await;
        assert!(source.service_cidrs.is_empty(), "{status}");
        // It is left alone for a while.
        assert_eq!(count_lists(&server, "/servicecidrs"), 1);
    }
}

/// As a server does that has just started, and has not read its roles.
#[tokio::test]
async fn service_cidrs_that_are_withheld_for_a_moment_stay() {
    for status in [403, 404] {
        let server = server();
        server.apply(service_cidr("kubernetes", "10.96.0.0/12"));
        let mut source = Source::start(&server).await;
        source.until_listed(1).await;
        until_service_cidrs(&mut source, &[("kubernetes", "10.96.0.0/12")]).await;
        server_until(&server, "the watches are up", all_watching).await;
        server.withhold("servicecidrs", status);
        server.cut();
        let contact = source.contact.clone();
        source
            .until_idle("it is known to be out of date", || {
                let reason = contact.freshness().reason;
                reason.is_some_and(|reason| reason.contains(&format!("servicecidrs: {status}")))
            })
            .await;
        server.apply(service_cidr("more", "fd96::/108"));
        server.grant_all();
        let both = [("kubernetes", "10.96.0.0/12"), ("more", "fd96::/108")];
        until_service_cidrs(&mut source, &both).await;
        assert_eq!(
            source.lists[&Kind::ServiceCidr],
            1,
            "never taken for absent"
        );
    }
}

fn api_server_slice(endpoints: &[&str]) -> Value {
    let mut object = slice("kubernetes");
    object["metadata"]["namespace"] = "default".into();
    object["endpoints"] = endpoints
        .iter()
        .map(|address| json!({"addresses": [address], "conditions": {"ready": true}}))
        .collect();
    object["ports"] = json!([{"name": "https", "port": 6443, "protocol": "TCP"}]);
    object
}

#[tokio::test]
async fn the_last_api_server_that_takes_itself_out_stays_in_default_kubernetes() {
    let server = server();
    server.apply(api_server_slice(&["10.9.0.1"]));
    let mut source = Source::start(&server).await;
    source.until_listed(1).await;
    let endpoints = |source: &Source| source.api_servers.clone();
    assert_eq!(endpoints(&source), ["10.9.0.1"]);
    server_until(&server, "the watches are up", all_watching).await;
    // As an event, and in a list.
    server.apply(api_server_slice(&[]));
    server.compact();
    server.cut();
    server.tell_gone(Gone::Event);
    source.until_listed(2).await;
    assert_eq!(endpoints(&source), ["10.9.0.1"]);
    server.apply(api_server_slice(&["10.9.0.2"]));
    source
        .until("the next API server", |source| {
            endpoints(source) == ["10.9.0.2"]
        })
        .await;
}
