//! The probe: a process inside a pod that opens sockets when told to, and says what happened.
//!
//! One JSON request per line on stdin, one JSON response per line on stdout, matched by id; each
//! request has a thread of its own. It ends when stdin does, so it never outlives its test.

mod bench;
mod churn;
pub mod client;
mod dial;
mod handles;
mod http;
mod load;
mod run;
pub mod sctp;
mod serve;
mod tcp;
mod udp;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

pub use dial::{Dial, Dialled};
pub use udp::any_like;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

pub use run::run;

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Proto {
    Tcp,
    Udp,
}

/// How a server is asked for its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// A line, answered with `name peer`: `Serve`.
    Line,
    /// GET /, answered with a body that starts with the name: `ServeHttp`.
    Http,
}

/// What the probe is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Request {
    /// Answer every line or datagram with `name`, the client's address, and what it said.
    Serve {
        proto: Proto,
        addr: SocketAddr,
        name: String,
    },
    /// Answer every byte (TCP) or datagram (UDP) with the same, as fast as can be.
    ServeFast {
        proto: Proto,
        addr: SocketAddr,
        threads: usize,
    },
    /// Take whatever TCP brings, and answer nothing.
    ServeSink { addr: SocketAddr },
    /// Answer GET requests with `name (address)`.
    ServeHttp { addr: SocketAddr, name: String },
    /// The same as `Serve`, over SCTP, to one-to-one and one-to-many sockets.
    ServeSctp { addr: SocketAddr, name: String },
    /// Begin an SCTP association, ask for the name, end it.
    AskSctp {
        to: SocketAddr,
        way: sctp::Way,
        timeout: Duration,
    },
    /// Stop listening; connections already open are served on.
    StopServe { server: u64 },
    /// Open a TCP connection. The family of `to` is that of the socket: ::ffff:1.2.3.4 is IPv6.
    Connect {
        to: SocketAddr,
        from: Option<SocketAddr>,
        timeout: Duration,
    },
    /// Send a line, read a line.
    Exchange {
        connection: u64,
        line: String,
        timeout: Duration,
    },
    /// getpeername() of an open connection, now.
    PeerName { connection: u64 },
    /// Close a connection.
    Close { connection: u64 },
    /// Connect, ask, close, `count` times.
    ConnectMany {
        to: SocketAddr,
        count: usize,
        ask: Ask,
        timeout: Duration,
    },
    /// Open a UDP socket of the family of `bind` or `connect`.
    UdpOpen {
        bind: Option<SocketAddr>,
        connect: Option<SocketAddr>,
    },
    /// Send a datagram (to the connected address without `to`), receive one.
    UdpExchange {
        socket: u64,
        to: Option<SocketAddr>,
        payload: String,
        timeout: Duration,
    },
    /// getpeername() of a UDP socket.
    UdpPeerName { socket: u64 },
    /// connect() of an open UDP socket, to another address or again.
    UdpConnect { socket: u64, to: SocketAddr },
    /// connect() to AF_UNSPEC: the socket has no peer any more.
    UdpDisconnect { socket: u64 },
    /// Close a UDP socket.
    UdpClose { socket: u64 },
    /// A new UDP socket, one datagram and its answer, `count` times.
    UdpMany {
        to: SocketAddr,
        count: usize,
        connected: bool,
        timeout: Duration,
    },
    /// Connect and ask without end, in the background.
    ChurnStart(ChurnPlan),
    /// From now on only these names are right.
    ChurnAllow {
        churn: u64,
        allowed: BTreeSet<String>,
    },
    /// What has happened so far.
    ChurnReport { churn: u64 },
    /// Stop, and say what has happened.
    ChurnStop { churn: u64 },
    /// Make all of these calls, none of which waits, with a socket each.
    Dial { calls: Vec<(Dial, SocketAddr)> },
    /// Close those sockets.
    HangUp { dialled: u64 },
    /// Measure times.
    Bench(BenchPlan),
    /// Measure how much goes.
    Load(LoadPlan),
}

/// What the probe answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Response {
    Done,
    /// A server, UDP socket or churn was made.
    Made {
        id: u64,
        local: Option<SocketAddr>,
    },
    Connected(Connected),
    Answer(Answer),
    Address(SocketAddr),
    Tally(Tally),
    Churn(ChurnReport),
    Dialled {
        id: u64,
        calls: Vec<Dialled>,
    },
    Bench(Vec<BenchResult>),
    Load(LoadResult),
    Failed(NetError),
}

/// An opened TCP connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connected {
    /// What later requests call it.
    pub id: u64,
    /// getsockname().
    pub local: SocketAddr,
    /// getpeername(): what the application sees.
    pub peer: SocketAddr,
    /// How long connect() took.
    pub elapsed_us: u64,
}

/// What a server said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The server's name.
    pub name: String,
    /// The client's address as the server sees it.
    pub client: SocketAddr,
    /// What it was sent.
    pub echo: String,
    /// UDP: the source address recvfrom() gave. TCP: getpeername().
    pub from: SocketAddr,
    /// How long it took.
    pub elapsed_us: u64,
}

/// A system call that failed, or a wait that did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetError {
    /// ECONNREFUSED and so on; TIMEOUT when our own time was over; EOF when the server hung up.
    pub errno: String,
    /// What was being done.
    pub during: String,
    /// How long it took to fail.
    pub elapsed_us: u64,
}

