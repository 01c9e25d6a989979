//! `cargo xtask test`: formatting, lints and every test, one summary. A failing stage does not stop the later ones.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
    process::{ExitCode, ExitStatus, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::{
    bpf, build,
    libtest::Counts,
    packages::{self, Task},
    promtool, setup, sh,
    workspace::{Profile, Workspace},
};

#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// Run only the tests whose name contains this, and no lints
    filter: Option<String>,
    /// Leave out the tests in network namespaces and in the kernel, which need root
    #[arg(long)]
    no_root_tests: bool,
}

/// How many namespace tests run at once per CPU. Each starts an agent, pods and clients; with more, the waits that
/// tests put limits on grow until they fail for no fault of the agent.
const ROOT_TESTS_PER_CPU: usize = 1;

/// The package whose tests need root.
const ROOT_PACKAGE: &str = "tests";

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed(String),
    Skipped(&'static str),
}

#[derive(Debug)]
struct Stage {
    name: &'static str,
    outcome: Outcome,
    seconds: f64,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Report {
    stages: Vec<Stage>,
}

impl Report {
    /// Runs one stage; `work` adds to the counts, and its error is the stage's failure.
    fn stage<T>(
        &mut self,
        name: &'static str,
        work: impl FnOnce(&mut Counts) -> Result<T>,
    ) -> Option<T> {
        eprintln!("== {name}");
        let started = Instant::now();
        let mut counts = Counts::default();
        let result = work(&mut counts);
        let (outcome, value) = match result {
            Ok(value) => (Outcome::Passed, Some(value)),
            Err(error) => {
                eprintln!("xtask: {error:#}");
                (Outcome::Failed(format!("{error:#}")), None)
            }
        };
        self.stages.push(Stage {
            name,
            outcome,
            seconds: started.elapsed().as_secs_f64(),
            counts,
        });
        value
    }

    fn skip(&mut self, name: &'static str, why: &'static str) {
        self.stages.push(Stage {
            name,
            outcome: Outcome::Skipped(why),
            seconds: 0.0,
            counts: Counts::default(),
        });
    }

    fn counts(&self) -> Counts {
        let mut sum = Counts::default();
        for stage in &self.stages {
            sum += stage.counts;
        }
        sum
    }

    fn passed(&self) -> bool {
        self.stages
            .iter()
            .all(|stage| !matches!(stage.outcome, Outcome::Failed(_)))
    }

