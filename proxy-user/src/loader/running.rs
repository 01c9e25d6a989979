//! Programs that run already, and what they were loaded with.

use std::{borrow::Cow, io, path::Path};

use aya::{
    Ebpf, EbpfLoader,
    maps::MapData,
    programs::{ProgramInfo, SchedClassifier, loaded_programs},
};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use proxy_common::{
    abi::{FlowTimeouts, PortRange},
    datapath::conntrack::{TimeoutTable, timeout_table},
};

use super::{Features, OBJECT, Pins, attach::reason, link::Link, raw_map::RawMap};

/// Where aya puts what a program can't change.
const SECTION: &str = ".rodata";
/// A program that uses it, and runs wherever any of ours does.
const WITNESS: &str = "kp_connect4";

/// What the running programs were loaded with (`proxy-ebpf/src/maps.rs`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Constants {
    pub(crate) snat_ports: PortRange,
    pub(crate) inherited_until_ns: u64,
    pub(crate) timeouts: TimeoutTable,
    pub(crate) can_refuse: bool,
    /// 0: the initial one.
    pub(crate) node_netns: u64,
}

impl Constants {
    /// Of an agent with no flags on this kernel.
    fn usual(features: Features) -> Self {
        Self {
            snat_ports: PortRange::DEFAULT,
            inherited_until_ns: 0,
            timeouts: timeout_table(&FlowTimeouts::DEFAULT),
            can_refuse: features.set_retval,
            node_netns: features.node_netns,
        }
    }

    /// Of the programs whose links are pinned; or the usual ones, and why.
    pub(crate) fn of_running(pins: &Pins, features: Features) -> (Self, Option<String>) {
        match Self::read(&pins.link(WITNESS)) {
            Ok(constants) => (constants, None),
            Err(error) => (Self::usual(features), Some(error.to_string())),
        }
    }

    fn read(link: &Path) -> io::Result<Self> {
        let id = Link::open(link)?.program_id()?;
        let program = info(id)?;
        let maps = program.map_ids().map_err(io::Error::other)?;
        let bytes = maps
            .unwrap_or_default()
            .into_iter()
            .find_map(|id| section(id).transpose())
            .transpose()?
            .ok_or_else(|| io::Error::other(format!("the program {WITNESS} has no {SECTION}")))?;
        let at = |name: &str| place(OBJECT, name, bytes.len());
        Self::parse(&bytes, at)
            .ok_or_else(|| io::Error::other("the programs are of another build than this command"))
    }

    /// `at`: where a symbol is.
    fn parse(bytes: &[u8], at: impl Fn(&str) -> Option<usize>) -> Option<Self> {
        fn field<const N: usize>(bytes: &[u8], at: Option<usize>) -> Option<[u8; N]> {
            bytes.get(at?..)?.first_chunk().copied()
        }
        let port = |name| Some(u16::from_ne_bytes(field(bytes, at(name))?));
        let long = |name| Some(u64::from_ne_bytes(field(bytes, at(name))?));
        let [set_retval] = field(bytes, at("HAS_SET_RETVAL"))?;
        let mut timeouts = [0; 256];
        let raw: [u8; 1024] = field(bytes, at("FLOW_TIMEOUTS"))?;
        for (seconds, bytes) in timeouts.iter_mut().zip(raw.as_chunks().0) {
            *seconds = u32::from_ne_bytes(*bytes);
        }
        Some(Self {
            snat_ports: PortRange {
                first: port("SNAT_FIRST_PORT")?,
                last: port("SNAT_LAST_PORT")?,
            },
            inherited_until_ns: long("INHERITED_UNTIL_NS")?,
            timeouts,
            can_refuse: set_retval != 0,
            node_netns: long("NODE_NETNS")?,
        })
    }
}

fn info(id: u32) -> io::Result<ProgramInfo> {
    loaded_programs()
        .flatten()
        .find(|program| program.id() == id)
        .ok_or_else(|| io::Error::other(format!("no program has the id {id}")))
}

