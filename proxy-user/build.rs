//! Puts the kernel programs where the agent's `include_bytes_aligned!` finds them: KUBE_PORTAL_EBPF_OBJECT.
//!
//! They are the file that KUBE_PORTAL_EBPF names, or target/bpf/kube-portal-ebpf, where `cargo xtask build` leaves them.
//! Without either the copy is empty and the agent says so when it starts: checking, linting and unit tests need no
//! compiler for the kernel.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

fn main() {
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=KUBE_PORTAL_EBPF");
    let object = match env::var_os("KUBE_PORTAL_EBPF").filter(|value| !value.is_empty()) {
        Some(named) => {
            let named = PathBuf::from(named);
            println!("cargo:rerun-if-changed={}", named.display());
            fs::read(&named)
                .unwrap_or_else(|error| panic!("KUBE_PORTAL_EBPF={}: {error}", named.display()))
        }
        None => usual_object(&out_dir),
    };
    let copy = out_dir.join("kube-portal-ebpf");
    fs::write(&copy, object).unwrap_or_else(|error| panic!("{}: {error}", copy.display()));
    println!("cargo:rustc-env=KUBE_PORTAL_EBPF_OBJECT={}", copy.display());
}

/// The object in the target directory; empty when there is none.
fn usual_object(out_dir: &Path) -> Vec<u8> {
    let Some(target) = target_dir(out_dir) else {
        return Vec::new();
    };
    let folder = target.join("bpf");
    // cargo runs this again each time as long as a path it watches is missing. So the folder is made, and dated before
    // this run, or it would count as changed.
    if !folder.exists() && fs::create_dir_all(&folder).is_ok() {
        let _ =
            fs::File::open(&folder).and_then(|folder| folder.set_modified(SystemTime::UNIX_EPOCH));
    }
    println!("cargo:rerun-if-changed={}", folder.display());
    fs::read(folder.join("kube-portal-ebpf")).unwrap_or_default()
}

/// OUT_DIR is TARGET[/TRIPLE]/PROFILE/build/PACKAGE-HASH/out; cargo keeps this file in TARGET.
fn target_dir(out_dir: &Path) -> Option<&Path> {
    out_dir
        .ancestors()
        .find(|folder| folder.join(".rustc_info.json").exists())
}