    fn print(&self) {
        println!();
        for Stage {
            name,
            outcome,
            seconds,
            counts,
        } in &self.stages
        {
            let tests = if counts.total() > 0 {
                counts.summary()
            } else {
                String::new()
            };
            match outcome {
                Outcome::Passed => println!("ok      {name:<32} {seconds:>7.1} s  {tests}"),
                Outcome::Failed(why) => {
                    println!("FAILED  {name:<32} {seconds:>7.1} s  {tests}  {why}")
                }
                Outcome::Skipped(why) => println!("skipped {name:<32}            {why}"),
            }
        }
        println!("{}", self.counts().summary());
    }
}

pub(crate) fn run(workspace: &Workspace, args: &TestArgs) -> Result<ExitCode> {
    packages::ensure_tools(&[Task::Build, Task::Test])?;
    let filter = args.filter.as_deref();
    let mut report = Report::default();

    report.stage("kernel programs", |_| bpf::build(workspace));
    if filter.is_none() {
        setup::lints(workspace)?;
        report.stage("format", |_| {
            let mut fmt = sh::cargo(&workspace.root);
            sh::run(
                fmt.args(["fmt", "--all", "--check"]),
                "checking the formatting",
                "`cargo fmt` repairs it",
            )
        });
        report.stage("lints", |_| clippy(workspace));
    }
    report.stage("agent and test binaries", |_| {
        build::host(workspace, Profile::Dev)
    });
    let binaries = report
        .stage("compile tests", |_| compile(workspace))
        .unwrap_or_default();
    let (rooted, plain): (Vec<_>, Vec<_>) = binaries
        .iter()
        .partition(|binary| binary.package == ROOT_PACKAGE);

    report.stage("unit and property tests", |counts| {
        run_binaries(&plain, counts, |binary| {
            let mut command = sh::command(&binary.executable);
            command
                .env("CARGO_MANIFEST_DIR", &binary.folder)
                .args(filter);
            Ok(command)
        })
    });
    report.stage("examples in documentation", |counts| {
        doc_tests(workspace, filter, counts)
    });
    if args.no_root_tests {
        report.skip("kernel and namespace tests", "--no-root-tests was given");
    } else {
        report.stage("kernel and namespace tests", |counts| {
            let promtool = promtool::ensure(workspace)?;
            root_tests(workspace, &rooted, promtool, filter, counts)
        });
    }

    report.print();
    if let Some(filter) = filter
        && report.passed()
        && report.counts().total() == 0
    {
        bail!("no test has {filter:?} in its name");
    }
    Ok(if report.passed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn clippy(workspace: &Workspace) -> Result<()> {
    let mut clippy = sh::cargo(&workspace.root);
    clippy.args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]);
    build::point_at_object(&mut clippy, workspace);
    sh::run(&mut clippy, "checking for mistakes", "they are above")
}

/// A compiled test binary.
#[derive(Debug, PartialEq, Eq)]
struct TestBinary {
    package: String,
    /// What it is called in a progress line: `proxy-user` for unit tests, `tests/services` for an integration test.
    name: String,
    executable: PathBuf,
    /// The package's folder: where cargo would run it.
    folder: PathBuf,
}

/// One cargo call for all packages: others would choose other features of shared dependencies, and compile them anew.
fn compile(workspace: &Workspace) -> Result<Vec<TestBinary>> {
    let mut cargo = sh::cargo(&workspace.root);
    cargo.args([
        "test",
        "--workspace",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]);
    build::point_at_object(&mut cargo, workspace);
    let output = cargo
        .stderr(Stdio::inherit())
        .output()
        .context("can't start cargo")?;
    if !output.status.success() {
        bail!(
            "compiling the tests failed: `{}`; the errors are above",
            sh::shown(&cargo)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(test_binary)
        .collect())
}

fn test_binary(line: &str) -> Option<TestBinary> {
    let message: Value = serde_json::from_str(line).ok()?;
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    let folder = Path::new(message["manifest_path"].as_str()?).parent()?;
    // Each member's folder has its package's name.
    let package = folder.file_name()?.to_str()?.to_owned();
    let target = &message["target"];
    let name = match target["kind"][0].as_str()? {
        "lib" => package.clone(),
        _ => format!("{package}/{}", target["name"].as_str()?),
    };
    Some(TestBinary {
        name,
        executable: message["executable"].as_str()?.into(),
        folder: folder.to_owned(),
        package,
    })
}

/// Runs them all, whatever fails. A binary that dies without saying its result counts as one failed test.
fn run_binaries(
    binaries: &[&TestBinary],
    counts: &mut Counts,
    command: impl Fn(&TestBinary) -> Result<std::process::Command>,
) -> Result<()> {
    let mut failed = Vec::new();
    for binary in binaries {
        eprintln!("-- {}", binary.name);
        let mut of_binary = Counts::default();
        let status = command(binary).and_then(|mut command| {
            command.current_dir(&binary.folder);
            counted(&mut command, &binary.name, &mut of_binary)
        });
        if !status.is_ok_and(|status| status.success()) {
            of_binary.failed = of_binary.failed.max(1);
            failed.push(binary.name.as_str());
        }
        *counts += of_binary;
    }
    if !failed.is_empty() {
        bail!("in {}", failed.join(", "));
    }
    Ok(())
}

fn counted(
    command: &mut std::process::Command,
    what: &str,
    counts: &mut Counts,
) -> Result<ExitStatus> {
    sh::tee(command, what, |line| {
        if let Some(result) = Counts::from_line(line) {
            *counts += result;
        }
    })
}

fn doc_tests(workspace: &Workspace, filter: Option<&str>, counts: &mut Counts) -> Result<()> {
    let mut cargo = sh::cargo(&workspace.root);
    cargo
        .args(["test", "--workspace", "--doc", "--no-fail-fast", "--quiet"])
        .args(filter);
    build::point_at_object(&mut cargo, workspace);
    let status = counted(&mut cargo, "examples in documentation", counts)?;
    if !status.success() {
        counts.failed = counts.failed.max(1);
        bail!("`{}`; the errors are above", sh::shown(&cargo));
    }
    Ok(())
}

fn root_tests(
    workspace: &Workspace,
    binaries: &[&TestBinary],
    promtool: PathBuf,
    filter: Option<&str>,
    counts: &mut Counts,
) -> Result<()> {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let threads = (cpus * ROOT_TESTS_PER_CPU).to_string();
    let ours: BTreeMap<&str, OsString> = [
        (
            "KUBE_PORTAL_BIN",
            workspace.binary(Profile::Dev, "kube-portal"),
        ),
        ("KUBE_PORTAL_PROBE", workspace.binary(Profile::Dev, "probe")),
        ("KUBE_PORTAL_OBJECT", workspace.bpf_object()),
        ("KUBE_PORTAL_PROMTOOL", promtool),
    ]
    .map(|(key, path)| (key, path.into_os_string()))
    .into();
    run_binaries(binaries, counts, |binary| {
        let mut extra: Vec<(&str, OsString)> = ours.clone().into_iter().collect();
        extra.push(("CARGO_MANIFEST_DIR", binary.folder.clone().into_os_string()));
        let mut command = sh::as_root(&binary.executable, &extra, "testing in network namespaces")?;
        command.args(["--test-threads", &threads]).args(filter);
        Ok(command)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_binaries_are_found_in_cargos_messages() {
        let message = |reason: &str, kind: &str, test: bool| {
            format!(
                r#"{{"reason":"{reason}","manifest_path":"/r/proxy-user/Cargo.toml","target":{{"kind":["{kind}"],"name":"restart"}},"profile":{{"test":{test}}},"executable":"/t/restart-1"}}"#
            )
        };
        let found =
            test_binary(&message("compiler-artifact", "test", true)).expect("a test binary");
        assert_eq!(found.name, "proxy-user/restart");
        assert_eq!(found.package, "proxy-user");
        assert_eq!(found.folder, Path::new("/r/proxy-user"));
        assert_eq!(found.executable, Path::new("/t/restart-1"));
        let unit = test_binary(&message("compiler-artifact", "lib", true)).expect("a test binary");
        assert_eq!(unit.name, "proxy-user");
        assert_eq!(
            test_binary(&message("compiler-artifact", "bin", false)),
            None
        );
        assert_eq!(test_binary(&message("build-finished", "bin", true)), None);
        assert_eq!(test_binary("not JSON"), None);
    }

    #[test]
    fn a_report_sums_and_remembers_failures() {
        let mut report = Report::default();
        report.stage("a", |counts| {
            counts.passed = 2;
            Ok(())
        });
        report.skip("b", "no reason");
        assert!(report.passed());
        let nothing: Option<()> = report.stage("c", |counts| {
            counts.failed = 1;
            bail!("broken")
        });
        assert_eq!(nothing, None);
        assert!(!report.passed());
        assert_eq!(
            report.counts(),
            Counts {
                passed: 2,
                failed: 1,
                ignored: 0
            }
        );
    }
}
