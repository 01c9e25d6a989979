//! Puts programs and maps into the kernel, and takes them out again.

mod attach;
mod features;
mod link;
mod pins;
mod preflight;

pub use attach::{LoadError, Loaded, OBJECT, Sizes, load};
pub use features::Features;
pub use pins::{PinError, Pins, Removed};
pub use preflight::{PreflightError, check_bpffs, check_cgroup, check_node, find_cgroup_root};
