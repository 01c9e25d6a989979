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
    /// A frontend whose service or backend does not exist. Never happens; the maps are damaged.
    TableDamaged = "table_damaged",
}
