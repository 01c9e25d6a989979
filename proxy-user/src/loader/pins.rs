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

/// `<bpffs>/kube-portal/v<ABI>/`: maps by name, links as `link_<program>`, those of devices as
/// `link_<program>_at_<interface index>`.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

const LINK_PREFIX: &str = "link_";
const MAP_PREFIX: &str = "KP_";
/// Between program and interface index.
const AT: &str = "_at_";
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

    pub(super) fn device_link(&self, program: &str, ifindex: u32) -> PathBuf {
        self.link(&format!("{program}{AT}{ifindex}"))
    }

    /// Makes the directory and holds it for this process, and with it those of other versions: two
    /// agents on the same maps would undo one another's work, and on other maps hide it.
    pub fn claim(&self) -> Result<Claim, PinError> {
        let directory = self.directory();
        fs::create_dir_all(&directory).map_err(|source| PinError::Io {
            path: directory.clone(),
            source,
        })?;
        let own = self.lock(&directory)?;
        let others = self
            .versions()?
            .into_iter()
            .filter(|path| *path != directory)
            .map(|path| Ok((self.lock(&path)?, path)))
            .collect::<Result<_, PinError>>()?;
        Ok(Claim { _own: own, others })
    }

    /// The directories of all versions.
    fn versions(&self) -> Result<Vec<PathBuf>, PinError> {
        let entries = fs::read_dir(&self.root).map_err(|source| PinError::Io {
            path: self.root.clone(),
            source,
        })?;
        Ok(entries
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with('v'))
            .map(|entry| entry.path())
            .collect())
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
        Ok(BpfStore::open(|name| self.open_map(name))?)
    }

    /// Another view of the maps of `store`, which are those that are pinned here.
    pub fn share_store(&self, store: &BpfStore) -> Result<BpfStore, PinError> {
        Ok(store.share(|name| self.open_map(name))?)
    }

    fn open_map(&self, name: &'static str) -> Result<MapData, OpenError> {
        MapData::from_pin(self.map(name)).map_err(|source| OpenError::Open { map: name, source })
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
            .filter(|program| !program.ends_with(FRESH_SUFFIX) && !program.contains(AT))
            .collect();
        programs.sort();
        programs
    }

    /// Links of devices, by their pins.
    pub(super) fn device_links(&self) -> Vec<DeviceLink> {
        let entries = fs::read_dir(self.directory()).into_iter().flatten();
        entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let (_, ifindex) = name.strip_prefix(LINK_PREFIX)?.split_once(AT)?;
                Some(DeviceLink {
                    ifindex: ifindex.parse().ok()?,
                    path: entry.path(),
                })
            })
            .collect()
    }

    /// Puts `link` in the place of the program's earlier link, if any: there is no moment without
    /// either.
    pub fn replace_link(&self, program: &str, link: FdLink) -> Result<(), PinError> {
        self.replace_pin(&self.link(program), |fresh| {
            link.pin(fresh).map(drop).map_err(std::io::Error::other)
        })
    }

    /// The same with whatever `pin` pins at the path it is given.
    pub(super) fn replace_pin(
        &self,
        path: &Path,
        pin: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<(), PinError> {
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(FRESH_SUFFIX);
        let fresh = PathBuf::from(fresh);
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
        pin(&fresh).map_err(|source| PinError::Io {
            path: fresh.clone(),
            source,
        })?;
        fs::rename(&fresh, path).map_err(|source| PinError::Io {
            path: path.to_owned(),
            source,
        })
    }

    /// Removes everything of ours below the bpffs root, links first; what is not ours is left and
    /// keeps its directory.
    pub fn remove_all(&self) -> Result<Vec<Removed>, PinError> {
        let mut removed = Vec::new();
        if !self.root.exists() {
            return Ok(removed);
        }
        // All are held before anything goes.
        let locked = self
            .versions()?
            .into_iter()
            .map(|path| Ok((self.lock(&path)?, path)))
            .collect::<Result<Vec<(OwnedFd, PathBuf)>, PinError>>()?;
        for (_lock, directory) in &locked {
            remove_links(directory, |_| true, &mut removed)?;
            remove_maps(directory, &mut removed)?;
            remove_empty(directory, &mut removed);
        }
        remove_empty(&self.root, &mut removed);
        Ok(removed)
    }
}

/// A device's link, by its pin.
#[derive(Clone, Debug)]
pub(super) struct DeviceLink {
    pub(super) ifindex: u32,
    pub(super) path: PathBuf,
}

/// The pins are this process's, as long as this lives.
#[derive(Debug)]
pub struct Claim {
    _own: OwnedFd,
    /// Of agents of another version, which don't run.
    others: Vec<(OwnedFd, PathBuf)>,
}

impl Claim {
    /// Detaches the socket programs of other versions: ours are attached, and the first to see a
    /// connection remembers it.
    pub fn retire_socket_links(&self) -> Result<Vec<Removed>, PinError> {
        let mut removed = Vec::new();
        for (_, directory) in &self.others {
            remove_links(directory, |name| !name.contains(AT), &mut removed)?;
        }
        Ok(removed)
    }

    /// Removes all else of other versions.
    pub fn retire(&mut self) -> Result<Vec<Removed>, PinError> {
        let mut removed = Vec::new();
        for (_lock, directory) in self.others.drain(..) {
            remove_links(&directory, |_| true, &mut removed)?;
            remove_maps(&directory, &mut removed)?;
            remove_empty(&directory, &mut removed);
        }
        Ok(removed)
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> PinError {
    let path = path.to_owned();
    move |source| PinError::Io { path, source }
}

/// Pins whose names begin so, sorted.
fn pins_in(directory: &Path, prefix: &str) -> Result<Vec<(String, PathBuf)>, PinError> {
    let mut pins: Vec<(String, PathBuf)> = fs::read_dir(directory)
        .map_err(io_error(directory))?
        .flatten()
        .map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, entry.path())
        })
        .filter(|(name, _)| name.starts_with(prefix))
        .collect();
    pins.sort();
    Ok(pins)
}

fn remove_links(
    directory: &Path,
    which: impl Fn(&str) -> bool,
    removed: &mut Vec<Removed>,
) -> Result<(), PinError> {
    for (name, path) in pins_in(directory, LINK_PREFIX)? {
        if !which(&name) {
            continue;
        }
        // Opening it proves that it is a link before it goes.
        PinnedLink::from_pin(&path)
            .map_err(|error| PinError::Bpf {
                path: path.clone(),
                reason: error.to_string(),
            })?
            .unpin()
            .map_err(io_error(&path))?;
        removed.push(Removed {
            what: "link and program",
            path,
        });
    }
    Ok(())
}

fn remove_maps(directory: &Path, removed: &mut Vec<Removed>) -> Result<(), PinError> {
    for (_, path) in pins_in(directory, MAP_PREFIX)? {
        fs::remove_file(&path).map_err(io_error(&path))?;
        removed.push(Removed { what: "map", path });
    }
    Ok(())
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
