//! Colour, where the terminal shows it and the user wants it.

use std::io::IsTerminal;
use std::sync::OnceLock;

fn wrap(code: &str, text: &str) -> String {
    static ON: OnceLock<bool> = OnceLock::new();
    let on = ON.get_or_init(|| {
        std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
            && std::io::stdout().is_terminal()
            && std::io::stderr().is_terminal()
    });
    if *on {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

pub(super) fn bold(text: &str) -> String {
    wrap("1", text)
}

pub(super) fn dim(text: &str) -> String {
    wrap("2", text)
}

pub(super) fn good(text: &str) -> String {
    wrap("32", text)
}

pub(super) fn bad(text: &str) -> String {
    wrap("31", text)
}
