//! What is asked for.
mod filter;

pub(crate) use filter::{Filter, FilterError};
