//! The socket path on a machine of its own, for kernels that are booted to be tried: adds addresses,
//! starts the agent, dials, kills and restarts it, cleans up. `oneshot KUBE_PORTAL` prints a line a
//! check, and exits with 1 if one failed. It changes the machine's network: never run it on a host.

mod checks;
mod ground;

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use ground::Ground;

pub fn main() -> ExitCode {
    match run() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failed) => {
            println!("{failed} checks failed");
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("FAILED to start: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<usize> {
    let kube_portal = std::env::args_os()
        .nth(1)
        .context("use: oneshot KUBE_PORTAL")?;
    let mut ground = Ground::new(kube_portal.into())?;
    let mut failed = 0;
    for (name, check) in checks::ALL {
        match check(&mut ground) {
            Ok(found) => println!(
                "ok      {name}{}{found}",
                if found.is_empty() { "" } else { ": " }
            ),
            Err(error) => {
                println!("FAILED  {name}: {error:#}");
                failed += 1;
            }
        }
    }
    if failed > 0 {
        println!("--- the agent said:\n{}", ground.agent_log());
    }
    Ok(failed)
}
