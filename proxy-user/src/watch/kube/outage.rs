//! What an error means.

use std::error::Error;

use kube::{core::Status, runtime::watcher};

use super::connection::Silence;

/// 410 Gone, as the status of a response or as an event in the stream.
pub(super) fn is_gone(error: &watcher::Error) -> bool {
    api_code(error) == Some(410)
}

fn api_code(error: &watcher::Error) -> Option<u16> {
    api_status(error).map(|status| status.code)
}

fn api_status(error: &watcher::Error) -> Option<&Status> {
    match error {
        watcher::Error::WatchError(status)
        | watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => Some(status),
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => None,
    }
}

/// Whether a server was asked, and said nothing.
pub(super) fn is_silence(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Service(error))
        | watcher::Error::WatchStartFailed(kube::Error::Service(error)) => error.is::<Silence>(),
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::WatchError(_)
        | watcher::Error::NoResourceVersion => false,
    }
}

/// Whether a server has said so.
pub(super) fn is_answer(error: &watcher::Error) -> bool {
    api_code(error).is_some()
}

/// Why the kind is not served, if it isn't: to nobody (by an old server), or not to us.
pub(super) fn withheld(error: &watcher::Error) -> Option<&'static str> {
    match api_code(error)? {
        403 => Some("the ClusterRole does not grant list and watch"),
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

pub(super) fn remedy(error: &watcher::Error) -> &'static str {
    match api_code(error) {
        Some(401) => "check the credentials of the kubeconfig or service account",
        Some(403) => "grant list and watch in the ClusterRole",
        Some(_) => "see the API server's log",
        None => "is the API server up, and its address right?",
    }
}

/// What went wrong, on one line. kube would show all fields of an API's answer.
pub(super) fn reason(error: &watcher::Error) -> String {
    match api_status(error) {
        Some(status) => {
            let text = format!("{} {}: {}", status.code, status.reason, status.message);
            text.replace(['\n', '\r'], " ")
        }
        None => chain(error),
    }
}

/// An error with its causes, on one line, none said twice.
pub(crate) fn chain(error: &dyn Error) -> String {
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
