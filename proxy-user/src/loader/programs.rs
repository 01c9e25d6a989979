//! The programs that were loaded, and what the kernel has counted of them.

use std::{
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aya::sys::{Stats, SyscallError, enable_stats};

use super::fdinfo::FdInfo;

/// Clones are the same list.
#[derive(Clone, Debug, Default)]
pub struct Programs(Arc<Mutex<Vec<(String, OwnedFd)>>>);

/// What the kernel says of a program, since it was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub program: String,
    /// Of the program's instructions, and what belongs to them.
    pub memory_bytes: u64,
    /// Instructions that the verifier looked at until it was satisfied (Linux 5.16).
    pub verified: Option<u64>,
    /// How often it was run, and how long that took; `None` if the kernel has not counted.
    pub runs: Option<(u64, Duration)>,
}

impl Programs {
    fn list(&self) -> MutexGuard<'_, Vec<(String, OwnedFd)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One without a second descriptor is not in the list: what is asked of it can be done without.
    pub(super) fn add(&self, program: &str, fd: BorrowedFd<'_>) {
        match fd.try_clone_to_owned() {
            Ok(fd) => self.list().push((program.to_owned(), fd)),
            Err(error) => log::debug!("program {program}: {error}"),
        }
    }

    /// In the order in which they were loaded.
    pub fn accounts(&self) -> Vec<Account> {
        let list = self.list();
        let accounts = list.iter().filter_map(|(program, fd)| {
            let info = FdInfo::of(fd.as_fd())?;
            let runs = info.number("run_cnt").filter(|runs| *runs > 0);
            Some(Account {
                program: program.clone(),
                memory_bytes: info.number("memlock")?,
                verified: info.number("verified_insns").filter(|count| *count > 0),
                runs: runs.zip(info.number("run_time_ns").map(Duration::from_nanos)),
            })
        });
        accounts.collect()
    }

    /// From now on, and as long as what is returned is kept, the kernel counts the runs of all programs of the
    /// node and takes their time (BPF_ENABLE_STATS, Linux 5.8).
    pub fn count_runs() -> Result<OwnedFd, SyscallError> {
        enable_stats(Stats::RunTime)
    }
}
