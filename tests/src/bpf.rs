//! Which BPF programs and links the kernel holds, asked from the kernel itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, setrlimit};

use crate::wait;

/// All programs of ours have names that start so.
pub const OURS: &str = "kp_";

const MAP_CREATE: libc::c_int = 0;
const MAP_LOOKUP_ELEM: libc::c_int = 1;
const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const PROG_TEST_RUN: libc::c_int = 10;
const PROG_GET_NEXT_ID: libc::c_int = 11;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;
const LINK_GET_FD_BY_ID: libc::c_int = 30;
const LINK_GET_NEXT_ID: libc::c_int = 31;

const SCHED_CLS: u32 = 3;
const CGROUP_SOCK_ADDR: u32 = 18;
const CONNECT4: u32 = 10;

/// bpf_attr of the *_GET_NEXT_ID and *_GET_FD_BY_ID commands.
#[repr(C)]
#[derive(Default)]
struct IdAttr {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// Attach types of hooks of sockets: connect, sendmsg, recvmsg, getpeername (4 and 6 each),
/// sock_release and sock_ops (enum bpf_attach_type in include/uapi/linux/bpf.h).
const SOCKET_HOOKS: [u32; 10] = [10, 11, 14, 15, 19, 20, 29, 30, 34, 3];

/// bpf_attr of BPF_PROG_QUERY.
#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_count: u32,
    padding: u32,
    /// The kernel writes as far as the revision, whatever size it is told.
    rest: [u64; 4],
}

/// bpf_attr of BPF_OBJ_GET_INFO_BY_FD.
#[repr(C)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

/// The start of bpf_prog_info.
#[repr(C)]
#[derive(Default)]
struct ProgInfo {
    kind_id_tag_lens: [u32; 6],
    jited_xlated_load_time: [u64; 3],
    uid_maps: [u32; 2],
    map_ids: u64,
    name: [u8; 16],
}

/// A digest of the instructions of a loaded program: the same for the same build.
pub fn tag(id: u32) -> Result<[u32; 2]> {
    let file = open(PROG_GET_FD_BY_ID, id).with_context(|| format!("BPF program {id}"))?;
    let info: ProgInfo = info(&file).with_context(|| format!("info of BPF program {id}"))?;
    let [_, _, low, high, ..] = info.kind_id_tag_lens;
    Ok([low, high])
}

/// The start of bpf_link_info.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    padding: u32,
}

/// Every loaded program: its name by its id.
pub fn programs() -> Result<BTreeMap<u32, String>> {
    let mut found = BTreeMap::new();
    for id in ids(PROG_GET_NEXT_ID)? {
        // One that was unloaded meanwhile is not there.
        let Ok(file) = open(PROG_GET_FD_BY_ID, id) else {
            continue;
        };
        let info: ProgInfo = info(&file).with_context(|| format!("info of BPF program {id}"))?;
        let name = info
            .name
            .split(|byte| *byte == 0)
            .next()
            .unwrap_or_default();
        found.insert(id, String::from_utf8_lossy(name).into_owned());
    }
    Ok(found)
}

/// Every link: its program's id by its own.
pub fn links() -> Result<BTreeMap<u32, u32>> {
    let mut found = BTreeMap::new();
    for id in ids(LINK_GET_NEXT_ID)? {
        let Ok(file) = open(LINK_GET_FD_BY_ID, id) else {
            continue;
        };
        let info: LinkInfo = info(&file).with_context(|| format!("info of BPF link {id}"))?;
        found.insert(id, info.prog_id);
    }
    Ok(found)
}

/// Our programs by id, of every world on this machine: compare a moment before with one after.
pub fn our_programs() -> Result<BTreeMap<u32, String>> {
    let mut found = programs()?;
    found.retain(|_, name| name.starts_with(OURS));
    Ok(found)
}

