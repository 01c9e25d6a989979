//! Many calls at once, none of which waits: what the kernel says of each at once.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use super::{NetError, errno_name};

/// How something is dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Dial {
    /// connect() of a TCP socket.
    Tcp,
    /// connect() of a UDP socket.
    Udp,
    /// sendto() of a UDP socket.
    Send,
}

/// What the kernel said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dialled {
    /// Of the socket.
    pub cookie: u64,
    /// ECONNREFUSED and so on; nothing if it went well, or goes on.
    pub errno: Option<String>,
}

/// The sockets stay open as long as they are kept.
pub(super) fn dial(calls: &[(Dial, SocketAddr)]) -> Result<(Vec<Socket>, Vec<Dialled>), NetError> {
    let since = Instant::now();
    let mut sockets = Vec::new();
    let mut dialled = Vec::new();
    for (way, to) in calls {
        let socket = open(*way, *to).map_err(|error| NetError::new("a socket", &error, since))?;
        let cookie = socket
            .cookie()
            .map_err(|error| NetError::new("SO_COOKIE", &error, since))?;
        let result = match way {
            Dial::Tcp | Dial::Udp => socket.connect(&(*to).into()),
            Dial::Send => socket.send_to(b"?", &(*to).into()).map(drop),
        };
        let errno = match result {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => None,
            Err(error) => Some(errno_name(&error)),
            Ok(()) => None,
        };
        dialled.push(Dialled { cookie, errno });
        sockets.push(socket);
    }
    Ok((sockets, dialled))
}

fn open(way: Dial, to: SocketAddr) -> io::Result<Socket> {
    let (kind, protocol) = match way {
        Dial::Tcp => (Type::STREAM, Protocol::TCP),
        Dial::Udp | Dial::Send => (Type::DGRAM, Protocol::UDP),
    };
    let socket = Socket::new(Domain::for_address(to), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    if matches!(way, Dial::Tcp) {
        // Closed, it is gone.
        socket.set_linger(Some(Duration::ZERO))?;
    }
    Ok(socket)
}
