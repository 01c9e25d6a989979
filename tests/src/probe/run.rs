//! The probe's side of the conversation: from requests to sockets.

use std::collections::HashMap;
use std::io::{self, BufRead, Write};
use std::net::UdpSocket;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};
use socket2::Socket;

use super::churn::Churn;
use super::serve::{self, Server};
use super::tcp::Connection;
use super::{Connected, Frame, NetError, Request, Response, bench, dial, load, sctp, tcp, udp};

/// Answers requests from stdin until it ends.
pub fn run() -> Result<()> {
    let probe = Arc::new(Probe::default());
    for line in io::stdin().lock().lines() {
        let line = line.context("read stdin")?;
        let Frame { id, body } =
            serde_json::from_str::<Frame<Request>>(&line).context("parse a request")?;
        let probe = Arc::clone(&probe);
        thread::spawn(move || {
            let body = probe.answer(body).unwrap_or_else(Response::Failed);
            // One write of a whole line, so that answers of two threads do not mix.
            let mut text = serde_json::to_string(&Frame { id, body }).unwrap_or_default();
            text.push('\n');
            let mut stdout = io::stdout().lock();
            // Nobody reads any more: stdin will end too.
            let _ = stdout
                .write_all(text.as_bytes())
                .and_then(|()| stdout.flush());
        });
    }
    Ok(())
}

type Shared<T> = Arc<Mutex<T>>;

#[derive(Default)]
struct Probe {
    last_id: AtomicU64,
    servers: Table<Server>,
    connections: Table<Shared<Connection>>,
    sockets: Table<Arc<UdpSocket>>,
    churns: Table<Arc<Churn>>,
    dialled: Table<Vec<Socket>>,
}

impl Probe {
    fn answer(&self, request: Request) -> Result<Response, NetError> {
        match request {
            Request::Serve { proto, addr, name } => self
                .server(&format!("serve {proto:?} {addr}"), || {
                    serve::named(proto, addr, name)
                }),
            Request::ServeFast {
                proto,
                addr,
                threads,
            } => self.server(&format!("serve {proto:?} {addr}"), || {
                serve::fast(proto, addr, threads)
            }),
            Request::ServeSink { addr } => {
                self.server(&format!("sink TCP {addr}"), || serve::sink(addr))
            }
            Request::ServeHttp { addr, name } => {
                self.server(&format!("serve HTTP {addr}"), || serve::http(addr, name))
            }
            Request::ServeSctp { addr, name } => {
                self.server(&format!("serve SCTP {addr}"), || serve::sctp(addr, name))
            }
            Request::AskSctp { to, way, timeout } => {
                sctp::ask(to, way, timeout).map(Response::Answer)
            }
            Request::StopServe { server } => self.servers.remove(server).map(|_| Response::Done),
            Request::Connect { to, from, timeout } => {
                let connection = Connection::open(to, from, timeout)?;
                let Connection {
                    local,
                    peer,
                    elapsed_us,
                    ..
                } = connection;
                let id = self.id();
                self.connections
                    .insert(id, Arc::new(Mutex::new(connection)));
                Ok(Response::Connected(Connected {
                    id,
                    local,
                    peer,
                    elapsed_us,
                }))
            }
            Request::Exchange {
                connection,
                line,
                timeout,
            } => {
                let connection = self.connections.get(connection)?;
                lock(&connection)
                    .exchange(&line, timeout)
                    .map(Response::Answer)
            }
            Request::PeerName { connection } => {
                let connection = self.connections.get(connection)?;
                lock(&connection).peer_name().map(Response::Address)
            }
            Request::Close { connection } => {
                self.connections.remove(connection).map(|_| Response::Done)
            }
            Request::ConnectMany {
                to,
                count,
                ask,
                timeout,
            } => Ok(Response::Tally(tcp::ask_many(to, count, ask, timeout))),
            Request::UdpOpen { bind, connect } => {
                let socket = udp::open(bind, connect)?;
                let (id, local) = (self.id(), socket.local_addr().ok());
                self.sockets.insert(id, Arc::new(socket));
                Ok(Response::Made { id, local })
            }
            Request::UdpExchange {
                socket,
                to,
                payload,
                timeout,
            } => {
                let socket = self.sockets.get(socket)?;
                udp::exchange(&socket, to, &payload, timeout).map(Response::Answer)
            }
            Request::UdpPeerName { socket } => {
                udp::peer_name(&*self.sockets.get(socket)?).map(Response::Address)
            }
            Request::UdpConnect { socket, to } => {
                udp::reconnect(&*self.sockets.get(socket)?, to).map(|()| Response::Done)
            }
            Request::UdpDisconnect { socket } => {
                udp::disconnect(&*self.sockets.get(socket)?).map(|()| Response::Done)
            }
            Request::UdpClose { socket } => self.sockets.remove(socket).map(|_| Response::Done),
            Request::UdpMany {
                to,
                count,
                connected,
                timeout,
            } => Ok(Response::Tally(udp::ask_many(
                to, count, connected, timeout,
            ))),
            Request::ChurnStart(plan) => {
                let id = self.id();
                self.churns.insert(id, Arc::new(Churn::start(plan)));
                Ok(Response::Made { id, local: None })
            }
            Request::ChurnAllow { churn, allowed } => {
                self.churns.get(churn)?.allow(allowed);
                Ok(Response::Done)
            }
            Request::ChurnReport { churn } => Ok(Response::Churn(self.churns.get(churn)?.report())),
            Request::ChurnStop { churn } => Ok(Response::Churn(self.churns.remove(churn)?.stop())),
            Request::Dial { calls } => {
                let (sockets, calls) = dial::dial(&calls)?;
                let id = self.id();
                self.dialled.insert(id, sockets);
                Ok(Response::Dialled { id, calls })
            }
            Request::HangUp { dialled } => self.dialled.remove(dialled).map(|_| Response::Done),
            Request::Bench(plan) => bench::run(&plan).map(Response::Bench),
            Request::Load(plan) => load::run(&plan).map(Response::Load),
        }
    }

    fn server(
        &self,
        what: &str,
        start: impl FnOnce() -> io::Result<Server>,
    ) -> Result<Response, NetError> {
        let since = Instant::now();
        let server = start().map_err(|error| NetError::new(what, &error, since))?;
        let (id, local) = (self.id(), Some(server.local));
        self.servers.insert(id, server);
        Ok(Response::Made { id, local })
    }

    fn id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Things the harness holds by number.
struct Table<T>(Mutex<HashMap<u64, T>>);

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Table<T> {
    fn insert(&self, id: u64, thing: T) {
        lock(&self.0).insert(id, thing);
    }

    fn remove(&self, id: u64) -> Result<T, NetError> {
        lock(&self.0).remove(&id).ok_or_else(|| closed(id))
    }
}

impl<T: Clone> Table<T> {
    fn get(&self, id: u64) -> Result<T, NetError> {
        lock(&self.0).get(&id).cloned().ok_or_else(|| closed(id))
    }
}

fn closed(id: u64) -> NetError {
    let error = io::Error::from_raw_os_error(libc::EBADF);
    NetError::new(
        format!("use of number {id}, which is closed"),
        &error,
        Instant::now(),
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
