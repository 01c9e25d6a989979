//! I/O: looks at the node, and leaves everything as it is.

use std::{
    collections::BTreeSet,
    env, fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::PostParams;
use rustix::fs::{Access as FileAccess, StatVfsMountFlags, access, statvfs};
use tokio::time::timeout;

use super::{
    Facts,
    api::{Api, Granted, RIGHTS, Right},
    bpffs::Bpffs,
    cgroups::{self, Cgroups, Root},
    devices::{Device, Devices},
    kernel::Kernel,
    kube_proxy::KubeProxy,
    memory::Memory,
    network::{self, Network},
    rights::{self, Rights},
};
use crate::{
    app,
    cli::snat_ports,
    control, devices, leftovers, loader,
    watch::{
        self,
        kube::{Connection, Patience},
    },
};

/// The API server has this long for each answer.
const PATIENCE: Patience = Patience {
    connect: Duration::from_secs(3),
    answer: Duration::from_secs(5),
    whole: Duration::from_secs(5),
    watch: Duration::from_secs(5),
    dead_peer: Duration::from_secs(3),
};
/// And this long for all of them.
const TIMEOUT: Duration = Duration::from_secs(10);

/// `cgroup_root`: where the agent would attach, or why nowhere; and whether a flag says so.
pub(crate) async fn gather(
    config: &app::Config,
    cgroup_root: (Result<PathBuf, String>, bool),
) -> Facts {
    let probed = loader::probe();
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let bpffs = bpffs(&config.bpffs_root);
    let devices = devices(config).await;
    let status = read("/proc/self/status");
    let meminfo = loader::available(&read("/proc/meminfo"));
    Facts {
        rights: Rights {
            is_root: rustix::process::geteuid().is_root(),
            capabilities: rights::effective(&status).unwrap_or_default(),
            memlock: probed.memlock,
            memlock_lifted: probed.memlock_lifted,
            initial_pid_namespace: is_initial_pid_namespace(),
            initial_network_namespace: is_initial_network_namespace(),
        },
        memory: Memory {
            needed: config.sizes.memory_bytes(),
            available: meminfo,
            too_much: meminfo.and_then(|bytes| config.sizes.too_much_for(bytes)),
            is_taken: !bpffs.pins.is_empty(),
        },
        cgroups: cgroups(cgroup_root, !bpffs.pins.is_empty()),
        kube_proxy: KubeProxy {
            processes: kube_proxies(),
            leftovers: leftovers::find_kube_proxys().await,
        },
        network: network(config, &devices),
        api: api(&config.source).await,
        kernel: Kernel {
            version: loader::kernel_version(&release),
            release,
            required: probed.required,
            features: probed.features,
            jited: probed.jited,
            membarrier: rustix::thread::membarrier_query()
                .contains_command(rustix::thread::MembarrierCommand::Global),
        },
        bpffs,
        devices,
    }
}

/// Empty if it can't be read.
fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn is_initial_pid_namespace() -> bool {
    /// `PROC_PID_INIT_INO` of include/linux/proc_ns.h.
    const INITIAL: u64 = 0xefff_fffc;
    fs::metadata("/proc/self/ns/pid").is_ok_and(|meta| meta.ino() == INITIAL)
}

/// Those of others don't have the sysctls of the whole machine (net_core_table of net/core).
fn is_initial_network_namespace() -> bool {
    Path::new("/proc/sys/net/core/netdev_budget").exists()
}

fn cgroups((root, is_named): (Result<PathBuf, String>, bool), has_pins: bool) -> Cgroups {
    /// Of the root of every hierarchy.
    const ROOT_INODE: u64 = 1;
    let programs = match &root {
        Ok(path) => {
            let levels = loader::with_parents(path);
            loader::at_cgroups(&levels).map_err(|error| error.to_string())
        }
        Err(reason) => Err(reason.clone()),
    };
    let root = root.map(|path| Root {
        is_whole: fs::metadata(&path).is_ok_and(|meta| meta.ino() == ROOT_INODE),
        is_named,
        path,
    });
    Cgroups {
        root,
        version_1: cgroups::version_1(&read("/proc/self/mounts")),
        programs,
        has_pins,
    }
}

fn bpffs(root: &Path) -> Bpffs {
    let not_mounted = loader::bpffs_fault(root);
    let pins = loader::Pins::new(root);
    let is_writable = access(root, FileAccess::WRITE_OK).is_ok()
        && statvfs(root).is_ok_and(|stat| !stat.f_flag.contains(StatVfsMountFlags::RDONLY));
    let found = if not_mounted.is_none() {
        pins.found()
    } else {
        Vec::new()
    };
    Bpffs {
        root: root.to_owned(),
        not_mounted,
        is_writable,
        agent_runs: found.iter().any(|pins| control::is_there(&pins.path)),
        pins: found,
    }
}

async fn devices(config: &app::Config) -> Devices {
    let attach = config.tc_attach;
    let is_named = config.devices.devices.is_some();
    let chosen = chosen(config).await;
    Devices {
        chosen,
        attach,
        is_named,
    }
}

async fn chosen(config: &app::Config) -> Result<Vec<Device>, String> {
    let facts = watch::node_net::facts().await?;
    // What the Node object says is not known before it has been asked for.
    let internal_ips: Vec<IpAddr> = config.primary_ip.into_iter().collect();
    let chosen = devices::choose(&facts, &internal_ips, &config.devices);
    let indices: Vec<u32> = chosen.keys().copied().collect();
    let mut others = loader::at_devices(&indices).await?;
    Ok(chosen
        .into_iter()
        .map(|(index, chosen)| Device {
            is_up: facts.link(index).is_some_and(|link| link.is_up),
            addresses: facts
                .addresses_of(index)
                .filter(|address| address.is_global)
                .map(|address| address.ip)
                .collect(),
            others: others.remove(&index).unwrap_or_default(),
            chosen,
        })
        .collect())
}

/// Processes of this name in this network namespace; not ourselves, who may be called so.
fn kube_proxies() -> Vec<u32> {
    let netns = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let own = netns("self");
    let is_kube_portal = |pid: &str| {
        fs::read_link(format!("/proc/{pid}/exe"))
            .is_ok_and(|exe| exe.file_name().is_some_and(|name| name == "kube-portal"))
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut found: Vec<u32> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let pid: u32 = name.parse().ok()?;
            (read(format!("/proc/{name}/comm")).trim() == "kube-proxy"
                && netns(&name) == own
                && pid != std::process::id()
                && !is_kube_portal(&name))
            .then_some(pid)
        })
        .collect();
    found.sort_unstable();
    found
}

