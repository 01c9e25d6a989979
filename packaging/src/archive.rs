//! The archive around the layer: an OCI image layout, and beside it the `manifest.json` that Docker reads.
//! Both name the same blobs.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType};

use super::{BINARY, Image, rootfs};

const TITLE: &str = "kube-portal";
const DESCRIPTION: &str = "Kubernetes Services, translated in the kernel with eBPF";
const LICENSE: &str = "Apache-2.0";

/// What came of it.
#[derive(Debug)]
pub struct Written {
    /// With its version.
    pub tag: String,
    /// Of the archive.
    pub bytes: u64,
}

/// A file below blobs/sha256, and what points at it.
struct Blob {
    digest: String,
    content: Vec<u8>,
}

impl Blob {
    fn new(content: Vec<u8>) -> Self {
        Self {
            digest: sha256(&content),
            content,
        }
    }

    fn json(value: &Value) -> Self {
        Self::new(value.to_string().into_bytes())
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.digest)
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({
            "mediaType": media_type,
            "digest": format!("sha256:{}", self.digest),
            "size": self.content.len(),
        })
    }
}

impl Image {
    /// Writes the archive. `epoch` is in seconds since 1970.
    ///
    /// # Errors
    /// The tag is none, or the file can't be written.
    pub fn write_archive(
        &self,
        output: &Path,
        tag: Option<&str>,
        epoch: u64,
        revision: Option<&str>,
    ) -> Result<Written> {
        let tag = match tag {
            Some(tag) => tag.to_owned(),
            None => format!("kube-portal:{}", self.version),
        };
        let (_, short) = split(&tag)?;
        let created = timestamp(epoch);
        let mut labels = json!({
            "org.opencontainers.image.title": TITLE,
            "org.opencontainers.image.description": DESCRIPTION,
            "org.opencontainers.image.version": self.version,
            "org.opencontainers.image.licenses": LICENSE,
            "org.opencontainers.image.created": created,
            "kube-portal.abi": self.abi,
        });
        if let Some(revision) = revision {
            labels["org.opencontainers.image.revision"] = revision.into();
        }

        let plain = rootfs::layer(self, epoch)?;
        let layer = Blob::new(rootfs::compressed(&plain)?);
        let config = Blob::json(&json!({
            "created": created,
            "architecture": architecture()?,
            "os": "linux",
            "config": {
                "Entrypoint": [BINARY],
                "Env": ["PATH=/usr/local/bin"],
                "Labels": labels,
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&plain))]},
            "history": [{"created": created, "created_by": "cargo xtask image"}],
        }));
        let manifest = Blob::json(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
            "layers": [layer.descriptor("application/vnd.oci.image.layer.v1.tar+gzip")],
            "annotations": labels,
        }));
        let mut entry = manifest.descriptor("application/vnd.oci.image.manifest.v1+json");
        entry["annotations"] = json!({
            // containerd's name for it, and everybody else's.
            "io.containerd.image.name": full_name(&tag),
            "org.opencontainers.image.ref.name": short,
        });
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [entry],
        });
        let docker = json!([{
            "Config": config.path(),
            "RepoTags": [tag],
            "Layers": [layer.path()],
        }]);

        let mut files = vec![
            ("index.json".to_owned(), index.to_string().into_bytes()),
            ("manifest.json".to_owned(), docker.to_string().into_bytes()),
            (
                "oci-layout".to_owned(),
                json!({"imageLayoutVersion": "1.0.0"})
                    .to_string()
                    .into_bytes(),
            ),
        ];
        for blob in [layer, config, manifest] {
            files.push((blob.path(), blob.content));
        }
        files.sort();
        let mut tar = Builder::new(Vec::new());
        for folder in ["blobs/", "blobs/sha256/"] {
            let mut header = rootfs::header(EntryType::Directory, 0o755, epoch);
            rootfs::append(&mut tar, &mut header, folder, &[])?;
        }
        for (path, content) in &files {
            let mut header = rootfs::header(EntryType::Regular, 0o644, epoch);
            rootfs::append(&mut tar, &mut header, path, content)?;
        }
        let bytes = tar.into_inner()?;
        fs::write(output, &bytes).with_context(|| format!("write {}", output.display()))?;
        Ok(Written {
            tag,
            bytes: bytes.len() as u64,
        })
    }
}

fn sha256(content: &[u8]) -> String {
    let digest = Sha256::digest(content);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Repository and tag; a port's colon is none of a tag.
fn split(name: &str) -> Result<(&str, &str)> {
    match name.rsplit_once(':') {
        Some((repository, tag))
            if !repository.is_empty() && !tag.is_empty() && !tag.contains('/') =>
        {
            Ok((repository, tag))
        }
        _ => bail!("--tag {name}: write NAME:TAG, such as registry.example/kube-portal:0.1.0"),
    }
}

/// As kubelets ask for it: with a host, or Docker's.
fn full_name(tag: &str) -> String {
    match tag.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => tag.to_owned(),
        Some(_) => format!("docker.io/{tag}"),
        None => format!("docker.io/library/{tag}"),
    }
}

/// Go's names, as the specification has it.
fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("kube-portal is not built for {other}"),
    }
}

/// RFC 3339, UTC.
fn timestamp(epoch: u64) -> String {
    let (days, seconds) = (epoch / 86_400, epoch % 86_400);
    // The calendar repeats every 400 years; years begin in March, so that the leap day comes last.
    let since_march = days + 719_468;
    let (era, day) = (since_march / 146_097, since_march % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let in_month = day - (153 * month + 2) / 5 + 1;
    let (month, over) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    format!(
        "{:04}-{month:02}-{in_month:02}T{:02}:{:02}:{:02}Z",
        era * 400 + year + over,
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_as_date_would() {
        for (epoch, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(timestamp(epoch), text);
        }
    }

    #[test]
    fn a_tag_has_a_name_and_a_version() {
        assert_eq!(split("kube-portal:1").ok(), Some(("kube-portal", "1")));
        assert_eq!(
            split("r.example:5000/k:1").ok(),
            Some(("r.example:5000/k", "1"))
        );
        for bad in ["kube-portal", "r.example:5000/k", ":1", "k:"] {
            assert!(split(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn containerd_is_told_the_host_that_a_kubelet_assumes() {
        for (tag, full) in [
            ("kube-portal:1", "docker.io/library/kube-portal:1"),
            ("me/kube-portal:1", "docker.io/me/kube-portal:1"),
            ("localhost/kube-portal:1", "localhost/kube-portal:1"),
            ("r.example/kube-portal:1", "r.example/kube-portal:1"),
            ("localhost:5000/k:1", "localhost:5000/k:1"),
        ] {
            assert_eq!(full_name(tag), full);
        }
    }
}
