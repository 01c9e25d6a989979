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
        /// Elements of SOCKETS, and flows in FLOWS that are not closed, that name the id: whichever
        /// endpoint had it when they began. An id goes to another endpoint when there are none.
        /// Two's complement; what is below 0 is about to be set right.
        pub active: i64,
        /// Until then (monotonic) it gets no new connections if another can have them, and from then on few as
        /// long as `failures` is not 0; 0: it was never passed over, or has answered since. Only the agent writes it.
        pub passed_over_until_ns: u64,
        /// Attempts to connect that failed since one was answered.
        pub failures: u32,
        /// Always 0.
        pub zero: u32,
    }
}
