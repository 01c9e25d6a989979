//! Frontend -> service word -> slot -> backend: one hash lookup, then array reads.

use super::{addr::Addr, affinity::ServiceAffinity, layout::abi_struct, scheduler::Scheduler};

abi_struct! {
    /// Key of the map FRONTENDS: what a client dials. See also [`FrontendKey::of_address`].
    pub struct FrontendKey {
        pub addr: Addr,
        /// In network byte order as it lies in memory.
        pub port_be: u16,
        /// IANA protocol number.
        pub protocol: u8,
        /// Always 0.
        pub zero: u8,
    }

    /// Value of the map FRONTENDS.
    pub struct Frontend {
        /// Index into SERVICES; 0 only for an address as such ([`FrontendKey::of_address`]).
        pub service: u32,
        /// What clients that are neither pods nor processes of this node get instead: the endpoints
        /// of this node, under `externalTrafficPolicy: Local`. 0: the same.
        pub outside_service: u32,
        /// A [`FrontendKind`].
        pub kind: u8,
        /// Bits: [`Frontend::NODE_ONLY`] and those after it.
        pub flags: u8,
        /// Always 0.
        pub zero: [u8; 2],
    }

    /// Element of the map SERVICES. Each of its words is written with one store, and means what it
    /// means whatever the other says.
    pub struct Service {
        /// Which backends.
        pub word: ServiceWord,
        /// Whether a client keeps its backend.
        pub affinity: ServiceAffinity,
    }

    /// Element of the map BACKENDS. `service` 0 means that the id is not in use.
    pub struct Backend {
        pub addr: Addr,
        /// In network byte order as it lies in memory.
        pub port_be: u16,
        /// IANA protocol number.
        pub protocol: u8,
        /// Bits: [`Backend::LOCAL`] and those after it.
        pub flags: u8,
        /// How much it can take, compared with the service's others; 1 unless somebody said otherwise.
        pub weight: u16,
        /// Always 0.
        pub zero: u16,
        /// The id of the same endpoint in the Service port's other list (of the whole cluster, of this
        /// node); 0: it isn't there. It may be out of date: look whether it is the same endpoint.
        pub twin: u32,
        /// The service it belongs to: a flow whose backend answers to another service is stale.
        pub service: u32,
    }
}

impl Backend {
    /// A pod or process of this node: packets reach it through the stack.
    pub const LOCAL: u8 = 1;
    /// A slot names it: it gets new connections. Else it only keeps the flows it has.
    pub const CHOSEN: u8 = 2;
}

impl Frontend {
    /// Only for sockets in the node's own network namespace: a NodePort on a loopback address, which
    /// in a pod is the pod's own.
    pub const NODE_ONLY: u8 = 1;
    /// Only for sources that SOURCE_RANGES names for `service` (BEHAVIOUR L1-L3).
    pub const SOURCE_RANGES: u8 = 2;
    /// With [`Self::SOURCE_RANGES`]: the node's own processes are among them (L4).
    pub const NODE_ALLOWED: u8 = 4;
    /// With [`Self::SOURCE_RANGES`]: every pod of this node is among them.
    pub const PODS_ALLOWED: u8 = 8;
}

impl FrontendKey {
    /// An entry under this key says that the address is a ClusterIP: whatever else is dialled there is
    /// rejected (BEHAVIOUR A11).
    #[inline(always)]
    pub const fn of_address(addr: Addr) -> Self {
        Self {
            addr,
            port_be: 0,
            protocol: 0,
            zero: 0,
        }
    }
}

/// What kind of address a frontend is (BEHAVIOUR §1.2, §1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum FrontendKind {
    ClusterIp = 1,
    ExternalIp = 2,
    LoadBalancer = 3,
    NodePort = 4,
}

impl FrontendKind {
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::ClusterIp),
            2 => Some(Self::ExternalIp),
            3 => Some(Self::LoadBalancer),
            4 => Some(Self::NodePort),
            _ => None,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::ExternalIp => "ExternalIP",
            Self::LoadBalancer => "LoadBalancer",
            Self::NodePort => "NodePort",
        }
    }
}

impl From<ServiceWord> for Service {
    /// Without affinity.
    #[inline(always)]
    fn from(word: ServiceWord) -> Self {
        Self {
            word,
            affinity: ServiceAffinity::NONE,
        }
    }
}

