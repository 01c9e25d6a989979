//! What this kernel can do, probed once and passed down.

use std::{
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd as _,
};

use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// bpf_set_retval in cgroup hooks (Linux 5.18, b44123b4a3dc): a refused connect() fails with
    /// ECONNREFUSED by itself.
    pub set_retval: bool,
    /// Cookie of this process's network namespace, which is the node's (SO_NETNS_COOKIE, Linux 5.14,
    /// e8b9eab99232). 0 on older kernels: there it must be the initial one.
    pub node_netns: u64,
    /// bpf_ktime_get_coarse_ns (Linux 5.11, d05512618056): the packet path's clock.
    pub coarse_clock: bool,
    /// BPF_FIB_LOOKUP_SKIP_NEIGH (Linux 6.5, 31de4105f00d). It can't be asked for without a packet, so
    /// 6.5 itself, which has no tcx, does without.
    pub skip_neigh: bool,
    /// Links for devices (Linux 6.6, e420bed02507).
    pub tcx: bool,
}

impl Features {
    pub fn probe() -> Self {
        let tcx = super::link::has_tcx();
        Self {
            // A probe that can't tell is a kernel without: the fallback works everywhere.
            set_retval: is_helper_supported(
                ProgramType::CgroupSockAddr,
                BpfHelper::BPF_FUNC_set_retval,
            )
            .unwrap_or(false),
            node_netns: netns_cookie().unwrap_or(0),
            coarse_clock: is_helper_supported(
                ProgramType::SchedClassifier,
                BpfHelper::BPF_FUNC_ktime_get_coarse_ns,
            )
            .unwrap_or(false),
            skip_neigh: tcx,
            tcx,
        }
    }
}

/// Of the calling thread's network namespace.
pub(crate) fn netns_cookie() -> std::io::Result<u64> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of_val(&cookie)).expect("eight bytes");
    // SAFETY: the socket is open, and the kernel writes at most `length` bytes to `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(std::io::Error::last_os_error())
    }
}
