//! The directory of pins: what outlives the agent, and how it goes away.

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use aya::{
    maps::{MapData, MapInfo},
    programs::links::FdLink,
};
use log::Level;
use proxy_common::abi::{ABI_VERSION, map};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};

use super::{
    Sizes, layout, link,
    pinned::{self, Kind},
    raw_map::RawMap,
    resize::{self, Move, Moves, Resize, Why},
    sizes::{self, Size, Taken},
};
use crate::maps::bpf::{BpfStore, OpenError};

#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{path}: another kube-portal is running on these pins; stop it first, or give this one its own --bpffs-root"
    )]
    Busy { path: PathBuf },
    #[error(
        "{path}: not a directory, so not kube-portal's; remove it, or name another directory with --bpffs-root"
    )]
    NotADirectory { path: PathBuf },
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
/// The directory that is not whole yet.
const BEGUN: &str = "begun";
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

    /// Holds the pins for this process, of whatever version: two agents on the same maps would undo one
    /// another's work, and on other maps hide it. Then looks at what is there.
    ///
    /// Where this version's directory is missing, or isn't whole, another is begun with what maps of an
    /// earlier agent can be used. It gets its name when it is whole: [`Claim::settle`].
    pub fn claim(&self, sizes: &Sizes) -> Result<Claim, PinError> {
        match fs::create_dir_all(&self.root) {
            Err(_)
                if self
                    .root
                    .symlink_metadata()
                    .is_ok_and(|meta| !meta.is_dir()) =>
            {
                return Err(PinError::NotADirectory {
                    path: self.root.clone(),
                });
            }
            result => result.map_err(io_error(&self.root))?,
        }
        let mut claim = Claim {
            _lock: self.lock()?,
            directory: self.directory(),
            begun: None,
            replaces: false,
            others: Vec::new(),
            moved: Vec::new(),
            moves: Moves::default(),
            notes: Vec::new(),
        };
        let begun = self.root.join(BEGUN);
        if begun.exists() {
            remove_maps(&begun, &mut Vec::new())?;
            let _unless_others_put_something_there = fs::remove_dir(&begun);
            claim.note(
                Level::Info,
                format!(
                    "{}: left by an agent that died while it started; removed",
                    begun.display()
                ),
            );
        }
        claim.others = self.versions()?;
        claim.others.retain(|path| *path != claim.directory);
        if claim.directory.symlink_metadata().is_ok() {
            let faults = faults(&claim.directory);
            let Some(first) = faults.first() else {
                claim.note_strangers();
                claim.remember_unmoved()?;
                let directory = claim.directory.clone();
                let anew = claim.resized(&directory, sizes, map::ALL)?;
                if !anew.is_empty() {
                    claim.begin_from(begun, &directory, map::ALL, anew)?;
                    claim.replaces = true;
                }
                return Ok(claim);
            };
            let aside = set_aside(&self.root, &claim.directory)?;
            claim.note(
                Level::Warn,
                format!(
                    "{}: not whole, somebody has changed it: {first}{}; it works on as {} until new \
                     maps have taken its place",
                    claim.directory.display(),
                    match faults.len() {
                        1 => String::new(),
                        more => format!(" ({} more)", more - 1),
                    },
                    aside.display()
                ),
            );
            claim.others.insert(0, aside);
        }
        claim.begin(begun, sizes)?;
        Ok(claim)
    }

    /// The directories of all versions, the newest first.
    fn versions(&self) -> Result<Vec<PathBuf>, PinError> {
        let entries = fs::read_dir(&self.root).map_err(io_error(&self.root))?;
        let mut found: Vec<PathBuf> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| version(path).is_some() && path.is_dir())
            .collect();
        found.sort_by_key(|path| std::cmp::Reverse(version(path)));
        Ok(found)
    }

    fn lock(&self) -> Result<OwnedFd, PinError> {
        let io_error = |errno: rustix::io::Errno| PinError::Io {
            path: self.root.clone(),
            source: errno.into(),
        };
        let fd = open(
            &self.root,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(io_error)?;
        match flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(fd),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(PinError::Busy {
                path: self.root.clone(),
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

    /// What each map takes of the kernel's memory now.
    pub fn memory(&self) -> Vec<Taken> {
        taken(|name| self.map(name))
    }

    /// What earlier agents pinned, the newest version first; without a change.
    pub fn found(&self) -> Vec<Found> {
        let versions = self.versions().unwrap_or_default();
        versions
            .into_iter()
            .map(|path| Found {
                version: version(&path).unwrap_or_default(),
                faults: if path == self.directory() {
                    faults(&path)
                } else {
                    Vec::new()
                },
                path,
            })
            .collect()
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
    pub fn remove_all(&self) -> Result<Cleaned, PinError> {
        let mut cleaned = Cleaned::default();
        if !self.root.exists() {
            return Ok(cleaned);
        }
        let _lock = self.lock()?;
        let mut directories = self.versions()?;
        let begun = self.root.join(BEGUN);
        if begun.exists() {
            directories.push(begun);
        }
        for directory in &directories {
            remove(directory, &mut cleaned)?;
        }
        remove_empty(&self.root, &mut cleaned.removed);
        if self.root.exists() {
            let others = entries(&self.root)?.into_iter().map(|(_, path)| path);
            cleaned
                .kept
                .extend(others.filter(|path| !directories.contains(path)));
        }
        Ok(cleaned)
    }
}

/// A directory of pins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub path: PathBuf,
    pub version: u32,
    /// What keeps one of this version from being used.
    pub faults: Vec<String>,
}

/// What `cleanup` did below the bpffs root.
#[derive(Clone, Debug, Default)]
pub struct Cleaned {
    pub removed: Vec<Removed>,
    /// Not ours.
    pub kept: Vec<PathBuf>,
}

/// Of the maps that are pinned there, as the kernel accounts it; where it doesn't, reckoned.
fn taken(path: impl Fn(&str) -> PathBuf) -> Vec<Taken> {
    let maps = map::ALL.iter().filter_map(|name| {
        let map = RawMap::open(&path(name)).ok()?;
        let entries = map.entries();
        let reckoned = || Size {
            map: name,
            entries,
            flag: None,
        };
        Some(Taken {
            map: name,
            entries,
            bytes: map
                .memory_bytes()
                .unwrap_or_else(|| reckoned().memory_bytes()),
        })
    });
    maps.collect()
}

/// A device's link, by its pin.
#[derive(Clone, Debug)]
pub(super) struct DeviceLink {
    pub(super) ifindex: u32,
    pub(super) path: PathBuf,
}

/// A line for the log.
pub type Note = (Level, String);

/// The pins are this process's, as long as this lives.
#[derive(Debug)]
pub struct Claim {
    _lock: OwnedFd,
    directory: PathBuf,
    /// What becomes the directory when every map is in it.
    begun: Option<PathBuf>,
    /// The directory is there, and goes to the others then.
    replaces: bool,
    /// Maps of another size in the directory they are taken from.
    moved: Vec<(&'static str, PathBuf)>,
    /// Those of them that programs write.
    moves: Moves,
    /// Of agents that don't run: of other versions, and what was set aside.
    others: Vec<PathBuf>,
    notes: Vec<Note>,
}

impl Claim {
    /// Where a map is pinned, or is to be.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.begun.as_ref().unwrap_or(&self.directory).join(name)
    }

    /// Whether what is in the map is going to be taken along from another one.
    pub(super) fn takes_along(&self, name: &str) -> bool {
        self.moved.iter().any(|(moved, _)| *moved == name)
    }

    /// Where what is in a map is now, before it is taken along.
    pub(super) fn holder(&self, name: &str) -> PathBuf {
        let mut moved = self.moved.iter();
        let other = moved.find(|(moved, _)| *moved == name);
        other.map_or_else(|| self.map(name), |(_, path)| path.clone())
    }

    /// How long ago the first agent made its maps; no time, if this is the first. A map that is taken
    /// over keeps its age.
    pub(super) fn age(&self) -> Duration {
        let made = map::ALL
            .iter()
            .filter_map(|name| fs::metadata(self.map(name)).ok()?.modified().ok());
        // A clock that was set back says nothing.
        made.min()
            .and_then(|at| at.elapsed().ok())
            .unwrap_or_default()
    }

    /// What was found and done.
    pub fn take_notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }

    fn note(&mut self, level: Level, line: String) {
        self.notes.push((level, line));
    }

    fn note_strangers(&mut self) {
        let found = entries(&self.directory).unwrap_or_default();
        let names: Vec<&str> = found
            .iter()
            .map(|(name, _)| name.as_str())
            .filter(|name| !name.starts_with(LINK_PREFIX) && !map::ALL.contains(name))
            .collect();
        if !names.is_empty() {
            let line = format!(
                "{}: holds what is not kube-portal's ({}); left alone",
                self.directory.display(),
                names.join(", ")
            );
            self.note(Level::Warn, line);
        }
    }

    /// Begins a directory with what can be used of the newest other one.
    fn begin(&mut self, begun: PathBuf, sizes: &Sizes) -> Result<(), PinError> {
        let newest = self
            .others
            .first()
            .and_then(|path| Some((path.clone(), version(path)?)));
        let Some((other, number)) = newest else {
            return self.begin_from(begun, Path::new(""), &[], BTreeSet::new());
        };
        // What a newer version means by its maps is not known here.
        let usable = if number <= ABI_VERSION {
            layout::usable(&other, number)
        } else {
            Vec::new()
        };
        let new: Vec<&str> = map::ALL
            .iter()
            .filter(|name| !usable.contains(name))
            .copied()
            .collect();
        self.note(
            Level::Info,
            format!(
                "{}: {} of its {} maps are taken over{}",
                other.display(),
                usable.len(),
                map::ALL.len(),
                if new.is_empty() {
                    String::new()
                } else {
                    format!("; new are {}", new.join(", "))
                }
            ),
        );
        if !usable.contains(&map::FLOWS) {
            self.note(
                Level::Warn,
                format!(
                    "{}: its flows can't be taken over: connections from outside to backends on other \
                     nodes end when its programs do",
                    other.display()
                ),
            );
        }
        let anew = self.resized(&other, sizes, &usable)?;
        self.begin_from(begun, &other, &usable, anew)
    }

    /// Begins a directory with these maps of another one, those that are made `anew` excepted: what is in
    /// them is copied.
    fn begin_from(
        &mut self,
        begun: PathBuf,
        other: &Path,
        usable: &[&'static str],
        anew: BTreeSet<&'static str>,
    ) -> Result<(), PinError> {
        match fs::create_dir(&begun) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(io_error(&begun)(error));
            }
            Ok(()) | Err(_) => {}
        }
        for name in usable {
            if anew.contains(name) {
                continue;
            }
            let to = begun.join(name);
            fs::hard_link(other.join(name), &to).map_err(io_error(&to))?;
        }
        let moved = anew.into_iter().map(|name| (name, other.join(name)));
        self.moved.extend(moved);
        self.begun = Some(begun);
        Ok(())
    }

    /// An agent may have died after it made new maps, and before its programs wrote them: what is remembered
    /// is still in those of the directory that it set aside.
    fn remember_unmoved(&mut self) -> Result<(), PinError> {
        let newest = self.others.first().cloned();
        let Some((other, ABI_VERSION)) =
            newest.and_then(|path| Some((path.clone(), version(&path)?)))
        else {
            return Ok(());
        };
        for name in layout::usable(&other, ABI_VERSION) {
            if resize::is_moved_late(name) {
                let open = |path: &Path| RawMap::open(path).map_err(io_error(path));
                let (theirs, ours) = (other.join(name), self.directory.join(name));
                if open(&theirs)?.id() != open(&ours)?.id() {
                    self.moved.push((name, theirs));
                }
            }
        }
        Ok(())
    }

    /// Which maps of a directory are to be made anew, as another size is asked for.
    fn resized(
        &mut self,
        directory: &Path,
        sizes: &Sizes,
        usable: &[&'static str],
    ) -> Result<BTreeSet<&'static str>, PinError> {
        let plan = resize::plan(directory, sizes, |name| usable.contains(&name))
            .map_err(io_error(directory))?;
        let mut anew = BTreeSet::new();
        for resize in plan {
            match resize {
                Resize::Anew(maps) => anew.extend(maps),
                Resize::Kept {
                    flag,
                    map,
                    there,
                    why,
                } => {
                    let asked = flag.map_or_else(
                        || "another size".to_owned(),
                        |flag| format!("{} {}", flag.name, flag.value),
                    );
                    let why = match why {
                        Why::InUse(needed) => format!(
                            "what is in it needs {needed} entries; a start that finds less makes it smaller"
                        ),
                        Why::Connections => {
                            "connections from outside depend on it; drain the node and \
                            run `kube-portal cleanup` before a start to change it"
                                .to_owned()
                        }
                    };
                    let line = format!(
                        "{asked} has no effect: {map} keeps its room for {there}, as {why}"
                    );
                    self.note(Level::Warn, line);
                }
            }
        }
        if !anew.is_empty() {
            let names: Vec<&str> = anew.iter().copied().collect();
            let line = format!(
                "other sizes are asked for: {} are made anew, and what is in them is taken along",
                names.join(", ")
            );
            self.note(Level::Info, line);
        }
        Ok(anew)
    }

    /// All maps are there: what nobody else writes is copied, and the directory gets its name.
    pub(super) fn settle(&mut self) -> Result<(), PinError> {
        for (name, from) in std::mem::take(&mut self.moved) {
            let mut moved = Move::new(name, &from, &self.map(name)).map_err(io_error(&from))?;
            if !resize::is_moved_late(name) {
                let lost = moved.copy().map_err(io_error(&from))?;
                if lost > 0 {
                    self.note(
                        Level::Warn,
                        format!("{name}: {lost} entries find no room in the new map"),
                    );
                }
            } else {
                self.moves.0.push(moved);
            }
        }
        if let Some(begun) = self.begun.take() {
            if std::mem::take(&mut self.replaces) {
                let root = self.directory.parent().unwrap_or(Path::new("/"));
                self.others.insert(0, set_aside(root, &self.directory)?);
            }
            fs::rename(&begun, &self.directory).map_err(io_error(&begun))?;
        }
        Ok(())
    }

    /// Maps that programs of an earlier agent still write elsewhere.
    pub(super) fn take_moves(&mut self) -> Moves {
        std::mem::take(&mut self.moves)
    }

    pub(super) fn give_back_moves(&mut self, moves: Moves) {
        self.moves = moves;
    }

    /// The maps can't be made: what was begun goes, and what was there stays.
    pub(super) fn give_up(&mut self) {
        if let Some(begun) = self.begun.take() {
            let _or_the_next_start_does = remove_maps(&begun, &mut Vec::new());
            let _the_same = fs::remove_dir(&begun);
        }
    }

    /// What the maps take of the kernel's memory.
    pub(super) fn note_memory(&mut self) {
        let line = sizes::line(taken(|name| self.map(name)));
        self.note(Level::Info, line);
    }

    /// Makes the links of other versions this one's, to be given its programs: no call is seen by both or
    /// by neither. `is_known`: whether there is a program of this name.
    pub(super) fn take_links(&self, is_known: impl Fn(&str) -> bool) -> Result<(), PinError> {
        for other in &self.others {
            for (name, path) in entries(other)? {
                let Some(program) = name.strip_prefix(LINK_PREFIX) else {
                    continue;
                };
                let program = program
                    .split_once(AT)
                    .map_or(program, |(program, _)| program);
                let to = self.directory.join(&name);
                if is_known(program) && is_link(&path) && to.symlink_metadata().is_err() {
                    fs::rename(&path, &to).map_err(io_error(&path))?;
                }
            }
        }
        Ok(())
    }

    /// No program of others runs any more: removes what is left of them, and says what is not ours.
    pub fn retire(&mut self) -> Result<Cleaned, PinError> {
        std::mem::take(&mut self.moves).catch_up();
        let mut cleaned = Cleaned::default();
        for directory in self.others.drain(..) {
            remove(&directory, &mut cleaned)?;
        }
        Ok(cleaned)
    }
}

/// Gives a directory another name.
fn set_aside(root: &Path, directory: &Path) -> Result<PathBuf, PinError> {
    let aside = (0..u32::MAX)
        .map(|number| root.join(format!("v{ABI_VERSION}_aside{number}")))
        .find(|path| path.symlink_metadata().is_err())
        .unwrap_or_else(|| root.join(format!("v{ABI_VERSION}_aside")));
    fs::rename(directory, &aside).map_err(io_error(directory))?;
    Ok(aside)
}

/// Of which agents a directory is: `v3`, or `v3_aside0`.
fn version(directory: &Path) -> Option<u32> {
    let name = directory.file_name()?.to_str()?.strip_prefix('v')?;
    name.split('_').next()?.parse().ok()
}

/// What keeps this version's directory from being used.
fn faults(directory: &Path) -> Vec<String> {
    if !directory.is_dir() {
        return vec!["not a directory".to_owned()];
    }
    let maps = layout::LAYOUTS.iter().filter_map(|layout| {
        let fault = layout.fault(&directory.join(layout.name))?;
        Some(format!("{}: {fault}", layout.name))
    });
    let links = pins_in(directory, LINK_PREFIX).unwrap_or_default();
    let links = links
        .into_iter()
        .filter(|(_, path)| !is_link(path))
        .map(|(name, _)| format!("{name}: not a link"));
    maps.chain(links).collect()
}

fn is_link(path: &Path) -> bool {
    pinned::kind(path).is_ok_and(|kind| kind == Kind::Link)
}

/// A map that has one of our names of itself too.
fn is_our_map(path: &Path) -> bool {
    pinned::kind(path).is_ok_and(|kind| kind == Kind::Map)
        && MapInfo::from_pin(path).is_ok_and(|info| {
            info.name_as_str()
                .is_none_or(|name| name.starts_with(MAP_PREFIX))
        })
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> PinError {
    let path = path.to_owned();
    move |source| PinError::Io { path, source }
}

/// Name and path of what is in a directory, sorted.
fn entries(directory: &Path) -> Result<Vec<(String, PathBuf)>, PinError> {
    let mut found: Vec<(String, PathBuf)> = fs::read_dir(directory)
        .map_err(io_error(directory))?
        .flatten()
        .map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, entry.path())
        })
        .collect();
    found.sort();
    Ok(found)
}

