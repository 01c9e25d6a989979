//! From the kernel's contexts and maps to the traits of `proxy_common`.

pub(crate) mod sock;
pub(crate) mod sock_addr;
pub(crate) mod tables;
pub(crate) mod tc;
