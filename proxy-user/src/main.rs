//! kube-portal: see `kube-portal --help`.

use std::process::ExitCode;

use clap::Parser as _;
use proxy_user::cli::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kube-portal: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
