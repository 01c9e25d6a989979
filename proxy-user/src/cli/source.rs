//! Where Services and EndpointSlices come from, for whoever reads them.

use std::path::PathBuf;

use clap::Args;

use super::CliError;
use crate::{
    app::Source,
    config::{self, ProxyFlags},
    watch::kube::Access,
};

#[derive(Args, Debug)]
pub(super) struct SourceArgs {
    /// Serve the Services and EndpointSlices in this folder of YAML or JSON files, and follow its
    /// changes.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "master", "apiserver"])]
    manifests: Option<PathBuf>,
    /// URLs of API servers, tried in turn, in place of the kubeconfig's or service account's: for nodes
    /// where that one is reached only through kube-portal. May be given several times.
    #[arg(
        long,
        value_name = "URL,...",
        value_delimiter = ',',
        conflicts_with = "master"
    )]
    apiserver: Vec<String>,
}

impl SourceArgs {
    /// `kubeconfig`: as configured.
    pub(super) fn source(self, proxy: &ProxyFlags, kubeconfig: Option<PathBuf>) -> Source {
        match self.manifests {
            Some(directory) => Source::Manifests(directory),
            None => Source::Kubernetes(Access {
                kubeconfig,
                servers: proxy.master.iter().cloned().chain(self.apiserver).collect(),
            }),
        }
    }
}

/// As configured, or this machine's.
pub(super) fn node_name(configured: Option<String>) -> Result<String, CliError> {
    let host_name = rustix::system::uname();
    configured
        .or_else(|| config::node_name_of(&host_name.nodename().to_string_lossy()))
        .ok_or_else(|| {
            CliError::Usage("this machine has no host name; give --hostname-override".into())
        })
}
