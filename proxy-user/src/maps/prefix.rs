//! Ranges as the tries hold them: addresses in their common form, so IPv4's bits count from 96.

use ipnet::IpNet;
use proxy_common::abi::Addr;

const V4_BITS: u32 = 96;

pub(super) fn of_net(net: &IpNet) -> (Addr, u32) {
    let bits = u32::from(net.prefix_len());
    match net {
        IpNet::V4(_) => (net.network().into(), V4_BITS + bits),
        IpNet::V6(_) => (net.network().into(), bits),
    }
}

/// `None`: not what [`of_net`] writes.
pub(super) fn net(addr: &Addr, bits: u32) -> Option<IpNet> {
    let ip = addr.ip();
    let bits = if ip.is_ipv4() {
        bits.checked_sub(V4_BITS)?
    } else {
        bits
    };
    IpNet::new(ip, u8::try_from(bits).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_survives_its_prefix() {
        for (text, bits) in [
            ("10.0.0.0/8", 104),
            ("192.0.2.1/32", 128),
            ("fd00::/8", 8),
            ("::/0", 0),
        ] {
            let range: IpNet = text.parse().unwrap();
            let prefix = of_net(&range);
            assert_eq!(prefix.1, bits);
            assert_eq!(net(&prefix.0, prefix.1), Some(range));
        }
        assert_eq!(net(&of_net(&"10.0.0.0/8".parse().unwrap()).0, 8), None);
    }
}
