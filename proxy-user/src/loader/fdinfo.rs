//! What the kernel says of a descriptor of bpf(2) in /proc/self/fdinfo (`bpf_map_show_fdinfo` and
//! `bpf_prog_show_fdinfo` in kernel/bpf/syscall.c).

use std::{
    fs,
    os::fd::{AsRawFd as _, BorrowedFd},
};

#[derive(Debug)]
pub(super) struct FdInfo(String);

impl FdInfo {
    pub(super) fn of(fd: BorrowedFd<'_>) -> Option<Self> {
        fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))
            .ok()
            .map(Self)
    }

    /// `None`: this kernel doesn't say.
    pub(super) fn number(&self, key: &str) -> Option<u64> {
        let mut lines = self.0.lines();
        let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        value.trim().parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_found_by_its_whole_key() {
        let info = FdInfo("memlock_max:\t1\nmemlock:\t4096\nprog_type:\ttc\n".into());
        assert_eq!(info.number("memlock"), Some(4096));
        assert_eq!(info.number("prog_type"), None);
        assert_eq!(info.number("run_cnt"), None);
    }
}
