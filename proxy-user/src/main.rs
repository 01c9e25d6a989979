//! kube-portal: see `kube-portal --help`.

use std::process::ExitCode;

use proxy_user::cli::Cli;

/// After a list most of what it took is free again; this gives it back to the node.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
