//! Maps of an earlier agent that another size is asked for: what is in them is taken along into new ones.
//!
//! Nobody but the agent writes the tables of Services and backends, so they are taken along at once. The
//! programs write all else: it is taken along just before the programs get the new maps, and what came
//! into the old ones until they had them is added just after.

use std::{collections::HashSet, io, mem::offset_of, path::Path};

use proxy_common::abi::{Backend, Service, ServiceWord, map};

use super::{
    layout::{LAYOUTS, Layout, Part},
    raw_map::RawMap,
    sizes::{Flag, Size, Sizes},
};

/// Maps that go together, as one flag says how large they are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Resize {
    /// These are to be made anew.
    Anew(Vec<&'static str>),
    /// These stay as they are.
    Kept {
        flag: Option<Flag>,
        map: &'static str,
        there: u32,
        why: Why,
    },
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// It needs so many entries.
    InUse(u32),
    /// The programs of a device's two directions, and of all devices, have to have the same map at any
    /// moment: a packet without its flow ends its connection.
    Connections,
}

/// Written by the packet path alone.
const OF_CONNECTIONS: [&str; 4] = [map::FLOWS, map::HALF_OPEN, map::FRAGMENTS, map::DEVICES];

/// Maps that programs write and that can be made anew.
pub(super) fn is_moved_late(name: &str) -> bool {
    let is_it = |layout: &&Layout| layout.name == name;
    let is_memory = |layout: &Layout| layout.part == Part::Memory;
    name != map::COUNTERS
        && !OF_CONNECTIONS.contains(&name)
        && LAYOUTS.iter().find(is_it).is_some_and(is_memory)
}

/// What is to become of the maps in a directory that have another size than they should; of those that
/// `is_usable`.
pub(super) fn plan(
    directory: &Path,
    sizes: &Sizes,
    is_usable: impl Fn(&str) -> bool,
) -> io::Result<Vec<Resize>> {
    let sizes = sizes.all();
    let mut plan = Vec::new();
    for together in sizes.chunk_by(|a, b| a.flag == b.flag && a.flag.is_some()) {
        let mut anew = Vec::new();
        let mut kept = None;
        for size in together.iter().filter(|size| is_usable(size.map)) {
            let there = RawMap::open(&directory.join(size.map))?.entries();
            if there == size.entries {
                continue;
            }
            let why = if OF_CONNECTIONS.contains(&size.map) {
                Some(Why::Connections)
            } else if size.entries < there {
                let needed = needed(directory, size)?;
                (needed > size.entries).then_some(Why::InUse(needed))
            } else {
                None
            };
            if let Some(why) = why {
                // The first of them speaks for all.
                kept.get_or_insert(Resize::Kept {
                    flag: size.flag,
                    map: size.map,
                    there,
                    why,
                });
            }
            anew.push(size.map);
        }
        match kept {
            Some(kept) => plan.push(kept),
            None if anew.is_empty() => {}
            None => plan.push(Resize::Anew(anew)),
        }
    }
    Ok(plan)
}

/// How many elements the map needs for what is in it.
fn needed(directory: &Path, size: &Size) -> io::Result<u32> {
    let open = |name: &str| RawMap::open(&directory.join(name));
    let mut needed = 0;
    match size.map {
        map::SERVICES => {
            open(map::SERVICES)?.each(|id, service| {
                if service.iter().any(|byte| *byte != 0) {
                    needed = needed.max(number(id) + 1);
                }
            })?;
            open(map::NAMES)?.each(|id, _| needed = needed.max(number(id) + 1))?;
        }
        map::BACKENDS => {
            const SERVICE: usize = offset_of!(Backend, service);
            open(map::BACKENDS)?.each(|id, backend| {
                if number(&backend[SERVICE..]) != 0 {
                    needed = needed.max(number(id) + 1);
                }
            })?;
        }
        map::SLOTS => open(map::SERVICES)?.each(|_, service| {
            const WORD: usize = offset_of!(Service, word);
            let word = service[WORD..].first_chunk().copied().unwrap_or_default();
            let word = ServiceWord(u64::from_ne_bytes(word));
            if word.count() > 0 {
                let run = word.count().next_power_of_two();
                needed = needed.max(word.first_slot().saturating_add(run));
            }
        })?,
        // As many as there are ids, which these two follow.
        map::SERVICE_STATS | map::BACKEND_STATS => {}
        _ => open(size.map)?.each(|_, _| needed += 1)?,
    }
    Ok(needed)
}

/// The first four bytes.
fn number(bytes: &[u8]) -> u32 {
    u32::from_ne_bytes(bytes.first_chunk().copied().unwrap_or_default())
}

/// A map and the one that takes its place.
#[derive(Debug)]
pub(super) struct Move {
    pub(super) map: &'static str,
    from: RawMap,
    to: RawMap,
    /// What was taken along. (Not the keys, which take more memory.)
    seen: HashSet<u64>,
}

impl Move {
    pub(super) fn new(map: &'static str, from: &Path, to: &Path) -> io::Result<Self> {
        Ok(Self {
            map,
            from: RawMap::open(from)?,
            to: RawMap::open(to)?,
            seen: HashSet::new(),
        })
    }

    /// Takes along everything; how many found no room.
    pub(super) fn copy(&mut self) -> io::Result<usize> {
        let Self { from, to, seen, .. } = self;
        let is_array = from.is_array();
        let mut lost = 0;
        from.each_batch(|keys, values| {
            if !is_array {
                seen.extend(keys.chunks_exact(from.key_size()).map(fingerprint));
            }
            lost += to.put_all(keys, values);
        })?;
        Ok(lost)
    }

    /// Adds what has come since, and takes away sockets that have been closed since.
    pub(super) fn catch_up(&mut self) -> io::Result<()> {
        let Self { from, to, seen, .. } = self;
        let mut still = HashSet::new();
        let is_sockets = self.map == map::SOCKETS;
        from.each(|key, value| {
            let print = fingerprint(key);
            if is_sockets {
                still.insert(print);
            }
            if seen.insert(print) {
                to.put_new(key, value);
            }
        })?;
        if is_sockets {
            let mut gone = Vec::new();
            to.each(|key, _| {
                let print = fingerprint(key);
                if seen.contains(&print) && !still.contains(&print) {
                    gone.push(key.to_vec());
                }
            })?;
            gone.iter().for_each(|key| to.remove(key));
        }
        Ok(())
    }
}

/// Maps that programs of an earlier agent still write elsewhere.
#[derive(Debug, Default)]
pub(super) struct Moves(pub(super) Vec<Move>);

impl Moves {
    /// What is lost is told, and keeps nobody from going on.
    pub(super) fn copy(&mut self) {
        for moved in &mut self.0 {
            match moved.copy() {
                Ok(0) => {}
                Ok(lost) => log::warn!("{}: {lost} entries find no room in the new map", moved.map),
                Err(error) => {
                    log::warn!("{}: what is in it can't be taken along: {error}", moved.map);
                }
            }
        }
    }

    pub(super) fn catch_up(&mut self) {
        for moved in &mut self.0 {
            if let Err(error) = moved.catch_up() {
                log::warn!(
                    "{}: what came last can't be taken along: {error}",
                    moved.map
                );
            }
        }
    }
}

/// Of a socket it is the cookie itself.
fn fingerprint(key: &[u8]) -> u64 {
    use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
    match key.try_into() {
        Ok(cookie) => u64::from_ne_bytes(cookie),
        Err(_) => BuildHasherDefault::<DefaultHasher>::default().hash_one(key),
    }
}
