//! The configuration as kube-proxy's: a file that is watched, flags of the same names.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context as _, Result, ensure};
use tests::{
    Source, binaries,
    stage::{BACKENDS, PATIENCE, Stage, VIP4, answered_by, at},
};

const CONFIG: &str = "\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
oomScoreAdj: -123
";

/// As kubelet mounts a ConfigMap: the file is a link through `..data`, which is swapped by rename.
fn mount(dir: &Path, version: &str, text: &str) -> Result<()> {
    fs::create_dir(dir.join(version))?;
    fs::write(dir.join(version).join("config.conf"), text)?;
    symlink(version, dir.join("..tmp"))?;
    fs::rename(dir.join("..tmp"), dir.join("..data"))?;
    let link = dir.join("config.conf");
    if link.symlink_metadata().is_err() {
        symlink("..data/config.conf", link)?;
    }
    Ok(())
}

fn run(program: &Path, args: &[&str]) -> Result<Output> {
    Command::new(program)
        .args(args)
        .env_remove("NODE_NAME")
        .env_remove("RUST_LOG")
        .output()
        .with_context(|| format!("{} {args:?}", program.display()))
}

#[test]
fn the_agent_ends_when_its_config_map_says_something_else() -> Result<()> {
    let mut stage = Stage::usual()?;
    let config_map = tempfile::tempdir()?;
    mount(config_map.path(), "..1", CONFIG)?;
    let flag = format!("--config={}/config.conf", config_map.path().display());
    let source = || Source::Manifests(stage.manifests.path().to_owned());
    stage
        .agent
        .restart_with(source(), &[&flag, "--cluster-cidr=10.0.0.0/8"])?;
    stage.agent.wait_ready(PATIENCE)?;
    stage
        .agent
        .wait_line(&["WARN", "--cluster-cidr", "ignored"], PATIENCE)?;
    let pid = stage.agent.pid().context("it runs")?;
    let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?;
    ensure!(score.trim() == "-123", "oom_score_adj {score}");

    // The same again, as kubelet writes it when another key of the ConfigMap changes.
    mount(config_map.path(), "..2", CONFIG)?;
    // Noticed and seen through: the change of a backend comes later and is in effect.
    stage.set_backends(&["backend-2"])?;
    ensure!(stage.agent.is_running(), "the same content ended it");

    mount(config_map.path(), "..3", &CONFIG.replace("-123", "-5"))?;
    let status = stage.agent.wait_exit(PATIENCE)?;
    ensure!(status.code() == Some(1), "{status}");
    stage.agent.wait_log("its content has changed", PATIENCE)?;
    // Nobody notices until it is started again.
    let probe = stage.client().probe();
    answered_by(&probe.connect_many(at(VIP4, 80), 20)?, &["backend-2"])?;
    stage.agent.restart()?;
    stage.agent.wait_ready(PATIENCE)?;
    stage.set_backends(&BACKENDS)
}

#[test]
fn a_file_or_flag_that_can_not_be_ends_the_start_with_one_line() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("config.conf");
    fs::write(&file, format!("{CONFIG}clusterCIDR: 10.0.0.300/8\n"))?;
    let file = file.to_str().context("a path")?;
    for (args, parts) in [
        (
            vec!["--config", file],
            [file, "clusterCIDR", "10.0.0.300/8"],
        ),
        (
            vec!["--config", "/nowhere/config.conf"],
            ["/nowhere/config.conf", "can't be read", "No such file"],
        ),
        (
            vec!["--oom-score-adj=5000"],
            ["--oom-score-adj", "5000", "1000"],
        ),
    ] {
        let output = run(&binaries::kube_portal()?, &args)?;
        let told = String::from_utf8(output.stderr)?;
        ensure!(output.status.code() == Some(2), "{args:?}: {told}");
        ensure!(
            told.lines().count() == 1 && parts.iter().all(|part| told.contains(part)),
            "{args:?}: {told}"
        );
    }
    Ok(())
}

#[test]
fn called_kube_proxy_it_writes_a_configuration_that_reads_back_the_same() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let kube_proxy = dir.path().join("kube-proxy");
    symlink(binaries::kube_portal()?, &kube_proxy)?;
    let (first, second) = (dir.path().join("1.yaml"), dir.path().join("2.yaml"));
    let write = |args: &[&str], file: &Path| -> Result<String> {
        let flag = format!("--write-config-to={}", file.display());
        let output = run(&kube_proxy, &[args, &[flag.as_str()]].concat())?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{told}");
        Ok(fs::read_to_string(file)?)
    };
    let flags = [
        "--cluster_cidr=10.244.0.0/16",
        "--masquerade-all",
        "--conntrack-udp-timeout=90s",
        "-v=2",
    ];
    let written = write(&flags, &first)?;
    for line in [
        "kind: KubeProxyConfiguration",
        "clusterCIDR: 10.244.0.0/16",
        "udpTimeout: 1m30s",
        "oomScoreAdj: -999",
    ] {
        ensure!(written.contains(line), "no {line:?} in\n{written}");
    }
    let config = format!("--config={}", first.display());
    ensure!(write(&[&config], &second)? == written);
    Ok(())
}
