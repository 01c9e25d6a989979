//! EndpointSlices.

use std::fmt::Write as _;

use super::yaml::{list, metadata};

/// Builds the YAML of an EndpointSlice.
#[derive(Debug, Clone)]
pub struct EndpointSlice {
    pub(super) name: String,
    pub(super) namespace: String,
    service: String,
    family: &'static str,
    ports: Vec<String>,
    endpoints: Vec<String>,
}

impl EndpointSlice {
    /// A slice of IPv4 endpoints of a Service in namespace `default`.
    pub fn v4(service: &str, name: &str) -> Self {
        Self::new(service, name, "IPv4")
    }

    /// A slice of IPv6 endpoints.
    pub fn v6(service: &str, name: &str) -> Self {
        Self::new(service, name, "IPv6")
    }

    fn new(service: &str, name: &str, family: &'static str) -> Self {
        Self {
            name: name.into(),
            namespace: "default".into(),
            service: service.into(),
            family,
            ports: Vec::new(),
            endpoints: Vec::new(),
        }
    }

    /// Its namespace.
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// A TCP port of all its endpoints, under the Service port's name.
    pub fn tcp(self, name: &str, port: u16) -> Self {
        self.port(name, "TCP", port)
    }

    /// A UDP port of all its endpoints.
    pub fn udp(self, name: &str, port: u16) -> Self {
        self.port(name, "UDP", port)
    }

    /// Any port of all its endpoints.
    pub fn port(mut self, name: &str, protocol: &str, port: u16) -> Self {
        self.ports.push(format!(
            "{{name: \"{name}\", protocol: {protocol}, port: {port}}}"
        ));
        self
    }

    /// A ready endpoint on a node.
    pub fn ready(self, address: impl ToString, node: &str) -> Self {
        self.endpoint(address, node, true, true, false)
    }

    /// An endpoint on a node in a given condition: ready, serving, terminating.
    pub fn endpoint(
        mut self,
        address: impl ToString,
        node: &str,
        ready: bool,
        serving: bool,
        terminating: bool,
    ) -> Self {
        self.endpoints.push(format!(
            "{{addresses: [\"{}\"], nodeName: {node}, conditions: {{ready: {ready}, \
             serving: {serving}, terminating: {terminating}}}}}",
            address.to_string()
        ));
        self
    }

    /// An endpoint in YAML of one's own: `{addresses: ["10.1.1.2"], zone: a}`.
    pub fn raw_endpoint(mut self, flow: &str) -> Self {
        self.endpoints.push(flow.into());
        self
    }

    /// The YAML document.
    pub fn yaml(&self) -> String {
        let labels = [(
            "kubernetes.io/service-name".to_owned(),
            self.service.clone(),
        )];
        let mut yaml = metadata(
            "discovery.k8s.io/v1",
            "EndpointSlice",
            &self.name,
            &self.namespace,
            &labels,
        );
        let _ = writeln!(yaml, "addressType: {}", self.family);
        list(&mut yaml, "", "ports", &self.ports);
        list(&mut yaml, "", "endpoints", &self.endpoints);
        yaml
    }
}
