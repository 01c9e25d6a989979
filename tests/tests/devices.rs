//! On which devices the packet path is, that it stays there, and that it goes without a trace.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    maps::{HashMap as BpfHashMap, Map, MapData},
    programs::{SchedClassifier, TcAttachType, links::LinkOrder, tc::TcAttachOptions},
};
use proxy_common::{
    abi::{
        ABI_VERSION, Addr, Device, Direction, FlowEntry, FlowTimeouts, SockAddr, Tuple, Via, map,
    },
    datapath::conntrack::{opposite, state},
};
use proxy_user::{
    expiry::{Flows, monotonic_ns, sweep},
    loader::FlowMap,
};
use serde_json::{Value, json};
use tests::{
    Agent, ManifestDir, Node, SINK4, SINK6, Source, World, binaries, bpf, http,
    packet::kernel::Kernel,
    stage::{PATIENCE, eventually},
    tc::{self, TCX, tc},
};

/// A node with one pod, and an agent that knows no Service.
struct Ground {
    // Stops before the world goes.
    agent: Agent,
    manifests: ManifestDir,
    world: World,
}

impl Ground {
    fn new(
        prepare: impl FnOnce(&Node, &ManifestDir) -> Result<()>,
        flags: &[&str],
    ) -> Result<Self> {
        let world = World::builder().node("node-a", ["pod"]).build()?;
        let manifests = ManifestDir::new()?;
        // What leads outside is for each test to say.
        let netns = world.node("node-a").netns();
        netns.ip(&format!(
            "route del default via {SINK4}\nroute del default via {SINK6}\n"
        ))?;
        prepare(world.node("node-a"), &manifests)?;
        let source = Source::Manifests(manifests.path().to_owned());
        let agent = world.node("node-a").start_agent_with(source, flags)?;
        agent.wait_ready(PATIENCE)?;
        Ok(Self {
            agent,
            manifests,
            world,
        })
    }

    /// On eth0.
    fn usual(flags: &[&str]) -> Result<Self> {
        let ground = Self::new(|_, _| Ok(()), &[&["--devices", "eth0"], flags].concat())?;
        ground.wait_devices(&["eth0"])?;
        Ok(ground)
    }

    fn node(&self) -> &Node {
        self.world.node("node-a")
    }

    fn index(&self, name: &str) -> Result<u32> {
        tc::index(self.node().netns(), name)
    }

    fn tc(&self, line: &str) -> Result<String> {
        tc(self.node().netns(), line)
    }

    fn devices(&self) -> Result<Vec<Value>> {
        let mut status = self.agent.status()?;
        serde_json::from_value(status["devices"].take()).context("devices")
    }

    /// Until both hooks of exactly these run our programs.
    fn wait_devices(&self, names: &[&str]) -> Result<()> {
        eventually("the devices", || {
            let devices = self.devices()?;
            let found: Vec<&str> = devices
                .iter()
                .filter(|device| !device["ingress"].is_null() && !device["egress"].is_null())
                .filter_map(|device| device["name"].as_str())
                .collect();
            ensure!(
                found == names && devices.len() == names.len(),
                "{devices:?}"
            );
            Ok(())
        })
    }

    fn pin(&self, name: &str) -> PathBuf {
        self.node()
            .bpffs()
            .join(format!("kube-portal/v{ABI_VERSION}"))
            .join(name)
    }

    /// What the programs know of a device.
    fn known(&self, index: u32) -> Result<Option<Device>> {
        let data = Map::HashMap(MapData::from_pin(self.pin(map::DEVICES))?);
        let devices: BpfHashMap<_, u32, [u8; Device::SIZE]> = data.try_into()?;
        Ok(devices.get(&index, 0).ok().map(Device::from_bytes))
    }

    fn ip(&self, lines: &str) -> Result<()> {
        self.node().netns().ip(lines).map(drop)
    }

    fn restart(&mut self, flags: &[&str]) -> Result<()> {
        let source = Source::Manifests(self.manifests.path().to_owned());
        self.agent.kill();
        self.agent.restart_with(source, flags)?;
        self.agent.wait_ready(PATIENCE)
    }

