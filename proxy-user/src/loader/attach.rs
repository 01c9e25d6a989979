//! Loads the kernel object, with maps found or made at their pins, and attaches the programs.

use std::{
    fs::File,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Map, MapData, MapError},
    programs::{CgroupAttachMode, Program, ProgramError, links::FdLink},
};
use proxy_common::{
    abi::{FlowTimeouts, PortRange, map},
    datapath::conntrack::timeout_table,
};

use super::{
    AffinityMap, Claim, Counted, Features, FlowMap, Mechanism, Note, PacketPath, PinError, Pins,
    Programs, Sizes, SocketMap, link::Link, program_log, sizes, sys,
};
use crate::{
    expiry::monotonic_ns,
    maps::bpf::{BpfStore, OpenError},
    recount,
};

/// The kernel object; empty when it was not built.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("KUBE_PORTAL_EBPF_OBJECT"));

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("this binary was built without the kernel programs; build it with `cargo xtask build`")]
    NoObject,
    #[error("the kernel object can't be loaded: {0}")]
    Object(#[from] EbpfError),
    #[error("the kernel refused the program {program}: {reason}")]
    Program { program: String, reason: String },
    #[error("the program {program} can't be attached to {cgroup}: {reason}")]
    Attach {
        program: String,
        cgroup: PathBuf,
        reason: String,
    },
    #[error("{path}: {source}")]
    Cgroup {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the map {map}: {reason}")]
    Map { map: &'static str, reason: String },
    #[error(
        "the kernel lets us make no map ({map}: {reason}): run as root, with CAP_BPF and CAP_NET_ADMIN (before Linux 5.11 CAP_SYS_RESOURCE too); `kube-portal check` says what is missing"
    )]
    NotAllowed { map: String, reason: String },
    #[error("{0}")]
    TooLarge(String),
    #[error("what the programs log can't be read: {0}")]
    ProgramLog(String),
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// Programs in the kernel, not yet attached, and the maps they use.
#[derive(Debug)]
pub struct Loaded {
    ebpf: Ebpf,
    pins: Pins,
    claim: Claim,
    programs: Programs,
}

/// What the programs are loaded with, and keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixed {
    pub snat_ports: PortRange,
    pub timeouts: FlowTimeouts,
    /// Whether they log every decision.
    pub debug_programs: bool,
}

/// Maps are taken over from the pins where they exist.
pub fn load(
    pins: &Pins,
    features: Features,
    sizes: &Sizes,
    fixed: &Fixed,
) -> Result<(Loaded, BpfStore), LoadError> {
    if OBJECT.is_empty() {
        return Err(LoadError::NoObject);
    }
    // Before 5.11 maps are charged to this limit. A failure shows when a map is made.
    let _not_needed_everywhere = sys::lift_memlock();
    let mut claim = pins.claim(sizes)?;
    let mut new = sizes.all().to_vec();
    new.retain(|size| !claim.map(size.map).exists());
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    if let Some(text) = sizes::available(&meminfo).and_then(|bytes| sizes::too_much(&new, bytes)) {
        claim.give_up();
        return Err(LoadError::TooLarge(text));
    }
    // Whose connections nobody has counted yet.
    let is_uncounted = new.iter().any(|size| size.map == map::BACKEND_STATS)
        && !claim.takes_along(map::BACKEND_STATS);
    let inherited_until_ns = inherited_until(claim.age());
    let mut loader = EbpfLoader::new();
    let log_level = program_log::level(fixed.debug_programs);
    if !fixed.debug_programs {
        loader.map_max_entries(program_log::MAP, program_log::NO_ROOM);
    }
    let has_set_retval = u8::from(features.set_retval);
    let timeouts = timeout_table(&fixed.timeouts);
    let has_coarse_clock = u8::from(features.coarse_clock);
    let has_skip_neigh = u8::from(features.skip_neigh);
    loader
        // No program needs that of the kernel, and it is 20 MiB to read.
        .btf(None)
        .override_global("HAS_SET_RETVAL", &has_set_retval, true)
        .override_global("HAS_COARSE_CLOCK", &has_coarse_clock, true)
        .override_global("HAS_SKIP_NEIGH", &has_skip_neigh, true)
        .override_global("NODE_NETNS", &features.node_netns, true)
        .override_global("SNAT_FIRST_PORT", &fixed.snat_ports.first, true)
        .override_global("SNAT_LAST_PORT", &fixed.snat_ports.last, true)
        .override_global("INHERITED_UNTIL_NS", &inherited_until_ns, true)
        .override_global("FLOW_TIMEOUTS", &timeouts[..], true)
        .override_global(program_log::LEVEL, &log_level, true);
    for size in sizes.all() {
        loader.map_max_entries(size.map, size.entries);
    }
    for name in map::ALL {
        loader.map_pin_path(name, claim.map(name));
    }
    let mut ebpf = match loader.load(OBJECT) {
        Ok(ebpf) => ebpf,
        Err(error) => {
            claim.give_up();
            return Err(load_error(error, sizes));
        }
    };
    let uncounted = if is_uncounted {
        let sockets = SocketMap::from_pin(&claim.holder(map::SOCKETS))?;
        Some((sockets, FlowMap::from_pin(&claim.holder(map::FLOWS))?))
    } else {
        None
    };
    claim.settle()?;
    claim.note_memory();
    let programs = Programs::default();
    for (name, program) in ebpf.programs_mut() {
        let loaded = if let Program::CgroupSockAddr(program) = program {
            program.load()
        } else if let Program::CgroupSock(program) = program {
            program.load()
        } else if let Program::SockOps(program) = program {
            program.load()
        } else if is_packet_program(program) {
            continue;
        } else {
            Err(ProgramError::UnexpectedProgramType)
        };
        let refused = |error: &ProgramError| LoadError::Program {
            program: name.to_owned(),
            reason: reason(error),
        };
        loaded.map_err(|error| refused(&error))?;
        let fd = program.fd().map_err(|error| refused(&error))?;
        programs.add(name, fd.as_fd());
    }
    if fixed.debug_programs {
        program_log::follow(&mut ebpf)?;
    }
    let store = BpfStore::open(|name| take_map(&mut ebpf, name))?;
    if let Some((sockets, flows)) = uncounted {
        // Before an id is given to anybody.
        match recount::at_start(&store, &sockets, &flows) {
            Ok(0) => {}
            Ok(backends) => log::info!("connections of {backends} backends are counted anew"),
            Err(error) => {
                log::warn!(
                    "connections can't be counted: {error}; it is tried again with each sweep"
                );
            }
        }
    }
    Ok((
        Loaded {
            ebpf,
            pins: pins.clone(),
            claim,
            programs,
        },
        store,
    ))
}

