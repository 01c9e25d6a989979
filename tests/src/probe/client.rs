//! The harness's side: what a test asks of a pod.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::unistd::Uid;

pub use super::handles::{Churn, Connection, Server, Udp};
use super::{
    Answer, Ask, BenchPlan, BenchResult, ChurnPlan, Dial, Dialled, Frame, LoadPlan, LoadResult,
    NetError, Proto, Request, Response, Tally, sctp::Way,
};
use crate::binaries;
use crate::pod::Place;

/// How long anything on the network may take, unless the test says otherwise.
pub const TIMEOUT: Duration = Duration::from_secs(2);
/// What an answer may take beyond what was asked of the network: the machine may be busy.
const GRACE: Duration = Duration::from_secs(20);

/// The network's error of an operation that must fail; an error of its own when it went well, or
/// failed for another reason than the network.
pub fn net_error<T: std::fmt::Debug>(result: Result<T>) -> Result<NetError> {
    match result {
        Ok(value) => bail!("should have failed, yet: {value:?}"),
        Err(error) => error.downcast::<NetError>(),
    }
}

/// A pod's probe process; started at its first use.
#[derive(Debug)]
pub struct Probe {
    pub(super) pod: String,
    place: Arc<Place>,
    process: Mutex<Option<Process>>,
    /// Root, if not set.
    user: OnceLock<Uid>,
    last_id: AtomicU64,
}

type Waiting = Arc<Mutex<HashMap<u64, Sender<Response>>>>;

#[derive(Debug)]
struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    waiting: Waiting,
}

impl Probe {
    pub(crate) fn new(pod: &str, place: Arc<Place>) -> Self {
        Self {
            pod: pod.into(),
            place,
            process: Mutex::new(None),
            user: OnceLock::new(),
            last_id: AtomicU64::new(0),
        }
    }

    /// Ends the process: servers, connections, churn, all of it. The next request starts another.
    pub fn kill(&self) {
        lock(&self.process).take();
    }

    /// From its next start on it is a process of this user, as that of most pods is. To be called once.
    pub fn belong_to(&self, user: u32) {
        self.kill();
        let _set_once = self.user.set(Uid::from_raw(user));
    }

    /// The process id, when it was started.
    pub fn pid(&self) -> Option<u32> {
        lock(&self.process)
            .as_ref()
            .map(|process| process.child.id())
    }

