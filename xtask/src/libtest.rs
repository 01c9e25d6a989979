//! Reads what a libtest binary prints about itself.

use std::ops::AddAssign;

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
}

impl Counts {
    /// `test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s`
    pub(crate) fn from_line(line: &str) -> Option<Self> {
        let (_, result) = line.split_once("test result: ")?;
        let count = |what: &str| {
            let part = result
                .split(';')
                .find(|part| part.trim_end().ends_with(what))?;
            part.split_whitespace().rev().nth(1)?.parse().ok()
        };
        Some(Self {
            passed: count("passed")?,
            failed: count("failed")?,
            ignored: count("ignored")?,
        })
    }

    pub(crate) fn total(self) -> u64 {
        self.passed + self.failed + self.ignored
    }

    /// The line that ends `cargo xtask test`.
    pub(crate) fn summary(self) -> String {
        let Self {
            passed,
            failed,
            ignored,
        } = self;
        if ignored == 0 {
            format!("{passed} passed, {failed} failed")
        } else {
            format!("{passed} passed, {failed} failed, {ignored} skipped")
        }
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

#[cfg(test)]
mod tests {
    use super::Counts;

    fn counts(passed: u64, failed: u64, ignored: u64) -> Counts {
        Counts {
            passed,
            failed,
            ignored,
        }
    }

    #[test]
    fn a_result_line_is_counted() {
        let ok = "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s\n";
        assert_eq!(Counts::from_line(ok), Some(counts(5, 0, 1)));
        let bad = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(Counts::from_line(bad), Some(counts(12, 3, 0)));
        let coloured =
            "test result: \u{1b}[32mok\u{1b}(B\u{1b}[m. 7 passed; 0 failed; 0 ignored; 0 measured";
        assert_eq!(Counts::from_line(coloured), Some(counts(7, 0, 0)));
    }

    #[test]
    fn other_lines_are_not() {
        for line in [
            "running 5 tests",
            "test a::passed ... ok",
            "test result: ok",
            "",
            "5 passed; 0 failed; 0 ignored",
        ] {
            assert_eq!(Counts::from_line(line), None, "{line}");
        }
    }

    #[test]
    fn the_summary_names_skips_only_when_there_are_some() {
        let mut sum = counts(5, 0, 0);
        assert_eq!(sum.summary(), "5 passed, 0 failed");
        sum += counts(1, 2, 3);
        assert_eq!(sum.summary(), "6 passed, 2 failed, 3 skipped");
        assert_eq!(sum.total(), 11);
    }
}
