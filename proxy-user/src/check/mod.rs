//! `kube-portal check`: is this a node to run on, and what would be off? Each part of the node is looked at
//! by `gather`, into plain facts, and judged here, without I/O.

mod api;
mod bpffs;
mod cgroups;
mod devices;
mod finding;
mod gather;
mod kernel;
mod kube_proxy;
mod memory;
mod network;
mod rights;

pub use finding::{Level, Report};
pub(crate) use gather::{cgroup_root, gather};

/// Everything that is judged.
#[derive(Clone, Debug)]
pub struct Facts {
    pub kernel: kernel::Kernel,
    pub rights: rights::Rights,
    pub cgroups: cgroups::Cgroups,
    pub bpffs: bpffs::Bpffs,
    pub devices: devices::Devices,
    pub kube_proxy: kube_proxy::KubeProxy,
    pub network: network::Network,
    pub memory: memory::Memory,
    pub api: api::Api,
}

/// In the order in which it is read: what makes the others fail comes first.
pub fn judge(facts: &Facts) -> Report {
    let mut report = Report::default();
    kernel::judge(&facts.kernel, &mut report);
    rights::judge(&facts.rights, &facts.kernel, &mut report);
    memory::judge(&facts.memory, &mut report);
    cgroups::judge(&facts.cgroups, &facts.kernel, &mut report);
    bpffs::judge(&facts.bpffs, &mut report);
    devices::judge(&facts.devices, facts.kernel.features.tcx, &mut report);
    kube_proxy::judge(&facts.kube_proxy, &mut report);
    let agent_runs = facts.bpffs.agent_runs;
    network::judge(&facts.network, agent_runs, &mut report);
    api::judge(&facts.api, &mut report);
    report
}
