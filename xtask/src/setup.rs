//! Owns target/tools: chooses the Rust for the kernel programs, builds bpf-linker against its LLVM, remembers both.
//!
//! ```text
//! target/tools/bpf-toolchain.json   what was chosen; when it still holds, setup ends here
//! target/tools/llvm/lib/            symlinks to the chosen compiler's libLLVM
//! target/tools/bin/bpf-linker
//! target/tools/bin/promtool         see `promtool`
//! ```

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::{
    compiler::{Choice, Compiler, Machine, Origin, PINNED_NIGHTLY, Rustup, Version, choose},
    packages::{self, Apt, Task},
    promtool, sh,
    workspace::Workspace,
};

/// The linker of eBPF objects. It reads the compiler's LLVM bitcode, so it must use the same LLVM.
const BPF_LINKER: &str = "0.13.0";

/// What builds the kernel programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BpfToolchain {
    pub(crate) rustc: PathBuf,
    pub(crate) cargo: PathBuf,
    /// A stable compiler must be told to accept `-Z build-std`.
    pub(crate) bootstrap: bool,
    pub(crate) linker: PathBuf,
}

/// `cargo xtask setup`
pub(crate) fn everything(workspace: &Workspace) -> Result<()> {
    packages::ensure_tools(&[Task::Build, Task::Run, Task::Test, Task::Bench])?;
    lints(workspace)?;
    bpf_toolchain(workspace)?;
    promtool::ensure(workspace)?;
    Ok(())
}

/// rustfmt and clippy of the project's own toolchain.
pub(crate) fn lints(workspace: &Workspace) -> Result<()> {
    for (subcommand, component, why) in [
        ("fmt", "rustfmt", "checks the formatting"),
        ("clippy", "clippy", "checks for mistakes"),
    ] {
        let mut probe = sh::cargo(&workspace.root);
        if sh::read(probe.args([subcommand, "--version"]), component).is_ok() {
            continue;
        }
        eprintln!("missing: cargo {subcommand} (component {component}), which {why}");
        let Some(rustup) = sh::find("rustup") else {
            bail!("cargo {subcommand} is missing: install {component} for this cargo");
        };
        let mut add = sh::command(rustup);
        add.args(["component", "add", component])
            .current_dir(&workspace.root);
        sh::step(&format!("adding {component}"), || {
            sh::run_quietly(&mut add, &format!("adding {component}"), "run it by hand")
        })?;
    }
    Ok(())
}

/// The recorded toolchain if it still holds, or else a new one.
pub(crate) fn bpf_toolchain(workspace: &Workspace) -> Result<BpfToolchain> {
    packages::ensure_tools(&[Task::Build])?;
    let tools = workspace.tools();
    fs::create_dir_all(&tools).with_context(|| format!("can't make {}", tools.display()))?;
    // Two xtasks at once must not build the linker into one folder.
    let lock = tools.join(".lock");
    let lock = fs::File::create(&lock).with_context(|| format!("can't make {}", lock.display()))?;
    lock.lock().context("can't lock target/tools")?;

    let record = tools.join("bpf-toolchain.json");
    if let Some(recorded) = recorded(&record) {
        return Ok(recorded);
    }
    let compiler = find_compiler()?;
    let linker = install_linker(workspace, &compiler)?;
    // cargo can't see that the linker changed.
    let stale = crate::bpf::build_dir(workspace);
    if stale.exists() {
        fs::remove_dir_all(&stale).with_context(|| format!("can't remove {}", stale.display()))?;
    }
    let cargo = compiler
        .cargo
        .clone()
        .context("a chosen compiler has no cargo")?;
    let bootstrap = compiler.origin == Origin::Distribution;
    let toolchain = BpfToolchain {
        rustc: compiler.rustc,
        cargo,
        bootstrap,
        linker,
    };
    let text = format!(
        "{:#}\n",
        to_json(&toolchain, &verbose_version(&toolchain.rustc)?)
    );
    fs::write(&record, text).with_context(|| format!("can't write {}", record.display()))?;
    Ok(toolchain)
}

