//! The programs of the packet path, put onto devices and taken away.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::fd::{AsFd as _, BorrowedFd},
};

use aya::{
    Ebpf,
    maps::{HashMap as BpfHashMap, MapData},
    programs::SchedClassifier,
};
use proxy_common::abi::{Device, map};
use rtnetlink::Handle;

use super::{
    Features, Pins, Programs,
    attach::{LoadError, reason},
    clsact,
    hook::Hook,
    link::Link,
};
use crate::devices::Header;

/// How programs are attached to devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum TcAttach {
    /// By links where the kernel has them (6.6), else by filters.
    #[default]
    Auto,
    /// By links, which no other tool can take away.
    Tcx,
    /// By filters of the qdisc clsact.
    Clsact,
}

impl TcAttach {
    /// `None` if this kernel has no such thing.
    pub fn by(self, features: Features) -> Option<Mechanism> {
        match self {
            Self::Auto if features.tcx => Some(Mechanism::Tcx),
            Self::Tcx => features.tcx.then_some(Mechanism::Tcx),
            Self::Auto | Self::Clsact => Some(Mechanism::Clsact),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mechanism {
    Tcx,
    Clsact,
}

impl Mechanism {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// What had to be done for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// It ran our programs already.
    Nothing,
    /// It ran an earlier agent's, and runs ours now.
    Replaced,
    /// One was missing.
    Attached,
}

type DeviceMap = BpfHashMap<MapData, u32, [u8; Device::SIZE]>;

/// The programs, loaded when a device needs them, and what they know of devices.
#[derive(Debug)]
pub struct PacketPath {
    ebpf: Ebpf,
    pins: Pins,
    mechanism: Mechanism,
    devices: DeviceMap,
    /// Of the programs that are loaded.
    program_ids: BTreeMap<&'static str, u32>,
    programs: Programs,
}

impl PacketPath {
    pub(super) fn new(
        mut ebpf: Ebpf,
        pins: Pins,
        mechanism: Mechanism,
        programs: Programs,
    ) -> Result<Self, LoadError> {
        let missing = || LoadError::Map {
            map: map::DEVICES,
            reason: "missing in the kernel object".to_owned(),
        };
        let devices = ebpf.take_map(map::DEVICES).ok_or_else(missing)?;
        let devices = DeviceMap::try_from(devices).map_err(|error| LoadError::Map {
            map: map::DEVICES,
            reason: error.to_string(),
        })?;
        Ok(Self {
            ebpf,
            pins,
            mechanism,
            devices,
            program_ids: BTreeMap::new(),
            programs,
        })
    }

    pub fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// What the programs know, by index.
    pub fn known_devices(&self) -> BTreeMap<u32, Device> {
        let entries = self.devices.iter().flatten();
        entries
            .map(|(index, bytes)| (index, Device::from_bytes(bytes)))
            .collect()
    }

    pub fn put_device(&mut self, index: u32, device: &Device) -> Result<(), String> {
        self.devices
            .insert(index, device.to_bytes(), 0)
            .map_err(|error| reason(&error))
    }

    /// Whether there was one does not matter.
    pub fn forget_device(&mut self, index: u32) {
        let _gone_already = self.devices.remove(&index);
    }

    /// Loads the program unless it is, and yields its id. The verifier takes up to a second for it.
    fn load(&mut self, name: &'static str) -> Result<u32, String> {
        if let Some(id) = self.program_ids.get(name) {
            return Ok(*id);
        }
        let program = classifier(&mut self.ebpf, name)?;
        program.load().map_err(|error| {
            format!("the kernel refused the program {name}: {}", reason(&error))
        })?;
        let id = program.info().map_err(|error| reason(&error))?.id();
        let fd = program.fd().map_err(|error| reason(&error))?;
        self.programs.add(name, fd.as_fd());
        self.program_ids.insert(name, id);
        Ok(id)
    }

    /// Makes both hooks of a device run our programs.
    pub async fn attach(
        &mut self,
        netlink: &Handle,
        ifindex: u32,
        header: Header,
    ) -> Result<Change, String> {
        let mut change = Change::Nothing;
        for hook in Hook::BOTH {
            let name = hook.program(header).ok_or_else(|| {
                let Header::Other(kind) = header else {
                    return String::new();
                };
                format!(
                    "its packets begin with a header of type {kind} (ARPHRD), which is neither \
                     Ethernet nor IP; leave it out with --devices"
                )
            })?;
            let id = tokio::task::block_in_place(|| self.load(name))?;
            let program = classifier(&mut self.ebpf, name)?
                .fd()
                .map_err(|error| reason(&error))?
                .as_fd();
            let done = match self.mechanism {
                Mechanism::Tcx => attach_link(&self.pins, ifindex, hook, name, program, id),
                Mechanism::Clsact => attach_filter(netlink, ifindex, hook, name, program, id).await,
            };
            change = change.max(done.map_err(|error| format!("{hook}: {error}"))?);
        }
        Ok(change)
    }

    /// Takes our programs from a device, however they are attached. Whether there were any.
    pub async fn detach(&self, netlink: &Handle, ifindex: u32) -> Result<bool, String> {
        let mut found = self.unpin(|at| at == ifindex)?;
        found |= detach_filters(netlink, ifindex).await?;
        Ok(found)
    }

    /// Takes away what an earlier agent attached by the other mechanism.
    pub async fn detach_other_mechanism(&self, netlink: &Handle) -> Result<(), String> {
        match self.mechanism {
            Mechanism::Tcx => {
                let devices = clsact::devices(netlink)
                    .await
                    .map_err(|error| clsact::reason(&error))?;
                for ifindex in devices {
                    detach_filters(netlink, ifindex).await?;
                }
                Ok(())
            }
            Mechanism::Clsact => self.unpin(|_| true).map(drop),
        }
    }

    /// Devices that run something of ours, now or until they went away.
    pub async fn attached(&self, netlink: &Handle) -> Result<BTreeSet<u32>, String> {
        let pinned = self.pins.device_links().into_iter();
        let mut found: BTreeSet<u32> = pinned.map(|link| link.ifindex).collect();
        for ifindex in clsact::devices(netlink)
            .await
            .map_err(|error| clsact::reason(&error))?
        {
            let filters = clsact::filters(netlink, ifindex)
                .await
                .map_err(|error| clsact::reason(&error))?;
            if filters.iter().any(clsact::Filter::is_ours) {
                found.insert(ifindex);
            }
        }
        Ok(found)
    }

    /// Removes pins of links, by device; a link goes with its pin.
    fn unpin(&self, which: impl Fn(u32) -> bool) -> Result<bool, String> {
        let mut found = false;
        for link in self.pins.device_links() {
            if which(link.ifindex) {
                fs::remove_file(&link.path)
                    .map_err(|error| format!("{}: {error}", link.path.display()))?;
                found = true;
            }
        }
        Ok(found)
    }
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, String> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| format!("the program {name} is missing in the kernel object"))
}

fn attach_link(
    pins: &Pins,
    ifindex: u32,
    hook: Hook,
    name: &str,
    program: BorrowedFd<'_>,
    id: u32,
) -> Result<Change, String> {
    let path = pins.device_link(name, ifindex);
    if let Ok(link) = Link::open(&path)
        && let Ok(Some(at)) = link.device()
        && at.ifindex == ifindex
        && at.attach_type == hook.tcx()
    {
        if at.program_id == id {
            return Ok(Change::Nothing);
        }
        if link.set_program(program).is_ok() {
            return Ok(Change::Replaced);
        }
    }
    let link = Link::at_device(program, ifindex, hook).map_err(|error| error.to_string())?;
    pins.replace_pin(&path, |fresh| link.pin(fresh))
        .map_err(|error| error.to_string())?;
    Ok(Change::Attached)
}

async fn attach_filter(
    netlink: &Handle,
    ifindex: u32,
    hook: Hook,
    name: &str,
    program: BorrowedFd<'_>,
    id: u32,
) -> Result<Change, String> {
    let netlink_error = |error| clsact::reason(&error);
    let devices = clsact::devices(netlink).await.map_err(netlink_error)?;
    if !devices.contains(&ifindex) {
        clsact::add_qdisc(netlink, ifindex).await?;
    }
    let filters = clsact::filters(netlink, ifindex)
        .await
        .map_err(netlink_error)?;
    let change = match clsact::ours(hook, &filters) {
        Some(filter) if filter.program_id == id => return Ok(Change::Nothing),
        Some(_) => Change::Replaced,
        None => Change::Attached,
    };
    clsact::attach(netlink, ifindex, hook, name, program, &filters).await?;
    Ok(change)
}

async fn detach_filters(netlink: &Handle, ifindex: u32) -> Result<bool, String> {
    let hooks = clsact::detach(netlink, ifindex)
        .await
        .map_err(|error| clsact::reason(&error))?;
    Ok(!hooks.is_empty())
}

/// A program on a device, as found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OnDevice {
    pub ifindex: u32,
    pub hook: Hook,
    pub mechanism: Mechanism,
    pub program_id: u32,
}

/// Every device hook that runs something of ours; needs no agent.
pub async fn on_devices(pins: &Pins) -> Result<Vec<OnDevice>, String> {
    let mut found = Vec::new();
    for pinned in pins.device_links() {
        let Ok(Some(at)) = Link::open(&pinned.path).and_then(|link| link.device()) else {
            continue;
        };
        let hook = Hook::BOTH
            .into_iter()
            .find(|hook| hook.tcx() == at.attach_type);
        // Detached by somebody, or left by a device that is gone.
        if let Some(hook) = hook.filter(|_| at.ifindex == pinned.ifindex) {
            found.push(OnDevice {
                ifindex: at.ifindex,
                hook,
                mechanism: Mechanism::Tcx,
                program_id: at.program_id,
            });
        }
    }
    let netlink = netlink().map_err(|error| error.to_string())?;
    let words = |error| clsact::reason(&error);
    for ifindex in clsact::devices(&netlink).await.map_err(words)? {
        let filters = clsact::filters(&netlink, ifindex).await.map_err(words)?;
        for hook in Hook::BOTH {
            if let Some(filter) = clsact::ours(hook, &filters) {
                found.push(OnDevice {
                    ifindex,
                    hook,
                    mechanism: Mechanism::Clsact,
                    program_id: filter.program_id,
                });
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Removes our filters from every device, whoever attached them; a line for each.
pub async fn remove_filters() -> Result<Vec<(&'static str, String)>, String> {
    let netlink = netlink().map_err(|error| error.to_string())?;
    let words = |error| clsact::reason(&error);
    let mut removed = Vec::new();
    for ifindex in clsact::devices(&netlink).await.map_err(words)? {
        for hook in clsact::detach(&netlink, ifindex).await.map_err(words)? {
            let what = match hook {
                Hook::Ingress => "ingress filter of",
                Hook::Egress => "egress filter of",
            };
            removed.push((what, device_name(ifindex)));
        }
    }
    Ok(removed)
}

/// A connection of its own, served in the background.
pub fn netlink() -> std::io::Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    Ok(handle)
}

/// Its index, if the device is gone.
pub fn device_name(ifindex: u32) -> String {
    use rustix::net::{AddressFamily, SocketType, netdevice::index_to_name, socket};
    socket(AddressFamily::UNIX, SocketType::DGRAM, None)
        .and_then(|socket| index_to_name(socket, ifindex))
        .unwrap_or_else(|_| format!("device {ifindex}"))
}
