//! Programs of others at the hooks where ours go.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
};

use futures::TryStreamExt as _;
use rtnetlink::packet_route::{
    link::{LinkAttribute, LinkXdp},
    tc::TcAttribute,
};

use super::{
    clsact,
    hook::Hook,
    packet::netlink,
    probe::program_names,
    sys::{self, Attr, bpf, number},
};

/// As `BPF_PROG_QUERY` has it: the kernel writes as far as the revision, whatever size it is told.
#[repr(C)]
#[derive(Default)]
pub(super) struct ProgQuery {
    /// A cgroup's descriptor or a device's index.
    pub(super) target: u32,
    pub(super) attach_type: u32,
    pub(super) query_flags: u32,
    pub(super) attach_flags: u32,
    pub(super) prog_ids: u64,
    pub(super) count: u32,
    pub(super) pad: u32,
    pub(super) prog_attach_flags: u64,
    pub(super) link_ids: u64,
    pub(super) link_attach_flags: u64,
    pub(super) revision: u64,
}

// SAFETY: integers only; `prog_ids` is null, or an array with room for `count` ids.
unsafe impl Attr for ProgQuery {}

/// What one call may find; a kernel allows 64.
const ROOM: usize = 64;

/// Attach types of the hooks of cgroups that our programs have, by name.
const CGROUP_HOOKS: [(&str, u32); 10] = [
    ("connect4", 10),
    ("connect6", 11),
    ("sendmsg4", 14),
    ("sendmsg6", 15),
    ("recvmsg4", 19),
    ("recvmsg6", 20),
    ("getpeername4", 29),
    ("getpeername6", 30),
    ("sock_release", 34),
    ("sock_ops", 3),
];

/// What a cgroup runs at one hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtCgroup {
    pub cgroup: PathBuf,
    pub hook: &'static str,
    pub sharing: Sharing,
    /// Names, in their order.
    pub programs: Vec<String>,
}

/// Whether a program lets others beside it or below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// `BPF_F_ALLOW_MULTI`: beside and below.
    Multi,
    /// `BPF_F_ALLOW_OVERRIDE`: one below takes its place there.
    Override,
    /// Neither.
    Alone,
}

/// Of a cgroup and all above it, from there upward; those that run something.
pub fn at_cgroups(cgroups: &[PathBuf]) -> io::Result<Vec<AtCgroup>> {
    let names = program_names();
    let mut found = Vec::new();
    for cgroup in cgroups {
        let directory = File::open(cgroup)?;
        for (hook, attach_type) in CGROUP_HOOKS {
            let (ids, flags) = match query(number(directory.as_raw_fd()), attach_type) {
                Ok(found) => found,
                // A hook that this kernel doesn't have.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => continue,
                Err(error) => return Err(error),
            };
            if !ids.is_empty() {
                found.push(AtCgroup {
                    cgroup: cgroup.clone(),
                    hook,
                    sharing: match flags {
                        flags if flags & 2 != 0 => Sharing::Multi,
                        flags if flags & 1 != 0 => Sharing::Override,
                        _ => Sharing::Alone,
                    },
                    programs: ids.iter().map(|id| name(&names, *id)).collect(),
                });
            }
        }
    }
    Ok(found)
}

fn name(names: &BTreeMap<u32, String>, id: u32) -> String {
    match names.get(&id) {
        Some(name) if !name.is_empty() => name.clone(),
        _ => format!("program {id}"),
    }
}

/// Ids of programs in their order, and flags.
fn query(target: u32, attach_type: u32) -> io::Result<(Vec<u32>, u32)> {
    let mut ids = [0_u32; ROOM];
    let mut query = ProgQuery {
        target,
        attach_type,
        prog_ids: ids.as_mut_ptr() as u64,
        count: u32::try_from(ROOM).expect("a small number"),
        ..ProgQuery::default()
    };
    bpf(sys::PROG_QUERY, &mut query)?;
    let count = usize::try_from(query.count).map_or(0, |count| count.min(ROOM));
    Ok((ids[..count].to_vec(), query.attach_flags))
}

/// A program of somebody else at a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtDevice {
    pub hook: Hook,
    pub how: How,
    /// Of a program; of another filter its kind.
    pub name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// By a link, in the order of the links.
    Tcx,
    /// A BPF filter of the qdisc clsact.
    Filter { priority: u16 },
    /// A filter of another kind.
    OtherFilter { priority: u16 },
}

/// What somebody else has put onto a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// In the order in which they run, by hook and mechanism.
    pub programs: Vec<AtDevice>,
    /// The qdisc `ingress`, beside which there is no `clsact`.
    pub has_ingress_qdisc: bool,
    pub xdp: Option<String>,
}

/// By index, for these devices.
///
/// # Errors
/// In words.
pub async fn at_devices(devices: &[u32]) -> Result<BTreeMap<u32, Others>, String> {
    let names = program_names();
    let netlink = netlink().map_err(|error| error.to_string())?;
    let words = |error| clsact::reason(&error);
    let with_filters = clsact::devices(&netlink).await.map_err(words)?;
    let with_ingress = clsact::devices_with(&netlink, "ingress")
        .await
        .map_err(words)?;
    let mut found = BTreeMap::new();
    for &ifindex in devices {
        let mut on = Others {
            has_ingress_qdisc: with_ingress.contains(&ifindex),
            ..Others::default()
        };
        for hook in Hook::BOTH {
            // A kernel without links, or a device without any.
            let (ids, _) = query(ifindex, hook.tcx()).unwrap_or_default();
            on.programs.extend(ids.iter().map(|id| AtDevice {
                hook,
                how: How::Tcx,
                name: name(&names, *id),
            }));
        }
        if with_filters.contains(&ifindex) {
            let filters = clsact::filters(&netlink, ifindex).await.map_err(words)?;
            let theirs = filters.iter().filter(|filter| !filter.is_ours());
            on.programs.extend(theirs.map(clsact::Filter::as_others));
        }
        let listed = netlink.link().get().match_index(ifindex).execute();
        // It may have gone meanwhile.
        let links: Vec<_> = listed.try_collect().await.unwrap_or_default();
        for attribute in links.iter().flat_map(|link| &link.attributes) {
            if let LinkAttribute::Xdp(parts) = attribute {
                on.xdp = parts.iter().find_map(|part| {
                    let LinkXdp::ProgId(id) = part else {
                        return None;
                    };
                    (*id != 0).then(|| name(&names, *id))
                });
            }
        }
        found.insert(ifindex, on);
    }
    Ok(found)
}

/// Whether an attribute says that a qdisc is of this kind.
pub(super) fn is_kind(attribute: &TcAttribute, wanted: &str) -> bool {
    matches!(attribute, TcAttribute::Kind(kind) if kind == wanted)
}

/// Of a cgroup v2 directory: itself and those above it, as far as they are to be seen from here.
pub fn with_parents(cgroup: &Path) -> Vec<PathBuf> {
    cgroup
        .ancestors()
        .take_while(|path| super::check_cgroup(path).is_ok())
        .map(Path::to_owned)
        .collect()
}