    /// Serves names over TCP or UDP.
    pub fn serve(
        &self,
        proto: Proto,
        addr: impl Into<SocketAddr>,
        name: &str,
    ) -> Result<Server<'_>> {
        self.server(Request::Serve {
            proto,
            addr: addr.into(),
            name: name.into(),
        })
    }

    /// Serves bytes, for benches.
    pub fn serve_fast(
        &self,
        proto: Proto,
        addr: impl Into<SocketAddr>,
        threads: usize,
    ) -> Result<Server<'_>> {
        self.server(Request::ServeFast {
            proto,
            addr: addr.into(),
            threads,
        })
    }

    /// Takes whatever TCP brings, for benches.
    pub fn serve_sink(&self, addr: impl Into<SocketAddr>) -> Result<Server<'_>> {
        self.server(Request::ServeSink { addr: addr.into() })
    }

    /// Serves `name (address)` over HTTP.
    pub fn serve_http(&self, addr: impl Into<SocketAddr>, name: &str) -> Result<Server<'_>> {
        self.server(Request::ServeHttp {
            addr: addr.into(),
            name: name.into(),
        })
    }

    /// Opens a TCP connection.
    pub fn connect(&self, to: impl Into<SocketAddr>) -> Result<Connection<'_>> {
        self.connect_from(None, to.into(), TIMEOUT)
    }

    /// Opens a TCP connection within a time of one's own.
    pub fn connect_within(
        &self,
        to: impl Into<SocketAddr>,
        timeout: Duration,
    ) -> Result<Connection<'_>> {
        self.connect_from(None, to.into(), timeout)
    }

    /// Opens a TCP connection from a given address.
    pub fn connect_from(
        &self,
        from: Option<SocketAddr>,
        to: SocketAddr,
        timeout: Duration,
    ) -> Result<Connection<'_>> {
        let request = Request::Connect { to, from, timeout };
        let Response::Connected(connected) = self.ask(request, timeout)? else {
            return Err(self.unexpected());
        };
        Ok(Connection {
            probe: self,
            connected,
        })
    }

    /// Connects, asks for the name, closes; `count` times.
    pub fn connect_many(&self, to: impl Into<SocketAddr>, count: usize) -> Result<Tally> {
        self.tally(
            Request::ConnectMany {
                to: to.into(),
                count,
                ask: Ask::Line,
                timeout: TIMEOUT,
            },
            count,
        )
    }

    /// GET / from an HTTP server; `count` times.
    pub fn get_many(&self, to: impl Into<SocketAddr>, count: usize) -> Result<Tally> {
        self.tally(
            Request::ConnectMany {
                to: to.into(),
                count,
                ask: Ask::Http,
                timeout: TIMEOUT,
            },
            count,
        )
    }

    /// Serves names over SCTP.
    pub fn serve_sctp(&self, addr: impl Into<SocketAddr>, name: &str) -> Result<Server<'_>> {
        self.server(Request::ServeSctp {
            addr: addr.into(),
            name: name.into(),
        })
    }

    /// Begins an SCTP association, asks for the name, ends it.
    pub fn ask_sctp(
        &self,
        to: impl Into<SocketAddr>,
        way: Way,
        timeout: Duration,
    ) -> Result<Answer> {
        let to = to.into();
        // To begin, and to be answered.
        let limit = timeout.saturating_mul(2);
        let Response::Answer(answer) = self.ask(Request::AskSctp { to, way, timeout }, limit)?
        else {
            return Err(self.unexpected());
        };
        Ok(answer)
    }

    /// A UDP socket connected to an address.
    pub fn udp_connected(&self, to: impl Into<SocketAddr>) -> Result<Udp<'_>> {
        self.udp(None, Some(to.into()))
    }

    /// A UDP socket bound to an address (0.0.0.0:0 or [::]:0, say), not connected.
    pub fn udp_bound(&self, at: impl Into<SocketAddr>) -> Result<Udp<'_>> {
        self.udp(Some(at.into()), None)
    }

    /// A UDP socket.
    pub fn udp(&self, bind: Option<SocketAddr>, connect: Option<SocketAddr>) -> Result<Udp<'_>> {
        let Response::Made {
            id,
            local: Some(local),
        } = self.ask(Request::UdpOpen { bind, connect }, Duration::ZERO)?
        else {
            return Err(self.unexpected());
        };
        Ok(Udp {
            probe: self,
            id,
            local,
        })
    }

    /// One datagram and its answer from a new unconnected socket; `count` times.
    pub fn udp_many(&self, to: impl Into<SocketAddr>, count: usize) -> Result<Tally> {
        let to = to.into();
        self.tally(
            Request::UdpMany {
                to,
                count,
                connected: false,
                timeout: TIMEOUT,
            },
            count,
        )
    }

    /// One datagram and its answer from a new connected socket; `count` times.
    pub fn udp_connected_many(&self, to: impl Into<SocketAddr>, count: usize) -> Result<Tally> {
        let to = to.into();
        self.tally(
            Request::UdpMany {
                to,
                count,
                connected: true,
                timeout: TIMEOUT,
            },
            count,
        )
    }

    /// Dials without end in the background.
    pub fn churn(&self, plan: ChurnPlan) -> Result<Churn<'_>> {
        let Response::Made { id, .. } = self.ask(Request::ChurnStart(plan), Duration::ZERO)? else {
            return Err(self.unexpected());
        };
        Ok(Churn { probe: self, id })
    }

    /// Measures; may take up to `limit`.
    pub fn bench(&self, plan: BenchPlan, limit: Duration) -> Result<Vec<BenchResult>> {
        let Response::Bench(results) = self.ask(Request::Bench(plan), limit)? else {
            return Err(self.unexpected());
        };
        Ok(results)
    }

    /// Makes all of these calls at once, and looks at what has come of them while the sockets are open.
    pub fn dial<T>(
        &self,
        calls: Vec<(Dial, SocketAddr)>,
        look: impl FnOnce(&[Dialled]) -> Result<T>,
    ) -> Result<T> {
        let Response::Dialled { id, calls } = self.ask(Request::Dial { calls }, TIMEOUT)? else {
            return Err(self.unexpected());
        };
        let seen = look(&calls);
        self.ask(Request::HangUp { dialled: id }, TIMEOUT)?;
        seen
    }

    /// Does as much as goes for the plan's time.
    pub fn load(&self, plan: LoadPlan) -> Result<LoadResult> {
        let time = plan.time;
        let Response::Load(result) = self.ask(Request::Load(plan), time)? else {
            return Err(self.unexpected());
        };
        Ok(result)
    }

    /// Any request; `limit` is what the network may take of it.
    pub fn ask(&self, request: Request, limit: Duration) -> Result<Response> {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let what = format!("{request:?} in {}", self.pod);
        let (sender, receiver) = mpsc::channel();
        let waiting = {
            let mut process = lock(&self.process);
            if process.is_none() {
                *process = Some(Process::start(
                    &self.place,
                    &self.pod,
                    self.user.get().copied(),
                )?);
            }
            let process = process.as_mut().context("a probe was just started")?;
            let waiting = Arc::clone(&process.waiting);
            lock(&waiting).insert(id, sender);
            let mut line = serde_json::to_string(&Frame { id, body: request })?;
            line.push('\n');
            let stdin = process
                .stdin
                .as_mut()
                .context("the probe's stdin is open")?;
            stdin
                .write_all(line.as_bytes())
                .with_context(|| what.clone())?;
            waiting
        };
        let answer = receiver.recv_timeout(limit + GRACE);
        lock(&waiting).remove(&id);
        match answer {
            Ok(Response::Failed(error)) => {
                // The error itself, not a text about it: tests ask for its errno.
                let during = format!("{}: {}", self.pod, error.during);
                Err(NetError { during, ..error }.into())
            }
            Ok(response) => Ok(response),
            Err(RecvTimeoutError::Timeout) => bail!("{what}: no answer in {:?}", limit + GRACE),
            Err(RecvTimeoutError::Disconnected) => bail!("{what}: the probe has ended"),
        }
    }

    fn server(&self, request: Request) -> Result<Server<'_>> {
        let Response::Made {
            id,
            local: Some(local),
        } = self.ask(request, Duration::ZERO)?
        else {
            return Err(self.unexpected());
        };
        Ok(Server {
            probe: self,
            id,
            local,
        })
    }

    fn tally(&self, request: Request, count: usize) -> Result<Tally> {
        // Each may take the whole time to connect, and again to be answered.
        let each = u32::try_from(count).unwrap_or(u32::MAX).saturating_mul(2);
        let Response::Tally(tally) = self.ask(request, TIMEOUT.saturating_mul(each))? else {
            return Err(self.unexpected());
        };
        Ok(tally)
    }

    pub(super) fn unexpected(&self) -> anyhow::Error {
        anyhow!(
            "the probe of {} answered something else than asked",
            self.pod
        )
    }
}

