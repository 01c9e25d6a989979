//! What this process may do, and in which namespaces it is.

use super::{
    finding::{Group, Report},
    kernel::Kernel,
};

#[derive(Clone, Debug)]
pub struct Rights {
    pub is_root: bool,
    /// Effective capabilities, a bit each.
    pub capabilities: u64,
    /// Bytes that could be locked; `None` for no limit.
    pub memlock: Option<u64>,
    pub memlock_lifted: bool,
    pub initial_pid_namespace: bool,
    pub initial_network_namespace: bool,
}

/// `include/uapi/linux/capability.h`.
const CAP_NET_ADMIN: (u32, &str) = (12, "CAP_NET_ADMIN");
const CAP_SYS_PTRACE: (u32, &str) = (19, "CAP_SYS_PTRACE");
const CAP_SYS_ADMIN: (u32, &str) = (21, "CAP_SYS_ADMIN");
const CAP_BPF: (u32, &str) = (39, "CAP_BPF");
const CAP_PERFMON: (u32, &str) = (38, "CAP_PERFMON");
const CAP_DAC_READ_SEARCH: (u32, &str) = (2, "CAP_DAC_READ_SEARCH");

/// Since then maps are charged to the memory cgroup instead.
const NO_MEMLOCK: (u32, u32) = (5, 11);

impl Rights {
    fn has(&self, (bit, _): (u32, &str)) -> bool {
        self.capabilities >> bit & 1 == 1
    }
}

