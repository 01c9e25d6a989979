//! A bpf filesystem per node, unmounted when dropped.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A private bpffs mount.
#[derive(Debug)]
pub struct Bpffs {
    path: PathBuf,
}

impl Bpffs {
    /// Mounts one on a new directory.
    pub fn mount(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        let guard = Self { path };
        mount(
            Some("bpf"),
            &guard.path,
            Some("bpf"),
            MsFlags::empty(),
            Some("mode=0700"),
        )
        .with_context(|| format!("mount bpffs on {}", guard.path.display()))?;
        Ok(guard)
    }

    /// The mount point.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Unpins everything, unmounts, removes the directory.
pub fn remove(path: &Path) {
    // Pins go first: another mount namespace may hold a copy of the mount, and with it the pins.
    if let Ok(entries) = fs::read_dir(path) {
        for path in entries.flatten().map(|entry| entry.path()) {
            let _ = if path.is_dir() {
                fs::remove_dir_all(path)
            } else {
                fs::remove_file(path)
            };
        }
    }
    let _ = umount2(path, MntFlags::MNT_DETACH);
    let _ = fs::remove_dir(path);
}

/// Mount points at or below `dir`, deepest first.
pub fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut found: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(PathBuf::from)
        .filter(|path| path.starts_with(dir))
        .collect();
    found.sort();
    found.reverse();
    found
}
