use clap::Args;

use super::{CliError, PinArgs};
use crate::leftovers::{self, Report};
use crate::loader::{Cleaned, Pins, check_bpffs, check_node, remove_filters};

#[derive(Args, Debug)]
pub(super) struct CleanupArgs {
    #[command(flatten)]
    pub(super) pins: PinArgs,
    /// Remove what a kube-proxy left on this node, and nothing of kube-portal: chains and rules of iptables,
    /// tables of nftables, servers of IPVS. Stop kube-proxy before.
    #[arg(long)]
    pub(super) kube_proxy: bool,
}

pub(super) fn execute(args: &CleanupArgs) -> Result<(), CliError> {
    check_node()?;
    if args.kube_proxy {
        return clean_up_after_kube_proxy();
    }
    check_bpffs(&args.pins.bpffs_root)?;
    let Cleaned { removed, kept } = Pins::new(&args.pins.bpffs_root).remove_all()?;
    for item in &removed {
        println!("removed {} {}", item.what, item.path.display());
    }
    for path in &kept {
        println!("left alone {}: not kube-portal's", path.display());
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

fn clean_up_after_kube_proxy() -> Result<(), CliError> {
    let Report { removed, failed } = super::block_on(leftovers::remove_kube_proxys())?;
    for what in &removed {
        println!("removed {what}");
    }
    if removed.is_empty() && failed.is_empty() {
        println!("nothing of kube-proxy on this node");
    }
    if failed.is_empty() {
        Ok(())
    } else {
        Err(CliError::Leftovers(failed.join("; ")))
    }
}
