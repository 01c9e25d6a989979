//! Names of devices as `--devices` and `--pod-devices` give them.

use std::fmt;

/// A name or a glob: `*`, `?` and `[...]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(glob::Pattern);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{pattern:?} is not a device name or glob: {reason}; write names such as eth0 or ens*")]
pub struct PatternError {
    pattern: String,
    reason: &'static str,
}

/// `IFNAMSIZ` without the zero at its end.
const LONGEST_NAME: usize = 15;

impl Pattern {
    /// From the values of the flag, in their order; empty ones are passed over.
    pub fn parse_all<S: AsRef<str>>(values: &[S]) -> Result<Vec<Self>, PatternError> {
        values
            .iter()
            .map(|value| value.as_ref().trim())
            .filter(|value| !value.is_empty())
            .map(Self::parse)
            .collect()
    }

    fn parse(text: &str) -> Result<Self, PatternError> {
        let error = |reason| PatternError {
            pattern: text.to_owned(),
            reason,
        };
        let is_name = !text.contains(['*', '?', '[']);
        if is_name && text.len() > LONGEST_NAME {
            return Err(error("a name has at most 15 characters"));
        }
        if text.contains('/') || text.contains(char::is_whitespace) {
            return Err(error("a name has neither slashes nor spaces"));
        }
        glob::Pattern::new(text)
            .map(Self)
            .map_err(|cause| error(cause.msg))
    }

    pub fn matches(&self, name: &str) -> bool {
        self.0.matches(name)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_globs_match_whole_names() {
        let patterns = Pattern::parse_all(&["eth0", "", " ens* ", "wg[01]"]).unwrap();
        let matches = |name| patterns.iter().any(|pattern| pattern.matches(name));
        for name in ["eth0", "ens", "ens3np0", "wg1"] {
            assert!(matches(name), "{name}");
        }
        for name in ["eth01", "xens3", "wg2", ""] {
            assert!(!matches(name), "{name}");
        }
    }

    #[test]
    fn what_can_not_be_a_name_is_refused_by_its_name() {
        for bad in [
            "ens[",
            "a/b",
            "two words",
            "a-name-that-is-too-long",
            "a***b",
        ] {
            let error = Pattern::parse_all(&["eth0", bad]).unwrap_err().to_string();
            assert!(error.contains(bad) && !error.contains('\n'), "{error}");
        }
    }
}
