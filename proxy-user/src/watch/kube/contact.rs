//! Whether what the node has is what the API server has: one line when it begins to be not so, seldom ones
//! while it lasts, and one when it is over.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// Between two lines of one outage.
const REMIND: Duration = Duration::from_secs(600);
/// What fails again so soon was not over.
const FORGET: Duration = Duration::from_secs(60);

/// The kinds that are followed, and the server they come from. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Contact(Arc<Mutex<State>>);

/// What `kube-portal status` is told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freshness {
    /// The URL of the API server that answered last, or is to be asked first.
    pub server: String,
    /// For how long what the node has may be out of date; absent while it is not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stale_secs: Option<u64>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
}

#[derive(Debug)]
struct State {
    server: String,
    /// No server answers.
    silent: Option<Outage>,
    /// By plural, those that were refused.
    refused: BTreeMap<&'static str, Outage>,
    /// Those that can't be followed, for want of any answer or by the answer they got, since when.
    stale: BTreeMap<&'static str, Instant>,
    /// Those that could be again: since when they couldn't, and until when.
    was_stale: BTreeMap<&'static str, (Instant, Instant)>,
}

#[derive(Debug)]
struct Outage {
    since: Instant,
    told: Instant,
    reason: String,
    over: Option<Instant>,
    /// It seemed to be over before; nothing more is said of that.
    flaps: bool,
}

impl Outage {
    /// One more failure. Whether it is time to tell, and then for how long it goes on.
    fn again(known: &mut Option<Self>, reason: &str, now: Instant) -> Option<Option<Duration>> {
        let forgotten = |over: Instant| now.saturating_duration_since(over) >= FORGET;
        let Some(outage) = known
            .as_mut()
            .filter(|known| !known.over.is_some_and(forgotten))
        else {
            *known = Some(Self {
                since: now,
                told: now,
                reason: reason.to_owned(),
                over: None,
                flaps: false,
            });
            return Some(None);
        };
        reason.clone_into(&mut outage.reason);
        outage.flaps |= outage.over.take().is_some();
        if now.saturating_duration_since(outage.told) < REMIND {
            return None;
        }
        outage.told = now;
        Some(Some(now.saturating_duration_since(outage.since)))
    }

    fn lasts(&self) -> bool {
        self.over.is_none()
    }

    /// It seems to be over. How long it took, if that is to be told.
    fn ends(&mut self, now: Instant) -> Option<String> {
        let first = self.over.is_none() && !self.flaps;
        self.over.get_or_insert(now);
        first.then(|| span(now.saturating_duration_since(self.since)))
    }
}

/// A line for the log.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    Warn(String),
    Info(String),
    Debug(String),
}

impl Line {
    pub(super) fn tell(self) {
        match self {
            Self::Warn(line) => log::warn!("{line}"),
            Self::Info(line) => log::info!("{line}"),
            Self::Debug(line) => log::debug!("{line}"),
        }
    }
}

/// A failure to follow a kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failure<'a> {
    /// As the API names its objects: `Service`.
    pub(super) what: &'static str,
    pub(super) plural: &'static str,
    /// A server has said so.
    pub(super) answered: bool,
    pub(super) reason: &'a str,
    pub(super) remedy: &'static str,
}