    /// `(program id, link id)` by hook of eth0.
    fn links(&self) -> Result<[Vec<(u32, u32)>; 2]> {
        let [ingress, egress] =
            TCX.map(|hook| tc::links(self.node().netns(), self.index("eth0")?, hook));
        Ok([ingress?, egress?])
    }

    /// The filters of eth0 by hook, as tc(8) shows them.
    fn filters(&self) -> Result<[String; 2]> {
        Ok([
            self.tc("filter show dev eth0 ingress")?,
            self.tc("filter show dev eth0 egress")?,
        ])
    }

    fn wait_filters(&self) -> Result<()> {
        eventually("the filters", || {
            let [ingress, egress] = self.filters()?;
            ensure!(ingress.contains("kp_tc_ingress"), "{ingress}");
            ensure!(egress.contains("kp_tc_egress"), "{egress}");
            Ok(())
        })
    }

    fn has_qdisc(&self) -> Result<bool> {
        Ok(self.tc("qdisc show dev eth0")?.contains("clsact"))
    }
}

const CLSACT: [&str; 2] = ["--tc-attach", "clsact"];

/// Links of devices came with Linux 6.6.
fn has_tcx() -> Result<bool> {
    let world = World::builder().node("node-a", ["pod"]).build()?;
    let netns = world.node("node-a").netns();
    Ok(tc::links(netns, tc::index(netns, "eth0")?, TCX[0]).is_ok())
}

#[test]
fn the_uplink_is_chosen_by_its_default_route_and_pods_devices_are_not() -> Result<()> {
    let ground = Ground::new(
        |node, _| {
            node.netns()
                .ip("route add default via 192.168.50.250 dev eth0\n")
                .map(drop)
        },
        &[],
    )?;
    ground.wait_devices(&["eth0"])?;
    ground
        .agent
        .wait_line(&["eth0", "attached by", "a default route"], PATIENCE)?;
    let (eth0, pod) = (ground.index("eth0")?, ground.index("pod2")?);
    eventually("what is known of devices", || {
        let node = ground.node();
        for index in [eth0, pod] {
            let device = ground.known(index)?.context("no entry")?;
            ensure!(
                device.v4 == Addr::from(node.ip4())
                    && device.v6 == Addr::from(node.ip6())
                    && device.mtu == 1500
                    && device.flags == 0,
                "{device:?}"
            );
        }
        ensure!(ground.known(1)?.is_none(), "loopback has an entry");
        Ok(())
    })
}

#[test]
fn the_uplink_is_chosen_when_it_gets_a_default_route_of_either_family() -> Result<()> {
    for (add, del) in [
        (
            "route add default via 192.168.50.250 dev eth0\n",
            "route del default\n",
        ),
        (
            "route add default via fd50::250 dev eth0\n",
            "route del default via fd50::250\n",
        ),
    ] {
        let ground = Ground::new(|_, _| Ok(()), &[])?;
        ground
            .agent
            .wait_line(&["no device leads outside", "--devices"], PATIENCE)?;
        ensure!(ground.devices()?.is_empty());
        // Others don't count.
        ground.ip("route add 10.9.0.0/16 via 192.168.50.250 dev eth0\n")?;
        ground.ip(add)?;
        ground.wait_devices(&["eth0"])?;
        ground.ip(del)?;
        ground.wait_devices(&[])?;
    }
    Ok(())
}

#[test]
fn the_uplink_is_chosen_by_the_internal_ip_of_the_node_object() -> Result<()> {
    let node_object = |ip: IpAddr| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: node-a\nstatus:\n  addresses:\n  \
             - type: InternalIP\n    address: {ip}\n"
        )
    };
    let ground = Ground::new(
        |node, manifests| {
            fs::write(manifests.path().join("node.yaml"), node_object(node.ip6()))?;
            Ok(())
        },
        &[],
    )?;
    ground.wait_devices(&["eth0"])?;
    ground
        .agent
        .wait_line(&["eth0", "an InternalIP of the Node"], PATIENCE)?;
    // The Node's addresses are followed.
    fs::write(
        ground.manifests.path().join("node.yaml"),
        node_object("192.0.2.1".parse()?),
    )?;
    ground.wait_devices(&[])
}

