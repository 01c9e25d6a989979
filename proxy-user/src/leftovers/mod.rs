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
    iptables(&mut report);
    nftables(&mut report);
    ipvs::remove(&mut report).await;
    report
}

/// Both kinds of tables can be there at once, so both are looked at where there are the tools of both.
fn iptables(report: &mut Report) {
    for family in ["iptables", "ip6tables"] {
        let kinds = [format!("{family}-legacy"), format!("{family}-nft")];
        let mut found = false;
        for tool in kinds {
            found |= iptables_by(&tool, report);
        }
        if !found {
            iptables_by(family, report);
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

fn nftables(report: &mut Report) {
    let tables = match run("nft", &["list", "tables"], "") {
        Ok(Some(tables)) => tables,
        Ok(None) => return,
        Err(error) => {
            report.failed.push(error);
            return;
        }
    };
    for table in ["ip kube-proxy", "ip6 kube-proxy"] {
        let line = format!("table {table}");
        if tables.lines().any(|there| there.trim() == line) {
            match run("nft", &["-f", "-"], &format!("delete {line}\n")) {
                Ok(_) => report.removed.push(format!("the table {table} (nft)")),
                Err(error) => report.failed.push(error),
            }
        }
    }
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
