//! A folder of manifests as the source, for nodes without a cluster and for tests.
//!
//! `*.yaml`, `*.yml` and `*.json`, each with one or more documents. The folder is watched, not polled,
//! and works as a mounted ConfigMap does (`..data` swapped by rename); a file that is a link to
//! somewhere outside the folder is followed, but a change behind it is only noticed with the next
//! change in the folder.

mod folder;
mod manifest;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::sync::mpsc;

use self::folder::{Folder, Texts};
use super::{
    SourceError,
    changes::{Changes, QUIET},
};
use crate::model::Event;

/// How often it is looked whether the path still leads to the folder that is watched.
const IDENTITY_INTERVAL: Duration = Duration::from_secs(1);
/// Far above any manifest; a file beyond it is a mistake, not a manifest.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// Whether there is such a folder.
pub fn check(dir: &Path) -> Result<(), SourceError> {
    let checked = fs::metadata(dir).and_then(|metadata| {
        if metadata.is_dir() {
            Ok(())
        } else {
            Err(io::ErrorKind::NotADirectory.into())
        }
    });
    checked.map_err(|reason| SourceError::Folder {
        dir: dir.to_owned(),
        reason,
    })
}

/// Runs until the receiver is gone.
pub async fn run(
    dir: PathBuf,
    node_name: String,
    tx: mpsc::Sender<Event>,
) -> Result<(), SourceError> {
    check(&dir)?;
    // Watched before it is read: a change in between is seen twice rather than never.
    let mut changes = match Changes::watch(&dir, concerns_us) {
        Ok(changes) => changes,
        Err(reason) => return Err(SourceError::Inotify { dir, reason }),
    };
    let mut source = Source {
        folder: Folder::new(&node_name),
        lost: false,
        unread: false,
        dir,
        tx,
    };
    source.first_reading().await?;
    while !source.tx.is_closed() {
        let changed = changes.settled(IDENTITY_INTERVAL).await;
        let moved = !changes.is_current(&source.dir);
        if moved {
            match Changes::watch(&source.dir, concerns_us) {
                Ok(new) => {
                    changes = new;
                    // It may still be being filled.
                    changes.settled(QUIET).await;
                }
                Err(error) => {
                    source.lose(&error.to_string());
                    continue;
                }
            }
        }
        if (changed || moved || source.unread) && !source.reading().await {
            break;
        }
    }
    Ok(())
}

struct Source {
    dir: PathBuf,
    folder: Folder,
    tx: mpsc::Sender<Event>,
    /// The folder is gone, or is back but still empty.
    lost: bool,
    /// The last reading failed.
    unread: bool,
}

impl Source {
    async fn first_reading(&mut self) -> Result<(), SourceError> {
        match read(self.dir.clone()).await {
            Ok(texts) => {
                self.tell(texts).await;
                Ok(())
            }
            Err(reason) => Err(SourceError::Folder {
                dir: self.dir.clone(),
                reason,
            }),
        }
    }

    /// `false` when the receiver is gone.
    async fn reading(&mut self) -> bool {
        let texts = read(self.dir.clone()).await;
        self.unread = texts.is_err();
        match texts {
            // Whoever puts the folder back makes it first and fills it then.
            Ok(texts) if texts.is_empty() && self.lost => true,
            Ok(texts) => {
                if std::mem::replace(&mut self.lost, false) {
                    log::info!("manifest folder {}: it is back", self.dir.display());
                }
                self.tell(texts).await
            }
            Err(reason) => {
                self.lose(&reason.to_string());
                true
            }
        }
    }

    async fn tell(&mut self, texts: Texts) -> bool {
        let update = self.folder.update(texts);
        for line in update.lines {
            log::warn!("manifest folder {}: {line}", self.dir.display());
        }
        for event in update.events {
            if self.tx.send(event).await.is_err() {
                return false;
            }
        }
        true
    }

    fn lose(&mut self, reason: &str) {
        if !std::mem::replace(&mut self.lost, true) {
            log::warn!(
                "manifest folder {}: it is gone: {reason}; what it held is kept until it is back with manifests in it",
                self.dir.display()
            );
        }
    }
}

/// Off the runtime's threads: a folder may be on a slow disk.
async fn read(dir: PathBuf) -> io::Result<Texts> {
    tokio::task::spawn_blocking(move || {
        let mut texts = BTreeMap::new();
        for entry in fs::read_dir(&dir)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if !is_manifest(&name) {
                continue;
            }
            match read_file(&dir.join(&name)) {
                Ok(None) => {}
                Ok(Some(text)) => {
                    texts.insert(name, Ok(text));
                }
                Err(error) => {
                    texts.insert(name, Err(error.to_string()));
                }
            }
        }
        Ok(texts)
    })
    .await
    .unwrap_or_else(|panic| Err(io::Error::other(panic)))
}

/// `None` if it isn't a file (any more). Never blocks on a FIFO or device.
fn read_file(path: &Path) -> io::Result<Option<String>> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        // Removed since the folder was read; but a link to nowhere is still there.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound && path.symlink_metadata().is_err() =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    if !metadata.is_file() {
        return Ok(None);
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(io::Error::other(format!(
            "it is larger than {} MiB",
            MAX_FILE_BYTES >> 20
        )));
    }
    fs::read_to_string(path).map(Some)
}

/// Manifests; `..data`, by which kubelet swaps a ConfigMap's files; and the folder itself, whose name
/// may be anything.
fn concerns_us(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy());
    name.is_none_or(|name| is_manifest(&name) || name.starts_with("..")) || path.is_dir()
}

/// Hidden files are editors' and kubelet's own.
fn is_manifest(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|ext| ext.to_str());
    !name.starts_with('.') && matches!(extension, Some("yaml" | "yml" | "json"))
}

#[cfg(test)]
#[path = "file/tests.rs"]
mod tests;
