//! The two hooks of a device, and what they are called where.

use std::fmt;

use rtnetlink::packet_route::tc::TcHandle;

use crate::devices::Header;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    Ingress,
    Egress,
}

impl Hook {
    pub const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    /// The program for devices whose packets begin like that, if there is one.
    pub const fn program(self, header: Header) -> Option<&'static str> {
        match (self, header) {
            (Self::Ingress, Header::Ethernet) => Some("kp_tc_ingress"),
            (Self::Egress, Header::Ethernet) => Some("kp_tc_egress"),
            (Self::Ingress, Header::None) => Some("kp_tc_ingress_ip"),
            (Self::Egress, Header::None) => Some("kp_tc_egress_ip"),
            (_, Header::Other(_)) => None,
        }
    }

    /// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS`.
    pub(super) const fn tcx(self) -> u32 {
        match self {
            Self::Ingress => 46,
            Self::Egress => 47,
        }
    }

    /// Last on the way in (`BPF_F_AFTER` nothing in particular), first on the way out
    /// (`BPF_F_BEFORE`): what others see is what is on the wire, as with NAT in netfilter.
    pub(super) const fn tcx_place(self) -> u32 {
        match self {
            Self::Ingress => 1 << 4,
            Self::Egress => 1 << 3,
        }
    }

    /// The same by priority of a filter: the lowest number comes first.
    pub(super) const fn priority(self) -> u16 {
        match self {
            Self::Ingress => u16::MAX,
            Self::Egress => 1,
        }
    }

    pub(super) const fn parent(self) -> TcHandle {
        TcHandle {
            major: u16::MAX,
            minor: match self {
                Self::Ingress => TcHandle::MIN_INGRESS,
                Self::Egress => TcHandle::MIN_EGRESS,
            },
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}
