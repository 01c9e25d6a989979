//! Memory that is free goes back to the node.

use std::time::Duration;

/// By then the list is in the maps, and whoever helped with it has let go of it.
const SETTLED: Duration = Duration::from_secs(1);

/// A list takes several times what is kept of it, in pieces between those that stay. glibc would keep
/// all of it until the end.
pub(crate) async fn give_back_soon() {
    tokio::time::sleep(SETTLED).await;
    let _it_has_no_result = tokio::task::spawn_blocking(give_back).await;
}

#[cfg(target_env = "gnu")]
fn give_back() {
    // SAFETY: it takes no memory from anybody who has it, and may be called by any thread.
    let _whether_there_was_some = unsafe { libc::malloc_trim(0) };
}

/// Others do by themselves.
#[cfg(not(target_env = "gnu"))]
fn give_back() {}
