//! System packages: the table of tools we need, and the only place that talks to the package manager.

use std::{
    ffi::OsString,
    fs,
    path::Path,
    process::Stdio,
    time::{Duration, SystemTime},
};

use anyhow::{Result, bail};

use crate::{
    compiler::{Offers, PACKAGE_SETS, Release},
    sh,
};

/// What a task does with a tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    Build,
    Run,
    Test,
    Bench,
}

#[derive(Debug)]
struct Tool {
    program: &'static str,
    package: &'static str,
    why: &'static str,
    tasks: &'static [Task],
}

const WORLD: &[Task] = &[Task::Run, Task::Test, Task::Bench];

/// The tools besides Rust. A new one is one line here.
const TOOLS: &[Tool] = &[
    Tool {
        program: "cc",
        package: "build-essential",
        why: "links every Rust program",
        tasks: &[Task::Build],
    },
    Tool {
        program: "mount",
        package: "mount",
        why: "mounts bpffs, where the kernel programs are pinned",
        tasks: WORLD,
    },
    Tool {
        program: "ip",
        package: "iproute2",
        why: "makes the network namespaces of the demonstration and the tests",
        tasks: WORLD,
    },
    Tool {
        program: "nft",
        package: "nftables",
        why: "makes the packet filters that others put on a node, and kube-proxy's rules to compare with",
        tasks: &[Task::Test, Task::Bench],
    },
    Tool {
        program: "iptables-nft-restore",
        package: "iptables",
        why: "makes the rules that a kube-proxy leaves",
        tasks: &[Task::Test],
    },
    Tool {
        program: "nsenter",
        package: "util-linux",
        why: "runs commands inside those namespaces",
        tasks: WORLD,
    },
];

/// Installs the tools of these tasks that are not here.
pub(crate) fn ensure_tools(tasks: &[Task]) -> Result<()> {
    let missing: Vec<&Tool> = TOOLS
        .iter()
        .filter(|tool| tool.tasks.iter().any(|task| tasks.contains(task)))
        .filter(|tool| sh::find(tool.program).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    for tool in &missing {
        eprintln!(
            "missing: {} (package {}), which {}",
            tool.program, tool.package, tool.why
        );
    }
    let packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    if sh::find("apt-get").is_none() {
        bail!(
            "there is no apt-get here: install {} by hand and run this again",
            packages.join(" ")
        );
    }
    let mut apt = Apt::new();
    if !apt.lists_are_fresh() {
        apt.update()?;
    }
    apt.install(&packages)
}

/// apt's lists older than this name packages that the servers have replaced since.
const LISTS_LIFE: Duration = Duration::from_secs(24 * 60 * 60);

/// Remembers that the lists were updated, so that it happens once.
#[derive(Debug)]
pub(crate) struct Apt {
    updated: bool,
}

impl Apt {
    pub(crate) fn new() -> Self {
        Self { updated: false }
    }

    pub(crate) fn offers(&self) -> Offers {
        if sh::find("apt-get").is_none() {
            return Offers::Unknown;
        }
        let compilers = PACKAGE_SETS
            .iter()
            .filter_map(|set| set.first())
            .filter_map(|&name| Some((name, candidate(name)?)))
            .collect();
        Offers::Known {
            compilers,
            lists_are_fresh: self.updated,
        }
    }

    fn lists_are_fresh(&self) -> bool {
        self.updated
            || newest_list()
                .and_then(|at| at.elapsed().ok())
                .is_some_and(|age| age < LISTS_LIFE)
    }

    pub(crate) fn update(&mut self) -> Result<()> {
        sh::step("updating the package lists (apt-get update)", || {
            apt_get(&["update"])
        })?;
        self.updated = true;
        Ok(())
    }

    /// Puts the package into the folder; nothing is installed, and nobody has to be root.
    pub(crate) fn download(&mut self, package: &str, folder: &Path) -> Result<()> {
        if !self.lists_are_fresh() {
            self.update()?;
        }
        let mut apt = sh::command("apt-get");
        apt.args(["download", package]).current_dir(folder);
        sh::step(&format!("downloading the package {package}"), || {
            sh::run_quietly(
                &mut apt,
                "the package manager",
                &format!("run `apt-get download {package}` and see what it says"),
            )
        })
    }

    pub(crate) fn install(&mut self, packages: &[&str]) -> Result<()> {
        // Removing anything is not ours to decide: some distributions' rustc conflicts with their rustup.
        let mut args = vec!["install", "-y", "--no-install-recommends", "--no-remove"];
        args.extend(packages);
        let names = packages.join(" ");
        if !sh::can_become_root() {
            bail!(
                "installing needs root, and there is no sudo: run `apt-get install {names}` as root"
            );
        }
        let installed = sh::step(&format!("installing {names}"), || apt_get(&args));
        if installed.is_err() && !self.updated {
            eprintln!("perhaps the package lists are old; trying once more with new ones");
            self.update()?;
            return sh::step(&format!("installing {names}"), || apt_get(&args));
        }
        installed
    }
}

fn apt_get(args: &[&str]) -> Result<()> {
    let by_hand = format!("`apt-get {}`", args.join(" "));
    let quiet = [("DEBIAN_FRONTEND", OsString::from("noninteractive"))];
    let mut apt = sh::as_root("apt-get", &quiet, &by_hand)?;
    apt.args(args);
    sh::run_quietly(
        &mut apt,
        "the package manager",
        &format!("run {by_hand} as root and see what it says"),
    )
}

fn candidate(package: &str) -> Option<Release> {
    let mut apt = sh::command("apt-cache");
    apt.args(["policy", package])
        .env("LC_ALL", "C")
        .stderr(Stdio::null());
    parse_candidate(&sh::read(&mut apt, "asking apt-cache").ok()?)
}

fn parse_candidate(policy: &str) -> Option<Release> {
    policy
        .lines()
        .find_map(|line| Release::parse(line.trim().strip_prefix("Candidate: ")?))
}

fn newest_list() -> Option<SystemTime> {
    let lists = fs::read_dir("/var/lib/apt/lists").ok()?;
    let changed = |entry: fs::DirEntry| {
        let is_list = entry.file_name().to_string_lossy().contains("_Packages");
        if is_list {
            entry.metadata().ok()?.modified().ok()
        } else {
            None
        }
    };
    lists.flatten().filter_map(changed).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apt_says_what_it_would_install() {
        let policy = "rustc-web:\n  Installed: (none)\n  Candidate: 1.96.0+dfsg1-1~deb12u2\n  Version table:\n";
        assert_eq!(
            parse_candidate(policy),
            Some(Release {
                major: 1,
                minor: 96
            })
        );
        assert_eq!(
            parse_candidate("rustc-web:\n  Installed: (none)\n  Candidate: (none)\n"),
            None
        );
        assert_eq!(parse_candidate(""), None);
    }
}
