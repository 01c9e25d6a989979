//! What is pinned at a path.

use std::{fmt, fs, io, os::fd::AsRawFd as _, path::Path};

use super::link::Link;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Map,
    Link,
    Program,
    Directory,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Map => "a map",
            Self::Link => "a link",
            Self::Program => "a program",
            Self::Directory => "a directory",
        })
    }
}

/// Asked from the kernel: names say nothing.
pub(super) fn kind(path: &Path) -> io::Result<Kind> {
    if fs::symlink_metadata(path)?.is_dir() {
        return Ok(Kind::Directory);
    }
    let object = Link::open(path)?;
    // The name of its anonymous inode (kernel/bpf/syscall.c).
    let target = fs::read_link(format!("/proc/self/fd/{}", object.fd().as_raw_fd()))?;
    let target = target.to_string_lossy();
    [
        ("bpf-map", Kind::Map),
        ("bpf_link", Kind::Link),
        ("bpf-link", Kind::Link),
        ("bpf-prog", Kind::Program),
    ]
    .into_iter()
    .find_map(|(name, kind)| target.contains(name).then_some(kind))
    .ok_or_else(|| io::Error::other(format!("unknown: {target}")))
}