/// A map that can't be made is too large for the kernel or for the node, or this is no node for maps.
fn load_error(error: EbpfError, sizes: &Sizes) -> LoadError {
    let EbpfError::MapError(MapError::CreateError { name, io_error }) = &error else {
        return error.into();
    };
    if io_error.raw_os_error() == Some(libc::EPERM) {
        return LoadError::NotAllowed {
            map: name.clone(),
            reason: io_error.to_string(),
        };
    }
    let sizes = sizes.all();
    let Some((size, flag)) = sizes
        .iter()
        .find_map(|size| Some((size, size.flag.filter(|_| *size.map == **name)?)))
    else {
        return error.into();
    };
    LoadError::TooLarge(format!(
        "the kernel refuses the map {name} for {} entries, about {}: {io_error}; give a smaller {} than {}",
        size.entries,
        sizes::mib(size.memory_bytes()),
        flag.name,
        flag.value
    ))
}

/// How long connections of a kube-proxy are reckoned with after the first agent has come: as long as it
/// lets conntrack keep silent ones (`conntrack.tcpEstablishedTimeout`).
const INHERITANCE: Duration = Duration::from_secs(24 * 3600);

/// In monotonic time; `age`: how long agents have been here.
fn inherited_until(age: Duration) -> u64 {
    let left = INHERITANCE.saturating_sub(age);
    if left.is_zero() {
        return 0;
    }
    monotonic_ns() + u64::try_from(left.as_nanos()).unwrap_or(0)
}

impl Loaded {
    /// Those that are loaded, now and later.
    pub fn programs(&self) -> Programs {
        self.programs.clone()
    }

    /// What was found at the pins.
    pub fn take_notes(&mut self) -> Vec<Note> {
        self.claim.take_notes()
    }

    /// Makes every program run in the cgroup, by links that are pinned. A link of an earlier agent is
    /// given the new program, so that no call is seen by both or by neither. Other tools' programs
    /// stay: links allow several.
    pub fn attach(&mut self, cgroup: &Path) -> Result<Vec<String>, LoadError> {
        let cgroup_error = |source| LoadError::Cgroup {
            path: cgroup.to_owned(),
            source,
        };
        self.claim
            .take_links(|program| self.ebpf.program(program).is_some())?;
        let mut moved = self.claim.take_moves();
        moved.copy();
        let directory = File::open(cgroup).map_err(cgroup_error)?;
        let cgroup_id = directory.metadata().map_err(cgroup_error)?.ino();
        let mut attached = Vec::new();
        for (name, program) in self.ebpf.programs_mut() {
            if is_packet_program(program) {
                continue;
            }
            let refused = |error: &dyn std::error::Error| LoadError::Attach {
                program: name.to_owned(),
                cgroup: cgroup.to_owned(),
                reason: reason(error),
            };
            let descriptor = program.fd().map_err(|error| refused(&error))?;
            if !give_program(&self.pins.link(name), descriptor.as_fd(), cgroup_id) {
                let link = link(program, &directory).map_err(|error| refused(error.as_ref()))?;
                self.pins.replace_link(name, link)?;
            }
            attached.push(name.to_owned());
        }
        moved.catch_up();
        // Programs of the packet path write affinity too.
        self.claim.give_back_moves(moved);
        attached.sort();
        Ok(attached)
    }

