//! A kube-proxy on the node, or what one left.

use std::collections::BTreeMap;

use super::finding::{Group, Report};
use crate::leftovers::Leftovers;

#[derive(Clone, Debug, Default)]
pub struct KubeProxy {
    /// Ids of its processes in this network namespace, as far as they are to be seen.
    pub processes: Vec<u32>,
    pub(crate) leftovers: Leftovers,
}

pub(super) fn judge(kube_proxy: &KubeProxy, report: &mut Report) {
    let group = Group::KubeProxy;
    let mut by_mode: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (mode, what) in &kube_proxy.leftovers.found {
        by_mode.entry(mode).or_default().push(what);
    }
    let modes: Vec<&str> = by_mode.keys().copied().collect();
    let process = kube_proxy.processes.first();
    if let Some(pid) = process {
        let mode = if modes.is_empty() {
            "no rules of it are to be seen".to_owned()
        } else {
            format!("mode {}", modes.join(" and "))
        };
        report.note(
            group,
            "kube-proxy",
            format!("it runs as process {pid}, {mode}; new connections become kube-portal's own; stop it once this one serves"),
        );
    }
    for (mode, found) in &by_mode {
        let what = format!("rules of mode {mode}");
        let found = found.join(", ");
        if process.is_some() {
            report.note(group, what, found);
        } else {
            report.warn(
                group,
                what,
                format!("left by a kube-proxy that is not to be seen: {found}"),
                "kube-portal cleanup --kube-proxy, once kube-portal runs and no kube-proxy does",
            );
        }
    }
    for failed in &kube_proxy.leftovers.failed {
        report.note(group, "rules", format!("can't be looked at: {failed}"));
    }
    if process.is_none() && modes.is_empty() {
        report.ok(group, "kube-proxy", "none, and none has left anything");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(processes: &[u32], found: &[(&'static str, &str)], failed: &[&str]) -> Report {
        let found = found.iter().map(|(mode, what)| (*mode, (*what).to_owned()));
        let kube_proxy = KubeProxy {
            processes: processes.to_vec(),
            leftovers: Leftovers {
                found: found.collect(),
                failed: failed.iter().map(|line| (*line).to_owned()).collect(),
            },
        };
        let mut report = Report::default();
        judge(&kube_proxy, &mut report);
        report
    }

    #[test]
    fn a_node_without_is_fine() {
        assert!(judged(&[], &[], &[]).bad().is_empty());
    }

    #[test]
    fn one_that_runs_is_noted_with_its_mode() {
        let report = judged(&[7], &[("nftables", "the table ip kube-proxy (nft)")], &[]);
        assert_eq!(
            report.bad(),
            ["note kube-proxy", "note rules of mode nftables"]
        );
        let found = &report.about("kube-proxy").found;
        assert!(found.contains("process 7, mode nftables"), "{found}");
    }

    #[test]
    fn what_one_left_comes_with_the_command_that_removes_it() {
        let report = judged(
            &[],
            &[("iptables", "3 chains"), ("iptables", "2 chains")],
            &[],
        );
        let finding = report.about("rules of mode iptables");
        assert!(finding.found.ends_with("3 chains, 2 chains"), "{finding}");
        let remedy = finding.remedy.as_deref().unwrap();
        assert!(remedy.starts_with("kube-portal cleanup --kube-proxy"));
    }

    #[test]
    fn a_tool_that_fails_is_noted() {
        assert_eq!(judged(&[], &[], &["nft: no"]).bad(), ["note rules"]);
    }
}
