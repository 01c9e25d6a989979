//! Where things are: the repository, the target directory, and what lies in it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::sh;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Dev,
    Release,
}

impl Profile {
    pub(crate) fn from_release_flag(release: bool) -> Self {
        if release { Self::Release } else { Self::Dev }
    }

    fn folder(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Release => "release",
        }
    }
}

#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    /// What cargo says it is: CARGO_TARGET_DIR and configuration files are honoured.
    pub(crate) target: PathBuf,
    /// Where cargo keeps intermediate files; the target directory unless `build.build-dir` is configured.
    build_dir: PathBuf,
}

impl Workspace {
    pub(crate) fn find() -> Result<Self> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = here.parent().context("xtask's own folder has no parent")?;
        let mut cargo = sh::cargo(root);
        cargo.args(["metadata", "--no-deps", "--format-version=1"]);
        let metadata = sh::read(&mut cargo, "asking cargo for the target directory")?;
        let metadata: Value =
            serde_json::from_str(&metadata).context("cargo metadata is not JSON")?;
        let folder = |key: &str| metadata[key].as_str().map(PathBuf::from);
        let target =
            folder("target_directory").context("cargo metadata has no target_directory")?;
        Ok(Self {
            root: root.to_owned(),
            build_dir: folder("build_directory").unwrap_or_else(|| target.clone()),
            target,
        })
    }

    /// The folder of everything `setup` makes.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }

    /// The kernel programs, as the agent embeds them. proxy-user/build.rs knows this place too.
    pub(crate) fn bpf_object(&self) -> PathBuf {
        self.target.join("bpf").join("kube-portal-ebpf")
    }

    pub(crate) fn binary(&self, profile: Profile, name: &str) -> PathBuf {
        self.target.join(profile.folder()).join(name)
    }

    /// Whether proxy-user/build.rs, which looks upwards from OUT_DIR, would miss `bpf_object`.
    pub(crate) fn build_dir_is_elsewhere(&self) -> bool {
        self.build_dir != self.target
    }
}
