//! Starting other programs: a clean environment, root, progress lines, signals, and errors that name the command.

use std::{
    env,
    ffi::{OsStr, OsString},
    fmt::Write as _,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{self, Signal},
    unistd::{Pid, geteuid},
};
use signal_hook::{
    consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM},
    iterator::Signals,
};

/// A command without what `cargo run` put into our environment: it describes this crate, and would mislead a nested
/// cargo, another toolchain, or the agent.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (key, value) in env::vars_os() {
        let Some(name) = key.to_str() else { continue };
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        } else if name == "LD_LIBRARY_PATH" {
            match without_toolchain_folders(&value) {
                Some(rest) => command.env(name, rest),
                None => command.env_remove(name),
            };
        }
    }
    // The object is ours to name; see `build::point_at_object`.
    command.env_remove("KUBE_PORTAL_EBPF");
    command
}

/// `cargo run` prepends its own and the toolchain's library folders, where another compiler would find the wrong LLVM.
fn without_toolchain_folders(paths: &OsStr) -> Option<OsString> {
    let ours = env::current_exe().ok();
    let profile = ours.as_deref().and_then(Path::parent);
    let kept: Vec<PathBuf> = env::split_paths(paths)
        .filter(|path| {
            let toolchain = path.join("rustlib").exists();
            !toolchain && !profile.is_some_and(|profile| path.starts_with(profile))
        })
        .collect();
    if kept.is_empty() {
        None
    } else {
        env::join_paths(kept).ok()
    }
}

/// The project's cargo: the one that runs us.
pub(crate) fn cargo(root: &Path) -> Command {
    let mut cargo = command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root);
    cargo
}

/// How a person would type it.
pub(crate) fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().filter(|&name| name == "cargo");
    let mut line = name
        .unwrap_or(program.as_os_str())
        .to_string_lossy()
        .into_owned();
    for arg in command.get_args() {
        let _ = write!(line, " {}", arg.to_string_lossy());
    }
    line
}

/// Runs with our stdin, stdout and stderr.
pub(crate) fn run(command: &mut Command, what: &str, remedy: &str) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("{what}: can't start `{}`", shown(command)))?;
    if !status.success() {
        bail!("{what} failed ({status}): `{}`; {remedy}", shown(command));
    }
    Ok(())
}

/// Runs silently; only when it fails, what it wrote is shown.
pub(crate) fn run_quietly(command: &mut Command, what: &str, remedy: &str) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{what}: can't start `{}`", shown(command)))?;
    if !output.status.success() {
        let mut stderr = std::io::stderr().lock();
        let _ = stderr.write_all(&output.stdout);
        let _ = stderr.write_all(&output.stderr);
        bail!(
            "{what} failed ({}): `{}`; {remedy}",
            output.status,
            shown(command)
        );
    }
    Ok(())
}

/// Runs for its stdout.
pub(crate) fn read(command: &mut Command, what: &str) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{what}: can't start `{}`", shown(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{what} failed ({}): `{}`: {}",
            output.status,
            shown(command),
            said.trim()
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("{what}: answer is not UTF-8"))
}

/// One line before a long step, one with its seconds after.
pub(crate) fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("{what} ...");
    let started = Instant::now();
    let result = work();
    if result.is_ok() {
        eprintln!("  done in {:.1} s", started.elapsed().as_secs_f64());
    }
    result
}

/// Looks where root's tools are as well: a user's PATH often lacks the sbin folders.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|candidate| nix::unistd::access(candidate, nix::unistd::AccessFlags::X_OK).is_ok())
}

pub(crate) fn is_root() -> bool {
    geteuid().is_root()
}

pub(crate) fn can_become_root() -> bool {
    is_root() || find("sudo").is_some()
}

/// sudo starts with an almost empty environment; these say what the user wants of the program.
const KEPT_UNDER_SUDO: &[&str] = &["KUBE", "NODE_NAME", "NO_COLOR", "PROPTEST_", "RUST_"];

