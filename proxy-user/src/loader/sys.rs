//! bpf(2), for what aya keeps to itself.

use std::{
    io,
    os::fd::{FromRawFd as _, OwnedFd, RawFd},
};

use rustix::process::{Resource, Rlimit, setrlimit};

/// `enum bpf_cmd`, include/uapi/linux/bpf.h.
pub(super) const MAP_LOOKUP_ELEM: libc::c_int = 1;
pub(super) const MAP_UPDATE_ELEM: libc::c_int = 2;
pub(super) const MAP_DELETE_ELEM: libc::c_int = 3;
pub(super) const MAP_GET_NEXT_KEY: libc::c_int = 4;
pub(super) const OBJ_PIN: libc::c_int = 6;
pub(super) const OBJ_GET: libc::c_int = 7;
pub(super) const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
pub(super) const PROG_QUERY: libc::c_int = 16;
pub(super) const MAP_LOOKUP_BATCH: libc::c_int = 24;
pub(crate) const MAP_UPDATE_BATCH: libc::c_int = 26;
pub(crate) const MAP_DELETE_BATCH: libc::c_int = 27;
pub(super) const LINK_CREATE: libc::c_int = 28;
pub(super) const LINK_UPDATE: libc::c_int = 29;
pub(super) const LINK_DETACH: libc::c_int = 34;

/// An anonymous struct of `union bpf_attr`: `repr(C)`, made of integers only.
///
/// # Safety
/// Addresses in it are of memory that is valid for what the command reads or writes there.
pub(crate) unsafe trait Attr {}

/// `batch` of `union bpf_attr`.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) in_batch: u64,
    pub(crate) out_batch: u64,
    pub(crate) keys: u64,
    pub(crate) values: u64,
    pub(crate) count: u32,
    pub(crate) map_fd: u32,
    pub(crate) elem_flags: u64,
    pub(crate) flags: u64,
}

// SAFETY: integers only; whoever fills it gives addresses of buffers with room for `count` elements,
// and of the four bytes in which a hash map says where it is.
unsafe impl Attr for Batch {}

pub(crate) fn bpf<T: Attr>(command: libc::c_int, attr: &mut T) -> io::Result<RawFd> {
    // SAFETY: `attr` is valid for its size; what it points to is valid as its trait promises.
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
        RawFd::try_from(result).map_err(io::Error::other)
    }
}

/// For commands that make a descriptor.
pub(super) fn bpf_fd<T: Attr>(command: libc::c_int, attr: &mut T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes away the limit that maps are charged to before Linux 5.11; whether that is allowed.
pub(super) fn lift_memlock() -> bool {
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    setrlimit(Resource::Memlock, unlimited).is_ok()
}

pub(crate) fn number(fd: RawFd) -> u32 {
    u32::try_from(fd).expect("an open descriptor is not negative")
}

pub(super) fn length<T>() -> u32 {
    u32::try_from(size_of::<T>()).expect("a small struct")
}
