//! The container image: kube-portal, the shared libraries that the loader gives it here, and nothing else.
//! There is no shell in it, no package, no list of users.
//!
//! The same binary, time, tag and revision give the same bytes.

mod archive;
mod libraries;
mod rootfs;

pub use archive::Written;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

/// Where the program is in the image.
pub const BINARY: &str = "/usr/local/bin/kube-portal";
/// Called so it understands kube-proxy's command line: the image fits into kube-proxy's own DaemonSet.
pub const ALIAS: &str = "/usr/local/bin/kube-proxy";

/// A file of the image.
#[derive(Debug)]
struct File {
    /// Absolute.
    path: PathBuf,
    mode: u32,
    content: Vec<u8>,
}

/// What is to be in an image.
#[derive(Debug)]
pub struct Image {
    version: String,
    /// Of the maps and programs it shares with the kernel.
    abi: String,
    /// By path, each once.
    files: Vec<File>,
}

impl Image {
    /// Of a kube-portal that runs on this machine.
    ///
    /// # Errors
    /// It doesn't run, or one of its libraries can't be found.
    pub fn of(binary: &Path) -> Result<Self> {
        let (version, abi) = version(binary)?;
        let mut files = vec![File {
            path: BINARY.into(),
            mode: 0o755,
            content: without_debug_info(binary)?,
        }];
        for path in libraries::of(binary)? {
            let content = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            files.push(File {
                path,
                mode: 0o755,
                content,
            });
        }
        files.sort_by(|one, other| one.path.cmp(&other.path));
        files.dedup_by(|one, other| one.path == other.path);
        Ok(Self {
            version,
            abi,
            files,
        })
    }

    /// Paths of its files.
    #[must_use]
    pub fn files(&self) -> Vec<&Path> {
        self.files.iter().map(|file| file.path.as_path()).collect()
    }

    /// Of all its files together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files
            .iter()
            .map(|file| file.content.len() as u64)
            .sum()
    }
}

/// The words of `kube-portal 0.1.0 (ABI 3)`.
fn version(binary: &Path) -> Result<(String, String)> {
    let said = Command::new(binary)
        .arg("--version")
        .output()
        .with_context(|| format!("run {} --version", binary.display()))?;
    let text = String::from_utf8_lossy(&said.stdout);
    let words: Vec<&str> = text.split_whitespace().collect();
    match words[..] {
        ["kube-portal", version, "(ABI", abi] => {
            Ok((version.to_owned(), abi.trim_end_matches(')').to_owned()))
        }
        _ => bail!(
            "{} --version says {:?}: that is no kube-portal",
            binary.display(),
            text.trim()
        ),
    }
}

/// Names of functions stay, for backtraces.
fn without_debug_info(binary: &Path) -> Result<Vec<u8>> {
    let stripped =
        std::env::temp_dir().join(format!("kube-portal-stripped-{}", std::process::id()));
    let output = Command::new("strip")
        .args(["--strip-debug", "-o"])
        .arg(&stripped)
        .arg(binary)
        .output()
        .context("run strip (of binutils, which every C compiler brings)")?;
    let content = fs::read(&stripped);
    // Where strip failed there is none.
    let _ = fs::remove_file(&stripped);
    if !output.status.success() {
        bail!(
            "strip {}: {}",
            binary.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    content.with_context(|| format!("read {}", stripped.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Image {
        let file = |path: &str, content: &[u8]| File {
            path: path.into(),
            mode: 0o755,
            content: content.to_vec(),
        };
        Image {
            version: "1.2.3".to_owned(),
            abi: "5".to_owned(),
            files: vec![
                file("/lib64/ld.so", b"the loader"),
                file(BINARY, &[7; 100_000]),
            ],
        }
    }

    fn archive(epoch: u64, revision: Option<&str>) -> Vec<u8> {
        // A name that is not in the archive.
        let name = format!("packaging-test-{}-{epoch}-{revision:?}", std::process::id());
        let output = std::env::temp_dir().join(name);
        let written = image().write_archive(&output, None, epoch, revision);
        let bytes = fs::read(&output).expect("the archive");
        fs::remove_file(&output).expect("the archive");
        let written = written.expect("written");
        assert_eq!(written.tag, "kube-portal:1.2.3");
        assert_eq!(written.bytes, bytes.len() as u64);
        bytes
    }

    #[test]
    fn the_same_files_time_and_revision_give_the_same_bytes() {
        let first = archive(1, Some("a"));
        std::thread::sleep(std::time::Duration::from_millis(1100));
        assert!(first == archive(1, Some("a")));
        assert!(first != archive(2, Some("a")));
        assert!(first != archive(1, Some("b")));
    }
}
