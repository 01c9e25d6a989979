//! Child cgroups (v2), emptied and removed when dropped.

use std::fs;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait;

/// A cgroup of our own.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Creates it; the parent must exist.
    pub fn create(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("create cgroup {}", path.display()))?;
        Ok(Self { path })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An open `cgroup.procs`: a process that writes "0" to it moves itself in.
    pub fn open_procs(&self) -> Result<File> {
        let path = self.path.join("cgroup.procs");
        File::options()
            .write(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Where cgroup v2 is mounted: /sys/fs/cgroup, or beside v1 on hybrid machines.
pub fn mount_point() -> Result<&'static Path> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
            mounts.lines().find_map(|line| {
                let mut fields = line.split(' ').skip(1);
                let path = fields.next()?;
                (fields.next()? == "cgroup2").then(|| PathBuf::from(path))
            })
        })
        .as_deref()
        .context("cgroup v2 is not mounted (no cgroup2 line in /proc/self/mounts)")
}

/// Kills what runs in the tree and waits until it is empty.
pub fn kill_all(path: &Path) {
    if !path.is_dir() {
        return;
    }
    // cgroup.kill is there since 5.14; before, one process after the other, until none is left.
    let whole = fs::write(path.join("cgroup.kill"), "1").is_ok();
    // Dead or not in time: the rmdir that follows tells.
    let _ = wait::until("cgroup to be empty", Duration::from_secs(5), || {
        if !whole {
            kill_each(path);
        }
        let events = fs::read_to_string(path.join("cgroup.events")).unwrap_or_default();
        (!events.contains("populated 1")).then_some(())
    });
}

/// Kills what runs in the tree, then removes it.
pub fn remove(path: &Path) {
    kill_all(path);
    // A child that has exited may keep its cgroup busy for a moment.
    let _ = wait::until("cgroup to be gone", Duration::from_secs(2), || {
        remove_tree(path);
        (!path.exists()).then_some(())
    });
}

fn remove_tree(path: &Path) {
    for child in children(path) {
        remove_tree(&child);
    }
    let _ = fs::remove_dir(path);
}

fn kill_each(path: &Path) {
    for child in children(path) {
        kill_each(&child);
    }
    let procs = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    for pid in procs
        .lines()
        .filter_map(|line| line.parse::<i32>().ok())
        .filter(|pid| *pid > 0)
    {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

fn children(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect()
}
