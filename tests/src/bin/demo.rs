//! The demonstration of `cargo xtask run`; see `tests::demo`.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    tests::demo::main(&tests::demo::Args::parse())
}
