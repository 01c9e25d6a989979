//! `cargo xtask bench`: one benchmark of package tests, on release builds, as root.

use std::{env, process::ExitCode};

use anyhow::Result;
use clap::Args;

use crate::{
    build,
    packages::{self, Task},
    sh,
    workspace::{Profile, Workspace},
};

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Which one
    name: String,
    /// Print the figures as JSON, and nothing else to stdout
    #[arg(long)]
    json: bool,
    /// Passed on to the benchmark
    #[arg(last = true)]
    args: Vec<String>,
}

pub(crate) fn run(workspace: &Workspace, args: &BenchArgs) -> Result<ExitCode> {
    packages::ensure_tools(&[Task::Build, Task::Bench])?;
    build::all(workspace, Profile::Release)?;
    let bench = build::test_binary(workspace, Profile::Release, "bench")?;
    // Told of each sync, as the tests are, is what no agent in earnest is.
    let log = env::var_os("RUST_LOG").unwrap_or_else(|| "info".into());
    let mut command = sh::as_root(
        bench,
        &[("RUST_LOG", log)],
        "a benchmark in network namespaces",
    )?;
    command
        .arg(&args.name)
        .arg("--agent")
        .arg(workspace.binary(Profile::Release, "kube-portal"))
        .arg("--probe")
        .arg(build::test_binary(workspace, Profile::Release, "probe")?);
    if args.json {
        command.arg("--json");
    }
    command.args(&args.args);
    Ok(sh::exit_code(sh::attend(&mut command, "the benchmark")?))
}
