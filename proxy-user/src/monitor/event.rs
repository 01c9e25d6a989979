//! A decision, in words.

use std::{fmt::Write as _, net::SocketAddr};

use anstyle::{AnsiColor, Style};
use k8s_openapi::jiff::{SignedDuration, Timestamp, tz::TimeZone};
use proxy_common::abi::{Counter, Kind, MonitorEvent, MonitorHook, Protocol, SockAddr};
use serde::Serialize;

/// What is known beside the record itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Context {
    /// `namespace/name:port` of its service.
    pub(crate) service: Option<String>,
    /// The name of the process.
    pub(crate) command: Option<String>,
    pub(crate) device: Option<String>,
}

/// One decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Told {
    pub(crate) time: Timestamp,
    /// `translated`, `continued`, `refused`, `dropped`, `passed` or `noted`.
    pub(crate) kind: &'static str,
    /// The counter that it was counted in.
    pub(crate) outcome: &'static str,
    pub(crate) meaning: &'static str,
    pub(crate) hook: &'static str,
    pub(crate) protocol: String,
    /// Of sockets: who called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) command: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) netns_cookie: Option<u64>,
    /// Of packets: where it was seen, and who sent it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) device: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) source: Option<SocketAddr>,
    /// What was dialled, or where the packet was going.
    pub(crate) destination: SocketAddr,
    /// `namespace/name:port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) service: Option<String>,
    /// What became of both, if anything was changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) new_source: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) new_destination: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) backend_id: Option<u32>,
}

/// An address, unless it stands for none.
fn some(at: SockAddr) -> Option<SocketAddr> {
    (at.addr.words != [0; 4] || at.port_be != 0).then(|| at.socket_addr())
}

impl Told {
    /// `now`: the moment that the monotonic clock says `now_ns`. `None`: a record of a later version.
    pub(crate) fn new(
        event: &MonitorEvent,
        context: Context,
        (now, now_ns): (Timestamp, u64),
    ) -> Option<Self> {
        let outcome = Counter::from_index(event.outcome.into())?;
        let hook = MonitorHook::from_number(event.hook)?;
        let ago = i64::try_from(now_ns.saturating_sub(event.at_ns)).ok()?;
        let time = now.checked_sub(SignedDuration::from_nanos(ago)).ok()?;
        let is_packet = matches!(hook, MonitorHook::Ingress | MonitorHook::Egress);
        // A source that is kept needs no saying.
        let new_source = some(event.new_src).filter(|_| event.new_src != event.src);
        Some(Self {
            time,
            kind: outcome.kind().name(),
            outcome: outcome.name(),
            meaning: outcome.meaning().trim(),
            hook: hook.name(),
            protocol: Protocol::from_number(event.protocol)
                .map_or_else(|| event.protocol.to_string(), |p| p.name().to_lowercase()),
            pid: (event.tgid != 0).then_some(event.tgid),
            command: context.command,
            netns_cookie: (event.netns != 0).then_some(event.netns),
            device: is_packet.then(|| {
                let index = || format!("index {}", event.ifindex);
                context.device.unwrap_or_else(index)
            }),
            source: some(event.src),
            destination: event.dst.socket_addr(),
            service: context.service,
            new_source,
            new_destination: some(event.new_dst).filter(|_| event.new_dst != event.dst),
            backend_id: (event.backend_id != 0).then_some(event.backend_id),
        })
    }