fn to_json(toolchain: &BpfToolchain, rustc_version: &str) -> Value {
    json!({
        "rustc": toolchain.rustc.to_string_lossy(),
        "rustc_version": rustc_version,
        "cargo": toolchain.cargo.to_string_lossy(),
        "bootstrap": toolchain.bootstrap,
        "linker": toolchain.linker.to_string_lossy(),
        "linker_version": BPF_LINKER,
        "pinned_nightly": PINNED_NIGHTLY,
    })
}

fn from_json(record: &Value, rustc_version: &str) -> Option<BpfToolchain> {
    let path = |key: &str| record[key].as_str().map(PathBuf::from);
    let toolchain = BpfToolchain {
        rustc: path("rustc")?,
        cargo: path("cargo")?,
        bootstrap: record["bootstrap"].as_bool()?,
        linker: path("linker")?,
    };
    // Everything that went into the choice is in the record, our constants too; any difference makes it void.
    (to_json(&toolchain, rustc_version) == *record).then_some(toolchain)
}

fn recorded(file: &Path) -> Option<BpfToolchain> {
    let record: Value = serde_json::from_str(&fs::read_to_string(file).ok()?).ok()?;
    let rustc = Path::new(record["rustc"].as_str()?);
    let toolchain = from_json(&record, &verbose_version(rustc).ok()?)?;
    let here = toolchain.cargo.exists() && sources(&sysroot(rustc).ok()?).exists();
    (here && linker_runs(&toolchain.linker)).then_some(toolchain)
}

/// A compiler's own binary, not rustup's proxy, told nothing by our environment.
pub(crate) fn bare(program: &Path) -> Command {
    let mut command = sh::command(program);
    for key in [
        "RUSTUP_TOOLCHAIN",
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "CARGO",
        "RUSTFLAGS",
    ] {
        command.env_remove(key);
    }
    command
}

fn verbose_version(rustc: &Path) -> Result<String> {
    sh::read(
        bare(rustc).arg("-vV"),
        "asking the compiler for its version",
    )
}

fn sysroot(rustc: &Path) -> Result<PathBuf> {
    let sysroot = sh::read(
        bare(rustc).args(["--print", "sysroot"]),
        "asking the compiler for its sysroot",
    )?;
    Ok(PathBuf::from(sysroot.trim_end()))
}

fn sources(sysroot: &Path) -> PathBuf {
    sysroot.join("lib/rustlib/src/rust/library/Cargo.lock")
}

fn find_compiler() -> Result<Compiler> {
    let rustup = sh::find("rustup");
    let mut refused = false;
    let mut tried_packages = false;
    let mut apt = Apt::new();
    loop {
        let rustup_state = match &rustup {
            None => Rustup::Absent,
            Some(_) if refused => Rustup::Refused,
            Some(rustup) => Rustup::Present {
                nightlies: rustup_nightlies(rustup),
            },
        };
        let machine = Machine {
            rustup: rustup_state,
            distribution: distribution_compiler(),
            offers: apt.offers(),
        };
        match choose(&machine) {
            Choice::Use(compiler) => return Ok(compiler),
            Choice::AddNightly => {
                let rustup = rustup
                    .as_deref()
                    .context("rustup was chosen but is absent")?;
                if let Err(reason) = add_nightly(rustup) {
                    eprintln!(
                        "rustup can't add {PINNED_NIGHTLY} here ({reason:#}); using the distribution's Rust"
                    );
                    refused = true;
                }
            }
            Choice::RefreshLists => apt.update()?,
            Choice::InstallPackages(set) if !tried_packages => {
                eprintln!(
                    "missing: a Rust with the sources of its library (packages {}), which compiles for the kernel",
                    set.join(", ")
                );
                apt.install(set)?;
                tried_packages = true;
            }
            Choice::InstallPackages(set) => {
                let why = machine.distribution.and_then(|found| found.unfit());
                bail!(
                    "{} are installed, but /usr/bin/rustc can't compile for the kernel: {}",
                    set.join(", "),
                    why.unwrap_or_else(|| "it is not there".to_owned())
                );
            }
            Choice::GiveUp(why) => bail!("{why}"),
        }
    }
}

