//! What was asked: two ends and a protocol, from the words of a command line. Pure.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use proxy_common::abi::Protocol;

/// Who sends: a port may be left open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    pub ip: IpAddr,
    pub port: Option<u16>,
}

/// What is dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    Address(SocketAddr, Protocol),
    /// `namespace/name`, with the port's name or number if it was given.
    Service {
        name: String,
        port: Option<String>,
        protocol: Option<Protocol>,
    },
}

/// The ends of one packet or connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    pub protocol: Protocol,
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            protocol,
            source,
            destination,
        } = self;
        write!(f, "{protocol} {source} -> {destination}")
    }
}

/// A port that a socket might get, for who names none.
const EPHEMERAL: u16 = 40_000;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    #[error("\"{0}\" is no source: write 10.0.1.5:40000, 10.0.1.5, [fd00::5]:40000 or fd00::5")]
    Source(String),
    #[error(
        "\"{0}\" is no destination: write 10.96.0.10:53/udp, [fd96::10]:80 or namespace/service:port"
    )]
    Destination(String),
    #[error("\"{0}\" has no port: write {1}")]
    NoPort(String, String),
    #[error("{source_ip} and {destination} are of different families: no packet has both")]
    Families {
        source_ip: IpAddr,
        destination: SocketAddr,
    },
}

impl FromStr for Source {
    type Err = QuestionError;

    fn from_str(text: &str) -> Result<Self, QuestionError> {
        let (ip, port) = if let Ok(at) = text.parse::<SocketAddr>() {
            (at.ip(), Some(at.port()))
        } else {
            let ip = bare(text).ok_or_else(|| QuestionError::Source(text.to_owned()))?;
            (ip, None)
        };
        Ok(Self {
            ip: ip.to_canonical(),
            port: port.filter(|port| *port != 0),
        })
    }
}

/// An address with or without brackets.
fn bare(text: &str) -> Option<IpAddr> {
    let inside = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text);
    inside.parse().ok()
}

/// `/tcp`, `/udp` or `/sctp` at the end.
fn protocol_behind(text: &str) -> Option<(&str, Protocol)> {
    let (before, name) = text.rsplit_once('/')?;
    Protocol::ALL
        .into_iter()
        .find(|protocol| protocol.name().eq_ignore_ascii_case(name))
        .map(|protocol| (before, protocol))
}

impl FromStr for Destination {
    type Err = QuestionError;

    fn from_str(text: &str) -> Result<Self, QuestionError> {
        let (before, protocol) = match protocol_behind(text) {
            Some((before, protocol)) => (before, Some(protocol)),
            None => (text, None),
        };
        if let Ok(at) = before.parse::<SocketAddr>() {
            let at = SocketAddr::new(at.ip().to_canonical(), at.port());
            return Ok(Self::Address(at, protocol.unwrap_or(Protocol::Tcp)));
        }
        if let Some(ip) = bare(before) {
            let example = match ip {
                IpAddr::V4(ip) => format!("{ip}:80"),
                IpAddr::V6(ip) => format!("[{ip}]:80"),
            };
            return Err(QuestionError::NoPort(text.to_owned(), example));
        }
        let wrong = || QuestionError::Destination(text.to_owned());
        // A Service named "udp" is one, too.
        let (service, protocol) = if before.contains('/') {
            (before, protocol)
        } else {
            (text, None)
        };
        let (namespace, rest) = service.split_once('/').ok_or_else(wrong)?;
        let (name, port) = match rest.split_once(':') {
            Some((name, port)) => (name, Some(port.to_owned())),
            None => (rest, None),
        };
        let is_name = |text: &str| {
            !text.is_empty()
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.')
        };
        if !is_name(namespace) || !is_name(name) {
            return Err(wrong());
        }
        Ok(Self::Service {
            name: format!("{namespace}/{name}"),
            port,
            protocol,
        })
    }
}

