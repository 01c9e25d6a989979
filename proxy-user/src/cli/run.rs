use std::path::PathBuf;

use clap::Args;

use super::{CliError, PinArgs, cleanup};
use crate::{
    app,
    config::{self, ProxyFlags},
    loader::{Sizes, check_bpffs, check_cgroup, check_node, find_cgroup_root},
};

#[derive(Args, Debug)]
pub(super) struct RunArgs {
    /// Serve the Services and EndpointSlices in this folder of YAML or JSON files, and follow its
    /// changes.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "master"])]
    manifests: Option<PathBuf>,
    /// Processes in this cgroup v2 directory and below are served [default: the first cgroup v2
    /// mount]
    #[arg(long, value_name = "DIR")]
    cgroup_root: Option<PathBuf>,
    #[command(flatten)]
    pins: PinArgs,
    #[command(flatten)]
    proxy: ProxyFlags,
    /// Room for this many frontends (address, port and protocol).
    #[arg(long, value_name = "N", default_value_t = 131_072, value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    max_frontends: u32,
    /// Room for this many Service ports, each family counted.
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(2..=16_777_216))]
    max_services: u32,
    /// Room for this many backends, each Service port counted.
    #[arg(long, value_name = "N", default_value_t = 262_144, value_parser = clap::value_parser!(u32).range(2..=16_777_216))]
    max_backends: u32,
    /// Room for this many connected sockets. One more is translated all the same, but sees its
    /// backend's address as its peer.
    #[arg(long, value_name = "N", default_value_t = 131_072, value_parser = clap::value_parser!(u32).range(64..=16_777_216))]
    max_sockets: u32,
    /// Room for this many UDP flows of unconnected sockets; the least recently used go first.
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(64..=16_777_216))]
    max_udp_flows: u32,
}

pub(super) fn execute(args: RunArgs) -> Result<(), CliError> {
    let loaded = config::load(&args.proxy)?;
    let settings = loaded.settings;
    start_log(settings.verbosity);
    for line in loaded.warnings {
        log::warn!("{line}");
    }
    if let Some(file) = &args.proxy.write_config_to {
        config::write(&loaded.config, file)?;
        log::info!("configuration written to {}", file.display());
        return Ok(());
    }
    if args.proxy.cleanup == Some(true) {
        return cleanup::execute(&cleanup::CleanupArgs { pins: args.pins });
    }
    if args.proxy.init_only == Some(true) {
        log::info!("--init-only: there is nothing to prepare on the node; done");
        return Ok(());
    }
    check_node()?;
    config::set_oom_score_adj(settings.oom_score_adj);
    let cgroup_root = match args.cgroup_root {
        Some(path) => path,
        None => find_cgroup_root()?,
    };
    check_cgroup(&cgroup_root)?;
    check_bpffs(&args.pins.bpffs_root)?;
    let node_name = match &settings.node_name {
        Some(name) => name.clone(),
        None => config::node_name_of(&rustix::system::uname().nodename().to_string_lossy())
            .ok_or_else(|| {
                CliError::Usage("this machine has no host name; give --hostname-override".into())
            })?,
    };
    let config = app::Config {
        source: match args.manifests {
            Some(directory) => app::Source::Manifests(directory),
            None => app::Source::Kubernetes {
                kubeconfig: settings.kubeconfig.clone(),
                master: args.proxy.master,
            },
        },
        node_name,
        node_ports: settings.node_ports.clone(),
        settings,
        config_file: loaded.file,
        cgroup_root,
        bpffs_root: args.pins.bpffs_root,
        sizes: Sizes {
            frontends: args.max_frontends,
            services: args.max_services,
            backends: args.max_backends,
            sockets: args.max_sockets,
            udp_flows: args.max_udp_flows,
        },
    };
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|source| CliError::Io {
            what: "the runtime",
            source,
        })?
        .block_on(app::run(config))
}

/// klog's levels: 4 is "debug" and above 5 is "trace" in Kubernetes' own words.
fn start_log(verbosity: u32) {
    let filter = match verbosity {
        0..=3 => "info",
        4..=5 => "info,proxy_user=debug",
        6.. => "info,proxy_user=trace",
    };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(filter))
        .format_timestamp_millis()
        .format_target(false)
        .init();
}
