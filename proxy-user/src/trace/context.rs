//! `struct __sk_buff` (include/uapi/linux/bpf.h), as a test run takes it.

/// Where the index of the device is.
const IFINDEX: usize = 40;
/// Its length, rounded up: the kernel takes zeroes behind what it knows.
const LENGTH: usize = 256;

pub(super) struct Context([u8; LENGTH]);

impl Context {
    /// Of a packet that came in by this device, or leaves by it.
    pub(super) fn at_device(ifindex: u32) -> Self {
        let mut bytes = [0; LENGTH];
        bytes[IFINDEX..IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
        Self(bytes)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}
