//! Configuration as kube-proxy takes it: a KubeProxyConfiguration file, or flags of the same names.
//!
//! Both become the same type, get the same defaults and the same checks, and end as [`Settings`].
//! Precedence is kube-proxy's (`cmd/kube-proxy/app/options.go`): with `--config`, the file says all,
//! but for the flags about the node's name and logging.

mod duration;
mod fields;
mod flags;
mod oom;
mod read;
mod schema;
mod settings;
mod watch;

use std::{fs, io, path::PathBuf};

use serde_json::Value;

pub use self::{
    duration::Span,
    flags::ProxyFlags,
    oom::set_oom_score_adj,
    schema::KubeProxyConfiguration,
    settings::{LogFormat, Mode, Settings},
    watch::{ConfigFile, changed},
};
use self::{
    fields::{Effect, FIELDS, Field},
    flags::Given,
    settings::Invalid,
};
use crate::model::scheduler_names;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("--config {}: it can't be read: {reason}", .file.display())]
    Unreadable { file: PathBuf, reason: io::Error },
    #[error("--config {}: {reason}", .file.display())]
    File { file: PathBuf, reason: String },
    #[error("{0}")]
    Flags(String),
    #[error("--write-config-to {}: {reason}", .file.display())]
    Write { file: PathBuf, reason: io::Error },
    #[error("--config {}: its content has changed; ending, to be started again with the new one", .file.display())]
    Changed { file: PathBuf },
    #[error("--config {}: changes can't be watched: {reason}; raise fs.inotify.max_user_watches and max_user_instances", .file.display())]
    Inotify {
        file: PathBuf,
        reason: notify::Error,
    },
}

impl ConfigError {
    /// Whether another command line or file would help.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Unreadable { .. } | Self::File { .. } | Self::Flags(_) => true,
            Self::Write { .. } | Self::Changed { .. } | Self::Inotify { .. } => false,
        }
    }
}

/// What was configured.
#[derive(Debug)]
pub struct Loaded {
    /// With every default.
    pub config: KubeProxyConfiguration,
    pub settings: Settings,
    /// One line for each thing that was said and has no effect.
    pub warnings: Vec<String>,
    pub file: Option<ConfigFile>,
}

pub fn load(flags: &ProxyFlags) -> Result<Loaded, ConfigError> {
    let mut loaded = match &flags.config {
        Some(path) => from_file(path.clone(), flags),
        None => from_flags(flags),
    }?;
    for (flag, field, port) in [
        ("healthz-port", "healthz-bind-address", flags.healthz_port),
        ("metrics-port", "metrics-bind-address", flags.metrics_port),
    ] {
        // 0 turns the server off; any other is overruled by the default address, in kube-proxy too.
        if port.is_some_and(|port| port != 0) {
            let line = format!("--{flag}: has no effect; give --{field}");
            loaded.warnings.push(line);
        }
    }
    Ok(loaded)
}

/// The file that `load` will read to the same configuration.
pub fn write(config: &KubeProxyConfiguration, file: &PathBuf) -> Result<(), ConfigError> {
    serde_yaml_ng::to_string(config)
        .map_err(io::Error::other)
        .and_then(|text| fs::write(file, text))
        .map_err(|reason| ConfigError::Write {
            file: file.clone(),
            reason,
        })
}

/// This node's name from the machine's; `None` if it is blank.
pub fn node_name_of(host_name: &str) -> Option<String> {
    settings::node_name(host_name)
}

fn from_file(path: PathBuf, flags: &ProxyFlags) -> Result<Loaded, ConfigError> {
    let content = fs::read(&path).map_err(|reason| ConfigError::Unreadable {
        file: path.clone(),
        reason,
    })?;
    let refuse = |reason: String| ConfigError::File {
        file: path.clone(),
        reason,
    };
    let text =
        str::from_utf8(&content).map_err(|error| refuse(format!("it is no text: {error}")))?;
    let (config, passed_over) = read::read(text).map_err(refuse)?;
    let in_file = |line: String| format!("--config {}: {line}", path.display());
    let mut warnings: Vec<String> = passed_over.into_iter().map(in_file).collect();

    let mut value = config.to_value();
    for given in &flags.fields.given {
        if counts_beside_file(given.field) {
            fields::put(&mut value, given.field.path, flag_value(given)?);
        } else {
            warnings.push(format!(
                "--{}: is ignored, as kube-proxy does: with --config the file says it ({})",
                given.flag, given.field.path
            ));
        }
    }
    let mut config =
        read::typed(&value).map_err(|(field, reason)| refuse(format!("{field}: {reason}")))?;
    config.set_defaults();
    let settings = settings::settings(&config).map_err(|invalid| {
        let lines = invalid.iter().map(|invalid| told(invalid, invalid.path));
        refuse(lines.collect::<Vec<_>>().join("; "))
    })?;
    let idle = without_effect(&config, |field| not_read(field, &config.mode));
    warnings.extend(idle.map(|(field, why)| in_file(format!("{}: {why}", field.path))));
    let unknown = unknown_scheduler(&config, &settings);
    warnings.extend(unknown.map(|why| in_file(format!("ipvs.scheduler: {why}"))));
    if settings.mode != Mode::Nftables && config.node_port_addresses.is_empty() {
        warnings.push(in_file(format!(
            "nodePortAddresses: not set, so NodePorts answer on every address of the node, as in \
             kube-proxy's mode {}; `primary` is narrower",
            config.mode
        )));
    }
    Ok(Loaded {
        config,
        settings,
        warnings,
        file: Some(ConfigFile { path, content }),
    })
}

