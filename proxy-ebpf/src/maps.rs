//! The maps. Sizes here are placeholders: the loader sets them from the agent's flags.

use aya_ebpf::{
    Global,
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
    macros::btf_map,
};
use proxy_common::{
    abi::{
        Addr, AffinityEntry, AffinityKey, AttemptFailure, Backend, BackendStats, Device, FlowEntry,
        FlowTimeouts, FragmentKey, FragmentPorts, Frontend, FrontendKey, MonitorEvent,
        MonitorFilter, PortRange, Service, ServiceName, ServiceStats, SockAddr, SocketCookie,
        SocketFlow, SourceRange, Tuple, UdpFlow, UdpFlowKey,
    },
    datapath::{
        conntrack::{TimeoutTable, timeout_table},
        path::Work,
    },
    wire::packet::MAX_SUM,
};

/// Whether the kernel has bpf_set_retval (5.18). A constant of the loaded program: on kernels
/// without it the verifier never sees the call.
#[unsafe(no_mangle)]
pub(crate) static HAS_SET_RETVAL: Global<u8> = Global::new(0);

/// Whether the kernel has bpf_ktime_get_coarse_ns (5.11): a few milliseconds behind, and many times
/// cheaper where reading the clock is a trap.
#[unsafe(no_mangle)]
pub(crate) static HAS_COARSE_CLOCK: Global<u8> = Global::new(0);

/// Whether bpf_fib_lookup can do without the neighbour (6.5), for which a redirection asks anyway.
#[unsafe(no_mangle)]
pub(crate) static HAS_SKIP_NEIGH: Global<u8> = Global::new(0);

/// Cookie of the node's network namespace; 0 for the initial one.
#[unsafe(no_mangle)]
pub(crate) static NODE_NETNS: Global<u64> = Global::new(0);
/// The source ports for flows that leave this node; both ends are inside.
#[unsafe(no_mangle)]
pub(crate) static SNAT_FIRST_PORT: Global<u16> = Global::new(PortRange::DEFAULT.first);
#[unsafe(no_mangle)]
pub(crate) static SNAT_LAST_PORT: Global<u16> = Global::new(PortRange::DEFAULT.last);

/// `datapath::path::Node::inherited_until_ns`.
#[unsafe(no_mangle)]
pub(crate) static INHERITED_UNTIL_NS: Global<u64> = Global::new(0);

/// `datapath::conntrack::timeout_table`.
#[unsafe(no_mangle)]
pub(crate) static FLOW_TIMEOUTS: Global<TimeoutTable> =
    Global::new(timeout_table(&FlowTimeouts::DEFAULT));

/// The agent writes these through shared memory, one aligned store at a time.
const SHARED: usize = BPF_F_MMAPABLE as usize;

#[btf_map(name = "KP_FRONTENDS")]
pub(crate) static FRONTENDS: HashMap<FrontendKey, Frontend, 1024> = HashMap::new();

/// By service id.
#[btf_map(name = "KP_SERVICES")]
pub(crate) static SERVICES: Array<Service, 1024, SHARED> = Array::new();

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

/// Which backend a client of a Service with affinity got. Any sender can make an entry: a flood of them
/// pushes out the least recently used.
#[btf_map(name = "KP_AFFINITY")]
pub(crate) static AFFINITY: LruHashMap<AffinityKey, AffinityEntry, 1024> = LruHashMap::new();

/// Indexed by `Counter`.
#[btf_map(name = "KP_COUNTERS")]
pub(crate) static COUNTERS: PerCpuArray<u64, 64> = PerCpuArray::new();

/// By service id.
#[btf_map(name = "KP_SERVICE_STATS")]
pub(crate) static SERVICE_STATS: Array<ServiceStats, 1024, SHARED> = Array::new();

/// By backend id.
#[btf_map(name = "KP_BACKEND_STATS")]
pub(crate) static BACKEND_STATS: Array<BackendStats, 1024, SHARED> = Array::new();

/// Which decisions are to be told.
#[btf_map(name = "KP_MONITOR")]
pub(crate) static MONITOR: Array<MonitorFilter, 1> = Array::new();

/// Decisions for `kube-portal monitor`, its only reader; bytes.
#[btf_map(name = "KP_EVENTS")]
pub(crate) static EVENTS: RingBuf<MonitorEvent, { 256 * 1024 }> = RingBuf::new();

/// Attempts to connect that failed, for the agent; bytes.
#[btf_map(name = "KP_FAILURES")]
pub(crate) static FAILURES: RingBuf<AttemptFailure, { 16 * 1024 }> = RingBuf::new();

/// Flows whose client has shown that it hears the answers. What finds no room stays in HALF_OPEN.
#[btf_map(name = "KP_FLOWS")]
pub(crate) static FLOWS: HashMap<Tuple, FlowEntry, 1024> = HashMap::new();

/// Flows that any sender can begin; a flood of them pushes out only its like.
#[btf_map(name = "KP_HALF_OPEN")]
pub(crate) static HALF_OPEN: LruHashMap<Tuple, FlowEntry, 1024> = LruHashMap::new();

/// Reply tuples that a CPU is about to take over: one a CPU at most.
#[btf_map(name = "KP_LOCKS")]
pub(crate) static LOCKS: HashMap<Tuple, u32, 1024> = HashMap::new();

#[btf_map(name = "KP_FRAGMENTS")]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts, 1024> = LruHashMap::new();

/// This node's addresses, by interface index.
#[btf_map(name = "KP_DEVICES")]
pub(crate) static DEVICES: HashMap<u32, Device, 256> = HashMap::new();

/// Who may dial a service that has source ranges.
#[btf_map(name = "KP_SOURCE_RANGES")]
pub(crate) static SOURCE_RANGES: LpmTrie<SourceRange, u32, 1024> = LpmTrie::new();

/// The ServiceCIDRs.
#[btf_map(name = "KP_SERVICE_NETS")]
pub(crate) static SERVICE_NETS: LpmTrie<Addr, u32, 64> = LpmTrie::new();

/// The packet in hand. TC programs run with bottom halves off: none interrupts another on its CPU.
#[btf_map(name = "KP_WORK")]
pub(crate) static WORK: PerCpuArray<Work, 1> = PerCpuArray::new();

/// What answering packets needs, on each CPU.
#[repr(C)]
pub(crate) struct Answers {
    pub(crate) next_ns: u64,
    /// Bytes that are summed up.
    pub(crate) scratch: [u8; MAX_SUM as usize],
}

#[btf_map(name = "KP_ANSWERS")]
pub(crate) static ANSWERS: PerCpuArray<Answers, 1> = PerCpuArray::new();
