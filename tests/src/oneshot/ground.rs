//! What the checks stand on: addresses, backends, manifests, the agent.

use std::{
    fs::{self, File},
    io::Write as _,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};

use crate::{EndpointSlice, ManifestDir, Service};

pub(super) const TCP: u16 = 80;
pub(super) const UDP: u16 = 53;
pub(super) const TARGET: u16 = 8080;
pub(super) const NEVER: Duration = Duration::from_secs(20);

/// A Service's addresses: `full` has two backends in each family, `empty` has none, `moving` as many
/// as the check says.
pub(super) fn vips(service: &str) -> [IpAddr; 2] {
    let last = match service {
        "full" => 1,
        "empty" => 2,
        _ => 3,
    };
    [
        IpAddr::from([10, 96, 0, last]),
        IpAddr::from([0xfd96, 0, 0, 0, 0, 0, 0, last.into()]),
    ]
}

/// The backends, by number.
pub(super) fn backend(number: u8) -> [IpAddr; 2] {
    [
        IpAddr::from([10, 77, 0, number]),
        IpAddr::from([0xfd77, 0, 0, 0, 0, 0, 0, number.into()]),
    ]
}

pub(super) struct Ground {
    kube_portal: PathBuf,
    manifests: ManifestDir,
    log: PathBuf,
    agent: Option<Child>,
}

impl Ground {
    pub(super) fn new(kube_portal: PathBuf) -> Result<Self> {
        ip(&["link", "set", "lo", "up"])?;
        ip(&["link", "add", "backends", "type", "dummy"])?;
        ip(&["link", "set", "backends", "up"])?;
        for address in (1..=2).flat_map(backend) {
            let bits = if address.is_ipv4() { 32 } else { 128 };
            let address = format!("{address}/{bits}");
            let nodad: &[&str] = if bits == 128 { &["nodad"] } else { &[] };
            ip(&[&["addr", "add", &address, "dev", "backends"], nodad].concat())?;
        }
        // A way out for what is not translated: nobody answers there.
        ip(&["route", "add", "default", "dev", "backends"])?;
        for address in (1..=2).flat_map(backend) {
            serve(address)?;
        }
        let manifests = ManifestDir::new()?;
        let log = manifests.path().with_extension("log");
        let mut ground = Self {
            kube_portal,
            manifests,
            log,
            agent: None,
        };
        for service in ["full", "empty", "moving"] {
            ground.manifests.service(
                &Service::new(service, vips(service))
                    .tcp("http", TCP)
                    .udp("dns", UDP),
            )?;
        }
        ground.endpoints("full", &[1, 2])?;
        ground.endpoints("moving", &[1])?;
        ground.start()?;
        Ok(ground)
    }

    /// The backends of a Service from now on.
    pub(super) fn endpoints(&self, service: &str, numbers: &[u8]) -> Result<()> {
        let v4 = EndpointSlice::v4(service, &format!("{service}-v4"));
        let v6 = EndpointSlice::v6(service, &format!("{service}-v6"));
        for (family, slice) in [v4, v6].into_iter().enumerate() {
            let slice = slice.tcp("http", TARGET).udp("dns", TARGET);
            let slice = numbers.iter().fold(slice, |slice, number| {
                slice.ready(backend(*number)[family], "node")
            });
            self.manifests.slice(&slice)?;
        }
        Ok(())
    }

    pub(super) fn start(&mut self) -> Result<()> {
        let log = File::create(&self.log)?;
        let child = Command::new(&self.kube_portal)
            .args(["run", "--node-name", "node", "--manifests"])
            .arg(self.manifests.path())
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", self.kube_portal.display()))?;
        self.agent = Some(child);
        let ready = wait_until(|| Ok(self.agent_log().contains("first sync done")));
        ready.with_context(|| format!("the agent is not ready; it said:\n{}", self.agent_log()))
    }

    pub(super) fn signal(&mut self, signal: Signal) -> Result<ExitStatus> {
        let mut child = self.agent.take().context("no agent runs")?;
        kill(nix::unistd::Pid::from_raw(child.id().cast_signed()), signal)?;
        Ok(child.wait()?)
    }

    pub(super) fn call(&self, args: &[&str]) -> Result<String> {
        let output = Command::new(&self.kube_portal).args(args).output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        ensure!(
            output.status.success(),
            "{args:?}: {}",
            text(&output.stderr)
        );
        Ok(text(&output.stdout))
    }

    pub(super) fn agent_log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether the agent refuses by itself, or sends elsewhere what it refuses.
    pub(super) fn has_set_retval(&self) -> bool {
        self.agent_log().contains("refusal by bpf_set_retval")
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if let Some(mut child) = self.agent.take() {
            let _gone_already = child.kill();
            let _gone_already = child.wait();
        }
    }
}

pub(super) fn pins() -> &'static Path {
    Path::new("/sys/fs/bpf/kube-portal")
}

/// Until it says yes; its own error counts as a no.
pub(super) fn wait_until(mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + NEVER;
    loop {
        let last = condition();
        if matches!(last, Ok(true)) {
            return Ok(());
        }
        if Instant::now() > deadline {
            last?;
            bail!("not within {NEVER:?}");
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn ip(args: &[&str]) -> Result<()> {
    let status = Command::new("ip").args(args).status().context("ip")?;
    ensure!(status.success(), "ip {args:?}: {status}");
    Ok(())
}

/// Answers each connection and each datagram with its own address.
fn serve(address: IpAddr) -> Result<()> {
    let at = SocketAddr::new(address, TARGET);
    let listener = TcpListener::bind(at).with_context(|| format!("listen on {at}"))?;
    let socket = UdpSocket::bind(at)?;
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // It stays open as long as the client likes.
            let _client_may_be_gone = writeln!(stream, "{address}");
            thread::spawn(move || std::io::copy(&mut stream.try_clone()?, &mut stream));
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _client_may_be_gone = socket.send_to(address.to_string().as_bytes(), from);
        }
    });
    Ok(())
}
