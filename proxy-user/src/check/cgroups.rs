//! The cgroup that the socket path's programs belong to, and who else is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use super::{
    finding::{Group, Report},
    kernel::Kernel,
};
use crate::loader::{AtCgroup, Sharing};

#[derive(Clone, Debug)]
pub struct Cgroups {
    /// Where programs would be attached, or why nowhere.
    pub root: Result<Root, String>,
    /// Controllers that are mounted as version 1, such as `net_cls`.
    pub version_1: BTreeSet<String>,
    /// What runs at the root and above, from there upward, or why it can't be told.
    pub programs: Result<Vec<AtCgroup>, String>,
    /// An agent's pins are where this one's would be.
    pub has_pins: bool,
}

#[derive(Clone, Debug)]
pub struct Root {
    pub path: PathBuf,
    /// By --cgroup-root.
    pub is_named: bool,
    /// It is the hierarchy's own root, and not somewhere below.
    pub is_whole: bool,
}

/// Since then a socket is in both hierarchies (8520e224f547).
const BOTH_HIERARCHIES: (u32, u32) = (5, 15);

/// Controllers of version 1 in /proc/self/mounts.
pub(super) fn version_1(mounts: &str) -> BTreeSet<String> {
    let version_1 = mounts.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(2);
        (fields.next()? == "cgroup").then(|| fields.next())?
    });
    version_1
        .flat_map(|options| options.split(','))
        .filter(|option| {
            !matches!(
                *option,
                "rw" | "ro" | "nosuid" | "nodev" | "noexec" | "relatime"
            )
        })
        .map(str::to_owned)
        .collect()
}

pub(super) fn judge(cgroups: &Cgroups, kernel: &Kernel, report: &mut Report) {
    let group = Group::Cgroups;
    let root = match &cgroups.root {
        Ok(root) => root,
        Err(reason) => {
            // The reason has the remedy.
            let (found, remedy) = split(reason);
            report.fail(group, "cgroup v2", found, remedy);
            return;
        }
    };
    let path = root.path.display();
    if root.is_whole {
        report.ok(group, "cgroup v2", format!("{path}, the whole hierarchy"));
    } else if root.is_named {
        let found = format!("{path}, as --cgroup-root says: only processes below it are served");
        report.note(group, "cgroup v2", found);
    } else {
        report.warn(
            group,
            "cgroup v2",
            format!("{path} is not the hierarchy's root, but a container's: only its own processes would be served"),
            "mount the host's /sys/fs/cgroup there, or name it with --cgroup-root",
        );
    }
    let tagging: Vec<&str> = ["net_cls", "net_prio"]
        .into_iter()
        .filter(|name| cgroups.version_1.contains(*name))
        .collect();
    if !tagging.is_empty() && kernel.is_before(BOTH_HIERARCHIES) {
        let what = "cgroup v1";
        let tagging = tagging.join(" and ");
        if root.is_whole {
            let found =
                format!("{tagging} too: sockets count as the root's, where the programs are");
            report.note(group, what, found);
        } else {
            report.warn(
                group,
                what,
                format!("{tagging} too: before Linux 5.15 sockets then count as the root's, and are not served by programs below it"),
                "attach to the root of the hierarchy, or boot with cgroup_no_v1=net_cls,net_prio",
            );
        }
    } else if cgroups.version_1.is_empty() {
        report.ok(group, "cgroup v1", "not in use");
    } else {
        report.ok(
            group,
            "cgroup v1",
            "in use as well, without effect on sockets",
        );
    }
    match &cgroups.programs {
        Ok(programs) => others(root, programs, cgroups.has_pins, report),
        Err(reason) => {
            let found = format!("can't be listed: {reason}");
            report.note(group, "programs of others", found);
        }
    }
}

fn split(reason: &str) -> (&str, &str) {
    let at = reason.find(": mount").or_else(|| reason.rfind("; "));
    at.map_or((reason, ""), |at| (&reason[..at], &reason[at + 2..]))
}

/// Who a program is of, by its name.
fn owner(program: &str) -> Owner {
    let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| program.starts_with(prefix));
    if begins(&["kp_"]) {
        Owner::Ours
    } else if begins(&["cil_sock", "sock4_", "sock6_"]) {
        Owner::Balancer(
            "Cilium's",
            "set socketLB.enabled=false and kubeProxyReplacement=false in Cilium",
        )
    } else if begins(&["calico_", "cali_ctlb"]) {
        Owner::Balancer(
            "Calico's",
            "set bpfConnectTimeLoadBalancing: Disabled in FelixConfiguration",
        )
    } else {
        Owner::Other
    }
}

enum Owner {
    Ours,
    /// Translates Services as well.
    Balancer(&'static str, &'static str),
    Other,
}

