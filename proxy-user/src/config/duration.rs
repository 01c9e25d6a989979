//! Spans of time as Kubernetes writes them: `1h0m0s`, `250ms`, `-5s` (Go's time.ParseDuration and
//! Duration.String).

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// In nanoseconds; may be negative, which validation refuses with the field's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    nanos: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a span of time; write a number and a unit, such as 30s, 1h30m or 250ms")]
pub struct SpanError(String);

/// Longest names first, as each is tried as a prefix.
const UNITS: [(&str, i64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

impl Span {
    pub const ZERO: Self = Self { nanos: 0 };

    pub const fn from_secs(secs: u32) -> Self {
        Self {
            nanos: secs as i64 * 1_000_000_000,
        }
    }

    pub fn is_zero(self) -> bool {
        self == Self::ZERO
    }

    /// `None` if it is negative.
    pub fn duration(self) -> Option<Duration> {
        u64::try_from(self.nanos).ok().map(Duration::from_nanos)
    }
}

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        parse(text).ok_or_else(|| SpanError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Span> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(Span::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut nanos: i64 = 0;
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => digits(after),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let (unit, after) = UNITS
            .iter()
            .find_map(|(name, unit)| Some((*unit, after.strip_prefix(name)?)))?;
        let whole: i64 = if whole.is_empty() {
            0
        } else {
            whole.parse().ok()?
        };
        nanos = nanos
            .checked_add(whole.checked_mul(unit)?)?
            .checked_add(part_of(fraction, unit))?;
        rest = after;
    }
    Some(Span {
        nanos: sign * nanos,
    })
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.bytes().take_while(u8::is_ascii_digit).count())
}

/// Digits after the point, of one unit; what is below a nanosecond is cut off.
fn part_of(fraction: &str, unit: i64) -> i64 {
    let (mut part, mut scale) = (0, unit);
    for digit in fraction.bytes() {
        scale /= 10;
        part += i64::from(digit - b'0') * scale;
    }
    part
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.nanos.unsigned_abs();
        if self.nanos < 0 {
            f.write_str("-")?;
        }
        let tenths = |f: &mut fmt::Formatter<'_>, unit: u64, name: &str| {
            let (whole, part) = (nanos / unit, nanos % unit);
            let width = unit.ilog10() as usize;
            let text = format!("{whole}.{part:0width$}");
            write!(
                f,
                "{}{name}",
                text.trim_end_matches('0').trim_end_matches('.')
            )
        };
        match nanos {
            0 => f.write_str("0s"),
            1..1_000 => write!(f, "{nanos}ns"),
            1_000..1_000_000 => tenths(f, 1_000, "µs"),
            1_000_000..1_000_000_000 => tenths(f, 1_000_000, "ms"),
            _ => {
                let secs = nanos / 1_000_000_000;
                let (hours, minutes) = (secs / 3600, secs / 60 % 60);
                if hours > 0 {
                    write!(f, "{hours}h")?;
                }
                if secs >= 60 {
                    write!(f, "{minutes}m")?;
                }
                let text = format!("{}.{:09}", secs % 60, nanos % 1_000_000_000);
                write!(f, "{}s", text.trim_end_matches('0').trim_end_matches('.'))
            }
        }
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    /// Only from text: a bare number would not say its unit, and kube-proxy refuses it too.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_and_written_as_go_does() {
        // From the examples and edge cases of Go's documentation of time.ParseDuration.
        for (text, nanos, written) in [
            ("0", 0, "0s"),
            ("0s", 0, "0s"),
            ("30s", 30_000_000_000, "30s"),
            ("1h0m0s", 3_600_000_000_000, "1h0m0s"),
            ("24h", 86_400_000_000_000, "24h0m0s"),
            ("90m", 5_400_000_000_000, "1h30m0s"),
            ("60s", 60_000_000_000, "1m0s"),
            ("1.5h", 5_400_000_000_000, "1h30m0s"),
            (".5s", 500_000_000, "500ms"),
            ("250ms", 250_000_000, "250ms"),
            ("1500ms", 1_500_000_000, "1.5s"),
            ("1us", 1_000, "1µs"),
            ("1.5µs", 1_500, "1.5µs"),
            ("7ns", 7, "7ns"),
            ("-5s", -5_000_000_000, "-5s"),
            ("+5s", 5_000_000_000, "5s"),
            ("10s250ms", 10_250_000_000, "10.25s"),
        ] {
            let span: Span = text.parse().expect(text);
            assert_eq!(span.nanos, nanos, "{text}");
            assert_eq!(span.to_string(), written, "{text}");
        }
    }

    #[test]
    fn what_is_no_span_is_refused() {
        for text in [
            "", "-", "s", "30", "1 h", "1h ", "1d", ".s", "1.2.3s", "--1s", "9999999h", "1s-1s",
        ] {
            let error = text.parse::<Span>().expect_err(text).to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn a_negative_span_is_no_duration() {
        assert_eq!("-1s".parse::<Span>().unwrap().duration(), None);
        assert_eq!(Span::from_secs(2).duration(), Some(Duration::from_secs(2)));
    }
}
