//! The programs in the kernel, run on packets that no device has seen.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun, TestRunOptions,
    maps::{Array, HashMap, MapData, PerCpuArray, PerCpuValues, lpm_trie},
    programs::{SchedClassifier, TcAttachType, tc::qdisc_add_clsact},
};
use nix::{
    sched::{CloneFlags, unshare},
    sys::resource::{Resource, setrlimit},
};
use proxy_common::{
    abi::{
        AffinityEntry, AffinityKey, Backend, BackendStats, Counter, Device, FlowEntry, FragmentKey,
        FragmentPorts, Frontend, FrontendKey, PortRange, Service, SourceRange, SourceRangeKey,
        Tuple, map,
    },
    datapath::path::{Hook, Verdict},
    wire::{link::Link, packet::MAX_SUM},
};
use proxy_user::{
    expiry::monotonic_ns,
    loader::{
        Features, OBJECT,
        program_log::{self, LEVEL},
    },
};

use super::{Scene, scene::UPLINK};
use crate::netns;

pub const PROGRAMS: [&str; 4] = [
    "kp_tc_ingress",
    "kp_tc_egress",
    "kp_tc_ingress_ip",
    "kp_tc_egress_ip",
];

/// Bytes of an element of KP_ANSWERS, 0 at first.
const ANSWERS: usize = 8 + MAX_SUM as usize;

/// Room for those of [`Kernel::add_backends`].
const BACKENDS: u32 = 4096;

/// `TC_ACT_UNSPEC` (-1), `TC_ACT_SHOT`, `TC_ACT_REDIRECT`.
const UNSPEC: u32 = u32::MAX;
const SHOT: u32 = 2;
const REDIRECT: u32 = 7;

/// Where in a `struct __sk_buff` the fields are that a test run may set, and its length, rounded up: the
/// kernel takes zeroes behind what it knows.
const IFINDEX: usize = 40;
const CB: usize = 48;
const CONTEXT: usize = 256;

/// What an skb carries beside the packet: `__sk_buff::cb`.
pub type ControlBlock = [u8; 20];

/// Loaded programs, with the tables of [`Scene`], in a network namespace with its routes.
#[derive(Debug)]
pub struct Kernel {
    ebpf: Ebpf,
}

/// What a program said of a packet, what it made of it, and how long one run took.
#[derive(Debug)]
pub struct Outcome {
    pub code: u32,
    pub out: Vec<u8>,
    pub control: ControlBlock,
    pub nanoseconds: u128,
}

/// What a program returns for a verdict.
pub fn code(verdict: Verdict, answered: bool) -> u32 {
    match verdict {
        Verdict::Pass(_) | Verdict::Stack(_) => UNSPEC,
        Verdict::Redirect(_) => REDIRECT,
        Verdict::Reject(_) | Verdict::Drop(_) if answered => REDIRECT,
        Verdict::Reject(_) | Verdict::Drop(_) => SHOT,
    }
}

pub fn program(hook: Hook, link: Link) -> &'static str {
    match (hook, link) {
        (Hook::Ingress, Link::Ethernet) => PROGRAMS[0],
        (Hook::Egress, Link::Ethernet) => PROGRAMS[1],
        (Hook::Ingress, Link::None) => PROGRAMS[2],
        (Hook::Egress, Link::None) => PROGRAMS[3],
    }
}

impl Kernel {
    /// Needs root, and an object (`cargo xtask build`). The calling thread moves to a network namespace
    /// of its own: a test run's packets come from devices of the caller's.
    pub fn load() -> Result<Self> {
        Self::load_with(Scene::SNAT_PORTS)
    }

