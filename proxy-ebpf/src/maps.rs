//! The maps. Sizes here are placeholders: the loader sets them from the agent's flags.

use aya_ebpf::{
    Global,
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray},
    macros::btf_map,
};
use proxy_common::abi::{
    Backend, Frontend, FrontendKey, ServiceName, SockAddr, SocketCookie, SocketFlow, UdpFlow,
    UdpFlowKey,
};

/// Whether the kernel has bpf_set_retval (5.18). A constant of the loaded program: on kernels
/// without it the verifier never sees the call.
#[unsafe(no_mangle)]
pub(crate) static HAS_SET_RETVAL: Global<u8> = Global::new(0);

/// Cookie of the node's network namespace; 0 for the initial one.
#[unsafe(no_mangle)]
pub(crate) static NODE_NETNS: Global<u64> = Global::new(0);

/// The agent writes these through shared memory, one aligned store at a time.
const SHARED: usize = BPF_F_MMAPABLE as usize;

#[btf_map(name = "KP_FRONTENDS")]
pub(crate) static FRONTENDS: HashMap<FrontendKey, Frontend, 1024> = HashMap::new();

/// `ServiceWord`s by service id.
#[btf_map(name = "KP_SERVICES")]
pub(crate) static SERVICES: Array<u64, 1024, SHARED> = Array::new();

/// Backend ids; a service owns a run of slots.
#[btf_map(name = "KP_SLOTS")]
pub(crate) static SLOTS: Array<u32, 1024, SHARED> = Array::new();

#[btf_map(name = "KP_BACKENDS")]
pub(crate) static BACKENDS: Array<Backend, 1024, SHARED> = Array::new();

#[btf_map(name = "KP_NAMES")]
pub(crate) static NAMES: HashMap<u32, ServiceName, 1024, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

#[btf_map(name = "KP_SOCKETS")]
pub(crate) static SOCKETS: HashMap<SocketCookie, SocketFlow, 1024> = HashMap::new();

#[btf_map(name = "KP_UDP_FLOWS")]
pub(crate) static UDP_FLOWS: LruHashMap<UdpFlowKey, UdpFlow, 1024> = LruHashMap::new();

#[btf_map(name = "KP_UDP_REVERSE")]
pub(crate) static UDP_REVERSE: LruHashMap<UdpFlowKey, SockAddr, 1024> = LruHashMap::new();

/// Indexed by `Counter`.
#[btf_map(name = "KP_COUNTERS")]
pub(crate) static COUNTERS: PerCpuArray<u64, 64> = PerCpuArray::new();
