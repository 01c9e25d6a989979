//! Pure: folds [`Event`]s into what every Service port should look like on this node.

pub mod ingest;
pub mod object;
pub mod policy;

pub use object::*;
