//! What netlink says of this node's devices.

use std::{collections::BTreeSet, net::IpAddr};

/// Everything that decides where the packet path belongs, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// By index.
    pub links: Vec<Link>,
    /// In the kernel's order: each device's primary address first.
    pub addresses: Vec<Address>,
    /// Indices of the devices by which a default route leaves.
    pub default_routes: BTreeSet<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// `IFLA_INFO_KIND`; a device of a driver that can't be made by `ip link add` has none.
    pub kind: Option<String>,
    /// Kind of the device it is enslaved to (`IFLA_INFO_SLAVE_KIND`); empty if it doesn't say.
    pub master: Option<String>,
    pub is_loopback: bool,
    pub is_up: bool,
    /// In bytes, without the link layer.
    pub mtu: u32,
    pub header: Header,
}

/// How a device's packets begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    Ethernet,
    /// With the IP header: tunnels.
    None,
    /// With something the packet path can't read; the number is ARPHRD_*.
    Other(u16),
}

impl Header {
    /// From `ifi_type`, include/uapi/linux/if_arp.h.
    pub const fn of(arphrd: u16) -> Self {
        match arphrd {
            // ETHER.
            1 => Self::Ethernet,
            // PPP, RAWIP, TUNNEL, TUNNEL6, SIT, IPGRE, IP6GRE, NONE: `dev_is_mac_header_xmit` in
            // include/linux/if_arp.h.
            512 | 519 | 768 | 769 | 776 | 778 | 823 | 0xfffe => Self::None,
            other => Self::Other(other),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Of its device.
    pub index: u32,
    pub ip: IpAddr,
    /// Others can dial it, and packets may be sent from it for long: neither of a narrower scope nor
    /// temporary, deprecated or still being checked.
    pub is_global: bool,
}

impl Facts {
    pub fn addresses_of(&self, index: u32) -> impl Iterator<Item = &Address> {
        self.addresses
            .iter()
            .filter(move |address| address.index == index)
    }

    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }
}
