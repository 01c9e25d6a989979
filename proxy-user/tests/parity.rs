//! docs/PARITY.md lists every behaviour once, says what is made of it, and names tests that exist.

use std::{collections::BTreeSet, fs, path::Path};

/// How many rows each letter has.
const ROWS: [(&str, usize); 15] = [
    ("W", 10),
    ("A", 13),
    ("N", 6),
    ("E", 17),
    ("R", 6),
    ("M", 9),
    ("L", 6),
    ("S", 6),
    ("C", 9),
    ("P", 15),
    ("F", 52),
    ("B", 32),
    ("H", 34),
    ("X", 17),
    ("D", 4),
];

/// With `true`, a row of it has to name a test; else it has to say how or why.
const STATUSES: [(&str, bool); 4] = [
    ("same", true),
    ("by other means", true),
    ("different", false),
    ("not yet", false),
];

/// What is wrong with the page. `source` is the text of a file of the repository.
fn problems(page: &str, source: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut problems = Vec::new();
    let mut missing: BTreeSet<String> = ROWS
        .iter()
        .flat_map(|(letter, count)| (1..=*count).map(move |number| format!("{letter}{number}")))
        .collect();
    for line in page.lines().filter(|line| line.starts_with('|')) {
        if line.starts_with("| row |") || line.starts_with("|---|") {
            continue;
        }
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [id, _, status, reason, tests] = cells[..] else {
            problems.push(format!("not five cells: {line}"));
            continue;
        };
        if !missing.remove(id) {
            problems.push(format!("{id}: no row of this name, or a second one"));
        }
        match STATUSES.iter().find(|(name, _)| *name == status) {
            None => problems.push(format!("{id}: {status:?} is no status")),
            Some((_, true)) if tests.is_empty() => {
                problems.push(format!("{id}: nothing shows that it is {status}"));
            }
            Some(_) => {}
        }
        if status != "same" && reason.is_empty() {
            problems.push(format!("{id}: {status}, and nothing says how or why"));
        }
        for test in tests.split("<br>").filter(|test| !test.is_empty()) {
            if !exists(test, id, &source) {
                problems.push(format!("{id}: there is no test {test}"));
            }
        }
    }
    problems.extend(missing.iter().map(|id| format!("{id}: is not listed")));
    problems
}

/// `test`: a file and a function of it, or a scenario, as code. A scenario says itself which rows it is
/// about.
fn exists(test: &str, row: &str, source: impl Fn(&str) -> Option<String>) -> bool {
    let code = test
        .strip_prefix('`')
        .and_then(|test| test.strip_suffix('`'));
    code.is_some_and(|test| match test.split_once("::") {
        Some((file, name)) => source(file).is_some_and(|text| has_test(&text, name)),
        None => {
            test.starts_with(SCENARIOS) && source(test).is_some_and(|text| is_about(&text, row))
        }
    })
}

/// Those in the folder are all played: tests/tests/scenarios.rs.
const SCENARIOS: &str = "tests/scenarios/";

fn is_about(scenario: &str, row: &str) -> bool {
    scenario
        .lines()
        .find_map(|line| line.strip_prefix("rows: [")?.strip_suffix(']'))
        .is_some_and(|rows| rows.split(", ").any(|named| named == row))
}

/// Whether a function of this name is run by `cargo test`: one that is ignored shows nothing.
fn has_test(text: &str, name: &str) -> bool {
    let head = format!("fn {name}(");
    // In a file with a `main` of its own.
    if text.contains(&format!("Trial::test(\"{name}\"")) {
        return text.contains(&head);
    }
    let (mut is_test, mut is_ignored) = (false, false);
    for line in text.lines().map(str::trim_start) {
        if line == "#[test]" || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if line.starts_with("#[ignore") {
            is_ignored = true;
        } else if line.contains("fn ") && !line.starts_with("//") {
            if is_test && !is_ignored && line.contains(&head) {
                return true;
            }
            (is_test, is_ignored) = (false, false);
        }
    }
    false
}

fn page() -> String {
    of_repository("docs/PARITY.md").expect("docs/PARITY.md")
}

fn of_repository(file: &str) -> Option<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    fs::read_to_string(root.join(file)).ok()
}

#[test]
fn every_row_is_listed_once_and_every_named_test_is_there() {
    let problems = problems(&page(), of_repository);
    assert!(
        problems.is_empty(),
        "docs/PARITY.md:\n{}",
        problems.join("\n")
    );
}

/// The page with one row instead of that of W6, which is in order.
fn told_of(row: &str) -> Vec<String> {
    let lines = page();
    let lines = lines.lines().map(|line| {
        if line.starts_with("| W6 |") {
            row
        } else {
            line
        }
    });
    let changed: Vec<&str> = lines.collect();
    problems(&changed.join("\n"), of_repository)
}

#[test]
fn what_is_wrong_with_a_row_is_noticed() {
    const TEST: &str = "`proxy-user/tests/parity.rs::what_is_wrong_with_a_row_is_noticed`";
    assert_eq!(told_of(&format!("| W6 | x | same | | {TEST} |")), [""; 0]);
    for (row, wanted) in [
        ("", "W6: is not listed"),
        (
            &format!("| W5 | x | same | | {TEST} |"),
            "W5: no row of this name, or a second one",
        ),
        (
            &format!("| W6 | x | nearly | y | {TEST} |"),
            "W6: \"nearly\" is no status",
        ),
        ("| W6 | x | same | | |", "W6: nothing shows that it is same"),
        (
            &format!("| W6 | x | different | | {TEST} |"),
            "W6: different, and nothing says how or why",
        ),
        (
            "| W6 | x | same | | `proxy-user/tests/parity.rs::no_such_test` |",
            "W6: there is no test `proxy-user/tests/parity.rs::no_such_test`",
        ),
        (
            "| W6 | x | same | | `proxy-user/tests/no_such_file.rs::a_test` |",
            "W6: there is no test `proxy-user/tests/no_such_file.rs::a_test`",
        ),
        (
            "| W6 | x | same | | `tests/scenarios/no_such_scenario.yaml` |",
            "W6: there is no test `tests/scenarios/no_such_scenario.yaml`",
        ),
        // A scenario about another row.
        (
            "| W6 | x | same | | `tests/scenarios/e2_who_is_ready_while_it_ends_is_ready.yaml` |",
            "W6: there is no test `tests/scenarios/e2_who_is_ready_while_it_ends_is_ready.yaml`",
        ),
        // A function, but none that is run as a test.
        (
            "| W6 | x | same | | `proxy-user/tests/parity.rs::told_of` |",
            "W6: there is no test `proxy-user/tests/parity.rs::told_of`",
        ),
    ] {
        let told = told_of(row);
        assert!(told.iter().any(|line| line == wanted), "{row}: {told:?}");
    }
}

#[test]
fn only_what_cargo_runs_is_a_test() {
    let text = "#[test]\nfn plain() {}\n#[tokio::test]\nasync fn asynchronous() {}\n\
                proptest! {\n    #[test]\n    fn property(\n        x in 0..1,\n    ) {}\n}\n\
                #[test]\n#[ignore]\nfn ignored() {}\nfn helper() {}\n// #[test]\n// fn comment() {}\n\
                [Trial::test(\"tried\", tried), Trial::test(\"lost\", tried)]\nfn tried() {}\n";
    for name in ["plain", "asynchronous", "property", "tried"] {
        assert!(has_test(text, name), "{name}");
    }
    for name in ["ignored", "helper", "comment", "plai", "lain", "lost"] {
        assert!(!has_test(text, name), "{name}");
    }
}
