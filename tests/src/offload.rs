//! What devices do for the network stack, turned off.

use std::{mem::offset_of, net::UdpSocket, os::fd::AsRawFd};

use anyhow::{Context, Result};

/// SIOCETHTOOL (include/uapi/linux/sockios.h).
const ETHTOOL: libc::c_ulong = 0x8946;
/// ETHTOOL_SRXCSUM and ETHTOOL_STXCSUM (include/uapi/linux/ethtool.h).
const RECEIVED: u32 = 0x15;
const SENT: u32 = 0x17;

/// struct ethtool_value
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// struct ifreq
#[repr(C)]
struct Request {
    name: [u8; 16],
    value: *mut Value,
    padding: [u8; 16],
}

const _: () = assert!(size_of::<Request>() == 40 && offset_of!(Request, value) == 16);

/// From now on the kernel fills in checksums before a device of the calling thread's namespace sends.
pub fn filling_in_off(device: &str) -> Result<()> {
    off(device, SENT)
}

/// From now on the kernel looks at the checksums of what a device of the calling thread's namespace
/// brings.
pub fn vouching_off(device: &str) -> Result<()> {
    off(device, RECEIVED)
}

fn off(device: &str, command: u32) -> Result<()> {
    let socket = UdpSocket::bind("[::]:0")?;
    let mut value = Value { command, data: 0 };
    let mut request = Request {
        name: [0; 16],
        value: &raw mut value,
        padding: [0; 16],
    };
    request.name[..device.len()].copy_from_slice(device.as_bytes());
    // SAFETY: the kernel reads a struct ifreq and the struct ethtool_value it points to.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), ETHTOOL, &raw mut request) };
    if result != 0 {
        return Err(std::io::Error::last_os_error())
            .with_context(|| format!("ethtool {command:#x} of {device}"));
    }
    Ok(())
}
