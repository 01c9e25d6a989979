//! What a kube-proxy that has ended leaves on a node, and how it goes. Nothing else is touched: not the
//! kubelet's chains, not what others put beside, and not the table of connections.

mod iptables;
mod ipvs;

use std::{
    io::{self, Write as _},
    process::{Command, Stdio},
};

/// What was done, a line each.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) removed: Vec<String>,
    /// What could not be looked at or removed, and why.
    pub(crate) failed: Vec<String>,
}

/// Removes it from the network namespace this runs in. Tools that are not there are done without.
pub(crate) async fn remove_kube_proxys() -> Report {
    let mut report = Report::default();
    let mut has_tools = false;
    each_iptables(|tool| {
        let found = iptables_by(tool, &mut report);
        has_tools |= found;
        found
    });
    has_tools |= nftables(&mut report);
    if !has_tools {
        report.failed.push(NO_TOOLS.to_owned());
    }
    ipvs::remove(&mut report).await;
    report
}

/// As in an image that has nothing but this program.
const NO_TOOLS: &str = "neither iptables nor nft is installed here, so their rules can't be looked for; run this on the node itself";

/// What there is of a kube-proxy, a line each, by the mode it is of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leftovers {
    pub(crate) found: Vec<(&'static str, String)>,
    /// What could not be looked at, and why.
    pub(crate) failed: Vec<String>,
}

/// Looks for it in the network namespace this runs in, and changes nothing.
pub(crate) async fn find_kube_proxys() -> Leftovers {
    let mut there = Leftovers::default();
    let mut has_tools = false;
    each_iptables(|tool| {
        match run(&format!("{tool}-save"), &[], "") {
            Ok(Some(rules)) => {
                for table in iptables::removals(&rules) {
                    let line = format!(
                        "{} chains and {} rules of the table {} ({tool})",
                        table.chains, table.rules, table.name
                    );
                    there.found.push(("iptables", line));
                }
            }
            Ok(None) => return false,
            Err(error) => there.failed.push(error),
        }
        has_tools = true;
        true
    });
    match nft_tables() {
        Ok(None) if has_tools => {}
        Ok(None) => there.failed.push(NO_TOOLS.to_owned()),
        Ok(Some(tables)) => there.found.extend(
            tables
                .into_iter()
                .map(|table| ("nftables", format!("the table {table} (nft)"))),
        ),
        Err(error) => there.failed.push(error),
    }
    match ipvs::find().await {
        Ok(Some(device)) => there.found.push(("ipvs", device)),
        Ok(None) => {}
        Err(error) => there.failed.push(error),
    }
    there
}

/// Both kinds of tables can be there at once, so both are looked at where there are the tools of both.
/// `look`: whether the tool is there.
fn each_iptables(mut look: impl FnMut(&str) -> bool) {
    for family in ["iptables", "ip6tables"] {
        let kinds = [format!("{family}-legacy"), format!("{family}-nft")];
        let mut found = false;
        for tool in kinds {
            found |= look(&tool);
        }
        if !found {
            look(family);
        }
    }
}

/// Whether the tool is there.
fn iptables_by(tool: &str, report: &mut Report) -> bool {
    let rules = match run(&format!("{tool}-save"), &[], "") {
        Ok(Some(rules)) => rules,
        Ok(None) => return false,
        Err(error) => {
            report.failed.push(error);
            return true;
        }
    };
    for table in iptables::removals(&rules) {
        let restore = format!("{tool}-restore");
        // One transaction: all of the table's goes, or nothing.
        match run(&restore, &["--noflush", "-w", "5"], &table.commands) {
            Ok(Some(_)) => report.removed.push(format!(
                "{} chains and {} rules of the table {} ({tool})",
                table.chains, table.rules, table.name
            )),
            Ok(None) => report.failed.push(format!("{restore}: not installed")),
            Err(error) => report
                .failed
                .push(format!("the table {} ({tool}): {error}", table.name)),
        }
        for chain in table.kept {
            report.failed.push(format!(
                "the chain {chain} of the table {} ({tool}) stays: a chain of somebody else leads to it",
                table.name
            ));
        }
    }
    true
}

/// Whether the tool is there.
fn nftables(report: &mut Report) -> bool {
    let tables = match nft_tables() {
        Ok(Some(tables)) => tables,
        Ok(None) => return false,
        Err(error) => {
            report.failed.push(error);
            return true;
        }
    };
    for table in tables {
        match run("nft", &["-f", "-"], &format!("delete table {table}\n")) {
            Ok(_) => report.removed.push(format!("the table {table} (nft)")),
            Err(error) => report.failed.push(error),
        }
    }
    true
}

/// Those of kube-proxy that are there; `None` without the tool.
fn nft_tables() -> Result<Option<Vec<&'static str>>, String> {
    let Some(tables) = run("nft", &["list", "tables"], "")? else {
        return Ok(None);
    };
    let is_there = |table: &&str| {
        let line = format!("table {table}");
        tables.lines().any(|there| there.trim() == line)
    };
    let ours = ["ip kube-proxy", "ip6 kube-proxy"].into_iter();
    Ok(Some(ours.filter(is_there).collect()))
}

/// What a program prints; `None` if it is not installed.
fn run(program: &str, args: &[&str], input: &str) -> Result<Option<String>, String> {
    let failed = |error: io::Error| format!("{program}: {error}");
    let spawned = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result.map_err(failed)?,
    };
    // These answer only once they have read everything.
    let written = child
        .stdin
        .take()
        .map(|mut to| to.write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().find(|line| !line.trim().is_empty());
        return Err(format!(
            "{program}: {}",
            said.map_or_else(|| output.status.to_string(), |line| line.trim().to_owned())
        ));
    }
    written.transpose().map_err(failed)?;
    Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
}