#[test]
fn a_device_is_followed_through_its_whole_life() -> Result<()> {
    let ground = Ground::new(|_, _| Ok(()), &["--devices", "eth0,up*"])?;
    ground
        .agent
        .wait_line(&["no device matches up*", "waited for"], PATIENCE)?;
    ground.wait_devices(&["eth0"])?;
    ground.ip(
        "link add up1 type veth peer name peer\naddr add 192.0.2.7/24 dev up1\nlink set up1 up\n",
    )?;
    ground.wait_devices(&["eth0", "up1"])?;
    let index = ground.index("up1")?;
    let wait_known = |mtu: u32, ip: &str| {
        eventually("what is known of it", || {
            let device = ground.known(index)?.context("no entry")?;
            let ip: IpAddr = ip.parse()?;
            ensure!(
                device.mtu == mtu && device.v4 == Addr::from(ip),
                "{device:?}"
            );
            Ok(())
        })
    };
    wait_known(1500, "192.0.2.7")?;
    ground.ip("link set up1 mtu 1280\naddr del 192.0.2.7/24 dev up1\n")?;
    wait_known(1280, &ground.node().ip4().to_string())?;
    ground.ip("link set up1 down\nlink set up1 name up2\n")?;
    ground.wait_devices(&["eth0", "up2"])?;
    ground
        .agent
        .wait_line(&["up1 is called up2 now"], PATIENCE)?;
    ground.ip("link set up2 up\nlink set up2 down\nlink set up2 up\n")?;
    ground.wait_devices(&["eth0", "up2"])?;
    // A name that is not asked for any more.
    ground.ip("link set up2 down\nlink set up2 name other\n")?;
    ground.wait_devices(&["eth0"])?;
    ground.agent.wait_line(&["other", "detached"], PATIENCE)?;
    ground.ip("link set other name up3\n")?;
    ground.wait_devices(&["eth0", "up3"])?;
    ground.ip("link del up3\n")?;
    ground.wait_devices(&["eth0"])?;
    ground.agent.wait_line(&["up3", "is gone"], PATIENCE)?;
    eventually("nothing to be left of it", || {
        ensure!(ground.known(index)?.is_none());
        let pins = fs::read_dir(ground.pin(""))?.flatten();
        let left: Vec<_> = pins
            .filter(|pin| {
                pin.file_name()
                    .to_string_lossy()
                    .ends_with(&format!("_at_{index}"))
            })
            .collect();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}

#[test]
fn devices_without_an_ethernet_header_get_programs_of_their_own() -> Result<()> {
    for flags in [&[][..], &CLSACT] {
        let ground = Ground::new(
            |node, _| {
                node.netns()
                    .ip("tuntap add dev tun7 mode tun\naddr add 192.0.2.9/32 dev tun7\n")
                    .map(drop)
            },
            flags,
        )?;
        ground.wait_devices(&["tun7"])?;
        let programs = bpf::our_programs()?;
        ensure!(
            programs
                .values()
                .any(|name| name == "kp_tc_ingress_i" || name == "kp_tc_ingress_ip")
        );
    }
    Ok(())
}

#[test]
fn by_links_ours_is_last_on_the_way_in_and_first_on_the_way_out() -> Result<()> {
    if !has_tcx()? {
        return Ok(());
    }
    // Another tool has attached programs before, at both ends.
    let mut theirs = Kernel::load()?;
    let mut ids = [0; 2];
    let mut ground = Ground::new(
        |node, _| {
            node.netns().enter(|| -> Result<()> {
                for (id, (name, kind)) in ids.iter_mut().zip([
                    ("kp_tc_ingress", TcAttachType::Ingress),
                    ("kp_tc_egress", TcAttachType::Egress),
                ]) {
                    let program: &mut SchedClassifier = theirs.program(name)?;
                    *id = program.info()?.id();
                    program.attach_with_options(
                        "eth0",
                        kind,
                        TcAttachOptions::TcxOrder(LinkOrder::default()),
                    )?;
                }
                Ok(())
            })?
        },
        &["--devices", "eth0"],
    )?;
    ground.wait_devices(&["eth0"])?;
    let in_order = |ground: &Ground| -> Result<[Vec<(u32, u32)>; 2]> {
        let [ingress, egress] = ground.links()?;
        ensure!(
            ingress.len() == 2 && ingress[0].0 == ids[0],
            "ingress: {ingress:?}, theirs {ids:?}"
        );
        ensure!(
            egress.len() == 2 && egress[1].0 == ids[1],
            "egress: {egress:?}, theirs {ids:?}"
        );
        Ok([ingress, egress])
    };
    let before = in_order(&ground)?;
    // The next agent gives the same links other programs: there is no moment without.
    ground.restart(&["--devices", "eth0"])?;
    ground.agent.wait_line(&["eth0", "taken over"], PATIENCE)?;
    let after = in_order(&ground)?;
    for (hook, ours) in [(0, 1), (1, 0)] {
        let (before, after) = (before[hook][ours], after[hook][ours]);
        ensure!(before.1 == after.1, "another link: {before:?} {after:?}");
        ensure!(
            before.0 != after.0,
            "the same program: {before:?} {after:?}"
        );
    }
    ground.agent.stop()?;
    ground.agent.cleanup()?;
    let [ingress, egress] = ground.links()?;
    ensure!(
        ingress.len() == 1 && ingress[0].0 == ids[0] && egress.len() == 1 && egress[0].0 == ids[1],
        "{ingress:?} {egress:?}"
    );
    Ok(())
}

#[test]
fn a_link_that_is_lost_is_attached_again() -> Result<()> {
    if !has_tcx()? {
        return Ok(());
    }
    let ground = Ground::usual(&[])?;
    let index = ground.index("eth0")?;
    fs::remove_file(ground.pin(&format!("link_kp_tc_ingress_at_{index}")))?;
    ground.agent.wait_line(
        &["eth0", "took our program away", "attached again"],
        PATIENCE,
    )?;
    ground.wait_devices(&["eth0"])?;
    let [ingress, egress] = ground.links()?;
    ensure!(
        ingress.len() == 1 && egress.len() == 1,
        "{ingress:?} {egress:?}"
    );
    Ok(())
}

#[test]
fn by_filters_ours_is_last_on_the_way_in_and_first_on_the_way_out() -> Result<()> {
    let mut ground = Ground::new(
        |node, _| {
            tc(node.netns(), "qdisc add dev eth0 clsact")?;
            tc(
                node.netns(),
                "filter add dev eth0 ingress pref 100 protocol all u32 match u32 0 0 flowid 1:1",
            )?;
            tc(
                node.netns(),
                "filter add dev eth0 egress pref 100 protocol all u32 match u32 0 0 flowid 1:1",
            )?;
            // In our place.
            tc(
                node.netns(),
                "filter add dev eth0 egress pref 1 protocol all u32 match u32 0 0 flowid 1:1",
            )?;
            Ok(())
        },
        &[&["--devices", "eth0"], &CLSACT[..]].concat(),
    )?;
    ground.wait_devices(&["eth0"])?;
    let prefs = |text: &str| -> Vec<(u16, bool)> {
        let mut prefs: Vec<(u16, bool)> = Vec::new();
        for line in text.lines().filter(|line| line.starts_with("filter")) {
            let mut words = line.split_whitespace().skip_while(|word| *word != "pref");
            let pref = words.nth(1).and_then(|pref| pref.parse().ok()).unwrap_or(0);
            let ours = line.contains("kp_tc_");
            match prefs.last_mut() {
                Some(last) if last.0 == pref => last.1 |= ours,
                _ => prefs.push((pref, ours)),
            }
        }
        prefs
    };
    let in_order = |[ingress, egress]: [String; 2]| {
        ensure!(
            prefs(&ingress) == [(100, false), (65535, true)],
            "{ingress}"
        );
        ensure!(
            prefs(&egress) == [(1, false), (2, true), (100, false)],
            "{egress}"
        );
        Ok(())
    };
    in_order(ground.filters()?)?;
    // A restart replaces ours where they are, and nobody else's.
    ground.restart(&[&["--devices", "eth0"], &CLSACT[..]].concat())?;
    ground.agent.wait_line(&["eth0", "taken over"], PATIENCE)?;
    in_order(ground.filters()?)?;
    ground.agent.stop()?;
    let told = ground.agent.cleanup()?;
    ensure!(told.contains("removed ingress filter of eth0"), "{told}");
    let [ingress, egress] = ground.filters()?;
    ensure!(prefs(&ingress) == [(100, false)], "{ingress}");
    ensure!(prefs(&egress) == [(1, false), (100, false)], "{egress}");
    Ok(())
}

#[test]
fn filters_and_the_qdisc_that_others_delete_come_back() -> Result<()> {
    let ground = Ground::usual(&CLSACT)?;
    ground.wait_filters()?;
    let told = || ground.agent.count_log("took our program away");
    for line in [
        "filter del dev eth0 egress",
        "filter del dev eth0 ingress pref 65535",
        "qdisc del dev eth0 clsact",
    ] {
        let before = told();
        ground.tc(line)?;
        ground.wait_filters()?;
        // Once or twice: what goes with a qdisc may be seen going one by one.
        eventually("to be told", || {
            ensure!(told() > before, "{}", told());
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn filters_are_there_at_every_moment_of_a_restart() -> Result<()> {
    let flags = [&["--devices", "eth0"], &CLSACT[..]].concat();
    let mut ground = Ground::usual(&CLSACT)?;
    ground.wait_filters()?;
    // Whatever is deleted is told by the kernel.
    let netns = ground.node().netns().name().to_owned();
    let mut monitor = Command::new("tc")
        .args(["-n", &netns, "monitor"])
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let stop = AtomicBool::new(false);
    let watched = std::thread::scope(|scope| -> Result<usize> {
        let netns = ground.world.node("node-a").netns();
        let watch = scope.spawn(|| -> Result<usize> {
            let mut looks = 0;
            while !stop.load(Ordering::Acquire) {
                for hook in ["ingress", "egress"] {
                    let shown = tc(netns, &format!("filter show dev eth0 {hook}"))?;
                    let ours = format!("name kp_tc_{hook} ");
                    ensure!(shown.matches(&ours).count() == 1, "{shown}");
                }
                looks += 1;
            }
            Ok(looks)
        });
        let source = Source::Manifests(ground.manifests.path().to_owned());
        let restarts = (0..3).try_for_each(|_| -> Result<()> {
            ground.agent.kill();
            ground.agent.restart_with(source.clone(), &flags)?;
            ground.agent.wait_ready(PATIENCE)?;
            ground
                .agent
                .wait_line(&["eth0", "taken over"], PATIENCE)
                .map(drop)
        });
        stop.store(true, Ordering::Release);
        restarts?;
        watch.join().map_err(|_| anyhow::anyhow!("panic"))?
    });
    // Asked for last, so that all before it has been said.
    ground.tc("qdisc del dev eth0 clsact")?;
    let mut said = String::new();
    let mut output = std::io::BufReader::new(monitor.stdout.take().context("a pipe")?);
    while !said.contains("deleted qdisc clsact") {
        let length = std::io::BufRead::read_line(&mut output, &mut said)?;
        ensure!(length > 0, "the monitor ended: {said}");
    }
    monitor.kill()?;
    monitor.wait()?;
    ensure!(watched? > 3);
    let deleted = said.matches("deleted filter").count();
    ensure!(deleted == 0, "{said}");
    Ok(())
}

#[test]
fn one_mechanism_takes_over_from_the_other() -> Result<()> {
    if !has_tcx()? {
        return Ok(());
    }
    let mut ground = Ground::usual(&CLSACT)?;
    ground.wait_filters()?;
    let by = |ground: &Ground, wanted: &str| {
        let wanted = json!(wanted);
        eventually("the mechanism", || {
            let devices = ground.devices()?;
            ensure!(
                devices.len() == 1
                    && devices[0]["ingress"] == wanted
                    && devices[0]["egress"] == wanted,
                "{devices:?}"
            );
            Ok(())
        })
    };
    ground.restart(&["--devices", "eth0", "--tc-attach", "tcx"])?;
    by(&ground, "tcx")?;
    eventually("the filters to go", || {
        let links = ground.links()?;
        ensure!(!ground.has_qdisc()? && links.iter().all(|links| links.len() == 1));
        Ok(())
    })?;
    ground.restart(&[&["--devices", "eth0"], &CLSACT[..]].concat())?;
    eventually("the links to go", || {
        ensure!(ground.links()?.iter().all(Vec::is_empty));
        Ok(())
    })?;
    ground.wait_filters()?;
    by(&ground, "clsact")
}

#[test]
fn cleanup_leaves_nothing_on_devices() -> Result<()> {
    for flags in [&[][..], &CLSACT] {
        let mut ground = Ground::usual(flags)?;
        ground.agent.stop()?;
        ground.wait_devices(&["eth0"])?;
        ground.agent.cleanup()?;
        ensure!(!ground.has_qdisc()?, "{flags:?}");
        if has_tcx()? {
            ensure!(ground.links()?.iter().all(Vec::is_empty), "{flags:?}");
        }
        ensure!(!ground.node().bpffs().join("kube-portal").exists());
        let again = ground.agent.cleanup()?;
        ensure!(again.contains("nothing of kube-portal"), "{again}");
    }
    Ok(())
}

#[test]
fn filters_whose_pins_are_gone_are_cleaned_up_too() -> Result<()> {
    let mut ground = Ground::usual(&CLSACT)?;
    ground.agent.stop()?;
    for pin in fs::read_dir(ground.pin(""))?.flatten() {
        fs::remove_file(pin.path())?;
    }
    ground.agent.cleanup()?;
    ensure!(!ground.has_qdisc()?);
    Ok(())
}

#[test]
fn a_device_that_refuses_is_told_once_and_the_others_go_on() -> Result<()> {
    let ground = Ground::new(
        |node, _| {
            node.netns()
                .ip("link add busy type veth peer name peer\nlink set busy up\n")?;
            tc(node.netns(), "qdisc add dev busy ingress").map(drop)
        },
        &[&["--devices", "busy,eth0"], &CLSACT[..]].concat(),
    )?;
    ground.wait_devices(&["eth0"])?;
    let line = ground.agent.wait_line(&["busy", "ingress"], PATIENCE)?;
    ensure!(line.contains("tried again"), "{line}");
    ground.tc("qdisc del dev busy ingress")?;
    ground.wait_devices(&["eth0", "busy"])?;
    let told = ground.agent.count_log("busy (index");
    ensure!(told == 2, "{:#?}", ground.agent.log());
    Ok(())
}

#[test]
fn what_can_not_be_a_name_is_refused_at_the_start() -> Result<()> {
    let world = World::builder().node("node-a", ["pod"]).build()?;
    let kube_portal = binaries::kube_portal()?;
    for flags in [
        ["--devices", "eth["],
        ["--pod-devices", "a/b"],
        ["--snat-ports", "9-8"],
    ] {
        let mut command = world
            .node("node-a")
            .host()
            .command(&kube_portal.to_string_lossy())?;
        let output = command
            .args(["run", "--manifests", "/tmp"])
            .args(flags)
            .arg("--cgroup-root")
            .arg(world.node("node-a").cgroup())
            .arg("--bpffs-root")
            .arg(world.node("node-a").bpffs())
            .output()?;
        let said = String::from_utf8(output.stderr)?;
        ensure!(output.status.code() == Some(2), "{flags:?}: {said}");
        ensure!(said.contains(flags[0]) && said.contains(flags[1]), "{said}");
    }
    Ok(())
}

#[test]
fn a_pods_device_is_marked() -> Result<()> {
    let ground = Ground::new(|_, _| Ok(()), &["--pod-devices", "pod*"])?;
    ground.wait_devices(&["pod2"])?;
    let index = ground.index("pod2")?;
    eventually("its mark", || {
        let device = ground.known(index)?.context("no entry")?;
        ensure!(device.flags == Device::POD, "{device:?}");
        Ok(())
    })
}

#[test]
fn pins_of_another_version_go_once_ours_are_there() -> Result<()> {
    let mut ground = Ground::usual(&[])?;
    let root = ground.node().bpffs().join("kube-portal");
    let older = root.join("v0");
    // An agent of that version is running.
    fs::rename(ground.pin(""), &older)?;
    let source = Source::Manifests(ground.manifests.path().to_owned());
    let mut second = ground.node().start_agent(source)?;
    ensure!(second.wait_exit(PATIENCE)?.code() == Some(1));
    let line = second.wait_line(
        &["kube-portal: another", "another kube-portal is running"],
        PATIENCE,
    )?;
    ensure!(line.contains("stop it first"), "{line}");
    ensure!(older.join(map::FLOWS).exists());
    // It has ended.
    ground.restart(&["--devices", "eth0"])?;
    eventually("the older pins to go", || {
        ensure!(!older.exists());
        Ok(())
    })?;
    ground.wait_devices(&["eth0"])?;
    if has_tcx()? {
        let links = ground.links()?;
        ensure!(links.iter().all(|links| links.len() == 1), "{links:?}");
    }
    for (hook, programs) in bpf::attached(ground.node().cgroup())? {
        ensure!(programs.len() == 1, "hook {hook}: {programs:?}");
    }
    Ok(())
}

/// Both entries of a TCP flow whose last packet was so long ago.
fn flow(port: u16, age_ns: u64) -> [(Tuple, FlowEntry); 2] {
    let at = |ip: &str, port: u16| {
        let ip: IpAddr = ip.parse().expect("an address");
        SockAddr::from_parts(Addr::from(ip), port.to_be())
    };
    let (client, frontend) = (at("203.0.113.7", port), at("192.0.2.1", 80));
    let backend = at("10.1.1.2", 8080);
    let original = FlowEntry {
        used_ns: monotonic_ns().saturating_sub(age_ns),
        src: client,
        dst: backend,
        service: 1,
        backend_id: 1,
        proof: 0,
        direction: Direction::Original as u8,
        via: Via::Stack as u8,
        state: state::PROVEN | state::REPLIED | state::RESET,
        zero: 0,
    };
    let reply = FlowEntry {
        src: frontend,
        dst: client,
        direction: Direction::Reply as u8,
        ..original
    };
    let tuple = Tuple {
        src: client.addr,
        dst: frontend.addr,
        src_port_be: client.port_be,
        dst_port_be: frontend.port_be,
        protocol: 6,
        zero: [0; 3],
    };
    let mut back = tuple;
    opposite(&original, 6, &mut back);
    [(tuple, original), (back, reply)]
}

const SECOND_NS: u64 = 1_000_000_000;

#[test]
fn flows_that_are_over_are_cleared_away_and_all_others_stay() -> Result<()> {
    let ground = Ground::usual(&["--max-flows", "4096"])?;
    let mut flows = FlowMap::from_pin(&ground.pin(map::FLOWS))?;
    ensure!(flows.capacity() == 8192);
    let half_open = Map::LruHashMap(MapData::from_pin(ground.pin(map::HALF_OPEN))?);
    let mut half_open: BpfHashMap<_, [u8; Tuple::SIZE], [u8; FlowEntry::SIZE]> =
        half_open.try_into()?;
    // One that was closed a while ago; one that has long to live; one of which only one direction is
    // old; and of those half open, too, one of each.
    let young = |port| {
        flow(port, 0).map(|(tuple, entry)| {
            let state = state::PROVEN;
            (tuple, FlowEntry { state, ..entry })
        })
    };
    let over = (2000..2500).map(|port| flow(port, 3600 * SECOND_NS));
    for (tuple, entry) in over.flatten() {
        flows.put(&tuple, &entry)?;
    }
    let mut stay: Vec<(Tuple, FlowEntry)> = (4000..4500).flat_map(young).collect();
    let [old, _] = flow(5000, 3600 * SECOND_NS);
    let [_, new] = young(5000);
    stay.extend([old, new]);
    for (tuple, entry) in &stay {
        flows.put(tuple, entry)?;
    }
    let begun = flow(6000, 0);
    for (tuple, entry) in flow(6001, 3600 * SECOND_NS).iter().chain(&begun) {
        half_open.insert(tuple.to_bytes(), entry.to_bytes(), 0)?;
    }
    eventually("the flows to go", || {
        let count = flows.count()?;
        ensure!(count == stay.len(), "{count} entries");
        Ok(())
    })?;
    let stay_count = stay.len();
    for (tuple, entry) in stay {
        ensure!(flows.get(&tuple) == Some(entry), "{tuple:?}");
    }
    // Swept after the flows; half open for a minute, so that nobody has to hurry.
    eventually("what is half open to be swept", || {
        ensure!(half_open.keys().count() == begun.len());
        Ok(())
    })?;
    for (tuple, entry) in begun {
        ensure!(half_open.get(&tuple.to_bytes(), 0)? == entry.to_bytes());
    }
    let metrics = || {
        let at = SocketAddr::from(([127, 0, 0, 1], 10249));
        http::get(ground.world.node("node-a").netns(), at, "/metrics")
    };
    let filling = |map: &str, entries: usize, capacity: u32| {
        let body = metrics()?.body;
        for line in [
            format!("kube_portal_map_entries{{map=\"{map}\"}} {entries}"),
            format!("kube_portal_map_capacity{{map=\"{map}\"}} {capacity}"),
        ] {
            ensure!(body.lines().any(|found| found == line), "{line}: {body}");
        }
        Ok(())
    };
    eventually("the metrics of both", || {
        filling("flows", stay_count, 8192)?;
        filling("half_open", 2, 131_072)
    })?;
    let used = &ground.agent.status()?["maps"]["flow entries"];
    ensure!(used["used"] == 1002 && used["capacity"] == 8192, "{used}");
    Ok(())
}

#[test]
fn flows_live_as_long_as_kube_proxys_flags_say() -> Result<()> {
    let ground = Ground::usual(&[
        "--conntrack-tcp-timeout-established=30m",
        "--conntrack-tcp-timeout-close-wait=10m",
    ])?;
    let mut flows = FlowMap::from_pin(&ground.pin(map::FLOWS))?;
    let aged = |port, state, minutes: u64| {
        flow(port, minutes * 60 * SECOND_NS)
            .map(|(tuple, entry)| (tuple, FlowEntry { state, ..entry }))
    };
    let closed = state::PROVEN | state::FIN_ORIGINAL;
    let stay = [aged(1000, state::PROVEN, 20), aged(1001, closed, 5)];
    let go = [aged(2000, state::PROVEN, 40), aged(2001, closed, 15)];
    for (tuple, entry) in stay.iter().chain(&go).flatten() {
        flows.put(tuple, entry)?;
    }
    eventually("the flows to go", || {
        let count = flows.count()?;
        ensure!(count == 4, "{count} entries");
        Ok(())
    })?;
    for (tuple, entry) in stay.iter().flatten() {
        ensure!(flows.get(tuple) == Some(*entry), "{tuple:?}");
    }
    Ok(())
}

/// `cargo test -p tests --test devices -- --ignored --nocapture what_a_sweep_costs`
#[test]
#[ignore = "a measurement"]
fn what_a_sweep_costs() -> Result<()> {
    let ground = Ground::usual(&["--max-flows", "524288"])?;
    let mut flows = FlowMap::from_pin(&ground.pin(map::FLOWS))?;
    for second in 0..8_u8 {
        for port in 0..=u16::MAX {
            for (mut tuple, mut entry) in flow(port, 0) {
                entry.state = state::PROVEN;
                let ip = IpAddr::from([203, 0, second, 7]);
                for addr in [
                    &mut tuple.src,
                    &mut tuple.dst,
                    &mut entry.src.addr,
                    &mut entry.dst.addr,
                ] {
                    if *addr == Addr::from(IpAddr::from([203, 0, 113, 7])) {
                        *addr = ip.into();
                    }
                }
                flows.put(&tuple, &entry)?;
            }
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_time()
        .build()?;
    let mut flows = Flows {
        map: flows,
        timeouts: FlowTimeouts::DEFAULT,
        tally: None,
    };
    for _ in 0..3 {
        let begun = std::time::Instant::now();
        let swept = runtime.block_on(async { sweep(&mut flows, 0).await })?;
        println!(
            "{swept:?}, {:?} in all, with rests {:?}",
            begun.elapsed(),
            swept.busy * 50
        );
    }
    Ok(())
}
