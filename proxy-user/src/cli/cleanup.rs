use clap::Args;

use super::{CliError, PinArgs};
use crate::loader::{Pins, check_bpffs, check_node};

#[derive(Args, Debug)]
pub(super) struct CleanupArgs {
    #[command(flatten)]
    pub(super) pins: PinArgs,
}

pub(super) fn execute(args: &CleanupArgs) -> Result<(), CliError> {
    check_node()?;
    check_bpffs(&args.pins.bpffs_root)?;
    let removed = Pins::new(&args.pins.bpffs_root).remove_all()?;
    for item in &removed {
        println!("removed {} {}", item.what, item.path.display());
    }
    if removed.is_empty() {
        println!(
            "nothing of kube-portal below {}",
            args.pins.bpffs_root.display()
        );
    }
    Ok(())
}
