//! A pod: a network namespace and a cgroup, with a probe inside.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Result, bail};
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, setgid, setuid};

use crate::cgroup::Cgroup;
use crate::netns::Netns;
use crate::probe::client::Probe;

/// The place where programs of a pod run.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) netns: Arc<Netns>,
    pub(crate) cgroup: Cgroup,
}

impl Place {
    /// A program that starts in the namespace and the cgroup: it is inside before its first
    /// instruction, so the cgroup's programs see every socket it makes.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let netns = self.netns.open()?;
        let mut procs = self.cgroup.open_procs()?;
        let mut command = Command::new(program);
        // SAFETY: between fork and exec only two system calls are made, on descriptors opened
        // before; nothing allocates and nothing locks.
        unsafe {
            command.pre_exec(move || {
                procs.write_all(b"0")?;
                setns(&netns, CloneFlags::CLONE_NEWNET)?;
                Ok(())
            });
        }
        Ok(command)
    }

    /// The same as another user, who needn't be able to reach the program's folder.
    pub(crate) fn command_as(&self, user: Uid, program: &Path) -> Result<Command> {
        // Not closed by exec, so that it has a name there.
        let program = open(program, OFlag::O_RDONLY, Mode::empty())?;
        let mut command = self.command(format!("/proc/self/fd/{}", program.as_raw_fd()))?;
        // SAFETY: between fork and exec only system calls are made, after those of `command`.
        unsafe {
            command.pre_exec(move || {
                let _open_until_here = &program;
                setgid(Gid::from_raw(user.as_raw()))?;
                setuid(user)?;
                Ok(())
            });
        }
        Ok(command)
    }
}

/// A pod, a process on a node's own network, or a client outside the cluster.
#[derive(Debug)]
pub struct Pod {
    name: String,
    ip4: Ipv4Addr,
    ip6: Ipv6Addr,
    // The probe ends before its cgroup is removed.
    probe: Probe,
    place: Arc<Place>,
}

impl Pod {
    pub(crate) fn new(name: &str, ip4: Ipv4Addr, ip6: Ipv6Addr, place: Place) -> Self {
        let place = Arc::new(place);
        let probe = Probe::new(name, Arc::clone(&place));
        Self {
            name: name.to_owned(),
            ip4,
            ip6,
            probe,
            place,
        }
    }

    /// Its name in this world.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its IPv4 address.
    pub fn ip4(&self) -> IpAddr {
        self.ip4.into()
    }

    /// Its IPv6 address.
    pub fn ip6(&self) -> IpAddr {
        self.ip6.into()
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.place.netns
    }

    /// The directory of its cgroup.
    pub fn cgroup(&self) -> &Path {
        self.place.cgroup.path()
    }

    /// The process inside; started at its first use.
    pub fn probe(&self) -> &Probe {
        &self.probe
    }

    /// Any program, run inside the pod.
    pub fn command(&self, program: &str) -> Result<Command> {
        self.place.command(program)
    }

    /// Runs a program inside the pod to its end, and yields what it printed.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self.command(program)?.args(args).output()?;
        if !output.status.success() {
            bail!(
                "{program} {} in {}: {}: {}",
                args.join(" "),
                self.name,
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// What a probe can do, its pod can: `pod.connect(..)`.
impl Deref for Pod {
    type Target = Probe;

    fn deref(&self) -> &Probe {
        &self.probe
    }
}
