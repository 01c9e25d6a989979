//! Where the programs under test lie.

use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail};

static GIVEN: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();

/// Settles both for this process, before anything is started.
pub fn use_these(agent: PathBuf, probe: PathBuf) -> Result<()> {
    for path in [&agent, &probe] {
        if !path.is_file() {
            bail!("{}: no such file", path.display());
        }
    }
    GIVEN
        .set((agent, probe))
        .map_err(|_| anyhow!("the programs to run are settled already"))
}

/// The agent: `KUBE_PORTAL_BIN`, or `kube-portal` in the target directory this runs from.
pub fn kube_portal() -> Result<PathBuf> {
    match GIVEN.get() {
        Some((agent, _)) => Ok(agent.clone()),
        None => find(
            "KUBE_PORTAL_BIN",
            "kube-portal",
            "cargo build -p proxy-user",
        ),
    }
}

/// The probe: `KUBE_PORTAL_PROBE`, or `probe` in the target directory this runs from.
pub fn probe() -> Result<PathBuf> {
    match GIVEN.get() {
        Some((_, probe)) => Ok(probe.clone()),
        None => find("KUBE_PORTAL_PROBE", "probe", "cargo build -p tests --bins"),
    }
}

/// Prometheus' promtool: `KUBE_PORTAL_PROMTOOL`, or what `cargo xtask setup` has put into target/tools.
pub fn promtool() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("KUBE_PORTAL_PROMTOOL") {
        return Ok(path.into());
    }
    let exe = std::env::current_exe().context("own executable")?;
    exe.ancestors()
        .map(|dir| dir.join("tools/bin/promtool"))
        .find(|path| path.is_file())
        .context("promtool is missing: `cargo xtask setup` fetches it, or set KUBE_PORTAL_PROMTOOL")
}

/// Test executables lie in target/<profile>/deps, binaries one level above.
fn find(variable: &str, name: &str, how: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        let path = PathBuf::from(path);
        if !path.is_file() {
            bail!("{variable}={}: no such file", path.display());
        }
        return Ok(path);
    }
    let exe = std::env::current_exe().context("own executable")?;
    exe.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "{name} is not beside {}: set {variable} or `{how}`",
                exe.display()
            )
        })
}
