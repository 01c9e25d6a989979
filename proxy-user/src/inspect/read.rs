//! Reads what is pinned. Needs no agent, and changes nothing.

use std::{fs, io};

use proxy_common::{abi::map, datapath::conntrack::Table};

use super::{Filter, affinity::Clients, conntrack::Flows, sockets::Sockets};
use crate::{
    cli::CliError,
    loader::{AffinityMap, FlowMap, PinError, Pins, SocketMap, UdpFlowMap, UdpReverseMap},
    maps::{Observed, bpf::OpenError},
};

/// `PROC_PID_INIT_INO`, include/linux/proc_ns.h: of the namespace that the programs' process ids are of.
const INITIAL_PIDS: &str = "pid:[4026531836]";

pub(crate) fn clients(
    pins: &Pins,
    observed: &Observed,
    filter: Filter,
) -> Result<Clients, CliError> {
    let mut clients = Clients::new(observed, filter);
    let map = open(AffinityMap::from_pin(&pins.map(map::AFFINITY)))?;
    walked(
        map::AFFINITY,
        map.each(|key, entry| clients.add(key, entry)),
    )?;
    clients.sort();
    Ok(clients)
}

pub(crate) fn flows<'a>(
    pins: &Pins,
    observed: &'a Observed,
    filter: Filter,
) -> Result<Flows<'a>, CliError> {
    let mut flows = Flows::new(observed, filter);
    // In the order that flows take.
    let map = open(FlowMap::half_open_from_pin(&pins.map(map::HALF_OPEN)))?;
    let seen = map.each(|tuple, entry| flows.add(Table::HalfOpen, tuple, entry));
    walked(map::HALF_OPEN, seen)?;
    let map = open(FlowMap::from_pin(&pins.map(map::FLOWS)))?;
    let seen = map.each(|tuple, entry| flows.add(Table::Established, tuple, entry));
    walked(map::FLOWS, seen)?;
    flows.sort();
    Ok(flows)
}

pub(crate) fn sockets<'a>(
    pins: &Pins,
    observed: &'a Observed,
    filter: Filter,
) -> Result<Sockets<'a>, CliError> {
    let mut sockets = Sockets::new(observed, filter);
    let map = open(SocketMap::from_pin(&pins.map(map::SOCKETS)))?;
    let seen = map.each(|cookie, flow| sockets.add_connected(cookie, flow));
    walked(map::SOCKETS, seen)?;
    let map = open(UdpFlowMap::from_pin(&pins.map(map::UDP_FLOWS)))?;
    let seen = map.each(|key, flow| sockets.add_udp_flow(key, flow));
    walked(map::UDP_FLOWS, seen)?;
    let map = open(UdpReverseMap::from_pin(&pins.map(map::UDP_REVERSE)))?;
    let seen = map.each(|key, frontend| sockets.add_udp_reverse(key, frontend));
    walked(map::UDP_REVERSE, seen)?;
    sockets.sort();
    Ok(sockets)
}

fn open<T>(opened: Result<T, OpenError>) -> Result<T, PinError> {
    Ok(opened?)
}

fn walked(what: &'static str, seen: io::Result<()>) -> Result<(), CliError> {
    seen.map_err(|source| CliError::Io { what, source })
}

/// The name of a process of the initial pid namespace, for whoever is in it.
pub(crate) fn command(pid: u32) -> Option<String> {
    let ours = fs::read_link("/proc/self/ns/pid").ok()?;
    if ours.as_os_str() != INITIAL_PIDS {
        return None;
    }
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim_end().to_owned()).filter(|name| !name.is_empty())
}
