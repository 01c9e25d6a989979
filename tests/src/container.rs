//! A container as a runtime makes one from the DaemonSet of `deploy/`: the image's files, read-only; the mounts,
//! arguments, environment and capabilities that the manifest gives it, and no others. Not made: seccomp, AppArmor and
//! SELinux, of which this machine may have none.

use std::{
    collections::BTreeSet,
    ffi::CString,
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{ConfigMap, Container as Spec, EnvVar, PodSpec, Volume, VolumeMount},
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    unistd::{chdir, pivot_root},
};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set, set_no_new_privs};

use crate::{pod::Place, world::Node};

/// The manifests, as they are shipped.
pub const DAEMON_SET: &str = include_str!("../../deploy/base/daemonset.yaml");
pub const CONFIG: &str = include_str!("../../deploy/base/config.yaml");
pub const RBAC: &str = include_str!("../../deploy/base/rbac.yaml");

/// Where a pod finds its ServiceAccount.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// What a pod is given by the kubelet besides its manifest.
#[derive(Debug)]
pub struct Account<'a> {
    /// Of the API server.
    pub url: &'a str,
    pub ca: &'a str,
    pub token: &'a str,
}

/// How to run the container of the DaemonSet on a node.
#[derive(Debug)]
pub struct Container {
    root: PathBuf,
    mounts: Vec<Mount>,
    program: String,
    args: Vec<String>,
    env: Vec<(String, String)>,
    granted: CapabilitySet,
}

#[derive(Clone, Debug)]
struct Mount {
    from: PathBuf,
    /// Below the root.
    to: PathBuf,
    read_only: bool,
}

impl Container {
    /// `root` has the image's files, and gets the folders that are mounted on, as runtimes make them. In place of
    /// the machine's BPF filesystem and cgroup the node's own are mounted.
    pub fn new(node: &Node, root: PathBuf, program: &str, account: &Account<'_>) -> Result<Self> {
        let daemon_set: DaemonSet = serde_yaml_ng::from_str(DAEMON_SET)?;
        let template = daemon_set
            .spec
            .context("a DaemonSet without spec")?
            .template;
        let pod = template.spec.context("a template without spec")?;
        ensure!(
            pod.host_pid == Some(true) && pod.host_network == Some(true),
            "only a pod in the node's own namespaces can be made here"
        );
        let [spec] = &pod.containers[..] else {
            bail!("not one container");
        };
        let folder = root.with_extension("volumes");
        let mut mounts = vec![
            Mount::new("/proc", "proc", false),
            Mount::new("/proc/sys", "proc/sys", true),
            Mount::new("/sys", "sys", true),
        ];
        for wanted in spec.volume_mounts.iter().flatten() {
            mounts.push(volume_mount(&pod, wanted, node, &folder)?);
        }
        let account_folder = folder.join("account");
        write_all(
            &account_folder,
            [
                ("ca.crt", account.ca),
                ("token", account.token),
                ("namespace", "kube-portal"),
            ],
        )?;
        mounts.push(Mount {
            from: account_folder,
            to: ACCOUNT.trim_start_matches('/').into(),
            read_only: true,
        });
        for mount in &mounts {
            fs::create_dir_all(root.join(&mount.to))?;
        }
        fs::create_dir_all(root.join("dev"))?;
        fs::write(root.join("dev/null"), "")?;
        let env = environment(spec, node, account)?;
        Ok(Self {
            root,
            mounts,
            program: program.to_owned(),
            args: spec.args.clone().unwrap_or_default(),
            env,
            granted: granted(spec)?,
        })
    }

    /// The agent, started as the manifest says, with more arguments.
    pub(crate) fn agent(&self, place: &Place, more: &[String]) -> Result<Command> {
        let mut command = self.command(place)?;
        command.args(&self.args).args(more);
        Ok(command)
    }

    /// Another command in a container like that, as `kubectl exec` gives one.
    pub(crate) fn exec(&self, place: &Place, args: &[&str]) -> Result<Command> {
        let mut command = self.command(place)?;
        command.args(args);
        Ok(command)
    }

