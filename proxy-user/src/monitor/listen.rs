//! Has the programs tell, and reads what they tell.

use std::{io, os::unix::net::UnixListener, time::Duration};

use aya::maps::{Array, Map, MapData, MapError, RingBuf};
use proxy_common::abi::{MonitorEvent, MonitorFilter, map};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use crate::{
    control,
    expiry::monotonic_ns,
    loader::{PinError, Pins},
    maps::bpf::OpenError,
};

/// How long the programs tell of what nobody reads any more.
const LEASE: Duration = Duration::from_secs(3);

#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    #[error(
        "another `kube-portal monitor` listens on this node: end it first; a ring buffer has one reader"
    )]
    Taken,
    #[error("the map {map}: {source}")]
    Map {
        map: &'static str,
        source: Box<MapError>,
    },
    #[error("the ring buffer of decisions: {0}")]
    Read(#[from] io::Error),
}

/// The only one on this node.
pub(crate) struct Listener {
    filter: Array<MapData, [u8; MonitorFilter::SIZE]>,
    events: RingBuf<MapData>,
    _only: UnixListener,
}

fn of(map: &'static str) -> impl Fn(MapError) -> MonitorError {
    move |source| MonitorError::Map {
        map,
        source: Box::new(source),
    }
}

impl Listener {
    /// What was told to an earlier one is thrown away.
    pub(crate) fn new(pins: &Pins) -> Result<Self, crate::cli::CliError> {
        let open = |map| {
            MapData::from_pin(pins.map(map))
                .map_err(|source| PinError::from(OpenError::Open { map, source }))
        };
        let (filter, events) = (open(map::MONITOR)?, open(map::EVENTS)?);
        let only = control::only_monitor(&pins.directory()).map_err(|error| {
            if error.kind() == io::ErrorKind::AddrInUse {
                MonitorError::Taken
            } else {
                error.into()
            }
        })?;
        let filter = Array::try_from(Map::Array(filter)).map_err(of(map::MONITOR))?;
        let mut events = RingBuf::try_from(Map::RingBuf(events)).map_err(of(map::EVENTS))?;
        while events.next().is_some() {}
        Ok(Self {
            filter,
            events,
            _only: only,
        })
    }

    /// How often [`Self::ask`] has to be called again.
    pub(crate) const RENEWAL: Duration = Duration::from_secs(1);

    /// What the programs are to tell from now on, for a while; its `until_ns` is set here.
    pub(crate) fn ask(&mut self, filter: MonitorFilter) -> Result<(), MonitorError> {
        let lease = u64::try_from(LEASE.as_nanos()).unwrap_or(u64::MAX);
        let until_ns = monotonic_ns().saturating_add(lease);
        let filter = MonitorFilter { until_ns, ..filter };
        let set = self.filter.set(0, filter.to_bytes(), 0);
        set.map_err(of(map::MONITOR))
    }

    /// Up to so many decisions; none if there are none until the time is over, or a signal comes.
    pub(crate) fn read(
        &mut self,
        limit: usize,
        wait: Duration,
    ) -> Result<Vec<MonitorEvent>, MonitorError> {
        let mut ready = [PollFd::new(&self.events, PollFlags::IN)];
        let wait = Timespec::try_from(wait).map_err(io::Error::other)?;
        match poll(&mut ready, Some(&wait)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(MonitorError::Read(error.into())),
        }
        let mut found = Vec::new();
        while found.len() < limit {
            let Some(record) = self.events.next() else {
                break;
            };
            // One of another size is none of ours.
            let bytes: Option<[u8; MonitorEvent::SIZE]> = record.first_chunk().copied();
            found.extend(bytes.map(MonitorEvent::from_bytes));
        }
        Ok(found)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // If it fails, the programs stop when the lease has run out.
        let nothing = [0; MonitorFilter::SIZE];
        let _runs_out = self.filter.set(0, nothing, 0);
    }
}
