//! As much as goes: transactions, datagrams or bytes in a time.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use super::{LoadKind, LoadPlan, LoadResult, NetError, any_like};

/// What a transaction may take; a lost packet of UDP costs no more than this.
const TIMEOUT: Duration = Duration::from_millis(200);
const CHUNK: usize = 64 << 10;

pub(super) fn run(plan: &LoadPlan) -> Result<LoadResult, NetError> {
    let start = Instant::now();
    let deadline = start + plan.time;
    let threads: Vec<_> = (0..plan.threads.max(1))
        .map(|_| {
            let plan = plan.clone();
            thread::spawn(move || work(&plan, deadline))
        })
        .collect();
    let mut result = LoadResult::default();
    for thread in threads {
        let ended = thread
            .join()
            .unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
        let (done, failed) =
            ended.map_err(|error| NetError::new(format!("load {plan:?}"), &error, start))?;
        result.done += done;
        result.failed += failed;
    }
    result.elapsed_us = super::micros(start);
    Ok(result)
}

fn work(plan: &LoadPlan, deadline: Instant) -> io::Result<(u64, u64)> {
    let mut once = Work::open(plan.kind, plan.to)?;
    let (mut done, mut failed) = (0, 0);
    while Instant::now() < deadline {
        match once.once() {
            Ok(count) => done += count,
            Err(_) => failed += 1,
        }
    }
    Ok((done, failed))
}

enum Work {
    Crr(SockAddr, Domain),
    UdpRr(UdpSocket),
    UdpSend(UdpSocket),
    Bulk(TcpStream, Vec<u8>),
}

impl Work {
    fn open(kind: LoadKind, to: SocketAddr) -> io::Result<Self> {
        let udp = || -> io::Result<UdpSocket> {
            let socket = UdpSocket::bind(any_like(to))?;
            socket.set_read_timeout(Some(TIMEOUT))?;
            socket.connect(to)?;
            Ok(socket)
        };
        Ok(match kind {
            LoadKind::Crr => Self::Crr(to.into(), Domain::for_address(to)),
            LoadKind::UdpRr => Self::UdpRr(udp()?),
            LoadKind::UdpSend => Self::UdpSend(udp()?),
            LoadKind::Bulk => {
                let stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
                stream.set_write_timeout(Some(TIMEOUT))?;
                Self::Bulk(stream, vec![b'x'; CHUNK])
            }
        })
    }

    /// What it did, in its own unit.
    fn once(&mut self) -> io::Result<u64> {
        let mut byte = [b'x'];
        match self {
            Self::Crr(to, domain) => {
                let socket = Socket::new(*domain, Type::STREAM, None)?;
                socket.set_tcp_nodelay(true)?;
                // Closed with a reset: no TIME_WAIT uses up ports.
                socket.set_linger(Some(Duration::ZERO))?;
                socket.set_write_timeout(Some(TIMEOUT))?;
                socket.set_read_timeout(Some(TIMEOUT))?;
                socket.connect(to)?;
                (&socket).write_all(&byte)?;
                (&socket).read_exact(&mut byte)?;
                Ok(1)
            }
            Self::UdpRr(socket) => {
                socket.send(&byte)?;
                socket.recv(&mut byte)?;
                Ok(1)
            }
            Self::UdpSend(socket) => {
                socket.send(&byte)?;
                Ok(1)
            }
            Self::Bulk(stream, chunk) => Ok(stream.write(chunk)? as u64),
        }
    }
}
