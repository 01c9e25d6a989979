//! The directory of pins: what outlives the agent, and how it goes away.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use aya::{
    maps::MapData,
    programs::links::{FdLink, PinnedLink},
};
use proxy_common::abi::{ABI_VERSION, map};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};

use crate::maps::bpf::{BpfStore, OpenError};

#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{path}: another kube-portal is running on these pins; stop it first, or give this one its own --bpffs-root"
    )]
    Busy { path: PathBuf },
    #[error("{path}: {reason}")]
    Bpf { path: PathBuf, reason: String },
    #[error(
        "nothing of kube-portal is pinned in {path}: the agent has not run there yet, or --bpffs-root names another place"
    )]
    Nothing { path: PathBuf },
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// Something `cleanup` took away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    pub what: &'static str,
    pub path: PathBuf,
}

/// `<bpffs>/kube-portal/v<ABI>/`: maps by name, links as `link_<program>`.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

const LINK_PREFIX: &str = "link_";
/// Of a link that is about to take another's place. (bpffs has no names with a dot.)
const FRESH_SUFFIX: &str = "_new";

impl Pins {
    pub fn new(bpffs_root: &Path) -> Self {
        Self {
            root: bpffs_root.join("kube-portal"),
        }
    }

    pub fn directory(&self) -> PathBuf {
        self.root.join(format!("v{ABI_VERSION}"))
    }

    pub fn map(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    pub fn link(&self, program: &str) -> PathBuf {
        self.directory().join(format!("{LINK_PREFIX}{program}"))
    }

    /// Makes the directory and holds it for this process: two agents on the same maps would undo
    /// one another's work. The lock goes with the returned descriptor.
    pub fn claim(&self) -> Result<OwnedFd, PinError> {
        let directory = self.directory();
        fs::create_dir_all(&directory).map_err(|source| PinError::Io {
            path: directory.clone(),
            source,
        })?;
        self.lock(&directory)
    }

    fn lock(&self, directory: &Path) -> Result<OwnedFd, PinError> {
        let io_error = |errno: rustix::io::Errno| PinError::Io {
            path: directory.to_owned(),
            source: errno.into(),
        };
        let fd = open(
            directory,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(io_error)?;
        match flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(fd),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(PinError::Busy {
                path: directory.to_owned(),
            }),
            Err(errno) => Err(io_error(errno)),
        }
    }

    /// The maps of a running or stopped agent, to look at.
    pub fn open_store(&self) -> Result<BpfStore, PinError> {
        if !self.map(map::FRONTENDS).exists() {
            return Err(PinError::Nothing {
                path: self.directory(),
            });
        }
        Ok(BpfStore::open(|name| {
            MapData::from_pin(self.map(name))
                .map_err(|source| OpenError::Open { map: name, source })
        })?)
    }

    /// Programs whose link is pinned.
    pub fn linked_programs(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.directory()) else {
            return Vec::new();
        };
        let mut programs: Vec<String> = entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                Some(name.strip_prefix(LINK_PREFIX)?.to_owned())
            })
            .filter(|program| !program.ends_with(FRESH_SUFFIX))
            .collect();
        programs.sort();
        programs
    }

    /// Puts `link` in the place of the program's earlier link, if any: there is no moment without
    /// either.
    pub fn replace_link(&self, program: &str, link: FdLink) -> Result<(), PinError> {
        let path = self.link(program);
        let fresh = self.link(&format!("{program}{FRESH_SUFFIX}"));
        // Left by an agent that died right here; its link goes with it.
        match fs::remove_file(&fresh) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(PinError::Io {
                    path: fresh,
                    source,
                });
            }
            Ok(()) | Err(_) => {}
        }
        let pinned = link.pin(&fresh).map_err(|error| PinError::Bpf {
            path: fresh.clone(),
            reason: error.to_string(),
        })?;
        fs::rename(&fresh, &path).map_err(|source| PinError::Io { path, source })?;
        drop(pinned);
        Ok(())
    }

    /// Removes everything of ours below the bpffs root, links first; what is not ours is left and
    /// keeps its directory.
    pub fn remove_all(&self) -> Result<Vec<Removed>, PinError> {
        let mut removed = Vec::new();
        let io_error = |path: &Path| {
            let path = path.to_owned();
            move |source| PinError::Io { path, source }
        };
        if !self.root.exists() {
            return Ok(removed);
        }
        let versions = fs::read_dir(&self.root).map_err(io_error(&self.root))?;
        for version in versions.flatten() {
            let directory = version.path();
            if !version.file_name().to_string_lossy().starts_with('v') {
                continue;
            }
            let _lock = self.lock(&directory)?;
            let mut paths: Vec<PathBuf> = fs::read_dir(&directory)
                .map_err(io_error(&directory))?
                .flatten()
                .map(|entry| entry.path())
                .collect();
            let is_link = |path: &PathBuf| {
                path.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with(LINK_PREFIX))
            };
            paths.sort_by_key(|path| (!is_link(path), path.clone()));
            for path in paths {
                let what = if is_link(&path) {
                    // Opening it proves that it is a link before it goes.
                    PinnedLink::from_pin(&path)
                        .map_err(|error| PinError::Bpf {
                            path: path.clone(),
                            reason: error.to_string(),
                        })?
                        .unpin()
                        .map_err(io_error(&path))?;
                    "link and program"
                } else if map::ALL
                    .iter()
                    .chain(map::PACKET)
                    .any(|name| path.ends_with(name))
                {
                    fs::remove_file(&path).map_err(io_error(&path))?;
                    "map"
                } else {
                    continue;
                };
                removed.push(Removed { what, path });
            }
            remove_empty(&directory, &mut removed);
        }
        remove_empty(&self.root, &mut removed);
        Ok(removed)
    }
}

/// A directory that still holds something of others stays.
fn remove_empty(path: &Path, removed: &mut Vec<Removed>) {
    if fs::remove_dir(path).is_ok() {
        removed.push(Removed {
            what: "directory",
            path: path.to_owned(),
        });
    }
}