impl Contact {
    pub(crate) fn new(server: String) -> Self {
        Self(Arc::new(Mutex::new(State {
            server,
            silent: None,
            refused: BTreeMap::new(),
            stale: BTreeMap::new(),
            was_stale: BTreeMap::new(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This server answers. Whether it is another one than before.
    pub(super) fn moved(&self, server: &str) -> bool {
        let mut state = self.state();
        let moved = state.server != server;
        if moved {
            server.clone_into(&mut state.server);
        }
        moved
    }

    pub(super) fn failed(&self, failure: Failure<'_>, now: Instant) -> Line {
        let Failure {
            what,
            plural,
            answered,
            reason,
            remedy,
        } = failure;
        let mut state = self.state();
        let server = state.server.clone();
        state.stale.entry(plural).or_insert(now);
        // A server that comes up refuses everybody until it has read its roles: that is the same outage.
        let silent = state.silent.as_ref().is_some_and(Outage::lasts);
        let (subject, told) = if answered && !silent {
            let mut own = state.refused.remove(plural);
            let told = Outage::again(&mut own, reason, now);
            state.refused.extend(own.map(|own| (plural, own)));
            (format!("{what} watch"), told)
        } else {
            let told = Outage::again(&mut state.silent, reason, now);
            (format!("API server {server}"), told)
        };
        match told {
            Some(None) => Line::Warn(format!(
                "{subject}: {reason}; the last known state is kept, trying again; {remedy}"
            )),
            Some(Some(lasted)) => Line::Warn(format!(
                "{subject}: for {} now: {reason}; the last known state is kept, trying again; {remedy}",
                span(lasted)
            )),
            None => Line::Debug(format!("{what} watch: {reason}")),
        }
    }

    /// What happened to a kind can't be learned but by a list. A server says so after it has granted the
    /// watch, so nothing was over by that.
    pub(super) fn missed(&self, plural: &'static str, now: Instant) {
        let mut state = self.state();
        let was = state.was_stale.remove(plural);
        let since = was.filter(|(_, over)| now.saturating_duration_since(*over) < FORGET);
        let since = since.map_or(now, |(since, _)| since);
        state.stale.entry(plural).or_insert(since);
    }

    /// A kind is followed. Yields the lines of what is over by that.
    pub(super) fn answered(&self, plural: &str, now: Instant) -> Vec<Line> {
        let mut state = self.state();
        if let Some((plural, since)) = state.stale.remove_entry(plural) {
            state.was_stale.insert(plural, (since, now));
        }
        let mut lines = Vec::new();
        if let Some(lasted) = state.silent.as_mut().and_then(|outage| outage.ends(now)) {
            lines.push(Line::Info(format!(
                "API server {}: it answers again, after {lasted}",
                state.server,
            )));
        }
        let refused = state.refused.get_mut(plural);
        if let Some(lasted) = refused.and_then(|outage| outage.ends(now)) {
            lines.push(Line::Info(format!(
                "{plural}: they can be followed again, after {lasted}",
            )));
        }
        lines
    }

    /// There is nothing to follow.
    pub(super) fn without(&self, plural: &str) {
        let mut state = self.state();
        state.stale.remove(plural);
        state.refused.remove(plural);
    }

    /// For how long what the node has may be out of date.
    pub fn stale(&self) -> Option<Duration> {
        self.state().stale(Instant::now())
    }

    pub fn freshness(&self) -> Freshness {
        self.state().freshness(Instant::now())
    }
}

impl State {
    fn stale(&self, now: Instant) -> Option<Duration> {
        let first = self.stale.values().min()?;
        Some(now.saturating_duration_since(*first))
    }

    fn freshness(&self, now: Instant) -> Freshness {
        let stale = self.stale(now);
        let silent = self.silent.as_ref().filter(|outage| outage.lasts());
        let reasons = self.stale.keys().filter_map(|plural| {
            match self.refused.get(plural).filter(|outage| outage.lasts()) {
                Some(outage) => Some(format!("{plural}: {}", outage.reason)),
                None if silent.is_none() => Some(format!("{plural}: not listed yet")),
                None => None,
            }
        });
        let silence = silent.map(|outage| outage.reason.clone());
        let reasons: Vec<String> = silence.into_iter().chain(reasons).collect();
        Freshness {
            server: self.server.clone(),
            stale_secs: stale.map(|stale| stale.as_secs()),
            reason: stale.map(|_| reasons.join("; ")),
        }
    }
}

/// How long, for people.
pub(crate) fn span(lasted: Duration) -> String {
    match lasted.as_secs() {
        secs @ 0..120 => format!("{secs} s"),
        secs @ 120..7200 => format!("{} min", secs / 60),
        secs => format!("{} h", secs / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: &str = "https://a";

    fn failure(plural: &'static str, answered: bool) -> Failure<'static> {
        Failure {
            what: if plural == "services" {
                "Service"
            } else {
                "EndpointSlice"
            },
            plural,
            answered,
            reason: if answered { "forbidden" } else { "refused" },
            remedy: "do something",
        }
    }

    #[test]
    fn an_outage_of_all_is_told_once_then_seldom_and_its_end_once() {
        let contact = Contact::new(SERVER.into());
        assert_eq!(contact.stale(), None);
        let mut warned = Vec::new();
        let start = Instant::now();
        for second in 0..1300 {
            let now = start + Duration::from_secs(second);
            for plural in ["services", "endpointslices"] {
                if let Line::Warn(line) = contact.failed(failure(plural, false), now) {
                    warned.push((second, line));
                }
            }
        }
        let rest = "refused; the last known state is kept, trying again; do something";
        assert_eq!(
            warned,
            [
                (0, format!("API server https://a: {rest}")),
                (600, format!("API server https://a: for 10 min now: {rest}")),
                (
                    1200,
                    format!("API server https://a: for 20 min now: {rest}")
                ),
            ]
        );
        let now = start + Duration::from_secs(1300);
        assert_eq!(
            contact.state().freshness(now),
            Freshness {
                server: SERVER.into(),
                stale_secs: Some(1300),
                reason: Some("refused".into())
            }
        );
        assert_eq!(
            contact.answered("services", now),
            [Line::Info(
                "API server https://a: it answers again, after 21 min".into()
            )]
        );
        // The other kind may be out of date still.
        assert_eq!(
            contact.state().freshness(now),
            Freshness {
                server: SERVER.into(),
                stale_secs: Some(1300),
                reason: Some("endpointslices: not listed yet".into())
            }
        );
        assert_eq!(contact.answered("endpointslices", now), []);
        assert_eq!(contact.stale(), None);
        assert_eq!(contact.freshness().reason, None);
    }

    #[test]
    fn a_kind_that_is_refused_is_told_for_itself() {
        let contact = Contact::new(SERVER.into());
        let now = Instant::now();
        let Line::Warn(line) = contact.failed(failure("endpointslices", true), now) else {
            panic!("not told");
        };
        assert!(
            line.starts_with("EndpointSlice watch: forbidden; "),
            "{line}"
        );
        assert_eq!(contact.answered("services", now), []);
        assert!(contact.stale().is_some());
        assert_eq!(
            contact.freshness().reason.as_deref(),
            Some("endpointslices: forbidden")
        );
        let over = now + Duration::from_secs(7);
        assert_eq!(
            contact.answered("endpointslices", over),
            [Line::Info(
                "endpointslices: they can be followed again, after 7 s".into()
            )]
        );
        contact.failed(failure("services", true), over);
        contact.without("services");
        assert_eq!(contact.stale(), None);
    }

    #[test]
    fn a_watch_that_is_granted_only_to_be_told_that_it_is_too_late_ends_nothing() {
        let contact = Contact::new(SERVER.into());
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let stale = |secs| contact.state().stale(at(secs)).map(|age| age.as_secs());
        contact.failed(failure("services", false), at(0));
        contact.answered("services", at(10));
        assert_eq!(stale(10), None);
        contact.missed("services", at(11));
        assert_eq!(stale(12), Some(12));
        contact.answered("services", at(13));
        assert_eq!(stale(13), None);
        contact.missed("services", at(100));
        assert_eq!(stale(101), Some(1));
    }

    #[test]
    fn what_a_server_refuses_before_it_has_granted_anything_belongs_to_its_outage() {
        let contact = Contact::new(SERVER.into());
        let now = Instant::now();
        assert!(matches!(
            contact.failed(failure("services", false), now),
            Line::Warn(_)
        ));
        assert!(matches!(
            contact.failed(failure("services", true), now),
            Line::Debug(_)
        ));
        assert_eq!(contact.freshness().reason.as_deref(), Some("forbidden"));
        assert_eq!(contact.answered("endpointslices", now).len(), 1);
        assert!(matches!(
            contact.failed(failure("services", true), now),
            Line::Warn(_)
        ));
    }

    #[test]
    fn what_comes_and_goes_is_one_outage() {
        let contact = Contact::new(SERVER.into());
        let start = Instant::now();
        let mut told = Vec::new();
        for round in 0..25 {
            let now = start + Duration::from_secs(round * 30);
            let failed = contact.failed(failure("services", true), now);
            let lines = contact.answered("services", now + Duration::from_secs(1));
            for line in [failed].into_iter().chain(lines) {
                if !matches!(line, Line::Debug(_)) {
                    told.push((round, matches!(line, Line::Warn(_))));
                }
            }
        }
        assert_eq!(told, [(0, true), (0, false), (20, true)]);
        let later = start + Duration::from_secs(1000);
        assert!(matches!(
            contact.failed(failure("services", true), later),
            Line::Warn(line) if !line.contains("now:")
        ));
    }
}
