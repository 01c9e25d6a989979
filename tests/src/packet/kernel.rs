//! The programs in the kernel, run on packets that no device has seen.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun, TestRunOptions,
    maps::{Array, HashMap, MapData, PerCpuArray, PerCpuValues},
    programs::SchedClassifier,
};
use nix::sys::resource::{Resource, setrlimit};
use proxy_common::{
    abi::{
        Backend, Counter, Device, FlowEntry, FragmentKey, FragmentPorts, Frontend, FrontendKey,
        Tuple, map,
    },
    datapath::path::{Hook, Verdict},
    wire::{link::Link, packet::MAX_SUM},
};
use proxy_user::loader::OBJECT;

use super::{
    Scene,
    scene::{LOOPBACK, UPLINK},
};

pub const PROGRAMS: [&str; 4] = [
    "kp_tc_ingress",
    "kp_tc_egress",
    "kp_tc_ingress_ip",
    "kp_tc_egress_ip",
];

/// Bytes of an element of KP_ANSWERS, 0 at first.
const ANSWERS: usize = 8 + MAX_SUM as usize;

/// `TC_ACT_OK`, `TC_ACT_SHOT`, `TC_ACT_REDIRECT`.
const OK: u32 = 0;
const SHOT: u32 = 2;
const REDIRECT: u32 = 7;

/// Loaded programs, with the tables of [`Scene`].
#[derive(Debug)]
pub struct Kernel {
    ebpf: Ebpf,
}

/// What a program said of a packet, what it made of it, and how long one run took.
#[derive(Debug)]
pub struct Outcome {
    pub code: u32,
    pub out: Vec<u8>,
    pub nanoseconds: u128,
}

/// What a program returns for a verdict.
pub fn code(verdict: Verdict, answered: bool) -> u32 {
    match verdict {
        Verdict::Pass(_) | Verdict::Stack(_) => OK,
        Verdict::Redirect(_) => REDIRECT,
        Verdict::Reject | Verdict::Drop(_) if answered => REDIRECT,
        Verdict::Reject | Verdict::Drop(_) => SHOT,
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
    /// Needs root, and an object (`cargo xtask build`).
    pub fn load() -> Result<Self> {
        ensure!(
            !OBJECT.is_empty(),
            "no kernel object: run `cargo xtask build`"
        );
        // Before 5.11 maps are charged to this limit. A failure shows when a map is made.
        let _not_needed_everywhere = setrlimit(Resource::RLIMIT_MEMLOCK, u64::MAX, u64::MAX);
        let ports = Scene::SNAT_PORTS;
        let ebpf = EbpfLoader::new()
            .override_global("SNAT_FIRST_PORT", &ports.first, true)
            .override_global("SNAT_LAST_PORT", &ports.last, true)
            .load(OBJECT)?;
        let mut kernel = Self { ebpf };
        for name in PROGRAMS {
            kernel
                .program(name)?
                .load()
                .with_context(|| name.to_owned())?;
        }
        kernel.fill()?;
        Ok(kernel)
    }

    pub fn program(&mut self, name: &str) -> Result<&mut SchedClassifier> {
        let program = self.ebpf.program_mut(name).context("no such program")?;
        Ok(program.try_into()?)
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
            let mut services: Array<_, u64> = self.map(map::SERVICES)?.try_into()?;
            for (id, word) in scene.services() {
                services.set(id, word.0, 0)?;
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
        for ifindex in [LOOPBACK, UPLINK] {
            devices.insert(ifindex, Scene::device().to_bytes(), 0)?;
        }
        Ok(())
    }

    /// Forgets all flows.
    pub fn forget(&mut self) -> Result<()> {
        for name in [map::FLOWS, map::HALF_OPEN] {
            let flows: HashMap<&mut MapData, [u8; Tuple::SIZE], [u8; FlowEntry::SIZE]> =
                self.map(name)?.try_into()?;
            clear(flows)?;
        }
        let fragments: HashMap<_, [u8; FragmentKey::SIZE], [u8; FragmentPorts::SIZE]> =
            self.map(map::FRAGMENTS)?.try_into()?;
        clear(fragments)
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
        let mut out = vec![0; frame.len() + 256];
        let result = self
            .program(program(hook, link))?
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                repeat,
                ..TestRunOptions::default()
            })?;
        out.truncate(result.data_size_out.try_into()?);
        Ok(Outcome {
            code: result.return_value,
            out,
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
