//! Connected UDP sockets whose backend is gone.
//!
//! kube-proxy's flows are moved by deleting their conntrack entry (BEHAVIOUR C1-C5); the application
//! notices nothing. A socket that was translated at connect() has no such entry: the kernel sends to
//! the backend by itself. So the agent takes a duplicate of the socket (pidfd_getfd, Linux 5.6) and
//! dials the frontend again on its owner's behalf: the hook gives it a live backend, the local port
//! stays, the application notices nothing. Without any backend the socket is parked on a port where
//! nobody listens: its next send or receive fails with ECONNREFUSED, as after kube-proxy's REJECT,
//! and it is dialled again when an endpoint appears.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
};

use proxy_common::abi::{FrontendKey, Protocol, SockAddr, SocketFlow};
use rustix::{
    io::Errno,
    net::{AddressFamily, sockopt},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};

use crate::maps::bpf::BpfStore;

/// What one pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Redialled {
    /// Sockets that have a live backend again.
    pub moved: usize,
    /// Sockets whose Service has no backend at all.
    pub parked: usize,
    /// Sockets that were not found or could not be dialled.
    pub lost: usize,
}

/// Looks at every connected UDP socket once, and moves those whose backend is gone.
pub fn pass(store: &BpfStore) -> Redialled {
    let mut result = Redialled::default();
    let mut wanted: HashMap<u64, SocketFlow> = store
        .sockets()
        .filter(|(_, peer)| {
            peer.protocol == Protocol::Udp.number()
                && !is_live(store, peer)
                && has_frontend(store, peer)
        })
        .collect();
    // First the processes that connected them, then any other that they were handed to; each is
    // searched once, however many sockets it has.
    let owners: BTreeSet<u32> = wanted.values().map(SocketFlow::tgid).collect();
    for pid in &owners {
        in_process(store, *pid, &mut wanted, &mut result);
    }
    if !wanted.is_empty() {
        for pid in processes().filter(|pid| !owners.contains(pid)) {
            in_process(store, pid, &mut wanted, &mut result);
        }
    }
    for (cookie, peer) in wanted {
        result.lost += 1;
        log::debug!(
            "UDP socket {cookie} of process {} to {}: no process has it",
            peer.tgid(),
            peer.frontend
        );
    }
    result
}

fn processes() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Dials those of the wanted sockets again that the process has.
fn in_process(
    store: &BpfStore,
    pid: u32,
    wanted: &mut HashMap<u64, SocketFlow>,
    result: &mut Redialled,
) {
    for socket in sockets_of(pid).into_iter().flatten() {
        if wanted.is_empty() {
            return;
        }
        let Ok(cookie) = sockopt::socket_cookie(&socket) else {
            continue;
        };
        let Some(peer) = wanted.remove(&cookie) else {
            continue;
        };
        match redial(store, &socket, cookie, &peer) {
            Ok(Outcome::Moved) => result.moved += 1,
            Ok(Outcome::Parked) => result.parked += 1,
            Ok(Outcome::StillParked | Outcome::Disconnected) => {}
            Err(errno) => {
                result.lost += 1;
                log::debug!(
                    "UDP socket {cookie} of process {pid} to {}: connect: {errno}",
                    peer.frontend
                );
            }
        }
    }
}

fn is_live(store: &BpfStore, peer: &SocketFlow) -> bool {
    peer.backend_id != 0
        && store.backend(peer.backend_id).is_some_and(|backend| {
            backend.service == peer.service
                && backend.addr == peer.backend.addr
                && backend.port_be == peer.backend.port_be
        })
}

/// A Service that was deleted has no better place for the socket (kube-proxy: C1).
fn has_frontend(store: &BpfStore, peer: &SocketFlow) -> bool {
    store
        .frontend(&FrontendKey {
            addr: peer.frontend.addr,
            port_be: peer.frontend.port_be,
            protocol: Protocol::Udp.number(),
            zero: 0,
        })
        .is_some()
}

enum Outcome {
    Moved,
    Parked,
    StillParked,
    /// By its application, of which no hook tells.
    Disconnected,
}

fn redial(
    store: &BpfStore,
    socket: &OwnedFd,
    cookie: u64,
    peer: &SocketFlow,
) -> Result<Outcome, Errno> {
    if rustix::net::getpeername(socket) == Err(Errno::NOTCONN) {
        return Ok(Outcome::Disconnected);
    }
    let park = SockAddr::parked(&peer.frontend.addr);
    match connect(socket, peer.frontend.socket_addr()) {
        Ok(()) if store.socket(cookie).is_some_and(|now| now.backend_id == 0) => {
            // A kernel without bpf_set_retval: the hook parked it itself.
            Ok(if peer.backend_id == 0 {
                Outcome::StillParked
            } else {
                Outcome::Parked
            })
        }
        Ok(()) => Ok(Outcome::Moved),
        Err(Errno::CONNREFUSED) if peer.backend_id == 0 => Ok(Outcome::StillParked),
        Err(Errno::CONNREFUSED) => {
            connect(socket, park.socket_addr())?;
            Ok(Outcome::Parked)
        }
        Err(errno) => Err(errno),
    }
}

/// An IPv6 socket dials IPv4 by the mapped address.
fn connect(socket: &OwnedFd, to: SocketAddr) -> Result<(), Errno> {
    let to = match (sockopt::socket_domain(socket)?, to.ip()) {
        (AddressFamily::INET6, IpAddr::V4(v4)) => {
            SocketAddr::new(v4.to_ipv6_mapped().into(), to.port())
        }
        _ => to,
    };
    rustix::net::connect(socket, &to)
}

/// Duplicates of the process's sockets, each made when it is asked for.
fn sockets_of(pid: u32) -> Option<impl Iterator<Item = OwnedFd>> {
    let pidfd = pidfd_open(
        Pid::from_raw(i32::try_from(pid).ok()?)?,
        PidfdFlags::empty(),
    )
    .ok()?;
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let fds = entries
        .flatten()
        .filter(|entry| {
            fs::read_link(entry.path())
                .is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
        })
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Some(fds.filter_map(move |fd| pidfd_getfd(&pidfd, fd, PidfdGetfdFlags::empty()).ok()))
}
