//! What to say of errors: one line when an outage begins, one when it is over.

use std::{error::Error, time::Duration};

use kube::runtime::watcher;
use tokio::time::Instant;

/// Errors further apart are different outages. A watch that was resumed says nothing until an object
/// changes, so its recovery may go unnoticed; within one outage errors are never that far apart.
const FORGET: Duration = Duration::from_secs(300);

#[derive(Debug)]
pub(super) struct Outage {
    what: &'static str,
    /// First and last error.
    span: Option<(Instant, Instant)>,
}

impl Outage {
    pub(super) fn new(what: &'static str) -> Self {
        Self { what, span: None }
    }

    pub(super) fn error(&mut self, error: &watcher::Error, now: Instant) {
        if is_gone(error) {
            // The ordinary way of the API to say that a watch was away for too long.
            log::info!(
                "{} watch: the server's history does not go back that far, listing again",
                self.what
            );
            return;
        }
        self.say(&chain(error), remedy(error), now);
    }

    pub(super) fn hangs(&mut self, after: Duration, now: Instant) {
        let reason = format!("no answer to a list within {} s", after.as_secs());
        self.say(&reason, "is the API server overloaded?", now);
    }

    fn say(&mut self, reason: &str, remedy: &str, now: Instant) {
        if self.goes_on(now) {
            log::debug!("{} watch: {reason}", self.what);
        } else {
            log::warn!(
                "{} watch: {reason}; the last known state is kept, trying again; {remedy}",
                self.what
            );
        }
    }

    /// Notes an error; whether it belongs to an outage that is already known.
    fn goes_on(&mut self, now: Instant) -> bool {
        let known = self
            .span
            .filter(|(_, last)| now.duration_since(*last) < FORGET);
        self.span = Some((known.map_or(now, |(first, _)| first), now));
        known.is_some()
    }

    pub(super) fn over(&mut self, now: Instant) {
        if let Some((first, last)) = self.span.take()
            && now.duration_since(last) < FORGET
        {
            let secs = now.duration_since(first).as_secs();
            log::info!("{} watch: it works again after {secs} s", self.what);
        }
    }
}

/// 410 Gone, as the status of a response or as an event in the stream.
fn is_gone(error: &watcher::Error) -> bool {
    api_code(error) == Some(410)
}

fn api_code(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::WatchError(status) => Some(status.code),
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => Some(status.code),
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => None,
    }
}

/// Whether a server has said so.
pub(super) fn is_answer(error: &watcher::Error) -> bool {
    api_code(error).is_some()
}

/// Why the kind is not served, if it isn't: to nobody (by an old server), or not to us.
pub(super) fn withheld(error: &watcher::Error) -> Option<&'static str> {
    match api_code(error)? {
        403 => Some("the ClusterRole does not grant get, list and watch"),
        404 => Some("this API server has no such kind"),
        _ => None,
    }
}

/// Where kube's watcher would go on from a version that leads nowhere: it resumes for ever after an
/// HTTP 410, and passes over an event that it could not read (which it may take for a status).
pub(super) fn needs_list(error: &watcher::Error) -> bool {
    let unreadable = matches!(
        error,
        watcher::Error::WatchFailed(kube::Error::SerdeError(_) | kube::Error::Api(_))
    );
    is_gone(error) || unreadable
}

fn remedy(error: &watcher::Error) -> &'static str {
    match api_code(error) {
        Some(401) => "check the credentials of the kubeconfig or service account",
        Some(403) => "grant get, list and watch in the ClusterRole",
        Some(_) => "see the API server's log",
        None => "is the API server up, and its address right?",
    }
}

/// An error with its causes, on one line, none said twice.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_said_once_and_forgotten_after_a_while() {
        let mut outage = Outage::new("Service");
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        assert!(!outage.goes_on(at(0)));
        assert!(outage.goes_on(at(30)));
        assert!(outage.goes_on(at(300)));
        assert!(!outage.goes_on(at(900)));
        outage.over(at(901));
        assert!(!outage.goes_on(at(902)));
    }
}
