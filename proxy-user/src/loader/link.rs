//! Links of cgroups and of devices: made, pinned, found again, given another program.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use super::{
    hook::Hook,
    others::ProgQuery,
    sys::{self, Attr, bpf, bpf_fd, number},
};

#[repr(C)]
struct Obj {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
struct InfoByFd {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

#[repr(C)]
struct LinkDetach {
    link_fd: u32,
}

/// As `tcx` has it (Linux 6.6, e420bed02507).
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    zero: u32,
    expected_revision: u64,
}

// SAFETY: integers only; the path outlives each call that is given its address.
unsafe impl Attr for Obj {}
// SAFETY: integers only; `info` is a live struct of `info_len` bytes wherever this is used.
unsafe impl Attr for InfoByFd {}
// SAFETY: integers, no addresses.
unsafe impl Attr for LinkUpdate {}
// SAFETY: integers, no addresses.
unsafe impl Attr for LinkDetach {}
// SAFETY: integers, no addresses.
unsafe impl Attr for LinkCreate {}

/// The head of `struct bpf_link_info`, and what it says of a cgroup's link or a device's.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    link_type: u32,
    id: u32,
    prog_id: u32,
    pad: u32,
    /// A cgroup's inode number; of a device the index and the attach type.
    target: [u32; 2],
    attach_type: u32,
    pad2: u32,
}

/// `BPF_LINK_TYPE_TCX`.
const TYPE_TCX: u32 = 11;

#[derive(Debug)]
pub(super) struct Link {
    fd: OwnedFd,
}

/// Where a device's link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AtDevice {
    /// 0 if the device is gone, or somebody detached it.
    pub(super) ifindex: u32,
    pub(super) attach_type: u32,
    pub(super) program_id: u32,
}

impl Link {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let fd = bpf_fd(
            sys::OBJ_GET,
            &mut Obj {
                pathname: path.as_ptr() as u64,
                bpf_fd: 0,
                file_flags: 0,
            },
        )?;
        Ok(Self { fd })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Attaches a program to a device's hook, beside all others that are there.
    pub(super) fn at_device(program: BorrowedFd<'_>, ifindex: u32, hook: Hook) -> io::Result<Self> {
        let fd = bpf_fd(
            sys::LINK_CREATE,
            &mut LinkCreate {
                prog_fd: number(program.as_raw_fd()),
                target_ifindex: ifindex,
                attach_type: hook.tcx(),
                flags: hook.tcx_place(),
                relative_fd: 0,
                zero: 0,
                expected_revision: 0,
            },
        )?;
        Ok(Self { fd })
    }

    pub(super) fn pin(&self, path: &Path) -> io::Result<()> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        bpf(
            sys::OBJ_PIN,
            &mut Obj {
                pathname: path.as_ptr() as u64,
                bpf_fd: number(self.fd.as_raw_fd()),
                file_flags: 0,
            },
        )
        .map(drop)
    }

    fn info(&self) -> io::Result<LinkInfo> {
        let mut info = LinkInfo::default();
        bpf(
            sys::OBJ_GET_INFO_BY_FD,
            &mut InfoByFd {
                bpf_fd: number(self.fd.as_fd().as_raw_fd()),
                info_len: sys::length::<LinkInfo>(),
                info: std::ptr::from_mut(&mut info) as u64,
            },
        )?;
        Ok(info)
    }

    /// Inode number of the cgroup it is attached to; 0 if that is gone.
    pub(super) fn cgroup_id(&self) -> io::Result<u64> {
        let [low, high] = self.info()?.target.map(u32::to_ne_bytes);
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&low);
        bytes[4..].copy_from_slice(&high);
        Ok(u64::from_ne_bytes(bytes))
    }

    pub(super) fn program_id(&self) -> io::Result<u32> {
        Ok(self.info()?.prog_id)
    }

    /// `None` if it is no device's link.
    pub(super) fn device(&self) -> io::Result<Option<AtDevice>> {
        let info = self.info()?;
        Ok((info.link_type == TYPE_TCX).then_some(AtDevice {
            ifindex: info.target[0],
            attach_type: info.target[1],
            program_id: info.prog_id,
        }))
    }

    /// From the next call on, the link runs `program` instead (Linux 5.7, 0c991ebc8c69).
    pub(super) fn set_program(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        bpf(
            sys::LINK_UPDATE,
            &mut LinkUpdate {
                link_fd: number(self.fd.as_raw_fd()),
                new_prog_fd: number(program.as_raw_fd()),
                flags: 0,
                old_prog_fd: 0,
            },
        )
        .map(drop)
    }
}

/// From now on the link runs nothing (Linux 5.9, 73b11c2ab072). The last pin's removal ends it too, but
/// some time later.
pub(super) fn detach(path: &Path) -> io::Result<()> {
    let link = Link::open(path)?;
    bpf(
        sys::LINK_DETACH,
        &mut LinkDetach {
            link_fd: number(link.fd.as_raw_fd()),
        },
    )
    .map(drop)
}

/// Whether devices take links: a kernel that doesn't know of them says EINVAL.
pub(super) fn has_tcx() -> bool {
    const LOOPBACK: u32 = 1;
    let asked = bpf(
        sys::PROG_QUERY,
        &mut ProgQuery {
            target: LOOPBACK,
            attach_type: Hook::Ingress.tcx(),
            ..ProgQuery::default()
        },
    );
    !matches!(asked, Err(error) if error.raw_os_error() == Some(libc::EINVAL))
}
