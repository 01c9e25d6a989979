//! The socket path: what happens at connect, sendmsg, recvmsg, getpeername and bind (DESIGN §3.1).
//!
//! A connected socket is translated once, at connect(); afterwards no program runs for it. What it
//! dialled is kept under its cookie until it is closed. (Socket storage would need no room of its
//! own, but allocating and freeing it costs a short connection 2 % more.) An unconnected UDP socket is translated at every datagram, and keeps its backend as a flow does in
//! conntrack: until the backend goes or the flow has been idle for two minutes.

use super::{
    failover::{Attempt, note},
    lookup::{Choice, NoChoice, Tables, Visit, account, choose, live},
};
use crate::abi::{
    Addr, Client, Counter, Frontend, FrontendKey, FrontendKind, MonitorHook, Protocol, SockAddr,
    SocketFlow, UDP_IDLE_NS, UDP_TOUCH_NS, UdpFlow, UdpFlowKey,
};

/// One call of a hook: the socket it runs for, and what is remembered of sockets.
pub trait Socket: Tables {
    fn cookie(&self) -> u64;
    /// The calling process, in the initial pid namespace.
    fn tgid(&self) -> u32;
    /// Cookie of the socket's network namespace.
    fn netns(&self) -> u64;
    /// Whether the socket is in the node's own network namespace.
    fn is_of_node(&self) -> bool;
    /// Whether the hook can make connect() fail with ECONNREFUSED (Linux 5.18).
    fn can_refuse(&self) -> bool;

    fn flow(&self) -> Option<SocketFlow>;
    /// Writes it unless there is one.
    fn add_flow(&self, flow: &SocketFlow) -> Added;
    /// In place of the one that is there.
    fn set_flow(&self, flow: &SocketFlow);
    /// Whether there was one.
    fn forget_flow(&self) -> bool;

    fn udp_flow(&self, key: &UdpFlowKey) -> Option<UdpFlow>;
    fn set_udp_flow(&self, key: &UdpFlowKey, flow: &UdpFlow) -> bool;
    /// What the socket sent to, if `key.peer` is a backend it was translated to.
    fn udp_reverse(&self, key: &UdpFlowKey) -> Option<SockAddr>;
    fn set_udp_reverse(&self, key: &UdpFlowKey, frontend: &SockAddr) -> bool;

    /// Tells whoever listens (`kube-portal monitor`).
    fn tell(&self, decision: &Decision);
}

/// What came of adding an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    Written,
    /// There is one.
    Known,
    NoRoom,
}

/// What was decided of something that a socket dialled or sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    pub hook: MonitorHook,
    pub outcome: Counter,
    pub protocol: Protocol,
    pub dialled: SockAddr,
    /// [`SockAddr::NONE`]: nothing else.
    pub becomes: SockAddr,
    /// 0: no Service's.
    pub service: u32,
    /// 0: none.
    pub backend_id: u32,
}

/// What a forward hook (connect, sendmsg) does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Not for us: the address stays as it is.
    Pass,
    /// The address becomes this one.
    Rewrite(SockAddr),
    /// ECONNREFUSED.
    Refuse,
    /// Lost on purpose: the address stays, and the packet path drops it.
    Drop,
}

#[inline(always)]
fn frontend_key(protocol: Protocol, to: &SockAddr) -> FrontendKey {
    FrontendKey {
        addr: to.addr,
        port_be: to.port_be,
        protocol: protocol.number(),
        zero: 0,
    }
}

#[inline(always)]
fn flow_key(cookie: u64, peer: &SockAddr) -> UdpFlowKey {
    UdpFlowKey {
        cookie,
        peer: *peer,
        zero: 0,
    }
}

/// What a socket dials.
enum Dialled {
    Frontend(Frontend),
    /// A ClusterIP, but no Service has this port and protocol there (BEHAVIOUR A11).
    UndefinedPort,
    Elsewhere,
}

