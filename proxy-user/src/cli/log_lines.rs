//! How log lines look, and which there are: docs/LOGS.md.

use std::{
    io::{self, Write},
    time::{Duration, SystemTime},
};

use log::Record;
use serde_json::json;

use crate::config::LogFormat;

/// klog's levels: 4 is "debug" and above 5 is "trace" in Kubernetes' own words.
/// What the programs log (`--debug-programs`) is for whoever asked for it.
pub(super) fn start(verbosity: u32, format: LogFormat, debug_programs: bool) {
    // kube warns of what the watch tells in its own words.
    let filter = match verbosity {
        0..=3 => "info,kube_client=error,kube_runtime=error",
        4..=5 => "info,kube_client=error,kube_runtime=error,proxy_user=debug",
        6.. => "info,proxy_user=trace",
    };
    if debug_programs {
        start_with(&format!("{filter},{PROGRAMS}=debug"), format);
    } else {
        start_with(filter, format);
    }
}

/// The crate of the programs, which is what their lines are from.
const PROGRAMS: &str = "kube_portal_ebpf";

/// `filter`: unless RUST_LOG says otherwise.
pub(super) fn start_with(filter: &str, format: LogFormat) {
    let mut builder =
        env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(filter));
    match format {
        LogFormat::Text => builder.format_timestamp_millis().format_target(false),
        LogFormat::Json => builder.format(|to, record| {
            let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            as_json(to, record, since.unwrap_or_default())
        }),
    };
    builder.init();
}

fn as_json(to: &mut impl Write, record: &Record<'_>, since_1970: Duration) -> io::Result<()> {
    let line = json!({
        "ts": u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX),
        "level": record.level().as_str().to_lowercase(),
        "msg": record.args().to_string(),
    });
    writeln!(to, "{line}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_json_is_one_object_whatever_the_message_has() {
        let mut line = Vec::new();
        let record = Record::builder()
            .level(log::Level::Warn)
            .args(format_args!("Service \"a/b\"\nis off"))
            .build();
        as_json(&mut line, &record, Duration::from_millis(1500)).unwrap();
        let text = String::from_utf8(line).unwrap();
        assert_eq!(text.lines().count(), 1);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            value,
            json!({"ts": 1500, "level": "warn", "msg": "Service \"a/b\"\nis off"})
        );
    }
}
