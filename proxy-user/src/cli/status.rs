use clap::Args;

use proxy_common::abi::map;

use super::{CliError, PinArgs, output};
use crate::{
    control::{self, ControlError},
    expiry::monotonic_ns,
    failover::shown::passed_over,
    loader::{AffinityMap, FlowMap, PinError, Pins, device_name, on_devices},
    maps::MapStore as _,
    status::Status,
};

#[derive(Args, Debug)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    pins: PinArgs,
    /// One JSON object instead of tables.
    #[arg(long)]
    json: bool,
    /// Have the running agent compare the maps with what they should hold, and repair them.
    #[arg(long)]
    verify: bool,
}

pub(super) fn execute(args: &StatusArgs) -> Result<(), CliError> {
    let pins = args.pins.pins()?;
    if args.verify {
        return verify(&pins, args.json);
    }
    let store = pins.open_store()?;
    let flows = FlowMap::from_pin(&pins.map(map::FLOWS)).map_err(PinError::from)?;
    let count = flows.count().map_err(|source| CliError::Io {
        what: "the map of flows",
        source,
    })?;
    let affinity = AffinityMap::from_pin(&pins.map(map::AFFINITY)).map_err(PinError::from)?;
    let clients = affinity.count().map_err(|source| CliError::Io {
        what: "the map of affinity",
        source,
    })?;
    let on_devices = super::block_on(on_devices(&pins))?.map_err(CliError::Devices)?;
    let observed = store.observe()?;
    let mut status = Status::new(
        &observed,
        store.capacity(),
        store.socket_use(),
        &store.counters()?,
        pins.linked_programs(),
    );
    status.set_packet_path(&on_devices, device_name, (count, flows.capacity()));
    let stats = store.backend_stats()?.into_iter().collect();
    status.set_passed_over(passed_over(&observed, &stats, monotonic_ns()));
    status.set_affinity((clients, affinity.capacity()));
    match control::state(&pins.directory()) {
        Ok(state) => status.set_agent(state),
        Err(ControlError::NoAgent(_)) => {}
        // The maps are worth a look all the same.
        Err(error) => eprintln!("kube-portal: {error}"),
    }
    let text = if args.json {
        output::json(&status)?
    } else {
        status.to_table(output::width())
    };
    output::print(&text)
}

fn verify(pins: &Pins, json: bool) -> Result<(), CliError> {
    let audited = control::verify(&pins.directory())?;
    if json {
        output::print(&output::json(&audited)?)?;
    } else if audited.drifted == 0 {
        output::print(&format!(
            "{} entries, all as they should be",
            audited.checked
        ))?;
    } else {
        let lines: Vec<String> = audited.lines().collect();
        output::print(&lines.join("\n"))?;
    }
    if audited.drifted == 0 {
        Ok(())
    } else {
        Err(CliError::Drift {
            drifted: audited.drifted,
            repaired: audited.repaired,
        })
    }
}
