/// Defines the counters: their index in the map COUNTERS, name and meaning.
macro_rules! counters {
    ($( $(#[doc = $doc:literal])* $variant:ident = $name:literal, )*) => {
        /// Index into the per-CPU map COUNTERS. Every outcome of a program has exactly one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Counter { $( $(#[doc = $doc])* $variant, )* }

        impl Counter {
            pub const ALL: &'static [Self] = &[ $( Self::$variant, )* ];

            /// As `status` and metrics show it.
            pub const fn name(self) -> &'static str {
                match self { $( Self::$variant => $name, )* }
            }

            /// What it counts, in a sentence.
            pub const fn meaning(self) -> &'static str {
                match self { $( Self::$variant => concat!($($doc),*), )* }
            }

            #[inline(always)]
            pub const fn index(self) -> u32 {
                self as u32
            }
        }
    };
}

counters! {
    /// connect() to a frontend, sent to a backend.
    ConnectTranslated = "connect_translated",
    /// connect() to a Service without endpoints, answered with ECONNREFUSED.
    ConnectRefused = "connect_refused",
    /// connect() to a Service whose policy is Local, without an endpoint on this node.
    ConnectNoLocalEndpoint = "connect_no_local_endpoint",
    /// connect() to a ClusterIP at a port that no Service has there, answered with ECONNREFUSED.
    ConnectUndefinedPort = "connect_undefined_port",
    /// connect() from outside the Service's source ranges, left as it is.
    ConnectNotAllowed = "connect_not_allowed",
    /// A datagram sent to a frontend from an unconnected socket: a new flow.
    SendNewFlow = "send_new_flow",
    /// A datagram sent to a frontend from an unconnected socket: a flow known before.
    SendKnownFlow = "send_known_flow",
    /// A known flow whose backend was gone, and which was given another.
    SendMovedFlow = "send_moved_flow",
    /// A datagram to a Service without endpoints, answered with ECONNREFUSED.
    SendRefused = "send_refused",
    /// A datagram to a Service whose policy is Local, without an endpoint on this node.
    SendNoLocalEndpoint = "send_no_local_endpoint",
    /// A datagram to a ClusterIP at a port that no Service has there, answered with ECONNREFUSED.
    SendUndefinedPort = "send_undefined_port",
    /// A datagram from outside the Service's source ranges, left as it is.
    SendNotAllowed = "send_not_allowed",
    /// An answer shown to the application as coming from the frontend.
    ReceiveReversed = "receive_reversed",
    /// getpeername() answered with the frontend.
    PeernameReversed = "peername_reversed",
    /// A socket that was parked because its Service lost its last endpoint.
    SocketParked = "socket_parked",
    /// A translated socket that could not be remembered (no room): it sees the backend's address.
    SocketNotRemembered = "socket_not_remembered",
    /// bind() of a process of the node to a NodePort, answered with EADDRINUSE.
    BindInUse = "bind_in_use",
    /// A client whose backend could not be remembered (sessionAffinity): its next connection may go to
    /// another.
    AffinityNotRemembered = "affinity_not_remembered",
    /// A frontend whose service or backend does not exist. Never happens; the maps are damaged.
    TableDamaged = "table_damaged",
    /// A packet that has nothing to do with a Service.
    PacketPassed = "packet_passed",
    /// A packet with headers that can't be; the stack will see to it.
    PacketMalformed = "packet_malformed",
    /// A fragment without ports that came before the one with them, or long after, and goes on as it is.
    PacketOrphanFragment = "packet_orphan_fragment",
    /// The first packet of a flow to a frontend, sent to a backend.
    PacketNewFlow = "packet_new_flow",
    /// A further packet to a frontend, sent to its flow's backend.
    PacketForwarded = "packet_forwarded",
    /// A packet of a backend, sent to the client as coming from the frontend.
    PacketReversed = "packet_reversed",
    /// An ICMP error about a translated packet, sent to whom it concerns.
    PacketErrorTranslated = "packet_error_translated",
    /// A packet to a Service without endpoints.
    PacketNoEndpoints = "packet_no_endpoints",
    /// A packet to a Service whose policy is Local, without an endpoint on this node.
    PacketNoLocalEndpoint = "packet_no_local_endpoint",
    /// A reset of a connection to a frontend that isn't known.
    PacketStrayReset = "packet_stray_reset",
    /// A new flow for which every source port that was tried toward its backend is taken.
    PacketNoSnatPort = "packet_no_snat_port",
    /// A new flow that leaves by a device on which this node has no address of its family.
    PacketNoSource = "packet_no_source",
    /// A new flow that couldn't be remembered.
    PacketNoRoom = "packet_no_room",
    /// A translated packet with nowhere to go.
    PacketNoRoute = "packet_no_route",
    /// A packet that came to the end of its TTL or hop limit here.
    PacketTtlExceeded = "packet_ttl_exceeded",
    /// A packet too large for the device it would leave by.
    PacketTooBig = "packet_too_big",
    /// A packet whose sender was not told, because this CPU has told too many of late.
    PacketAnswerLimited = "packet_answer_limited",
    /// A fragment of an SCTP packet whose ports would change: its checksum covers the other fragments.
    PacketSctpFragment = "packet_sctp_fragment",
    /// A packet that couldn't be written.
    PacketNotWritten = "packet_not_written",
    /// A flow that found no room in FLOWS and stays among the half-open ones.
    FlowsFull = "flows_full",
    /// A packet to a ClusterIP, but to no port of its Service.
    PacketUnknownPort = "packet_unknown_port",
    /// A packet to an address that ClusterIPs are taken from, and that no Service has.
    PacketUnallocatedClusterIp = "packet_unallocated_cluster_ip",
    /// A packet to a load balancer's address, from a source that is in none of its ranges.
    PacketNotAllowed = "packet_not_allowed",
    /// A translated packet from a device that may not forward (net.ipv4.conf.*.forwarding, net.ipv6.conf.*.forwarding).
    PacketForwardingOff = "packet_forwarding_off",
    /// A translated packet that leaves for a backend or client elsewhere.
    PacketSentOn = "packet_sent_on",
    /// A fragment to a ClusterIP without ports, whose first one nobody has translated.
    PacketOrphanDropped = "packet_orphan_dropped",
    /// A decision that `kube-portal monitor` had asked for, and that found no room on its way there.
    MonitorLost = "monitor_lost",
    /// An attempt to connect to a backend that it refused, or that was cut off on the way there.
    AttemptRefused = "attempt_refused",
    /// An attempt to connect to a backend that was not answered in time.
    AttemptUnanswered = "attempt_unanswered",
    /// A first packet that was repeated because its backend had not answered, sent to another backend.
    PacketFailedOver = "packet_failed_over",
    /// A backend that a new connection was to get, and that was passed over because it has failed of late.
    BackendPassedOver = "backend_passed_over",
}

