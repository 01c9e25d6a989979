//! Network namespaces by name, removed when dropped.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns};

/// Where iproute2 keeps named namespaces.
pub const DIR: &str = "/run/netns";

/// A named network namespace.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Creates all of them with one run of `ip`.
    pub fn create_all(names: &[String]) -> Result<Vec<Self>> {
        // The guards exist before the namespaces do: a batch that fails half way leaves nothing.
        let guards = names
            .iter()
            .map(|name| Self { name: name.clone() })
            .collect();
        let batch: String = names
            .iter()
            .map(|name| format!("netns add {name}\n"))
            .collect();
        ip_batch(&[], &batch).context("create network namespaces")?;
        Ok(guards)
    }

    /// The name under which `ip -n` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        Path::new(DIR).join(&self.name)
    }

    /// An open handle for setns.
    pub fn open(&self) -> Result<File> {
        let path = self.path();
        File::open(&path).with_context(|| format!("open namespace {}", path.display()))
    }

    /// Runs `work` on a thread of this namespace. Sockets made there stay there, and may be used
    /// from anywhere afterwards.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file = self.open()?;
        std::thread::scope(|scope| {
            scope
                .spawn(move || -> Result<T> {
                    setns(&file, CloneFlags::CLONE_NEWNET)
                        .with_context(|| format!("enter namespace {}", self.name))?;
                    Ok(work())
                })
                .join()
                .map_err(|_| anyhow!("panic inside namespace {}", self.name))?
        })
    }

    /// Runs lines of `ip` commands in it.
    pub fn ip(&self, lines: &str) -> Result<String> {
        ip_batch(&["-n", &self.name], lines).with_context(|| format!("in namespace {}", self.name))
    }

    /// Runs lines of `bridge` commands in it.
    pub fn bridge(&self, lines: &str) -> Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        let options = ["-n", &self.name, "-batch", "-"];
        feed("bridge", &options, lines)
            .map(drop)
            .with_context(|| format!("in namespace {}", self.name))
    }

    /// Loads an nftables ruleset into it.
    pub fn nft(&self, rules: &str) -> Result<()> {
        // `ip netns exec` would do, but mounts a /sys of its own.
        let options = [
            &format!("--net={}", self.path().display()),
            "nft",
            "-f",
            "-",
        ];
        feed("nsenter", &options, rules)
            .map(drop)
            .with_context(|| format!("in namespace {}", self.name))
    }

    /// How many packets a named nftables counter of it has seen: `inet filter dropped`.
    pub fn nft_counter(&self, counter: &str) -> Result<u64> {
        let net = format!("--net={}", self.path().display());
        let mut options = vec![net.as_str(), "nft", "list", "counter"];
        options.extend(counter.split(' '));
        let text = feed("nsenter", &options, "")?;
        let packets = text
            .split_once("packets ")
            .and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok());
        packets.with_context(|| format!("counter {counter} in {}: {text}", self.name))
    }

    /// Sets sysctls of it, given as paths below /proc/sys/net.
    pub fn sysctls(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.enter(|| {
            for (key, value) in settings {
                let path = Path::new("/proc/sys/net").join(key);
                std::fs::write(&path, value)
                    .with_context(|| format!("set {}={value} in {}", path.display(), self.name))?;
            }
            Ok(())
        })?
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Removes a named namespace, if it is there.
pub fn remove(name: &str) {
    let path = Path::new(DIR).join(name);
    // Failing means somebody else removed it: either way it is gone.
    let _ = umount2(&path, MntFlags::MNT_DETACH);
    let _ = std::fs::remove_file(&path);
}

/// Names of all namespaces of this machine.
pub fn list() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(DIR) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// Runs lines of `ip` commands in the calling thread's namespace.
pub fn ip_here(options: &[&str], lines: &str) -> Result<String> {
    ip_batch(options, lines)
}

fn ip_batch(options: &[&str], lines: &str) -> Result<String> {
    let options: Vec<&str> = options.iter().copied().chain(["-batch", "-"]).collect();
    feed("ip", &options, lines)
}

/// Runs a program with this input, and yields what it printed.
fn feed(program: &str, options: &[&str], lines: &str) -> Result<String> {
    let mut child = Command::new(program)
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {program} (is it installed? cargo xtask setup)"))?;
    // Taken, so that the pipe closes; these answer little while they read, no deadlock.
    let written = child
        .stdin
        .take()
        .map(|mut stdin| stdin.write_all(lines.as_bytes()));
    let output = child
        .wait_with_output()
        .with_context(|| format!("wait for {program}"))?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        let shown: String = lines.lines().take(100).flat_map(|l| [l, "\n"]).collect();
        bail!("{program}: {}\n{shown}", reason.trim());
    }
    if let Some(Err(error)) = written {
        return Err(error).with_context(|| format!("feed {program}"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
