//! `kube-portal trace`: where a connection would go, and why.
//!
//! `question` is what was asked, `place` the hook that it would meet; `frame` makes its first packet.
//! `story` runs the datapath's own functions, on the pinned maps (`live`) and on what the kernel says of
//! routes and sockets (`helpers`), and records every lookup; `choice` finds in them from whom a backend was
//! chosen. `report` tells it, with the `reasons` and in `words`. `kernel` has the program that is attached do
//! the same, where it may choose whoever is `possible`.

mod choice;
mod context;
mod frame;
mod helpers;
mod kernel;
mod live;
mod place;
mod possible;
mod question;
mod reasons;
mod report;
mod story;
mod words;

use std::{
    cell::OnceCell,
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use proxy_common::{
    abi::{Device, FrontendKind, Protocol},
    datapath::path::Hook,
    wire::link::Link,
};
use rtnetlink::Handle;

pub use choice::{Candidate, Choice};
pub use kernel::{Agreement, KernelRun};
pub use place::{Call, HookName, Origin, Place, PlaceError};
pub use question::{Destination, Question, QuestionError, Source};
pub use report::{Line, Report};
pub use story::{Kind, Outcome, PacketOutcome, Story};

use crate::{
    devices::{Facts, Header},
    expiry::monotonic_ns,
    loader::{self, Constants, Features, OnDevice, PinError, Pins},
    maps::{MapStore as _, StoreError},
    plan::address_of,
    watch::node_net,
};
use helpers::Helpers;
use live::{Chance, Live, Run};
use place::Situation;

#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error(transparent)]
    Question(#[from] QuestionError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0}")]
    NoService(String),
    #[error("the devices of this node: {0}")]
    Devices(String),
    #[error("the kernel does not answer: {0}")]
    Helpers(String),
    #[error("the network namespace of process {pid}: {source}")]
    Netns { pid: u32, source: std::io::Error },
    #[error("--kernel: {0}")]
    Kernel(String),
}

impl TraceError {
    /// Whether another command line would do.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Question(_) | Self::Place(_) | Self::NoService(_) => true,
            Self::Pin(_)
            | Self::Store(_)
            | Self::Devices(_)
            | Self::Helpers(_)
            | Self::Netns { .. }
            | Self::Kernel(_) => false,
        }
    }
}

/// What is fixed of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Of the draws.
    pub seed: u64,
    /// Cookie of the pod's network namespace; 0: not known.
    pub netns: u64,
}

/// The maps and devices of this node. It lives as long as the runtime it was opened in, and on the thread
/// whose network namespace is the node's.
#[derive(Debug)]
pub struct Tracer {
    live: Live,
    features: Features,
    helpers: OnceCell<Helpers>,
    facts: Facts,
    macs: BTreeMap<u32, [u8; 6]>,
    on_devices: Vec<OnDevice>,
    netlink: Handle,
    /// What is not certain.
    notes: Vec<String>,
}

impl Tracer {
    /// # Errors
    /// Nothing is pinned there, or netlink does not answer.
    pub async fn open(pins: &Pins) -> Result<Self, TraceError> {
        let features = Features::probe();
        let (constants, unknown) = Constants::of_running(pins, features);
        let live = Live::open(pins, constants)?;
        let netlink = loader::netlink().map_err(|error| TraceError::Devices(error.to_string()))?;
        let words = |error: rtnetlink::Error| TraceError::Devices(error.to_string());
        let facts = node_net::list(&netlink).await.map_err(words)?;
        let macs = node_net::ethernet_addresses(&netlink)
            .await
            .map_err(words)?;
        let on_devices = loader::on_devices(pins)
            .await
            .map_err(TraceError::Devices)?;
        let notes = unknown.map(|reason| {
            format!(
                "what the programs were started with can't be read ({reason}): source ports and timeouts are \
                 taken to be the defaults"
            )
        });
        Ok(Self {
            live,
            features,
            helpers: OnceCell::new(),
            facts,
            macs,
            on_devices,
            netlink,
            notes: notes.into_iter().collect(),
        })
    }

    /// The hook that this would meet, and why, in words.
    ///
    /// # Errors
    /// It would meet none.
    pub async fn place(
        &self,
        question: &Question,
        hook: Option<HookName>,
        device: Option<&str>,
    ) -> Result<(Place, String), TraceError> {
        let route = async |to: IpAddr| {
            node_net::route_to(&self.netlink, to)
                .await
                .map_err(|error| TraceError::Devices(error.to_string()))
        };
        let (source, destination) = (question.source.ip(), question.destination.ip());
        let of_hook = |wanted: loader::Hook| {
            let on_devices = self.on_devices.iter();
            on_devices
                .filter(move |at| at.hook == wanted)
                .map(|at| at.ifindex)
        };
        let served: Vec<u32> = of_hook(loader::Hook::Ingress).collect();
        let is_pod = |index: &u32| {
            let device = self.live.device(*index);
            device.is_some_and(|device| device.flags & Device::POD != 0)
        };
        let situation = Situation {
            facts: &self.facts,
            pods: served.iter().copied().filter(is_pod).collect(),
            served,
            to_source: route(source).await?,
            to_destination: route(destination).await?,
        };
        Ok(situation.choose(hook, device, source, destination)?)
    }

