//! What was found, how bad it is, and what to do about it.

use std::fmt;

use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// Good to know; nothing is to be done.
    Note,
    /// It runs, and something is not served as it should.
    Warn,
    /// It can't run, or nothing would be served.
    Fail,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        })
    }
}

/// The part of the node that it is about; in the order of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    Kernel,
    Rights,
    Memory,
    Cgroups,
    Bpffs,
    Devices,
    #[serde(rename = "kube-proxy")]
    KubeProxy,
    Network,
    Api,
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kernel => "kernel",
            Self::Rights => "rights",
            Self::Memory => "memory",
            Self::Cgroups => "cgroups",
            Self::Bpffs => "bpffs",
            Self::Devices => "devices",
            Self::KubeProxy => "kube-proxy",
            Self::Network => "network",
            Self::Api => "api",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub level: Level,
    pub group: Group,
    /// What was looked at.
    pub what: String,
    /// What is there.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            level,
            group,
            what,
            found,
            remedy,
        } = self;
        write!(f, "{level:4}  {group:10}  {what}: {found}")?;
        match remedy {
            Some(remedy) => write!(f, " -> {remedy}"),
            None => Ok(()),
        }
    }
}

/// All findings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub findings: Vec<Finding>,
}

impl Report {
    pub(super) fn ok(&mut self, group: Group, what: impl Into<String>, found: impl Into<String>) {
        self.add(Level::Ok, group, what, found, None);
    }

    pub(super) fn note(&mut self, group: Group, what: impl Into<String>, found: impl Into<String>) {
        self.add(Level::Note, group, what, found, None);
    }

    pub(super) fn warn(
        &mut self,
        group: Group,
        what: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(Level::Warn, group, what, found, Some(remedy.into()));
    }

    pub(super) fn fail(
        &mut self,
        group: Group,
        what: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(Level::Fail, group, what, found, Some(remedy.into()));
    }

    pub(super) fn add(
        &mut self,
        level: Level,
        group: Group,
        what: impl Into<String>,
        found: impl Into<String>,
        remedy: Option<String>,
    ) {
        // A finding is a line, whatever others' errors and names hold.
        let line = |text: String| text.replace(['\n', '\r'], " ");
        self.findings.push(Finding {
            level,
            group,
            what: line(what.into()),
            found: line(found.into()),
            remedy: remedy.map(line),
        });
    }

    pub fn count(&self, level: Level) -> usize {
        let findings = self.findings.iter();
        findings.filter(|finding| finding.level == level).count()
    }

    /// One line.
    pub fn summary(&self) -> String {
        let counts = format!(
            "{} ok, {} note, {} warn, {} FAIL",
            self.count(Level::Ok),
            self.count(Level::Note),
            self.count(Level::Warn),
            self.count(Level::Fail)
        );
        let verdict = if self.count(Level::Fail) > 0 {
            "kube-portal can't run here as it is"
        } else if self.count(Level::Warn) > 0 {
            "kube-portal can run here, but not everything is as it should be"
        } else {
            "kube-portal can run here"
        };
        format!("{verdict}: {counts}")
    }

    /// The same for programs.
    pub fn to_json(&self) -> impl Serialize + '_ {
        #[derive(Serialize)]
        struct Json<'a> {
            findings: &'a [Finding],
            ok: usize,
            note: usize,
            warn: usize,
            fail: usize,
            summary: String,
        }
        Json {
            findings: &self.findings,
            ok: self.count(Level::Ok),
            note: self.count(Level::Note),
            warn: self.count(Level::Warn),
            fail: self.count(Level::Fail),
            summary: self.summary(),
        }
    }

    /// A line for each finding, and the summary.
    pub fn to_text(&self) -> String {
        let lines = self.findings.iter().map(Finding::to_string);
        let lines: Vec<String> = lines.chain([self.summary()]).collect();
        lines.join("\n")
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    impl Report {
        /// `level what` of every finding that is not fine.
        pub(in crate::check) fn bad(&self) -> Vec<String> {
            let bad = self.findings.iter().filter(|f| f.level > Level::Ok);
            bad.map(|finding| format!("{} {}", finding.level, finding.what))
                .collect()
        }

        /// The only finding about this.
        pub(in crate::check) fn about(&self, what: &str) -> &Finding {
            let mut found = self.findings.iter().filter(|f| f.what == what);
            let finding = found
                .next()
                .unwrap_or_else(|| panic!("nothing about {what}: {self:#?}"));
            assert!(found.next().is_none(), "twice about {what}: {self:#?}");
            assert_eq!(
                finding.level >= Level::Warn,
                finding.remedy.is_some(),
                "what is off has a remedy: {finding}"
            );
            finding
        }
    }

    #[test]
    fn a_finding_is_one_line_and_the_summary_is_the_last() {
        let mut report = Report::default();
        report.ok(Group::Kernel, "version", "6.1");
        report.fail(
            Group::Bpffs,
            "bpffs",
            "two\nlines",
            "mount -t bpf bpf /sys/fs/bpf",
        );
        assert_eq!(
            report.to_text(),
            "ok    kernel      version: 6.1\n\
             FAIL  bpffs       bpffs: two lines -> mount -t bpf bpf /sys/fs/bpf\n\
             kube-portal can't run here as it is: 1 ok, 0 note, 0 warn, 1 FAIL"
        );
    }

    #[test]
    fn the_summary_says_whether_anything_is_off() {
        let mut report = Report::default();
        report.note(Group::Kernel, "tcx", "missing");
        assert!(report.summary().starts_with("kube-portal can run here: "));
        report.warn(Group::Kernel, "jit", "off", "turn it on");
        assert!(
            report
                .summary()
                .starts_with("kube-portal can run here, but ")
        );
    }
}
