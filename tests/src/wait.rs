//! Waiting for a condition, never for a while.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Calls `check` until it yields something, or fails naming `what` when `timeout` is over.
pub fn until<T>(what: &str, timeout: Duration, mut check: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(found) = check() {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            bail!("{what}: not within {timeout:?}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
