//! A folder of ordinary Kubernetes YAML, as people write it.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A folder the agent watches, removed when dropped.
#[derive(Debug)]
pub struct ManifestDir {
    path: PathBuf,
    _own: Option<tempfile::TempDir>,
}

impl ManifestDir {
    /// A new, empty folder.
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("kube-portal-manifests-")
            .tempdir()
            .context("create a manifest folder")?;
        Ok(Self {
            path: dir.path().to_owned(),
            _own: Some(dir),
        })
    }

    /// A folder that stays.
    pub fn at(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self { path, _own: None })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file as an editor or kubectl does: whole or not at all.
    pub fn write(&self, file: &str, yaml: impl AsRef<str>) -> Result<()> {
        // Hidden and not .yaml: nobody takes the unfinished file for a manifest.
        let draft = self.path.join(format!(".{file}.draft"));
        fs::write(&draft, yaml.as_ref()).with_context(|| format!("write {}", draft.display()))?;
        let path = self.path.join(file);
        fs::rename(&draft, &path).with_context(|| format!("replace {}", path.display()))
    }

    /// Writes into the file where it is: a reader may see half of it.
    pub fn write_in_place(&self, file: &str, text: impl AsRef<[u8]>) -> Result<()> {
        let path = self.path.join(file);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    /// What the file says now.
    pub fn read(&self, file: &str) -> Result<String> {
        let path = self.path.join(file);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    /// Renames a file inside the folder.
    pub fn rename(&self, from: &str, to: &str) -> Result<()> {
        let (from, to) = (self.path.join(from), self.path.join(to));
        fs::rename(&from, &to).with_context(|| format!("rename {}", from.display()))
    }

    /// Removes a file.
    pub fn remove(&self, file: &str) -> Result<()> {
        let path = self.path.join(file);
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }

    /// Writes a Service to `<namespace>-<name>.yaml`.
    pub fn service(&self, service: &Service) -> Result<()> {
        self.write(
            &format!("{}-{}.yaml", service.namespace, service.name),
            service.yaml(),
        )
    }

    /// Writes an EndpointSlice to `<namespace>-<name>.slice.yaml`.
    pub fn slice(&self, slice: &EndpointSlice) -> Result<()> {
        self.write(
            &format!("{}-{}.slice.yaml", slice.namespace, slice.name),
            slice.yaml(),
        )
    }
}

/// Builds the YAML of a Service.
#[derive(Debug, Clone)]
pub struct Service {
    name: String,
    namespace: String,
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

    /// Any further line of its spec: `internalTrafficPolicy: Local`.
    pub fn spec(mut self, line: &str) -> Self {
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

/// Builds the YAML of an EndpointSlice.
#[derive(Debug, Clone)]
pub struct EndpointSlice {
    name: String,
    namespace: String,
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

fn metadata(
    version: &str,
    kind: &str,
    name: &str,
    namespace: &str,
    labels: &[(String, String)],
) -> String {
    let mut yaml = format!(
        "apiVersion: {version}\nkind: {kind}\nmetadata:\n  name: {name}\n  namespace: {namespace}\n"
    );
    if !labels.is_empty() {
        let _ = writeln!(yaml, "  labels: {}", flow_map(labels));
    }
    yaml
}

fn flow_map(pairs: &[(String, String)]) -> String {
    let pairs: Vec<String> = pairs
        .iter()
        .map(|(key, value)| format!("{key}: \"{value}\""))
        .collect();
    format!("{{{}}}", pairs.join(", "))
}

fn quoted<A: ToString>(items: impl IntoIterator<Item = A>) -> String {
    let items: Vec<String> = items
        .into_iter()
        .map(|item| format!("\"{}\"", item.to_string()))
        .collect();
    items.join(", ")
}

/// One entry per line, so that a line removed by hand is an endpoint removed.
fn list(yaml: &mut String, indent: &str, key: &str, items: &[String]) {
    if items.is_empty() {
        let _ = writeln!(yaml, "{indent}{key}: []");
        return;
    }
    let _ = writeln!(yaml, "{indent}{key}:");
    for item in items {
        let _ = writeln!(yaml, "{indent}- {item}");
    }
}
