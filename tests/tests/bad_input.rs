//! What people get wrong: one clear line each, and everything else keeps working.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context as _, Result, ensure};
use tests::{
    EndpointSlice, ManifestDir, Service, World, binaries,
    stage::{
        BACKENDS, PATIENCE, Stage, TARGET, VIP4, VIP6, answered_by, at, eventually, web_slices,
    },
};

/// Appears in a log line about something wrong.
const WARN: &str = "WARN";

fn still_works(stage: &Stage) -> Result<()> {
    let probe = stage.client().probe();
    answered_by(&probe.connect_many(at(VIP4, 80), 60)?, &BACKENDS)?;
    answered_by(&probe.connect_many(at(VIP6, 80), 60)?, &BACKENDS)?;
    answered_by(&probe.udp_many(at(VIP4, 53), 60)?, &BACKENDS)
}

/// One line with all of it, said once; and the good Service works.
fn told(stage: &Stage, parts: &[&str]) -> Result<()> {
    stage.agent.wait_line(parts, PATIENCE)?;
    let has_all = |line: &&String| parts.iter().all(|part| line.contains(part));
    let times = stage.agent.log().iter().filter(has_all).count();
    ensure!(
        times == 1,
        "{times} lines with {parts:?}: {:#?}",
        stage.agent.log()
    );
    still_works(stage).with_context(|| format!("after {parts:?}"))
}

/// Serves the Service `more` at this address from the first backend.
fn good_neighbour(stage: &Stage, name: &str, vip: &str) -> Result<()> {
    stage
        .manifests
        .service(&Service::new(name, [vip]).tcp("http", 80))?;
    stage.manifests.slice(
        &EndpointSlice::v4(name, name)
            .tcp("http", TARGET)
            .ready(stage.world.pod("backend-1").ip4(), "node-a"),
    )
}

fn reaches(stage: &Stage, vip: &str, backend: &str) -> Result<()> {
    eventually(&format!("{vip} to lead to {backend}"), || {
        let tally = stage.client().probe().connect_many(at(vip, 80), 3)?;
        answered_by(&tally, &[backend])
    })
}

#[test]
fn a_file_that_is_no_yaml_costs_only_itself() -> Result<()> {
    let stage = Stage::usual()?;
    let manifests = &stage.manifests;
    manifests.write(
        "broken.yaml",
        "apiVersion: v1\nkind: [Service\n  what: {is this\n",
    )?;
    told(&stage, &[WARN, "broken.yaml", "line"])?;
    manifests.write("broken.json", "{\"kind\": \"Service\",")?;
    told(&stage, &[WARN, "broken.json"])?;
    manifests.write_in_place("binary.yaml", [0xff, 0xfe, 0x00, 0x01])?;
    told(&stage, &[WARN, "binary.yaml"])?;
    // What comes later is taken in all the same.
    good_neighbour(&stage, "more", "10.96.0.50")?;
    reaches(&stage, "10.96.0.50", "backend-1")
}

#[test]
fn a_service_whose_file_breaks_keeps_working_as_it_was() -> Result<()> {
    let stage = Stage::usual()?;
    stage.manifests.write(
        "default-web.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name",
    )?;
    told(&stage, &[WARN, "default-web.yaml", "kept"])?;
    stage
        .manifests
        .write("default-web-4.slice.yaml", "endpoints: }")?;
    told(&stage, &[WARN, "default-web-4.slice.yaml", "kept"])?;
    // Mended, it counts again.
    web_slices(&stage.world, &stage.manifests, &["backend-2"])?;
    eventually("the mended slice to count", || {
        answered_by(
            &stage.client().probe().connect_many(at(VIP4, 80), 60)?,
            &["backend-2"],
        )
    })
}

