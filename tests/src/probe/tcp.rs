//! TCP connections.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use super::{Answer, Ask, NetError, Tally, http};

/// An open connection, read line by line.
#[derive(Debug)]
pub(super) struct Connection {
    reader: BufReader<TcpStream>,
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
    pub(super) elapsed_us: u64,
}

impl Connection {
    pub(super) fn open(
        to: SocketAddr,
        from: Option<SocketAddr>,
        timeout: Duration,
    ) -> Result<Self, NetError> {
        let start = Instant::now();
        let failed =
            |what: &str, error: io::Error| NetError::new(format!("{what} {to}"), &error, start);
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)
            .map_err(|error| failed("socket for", error))?;
        if let Some(from) = from {
            // One port toward several peers.
            socket
                .set_reuse_address(true)
                .and_then(|()| socket.bind(&from.into()))
                .map_err(|error| failed("bind to dial", error))?;
        }
        socket
            .connect_timeout(&SockAddr::from(to), timeout)
            .map_err(|error| failed("connect", error))?;
        let elapsed_us = super::micros(start);
        let stream = TcpStream::from(socket);
        let set = || -> io::Result<(SocketAddr, SocketAddr)> {
            stream.set_nodelay(true)?;
            Ok((stream.local_addr()?, stream.peer_addr()?))
        };
        let (local, peer) = set().map_err(|error| failed("getpeername", error))?;
        Ok(Self {
            reader: BufReader::new(stream),
            local,
            peer,
            elapsed_us,
        })
    }

    pub(super) fn peer_name(&self) -> Result<SocketAddr, NetError> {
        let start = Instant::now();
        let peer = self.reader.get_ref().peer_addr();
        peer.map_err(|error| NetError::new("getpeername", &error, start))
    }

    pub(super) fn exchange(&mut self, line: &str, timeout: Duration) -> Result<Answer, NetError> {
        let start = Instant::now();
        let peer = self.peer;
        let mut talk = || -> io::Result<String> {
            let stream = self.reader.get_mut();
            stream.set_read_timeout(Some(timeout))?;
            stream.set_write_timeout(Some(timeout))?;
            stream.write_all(format!("{line}\n").as_bytes())?;
            let mut answer = String::new();
            if self.reader.read_line(&mut answer)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(answer)
        };
        let answer = talk().and_then(|answer| parse_answer(&answer, peer, start));
        answer.map_err(|error| NetError::new(format!("exchange with {peer}"), &error, start))
    }

    /// Closes with a reset: no TIME_WAIT uses up ports.
    pub(super) fn abort(self) {
        // Failing, it closes as others do.
        let _ = socket2::SockRef::from(self.reader.get_ref()).set_linger(Some(Duration::ZERO));
    }

    pub(super) fn stream(&mut self) -> &mut TcpStream {
        self.reader.get_mut()
    }
}

/// `name client echo`, as `Serve` writes it.
pub(super) fn parse_answer(text: &str, from: SocketAddr, start: Instant) -> io::Result<Answer> {
    let mut parts = text.trim_end_matches('\n').splitn(3, ' ');
    let name = parts.next().unwrap_or_default().to_owned();
    let client = parts.next().and_then(|client| client.parse().ok());
    let client = client.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    let echo = parts.next().unwrap_or_default().to_owned();
    Ok(Answer {
        name,
        client,
        echo,
        from,
        elapsed_us: super::micros(start),
    })
}

/// Connects, asks for the name, closes.
pub(super) fn ask_once(to: SocketAddr, ask: Ask, timeout: Duration) -> Result<String, NetError> {
    let mut connection = Connection::open(to, None, timeout)?;
    let start = Instant::now();
    let name = match ask {
        Ask::Line => connection
            .exchange("who", timeout)
            .map(|answer| answer.name),
        Ask::Http => http::get_name(connection.stream(), to, timeout)
            .map_err(|error| NetError::new(format!("GET http://{to}/"), &error, start)),
    };
    connection.abort();
    name
}

pub(super) fn ask_many(to: SocketAddr, count: usize, ask: Ask, timeout: Duration) -> Tally {
    let mut tally = Tally::default();
    for _ in 0..count {
        tally.add(ask_once(to, ask, timeout));
    }
    tally
}
