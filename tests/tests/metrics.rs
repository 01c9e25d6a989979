//! What Prometheus finds at /metrics, and what it makes of the rules, judged by its own promtool.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{
    EndpointSlice, Node, Service, Source, binaries,
    cluster::{self, Cluster, kubeconfig},
    http::{Reply, ask_with, get},
    stage::{PATIENCE, Stage, VIP4, at, eventually},
};

const METRICS: u16 = 10249;

fn ask(node: &Node, path: &str) -> Result<Reply> {
    get(node.netns(), at("127.0.0.1", METRICS), path)
}

fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("a member's folder").to_owned()
}

/// What promtool says of it; an error if it finds fault.
fn promtool(args: &[&str], input: &str) -> Result<String> {
    let mut promtool = Command::new(binaries::promtool()?)
        .args(args)
        .current_dir(repository())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("promtool")?;
    let mut stdin = promtool.stdin.take().context("its input")?;
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    let output = promtool.wait_with_output()?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(output.status.success(), "promtool {args:?}: {said}");
    Ok(said)
}

/// The value of a series, `None` if it is not there.
fn value(reply: &Reply, series: &str) -> Option<f64> {
    let mut lines = reply.body.lines();
    let value = lines.find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    value.parse().ok()
}

fn families(reply: &Reply) -> BTreeSet<String> {
    let lines = reply.body.lines();
    let families = lines.filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    families.map(|(name, _)| name.to_owned()).collect()
}

fn of_service(name: &str, service: &str, port: &str) -> String {
    let namespace = if service == "_other" {
        service
    } else {
        "default"
    };
    format!(
        "kube_portal_service_{name}_total{{namespace=\"{namespace}\",service=\"{service}\",port=\"{port}\"}}"
    )
}

#[test]
fn promtool_has_nothing_to_complain_of_and_the_page_lists_what_an_agent_serves() -> Result<()> {
    let mut cluster = Cluster::new(&["backend-1"], |world, server| {
        server.apply(cluster::service(
            &Service::new("web", [VIP4]).tcp("http", 80),
        ));
        server.apply(cluster::slice(world, "web", &["backend-1"]));
        Ok(())
    })?;
    let source = Source::Kubeconfig(kubeconfig(&cluster.world, &cluster.server)?);
    let sizes = ["--max-services", "1024", "--max-backends", "1024"];
    let extra = [&sizes[..], &["--bpf-stats"]].concat();
    cluster.agent.restart_with(source, &extra)?;
    cluster.agent.wait_ready(PATIENCE)?;
    cluster.client().probe().connect_many(at(VIP4, 80), 3)?;

    let page = fs::read_to_string(repository().join("docs/METRICS.md"))?;
    let rows = page.lines().filter_map(|line| {
        let name = line.strip_prefix("| `")?.split_once('`')?.0;
        line.contains(" | counter | ").then_some(name).or_else(|| {
            let kinds = [" | gauge | ", " | histogram | ", " | untyped | "];
            kinds.iter().any(|kind| line.contains(kind)).then_some(name)
        })
    });
    let rows: BTreeSet<String> = rows.map(str::to_owned).collect();
    // Maps are swept and devices looked at soon after the start.
    let reply = eventually("every metric of the page and no other", || {
        let reply = ask(cluster.world.node("node-a"), "/metrics")?;
        let served = families(&reply);
        let differ: Vec<&String> = served.symmetric_difference(&rows).collect();
        ensure!(differ.is_empty(), "{differ:?}");
        Ok(reply)
    })?;
    let said = promtool(&["check", "metrics"], &reply.body)?;
    ensure!(said.trim().is_empty(), "{said}");

    let runs = |reply: &Reply| {
        value(
            reply,
            "kube_portal_program_runs_total{program=\"kp_connect4\"}",
        )
    };
    let before = runs(&reply).context("runs are counted")?;
    cluster.client().probe().connect_many(at(VIP4, 80), 5)?;
    let after = runs(&ask(cluster.world.node("node-a"), "/metrics")?).context("still")?;
    ensure!(after >= before + 5.0, "{before}, then {after}");
    let requests = reply.body.lines().filter_map(|line| {
        let line =
            line.strip_prefix("rest_client_requests_total{code=\"200\",host=\"127.0.0.1:")?;
        line.split_once("method=\"GET\"} ")?.1.parse::<f64>().ok()
    });
    // Four kinds are listed and watched.
    ensure!(requests.sum::<f64>() >= 6.0, "{}", reply.body);
    Ok(())
}

