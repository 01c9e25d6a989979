//! The connection to the API server: where it is, and how long to wait for it.

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    client::{Body, ConfigExt},
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use tower::{BoxError, ServiceBuilder};

use super::{WATCH_TIMEOUT_SECS, outage::chain};
use crate::watch::SourceError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// No longer silence than a watch may keep.
const READ_TIMEOUT: Duration = Duration::from_secs(WATCH_TIMEOUT_SECS as u64 + 10);
/// A server that vanishes without a word (power, a firewall that forgot) is noticed by the kernel
/// long before the watch's own timeout.
const DEAD_PEER_TIMEOUT: Duration = Duration::from_secs(30);

/// `master` takes the place of the server's URL; alone, it is a server without credentials.
pub async fn cluster_config(
    kubeconfig: Option<&Path>,
    master: Option<&str>,
) -> Result<kube::Config, SourceError> {
    let Some(master) = master else {
        return client_config(kubeconfig).await;
    };
    let direct = master.parse().map(kube::Config::new);
    let direct = direct
        .ok()
        .filter(|config| config.cluster_url.scheme().is_some())
        .ok_or_else(|| SourceError::Master(master.to_owned()))?;
    if kubeconfig.is_none() {
        return Ok(direct);
    }
    let mut config = client_config(kubeconfig).await?;
    config.cluster_url = direct.cluster_url;
    Ok(config)
}

/// From the file if one is given, else `KUBECONFIG`, else `~/.kube/config`, else the service account
/// of the pod. A file that is named but broken is an error, never a reason to look elsewhere.
pub async fn client_config(kubeconfig: Option<&Path>) -> Result<kube::Config, SourceError> {
    let named = env::var_os("KUBECONFIG").filter(|files| !files.is_empty());
    let home = || {
        env::home_dir()
            .map(|home| home.join(".kube/config"))
            .filter(|file| file.exists())
    };
    let (file, config) = if let Some(file) = kubeconfig {
        (file.to_owned(), Kubeconfig::read_from(file))
    } else if let Some(files) = named {
        // May name several, which kube merges.
        (PathBuf::from(files), Kubeconfig::read())
    } else if let Some(file) = home() {
        let config = Kubeconfig::read_from(&file);
        (file, config)
    } else {
        return kube::Config::incluster().map_err(|error| SourceError::NoServer {
            reason: chain(&error),
        });
    };
    let config = match config {
        Ok(config) => {
            kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await
        }
        Err(error) => Err(error),
    };
    config.map_err(|error| kubeconfig_error(file, &error))
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

/// kube's own client, but with connections whose death is noticed.
pub fn client(config: kube::Config) -> Result<kube::Client, SourceError> {
    if let Some(proxy) = &config.proxy_url {
        log::warn!(
            "API server {}: the proxy {proxy} is not used, connecting directly",
            config.cluster_url
        );
    }
    let server = config.cluster_url.to_string();
    build(config).map_err(|error| SourceError::Client {
        server,
        reason: chain(&error),
    })
}

fn build(config: kube::Config) -> Result<kube::Client, kube::Error> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(DEAD_PEER_TIMEOUT / 2));
    tcp.set_keepalive_interval(Some(DEAD_PEER_TIMEOUT / 6));
    tcp.set_keepalive_retries(Some(3));
    tcp.set_tcp_user_timeout(Some(DEAD_PEER_TIMEOUT));

    let mut connector =
        hyper_timeout::TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp)?);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_read_timeout(Some(READ_TIMEOUT));
    connector.set_write_timeout(Some(READ_TIMEOUT));
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
