//! Pure: folds [`Event`]s into what every Service port should look like on this node.

mod balancing;
mod claims;
pub mod ingest;
mod local;
mod names;
mod node_port;
pub mod object;
pub mod policy;
mod snapshot;
mod state;

pub use balancing::{
    BalancingDefaults, NameHash, ServiceBalancing, WeightKey, Weights, scheduler_named,
    scheduler_names,
};
pub use local::{HealthCheck, LocalState, WithoutLocal};
pub use node_port::{NodePortScope, ScopeError};
pub use object::*;
pub use snapshot::{Balancing, FrontendAddress, PortKey, PortSnapshot, Scope, SourceRanges};
pub use state::{Model, Note};

#[cfg(test)]
pub(crate) use state::oracle;
