//! The checks, in their order: the last ones take the agent away.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::{errno::Errno, sys::signal::Signal};

use super::ground::{Ground, TCP, UDP, backend, pins, vips, wait_until};

/// No Service has it.
const UNDEFINED: u16 = 9;

type Check = fn(&mut Ground) -> Result<String>;

pub(super) const ALL: &[(&str, Check)] = &[
    ("TCP reaches a backend, and the peer is the frontend", tcp),
    (
        "connected UDP reaches a backend, and the peer is the frontend",
        udp_connected,
    ),
    (
        "unconnected UDP is answered by the frontend",
        udp_unconnected,
    ),
    ("TCP without endpoints is refused", tcp_refused),
    (
        "connected UDP without endpoints is refused",
        udp_connected_refused,
    ),
    ("unconnected UDP without endpoints", udp_unconnected_refused),
    (
        "undefined ports of a ClusterIP are refused",
        undefined_ports,
    ),
    (
        "a UDP socket follows its Service through having no endpoint",
        udp_follows,
    ),
    (
        "a UDP socket connected without endpoints works when there is one",
        udp_waits,
    ),
    (
        "an agent that is killed leaves everything working, and the next adopts it",
        restart,
    ),
    ("cleanup leaves nothing", cleanup),
];

/// Every way to write the addresses: IPv4, IPv6, IPv4 from an IPv6 socket.
fn ways(service: &str, port: u16) -> [SocketAddr; 3] {
    let [v4, v6] = vips(service);
    let mapped = match v4 {
        IpAddr::V4(v4) => IpAddr::V6(v4.to_ipv6_mapped()),
        IpAddr::V6(_) => v4,
    };
    [v4, v6, mapped].map(|ip| SocketAddr::new(ip, port))
}

fn udp(to: &SocketAddr) -> Result<UdpSocket> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    Ok(socket)
}

fn is_backend(text: &str) -> bool {
    (1..=2).flat_map(backend).any(|ip| ip.to_string() == text)
}

