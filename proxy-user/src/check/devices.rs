//! The devices that the packet path's programs would be on, and who else is there.

use std::net::IpAddr;

use super::finding::{Group, Report};
use crate::{
    devices::{Chosen, Header, Role},
    loader::{AtDevice, Hook, How, Others, TcAttach},
};

#[derive(Clone, Debug)]
pub struct Devices {
    /// Or why they can't be listed.
    pub chosen: Result<Vec<Device>, String>,
    pub attach: TcAttach,
    /// By --devices.
    pub is_named: bool,
}

#[derive(Clone, Debug)]
pub struct Device {
    pub chosen: Chosen,
    pub is_up: bool,
    pub addresses: Vec<IpAddr>,
    pub others: Others,
}

pub(super) fn judge(devices: &Devices, has_tcx: bool, report: &mut Report) {
    let group = Group::Devices;
    if devices.attach == TcAttach::Tcx && !has_tcx {
        report.fail(
            group,
            "--tc-attach tcx",
            "this kernel has no links for devices (Linux 6.6 has)",
            "use --tc-attach auto or clsact",
        );
    }
    let chosen = match &devices.chosen {
        Ok(chosen) => chosen,
        Err(reason) => {
            let found = format!("can't be listed: {reason}");
            report.note(group, "devices", found);
            return;
        }
    };
    if chosen.is_empty() {
        let found = if devices.is_named {
            "none matches --devices: traffic from outside does not reach Services until one does"
        } else {
            "none leads outside: traffic from outside does not reach Services"
        };
        report.warn(group, "devices", found, "name devices with --devices");
    }
    let by_links = has_tcx && devices.attach != TcAttach::Clsact;
    for device in chosen {
        one(device, by_links, report);
    }
}

fn one(device: &Device, by_links: bool, report: &mut Report) {
    let group = Group::Devices;
    let Chosen {
        name,
        role,
        header,
        why,
    } = &device.chosen;
    let how = if by_links { "links" } else { "filters" };
    let addresses: Vec<String> = device.addresses.iter().map(IpAddr::to_string).collect();
    let pods = match role {
        Role::Outside => "",
        Role::Pod => ", for pods",
    };
    let state = if device.is_up { "" } else { ", down" };
    let addresses = match addresses.join(", ") {
        none if none.is_empty() => String::new(),
        some => format!(", {some}"),
    };
    if let Header::Other(kind) = header {
        report.warn(
            group,
            format!("device {name}"),
            format!("its packets begin with a header of type {kind} (ARPHRD), which is neither Ethernet nor IP"),
            "leave it out with --devices",
        );
        return;
    }
    let found = format!("by {how}: {why}{pods}{addresses}{state}");
    report.ok(group, format!("device {name}"), found);
    let others = &device.others;
    if others.has_ingress_qdisc && !by_links {
        report.warn(
            group,
            format!("qdisc of {name}"),
            "`ingress` of another tool, beside which there is no `clsact`: packets from outside by this device are not served",
            format!("tc qdisc del dev {name} ingress"),
        );
    }
    programs(name, by_links, others, report);
    if let Some(xdp) = &others.xdp {
        let what = format!("XDP of {name}");
        if balances(xdp) {
            report.warn(
                group,
                what,
                format!("{xdp} translates Services before any packet comes here"),
                OTHER_BALANCER,
            );
        } else {
            report.note(
                group,
                what,
                format!("{xdp}: what it drops or redirects does not come here"),
            );
        }
    }
}

const OTHER_BALANCER: &str =
    "turn off the kube-proxy replacement of that CNI (Cilium: kubeProxyReplacement=false)";

/// By its name it is of a CNI that translates Services at devices too.
fn balances(program: &str) -> bool {
    ["cil_from_netdev", "cil_to_netdev", "cil_xdp"]
        .iter()
        .any(|name| program.starts_with(name))
}

