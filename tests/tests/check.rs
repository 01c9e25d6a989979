//! `kube-portal check`: what it finds on nodes that lack something, and that it leaves them as they are.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{Node, Source, World, binaries, bpf, stage::PATIENCE, tc::tc, wait};

/// Output of the command on a node, and its exit code.
fn run(node: &Node, extra: &[&str]) -> Result<(String, i32)> {
    on(node, node.cgroup(), node.bpffs(), extra)
}

fn on(node: &Node, cgroup: &Path, bpffs: &Path, extra: &[&str]) -> Result<(String, i32)> {
    let binary = binaries::kube_portal()?;
    let mut command: Command = node.host().command(&binary.to_string_lossy())?;
    let output = command
        .arg("check")
        .args(["--manifests", "/nonexistent", "--node-name", node.name()])
        .arg("--cgroup-root")
        .arg(cgroup)
        .arg("--bpffs-root")
        .arg(bpffs)
        .args(extra)
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(
        !text.is_empty(),
        "nothing said: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok((text, output.status.code().context("it was killed")?))
}

/// The line about something; there is one.
fn line<'a>(text: &'a str, what: &str) -> Result<&'a str> {
    let mut found = text.lines().filter(|line| line.contains(what));
    let line = found
        .next()
        .with_context(|| format!("no {what} in\n{text}"))?;
    ensure!(found.next().is_none(), "{what} twice in\n{text}");
    Ok(line)
}

/// What is off in these findings. A kernel before 5.14 can't tell this world's network from others, and is
/// right to be warned of.
fn warnings(text: &str) -> Vec<&str> {
    text.lines()
        .filter(|line| line.starts_with("warn") || line.starts_with("FAIL"))
        .filter(|line| !line.contains("this kernel can't tell it from others"))
        .collect()
}

fn world() -> Result<World> {
    World::builder().node("node-a", ["pod"]).build()
}

/// What the node has that a check could change: pins, devices, qdiscs, rules, sysctls, programs.
fn state(node: &Node) -> Result<String> {
    let mut pins: Vec<_> = fs::read_dir(node.bpffs())?
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    pins.sort();
    let host = node.host();
    let sysctls = node.netns().enter(|| {
        ["ip_forward", "ip_local_port_range", "conf/all/rp_filter"].map(|name| {
            fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default()
        })
    })?;
    let programs = [node.cgroup(), host.cgroup()].map(bpf::attached);
    let [root, below] = programs;
    Ok(format!(
        "{pins:?}\n{}\n{}\n{}\n{}\n{sysctls:?}\n{:?}\n{:?}",
        host.run("ip", &["-o", "address"])?,
        host.run("nft", &["list", "ruleset"])?,
        tc(node.netns(), "qdisc show")?,
        tc(node.netns(), "filter show dev eth0 ingress").unwrap_or_default(),
        root?,
        below?
    ))
}

#[test]
fn a_clean_node_is_fine_and_stays_as_it_was() -> Result<()> {
    let world = world()?;
    let node = world.node("node-a");
    let before = state(node)?;
    let (text, code) = run(node, &[])?;
    ensure!(code == 0, "{code}\n{text}");
    ensure!(warnings(&text).is_empty(), "{text}");
    let last = text.lines().last().unwrap_or_default();
    ensure!(last.starts_with("kube-portal can run here"), "{last}");
    line(&text, "device eth0")?;
    let after = state(node)?;
    ensure!(before == after, "before:\n{before}\nafter:\n{after}");
    // What was tried is gone, once the kernel has let go of it.
    wait::until("programs that were tried to be gone", PATIENCE, || {
        let programs = bpf::programs().ok()?;
        (!programs.values().any(|name| name == "kp_check")).then_some(())
    })
}

#[test]
fn the_same_as_json() -> Result<()> {
    let world = world()?;
    let node = world.node("node-a");
    let (text, code) = run(node, &["--json"])?;
    let report: Value = serde_json::from_str(&text)?;
    ensure!(code == 0 && report["fail"] == 0, "{text}");
    let findings = report["findings"].as_array().context("findings")?;
    ensure!(
        findings
            .iter()
            .any(|finding| finding["group"] == "bpffs" && finding["level"] == "ok"),
        "{text}"
    );
    Ok(())
}

