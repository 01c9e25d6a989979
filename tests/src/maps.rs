//! Maps of the agent in the kernel, without an agent: nothing is pinned, and no program runs.

use anyhow::{Context as _, Result, ensure};
use aya::{EbpfLoader, maps::MapData};
use nix::sys::resource::{Resource, setrlimit};
use proxy_common::abi::map;
use proxy_user::{
    loader::{
        FlowMap, OBJECT, SocketMap,
        program_log::{self, LEVEL},
        take_map,
    },
    maps::{Capacity, bpf::BpfStore},
};

/// Maps, and what is remembered in them.
#[derive(Debug)]
pub struct Made {
    pub store: BpfStore,
    pub sockets: SocketMap,
    pub flows: FlowMap,
}

/// Of this size, and gone with the store. Needs root, and an object (`cargo xtask build`).
pub fn make(capacity: Capacity) -> Result<BpfStore> {
    Ok(make_all(capacity, 1, 1)?.store)
}

/// The same, with room for so many sockets, and entries of flows.
pub fn make_all(capacity: Capacity, sockets: u32, flows: u32) -> Result<Made> {
    ensure!(
        !OBJECT.is_empty(),
        "no kernel object: run `cargo xtask build`"
    );
    // Before 5.11 maps are charged to this limit. A failure shows when a map is made.
    let _not_needed_everywhere = setrlimit(Resource::RLIMIT_MEMLOCK, u64::MAX, u64::MAX);
    let mut id = None;
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
        .map_max_entries(map::SOCKETS, sockets)
        .map_max_entries(map::FLOWS, flows)
        .load(OBJECT)?;
    let store = BpfStore::open(|name| {
        let taken = take_map(&mut ebpf, name)?;
        if name == map::SOCKETS {
            id = Some(taken.info().map(|info| info.id()));
        }
        Ok(taken)
    })?;
    let sockets = MapData::from_id(id.context("the store has the sockets")??)?;
    Ok(Made {
        store,
        sockets: SocketMap::new(sockets)?,
        flows: FlowMap::new(take_map(&mut ebpf, map::FLOWS)?)?,
    })
}
