//! Filters of the qdisc `clsact`, where the kernel has no links for devices (before 6.6). They are
//! told by name and handle; those of others are never touched.

use std::{
    collections::BTreeSet,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use futures::{StreamExt as _, TryStreamExt as _};
use rtnetlink::{
    Error, Handle,
    packet_core::{
        NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
    },
    packet_route::{
        RouteNetlinkMessage,
        tc::{
            TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcHeader, TcMessage,
            TcOption,
        },
    },
};

use super::{
    hook::Hook,
    others::{AtDevice, How, is_kind},
    sys::number,
};

/// "kp", and our programs' names begin with it.
const HANDLE: u32 = 0x6b70;
const NAME: &str = "kp_tc_";
const QDISC: &str = "clsact";
/// `ETH_P_ALL` in network byte order, as it lies in `tcm_info`.
const ALL_PROTOCOLS: u16 = 0x0003_u16.to_be();
/// Priorities that are tried if another tool has put something of another kind there.
const TRIES: u16 = 16;

/// A filter of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    ifindex: u32,
    hook: Hook,
    priority: u16,
    protocol: u16,
    kind: String,
    handle: u32,
    /// Of a BPF filter.
    name: String,
    pub(super) program_id: u32,
}

impl Filter {
    pub(super) fn is_ours(&self) -> bool {
        self.kind == TcFilterBpf::KIND && self.handle == HANDLE && self.name.starts_with(NAME)
    }

    /// As it looks to whoever only wants to know what else there is.
    pub(super) fn as_others(&self) -> AtDevice {
        let priority = self.priority;
        let is_bpf = self.kind == TcFilterBpf::KIND;
        AtDevice {
            hook: self.hook,
            how: if is_bpf {
                How::Filter { priority }
            } else {
                How::OtherFilter { priority }
            },
            name: if is_bpf {
                self.name.clone()
            } else {
                self.kind.clone()
            },
        }
    }
}

/// What went wrong, in words.
pub(super) fn reason(error: &Error) -> String {
    if let Error::NetlinkError(message) = error {
        message.to_io().to_string()
    } else {
        error.to_string()
    }
}

fn is_gone(error: &Error) -> bool {
    matches!(error, Error::NetlinkError(message) if matches!(
        message.to_io().raw_os_error(),
        // No such device, qdisc or filter.
        Some(libc::ENODEV | libc::ENOENT | libc::EINVAL)
    ))
}

fn index(ifindex: u32) -> i32 {
    i32::try_from(ifindex).unwrap_or(0)
}

/// Devices that have the qdisc.
pub(super) async fn devices(handle: &Handle) -> Result<BTreeSet<u32>, Error> {
    devices_with(handle, QDISC).await
}

/// Devices that have a qdisc of this kind.
pub(super) async fn devices_with(handle: &Handle, kind: &str) -> Result<BTreeSet<u32>, Error> {
    let qdiscs: Vec<TcMessage> = handle.qdisc().get().execute().try_collect().await?;
    Ok(qdiscs
        .iter()
        .filter(|qdisc| {
            qdisc
                .attributes
                .iter()
                .any(|attribute| is_kind(attribute, kind))
        })
        .filter_map(|qdisc| u32::try_from(qdisc.header.index).ok())
        .collect())
}