fn network(config: &app::Config, devices: &Devices) -> Network {
    let chosen = devices.chosen.as_deref().unwrap_or_default();
    let switch = |path: &str| {
        let text = read(Path::new("/proc/sys/net").join(path));
        text.trim().parse::<u32>().ok().map(|number| number != 0)
    };
    let rp_filter = |device: &str| read(format!("/proc/sys/net/ipv4/conf/{device}/rp_filter"));
    // The larger of both counts, and 2 is loose.
    let all = rp_filter("all").trim().parse::<u32>().unwrap_or(0);
    let is_strict = |device: &&Device| {
        let own = rp_filter(&device.chosen.name);
        own.trim().parse::<u32>().unwrap_or(0).max(all) == 1
    };
    let mut listening: BTreeSet<SocketAddr> = BTreeSet::new();
    for table in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        listening.extend(network::listeners(&read(table)));
    }
    let wanted = |flag, addresses: &[SocketAddr]| {
        let addresses = addresses.iter();
        addresses.map(|at| (flag, *at)).collect::<Vec<_>>()
    };
    let mut servers = wanted("--healthz-bind-address", &config.surfaces.healthz);
    servers.extend(wanted("--metrics-bind-address", &config.surfaces.metrics));
    Network {
        forwards_v4: switch("ipv4/ip_forward"),
        forwards_v6: switch("ipv6/conf/all/forwarding"),
        has_v6: chosen
            .iter()
            .any(|device| device.addresses.iter().any(IpAddr::is_ipv6)),
        strict_rp_filter: chosen
            .iter()
            .filter(is_strict)
            .map(|device| device.chosen.name.clone())
            .collect(),
        snat_ports: config.fixed.snat_ports,
        local_ports: snat_ports::local_ports(),
        wanted: servers,
        listening: listening.into_iter().collect(),
        hard_fail: config.surfaces.hard_fail,
    }
}

