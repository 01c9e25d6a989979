//! A device without a link layer, whose other end is a file.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// TUNSETIFF (include/uapi/linux/if_tun.h).
const SET_INTERFACE: libc::c_ulong = 0x4004_54ca;

/// It is gone when this is dropped.
#[derive(Debug)]
pub struct Tun {
    file: File,
}

impl Tun {
    /// Makes it in the calling thread's network namespace.
    pub fn new(name: &str) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let file = options
            .open("/dev/net/tun")
            .context("open /dev/net/tun (module tun)")?;
        let mut request = [0_u8; 40];
        request[..name.len()].copy_from_slice(name.as_bytes());
        let flags = u16::try_from(libc::IFF_TUN | libc::IFF_NO_PI)?;
        request[16..18].copy_from_slice(&flags.to_ne_bytes());
        // SAFETY: the kernel reads and writes a struct ifreq, 40 bytes.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), SET_INTERFACE, request.as_mut_ptr()) };
        if result != 0 {
            return Err(std::io::Error::last_os_error()).with_context(|| format!("make {name}"));
        }
        Ok(Self { file })
    }

    /// A packet comes in by the device.
    pub fn send(&mut self, packet: &[u8]) -> Result<()> {
        Ok(self.file.write_all(packet)?)
    }

    /// The next packet that leaves by the device and is wanted.
    pub fn receive(&mut self, is_wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
        const TIME: Duration = Duration::from_secs(10);
        let started = Instant::now();
        let mut buffer = vec![0; 65_536];
        while started.elapsed() < TIME {
            let mut wanted = [PollFd::new(
                std::os::fd::AsFd::as_fd(&self.file),
                PollFlags::POLLIN,
            )];
            if poll(&mut wanted, PollTimeout::from(100_u16))? == 0 {
                continue;
            }
            let length = self.file.read(&mut buffer)?;
            if is_wanted(&buffer[..length]) {
                return Ok(buffer[..length].to_vec());
            }
        }
        bail!("nothing within {TIME:?}");
    }
}