#[test]
fn an_unknown_kind_is_named_and_passed_over() -> Result<()> {
    let stage = Stage::usual()?;
    stage.manifests.write(
        "typo.yaml",
        "apiVersion: v1\nkind: Sevrice\nmetadata: {name: x}\nspec: {clusterIP: 10.96.0.51}\n",
    )?;
    told(&stage, &[WARN, "typo.yaml", "Sevrice", "EndpointSlice"])?;
    stage.manifests.write(
        "old.yaml",
        "apiVersion: v7\nkind: Service\nmetadata: {name: x}\n",
    )?;
    told(&stage, &[WARN, "old.yaml", "\"v7\""])
}

fn raw_service(name: &str, ip: &str, port: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  clusterIP: \"{ip}\"\n  ports: [{{port: {port}}}]\n"
    )
}

#[test]
fn a_value_that_can_not_be_is_named_with_its_field_and_a_remedy() -> Result<()> {
    let stage = Stage::usual()?;
    let manifests = &stage.manifests;
    for (file, name, ip, port, parts) in [
        (
            "ip.yaml",
            "bad-ip",
            "10.96.0.300",
            "80",
            ["10.96.0.300", "spec.clusterIP", "write an IPv4"],
        ),
        (
            "word.yaml",
            "bad-word",
            "web.example",
            "80",
            ["web.example", "spec.clusterIP", "write an IPv4"],
        ),
        (
            "zero.yaml",
            "port-zero",
            "10.96.0.52",
            "0",
            ["0 is not a port", "spec.ports[0].port", "1 to 65535"],
        ),
        (
            "high.yaml",
            "port-high",
            "10.96.0.53",
            "70000",
            ["70000 is not a port", "spec.ports[0].port", "1 to 65535"],
        ),
        (
            "minus.yaml",
            "port-minus",
            "10.96.0.54",
            "-1",
            ["-1 is not a port", "spec.ports[0].port", "1 to 65535"],
        ),
        (
            "loop.yaml",
            "loopback",
            "127.0.0.1",
            "80",
            ["127.0.0.1", "spec.clusterIP", "routable"],
        ),
    ] {
        manifests.write(file, raw_service(name, ip, port))?;
        told(
            &stage,
            &[
                WARN,
                file,
                &format!("Service default/{name}"),
                parts[0],
                parts[1],
                parts[2],
            ],
        )?;
    }
    // A word where a number belongs is an error of the object itself.
    manifests.write(
        "word-port.yaml",
        raw_service("word-port", "10.96.0.55", "http"),
    )?;
    told(
        &stage,
        &[WARN, "word-port.yaml", "Service default/word-port", "port"],
    )
}

#[test]
fn endpoints_that_can_not_be_are_left_out_and_the_good_ones_used() -> Result<()> {
    let stage = Stage::usual()?;
    let (pod, other) = (stage.world.pod("backend-1"), stage.world.pod("backend-2"));
    stage
        .manifests
        .service(&Service::new("mixed", ["10.96.0.56"]).tcp("http", 80))?;
    stage.manifests.slice(
        &EndpointSlice::v4("mixed", "mixed-4")
            .tcp("http", TARGET)
            .ready("10.1.1.999", "node-a")
            .ready(other.ip6(), "node-a")
            .ready("127.0.0.1", "node-a")
            .ready("169.254.169.254", "node-a")
            // Twice the same is once.
            .ready(pod.ip4(), "node-a")
            .ready(pod.ip4(), "node-a"),
    )?;
    let file = "default-mixed-4.slice.yaml";
    let object = "EndpointSlice default/mixed-4";
    told(
        &stage,
        &[
            WARN,
            file,
            object,
            "endpoints[0].addresses[0]",
            "10.1.1.999",
        ],
    )?;
    told(
        &stage,
        &[
            WARN,
            file,
            object,
            "endpoints[1].addresses[0]",
            "not an IPv4 address",
        ],
    )?;
    told(
        &stage,
        &[WARN, file, object, "endpoints[2].addresses[0]", "loopback"],
    )?;
    told(
        &stage,
        &[
            WARN,
            file,
            object,
            "endpoints[3].addresses[0]",
            "link-local",
        ],
    )?;
    reaches(&stage, "10.96.0.56", "backend-1")?;
    ensure!(stage.backends_of("10.96.0.56", 80)? == [pod.ip4().to_string()]);
    Ok(())
}

