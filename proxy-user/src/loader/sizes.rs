//! How many elements the maps are made for, which flag says so, and what memory that takes.

use proxy_common::abi::map;

use super::layout::LAYOUTS;
use crate::maps::Capacity;

/// How many elements the maps are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub frontends: u32,
    pub services: u32,
    pub backends: u32,
    /// `None`: as many as the backends need that have one each.
    pub slots: Option<u32>,
    /// Of all Services together; tries take memory only for what is in them.
    pub source_ranges: u32,
    pub sockets: u32,
    pub udp_flows: u32,
    /// Flows of the packet path, two entries each.
    pub flows: u32,
    pub half_open: u32,
    /// Clients of Services with affinity.
    pub affinity: u32,
}

/// Packets whose fragments are on their way at one time.
const FRAGMENTS: u32 = 8192;
/// Devices of the node; each pod has one.
const DEVICES: u32 = 4096;
const SERVICE_NETS: u32 = 1024;
/// Bytes for decisions that `kube-portal monitor` has not read yet: about 1,800.
const EVENTS: u32 = 256 << 10;
/// Bytes for failed attempts that the agent has not read yet: about 500.
const FAILURES: u32 = 16 << 10;

/// The flag that says how large some maps are, and what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flag {
    pub(super) name: &'static str,
    pub(super) value: u32,
}

/// A map, and for how many elements it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) map: &'static str,
    pub(super) entries: u32,
    /// `None`: it is always as large.
    pub(super) flag: Option<Flag>,
}

impl Size {
    /// Kernel memory in bytes, roughly.
    pub(super) fn memory_bytes(&self) -> u64 {
        let layout = LAYOUTS.iter().find(|layout| layout.name == self.map);
        layout.map_or(0, |layout| layout.memory_bytes(self.entries))
    }
}

impl Sizes {
    /// For 20,000 Services and 250,000 endpoints, and so many more as change at a time.
    pub const DEFAULT: Self = Self {
        frontends: 131_072,
        services: 65_536,
        backends: 262_144,
        slots: None,
        source_ranges: 65_536,
        sockets: 131_072,
        udp_flows: 65_536,
        flows: 262_144,
        half_open: 65_536,
        affinity: 65_536,
    };

    /// A Service that changes needs its old and its new slots at once, rounded up to a power of two.
    /// Tables and weights get what is to spare of them.
    pub fn slots(&self) -> u32 {
        let slots = self.slots.unwrap_or(self.backends.saturating_mul(2));
        slots.next_power_of_two()
    }

    /// Of the maps that the agent alone writes.
    pub fn capacity(&self) -> Capacity {
        Capacity {
            frontends: self.frontends,
            services: self.services,
            backends: self.backends,
            slots: self.slots(),
            source_ranges: self.source_ranges,
            service_nets: SERVICE_NETS,
        }
    }

    /// What all maps would take of the kernel's memory in bytes, roughly.
    pub fn memory_bytes(&self) -> u64 {
        self.all().iter().map(Size::memory_bytes).sum()
    }

    /// Why a node with so many bytes of memory left can't have them, if it can't.
    pub fn too_much_for(&self, available: u64) -> Option<String> {
        too_much(&self.all(), available)
    }

    /// Of every map whose size is set.
    pub(super) fn all(&self) -> [Size; 20] {
        let by = |name, value| {
            move |map, entries| Size {
                map,
                entries,
                flag: Some(Flag { name, value }),
            }
        };
        let fixed = |map, entries| Size {
            map,
            entries,
            flag: None,
        };
        let services = by("--max-services", self.services);
        let backends = by("--max-backends", self.backends);
        let slots = match self.slots {
            Some(slots) => by("--max-slots", slots),
            None => by("--max-backends", self.backends),
        };
        let udp_flows = by("--max-udp-flows", self.udp_flows);
        // One for each direction.
        let two = |flows: u32| flows.saturating_mul(2);
        [
            by("--max-frontends", self.frontends)(map::FRONTENDS, self.frontends),
            services(map::SERVICES, self.services),
            services(map::NAMES, self.services),
            services(map::SERVICE_STATS, self.services),
            backends(map::BACKEND_STATS, self.backends),
            backends(map::BACKENDS, self.backends),
            slots(map::SLOTS, self.slots()),
            by("--max-source-ranges", self.source_ranges)(map::SOURCE_RANGES, self.source_ranges),
            by("--max-sockets", self.sockets)(map::SOCKETS, self.sockets),
            udp_flows(map::UDP_FLOWS, self.udp_flows),
            udp_flows(map::UDP_REVERSE, self.udp_flows),
            by("--max-affinity", self.affinity)(map::AFFINITY, self.affinity),
            by("--max-flows", self.flows)(map::FLOWS, two(self.flows)),
            by("--max-half-open", self.half_open)(map::HALF_OPEN, two(self.half_open)),
            fixed(map::FRAGMENTS, FRAGMENTS),
            fixed(map::DEVICES, DEVICES),
            fixed(map::SERVICE_NETS, SERVICE_NETS),
            fixed(map::MONITOR, 1),
            fixed(map::EVENTS, EVENTS),
            fixed(map::FAILURES, FAILURES),
        ]
    }
}