fn hello(stream: &TcpStream) -> Result<String> {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

fn exchange(socket: &UdpSocket) -> std::io::Result<String> {
    let mut buffer = [0; 64];
    socket.send(b"?")?;
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// `ok`, or the error's name.
fn outcome<T>(result: &std::io::Result<T>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(error) => error.raw_os_error().map_or_else(
            || error.to_string(),
            |code| format!("{:?}", Errno::from_raw(code)),
        ),
    }
}

fn tcp(_: &mut Ground) -> Result<String> {
    for to in ways("full", TCP) {
        for _ in 0..10 {
            let stream = TcpStream::connect(to).with_context(|| to.to_string())?;
            let peer = stream.peer_addr()?;
            ensure!(peer == to, "the peer of {to} is {peer}");
            let name = hello(&stream)?;
            ensure!(is_backend(&name), "{to} is answered by {name:?}");
        }
    }
    Ok(String::new())
}

fn udp_connected(_: &mut Ground) -> Result<String> {
    for to in ways("full", UDP) {
        let socket = udp(&to)?;
        socket.connect(to).with_context(|| to.to_string())?;
        let peer = socket.peer_addr()?;
        ensure!(peer == to, "the peer of {to} is {peer}");
        let name = exchange(&socket).with_context(|| to.to_string())?;
        ensure!(is_backend(&name), "{to} is answered by {name:?}");
    }
    Ok(String::new())
}

fn udp_unconnected(_: &mut Ground) -> Result<String> {
    for to in ways("full", UDP) {
        let socket = udp(&to)?;
        let mut names = Vec::new();
        for _ in 0..5 {
            let mut buffer = [0; 64];
            socket.send_to(b"?", to).with_context(|| to.to_string())?;
            let (length, from) = socket.recv_from(&mut buffer)?;
            ensure!(from == to, "{to} is answered by {from}");
            names.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
        names.dedup();
        ensure!(names.len() == 1 && is_backend(&names[0]), "{names:?}");
    }
    Ok(String::new())
}

fn tcp_refused(_: &mut Ground) -> Result<String> {
    let mut seen = Vec::new();
    for to in ways("empty", TCP) {
        seen.push(outcome(&TcpStream::connect(to)));
    }
    ensure!(seen.iter().all(|errno| errno == "ECONNREFUSED"), "{seen:?}");
    Ok(format!("{seen:?}"))
}

fn udp_connected_refused(ground: &mut Ground) -> Result<String> {
    dial_refused(ground, ways("empty", UDP))
}

fn undefined_ports(ground: &mut Ground) -> Result<String> {
    for to in ways("full", UNDEFINED) {
        let dialled = TcpStream::connect(to);
        ensure!(outcome(&dialled) == "ECONNREFUSED", "{to}: {dialled:?}");
    }
    dial_refused(ground, ways("full", UNDEFINED))
}

/// Connected UDP sockets meet the refusal at once, or with what they send.
fn dial_refused(ground: &Ground, to: [SocketAddr; 3]) -> Result<String> {
    let mut seen = Vec::new();
    for to in to {
        let socket = udp(&to)?;
        let connected = socket.connect(to);
        seen.push(format!("connect {}", outcome(&connected)));
        if connected.is_ok() {
            ensure!(!ground.has_set_retval(), "{to}: connected");
            let answered = exchange(&socket);
            seen.push(format!("peer {}", outcome(&socket.peer_addr())));
            seen.push(format!("send and receive {}", outcome(&answered)));
            ensure!(outcome(&answered) == "ECONNREFUSED", "{seen:?}");
        } else {
            ensure!(outcome(&connected) == "ECONNREFUSED", "{seen:?}");
        }
    }
    Ok(format!("{seen:?}"))
}

fn udp_unconnected_refused(ground: &mut Ground) -> Result<String> {
    let mut seen = Vec::new();
    for to in ways("empty", UDP) {
        let socket = udp(&to)?;
        let sent = socket.send_to(b"?", to);
        seen.push(format!("sendto {}", outcome(&sent)));
        if ground.has_set_retval() {
            ensure!(outcome(&sent) == "ECONNREFUSED", "{seen:?}");
        } else {
            let received = socket.recv_from(&mut [0; 64]);
            seen.push(format!("recvfrom {}", outcome(&received)));
            ensure!(sent.is_ok() && received.is_err(), "{seen:?}");
        }
    }
    Ok(format!("{seen:?}"))
}

fn udp_follows(ground: &mut Ground) -> Result<String> {
    for to in ways("moving", UDP) {
        let family = usize::from(vips("moving")[1] == to.ip());
        let socket = udp(&to)?;
        socket.connect(to)?;
        ensure!(exchange(&socket)? == backend(1)[family].to_string());
        ground.endpoints("moving", &[])?;
        wait_until(|| Ok(outcome(&exchange(&socket)) == "ECONNREFUSED")).context("not parked")?;
        ground.endpoints("moving", &[2])?;
        let other = backend(2)[family].to_string();
        wait_until(|| Ok(exchange(&socket)? == other)).context("not moved")?;
        ensure!(
            socket.peer_addr()? == to,
            "the peer is {}",
            socket.peer_addr()?
        );
        ground.endpoints("moving", &[1])?;
        let first = backend(1)[family].to_string();
        wait_until(|| Ok(exchange(&socket)? == first)).context("not moved back")?;
    }
    Ok(String::new())
}

fn udp_waits(ground: &mut Ground) -> Result<String> {
    let to = ways("moving", UDP)[0];
    let refused = |to| Ok(outcome(&TcpStream::connect(to)) == "ECONNREFUSED");
    ground.endpoints("moving", &[])?;
    wait_until(|| refused(ways("moving", TCP)[0]))?;
    let socket = udp(&to)?;
    if socket.connect(to).is_err() {
        ground.endpoints("moving", &[1])?;
        // The next check wants an agent with nothing left to do.
        wait_until(|| Ok(TcpStream::connect(ways("moving", TCP)[2]).is_ok()))?;
        wait_until(|| Ok(TcpStream::connect(ways("moving", TCP)[1]).is_ok()))?;
        return Ok("connect says so at once".to_owned());
    }
    ground.endpoints("moving", &[1])?;
    wait_until(|| Ok(is_backend(&exchange(&socket)?)))?;
    ensure!(
        socket.peer_addr()? == to,
        "the peer is {}",
        socket.peer_addr()?
    );
    Ok(String::new())
}

fn restart(ground: &mut Ground) -> Result<String> {
    let to = ways("full", TCP)[0];
    let mut kept = TcpStream::connect(to)?;
    let name = hello(&kept)?;
    let socket = udp(&ways("full", UDP)[0])?;
    socket.connect(ways("full", UDP)[0])?;
    let answer = exchange(&socket)?;
    ground.signal(Signal::SIGKILL)?;
    tcp(ground).context("without an agent")?;
    ground.start()?;
    ensure!(ground.agent_log().contains("adopting"), "nothing adopted");
    ensure!(
        ground.agent_log().contains(" 0 steps"),
        "{}",
        ground.agent_log()
    );
    tcp(ground).context("with the next agent")?;
    udp_connected(ground)?;
    kept.write_all(b"echo\n")?;
    ensure!(
        hello(&kept)? == "echo" && kept.peer_addr()? == to,
        "{name} is lost"
    );
    ensure!(
        exchange(&socket)? == answer,
        "the UDP socket has another backend"
    );
    Ok(String::new())
}

fn cleanup(ground: &mut Ground) -> Result<String> {
    let ended = ground.signal(Signal::SIGTERM)?;
    ensure!(ended.success(), "{ended}");
    tcp(ground).context("after SIGTERM")?;
    ground.call(&["cleanup"])?;
    ensure!(!pins().exists(), "{} is left", pins().display());
    let to = ways("full", TCP)[0];
    let connected = TcpStream::connect_timeout(&to, Duration::from_secs(1));
    ensure!(connected.is_err(), "{to} is still translated");
    Ok(String::new())
}
