//! Maps of the agent in the kernel, without an agent: nothing is pinned, and no program runs.

use anyhow::{Result, ensure};
use aya::EbpfLoader;
use nix::sys::resource::{Resource, setrlimit};
use proxy_common::abi::map;
use proxy_user::{
    loader::{
        OBJECT,
        program_log::{self, LEVEL},
        take_map,
    },
    maps::{Capacity, bpf::BpfStore},
};

/// Of this size, and gone with the store. Needs root, and an object (`cargo xtask build`).
pub fn make(capacity: Capacity) -> Result<BpfStore> {
    ensure!(
        !OBJECT.is_empty(),
        "no kernel object: run `cargo xtask build`"
    );
    // Before 5.11 maps are charged to this limit. A failure shows when a map is made.
    let _not_needed_everywhere = setrlimit(Resource::RLIMIT_MEMLOCK, u64::MAX, u64::MAX);
    let mut ebpf = EbpfLoader::new()
        .btf(None)
        .override_global(LEVEL, &program_log::level(false), true)
        .map_max_entries(map::FRONTENDS, capacity.frontends)
        .map_max_entries(map::SERVICES, capacity.services)
        .map_max_entries(map::NAMES, capacity.services)
        .map_max_entries(map::SERVICE_STATS, capacity.services)
        .map_max_entries(map::BACKEND_STATS, capacity.backends)
        .map_max_entries(map::BACKENDS, capacity.backends)
        .map_max_entries(map::SLOTS, capacity.slots)
        .map_max_entries(map::SOURCE_RANGES, capacity.source_ranges)
        .map_max_entries(map::SERVICE_NETS, capacity.service_nets)
        .load(OBJECT)?;
    Ok(BpfStore::open(|name| take_map(&mut ebpf, name))?)
}