/// Who answered how often, and what failed how often.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Answers by the server's name.
    pub names: BTreeMap<String, u64>,
    /// Failures by errno.
    pub errors: BTreeMap<String, u64>,
}

/// What churn does.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChurnPlan {
    /// The address dialled.
    pub to: SocketAddr,
    /// The names that may answer; any other is misdirected. Empty: all may.
    pub allowed: BTreeSet<String>,
    /// Threads that dial at the same time.
    pub threads: usize,
    /// A pause of each thread between two connections.
    pub pause: Duration,
    /// The longest a connection or answer may take.
    pub timeout: Duration,
}

/// What churn has seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChurnReport {
    /// Connections tried.
    pub attempts: u64,
    /// Answers and failures.
    pub tally: Tally,
    /// Answers by names that were not allowed at the time of dialling.
    pub misdirected: BTreeMap<String, u64>,
    /// The first failure, and how long after the start it was.
    pub first_error: Option<String>,
    /// The longest time without a good answer.
    pub longest_gap_us: u64,
}

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BenchKind {
    /// connect() alone.
    Connect,
    /// connect(), one byte there, one back, close.
    Crr,
    /// One byte there and back on an open connection.
    Rr,
    /// One byte there and back on a connected UDP socket.
    UdpConnected,
    /// One byte there and back with sendto() and recvfrom().
    UdpUnconnected,
}

/// A measurement. Each round visits every target once, in order: A, B, A, B.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct BenchPlan {
    pub kind: BenchKind,
    pub targets: Vec<SocketAddr>,
    pub rounds: usize,
    /// Rounds before those that count.
    pub warmup: usize,
    /// The CPU it runs on.
    pub cpu: Option<usize>,
    /// Whether results carry every single time.
    pub keep_samples: bool,
}

/// Times of one target, in nanoseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct BenchResult {
    pub target: SocketAddr,
    pub n: usize,
    pub p01: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub mean: f64,
    pub ops_per_sec: f64,
    /// In the order they were taken; empty unless asked for.
    pub samples: Vec<u64>,
}

/// What is repeated, as often as it can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoadKind {
    /// connect(), one byte there, one back, close.
    Crr,
    /// One byte there and back on a connected UDP socket.
    UdpRr,
    /// One byte there on a connected UDP socket.
    UdpSend,
    /// 64 KiB there on an open connection.
    Bulk,
}

/// As much as threads can do in a time.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct LoadPlan {
    pub kind: LoadKind,
    pub to: SocketAddr,
    pub threads: usize,
    pub time: Duration,
}

/// What they did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct LoadResult {
    /// Transactions, datagrams or bytes.
    pub done: u64,
    /// Transactions that failed or took longer than they may.
    pub failed: u64,
    pub elapsed_us: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Frame<T> {
    id: u64,
    body: T,
}

impl NetError {
    fn new(during: impl Into<String>, error: &io::Error, since: Instant) -> Self {
        Self {
            errno: errno_name(error),
            during: during.into(),
            elapsed_us: micros(since),
        }
    }
}

impl fmt::Display for NetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} after {} us",
            self.during, self.errno, self.elapsed_us
        )
    }
}

impl std::error::Error for NetError {}

impl Tally {
    /// All answers.
    pub fn answered(&self) -> u64 {
        self.names.values().sum()
    }

    /// All failures.
    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Answers of one server.
    pub fn of(&self, name: &str) -> u64 {
        self.names.get(name).copied().unwrap_or(0)
    }

    /// The names that answered.
    pub fn who(&self) -> BTreeSet<&str> {
        self.names.keys().map(String::as_str).collect()
    }

    /// Counts those of another, too.
    pub fn merge(&mut self, other: Self) {
        for (name, count) in other.names {
            *self.names.entry(name).or_default() += count;
        }
        for (errno, count) in other.errors {
            *self.errors.entry(errno).or_default() += count;
        }
    }

    fn add(&mut self, outcome: Result<String, NetError>) {
        let count = match outcome {
            Ok(name) => self.names.entry(name),
            Err(error) => self.errors.entry(error.errno),
        };
        *count.or_default() += 1;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (what, count)) in self.names.iter().chain(&self.errors).enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{what} {count}")?;
        }
        Ok(())
    }
}

impl ChurnPlan {
    /// One thread, no pause, answers within 2 s, from these names only.
    pub fn new<S: Into<String>>(
        to: impl Into<SocketAddr>,
        allowed: impl IntoIterator<Item = S>,
    ) -> Self {
        Self {
            to: to.into(),
            allowed: allowed.into_iter().map(Into::into).collect(),
            threads: 1,
            pause: Duration::ZERO,
            timeout: Duration::from_secs(2),
        }
    }
}

fn errno_name(error: &io::Error) -> String {
    match (error.raw_os_error(), error.kind()) {
        // A read or connect that waited as long as it was told to.
        (Some(libc::EAGAIN), _) | (None, io::ErrorKind::TimedOut) => "TIMEOUT".into(),
        (Some(code), _) => format!("{:?}", Errno::from_raw(code)),
        (None, io::ErrorKind::UnexpectedEof) => "EOF".into(),
        (None, kind) => format!("{kind:?}"),
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
