//! `kube-portal plan`: what would change is told, and nothing is changed.

use anyhow::{Context as _, Result, ensure};
use proxy_user::{
    loader::Pins,
    maps::{MapStore as _, Observed},
};
use serde_json::Value;
use tests::{
    Agent, ManifestDir, Source,
    stage::{PATIENCE, Stage, eventually, web_slices},
};

/// What it prints, and whether it exits with 6: something would change.
fn plan(agent: &Agent, manifests: &ManifestDir, extra: &[&str]) -> Result<(String, bool)> {
    let folder = manifests.path().to_str().context("a path in UTF-8")?;
    let args = ["plan", "--manifests", folder, "--node-name", "node-a"];
    let output = agent.output(&[&args, extra].concat())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.code() {
        Some(0) => Ok((text, false)),
        Some(6) => Ok((text, true)),
        _ => anyhow::bail!("{output:?}"),
    }
}

fn is_empty(stage: &Stage) -> Result<()> {
    let (text, changes) = plan(&stage.agent, &stage.manifests, &[])?;
    ensure!(!changes && text == "nothing would change\n", "{text}");
    Ok(())
}

fn observed(stage: &Stage) -> Result<Observed> {
    let pins = Pins::new(stage.world.node("node-a").bpffs());
    Ok(pins.open_store()?.observe()?)
}

#[test]
fn it_names_exactly_what_the_agent_then_does() -> Result<()> {
    let mut stage = Stage::usual()?;
    // Beside the running agent, which has done everything.
    eventually("what fell out of use to be gone", || is_empty(&stage))?;

    stage.agent.stop()?;
    web_slices(&stage.world, &stage.manifests, &["backend-1", "backend-2"])?;
    let before = observed(&stage)?;
    let (text, changes) = plan(&stage.agent, &stage.manifests, &[])?;
    ensure!(changes, "{text}");
    let gone = stage.world.pod("backend-3");
    let (ip4, ip6) = (gone.ip4(), gone.ip6());
    let wanted = [
        "SERVICE           CHANGE".to_owned(),
        format!("default/web:dns   - backend {ip4}:8080/UDP"),
        format!("default/web:dns   - backend [{ip6}]:8080/UDP"),
        format!("default/web:http  - backend {ip4}:8080/TCP"),
        format!("default/web:http  - backend [{ip6}]:8080/TCP"),
    ];
    let lines: Vec<&str> = text.lines().collect();
    ensure!(lines[..lines.len() - 1] == wanted, "{text}");
    let sum = lines.last().context("a summary")?;
    ensure!(
        sum.starts_with("0 to add, 0 to change, 4 to remove, in "),
        "{text}"
    );

    let (text, _) = plan(&stage.agent, &stage.manifests, &["--json"])?;
    let json: Value = serde_json::from_str(&text)?;
    ensure!(
        json["would_change"] == true && json["removed"] == 4,
        "{text}"
    );
    ensure!(json["changes"][0]["service"] == "default/web:dns", "{text}");
    ensure!(observed(&stage)? == before, "the maps have changed");

    stage.agent.restart()?;
    stage.agent.wait_ready(PATIENCE)?;
    eventually("the plan to have been carried out", || is_empty(&stage))?;
    ensure!(observed(&stage)? != before, "the maps have not changed");
    Ok(())
}

#[test]
fn where_nothing_is_pinned_everything_is_new_and_nothing_is_made() -> Result<()> {
    let mut stage = Stage::usual()?;
    stage.agent.stop()?;
    stage.agent.cleanup()?;
    let bpffs = stage.world.node("node-a").bpffs().to_owned();
    let pins = || Ok::<_, anyhow::Error>(std::fs::read_dir(&bpffs)?.count());
    let before = pins()?;
    let (text, changes) = plan(&stage.agent, &stage.manifests, &[])?;
    ensure!(
        changes
            && text.contains("default/web:http  + frontend 10.96.0.10:80/TCP ClusterIP\n")
            && text.ends_with("; nothing is pinned yet\n"),
        "{text}"
    );
    ensure!(pins()? == before, "something was pinned");
    Ok(())
}

#[test]
fn without_a_source_it_fails_and_says_what_is_missing() -> Result<()> {
    let stage = Stage::usual()?;
    let output = |args: &[&str]| stage.agent.output(&[&["plan"], args].concat());
    let missing = output(&["--manifests", "/nonexistent"])?;
    let error = String::from_utf8_lossy(&missing.stderr);
    ensure!(missing.status.code() == Some(1), "{missing:?}");
    ensure!(error.contains("manifest folder /nonexistent"), "{error}");

    for flag in [&["--cleanup"][..], &["--write-config-to", "/dev/null"]] {
        let refused = output(flag)?;
        ensure!(refused.status.code() == Some(2), "{refused:?}");
    }

    // Nobody answers there.
    let silent = output(&[
        "--apiserver",
        "http://127.0.0.1:9",
        "--node-name",
        "node-a",
        "--timeout",
        "1s",
    ])?;
    let error = String::from_utf8_lossy(&silent.stderr);
    ensure!(silent.status.code() == Some(1), "{silent:?}");
    ensure!(
        error.contains("not all was listed by the API server http://127.0.0.1:9"),
        "{error}"
    );
    Ok(())
}

#[test]
fn it_takes_the_configuration_that_the_agent_takes() -> Result<()> {
    let stage = Stage::new(|world, manifests| {
        let web = tests::fleet::node_port("web", ["10.96.0.10", "fd96::10"], 30_080);
        manifests.service(&web)?;
        web_slices(world, manifests, &["backend-1"])
    })?;
    eventually("the usual configuration", || is_empty(&stage))?;
    let nowhere = ["--nodeport-addresses", "192.0.2.0/24,2001:db8::/64"];
    let (text, changes) = plan(&stage.agent, &stage.manifests, &nowhere)?;
    let node = stage.world.node("node-a").ip4();
    ensure!(
        changes && text.contains(&format!("- frontend {node}:30080/TCP NodePort\n")),
        "{text}"
    );
    // Those on loopback stay.
    ensure!(!text.contains("127.0.0.1"), "{text}");

    let source = Source::Manifests(stage.manifests.path().to_owned());
    let mut stage = stage;
    stage.agent.restart_with(source, &nowhere)?;
    stage.agent.wait_ready(PATIENCE)?;
    eventually("the plan to have been carried out", || {
        let (text, changes) = plan(&stage.agent, &stage.manifests, &nowhere)?;
        ensure!(!changes, "{text}");
        Ok(())
    })
}
