//! The kube-portal agent: `watch` -> `model` -> `plan` -> `maps`, one loop in `sync`.
//! See ARCHITECTURE.md.

pub mod model;
pub mod watch;
