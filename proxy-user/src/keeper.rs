//! Keeps the packet path on the devices it belongs on: looks, compares, repairs.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use rtnetlink::Handle;
use tokio::{
    sync::{Notify, watch},
    time::MissedTickBehavior,
};

use crate::{
    devices::{self, Choice, Chosen, Facts, Role, Source},
    loader::{Change, PacketPath},
};

/// What nobody tells of is found after this time: a link that somebody detached, a device that
/// refused our programs.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// What the devices are chosen by.
#[derive(Debug)]
pub struct Inputs {
    pub facts: watch::Receiver<Facts>,
    /// Of the Node object.
    pub internal_ips: watch::Receiver<Vec<IpAddr>>,
    /// Somebody changed a qdisc or a filter.
    pub filters: Arc<Notify>,
}

/// What came of a pass over the devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Those that run our programs.
    pub devices: usize,
    /// Those with which something is wrong.
    pub failed: usize,
}

/// The packet path of this node.
#[derive(Debug)]
pub struct Keeper {
    packet: PacketPath,
    choice: Choice,
    source: Source,
    netlink: Handle,
    /// Devices that run our programs, by index.
    attached: BTreeMap<u32, Chosen>,
    /// What is wrong with a device, and has been said.
    said: BTreeMap<u32, String>,
    said_nothing_chosen: bool,
    is_first: bool,
}

impl Keeper {
    pub fn new(packet: PacketPath, choice: Choice, source: Source) -> std::io::Result<Self> {
        Ok(Self {
            packet,
            choice,
            source,
            netlink: crate::loader::netlink()?,
            attached: BTreeMap::new(),
            said: BTreeMap::new(),
            said_nothing_chosen: false,
            is_first: true,
        })
    }

    /// Runs until the agent ends. `done` is told after the first pass, `tell` after each.
    pub async fn run(
        mut self,
        mut inputs: Inputs,
        done: tokio::sync::oneshot::Sender<()>,
        tell: impl Fn(Attached),
    ) {
        let mut done = Some(done);
        let mut again = tokio::time::interval(LOOK_AGAIN);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Netlink has to have spoken once.
        if inputs
            .facts
            .wait_for(|facts| !facts.links.is_empty())
            .await
            .is_err()
        {
            return;
        }
        loop {
            let facts = inputs.facts.borrow_and_update().clone();
            let internal_ips = inputs.internal_ips.borrow_and_update().clone();
            self.pass(&facts, &internal_ips).await;
            tell(Attached {
                devices: self.attached.len(),
                failed: self.said.len(),
            });
            if let Some(done) = done.take() {
                let _nobody_waits = done.send(());
                // It is due at once at first.
                again.reset();
            }
            let ended = tokio::select! {
                changed = inputs.facts.changed() => changed.is_err(),
                changed = inputs.internal_ips.changed() => changed.is_err(),
                () = inputs.filters.notified() => false,
                _ = again.tick() => false,
            };
            if ended {
                return;
            }
        }
    }

    /// Makes the kernel what the facts ask for. Every step is idempotent.
    async fn pass(&mut self, facts: &Facts, internal_ips: &[IpAddr]) {
        let chosen = devices::choose(facts, internal_ips, &self.choice);
        self.tell_choice(facts, &chosen);
        let entries = devices::entries(facts, internal_ips, &chosen, self.source);
        let known = self.packet.known_devices();
        // Chosen ones first, should there be no room for all.
        let mut order: Vec<u32> = entries.keys().copied().collect();
        order.sort_by_key(|index| !chosen.contains_key(index));
        let mut wrong = BTreeMap::new();
        for index in order {
            if known.get(&index) != Some(&entries[&index])
                && let Err(error) = self.packet.put_device(index, &entries[&index])
            {
                wrong.insert(index, format!("its addresses can't be written: {error}"));
            }
        }
        for (index, device) in &chosen {
            match self
                .packet
                .attach(&self.netlink, *index, device.header)
                .await
            {
                Ok(change) => self.tell_attached(*index, device, change),
                // The loss of its filters is heard of before its own.
                Err(_) if !is_there(*index) => {}
                Err(error) => {
                    wrong.insert(*index, format!("can't be attached to: {error}"));
                    self.attached.remove(index);
                }
            }
        }
        self.detach_others(facts, &chosen).await;
        for index in known.keys().filter(|index| !entries.contains_key(index)) {
            self.packet.forget_device(*index);
        }
        self.tell_wrong(facts, wrong);
        self.is_first = false;
    }

