//! What the documents have one type after `cargo xtask` is what it takes.

use clap::Parser as _;

use crate::Cli;

// It is public where it belongs, and the tests that run the commands need all of it.
#[allow(unreachable_pub, dead_code)]
#[path = "../../tests/src/documents.rs"]
mod documents;

#[test]
fn every_command_line_of_xtask_can_be_understood() {
    let mut seen = 0;
    for (name, text) in [
        ("README.md", include_str!("../../README.md")),
        ("docs/OPERATING.md", include_str!("../../docs/OPERATING.md")),
    ] {
        for sample in documents::samples(text).expect(name) {
            let words = sample.words();
            if words[..2.min(words.len())] == ["cargo", "xtask"] {
                if let Err(error) = Cli::try_parse_from(&words[1..]) {
                    panic!("{name}:{}: {}: {error}", sample.line, sample.command);
                }
                seen += 1;
            }
        }
    }
    assert!(seen >= 8, "{seen}");
}
