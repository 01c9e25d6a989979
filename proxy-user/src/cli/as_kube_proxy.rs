//! Pure: a command line of kube-proxy becomes one of `kube-portal run`.

use std::{ffi::OsString, path::Path};

/// kube-proxy has no subcommands, and takes `_` for `-` in the names of its flags. So `run` is put in
/// where a link by that name was called, or an option comes first.
pub(super) fn arguments(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    let text = |at: usize| args.get(at).and_then(|arg| arg.to_str());
    let own = matches!(text(1), Some("-V" | "--version"));
    let help = matches!(text(1), Some("-h" | "--help"));
    let by_name = args
        .first()
        .is_some_and(|name| Path::new(name).file_name() == Some("kube-proxy".as_ref()));
    let option = text(1).is_some_and(|arg| arg.starts_with('-'));
    if own || !(by_name || option && !help) {
        return args;
    }
    args.insert(1.min(args.len()), "run".into());
    for arg in args.iter_mut().skip(2) {
        let Some(flag) = arg.to_str().filter(|arg| arg.starts_with("--")) else {
            continue;
        };
        let (name, value) = flag.split_at(flag.find('=').unwrap_or(flag.len()));
        *arg = format!("{}{value}", name.replace('_', "-")).into();
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(args: &[&str]) -> String {
        let words = arguments(args.iter().map(OsString::from));
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    }

    #[test]
    fn a_command_line_of_kube_proxy_runs_the_agent() {
        for (given, expected) in [
            (
                &["/usr/local/bin/kube-proxy", "--config=/x_y/c.conf"][..],
                "/usr/local/bin/kube-proxy run --config=/x_y/c.conf",
            ),
            (&["kube-proxy"], "kube-proxy run"),
            (&["kube-proxy", "--help"], "kube-proxy run --help"),
            (
                &["kube-portal", "--cluster_cidr", "10.0.0.0/8", "-v=2"],
                "kube-portal run --cluster-cidr 10.0.0.0/8 -v=2",
            ),
        ] {
            assert_eq!(to(given), expected);
        }
    }

    #[test]
    fn a_command_line_of_kube_portal_stays_as_it_is() {
        for words in [
            &["kube-portal"][..],
            &["kube-portal", "run", "--node-name", "a_b"],
            &["kube-portal", "status", "--json"],
            &["kube-portal", "--help"],
            &["kube-portal", "-V"],
            &["kube-proxy", "--version"],
        ] {
            assert_eq!(to(words), words.join(" "));
        }
    }
}