async fn api(source: &app::Source) -> Api {
    let access = match source {
        app::Source::Manifests(folder) => return Api::Manifests(folder.display().to_string()),
        app::Source::Kubernetes(access) => access.clone(),
    };
    let in_cluster = env::var("KUBERNETES_SERVICE_HOST").ok();
    match Connection::new(access, PATIENCE).await {
        Ok(connection) => {
            let url = connection.contact().freshness().server;
            let by_cluster_ip = in_cluster.is_some_and(|host| names_host(&url, &host));
            let client = connection.client();
            let asked = timeout(TIMEOUT, client.apiserver_version()).await;
            let answered = match asked {
                Ok(Ok(version)) => Ok(version.git_version),
                Ok(Err(error)) => Err(watch::kube::chain(&error)),
                Err(_) => Err(format!("no answer within {} s", TIMEOUT.as_secs())),
            };
            let rights = if answered.is_ok() {
                timeout(TIMEOUT, ask_rights(&client))
                    .await
                    .unwrap_or_default()
            } else {
                Vec::new()
            };
            Api::Server {
                url,
                answered,
                by_cluster_ip,
                rights,
            }
        }
        Err(error) => Api::None(error.to_string()),
    }
}

/// Whether a URL's host is this one.
fn names_host(url: &str, host: &str) -> bool {
    url.parse::<hyper::Uri>().is_ok_and(|url| {
        let bare = |host: &str| host.trim_matches(['[', ']']).to_owned();
        url.host().map(bare) == Some(bare(host))
    })
}

async fn ask_rights(client: &kube::Client) -> Vec<(Right, Granted)> {
    let reviews: kube::Api<SelfSubjectAccessReview> = kube::Api::all(client.clone());
    let mut answers = Vec::new();
    for right in RIGHTS {
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    group: Some(right.group.to_owned()),
                    resource: Some(right.resource.to_owned()),
                    verb: Some(right.verb.to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let granted = match reviews.create(&PostParams::default(), &review).await {
            Ok(review) if review.status.as_ref().is_some_and(|said| said.allowed) => Granted::Yes,
            Ok(_) => Granted::No,
            Err(error) => Granted::Unknown(watch::kube::chain(&error)),
        };
        let ends = matches!(granted, Granted::Unknown(_));
        answers.push((right, granted));
        if ends {
            break;
        }
    }
    answers
}

/// Where programs would be attached, or why nowhere, with the remedy.
pub(crate) fn cgroup_root(named: Option<&Path>) -> Result<PathBuf, String> {
    let path = match named {
        Some(path) => path.to_owned(),
        None => loader::find_cgroup_root().map_err(|error| error.to_string())?,
    };
    loader::check_cgroup(&path).map_err(|error| error.to_string())?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_a_url_is_compared_without_brackets() {
        assert!(names_host("https://10.96.0.1:443/", "10.96.0.1"));
        assert!(names_host("https://[fd96::1]:443/", "fd96::1"));
        assert!(!names_host("https://192.0.2.1:6443/", "10.96.0.1"));
    }

    #[test]
    fn a_folder_that_is_no_cgroup_is_refused_with_a_remedy() {
        let error = cgroup_root(Some(Path::new("/proc"))).unwrap_err();
        assert!(error.contains("; name a directory"), "{error}");
    }
}
