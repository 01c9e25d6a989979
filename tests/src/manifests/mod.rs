//! A folder of ordinary Kubernetes YAML, as people write it.

mod service;
mod slice;
mod yaml;

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub use service::Service;
pub use slice::EndpointSlice;

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

    /// Writes a Node with these InternalIPs to `<name>.node.yaml`.
    pub fn node(&self, name: &str, internal_ips: [IpAddr; 2]) -> Result<()> {
        let addresses = internal_ips.map(|ip| format!("{{type: InternalIP, address: \"{ip}\"}}"));
        let addresses = addresses.join(", ");
        self.write(
            &format!("{name}.node.yaml"),
            format!(
                "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n\
                 status: {{addresses: [{addresses}]}}\n"
            ),
        )
    }

    /// Writes ServiceCIDRs to `cidrs.yaml`.
    pub fn service_cidrs(&self, cidrs: &[&str]) -> Result<()> {
        let cidrs: Vec<String> = cidrs.iter().map(|cidr| format!("\"{cidr}\"")).collect();
        self.write(
            "cidrs.yaml",
            format!(
                "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\n\
                 metadata: {{name: kubernetes}}\nspec: {{cidrs: [{}]}}\n",
                cidrs.join(", ")
            ),
        )
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