    /// What remains once the socket programs are attached: the right to the pins, the packet
    /// programs, and the maps that are swept.
    pub fn into_packet_path(
        mut self,
        mechanism: Mechanism,
    ) -> Result<(Claim, PacketPath, SweptMaps), LoadError> {
        let mut take = |name| take_map(&mut self.ebpf, name);
        let udp_flows = Counted::from_pin(&self.pins.map(map::UDP_FLOWS));
        let swept = SweptMaps {
            flows: FlowMap::new(take(map::FLOWS)?)?,
            half_open: FlowMap::half_open(take(map::HALF_OPEN)?)?,
            affinity: AffinityMap::new(take(map::AFFINITY)?)?,
            sockets: SocketMap::from_pin(&self.pins.map(map::SOCKETS))?,
            udp_flows: udp_flows.map_err(|error| OpenError::Open {
                map: map::UDP_FLOWS,
                source: MapError::IoError(error),
            })?,
        };
        let packet = PacketPath::new(self.ebpf, self.pins, mechanism, self.programs)?;
        Ok((self.claim, packet, swept))
    }
}

/// A map that was loaded, of one of the types that ours have.
///
/// # Errors
/// There is none of this name, or it has been taken.
pub fn take_map(ebpf: &mut Ebpf, name: &'static str) -> Result<MapData, OpenError> {
    match ebpf.take_map(name) {
        Some(
            Map::HashMap(data)
            | Map::LruHashMap(data)
            | Map::LpmTrie(data)
            | Map::Array(data)
            | Map::PerCpuArray(data),
        ) => Ok(data),
        _ => Err(OpenError::Missing { map: name }),
    }
}

/// Maps whose entries come to an end, by a sweep or by themselves.
#[derive(Debug)]
pub struct SweptMaps {
    pub flows: FlowMap,
    pub half_open: FlowMap,
    pub affinity: AffinityMap,
    pub sockets: SocketMap,
    pub udp_flows: Counted,
}

/// Whether the pinned link, if there is one and it is this cgroup's, now runs the program.
fn give_program(pin: &Path, program: BorrowedFd<'_>, cgroup_id: u64) -> bool {
    Link::open(pin).is_ok_and(|link| {
        link.cgroup_id().is_ok_and(|id| id == cgroup_id) && link.set_program(program).is_ok()
    })
}

/// Those are loaded when a device needs them.
fn is_packet_program(program: &Program) -> bool {
    matches!(program, Program::SchedClassifier(_))
}

/// A link takes no flags: it always allows others beside it (cgroup_bpf_link_attach in
/// kernel/bpf/cgroup.c).
const NO_FLAGS: CgroupAttachMode = CgroupAttachMode::Single;

fn link(program: &mut Program, cgroup: &File) -> Result<FdLink, Box<dyn std::error::Error>> {
    if let Program::CgroupSockAddr(program) = program {
        let id = program.attach(cgroup, NO_FLAGS)?;
        Ok(program.take_link(id)?.try_into()?)
    } else if let Program::CgroupSock(program) = program {
        let id = program.attach(cgroup, NO_FLAGS)?;
        Ok(program.take_link(id)?.try_into()?)
    } else if let Program::SockOps(program) = program {
        let id = program.attach(cgroup, NO_FLAGS)?;
        Ok(program.take_link(id)?.try_into()?)
    } else {
        Err(ProgramError::UnexpectedProgramType.into())
    }
}

/// The whole chain in one line, the end of the verifier's log last.
pub(super) fn reason(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    one_line(&text)
}

/// The verifier says what is wrong last, after what may be thousands of lines.
fn one_line(text: &str) -> String {
    const LAST: usize = 5;
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    let rest: Vec<&str> = lines.collect();
    let left_out = rest.len().saturating_sub(LAST);
    let dots = (left_out > 0).then_some("...");
    let parts: Vec<&str> = std::iter::once(first)
        .chain(dots)
        .chain(rest.into_iter().skip(left_out))
        .collect();
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verifiers_log_becomes_one_line_with_its_end() {
        assert_eq!(one_line("refused"), "refused");
        assert_eq!(one_line("refused: a\n\n b\n"), "refused: a; b");
        let long: Vec<String> = (0..100).map(|number| number.to_string()).collect();
        assert_eq!(one_line(&long.join("\n")), "0; ...; 95; 96; 97; 98; 99");
    }
}
