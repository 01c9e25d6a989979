use std::{path::PathBuf, time::Duration};

use clap::Args;

use proxy_common::abi::PortRange;
use tokio::runtime::Builder;

use super::{
    CliError, PinArgs,
    balancing::BalancingArgs,
    block_on_runtime, cleanup, log_lines, snat_ports,
    source::{self, SourceArgs},
};
use crate::{
    app,
    config::{self, Loaded, ProxyFlags, Span},
    devices::{Choice, Pattern},
    loader::{Fixed, Sizes, TcAttach, check_bpffs, check_cgroup, check_node, find_cgroup_root},
    memory,
    server::sockets_of,
    surfaces::SurfacesConfig,
};

#[derive(Args, Debug)]
pub(super) struct RunArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Processes in this cgroup v2 directory and below are served [default: the first cgroup v2
    /// mount]
    #[arg(long, value_name = "DIR")]
    pub(super) cgroup_root: Option<PathBuf>,
    #[command(flatten)]
    pins: PinArgs,
    #[command(flatten)]
    pub(super) proxy: ProxyFlags,
    #[command(flatten)]
    balancing: BalancingArgs,
    /// Room for this many frontends (address, port and protocol).
    #[arg(long, value_name = "N", default_value_t = Sizes::DEFAULT.frontends, value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    max_frontends: u32,
    /// Room for this many Service ports, each family counted.
    #[arg(long, value_name = "N", default_value_t = Sizes::DEFAULT.services, value_parser = clap::value_parser!(u32).range(2..=16_777_216))]
    max_services: u32,
    /// Room for this many backends, each Service port counted.
    #[arg(long, value_name = "N", default_value_t = Sizes::DEFAULT.backends, value_parser = clap::value_parser!(u32).range(2..=16_777_216))]
    max_backends: u32,
    /// Room for this many slots, from which backends are drawn: each takes one, one more while its
    /// Service changes, more by its weight, and about 100 with the scheduler maglev. Rounded up to a
    /// power of two [default: twice --max-backends]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=33_554_432))]
    max_slots: Option<u32>,
    /// Room for this many loadBalancerSourceRanges, those of each Service port counted.
    #[arg(long, value_name = "N", default_value_t = Sizes::DEFAULT.source_ranges, value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    max_source_ranges: u32,
    /// Room for this many connected sockets. One more is translated all the same, but sees its
    /// backend's address as its peer.
    #[arg(long, value_name = "N", default_value_t = Sizes::DEFAULT.sockets, value_parser = clap::value_parser!(u32).range(64..=16_777_216))]
    max_sockets: u32,
    /// Room for this many UDP flows of unconnected sockets; the least recently used go first.
    #[arg(long, value_name = "N", default_value_t = Sizes::DEFAULT.udp_flows, value_parser = clap::value_parser!(u32).range(64..=16_777_216))]
    max_udp_flows: u32,
    /// Room for this many established flows of packets. One more works on, but among those half open.
    #[arg(long, value_name = "N", default_value_t = Sizes::DEFAULT.flows, value_parser = clap::value_parser!(u32).range(64..=8_388_608))]
    max_flows: u32,
    /// Room for this many flows of packets that are not established; the least recently used go first.
    #[arg(long, value_name = "N", default_value_t = Sizes::DEFAULT.half_open, value_parser = clap::value_parser!(u32).range(64..=8_388_608))]
    max_half_open: u32,
    /// Room for this many clients of Services with sessionAffinity, each Service port counted; those
    /// that have been away longest go first.
    #[arg(long, value_name = "N", default_value_t = Sizes::DEFAULT.affinity, value_parser = clap::value_parser!(u32).range(64..=16_777_216))]
    max_affinity: u32,
    /// How often the maps are compared with what they should hold, and repaired; 0 for only when
    /// `kube-portal status --verify` asks.
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = interval)]
    audit_interval: Duration,
    /// Translate packets on these devices: names and globs, comma-separated [default: those with a
    /// default route, an InternalIP of the Node or another global address, and tunnels]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    devices: Option<Vec<String>>,
    /// Translate also what comes from pods by these devices: names and globs, comma-separated. For
    /// pods whose sockets the socket path can't see, such as virtual machines, and for the SCTP of any.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pod_devices: Vec<String>,
    /// How programs are attached to devices.
    #[arg(long, value_enum, default_value_t)]
    tc_attach: TcAttach,
    /// Source ports for packets to backends elsewhere: outside the NodePort range and
    /// net.ipv4.ip_local_port_range.
    #[arg(long, value_name = "FIRST-LAST", default_value = "10000-29999", value_parser = snat_ports::parse)]
    snat_ports: PortRange,
    /// Have the programs log every decision, packets that pass included, at the level debug. It makes them
    /// many times as slow: `kube-portal monitor` is for every day.
    #[arg(long)]
    debug_programs: bool,
    /// So many Service ports have metrics of their own, those that came first; the others are summed under
    /// the name "_other".
    #[arg(long, value_name = "N", default_value_t = 1000)]
    metrics_max_services: usize,
    /// Have the kernel count how often each program runs and how long that takes, for /metrics. Every run
    /// of any BPF program of the node then costs some 40 ns more.
    #[arg(long)]
    bpf_stats: bool,
}

