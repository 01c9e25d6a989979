//! What /metrics/slis shows: health checks that this server was asked for, as every component of Kubernetes
//! has it (`component-base/metrics/prometheus/slis`). kube-proxy has one there, which never fails: `ping`,
//! asked for by /healthz of the same server.

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::text::{self, Format};
use crate::server::Answer;

type Check = [(&'static str, &'static str); 2];
type Result = [(&'static str, &'static str); 3];

#[derive(Debug)]
pub(crate) struct Slis {
    registry: Registry,
    last: Family<Check, Gauge>,
    all: Family<Result, Counter>,
}

impl Slis {
    pub(crate) fn new() -> Self {
        let (last, all) = (Family::default(), Family::default());
        let mut registry = Registry::default();
        registry.register(
            "kubernetes_healthcheck",
            "What a health check last said: 1 for success",
            Family::clone(&last),
        );
        registry.register(
            "kubernetes_healthchecks",
            "What health checks have said",
            Family::clone(&all),
        );
        Self {
            registry,
            last,
            all,
        }
    }

    /// /healthz was answered, which it always is.
    pub(crate) fn pinged(&self) {
        let check = [("name", "ping"), ("type", "healthz")];
        self.last.get_or_create(&check).set(1);
        let result = [("name", "ping"), ("type", "healthz"), ("status", "success")];
        self.all.get_or_create(&result).inc();
    }

    pub(crate) fn answer(&self, accept: &str) -> Answer {
        text::answer(&self.registry, Format::wanted(accept))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_shown_before_it_was_asked_for() {
        let slis = Slis::new();
        assert_eq!(slis.answer("").body, "");
        slis.pinged();
        slis.pinged();
        let body = slis.answer("").body;
        let samples: Vec<&str> = body.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            samples,
            [
                "kubernetes_healthcheck{name=\"ping\",type=\"healthz\"} 1",
                "kubernetes_healthchecks_total{name=\"ping\",type=\"healthz\",status=\"success\"} 2"
            ]
        );
    }
}
