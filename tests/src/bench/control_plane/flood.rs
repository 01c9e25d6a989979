//! More changes than a cluster has, for as long as it is told.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    ground::{Ground, SERVERS, millis, watch},
    objects, process,
};
use crate::bench::report::Figure;

const PER_SECOND: u32 = 5_000;
/// Sent in a row; a processor that is shared can't be asked to wake up for each.
const AT_ONCE: usize = 25;

pub(super) fn measure(ground: &mut Ground, seconds: u64) -> Result<Vec<Figure>> {
    let endpoints = ground.shape.endpoints;
    // The target is left alone, to tell the end by.
    let others = ground.shape.services - 1;
    if others == 0 {
        return Ok(Vec::new());
    }
    // Made before, so that making them takes nothing from the agent.
    let variants: Vec<[serde_json::Value; 2]> = (1..=others)
        .map(|number| {
            [true, false].map(|replaced| {
                let endpoints = objects::ordinary(number, endpoints, replaced);
                objects::slice(number, 0, &endpoints)
            })
        })
        .collect();
    let pid = ground.pid()?;
    let total = usize::try_from(seconds)? * usize::try_from(PER_SECOND)?;
    let mut latest = vec![false; others + 1];
    let cpu_before = process::cpu_time(pid)?;
    let began = Instant::now();
    for sent in 0..total {
        let (round, at) = (sent / others, sent % others);
        let replaced = round % 2 == 0;
        latest[at + 1] = replaced;
        ground
            .server
            .apply(variants[at][usize::from(!replaced)].clone());
        if sent % 5_000 == 4_999 {
            // The server keeps what it has sent; a real one forgets as well.
            ground.server.compact();
        }
        if sent % AT_ONCE == AT_ONCE - 1 {
            let due = Duration::from_secs(1) / PER_SECOND * u32::try_from(sent + 1)?;
            sleep(due.saturating_sub(began.elapsed()));
        }
    }
    let sending = began.elapsed();
    let there = ground.lead_target_to(SERVERS[1])?;
    let last = ground.server.told_at().context("no event was sent")?;
    let cpu = process::cpu_time(pid)? - cpu_before;
    // Where the maps were full for a moment, Services are tried again after the next grace period.
    let mut wrong = None;
    let settled = watch(|| {
        let wanted = |number| objects::ordinary(number, endpoints, latest[number]);
        wrong = ground.check_all(wanted).err();
        Ok(wrong.is_none())
    });
    let settled = settled.with_context(|| format!("after the flood: {wrong:?}"))?;
    let refused = ground.agent.count_log("is full");
    ground.lead_target_to(SERVERS[0])?;
    let (resident, _) = process::resident_mib(pid)?;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let (rate, refused) = (total as f64 / sending.as_secs_f64(), refused as f64);
    Ok(vec![
        ground.figure("flood: updates sent a second", rate, "1/s", None),
        ground.figure(
            "flood: processor time of the agent",
            cpu.as_secs_f64() / sending.as_secs_f64() * 100.0,
            "% core",
            Some(25.0),
        ),
        ground.figure(
            "flood: last update -> maps",
            millis(there.saturating_duration_since(last)),
            "ms",
            Some(50.0),
        ),
        ground.figure(
            "flood: last update -> all are as they were told",
            millis(settled.saturating_duration_since(last)),
            "ms",
            None,
        ),
        ground.figure("flood: refused while maps were full", refused, "", None),
        ground.figure("flood: resident after it", resident, "MiB", None),
    ])
}