#[test]
fn a_slice_without_its_service_is_told_and_used_once_the_service_comes() -> Result<()> {
    let stage = Stage::usual()?;
    let ip = stage.world.pod("backend-3").ip4();
    let slice = EndpointSlice::v4("later", "later-4")
        .tcp("http", TARGET)
        .ready(ip, "node-a");
    stage.manifests.slice(&slice)?;
    told(
        &stage,
        &[
            "EndpointSlice default/later-4",
            "Service default/later",
            "does not exist",
        ],
    )?;
    stage
        .manifests
        .service(&Service::new("later", ["10.96.0.57"]).tcp("http", 80))?;
    reaches(&stage, "10.96.0.57", "backend-3")
}

#[test]
fn a_slice_of_a_family_that_its_service_lacks_is_told_and_not_used() -> Result<()> {
    let stage = Stage::usual()?;
    good_neighbour(&stage, "four", "10.96.0.58")?;
    let ip = stage.world.pod("backend-3").ip6();
    let slice = EndpointSlice::v6("four", "four-6")
        .tcp("http", TARGET)
        .ready(ip, "node-a");
    stage.manifests.slice(&slice)?;
    told(
        &stage,
        &[
            "EndpointSlice default/four-6",
            "Service default/four",
            "no IPv6 address",
        ],
    )?;
    reaches(&stage, "10.96.0.58", "backend-1")
}

fn claimant(stage: &Stage, name: &str, created: &str, backend: &str) -> Result<()> {
    let metadata = format!("metadata: {{name: {name}, creationTimestamp: {created}}}");
    stage.manifests.write(
        &format!("default-{name}.yaml"),
        format!(
            "apiVersion: v1\nkind: Service\n{metadata}\nspec:\n  clusterIP: 10.96.0.60\n  ports: [{{name: http, port: 80}}]\n"
        ),
    )?;
    stage.manifests.slice(
        &EndpointSlice::v4(name, name)
            .tcp("http", TARGET)
            .ready(stage.world.pod(backend).ip4(), "node-a"),
    )
}

#[test]
fn of_two_services_with_one_address_the_older_keeps_it_until_it_goes() -> Result<()> {
    let vip = "10.96.0.60";
    let stage = Stage::usual()?;
    claimant(&stage, "bbb", "\"2024-02-01T00:00:00Z\"", "backend-1")?;
    reaches(&stage, vip, "backend-1")?;
    // Younger, whatever its name.
    claimant(&stage, "aaa", "\"2024-03-01T00:00:00Z\"", "backend-2")?;
    told(
        &stage,
        &[
            WARN,
            "Service default/aaa",
            "10.96.0.60:80",
            "Service default/bbb",
            "older",
        ],
    )?;
    reaches(&stage, vip, "backend-1")?;
    // Older than what is there.
    claimant(&stage, "ccc", "\"2024-01-01T00:00:00Z\"", "backend-3")?;
    reaches(&stage, vip, "backend-3")?;
    told(
        &stage,
        &[
            WARN,
            "Service default/bbb",
            "10.96.0.60:80",
            "Service default/ccc",
            "older",
        ],
    )?;
    // As old as the oldest: then the name decides.
    claimant(&stage, "abc", "\"2024-01-01T00:00:00Z\"", "backend-2")?;
    reaches(&stage, vip, "backend-2")?;
    for (gone, heir) in [
        ("abc", "backend-3"),
        ("ccc", "backend-1"),
        ("bbb", "backend-2"),
    ] {
        stage.manifests.remove(&format!("default-{gone}.yaml"))?;
        reaches(&stage, vip, heir).with_context(|| format!("after {gone}"))?;
    }
    stage.manifests.remove("default-aaa.yaml")?;
    eventually("the address to be nobody's", || {
        ensure!(stage.frontend(vip, 80)?.is_none());
        Ok(())
    })
}

