//! Times of connect() and round trips, target after target in each round.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use socket2::{Domain, SockAddr, Socket, Type};

use super::{BenchKind, BenchPlan, BenchResult, NetError, any_like};

/// No single operation may hang the bench.
const TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn run(plan: &BenchPlan) -> Result<Vec<BenchResult>, NetError> {
    let start = Instant::now();
    measure(plan).map_err(|error| NetError::new(format!("bench {:?}", plan.kind), &error, start))
}

fn measure(plan: &BenchPlan) -> io::Result<Vec<BenchResult>> {
    if let Some(cpu) = plan.cpu {
        let mut set = CpuSet::new();
        set.set(cpu)?;
        // This thread only; it ends with the request.
        sched_setaffinity(Pid::from_raw(0), &set)?;
    }
    let mut targets = plan
        .targets
        .iter()
        .map(|addr| Target::open(plan.kind, *addr))
        .collect::<io::Result<Vec<Target>>>()?;
    let mut samples: Vec<Vec<u64>> = plan
        .targets
        .iter()
        .map(|_| Vec::with_capacity(plan.rounds))
        .collect();
    for round in 0..plan.warmup + plan.rounds {
        for (target, samples) in targets.iter_mut().zip(&mut samples) {
            let time = target.once()?;
            if round >= plan.warmup {
                samples.push(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
            }
        }
    }
    let results = plan.targets.iter().zip(samples);
    Ok(results
        .map(|(target, samples)| result(*target, samples, plan.keep_samples))
        .collect())
}

/// What is repeated on a target; sockets that stay open are opened before the first round.
enum Target {
    Connect(SockAddr, Domain),
    Crr(SockAddr, Domain),
    Rr(TcpStream),
    UdpConnected(UdpSocket),
    UdpUnconnected(UdpSocket, SocketAddr),
}

impl Target {
    fn open(kind: BenchKind, addr: SocketAddr) -> io::Result<Self> {
        let domain = Domain::for_address(addr);
        let udp = || -> io::Result<UdpSocket> {
            let socket = UdpSocket::bind(any_like(addr))?;
            socket.set_read_timeout(Some(TIMEOUT))?;
            Ok(socket)
        };
        Ok(match kind {
            BenchKind::Connect => Self::Connect(addr.into(), domain),
            BenchKind::Crr => Self::Crr(addr.into(), domain),
            BenchKind::Rr => {
                let stream = TcpStream::connect_timeout(&addr, TIMEOUT)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                Self::Rr(stream)
            }
            BenchKind::UdpConnected => {
                let socket = udp()?;
                socket.connect(addr)?;
                Self::UdpConnected(socket)
            }
            BenchKind::UdpUnconnected => Self::UdpUnconnected(udp()?, addr),
        })
    }

    fn once(&mut self) -> io::Result<Duration> {
        let mut byte = [b'x'];
        match self {
            Self::Connect(addr, domain) => {
                let socket = tcp_socket(*domain)?;
                let start = Instant::now();
                socket.connect(addr)?;
                Ok(start.elapsed())
            }
            Self::Crr(addr, domain) => {
                let socket = tcp_socket(*domain)?;
                let start = Instant::now();
                socket.connect(addr)?;
                (&socket).write_all(&byte)?;
                (&socket).read_exact(&mut byte)?;
                drop(socket);
                Ok(start.elapsed())
            }
            Self::Rr(stream) => {
                let start = Instant::now();
                stream.write_all(&byte)?;
                stream.read_exact(&mut byte)?;
                Ok(start.elapsed())
            }
            Self::UdpConnected(socket) => {
                let start = Instant::now();
                socket.send(&byte)?;
                socket.recv(&mut byte)?;
                Ok(start.elapsed())
            }
            Self::UdpUnconnected(socket, addr) => {
                let start = Instant::now();
                socket.send_to(&byte, *addr)?;
                socket.recv_from(&mut byte)?;
                Ok(start.elapsed())
            }
        }
    }
}

/// Closed with a reset, so that ports come back at once; all options are set before the clock runs.
fn tcp_socket(domain: Domain) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::STREAM, None)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_linger(Some(Duration::ZERO))?;
    // A blocking connect gives up after the send timeout too.
    socket.set_write_timeout(Some(TIMEOUT))?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    Ok(socket)
}

#[allow(clippy::cast_precision_loss)] // nanoseconds of a bench fit a double
fn result(target: SocketAddr, samples: Vec<u64>, keep: bool) -> BenchResult {
    let mut sorted = samples.clone();
    sorted.sort_unstable();
    let at = |percent: usize| {
        sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1)))
    };
    let at = |percent| at(percent).copied().unwrap_or(0);
    let total = sorted.iter().sum::<u64>() as f64;
    let n = sorted.len();
    BenchResult {
        target,
        n,
        p01: at(1),
        p50: at(50),
        p90: at(90),
        p99: at(99),
        mean: total / n.max(1) as f64,
        ops_per_sec: if total > 0.0 {
            n as f64 * 1e9 / total
        } else {
            0.0
        },
        samples: if keep { samples } else { Vec::new() },
    }
}
