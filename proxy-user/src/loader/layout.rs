//! What each pinned map looks like, and so which maps of an earlier agent can be used.

use std::path::Path;

use aya::maps::{MapInfo, MapType};
use proxy_common::abi::{
    AffinityEntry, AffinityKey, Backend, BackendStats, Device, FlowEntry, FragmentKey,
    FragmentPorts, Frontend, FrontendKey, MonitorFilter, NetKey, Service, ServiceName,
    ServiceStats, SockAddr, SocketCookie, SocketFlow, SourceRangeKey, Tuple, UdpFlow, UdpFlowKey,
    map,
};

use super::pinned::{self, Kind};

/// What a map is to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// What the ids of Services and backends mean: of use only together.
    Tables,
    /// What is remembered. An id in it whose meaning has changed is noticed: `datapath::lookup::live`.
    Memory,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) name: &'static str,
    pub(super) part: Part,
    /// The `ABI_VERSION` since which the map has had this layout and meaning.
    pub(super) since: u32,
    kind: MapType,
    /// In bytes.
    key: usize,
    value: usize,
}

const fn tables(name: &'static str, since: u32, kind: MapType, [key, value]: [usize; 2]) -> Layout {
    Layout {
        name,
        part: Part::Tables,
        since,
        kind,
        key,
        value,
    }
}

const fn memory(name: &'static str, since: u32, kind: MapType, [key, value]: [usize; 2]) -> Layout {
    Layout {
        part: Part::Memory,
        ..tables(name, since, kind, [key, value])
    }
}

const NUMBER: usize = size_of::<u32>();
const COUNT: usize = size_of::<u64>();

/// A row for each of `map::ALL`.
pub(super) const LAYOUTS: [Layout; 21] = {
    use MapType::{Array, Hash, LpmTrie, LruHash, PerCpuArray, RingBuf};
    [
        tables(map::FRONTENDS, 2, Hash, [FrontendKey::SIZE, Frontend::SIZE]),
        tables(map::SERVICES, 3, Array, [NUMBER, Service::SIZE]),
        tables(map::SLOTS, 2, Array, [NUMBER, NUMBER]),
        tables(map::BACKENDS, 5, Array, [NUMBER, Backend::SIZE]),
        tables(map::NAMES, 2, Hash, [NUMBER, ServiceName::SIZE]),
        tables(
            map::SOURCE_RANGES,
            2,
            LpmTrie,
            [SourceRangeKey::SIZE, NUMBER],
        ),
        tables(map::SERVICE_NETS, 2, LpmTrie, [NetKey::SIZE, NUMBER]),
        tables(map::SERVICE_STATS, 4, Array, [NUMBER, ServiceStats::SIZE]),
        tables(map::BACKEND_STATS, 5, Array, [NUMBER, BackendStats::SIZE]),
        memory(map::MONITOR, 4, Array, [NUMBER, MonitorFilter::SIZE]),
        memory(map::EVENTS, 4, RingBuf, [0, 0]),
        memory(map::FAILURES, 5, RingBuf, [0, 0]),
        memory(
            map::SOCKETS,
            2,
            Hash,
            [SocketCookie::SIZE, SocketFlow::SIZE],
        ),
        memory(
            map::UDP_FLOWS,
            2,
            LruHash,
            [UdpFlowKey::SIZE, UdpFlow::SIZE],
        ),
        memory(
            map::UDP_REVERSE,
            2,
            LruHash,
            [UdpFlowKey::SIZE, SockAddr::SIZE],
        ),
        memory(map::COUNTERS, 3, PerCpuArray, [NUMBER, COUNT]),
        memory(
            map::AFFINITY,
            3,
            LruHash,
            [AffinityKey::SIZE, AffinityEntry::SIZE],
        ),
        memory(map::FLOWS, 2, Hash, [Tuple::SIZE, FlowEntry::SIZE]),
        memory(map::HALF_OPEN, 2, LruHash, [Tuple::SIZE, FlowEntry::SIZE]),
        memory(
            map::FRAGMENTS,
            2,
            LruHash,
            [FragmentKey::SIZE, FragmentPorts::SIZE],
        ),
        memory(map::DEVICES, 2, Hash, [NUMBER, Device::SIZE]),
    ]
};

impl Layout {
    /// What so many elements take of the kernel's memory, roughly.
    pub(super) fn memory_bytes(&self, entries: u32) -> u64 {
        let entries = u64::from(entries);
        let aligned = |size: usize| size.next_multiple_of(8) as u64;
        if self.kind == MapType::Array {
            return entries * aligned(self.value);
        }
        if self.kind == MapType::RingBuf {
            return entries;
        }
        if !matches!(self.kind, MapType::Hash | MapType::LruHash) {
            return 0;
        }
        // A header of 48 bytes and a bucket of 16, least recently used or not. Names are allocated as they
        // come, as what is in a trie.
        let there = if self.name == map::NAMES { 0 } else { entries };
        let buckets = entries.next_power_of_two() * 16;
        there * (48 + aligned(self.key) + aligned(self.value)) + buckets
    }

    /// What is wrong with what is pinned at a path, if it is not this map.
    pub(super) fn fault(&self, path: &Path) -> Option<String> {
        match pinned::kind(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Some("missing".to_owned());
            }
            Err(error) => return Some(format!("not a map: {error}")),
            Ok(Kind::Map) => {}
            Ok(other) => return Some(format!("{other} and not a map")),
        }
        let info = match MapInfo::from_pin(path) {
            Ok(info) => info,
            Err(error) => return Some(super::attach::reason(&error)),
        };
        if info.map_type().ok() != Some(self.kind) {
            return Some(format!("a map of another type than {:?}", self.kind));
        }
        let sizes = [info.key_size() as usize, info.value_size() as usize];
        (sizes != [self.key, self.value]).then(|| {
            format!(
                "keys and values of {sizes:?} bytes instead of {:?}",
                [self.key, self.value]
            )
        })
    }
}

/// Those maps of a directory of pins, made by an agent of this ABI version, that can be used.
pub(super) fn usable(directory: &Path, version: u32) -> Vec<&'static str> {
    let fits = |layout: &&Layout| {
        layout.since <= version && layout.fault(&directory.join(layout.name)).is_none()
    };
    let tables = LAYOUTS.iter().filter(|layout| layout.part == Part::Tables);
    let all_tables = tables.clone().all(|layout| fits(&layout));
    LAYOUTS
        .iter()
        .filter(|layout| layout.part == Part::Memory || all_tables)
        .filter(fits)
        .map(|layout| layout.name)
        .collect()
}

#[cfg(test)]
#[path = "abi_doc_tests.rs"]
mod abi_doc_tests;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proxy_common::abi::ABI_VERSION;

    use super::*;

    #[test]
    fn every_pinned_map_has_a_layout_that_is_not_of_the_future() {
        let named: BTreeSet<&str> = LAYOUTS.iter().map(|layout| layout.name).collect();
        assert_eq!(named, map::ALL.iter().copied().collect());
        assert!(LAYOUTS.iter().all(|layout| layout.since <= ABI_VERSION));
        // Else nobody has changed anything.
        assert!(LAYOUTS.iter().any(|layout| layout.since == ABI_VERSION));
    }

    #[test]
    fn nothing_is_usable_where_nothing_is() {
        assert!(usable(Path::new("/nonexistent"), ABI_VERSION).is_empty());
    }
}