fn add_nightly(rustup: &Path) -> Result<()> {
    eprintln!(
        "missing: Rust {PINNED_NIGHTLY} with its sources, which compiles for the kernel (the project's own Rust stays as it is)"
    );
    let mut install = bare(rustup);
    install
        .args(["toolchain", "install", PINNED_NIGHTLY, "--no-self-update"])
        .args(["--profile", "minimal", "--component", "rust-src"]);
    sh::step(&format!("rustup is installing {PINNED_NIGHTLY}"), || {
        let output = install.output().context("can't start rustup")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let error = said
                .lines()
                .find(|line| line.starts_with("error"))
                .or(said.lines().last());
            bail!(
                "{}",
                error
                    .unwrap_or("it gave no reason")
                    .trim_start_matches("error: ")
            );
        }
        Ok(())
    })?;
    if !rustup_nightlies(rustup)
        .iter()
        .any(|found| found.unfit().is_none())
    {
        bail!("what it installed can't compile for the kernel");
    }
    Ok(())
}

fn rustup_nightlies(rustup: &Path) -> Vec<Compiler> {
    let Ok(list) = sh::read(
        bare(rustup).args(["toolchain", "list"]),
        "asking rustup for its toolchains",
    ) else {
        return Vec::new();
    };
    let names = list
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    let nightlies = names.filter(|name| name.starts_with("nightly"));
    nightlies
        .filter_map(|name| rustup_compiler(rustup, name))
        .collect()
}

fn rustup_compiler(rustup: &Path, name: &str) -> Option<Compiler> {
    let mut which = bare(rustup);
    which.args(["which", "--toolchain", name, "rustc"]);
    let rustc = PathBuf::from(
        sh::read(&mut which, "asking rustup for a compiler")
            .ok()?
            .trim_end(),
    );
    compiler_at(rustc, Origin::Rustup(name.to_owned()))
}

fn distribution_compiler() -> Option<Compiler> {
    let rustc = Path::new("/usr/bin/rustc");
    // A distribution's rustup package puts its proxies there.
    let real = fs::canonicalize(rustc).ok()?;
    if real.file_name()? == "rustup" {
        return None;
    }
    compiler_at(rustc.to_owned(), Origin::Distribution)
}

fn compiler_at(rustc: PathBuf, origin: Origin) -> Option<Compiler> {
    let version = Version::parse(&verbose_version(&rustc).ok()?)?;
    let sysroot = sysroot(&rustc).ok()?;
    let cargo = rustc.with_file_name("cargo");
    Some(Compiler {
        origin,
        has_sources: sources(&sysroot).exists(),
        sysroot,
        cargo: cargo.exists().then_some(cargo),
        rustc,
        version,
    })
}

fn linker_runs(linker: &Path) -> bool {
    let version = sh::read(
        sh::command(linker).arg("--version"),
        "asking bpf-linker for its version",
    );
    version.is_ok_and(|version| version.contains(BPF_LINKER))
}

fn install_linker(workspace: &Workspace, compiler: &Compiler) -> Result<PathBuf> {
    let tools = workspace.tools();
    let llvm = tools.join("llvm");
    let real = link_llvm(compiler, &llvm.join("lib"))?;
    let major = compiler.version.llvm_major;
    eprintln!(
        "missing: bpf-linker {BPF_LINKER} for LLVM {major} ({}), which links the kernel programs into one object",
        real.display()
    );
    let build = tools.join("build");
    let mut install = sh::cargo(&workspace.root);
    install
        .args([
            "install",
            &format!("bpf-linker@{BPF_LINKER}"),
            "--locked",
            "--force",
            "--quiet",
        ])
        .args([
            "--no-default-features",
            "--features",
            &format!("llvm-{major}"),
        ])
        .arg("--root")
        .arg(&tools)
        .arg("--target-dir")
        .arg(&build)
        // Its build script links what is in lib/ below this, and writes that path into the binary (rpath).
        .env("LLVM_PREFIX", &llvm);
    sh::step("building bpf-linker (about a minute)", || {
        sh::run_quietly(
            &mut install,
            "building bpf-linker",
            "it needs the crate registry and a C compiler",
        )
    })?;
    let linker = tools.join("bin").join("bpf-linker");
    if !linker_runs(&linker) {
        bail!(
            "{} was built but does not run: does it find {}?",
            linker.display(),
            real.display()
        );
    }
    // Kept until now so that an interrupted build continues.
    let _ = fs::remove_dir_all(&build);
    Ok(linker)
}

