//! What a scheduler costs a connection: the same client dials Services with the same endpoints, each by a
//! scheduler of its own, all in turn. What they are compared with is a Service at random, as most are; a
//! second such Service shows what the machine makes of two things that are the same.

use std::{collections::BTreeMap, fmt::Write as _, net::SocketAddr};

use anyhow::{Context, Result, ensure};
use proxy_common::abi::Scheduler;

use super::{
    Args,
    connect::{PATIENCE, TARGET, manifest_files, vip},
    report::{Row, median, spread},
};
use crate::{
    ManifestDir, Source, World,
    probe::{BenchKind, BenchPlan, Proto},
};

/// Addresses of the server beside its own.
const ENDPOINTS: u8 = 250;
const BASELINE: &str = "random";

/// One that is measured: its name, and its Service's annotations.
struct Side {
    name: String,
    annotations: String,
}

fn sides(args: &Args) -> Result<Vec<Side>> {
    let known = Scheduler::ALL.map(Scheduler::name);
    let side = |name: &str, scheduler: &str, failover: bool, more: &str| Side {
        name: name.into(),
        annotations: format!(
            "kube-portal.io/scheduler: {scheduler}, kube-portal.io/failover: \"{failover}\"{more}"
        ),
    };
    let mut sides = vec![
        side(BASELINE, "random", true, ""),
        side("random, once more", "random", true, ""),
        side("random, no failover", "random", false, ""),
    ];
    for name in &args.schedulers {
        ensure!(known.contains(&name.as_str()), "{name}: no scheduler");
        sides.push(side(name, name, true, ""));
    }
    let weights = ", kube-portal.io/weights: \"10.1.200.1=3\"";
    sides.push(side("sed, weights", "sed", true, weights));
    Ok(sides)
}

pub(super) fn with_services(args: &Args, services: usize) -> Result<Vec<Row>> {
    ensure!(
        (1..=ENDPOINTS).contains(&args.endpoints),
        "1 to {ENDPOINTS} endpoints"
    );
    let sides = sides(args)?;
    let world = World::builder()
        .node("node-a", ["client", "server"])
        .build()?;
    let (client, server) = (world.pod("client"), world.pod("server"));
    let node = world.node("node-a");
    // One listener for all endpoints: what differs is only who is chosen.
    let mut addresses = String::new();
    for number in 1..=args.endpoints {
        writeln!(addresses, "addr add 10.1.200.{number}/32 dev lo")?;
    }
    server.netns().ip(&addresses)?;
    let to_server = format!("route add 10.1.200.0/24 via {}\n", server.ip4());
    node.netns().ip(&to_server)?;
    let anywhere = SocketAddr::from(([0, 0, 0, 0], TARGET));
    let _server = server.probe().serve_fast(Proto::Tcp, anywhere, 2)?;

    let manifests = ManifestDir::new()?;
    for (file, text) in manifest_files(services, &server.ip4().to_string()) {
        manifests.write(&file, text)?;
    }
    let first = services;
    let measured: String = (first..)
        .zip(&sides)
        .map(|(number, side)| manifest(number, side, args.endpoints))
        .collect();
    manifests.write("measured.yaml", measured)?;
    eprintln!("{services} Services: starting the agent");
    let agent = node.start_agent(Source::Manifests(manifests.path().to_owned()))?;
    agent.wait_ready(PATIENCE)?;

    // There and back: each is as often before another as behind it.
    let there = (0..sides.len()).collect::<Vec<usize>>();
    let visits: Vec<usize> = there.iter().chain(there.iter().rev()).copied().collect();
    let targets: Vec<SocketAddr> = visits.iter().map(|at| vip(first + at)).collect();
    let mut rows = Vec::new();
    for (kind, case) in [
        (BenchKind::Connect, "connect"),
        (BenchKind::Crr, "connect-request-close"),
    ] {
        let mut times: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        for block in 0..args.blocks {
            let results = client.probe().bench(
                BenchPlan {
                    kind,
                    targets: targets.clone(),
                    rounds: args.rounds,
                    warmup: args.rounds / 10,
                    cpu: None,
                    keep_samples: true,
                },
                PATIENCE,
            )?;
            let mut samples: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
            for (at, result) in visits.iter().zip(&results) {
                #[expect(clippy::cast_precision_loss, reason = "nanoseconds of one call")]
                let times = result.samples.iter().map(|ns| *ns as f64);
                samples.entry(*at).or_default().extend(times);
            }
            for (at, samples) in samples {
                times.entry(at).or_default().push(median(&samples));
            }
            eprintln!("{case}, block {}/{}", block + 1, args.blocks);
        }
        let baseline = times.get(&0).context("no block")?;
        for (at, side) in sides.iter().enumerate() {
            let of_side = &times[&at];
            let ratios: Vec<f64> = of_side
                .iter()
                .zip(baseline)
                .map(|(time, baseline)| time / baseline)
                .collect();
            rows.push(Row {
                case: format!("{case}: {}", side.name),
                services,
                baseline: BASELINE.into(),
                value: median(of_side) / 1e3,
                unit: "us",
                ratio: median(&ratios),
                spread: spread(&ratios),
            });
        }
    }
    Ok(rows)
}

/// A Service with that many endpoints, all of them the server.
fn manifest(number: usize, side: &Side, endpoints: u8) -> String {
    let ip = vip(number).ip();
    let endpoints: Vec<String> = (1..=endpoints)
        .map(|number| {
            format!(
                "{{addresses: [10.1.200.{number}], conditions: {{ready: true}}, nodeName: node-a}}"
            )
        })
        .collect();
    format!(
        "---\napiVersion: v1\nkind: Service\n\
         metadata: {{name: measured-{number}, namespace: bench, annotations: {{{annotations}}}}}\n\
         spec: {{clusterIP: {ip}, clusterIPs: [{ip}], ports: [{{port: 80, protocol: TCP}}]}}\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: measured-{number}-a, namespace: bench, labels: {{kubernetes.io/service-name: measured-{number}}}}}\n\
         addressType: IPv4\nports: [{{name: \"\", port: {TARGET}, protocol: TCP}}]\n\
         endpoints: [{endpoints}]\n",
        annotations = side.annotations,
        endpoints = endpoints.join(", "),
    )
}
