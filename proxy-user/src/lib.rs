//! The kube-portal agent: `watch` -> `model` -> `plan` -> `maps`, one loop in `sync`.
//! See ARCHITECTURE.md.

pub mod app;
pub mod audit;
mod auditing;
pub mod check;
pub mod cli;
pub mod config;
pub mod control;
pub mod devices;
mod drift;
mod events;
pub mod expiry;
pub mod failover;
mod hash;
mod health;
mod inspect;
pub mod keeper;
mod leftovers;
pub mod loader;
pub mod maps;
mod memory;
mod metrics;
pub mod model;
mod monitor;
pub mod plan;
pub mod recount;
pub mod redial;
pub mod rehearsal;
mod sctp;
mod server;
pub mod status;
pub mod surfaces;
pub mod sync;
mod top;
pub mod trace;
pub mod waiting;
pub mod watch;
