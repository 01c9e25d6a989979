//! The demonstration: two nodes on one machine, a folder of ordinary YAML, and requests that go
//! where it says, also after it was edited.

mod ask;
mod folder;
mod paint;
mod scene;
mod signals;
mod tour;
mod vigil;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;

use crate::{binaries, bpf, residue};
use scene::Scene;
use signals::Signals;

const UNLOAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Arguments of the demonstration.
#[derive(Debug, Parser)]
#[command(about = "Two nodes on one machine, and kube-portal on both")]
pub struct Args {
    /// The kube-portal binary.
    #[arg(long)]
    agent: PathBuf,
    /// The probe binary, which serves and dials inside the pods.
    #[arg(long)]
    probe: PathBuf,
    /// One round of requests, one edit of the YAML, one more round; the exit code tells.
    #[arg(long)]
    once: bool,
    /// Where the YAML goes and stays (default: a temporary folder).
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Runs the demonstration.
pub fn main(args: &Args) -> ExitCode {
    match run(args) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(unexpected) => {
            eprintln!(
                "{}",
                paint::bad(&format!("{unexpected} things went otherwise than expected"))
            );
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{}", paint::bad(&format!("demo: {error:#}")));
            ExitCode::FAILURE
        }
    }
}

/// Yields how many things went otherwise than expected.
fn run(args: &Args) -> Result<u32> {
    let signals = Signals::catch()?;
    binaries::use_these(args.agent.clone(), args.probe.clone())?;
    let before = bpf::our_programs()?;
    let scene = Scene::build(args.dir.as_deref())?;
    let world = scene.world.id().to_owned();
    let outcome = act(args, &scene, &signals);
    drop(scene);
    let left = left_behind(&world, &before)?;
    if left.is_empty() {
        println!(
            "{}",
            paint::dim("gone: no namespace, cgroup, mount or program is left")
        );
    } else {
        eprintln!(
            "{}",
            paint::bad(&format!("left behind: {}", left.join(", ")))
        );
    }
    Ok(outcome? + u32::from(!left.is_empty()))
}

fn left_behind(world: &str, before: &BTreeMap<u32, String>) -> Result<Vec<String>> {
    let mut left: Vec<String> = residue::of_world(world)
        .iter()
        .map(|residue| format!("{residue:?}"))
        .collect();
    // Programs do not say whose they are: with other worlds about, new ones may be theirs.
    if residue::all().is_empty() {
        left.extend(bpf::ours_since(before, UNLOAD_TIMEOUT)?);
    }
    Ok(left)
}

fn act(args: &Args, scene: &Scene, signals: &Signals) -> Result<u32> {
    scene.describe();
    let mut tour = tour::Tour::new(scene);
    tour.requests()?;
    if args.once {
        tour.edit()?;
    } else if !signals.arrived() {
        vigil::keep(scene, signals)?;
    }
    Ok(tour.unexpected())
}