/// Those whose names begin so.
fn pins_in(directory: &Path, prefix: &str) -> Result<Vec<(String, PathBuf)>, PinError> {
    let mut pins = entries(directory)?;
    pins.retain(|(name, _)| name.starts_with(prefix));
    Ok(pins)
}

/// Removes what is ours of a directory, and the directory if nothing else is in it.
fn remove(directory: &Path, cleaned: &mut Cleaned) -> Result<(), PinError> {
    remove_links(directory, &mut cleaned.removed)?;
    remove_maps(directory, &mut cleaned.removed)?;
    remove_empty(directory, &mut cleaned.removed);
    if directory.exists() {
        let left = entries(directory)?.into_iter().map(|(_, path)| path);
        cleaned.kept.extend(left);
    }
    Ok(())
}

fn remove_links(directory: &Path, removed: &mut Vec<Removed>) -> Result<(), PinError> {
    for (_, path) in pins_in(directory, LINK_PREFIX)? {
        if is_link(&path) {
            if let Err(error) = link::detach(&path) {
                log::debug!("{}: {error}; it ends with its pin", path.display());
            }
            fs::remove_file(&path).map_err(io_error(&path))?;
            removed.push(Removed {
                what: "link and program",
                path,
            });
        }
    }
    Ok(())
}

fn remove_maps(directory: &Path, removed: &mut Vec<Removed>) -> Result<(), PinError> {
    for (_, path) in pins_in(directory, MAP_PREFIX)? {
        if is_our_map(&path) {
            fs::remove_file(&path).map_err(io_error(&path))?;
            removed.push(Removed { what: "map", path });
        }
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
