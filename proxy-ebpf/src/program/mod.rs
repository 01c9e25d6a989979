//! Entries: one function a hook.

mod ask;
mod cgroup;
mod tc;