/// Makes `folder` hold the compiler's libLLVM only, as the linker looks for it and as the loader does.
fn link_llvm(compiler: &Compiler, folder: &Path) -> Result<PathBuf> {
    let real = find_llvm(compiler)?;
    let name = real
        .file_name()
        .context("libLLVM without a name")?
        .to_owned();
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
    for link in [folder.join("libLLVM.so"), folder.join(name)] {
        if !link.exists() {
            symlink(&real, &link).with_context(|| format!("can't make {}", link.display()))?;
        }
    }
    Ok(real)
}

fn find_llvm(compiler: &Compiler) -> Result<PathBuf> {
    let major = compiler.version.llvm_major;
    let mut folders = vec![compiler.sysroot.join("lib")];
    if compiler.origin == Origin::Distribution {
        let arch = std::env::consts::ARCH;
        folders.extend(
            [
                format!("/usr/lib/{arch}-linux-gnu"),
                "/usr/lib64".to_owned(),
                format!("/usr/lib/llvm-{major}/lib"),
            ]
            .map(PathBuf::from),
        );
    }
    let names = folders
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flatten()
        .flatten();
    let mut found: Vec<PathBuf> = names
        .filter(|entry| is_llvm(&entry.file_name().to_string_lossy(), major))
        .filter_map(|entry| fs::canonicalize(entry.path()).ok())
        // Others of the name are linker scripts, a line of text that points at the library.
        .filter(|path| fs::metadata(path).is_ok_and(|file| file.len() > 1 << 20))
        .collect();
    found.sort();
    found.pop().with_context(|| {
        let places: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
        format!(
            "{} uses LLVM {major}, but there is no libLLVM of it in {}: install the package of LLVM {major}'s library",
            compiler.rustc.display(),
            places.join(", ")
        )
    })
}

/// `libLLVM.so.22.1`, `libLLVM.so.22.1-rust-1.97.0-nightly`, `libLLVM-22.so`, `libLLVM-22-rust-1.97.0-nightly.so`
fn is_llvm(name: &str, major: u32) -> bool {
    let version = name
        .strip_prefix("libLLVM.so.")
        .or_else(|| name.strip_prefix("libLLVM-"));
    let Some(version) = version else { return false };
    let digits = version.split(|c: char| !c.is_ascii_digit()).next();
    digits == Some(major.to_string().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_is_known_by_its_file_name() {
        for name in [
            "libLLVM.so.22.1",
            "libLLVM.so.22.1-rust-1.97.0-nightly",
            "libLLVM-22.so",
            "libLLVM-22-rust-1.97.0-nightly.so",
        ] {
            assert!(is_llvm(name, 22), "{name}");
        }
        for name in [
            "libLLVM-14.so.1",
            "libLLVM.so",
            "libLLVM.so.221",
            "librustc_driver-22.so",
            "libLLVM-2.so",
        ] {
            assert!(!is_llvm(name, 22), "{name}");
        }
    }

    #[test]
    fn a_record_holds_until_anything_in_it_changes() {
        let toolchain = BpfToolchain {
            rustc: "/usr/bin/rustc".into(),
            cargo: "/usr/bin/cargo".into(),
            bootstrap: true,
            linker: "/t/tools/bin/bpf-linker".into(),
        };
        let record = to_json(&toolchain, "rustc 1.96.0");
        assert_eq!(from_json(&record, "rustc 1.96.0"), Some(toolchain));
        assert_eq!(from_json(&record, "rustc 1.97.0"), None);
        for key in ["linker_version", "pinned_nightly"] {
            let mut other = record.clone();
            other[key] = "another".into();
            assert_eq!(from_json(&other, "rustc 1.96.0"), None, "{key}");
        }
        assert_eq!(from_json(&Value::Null, "rustc 1.96.0"), None);
    }
}
