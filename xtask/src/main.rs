//! `cargo xtask`: the one tool that installs what is missing, builds, runs, tests and measures kube-portal.
//!
//! One file per subcommand; what they share is in `sh` (processes), `workspace` (folders), `compiler` (which
//! Rust builds the kernel programs) and `libtest` (reading test output). Progress goes to stderr, results to stdout.

mod bench;
mod bpf;
mod build;
mod compiler;
#[cfg(test)]
mod documents_tests;
mod image;
mod libtest;
mod packages;
mod promtool;
mod run;
mod setup;
mod sh;
mod test;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::workspace::{Profile, Workspace};

/// Builds, runs, tests and measures kube-portal.
///
/// Every subcommand first installs what it lacks (a Rust compiler that can target the kernel, bpf-linker, a few system
/// tools), says so, and never installs anything twice. What is ours goes below the target directory.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what building, running, testing and measuring need, and nothing that is there already
    Setup,
    /// Build the kernel programs, the agent that carries them, and the test binaries
    Build(ProfileArgs),
    /// Run the agent here if a cluster or a manifest folder is in reach, or else a demonstration world of its own
    ///
    /// The agent runs when ARGS name a source (--manifests DIR or --kubeconfig FILE), when KUBECONFIG is set or
    /// ~/.kube/config exists, or inside a pod. Otherwise, or with --demo or `-- --once`, it is a demonstration: network
    /// namespaces as nodes, pods and clients, with requests flowing through kube-portal. Needs root; asks sudo.
    Run(run::RunArgs),
    /// Write a container image of the agent, optimised, to a file; needs no container engine
    Image(image::ImageArgs),
    /// Check formatting and lints, then run every test; the last line is `N passed, N failed`
    Test(test::TestArgs),
    /// Run one benchmark on release builds
    Bench(bench::BenchArgs),
}

#[derive(Debug, Args)]
struct ProfileArgs {
    /// Optimise the agent too (the kernel programs always are)
    #[arg(long)]
    release: bool,
}

fn main() -> ExitCode {
    match perform(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    match task {
        Task::Setup => {
            setup::everything(&workspace)?;
            Ok(ExitCode::SUCCESS)
        }
        Task::Build(args) => {
            build::all(&workspace, Profile::from_release_flag(args.release))?;
            Ok(ExitCode::SUCCESS)
        }
        Task::Run(args) => run::run(&workspace, args),
        Task::Image(args) => {
            image::run(&workspace, &args)?;
            Ok(ExitCode::SUCCESS)
        }
        Task::Test(args) => test::run(&workspace, &args),
        Task::Bench(args) => bench::run(&workspace, &args),
    }
}
