//! The configuration of the connection to the API server, read anew whenever its files have changed, and one
//! server's client made of it.

use std::{
    env, fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper::Uri;
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    client::{Body, ConfigExt},
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use tower::{BoxError, ServiceBuilder};

use super::{
    outage::chain,
    servers::{Server, Servers},
};
use crate::watch::SourceError;

/// Where the API server is, and who we are to it.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// If none is given, `KUBECONFIG`, else `~/.kube/config`, else the service account of the pod. A file
    /// that is named but broken is an error, never a reason to look elsewhere.
    pub kubeconfig: Option<PathBuf>,
    /// URLs, tried in turn, in place of that one's server. Without a kubeconfig, and outside of a pod, they are
    /// servers without credentials.
    pub servers: Vec<String>,
}

/// How long a server may be silent. Tests have less of it.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Until it is connected.
    pub connect: Duration,
    /// Until it begins to answer.
    pub answer: Duration,
    /// Until it has answered, except for a watch.
    pub whole: Duration,
    /// For how long a server is asked to keep a watch. One that is silent for longer hangs.
    pub watch: Duration,
    /// Until a peer that acknowledges nothing is taken for dead: power failed, or a firewall forgot.
    pub dead_peer: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(30),
            whole: Duration::from_secs(60),
            watch: Duration::from_secs(240),
            dead_peer: Duration::from_secs(30),
        }
    }
}

impl Patience {
    pub(super) fn watch_secs(&self) -> u32 {
        u32::try_from(self.watch.as_secs())
            .unwrap_or(u32::MAX)
            .max(1)
    }

    /// No longer silence than a watch may keep, with a second for its end.
    fn silence(&self) -> Duration {
        self.watch + self.watch / 24
    }
}

/// What [`Access`] leads to.
pub(super) struct Configured {
    pub(super) config: kube::Config,
    /// The files it is made of. kube looks at some of them again by itself, a minute later; a request needn't
    /// fail meanwhile.
    pub(super) files: Files,
}

impl Access {
    pub(super) async fn read(&self) -> Result<Configured, SourceError> {
        let urls = self.urls()?;
        let mut configured = match urls.first() {
            Some(url) if self.kubeconfig.is_none() && !in_pod() => Configured {
                config: kube::Config::new(url.clone()),
                files: Files::default(),
            },
            _ => self.read_files().await?,
        };
        if let Some(url) = urls.into_iter().next() {
            configured.config.cluster_url = url;
        }
        Ok(configured)
    }

    /// In the order in which they are asked.
    pub(super) fn servers(&self, config: &kube::Config) -> Result<Servers, SourceError> {
        let server = |url: Uri| Server {
            url,
            tls_name: config.tls_server_name.clone(),
        };
        let others = self.urls()?.into_iter().skip(1).map(server).collect();
        Ok(Servers::new(server(config.cluster_url.clone()), others))
    }

    fn urls(&self) -> Result<Vec<Uri>, SourceError> {
        let url = |text: &String| {
            let url: Option<Uri> = text.trim().parse().ok();
            url.filter(|url| url.scheme().is_some() && url.authority().is_some())
                .ok_or_else(|| SourceError::ServerUrl(text.clone()))
        };
        self.servers.iter().map(url).collect()
    }

    async fn read_files(&self) -> Result<Configured, SourceError> {
        let named = env::var_os("KUBECONFIG").filter(|files| !files.is_empty());
        let home = || {
            env::home_dir()
                .map(|home| home.join(".kube/config"))
                .filter(|file| file.exists())
        };
        let (file, read): (PathBuf, fn(&Path) -> _) = if let Some(file) = &self.kubeconfig {
            (file.clone(), |file| Kubeconfig::read_from(file))
        } else if let Some(files) = named {
            // May name several, which kube merges.
            (PathBuf::from(files), |_| Kubeconfig::read())
        } else if let Some(file) = home() {
            (file, |file| Kubeconfig::read_from(file))
        } else {
            return in_cluster();
        };
        // Before they are read: what changes in between is read once more.
        let mut files = Files::default();
        for file in env::split_paths(&file) {
            files.add(&file);
        }
        let kubeconfig = read(&file).map_err(|error| kubeconfig_error(file.clone(), &error))?;
        for path in named_files(&kubeconfig) {
            files.add(Path::new(path));
        }
        let config =
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
        let config = config.map_err(|error| kubeconfig_error(file, &error))?;
        Ok(Configured { config, files })
    }
}

