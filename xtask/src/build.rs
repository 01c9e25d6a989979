//! `cargo xtask build`: the kernel programs, then everything of the host that is run rather than linked.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{
    bpf, sh,
    workspace::{Profile, Workspace},
};

pub(crate) fn all(workspace: &Workspace, profile: Profile) -> Result<()> {
    bpf::build(workspace)?;
    host(workspace, profile)
}

/// kube-portal and the binaries of package tests (demo, probe, bench).
pub(crate) fn host(workspace: &Workspace, profile: Profile) -> Result<()> {
    let packages = &["proxy-user", "tests"];
    build(
        workspace,
        profile,
        packages,
        "the agent and the test binaries",
    )
}

/// kube-portal alone.
pub(crate) fn agent(workspace: &Workspace, profile: Profile) -> Result<()> {
    build(workspace, profile, &["proxy-user"], "the agent")
}

fn build(workspace: &Workspace, profile: Profile, packages: &[&str], what: &str) -> Result<()> {
    let mut cargo = sh::cargo(&workspace.root);
    cargo.arg("build");
    cargo.args(packages.iter().flat_map(|package| ["-p", package]));
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    point_at_object(&mut cargo, workspace);
    eprintln!("building {what}");
    sh::run(
        &mut cargo,
        &format!("building {what}"),
        "the errors are above",
    )
}

/// Tells proxy-user/build.rs where the kernel programs are.
///
/// It finds the usual place by itself, and is told only when it can't: a variable set here and unset in a plain `cargo
/// check` would rebuild the agent each time one follows the other.
pub(crate) fn point_at_object(cargo: &mut Command, workspace: &Workspace) {
    if workspace.build_dir_is_elsewhere() {
        cargo.env("KUBE_PORTAL_EBPF", workspace.bpf_object());
    }
}

/// The path of a binary of package tests, or who should have made it.
pub(crate) fn test_binary(
    workspace: &Workspace,
    profile: Profile,
    name: &str,
) -> Result<std::path::PathBuf> {
    let path = workspace.binary(profile, name);
    if !path.exists() {
        bail!(
            "there is no {}: package tests has no binary `{name}`",
            path.display()
        );
    }
    Ok(path)
}