/// Waits until no program of ours is there that was not `before`; yields those that stay. The
/// kernel lets go of programs a moment after whatever held them is gone.
pub fn ours_since(before: &BTreeMap<u32, String>, timeout: Duration) -> Result<Vec<String>> {
    let mut left = Vec::new();
    let gone = wait::until("programs to be unloaded", timeout, || {
        let now = our_programs();
        let new = now.map(|mut now| {
            now.retain(|id, _| !before.contains_key(id));
            now.into_values().collect::<Vec<String>>()
        });
        match new {
            Ok(new) if new.is_empty() => Some(Ok(Vec::new())),
            Ok(new) => {
                left = new;
                None
            }
            Err(error) => Some(Err(error)),
        }
    });
    gone.unwrap_or(Ok(left))
}

/// Ids of the programs attached to the socket hooks of a cgroup itself, one entry per hook.
pub fn attached(cgroup: &Path) -> Result<Vec<(u32, BTreeSet<u32>)>> {
    let directory = File::open(cgroup).with_context(|| cgroup.display().to_string())?;
    SOCKET_HOOKS
        .iter()
        .map(|&attach_type| {
            let mut ids = [0_u32; 64];
            let mut attr = QueryAttr {
                target_fd: directory.as_raw_fd().try_into()?,
                attach_type,
                prog_ids: ids.as_mut_ptr() as u64,
                prog_count: 64,
                ..QueryAttr::default()
            };
            bpf(PROG_QUERY, &mut attr)
                .with_context(|| format!("programs of hook {attach_type}"))?;
            let count = usize::try_from(attr.prog_count)?;
            Ok((attach_type, ids.into_iter().take(count).collect()))
        })
        .collect()
}

/// A program of another tool that lets nobody beside or below it; detached when dropped.
#[derive(Debug)]
pub struct Alone {
    program: File,
    cgroup: File,
}

#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log: [u64; 2],
    version_and_flags: [u32; 2],
    name: [u8; 16],
    ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
#[derive(Default)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace: u32,
}

/// Attaches a program that allows everything to `connect4` of a cgroup, without BPF_F_ALLOW_MULTI.
pub fn attach_alone(cgroup: &Path, name: &str) -> Result<Alone> {
    // r0 = 1; exit.
    let instructions: [u64; 2] = [1 << 32 | 0xb7, 0x95];
    let mut attr = LoadAttr {
        prog_type: CGROUP_SOCK_ADDR,
        insn_cnt: 2,
        insns: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        expected_attach_type: CONNECT4,
        ..LoadAttr::default()
    };
    attr.name[..name.len()].copy_from_slice(name.as_bytes());
    let fd = bpf(PROG_LOAD, &mut attr).context("load a program")?;
    // SAFETY: the kernel has just returned this descriptor, and nobody else has it.
    let program = unsafe { File::from_raw_fd(fd) };
    let cgroup = File::open(cgroup).with_context(|| cgroup.display().to_string())?;
    let mut attr = AttachAttr {
        target_fd: cgroup.as_raw_fd().try_into()?,
        attach_bpf_fd: program.as_raw_fd().try_into()?,
        attach_type: CONNECT4,
        ..AttachAttr::default()
    };
    bpf(PROG_ATTACH, &mut attr).context("attach a program")?;
    Ok(Alone { program, cgroup })
}

impl Drop for Alone {
    fn drop(&mut self) {
        let number = |file: &File| u32::try_from(file.as_raw_fd()).unwrap_or(u32::MAX);
        // Else it goes with the cgroup.
        let _ = bpf(
            PROG_DETACH,
            &mut AttachAttr {
                target_fd: number(&self.cgroup),
                attach_bpf_fd: number(&self.program),
                attach_type: CONNECT4,
                ..AttachAttr::default()
            },
        );
    }
}

fn ids(command: libc::c_int) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    let mut attr = IdAttr::default();
    loop {
        match bpf(command, &mut attr) {
            Ok(_) => found.push(attr.next_id),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(found),
            Err(error) => return Err(error).context("list BPF objects (needs root)"),
        }
        attr.id = attr.next_id;
    }
}