/// `program` with root's rights, by sudo where we have none. `extra` is added to its environment.
pub(crate) fn as_root(
    program: impl AsRef<OsStr>,
    extra: &[(&str, OsString)],
    why: &str,
) -> Result<Command> {
    let program = program.as_ref();
    if is_root() {
        let mut direct = command(program);
        direct.envs(extra.iter().map(|(key, value)| (key, value)));
        return Ok(direct);
    }
    let Some(sudo) = find("sudo") else {
        bail!("{why} needs root, and there is no sudo: run this again as root");
    };
    // Asks for the password now, while we own the terminal: later the program runs in the background of it.
    run(
        command(&sudo).arg("-v"),
        "asking sudo for root",
        "run this again as root",
    )?;
    let mut wrapped = command(&sudo);
    wrapped.args(["--", "env"]);
    let kept = env::vars_os().filter(|(key, _)| {
        let key = key.to_string_lossy();
        KEPT_UNDER_SUDO.iter().any(|kept| key.starts_with(kept)) && key != "KUBE_PORTAL_EBPF"
    });
    for (key, value) in kept.chain(
        extra
            .iter()
            .map(|(key, value)| (OsString::from(key), value.clone())),
    ) {
        let mut assignment = key;
        assignment.push("=");
        assignment.push(value);
        wrapped.arg(assignment);
    }
    wrapped.arg(program);
    Ok(wrapped)
}

/// Runs a program that cleans up after itself: every request to stop is passed on to it once, and we wait for it.
///
/// The child gets a process group of its own. So the terminal's Ctrl-C reaches only us, not both of us, and sudo, which
/// ignores signals from its own group, passes ours on.
pub(crate) fn attend(command: &mut Command, what: &str) -> Result<ExitStatus> {
    // Handlers, not a blocked mask: a mask would be the child's too, and it would never hear us.
    let mut received = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGCHLD])
        .context("can't listen to signals")?;
    let mut child = command
        .process_group(0)
        .spawn()
        .with_context(|| format!("{what}: can't start `{}`", shown(command)))?;
    let pid = Pid::from_raw(i32::try_from(child.id()).context("a process id beyond 31 bits")?);
    for number in received.forever() {
        if let Some(status) = child
            .try_wait()
            .with_context(|| format!("waiting for {what}"))?
        {
            return Ok(status);
        }
        if number != SIGCHLD {
            let request = Signal::try_from(number).context("a signal of ours")?;
            // A child that is gone already has nothing to clean up, and SIGCHLD is on its way.
            let _ = signal::kill(pid, request);
        }
    }
    bail!("waiting for {what}: no more signals")
}

/// The child's exit code as ours; death by signal as shells say it.
pub(crate) fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// How long output may still come after the program has ended, from processes it left behind.
const AFTERMATH: Duration = Duration::from_secs(2);

/// Runs, passing each line of stdout on to ours and to `seen`.
pub(crate) fn tee(
    command: &mut Command,
    what: &str,
    mut seen: impl FnMut(&str),
) -> Result<ExitStatus> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("{what}: can't start `{}`", shown(command)))?;
    let lines = lines_of(&mut child)?;
    let mut ended: Option<(ExitStatus, Instant)> = None;
    loop {
        match lines.recv_timeout(Duration::from_millis(50)) {
            Ok(line) => {
                let mut stdout = std::io::stdout().lock();
                let _ = stdout.write_all(&line);
                seen(&String::from_utf8_lossy(&line));
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => match ended {
                Some((_, at)) if at.elapsed() > AFTERMATH => {
                    eprintln!("xtask: {what} ended but left a process that holds its output open");
                    break;
                }
                Some(_) => {}
                None => ended = child.try_wait()?.map(|status| (status, Instant::now())),
            },
        }
    }
    child.wait().with_context(|| format!("waiting for {what}"))
}

fn lines_of(child: &mut Child) -> Result<mpsc::Receiver<Vec<u8>>> {
    let stdout = child.stdout.take().context("a piped child has no stdout")?;
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(stdout);
        loop {
            let mut line = Vec::new();
            match reader.read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) if sender.send(line).is_err() => return,
                Ok(_) => {}
            }
        }
    });
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_to_stop_reaches_the_child_and_its_exit_code_is_ours() {
        let ready = env::temp_dir().join(format!("xtask-attend-{}", std::process::id()));
        let script = format!(
            "trap 'exit 7' TERM; : > {}; while :; do sleep 0.05; done",
            ready.display()
        );
        let seen = ready.clone();
        // `attend` listens before the child exists, so this can't end the test's own process.
        let sender = thread::spawn(move || {
            while !seen.exists() {
                thread::sleep(Duration::from_millis(5));
            }
            signal::kill(Pid::this(), Signal::SIGTERM).expect("a signal to ourselves");
        });
        let status = attend(Command::new("sh").args(["-c", &script]), "a child");
        sender.join().expect("the sender");
        let _ = std::fs::remove_file(&ready);
        assert_eq!(status.expect("it ends").code(), Some(7));
    }
}
