//! `cargo xtask run`: decides between the agent and the demonstration, and runs it as root.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use clap::Args;

use crate::{
    build,
    packages::{self, Task},
    sh,
    workspace::{Profile, Workspace},
};

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Optimise the agent too (the kernel programs always are)
    #[arg(long)]
    release: bool,
    /// The demonstration, even where a cluster is in reach
    #[arg(long)]
    demo: bool,
    /// Passed on to `kube-portal run`, or to the demonstration (--once: one round, then exit)
    #[arg(last = true)]
    args: Vec<String>,
}

/// Where the environment says Services could be read from.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Place {
    /// The value of KUBECONFIG, or the path of an existing ~/.kube/config.
    kubeconfig: Option<OsString>,
    in_pod: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Decision {
    Agent { because: &'static str },
    Demonstration { because: &'static str },
}

fn decide(demo: bool, args: &[String], place: &Place) -> Decision {
    if demo {
        Decision::Demonstration {
            because: "--demo was given",
        }
    } else if has_option(args, "--manifests") || has_option(args, "--kubeconfig") {
        Decision::Agent {
            because: "the arguments name a source",
        }
    } else if has_option(args, "--once") {
        // Only the demonstration ends by itself; nobody asks for that and means to take over a cluster's node.
        Decision::Demonstration {
            because: "--once was given",
        }
    } else if place.in_pod {
        Decision::Agent {
            because: "this is a pod with a service account",
        }
    } else if place.kubeconfig.is_some() {
        Decision::Agent {
            because: "there is a kubeconfig",
        }
    } else {
        Decision::Demonstration {
            because: "no cluster and no manifest folder is in reach",
        }
    }
}

/// `--name value` or `--name=value`
fn has_option(args: &[String], name: &str) -> bool {
    args.iter().any(|arg| {
        arg.strip_prefix(name)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    })
}

const SERVICE_ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

impl Place {
    fn here() -> Self {
        let named = env::var_os("KUBECONFIG").filter(|value| !value.is_empty());
        let default = || {
            let file = PathBuf::from(env::var_os("HOME")?).join(".kube/config");
            file.exists().then(|| file.into_os_string())
        };
        Self {
            kubeconfig: named.or_else(default),
            in_pod: env::var_os("KUBERNETES_SERVICE_HOST").is_some()
                && Path::new(SERVICE_ACCOUNT_TOKEN).exists(),
        }
    }
}

pub(crate) fn run(workspace: &Workspace, args: RunArgs) -> Result<ExitCode> {
    let profile = Profile::from_release_flag(args.release);
    packages::ensure_tools(&[Task::Build, Task::Run])?;
    let place = Place::here();
    let decision = decide(args.demo, &args.args, &place);
    build::all(workspace, profile)?;
    match decision {
        Decision::Agent { because } => {
            eprintln!(
                "running the agent on this machine: {because} (--demo runs the demonstration)"
            );
            agent(workspace, profile, args.args, place)
        }
        Decision::Demonstration { because } => {
            eprintln!("running the demonstration: {because}");
            demonstration(workspace, profile, &args.args)
        }
    }
}

fn demonstration(workspace: &Workspace, profile: Profile, args: &[String]) -> Result<ExitCode> {
    let demo = build::test_binary(workspace, profile, "demo")?;
    let mut command = sh::as_root(demo, &[], "the demonstration (it makes network namespaces)")?;
    command
        .arg("--agent")
        .arg(workspace.binary(profile, "kube-portal"))
        .arg("--probe")
        .arg(build::test_binary(workspace, profile, "probe")?)
        .args(args);
    Ok(sh::exit_code(sh::attend(
        &mut command,
        "the demonstration",
    )?))
}

fn agent(
    workspace: &Workspace,
    profile: Profile,
    mut args: Vec<String>,
    place: Place,
) -> Result<ExitCode> {
    // Under sudo, ~ would be root's.
    let kubeconfig: Vec<_> = place
        .kubeconfig
        .map(|value| ("KUBECONFIG", value))
        .into_iter()
        .collect();
    let bpffs = Bpffs::provide(&mut args)?;
    let program = workspace.binary(profile, "kube-portal");
    let status = sh::as_root(program, &kubeconfig, "the agent (it loads kernel programs)")
        .and_then(|mut command| sh::attend(command.arg("run").args(&args), "the agent"));
    if let Some(bpffs) = bpffs {
        bpffs.remove();
    }
    Ok(sh::exit_code(status?))
}

/// A bpffs that exists for this run only.
#[derive(Debug)]
struct Bpffs;

const USUAL_BPFFS: &str = "/sys/fs/bpf";
const OUR_BPFFS: &str = "/run/kube-portal/bpf";

impl Bpffs {
    /// Mounts one, and tells the agent of it, where neither the arguments nor the system have one.
    fn provide(args: &mut Vec<String>) -> Result<Option<Self>> {
        if has_option(args, "--bpffs-root") {
            return Ok(None);
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        if is_bpffs(&mounts, USUAL_BPFFS) {
            return Ok(None);
        }
        args.extend(["--bpffs-root".to_owned(), OUR_BPFFS.to_owned()]);
        if is_bpffs(&mounts, OUR_BPFFS) {
            eprintln!(
                "{USUAL_BPFFS} is no bpffs; using the one found at {OUR_BPFFS}, and leaving it there"
            );
            return Ok(None);
        }
        let why = "mounting a bpffs";
        let mut mkdir = sh::as_root("mkdir", &[], why)?;
        sh::run(
            mkdir.args(["-p", OUR_BPFFS]),
            why,
            "give --bpffs-root DIR instead",
        )?;
        let mut mount = sh::as_root("mount", &[], why)?;
        mount.args(["-t", "bpf", "kube-portal", OUR_BPFFS]);
        sh::run(
            &mut mount,
            why,
            "mount one elsewhere and give --bpffs-root DIR",
        )?;
        eprintln!("{USUAL_BPFFS} is no bpffs; mounted one at {OUR_BPFFS} for the time of this run");
        Ok(Some(Self))
    }

    fn remove(self) {
        let why = "unmounting our bpffs";
        let umount = sh::as_root("umount", &[], why).and_then(|mut umount| {
            sh::run(
                umount.arg(OUR_BPFFS),
                why,
                &format!("run `umount {OUR_BPFFS}` as root"),
            )
        });
        match umount {
            Ok(()) => eprintln!("unmounted {OUR_BPFFS}"),
            Err(error) => eprintln!("xtask: {error:#}"),
        }
    }
}

/// Whether /proc/self/mounts has a bpffs at this place: the last mount there counts, it hides the others.
fn is_bpffs(mounts: &str, place: &str) -> bool {
    let fields = mounts.lines().map(|line| line.split(' ').skip(1));
    let mut kinds =
        fields.filter_map(|mut fields| (fields.next()? == place).then(|| fields.next())?);
    kinds.next_back() == Some("bpf")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs_agent(demo: bool, args: &[&str], place: &Place) -> bool {
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        matches!(decide(demo, &args, place), Decision::Agent { .. })
    }

    #[test]
    fn a_named_source_runs_the_agent() {
        let nowhere = Place::default();
        for args in [
            &["--manifests", "x"][..],
            &["--manifests=x"],
            &["--kubeconfig", "f"],
            &["--once", "--kubeconfig=f"],
        ] {
            assert!(runs_agent(false, args, &nowhere), "{args:?}");
        }
        for args in [&[][..], &["--once"], &["--manifestsx"], &["--seed", "1"]] {
            assert!(!runs_agent(false, args, &nowhere), "{args:?}");
        }
    }

    #[test]
    fn a_cluster_in_reach_runs_the_agent_unless_the_demonstration_is_asked_for() {
        let configured = Place {
            kubeconfig: Some("/home/u/.kube/config".into()),
            in_pod: false,
        };
        let pod = Place {
            kubeconfig: None,
            in_pod: true,
        };
        for place in [&configured, &pod] {
            assert!(runs_agent(false, &[], place));
            assert!(runs_agent(false, &["--devices", "eth0"], place));
            assert!(!runs_agent(true, &[], place));
            assert!(!runs_agent(false, &["--once"], place));
        }
    }

    #[test]
    fn the_last_mount_of_a_place_counts() {
        let mounts = "sysfs /sys sysfs rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\n";
        assert!(is_bpffs(mounts, "/sys/fs/bpf"));
        assert!(!is_bpffs(mounts, "/sys"));
        assert!(!is_bpffs(mounts, "/run/kube-portal/bpf"));
        assert!(!is_bpffs(
            &format!("{mounts}tmpfs /sys/fs/bpf tmpfs rw 0 0\n"),
            "/sys/fs/bpf"
        ));
        assert!(!is_bpffs("", "/sys/fs/bpf"));
    }
}
