//! What a ClusterIP costs: connect() alone, and connect-request-close.
//!
//! The same client dials the same server by the pod's address and by a ClusterIP, alternately (A, B,
//! B, A), in blocks. The client's own programs run for both, so a second comparison dials from a pod
//! outside the node's cgroup, where no program runs at all; its blocks alternate with the others.
//!
//! With `--against` a second node of the same shape has another build of the agent, and its blocks take turns
//! with those of the first: what a change costs. Given the same build, it shows what two nodes differ by.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;

use super::{
    Args,
    report::{Row, median, spread},
};
use crate::{
    ManifestDir, Pod, Source, World,
    probe::{BenchKind, BenchPlan, Proto},
};

pub(super) const TARGET: u16 = 9000;
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
/// Acceptors of the server.
const ACCEPTORS: usize = 2;

pub(super) fn with_services(args: &Args, services: usize) -> Result<Vec<Row>> {
    let world = World::builder()
        .node("node-a", ["client", "server"])
        .guest("without-programs")
        .node("node-b", ["client-b", "server-b"])
        .build()?;
    let (client, server) = (world.pod("client"), world.pod("server"));
    let pod_ip = SocketAddr::new(server.ip4(), TARGET);
    let _server = server.probe().serve_fast(Proto::Tcp, pod_ip, ACCEPTORS)?;
    let other_ip = SocketAddr::new(world.pod("server-b").ip4(), TARGET);
    let other = args.against.as_ref().map(|binary| -> Result<_> {
        let manifests = ManifestDir::new()?;
        for (file, text) in manifest_files(services, &other_ip.ip().to_string()) {
            manifests.write(&file, text)?;
        }
        let source = Source::Manifests(manifests.path().to_owned());
        let agent = world.node("node-b").start_build(binary, source)?;
        agent.wait_ready(PATIENCE)?;
        let pod = world.pod("server-b");
        let server = pod.probe().serve_fast(Proto::Tcp, other_ip, ACCEPTORS)?;
        Ok((manifests, agent, server))
    });
    let other = other.transpose()?;
    let manifests = ManifestDir::new()?;
    for (file, text) in manifest_files(services, &server.ip4().to_string()) {
        manifests.write(&file, text)?;
    }
    eprintln!("{services} Services: starting the agent");
    let agent = world
        .node("node-a")
        .start_agent(Source::Manifests(manifests.path().to_owned()))?;
    agent.wait_ready(PATIENCE)?;

    let vip = vip(services / 2);
    let mut rows = Vec::new();
    for (kind, case) in [
        (BenchKind::Connect, "connect"),
        (BenchKind::Crr, "connect-request-close"),
    ] {
        let mut against_pod = Vec::new();
        let mut against_bare = Vec::new();
        let mut against_build = Vec::new();
        let mut medians = Vec::new();
        for block in 0..args.blocks {
            let [direct, service] = compare(client, kind, args.rounds, [pod_ip, vip])?;
            let [bare, _] = compare(
                world.pod("without-programs"),
                kind,
                args.rounds / 2,
                [pod_ip, pod_ip],
            )?;
            eprintln!(
                "{case}, block {}/{}: pod IP {:.1} us, ClusterIP {:.1} us, no programs {:.1} us",
                block + 1,
                args.blocks,
                direct / 1e3,
                service / 1e3,
                bare / 1e3
            );
            if other.is_some() {
                let client = world.pod("client-b");
                let [_, other] = compare(client, kind, args.rounds, [other_ip, vip])?;
                eprintln!("    another build: {:.1} us", other / 1e3);
                against_build.push(service / other);
            }
            against_pod.push(service / direct);
            against_bare.push(service / bare);
            medians.push(service);
        }
        let time_ns = median(&medians);
        for (baseline, ratios) in [
            ("pod IP", against_pod),
            ("pod IP, no programs", against_bare),
            ("another build", against_build),
        ] {
            if ratios.is_empty() {
                continue;
            }
            rows.push(row(kind, case, services, baseline, time_ns, &ratios));
        }
    }
    Ok(rows)
}

/// Times are compared for connect(), rates for connect-request-close.
fn row(
    kind: BenchKind,
    case: &'static str,
    services: usize,
    baseline: &'static str,
    time_ns: f64,
    time_ratios: &[f64],
) -> Row {
    let rate = matches!(kind, BenchKind::Crr);
    let ratios: Vec<f64> = if rate {
        time_ratios.iter().map(|ratio| ratio.recip()).collect()
    } else {
        time_ratios.to_vec()
    };
    Row {
        case: case.into(),
        services,
        baseline: baseline.into(),
        value: if rate { 1e9 / time_ns } else { time_ns / 1e3 },
        unit: if rate { "1/s" } else { "us" },
        ratio: median(&ratios),
        spread: spread(&ratios),
    }
}

/// Median times of two targets in nanoseconds, visited A, B, B, A.
fn compare(
    client: &Pod,
    kind: BenchKind,
    rounds: usize,
    [a, b]: [SocketAddr; 2],
) -> Result<[f64; 2]> {
    let results = client.probe().bench(
        BenchPlan {
            kind,
            targets: vec![a, b, b, a],
            rounds,
            warmup: rounds / 10,
            cpu: None,
            keep_samples: true,
        },
        PATIENCE,
    )?;
    let times = |first: usize, second: usize| -> Vec<f64> {
        #[expect(clippy::cast_precision_loss, reason = "nanoseconds of one call")]
        results[first]
            .samples
            .iter()
            .chain(&results[second].samples)
            .map(|ns| *ns as f64)
            .collect()
    };
    Ok([median(&times(0, 3)), median(&times(1, 2))])
}

/// The ClusterIP of a Service by number.
pub(super) fn vip(number: usize) -> SocketAddr {
    let [_, a, b, c] = u32::try_from(number).expect("few Services").to_be_bytes();
    SocketAddr::from(([10, 96 + a, b, c], 80))
}

/// Services with one endpoint each, a thousand a file.
pub(super) fn manifest_files(services: usize, endpoint: &str) -> Vec<(String, String)> {
    let numbers: Vec<usize> = (0..services).collect();
    numbers
        .chunks(1000)
        .map(|chunk| {
            let text: String = chunk
                .iter()
                .map(|number| service_and_slice(*number, endpoint))
                .collect();
            (format!("services-{}.yaml", chunk[0]), text)
        })
        .collect()
}

fn service_and_slice(number: usize, endpoint: &str) -> String {
    let ip = vip(number).ip();
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: svc-{number}, namespace: bench}}\n\
         spec: {{clusterIP: {ip}, clusterIPs: [{ip}], ports: [{{port: 80, protocol: TCP}}]}}\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: svc-{number}-a, namespace: bench, labels: {{kubernetes.io/service-name: svc-{number}}}}}\n\
         addressType: IPv4\nports: [{{name: \"\", port: {TARGET}, protocol: TCP}}]\n\
         endpoints: [{{addresses: [{endpoint}], conditions: {{ready: true}}, nodeName: node-a}}]\n"
    )
}
