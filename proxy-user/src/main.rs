//! kube-portal: see `kube-portal --help`.

use std::process::ExitCode;

use proxy_user::cli::Cli;

fn main() -> ExitCode {
    let cli = Cli::from_command_line(std::env::args_os());
    match cli.execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kube-portal: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
