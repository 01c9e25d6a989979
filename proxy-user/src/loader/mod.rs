//! Puts programs and maps into the kernel, and takes them out again.

mod attach;
mod batch;
mod clsact;
mod features;
mod hook;
mod layout;
mod link;
mod packet;
mod pinned;
mod pins;
mod preflight;
mod raw_map;
mod resize;
mod running;
mod sizes;
pub(crate) mod sys;

pub use attach::{Fixed, LoadError, Loaded, OBJECT, SweptMaps, load, take_map};
pub use batch::{AffinityMap, Counted, FlowMap};
pub use features::Features;
pub(crate) use features::netns_cookie;
pub use hook::Hook;
pub use packet::{
    Change, Mechanism, OnDevice, PacketPath, TcAttach, device_name, netlink, on_devices,
    remove_filters,
};
pub use pins::{Claim, Cleaned, Note, PinError, Pins, Removed};
pub use preflight::{PreflightError, check_bpffs, check_cgroup, check_node, find_cgroup_root};
pub use raw_map::Position;
pub(crate) use running::{Constants, ask_program, running_program};
pub use sizes::Sizes;