/// What an outcome means to whoever dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A new connection or flow was given a backend.
    Translated,
    /// Something of a connection or flow that is known went its way.
    Continued,
    /// The sender was told that nobody serves it.
    Refused,
    /// Lost, and the sender was not told of a Service's absence.
    Dropped,
    /// None of our business.
    Passed,
    /// Something to know beside what became of the connection or packet.
    Noted,
}

impl Kind {
    pub const ALL: [Self; 6] = [
        Self::Translated,
        Self::Continued,
        Self::Refused,
        Self::Dropped,
        Self::Passed,
        Self::Noted,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Translated => "translated",
            Self::Continued => "continued",
            Self::Refused => "refused",
            Self::Dropped => "dropped",
            Self::Passed => "passed",
            Self::Noted => "noted",
        }
    }

    /// A bit for each outcome of this kind, by its index.
    pub const fn outcomes(self) -> u64 {
        let (mut bits, mut i) = (0, 0);
        while i < Counter::ALL.len() {
            if Counter::ALL[i].kind() as u8 == self as u8 {
                bits |= 1 << Counter::ALL[i].index();
            }
            i += 1;
        }
        bits
    }
}

/// Computed once: a program only looks whether a bit is set.
const BEGUN: u64 = Kind::Translated.outcomes();
const FAILED: u64 = Kind::Refused.outcomes() | Kind::Dropped.outcomes();

impl Counter {
    /// Whether a connection or flow has got a backend.
    #[inline(always)]
    pub const fn is_begin(self) -> bool {
        BEGUN >> self.index() & 1 != 0
    }

    /// Whether a connection, flow or packet got nowhere.
    #[inline(always)]
    pub const fn is_failure(self) -> bool {
        FAILED >> self.index() & 1 != 0
    }