impl Question {
    /// # Errors
    /// The ends are of different families.
    pub fn new(
        source: Source,
        destination: SocketAddr,
        protocol: Protocol,
    ) -> Result<Self, QuestionError> {
        if source.ip.is_ipv4() != destination.is_ipv4() {
            return Err(QuestionError::Families {
                source_ip: source.ip,
                destination,
            });
        }
        Ok(Self {
            protocol,
            source: SocketAddr::new(source.ip, source.port.unwrap_or(EPHEMERAL)),
            destination,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Result<String, QuestionError> {
        let Source { ip, port } = text.parse()?;
        Ok(format!("{ip} {port:?}"))
    }

    fn destination(text: &str) -> Result<Destination, QuestionError> {
        text.parse()
    }

    fn address(text: &str, protocol: Protocol) -> Destination {
        Destination::Address(text.parse().expect("an address"), protocol)
    }

    #[test]
    fn a_source_is_an_address_with_a_port_or_without() {
        for (text, wanted) in [
            ("10.0.1.5:40000", "10.0.1.5 Some(40000)"),
            ("10.0.1.5", "10.0.1.5 None"),
            ("[fd00::5]:1", "fd00::5 Some(1)"),
            ("[fd00::5]", "fd00::5 None"),
            ("fd00::5", "fd00::5 None"),
            // As an IPv6 socket shows it: on the wire it is IPv4.
            ("::ffff:10.0.1.5", "10.0.1.5 None"),
        ] {
            assert_eq!(source(text).as_deref(), Ok(wanted), "{text}");
        }
        for text in [
            "",
            "10.0.1",
            "10.0.1.5:",
            "10.0.1.5:70000",
            "web",
            "[fd00::5",
        ] {
            let error = source(text).expect_err(text).to_string();
            assert!(
                error.starts_with(&format!("\"{text}\" is no source")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_destination_is_an_address_and_a_protocol() {
        use Protocol::{Sctp, Tcp, Udp};
        for (text, wanted) in [
            ("10.96.0.10:53/udp", address("10.96.0.10:53", Udp)),
            ("10.96.0.10:80", address("10.96.0.10:80", Tcp)),
            ("10.96.0.10:80/TCP", address("10.96.0.10:80", Tcp)),
            ("[fd96::10]:80/sctp", address("[fd96::10]:80", Sctp)),
            ("[::ffff:10.96.0.10]:80", address("10.96.0.10:80", Tcp)),
        ] {
            assert_eq!(destination(text), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn a_destination_is_a_service_by_its_name() {
        let service = |name: &str, port: Option<&str>, protocol| Destination::Service {
            name: name.to_owned(),
            port: port.map(str::to_owned),
            protocol,
        };
        for (text, wanted) in [
            (
                "default/web:http",
                service("default/web", Some("http"), None),
            ),
            ("default/web", service("default/web", None, None)),
            (
                "kube-system/dns:53/udp",
                service("kube-system/dns", Some("53"), Some(Protocol::Udp)),
            ),
            ("default/udp", service("default/udp", None, None)),
        ] {
            assert_eq!(destination(text), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn what_can_not_be_dialled_is_told_in_one_line_with_what_to_write() {
        for (text, wanted) in [
            ("10.96.0.10", "has no port: write 10.96.0.10:80"),
            ("fd96::10/udp", "has no port: write [fd96::10]:80"),
            ("web", "is no destination"),
            ("10.96.0.10:80/icmp", "is no destination"),
            ("default/", "is no destination"),
            ("a b/c", "is no destination"),
        ] {
            let error = destination(text).expect_err(text).to_string();
            assert!(error.contains(wanted) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn both_ends_are_of_one_family() {
        let source: Source = "10.0.1.5".parse().expect("a source");
        let question = |to: &str| {
            Question::new(source, to.parse().expect("an address"), Protocol::Tcp)
                .map(|question| question.to_string())
        };
        assert_eq!(
            question("10.96.0.1:80").as_deref(),
            Ok("TCP 10.0.1.5:40000 -> 10.96.0.1:80")
        );
        let error = question("[fd96::1]:80").expect_err("two families");
        assert!(error.to_string().contains("different families"), "{error}");
    }
}
