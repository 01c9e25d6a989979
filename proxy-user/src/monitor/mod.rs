//! `kube-portal monitor`: decisions of the programs as they are made.
//!
//! `event` turns a record of the programs into what a person or a script reads, and `filter` what is asked for
//! into what the programs look at; both are pure. `listen` has the programs tell, and reads.

pub(crate) mod event;
pub(crate) mod filter;
pub(crate) mod listen;
