//! Pinned links, and giving one another program: the two bpf(2) calls that aya keeps to itself.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

/// `enum bpf_cmd`, include/uapi/linux/bpf.h.
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_UPDATE: libc::c_int = 29;

/// The anonymous structs of `union bpf_attr` for these commands.
#[repr(C)]
struct ObjGet {
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

/// The head of `struct bpf_link_info` for a cgroup link.
#[repr(C)]
#[derive(Default)]
struct CgroupLinkInfo {
    link_type: u32,
    id: u32,
    prog_id: u32,
    pad: u32,
    cgroup_id: u64,
    attach_type: u32,
    pad2: u32,
}

fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is one of the structs above, valid for its size; what it points to outlives
    // the call, and the kernel writes only where the command says.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn number(fd: RawFd) -> u32 {
    u32::try_from(fd).expect("an open descriptor is not negative")
}

/// A link of a cgroup, by its pin.
#[derive(Debug)]
pub(super) struct PinnedCgroupLink {
    fd: OwnedFd,
}

impl PinnedCgroupLink {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let fd = bpf(
            BPF_OBJ_GET,
            &mut ObjGet {
                pathname: path.as_ptr() as u64,
                bpf_fd: 0,
                file_flags: 0,
            },
        )?;
        let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the kernel has just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd })
    }

    /// Inode number of the cgroup it is attached to; 0 if that is gone.
    pub(super) fn cgroup_id(&self) -> io::Result<u64> {
        let mut info = CgroupLinkInfo::default();
        bpf(
            BPF_OBJ_GET_INFO_BY_FD,
            &mut InfoByFd {
                bpf_fd: number(self.fd.as_raw_fd()),
                info_len: u32::try_from(size_of::<CgroupLinkInfo>()).expect("a small struct"),
                info: std::ptr::from_mut(&mut info) as u64,
            },
        )?;
        Ok(info.cgroup_id)
    }

    /// From the next call on, the link runs `program` instead (Linux 5.7, 0c991ebc8c69).
    pub(super) fn set_program(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        bpf(
            BPF_LINK_UPDATE,
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
