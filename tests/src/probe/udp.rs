//! UDP sockets, connected or not.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::tcp::parse_answer;
use super::{Answer, NetError, Tally};

/// Any port of any address of the same family.
pub fn any_like(addr: SocketAddr) -> SocketAddr {
    if addr.is_ipv6() {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    }
}

pub(super) fn open(
    bind: Option<SocketAddr>,
    connect: Option<SocketAddr>,
) -> Result<UdpSocket, NetError> {
    let start = Instant::now();
    let bind = bind
        .or(connect.map(any_like))
        .unwrap_or((Ipv4Addr::UNSPECIFIED, 0).into());
    let socket = UdpSocket::bind(bind)
        .map_err(|error| NetError::new(format!("bind UDP {bind}"), &error, start))?;
    if let Some(to) = connect {
        reconnect(&socket, to)?;
    }
    Ok(socket)
}

pub(super) fn reconnect(socket: &UdpSocket, to: SocketAddr) -> Result<(), NetError> {
    let start = Instant::now();
    socket
        .connect(to)
        .map_err(|error| NetError::new(format!("connect UDP {to}"), &error, start))
}

pub(super) fn disconnect(socket: &UdpSocket) -> Result<(), NetError> {
    let start = Instant::now();
    let family = libc::sa_family_t::try_from(libc::AF_UNSPEC).unwrap_or_default();
    let nobody = libc::sockaddr {
        sa_family: family,
        sa_data: [0; 14],
    };
    let length = libc::socklen_t::try_from(size_of_val(&nobody)).unwrap_or_default();
    // SAFETY: the address is `length` bytes long, and the kernel only reads it.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const nobody, length) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(NetError::new("disconnect UDP", &error, start))
}

pub(super) fn peer_name(socket: &UdpSocket) -> Result<SocketAddr, NetError> {
    let start = Instant::now();
    socket
        .peer_addr()
        .map_err(|error| NetError::new("getpeername of UDP", &error, start))
}

pub(super) fn exchange(
    socket: &UdpSocket,
    to: Option<SocketAddr>,
    payload: &str,
    timeout: Duration,
) -> Result<Answer, NetError> {
    let start = Instant::now();
    let talk = || -> io::Result<Answer> {
        socket.set_read_timeout(Some(timeout))?;
        match to {
            Some(to) => socket.send_to(payload.as_bytes(), to)?,
            None => socket.send(payload.as_bytes())?,
        };
        // As much as any datagram can carry.
        let mut buffer = vec![0; 65_536];
        let (length, from) = socket.recv_from(&mut buffer)?;
        parse_answer(&String::from_utf8_lossy(&buffer[..length]), from, start)
    };
    let whom = to.map_or("its peer".into(), |to| to.to_string());
    talk().map_err(|error| NetError::new(format!("UDP exchange with {whom}"), &error, start))
}

pub(super) fn ask_many(to: SocketAddr, count: usize, connected: bool, timeout: Duration) -> Tally {
    let mut tally = Tally::default();
    let any = any_like(to);
    for number in 0..count {
        let payload = number.to_string();
        let outcome = if connected {
            open(None, Some(to)).and_then(|socket| exchange(&socket, None, &payload, timeout))
        } else {
            open(Some(any), None).and_then(|socket| exchange(&socket, Some(to), &payload, timeout))
        };
        tally.add(outcome.map(|answer| answer.name));
    }
    tally
}