    /// The address that a destination stands for: of a Service, its ClusterIP of the source's family.
    /// Beside it what else it might have been, in words.
    ///
    /// # Errors
    /// There is no such Service, or it has several ports and none was named.
    pub fn resolve(
        &self,
        destination: &Destination,
        is_v4: bool,
    ) -> Result<(SocketAddr, Protocol, Vec<String>), TraceError> {
        let (name, port, protocol) = match destination {
            Destination::Address(to, protocol) => return Ok((*to, *protocol, Vec::new())),
            Destination::Service {
                name,
                port,
                protocol,
            } => (name, port.as_deref(), *protocol),
        };
        let observed = self.live.store.observe()?;
        let mut all: Vec<(FrontendKind, String, SocketAddr, Protocol)> = Vec::new();
        for (key, frontend) in &observed.frontends {
            if address_of(key).is_some() {
                continue;
            }
            let (Some(text), Some(kind), Some(of)) = (
                observed.names.get(&frontend.service),
                FrontendKind::from_number(frontend.kind),
                Protocol::from_number(key.protocol),
            ) else {
                continue;
            };
            let text = text.text();
            let (service, port) = text.rsplit_once(':').unwrap_or((&text, ""));
            if service == name {
                let at = proxy_common::abi::SockAddr::from_parts(key.addr, key.port_be);
                all.push((kind, port.to_owned(), at.socket_addr(), of));
            }
        }
        all.sort();
        if all.is_empty() {
            return Err(TraceError::NoService(format!(
                "no frontend in the maps is of a Service {name}: `kube-portal status` shows those there are"
            )));
        }
        let fits = |(_, called, at, of): &&(FrontendKind, String, SocketAddr, Protocol)| {
            port.is_none_or(|port| port == called || port == at.port().to_string())
                && protocol.is_none_or(|protocol| protocol == *of)
                && at.is_ipv4() == is_v4
        };
        let fitting: Vec<_> = all.iter().filter(fits).collect();
        let words = |(kind, called, at, of): &(FrontendKind, String, SocketAddr, Protocol)| {
            let colon = if called.is_empty() { "" } else { ":" };
            format!("{} {at}/{of} {name}{colon}{called}", kind.name())
        };
        let Some((kind, called, at, of)) = fitting.first() else {
            let there: Vec<String> = all.iter().map(words).collect();
            return Err(TraceError::NoService(format!(
                "{name} has no such port or family: {}",
                there.join(", ")
            )));
        };
        let same_kind: Vec<_> = fitting
            .iter()
            .filter(|(other, ..)| other == kind)
            .filter(|(_, other, _, protocol)| (other, protocol) != (called, of))
            .collect();
        if !same_kind.is_empty() {
            let there: Vec<String> = fitting.iter().map(|one| words(one)).collect();
            return Err(TraceError::NoService(format!(
                "{name} has several ports; name one, as in {name}:{}: {}",
                if called.is_empty() {
                    at.port().to_string()
                } else {
                    called.clone()
                },
                there.join(", ")
            )));
        }
        let short = |(kind, _, at, of): &(FrontendKind, String, SocketAddr, Protocol)| {
            format!("{} {at}/{of}", kind.name())
        };
        let others = fitting.iter().skip(1).map(|one| short(one)).collect();
        Ok((*at, *of, others))
    }

    /// Runs the datapath; nothing is changed.
    ///
    /// # Errors
    /// The kernel does not say what only it knows.
    pub fn trace(
        &self,
        question: Question,
        place: Place,
        options: Options,
    ) -> Result<Story, TraceError> {
        self.run(question, place, options, Chance::Drawn(options.seed))
    }

    fn run(
        &self,
        question: Question,
        place: Place,
        options: Options,
        chance: Chance,
    ) -> Result<Story, TraceError> {
        let run = Run::new(&self.live, monotonic_ns(), chance);
        let candidates = |service: &_| self.live.candidates(service);
        let (story, run) = match place {
            Place::Socket(call, origin) => {
                let is_of_node = origin == Origin::Node;
                let netns = if is_of_node {
                    self.features.node_netns
                } else {
                    options.netns
                };
                let run = run.of_socket(is_of_node, netns);
                let story = story::call(&run, question, (call, origin), candidates);
                (story, run)
            }
            Place::Device {
                hook,
                ifindex,
                link,
            } => {
                let run = run.at_device(ifindex, self.helpers()?);
                let mac = self.macs.get(&ifindex).copied().unwrap_or_default();
                let frame = frame::make(&question, link, mac);
                let at = (hook, ifindex, link);
                let story = story::packet(&run, question, at, frame, candidates);
                (story, run)
            }
        };
        match run.into_trouble() {
            Some(trouble) => Err(TraceError::Helpers(trouble)),
            None => Ok(story),
        }
    }

