//! Every byte shared between the programs and the agent, defined once.
//!
//! All types are `repr(C)`, have no implicit padding and only initialised bytes, so they can be map
//! keys (hashed as bytes) and can be copied in and out of the kernel. Changing any of them means
//! changing [`ABI_VERSION`].

mod protocol;

pub use protocol::Protocol;

/// Version of the map layout; names the directory of pins.
pub const ABI_VERSION: u32 = 1;
