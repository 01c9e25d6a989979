//! A bad road to a server: connections are refused, reset before the answer, in the middle of a list or of
//! a watch's line, or carried a few bytes at a time.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime,
    sync::watch,
    time::sleep,
};

use crate::{netns::Netns, packet::damage::Dice};

/// Nobody listens for so long.
const REFUSED: Duration = Duration::from_millis(30);
/// Between two pieces of a slow answer.
const PAUSE: Duration = Duration::from_millis(2);

/// Ends when dropped.
#[derive(Debug)]
pub struct Flaky {
    addr: SocketAddr,
    road: watch::Sender<Road>,
    broken: Arc<AtomicUsize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Road {
    Bad,
    Good,
    Closed,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, Default)]
struct Fate {
    /// Bytes of answers until it is reset.
    until: Option<usize>,
    slow: bool,
}

impl Fate {
    /// `None`: it is refused, and those that come soon after it.
    fn roll(dice: &mut Dice) -> Option<Self> {
        // Most live for a while: a client waits the longer, the more fail in a row.
        let until = match dice.below(25) {
            0 => return None,
            1 => Some(0),
            2 => Some(dice.below(300)),
            3 => Some(dice.below(20_000)),
            4..20 => Some(10_000 + dice.below(50_000)),
            _ => None,
        };
        let slow = dice.below(4) == 0;
        Some(Self { until, slow })
    }
}

impl Flaky {
    /// From a free port of 127.0.0.1 to `to`, both in this namespace. Bad from the beginning; the same
    /// seed gives connections the same fates, in the order in which they are made.
    pub fn start(netns: &Netns, to: SocketAddr, seed: u64) -> Result<Self> {
        let road = watch::Sender::new(Road::Bad);
        let broken = Arc::new(AtomicUsize::new(0));
        let (following, count) = (road.subscribe(), Arc::clone(&broken));
        // A thread is in the namespace of the one that starts it.
        let addr = netns.enter(|| -> Result<SocketAddr> {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").context("listen")?;
            listener.set_nonblocking(true)?;
            let addr = listener.local_addr()?;
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            thread::Builder::new().name("flaky".into()).spawn(move || {
                let serving = serve(listener, to, Dice(seed), following, count);
                // A test that waits for what never comes says more.
                let _ended = runtime.block_on(serving);
            })?;
            Ok(addr)
        })??;
        Ok(Self { addr, road, broken })
    }

    /// What to connect to instead of the server.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Connections that were made are closed, and those that come are let through.
    pub fn get_better(&self) {
        self.road.send_replace(Road::Good);
    }

    /// Connections that were refused or reset.
    pub fn broken(&self) -> usize {
        self.broken.load(Ordering::Relaxed)
    }
}

impl Drop for Flaky {
    fn drop(&mut self) {
        self.road.send_replace(Road::Closed);
    }
}

async fn serve(
    listener: std::net::TcpListener,
    to: SocketAddr,
    mut dice: Dice,
    mut road: watch::Receiver<Road>,
    broken: Arc<AtomicUsize>,
) -> io::Result<()> {
    let addr = listener.local_addr()?;
    let mut listener = TcpListener::from_std(listener)?;
    loop {
        let (client, _) = tokio::select! {
            accepted = listener.accept() => accepted?,
            _ = road.wait_for(|road| *road == Road::Closed) => return Ok(()),
        };
        let mut now = road.clone();
        let fate = match *now.borrow_and_update() {
            Road::Closed => return Ok(()),
            Road::Good => Some(Fate::default()),
            Road::Bad => Fate::roll(&mut dice),
        };
        let Some(fate) = fate else {
            broken.fetch_add(1, Ordering::Relaxed);
            reset(&client);
            drop((client, listener));
            sleep(REFUSED).await;
            listener = TcpListener::bind(addr).await?;
            continue;
        };
        let broken = Arc::clone(&broken);
        tokio::spawn(async move {
            tokio::select! {
                carried = carry(&client, to, fate, dice_of(fate)) => {
                    if matches!(carried, Ok(true)) {
                        broken.fetch_add(1, Ordering::Relaxed);
                    }
                }
                _ = now.changed() => {}
            }
            reset(&client);
        });
    }
}

/// For the sizes of pieces.
fn dice_of(fate: Fate) -> Dice {
    Dice(fate.until.unwrap_or(0) as u64)
}

/// What is dropped from now on is reset, not closed.
fn reset(client: &TcpStream) {
    // It may be gone already.
    let _gone = SockRef::from(client).set_linger(Some(Duration::ZERO));
}

/// Until one side ends, or it breaks: whether it did that.
async fn carry(client: &TcpStream, to: SocketAddr, fate: Fate, mut dice: Dice) -> io::Result<bool> {
    let server = TcpStream::connect(to).await?;
    server.set_nodelay(true)?;
    let (mut from_server, mut to_server) = server.into_split();
    let mut left = fate.until.unwrap_or(usize::MAX);
    let (mut asked, mut answered) = (vec![0; 1 << 14], vec![0; 1 << 14]);
    loop {
        let piece = if fate.slow {
            1 + dice.below(400)
        } else {
            answered.len()
        };
        tokio::select! {
            ready = client.readable() => {
                ready?;
                match client.try_read(&mut asked) {
                    Ok(0) => return Ok(false),
                    Ok(size) => to_server.write_all(&asked[..size]).await?,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            size = from_server.read(&mut answered[..piece]) => {
                let size = size?;
                if size == 0 {
                    return Ok(false);
                }
                let mut rest = &answered[..size.min(left)];
                while !rest.is_empty() {
                    client.writable().await?;
                    match client.try_write(rest) {
                        Ok(written) => rest = &rest[written..],
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => return Err(error),
                    }
                }
                left -= size.min(left);
                if left == 0 {
                    return Ok(true);
                }
                if fate.slow {
                    sleep(PAUSE).await;
                }
            }
        }
    }
}