#[test]
fn a_missing_bpffs_is_told_with_the_command_that_mounts_it() -> Result<()> {
    let world = world()?;
    let node = world.node("node-a");
    let (text, code) = on(node, node.cgroup(), world.dir(), &[])?;
    ensure!(code == 3, "{code}\n{text}");
    let line = line(&text, "BPF filesystem:")?;
    let remedy = format!("-> mount -t bpf bpf {}", world.dir().display());
    ensure!(
        line.starts_with("FAIL") && line.ends_with(&remedy),
        "{line}"
    );
    Ok(())
}

#[test]
fn an_exclusive_program_above_is_found_before_the_kernel_refuses_ours() -> Result<()> {
    let world = world()?;
    let node = world.node("node-a");
    let above = node.cgroup().parent().context("a parent")?;
    let theirs = bpf::attach_alone(above, "theirs")?;
    let (text, code) = run(node, &[])?;
    ensure!(code == 3, "{code}\n{text}");
    let found = line(&text, &format!("programs at {}", above.display()))?;
    ensure!(
        found.starts_with("FAIL") && found.contains("theirs (connect4)"),
        "{found}"
    );
    // And so it is.
    let mut agent = node.start_agent(Source::Manifests(world.dir().to_owned()))?;
    let ended = agent.wait_exit(PATIENCE)?;
    ensure!(!ended.success(), "it was let in");
    drop(theirs);
    let _cleaned = agent.cleanup();
    Ok(())
}

#[test]
fn rules_of_a_kube_proxy_are_found_with_their_mode() -> Result<()> {
    let world = world()?;
    let node = world.node("node-a");
    node.netns()
        .nft("table ip kube-proxy {\n chain services {\n }\n}\n")?;
    let (text, code) = run(node, &[])?;
    ensure!(code == 0, "{code}\n{text}");
    let found = line(&text, "rules of mode nftables")?;
    ensure!(
        found.starts_with("warn") && found.contains("kube-portal cleanup --kube-proxy"),
        "{found}"
    );
    ensure!(
        node.host()
            .run("nft", &["list", "tables"])?
            .contains("ip kube-proxy"),
        "it was removed"
    );
    Ok(())
}

#[test]
fn a_foreign_filter_matters_where_ours_would_come_after_it() -> Result<()> {
    let world = world()?;
    let node = world.node("node-a");
    tc(node.netns(), "qdisc add dev eth0 clsact")?;
    tc(
        node.netns(),
        "filter add dev eth0 ingress pref 7 protocol all u32 match u32 0 0 flowid 1:1",
    )?;
    let before = state(node)?;
    let (text, code) = run(node, &["--tc-attach", "clsact"])?;
    ensure!(code == 0, "{code}\n{text}");
    let found = line(&text, "programs before ours on eth0")?;
    ensure!(
        found.starts_with("warn") && found.contains("a u32 filter (priority 7)"),
        "{found}"
    );
    ensure!(before == state(node)?, "the filters have changed");
    Ok(())
}

#[test]
fn a_taken_port_and_the_agent_s_own_are_told_apart() -> Result<()> {
    let world = world()?;
    let node = world.node("node-a");
    let listener = node
        .netns()
        .enter(|| std::net::TcpListener::bind("127.0.0.1:10249"))??;
    let (text, code) = run(node, &[])?;
    ensure!(code == 0, "{code}\n{text}");
    let found = line(&text, "--metrics-bind-address: ")?;
    ensure!(found.starts_with("warn"), "{found}");
    let (text, code) = run(node, &["--bind-address-hard-fail"])?;
    ensure!(code == 3, "{code}\n{text}");
    drop(listener);

    let agent = node.start_agent(Source::Manifests(world.dir().to_owned()))?;
    agent.wait_ready(PATIENCE)?;
    let (text, code) = run(node, &[])?;
    ensure!(code == 0, "{code}\n{text}");
    ensure!(warnings(&text).is_empty(), "{text}");
    let pins = line(&text, "pins ")?;
    ensure!(pins.contains("an agent runs"), "{pins}");
    Ok(())
}
