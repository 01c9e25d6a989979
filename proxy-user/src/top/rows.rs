//! Two samples, and what happened between them.

use std::{cmp::Reverse, net::SocketAddr};

use serde::Serialize;

use super::{BackendTotals, Sample, Totals};
use crate::inspect::Filter;

/// A Service port.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct ServiceRow {
    pub(crate) service: String,
    pub(crate) new_per_second: f64,
    pub(crate) active: u64,
    pub(crate) errors_per_second: f64,
    /// Since the Service came.
    pub(crate) connections: u64,
    pub(crate) errors: u64,
    /// Those that get new connections.
    pub(crate) backends: usize,
}

/// One of its backends.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct BackendRow {
    pub(crate) address: SocketAddr,
    /// `this node` or `elsewhere`.
    pub(crate) place: &'static str,
    /// `serving`; `draining`: it keeps the connections it has; or `passed over`: it fails, and gets no new ones for
    /// a while.
    pub(crate) state: &'static str,
    pub(crate) new_per_second: f64,
    pub(crate) active: u64,
    pub(crate) connections: u64,
}

/// By what Services are sorted, the most first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Order {
    /// New connections each second, then those since the Service came.
    #[default]
    New,
    Active,
    Errors,
    Name,
}

impl Order {
    pub(crate) fn next(self) -> Self {
        match self {
            Self::New => Self::Active,
            Self::Active => Self::Errors,
            Self::Errors => Self::Name,
            Self::Name => Self::New,
        }
    }
}

/// More or as many as before; fewer are another Service under the same name.
fn rate(before: Option<u64>, now: u64, seconds: f64) -> f64 {
    let new = before.map_or(0, |before| now.checked_sub(before).unwrap_or(now));
    if seconds > 0.0 {
        // No count is so large that it matters.
        new as f64 / seconds
    } else {
        0.0
    }
}

fn seconds(before: &Sample, now: &Sample) -> f64 {
    now.at.saturating_sub(before.at).as_secs_f64()
}

/// Rows of all Services that are asked for.
pub(crate) fn services(
    before: &Sample,
    now: &Sample,
    filter: &Filter,
    order: Order,
) -> Vec<ServiceRow> {
    let seconds = seconds(before, now);
    let row = |(name, totals): (&String, &Totals)| {
        // One that came between the two had none.
        let then = match before.services.get(name) {
            Some(totals) => Some((totals.connections, totals.failures)),
            None => (!before.services.is_empty()).then_some((0, 0)),
        };
        ServiceRow {
            service: name.clone(),
            new_per_second: rate(then.map(|then| then.0), totals.connections, seconds),
            active: totals.active(),
            errors_per_second: rate(then.map(|then| then.1), totals.failures, seconds),
            connections: totals.connections,
            errors: totals.failures,
            backends: (totals.backends.values())
                .filter(|backend| backend.is_chosen)
                .count(),
        }
    };
    let mut rows: Vec<ServiceRow> = (now.services.iter())
        .filter(|(name, totals)| filter.admits(name, totals.backends.keys().copied()))
        .map(row)
        .collect();
    // They come by name, and stay so where they are alike.
    match order {
        Order::New => rows.sort_by(|a, b| {
            let rates = b.new_per_second.total_cmp(&a.new_per_second);
            rates.then(b.connections.cmp(&a.connections))
        }),
        Order::Active => rows.sort_by_key(|row| Reverse(row.active)),
        Order::Errors => rows.sort_by(|a, b| {
            let rates = b.errors_per_second.total_cmp(&a.errors_per_second);
            rates.then(b.errors.cmp(&a.errors))
        }),
        Order::Name => {}
    }
    rows
}

