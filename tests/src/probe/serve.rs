//! Servers: each listener has threads of its own until it is stopped.

use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::{Proto, http, sctp::SCTP};

const BACKLOG: i32 = 4096;
/// As much as any datagram can carry.
const DATAGRAM: usize = 65_536;

/// A listener; dropped, it listens no more.
#[derive(Debug)]
pub(super) struct Server {
    socket: Arc<Socket>,
    stopped: Arc<AtomicBool>,
    /// Those that hold the port; waited for, so that it is free when this is gone.
    receivers: Vec<JoinHandle<()>>,
    pub(super) local: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
        // Wakes every thread that waits in accept or recvmsg (with ENOTCONN for UDP, yet it does).
        let _ = self.socket.shutdown(Shutdown::Both);
        for thread in self.receivers.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Answers lines or datagrams with the name.
pub(super) fn named(proto: Proto, addr: SocketAddr, name: String) -> io::Result<Server> {
    let name: Arc<str> = name.into();
    match proto {
        Proto::Tcp => listen(addr, 1, lines(name)),
        Proto::Udp => receive(addr, 1, move |datagram, from, answer| {
            answer.extend_from_slice(format!("{name} {from} ").as_bytes());
            answer.extend_from_slice(datagram);
        }),
    }
}

/// Answers lines that come by SCTP with the name.
pub(super) fn sctp(addr: SocketAddr, name: String) -> io::Result<Server> {
    let socket = open(Type::STREAM, Some(SCTP), addr)?;
    listen_on(socket, 1, lines(name.into()))
}

fn lines(name: Arc<str>) -> impl Fn(TcpStream) + Clone + Send + 'static {
    move |stream| {
        let name = Arc::clone(&name);
        // Whatever ends a connection ends its thread; the client sees it.
        thread::spawn(move || drop(answer_lines(stream, &name)));
    }
}

/// Answers HTTP requests with the name.
pub(super) fn http(addr: SocketAddr, name: String) -> io::Result<Server> {
    let name: Arc<str> = name.into();
    listen(addr, 1, move |stream| {
        let name = Arc::clone(&name);
        thread::spawn(move || drop(http::answer(stream, &name)));
    })
}

/// Answers bytes with themselves; a thread serves one connection at a time.
pub(super) fn fast(proto: Proto, addr: SocketAddr, threads: usize) -> io::Result<Server> {
    match proto {
        Proto::Tcp => listen(addr, threads, |mut stream| {
            let mut byte = [0];
            while matches!(stream.read(&mut byte), Ok(1)) && stream.write_all(&byte).is_ok() {}
        }),
        Proto::Udp => receive(addr, threads, |datagram, _, answer| {
            answer.extend_from_slice(datagram);
        }),
    }
}

/// Takes all it is sent and answers nothing.
pub(super) fn sink(addr: SocketAddr) -> io::Result<Server> {
    listen(addr, 1, |mut stream| {
        thread::spawn(move || {
            let mut buffer = vec![0; 1 << 20];
            while matches!(stream.read(&mut buffer), Ok(1..)) {}
        });
    })
}

fn answer_lines(stream: TcpStream, name: &str) -> io::Result<()> {
    let peer = stream.peer_addr()?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        let answer = format!("{name} {peer} {}\n", line.trim_end_matches('\n'));
        reader.get_mut().write_all(answer.as_bytes())?;
        line.clear();
    }
    Ok(())
}

fn listen(
    addr: SocketAddr,
    threads: usize,
    serve: impl Fn(TcpStream) + Clone + Send + 'static,
) -> io::Result<Server> {
    listen_on(open(Type::STREAM, None, addr)?, threads, serve)
}

fn listen_on(
    socket: Socket,
    threads: usize,
    serve: impl Fn(TcpStream) + Clone + Send + 'static,
) -> io::Result<Server> {
    socket.listen(BACKLOG)?;
    let server = server(socket)?;
    for _ in 0..threads {
        let listener = TcpListener::from(server.socket.try_clone()?);
        let (serve, stopped) = (serve.clone(), Arc::clone(&server.stopped));
        thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                // A connection reset before it was accepted is none of our business.
                let Ok((stream, _)) = listener.accept() else {
                    continue;
                };
                let _ = stream.set_nodelay(true);
                serve(stream);
            }
        });
    }
    Ok(server)
}