#[test]
fn an_empty_folder_is_told_and_filled_later() -> Result<()> {
    let stage = Stage::new(|_, _| Ok(()))?;
    stage
        .agent
        .wait_line(&[WARN, "there is no manifest", "*.yaml"], PATIENCE)?;
    good_neighbour(&stage, "first", "10.96.0.61")?;
    reaches(&stage, "10.96.0.61", "backend-1")
}

#[test]
fn a_folder_that_disappears_takes_nothing_along_and_counts_again_when_it_is_back() -> Result<()> {
    let stage = Stage::usual()?;
    let folder = stage.manifests.path().to_owned();
    let away = folder.with_extension("away");
    fs::rename(&folder, &away)?;
    let text = folder.display().to_string();
    told(&stage, &[WARN, &text, "it is gone", "kept"])?;
    // Back, with other content; filled after it was made.
    fs::create_dir(&folder)?;
    let manifests = ManifestDir::at(&folder)?;
    manifests.service(
        &Service::new("web", [VIP4, VIP6])
            .tcp("http", 80)
            .udp("dns", 53),
    )?;
    web_slices(&stage.world, &manifests, &["backend-3"])?;
    let result = eventually("the new folder to count", || {
        answered_by(
            &stage.client().probe().connect_many(at(VIP4, 80), 60)?,
            &["backend-3"],
        )
    });
    fs::remove_dir_all(&away)?;
    result?;
    stage
        .agent
        .wait_line(&[&text, "it is back"], PATIENCE)
        .map(drop)
}

#[test]
fn a_service_that_finds_no_room_is_told_and_comes_in_when_there_is() -> Result<()> {
    let mut stage = Stage::new(|_, _| Ok(()))?;
    stage.agent.stop()?;
    stage.agent.cleanup()?;
    good_neighbour(&stage, "one", "10.96.0.71")?;
    good_neighbour(&stage, "two", "10.96.0.72")?;
    let source = tests::Source::Manifests(stage.manifests.path().to_owned());
    // Each has a frontend and an address.
    stage
        .agent
        .restart_with(source, &["--max-frontends", "4"])?;
    stage.agent.wait_ready(PATIENCE)?;
    reaches(&stage, "10.96.0.71", "backend-1")?;
    good_neighbour(&stage, "three", "10.96.0.73")?;
    stage.agent.wait_line(
        &["ERROR", "Service default/three", "full", "4 of 4"],
        PATIENCE,
    )?;
    let line = stage
        .agent
        .wait_line(&["ERROR", "default/three"], PATIENCE)?;
    ensure!(line.contains("--max-frontends"), "no remedy: {line}");
    reaches(&stage, "10.96.0.71", "backend-1")?;
    reaches(&stage, "10.96.0.72", "backend-1")?;
    ensure!(stage.frontend("10.96.0.73", 80)?.is_none());
    stage.manifests.remove("default-two.yaml")?;
    reaches(&stage, "10.96.0.73", "backend-1")?;
    reaches(&stage, "10.96.0.71", "backend-1")?;
    ensure!(stage.frontend("10.96.0.72", 80)?.is_none());
    // Said once, however often it was tried.
    ensure!(
        stage.agent.count_log("ERROR") == 1,
        "{:#?}",
        stage.agent.log()
    );
    // Who raises the flag gets the room, with what is there.
    good_neighbour(&stage, "two", "10.96.0.72")?;
    stage.agent.wait_line(
        &["ERROR", "Service default/two", "4 of 4", "--max-frontends"],
        PATIENCE,
    )?;
    let source = tests::Source::Manifests(stage.manifests.path().to_owned());
    stage
        .agent
        .restart_with(source, &["--max-frontends", "200"])?;
    stage.agent.wait_ready(PATIENCE)?;
    stage
        .agent
        .wait_line(&["made anew", "KP_FRONTENDS"], PATIENCE)?;
    for ip in ["10.96.0.71", "10.96.0.72", "10.96.0.73"] {
        reaches(&stage, ip, "backend-1")?;
    }
    ensure!(stage.agent.status()?["maps"]["frontends"]["capacity"] == 200);
    Ok(())
}

