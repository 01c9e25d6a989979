//! Where pins would be, and what is pinned there.

use std::path::PathBuf;

use proxy_common::abi::ABI_VERSION;

use super::finding::{Group, Report};
use crate::loader::Found;

#[derive(Clone, Debug)]
pub struct Bpffs {
    pub root: PathBuf,
    /// Why it is no BPF filesystem, if it isn't.
    pub not_mounted: Option<String>,
    pub is_writable: bool,
    pub pins: Vec<Found>,
    pub agent_runs: bool,
}

pub(super) fn judge(bpffs: &Bpffs, report: &mut Report) {
    let group = Group::Bpffs;
    let root = bpffs.root.display();
    if let Some(reason) = &bpffs.not_mounted {
        let remedy = format!("mount -t bpf bpf {root}");
        report.fail(group, "BPF filesystem", format!("{root}: {reason}"), remedy);
        return;
    }
    if !bpffs.is_writable {
        let found = format!("{root}: mounted, but not writable");
        let remedy = format!("mount -o remount,rw {root}");
        report.fail(group, "BPF filesystem", found, remedy);
        return;
    }
    report.ok(group, "BPF filesystem", format!("{root}, writable"));
    let agent = if bpffs.agent_runs {
        "an agent runs"
    } else {
        "no agent runs"
    };
    if bpffs.pins.is_empty() {
        report.ok(group, "earlier agents", "none");
    }
    for pins in &bpffs.pins {
        let what = format!("pins {}", pins.path.display());
        if let Some(first) = pins.faults.first() {
            report.warn(
                group,
                what,
                format!("not whole ({agent}): {first}"),
                "start the agent again: it makes new ones and takes over what it can",
            );
        } else if pins.version > ABI_VERSION {
            report.warn(
                group,
                what,
                format!("of a newer kube-portal ({agent}): connections from outside to backends on other nodes end when this one takes over"),
                "use that version, or a newer one",
            );
        } else if pins.version == ABI_VERSION {
            let found = format!("of this version, {agent}: they are taken over");
            report.ok(group, what, found);
        } else {
            let found = format!(
                "of an older kube-portal ({agent}): what has the same layout is taken over"
            );
            report.note(group, what, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bpffs(pins: Vec<Found>) -> Bpffs {
        Bpffs {
            root: "/b".into(),
            not_mounted: None,
            is_writable: true,
            pins,
            agent_runs: false,
        }
    }

    fn pins(version: u32, faults: &[&str]) -> Found {
        Found {
            path: format!("/b/kube-portal/v{version}").into(),
            version,
            faults: faults.iter().map(|fault| (*fault).to_owned()).collect(),
        }
    }

    fn judged(bpffs: &Bpffs) -> Report {
        let mut report = Report::default();
        judge(bpffs, &mut report);
        report
    }

    #[test]
    fn a_missing_mount_comes_with_its_command() {
        let mut missing = bpffs(Vec::new());
        missing.not_mounted = Some("not on a BPF filesystem".to_owned());
        let report = judged(&missing);
        let remedy = report.about("BPF filesystem").remedy.as_deref();
        assert_eq!(remedy, Some("mount -t bpf bpf /b"));
        let mut read_only = bpffs(Vec::new());
        read_only.is_writable = false;
        assert_eq!(judged(&read_only).bad(), ["FAIL BPF filesystem"]);
    }

    #[test]
    fn pins_are_judged_by_their_version_and_whether_they_are_whole() {
        let bad = |pins| judged(&bpffs(vec![pins])).bad();
        assert!(judged(&bpffs(Vec::new())).bad().is_empty());
        assert!(bad(pins(ABI_VERSION, &[])).is_empty());
        let newer = ABI_VERSION + 1;
        assert_eq!(
            bad(pins(newer, &[])),
            [format!("warn pins /b/kube-portal/v{newer}")]
        );
        let older = ABI_VERSION - 1;
        assert_eq!(
            bad(pins(older, &[])),
            [format!("note pins /b/kube-portal/v{older}")]
        );
        assert_eq!(
            bad(pins(ABI_VERSION, &["KP_FLOWS: missing"])),
            [format!("warn pins /b/kube-portal/v{ABI_VERSION}")]
        );
    }

    #[test]
    fn a_running_agent_is_told() {
        let mut running = bpffs(vec![pins(ABI_VERSION, &[])]);
        running.agent_runs = true;
        assert!(judged(&running).to_text().contains("an agent runs"));
    }
}