impl Probe {
    pub(super) fn address(&self, request: Request) -> Result<SocketAddr> {
        let Response::Address(address) = self.ask(request, Duration::ZERO)? else {
            return Err(self.unexpected());
        };
        Ok(address)
    }
}

impl Process {
    fn start(place: &Place, pod: &str, user: Option<Uid>) -> Result<Self> {
        let binary = binaries::probe()?;
        let mut command = match user {
            Some(user) => place.command_as(user, &binary)?,
            None => place.command(&binary)?,
        };
        let mut child = command
            // A Ctrl-C in the terminal is for whoever started this; it ends the rest in order.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {} in {pod}", binary.display()))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take();
        let waiting = Waiting::default();
        let answered = Arc::clone(&waiting);
        std::thread::spawn(move || {
            let lines = stdout
                .into_iter()
                .flat_map(|pipe| BufReader::new(pipe).lines());
            for line in lines.map_while(Result::ok) {
                let Ok(frame) = serde_json::from_str::<Frame<Response>>(&line) else {
                    break;
                };
                if let Some(sender) = lock(&answered).remove(&frame.id) {
                    // Nobody waits any more: its time was over.
                    let _ = sender.send(frame.body);
                }
            }
            // Those that still wait learn that no answer comes.
            lock(&answered).clear();
        });
        Ok(Self {
            child,
            stdin,
            waiting,
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
