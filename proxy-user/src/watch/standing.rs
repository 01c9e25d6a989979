use std::collections::HashMap;

/// The problems that stand, so that each is said once and not at every reload or update.
#[derive(Debug, Default)]
pub(super) struct Standing {
    of: HashMap<String, Vec<String>>,
}

impl Standing {
    /// What is wrong with `subject` now; returns the lines that were not known before.
    pub(super) fn replace(&mut self, subject: &str, lines: Vec<String>) -> Vec<String> {
        let known = self.of.remove(subject).unwrap_or_default();
        let new = lines
            .iter()
            .filter(|line| !known.contains(line))
            .cloned()
            .collect();
        if !lines.is_empty() {
            self.of.insert(subject.into(), lines);
        }
        new
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.of.retain(|subject, _| keep(subject));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_said_once_and_again_when_it_comes_back() {
        let mut standing = Standing::default();
        let lines = || vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(standing.replace("x", lines()), ["a", "b"]);
        assert_eq!(standing.replace("x", lines()), [""; 0]);
        assert_eq!(standing.replace("x", vec!["b".into(), "c".into()]), ["c"]);
        assert_eq!(standing.replace("x", vec![]), [""; 0]);
        assert_eq!(standing.replace("x", lines()), ["a", "b"]);
        assert_eq!(standing.replace("y", lines()), ["a", "b"]);
        standing.retain(|subject| subject == "x");
        assert_eq!(standing.replace("x", lines()), [""; 0]);
        assert_eq!(standing.replace("y", lines()), ["a", "b"]);
    }
}
