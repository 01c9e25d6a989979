//! Ends the agent when its configuration file says something else (BEHAVIOUR P6): whoever started it
//! starts it again. Files that are rewritten with the same content change nothing; kube-proxy ends
//! then too (eventHandler in cmd/kube-proxy/app/options.go).

use std::{
    convert::Infallible,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use super::ConfigError;
use crate::watch::changes::{Changes, QUIET};

/// How often it is looked even so: the path may be a link to another folder than the watched one.
const INTERVAL: Duration = Duration::from_secs(1);

/// A file as it was read.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    pub path: PathBuf,
    pub content: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Same,
    /// Gone, unreadable or empty, as while it is being replaced: nothing to start again with.
    Nothing,
    Changed,
}

impl ConfigFile {
    fn look(&self) -> Look {
        match fs::read(&self.path) {
            Ok(content) if content == self.content => Look::Same,
            Ok(content) if content.is_empty() => Look::Nothing,
            Ok(_) => Look::Changed,
            Err(_) => Look::Nothing,
        }
    }

    /// Its folder: that of the path, in which a mounted ConfigMap is swapped.
    fn folder(&self) -> &Path {
        match self.path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        }
    }
}

/// Returns when the file says something else, or can't be watched.
pub async fn changed(file: ConfigFile) -> ConfigError {
    match watch(&file).await {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

async fn watch(file: &ConfigFile) -> Result<Infallible, ConfigError> {
    let inotify = |reason| ConfigError::Inotify {
        file: file.path.clone(),
        reason,
    };
    // Any name: the file's own, and those of a ConfigMap's links.
    let mut changes = Changes::watch(file.folder(), |_| true).map_err(inotify)?;
    let mut standing = Look::Same;
    loop {
        let told = changes.settled(INTERVAL).await;
        if !changes.is_current(file.folder())
            && let Ok(new) = Changes::watch(file.folder(), |_| true)
        {
            changes = new;
        }
        let mut look = file.look();
        if look == Look::Changed {
            // Behind a link it may be half written.
            look = settle(file).await;
        }
        match look {
            Look::Changed => {
                return Err(ConfigError::Changed {
                    file: file.path.clone(),
                });
            }
            Look::Nothing if standing == Look::Same => log::warn!(
                "--config {}: it is gone or empty; what it said is kept",
                file.path.display()
            ),
            Look::Same if standing == Look::Nothing => {
                log::info!("--config {}: it is back, unchanged", file.path.display());
            }
            Look::Same if told => {
                log::debug!("--config {}: looked at, unchanged", file.path.display());
            }
            Look::Same | Look::Nothing => {}
        }
        standing = look;
    }
}

/// Looks until two readings in a row are the same.
async fn settle(file: &ConfigFile) -> Look {
    let read = || -> io::Result<Vec<u8>> { fs::read(&file.path) };
    let mut last = read().ok();
    loop {
        tokio::time::sleep(QUIET).await;
        let now = read().ok();
        if now == last {
            return file.look();
        }
        last = now;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    const TEXT: &str = "mode: iptables\n";

    fn a_file() -> (TempDir, ConfigFile) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.conf");
        fs::write(&path, TEXT).unwrap();
        let content = TEXT.into();
        (dir, ConfigFile { path, content })
    }

    /// As kubelet does: the file is a link through `..data`, which is swapped by rename.
    fn a_config_map() -> (TempDir, ConfigFile) {
        let dir = tempfile::tempdir().unwrap();
        swap(dir.path(), "..1", TEXT);
        let path = dir.path().join("config.conf");
        symlink("..data/config.conf", &path).unwrap();
        let content = TEXT.into();
        (dir, ConfigFile { path, content })
    }

    fn swap(dir: &Path, version: &str, text: &str) {
        fs::create_dir(dir.join(version)).unwrap();
        fs::write(dir.join(version).join("config.conf"), text).unwrap();
        symlink(version, dir.join("..tmp")).unwrap();
        fs::rename(dir.join("..tmp"), dir.join("..data")).unwrap();
    }

    fn replace(file: &ConfigFile, text: &str) {
        let new = file.path.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, &file.path).unwrap();
    }

    #[test]
    fn the_same_content_is_no_change_however_it_comes() {
        let (_dir, file) = a_file();
        fs::write(&file.path, TEXT).unwrap();
        assert_eq!(file.look(), Look::Same);
        replace(&file, TEXT);
        assert_eq!(file.look(), Look::Same);
        let (dir, file) = a_config_map();
        swap(dir.path(), "..2", TEXT);
        assert_eq!(file.look(), Look::Same);
    }

    #[test]
    fn a_file_that_is_gone_or_empty_is_no_change_either() {
        let (_dir, file) = a_file();
        fs::write(&file.path, "").unwrap();
        assert_eq!(file.look(), Look::Nothing);
        fs::remove_file(&file.path).unwrap();
        assert_eq!(file.look(), Look::Nothing);
        replace(&file, TEXT);
        assert_eq!(file.look(), Look::Same);
    }

    #[tokio::test]
    async fn other_content_in_place_ends_it() {
        let (_dir, file) = a_file();
        let watched = tokio::spawn(changed(file.clone()));
        fs::write(&file.path, "mode: nftables\n").unwrap();
        assert!(matches!(
            watched.await.unwrap(),
            ConfigError::Changed { .. }
        ));
    }

    #[tokio::test]
    async fn a_config_map_swapped_for_another_ends_it() {
        let (dir, file) = a_config_map();
        let watched = tokio::spawn(changed(file));
        swap(dir.path(), "..2", "mode: nftables\n");
        assert!(matches!(
            watched.await.unwrap(),
            ConfigError::Changed { .. }
        ));
    }

    #[tokio::test]
    async fn a_change_behind_a_link_to_elsewhere_ends_it() {
        let (_elsewhere, target) = a_file();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("link.conf");
        symlink(&target.path, &path).unwrap();
        let watched = tokio::spawn(changed(ConfigFile {
            path,
            ..target.clone()
        }));
        replace(&target, "mode: nftables\n");
        assert!(matches!(
            watched.await.unwrap(),
            ConfigError::Changed { .. }
        ));
    }
}