/// Where kubelets put the token of a pod's ServiceAccount.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

fn in_pod() -> bool {
    Path::new(TOKEN).exists()
}

fn in_cluster() -> Result<Configured, SourceError> {
    let read = || {
        kube::Config::incluster().map_err(|error| SourceError::NoServer {
            reason: chain(&error),
        })
    };
    let mut files = Files::default();
    let config = read()?;
    let token = config.auth_info.token_file.as_ref().map(PathBuf::from);
    for file in config.root_cert_file.iter().chain(&token) {
        files.add(file);
    }
    // Once more, now that it is known which files to look at.
    Ok(Configured {
        config: read()?,
        files,
    })
}

/// Certificates, keys and tokens that are not in the file itself.
fn named_files(kubeconfig: &Kubeconfig) -> impl Iterator<Item = &String> {
    let clusters = kubeconfig.clusters.iter();
    let clusters =
        clusters.filter_map(|named| named.cluster.as_ref()?.certificate_authority.as_ref());
    let users = kubeconfig.auth_infos.iter();
    let users = users.filter_map(|named| named.auth_info.as_ref());
    let users = users.flat_map(|user| {
        [&user.client_certificate, &user.client_key, &user.token_file]
            .into_iter()
            .flatten()
    });
    clusters.chain(users)
}

/// Files, and what they were when they were read.
#[derive(Debug, Default)]
pub(super) struct Files(Vec<(PathBuf, Option<Stamp>)>);

/// A file that was written or replaced has another.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Files {
    fn add(&mut self, file: &Path) {
        self.0.push((file.to_owned(), stamp(file)));
    }

    pub(super) fn changed(&self) -> bool {
        self.0.iter().any(|(file, known)| stamp(file) != *known)
    }

    /// What they are now is as good as read.
    pub(super) fn settle(&mut self) {
        for (file, known) in &mut self.0 {
            *known = stamp(file);
        }
    }
}

fn stamp(file: &Path) -> Option<Stamp> {
    let meta = fs::metadata(file).ok()?;
    Some(Stamp {
        device: meta.dev(),
        inode: meta.ino(),
        size: meta.size(),
        changed: (meta.ctime(), meta.ctime_nsec()),
    })
}

fn kubeconfig_error(file: PathBuf, error: &KubeconfigError) -> SourceError {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the rest is all about the chosen context"
    )]
    let (reason, remedy) = match error {
        KubeconfigError::ReadConfig(error, _) => (
            error.to_string(),
            "make it readable, or name another with --kubeconfig",
        ),
        KubeconfigError::Parse(_) => (chain(error), "correct the YAML"),
        KubeconfigError::LoadCertificateAuthority(_)
        | KubeconfigError::LoadClientCertificate(_)
        | KubeconfigError::LoadClientKey(_)
        | KubeconfigError::ParseCertificates(_) => {
            (chain(error), "correct the certificates and keys it names")
        }
        _ => (
            chain(error),
            "correct current-context and the cluster and user it leads to",
        ),
    };
    SourceError::Kubeconfig {
        file,
        reason,
        remedy,
    }
}

/// kube's own client of one server, but with connections whose death is noticed.
pub(super) fn client(
    config: &kube::Config,
    server: &Server,
    patience: &Patience,
) -> Result<kube::Client, kube::Error> {
    let mut config = config.clone();
    config.cluster_url = server.url.clone();
    config.tls_server_name.clone_from(&server.tls_name);

    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let whole_seconds = |part: u32| (patience.dead_peer / part).max(Duration::from_secs(1));
    tcp.set_keepalive(Some(whole_seconds(2)));
    tcp.set_keepalive_interval(Some(whole_seconds(6)));
    tcp.set_keepalive_retries(Some(3));
    tcp.set_tcp_user_timeout(Some(patience.dead_peer));

    let mut connector =
        hyper_timeout::TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp)?);
    connector.set_connect_timeout(Some(patience.connect));
    connector.set_read_timeout(Some(patience.silence()));
    connector.set_write_timeout(Some(patience.silence()));
    // Else the time a connection was idle counts against the next request.
    connector.set_reset_reader_on_write(true);
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new()).build(connector);

    // No retries here: the watch has its own backoff, which says what it does.
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(kube::Client::new(service, config.default_namespace))
}