#[inline(always)]
fn dialled(socket: &impl Socket, protocol: Protocol, to: &SockAddr) -> Dialled {
    match socket.frontend(&frontend_key(protocol, to)) {
        Some(frontend) if frontend.flags & Frontend::NODE_ONLY != 0 && !socket.is_of_node() => {
            Dialled::Elsewhere
        }
        Some(frontend) => Dialled::Frontend(frontend),
        None if socket.frontend(&FrontendKey::of_address(to.addr)).is_some() => {
            Dialled::UndefinedPort
        }
        None => Dialled::Elsewhere,
    }
}

/// Whether the frontend's source ranges admit the socket, whose source address isn't known yet: the
/// node's processes all or none, its pods all or none (BEHAVIOUR L3, L4).
#[inline(always)]
fn is_allowed(socket: &impl Socket, frontend: &Frontend) -> bool {
    if frontend.flags & Frontend::SOURCE_RANGES == 0 {
        return true;
    }
    let admitted = if socket.is_of_node() {
        Frontend::NODE_ALLOWED
    } else {
        Frontend::PODS_ALLOWED
    };
    frontend.flags & admitted != 0
}

/// A socket is as good as its pod, or as the node (BEHAVIOUR S6).
#[inline(always)]
fn visit<'a>(socket: &impl Socket, dialled: &'a SockAddr, now_ns: u64) -> Visit<'a> {
    Visit {
        client: Client::of_socket(socket.netns()),
        dialled: &dialled.addr,
        now_ns,
    }
}

/// What was decided of something that was dialled.
struct Decided {
    verdict: Verdict,
    /// Not an option, nor taken from the verdict: what such a thing holds when it is empty is whatever was on
    /// the stack, and before Linux 6.3 no program may read that.
    becomes: SockAddr,
    outcome: Counter,
    /// 0: no Service's.
    service: u32,
    /// 0: none.
    backend_id: u32,
}

impl Decided {
    #[inline(always)]
    fn translated(outcome: Counter, choice: &Choice) -> Self {
        Self {
            verdict: Verdict::Rewrite(choice.address),
            becomes: choice.address,
            outcome,
            service: choice.service,
            backend_id: choice.backend_id,
        }
    }

    #[inline(always)]
    fn unserved(verdict: Verdict, outcome: Counter, service: u32) -> Self {
        Self {
            verdict,
            becomes: SockAddr::NONE,
            outcome,
            service,
            backend_id: 0,
        }
    }
}

/// Counts what was decided, and tells whoever listens.
#[inline(always)]
fn conclude(
    socket: &impl Socket,
    hook: MonitorHook,
    protocol: Protocol,
    dialled: &SockAddr,
    decided: Decided,
) -> Verdict {
    socket.count(decided.outcome);
    account(socket, decided.outcome, decided.service, decided.backend_id);
    socket.tell(&Decision {
        hook,
        outcome: decided.outcome,
        protocol,
        dialled: *dialled,
        becomes: decided.becomes,
        service: decided.service,
        backend_id: decided.backend_id,
    });
    decided.verdict
}

/// connect(2) to `to`.
#[inline(always)]
pub fn connect(socket: &impl Socket, protocol: Protocol, to: &SockAddr) -> Verdict {
    match decide_connect(socket, protocol, to) {
        Some(decided) => conclude(socket, MonitorHook::Connect, protocol, to, decided),
        None => Verdict::Pass,
    }
}

/// `None`: not for us.
#[inline(always)]
fn decide_connect(socket: &impl Socket, protocol: Protocol, to: &SockAddr) -> Option<Decided> {
    let frontend = match dialled(socket, protocol, to) {
        Dialled::Frontend(frontend) => frontend,
        Dialled::UndefinedPort => {
            let verdict = refuse_to_connect(socket, protocol, to, 0);
            let outcome = Counter::ConnectUndefinedPort;
            return Some(Decided::unserved(verdict, outcome, 0));
        }
        Dialled::Elsewhere => {
            connect_elsewhere(socket, protocol, to);
            return None;
        }
    };
    let service = frontend.service;
    if !is_allowed(socket, &frontend) {
        forget_another(socket, protocol, to);
        let outcome = Counter::ConnectNotAllowed;
        return Some(Decided::unserved(Verdict::Drop, outcome, service));
    }
    Some(
        match choose(socket, service, 0, || visit(socket, to, socket.now_ns())) {
            Ok(choice) => {
                remember(socket, protocol, to, &choice);
                Decided::translated(Counter::ConnectTranslated, &choice)
            }
            Err(NoChoice::NoEndpoints) => Decided::unserved(
                refuse_to_connect(socket, protocol, to, service),
                Counter::ConnectRefused,
                service,
            ),
            Err(why) => {
                forget_another(socket, protocol, to);
                without_backend(
                    why,
                    Counter::ConnectRefused,
                    Counter::ConnectNoLocalEndpoint,
                    service,
                )
            }
        },
    )
}

