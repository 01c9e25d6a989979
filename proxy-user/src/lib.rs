//! The kube-portal agent: `watch` -> `model` -> `plan` -> `maps`, one loop in `sync`.
//! See ARCHITECTURE.md.

pub mod app;
pub mod cli;
pub mod config;
pub mod loader;
pub mod maps;
pub mod model;
pub mod plan;
pub mod redial;
pub mod status;
pub mod sync;
pub mod watch;