fn open(command: libc::c_int, id: u32) -> io::Result<File> {
    let fd = bpf(
        command,
        &mut IdAttr {
            id,
            ..IdAttr::default()
        },
    )?;
    // SAFETY: the kernel has just returned this descriptor, and nobody else has it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn info<T: Default>(file: &File) -> Result<T> {
    let mut info = T::default();
    let mut attr = InfoAttr {
        fd: file.as_raw_fd().try_into()?,
        len: size_of::<T>().try_into()?,
        // The kernel writes at most `len` bytes there; T is made of integers only.
        info: (&raw mut info) as u64,
    };
    bpf(OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: `attr` is a live bpf_attr prefix of the size passed; the kernel reads the rest as 0.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr as *mut T, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    libc::c_int::try_from(result).map_err(io::Error::other)
}

/// bpf_attr of BPF_PROG_TEST_RUN.
#[repr(C)]
#[derive(Default)]
struct RunAttr {
    program: u32,
    returned: u32,
    data_lengths: [u32; 2],
    data: u64,
    data_out: u64,
    repeat_and_duration: [u32; 2],
    contexts: [u64; 3],
}

/// bpf_attr of BPF_MAP_CREATE.
#[repr(C)]
#[derive(Default)]
struct MapAttr {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

/// bpf_attr of BPF_MAP_LOOKUP_ELEM.
#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// dst, src, offset and immediate of an instruction.
fn instruction(code: u64, dst: u64, src: u64, off: i16, imm: u64) -> u64 {
    let off = u64::from(off.cast_unsigned());
    code | dst << 8 | src << 12 | off << 16 | (imm & 0xffff_ffff) << 32
}

/// The `sock_ops` program of another tool: it wants to hear of round trip times, says when a first segment is to
/// be repeated, and counts what it hears. It goes with its cgroup.
#[derive(Debug)]
pub struct OtherTool {
    heard: File,
    _program: File,
}

/// `op` of `bpf_sock_ops` (include/uapi/linux/bpf.h).
pub const TCP_CONNECT_CB: u32 = 3;
pub const RTT_CB: u32 = 12;

/// Attaches it beside others; a first segment is repeated after `jiffies`.
pub fn attach_other_tool(cgroup: &Path, jiffies: u32) -> Result<OtherTool> {
    const SOCK_OPS: u32 = 13;
    const CGROUP_SOCK_OPS: u32 = 3;
    const ALLOW_MULTI: u32 = 2;
    const ARRAY: u32 = 2;
    const RTT_CB_FLAG: u64 = 8;
    // Offsets in bpf_sock_ops.
    const REPLY: i16 = 4;
    const CB_FLAGS: i16 = 84;
    const TIMEOUT_INIT: u64 = 1;
    let mut attr = MapAttr {
        kind: ARRAY,
        key_size: 4,
        value_size: 8,
        max_entries: 32,
        flags: 0,
    };
    // Before 5.11 maps are charged to this limit. A failure shows when the map is made.
    let _not_needed_everywhere = setrlimit(Resource::RLIMIT_MEMLOCK, u64::MAX, u64::MAX);
    let fd = bpf(MAP_CREATE, &mut attr).context("make a map")?;
    // SAFETY: the kernel has just returned this descriptor, and nobody else has it.
    let heard = unsafe { File::from_raw_fd(fd) };
    let program = [
        // r7 = ctx.op
        instruction(0xbf, 6, 1, 0, 0),
        instruction(0x61, 7, 6, 0, 0),
        // At TCP_CONNECT_CB: bpf_sock_ops_cb_flags_set(ctx, flags | RTT).
        instruction(0x55, 7, 0, 4, TCP_CONNECT_CB.into()),
        instruction(0x61, 2, 6, CB_FLAGS, 0),
        instruction(0x47, 2, 0, 0, RTT_CB_FLAG),
        instruction(0xbf, 1, 6, 0, 0),
        instruction(0x85, 0, 0, 0, 59),
        // At TIMEOUT_INIT: ctx.reply = jiffies.
        instruction(0x55, 7, 0, 2, TIMEOUT_INIT),
        instruction(0xb7, 1, 0, 0, jiffies.into()),
        instruction(0x63, 6, 1, REPLY, 0),
        // heard[op] += 1
        instruction(0x63, 10, 7, -4, 0),
        instruction(0x18, 1, 1, 0, u64::try_from(heard.as_raw_fd())?),
        0,
        instruction(0xbf, 2, 10, 0, 0),
        instruction(0x07, 2, 0, 0, 4_u64.wrapping_neg()),
        instruction(0x85, 0, 0, 0, 1),
        instruction(0x15, 0, 0, 2, 0),
        instruction(0xb7, 1, 0, 0, 1),
        instruction(0xdb, 0, 1, 0, 0),
        instruction(0xb7, 0, 0, 0, 1),
        instruction(0x95, 0, 0, 0, 0),
    ];
    let mut attr = LoadAttr {
        prog_type: SOCK_OPS,
        insn_cnt: program.len().try_into()?,
        insns: program.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        expected_attach_type: CGROUP_SOCK_OPS,
        ..LoadAttr::default()
    };
    let fd = bpf(PROG_LOAD, &mut attr).context("load another tool's program")?;
    // SAFETY: the kernel has just returned this descriptor, and nobody else has it.
    let program = unsafe { File::from_raw_fd(fd) };
    let cgroup = File::open(cgroup).with_context(|| cgroup.display().to_string())?;
    let mut attr = AttachAttr {
        target_fd: cgroup.as_raw_fd().try_into()?,
        attach_bpf_fd: program.as_raw_fd().try_into()?,
        attach_type: CGROUP_SOCK_OPS,
        attach_flags: ALLOW_MULTI,
        replace: 0,
    };
    bpf(PROG_ATTACH, &mut attr).context("attach another tool's program")?;
    Ok(OtherTool {
        heard,
        _program: program,
    })
}

impl OtherTool {
    /// How often it was called with this `op`.
    pub fn heard(&self, op: u32) -> Result<u64> {
        let mut value = 0_u64;
        let mut attr = ElementAttr {
            map: self.heard.as_raw_fd().try_into()?,
            key: (&raw const op) as u64,
            value: (&raw mut value) as u64,
            ..ElementAttr::default()
        };
        bpf(MAP_LOOKUP_ELEM, &mut attr).context("what another tool has heard")?;
        Ok(value)
    }
}

/// Has a program put a record into a ring buffer: nobody else can.
pub fn tell(ring: impl AsFd, record: &[u8; 24]) -> Result<()> {
    const RING_OUTPUT: u64 = 130;
    const STACK: u64 = 10;
    let mut program = Vec::new();
    for (word, at) in record.chunks_exact(8).zip([-24_i16, -16, -8]) {
        let word = u64::from_ne_bytes(word.try_into()?);
        program.push(instruction(0x18, 1, 0, 0, word));
        program.push(instruction(0, 0, 0, 0, word >> 32));
        program.push(instruction(0x7b, STACK, 1, at, 0));
    }
    let map = u64::try_from(ring.as_fd().as_raw_fd())?;
    program.extend([
        // The map; BPF_PSEUDO_MAP_FD.
        instruction(0x18, 1, 1, 0, map),
        0,
        instruction(0xbf, 2, STACK, 0, 0),
        instruction(0x07, 2, 0, 0, 24_u64.wrapping_neg()),
        instruction(0xb7, 3, 0, 0, 24),
        instruction(0xb7, 4, 0, 0, 0),
        instruction(0x85, 0, 0, 0, RING_OUTPUT),
        instruction(0x95, 0, 0, 0, 0),
    ]);
    let mut attr = LoadAttr {
        prog_type: SCHED_CLS,
        insn_cnt: program.len().try_into()?,
        insns: program.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        ..LoadAttr::default()
    };
    let fd = bpf(PROG_LOAD, &mut attr).context("load a program that tells")?;
    // SAFETY: the kernel has just returned this descriptor, and nobody else has it.
    let program = unsafe { File::from_raw_fd(fd) };
    let packet = [0_u8; 64];
    let mut run = RunAttr {
        program: program.as_raw_fd().try_into()?,
        data_lengths: [64, 0],
        data: packet.as_ptr() as u64,
        ..RunAttr::default()
    };
    bpf(PROG_TEST_RUN, &mut run).context("run a program that tells")?;
    ensure!(run.returned == 0, "the ring buffer is full");
    Ok(())
}