    pub const fn kind(self) -> Kind {
        match self {
            Self::ConnectTranslated
            | Self::SendNewFlow
            | Self::SendMovedFlow
            | Self::PacketNewFlow
            | Self::PacketFailedOver => Kind::Translated,
            Self::SendKnownFlow
            | Self::ReceiveReversed
            | Self::PeernameReversed
            | Self::PacketForwarded
            | Self::PacketReversed
            | Self::PacketErrorTranslated
            | Self::PacketSentOn => Kind::Continued,
            Self::ConnectRefused
            | Self::ConnectUndefinedPort
            | Self::SendRefused
            | Self::SendUndefinedPort
            | Self::BindInUse
            | Self::PacketNoEndpoints
            | Self::PacketUnknownPort => Kind::Refused,
            Self::ConnectNoLocalEndpoint
            | Self::ConnectNotAllowed
            | Self::SendNoLocalEndpoint
            | Self::SendNotAllowed
            | Self::TableDamaged
            | Self::PacketNoLocalEndpoint
            | Self::PacketStrayReset
            | Self::PacketNoSnatPort
            | Self::PacketNoSource
            | Self::PacketNoRoom
            | Self::PacketNoRoute
            | Self::PacketTtlExceeded
            | Self::PacketTooBig
            | Self::PacketSctpFragment
            | Self::PacketNotWritten
            | Self::PacketUnallocatedClusterIp
            | Self::PacketNotAllowed
            | Self::PacketForwardingOff
            | Self::PacketOrphanDropped => Kind::Dropped,
            Self::PacketPassed | Self::PacketMalformed | Self::PacketOrphanFragment => Kind::Passed,
            Self::SocketParked
            | Self::SocketNotRemembered
            | Self::AffinityNotRemembered
            | Self::PacketAnswerLimited
            | Self::FlowsFull
            | Self::MonitorLost
            | Self::AttemptRefused
            | Self::AttemptUnanswered
            | Self::BackendPassedOver => Kind::Noted,
        }
    }

    /// `None`: there is no such counter.
    pub fn from_index(index: u32) -> Option<Self> {
        Self::ALL.get(index as usize).copied()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Counter;
    use crate::abi::map;

    const PAGE: &str = include_str!("../../../docs/PACKET-PATHS.md");
    const LABELS: [&str; 5] = ["hook", "maps", "writes", "becomes", "counts"];
    /// In capitals, and no maps.
    const OTHERS: [&str; 4] = ["UDP", "TCP", "TTL", "MTU"];

    /// What each line of a picture says, behind its label or the one above it.
    fn labelled() -> Vec<(&'static str, &'static str)> {
        let (mut found, mut label) = (Vec::new(), "");
        for line in PAGE.lines() {
            let text = line.trim();
            match LABELS.iter().find(|label| text.starts_with(**label)) {
                Some(new) if line.len() - text.len() == 1 => label = new,
                _ if line.starts_with("           ") => {}
                _ => label = "",
            }
            found.push((label, text));
        }
        found
    }

    fn words(text: &str, is_part: fn(char) -> bool) -> impl Iterator<Item = &str> {
        text.split(move |c| !is_part(c))
            .filter(|word| word.len() > 2)
    }

    #[test]
    fn the_pictures_of_the_paths_name_every_counter_and_no_other() {
        let counters: BTreeSet<&str> = Counter::ALL.iter().map(|counter| counter.name()).collect();
        let is_of_a_name = |c: char| c.is_ascii_lowercase() || c == '_';
        let first = |name: &'static str| name.split('_').next();
        let firsts: BTreeSet<&str> = counters.iter().filter_map(|name| first(name)).collect();
        let named: BTreeSet<&str> = words(PAGE, is_of_a_name)
            .filter(|word| word.contains('_') && first(word).is_some_and(|w| firsts.contains(w)))
            .collect();
        assert_eq!(named, counters);
    }

    #[test]
    fn the_pictures_of_the_paths_look_up_maps_that_exist() {
        let maps: BTreeSet<&str> = map::ALL
            .iter()
            .map(|name| name.trim_start_matches("KP_"))
            .chain(["LOCKS"])
            .collect();
        let mut seen = BTreeSet::new();
        for (label, text) in labelled() {
            if label != "maps" && label != "writes" {
                continue;
            }
            for word in words(text, |c| c.is_ascii_uppercase() || c == '_') {
                assert!(maps.contains(word) || OTHERS.contains(&word), "{text}");
                seen.insert(word);
            }
        }
        assert!(seen.len() > 12, "{seen:?}");
    }

    #[test]
    fn the_pictures_of_the_paths_fit_a_narrow_terminal() {
        let mut is_picture = false;
        for line in PAGE.lines() {
            if line.starts_with("```") {
                is_picture = !is_picture;
            } else if is_picture {
                assert!(line.chars().count() <= 78, "{line}");
            }
        }
    }
}
