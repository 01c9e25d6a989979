//! Every byte shared between the programs and the agent, defined once.
//!
//! All types are `repr(C)`, have no implicit padding and only initialised bytes, so they can be map
//! keys (hashed as bytes) and can be copied in and out of the kernel. Changing any of them means
//! changing [`ABI_VERSION`].

mod addr;
mod affinity;
mod conntrack;
mod counter;
mod failure;
mod inquiry;
mod layout;
mod monitor;
mod name;
mod prefix;
mod protocol;
mod scheduler;
mod service;
mod snat;
mod socket;
mod stats;

pub use addr::{Addr, SockAddr};
pub use affinity::{AffinityEntry, AffinityKey, Client, ServiceAffinity};
pub use conntrack::{
    Direction, FLOW_TOUCH_NS, FRAGMENT_NS, FlowEntry, FlowTimeouts, FragmentKey, FragmentPorts,
    Tuple, Via,
};
pub use counter::{Counter, Kind};
pub use failure::AttemptFailure;
pub use inquiry::Inquiry;
pub use monitor::{MONITOR_SERVICES, MonitorEvent, MonitorFilter, MonitorHook};
pub use name::ServiceName;
pub use prefix::{NetKey, SourceRange, SourceRangeKey};
pub use protocol::Protocol;
pub use scheduler::Scheduler;
pub use service::{Backend, Empty, Frontend, FrontendKey, FrontendKind, Service, ServiceWord};
pub use snat::{Device, PortRange};
pub use socket::{SocketCookie, SocketFlow, UDP_IDLE_NS, UDP_TOUCH_NS, UdpFlow, UdpFlowKey};
pub use stats::{BackendStats, ServiceStats};

/// Version of the map layout; names the directory of pins. A changed map's row in
/// `proxy-user/src/loader/layout.rs` names it too.
pub const ABI_VERSION: u32 = 5;

/// Names of the maps, as in the kernel object and below the directory of pins. The kernel keeps the
/// first 15 bytes.
pub mod map {
    pub const FRONTENDS: &str = "KP_FRONTENDS";
    pub const SERVICES: &str = "KP_SERVICES";
    pub const SLOTS: &str = "KP_SLOTS";
    pub const BACKENDS: &str = "KP_BACKENDS";
    pub const NAMES: &str = "KP_NAMES";
    pub const SOCKETS: &str = "KP_SOCKETS";
    pub const UDP_FLOWS: &str = "KP_UDP_FLOWS";
    pub const UDP_REVERSE: &str = "KP_UDP_REVERSE";
    pub const COUNTERS: &str = "KP_COUNTERS";
    pub const AFFINITY: &str = "KP_AFFINITY";
    pub const SERVICE_STATS: &str = "KP_SERVICE_STATS";
    pub const BACKEND_STATS: &str = "KP_BACKEND_STATS";
    pub const MONITOR: &str = "KP_MONITOR";
    pub const EVENTS: &str = "KP_EVENTS";
    pub const FAILURES: &str = "KP_FAILURES";

    pub const FLOWS: &str = "KP_FLOWS";
    pub const HALF_OPEN: &str = "KP_HALF_OPEN";
    pub const FRAGMENTS: &str = "KP_FRAGMENTS";
    pub const DEVICES: &str = "KP_DEVICES";
    pub const SOURCE_RANGES: &str = "KP_SOURCE_RANGES";
    pub const SERVICE_NETS: &str = "KP_SERVICE_NETS";

    /// All that are pinned.
    pub const ALL: &[&str] = &[
        FRONTENDS,
        SERVICES,
        SLOTS,
        BACKENDS,
        NAMES,
        SOCKETS,
        UDP_FLOWS,
        UDP_REVERSE,
        COUNTERS,
        AFFINITY,
        SERVICE_STATS,
        BACKEND_STATS,
        MONITOR,
        EVENTS,
        FAILURES,
        FLOWS,
        HALF_OPEN,
        FRAGMENTS,
        DEVICES,
        SOURCE_RANGES,
        SERVICE_NETS,
    ];
}
