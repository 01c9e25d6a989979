//! Compiles the kernel programs into the object that the agent carries.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};

use crate::{
    setup::{self, BpfToolchain},
    sh,
    workspace::Workspace,
};

const TARGET: &str = "bpfel-unknown-none";

/// Its own, because another compiler in the host's target directory would make cargo rebuild everything at each turn.
pub(crate) fn build_dir(workspace: &Workspace) -> PathBuf {
    workspace.target.join("bpf-build")
}

/// Leaves the object at `workspace.bpf_object()`.
pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    let BpfToolchain {
        rustc,
        cargo,
        bootstrap,
        linker,
    } = setup::bpf_toolchain(workspace)?;
    let build_dir = build_dir(workspace);
    let flags = [
        format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
        // BTF, which the kernel wants for maps and for reading the programs, is made of debug information.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // The linker's default sends every copy of known size to a loop over bytes, in a function of its own: slow, and
        // the verifier walks through it at each call. Without it LLVM writes loads and stores.
        "-Clink-arg=--disable-expand-memcpy-in-order".to_owned(),
        format!("-Clinker={}", linker.display()),
    ];
    let mut command = setup::bare(&cargo);
    command
        .current_dir(&workspace.root)
        .args([
            "build",
            "--release",
            "--package",
            "proxy-ebpf",
            "--bin",
            "kube-portal-ebpf",
        ])
        .args(["--target", TARGET, "-Z", "build-std=core", "--target-dir"])
        .arg(&build_dir)
        .env("RUSTC", &rustc)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    if bootstrap {
        command.env("RUSTC_BOOTSTRAP", "1");
    }
    eprintln!("building the kernel programs");
    sh::run(
        &mut command,
        "building the kernel programs",
        "the errors are above; `rm -r target/tools` makes the next run choose the compiler anew",
    )?;
    let built = build_dir
        .join(TARGET)
        .join("release")
        .join("kube-portal-ebpf");
    publish(&built, &workspace.bpf_object())
}

/// Copies only a different object: an untouched one keeps its time, and the agent is not rebuilt.
fn publish(built: &PathBuf, object: &PathBuf) -> Result<()> {
    let new = fs::read(built).with_context(|| format!("can't read {}", built.display()))?;
    if fs::read(object).is_ok_and(|old| old == new) {
        return Ok(());
    }
    let folder = object.parent().context("the object has no folder")?;
    fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
    fs::write(object, new).with_context(|| format!("can't write {}", object.display()))
}
