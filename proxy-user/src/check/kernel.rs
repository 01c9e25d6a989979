//! The kernel: how old it is, what it has, and what is done without the rest.

use super::finding::{Group, Report};
use crate::loader::{Features, Tried};

#[derive(Clone, Debug)]
pub struct Kernel {
    /// As uname says.
    pub release: String,
    /// Its first two numbers, if it has them.
    pub version: Option<(u32, u32)>,
    pub required: Vec<Tried>,
    pub features: Features,
    pub jited: Option<bool>,
    /// membarrier(2) can wait for the programs that run.
    pub membarrier: bool,
}

const OLDEST: (u32, u32) = (5, 10);
const UPDATE: &str = "update the kernel: 5.10 is the oldest with everything that is needed";

impl Kernel {
    pub(super) fn is_before(&self, version: (u32, u32)) -> bool {
        self.version.is_some_and(|known| known < version)
    }
}

pub(super) fn judge(kernel: &Kernel, report: &mut Report) {
    let group = Group::Kernel;
    let release = format!("Linux {}", kernel.release);
    match kernel.version {
        Some(version) if version < OLDEST => {
            report.fail(group, "version", format!("{release} is too old"), UPDATE);
        }
        Some(_) => report.ok(group, "version", release),
        None => report.note(
            group,
            "version",
            format!("{release}: no number to be read; what it has is tried below"),
        ),
    }
    required(kernel, report);
    match kernel.jited {
        Some(true) => report.ok(group, "JIT", "programs become machine code"),
        Some(false) => report.warn(
            group,
            "JIT",
            "off: programs are interpreted, several times slower",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        None => {}
    }
    for (what, since, is_there, without) in optional(kernel) {
        if is_there {
            report.ok(group, what, "there");
        } else {
            report.note(group, what, format!("not there (Linux {since}): {without}"));
        }
    }
}

fn required(kernel: &Kernel, report: &mut Report) {
    let group = Group::Kernel;
    let denied = |tried: &&Tried| matches!(tried.errno, Some(libc::EPERM | libc::EACCES));
    let missing = |tried: &&Tried| tried.errno.is_some() && !denied(tried);
    let names = |tried: Vec<&Tried>| {
        let names: Vec<String> = tried
            .iter()
            .map(|tried| format!("{} (Linux {})", tried.what, tried.since))
            .collect();
        names.join(", ")
    };
    if kernel
        .required
        .iter()
        .any(|tried| tried.errno == Some(libc::ENOSYS))
    {
        report.fail(
            group,
            "BPF",
            "the kernel has no bpf(2), or the sandbox hides it",
            "use a kernel with CONFIG_BPF_SYSCALL, and a seccomp profile that allows bpf(2)",
        );
        return;
    }
    let missing: Vec<&Tried> = kernel.required.iter().filter(missing).collect();
    let denied: Vec<&Tried> = kernel.required.iter().filter(denied).collect();
    if !missing.is_empty() {
        let remedy = if kernel.is_before(OLDEST) {
            UPDATE
        } else {
            "use a kernel that is built with CONFIG_BPF_SYSCALL, CONFIG_CGROUP_BPF and CONFIG_NET_CLS_BPF"
        };
        let found = format!("refused: {}", names(missing));
        report.fail(group, "programs and maps", found, remedy);
    } else if denied.is_empty() {
        let count = kernel.required.len();
        let found = format!("all {count} kinds that are needed can be made");
        report.ok(group, "programs and maps", found);
    }
    if !denied.is_empty() {
        report.fail(
            group,
            "right to use BPF",
            format!(
                "{} of {} kinds of programs and maps are not permitted, {} first",
                denied.len(),
                kernel.required.len(),
                denied[0].what
            ),
            "run it as root with CAP_BPF and CAP_NET_ADMIN, or as a privileged container",
        );
    }
}

/// What is used where it is there: since when, whether it is, and what happens without.
fn optional(kernel: &Kernel) -> [(&'static str, &'static str, bool, &'static str); 6] {
    let Features {
        set_retval,
        node_netns,
        coarse_clock,
        skip_neigh,
        tcx,
    } = kernel.features;
    [
        (
            "bpf_set_retval",
            "5.18",
            set_retval,
            "a refused connect() is sent to a port where nobody listens, and fails the same",
        ),
        (
            "cookie of a network namespace",
            "5.14",
            node_netns != 0,
            "the node's network namespace must be the initial one",
        ),
        (
            "coarse clock for packets",
            "5.11",
            coarse_clock,
            "the exact clock is read, some 30 ns for each packet",
        ),
        (
            "route lookup without neighbours",
            "6.5",
            skip_neigh,
            "packets take the network stack's way in some more cases",
        ),
        (
            "links for devices (tcx)",
            "6.6",
            tcx,
            "filters of the qdisc clsact take their place",
        ),
        (
            "membarrier",
            "4.3",
            kernel.membarrier,
            "what is no longer used is kept for a second instead",
        ),
    ]
}

#[cfg(test)]
pub(in crate::check) mod tests {
    use super::*;
    use crate::check::Level;

    fn tried(what: &'static str, since: &'static str, errno: Option<i32>) -> Tried {
        Tried { what, since, errno }
    }

    pub(in crate::check) fn of(release: &str, version: (u32, u32)) -> Kernel {
        let has = |since: (u32, u32)| version >= since;
        let refused = |since| (!has(since)).then_some(libc::EINVAL);
        Kernel {
            release: release.to_owned(),
            version: Some(version),
            required: vec![
                tried("cgroup/connect4", "4.17", None),
                tried("cgroup/getpeername4", "5.8", refused((5, 8))),
                tried("ring buffers", "5.8", refused((5, 8))),
            ],
            features: Features {
                set_retval: has((5, 18)),
                node_netns: u64::from(has((5, 14))),
                coarse_clock: has((5, 11)),
                skip_neigh: has((6, 6)),
                tcx: has((6, 6)),
            },
            jited: Some(true),
            membarrier: true,
        }
    }

    fn judged(kernel: &Kernel) -> Report {
        let mut report = Report::default();
        judge(kernel, &mut report);
        report
    }

    #[test]
    fn a_new_kernel_has_everything() {
        let report = judged(&of("6.18.2", (6, 18)));
        assert_eq!(report.bad(), Vec::<String>::new());
    }

    #[test]
    fn on_5_10_everything_works_and_what_is_done_without_is_noted() {
        let report = judged(&of("5.10.0-32-cloud-amd64", (5, 10)));
        assert_eq!(
            report.bad(),
            [
                "note bpf_set_retval",
                "note cookie of a network namespace",
                "note coarse clock for packets",
                "note route lookup without neighbours",
                "note links for devices (tcx)",
            ]
        );
    }

    #[test]
    fn on_5_4_the_version_and_every_missing_kind_are_told() {
        let report = judged(&of("5.4.286", (5, 4)));
        assert_eq!(report.about("version").level, Level::Fail);
        let missing = report.about("programs and maps");
        assert_eq!(missing.level, Level::Fail);
        assert_eq!(
            missing.found,
            "refused: cgroup/getpeername4 (Linux 5.8), ring buffers (Linux 5.8)"
        );
    }

    #[test]
    fn a_kernel_built_without_is_not_told_to_be_old() {
        let mut kernel = of("6.1.0", (6, 1));
        kernel.required[0].errno = Some(libc::EINVAL);
        let report = judged(&kernel);
        assert_eq!(report.about("version").level, Level::Ok);
        let remedy = report.about("programs and maps").remedy.clone();
        assert!(remedy.unwrap().contains("CONFIG_CGROUP_BPF"));
    }

    #[test]
    fn what_is_not_permitted_is_not_called_missing() {
        let mut kernel = of("6.1.0", (6, 1));
        for tried in &mut kernel.required {
            tried.errno = Some(libc::EPERM);
        }
        let report = judged(&kernel);
        assert_eq!(report.about("right to use BPF").level, Level::Fail);
        assert!(
            report
                .findings
                .iter()
                .all(|f| f.what != "programs and maps")
        );
    }

    #[test]
    fn a_kernel_without_bpf_is_told_once() {
        let mut kernel = of("6.1.0", (6, 1));
        for tried in &mut kernel.required {
            tried.errno = Some(libc::ENOSYS);
        }
        let report = judged(&kernel);
        assert_eq!(report.about("BPF").level, Level::Fail);
        assert_eq!(report.count(Level::Fail), 1);
    }

    #[test]
    fn a_release_without_a_number_and_an_interpreter_are_told() {
        let mut kernel = of("next", (6, 1));
        kernel.version = None;
        kernel.jited = Some(false);
        kernel.membarrier = false;
        let report = judged(&kernel);
        assert_eq!(report.about("version").level, Level::Note);
        assert_eq!(report.about("JIT").level, Level::Warn);
        assert_eq!(report.about("membarrier").level, Level::Note);
    }
}
