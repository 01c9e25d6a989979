//! Ctrl-C and SIGTERM end the demonstration in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

/// Whether somebody wants this to end.
#[derive(Debug)]
pub(super) struct Signals {
    arrived: Arc<AtomicBool>,
}

impl Signals {
    /// From now on they are noted instead of ending the process.
    pub(super) fn catch() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("runtime for signals")?;
        let (mut int, mut term, mut hup) = {
            let _inside = runtime.enter();
            (
                signal(SignalKind::interrupt()).context("catch SIGINT")?,
                signal(SignalKind::terminate()).context("catch SIGTERM")?,
                signal(SignalKind::hangup()).context("catch SIGHUP")?,
            )
        };
        let arrived = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&arrived);
        thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = int.recv() => {}
                    _ = term.recv() => {}
                    _ = hup.recv() => {}
                }
            });
            flag.store(true, Ordering::Release);
        });
        Ok(Self { arrived })
    }

    pub(super) fn arrived(&self) -> bool {
        self.arrived.load(Ordering::Acquire)
    }
}
