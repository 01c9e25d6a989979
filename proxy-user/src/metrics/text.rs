//! The two texts that /metrics is written in, and which of them a client wants.
//!
//! The library writes OpenMetrics. kube-proxy answers in the older text, and so do we unless OpenMetrics is
//! asked for, which Prometheus does.

use std::fmt;

use hyper::StatusCode;
use prometheus_client::{encoding::text, registry::Registry};

use crate::server::{Answer, PLAIN};

const OPEN_METRICS: &str = "application/openmetrics-text";
const OLDER: &str = "text/plain";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// The text format 0.0.4.
    Older,
}

impl Format {
    /// By the header `Accept`, empty if there was none. Older text is for everybody who doesn't ask for
    /// OpenMetrics at least as much.
    pub(super) fn wanted(accept: &str) -> Self {
        let weight = |format| {
            let ranges = accept
                .split(',')
                .filter_map(|range| weight_of(range, format));
            ranges.fold(None, |most: Option<f32>, weight| {
                Some(most.map_or(weight, |most| most.max(weight)))
            })
        };
        match weight(OPEN_METRICS) {
            Some(open) if open > 0.0 && open >= weight(OLDER).unwrap_or(0.0) => Self::OpenMetrics,
            _ => Self::Older,
        }
    }

    const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Older => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// How much a range of `Accept` is for this very type, of a version that we write.
fn weight_of(range: &str, format: &str) -> Option<f32> {
    let mut parts = range.split(';').map(str::trim);
    if !parts.next()?.eq_ignore_ascii_case(format) {
        return None;
    }
    let mut weight = 1.0;
    for parameter in parts {
        match parameter
            .split_once('=')
            .map(|(key, value)| (key.trim(), value.trim()))
        {
            Some(("q", value)) => weight = value.parse().unwrap_or(0.0),
            Some(("version", "1.0.0" | "0.0.1" | "0.0.4")) => {}
            Some(("version", _)) => return None,
            // The character set is UTF-8 whatever is asked, and names need no escaping.
            _ => {}
        }
    }
    Some(weight)
}

pub(super) fn answer(registry: &Registry, format: Format) -> Answer {
    let mut body = String::new();
    match text::encode(&mut body, registry) {
        Ok(()) => {
            if format == Format::Older {
                body = older(&body);
            }
            Answer::ok(format.content_type(), body)
        }
        Err(fmt::Error) => Answer {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            ..Answer::ok(PLAIN, "the metrics can't be written\n".into())
        },
    }
}

/// The same in the text format 0.0.4. A sample is the same line in both; in what is said of a family, a
/// counter has the name of its samples, and what has no type is `untyped`.
fn older(open: &str) -> String {
    let mut text = String::with_capacity(open.len());
    // The line of a family's help comes before that of its type.
    let mut help: Option<(&str, &str)> = None;
    for line in open.lines() {
        if let Some(said) = line.strip_prefix("# HELP ") {
            help = said.split_once(' ');
        } else if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|said| said.split_once(' '))
        {
            let suffix = if kind == "counter" { "_total" } else { "" };
            let kind = if kind == "unknown" { "untyped" } else { kind };
            if let Some((_, help)) = help.take().filter(|(helped, _)| *helped == name) {
                text += &format!("# HELP {name}{suffix} {help}\n");
            }
            text += &format!("# TYPE {name}{suffix} {kind}\n");
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prometheus_gets_openmetrics_and_whoever_does_not_ask_the_older_text() {
        // Prometheus 2.42, 2.49 and 3.1.
        for accept in [
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text;version=1.0.0;q=0.75,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=0.0.4;q=0.25,*/*;q=0.1",
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            "Application/OpenMetrics-Text; charset=utf-8",
        ] {
            assert_eq!(Format::wanted(accept), Format::OpenMetrics, "{accept}");
        }
        for accept in [
            "",
            "*/*",
            "text/html",
            "text/plain;version=0.0.4",
            "text/plain, application/openmetrics-text;q=0.5",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=none",
            "application/openmetrics-text;version=2.0.0",
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
        ] {
            assert_eq!(Format::wanted(accept), Format::Older, "{accept}");
        }
    }

    #[test]
    fn in_the_older_text_a_counter_has_the_name_of_its_samples() {
        let open = "# HELP a It is counted.\n# TYPE a counter\na_total{b=\"c\"} 1\n\
                    # HELP d_seconds Time.\n# TYPE d_seconds gauge\n# UNIT d_seconds seconds\nd_seconds 1.5\n\
                    # HELP e_total A gauge.\n# TYPE e_total unknown\ne_total 2\n\
                    # HELP f Spread.\n# TYPE f histogram\nf_sum 0.5\nf_count 1\nf_bucket{le=\"+Inf\"} 1\n# EOF\n";
        assert_eq!(
            older(open),
            "# HELP a_total It is counted.\n# TYPE a_total counter\na_total{b=\"c\"} 1\n\
             # HELP d_seconds Time.\n# TYPE d_seconds gauge\nd_seconds 1.5\n\
             # HELP e_total A gauge.\n# TYPE e_total untyped\ne_total 2\n\
             # HELP f Spread.\n# TYPE f histogram\nf_sum 0.5\nf_count 1\nf_bucket{le=\"+Inf\"} 1\n"
        );
    }
}
