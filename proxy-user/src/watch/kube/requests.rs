//! How often API servers were asked, and what they answered.

use hyper::{Method, StatusCode};
use prometheus_client::metrics::{counter::Counter, family::Family};

/// Code, host and method, named as client-go names them.
pub(crate) type Labels = [(&'static str, String); 3];

/// Clones are the same counters.
#[derive(Clone, Debug, Default)]
pub struct Requests(Family<Labels, Counter>);

impl Requests {
    /// `None`: there was no answer.
    pub(crate) fn count(&self, status: Option<StatusCode>, host: &str, method: &Method) {
        let code = status.map_or("<error>".to_owned(), |status| status.as_str().to_owned());
        let labels = [
            ("code", code),
            ("host", host.to_owned()),
            ("method", method.to_string()),
        ];
        self.0.get_or_create(&labels).inc();
    }

    /// To be registered as a metric.
    pub(crate) fn family(&self) -> Family<Labels, Counter> {
        self.0.clone()
    }
}
