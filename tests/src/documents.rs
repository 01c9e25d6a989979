//! The commands that a document shows, with what they print. Of the standard library alone: tests of other members
//! take this file as it is.
//!
//! In these documents every fenced block says what it is: `console` has commands, each behind `$ `, and below it
//! what it prints; `text` and `yaml` have none. In what is printed, a line `...` stands for any
//! lines, and ` ...` at the end of one for the rest of it. `# exit code N`
//! behind a command is the one it ends with, 0 if nothing is said. `<!-- scene: NAME -->` says on which node the
//! commands are typed that follow it, until the next heading.

/// A command, and what is shown of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The line of the document.
    pub line: usize,
    pub scene: String,
    /// Without the prompt, and in one line.
    pub command: String,
    pub exit_code: i32,
    pub output: String,
}

impl Sample {
    /// The words of the command, quotes taken away.
    pub fn words(&self) -> Vec<String> {
        let mut words = Vec::new();
        let (mut word, mut quote) = (String::new(), None);
        for char in self.command.chars().chain([' ']) {
            match (char, quote) {
                ('\'' | '"', None) => quote = Some(char),
                (_, Some(open)) if char == open => quote = None,
                (' ', None) if word.is_empty() => {}
                (' ', None) => words.push(std::mem::take(&mut word)),
                _ => word.push(char),
            }
        }
        words
    }
}

/// The usual scene.
pub const USUAL: &str = "usual";

/// Every command of a document; or where it breaks the rules.
pub fn samples(markdown: &str) -> Result<Vec<Sample>, String> {
    let mut samples: Vec<Sample> = Vec::new();
    let mut scene = USUAL.to_owned();
    let mut lines = markdown.lines().zip(1..);
    while let Some((line, number)) = lines.next() {
        if line.starts_with('#') {
            scene = USUAL.to_owned();
        }
        if let Some(name) = line.trim().strip_prefix("<!-- scene: ") {
            let name = name.strip_suffix(" -->");
            scene = name.ok_or(format!("line {number}: no -->"))?.to_owned();
        }
        let Some(kind) = line.trim_start().strip_prefix("```") else {
            continue;
        };
        let indent = line.len() - line.trim_start().len();
        let is_console = match kind {
            "console" => true,
            "text" | "yaml" => false,
            other => {
                return Err(format!(
                    "line {number}: a block is console, text or yaml, not \"{other}\""
                ));
            }
        };
        let mut is_first = true;
        let mut is_continued = false;
        loop {
            let (line, number) = lines
                .next()
                .ok_or(format!("line {number}: the block has no end"))?;
            if line.trim() == "```" {
                break;
            }
            if !is_console {
                if line.trim_start().starts_with("$ ") {
                    return Err(format!("line {number}: a command in a block of {kind}"));
                }
                continue;
            }
            let line = line.get(indent..).unwrap_or("");
            if let Some(last) = samples.last_mut().filter(|_| is_continued) {
                is_continued = line.ends_with('\\');
                last.command += line.trim_end_matches('\\').trim();
                last.command.push(' ');
            } else if let Some(command) = line.strip_prefix("$ ") {
                is_continued = line.ends_with('\\');
                samples.push(Sample {
                    line: number,
                    scene: scene.clone(),
                    command: command.trim_end_matches('\\').to_owned(),
                    exit_code: 0,
                    output: String::new(),
                });
            } else if is_first {
                return Err(format!("line {number}: a console begins with a command"));
            } else if let Some(last) = samples.last_mut() {
                last.output += line;
                last.output.push('\n');
            }
            is_first = false;
        }
    }
    for sample in &mut samples {
        if let Some((command, comment)) = sample.command.clone().split_once(" # ") {
            if let Some(code) = comment.trim().strip_prefix("exit code ") {
                sample.exit_code = code
                    .parse()
                    .map_err(|_| format!("line {}: exit code {code}?", sample.line))?;
            }
            sample.command = command.to_owned();
        }
        sample.command = sample.command.trim().to_owned();
    }
    Ok(samples)
}

/// Whether these lines are those that are shown, in which `...` stands for any.
pub fn matches(shown: &[String], printed: &[String]) -> bool {
    match shown {
        [] => printed.is_empty(),
        [dots, rest @ ..] if dots == "..." => {
            (0..=printed.len()).any(|skipped| matches(rest, &printed[skipped..]))
        }
        [first, rest @ ..] => printed
            .split_first()
            .is_some_and(|(line, others)| is_like(first, line) && matches(rest, others)),
    }
}

/// Whether this is the line that is shown, if that ends in ` ...` whatever the rest.
pub fn is_like(shown: &str, printed: &str) -> bool {
    match shown.strip_suffix(" ...") {
        Some(begin) => printed.starts_with(begin),
        None => shown == printed,
    }
}

/// A line without what is another each time: numbers, and how wide columns are.
pub fn shape(line: &str) -> String {
    let words = line.split_whitespace().map(|word| {
        let mut shape = String::new();
        for char in word.chars() {
            match char {
                '0'..='9' if shape.ends_with('0') => {}
                '0'..='9' => shape.push('0'),
                _ => shape.push(char),
            }
        }
        shape
    });
    // A time is one whatever its unit, and whether it has decimals.
    let units = ["ns", "us", "µs", "ms", "s", "m", "h"];
    let words = words.map(|word| {
        let number = word.replacen("0.0", "0", 1);
        let is_time = number
            .strip_prefix('0')
            .is_some_and(|unit| units.contains(&unit));
        if is_time { "0s".to_owned() } else { word }
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# A\n<!-- scene: full -->\n```console\n$ a 'b c' \\\n    --d   # exit code 6\nout\n...\n$ e\n```\n# B\n```console\n$ f\n```\n";

    #[test]
    fn commands_have_their_scene_their_output_and_their_exit_code() {
        let found = samples(TEXT).expect("good");
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].words(), ["a", "b c", "--d"]);
        assert_eq!((found[0].exit_code, found[0].line), (6, 4));
        assert_eq!(found[0].output, "out\n...\n");
        assert_eq!((&*found[1].command, &*found[1].scene), ("e", "full"));
        assert_eq!((&*found[2].command, &*found[2].scene), ("f", USUAL));
    }

    #[test]
    fn no_command_hides_in_another_block() {
        for (bad, why) in [
            ("```\n$ a\n```\n", "not \"\""),
            ("```sh\na\n```\n", "not \"sh\""),
            ("```text\n$ a\n```\n", "a command in a block"),
            ("```console\na\n```\n", "begins with a command"),
            ("```console\n$ a\n", "no end"),
        ] {
            let error = samples(bad).expect_err(bad);
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn dots_stand_for_lines_and_numbers_for_numbers() {
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        assert!(matches(&lines("a\n...\nd"), &lines("a\nb\nc\nd")));
        assert!(matches(&lines("a\n..."), &lines("a")));
        assert!(!matches(&lines("a\n...\nd"), &lines("a\nb")));
        assert!(!matches(&lines("a"), &lines("a\nb")));
        assert!(matches(&lines("a b ..."), &lines("a b c")));
        assert!(!matches(&lines("a b ..."), &lines("a c b")));
        assert_eq!(shape("10.1.1.2:80   x  7"), shape("10.22.1.2:8080 x 123"));
        assert_eq!(shape("in 15 us, 1.5s"), shape("in 9 us, 20ms"));
        assert_ne!(shape("a b"), shape("a c"));
    }
}
