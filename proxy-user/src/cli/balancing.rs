//! How Services are balanced that don't say it themselves, for whoever plans what the maps hold.

use clap::{ArgAction, Args};
use proxy_common::abi::Scheduler;

use crate::{
    config::Settings,
    model::{BalancingDefaults, scheduler_named, scheduler_names},
};

#[derive(Args, Debug)]
pub(super) struct BalancingArgs {
    /// How new connections are spread over the backends of Services without the annotation
    /// kube-portal.io/scheduler: random, rr, lc, sh, dh, sed, nq or maglev [default: ipvs.scheduler of
    /// --config in mode ipvs, else random]
    #[arg(long, value_name = "NAME", value_parser = scheduler)]
    scheduler: Option<Scheduler>,
    /// Pass over TCP backends that don't answer, for a while, in Services without the annotation
    /// kube-portal.io/failover.
    #[arg(long, value_name = "BOOL", default_value_t = BalancingDefaults::default().fails_over, action = ArgAction::Set)]
    failover: bool,
}

impl BalancingArgs {
    /// A flag comes before what is configured as kube-proxy is.
    pub(super) fn defaults(&self, settings: &Settings) -> BalancingDefaults {
        BalancingDefaults {
            scheduler: self.scheduler.or(settings.scheduler).unwrap_or_default(),
            fails_over: self.failover,
        }
    }
}

fn scheduler(name: &str) -> Result<Scheduler, String> {
    scheduler_named(name).ok_or_else(|| format!("use {}", scheduler_names()))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::config::{self, ProxyFlags};

    #[derive(Debug, clap::Parser)]
    struct CommandLine {
        #[command(flatten)]
        proxy: ProxyFlags,
        #[command(flatten)]
        balancing: BalancingArgs,
    }

    fn defaults(words: &[&str]) -> Result<BalancingDefaults, String> {
        let words = std::iter::once("run").chain(words.iter().copied());
        let args = CommandLine::try_parse_from(words).map_err(|error| error.to_string())?;
        let settings = config::load(&args.proxy).expect("settings").settings;
        Ok(args.balancing.defaults(&settings))
    }

    #[test]
    fn without_flags_it_is_random_and_fails_over() {
        assert_eq!(defaults(&[]), Ok(BalancingDefaults::default()));
        let ipvs = ["--proxy-mode=ipvs"];
        assert_eq!(defaults(&ipvs), Ok(BalancingDefaults::default()));
    }

    #[test]
    fn the_flag_comes_before_the_scheduler_of_ipvs() {
        let scheduler = |words: &[&str]| defaults(words).map(|found| found.scheduler);
        let ipvs = ["--proxy-mode=ipvs", "--ipvs-scheduler=wlc"];
        assert_eq!(scheduler(&ipvs), Ok(Scheduler::LeastConnections));
        let both = [&ipvs[..], &["--scheduler", "mh"]].concat();
        assert_eq!(scheduler(&both), Ok(Scheduler::Maglev));
        let taken_back = [&ipvs[..], &["--scheduler", "random"]].concat();
        assert_eq!(scheduler(&taken_back), Ok(Scheduler::Random));
    }

    #[test]
    fn failover_is_turned_off_by_name() {
        let off = BalancingDefaults {
            fails_over: false,
            ..BalancingDefaults::default()
        };
        assert_eq!(defaults(&["--failover", "false"]), Ok(off));
        assert_eq!(
            defaults(&["--failover=true"]),
            Ok(BalancingDefaults::default())
        );
        assert!(defaults(&["--failover=perhaps"]).is_err());
    }

    #[test]
    fn an_unknown_scheduler_is_refused_with_those_there_are() {
        let error = defaults(&["--scheduler", "lblc"]).expect_err("there is none");
        assert!(
            error.contains("--scheduler") && error.contains("lblc"),
            "{error}"
        );
        assert!(error.contains(&scheduler_names()), "{error}");
        let help = CommandLine::try_parse_from(["run", "--help"]).expect_err("help");
        // In one piece, whatever the width of the page.
        let help: Vec<_> = help
            .to_string()
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        assert!(help.join(" ").contains(&scheduler_names()), "{help:?}");
    }
}
