//! The decisions, free of hooks and maps: what happens to a connection, given the tables.

pub mod lookup;
pub mod socket;

#[cfg(any(test, feature = "std"))]
pub mod fake;
