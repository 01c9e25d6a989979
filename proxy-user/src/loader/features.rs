//! What this kernel can do, probed once and passed down.

use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// bpf_set_retval in cgroup hooks (Linux 5.18, b44123b4a3dc): a refused connect() fails with
    /// ECONNREFUSED by itself.
    pub set_retval: bool,
}

impl Features {
    pub fn probe() -> Self {
        Self {
            // A probe that can't tell is a kernel without: the fallback works everywhere.
            set_retval: is_helper_supported(
                ProgramType::CgroupSockAddr,
                BpfHelper::BPF_FUNC_set_retval,
            )
            .unwrap_or(false),
        }
    }
}