pub(super) fn execute(args: RunArgs) -> Result<(), CliError> {
    let loaded = config::load(&args.proxy)?;
    log_lines::start(
        loaded.settings.verbosity,
        loaded.settings.log_format,
        args.debug_programs,
    );
    for line in &loaded.warnings {
        log::warn!("{line}");
    }
    if let Some(file) = &args.proxy.write_config_to {
        config::write(&loaded.config, file)?;
        log::info!("configuration written to {}", file.display());
        return Ok(());
    }
    if args.proxy.cleanup == Some(true) {
        return cleanup::execute(&cleanup::CleanupArgs {
            pins: args.pins,
            kube_proxy: false,
        });
    }
    if args.proxy.init_only == Some(true) {
        log::info!("--init-only: there is nothing to prepare on the node; done");
        return Ok(());
    }
    check_node()?;
    config::set_oom_score_adj(loaded.settings.oom_score_adj);
    let cgroup_root = match &args.cgroup_root {
        Some(path) => path.clone(),
        None => find_cgroup_root()?,
    };
    check_cgroup(&cgroup_root)?;
    check_bpffs(&args.pins.bpffs_root)?;
    for line in snat_ports::overlaps(args.snat_ports, snat_ports::local_ports()) {
        log::warn!("{line}");
    }
    let config = agent(args, loaded, cgroup_root)?;
    memory::share_one_heap();
    let mut runtime = Builder::new_multi_thread();
    // One thread reads, this one writes: a second reader would only be woken in vain.
    runtime.worker_threads(1);
    block_on_runtime(runtime, app::run(config))?
}

/// What the agent is started with.
pub(super) fn agent(
    args: RunArgs,
    loaded: Loaded,
    cgroup_root: PathBuf,
) -> Result<app::Config, CliError> {
    let settings = loaded.settings;
    let balancing = args.balancing.defaults(&settings);
    let node_name = source::node_name(settings.node_name)?;
    let surfaces = SurfacesConfig {
        healthz: settings
            .healthz_bind_address
            .map_or_else(Vec::new, sockets_of),
        metrics: settings
            .metrics_bind_address
            .map_or_else(Vec::new, sockets_of),
        hard_fail: settings.bind_address_hard_fail,
        late: settings.sync_period * 2,
        configz: loaded.config.configz(),
        metrics_max_services: args.metrics_max_services,
    };
    let patterns = |flag: &str, values: &[String]| {
        Pattern::parse_all(values).map_err(|error| CliError::Usage(format!("{flag}: {error}")))
    };
    let devices = Choice {
        devices: args
            .devices
            .map(|values| patterns("--devices", &values))
            .transpose()?,
        pod_devices: patterns("--pod-devices", &args.pod_devices)?,
    };
    Ok(app::Config {
        source: args.source.source(&args.proxy, settings.kubeconfig),
        node_name,
        node_ports: settings.node_ports,
        primary_ip: settings.primary_address,
        balancing,
        config_file: loaded.file,
        cgroup_root,
        bpffs_root: args.pins.bpffs_root,
        sizes: Sizes {
            frontends: args.max_frontends,
            services: args.max_services,
            backends: args.max_backends,
            slots: args.max_slots,
            source_ranges: args.max_source_ranges,
            sockets: args.max_sockets,
            udp_flows: args.max_udp_flows,
            flows: args.max_flows,
            half_open: args.max_half_open,
            affinity: args.max_affinity,
        },
        surfaces,
        audit_interval: Some(args.audit_interval).filter(|interval| !interval.is_zero()),
        devices,
        snat_source: settings.snat_source,
        tc_attach: args.tc_attach,
        fixed: Fixed {
            snat_ports: args.snat_ports,
            debug_programs: args.debug_programs,
            timeouts: settings.timeouts,
        },
        bpf_stats: args.bpf_stats,
    })
}

pub(super) fn interval(text: &str) -> Result<Duration, String> {
    let span: Span = text.parse().map_err(|error| format!("{error}"))?;
    span.duration().ok_or_else(|| "it is negative".to_owned())
}