fn receive(
    addr: SocketAddr,
    threads: usize,
    answer: impl Fn(&[u8], SocketAddr, &mut Vec<u8>) + Clone + Send + 'static,
) -> io::Result<Server> {
    let socket = open(Type::DGRAM, None, addr)?;
    let any = addr.ip().is_unspecified();
    if any && addr.is_ipv4() {
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    } else if any {
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    }
    let mut server = server(socket)?;
    for _ in 0..threads {
        let socket = UdpSocket::from(server.socket.try_clone()?);
        let (answer, stopped) = (answer.clone(), Arc::clone(&server.stopped));
        server.receivers.push(thread::spawn(move || {
            let mut buffer = vec![0; DATAGRAM];
            let mut reply = Vec::with_capacity(DATAGRAM);
            while !stopped.load(Ordering::Acquire) {
                reply.clear();
                // An error is that of one datagram (an ICMP error, say): the next may be fine.
                if any {
                    let _ = answer_from_where_it_went(&socket, &mut buffer, |data, from| {
                        answer(data, from, &mut reply);
                        std::mem::take(&mut reply)
                    });
                } else if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    if stopped.load(Ordering::Acquire) {
                        break;
                    }
                    answer(&buffer[..length], from, &mut reply);
                    let _ = socket.send_to(&reply, from);
                }
            }
        }));
    }
    Ok(server)
}

/// On a wildcard socket the kernel would choose the source of the answer; the client wants the
/// address it asked.
fn answer_from_where_it_went(
    socket: &UdpSocket,
    buffer: &mut [u8],
    answer: impl FnOnce(&[u8], SocketAddr) -> Vec<u8>,
) -> io::Result<()> {
    let fd = socket.as_raw_fd();
    let mut space = nix::cmsg_space!(libc::in6_pktinfo);
    let (length, from, control) = {
        let mut parts = [IoSliceMut::new(buffer)];
        let message =
            recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut space), MsgFlags::empty())?;
        let control: Vec<ControlMessageOwned> = message.cmsgs()?.collect();
        (message.bytes, message.address, control)
    };
    let storage = from.ok_or(io::ErrorKind::NotConnected)?;
    let from = storage
        .as_sockaddr_in()
        .map(|v4| SocketAddr::from(std::net::SocketAddrV4::from(*v4)))
        .or_else(|| {
            storage
                .as_sockaddr_in6()
                .map(|v6| std::net::SocketAddrV6::from(*v6).into())
        })
        .ok_or(io::ErrorKind::InvalidData)?;
    let reply = answer(&buffer[..length], from);
    let parts = [IoSlice::new(&reply)];
    for message in control {
        if let ControlMessageOwned::Ipv4PacketInfo(mut info) = message {
            info.ipi_ifindex = 0;
            info.ipi_spec_dst = info.ipi_addr;
            let control = [ControlMessage::Ipv4PacketInfo(&info)];
            sendmsg(fd, &parts, &control, MsgFlags::empty(), Some(&storage))?;
        } else if let ControlMessageOwned::Ipv6PacketInfo(mut info) = message {
            info.ipi6_ifindex = 0;
            let control = [ControlMessage::Ipv6PacketInfo(&info)];
            sendmsg(fd, &parts, &control, MsgFlags::empty(), Some(&storage))?;
        }
    }
    Ok(())
}

fn open(kind: Type, protocol: Option<Protocol>, addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), kind, protocol)?;
    if kind == Type::STREAM {
        // A server started again takes its port over at once.
        socket.set_reuse_address(true)?;
    }
    if addr.is_ipv6() {
        // 0.0.0.0 and :: side by side on one port.
        socket.set_only_v6(true)?;
    }
    socket.bind(&addr.into())?;
    Ok(socket)
}

fn server(socket: Socket) -> io::Result<Server> {
    let local = SockRef::from(&socket).local_addr()?.as_socket();
    let local = local.ok_or(io::ErrorKind::InvalidData)?;
    Ok(Server {
        socket: Arc::new(socket),
        stopped: Arc::default(),
        receivers: Vec::new(),
        local,
    })
}
