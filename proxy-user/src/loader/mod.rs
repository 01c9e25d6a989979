//! Puts programs and maps into the kernel, and takes them out again.

mod attach;
mod batch;
mod clsact;
mod fdinfo;
mod features;
mod hook;
mod layout;
mod link;
mod packet;
mod pinned;
mod pins;
mod preflight;
pub mod program_log;
mod programs;
mod raw_map;
mod resize;
mod sizes;
pub(crate) mod sys;

pub use attach::{Fixed, LoadError, Loaded, OBJECT, SweptMaps, load, take_map};
pub use batch::{AffinityMap, Counted, FlowMap, SocketMap, UdpFlowMap, UdpReverseMap};
pub use features::Features;
pub use hook::Hook;
pub use packet::{
    Change, Mechanism, OnDevice, PacketPath, TcAttach, device_name, netlink, on_devices,
    remove_filters,
};
pub use pins::{Claim, Cleaned, Note, PinError, Pins, Removed};
pub use preflight::{PreflightError, check_bpffs, check_cgroup, check_node, find_cgroup_root};
pub use programs::{Account, Programs};
pub use raw_map::Position;
pub use sizes::{Sizes, Taken};
