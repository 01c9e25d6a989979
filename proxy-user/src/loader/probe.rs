//! What this kernel has of what the programs and maps need, tried one by one. Whatever is made for it is
//! closed at once, and so gone.

use std::io;

use aya::programs::ProgramInfo;
use rustix::process::{Resource, getrlimit};

use super::{
    Features,
    sys::{self, Attr, Batch, bpf, bpf_fd, number},
};

/// Something that must be there, and what came of trying it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    pub what: &'static str,
    /// The first Linux that has it.
    pub since: &'static str,
    /// `None`: it works; else the number of the error.
    pub errno: Option<i32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    pub required: Vec<Tried>,
    pub features: Features,
    /// Whether programs become machine code; `None` if none could be loaded.
    pub jited: Option<bool>,
    /// Bytes of memory that could be locked before; `None` for no limit.
    pub memlock: Option<u64>,
    /// The limit could be lifted, as the agent does.
    pub memlock_lifted: bool,
}

/// `BPF_MAP_CREATE` and `BPF_PROG_LOAD` of `enum bpf_cmd`.
const MAP_CREATE: libc::c_int = 0;
const PROG_LOAD: libc::c_int = 5;

/// `enum bpf_prog_type`.
const SCHED_CLS: u32 = 3;
const CGROUP_SOCK: u32 = 9;
const SOCK_OPS: u32 = 13;
const CGROUP_SOCK_ADDR: u32 = 18;

/// Type of program, `enum bpf_attach_type`, and who has it.
const PROGRAMS: [(&str, &str, u32, u32); 12] = [
    ("cgroup/connect4", "4.17", CGROUP_SOCK_ADDR, 10),
    ("cgroup/connect6", "4.17", CGROUP_SOCK_ADDR, 11),
    ("cgroup/sendmsg4", "4.18", CGROUP_SOCK_ADDR, 14),
    ("cgroup/sendmsg6", "4.18", CGROUP_SOCK_ADDR, 15),
    ("cgroup/recvmsg4", "5.2", CGROUP_SOCK_ADDR, 19),
    ("cgroup/recvmsg6", "5.2", CGROUP_SOCK_ADDR, 20),
    ("cgroup/getpeername4", "5.8", CGROUP_SOCK_ADDR, 29),
    ("cgroup/getpeername6", "5.8", CGROUP_SOCK_ADDR, 30),
    ("cgroup/sock_release", "5.9", CGROUP_SOCK, 34),
    // The state of sockets; timeouts (4.13) came before.
    ("cgroup/sock_ops", "4.16", SOCK_OPS, 3),
    ("classifiers of packets (sched_cls)", "4.1", SCHED_CLS, 0),
    // Never last: the one above tells of the JIT.
    ("cgroup/sock_create", "4.10", CGROUP_SOCK, 2),
];

/// Type of map (`enum bpf_map_type`), bytes of its key, flags.
const MAPS: [(&str, &str, u32, u32, u32); 6] = [
    ("hash maps", "3.19", HASH, 4, 0),
    ("LRU hash maps", "4.10", 9, 4, 0),
    ("longest-prefix tries", "4.11", 11, 8, NO_PREALLOC),
    ("per-CPU arrays", "4.6", 6, 4, 0),
    (
        "arrays in shared memory (BPF_F_MMAPABLE)",
        "5.5",
        2,
        4,
        MMAPABLE,
    ),
    ("ring buffers", "5.8", RING_BUFFER, 0, 0),
];
const HASH: u32 = 1;
const RING_BUFFER: u32 = 27;
const NO_PREALLOC: u32 = 1;
const MMAPABLE: u32 = 1 << 10;

#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

// SAFETY: integers, no addresses.
unsafe impl Attr for MapCreate {}
// SAFETY: instructions and licence are live wherever this is used; there is no buffer for a log.
unsafe impl Attr for ProgLoad {}
// SAFETY: integers, no addresses.
unsafe impl Attr for LinkCreate {}

