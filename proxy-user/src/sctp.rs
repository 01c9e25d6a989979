//! SCTP Service ports have fewer clients than others: no cgroup program sees an SCTP socket that dials
//! (docs/SOCKET-PATH.md). Says so, once for each port.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proxy_common::abi::Protocol;

use crate::model::{Event, ObjectName};

#[derive(Debug)]
pub(crate) struct SctpPorts {
    /// Whether `--pod-devices` names any.
    has_pod_devices: bool,
    /// The names of the ports that were told.
    told: BTreeMap<ObjectName, BTreeSet<Arc<str>>>,
}

impl SctpPorts {
    pub(crate) fn new(has_pod_devices: bool) -> Self {
        Self {
            has_pod_devices,
            told: BTreeMap::new(),
        }
    }

    /// One line for each port that is new.
    pub(crate) fn received(&mut self, event: &Event) -> Vec<String> {
        match event {
            Event::ServiceApplied(service) => {
                let ports: BTreeSet<Arc<str>> = service
                    .ports
                    .iter()
                    .filter(|port| port.protocol == Protocol::Sctp)
                    .map(|port| port.name.clone())
                    .collect();
                if ports.is_empty() {
                    self.told.remove(&service.name);
                    return Vec::new();
                }
                let told = self
                    .told
                    .insert(service.name.clone(), ports.clone())
                    .unwrap_or_default();
                ports
                    .difference(&told)
                    .map(|port| self.line(&service.name, port))
                    .collect()
            }
            Event::ServiceGone(name) => {
                self.told.remove(name);
                Vec::new()
            }
            Event::ListStarted(_)
            | Event::Listed(_)
            | Event::SliceApplied(_)
            | Event::SliceGone(_)
            | Event::NodeChanged(_)
            | Event::ServiceCidrApplied(..)
            | Event::ServiceCidrGone(_)
            | Event::LocalAddresses(_) => Vec::new(),
        }
    }

    fn line(&self, service: &ObjectName, port: &str) -> String {
        let pods = if self.has_pod_devices {
            "pods reach it by the devices that --pod-devices names"
        } else {
            "pods do not, as --pod-devices names no devices of theirs"
        };
        format!(
            "Service {service}:{port} is SCTP: clients outside reach it, {pods}; processes of this node do \
             not (no cgroup program sees SCTP sockets dial: docs/SOCKET-PATH.md)"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Service, ServicePort, TrafficPolicy};

    fn applied(ports: &[(&str, Protocol)]) -> Event {
        let ports = ports.iter().map(|(name, protocol)| ServicePort {
            name: (*name).into(),
            protocol: *protocol,
            port: 80.try_into().unwrap(),
            node_port: None,
        });
        Event::ServiceApplied(Service {
            name: ObjectName::new("core", "amf"),
            created_secs: 0,
            cluster_ips: Vec::new(),
            external_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
            source_ranges: BTreeMap::new(),
            ports: ports.collect(),
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            affinity_timeout_secs: None,
            health_check: None,
            balancing: Default::default(),
        })
    }

    fn told(ports: &mut SctpPorts, event: &Event) -> Vec<String> {
        let lines = ports.received(event);
        let name = |line: &String| line.split(' ').nth(1).unwrap_or_default().to_owned();
        lines.iter().map(name).collect()
    }

    #[test]
    fn each_sctp_port_is_told_of_once_and_no_other() {
        let mut ports = SctpPorts::new(false);
        let one = applied(&[
            ("n2", Protocol::Sctp),
            ("web", Protocol::Tcp),
            ("dns", Protocol::Udp),
        ]);
        assert_eq!(told(&mut ports, &one), ["core/amf:n2"]);
        assert_eq!(told(&mut ports, &one), [""; 0]);
        let two = applied(&[("n2", Protocol::Sctp), ("s1", Protocol::Sctp)]);
        assert_eq!(told(&mut ports, &two), ["core/amf:s1"]);
        assert_eq!(
            told(&mut ports, &applied(&[("n2", Protocol::Tcp)])),
            [""; 0]
        );
        assert_eq!(told(&mut ports, &one), ["core/amf:n2"]);
    }

    #[test]
    fn a_service_that_was_made_anew_is_told_of_again() {
        let mut ports = SctpPorts::new(false);
        let service = applied(&[("n2", Protocol::Sctp)]);
        assert_eq!(told(&mut ports, &service).len(), 1);
        let gone = Event::ServiceGone(ObjectName::new("core", "amf"));
        assert_eq!(told(&mut ports, &gone), [""; 0]);
        assert_eq!(told(&mut ports, &service).len(), 1);
    }

    #[test]
    fn the_line_says_who_reaches_it_with_and_without_devices_of_pods() {
        let service = applied(&[("n2", Protocol::Sctp)]);
        let line = |has_pod_devices| SctpPorts::new(has_pod_devices).received(&service).remove(0);
        assert!(line(false).contains("pods do not, as --pod-devices names no devices"));
        assert!(line(true).contains("pods reach it by the devices that --pod-devices names"));
        for line in [line(false), line(true)] {
            assert!(line.contains("processes of this node do not"), "{line}");
        }
    }
}
