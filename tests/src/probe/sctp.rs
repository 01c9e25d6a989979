//! SCTP associations, dialled in every way that a socket has.

use std::io::{self, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{Answer, NetError, tcp};

pub(super) const SCTP: Protocol = Protocol::SCTP;
/// `linux/sctp.h`: the option that is sctp_connectx().
const SCTP_SOCKOPT_CONNECTX: libc::c_int = 110;
/// Longer than any answer.
const ROOM: usize = 4096;

/// How an association begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Way {
    /// connect() of a one-to-one socket.
    Connect,
    /// sctp_connectx() of one.
    Connectx,
    /// sendmsg() of a one-to-many socket.
    Send,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Connect, Self::Connectx, Self::Send];
}

/// Whether this kernel has SCTP; it may load the module for it.
pub fn is_there() -> bool {
    Socket::new(Domain::IPV4, Type::STREAM, Some(SCTP)).is_ok()
}

/// Begins an association, sends a line, reads the answer, ends it.
pub(super) fn ask(to: SocketAddr, way: Way, timeout: Duration) -> Result<Answer, NetError> {
    let start = Instant::now();
    let talk = || {
        let (text, from) = talk(to, way, timeout)?;
        tcp::parse_answer(&text, from, start)
    };
    talk().map_err(|error| NetError::new(format!("SCTP {way:?} {to}"), &error, start))
}

fn talk(to: SocketAddr, way: Way, timeout: Duration) -> io::Result<(String, SocketAddr)> {
    let kind = match way {
        Way::Connect | Way::Connectx => Type::STREAM,
        Way::Send => Type::SEQPACKET,
    };
    let mut socket = Socket::new(Domain::for_address(to), kind, Some(SCTP))?;
    socket.set_read_timeout(Some(timeout))?;
    socket.set_write_timeout(Some(timeout))?;
    let line = b"who\n";
    let address = SockAddr::from(to);
    match way {
        Way::Connect => socket.connect_timeout(&address, timeout)?,
        Way::Connectx => connectx(&socket, &address)?,
        Way::Send => {
            socket.send_to(line, &address)?;
            let mut buffer = [MaybeUninit::uninit(); ROOM];
            let (length, from) = socket.recv_from(&mut buffer)?;
            // SAFETY: that many bytes were written.
            let text = unsafe { buffer[..length].assume_init_ref() };
            return Ok((text_of(text), seen(&from)?));
        }
    }
    socket.write_all(line)?;
    let mut buffer = [0; ROOM];
    let length = socket.read(&mut buffer)?;
    let peer = seen(&socket.peer_addr()?)?;
    Ok((text_of(&buffer[..length]), peer))
}

fn connectx(socket: &Socket, address: &SockAddr) -> io::Result<()> {
    // SAFETY: pointer and length are those of one address, which lives on.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_SCTP,
            SCTP_SOCKOPT_CONNECTX,
            address.as_ptr().cast(),
            address.len(),
        )
    };
    // An association's number.
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn seen(address: &SockAddr) -> io::Result<SocketAddr> {
    address
        .as_socket()
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