    fn command(&self, place: &Place) -> Result<Command> {
        let mut command = place.command(&self.program)?;
        command.env_clear().envs(self.env.iter().cloned());
        let room = Room::new(self)?;
        // SAFETY: between fork and exec only system calls are made, on strings and lists that exist; nothing
        // allocates and nothing locks.
        unsafe {
            command.pre_exec(move || room.enter());
        }
        Ok(command)
    }
}

/// What is needed to go in, made before the fork.
struct Room {
    root: CString,
    /// From, to, read-only.
    mounts: Vec<(CString, CString, bool)>,
    null: CString,
    granted: CapabilitySet,
}

impl Room {
    fn new(container: &Container) -> Result<Self> {
        let mounts = container.mounts.iter().map(|mount| {
            let to = container.root.join(&mount.to);
            Ok((path(&mount.from)?, path(&to)?, mount.read_only))
        });
        Ok(Self {
            root: path(&container.root)?,
            mounts: mounts.collect::<Result<_>>()?,
            null: path(&container.root.join("dev/null"))?,
            granted: container.granted,
        })
    }

    fn enter(&self) -> std::io::Result<()> {
        let none = None::<&str>;
        let bind = MsFlags::MS_BIND;
        let again = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        mount(
            Some(self.root.as_c_str()),
            self.root.as_c_str(),
            none,
            bind,
            none,
        )?;
        for (from, to, read_only) in &self.mounts {
            mount(Some(from.as_c_str()), to.as_c_str(), none, bind, none)?;
            if *read_only {
                mount(none, to.as_c_str(), none, again, none)?;
            }
        }
        mount(Some("/dev/null"), self.null.as_c_str(), none, bind, none)?;
        mount(none, self.root.as_c_str(), none, again, none)?;
        chdir(self.root.as_c_str())?;
        pivot_root(".", ".")?;
        umount2(".", MntFlags::MNT_DETACH)?;
        chdir("/")?;
        for bit in 0..u64::BITS {
            let one = CapabilitySet::from_bits_retain(1 << bit);
            if self.granted.contains(one) {
                continue;
            }
            match remove_capability_from_bounding_set(one) {
                // The kernel knows none with this number.
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        set_no_new_privs(true)?;
        Ok(())
    }
}

impl Mount {
    fn new(from: &str, to: &str, read_only: bool) -> Self {
        Self {
            from: from.into(),
            to: to.into(),
            read_only,
        }
    }
}

fn path(path: &Path) -> Result<CString> {
    let text = path.to_str().context("a path that is no text")?;
    Ok(CString::new(text)?)
}

/// The capabilities of the manifest, by name.
fn granted(spec: &Spec) -> Result<CapabilitySet> {
    let security = spec
        .security_context
        .as_ref()
        .context("no securityContext")?;
    ensure!(
        security.read_only_root_filesystem == Some(true)
            && security.allow_privilege_escalation == Some(false)
            && security.privileged != Some(true)
            && security.run_as_user == Some(0),
        "this makes only containers of root that are read-only and may gain nothing: {security:?}"
    );
    let capabilities = security.capabilities.as_ref().context("no capabilities")?;
    ensure!(
        capabilities.drop.as_deref() == Some(&["ALL".to_owned()]),
        "what a runtime gives to all is not known here: drop ALL"
    );
    let mut granted = CapabilitySet::empty();
    for name in capabilities.add.iter().flatten() {
        granted |= CapabilitySet::from_name(name).with_context(|| name.clone())?;
    }
    Ok(granted)
}

fn environment(spec: &Spec, node: &Node, account: &Account<'_>) -> Result<Vec<(String, String)>> {
    let (host, port) = account
        .url
        .trim_start_matches("https://")
        .rsplit_once(':')
        .context("a URL with a port")?;
    let mut env = vec![
        ("PATH".to_owned(), "/usr/local/bin".to_owned()),
        ("KUBERNETES_SERVICE_HOST".to_owned(), host.to_owned()),
        ("KUBERNETES_SERVICE_PORT".to_owned(), port.to_owned()),
    ];
    for EnvVar {
        name,
        value,
        value_from,
    } in spec.env.iter().flatten()
    {
        let field = value_from.as_ref().and_then(|from| from.field_ref.as_ref());
        let value = match (value, field.map(|field| field.field_path.as_str())) {
            (Some(value), None) => value.clone(),
            (None, Some("spec.nodeName")) => node.name().to_owned(),
            _ => bail!("the value of {name} is not known here"),
        };
        env.push((name.clone(), value));
    }
    Ok(env)
}

fn volume_mount(pod: &PodSpec, wanted: &VolumeMount, node: &Node, folder: &Path) -> Result<Mount> {
    let volume = pod
        .volumes
        .iter()
        .flatten()
        .find(|volume| volume.name == wanted.name);
    let volume = volume.with_context(|| format!("no volume {}", wanted.name))?;
    Ok(Mount {
        from: source(volume, node, folder)?,
        to: wanted.mount_path.trim_start_matches('/').into(),
        read_only: wanted.read_only == Some(true),
    })
}

fn source(volume: &Volume, node: &Node, folder: &Path) -> Result<PathBuf> {
    if let Some(host) = &volume.host_path {
        return match host.path.as_str() {
            "/sys/fs/bpf" => Ok(node.bpffs().to_owned()),
            "/sys/fs/cgroup" => Ok(node.cgroup().to_owned()),
            other => bail!("a node of a test has no {other} of its own"),
        };
    }
    let named = volume
        .config_map
        .as_ref()
        .context("a volume of another kind")?;
    let config: ConfigMap = serde_yaml_ng::from_str(CONFIG)?;
    ensure!(
        config.metadata.name.as_ref() == Some(&named.name),
        "no ConfigMap {}",
        named.name
    );
    let folder = folder.join(&volume.name);
    let data = config.data.unwrap_or_default();
    write_all(
        &folder,
        data.iter()
            .map(|(name, text)| (name.as_str(), text.as_str())),
    )?;
    Ok(folder)
}

fn write_all<'a>(folder: &Path, files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<()> {
    fs::create_dir_all(folder)?;
    for (name, text) in files {
        fs::write(folder.join(name), text)?;
    }
    Ok(())
}

/// What somebody may do, and what was done: verb, group and resource.
pub type Permissions = BTreeSet<(String, String, String)>;

/// What the ClusterRole grants.
pub fn granted_by_role() -> Result<Permissions> {
    use k8s_openapi::api::rbac::v1::ClusterRole;
    use serde::Deserialize as _;

    let mut granted = Permissions::new();
    for document in serde_yaml_ng::Deserializer::from_str(RBAC) {
        let value = serde_yaml_ng::Value::deserialize(document)?;
        if value.get("kind").and_then(|kind| kind.as_str()) != Some("ClusterRole") {
            continue;
        }
        let role: ClusterRole = serde_yaml_ng::from_value(value)?;
        for rule in role.rules.into_iter().flatten() {
            for group in rule.api_groups.iter().flatten() {
                for resource in rule.resources.iter().flatten() {
                    for verb in &rule.verbs {
                        granted.insert((verb.clone(), group.clone(), resource.clone()));
                    }
                }
            }
        }
    }
    Ok(granted)
}

/// What a request is called by the API server's authorization: `GET /apis/GROUP/VERSION/RESOURCE?watch=true`.
pub fn permission_for(request: &str) -> Option<(String, String, String)> {
    let (method, uri) = request.split_once(' ')?;
    let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let (group, rest) = match parts[..] {
        ["api", _, ref rest @ ..] => ("", rest),
        ["apis", group, _, ref rest @ ..] => (group, rest),
        _ => return None,
    };
    let (resource, named) = match rest {
        ["namespaces", _, resource, name @ ..] | [resource, name @ ..] => {
            (resource, !name.is_empty())
        }
        [] => return None,
    };
    let watches = query
        .split('&')
        .any(|pair| matches!(pair, "watch=true" | "watch=1"));
    let verb = match (method, named) {
        ("GET", true) => "get",
        ("GET", false) if watches => "watch",
        ("GET", false) => "list",
        ("POST", _) => "create",
        ("PATCH", _) => "patch",
        _ => return None,
    };
    Some((verb.to_owned(), group.to_owned(), (*resource).to_owned()))
}
