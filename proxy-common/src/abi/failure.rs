//! What the programs tell the agent of backends that don't answer.

use super::layout::abi_struct;

abi_struct! {
    /// A record of the ring buffer FAILURES: an attempt to connect to a backend failed.
    pub struct AttemptFailure {
        /// Monotonic.
        pub at_ns: u64,
        /// Whose backend it is.
        pub service: u32,
        /// Which; `BackendStats::failures` says how often since it last answered.
        pub backend_id: u32,
        /// The index of a `Counter`: how it failed.
        pub outcome: u32,
        /// Always 0.
        pub zero: u32,
    }
}
