//! When to read a folder again.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, ModifyKind},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout, timeout_at},
};

/// Several changes that belong together come within this time of one another.
pub(crate) const QUIET: Duration = Duration::from_millis(50);
/// A file that is being written is waited for, but not longer than this.
const PATIENCE: Duration = Duration::from_secs(2);

/// The changes of one folder, as inotify tells them.
pub(crate) struct Changes {
    events: mpsc::UnboundedReceiver<notify::Result<Event>>,
    _watcher: RecommendedWatcher,
    /// Device and inode: the watch stays with them when the path leads elsewhere.
    identity: (u64, u64),
    /// Whether a path in it matters.
    concerns: fn(&Path) -> bool,
}

impl Changes {
    pub(crate) fn watch(dir: &Path, concerns: fn(&Path) -> bool) -> notify::Result<Self> {
        // Before the watch: a folder replaced in between is then noticed as not current.
        let identity = identity(dir).map_err(notify::Error::io)?;
        let (tx, events) = mpsc::unbounded_channel();
        let mut watcher = notify::recommended_watcher(move |event| {
            // Fails when the other end is dropped, and the watcher with it.
            let _ = tx.send(event);
        })?;
        watcher.watch(dir, RecursiveMode::NonRecursive)?;
        Ok(Self {
            events,
            _watcher: watcher,
            identity,
            concerns,
        })
    }

    pub(crate) fn is_current(&self, dir: &Path) -> bool {
        identity(dir).is_ok_and(|identity| identity == self.identity)
    }

    /// Whether something changed within the given time; if so, returns when the changes are over.
    pub(crate) async fn settled(&mut self, at_most: Duration) -> bool {
        let mut writing = HashSet::new();
        let give_up = Instant::now() + at_most;
        loop {
            match timeout_at(give_up, self.events.recv()).await {
                Ok(Some(event)) => {
                    if note(event, &mut writing, self.concerns) {
                        break;
                    }
                }
                // The watcher's thread is gone, which it never is while we hold it.
                Ok(None) => sleep_until(give_up).await,
                Err(_) => return false,
            }
        }
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            match timeout(QUIET, self.events.recv()).await {
                Ok(Some(event)) => {
                    note(event, &mut writing, self.concerns);
                }
                Ok(None) => break,
                Err(_) if writing.is_empty() => break,
                Err(_) => {}
            }
        }
        true
    }
}

fn identity(dir: &Path) -> std::io::Result<(u64, u64)> {
    fs::metadata(dir).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Whether the event may have changed what the folder says. A file is half-written from the first
/// write (or truncation) until it is closed; it is then better not read.
fn note(
    event: notify::Result<Event>,
    writing: &mut HashSet<PathBuf>,
    concerns: fn(&Path) -> bool,
) -> bool {
    // An error is most likely an overflow: look at everything.
    let Ok(event) = event else { return true };
    if event.need_rescan() {
        writing.clear();
        return true;
    }
    if !event.paths.is_empty() && !event.paths.iter().any(|path| concerns(path)) {
        return false;
    }
    match event.kind {
        EventKind::Modify(ModifyKind::Data(_)) => {
            writing.extend(event.paths);
            true
        }
        // Our own reading opens and closes files as well.
        EventKind::Access(AccessKind::Close(AccessMode::Write)) | EventKind::Remove(_) => {
            for path in &event.paths {
                writing.remove(path);
            }
            true
        }
        EventKind::Access(_) => false,
        EventKind::Modify(ModifyKind::Name(_)) => {
            for path in &event.paths {
                writing.remove(path);
            }
            true
        }
        EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Other => true,
    }
}
