//! The world in which kube-portal is tested.

pub mod apiserver;
