//! Services.

use std::fmt::Write as _;

use super::yaml::{flow_map, list, metadata, quoted};

/// Builds the YAML of a Service.
#[derive(Debug, Clone)]
pub struct Service {
    pub(super) name: String,
    pub(super) namespace: String,
    labels: Vec<(String, String)>,
    annotations: Vec<(String, String)>,
    addresses: Vec<String>,
    ports: Vec<String>,
    spec: Vec<String>,
    ingress: Vec<String>,
}

impl Service {
    /// A ClusterIP Service in namespace `default`; its first address is its clusterIP.
    pub fn new<A: ToString>(name: &str, addresses: impl IntoIterator<Item = A>) -> Self {
        Self {
            name: name.into(),
            namespace: "default".into(),
            labels: Vec::new(),
            annotations: Vec::new(),
            addresses: addresses
                .into_iter()
                .map(|address| address.to_string())
                .collect(),
            ports: Vec::new(),
            spec: Vec::new(),
            ingress: Vec::new(),
        }
    }

    /// Its namespace.
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// A label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.push((key.into(), value.into()));
        self
    }

    /// An annotation.
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.push((key.into(), value.into()));
        self
    }

    /// A TCP port. The endpoint's port is the one of the same name in the slices.
    pub fn tcp(self, name: &str, port: u16) -> Self {
        self.port(name, "TCP", port, None)
    }

    /// A UDP port.
    pub fn udp(self, name: &str, port: u16) -> Self {
        self.port(name, "UDP", port, None)
    }

    /// Any port, with a node port if wanted.
    pub fn port(mut self, name: &str, protocol: &str, port: u16, node_port: Option<u16>) -> Self {
        let target = if name.is_empty() {
            port.to_string()
        } else {
            name.to_owned()
        };
        let node_port = node_port.map_or(String::new(), |port| format!(", nodePort: {port}"));
        self.ports.push(format!(
            "{{name: \"{name}\", protocol: {protocol}, port: {port}, targetPort: {target}{node_port}}}"
        ));
        self
    }

    /// NodePort, LoadBalancer or ExternalName.
    pub fn kind(self, kind: &str) -> Self {
        self.spec(&format!("type: {kind}"))
    }

    /// Addresses dialled from outside.
    pub fn external_ips<A: ToString>(self, addresses: impl IntoIterator<Item = A>) -> Self {
        self.spec(&format!("externalIPs: [{}]", quoted(addresses)))
    }

    /// Addresses of its load balancer, in its status.
    pub fn load_balancer<A: ToString>(mut self, addresses: impl IntoIterator<Item = A>) -> Self {
        self.ingress.extend(
            addresses
                .into_iter()
                .map(|address| format!("{{ip: \"{}\"}}", address.to_string())),
        );
        self
    }

    /// sessionAffinity ClientIP.
    pub fn client_ip_affinity(self, timeout_secs: u32) -> Self {
        self.spec("sessionAffinity: ClientIP").spec(&format!(
            "sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {timeout_secs}}}}}"
        ))
    }

    /// Any further line of its spec: `internalTrafficPolicy: Local`. The last of a field counts.
    pub fn spec(mut self, line: &str) -> Self {
        let field = |line: &str| line.split(':').next().map(str::to_owned);
        self.spec.retain(|known| field(known) != field(line));
        self.spec.push(line.into());
        self
    }

    /// The YAML document.
    pub fn yaml(&self) -> String {
        let mut yaml = metadata("v1", "Service", &self.name, &self.namespace, &self.labels);
        if !self.annotations.is_empty() {
            let _ = writeln!(yaml, "  annotations: {}", flow_map(&self.annotations));
        }
        yaml.push_str("spec:\n");
        if let Some(first) = self.addresses.first() {
            let _ = writeln!(yaml, "  clusterIP: \"{first}\"");
            let _ = writeln!(yaml, "  clusterIPs: [{}]", quoted(&self.addresses));
            let families = self.addresses.iter().filter(|address| *address != "None");
            let families: Vec<&str> = families
                .map(|a| if a.contains(':') { "IPv6" } else { "IPv4" })
                .collect();
            if !families.is_empty() {
                let _ = writeln!(yaml, "  ipFamilies: [{}]", families.join(", "));
            }
            let policy = if families.len() > 1 {
                "PreferDualStack"
            } else {
                "SingleStack"
            };
            let _ = writeln!(yaml, "  ipFamilyPolicy: {policy}");
        }
        for line in &self.spec {
            let _ = writeln!(yaml, "  {line}");
        }
        list(&mut yaml, "  ", "ports", &self.ports);
        if !self.ingress.is_empty() {
            yaml.push_str("status:\n  loadBalancer:\n");
            list(&mut yaml, "    ", "ingress", &self.ingress);
        }
        yaml
    }
}
