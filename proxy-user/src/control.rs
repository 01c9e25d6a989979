//! What another process of the node asks of the running agent.
//!
//! The socket is in the abstract namespace, which goes with the network namespace: an agent in a pod of the
//! node's network is reached from the node as from its own container, and nothing is left when it dies. Its
//! name is that of the directory of pins, so that each agent of a machine has its own. Only root is answered.

use std::{
    fs, io,
    io::{Read as _, Write as _},
    os::{
        linux::{fs::MetadataExt as _, net::SocketAddrExt as _},
        unix::net as std_unix,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    time::timeout,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{audit::Audited, waiting::NotProgrammed, watch::kube::Freshness};

/// What may be asked; all are of one length.
const VERIFY: &[u8; 7] = b"verify\n";
const STATE: &[u8; 7] = b"state?\n";
const CONFIG: &[u8; 7] = b"config\n";
/// A request is said at once.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// What is asked takes no longer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Requests that wait for the agent's loop.
const QUEUE: usize = 4;

/// Somebody waits for an audit.
pub type Asker = oneshot::Sender<Audited>;
/// Somebody waits for the state.
pub type StateAsker = oneshot::Sender<State>;

/// What only the agent knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Services whose last change is not in the maps.
    #[serde(default)]
    pub not_programmed: Vec<NotProgrammed>,
    /// The API server it follows, and whether it can; absent for a folder of manifests.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub api_server: Option<Freshness>,
}

/// Where requests come out.
#[derive(Debug)]
pub struct Requests {
    pub audits: mpsc::Receiver<Asker>,
    pub states: mpsc::Receiver<StateAsker>,
}

#[derive(Clone, Debug)]
struct Queues {
    audits: mpsc::Sender<Asker>,
    states: mpsc::Sender<StateAsker>,
    /// What /configz says, which stays as it is.
    configz: Arc<str>,
}

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("no agent runs here for the pins in {}: start one, or see the maps as they are with `kube-portal status`", .0.display())]
    NoAgent(PathBuf),
    #[error("the agent was asked, and gave no answer: {0}")]
    Broken(io::Error),
    #[error("the agent's answer can't be read: {0}")]
    Unreadable(serde_json::Error),
}

fn address(pins: &Path, of: &str) -> io::Result<std_unix::SocketAddr> {
    let directory = fs::metadata(pins)?;
    let name = format!(
        "kube-portal/{}/{}{of}",
        directory.st_dev(),
        directory.st_ino()
    );
    std_unix::SocketAddr::from_abstract_name(name)
}

/// What only one process at a time has, for as long as it lives.
///
/// # Errors
/// `AddrInUse`: another has it.
pub(crate) fn only_monitor(pins: &Path) -> io::Result<std_unix::UnixListener> {
    std_unix::UnixListener::bind_addr(&address(pins, "/monitor")?)
}

/// Answers requests for as long as the agent lives. To be called on a runtime. `configz`: what /configz says.
///
/// # Errors
/// The socket can't be had.
pub fn listen(pins: &Path, configz: &str) -> io::Result<Requests> {
    let listener = std_unix::UnixListener::bind_addr(&address(pins, "")?)?;
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let (audits, asked_audits) = mpsc::channel(QUEUE);
    let (states, asked_states) = mpsc::channel(QUEUE);
    let queues = Queues {
        audits,
        states,
        configz: configz.into(),
    };
    tokio::spawn(serve(listener, queues));
    Ok(Requests {
        audits: asked_audits,
        states: asked_states,
    })
}

async fn serve(listener: UnixListener, queues: Queues) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let queues = queues.clone();
                tokio::spawn(async move {
                    // Whoever breaks off gets no answer.
                    let _ended = answer(stream, &queues).await;
                });
            }
            // No descriptor is left.
            Err(_) => tokio::time::sleep(REQUEST_TIMEOUT).await,
        }
    }
}

async fn answer(mut stream: UnixStream, queues: &Queues) -> io::Result<()> {
    if stream.peer_cred()?.uid() != 0 {
        return Ok(());
    }
    let mut request = [0; VERIFY.len()];
    timeout(REQUEST_TIMEOUT, stream.read_exact(&mut request)).await??;
    match &request {
        VERIFY => pass_on(stream, &queues.audits).await,
        STATE => pass_on(stream, &queues.states).await,
        CONFIG => stream.write_all(queues.configz.as_bytes()).await,
        _ => Ok(()),
    }
}

/// Has the loop answer.
async fn pass_on<T: Serialize>(
    mut stream: UnixStream,
    queue: &mpsc::Sender<oneshot::Sender<T>>,
) -> io::Result<()> {
    let (asker, answered) = oneshot::channel();
    if queue.send(asker).await.is_err() {
        return Ok(());
    }
    if let Ok(answer) = answered.await {
        stream.write_all(&serde_json::to_vec(&answer)?).await?;
    }
    Ok(())
}

/// Whether an agent listens. Nothing is asked of it.
pub fn is_there(pins: &Path) -> bool {
    address(pins, "")
        .and_then(|address| std_unix::UnixStream::connect_addr(&address))
        .is_ok()
}

/// Has the agent compare all of the maps with what they should hold, and repair them.
///
/// # Errors
/// There is no agent, or it doesn't answer.
pub fn verify(pins: &Path) -> Result<Audited, ControlError> {
    request(pins, VERIFY)
}

/// What only the agent knows.
///
/// # Errors
/// There is no agent, or it doesn't answer.
pub fn state(pins: &Path) -> Result<State, ControlError> {
    request(pins, STATE)
}

/// The configuration it runs with, as /configz says it.
///
/// # Errors
/// There is no agent, or it doesn't answer.
pub fn configz(pins: &Path) -> Result<serde_json::Value, ControlError> {
    request(pins, CONFIG)
}

fn request<T: DeserializeOwned>(pins: &Path, request: &[u8]) -> Result<T, ControlError> {
    let stream = address(pins, "")
        .and_then(|address| std_unix::UnixStream::connect_addr(&address))
        .map_err(|_| ControlError::NoAgent(pins.to_owned()))?;
    let answer = ask(stream, request).map_err(ControlError::Broken)?;
    if answer.is_empty() {
        return Err(ControlError::Broken(io::ErrorKind::UnexpectedEof.into()));
    }
    serde_json::from_slice(&answer).map_err(ControlError::Unreadable)
}

fn ask(mut stream: std_unix::UnixStream, request: &[u8]) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}
