//! Sources of [`Event`](crate::model::Event)s: a Kubernetes API server, or a folder of manifests; and
//! the node's own devices, addresses and default routes.

use std::path::PathBuf;

use thiserror::Error;

pub(crate) mod changes;
pub mod file;
pub mod kube;
pub mod node_net;
mod standing;

/// Why a source can't start. Once started, a source keeps the last known state and tries again.
#[derive(Debug, Error)]
pub enum SourceError {
    #[error("manifest folder {}: {reason}; create it, or name another with --manifests", .dir.display())]
    Folder {
        dir: PathBuf,
        reason: std::io::Error,
    },
    #[error("manifest folder {}: changes can't be watched: {reason}; raise fs.inotify.max_user_watches and max_user_instances", .dir.display())]
    Inotify { dir: PathBuf, reason: notify::Error },
    #[error("kubeconfig {}: {reason}; {remedy}", .file.display())]
    Kubeconfig {
        file: PathBuf,
        reason: String,
        remedy: &'static str,
    },
    #[error("API server {0:?}: write its URL, such as https://192.168.0.1:6443")]
    ServerUrl(String),
    #[error(
        "no API server: {reason}; name a kubeconfig with --kubeconfig or KUBECONFIG, or run in a pod with a service account"
    )]
    NoServer { reason: String },
    #[error(
        "API server {server}: no client can be made: {reason}; check the certificates and credentials of the kubeconfig"
    )]
    Client { server: String, reason: String },
}