fn programs(device: &str, by_links: bool, others: &Others, report: &mut Report) {
    let group = Group::Devices;
    let theirs: Vec<&AtDevice> = others
        .programs
        .iter()
        .filter(|program| !program.name.starts_with("kp_"))
        .collect();
    let told = |program: &AtDevice| match program.how {
        How::Tcx => format!("{} (link)", program.name),
        How::Filter { priority } => format!("{} (filter, priority {priority})", program.name),
        How::OtherFilter { priority } => format!("a {} filter (priority {priority})", program.name),
    };
    let (balancers, strangers): (Vec<&AtDevice>, Vec<&AtDevice>) = theirs
        .into_iter()
        .partition(|program| balances(&program.name));
    if !balancers.is_empty() {
        let names: Vec<String> = balancers.iter().map(|program| told(program)).collect();
        report.warn(
            group,
            format!("load balancer at {device}"),
            format!("it may translate Services too: {}", names.join(", ")),
            OTHER_BALANCER,
        );
    }
    // On the way in ours is last of its kind, and links run before filters.
    let comes_first = |program: &AtDevice| {
        program.hook == Hook::Ingress && !(by_links && program.how != How::Tcx)
    };
    let (before, after): (Vec<&AtDevice>, Vec<&AtDevice>) = strangers
        .into_iter()
        .partition(|program| comes_first(program));
    if !before.is_empty() {
        let mut names: Vec<String> = before.iter().map(|program| told(program)).collect();
        // A u32 filter is listed with its tables.
        names.dedup();
        report.warn(
            group,
            format!("programs before ours on {device}"),
            format!("a packet that one of them accepts for good (TC_ACT_OK) does not come to ours: {}", names.join(", ")),
            "see that they pass packets on (TC_ACT_UNSPEC, TCX_NEXT); --tc-attach and the order of starting decide who is first",
        );
    }
    if !after.is_empty() {
        let mut names: Vec<String> = after
            .iter()
            .map(|program| format!("{} {}", program.hook, told(program)))
            .collect();
        names.dedup();
        let found = format!("they see packets after ours: {}", names.join(", "));
        report.note(group, format!("programs after ours on {device}"), found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{check::Level, devices::Why};

    fn eth0(others: Others) -> Device {
        Device {
            chosen: Chosen {
                name: "eth0".to_owned(),
                role: Role::Outside,
                header: Header::Ethernet,
                why: Why::DefaultRoute,
            },
            is_up: true,
            addresses: vec!["192.0.2.1".parse().unwrap()],
            others,
        }
    }

    fn program(hook: Hook, how: How, name: &str) -> AtDevice {
        AtDevice {
            hook,
            how,
            name: name.to_owned(),
        }
    }

    fn with(program: AtDevice) -> Device {
        eth0(Others {
            programs: vec![program],
            ..Others::default()
        })
    }

    fn judged(device: Device, attach: TcAttach, has_tcx: bool) -> Report {
        let devices = Devices {
            chosen: Ok(vec![device]),
            attach,
            is_named: false,
        };
        let mut report = Report::default();
        judge(&devices, has_tcx, &mut report);
        report
    }

    #[test]
    fn a_device_is_told_with_why_and_how() {
        let report = judged(eth0(Others::default()), TcAttach::Auto, true);
        assert!(report.bad().is_empty());
        assert_eq!(
            report.about("device eth0").found,
            "by links: a default route, 192.0.2.1"
        );
    }

    #[test]
    fn a_foreign_filter_comes_first_only_where_ours_are_filters_too() {
        let filter = |hook| with(program(hook, How::Filter { priority: 1 }, "theirs"));
        let bad = |hook, attach, tcx| judged(filter(hook), attach, tcx).bad();
        let before = ["warn programs before ours on eth0"];
        let after = ["note programs after ours on eth0"];
        assert_eq!(bad(Hook::Ingress, TcAttach::Auto, true), after);
        assert_eq!(bad(Hook::Ingress, TcAttach::Auto, false), before);
        assert_eq!(bad(Hook::Ingress, TcAttach::Clsact, true), before);
        assert_eq!(bad(Hook::Egress, TcAttach::Clsact, true), after);
        let link = |hook| with(program(hook, How::Tcx, "theirs"));
        assert_eq!(
            judged(link(Hook::Ingress), TcAttach::Auto, true).bad(),
            before
        );
        assert_eq!(
            judged(link(Hook::Egress), TcAttach::Auto, true).bad(),
            after
        );
        let ours = with(program(Hook::Ingress, How::Tcx, "kp_tc_ingress"));
        assert!(judged(ours, TcAttach::Auto, true).bad().is_empty());
    }

    #[test]
    fn a_balancer_s_programs_are_known_by_name() {
        let device = with(program(Hook::Ingress, How::Tcx, "cil_from_netdev"));
        let report = judged(device, TcAttach::Auto, true);
        assert_eq!(report.bad(), ["warn load balancer at eth0"]);
        let xdp = |name: &str| {
            let others = Others {
                xdp: Some(name.to_owned()),
                ..Others::default()
            };
            judged(eth0(others), TcAttach::Auto, true).bad()
        };
        assert_eq!(xdp("cil_xdp_entry"), ["warn XDP of eth0"]);
        assert_eq!(xdp("ddos_guard"), ["note XDP of eth0"]);
    }

    #[test]
    fn the_qdisc_ingress_is_in_the_way_of_filters_only() {
        let others = Others {
            has_ingress_qdisc: true,
            ..Others::default()
        };
        assert!(
            judged(eth0(others.clone()), TcAttach::Auto, true)
                .bad()
                .is_empty()
        );
        let report = judged(eth0(others), TcAttach::Auto, false);
        let remedy = report.about("qdisc of eth0").remedy.as_deref();
        assert_eq!(remedy, Some("tc qdisc del dev eth0 ingress"));
    }

    #[test]
    fn no_device_a_strange_device_and_links_that_are_not_there_are_told() {
        let mut report = Report::default();
        let devices = Devices {
            chosen: Ok(Vec::new()),
            attach: TcAttach::Tcx,
            is_named: true,
        };
        judge(&devices, false, &mut report);
        assert_eq!(report.bad(), ["FAIL --tc-attach tcx", "warn devices"]);
        let mut strange = eth0(Others::default());
        strange.chosen.header = Header::Other(32);
        let report = judged(strange, TcAttach::Auto, true);
        assert_eq!(report.about("device eth0").level, Level::Warn);
        let mut report = Report::default();
        let devices = Devices {
            chosen: Err("EPERM".to_owned()),
            attach: TcAttach::Auto,
            is_named: false,
        };
        judge(&devices, true, &mut report);
        assert_eq!(report.bad(), ["note devices"]);
    }
}