/// The word of a [`Service`] that switches a service from one set of backends to the
/// next. Eight aligned bytes, written with one store, so a reader sees the old set or the new one.
///
/// Bits 0..32 first slot, 32..56 number of slots, 56..58 [`Empty`] (what to do without slots), 58..62
/// [`Scheduler`], 62 and 63 see [`Self::scheduled`]. A run has a slot for each backend, or as many as
/// their weights say; for [`Scheduler::Maglev`] it is the lookup table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct ServiceWord(pub u64);

/// What happens to a connection when a service has no slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Empty {
    /// The id is not in use; frontends must not name it.
    Unused = 0,
    /// No usable endpoint anywhere: REJECT (BEHAVIOUR R1).
    Refuse = 1,
    /// Endpoints elsewhere, but policy Local: DROP (BEHAVIOUR E6, R3).
    Drop = 2,
}

impl ServiceWord {
    /// More slots than this don't fit the word.
    pub const MAX_COUNT: u32 = (1 << 24) - 1;

    #[inline(always)]
    pub const fn with_backends(first_slot: u32, count: u32) -> Self {
        Self(first_slot as u64 | ((count & Self::MAX_COUNT) as u64) << 32 | 1 << 56)
    }

    const SCHEDULER_SHIFT: u32 = 58;
    const FAILOVER: u64 = 1 << 62;
    const WEIGHTED: u64 = 1 << 63;

    /// The same slots by another rule. `fails_over`: backends that don't answer are passed over.
    /// `is_weighted`: they have not all the same weight.
    #[inline(always)]
    pub const fn scheduled(
        self,
        scheduler: Scheduler,
        fails_over: bool,
        is_weighted: bool,
    ) -> Self {
        let mut word = self.0 & ((1 << Self::SCHEDULER_SHIFT) - 1);
        word |= (scheduler as u64) << Self::SCHEDULER_SHIFT;
        if fails_over {
            word |= Self::FAILOVER;
        }
        if is_weighted {
            word |= Self::WEIGHTED;
        }
        Self(word)
    }

    #[inline(always)]
    pub const fn scheduler(self) -> Scheduler {
        Scheduler::from_number((self.0 >> Self::SCHEDULER_SHIFT) as u8 & 15)
    }

    #[inline(always)]
    pub const fn fails_over(self) -> bool {
        self.0 & Self::FAILOVER != 0
    }

    #[inline(always)]
    pub const fn is_weighted(self) -> bool {
        self.0 & Self::WEIGHTED != 0
    }

    #[inline(always)]
    pub const fn without_backends(empty: Empty) -> Self {
        Self((empty as u64) << 56)
    }

    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the low 32 bits are the field"
    )]
    pub const fn first_slot(self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    pub const fn count(self) -> u32 {
        ((self.0 >> 32) & Self::MAX_COUNT as u64) as u32
    }

    #[inline(always)]
    pub const fn empty(self) -> Empty {
        match self.0 >> 56 & 3 {
            1 => Empty::Refuse,
            2 => Empty::Drop,
            _ => Empty::Unused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_word_keeps_its_fields_apart() {
        let word = ServiceWord::with_backends(u32::MAX, ServiceWord::MAX_COUNT);
        assert_eq!(word.first_slot(), u32::MAX);
        assert_eq!(word.count(), ServiceWord::MAX_COUNT);
        let word = ServiceWord::with_backends(7, 3);
        assert_eq!((word.first_slot(), word.count()), (7, 3));
        let word = ServiceWord::without_backends(Empty::Drop);
        assert_eq!((word.count(), word.empty()), (0, Empty::Drop));
        assert_eq!(ServiceWord::default().empty(), Empty::Unused);
        for scheduler in Scheduler::ALL {
            for (fails_over, is_weighted) in [(false, true), (true, false)] {
                let word = ServiceWord::with_backends(u32::MAX, ServiceWord::MAX_COUNT)
                    .scheduled(Scheduler::Maglev, true, true)
                    .scheduled(scheduler, fails_over, is_weighted);
                assert_eq!(word.scheduler(), scheduler);
                assert_eq!(word.fails_over(), fails_over);
                assert_eq!(word.is_weighted(), is_weighted);
                assert_eq!(word.first_slot(), u32::MAX);
                assert_eq!(word.count(), ServiceWord::MAX_COUNT);
            }
        }
        let empty = ServiceWord::without_backends(Empty::Drop);
        let empty = empty.scheduled(Scheduler::Maglev, true, true);
        assert_eq!((empty.count(), empty.empty()), (0, Empty::Drop));
    }
}
