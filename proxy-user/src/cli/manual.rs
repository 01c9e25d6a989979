//! What is made of the command line's own description: completions for shells, and man pages.

use std::path::PathBuf;

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, CliError, output};

#[derive(Args, Debug)]
pub(super) struct CompletionsArgs {
    shell: Shell,
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<(), CliError> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "kube-portal", &mut text);
    output::print(String::from_utf8_lossy(&text).trim_end())
}

#[derive(Args, Debug)]
pub(super) struct ManArgs {
    /// An existing directory: kube-portal.1, kube-portal-run.1 and so on are written there.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

pub(super) fn man(args: &ManArgs) -> Result<(), CliError> {
    clap_mangen::generate_to(Cli::command(), &args.directory).map_err(|source| CliError::Io {
        what: "the man pages",
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_completes_every_command() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "kube-portal", &mut text);
            let text = String::from_utf8(text).expect("text");
            for command in Cli::command().get_subcommands() {
                let name = command.get_name();
                assert!(text.contains(name), "{shell}: {name}");
            }
            assert!(text.contains("cgroup-root"), "{shell}");
        }
    }

    #[test]
    fn every_command_has_a_man_page_with_its_options() {
        let directory = tempfile::tempdir().expect("a directory");
        let args = ManArgs {
            directory: directory.path().to_owned(),
        };
        man(&args).expect("pages");
        for command in Cli::command().get_subcommands() {
            let file = format!("kube-portal-{}.1", command.get_name());
            let page = std::fs::read_to_string(directory.path().join(&file)).expect(&file);
            for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
                let Some(long) = arg.get_long() else { continue };
                let long = long.replace('-', "\\-");
                assert!(page.contains(&long), "{file}: {long}");
            }
        }
    }
}
