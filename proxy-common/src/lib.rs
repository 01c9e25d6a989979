//! What kernel and user side must agree on: the bytes (`abi`), the packets (`wire`) and the
//! decisions (`datapath`). Compiled for the kernel and for the host.
#![cfg_attr(not(any(test, feature = "std")), no_std)]

pub mod abi;
pub mod datapath;
pub mod wire;
