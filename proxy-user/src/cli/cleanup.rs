use clap::Args;

use super::{CliError, PinArgs};
use crate::loader::{Pins, check_bpffs, check_node, remove_filters};

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
    // Filters have no pins: they are found by their name, also when no pin is left.
    let filters = super::block_on(remove_filters())?.map_err(CliError::Devices)?;
    for (what, device) in &filters {
        println!("removed {what} {device}");
    }
    if removed.is_empty() && filters.is_empty() {
        println!(
            "nothing of kube-portal below {}",
            args.pins.bpffs_root.display()
        );
    }
    Ok(())
}