/// What a hook's programs, there and above, mean for one more that shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Fits,
    /// The kernel refuses it.
    Refused,
    /// It takes the place of those above.
    Overrides,
}

/// As hierarchy_allows_attach of kernel/bpf/cgroup.c: the nearest cgroup with programs decides.
fn verdict(root: &Root, nearest: &AtCgroup) -> Verdict {
    match nearest.sharing {
        Sharing::Multi => Verdict::Fits,
        Sharing::Override if nearest.cgroup != root.path => Verdict::Overrides,
        Sharing::Override | Sharing::Alone => Verdict::Refused,
    }
}

fn others(root: &Root, programs: &[AtCgroup], has_pins: bool, report: &mut Report) {
    let group = Group::Cgroups;
    let mut nearest: BTreeMap<&str, &AtCgroup> = BTreeMap::new();
    for level in programs {
        nearest.entry(level.hook).or_insert(level);
    }
    // A line for each cgroup and kind of trouble, however many hooks it concerns.
    let mut refused: BTreeMap<&PathBuf, Vec<String>> = BTreeMap::new();
    let mut overridden = refused.clone();
    for level in nearest.values() {
        let troubles = match verdict(root, level) {
            Verdict::Fits => continue,
            Verdict::Refused => &mut refused,
            Verdict::Overrides => &mut overridden,
        };
        let told = format!("{} ({})", level.programs.join(", "), level.hook);
        troubles.entry(&level.cgroup).or_default().push(told);
    }
    for (cgroup, names) in &refused {
        report.fail(
            group,
            format!("programs at {}", cgroup.display()),
            format!(
                "attached for themselves alone, so the kernel refuses ours: {}",
                names.join(", ")
            ),
            "have their owner attach them with BPF_F_ALLOW_MULTI, or detach them: \
             `bpftool cgroup show CGROUP`, `bpftool cgroup detach`",
        );
    }
    for (cgroup, names) in &overridden {
        report.warn(
            group,
            format!("programs at {}", cgroup.display()),
            format!(
                "attached so that ours take their place: they run no more below {}: {}",
                root.path.display(),
                names.join(", ")
            ),
            "have their owner attach them with BPF_F_ALLOW_MULTI",
        );
    }
    let shared = |level: &&AtCgroup| level.sharing == Sharing::Multi;
    let mut balancers: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
    let mut strangers = BTreeSet::new();
    let mut ours = BTreeSet::new();
    for level in programs.iter().filter(shared) {
        for name in &level.programs {
            match owner(name) {
                Owner::Ours => {
                    ours.insert(&level.cgroup);
                }
                Owner::Balancer(whose, remedy) => {
                    balancers.entry((whose, remedy)).or_default().insert(name);
                }
                Owner::Other => {
                    strangers.insert(name.as_str());
                }
            }
        }
    }
    let list = |names: &BTreeSet<&str>| names.iter().copied().collect::<Vec<_>>().join(", ");
    for ((whose, remedy), names) in &balancers {
        report.warn(
            group,
            format!("{whose} socket programs"),
            format!(
                "they translate Services too, and come first: {}",
                list(names)
            ),
            *remedy,
        );
    }
    let foreign: Vec<String> = ours
        .iter()
        .filter(|cgroup| !has_pins || ***cgroup != root.path)
        .map(|cgroup| cgroup.display().to_string())
        .collect();
    if !foreign.is_empty() {
        report.warn(
            group,
            "another kube-portal",
            format!("its programs are attached to {}, and not by the pins here", foreign.join(", ")),
            "give --bpffs-root and --cgroup-root as it has them, or remove it there with `kube-portal cleanup`",
        );
    }
    if !strangers.is_empty() {
        let found = format!("they run beside ours: {}", list(&strangers));
        report.note(group, "programs of others", found);
    } else if refused.is_empty() && overridden.is_empty() && balancers.is_empty() {
        report.ok(group, "programs of others", "none at the hooks of sockets");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Level, kernel::tests::of};

    fn at(cgroup: &str, hook: &'static str, sharing: Sharing, program: &str) -> AtCgroup {
        AtCgroup {
            cgroup: cgroup.into(),
            hook,
            sharing,
            programs: vec![program.to_owned()],
        }
    }

    fn below(path: &str) -> Root {
        Root {
            path: path.into(),
            is_named: true,
            is_whole: false,
        }
    }

    fn node(programs: Vec<AtCgroup>) -> Cgroups {
        Cgroups {
            root: Ok(Root {
                path: "/c".into(),
                is_named: false,
                is_whole: true,
            }),
            version_1: BTreeSet::new(),
            programs: Ok(programs),
            has_pins: false,
        }
    }

    fn judged(cgroups: &Cgroups, version: (u32, u32)) -> Report {
        let mut report = Report::default();
        judge(cgroups, &of("?", version), &mut report);
        report
    }

    #[test]
    fn a_hierarchy_of_its_own_is_fine() {
        assert!(judged(&node(Vec::new()), (5, 10)).bad().is_empty());
    }

    #[test]
    fn controllers_of_version_1_are_read_from_the_mounts() {
        let mounts = "cgroup /sys/fs/cgroup/net_cls cgroup rw,nosuid,net_cls,net_prio 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(
            version_1(mounts),
            BTreeSet::from(["net_cls".to_owned(), "net_prio".to_owned()])
        );
    }

    #[test]
    fn a_container_s_cgroup_is_told_apart_from_one_that_was_named() {
        let mut cgroups = node(Vec::new());
        cgroups.root = Ok(below("/c"));
        assert_eq!(judged(&cgroups, (6, 1)).bad(), ["note cgroup v2"]);
        cgroups.root = Ok(Root {
            is_named: false,
            ..below("/c")
        });
        assert_eq!(judged(&cgroups, (6, 1)).bad(), ["warn cgroup v2"]);
        cgroups.root =
            Err("no cgroup v2 hierarchy is mounted: mount one with `mount ...`".to_owned());
        let report = judged(&cgroups, (6, 1));
        let finding = report.about("cgroup v2");
        assert_eq!(finding.level, Level::Fail);
        assert_eq!(
            finding.remedy.as_deref(),
            Some("mount one with `mount ...`")
        );
        assert_eq!(
            split("--cgroup-root /x: not on it; name a directory"),
            ("--cgroup-root /x: not on it", "name a directory")
        );
    }

    #[test]
    fn net_cls_of_version_1_matters_on_old_kernels_below_the_root() {
        let mut cgroups = node(Vec::new());
        cgroups.version_1.insert("net_cls".to_owned());
        assert!(judged(&cgroups, (5, 15)).bad().is_empty());
        assert_eq!(judged(&cgroups, (5, 10)).bad(), ["note cgroup v1"]);
        cgroups.root = Ok(below("/c/d"));
        assert_eq!(
            judged(&cgroups, (5, 10)).bad(),
            ["note cgroup v2", "warn cgroup v1"]
        );
    }

    #[test]
    fn the_kernel_s_rules_of_sharing_are_followed() {
        use Sharing::{Alone, Multi, Override};
        let root = below("/c/d");
        for (cgroup, sharing, expected) in [
            ("/c/d", Multi, Verdict::Fits),
            ("/c/d", Alone, Verdict::Refused),
            ("/c/d", Override, Verdict::Refused),
            ("/c", Multi, Verdict::Fits),
            ("/c", Alone, Verdict::Refused),
            ("/c", Override, Verdict::Overrides),
        ] {
            let nearest = at(cgroup, "connect4", sharing, "p");
            assert_eq!(verdict(&root, &nearest), expected, "{nearest:?}");
        }
        // Whoever is above one that shares has let that one in.
        let mut cgroups = node(vec![
            at("/c/d", "connect4", Multi, "p"),
            at("/c", "connect4", Alone, "q"),
        ]);
        cgroups.root = Ok(root);
        assert_eq!(judged(&cgroups, (6, 1)).count(Level::Fail), 0);
    }

    #[test]
    fn an_exclusive_program_is_named_once_with_all_its_hooks() {
        let report = judged(
            &node(vec![
                at("/c", "connect4", Sharing::Alone, "mine"),
                at("/c", "connect6", Sharing::Alone, "mine"),
            ]),
            (6, 1),
        );
        let finding = report.about("programs at /c");
        assert_eq!(finding.level, Level::Fail);
        assert!(
            finding.found.contains("mine (connect4), mine (connect6)"),
            "{finding}"
        );
    }

    #[test]
    fn other_balancers_are_known_by_name_and_other_programs_only_noted() {
        let beside = |name| {
            judged(
                &node(vec![at("/c", "connect4", Sharing::Multi, name)]),
                (6, 1),
            )
            .bad()
        };
        assert_eq!(beside("cil_sock4_conne"), ["warn Cilium's socket programs"]);
        assert_eq!(beside("calico_connect_"), ["warn Calico's socket programs"]);
        assert_eq!(beside("sd_fw_ingress"), ["note programs of others"]);
    }

    #[test]
    fn ours_are_fine_where_the_pins_are_and_a_warning_elsewhere() {
        let mut cgroups = node(vec![at("/c", "connect4", Sharing::Multi, "kp_connect4")]);
        assert_eq!(judged(&cgroups, (6, 1)).bad(), ["warn another kube-portal"]);
        cgroups.has_pins = true;
        assert!(judged(&cgroups, (6, 1)).bad().is_empty());
        cgroups.programs = Err("EPERM".to_owned());
        assert_eq!(judged(&cgroups, (6, 1)).bad(), ["note programs of others"]);
    }
}
