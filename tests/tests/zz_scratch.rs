use anyhow::Result;
use aya::maps::{HashMap as H, Map, MapData};
use proxy_common::abi::*;
use std::net::SocketAddr;
use tests::{
    World,
    fleet::{Fleet, node_port, slices},
    stage::*,
};
#[test]
fn show() -> Result<()> {
    let world = World::builder()
        .node("node-a", ["client", "near"])
        .node("node-b", ["far"])
        .outside("laptop")
        .build()?;
    let fleet = Fleet::start(
        world,
        &["node-a"],
        &["--max-flows", "600000"],
        |world, manifests| {
            let web = node_port("web", [VIP4, VIP6], 30080)
                .client_ip_affinity(10_800)
                .kind("LoadBalancer")
                .load_balancer(["203.0.113.9"])
                .spec("externalTrafficPolicy: Local")
                .spec("loadBalancerSourceRanges: [10.0.0.0/8, 192.168.0.0/16]");
            manifests.service(&web)?;
            slices(world, manifests, "web", &["near", "far"])
        },
    )?;
    let agent = fleet.agent("node-a")?;
    let client = fleet.world.pod("client");
    let (tcp, udp) = (at(VIP4, 80), at(VIP4, 53));
    let _c = client.connect(tcp)?;
    let _u = client.udp_connected(udp)?;
    let v = client.udp_bound(at("0.0.0.0", 0))?;
    v.exchange_with(udp, "?")?;
    let to = SocketAddr::new(fleet.world.node("node-a").ip4(), 30080);
    let l = fleet.world.pod("laptop").connect(to)?;
    l.exchange("?")?;
    for what in [
        "frontends",
        "backends",
        "affinity",
        "conntrack",
        "sockets",
        "counters",
        "config",
    ] {
        std::fs::write(
            format!("/tmp/insp/{what}.txt"),
            agent.call(&["inspect", what])?,
        )?;
        std::fs::write(
            format!("/tmp/insp/{what}.json"),
            agent.call(&["inspect", what, "--json"])?,
        )?;
    }
    let path = fleet
        .world
        .node("node-a")
        .bpffs()
        .join(proxy_user::maps::pin_directory_name())
        .join(map::FLOWS);
    let mut m: H<MapData, [u8; Tuple::SIZE], [u8; FlowEntry::SIZE]> =
        Map::HashMap(MapData::from_pin(path)?).try_into()?;
    let (k, e) = m.iter().flatten().next().unwrap();
    let (k, e) = (Tuple::from_bytes(k), FlowEntry::from_bytes(e));
    for i in 0..1_000_000u32 {
        let mut k = k;
        k.src.words[3] = (0x0a00_0000 + i).to_be();
        let mut e = e;
        e.used_ns += 1_000_000_000_000;
        if m.insert(k.to_bytes(), e.to_bytes(), 0).is_err() {
            break;
        }
    }
    for args in [
        &["conntrack"][..],
        &["conntrack", "--json"],
        &["conntrack", "--address", "10.0.1.5"],
    ] {
        let t = std::time::Instant::now();
        let text = agent.call(&[&["inspect"], args].concat())?;
        println!(
            "{args:?}: {} lines {} bytes {:?}",
            text.lines().count(),
            text.len(),
            t.elapsed()
        );
    }
    let root = fleet.world.node("node-a").bpffs();
    let out = std::process::Command::new("/usr/bin/time")
        .args([
            "-v",
            "target/debug/kube-portal",
            "inspect",
            "conntrack",
            "--bpffs-root",
        ])
        .arg(root)
        .current_dir("/work/wt/inspect")
        .stdout(std::process::Stdio::null())
        .output()?;
    println!("{}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}