#[test]
fn a_service_with_more_endpoints_than_there_is_room_keeps_those_it_has() -> Result<()> {
    let mut stage = Stage::new(|_, _| Ok(()))?;
    stage.agent.stop()?;
    stage.agent.cleanup()?;
    good_neighbour(&stage, "one", "10.96.0.71")?;
    let source = tests::Source::Manifests(stage.manifests.path().to_owned());
    stage.agent.restart_with(source, &["--max-backends", "4"])?;
    stage.agent.wait_ready(PATIENCE)?;
    reaches(&stage, "10.96.0.71", "backend-1")?;
    let slice = |count: u8| {
        (0..count).fold(
            EndpointSlice::v4("one", "one").tcp("http", TARGET),
            |slice, number| slice.ready(format!("10.1.1.{}", 100 + number), "node-a"),
        )
    };
    stage.manifests.slice(&slice(9))?;
    let line = stage
        .agent
        .wait_line(&["ERROR", "Service default/one", "full"], PATIENCE)?;
    ensure!(line.contains("--max-backends"), "no remedy: {line}");
    reaches(&stage, "10.96.0.71", "backend-1")?;
    stage.manifests.slice(
        &EndpointSlice::v4("one", "one")
            .tcp("http", TARGET)
            .ready(stage.world.pod("backend-2").ip4(), "node-a"),
    )?;
    reaches(&stage, "10.96.0.71", "backend-2")
}

fn world() -> Result<World> {
    World::builder().node("node-a", ["pod"]).build()
}

/// `kube-portal run` with good arguments, but for those given.
fn run(world: &World, args: &[(&str, &Path)]) -> Result<Output> {
    let node = world.node("node-a");
    let mut command = node
        .host()
        .command(&binaries::kube_portal()?.to_string_lossy())?;
    command.arg("run");
    for (flag, value) in [
        ("--cgroup-root", node.cgroup()),
        ("--bpffs-root", node.bpffs()),
    ] {
        if !args.iter().any(|(given, _)| *given == flag) {
            command.arg(flag).arg(value);
        }
    }
    for (flag, value) in args {
        command.arg(flag).arg(value);
    }
    Ok(command
        .env_remove("KUBECONFIG")
        .env_remove("NODE_NAME")
        .output()?)
}

/// Its exit code, and the last line it says, which has all of these.
fn refuses(output: &Output, code: i32, parts: &[&str]) -> Result<()> {
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(code),
        "{}: {text}",
        output.status
    );
    let errors: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("kube-portal:"))
        .collect();
    ensure!(errors.len() == 1, "not one line of error: {text}");
    for part in parts {
        ensure!(errors[0].contains(part), "no {part:?} in: {text}");
    }
    Ok(())
}

fn pinned_nothing(world: &World) -> Result<()> {
    ensure!(
        !world.node("node-a").bpffs().join("kube-portal").exists(),
        "an agent that could not start left something"
    );
    Ok(())
}

