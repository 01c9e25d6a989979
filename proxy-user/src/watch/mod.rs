//! Sources of [`Event`](crate::model::Event)s: a Kubernetes API server, or a folder of manifests.

pub mod file;
pub mod kube;