/// Where UDP can't be refused, connect() succeeds, so the socket is to work when there is an endpoint
/// of `service` (or such a port; then it is 0).
#[inline(always)]
fn refuse_to_connect(
    socket: &impl Socket,
    protocol: Protocol,
    to: &SockAddr,
    service: u32,
) -> Verdict {
    if !matches!(protocol, Protocol::Udp) || socket.can_refuse() {
        return Verdict::Refuse;
    }
    let parked = Choice {
        backend_id: 0,
        service,
        address: SockAddr::parked(&to.addr),
        is_local: false,
    };
    remember(socket, protocol, to, &parked);
    Verdict::Rewrite(parked.address)
}

/// What comes of a call for which there is no backend.
#[inline(always)]
fn without_backend(
    why: NoChoice,
    refused: Counter,
    no_local_endpoint: Counter,
    service: u32,
) -> Decided {
    let (outcome, verdict) = match why {
        NoChoice::NoEndpoints => (refused, Verdict::Refuse),
        NoChoice::NoLocalEndpoint => (no_local_endpoint, Verdict::Drop),
        NoChoice::Damaged => (Counter::TableDamaged, Verdict::Refuse),
    };
    Decided::unserved(verdict, outcome, service)
}

#[inline(always)]
fn remember(socket: &impl Socket, protocol: Protocol, dialled: &SockAddr, choice: &Choice) {
    let mut flow = SocketFlow {
        frontend: *dialled,
        backend: choice.address,
        backend_id: choice.backend_id,
        service: choice.service,
        tgid_or_ms: match protocol {
            Protocol::Udp => socket.tgid(),
            Protocol::Tcp | Protocol::Sctp => SocketFlow::milliseconds(socket.now_ns()),
        },
        protocol: protocol.number(),
        attempt: 0,
        zero: [0; 2],
    };
    match socket.add_flow(&flow) {
        Added::Written => {}
        Added::Known => {
            if let Some(before) = socket.flow() {
                // The agent dials again on behalf of the owner: the owner stays the owner.
                if matches!(protocol, Protocol::Udp) {
                    flow.tgid_or_ms = before.tgid_or_ms;
                }
                ended(socket, before.backend_id);
            }
            socket.set_flow(&flow);
        }
        Added::NoRoom => {
            socket.count(Counter::SocketNotRemembered);
            return;
        }
    }
    if flow.backend_id != 0 {
        socket.add_active(flow.backend_id, 1);
    }
}

/// A connection of this backend (0: of none) is no more.
#[inline(always)]
fn ended(tables: &impl Tables, backend_id: u32) {
    if backend_id != 0 {
        tables.add_active(backend_id, -1);
    }
}

/// Forgets what the socket dialled.
#[inline(always)]
fn forget(socket: &impl Socket, flow: &SocketFlow) {
    // Whoever deletes it counts.
    if socket.forget_flow() {
        ended(socket, flow.backend_id);
    }
}

/// connect(2) to something that is not a frontend, by a socket that may have dialled one before.
#[inline(always)]
fn connect_elsewhere(socket: &impl Socket, protocol: Protocol, to: &SockAddr) {
    // A TCP socket dials once; one that is disconnected and dials again has a peer that its old
    // entry doesn't name.
    if !matches!(protocol, Protocol::Udp) {
        return;
    }
    let Some(mut flow) = socket.flow() else {
        return;
    };
    if *to == SockAddr::parked(&flow.frontend.addr) {
        ended(socket, flow.backend_id);
        flow.backend = *to;
        flow.backend_id = 0;
        socket.set_flow(&flow);
        socket.count(Counter::SocketParked);
        return;
    }
    forget(socket, &flow);
}