/// What is in the map, if it is the section.
fn section(id: u32) -> io::Result<Option<Vec<u8>>> {
    let data = MapData::from_id(id).map_err(io::Error::other)?;
    let info = data.info().map_err(io::Error::other)?;
    if info.name_as_str() != Some(SECTION) {
        return Ok(None);
    }
    let mut bytes = None;
    RawMap::of(&data)?.each(|_, value| bytes = Some(value.to_vec()))?;
    Ok(bytes)
}

/// Where a symbol of the section is; `None` also if the section is not as long as this.
fn place(object: &[u8], name: &str, length: usize) -> Option<usize> {
    let file = object::File::parse(object).ok()?;
    let section = file.section_by_name(SECTION)?;
    if usize::try_from(section.size()).ok()? != length {
        return None;
    }
    let symbol = file.symbols().find(|symbol| {
        symbol.name() == Ok(name) && symbol.section_index() == Some(section.index())
    })?;
    usize::try_from(symbol.address().checked_sub(section.address())?).ok()
}

/// A program of the packet path that is in the kernel, to be run on a packet.
///
/// # Errors
/// There is none with this id, or it is of another kind.
pub(crate) fn running_program(id: u32) -> Result<SchedClassifier, String> {
    let info = info(id).map_err(|error| error.to_string())?;
    SchedClassifier::from_program_info(info, Cow::Borrowed("kp_tc")).map_err(|error| reason(&error))
}

/// Loads the program that asks the helpers. It lives as long as what is returned, and has maps of its own.
pub(crate) fn ask_program(features: Features) -> Result<Ebpf, String> {
    const NAME: &str = "kp_ask";
    if OBJECT.is_empty() {
        return Err(super::LoadError::NoObject.to_string());
    }
    let has_skip_neigh = u8::from(features.skip_neigh);
    let mut ebpf = EbpfLoader::new()
        .btf(None)
        .override_global("HAS_SKIP_NEIGH", &has_skip_neigh, true)
        .load(OBJECT)
        .map_err(|error| reason(&error))?;
    let program: &mut SchedClassifier = ebpf
        .program_mut(NAME)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| format!("the program {NAME} is missing in the kernel object"))?;
    program
        .load()
        .map_err(|error| format!("the kernel refused the program {NAME}: {}", reason(&error)))?;
    Ok(ebpf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_found_by_the_places_of_their_symbols() {
        let mut bytes = vec![0; 1100];
        bytes[4..8].copy_from_slice(&77_u32.to_ne_bytes());
        bytes[1030..1032].copy_from_slice(&20_000_u16.to_ne_bytes());
        bytes[1032..1034].copy_from_slice(&20_999_u16.to_ne_bytes());
        bytes[1040..1048].copy_from_slice(&9_u64.to_ne_bytes());
        bytes[1048..1056].copy_from_slice(&4711_u64.to_ne_bytes());
        bytes[1099] = 1;
        let at = |name: &str| {
            Some(match name {
                "FLOW_TIMEOUTS" => 0,
                "SNAT_FIRST_PORT" => 1030,
                "SNAT_LAST_PORT" => 1032,
                "INHERITED_UNTIL_NS" => 1040,
                "NODE_NETNS" => 1048,
                "HAS_SET_RETVAL" => 1099,
                _ => return None,
            })
        };
        let constants = Constants::parse(&bytes, at).expect("all are there");
        assert_eq!(constants.snat_ports.first, 20_000);
        assert_eq!(constants.snat_ports.last, 20_999);
        assert_eq!(constants.timeouts[1], 77);
        assert_eq!(constants.inherited_until_ns, 9);
        assert_eq!(constants.node_netns, 4711);
        assert!(constants.can_refuse);
        assert_eq!(Constants::parse(&bytes[..1050], at), None);
    }
}
