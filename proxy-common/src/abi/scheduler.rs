//! By which rule a new connection gets its backend.

/// A rule. Names and meanings are those of IPVS (`net/netfilter/ipvs/ip_vs_*.c`), but for `random` and
/// `maglev`, which IPVS calls `mh`. Each looks at a bounded number of backends, whatever their number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Scheduler {
    /// Any, as kube-proxy does (BEHAVIOUR E16).
    #[default]
    Random = 0,
    /// One after the other.
    RoundRobin = 1,
    /// The one with fewer connections of two.
    LeastConnections = 2,
    /// By the client.
    SourceHash = 3,
    /// By the address that was dialled.
    DestinationHash = 4,
    /// Where the connection would wait shortest: (connections + 1) / weight.
    ShortestDelay = 5,
    /// An idle one; if there is none, as `ShortestDelay`.
    NeverQueue = 6,
    /// By the client, so that every node decides alike and few change when one backend goes.
    Maglev = 7,
}

impl Scheduler {
    pub const ALL: [Self; 8] = [
        Self::Random,
        Self::RoundRobin,
        Self::LeastConnections,
        Self::SourceHash,
        Self::DestinationHash,
        Self::ShortestDelay,
        Self::NeverQueue,
        Self::Maglev,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::RoundRobin => "rr",
            Self::LeastConnections => "lc",
            Self::SourceHash => "sh",
            Self::DestinationHash => "dh",
            Self::ShortestDelay => "sed",
            Self::NeverQueue => "nq",
            Self::Maglev => "maglev",
        }
    }

    /// What no number stands for is `Random`.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::RoundRobin,
            2 => Self::LeastConnections,
            3 => Self::SourceHash,
            4 => Self::DestinationHash,
            5 => Self::ShortestDelay,
            6 => Self::NeverQueue,
            7 => Self::Maglev,
            _ => Self::Random,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Scheduler;

    #[test]
    fn every_scheduler_has_a_number_of_its_own() {
        for scheduler in Scheduler::ALL {
            assert_eq!(Scheduler::from_number(scheduler as u8), scheduler);
        }
    }
}
