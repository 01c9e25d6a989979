//! What every subcommand's output has in common.

use std::io::{self, ErrorKind, IsTerminal as _, Write as _};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use super::CliError;

/// Columns of the terminal, if one is watching.
pub(crate) fn width() -> Option<u16> {
    io::stdout()
        .is_terminal()
        .then(|| rustix::termios::tcgetwinsize(io::stdout()).ok())
        .flatten()
        .map(|size| size.ws_col)
        // A serial console has none to tell.
        .filter(|width| *width > 0)
}

pub(crate) fn json(value: &impl Serialize) -> Result<String, CliError> {
    serde_json::to_string_pretty(value).map_err(|error| CliError::Io {
        what: "the JSON text",
        source: error.into(),
    })
}

/// The name of a process of the initial pid namespace, for whoever is in it.
pub(crate) fn command(pid: u32) -> Option<String> {
    /// PROC_PID_INIT_INO (include/linux/proc_ns.h).
    const INITIAL_PIDS: &str = "pid:[4026531836]";
    let ours = std::fs::read_link("/proc/self/ns/pid").ok()?;
    if ours.as_os_str() != INITIAL_PIDS {
        return None;
    }
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim_end().to_owned()).filter(|name| !name.is_empty())
}

/// With a newline behind it.
pub(crate) fn print(text: &str) -> Result<(), CliError> {
    // A reader that has seen enough (`| head`) is no failure.
    match writeln!(io::stdout(), "{text}") {
        Err(source) if source.kind() != ErrorKind::BrokenPipe => Err(CliError::Io {
            what: "standard output",
            source,
        }),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Without lines, so that it is easy to cut and to search; wrapped to `width` columns.
pub(crate) fn table(width: Option<u16>, header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    if let Some(width) = width {
        table
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(width);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}
