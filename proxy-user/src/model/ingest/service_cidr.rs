//! ServiceCIDRs (`OnServiceCIDRsChanged` in `pkg/proxy/nftables/proxier.go`).

use k8s_openapi::{
    api::networking::v1 as networking, apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{Ingested, Problems, Reason, address, object_name};
use crate::model::Event;

const KIND: &str = "ServiceCIDR";

/// What is dialled in these ranges and is not a ClusterIP is dropped, so a bad value is left out.
pub fn service_cidr(cidr: networking::ServiceCIDR) -> Ingested {
    let name = match object_name(KIND, &cidr.metadata) {
        Ok(name) => name.name,
        Err(problem) => return problem.into(),
    };
    let mut problems = Problems::of(KIND, &name);
    let mut nets = Vec::new();
    let texts = cidr.spec.and_then(|spec| spec.cidrs).unwrap_or_default();
    for (i, text) in texts.iter().enumerate() {
        let net = address::range(text).and_then(|net| {
            if net.prefix_len() == 0 {
                Err(Reason::EveryAddress(net))
            } else {
                Ok(net)
            }
        });
        nets.extend(problems.keep(format!("spec.cidrs[{i}]"), net));
    }
    Ingested {
        event: Some(Event::ServiceCidrApplied(name, nets)),
        problems: problems.found,
    }
}

/// What a deleted one becomes; `None` if it has no name.
pub fn service_cidr_gone(meta: &ObjectMeta) -> Option<Event> {
    object_name(KIND, meta)
        .ok()
        .map(|name| Event::ServiceCidrGone(name.name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn its_ranges_are_kept_and_only_the_bad_one_is_dropped() {
        let object = json!({"metadata": {"name": "kubernetes"}, "spec": {
            "cidrs": ["10.96.0.0/12", "fd96::/x", "::/0", "fd96::/108"],
        }});
        let ingested = service_cidr(serde_json::from_value(object).expect("a ServiceCIDR"));
        let nets = ["10.96.0.0/12", "fd96::/108"].map(|net| net.parse().expect("a range"));
        assert_eq!(
            ingested.event,
            Some(Event::ServiceCidrApplied("kubernetes".into(), nets.into()))
        );
        let lines: Vec<String> = ingested.problems.iter().map(ToString::to_string).collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("ServiceCIDR kubernetes: spec.cidrs[1]: \"fd96::/x\" is not"));
        assert!(lines[1].contains("spec.cidrs[2]: ::/0 is every address"));
    }
}
