//! A sample of the maps.

use std::{collections::HashMap, time::Duration};

use proxy_common::{
    abi::{Backend, BackendStats, Direction, SockAddr, UDP_IDLE_NS, map},
    datapath::conntrack,
};

use super::{BackendTotals, Sample};
use crate::{
    cli::CliError,
    expiry::monotonic_ns,
    failover::shown::time_left,
    loader::{FlowMap, PinError, Pins, SocketMap, UdpFlowMap},
    maps::{MapStore as _, bpf::BpfStore},
};

/// The maps that are read again and again.
#[derive(Debug)]
pub(crate) struct Reader {
    store: BpfStore,
    sockets: SocketMap,
    flows: FlowMap,
    udp_flows: UdpFlowMap,
}

impl Reader {
    pub(crate) fn new(pins: &Pins) -> Result<Self, CliError> {
        Ok(Self {
            store: pins.open_store()?,
            sockets: SocketMap::from_pin(&pins.map(map::SOCKETS)).map_err(PinError::from)?,
            flows: FlowMap::from_pin(&pins.map(map::FLOWS)).map_err(PinError::from)?,
            udp_flows: UdpFlowMap::from_pin(&pins.map(map::UDP_FLOWS)).map_err(PinError::from)?,
        })
    }

    pub(crate) fn sample(&self) -> Result<Sample, CliError> {
        let observed = self.store.observe()?;
        let now_ns = monotonic_ns();
        let mut sample = Sample {
            at: Duration::from_nanos(now_ns),
            ..Sample::default()
        };
        let name = |service: u32| {
            let name = observed.names.get(&service)?;
            Some(name.text())
        };
        for name in observed.names.values() {
            sample.services.entry(name.text().into_owned()).or_default();
        }
        for (service, stats) in self.store.service_stats()? {
            // It may have gone meanwhile.
            if let Some(totals) =
                name(service).and_then(|name| sample.services.get_mut(name.as_ref()))
            {
                totals.connections += stats.connections;
                totals.failures += stats.failures;
            }
        }
        let stats: HashMap<u32, BackendStats> = self.store.backend_stats()?.into_iter().collect();
        let active = self.active(now_ns)?;
        for (id, backend) in &observed.backends {
            let address = SockAddr::from_parts(backend.addr, backend.port_be).socket_addr();
            let Some(totals) =
                name(backend.service).and_then(|name| sample.services.get_mut(name.as_ref()))
            else {
                continue;
            };
            // The same endpoint has an id in each list of the Service port.
            let of: &mut BackendTotals = totals.backends.entry(address).or_default();
            let stats = stats.get(id).copied().unwrap_or_default();
            of.connections += stats.connections;
            of.is_passed_over |= time_left(&stats, now_ns).is_some();
            of.active += active.get(id).copied().unwrap_or(0);
            of.is_chosen |= backend.flags & Backend::CHOSEN != 0;
            of.is_local |= backend.flags & Backend::LOCAL != 0;
        }
        Ok(sample)
    }

    /// How many sockets and flows each backend has, by its id.
    fn active(&self, now_ns: u64) -> Result<HashMap<u32, u64>, CliError> {
        let mut active: HashMap<u32, u64> = HashMap::new();
        let failed = |what| move |source| CliError::Io { what, source };
        let sockets = self.sockets.each(|_, flow| {
            if flow.backend_id != 0 {
                *active.entry(flow.backend_id).or_default() += 1;
            }
        });
        sockets.map_err(failed("the map of sockets"))?;
        let flows = self.flows.each(|_, entry| {
            if matches!(Direction::from_number(entry.direction), Direction::Original)
                && !conntrack::is_closed(entry.state)
            {
                *active.entry(entry.backend_id).or_default() += 1;
            }
        });
        flows.map_err(failed("the map of flows"))?;
        let udp_flows = self.udp_flows.each(|_, flow| {
            if now_ns.saturating_sub(flow.used_ns) < UDP_IDLE_NS {
                *active.entry(flow.backend_id).or_default() += 1;
            }
        });
        udp_flows.map_err(failed("the map of UDP flows"))?;
        Ok(active)
    }
}