    fn helpers(&self) -> Result<&Helpers, TraceError> {
        if let Some(helpers) = self.helpers.get() {
            return Ok(helpers);
        }
        let helpers = Helpers::load(self.features).map_err(TraceError::Helpers)?;
        Ok(self.helpers.get_or_init(|| helpers))
    }

    /// What becomes of the packets of a call that is not translated, where they leave this node; `None`:
    /// nothing of ours meets them there, or does anything to them.
    ///
    /// # Errors
    /// As of [`Self::trace`].
    pub async fn sequel(
        &self,
        story: &Story,
        options: Options,
    ) -> Result<Option<String>, TraceError> {
        let is_left = matches!(story.kind(), Kind::Untouched | Kind::Dropped);
        if !is_left || !matches!(story.place, Place::Socket(..)) {
            return Ok(None);
        }
        let destination = story.question.destination.ip();
        let route = node_net::route_to(&self.netlink, destination)
            .await
            .map_err(|error| TraceError::Devices(error.to_string()))?;
        let Some((ifindex, _)) = route else {
            return Ok(None);
        };
        let hook = Hook::Egress;
        let header = self.facts.link(ifindex).map(|link| link.header);
        let link = match header {
            Some(Header::Ethernet) => Link::Ethernet,
            Some(Header::None) => Link::None,
            Some(Header::Other(_)) | None => return Ok(None),
        };
        if self.program_at(hook, ifindex).is_none() {
            return Ok(None);
        }
        let place = Place::Device {
            hook,
            ifindex,
            link,
        };
        let later = self.trace(story.question, place, options)?;
        if later.kind() == Kind::Untouched {
            return Ok(None);
        }
        let summary = Report::new(&later, self, "", monotonic_ns()).summary;
        let device = self.device_name(ifindex);
        Ok(Some(format!(
            "its packets meet the egress of {device}: {summary}"
        )))
    }

    /// What to print of a story. `why`: of the place; `more`: what else is to be known.
    pub fn report(&self, story: &Story, why: &str, more: &[String]) -> Report {
        let mut report = Report::new(story, self, why, monotonic_ns());
        let notes = self.notes.iter().chain(more);
        report.add_notes(notes.cloned());
        if let Place::Device { hook, ifindex, .. } = story.place
            && self.program_at(hook, ifindex).is_none()
        {
            let hook = match hook {
                Hook::Ingress => "ingress",
                Hook::Egress => "egress",
            };
            let device = self.device_name(ifindex);
            report.add_notes([format!(
                "no program of kube-portal runs at the {hook} of {device}: this is what one would do"
            )]);
        }
        report
    }

    /// Id of our program at a hook.
    fn program_at(&self, hook: Hook, ifindex: u32) -> Option<u32> {
        let wanted = match hook {
            Hook::Ingress => loader::Hook::Ingress,
            Hook::Egress => loader::Hook::Egress,
        };
        self.on_devices
            .iter()
            .find(|at| at.ifindex == ifindex && at.hook == wanted)
            .map(|at| at.program_id)
    }

    fn device_name(&self, ifindex: u32) -> String {
        let link = self.facts.link(ifindex);
        link.map_or_else(|| format!("device {ifindex}"), |link| link.name.clone())
    }
}

impl words::Names for Tracer {
    fn service(&self, id: u32) -> Option<(String, bool)> {
        let name = self.live.store.name(id)?;
        Some((name.text().into_owned(), name.scope == 1))
    }

    fn device(&self, ifindex: u32) -> String {
        self.device_name(ifindex)
    }
}

/// Cookie of the network namespace that a process is in: for its sockets, session affinity goes by it.
///
/// # Errors
/// There is no such process, or the kernel has no cookies (before Linux 5.14).
pub fn netns_of(pid: u32) -> Result<u64, TraceError> {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    let enter = move || {
        let namespace = std::fs::File::open(format!("/proc/{pid}/ns/net"))?;
        move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&namespace),
            Some(LinkNameSpaceType::Network),
        )?;
        loader::netns_cookie()
    };
    // A thread of its own: the others stay where they are.
    let entered = std::thread::spawn(enter).join();
    let entered = entered.unwrap_or_else(|_| Err(std::io::Error::other("the thread panicked")));
    entered.map_err(|source| TraceError::Netns {
        pid,
        source: match source.raw_os_error() {
            Some(libc::ENOPROTOOPT) => std::io::Error::other(
                "this kernel does not tell its cookie (SO_NETNS_COOKIE, Linux 5.14); leave --netns out",
            ),
            Some(_) | None => source,
        },
    })
}
