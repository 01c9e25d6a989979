//! A sample of the maps.

use std::{collections::HashMap, time::Duration};

use proxy_common::abi::{Backend, BackendStats, SockAddr, UDP_IDLE_NS, map};

use super::{BackendTotals, Sample};
use crate::{
    cli::CliError,
    expiry::monotonic_ns,
    failover::shown::time_left,
    loader::{PinError, Pins, UdpFlowMap},
    maps::{MapStore as _, bpf::BpfStore},
};

/// The maps that are read again and again.
#[derive(Debug)]
pub(crate) struct Reader {
    store: BpfStore,
    udp_flows: UdpFlowMap,
}

impl Reader {
    pub(crate) fn new(pins: &Pins) -> Result<Self, CliError> {
        Ok(Self {
            store: pins.open_store()?,
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
        let udp_flows = self.udp_flows(now_ns)?;
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
            of.active += observed.connections(*id) + udp_flows.get(id).copied().unwrap_or(0);
            of.is_chosen |= backend.flags & Backend::CHOSEN != 0;
            of.is_local |= backend.flags & Backend::LOCAL != 0;
        }
        Ok(sample)
    }

    /// How many flows of unconnected UDP sockets each backend has, by its id: nobody closes them, so the
    /// programs don't count them.
    fn udp_flows(&self, now_ns: u64) -> Result<HashMap<u32, u64>, CliError> {
        let mut active: HashMap<u32, u64> = HashMap::new();
        let udp_flows = self.udp_flows.each(|_, flow| {
            if now_ns.saturating_sub(flow.used_ns) < UDP_IDLE_NS {
                *active.entry(flow.backend_id).or_default() += 1;
            }
        });
        udp_flows.map_err(|source| CliError::Io {
            what: "the map of UDP flows",
            source,
        })?;
        Ok(active)
    }
}
