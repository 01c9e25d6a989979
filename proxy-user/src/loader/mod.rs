//! Puts programs and maps into the kernel, and takes them out again.

mod attach;
mod batch;
mod clsact;
mod fdinfo;
mod features;
mod hook;
mod layout;
mod link;
mod others;
mod packet;
mod pinned;
mod pins;
mod preflight;
mod probe;
pub mod program_log;
mod programs;
mod raw_map;
mod resize;
mod running;
mod sizes;
pub(crate) mod sys;

pub use attach::{Fixed, LoadError, Loaded, OBJECT, SweptMaps, load, take_map};
pub use batch::{AffinityMap, Counted, FlowMap, SocketMap, UdpFlowMap, UdpReverseMap};
pub use features::Features;
pub(crate) use features::netns_cookie;
pub use hook::Hook;
pub use others::{AtCgroup, AtDevice, How, Others, Sharing, at_cgroups, at_devices, with_parents};
pub use packet::{
    Change, Mechanism, OnDevice, PacketPath, TcAttach, device_name, netlink, on_devices,
    remove_filters,
};
pub use pins::{Claim, Cleaned, Found, Note, PinError, Pins, Removed};
pub use preflight::{
    PreflightError, bpffs_fault, check_bpffs, check_cgroup, check_node, find_cgroup_root,
    kernel_version,
};
pub use probe::{Probed, Tried, probe};
pub use programs::{Account, Programs};
pub use raw_map::Position;
pub(crate) use running::{Constants, ask_program, running_program};
pub use sizes::{Sizes, Taken, available, mib};