/// What a map takes of the kernel's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    pub map: &'static str,
    pub entries: u32,
    pub bytes: u64,
}

/// All of it in one line, the largest first.
pub(super) fn line(mut taken: Vec<Taken>) -> String {
    taken.sort_by_key(|taken| std::cmp::Reverse(taken.bytes));
    let total: u64 = taken.iter().map(|taken| taken.bytes).sum();
    let maps: Vec<String> = taken
        .iter()
        .map(
            |Taken {
                 map,
                 entries,
                 bytes,
             }| {
                let map = map.trim_start_matches("KP_").to_lowercase();
                format!("{map} {} for {entries}", mib(*bytes))
            },
        )
        .collect();
    format!("the maps take {}: {}", mib(total), maps.join(", "))
}

/// With one digit behind the point.
pub fn mib(bytes: u64) -> String {
    let tenths = (bytes * 10).div_ceil(1 << 20);
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

/// What is too much for this node, if it is. `available`: bytes of memory that are free or can be freed.
pub(super) fn too_much(new: &[Size], available: u64) -> Option<String> {
    let needed: u64 = new.iter().map(Size::memory_bytes).sum();
    if needed <= available {
        return None;
    }
    let largest = new
        .iter()
        .filter_map(|size| Some((size.flag?, size.memory_bytes())))
        .max_by_key(|(_, bytes)| *bytes);
    let flag = largest.map_or(String::new(), |(Flag { name, value }, bytes)| {
        format!("; the most is for {name} {value}: {}", mib(bytes))
    });
    Some(format!(
        "the maps would take {}, and the node has {} of memory left{flag}; choose smaller sizes",
        mib(needed),
        mib(available)
    ))
}

/// `MemAvailable` of /proc/meminfo in bytes.
pub fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: Sizes = Sizes {
        frontends: 16,
        services: 16,
        backends: 100,
        slots: None,
        source_ranges: 16,
        sockets: 64,
        udp_flows: 64,
        flows: 8_388_608,
        half_open: 64,
        affinity: 64,
    };

    #[test]
    fn every_map_that_can_be_filled_has_a_size() {
        let sizes = SIZES.all();
        for layout in &LAYOUTS {
            let count = sizes.iter().filter(|size| size.map == layout.name).count();
            // What is counted has a fixed number of counters.
            let wanted = usize::from(layout.name != map::COUNTERS);
            assert_eq!(count, wanted, "{}", layout.name);
        }
    }

    #[test]
    fn slots_are_a_power_of_two_with_room_for_the_old_and_the_new() {
        assert_eq!(SIZES.slots(), 256);
        let with = |slots| Sizes {
            slots: Some(slots),
            ..SIZES
        };
        assert_eq!([with(1000).slots(), with(64).slots()], [1024, 64]);
    }

    #[test]
    fn what_memory_is_too_little_for_is_told_with_the_flag_that_takes_most() {
        let text = too_much(&SIZES.all(), 1 << 20).unwrap();
        assert!(
            text.contains("--max-flows 8388608") && text.contains("1.0 MiB"),
            "{text}"
        );
        assert_eq!(too_much(&SIZES.all(), 1 << 40), None);
        let meminfo = "MemTotal: 9 kB\nMemAvailable:   22141896 kB\n";
        assert_eq!(available(meminfo), Some(22_141_896 * 1024));
        assert_eq!(available("MemTotal: 9 kB\n"), None);
    }

    #[test]
    fn the_line_names_the_largest_first_and_the_sum() {
        let taken = |map, bytes| Taken {
            map,
            entries: 4,
            bytes,
        };
        assert_eq!(
            line(vec![taken("KP_A", 1), taken("KP_B", 3 << 20)]),
            "the maps take 3.1 MiB: b 3.0 MiB for 4, a 0.1 MiB for 4"
        );
    }
}
