//! Pure: what a healthCheckNodePort answers. `pkg/proxy/healthcheck/service_health.go`.

use hyper::StatusCode;

use crate::{
    model::ObjectName,
    server::{Answer, JSON},
};

/// Weighs this node for load balancers that ask for it.
const WEIGHT: &str = "X-Load-Balancing-Endpoint-Weight";

pub(super) fn answer(service: &ObjectName, local_endpoints: usize, proxy_healthy: bool) -> Answer {
    let ObjectName { namespace, name } = service;
    // Names have no characters that JSON would escape (`model::ingest`).
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\
         \t\"localEndpoints\": {local_endpoints},\n\t\"serviceProxyHealthy\": {proxy_healthy}\n}}"
    );
    Answer {
        status: if local_endpoints != 0 && proxy_healthy {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        },
        more: Some((WEIGHT, local_endpoints.to_string())),
        ..Answer::ok(JSON, body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn l6_the_answer_is_that_of_kube_proxy() {
        let said = |count, healthy| answer(&ObjectName::new("ns", "svc"), count, healthy);
        let good = said(1, true);
        assert_eq!(good.status, StatusCode::OK);
        assert_eq!(good.content_type, "application/json");
        assert_eq!(good.more, Some((WEIGHT, "1".into())));
        assert_eq!(
            good.body,
            "{\n\t\"service\": {\n\t\t\"namespace\": \"ns\",\n\t\t\"name\": \"svc\"\n\t},\n\
             \t\"localEndpoints\": 1,\n\t\"serviceProxyHealthy\": true\n}"
        );
        assert_eq!(said(0, true).status, StatusCode::SERVICE_UNAVAILABLE);
        let unhealthy = said(3, false);
        assert_eq!(unhealthy.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(unhealthy.more, Some((WEIGHT, "3".into())));
        assert!(unhealthy.body.contains("\"serviceProxyHealthy\": false"));
    }
}
