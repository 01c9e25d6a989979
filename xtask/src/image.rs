//! `cargo xtask image`: the agent, optimised, as a container image in one file. No container engine is needed.

use std::{env, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    bpf, build, sh,
    workspace::{Profile, Workspace},
};

#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    /// The archive, for `docker load`, `podman load`, `ctr images import` or `skopeo copy` [default:
    /// kube-portal.tar in the target directory]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Its name [default: kube-portal:VERSION]
    #[arg(long, value_name = "NAME:TAG")]
    tag: Option<String>,
    /// Write the image's files below DIR in place of an archive; the Dockerfile does
    #[arg(long, value_name = "DIR", conflicts_with_all = ["output", "tag"])]
    root: Option<PathBuf>,
}

pub(crate) fn run(workspace: &Workspace, args: &ImageArgs) -> Result<()> {
    bpf::build(workspace)?;
    build::agent(workspace, Profile::Release)?;
    // This crate compiles in seconds, and only for this task.
    let mut packaging = sh::cargo(&workspace.root);
    packaging
        .args(["run", "--quiet", "-p", "packaging", "--", "--binary"])
        .arg(workspace.binary(Profile::Release, "kube-portal"));
    match &args.root {
        Some(root) => packaging.arg("--root").arg(absolute(root)?),
        None => {
            let usual = workspace.target.join("kube-portal.tar");
            let output = args.output.as_ref().unwrap_or(&usual);
            packaging.arg("--output").arg(absolute(output)?)
        }
    };
    if let Some(tag) = &args.tag {
        packaging.args(["--tag", tag]);
    }
    // Without git the image is of no time and of no commit.
    if let Some(commit) = git(workspace, &["rev-parse", "HEAD"]) {
        packaging.args(["--revision", &commit]);
    }
    if env::var_os("SOURCE_DATE_EPOCH").is_none()
        && let Some(time) = git(workspace, &["log", "-1", "--format=%ct"])
    {
        packaging.args(["--epoch", &time]);
    }
    sh::run(&mut packaging, "writing the image", "the reason is above")
}

/// cargo runs in the repository, whoever called it.
fn absolute(path: &std::path::Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| path.display().to_string())
}

fn git(workspace: &Workspace, args: &[&str]) -> Option<String> {
    let mut git = sh::command("git");
    git.current_dir(&workspace.root).args(args);
    let said = sh::read(&mut git, "asking git").ok()?;
    Some(said.trim().to_owned())
}