    /// All the addresses in it.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        [
            self.source,
            Some(self.destination),
            self.new_source,
            self.new_destination,
        ]
        .into_iter()
        .flatten()
    }

    fn style(&self) -> Style {
        let colour = |colour: AnsiColor| colour.on_default();
        match Kind::ALL.into_iter().find(|kind| kind.name() == self.kind) {
            Some(Kind::Translated) => colour(AnsiColor::Green),
            Some(Kind::Refused) => colour(AnsiColor::Yellow),
            Some(Kind::Dropped) => colour(AnsiColor::Red),
            Some(Kind::Continued | Kind::Passed | Kind::Noted) | None => Style::new(),
        }
    }

    /// Time, kind, hook, protocol, who, what was dialled and whose that is, and what became of it; the
    /// kind in its colour.
    pub(crate) fn line(&self) -> String {
        let time = self.time.to_zoned(TimeZone::UTC).strftime("%H:%M:%S%.6f");
        let style = self.style();
        let kind = format!("{style}{:<10}{style:#}", self.kind);
        let who = match (&self.device, self.source) {
            (Some(device), Some(source)) => format!("{device} {source}"),
            (Some(device), None) => device.clone(),
            (None, _) => match (&self.command, self.pid) {
                (Some(command), Some(pid)) => format!("{command}[{pid}]"),
                (None, Some(pid)) => format!("pid {pid}"),
                (_, None) => "?".to_owned(),
            },
        };
        let mut line = format!(
            "{time} {kind} {:<7} {:<4} {who:<24} {}",
            self.hook, self.protocol, self.destination
        );
        if let Some(service) = &self.service {
            let _string_is_infallible = write!(line, " {service}");
        }
        match (self.new_destination, self.new_source) {
            (Some(to), None) => {
                let _string_is_infallible = write!(line, " -> {to}");
            }
            (Some(to), Some(from)) => {
                let _string_is_infallible = write!(line, " -> {to} from {from}");
            }
            (None, Some(from)) => {
                let _string_is_infallible = write!(line, " from {from}");
            }
            (None, None) => {
                let _string_is_infallible = write!(line, " {}: {}", self.outcome, self.meaning);
            }
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::abi::Addr;

    use super::*;

    fn at(text: &str) -> SockAddr {
        let at: SocketAddr = text.parse().unwrap();
        SockAddr::from_parts(Addr::from(at.ip()), at.port().to_be())
    }

    fn none() -> SockAddr {
        SockAddr::from_parts(Addr::default(), 0)
    }

    fn event() -> MonitorEvent {
        MonitorEvent {
            at_ns: 1_000_000,
            netns: 7,
            src: none(),
            dst: at("10.96.0.10:80"),
            new_src: none(),
            new_dst: at("10.1.1.2:8080"),
            service: 3,
            backend_id: 4,
            tgid: 4711,
            ifindex: 0,
            outcome: u16::try_from(Counter::ConnectTranslated.index()).unwrap(),
            hook: MonitorHook::Connect as u8,
            protocol: 6,
            zero: 0,
        }
    }

    fn told(event: &MonitorEvent, command: Option<&str>) -> Told {
        let context = Context {
            service: Some("default/web:http".to_owned()),
            command: command.map(str::to_owned),
            device: (event.ifindex != 0).then(|| "eth0".to_owned()),
        };
        let now: Timestamp = "2026-11-22T12:00:00.5Z".parse().unwrap();
        Told::new(event, context, (now, 3_000_000)).unwrap()
    }

    fn plain(told: &Told) -> String {
        anstream::adapter::strip_str(&told.line()).to_string()
    }

    #[test]
    fn a_translated_connection_is_a_line_with_who_what_and_where_to() {
        assert_eq!(
            plain(&told(&event(), Some("curl"))),
            "12:00:00.498000 translated connect tcp  curl[4711]               10.96.0.10:80 default/web:http -> 10.1.1.2:8080"
        );
        assert!(plain(&told(&event(), None)).contains("pid 4711"));
    }

    #[test]
    fn a_refused_one_says_why() {
        let event = MonitorEvent {
            new_dst: none(),
            backend_id: 0,
            outcome: u16::try_from(Counter::ConnectRefused.index()).unwrap(),
            ..event()
        };
        let told = told(&event, None);
        assert!(
            plain(&told).ends_with(
                "default/web:http connect_refused: connect() to a Service without endpoints, answered with ECONNREFUSED."
            ),
            "{}",
            plain(&told)
        );
        assert_eq!(
            (told.kind, told.new_destination, told.backend_id),
            ("refused", None, None)
        );
    }

    #[test]
    fn a_packet_has_a_device_a_source_and_what_both_become() {
        let event = MonitorEvent {
            src: at("[fd50::9]:40000"),
            dst: at("[fd50::1]:30080"),
            new_src: at("[fd50::1]:10000"),
            new_dst: at("[fd10::2]:8080"),
            tgid: 0,
            netns: 0,
            ifindex: 2,
            hook: MonitorHook::Ingress as u8,
            outcome: u16::try_from(Counter::PacketNewFlow.index()).unwrap(),
            ..event()
        };
        let line = plain(&told(&event, None));
        assert!(
            line.ends_with("eth0 [fd50::9]:40000     [fd50::1]:30080 default/web:http -> [fd10::2]:8080 from [fd50::1]:10000"),
            "{line}"
        );
        let kept = MonitorEvent {
            new_src: event.src,
            ..event
        };
        assert!(!plain(&told(&kept, None)).contains(" from "));
    }

    #[test]
    fn json_says_the_same_and_leaves_out_what_there_is_not() {
        let json = serde_json::to_value(told(&event(), Some("curl"))).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "time": "2026-11-22T12:00:00.498Z",
                "kind": "translated",
                "outcome": "connect_translated",
                "meaning": "connect() to a frontend, sent to a backend.",
                "hook": "connect",
                "protocol": "tcp",
                "pid": 4711,
                "command": "curl",
                "netns_cookie": 7,
                "destination": "10.96.0.10:80",
                "service": "default/web:http",
                "new_destination": "10.1.1.2:8080",
                "backend_id": 4,
            })
        );
    }

    #[test]
    fn a_record_of_a_later_version_is_left_out() {
        let later = MonitorEvent {
            outcome: 999,
            ..event()
        };
        let now = (Timestamp::UNIX_EPOCH, 0);
        assert_eq!(Told::new(&later, Context::default(), now), None);
    }
}
