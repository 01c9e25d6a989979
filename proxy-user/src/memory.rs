//! What glibc's allocator is asked for: little memory beside what is in use. Others do so by themselves.

use std::time::Duration;

/// By then the list is in the maps, and whoever helped with it has let go of it.
const SETTLED: Duration = Duration::from_secs(1);

/// A list takes several times what is kept of it, in pieces between those that stay. glibc would keep
/// all of it until the end.
pub(crate) async fn give_back_soon() {
    tokio::time::sleep(SETTLED).await;
    let _it_has_no_result = tokio::task::spawn_blocking(give_back).await;
}

/// One heap for all threads, before there are any. One reads lists and another keeps what they say: with a
/// heap for each, what the one frees is of no use to the other.
#[cfg(target_env = "gnu")]
pub(crate) fn share_one_heap() {
    // SAFETY: it changes a number that is read when a thread allocates for the first time.
    let _whether_it_is_known = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

#[cfg(not(target_env = "gnu"))]
pub(crate) fn share_one_heap() {}

#[cfg(target_env = "gnu")]
fn give_back() {
    // SAFETY: it takes no memory from anybody who has it, and may be called by any thread.
    let _whether_there_was_some = unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn give_back() {}
