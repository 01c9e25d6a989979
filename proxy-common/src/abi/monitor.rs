//! What the programs tell `kube-portal monitor`, and what it asks them for.

use super::{
    addr::{Addr, SockAddr},
    counter::Counter,
    layout::abi_struct,
};

/// Service ids that a filter can name.
pub const MONITOR_SERVICES: usize = 8;

abi_struct! {
    /// The only element of the map MONITOR: which decisions are to be told. All zeroes: none.
    pub struct MonitorFilter {
        /// A bit for each [`Counter`], by its index.
        pub outcomes: u64,
        /// Nothing is told after this (monotonic): who asks renews it, so a listener that was killed costs
        /// nothing for long.
        pub until_ns: u64,
        /// Only what has this address at either end, before or after; all zeroes: any.
        pub addr: Addr,
        /// Only of these services; all zeroes: any.
        pub services: [u32; MONITOR_SERVICES],
    }

    /// A record of the ring buffer EVENTS: one decision of a program.
    pub struct MonitorEvent {
        /// Monotonic.
        pub at_ns: u64,
        /// Cookie of the socket's network namespace; 0 for packets.
        pub netns: u64,
        /// Where it comes from; all zeroes for sockets, which have no address yet.
        pub src: SockAddr,
        /// What was dialled, or where the packet was going.
        pub dst: SockAddr,
        /// What became of `src`; all zeroes if nothing was changed.
        pub new_src: SockAddr,
        /// What became of `dst`; all zeroes if nothing was changed.
        pub new_dst: SockAddr,
        /// 0: no Service's.
        pub service: u32,
        /// 0: none.
        pub backend_id: u32,
        /// The process, in the initial pid namespace; 0 for packets.
        pub tgid: u32,
        /// The device that the packet was seen at; 0 for sockets.
        pub ifindex: u32,
        /// The index of a [`Counter`].
        pub outcome: u16,
        /// A [`MonitorHook`].
        pub hook: u8,
        /// IANA protocol number.
        pub protocol: u8,
        /// Always 0.
        pub zero: u32,
    }
}

const _: () = assert!(Counter::ALL.len() <= 64, "a bit for each");

impl MonitorFilter {
    /// Whether the outcome is among those that are asked for.
    #[inline(always)]
    pub const fn wants(outcomes: u64, outcome: Counter) -> bool {
        outcomes >> outcome.index() & 1 != 0
    }

    /// Whether the event is one that is asked for.
    #[inline(always)]
    pub fn admits(&self, event: &MonitorEvent) -> bool {
        if self.outcomes >> (event.outcome & 63) & 1 == 0 || event.at_ns > self.until_ns {
            return false;
        }
        let any = Addr::default();
        if self.addr != any
            && self.addr != event.dst.addr
            && self.addr != event.src.addr
            && self.addr != event.new_dst.addr
            && self.addr != event.new_src.addr
        {
            return false;
        }
        let mut any = 0;
        let mut i = 0;
        while i < MONITOR_SERVICES {
            if self.services[i] != 0 && self.services[i] == event.service {
                return true;
            }
            any |= self.services[i];
            i += 1;
        }
        any == 0
    }
}

/// Where a decision was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum MonitorHook {
    Connect = 1,
    Send = 2,
    Bind = 3,
    Ingress = 4,
    Egress = 5,
}

impl MonitorHook {
    pub const ALL: [Self; 5] = [
        Self::Connect,
        Self::Send,
        Self::Bind,
        Self::Ingress,
        Self::Egress,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Send => "send",
            Self::Bind => "bind",
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| *hook as u8 == number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILTER: MonitorFilter = MonitorFilter {
        outcomes: u64::MAX,
        until_ns: 10,
        addr: Addr { words: [0; 4] },
        services: [0; MONITOR_SERVICES],
    };

    fn event(service: u32, dst: u32) -> MonitorEvent {
        let none = SockAddr::from_parts(Addr::default(), 0);
        MonitorEvent {
            at_ns: 5,
            netns: 0,
            src: none,
            dst: SockAddr::from_parts(Addr::from_v4_word(dst), 80),
            new_src: none,
            new_dst: none,
            service,
            backend_id: 0,
            tgid: 0,
            ifindex: 0,
            outcome: 0,
            hook: MonitorHook::Connect as u8,
            protocol: 6,
            zero: 0,
        }
    }

    #[test]
    fn a_filter_without_conditions_admits_all_until_its_time_is_over() {
        assert!(FILTER.admits(&event(0, 1)));
        assert!(!FILTER.admits(&MonitorEvent {
            at_ns: 11,
            ..event(0, 1)
        }));
    }

    #[test]
    fn a_filter_admits_its_address_and_its_services_only() {
        let addr = MonitorFilter {
            addr: Addr::from_v4_word(1),
            ..FILTER
        };
        assert!(addr.admits(&event(0, 1)) && !addr.admits(&event(0, 2)));
        let mut services = [0; MONITOR_SERVICES];
        (services[0], services[7]) = (4, 9);
        let named = MonitorFilter { services, ..FILTER };
        assert!(named.admits(&event(9, 1)) && named.admits(&event(4, 1)));
        assert!(!named.admits(&event(0, 1)) && !named.admits(&event(5, 1)));
    }
}
