//! Stays up, and says when requests begin to go elsewhere.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::ask::{Target, ask};
use super::folder;
use super::paint;
use super::scene::{CLIENTS, Scene, WEB4};
use super::signals::Signals;
use crate::Pod;
use crate::probe::Tally;

/// How often everything is asked; a change of the folder is followed at once.
const INTERVAL: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(100);

pub(super) fn keep(scene: &Scene, signals: &Signals) -> Result<()> {
    println!(
        "{}",
        paint::bold("Edit the YAML, and see the next requests go elsewhere:")
    );
    println!("  {}", scene.manifests.path().display());
    println!("{}", paint::bold("Ask by hand, from inside a pod:"));
    println!("  {}", by_hand(scene.world.pod(CLIENTS[0])));
    println!(
        "{}\n",
        paint::dim("Ctrl-C ends it and leaves nothing behind.")
    );

    let mut shown = BTreeMap::new();
    while !signals.arrived() {
        let stamp = folder::stamp(scene.manifests.path());
        round(scene, signals, &mut shown)?;
        let next = Instant::now() + INTERVAL;
        while Instant::now() < next
            && !signals.arrived()
            && folder::stamp(scene.manifests.path()) == stamp
        {
            thread::sleep(LOOK);
        }
    }
    println!();
    Ok(())
}

/// Asks everything, prints what is new.
fn round(
    scene: &Scene,
    signals: &Signals,
    shown: &mut BTreeMap<String, Vec<String>>,
) -> Result<()> {
    let mut seen = BTreeMap::new();
    for (name, targets) in folder::services(scene.manifests.path()) {
        for target in targets {
            if signals.arrived() {
                return Ok(());
            }
            let title = format!("{name} {}", target.to);
            let tally = ask_all(scene, target)?;
            let outcome: Vec<String> = tally
                .names
                .keys()
                .chain(tally.errors.keys())
                .cloned()
                .collect();
            if shown.get(&title) != Some(&outcome) {
                let text = tally.to_string();
                let text = if tally.failed() == 0 {
                    paint::good(&text)
                } else {
                    paint::bad(&text)
                };
                println!("  {title:<24} -> {text}");
            }
            seen.insert(title, outcome);
        }
    }
    for title in shown.keys().filter(|title| !seen.contains_key(*title)) {
        println!("  {title:<24} {}", paint::dim("is in no file any more"));
    }
    *shown = seen;
    Ok(())
}

/// From all clients.
fn ask_all(scene: &Scene, target: Target) -> Result<Tally> {
    let mut sum = Tally::default();
    for client in CLIENTS.map(|name| scene.world.pod(name)) {
        sum.merge(ask(client, target)?);
    }
    Ok(sum)
}

/// A shell command that moves into the pod's cgroup and namespace, then asks.
fn by_hand(pod: &Pod) -> String {
    let sudo = if std::env::var_os("SUDO_USER").is_some() {
        "sudo "
    } else {
        ""
    };
    format!(
        "{sudo}sh -c 'echo $$ > {}/cgroup.procs; exec nsenter --net={} curl -s http://{WEB4}'",
        pod.cgroup().display(),
        pod.netns().path().display()
    )
}
