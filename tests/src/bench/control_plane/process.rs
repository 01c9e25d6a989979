//! What a process takes, from /proc.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};

/// Processor time so far, of all its threads; the kernel tells it in ticks of 10 ms.
pub(super) fn cpu_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    // The name before it may have spaces.
    let fields = text.rsplit_once(')').map(|(_, fields)| fields);
    let mut fields = fields.context(path)?.split_whitespace().skip(11);
    let mut ticks = || fields.next().and_then(|field| field.parse::<u64>().ok());
    let ticks = ticks().zip(ticks()).context("utime and stime")?;
    Ok(Duration::from_millis((ticks.0 + ticks.1) * 10))
}

/// Resident memory in MiB: all of it, and how much of it are maps of the kernel that are mapped in.
pub(super) fn resident_mib(pid: u32) -> Result<(f64, f64)> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).context(path)?;
    let (mut all, mut maps, mut is_map) = (0.0, 0.0, false);
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("Rss:") {
            let kib: f64 = rest.trim().trim_end_matches(" kB").parse()?;
            all += kib;
            maps += if is_map { kib } else { 0.0 };
        } else if line
            .split(' ')
            .next()
            .is_some_and(|word| word.contains('-'))
        {
            is_map = line.ends_with("bpf-map");
        }
    }
    Ok((all / 1024.0, maps / 1024.0))
}
