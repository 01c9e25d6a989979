//! A Service whose endpoints are replaced one after the other, while it is dialled without pause.

use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    ground::{CLIENT, NODE, PATIENCE, server_in},
    objects::{self, TARGET},
};
use crate::{
    Source, World,
    bench::report::Figure,
    cluster::kubeconfig,
    probe::{ChurnPlan, Proto},
};

const ENDPOINTS: usize = 1_000;
/// As the controller fills them.
const OF_A_SLICE: usize = 100;
const PACE: Duration = Duration::from_millis(5);
/// How long an endpoint goes on after it was replaced: a fraction of what a pod does.
const LINGERS: Duration = Duration::from_millis(100);
const POD: &str = "server-a";

/// All are addresses of one pod.
fn address(number: usize) -> IpAddr {
    let number = u32::try_from(number).expect("few");
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 200, 0, 1)) + number).into()
}

pub(super) fn measure() -> Result<Vec<Figure>> {
    eprintln!("rollout: preparing");
    let world = World::builder().node(NODE, [CLIENT, POD]).build()?;
    let pod = world.pod(POD);
    pod.netns().ip("addr add 10.200.0.0/16 dev lo\n")?;
    let route = format!("route add 10.200.0.0/16 via {}\n", pod.ip4());
    world.node(NODE).netns().ip(&route)?;
    let listen = |number: usize| {
        let at = SocketAddr::new(address(number), TARGET);
        pod.probe().serve(Proto::Tcp, at, &number.to_string())
    };
    let mut servers = VecDeque::new();
    // Which number is at each place.
    let mut places: Vec<usize> = (0..ENDPOINTS).collect();
    for number in &places {
        servers.push_back(listen(*number)?);
    }
    let slice = |places: &[usize], part: usize| {
        let endpoints: Vec<(IpAddr, bool)> = places[part * OF_A_SLICE..][..OF_A_SLICE]
            .iter()
            .map(|number| (address(*number), true))
            .collect();
        objects::slice(0, part, &endpoints)
    };
    let server = server_in(&world)?;
    server.apply(objects::service(0));
    for part in 0..ENDPOINTS / OF_A_SLICE {
        server.apply(slice(&places, part));
    }
    let source = Source::Kubeconfig(kubeconfig(&world, &server)?);
    let agent = world.node(NODE).start_agent(source)?;
    agent.wait_ready(PATIENCE)?;

    let churn = world.pod(CLIENT).probe().churn(ChurnPlan {
        threads: 4,
        ..ChurnPlan::new(objects::vip(0), [""; 0])
    })?;
    churn.wait_attempts(100, PATIENCE)?;
    let mut ending = VecDeque::new();
    for place in 0..ENDPOINTS {
        let began = Instant::now();
        servers.push_back(listen(ENDPOINTS + place)?);
        places[place] = ENDPOINTS + place;
        server.apply(slice(&places, place / OF_A_SLICE));
        ending.push_back((Instant::now(), servers.pop_front().context("as many")?));
        while ending
            .front()
            .is_some_and(|(since, _)| since.elapsed() > LINGERS)
        {
            if let Some((_, replaced)) = ending.pop_front() {
                replaced.stop()?;
            }
        }
        sleep(PACE.saturating_sub(began.elapsed()));
    }
    for (since, replaced) in ending {
        sleep(LINGERS.saturating_sub(since.elapsed()));
        replaced.stop()?;
    }
    churn.wait_attempts(100, PATIENCE)?;
    let report = churn.stop()?;
    if let Some(error) = &report.first_error {
        eprintln!("rollout: {error}");
    }
    let figure = |case: &str, value: f64, unit, below| Figure {
        case: case.to_owned(),
        services: 1,
        endpoints: ENDPOINTS,
        value,
        unit,
        below,
    };
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    Ok(vec![
        figure("rollout: connections", report.attempts as f64, "", None),
        figure(
            "rollout: failed",
            report.tally.failed() as f64,
            "",
            Some(1.0),
        ),
        figure(
            "rollout: longest time without an answer",
            report.longest_gap_us as f64 / 1e3,
            "ms",
            None,
        ),
    ])
}
