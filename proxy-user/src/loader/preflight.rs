//! Is this a node we can run on? Each refusal says what, where and what to do.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// `CGROUP2_SUPER_MAGIC`, include/uapi/linux/magic.h.
const CGROUP2_MAGIC: i64 = 0x6367_7270;
/// `BPF_FS_MAGIC`, include/uapi/linux/magic.h.
const BPFFS_MAGIC: i64 = 0xcafe_4a11;

#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    #[error(
        "not root: loading programs needs CAP_BPF and CAP_NET_ADMIN; run it with sudo, or as a privileged container"
    )]
    NotRoot,
    #[error(
        "Linux {release} is too old: 5.10 is the oldest kernel with everything kube-portal uses; update the kernel"
    )]
    KernelTooOld { release: String },
    #[error(
        "no cgroup v2 hierarchy is mounted: mount one with `mount -t cgroup2 none /sys/fs/cgroup/unified`, or name one with --cgroup-root"
    )]
    NoCgroup2,
    #[error("--cgroup-root {path}: {reason}; name a directory of a mounted cgroup v2 hierarchy")]
    BadCgroupRoot { path: PathBuf, reason: String },
    #[error(
        "--bpffs-root {path}: {reason}; mount one with `mount -t bpf bpf {path}`, or name another directory"
    )]
    BadBpffsRoot { path: PathBuf, reason: String },
}

/// Root, and a kernel that is new enough.
pub fn check_node() -> Result<(), PreflightError> {
    if !rustix::process::geteuid().is_root() {
        return Err(PreflightError::NotRoot);
    }
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    match kernel_version(&release) {
        Some(version) if version < (5, 10) => Err(PreflightError::KernelTooOld { release }),
        // A release that can't be read is no reason to refuse: loading will tell.
        Some(_) | None => Ok(()),
    }
}

/// The first two numbers of a release.
pub fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The first cgroup v2 hierarchy in /proc/self/mounts; at its usual places or, on hybrid nodes,
/// beside version 1.
pub fn find_cgroup_root() -> Result<PathBuf, PreflightError> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    cgroup2_mount(&mounts).ok_or(PreflightError::NoCgroup2)
}

fn cgroup2_mount(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let path = fields.next()?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(path))
    })
}

fn check_magic(path: &Path, magic: i64, what: &str) -> Result<(), String> {
    let stat = rustix::fs::statfs(path).map_err(|errno| errno.to_string())?;
    // The kernel's type is signed on some architectures; the magic is 32 bits wide.
    if stat.f_type as i64 & 0xffff_ffff == magic {
        Ok(())
    } else {
        Err(format!("not on {what}"))
    }
}

pub fn check_cgroup(path: &Path) -> Result<(), PreflightError> {
    check_magic(path, CGROUP2_MAGIC, "a cgroup v2 filesystem").map_err(|reason| {
        PreflightError::BadCgroupRoot {
            path: path.to_owned(),
            reason,
        }
    })
}

pub fn check_bpffs(path: &Path) -> Result<(), PreflightError> {
    match bpffs_fault(path) {
        None => Ok(()),
        Some(reason) => Err(PreflightError::BadBpffsRoot {
            path: path.to_owned(),
            reason,
        }),
    }
}

/// Why a path is no BPF filesystem, if it isn't.
pub fn bpffs_fault(path: &Path) -> Option<String> {
    check_magic(path, BPFFS_MAGIC, "a BPF filesystem").err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_release_is_compared_by_its_first_two_numbers() {
        assert_eq!(kernel_version("5.4.0-150-generic"), Some((5, 4)));
        assert_eq!(kernel_version("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(kernel_version("5.10"), Some((5, 10)));
        assert_eq!(kernel_version("next"), None);
    }

    #[test]
    fn the_cgroup2_mount_is_found_beside_version_1() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(
            cgroup2_mount(mounts),
            Some(PathBuf::from("/sys/fs/cgroup/unified"))
        );
        assert_eq!(cgroup2_mount("proc /proc proc rw 0 0\n"), None);
    }

    #[test]
    fn a_folder_that_is_no_cgroup_is_named() {
        let error = check_cgroup(Path::new("/proc")).unwrap_err().to_string();
        assert!(
            error.contains("/proc") && error.contains("cgroup v2"),
            "{error}"
        );
        let error = check_bpffs(Path::new("/nonexistent"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("/nonexistent"), "{error}");
    }
}
