//! What runs on a device: links, filters and qdiscs, asked from the kernel and from tc(8).

use std::{io, process::Command};

use anyhow::{Context, Result, bail};

use crate::netns::Netns;

/// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS`.
pub const TCX: [u32; 2] = [46, 47];

const PROG_QUERY: libc::c_int = 16;
const ROOM: usize = 16;

/// bpf_attr of BPF_PROG_QUERY, with links.
#[repr(C)]
struct Query {
    ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    zero: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Programs that a device runs by links, in their order: `(program id, link id)`.
pub fn links(netns: &Netns, ifindex: u32, attach_type: u32) -> Result<Vec<(u32, u32)>> {
    netns.enter(|| {
        let (mut programs, mut links) = ([0_u32; ROOM], [0_u32; ROOM]);
        let mut query = Query {
            ifindex,
            attach_type,
            query_flags: 0,
            attach_flags: 0,
            prog_ids: programs.as_mut_ptr() as u64,
            count: u32::try_from(ROOM)?,
            zero: 0,
            prog_attach_flags: 0,
            link_ids: links.as_mut_ptr() as u64,
            link_attach_flags: 0,
            revision: 0,
        };
        // SAFETY: `query` is a live bpf_attr prefix; its arrays have room for `count` ids.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                PROG_QUERY,
                &raw mut query,
                size_of::<Query>(),
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error()).context("programs of a device");
        }
        let count = usize::try_from(query.count)?;
        Ok(programs.into_iter().zip(links).take(count).collect())
    })?
}

/// Output of `tc` in a namespace.
pub fn tc(netns: &Netns, line: &str) -> Result<String> {
    let output = Command::new("tc")
        .args(["-n", netns.name()])
        .args(line.split(' '))
        .output()
        .context("run tc (is iproute2 installed?)")?;
    if !output.status.success() {
        bail!(
            "tc {line}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Index of a device.
pub fn index(netns: &Netns, name: &str) -> Result<u32> {
    netns.enter(|| {
        nix::net::if_::if_nametoindex(name).with_context(|| format!("no device {name}"))
    })?
}