/// Rows of a Service's backends, by address.
pub(crate) fn backends(before: &Sample, now: &Sample, service: &str) -> Vec<BackendRow> {
    let seconds = seconds(before, now);
    let of = |sample: &Sample| {
        let totals = sample.services.get(service);
        totals.map_or_else(Default::default, |totals| totals.backends.clone())
    };
    let (then, now) = (of(before), of(now));
    let row = |(address, backend): (&SocketAddr, &BackendTotals)| BackendRow {
        address: *address,
        place: if backend.is_local {
            "this node"
        } else {
            "elsewhere"
        },
        state: match (backend.is_chosen, backend.is_passed_over) {
            (true, false) => "serving",
            (true, true) => "passed over",
            (false, _) => "draining",
        },
        new_per_second: rate(
            Some(then.get(address).map_or(0, |backend| backend.connections)),
            backend.connections,
            seconds,
        ),
        active: backend.active,
        connections: backend.connections,
    };
    now.iter().map(row).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use super::*;

    pub(crate) fn sample(at: u64, services: &[(&str, u64, u64, u64)]) -> Sample {
        let totals = |connections, failures, active| Totals {
            connections,
            failures,
            backends: BTreeMap::from([
                (
                    "10.1.1.2:8080".parse().unwrap(),
                    BackendTotals {
                        connections,
                        active,
                        is_chosen: true,
                        is_passed_over: false,
                        is_local: true,
                    },
                ),
                ("10.1.2.2:8080".parse().unwrap(), BackendTotals::default()),
            ]),
        };
        Sample {
            at: Duration::from_secs(at),
            services: (services.iter())
                .map(|(name, new, failed, active)| {
                    ((*name).to_owned(), totals(*new, *failed, *active))
                })
                .collect(),
        }
    }

    fn names(rows: &[ServiceRow]) -> Vec<&str> {
        rows.iter().map(|row| row.service.as_str()).collect()
    }

    #[test]
    fn a_rate_is_what_came_between_two_samples_by_the_time_between_them() {
        let before = sample(10, &[("a/web:http", 100, 1, 3)]);
        let now = sample(12, &[("a/new:http", 4, 0, 0), ("a/web:http", 150, 1, 7)]);
        let rows = services(&before, &now, &Filter::default(), Order::New);
        assert_eq!(names(&rows), ["a/web:http", "a/new:http"]);
        assert_eq!((rows[0].new_per_second, rows[0].active), (25.0, 7));
        assert_eq!((rows[0].connections, rows[0].errors_per_second), (150, 0.0));
        // It came after the first sample.
        assert_eq!((rows[1].new_per_second, rows[1].backends), (2.0, 1));
        let backends = backends(&before, &now, "a/web:http");
        assert_eq!(
            (backends[0].new_per_second, backends[0].state),
            (25.0, "serving")
        );
        assert_eq!(
            (backends[1].place, backends[1].state),
            ("elsewhere", "draining")
        );
    }

    #[test]
    fn a_backend_that_is_passed_over_says_so_as_long_as_it_is_chosen() {
        let mut now = sample(1, &[("a/web:http", 1, 0, 0)]);
        for totals in now.services.values_mut() {
            for backend in totals.backends.values_mut() {
                backend.is_passed_over = true;
            }
        }
        let rows = backends(&Sample::default(), &now, "a/web:http");
        assert_eq!((rows[0].state, rows[1].state), ("passed over", "draining"));
    }

    #[test]
    fn the_first_sample_and_one_of_another_service_of_that_name_make_no_peak() {
        let first = sample(10, &[("a/web:http", 100, 0, 0)]);
        let rows = services(&Sample::default(), &first, &Filter::default(), Order::New);
        assert_eq!(rows[0].new_per_second, 0.0);
        let anew = sample(11, &[("a/web:http", 3, 0, 0)]);
        let rows = services(&first, &anew, &Filter::default(), Order::New);
        assert_eq!(rows[0].new_per_second, 3.0);
    }

    #[test]
    fn services_are_sorted_by_what_is_asked_for_and_then_by_name() {
        let before = sample(
            0,
            &[("a/a:", 0, 0, 0), ("a/b:", 0, 0, 0), ("a/c:", 0, 0, 0)],
        );
        let now = sample(
            1,
            &[("a/a:", 1, 0, 9), ("a/b:", 5, 2, 0), ("a/c:", 1, 2, 0)],
        );
        let by = |order| {
            let rows = services(&before, &now, &Filter::default(), order);
            rows.into_iter().map(|row| row.service).collect::<Vec<_>>()
        };
        assert_eq!(by(Order::New), ["a/b:", "a/a:", "a/c:"]);
        assert_eq!(by(Order::Active), ["a/a:", "a/b:", "a/c:"]);
        assert_eq!(by(Order::Errors), ["a/b:", "a/c:", "a/a:"]);
        assert_eq!(by(Order::Name), ["a/a:", "a/b:", "a/c:"]);
        let only = Filter::parse(None, Some("b"), None).unwrap();
        assert_eq!(names(&services(&before, &now, &only, Order::New)), ["a/b:"]);
    }
}
