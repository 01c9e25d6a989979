//! What every subcommand's output has in common.

use std::{
    fmt::Write as _,
    io::{self, BufWriter, ErrorKind, IsTerminal as _, Write},
};

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

/// Whether whoever watches wants none (https://no-color.org).
pub(crate) fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// With a newline behind it.
pub(crate) fn print(text: &str) -> Result<(), CliError> {
    written(writeln!(io::stdout(), "{text}"))
}

fn written(result: io::Result<()>) -> Result<(), CliError> {
    match result {
        // A reader that has seen enough (`| head`) is no failure.
        Err(source) if source.kind() != ErrorKind::BrokenPipe => Err(CliError::Io {
            what: "standard output",
            source,
        }),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// One line of many.
pub(crate) trait Row: Serialize {
    const HEADER: &'static [&'static str];

    /// As many as the header has. None is empty, and only the last has spaces in it: columns can be counted.
    fn cells(&self) -> Vec<String>;
}

impl<R: Row> Row for &R {
    const HEADER: &'static [&'static str] = R::HEADER;

    fn cells(&self) -> Vec<String> {
        (*self).cells()
    }
}

/// What `rows` yields, a line each: in columns, or as one JSON array. There may be a million, so no text is
/// kept: `rows` is asked twice, and has to yield the same. Lines are never wrapped: what is looked for is
/// found whole.
pub(crate) fn print_rows<R: Row, I: Iterator<Item = R>>(
    json: bool,
    rows: impl Fn() -> I,
) -> Result<(), CliError> {
    let mut out = BufWriter::new(io::stdout().lock());
    let result = if json {
        write_array(&mut out, rows())
    } else {
        write_columns(&mut out, rows)
    };
    written(result.and_then(|()| out.flush()))
}

fn write_array<R: Row>(out: &mut impl Write, rows: impl Iterator<Item = R>) -> io::Result<()> {
    let mut before = "[";
    for row in rows {
        write!(out, "{before}\n{}", serde_json::to_string(&row)?)?;
        before = ",";
    }
    writeln!(out, "{}", if before == "[" { "[]" } else { "\n]" })
}

fn write_columns<R: Row, I: Iterator<Item = R>>(
    out: &mut impl Write,
    rows: impl Fn() -> I,
) -> io::Result<()> {
    let header = || R::HEADER.iter().map(|cell| (*cell).to_owned()).collect();
    let lines = || std::iter::once(header()).chain(rows().map(|row| row.cells()));
    let mut widths = vec![0; R::HEADER.len()];
    for cells in lines() {
        let cells: Vec<String> = cells;
        for (width, cell) in widths.iter_mut().zip(&cells) {
            *width = cell.chars().count().max(*width);
        }
    }
    for cells in lines() {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(&widths) {
            let _string_is_infallible = write!(line, "{cell:width$}  ");
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Line(&'static str, u32);

    impl Row for Line {
        const HEADER: &'static [&'static str] = &["NAME", "N"];

        fn cells(&self) -> Vec<String> {
            vec![self.0.to_owned(), self.1.to_string()]
        }
    }

    fn columns(lines: &[(&'static str, u32)]) -> String {
        let mut out = Vec::new();
        write_columns(&mut out, || lines.iter().map(|line| Line(line.0, line.1))).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        assert_eq!(
            columns(&[("default/web", 1), ("é", 22)]),
            "NAME         N\ndefault/web  1\né            22\n"
        );
        assert_eq!(columns(&[]), "NAME  N\n");
    }

    #[test]
    fn an_array_is_json_with_a_line_for_each_row() {
        let array = |lines: Vec<Line>| {
            let mut out = Vec::new();
            write_array(&mut out, lines.into_iter()).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(array(vec![]), "[]\n");
        let text = array(vec![Line("a", 1), Line("b", 2)]);
        assert_eq!(text, "[\n[\"a\",1],\n[\"b\",2]\n]\n");
        let _json: serde_json::Value = serde_json::from_str(&text).unwrap();
    }
}