/// connect(2) succeeds, but leads nowhere for now. What the socket dialled before is over; if it was
/// this, it is to be dialled again when there is a backend.
#[inline(always)]
fn forget_another(socket: &impl Socket, protocol: Protocol, to: &SockAddr) {
    if matches!(protocol, Protocol::Udp)
        && let Some(flow) = socket.flow()
        && flow.frontend != *to
    {
        forget(socket, &flow);
    }
}

/// sendmsg(2) of a UDP socket that names the destination `to`.
#[inline(always)]
pub fn send(socket: &impl Socket, to: &SockAddr) -> Verdict {
    match decide_send(socket, to) {
        Some(decided) => conclude(socket, MonitorHook::Send, Protocol::Udp, to, decided),
        None => Verdict::Pass,
    }
}

/// `None`: not for us.
#[inline(always)]
fn decide_send(socket: &impl Socket, to: &SockAddr) -> Option<Decided> {
    let frontend = match dialled(socket, Protocol::Udp, to) {
        Dialled::Frontend(frontend) => frontend,
        Dialled::UndefinedPort => {
            let outcome = Counter::SendUndefinedPort;
            return Some(Decided::unserved(Verdict::Refuse, outcome, 0));
        }
        Dialled::Elsewhere => return None,
    };
    let service = frontend.service;
    // A connected socket hears only its peer, so what it sends elsewhere than to its peer gets no
    // answer; what it sends to the name of its peer must go to its peer.
    if let Some(flow) = socket.flow()
        && flow.frontend == *to
        && let Some(choice) = live(socket, service, flow.backend_id)
        && choice.address == flow.backend
    {
        return Some(Decided::translated(Counter::SendKnownFlow, &choice));
    }
    let key = flow_key(socket.cookie(), to);
    let now_ns = socket.now_ns();
    let mut outcome = Counter::SendNewFlow;
    if let Some(flow) = socket.udp_flow(&key) {
        let idle_ns = now_ns.saturating_sub(flow.used_ns);
        match live(socket, service, flow.backend_id) {
            Some(choice) if idle_ns < UDP_IDLE_NS => {
                // Another frontend with this backend may have been sent to since: the answer is to
                // come from this one.
                let shown = socket.udp_reverse(&flow_key(key.cookie, &choice.address));
                if idle_ns > UDP_TOUCH_NS || shown != Some(*to) {
                    keep(socket, &key, &choice, now_ns);
                }
                return Some(Decided::translated(Counter::SendKnownFlow, &choice));
            }
            Some(_) => {}
            None => outcome = Counter::SendMovedFlow,
        }
    }
    // Flows that are known go on, whatever becomes of the ranges.
    if !is_allowed(socket, &frontend) {
        let outcome = Counter::SendNotAllowed;
        return Some(Decided::unserved(Verdict::Drop, outcome, service));
    }
    Some(
        match choose(socket, service, 0, || visit(socket, to, now_ns)) {
            Ok(choice) => {
                keep(socket, &key, &choice, now_ns);
                Decided::translated(outcome, &choice)
            }
            Err(why) => without_backend(
                why,
                Counter::SendRefused,
                Counter::SendNoLocalEndpoint,
                service,
            ),
        },
    )
}

/// Writes both directions of an unconnected flow.
#[inline(always)]
fn keep(socket: &impl Socket, key: &UdpFlowKey, choice: &Choice, now_ns: u64) {
    let forward = socket.set_udp_flow(
        key,
        &UdpFlow {
            used_ns: now_ns,
            backend_id: choice.backend_id,
            zero: 0,
        },
    );
    let reverse = socket.set_udp_reverse(&flow_key(key.cookie, &choice.address), &key.peer);
    if !(forward && reverse) {
        socket.count(Counter::SocketNotRemembered);
    }
}