/// Tries everything. Lifts the limit of locked memory of this process, as the agent does.
pub fn probe() -> Probed {
    let memlock = getrlimit(Resource::Memlock).current;
    let memlock_lifted = sys::lift_memlock();
    let mut required: Vec<Tried> = Vec::new();
    let mut jited = None;
    for (what, since, prog_type, attach_type) in PROGRAMS {
        let loaded = load(prog_type, attach_type);
        if let (None, Ok(program)) = (jited, &loaded) {
            jited = is_jited(program);
        }
        required.push(tried(what, since, loaded.map(drop)));
    }
    for (what, since, map_type, key_size, flags) in MAPS {
        required.push(tried(
            what,
            since,
            create(map_type, key_size, flags).map(drop),
        ));
    }
    required.push(tried("writing maps in batches", "5.6", batch()));
    required.push(tried("links of cgroups", "5.7", cgroup_link()));
    Probed {
        required,
        features: Features::probe(),
        jited,
        memlock,
        memlock_lifted,
    }
}

fn tried(what: &'static str, since: &'static str, result: io::Result<()>) -> Tried {
    let errno = result
        .err()
        .map(|error| error.raw_os_error().unwrap_or(libc::EIO));
    Tried { what, since, errno }
}

/// A program that returns 1 at once.
fn load(prog_type: u32, expected_attach_type: u32) -> io::Result<std::os::fd::OwnedFd> {
    // BPF_ALU64 | BPF_MOV | BPF_K to r0, and BPF_EXIT.
    let instructions: [u64; 2] = [1 << 32 | 0xb7, 0x95];
    bpf_fd(
        PROG_LOAD,
        &mut ProgLoad {
            prog_type,
            insn_cnt: 2,
            insns: instructions.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log_buf: 0,
            kern_version: 0,
            prog_flags: 0,
            prog_name: *b"kp_check\0\0\0\0\0\0\0\0",
            prog_ifindex: 0,
            expected_attach_type,
        },
    )
}

fn create(map_type: u32, key_size: u32, map_flags: u32) -> io::Result<std::os::fd::OwnedFd> {
    let is_ring = map_type == RING_BUFFER;
    bpf_fd(
        MAP_CREATE,
        &mut MapCreate {
            map_type,
            key_size,
            value_size: if is_ring { 0 } else { 8 },
            // Of a ring, whole pages.
            max_entries: if is_ring { 64 * 1024 } else { 4 },
            map_flags,
        },
    )
}

fn batch() -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    let map = create(HASH, 4, 0)?;
    let (key, value) = (1_u32, 1_u64);
    bpf(
        sys::MAP_UPDATE_BATCH,
        &mut Batch {
            keys: (&raw const key) as u64,
            values: (&raw const value) as u64,
            count: 1,
            map_fd: number(map.as_raw_fd()),
            ..Batch::default()
        },
    )
    .map(drop)
}

/// A kernel that has links says that there is no such program; one that hasn't, that there is no such
/// command.
fn cgroup_link() -> io::Result<()> {
    const NONE: u32 = u32::MAX;
    let refused = bpf(
        sys::LINK_CREATE,
        &mut LinkCreate {
            prog_fd: NONE,
            target_fd: NONE,
            attach_type: PROGRAMS[0].3,
            flags: 0,
        },
    );
    match refused {
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => Ok(()),
        result => result.map(drop),
    }
}

#[repr(C)]
struct InfoByFd {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The head of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct ProgInfo {
    kind_and_id: [u32; 2],
    tag: [u8; 8],
    jited_bytes: u32,
    translated_bytes: u32,
}

// SAFETY: integers only; `info` is a live struct of `info_len` bytes.
unsafe impl Attr for InfoByFd {}

fn is_jited(program: &std::os::fd::OwnedFd) -> Option<bool> {
    use std::os::fd::AsRawFd as _;
    let mut info = ProgInfo::default();
    bpf(
        sys::OBJ_GET_INFO_BY_FD,
        &mut InfoByFd {
            bpf_fd: number(program.as_raw_fd()),
            info_len: sys::length::<ProgInfo>(),
            info: std::ptr::from_mut(&mut info) as u64,
        },
    )
    .ok()?;
    Some(info.jited_bytes > 0)
}

/// Names of all loaded programs by their ids, as far as this process may know.
pub(super) fn program_names() -> std::collections::BTreeMap<u32, String> {
    aya::programs::loaded_programs()
        .flatten()
        .map(|info: ProgramInfo| {
            let name = info.name_as_str().unwrap_or_default().to_owned();
            (info.id(), name)
        })
        .collect()
}
