//! kube-proxy's flags, made from the table of fields.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use serde_json::{Map, Value};

use super::fields::{Effect, FIELDS, Field, Kind};

const HEADING: &str = "Options of kube-proxy";

/// Everything a command line of kube-proxy may say.
#[derive(Args, Debug, Default)]
pub struct ProxyFlags {
    /// Read this KubeProxyConfiguration file (YAML or JSON). It then says all of it: of kube-proxy's
    /// flags only --hostname-override, --master and those about logging count beside it. When the
    /// file changes, the agent ends, to be started again.
    #[arg(long, value_name = "FILE", help_heading = HEADING)]
    pub config: Option<PathBuf>,
    /// Write the configuration that would be used, with every default, to this file, and exit.
    #[arg(long, value_name = "FILE", help_heading = HEADING)]
    pub write_config_to: Option<PathBuf>,
    /// The API server's URL, instead of the kubeconfig's. The same as one --apiserver.
    #[arg(long, value_name = "URL", help_heading = HEADING)]
    pub master: Option<String>,
    /// Do what `kube-portal cleanup` does, and exit.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, help_heading = HEADING)]
    pub cleanup: Option<bool>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, hide = true)]
    pub init_only: Option<bool>,
    #[arg(long, hide = true)]
    pub healthz_port: Option<u16>,
    #[arg(long, hide = true)]
    pub metrics_port: Option<u16>,
    #[command(flatten)]
    pub(super) fields: FieldFlags,
}

/// The flags that set a field, as they were given.
#[derive(Debug, Default)]
pub(super) struct FieldFlags {
    pub(super) given: Vec<Given>,
}

#[derive(Debug)]
pub(super) struct Given {
    pub(super) field: &'static Field,
    pub(super) flag: &'static str,
    /// At least one.
    pub(super) texts: Vec<String>,
}

impl Given {
    /// Lists grow with each flag, as in kube-proxy; of anything else the last counts.
    pub(super) fn value(&self) -> Result<Value, String> {
        let last = self.texts.last().map_or("", String::as_str);
        let parts = || {
            let parts = self.texts.iter().flat_map(|text| text.split(','));
            parts.map(str::trim).filter(|part| !part.is_empty())
        };
        let refuse = |what: &str| format!("--{} {last:?}: {what}", self.flag);
        Ok(match self.field.kind {
            Kind::Text => last.into(),
            Kind::Bool => go_bool(last).map_err(|what| refuse(&what))?.into(),
            Kind::Int => last
                .parse::<i64>()
                .map_err(|_| refuse("write a whole number"))?
                .into(),
            Kind::Float => last
                .parse::<f64>()
                .ok()
                .filter(|number| number.is_finite())
                .ok_or_else(|| refuse("write a number"))?
                .into(),
            Kind::List => parts().map(Value::from).collect(),
            Kind::Gates => {
                let gate = |part: &str| {
                    let (name, on) = part.split_once('=')?;
                    Some((name.to_owned(), go_bool(on).ok()?.into()))
                };
                let gates: Option<Map<String, Value>> = parts().map(gate).collect();
                gates
                    .ok_or_else(|| refuse("write Name=true or Name=false, comma-separated"))?
                    .into()
            }
            Kind::Levels => {
                let level = |part: &str| {
                    let (pattern, level) = part.split_once('=')?;
                    let level: u32 = level.parse().ok()?;
                    Some(serde_json::json!({"filePattern": pattern, "verbosity": level}))
                };
                let levels: Option<Vec<Value>> = parts().map(level).collect();
                levels
                    .ok_or_else(|| refuse("write pattern=level, comma-separated"))?
                    .into()
            }
        })
    }
}

impl Args for FieldFlags {
    fn augment_args(command: Command) -> Command {
        FIELDS.iter().fold(command, |command, field| {
            let Some(flag) = field.flag else {
                return command;
            };
            let arg = Arg::new(flag)
                .long(flag)
                .action(ArgAction::Append)
                .allow_hyphen_values(true)
                .hide(matches!(field.effect, Effect::Nothing(_)))
                .help_heading(HEADING)
                .help(field.effect.text());
            let arg = match field.kind {
                Kind::Bool => arg
                    .num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value("true")
                    .value_name("BOOL"),
                Kind::List => arg.value_name("LIST"),
                Kind::Int | Kind::Float => arg.value_name("N"),
                Kind::Text | Kind::Gates | Kind::Levels => arg.value_name("VALUE"),
            };
            command.arg(match flag {
                "hostname-override" => arg.visible_alias("node-name").env("NODE_NAME"),
                "v" => arg.short('v'),
                _ => arg,
            })
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for FieldFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = FIELDS.iter().filter_map(|field| {
            let flag = field.flag?;
            let texts = matches.get_many::<String>(flag)?.cloned().collect();
            Some(Given { field, flag, texts })
        });
        Ok(Self {
            given: given.collect(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// strconv.ParseBool.
fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("write true or false".to_owned()),
    }
}