    /// With other source ports.
    pub fn load_with(ports: PortRange) -> Result<Self> {
        ensure!(
            !OBJECT.is_empty(),
            "no kernel object: run `cargo xtask build`"
        );
        // Before 5.11 maps are charged to this limit. A failure shows when a map is made.
        let _not_needed_everywhere = setrlimit(Resource::RLIMIT_MEMLOCK, u64::MAX, u64::MAX);
        let features = Features::probe();
        let (coarse_clock, skip_neigh) = (
            u8::from(features.coarse_clock),
            u8::from(features.skip_neigh),
        );
        let ebpf = EbpfLoader::new()
            .override_global(LEVEL, &program_log::level(false), true)
            .override_global("HAS_COARSE_CLOCK", &coarse_clock, true)
            .override_global("HAS_SKIP_NEIGH", &skip_neigh, true)
            .override_global("SNAT_FIRST_PORT", &ports.first, true)
            .override_global("SNAT_LAST_PORT", &ports.last, true)
            // The rest of the scene is small.
            .map_max_entries(map::SLOTS, BACKENDS)
            .map_max_entries(map::BACKENDS, BACKENDS)
            .map_max_entries(map::BACKEND_STATS, BACKENDS)
            .load(OBJECT)?;
        let mut kernel = Self { ebpf };
        for name in PROGRAMS {
            kernel
                .program(name)?
                .load()
                .with_context(|| name.to_owned())?;
        }
        kernel.fill()?;
        unshare(CloneFlags::CLONE_NEWNET).context("a network namespace")?;
        for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            let path = format!("/proc/sys/net/{key}");
            std::fs::write(&path, "1").with_context(|| format!("set {path}"))?;
        }
        netns::ip_here(&[], &Scene::links())?;
        for (scene, family) in Scene::BOTH.into_iter().zip(["-4", "-6"]) {
            netns::ip_here(&[family], &scene.network())?;
        }
        Ok(kernel)
    }

    pub fn program(&mut self, name: &str) -> Result<&mut SchedClassifier> {
        let program = self.ebpf.program_mut(name).context("no such program")?;
        Ok(program.try_into()?)
    }

    /// Lets the programs see what a device of this thread's namespace sees.
    pub fn attach(&mut self, device: &str, link: Link) -> Result<()> {
        // Since 6.6 there is no need.
        qdisc_add_clsact(device).context("clsact")?;
        for (hook, side) in [
            (Hook::Ingress, TcAttachType::Ingress),
            (Hook::Egress, TcAttachType::Egress),
        ] {
            let name = program(hook, link);
            self.program(name)?
                .attach(device, side)
                .with_context(|| format!("attach {name} to {device}"))?;
        }
        Ok(())
    }

    fn map(&mut self, name: &str) -> Result<&mut aya::maps::Map> {
        self.ebpf
            .map_mut(name)
            .with_context(|| format!("no map {name}"))
    }

    fn fill(&mut self) -> Result<()> {
        type Bytes<const N: usize> = [u8; N];
        for scene in Scene::BOTH {
            let mut frontends: HashMap<_, Bytes<{ FrontendKey::SIZE }>, Bytes<{ Frontend::SIZE }>> =
                self.map(map::FRONTENDS)?.try_into()?;
            for (key, frontend) in scene.frontends() {
                frontends.insert(key.to_bytes(), frontend.to_bytes(), 0)?;
            }
            let mut services: Array<_, Bytes<{ Service::SIZE }>> =
                self.map(map::SERVICES)?.try_into()?;
            for (id, service) in scene.services() {
                services.set(id, service.to_bytes(), 0)?;
            }
            let mut backends: Array<_, Bytes<{ Backend::SIZE }>> =
                self.map(map::BACKENDS)?.try_into()?;
            for (id, backend) in scene.backends() {
                backends.set(id, backend.to_bytes(), 0)?;
            }
            let mut slots: Array<_, u32> = self.map(map::SLOTS)?.try_into()?;
            for (id, _) in scene.backends() {
                slots.set(id, id, 0)?;
            }
        }
        let mut devices: HashMap<_, u32, Bytes<{ Device::SIZE }>> =
            self.map(map::DEVICES)?.try_into()?;
        for (ifindex, device) in Scene::devices() {
            devices.insert(ifindex, device.to_bytes(), 0)?;
        }
        let mut ranges: lpm_trie::LpmTrie<_, Bytes<{ SourceRange::SIZE }>, u32> =
            self.map(map::SOURCE_RANGES)?.try_into()?;
        for (service, addr) in Scene::BOTH.into_iter().flat_map(Scene::source_ranges) {
            let key = SourceRangeKey::of(service, addr);
            let key = lpm_trie::Key::new(key.prefix_length, key.range.to_bytes());
            ranges.insert(&key, 1, 0)?;
        }
        let mut nets: lpm_trie::LpmTrie<_, [u32; 4], u32> =
            self.map(map::SERVICE_NETS)?.try_into()?;
        for (addr, prefix_length) in Scene::service_nets() {
            nets.insert(&lpm_trie::Key::new(prefix_length, addr.words), 1, 0)?;
        }
        self.fill_affinity()
    }

    /// A Service beside those of the scene, without slots.
    pub fn add_service(&mut self, key: &FrontendKey, frontend: &Frontend) -> Result<()> {
        type Bytes<const N: usize> = [u8; N];
        let mut frontends: HashMap<_, Bytes<{ FrontendKey::SIZE }>, Bytes<{ Frontend::SIZE }>> =
            self.map(map::FRONTENDS)?.try_into()?;
        Ok(frontends.insert(key.to_bytes(), frontend.to_bytes(), 0)?)
    }

    /// Backends with these ids on, each in the slot of its number.
    pub fn add_backends(&mut self, first: u32, all: &[(Backend, BackendStats)]) -> Result<()> {
        for (id, (backend, stats)) in (first..).zip(all) {
            let mut slots: Array<_, u32> = self.map(map::SLOTS)?.try_into()?;
            slots.set(id, id, 0)?;
            let mut backends: Array<_, [u8; Backend::SIZE]> =
                self.map(map::BACKENDS)?.try_into()?;
            backends.set(id, backend.to_bytes(), 0)?;
            let mut table: Array<_, [u8; BackendStats::SIZE]> =
                self.map(map::BACKEND_STATS)?.try_into()?;
            table.set(id, stats.to_bytes(), 0)?;
        }
        Ok(())
    }

    pub fn set_service(&mut self, id: u32, service: Service) -> Result<()> {
        let mut services: Array<_, [u8; Service::SIZE]> = self.map(map::SERVICES)?.try_into()?;
        Ok(services.set(id, service.to_bytes(), 0)?)
    }

    /// Forgets all flows, and all clients but those of the scene.
    pub fn forget(&mut self) -> Result<()> {
        for name in [map::FLOWS, map::HALF_OPEN] {
            let flows: HashMap<&mut MapData, [u8; Tuple::SIZE], [u8; FlowEntry::SIZE]> =
                self.map(name)?.try_into()?;
            clear(flows)?;
        }
        let fragments: HashMap<_, [u8; FragmentKey::SIZE], [u8; FragmentPorts::SIZE]> =
            self.map(map::FRAGMENTS)?.try_into()?;
        clear(fragments)?;
        self.fill_affinity()
    }

    fn fill_affinity(&mut self) -> Result<()> {
        type Table<'a> =
            HashMap<&'a mut MapData, [u8; AffinityKey::SIZE], [u8; AffinityEntry::SIZE]>;
        let table: Table<'_> = self.map(map::AFFINITY)?.try_into()?;
        clear(table)?;
        let mut table: Table<'_> = self.map(map::AFFINITY)?.try_into()?;
        for scene in Scene::BOTH {
            for (key, entry) in scene.affinity(monotonic_ns()) {
                table.insert(key.to_bytes(), entry.to_bytes(), 0)?;
            }
        }
        Ok(())
    }

    /// Lets every CPU answer as if it hadn't for long.
    pub fn save_answers(&mut self) -> Result<()> {
        let mut answers: PerCpuArray<_, [u8; ANSWERS]> = self.map("KP_ANSWERS")?.try_into()?;
        let nothing = vec![[0; ANSWERS]; aya::util::nr_cpus().map_err(|(_, error)| error)?];
        Ok(answers.set(0, PerCpuValues::try_from(nothing)?, 0)?)
    }

    /// Entries of FLOWS and of HALF_OPEN.
    pub fn flows(&mut self) -> Result<[usize; 2]> {
        let mut counts = [0; 2];
        for (count, name) in counts.iter_mut().zip([map::FLOWS, map::HALF_OPEN]) {
            let flows: HashMap<_, [u8; Tuple::SIZE], [u8; FlowEntry::SIZE]> =
                self.map(name)?.try_into()?;
            *count = flows.keys().flatten().count();
        }
        Ok(counts)
    }

    pub fn counters(&mut self) -> Result<BTreeMap<Counter, u64>> {
        let counters: PerCpuArray<_, u64> = self.map(map::COUNTERS)?.try_into()?;
        Counter::ALL
            .iter()
            .map(|counter| Ok((*counter, counters.get(&counter.index(), 0)?.iter().sum())))
            .collect()
    }

    /// Runs a program on a packet, `repeat` times on what it made of it the last time.
    pub fn run(&mut self, hook: Hook, link: Link, frame: &[u8], repeat: u32) -> Result<Outcome> {
        self.run_at(UPLINK, [0; 20], hook, link, frame, repeat)
    }

    /// At another device, and with what the skb has been through.
    pub fn run_at(
        &mut self,
        ifindex: u32,
        control: ControlBlock,
        hook: Hook,
        link: Link,
        frame: &[u8],
        repeat: u32,
    ) -> Result<Outcome> {
        let mut out = vec![0; frame.len() + 256];
        let mut context = [0; CONTEXT];
        context[IFINDEX..IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
        context[CB..CB + 20].copy_from_slice(&control);
        let mut after = [0; CONTEXT];
        let result = self
            .program(program(hook, link))?
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                ctx_in: Some(&context),
                ctx_out: Some(&mut after),
                repeat,
                ..TestRunOptions::default()
            })?;
        out.truncate(result.data_size_out.try_into()?);
        Ok(Outcome {
            code: result.return_value,
            out,
            control: after[CB..CB + 20].try_into().expect("20 bytes"),
            nanoseconds: result.duration.as_nanos(),
        })
    }
}

fn clear<const K: usize, const V: usize>(
    mut map: HashMap<&mut MapData, [u8; K], [u8; V]>,
) -> Result<()> {
    let keys: Vec<_> = map.keys().flatten().collect();
    for key in keys {
        map.remove(&key)?;
    }
    Ok(())
}
