//! How often each Service and backend was asked for.

use super::layout::abi_struct;

abi_struct! {
    #[derive(Default)]
    /// Element of the map SERVICE_STATS, by service id. All programs add to it; it is 0 when the id is
    /// given to a Service.
    pub struct ServiceStats {
        /// Connections and UDP flows that were given a backend.
        pub connections: u64,
        /// Those that were refused or dropped.
        pub failures: u64,
    }

    #[derive(Default)]
    /// Element of the map BACKEND_STATS, by backend id.
    pub struct BackendStats {
        /// Connections and UDP flows that it was given.
        pub connections: u64,
    }
}
