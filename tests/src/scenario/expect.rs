//! What a step expects: who gets what at which address.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result, bail, ensure};
use proxy_common::abi::Protocol;
use proxy_user::model::FrontendAddress;

/// Who dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Client {
    /// Of this node.
    Pod,
    /// A process of this node.
    Node,
    Outside,
    /// The same, with this address.
    At(IpAddr),
}

impl Client {
    pub(super) const USUAL: [Self; 3] = [Self::Pod, Self::Node, Self::Outside];

    fn parse(text: &str) -> Result<Self> {
        Ok(match text {
            "pod" => Self::Pod,
            "node" => Self::Node,
            "outside" => Self::Outside,
            ip => Self::At(ip.parse().with_context(|| {
                format!("{ip:?} is no client: pod, node, outside or an IP address")
            })?),
        })
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod => f.write_str("pod"),
            Self::Node => f.write_str("node"),
            Self::Outside => f.write_str("outside"),
            Self::At(ip) => ip.fmt(f),
        }
    }
}

/// What comes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    To(BTreeSet<SocketAddr>),
    Reject,
    Drop,
    NoSuchPort,
    NotOurs,
    /// What no file can ask for, in words.
    Odd(String),
}

impl Outcome {
    fn parse(text: &str) -> Result<Self> {
        Ok(match text {
            "reject" => Self::Reject,
            "drop" => Self::Drop,
            "no such port" => Self::NoSuchPort,
            "not ours" => Self::NotOurs,
            list => Self::To(
                list.split(',')
                    .map(|one| {
                        one.trim()
                            .parse()
                            .with_context(|| format!("{one:?} is not address:port"))
                    })
                    .collect::<Result<_>>()?,
            ),
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::To(to) => {
                let to: Vec<String> = to.iter().map(ToString::to_string).collect();
                f.write_str(&to.join(", "))
            }
            Self::Reject => f.write_str("reject"),
            Self::Drop => f.write_str("drop"),
            Self::NoSuchPort => f.write_str("no such port"),
            Self::NotOurs => f.write_str("not ours"),
            Self::Odd(what) => f.write_str(what),
        }
    }
}

/// Who dials where.
pub(super) type Question = (FrontendAddress, Client);

/// As it is written in files.
pub(super) fn show(address: &FrontendAddress) -> String {
    address.to_string().to_lowercase()
}

/// All that a step expects.
#[derive(Clone, Debug, Default)]
pub(super) struct Expected(BTreeMap<Question, Outcome>);

impl Expected {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut expected = Self::default();
        if text.trim() == "nothing" {
            return Ok(expected);
        }
        ensure!(
            !text.trim().is_empty(),
            "`expect` is empty; write `nothing` if that is meant"
        );
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            expected.line(line).with_context(|| format!("{line:?}"))?;
        }
        // Half an answer would leave the other half untested.
        for (address, _) in expected.0.keys() {
            let is_loopback = address.ip.is_loopback();
            if let Some(client) = Client::USUAL
                .iter()
                .find(|client| !is_loopback && !expected.0.contains_key(&(*address, **client)))
            {
                bail!("{}: nothing is said of {client}", show(address));
            }
        }
        Ok(expected)
    }

    fn line(&mut self, line: &str) -> Result<()> {
        let (question, outcome) = line.split_once("->").context("there is no ->")?;
        let outcome = Outcome::parse(outcome.trim())?;
        let (address, clients) = match question.split_once(" from ") {
            Some((address, clients)) => {
                let clients = clients.split(',').map(|text| Client::parse(text.trim()));
                (address, clients.collect::<Result<Vec<_>>>()?)
            }
            None => (question, Vec::new()),
        };
        let address = parse_address(address.trim())?;
        let clients = match clients.as_slice() {
            [] if address.ip.is_loopback() => &[Client::Node],
            [] => &Client::USUAL[..],
            named => named,
        };
        for client in clients {
            let before = self.0.insert((address, *client), outcome.clone());
            ensure!(before.is_none(), "{client} is asked for twice");
        }
        Ok(())
    }

    pub(super) fn questions(&self) -> impl Iterator<Item = Question> {
        self.0.keys().copied()
    }

    /// Where backends are expected.
    pub(super) fn served(&self) -> impl Iterator<Item = Question> {
        self.0
            .iter()
            .filter(|(_, outcome)| matches!(outcome, Outcome::To(_)))
            .map(|(question, _)| *question)
    }

    /// A client of an address is any from outside if nothing else is said of it.
    fn get(&self, (address, client): &Question) -> Option<&Outcome> {
        let outside = || match client {
            Client::At(_) => self.0.get(&(*address, Client::Outside)),
            Client::Pod | Client::Node | Client::Outside => None,
        };
        self.0.get(&(*address, *client)).or_else(outside)
    }

    pub(super) fn of(&self, question: &Question) -> &Outcome {
        self.get(question).unwrap_or(&Outcome::NotOurs)
    }

    pub(super) fn admits(&self, question: &Question, found: &Outcome) -> bool {
        match self.get(question) {
            Some(expected) => found == expected,
            None => matches!(found, Outcome::NotOurs | Outcome::NoSuchPort),
        }
    }
}

fn parse_address(text: &str) -> Result<FrontendAddress> {
    let (address, protocol) = text
        .rsplit_once('/')
        .context("write an address as address:port/protocol")?;
    let address: SocketAddr = address
        .parse()
        .with_context(|| format!("{address:?} is not address:port"))?;
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        other => bail!("{other:?} is not tcp, udp or sctp"),
    };
    Ok(FrontendAddress {
        ip: address.ip(),
        port: address.port(),
        protocol,
    })
}
