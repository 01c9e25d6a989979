//! What worlds leave behind: found by name, and removed when their process is dead.
//!
//! A world's id is `<pid>-<number>`; everything it makes on the machine carries it:
//! namespaces `kp-<id>-<name>`, the cgroup `kube-portal-<id>`, mounts in /run/kube-portal-test/<id>.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::{bpffs, cgroup, netns};

const RUN_ROOT: &str = "/run/kube-portal-test";
const CGROUP_PREFIX: &str = "kube-portal-";
const NETNS_PREFIX: &str = "kp-";

pub(crate) fn run_dir(id: &str) -> PathBuf {
    Path::new(RUN_ROOT).join(id)
}

pub(crate) fn cgroup_dir(mount: &Path, id: &str) -> PathBuf {
    mount.join(format!("{CGROUP_PREFIX}{id}"))
}

pub(crate) fn netns_name(id: &str, name: &str) -> String {
    format!("{NETNS_PREFIX}{id}-{name}")
}

/// Something on this machine that belongs to a world.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Residue {
    /// A named network namespace.
    Netns(String),
    /// A cgroup directly below the root.
    Cgroup(PathBuf),
    /// A mount below our run directory.
    Mount(PathBuf),
    /// A run directory.
    RunDir(PathBuf),
}

impl Residue {
    /// The id of the world it belongs to.
    fn world(&self) -> Option<String> {
        match self {
            Self::Netns(name) => id_of(name.strip_prefix(NETNS_PREFIX)?),
            Self::Cgroup(path) => id_of(file_name(path)?.strip_prefix(CGROUP_PREFIX)?),
            Self::Mount(path) | Self::RunDir(path) => {
                id_of(path.strip_prefix(RUN_ROOT).ok()?.iter().next()?.to_str()?)
            }
        }
    }
}

/// Everything there is of all worlds, living and dead.
pub fn all() -> Vec<Residue> {
    let mut found: Vec<Residue> = netns::list().into_iter().map(Residue::Netns).collect();
    if let Ok(mount) = cgroup::mount_point() {
        found.extend(entries(mount).map(Residue::Cgroup));
    }
    let root = Path::new(RUN_ROOT);
    found.extend(bpffs::mounts_below(root).into_iter().map(Residue::Mount));
    found.extend(entries(root).map(Residue::RunDir));
    found.retain(|residue| residue.world().is_some());
    found
}

/// What there is of one world.
pub fn of_world(id: &str) -> Vec<Residue> {
    of(|world| world == id)
}

/// What there is of all worlds a process made.
pub fn of_process(pid: u32) -> Vec<Residue> {
    of(|world| pid_of(world) == Some(pid))
}

/// Removes what worlds of dead processes left, and yields what that was.
pub fn sweep() -> Vec<Residue> {
    let dead = of(|world| pid_of(world).is_some_and(|pid| !is_alive(pid)));
    let worlds: BTreeSet<String> = dead.iter().filter_map(Residue::world).collect();
    for id in worlds {
        remove_world(&id);
    }
    dead
}

fn of(belongs: impl Fn(&str) -> bool) -> Vec<Residue> {
    all()
        .into_iter()
        .filter(|residue| residue.world().is_some_and(|id| belongs(&id)))
        .collect()
}

/// Processes first: they hold everything else.
fn remove_world(id: &str) {
    let cgroup = cgroup::mount_point().map(|mount| cgroup_dir(mount, id));
    if let Ok(path) = &cgroup {
        cgroup::kill_all(path);
    }
    let prefix = netns_name(id, "");
    for name in netns::list()
        .iter()
        .filter(|name| name.starts_with(&prefix))
    {
        netns::remove(name);
    }
    let dir = run_dir(id);
    for mount in bpffs::mounts_below(&dir) {
        bpffs::remove(&mount);
    }
    if let Ok(path) = &cgroup {
        cgroup::remove(path);
    }
    remove_run_dir(&dir);
}

/// Also removes the directory of all worlds after the last.
pub(crate) fn remove_run_dir(dir: &Path) {
    let _ = fs::remove_dir_all(dir);
    let _ = fs::remove_dir(RUN_ROOT);
}

/// The id at the start of `<pid>-<number>` or `<pid>-<number>-<name>`.
fn id_of(text: &str) -> Option<String> {
    let mut parts = text.splitn(3, '-');
    let pid: u32 = parts.next()?.parse().ok()?;
    let number: u32 = parts.next()?.parse().ok()?;
    Some(format!("{pid}-{number}"))
}

fn pid_of(id: &str) -> Option<u32> {
    id.split('-').next()?.parse().ok()
}

/// Whether a process lives. A zombie is dead: it holds nothing.
pub fn is_alive(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    // pid (any name, even with brackets) state ...
    stat.rsplit_once(')')
        .is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
}

fn file_name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}
