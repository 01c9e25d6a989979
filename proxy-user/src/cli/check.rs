use clap::Args;

use super::{CliError, output, run};
use crate::{
    check::{self, Level},
    config,
};

#[derive(Args, Debug)]
pub(super) struct CheckArgs {
    /// One JSON object instead of lines.
    #[arg(long)]
    json: bool,
    /// What the agent would be started with.
    #[command(flatten)]
    run: run::RunArgs,
}

pub(super) fn execute(args: CheckArgs) -> Result<(), CliError> {
    let CheckArgs { json, run: args } = args;
    let loaded = config::load(&args.proxy)?;
    let is_named = args.cgroup_root.is_some();
    let root = check::cgroup_root(args.cgroup_root.as_deref());
    let config = run::agent(args, loaded, root.clone().unwrap_or_default())?;
    let facts = super::block_on(check::gather(&config, (root, is_named)))?;
    let report = check::judge(&facts);
    output::print(&if json {
        output::json(&report.to_json())?
    } else {
        report.to_text()
    })?;
    match report.count(Level::Fail) {
        0 => Ok(()),
        findings => Err(CliError::CannotRun(findings)),
    }
}