fn from_flags(flags: &ProxyFlags) -> Result<Loaded, ConfigError> {
    let mut value = Value::Object(serde_json::Map::new());
    for given in &flags.fields.given {
        fields::put(&mut value, given.field.path, flag_value(given)?);
    }
    let mut config = read::typed(&value)
        .map_err(|(path, reason)| ConfigError::Flags(format!("{}: {reason}", flag_name(&path))))?;
    if config.mode.is_empty() {
        // The mode whose behaviour is the measure: BEHAVIOUR.md.
        "nftables".clone_into(&mut config.mode);
    }
    // One flag for all modes.
    let (iptables, nftables) = (&config.iptables, &mut config.nftables);
    nftables.masquerade_all = iptables.masquerade_all;
    nftables.sync_period = iptables.sync_period;
    nftables.min_sync_period = iptables.min_sync_period;
    config.set_defaults();
    // Blank means off, but only as a flag.
    let off = |path, port: Option<u16>| {
        port == Some(0) || fields::at(&value, path).is_some_and(|text| text == "")
    };
    if off("healthzBindAddress", flags.healthz_port) {
        config.healthz_bind_address.clear();
    }
    if off("metricsBindAddress", flags.metrics_port) {
        config.metrics_bind_address.clear();
    }
    let settings = settings::settings(&config).map_err(|invalid| {
        let lines = invalid
            .iter()
            .map(|invalid| told(invalid, &flag_name(invalid.path)));
        ConfigError::Flags(lines.collect::<Vec<_>>().join("; "))
    })?;
    // One flag for the sections of two modes.
    let shared = |field: &Field| config.mode == "nftables" && field.path.starts_with("iptables.");
    let idle = |field: &Field| not_read(field, &config.mode).filter(|_| !shared(field));
    let unknown = unknown_scheduler(&config, &settings);
    let warnings = without_effect(&config, idle)
        .filter_map(|(field, why)| Some(format!("--{}: {why}", field.flag?)))
        .chain(unknown.map(|why| format!("--ipvs-scheduler: {why}")))
        .collect();
    Ok(Loaded {
        config,
        settings,
        warnings,
        file: None,
    })
}

fn flag_value(given: &Given) -> Result<Value, ConfigError> {
    given.value().map_err(ConfigError::Flags)
}

/// `--flag`, or the path of a field without one.
fn flag_name(path: &str) -> String {
    // The flags of the iptables section speak for that of nftables too.
    let shared = path
        .strip_prefix("nftables.")
        .map(|rest| format!("iptables.{rest}"));
    match fields::find(shared.as_deref().unwrap_or(path)).and_then(|field| field.flag) {
        Some(flag) => format!("--{flag}"),
        None => path.to_owned(),
    }
}

fn told(invalid: &Invalid, name: &str) -> String {
    format!("{name}: {:?}: {}", invalid.value, invalid.why)
}

/// processHostnameOverrideFlag and copyLogsFromFlags.
fn counts_beside_file(field: &Field) -> bool {
    field.path == "hostnameOverride" || field.path.starts_with("logging.")
}

/// The fields that ask for something else than kube-proxy's default, and do not get it. `idle` tells
/// of fields that kube-proxy would not read either.
fn without_effect<'a>(
    config: &'a KubeProxyConfiguration,
    idle: impl Fn(&Field) -> Option<String> + 'a,
) -> impl Iterator<Item = (&'static Field, String)> + 'a {
    let mut usual = KubeProxyConfiguration {
        bind_address: config.bind_address.clone(),
        mode: config.mode.clone(),
        ..Default::default()
    };
    usual.set_defaults();
    "0.0.0.0".clone_into(&mut usual.bind_address);
    let (usual, asked) = (usual.to_value(), config.to_value());
    FIELDS.iter().filter_map(move |field| {
        let value = fields::at(&asked, field.path)?;
        if Some(value) == fields::at(&usual, field.path) || asks_nothing(field, value) {
            return None;
        }
        let why = match field.effect {
            Effect::Nothing(_) => field.effect.warning(),
            Effect::Here(_) => idle(field).or_else(|| field.effect.warning()),
        };
        Some((field, why?))
    })
}

/// Said of a scheduler of IPVS that there is none of here, such as lblc.
fn unknown_scheduler(config: &KubeProxyConfiguration, settings: &Settings) -> Option<String> {
    let name = &config.ipvs.scheduler;
    let asked = settings.mode == Mode::Ipvs && !name.is_empty();
    (asked && settings.scheduler.is_none()).then(|| {
        format!(
            "{name:?} is not a scheduler of kube-portal and counts as not set: random, or what \
             --scheduler says; use {}",
            scheduler_names()
        )
    })
}

/// Values that are met by doing nothing.
fn asks_nothing(field: &Field, value: &Value) -> bool {
    match field.path {
        "bindAddress" => value == "::",
        // 0 leaves the kernel's value as it is.
        path if path.starts_with("conntrack.") => value == 0 || value == "0s",
        _ => value == "",
    }
}

/// Said of the fields for other modes than the chosen one.
fn not_read(field: &Field, mode: &str) -> Option<String> {
    let (section, _) = field.path.split_once('.')?;
    let read = match section {
        // Mode ipvs takes its masquerading from here.
        "iptables" => {
            let own = ["iptables.syncPeriod", "iptables.snatNodeInternalIP"];
            mode == "iptables" || mode == "ipvs" && !own.contains(&field.path)
        }
        "nftables" | "ipvs" => mode == section,
        _ => true,
    };
    (!read).then(|| format!("is not read in mode {mode}"))
}

#[cfg(test)]
mod tests;
