//! promtool, which judges metrics and alert rules: Prometheus' own, taken out of the distribution's package.
//!
//! The package is not installed: it would start a server on this machine. target/tools/bin/promtool is all that is
//! kept of it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, bail};

use crate::{packages::Apt, sh, workspace::Workspace};

const PACKAGE: &str = "prometheus";
/// As dpkg writes the names of a package's files.
const MEMBER: &str = "./usr/bin/promtool";

/// The one on the path, or else ours, fetched if it isn't there.
pub(crate) fn ensure(workspace: &Workspace) -> Result<PathBuf> {
    if let Some(found) = sh::find("promtool") {
        return Ok(found);
    }
    let ours = workspace.tools().join("bin").join("promtool");
    if ours.exists() {
        return Ok(ours);
    }
    eprintln!("missing: promtool (package {PACKAGE}), which judges metrics and alert rules");
    if sh::find("apt-get").is_none() {
        bail!("there is no apt-get here: put Prometheus' promtool on the path and run this again");
    }
    let folder = workspace.tools().join("prometheus");
    fs::create_dir_all(&folder).with_context(|| format!("can't make {}", folder.display()))?;
    Apt::new().download(PACKAGE, &folder)?;
    let package = downloaded(&folder)?;
    sh::step("taking promtool out of it", || {
        extract(&package, &folder)?;
        fs::create_dir_all(workspace.tools().join("bin"))?;
        // Whoever finds it finds it whole.
        fs::rename(folder.join(MEMBER), &ours)
            .with_context(|| format!("can't make {}", ours.display()))
    })?;
    let _only_room = fs::remove_dir_all(&folder);
    Ok(ours)
}

fn downloaded(folder: &Path) -> Result<PathBuf> {
    let mut entries = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    entries
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get left no package in {}", folder.display()))
}

/// One file of the package; all of it would take 100 MB.
fn extract(package: &Path, folder: &Path) -> Result<()> {
    let mut files = sh::command("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("can't start dpkg-deb")?;
    let mut tar = sh::command("tar");
    tar.arg("-x").arg("-C").arg(folder).arg(MEMBER);
    tar.stdin(files.stdout.take().context("dpkg-deb without an output")?);
    let extracted = tar.status().context("can't start tar")?;
    let read = files.wait()?;
    if !extracted.success() || !read.success() {
        bail!("{} holds no {MEMBER}, or is damaged", package.display());
    }
    Ok(())
}
