//! The benchmarks of `cargo xtask bench`; see `tests::bench`.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    tests::bench::main(&tests::bench::Args::parse())
}