    /// Takes our programs from where they don't belong any more, also those of an earlier agent.
    async fn detach_others(&mut self, facts: &Facts, chosen: &BTreeMap<u32, Chosen>) {
        let result = if self.is_first {
            self.packet.attached(&self.netlink).await
        } else {
            Ok(self.attached.keys().copied().collect::<BTreeSet<u32>>())
        };
        let present = match result {
            Ok(present) => present,
            Err(error) => {
                log::warn!("packet path: what an earlier agent attached can't be listed: {error}");
                BTreeSet::new()
            }
        };
        for index in present {
            if chosen.contains_key(&index) {
                continue;
            }
            let before = self.attached.remove(&index);
            let name = match (facts.link(index), &before) {
                (Some(link), _) => link.name.clone(),
                (None, Some(before)) => before.name.clone(),
                (None, None) => format!("device {index}"),
            };
            match self.packet.detach(&self.netlink, index).await {
                Ok(_) if facts.link(index).is_none() => {
                    log::info!("packet path: {name} (index {index}) is gone");
                }
                Ok(_) => log::info!(
                    "packet path: {name} (index {index}) does not lead outside any more; detached"
                ),
                Err(error) => {
                    log::warn!("packet path: {name} (index {index}) can't be detached: {error}");
                    if let Some(before) = before {
                        self.attached.insert(index, before);
                    }
                }
            }
        }
        if self.is_first
            && let Err(error) = self.packet.detach_other_mechanism(&self.netlink).await
        {
            log::warn!(
                "packet path: what an earlier agent attached by another --tc-attach stays: {error}"
            );
        }
    }

    fn tell_attached(&mut self, index: u32, device: &Chosen, change: Change) {
        let before = self.attached.insert(index, device.clone());
        let name = &device.name;
        let how = self.packet.mechanism().name();
        let role = match device.role {
            Role::Outside => "",
            Role::Pod => ", of a pod",
        };
        match (before, change) {
            (Some(_), Change::Attached | Change::Replaced) => log::warn!(
                "packet path: {name} (index {index}): somebody took our program away; attached again by {how}"
            ),
            (Some(before), Change::Nothing) => {
                if before.name != device.name {
                    log::info!("packet path: {} is called {name} now", before.name);
                }
            }
            (None, Change::Attached) => log::info!(
                "packet path: {name} (index {index}{role}): attached by {how}: {}",
                device.why
            ),
            (None, Change::Replaced | Change::Nothing) => log::info!(
                "packet path: {name} (index {index}{role}): taken over from an earlier agent by {how}: {}",
                device.why
            ),
        }
    }

    /// Each new complaint once.
    fn tell_wrong(&mut self, facts: &Facts, wrong: BTreeMap<u32, String>) {
        for (index, text) in &wrong {
            if self.said.get(index) != Some(text) {
                let name = facts.link(*index).map_or("?", |link| link.name.as_str());
                log::error!(
                    "packet path: {name} (index {index}) {text}; the other devices go on, and it is tried again"
                );
            }
        }
        self.said = wrong;
    }

    fn tell_choice(&mut self, facts: &Facts, chosen: &BTreeMap<u32, Chosen>) {
        if self.is_first {
            let patterns = self.choice.devices.iter().flatten();
            for pattern in patterns.chain(&self.choice.pod_devices) {
                if !facts.links.iter().any(|link| pattern.matches(&link.name)) {
                    log::info!("packet path: no device matches {pattern} now; it is waited for");
                }
            }
        }
        let nothing = chosen.is_empty();
        if nothing && !self.said_nothing_chosen {
            log::warn!(
                "packet path: no device leads outside ({}): pods and processes of this node reach Services, \
                 traffic from outside does not; name devices with --devices",
                if self.choice.devices.is_some() {
                    "none matches --devices"
                } else {
                    "none has a default route, an InternalIP of the Node or a global address of a network card"
                }
            );
        }
        self.said_nothing_chosen = nothing;
    }
}

/// Whether the kernel knows a device of this index at this moment.
fn is_there(index: u32) -> bool {
    let Ok(socket) = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)) else {
        return true;
    };
    !matches!(
        rustix::net::netdevice::index_to_name(socket, index),
        Err(rustix::io::Errno::NODEV | rustix::io::Errno::NXIO)
    )
}
