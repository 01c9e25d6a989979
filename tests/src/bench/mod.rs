//! Benchmarks: two things compared in one run, interleaved, as ratios. Absolute times belong to the
//! machine. What has a target of its own (the control plane) is shown against that.

mod connect;
mod control_plane;
pub mod kube_proxy;
mod nodeport;
mod report;
mod schedulers;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};

use self::report::{Report, Row};
use crate::binaries;

/// Measures kube-portal against the same thing without it.
#[derive(Debug, Parser)]
#[command(name = "bench")]
pub struct Args {
    /// What to measure.
    name: Name,
    /// The kube-portal binary.
    #[arg(long)]
    agent: PathBuf,
    /// The probe binary.
    #[arg(long)]
    probe: PathBuf,
    /// One JSON array instead of a table.
    #[arg(long)]
    json: bool,
    /// Numbers of Services, comma-separated.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10_000])]
    services: Vec<usize>,
    /// Blocks; the result is the median of their ratios.
    #[arg(long, default_value_t = 9)]
    blocks: usize,
    /// Rounds of a block; each visits both sides twice.
    #[arg(long, default_value_t = 2_000)]
    rounds: usize,
    /// nodeport: how long each side is loaded at a time.
    #[arg(long, default_value_t = 400)]
    millis: u64,
    /// nodeport: who takes part.
    #[arg(long, value_delimiter = ',', default_values = ["plain", "nftables", "kube-portal"])]
    sides: Vec<nodeport::Side>,
    /// control-plane: numbers of Services and of endpoints each.
    #[arg(long, value_delimiter = ',', default_values = ["100x2", "1000x2", "10000x2", "10000x10", "5000x50"])]
    shapes: Vec<control_plane::Shape>,
    /// control-plane: what is measured.
    #[arg(long, value_delimiter = ',', default_values = ["start", "changes", "flood", "rollout"])]
    parts: Vec<control_plane::Part>,
    /// control-plane: how many changes are timed.
    #[arg(long, default_value_t = 500)]
    changes: usize,
    /// control-plane: for how long there are 5,000 updates a second.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// nodeport: the nodes that carry rules or an agent.
    #[arg(long, default_value = "every")]
    on: nodeport::On,
    /// schedulers: which, beside random.
    #[arg(long, value_delimiter = ',', default_values = ["rr", "lc", "sh", "dh", "sed", "nq", "maglev"])]
    schedulers: Vec<String>,
    /// schedulers: endpoints of each Service that is measured.
    #[arg(long, default_value_t = 10)]
    endpoints: u8,
    /// connect: another build of kube-portal, whose node takes turns with the first.
    #[arg(long)]
    against: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Name {
    /// connect() and connect-request-close through a ClusterIP, against the pod's address.
    Connect,
    /// The same through Services by each scheduler, against random.
    Schedulers,
    /// A NodePort dialled from outside whose backend is on another node, against plain routing to
    /// the pod and against rules of kube-proxy's shape.
    Nodeport,
    /// From the API server to the maps: how soon a change is there, and what it costs.
    ControlPlane,
}

fn with_each_number(
    args: &Args,
    measure: impl Fn(&Args, usize) -> Result<Vec<Row>>,
) -> Result<Report> {
    let mut rows = Vec::new();
    for &services in &args.services {
        rows.extend(measure(args, services).with_context(|| format!("{services} Services"))?);
    }
    Ok(Report::Rows(rows))
}

/// Runs one benchmark and prints its figures.
pub fn main(args: &Args) -> ExitCode {
    let result = binaries::use_these(args.agent.clone(), args.probe.clone()).and_then(|()| {
        match args.name {
            Name::Connect => with_each_number(args, connect::with_services),
            Name::Schedulers => with_each_number(args, schedulers::with_services),
            Name::Nodeport => with_each_number(args, nodeport::with_services),
            Name::ControlPlane => control_plane::run(args).map(Report::Figures),
        }
    });
    match result {
        Ok(report) if args.json => {
            println!("{}", report.json());
            ExitCode::SUCCESS
        }
        Ok(report) => {
            print!("{}", report.table());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
