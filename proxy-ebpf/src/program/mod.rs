//! Entries: one function a hook.

mod cgroup;