/// recvmsg(2) of a UDP socket got a datagram from `from`: the address to show instead, if any.
#[inline(always)]
pub fn receive(socket: &impl Socket, from: &SockAddr) -> Option<SockAddr> {
    let shown = match socket.flow() {
        Some(flow) if flow.backend == *from => flow.frontend,
        _ => socket.udp_reverse(&flow_key(socket.cookie(), from))?,
    };
    socket.count(Counter::ReceiveReversed);
    Some(shown)
}

/// getpeername(2) of a socket connected to `peer`: the address to show instead, if any.
#[inline(always)]
pub fn peer_name(socket: &impl Socket, peer: &SockAddr) -> Option<SockAddr> {
    let flow = socket.flow()?;
    if flow.backend != *peer {
        return None;
    }
    socket.count(Counter::PeernameReversed);
    Some(flow.frontend)
}

/// A TCP socket's attempt to connect. What is to be written to its entry, if this is news.
#[inline(always)]
pub fn attempted(tables: &impl Tables, flow: &SocketFlow, attempt: Attempt) -> Option<u8> {
    // An attempt fails once; but one that is answered after all has not met a dead backend.
    let is_late = matches!(attempt, Attempt::Answered) && flow.attempt == Attempt::Unanswered as u8;
    if flow.protocol != Protocol::Tcp.number() || (flow.attempt != 0 && !is_late) {
        return None;
    }
    note(
        tables,
        attempt,
        flow.service,
        flow.backend_id,
        &flow.backend,
    );
    Some(attempt as u8)
}

/// A socket still dialled when it was closed: it has waited for this long at least, or its owner just
/// changed his mind. Nobody within a cluster takes that long to answer.
const PATIENCE_MS: u32 = 250;

/// The last close of a socket, whose entry `flow` was just deleted. `is_dialling`: no answer has come yet.
#[inline(always)]
pub fn closed(tables: &impl Tables, flow: &SocketFlow, is_dialling: bool) {
    ended(tables, flow.backend_id);
    if is_dialling && flow.waited_ms(tables.now_ns()) >= PATIENCE_MS {
        let _it_is_gone = attempted(tables, flow, Attempt::Unanswered);
    }
}

/// Whether what becomes of the socket's attempt is worth knowing.
#[inline(always)]
pub fn is_watched(tables: &impl Tables, flow: &SocketFlow) -> bool {
    flow.protocol == Protocol::Tcp.number()
        && tables
            .service(flow.service)
            .is_some_and(|service| service.word.fails_over())
}

/// What bind(2) does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum BindVerdict {
    Allow,
    /// EADDRINUSE: the port is a live NodePort there, and a listener would never hear a client.
    InUse,
}

/// bind(2) of a socket to `at`. Pods have their own ports; the node shares its with the NodePorts.
#[inline(always)]
pub fn bind(
    tables: &impl Tables,
    protocol: Protocol,
    at: &SockAddr,
    is_of_node: impl FnOnce() -> bool,
) -> BindVerdict {
    // Every NodePort is on the loopback address of its family: it stands for "any address".
    let in_use = if at.addr.is_unspecified() {
        let v4 = SockAddr::from_parts(Addr::V4_LOOPBACK, at.port_be);
        let v6 = SockAddr::from_parts(Addr::V6_LOOPBACK, at.port_be);
        // A socket on [::] hears IPv4 too.
        is_node_port(tables, protocol, &v4)
            || (!at.addr.is_v4() && is_node_port(tables, protocol, &v6))
    } else {
        is_node_port(tables, protocol, at)
    };
    if in_use && is_of_node() {
        tables.count(Counter::BindInUse);
        return BindVerdict::InUse;
    }
    BindVerdict::Allow
}

#[inline(always)]
fn is_node_port(tables: &impl Tables, protocol: Protocol, at: &SockAddr) -> bool {
    tables
        .frontend(&frontend_key(protocol, at))
        .is_some_and(|frontend| frontend.kind == FrontendKind::NodePort as u8)
}

#[cfg(test)]
#[path = "socket_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "count_tests.rs"]
mod count_tests;
