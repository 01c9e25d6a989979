//! The world the tests run in: nodes, pods and outside clients as network namespaces and child
//! cgroups on one machine, a probe inside each pod, and the agent under test on each node.
//!
//! Nothing here touches the host's own network, its root cgroup or its sysctls. Everything made
//! carries the process id in its name, so what a killed test left is found and removed by the next.

pub mod agent;
pub mod apiserver;
pub mod balance;
pub mod bench;
pub mod binaries;
pub mod bpf;
pub mod bpffs;
pub mod cgroup;
pub mod cluster;
pub mod container;
pub mod demo;
pub mod documents;
pub mod flaky;
pub mod fleet;
pub mod http;
mod layout;
pub use layout::{SINK4, SINK6};
pub mod manifests;
pub mod maps;
pub mod netns;
pub mod offload;
pub mod oneshot;
pub mod packet;
pub mod pod;
pub mod probe;
pub mod residue;
pub mod scenario;
pub mod stage;
pub mod tc;
pub mod tun;
pub mod wait;
pub mod world;

pub use agent::{Agent, Source};
pub use manifests::{EndpointSlice, ManifestDir, Service};
pub use pod::Pod;
pub use probe::client::net_error;
pub use world::{Node, World};
