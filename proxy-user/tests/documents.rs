//! What the documents say, as far as that can be seen without a kernel: commands are what the command line takes
//! (`tests/tests/operating.rs` runs them), links lead somewhere, and every dependency has its reason.

use std::{collections::BTreeSet, path::Path};

use clap::Parser as _;
use proxy_user::cli::Cli;

// It is public where it belongs, and the tests that run the commands need all of it.
#[allow(unreachable_pub, dead_code)]
#[path = "../../tests/src/documents.rs"]
mod documents;

fn text(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    std::fs::read_to_string(path).expect(name)
}

#[test]
fn every_command_line_of_kube_portal_can_be_understood() {
    for (name, at_least) in [("README.md", 4), ("docs/OPERATING.md", 25)] {
        let samples = documents::samples(&text(name)).expect(name);
        let ours: Vec<_> = samples
            .iter()
            .filter(|sample| sample.words()[0] == "kube-portal")
            .collect();
        for sample in &ours {
            if let Err(error) = Cli::try_parse_from(sample.words()) {
                panic!("{name}:{}: {}: {error}", sample.line, sample.command);
            }
        }
        assert!(ours.len() >= at_least, "{name}: {}", ours.len());
    }
}

/// In prose, too: what looks like a command or a flag of it is one.
#[test]
fn every_subcommand_and_flag_in_the_prose_exists() {
    let help = |words: &[&str]| match Cli::try_parse_from(words) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{words:?} is no request for help"),
    };
    let commands = help(&["kube-portal", "--help"]);
    let names: Vec<&str> = commands
        .lines()
        .filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next())
        .filter(|name| name.chars().all(|char| char.is_ascii_lowercase()))
        .collect();
    let known: String = names
        .iter()
        .filter(|name| !["help", "inspect"].contains(name))
        .map(|name| help(&["kube-portal", name, "--help"]))
        .chain([help(&["kube-portal", "inspect", "frontends", "--help"])])
        .collect();
    assert!(names.contains(&"trace") && known.contains("--snat-ports"));
    // Of cargo xtask, iptables and others.
    let others = ["--once", "--release"];
    let mut seen = 0;
    for name in ["README.md", "docs/OPERATING.md"] {
        let text = text(name);
        let prose = text.split("```").step_by(2);
        for code in prose.flat_map(|prose| prose.split('`').skip(1).step_by(2)) {
            if let Some(command) = code.strip_prefix("kube-portal ") {
                let command = command.split(' ').next().unwrap_or_default();
                assert!(names.contains(&command), "{name}: `{code}`");
                seen += 1;
            }
            for flag in code.split([' ', '=']).filter(|word| word.starts_with("--")) {
                let is_known = known.match_indices(flag).any(|(at, _)| {
                    let next = known[at + flag.len()..].chars().next();
                    !next.is_some_and(|next| next == '-' || next.is_ascii_alphanumeric())
                });
                // `--max-...` stands for all that begin so.
                let is_group = flag
                    .strip_suffix("...")
                    .is_some_and(|begin| known.contains(begin));
                assert!(
                    is_known || is_group || others.contains(&flag),
                    "{name}: no command has {flag}: `{code}`"
                );
                seen += 1;
            }
        }
    }
    assert!(seen > 30, "{seen}");
}

/// What is between the first `open` and the next `close`.
fn between<'a>(text: &'a str, open: &str, close: &str) -> &'a str {
    let (_, rest) = text.split_once(open).expect(open);
    rest.split_once(close).map_or(rest, |(inside, _)| inside)
}

#[test]
fn every_dependency_of_the_workspace_has_its_reason_in_the_architecture() {
    let manifest = text("Cargo.toml");
    let ours = ["packaging", "proxy-common", "proxy-user"];
    let dependencies: BTreeSet<&str> = between(&manifest, "[workspace.dependencies]\n", "\n[")
        .lines()
        .filter_map(|line| Some(line.split_once(" = ")?.0))
        .filter(|name| !ours.contains(name) && !name.starts_with('#'))
        .collect();
    let architecture = text("ARCHITECTURE.md");
    let rows = between(&architecture, "| crate | for |\n|---|---|\n", "\n\n");
    let named: BTreeSet<&str> = rows
        .lines()
        .flat_map(|row| between(row, "| ", " |").split(", "))
        .collect();
    assert!(dependencies.len() > 40, "{dependencies:?}");
    assert_eq!(named, dependencies);
}

/// As Git hosts make it of a heading.
fn anchor(title: &str) -> String {
    let lower = title.to_lowercase().replace(' ', "-");
    lower
        .chars()
        .filter(|char| char.is_alphanumeric() || ['-', '_'].contains(char))
        .collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut seen = 0;
    for name in ["README.md", "ARCHITECTURE.md", "docs/OPERATING.md"] {
        let text = text(name);
        let prose: String = text.split("```").step_by(2).collect();
        for link in prose.split("](").skip(1) {
            let link = link.split(')').next().unwrap_or_default();
            if link.starts_with("https://") {
                continue;
            }
            let (file, section) = link.split_once('#').unwrap_or((link, ""));
            let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
            let there = match file {
                "" => here,
                file => here.parent().expect("a folder").join(file),
            };
            assert!(there.exists(), "{name}: {link}");
            if !section.is_empty() {
                let target = std::fs::read_to_string(&there).expect(link);
                let mut titles = target.lines().filter_map(|line| {
                    let title = line.trim_start_matches('#');
                    (title.len() < line.len()).then(|| anchor(title.trim()))
                });
                assert!(titles.any(|title| title == section), "{name}: {link}");
            }
            seen += 1;
        }
    }
    assert!(seen > 50, "{seen}");
}
