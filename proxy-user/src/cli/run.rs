use std::path::PathBuf;

use clap::Args;

use proxy_common::abi::PortRange;

use super::{CliError, PinArgs, snat_ports};
use crate::{
    app,
    devices::{Choice, Pattern},
    loader::{Sizes, TcAttach, check_bpffs, check_cgroup, check_node, find_cgroup_root},
    model::NodePortScope,
    server::parse_bind_address,
    surfaces::SurfacesConfig,
};

#[derive(Args, Debug)]
pub(super) struct RunArgs {
    /// Serve the Services and EndpointSlices in this folder of YAML or JSON files, and follow its
    /// changes.
    #[arg(long, value_name = "DIR", conflicts_with = "kubeconfig")]
    manifests: Option<PathBuf>,
    /// Serve this cluster. Without it: $KUBECONFIG, ~/.kube/config, or the pod's service account.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// This node's name in the cluster [default: the host name, in lower case]
    #[arg(long, env = "NODE_NAME")]
    node_name: Option<String>,
    /// Processes in this cgroup v2 directory and below are served [default: the first cgroup v2
    /// mount]
    #[arg(long, value_name = "DIR")]
    cgroup_root: Option<PathBuf>,
    #[command(flatten)]
    pins: PinArgs,
    /// Addresses of this node on which NodePorts answer: `primary` (the Node object's InternalIPs) or
    /// CIDRs, comma-separated. The node's own processes always reach them on 127.0.0.1 and ::1.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "primary"
    )]
    nodeport_addresses: Vec<String>,
    /// Where /healthz and /livez are answered: an IP address and a port; "" for nowhere. 0.0.0.0 and
    /// [::] stand for both families.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:10256")]
    healthz_bind_address: String,
    /// Where /metrics, /proxyMode and /healthz are answered; "" for nowhere.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:10249")]
    metrics_bind_address: String,
    /// End if one of these addresses can't be had; without it, it is tried again.
    #[arg(long)]
    bind_address_hard_fail: bool,
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
    /// Room for this many established flows of packets. One more works on, but among those half open.
    #[arg(long, value_name = "N", default_value_t = 262_144, value_parser = clap::value_parser!(u32).range(64..=8_388_608))]
    max_flows: u32,
    /// Room for this many flows of packets that are not established; the least recently used go first.
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(64..=8_388_608))]
    max_half_open: u32,
    /// Translate packets on these devices: names and globs, comma-separated [default: those with a
    /// default route, an InternalIP of the Node or another global address, and tunnels]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    devices: Option<Vec<String>>,
    /// Translate also what comes from pods by these devices: names and globs, comma-separated. For
    /// pods whose sockets the socket path can't see, such as virtual machines.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pod_devices: Vec<String>,
    /// How programs are attached to devices.
    #[arg(long, value_enum, default_value_t)]
    tc_attach: TcAttach,
    /// Source ports for packets to backends elsewhere: outside the NodePort range and
    /// net.ipv4.ip_local_port_range.
    #[arg(long, value_name = "FIRST-LAST", default_value = "61000-65535", value_parser = snat_ports::parse)]
    snat_ports: PortRange,
}

pub(super) fn execute(args: RunArgs) -> Result<(), CliError> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info"))
        .format_timestamp_millis()
        .format_target(false)
        .init();
    check_node()?;
    let cgroup_root = match args.cgroup_root {
        Some(path) => path,
        None => find_cgroup_root()?,
    };
    check_cgroup(&cgroup_root)?;
    check_bpffs(&args.pins.bpffs_root)?;
    let node_name = match args.node_name {
        Some(name) => name,
        None => rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .to_lowercase(),
    };
    let node_ports = NodePortScope::parse(&args.nodeport_addresses)
        .map_err(|error| CliError::Usage(format!("--nodeport-addresses: {error}")))?;
    let bind = |flag: &str, address: &str, port| {
        parse_bind_address(address, port)
            .map_err(|error| CliError::Usage(format!("{flag} {address:?}: {error}")))
    };
    let surfaces = SurfacesConfig {
        healthz: bind("--healthz-bind-address", &args.healthz_bind_address, 10256)?,
        metrics: bind("--metrics-bind-address", &args.metrics_bind_address, 10249)?,
        hard_fail: args.bind_address_hard_fail,
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
    for line in snat_ports::overlaps(args.snat_ports, snat_ports::local_ports()) {
        log::warn!("{line}");
    }
    let config = app::Config {
        source: match args.manifests {
            Some(directory) => app::Source::Manifests(directory),
            None => app::Source::Kubernetes(args.kubeconfig),
        },
        node_name,
        node_ports,
        cgroup_root,
        bpffs_root: args.pins.bpffs_root,
        sizes: Sizes {
            frontends: args.max_frontends,
            services: args.max_services,
            backends: args.max_backends,
            sockets: args.max_sockets,
            udp_flows: args.max_udp_flows,
            flows: args.max_flows,
            half_open: args.max_half_open,
        },
        surfaces,
        devices,
        tc_attach: args.tc_attach,
        snat_ports: args.snat_ports,
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
