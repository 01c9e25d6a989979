//! Who is passed over, for those who only look at the maps.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use proxy_common::abi::{Backend, BackendStats, SockAddr};
use serde::Serialize;

use crate::maps::Observed;

/// How much longer a backend is passed over; `None` if it isn't.
pub(crate) fn time_left(stats: &BackendStats, now_ns: u64) -> Option<Duration> {
    let left = stats.passed_over_until_ns.checked_sub(now_ns)?;
    (left > 0).then(|| Duration::from_nanos(left))
}

/// In whole seconds, of which the last is 1.
pub(crate) fn seconds(left: Duration) -> u64 {
    left.as_nanos()
        .div_ceil(1_000_000_000)
        .try_into()
        .unwrap_or(u64::MAX)
}

/// A backend that gets no new connections, if others can have them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct PassedOver {
    /// `namespace/name:port`.
    pub(crate) service: String,
    pub(crate) service_id: u32,
    pub(crate) id: u32,
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    /// Attempts to connect that failed since one was answered.
    pub(crate) failures: u32,
    /// Seconds until it is tried again.
    pub(crate) for_secs: u64,
}

impl PassedOver {
    pub(crate) fn line(&self) -> String {
        format!(
            "{} of Service {}: for {} s more; {}",
            SocketAddr::new(self.address, self.port),
            self.service,
            self.for_secs,
            match self.failures {
                0 => "it has answered meanwhile".to_owned(),
                failures => format!("attempts that failed since one was answered: {failures}"),
            }
        )
    }
}

/// Sorted by Service, then address.
pub(crate) fn passed_over(
    observed: &Observed,
    stats: &HashMap<u32, BackendStats>,
    now_ns: u64,
) -> Vec<PassedOver> {
    let one = |(&id, backend): (&u32, &Backend)| {
        let stats = stats.get(&id)?;
        let left = time_left(stats, now_ns).filter(|_| backend.flags & Backend::CHOSEN != 0)?;
        let at = SockAddr::from_parts(backend.addr, backend.port_be).socket_addr();
        Some(PassedOver {
            service: observed.service_name(backend.service).into_owned(),
            service_id: backend.service,
            id,
            address: at.ip(),
            port: at.port(),
            failures: stats.failures,
            for_secs: seconds(left),
        })
    };
    let mut found: Vec<PassedOver> = observed.backends.iter().filter_map(one).collect();
    found.sort_by(|a, b| {
        let key = |one: &PassedOver| (one.address, one.port, one.id);
        (&a.service, key(a)).cmp(&(&b.service, key(b)))
    });
    found
}

#[cfg(test)]
mod tests {
    use proxy_common::abi::Protocol;

    use super::*;
    use crate::maps::fixture::{backend, observed};

    const NOW_NS: u64 = 5_000_000_000;

    fn failed(failures: u32, passed_over_until_ns: u64) -> BackendStats {
        BackendStats {
            failures,
            passed_over_until_ns,
            ..BackendStats::default()
        }
    }

    #[test]
    fn those_who_are_chosen_and_whose_time_is_not_over_are_shown() {
        let mut observed = observed();
        let address = "10.1.7.7:80";
        for (id, flags) in [(21, Backend::CHOSEN), (22, 0), (23, Backend::CHOSEN)] {
            let one = backend(address, Protocol::Tcp, 1, flags);
            observed.backends.insert(id, one);
        }
        let stats = HashMap::from([
            (21, failed(4, NOW_NS + 1)),
            (22, failed(4, NOW_NS + 1)),
            (23, failed(4, NOW_NS)),
            // Nobody has it.
            (99, failed(4, NOW_NS + 1)),
        ]);
        let shown = passed_over(&observed, &stats, NOW_NS);
        let lines: Vec<String> = shown.iter().map(PassedOver::line).collect();
        assert_eq!(
            lines,
            [
                "10.1.7.7:80 of Service default/web:http: for 1 s more; attempts that failed since one was answered: 4"
            ]
        );
        assert_eq!(shown[0].id, 21);
    }
}