#[test]
fn a_folder_that_is_not_there_is_named_and_nothing_is_left_in_the_kernel() -> Result<()> {
    let world = world()?;
    let missing = world.dir().join("missing");
    let output = run(&world, &[("--manifests", &missing)])?;
    refuses(
        &output,
        1,
        &[
            "manifest folder",
            &missing.display().to_string(),
            "--manifests",
        ],
    )?;
    pinned_nothing(&world)?;
    let file = world.dir().join("file");
    fs::write(&file, "x")?;
    let output = run(&world, &[("--manifests", &file)])?;
    refuses(
        &output,
        1,
        &["manifest folder", &file.display().to_string(), "directory"],
    )?;
    pinned_nothing(&world)
}

#[test]
fn a_kubeconfig_that_can_not_be_used_is_named_with_the_remedy() -> Result<()> {
    let world = world()?;
    let file = world.dir().join("kubeconfig");
    let name = file.display().to_string();
    let attempt = |parts: &[&str]| -> Result<()> {
        let output = run(&world, &[("--kubeconfig", &file)])?;
        refuses(&output, 1, &[&[name.as_str()], parts].concat())?;
        pinned_nothing(&world)
    };
    attempt(&["kubeconfig", "No such file", "--kubeconfig"])?;
    fs::write(&file, "this: [is no kubeconfig")?;
    attempt(&["kubeconfig", "correct the YAML"])?;
    fs::write(
        &file,
        "apiVersion: v1\nkind: Config\ncurrent-context: none\n",
    )?;
    attempt(&["kubeconfig", "current-context"])?;
    fs::create_dir(world.dir().join("folder"))?;
    let output = run(&world, &[("--kubeconfig", &world.dir().join("folder"))])?;
    refuses(&output, 1, &["kubeconfig", "folder"])
}

#[test]
fn roots_of_another_filesystem_are_named_with_the_remedy() -> Result<()> {
    let world = world()?;
    let folder = world.dir().to_owned();
    let text = folder.display().to_string();
    let manifests = ("--manifests", folder.as_path());
    let output = run(&world, &[manifests, ("--cgroup-root", &folder)])?;
    refuses(&output, 3, &["--cgroup-root", &text, "cgroup v2"])?;
    let output = run(&world, &[manifests, ("--bpffs-root", &folder)])?;
    refuses(&output, 3, &["--bpffs-root", &text, "mount -t bpf"])?;
    let missing = folder.join("missing");
    let output = run(&world, &[manifests, ("--bpffs-root", &missing)])?;
    refuses(&output, 3, &["--bpffs-root", "missing", "mount -t bpf"])?;
    pinned_nothing(&world)
}

#[test]
fn wrong_use_has_an_exit_code_of_its_own() -> Result<()> {
    let world = world()?;
    let folder = world.dir().to_owned();
    for args in [
        [("--manifests", folder.as_path()), ("--kubeconfig", &folder)],
        [
            ("--manifests", &folder),
            ("--max-frontends", Path::new("0")),
        ],
        [
            ("--manifests", &folder),
            ("--max-backends", Path::new("many")),
        ],
    ] {
        let output = run(&world, &args)?;
        ensure!(output.status.code() == Some(2), "{output:?}");
    }
    pinned_nothing(&world)
}

#[test]
fn somebody_who_is_not_root_is_told_what_is_missing() -> Result<()> {
    let world = world()?;
    let node = world.node("node-a");
    // A place everybody may read and execute.
    let folder = tempfile::tempdir_in("/tmp")?;
    let binary = folder.path().join("kube-portal");
    fs::copy(binaries::kube_portal()?, &binary)?;
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(folder.path(), everybody)?;
    for args in [
        vec![
            "run",
            "--manifests",
            "/tmp",
            "--cgroup-root",
            "/nonexistent",
        ],
        vec!["status"],
        vec!["cleanup"],
    ] {
        let output = Command::new(&binary)
            .args(&args)
            .arg("--bpffs-root")
            .arg(node.bpffs())
            .uid(65534)
            .gid(65534)
            .output()?;
        refuses(&output, 3, &["not root", "sudo"]).with_context(|| format!("{args:?}"))?;
    }
    pinned_nothing(&world)
}
