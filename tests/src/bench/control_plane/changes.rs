//! One change at a time.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    ground::{Ground, SERVERS, millis, obeyed, watch},
    maps::key_of,
    objects::{self, TARGET},
};
use crate::bench::report::{Figure, quantile};

pub(super) fn measure(ground: &Ground, changes: usize) -> Result<Vec<Figure>> {
    ground.lead_target_to(SERVERS[1])?;
    ground.lead_target_to(SERVERS[0])?;
    // The probe is started by its first use.
    obeyed(ground, SERVERS[0])?;
    let mut changed = Vec::with_capacity(changes);
    let mut connected = Vec::with_capacity(changes);
    for number in 0..changes {
        pause(number);
        let name = SERVERS[(number + 1) % 2];
        let there = ground.lead_target_to(name)?;
        changed.push(millis(there.saturating_duration_since(told(ground)?)));
        let dialled = Instant::now();
        obeyed(ground, name)?;
        connected.push(millis(dialled.elapsed()));
    }
    let (mut come, mut gone) = (Vec::new(), Vec::new());
    for number in 0..changes / 2 {
        pause(number);
        // Beyond all that are there.
        let service = ground.shape.services + number % 7;
        let endpoints = objects::ordinary(service, ground.shape.endpoints, false);
        let key = key_of(objects::vip(service));
        ensure!(!ground.maps.has(&key), "it is there already");
        ground.server.apply(objects::slice(service, 0, &endpoints));
        pause(number + 1);
        ground.server.apply(objects::service(service));
        let wanted: BTreeSet<SocketAddr> = endpoints
            .iter()
            .map(|(ip, _)| SocketAddr::new(*ip, TARGET))
            .collect();
        // The slice may be late: the server has no order between watches.
        let there = watch(|| Ok(ground.maps.check(&key, &wanted).is_ok()))?;
        come.push(millis(there.saturating_duration_since(told(ground)?)));
        pause(number);
        let (namespace, name) = (objects::namespace(service), objects::name(service));
        ground.server.delete("Service", &namespace, &name);
        let not_there = watch(|| Ok(!ground.maps.has(&key)))?;
        gone.push(millis(not_there.saturating_duration_since(told(ground)?)));
        let slice = format!("{name}-x7k20");
        ground.server.delete("EndpointSlice", &namespace, &slice);
    }
    let mut figures = Vec::new();
    for (case, values, median, tail) in [
        ("changed slice -> maps", &changed, Some(1.0), Some(5.0)),
        ("  first connection after that", &connected, Some(2.0), None),
        ("new Service -> maps", &come, Some(1.0), Some(5.0)),
        ("deleted Service -> maps", &gone, Some(1.0), Some(5.0)),
    ] {
        let quantiles = [
            ("median", 0.5, median),
            ("p99", 0.99, tail),
            ("longest", 1.0, None),
        ];
        for (name, share, below) in quantiles {
            let value = quantile(values, share);
            figures.push(ground.figure(&format!("{case}, {name}"), value, "ms", below));
        }
    }
    Ok(figures)
}

fn told(ground: &Ground) -> Result<Instant> {
    ground.server.told_at().context("no event was sent")
}

/// A few milliseconds, never in step with anything.
fn pause(number: usize) {
    let micros = 3_000 + (number * 7_919) % 4_000;
    sleep(Duration::from_micros(u64::try_from(micros).unwrap_or(0)));
}