/// All filters of a device with the qdisc; none if it is gone.
pub(super) async fn filters(handle: &Handle, ifindex: u32) -> Result<Vec<Filter>, Error> {
    let mut found = Vec::new();
    for hook in Hook::BOTH {
        let request = handle.traffic_filter(index(ifindex)).get();
        let request = match hook {
            Hook::Ingress => request.ingress(),
            Hook::Egress => request.egress(),
        };
        match request.execute().try_collect::<Vec<TcMessage>>().await {
            Ok(messages) => found.extend(
                messages
                    .iter()
                    // The head of a chain of filters is listed as one with handle 0.
                    .filter(|message| u32::from(message.header.handle) != 0)
                    .map(|message| filter(ifindex, hook, message)),
            ),
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn filter(ifindex: u32, hook: Hook, message: &TcMessage) -> Filter {
    let TcHandle { major, minor } = TcHandle::from(message.header.info);
    let mut filter = Filter {
        ifindex,
        hook,
        priority: major,
        protocol: minor,
        kind: String::new(),
        handle: message.header.handle.into(),
        name: String::new(),
        program_id: 0,
    };
    for attribute in &message.attributes {
        if let TcAttribute::Kind(kind) = attribute {
            filter.kind.clone_from(kind);
        } else if let TcAttribute::Options(options) = attribute {
            for option in options {
                if let TcOption::Bpf(TcFilterBpfOption::ProgName(name)) = option {
                    filter.name.clone_from(name);
                } else if let TcOption::Bpf(TcFilterBpfOption::ProgId(id)) = option {
                    filter.program_id = *id;
                }
            }
        }
    }
    filter
}

/// Where ours goes: at the end it belongs to, but not among filters of another kind or protocol.
fn free_priority(hook: Hook, filters: &[Filter]) -> Option<u16> {
    let is_free = |priority: &u16| {
        filters.iter().all(|filter| {
            filter.hook != hook
                || filter.priority != *priority
                || (filter.kind == TcFilterBpf::KIND
                    && filter.protocol == ALL_PROTOCOLS
                    && filter.handle != HANDLE)
        })
    };
    (0..TRIES)
        .map(|step| match hook {
            Hook::Ingress => hook.priority() - step,
            Hook::Egress => hook.priority() + step,
        })
        .find(is_free)
}

/// A filter of ours at this hook, if there is one.
pub(super) fn ours(hook: Hook, filters: &[Filter]) -> Option<&Filter> {
    filters
        .iter()
        .find(|filter| filter.hook == hook && filter.is_ours())
}

/// Makes the hook run the program: in the place of an earlier one of ours, with no moment without
/// (cls_bpf_change in net/sched/cls_bpf.c), or as a new filter. `filters`: what the device has.
pub(super) async fn attach(
    handle: &Handle,
    ifindex: u32,
    hook: Hook,
    name: &str,
    program: BorrowedFd<'_>,
    filters: &[Filter],
) -> Result<(), String> {
    let priority = match ours(hook, filters) {
        Some(earlier) => earlier.priority,
        None => free_priority(hook, filters).ok_or_else(|| {
            format!(
                "other tools' filters have every priority near {}",
                hook.priority()
            )
        })?,
    };
    let mut message = at(ifindex, hook, priority);
    message.attributes = vec![
        TcAttribute::Kind(TcFilterBpf::KIND.to_owned()),
        TcAttribute::Options(
            [
                TcFilterBpfOption::ProgFd(number(program.as_raw_fd())),
                TcFilterBpfOption::ProgName(name.to_owned()),
                TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
            ]
            .map(TcOption::Bpf)
            .to_vec(),
        ),
    ];
    // Without NLM_F_EXCL a filter that is there is changed.
    request(
        handle,
        RouteNetlinkMessage::NewTrafficFilter(message),
        NLM_F_CREATE,
    )
    .await
    .map_err(|error| reason(&error))
}

/// Adds the qdisc.
pub(super) async fn add_qdisc(handle: &Handle, ifindex: u32) -> Result<(), String> {
    let message = qdisc(ifindex);
    request(
        handle,
        RouteNetlinkMessage::NewQueueDiscipline(message),
        NLM_F_CREATE | NLM_F_EXCL,
    )
    .await
    .map_err(|error| {
        let exists = matches!(&error, Error::NetlinkError(message)
            if message.to_io().raw_os_error() == Some(libc::EEXIST));
        if exists {
            "it has the qdisc `ingress` of another tool, beside which there is no `clsact`: \
             `tc qdisc del dev DEVICE ingress` makes room"
                .to_owned()
        } else {
            format!("qdisc clsact: {}", reason(&error))
        }
    })
}

/// Removes our filters from a device, and the qdisc if nothing is left in it. The hooks that had one.
pub(super) async fn detach(handle: &Handle, ifindex: u32) -> Result<Vec<Hook>, Error> {
    let mut removed = Vec::new();
    for filter in filters(handle, ifindex).await? {
        if filter.is_ours() {
            let mut message = at(ifindex, filter.hook, filter.priority);
            message
                .attributes
                .push(TcAttribute::Kind(TcFilterBpf::KIND.to_owned()));
            let gone = request(handle, RouteNetlinkMessage::DelTrafficFilter(message), 0).await;
            match gone {
                Err(error) if !is_gone(&error) => return Err(error),
                Ok(()) | Err(_) => removed.push(filter.hook),
            }
        }
    }
    if !removed.is_empty() && filters(handle, ifindex).await?.is_empty() {
        let message = qdisc(ifindex);
        match request(handle, RouteNetlinkMessage::DelQueueDiscipline(message), 0).await {
            Err(error) if !is_gone(&error) => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(removed)
}

fn qdisc(ifindex: u32) -> TcMessage {
    let mut message = TcMessage::with_index(index(ifindex));
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle {
        major: u16::MAX,
        minor: 0,
    };
    message.attributes.push(TcAttribute::Kind(QDISC.to_owned()));
    message
}

/// Our filter at this hook.
fn at(ifindex: u32, hook: Hook, priority: u16) -> TcMessage {
    let header = TcHeader {
        index: index(ifindex),
        handle: HANDLE.into(),
        parent: hook.parent(),
        info: TcHandle {
            major: priority,
            minor: ALL_PROTOCOLS,
        }
        .into(),
        ..TcHeader::default()
    };
    TcMessage::from_parts(header, Vec::new())
}

async fn request(handle: &Handle, message: RouteNetlinkMessage, flags: u16) -> Result<(), Error> {
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    let mut response = handle.clone().request(request)?;
    while let Some(message) = response.next().await {
        if let NetlinkPayload::Error(error) = message.payload
            && error.code.is_some()
        {
            return Err(Error::NetlinkError(error));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other(hook: Hook, priority: u16, kind: &str, protocol: u16) -> Filter {
        Filter {
            ifindex: 2,
            hook,
            priority,
            protocol,
            kind: kind.to_owned(),
            handle: 1,
            name: "theirs".to_owned(),
            program_id: 7,
        }
    }

    #[test]
    fn ours_is_last_on_the_way_in_and_first_on_the_way_out() {
        assert_eq!(free_priority(Hook::Ingress, &[]), Some(u16::MAX));
        assert_eq!(free_priority(Hook::Egress, &[]), Some(1));
        // BPF filters share a priority.
        let beside = other(Hook::Egress, 1, "bpf", ALL_PROTOCOLS);
        assert_eq!(free_priority(Hook::Egress, &[beside]), Some(1));
    }

    #[test]
    fn a_priority_of_another_kind_or_protocol_is_left_to_whoever_has_it() {
        let filters = [
            other(Hook::Egress, 1, "matchall", ALL_PROTOCOLS),
            other(Hook::Egress, 2, "bpf", 0x0800_u16.to_be()),
            other(Hook::Ingress, u16::MAX, "u32", ALL_PROTOCOLS),
        ];
        assert_eq!(free_priority(Hook::Egress, &filters), Some(3));
        assert_eq!(free_priority(Hook::Ingress, &filters), Some(u16::MAX - 1));
        let all: Vec<Filter> = (1..=TRIES)
            .map(|priority| other(Hook::Egress, priority, "u32", ALL_PROTOCOLS))
            .collect();
        assert_eq!(free_priority(Hook::Egress, &all), None);
    }

    #[test]
    fn only_a_bpf_filter_with_our_handle_and_name_is_ours() {
        let theirs = other(Hook::Egress, 1, "bpf", ALL_PROTOCOLS);
        let named = Filter {
            name: "kp_tc_egress".to_owned(),
            ..theirs.clone()
        };
        let handled = Filter {
            handle: HANDLE,
            ..theirs.clone()
        };
        let ours_it_is = Filter {
            handle: HANDLE,
            ..named.clone()
        };
        assert!(!theirs.is_ours() && !named.is_ours() && !handled.is_ours());
        assert!(ours_it_is.is_ours());
        // Another tool with our very handle is not overwritten.
        assert_eq!(free_priority(Hook::Egress, &[handled]), Some(2));
    }
}