#[test]
fn whoever_asks_for_openmetrics_gets_it_and_the_samples_are_the_same() -> Result<()> {
    let stage = Stage::usual()?;
    let node = stage.world.node("node-a");
    let accept = |accept: &str| {
        let to = at("127.0.0.1", METRICS);
        ask_with(
            node.netns(),
            to,
            "GET",
            "/metrics",
            &format!("Accept: {accept}\r\n"),
        )
    };
    let open = accept(
        "application/openmetrics-text;version=1.0.0;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    )?;
    ensure!(
        open.headers.contains(
            &"Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8".to_owned()
        ) && open.body.ends_with("# EOF\n"),
        "{open:?}"
    );
    let older = accept("*/*")?;
    ensure!(
        older
            .headers
            .contains(&"Content-Type: text/plain; version=0.0.4; charset=utf-8".to_owned())
    );
    let series = |reply: &Reply| -> BTreeSet<String> {
        let samples = reply.body.lines().filter(|line| !line.starts_with('#'));
        let series = samples.filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned()));
        series.collect()
    };
    // Maps are swept, and devices looked at, some time after the start.
    eventually("both to have the same series", || {
        let open = accept("application/openmetrics-text")?;
        ensure!(series(&open) == series(&accept("")?));
        Ok(())
    })?;

    // kube-proxy has one check there, which was not asked for yet.
    let slis = || ask(node, "/metrics/slis");
    ensure!(slis()?.body.is_empty());
    ensure!(ask(node, "/healthz")?.body == "ok");
    let reply = slis()?;
    for (series, wanted) in [
        (
            "kubernetes_healthcheck{name=\"ping\",type=\"healthz\"}",
            1.0,
        ),
        (
            "kubernetes_healthchecks_total{name=\"ping\",type=\"healthz\",status=\"success\"}",
            1.0,
        ),
    ] {
        ensure!(value(&reply, series) == Some(wanted), "{reply:?}");
    }
    promtool(&["check", "metrics"], &reply.body)?;
    Ok(())
}

#[test]
fn a_service_port_has_its_own_counters_until_it_goes_and_those_without_are_summed() -> Result<()> {
    const OTHER_VIP: &str = "10.96.0.11";
    const EMPTY_VIP: &str = "10.96.0.12";
    let mut stage = Stage::new(|world, manifests| {
        for (name, vip) in [("a", VIP4), ("b", OTHER_VIP), ("none", EMPTY_VIP)] {
            manifests.service(&Service::new(name, [vip]).tcp("http", 80))?;
        }
        for name in ["a", "b"] {
            let backend = world.pod("backend-1").ip4().to_string();
            let slice = EndpointSlice::v4(name, &format!("{name}-4"));
            let slice = slice
                .tcp("http", 8080)
                .endpoint(&backend, "node-a", true, true, false);
            manifests.slice(&slice)?;
        }
        Ok(())
    })?;
    let shown = |stage: &Stage, wanted: &[(&str, &str, &str, Option<f64>)]| {
        eventually("the series", || {
            let reply = ask(stage.world.node("node-a"), "/metrics")?;
            for (name, service, port, wanted) in wanted {
                let series = of_service(name, service, port);
                ensure!(value(&reply, &series) == *wanted, "{series}: {reply:?}");
            }
            Ok(())
        })
    };
    let dial = |stage: &Stage, vip: &str, times| -> Result<()> {
        let to: SocketAddr = at(vip, 80);
        stage.client().probe().connect_many(to, times)?;
        Ok(())
    };
    dial(&stage, VIP4, 4)?;
    dial(&stage, OTHER_VIP, 2)?;
    let refused = stage.client().probe().connect(at(EMPTY_VIP, 80));
    ensure!(refused.is_err(), "{refused:?}");
    shown(
        &stage,
        &[
            ("connections", "a", "http", Some(4.0)),
            ("failures", "a", "http", Some(0.0)),
            ("connections", "b", "http", Some(2.0)),
            ("connections", "none", "http", Some(0.0)),
            ("failures", "none", "http", Some(1.0)),
            ("connections", "_other", "_other", Some(0.0)),
        ],
    )?;

    // From 0 with another agent; there is room for one of the three.
    let source = Source::Manifests(stage.manifests.path().to_owned());
    stage
        .agent
        .restart_with(source, &["--metrics-max-services", "1"])?;
    stage.agent.wait_ready(PATIENCE)?;
    dial(&stage, VIP4, 1)?;
    dial(&stage, OTHER_VIP, 5)?;
    shown(
        &stage,
        &[
            ("connections", "a", "http", Some(1.0)),
            ("connections", "b", "http", None),
            ("connections", "_other", "_other", Some(5.0)),
            ("failures", "_other", "_other", Some(0.0)),
        ],
    )?;
    stage.manifests.remove("default-a.yaml")?;
    shown(
        &stage,
        &[
            ("connections", "a", "http", None),
            ("connections", "_other", "_other", Some(5.0)),
        ],
    )
}

#[test]
fn prometheus_takes_the_alerts_and_each_fires_where_it_should() -> Result<()> {
    promtool(&["check", "rules", "deploy/monitoring/alerts.yaml"], "")?;
    promtool(&["test", "rules", "tests/monitoring/alerts.yaml"], "")?;
    Ok(())
}

#[test]
fn prometheus_can_read_every_expression_of_the_dashboard() -> Result<()> {
    fn expressions(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(text)) = fields.get("expr") {
                    found.push(text.clone());
                }
                fields.values().for_each(|value| expressions(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| expressions(value, found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let text = fs::read_to_string(repository().join("deploy/monitoring/dashboard.json"))?;
    let mut found = Vec::new();
    expressions(&serde_json::from_str(&text)?, &mut found);
    ensure!(found.len() > 10, "{found:?}");
    // As rules, which promtool reads; Grafana's variables have a value by then.
    let rules: Vec<Value> = found
        .iter()
        .enumerate()
        .map(|(number, text)| {
            let text = text
                .replace("$node", ".*")
                .replace("$__rate_interval", "5m");
            serde_json::json!({"record": format!("expression:{number}"), "expr": text})
        })
        .collect();
    let rules = serde_json::json!({"groups": [{"name": "dashboard", "rules": rules}]});
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(serde_yaml_ng::to_string(&rules)?.as_bytes())?;
    promtool(&["check", "rules", &file.path().to_string_lossy()], "")?;
    Ok(())
}
