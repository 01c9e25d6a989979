//! Entries: one function a hook.

mod cgroup;
mod tc;
