//! Whether the maps fit into the node's memory.

use super::finding::{Group, Report};
use crate::loader::mib;

#[derive(Clone, Debug)]
pub struct Memory {
    /// What all maps take, in bytes.
    pub needed: u64,
    /// What is free or can be freed, in bytes, if the kernel says.
    pub available: Option<u64>,
    /// Why the maps don't fit, as the agent would say it.
    pub too_much: Option<String>,
    /// Maps of an earlier agent are there.
    pub is_taken: bool,
}

pub(super) fn judge(memory: &Memory, report: &mut Report) {
    let what = "memory for maps";
    let needed = mib(memory.needed);
    if memory.is_taken {
        let found = format!("{needed}, which an earlier agent's have already");
        report.ok(Group::Memory, what, found);
    } else if let Some(reason) = &memory.too_much {
        let remedy =
            "choose smaller sizes: --max-flows and the other --max-... of `kube-portal run --help`";
        report.fail(Group::Memory, what, reason, remedy);
    } else if let Some(available) = memory.available {
        let found = format!("{needed} of {} that are left", mib(available));
        report.ok(Group::Memory, what, found);
    } else {
        let found = format!("{needed}; /proc/meminfo doesn't say what is left");
        report.note(Group::Memory, what, found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Level;

    #[test]
    fn maps_that_do_not_fit_are_told_unless_they_are_there() {
        let judged = |memory: &Memory| {
            let mut report = Report::default();
            judge(memory, &mut report);
            report.about("memory for maps").clone()
        };
        let mut memory = Memory {
            needed: 172 << 20,
            available: Some(1 << 30),
            too_much: None,
            is_taken: false,
        };
        assert_eq!(judged(&memory).level, Level::Ok);
        assert!(judged(&memory).found.contains("172.0 MiB of 1024.0 MiB"));
        memory.too_much = Some("too much".to_owned());
        assert_eq!(judged(&memory).level, Level::Fail);
        memory.is_taken = true;
        assert_eq!(judged(&memory).level, Level::Ok);
        memory = Memory {
            available: None,
            too_much: None,
            is_taken: false,
            ..memory
        };
        assert_eq!(judged(&memory).level, Level::Note);
    }
}