/// `CapEff` of /proc/self/status.
pub(super) fn effective(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

pub(super) fn judge(rights: &Rights, kernel: &Kernel, report: &mut Report) {
    let group = Group::Rights;
    if rights.is_root {
        report.ok(group, "user", "root");
    } else {
        let remedy = "run it with sudo, or as a privileged container";
        report.fail(group, "user", "not root", remedy);
    }
    capabilities(rights, report);
    if kernel.is_before(NO_MEMLOCK) {
        let limit = rights
            .memlock
            .map_or_else(|| "no limit".to_owned(), |bytes| format!("{bytes} bytes"));
        if rights.memlock_lifted {
            report.ok(group, "locked memory", format!("{limit}; it can be lifted"));
        } else {
            report.fail(
                group,
                "locked memory",
                format!(
                    "{limit}, which can't be lifted, and this kernel counts maps as locked memory"
                ),
                "give it CAP_SYS_RESOURCE, or start it with `ulimit -l unlimited`",
            );
        }
    }
    if rights.initial_pid_namespace {
        report.ok(group, "process ids", "the node's");
    } else {
        report.warn(
            group,
            "process ids",
            "of a container: processes of pods can't be found, so UDP sockets that are connected to a \
             backend that is gone are not moved to another",
            "set hostPID: true",
        );
    }
    if rights.initial_network_namespace {
        report.ok(group, "network", "the node's");
    } else if kernel.features.node_netns != 0 {
        report.note(
            group,
            "network",
            "a network namespace of its own, which is taken for the node's; in a pod, set hostNetwork: true",
        );
    } else {
        report.warn(
            group,
            "network",
            "a network namespace of its own, and this kernel can't tell it from others: the initial one is \
             taken for the node's",
            "run it in the node's network (hostNetwork: true)",
        );
    }
}

fn capabilities(rights: &Rights, report: &mut Report) {
    let what = "capabilities";
    let mut missing = Vec::new();
    if !rights.has(CAP_NET_ADMIN) {
        missing.push(CAP_NET_ADMIN.1);
    }
    if !rights.has(CAP_BPF) && !rights.has(CAP_SYS_ADMIN) {
        missing.push(CAP_BPF.1);
    }
    // The verifier lets only those who have it compare and add to pointers as our programs do.
    if !rights.has(CAP_PERFMON) && !rights.has(CAP_SYS_ADMIN) {
        missing.push(CAP_PERFMON.1);
    }
    if !missing.is_empty() {
        let found = format!("{} not held", missing.join(", "));
        let remedy = "add them to securityContext.capabilities, or set privileged: true";
        report.fail(Group::Rights, what, found, remedy);
    } else if !rights.has(CAP_DAC_READ_SEARCH) {
        report.warn(
            Group::Rights,
            what,
            "CAP_DAC_READ_SEARCH not held: UDP sockets of processes that are not root's are not moved away \
             from a backend that is gone",
            "add DAC_READ_SEARCH to securityContext.capabilities",
        );
    } else if rights.has(CAP_SYS_PTRACE) {
        report.ok(Group::Rights, what, "enough");
    } else {
        report.warn(
            Group::Rights,
            what,
            "CAP_SYS_PTRACE not held: UDP sockets that are connected to a backend that is gone are not \
             moved to another",
            "add SYS_PTRACE to securityContext.capabilities",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Level, kernel::tests::of};

    fn root() -> Rights {
        Rights {
            is_root: true,
            capabilities: u64::MAX,
            memlock: Some(65_536),
            memlock_lifted: true,
            initial_pid_namespace: true,
            initial_network_namespace: true,
        }
    }

    fn judged(rights: &Rights, version: (u32, u32)) -> Report {
        let mut report = Report::default();
        judge(rights, &of("?", version), &mut report);
        report
    }

    #[test]
    fn root_on_the_node_has_every_right() {
        assert!(judged(&root(), (6, 1)).bad().is_empty());
        assert!(judged(&root(), (5, 10)).bad().is_empty());
    }

    #[test]
    fn capabilities_are_read_from_the_status() {
        assert_eq!(
            effective("CapPrm:\t0\nCapEff:\t0000008000001000\n"),
            Some(1 << 39 | 1 << 12)
        );
        assert_eq!(effective("Name: x\n"), None);
    }

    #[test]
    fn what_is_missing_is_named() {
        let nobody = Rights {
            is_root: false,
            capabilities: 0,
            ..root()
        };
        let report = judged(&nobody, (6, 1));
        assert_eq!(report.about("user").level, Level::Fail);
        let found = report.about("capabilities");
        assert_eq!(found.level, Level::Fail);
        assert!(
            found.found.contains("CAP_NET_ADMIN, CAP_BPF, CAP_PERFMON"),
            "{found}"
        );
        let few = Rights {
            capabilities: 1 << 39 | 1 << 38 | 1 << 12,
            ..root()
        };
        assert_eq!(judged(&few, (6, 1)).bad(), ["warn capabilities"]);
        let reader = Rights {
            capabilities: few.capabilities | 1 << 2,
            ..root()
        };
        let found = judged(&reader, (6, 1)).about("capabilities").found.clone();
        assert!(found.contains("CAP_SYS_PTRACE"), "{found}");
        // What CAP_BPF was before it had a name of its own.
        let admin = Rights {
            capabilities: 1 << 21 | 1 << 12 | 1 << 19 | 1 << 2,
            ..root()
        };
        assert!(judged(&admin, (6, 1)).bad().is_empty());
    }

    #[test]
    fn locked_memory_matters_on_old_kernels_only() {
        let locked = Rights {
            memlock_lifted: false,
            ..root()
        };
        assert!(judged(&locked, (5, 11)).bad().is_empty());
        assert_eq!(judged(&locked, (5, 10)).bad(), ["FAIL locked memory"]);
    }

    #[test]
    fn namespaces_of_a_container_are_told() {
        let pod = Rights {
            initial_pid_namespace: false,
            initial_network_namespace: false,
            ..root()
        };
        assert_eq!(
            judged(&pod, (6, 1)).bad(),
            ["warn process ids", "note network"]
        );
        assert_eq!(
            judged(&pod, (5, 10)).bad(),
            ["warn process ids", "warn network"]
        );
    }
}
