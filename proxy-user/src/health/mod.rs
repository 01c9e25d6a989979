//! Health: of this agent (`proxy`), of Services on this node (`service`), and the servers that tell
//! load balancers of the latter (`listeners`). BEHAVIOUR section 1C.

pub(crate) mod listeners;
pub(crate) mod proxy;
mod service;

pub(crate) use proxy::{Moment, ProxyHealth};
