//! Connections while everything changes: none fails, none reaches what it must not.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::{
    Service,
    cluster::{Cluster, service},
    probe::{ChurnPlan, ChurnReport},
    stage::{PATIENCE, VIP4, answered_by, at},
    wait,
};

/// Logged for each change that is taken by itself; not for what is reclaimed after it.
const ONE_CHANGE: &str = "synced 1 Services";
const OTHER: &str = "10.96.0.20";

fn plan(vip: &str, allowed: &[&str]) -> ChurnPlan {
    ChurnPlan {
        threads: 2,
        ..ChurnPlan::new(at(vip, 80), allowed.iter().copied())
    }
}

fn web() -> Service {
    Service::new("web", [VIP4]).tcp("http", 80).udp("dns", 53)
}

fn other() -> Service {
    Service::new("other", [OTHER])
        .tcp("http", 80)
        .udp("dns", 53)
}

fn flawless(report: &ChurnReport) -> Result<()> {
    ensure!(
        report.tally.failed() == 0 && report.misdirected.is_empty() && report.attempts > 100,
        "{report:?}"
    );
    Ok(())
}

/// Every subset but the empty one, so that each differs from the one before.
fn subsets<'a>(names: &[&'a str]) -> Vec<Vec<&'a str>> {
    (1..1 << names.len())
        .map(|bits: usize| {
            let chosen = names.iter().enumerate();
            chosen
                .filter(|(at, _)| bits & (1 << at) != 0)
                .map(|(_, name)| *name)
                .collect()
        })
        .collect()
}

/// Waits until the agent has taken one change more than `before`.
fn taken(cluster: &Cluster, before: usize) -> Result<()> {
    wait::until("the change to be taken", PATIENCE, || {
        (cluster.agent.count_log(ONE_CHANGE) > before).then_some(())
    })
}

#[test]
fn a_thousand_changes_of_the_endpoints_fail_no_connection() -> Result<()> {
    const BACKENDS: [&str; 3] = ["backend-1", "backend-2", "backend-3"];
    let cluster = Cluster::new(&BACKENDS, |world, server| {
        server.apply(service(&web()));
        server.apply(tests::cluster::slice(world, "web", &BACKENDS));
        Ok(())
    })?;
    let churn = cluster.client().probe().churn(plan(VIP4, &BACKENDS))?;
    let subsets = subsets(&BACKENDS);
    let before = cluster.agent.count_log(ONE_CHANGE);
    for number in 0..1000 {
        let change = cluster.slice("web", &subsets[number % subsets.len()]);
        let synced = cluster.agent.count_log(ONE_CHANGE);
        cluster.server.apply(change);
        taken(&cluster, synced).with_context(|| format!("change {number}"))?;
    }
    let taken = cluster.agent.count_log(ONE_CHANGE) - before;
    ensure!(taken >= 1000, "{taken}");
    flawless(&churn.stop()?)?;
    // Nothing was left behind by any of them.
    let status = cluster.agent.status()?;
    wait::until("unused backends to be reclaimed", PATIENCE, || {
        let status = cluster.agent.status().ok()?;
        // Of two ports, as in the last subset or at most all.
        (status["maps"]["backends"]["used"].as_u64()? <= 6).then_some(())
    })
    .with_context(|| format!("{}", status["maps"]))?;
    ensure!(
        status["counters"]["table_damaged"] == 0,
        "{}",
        status["counters"]
    );
    Ok(())
}

#[test]
fn a_flood_of_changes_fails_no_connection() -> Result<()> {
    const BACKENDS: [&str; 3] = ["backend-1", "backend-2", "backend-3"];
    let cluster = Cluster::new(&BACKENDS, |world, server| {
        server.apply(service(&web()));
        server.apply(tests::cluster::slice(world, "web", &BACKENDS));
        Ok(())
    })?;
    let churn = cluster.client().probe().churn(plan(VIP4, &BACKENDS))?;
    let subsets = subsets(&BACKENDS);
    // Not waiting for any: the agent folds what comes together.
    for number in 0..3000 {
        cluster
            .server
            .apply(cluster.slice("web", &subsets[number % subsets.len()]));
    }
    cluster.server.apply(cluster.slice("web", &["backend-2"]));
    let probe = cluster.client().probe();
    tests::stage::eventually("the last change to be the one that counts", || {
        answered_by(&probe.connect_many(at(VIP4, 80), 50)?, &["backend-2"])
    })?;
    flawless(&churn.stop()?)
}

#[test]
fn two_services_that_change_never_answer_for_one_another() -> Result<()> {
    const WEB: [&str; 2] = ["backend-1", "backend-2"];
    const REST: [&str; 2] = ["backend-3", "backend-4"];
    let all = [WEB, REST].concat();
    let cluster = Cluster::new(&all, |world, server| {
        server.apply(service(&web()));
        server.apply(service(&other()));
        server.apply(tests::cluster::slice(world, "web", &WEB));
        server.apply(tests::cluster::slice(world, "other", &REST));
        Ok(())
    })?;
    let probe = cluster.client().probe();
    let churns = [
        probe.churn(plan(VIP4, &WEB))?,
        probe.churn(plan(OTHER, &REST))?,
    ];
    let (of_web, of_other) = (subsets(&WEB), subsets(&REST));
    for number in 0..500 {
        let synced = cluster.agent.count_log(ONE_CHANGE);
        let subset = number / 2 % of_web.len();
        cluster.server.apply(if number % 2 == 0 {
            cluster.slice("web", &of_web[subset])
        } else {
            cluster.slice("other", &of_other[subset])
        });
        taken(&cluster, synced).with_context(|| format!("change {number}"))?;
    }
    for churn in churns {
        flawless(&churn.stop()?)?;
    }
    Ok(())
}

/// Ids of Services and backends are used again and again.
#[test]
fn a_service_that_comes_and_goes_never_answers_for_another() -> Result<()> {
    const WEB: [&str; 2] = ["backend-1", "backend-2"];
    const REST: [&str; 2] = ["backend-3", "backend-4"];
    let all = [WEB, REST].concat();
    let cluster = Cluster::new(&all, |world, server| {
        server.apply(service(&web()));
        server.apply(tests::cluster::slice(world, "web", &WEB));
        server.apply(tests::cluster::slice(world, "other", &REST));
        Ok(())
    })?;
    let probe = cluster.client().probe();
    let lasting = probe.churn(plan(VIP4, &WEB))?;
    // Nothing answers at its address while it is away, so this one may fail, soon.
    let coming = probe.churn(ChurnPlan {
        timeout: Duration::from_millis(50),
        ..plan(OTHER, &REST)
    })?;
    for round in 0..200 {
        for there in [true, false] {
            let synced = cluster.agent.count_log(ONE_CHANGE);
            if there {
                cluster.server.apply(service(&other()));
            } else {
                ensure!(cluster.server.delete("Service", "default", "other"));
            }
            taken(&cluster, synced).with_context(|| format!("round {round}, {there}"))?;
        }
    }
    let report = coming.stop()?;
    ensure!(
        report.misdirected.is_empty() && report.tally.answered() > 0,
        "{report:?}"
    );
    flawless(&lasting.stop()?)
}

#[test]
fn once_status_shows_a_change_no_connection_reaches_a_removed_backend() -> Result<()> {
    const BACKENDS: [&str; 3] = ["backend-1", "backend-2", "backend-3"];
    let cluster = Cluster::new(&BACKENDS, |world, server| {
        server.apply(service(&web()));
        server.apply(tests::cluster::slice(world, "web", &BACKENDS));
        Ok(())
    })?;
    let probe = cluster.client().probe();
    let subsets = subsets(&BACKENDS);
    for number in 0..100 {
        // By 3: neighbours have no backend in common more often than not.
        let subset = &subsets[number * 3 % subsets.len()];
        cluster.server.apply(cluster.slice("web", subset));
        let mut wanted: Vec<String> = subset
            .iter()
            .map(|name| cluster.world.pod(name).ip4().to_string())
            .collect();
        wanted.sort();
        wait::until("status to show the change", PATIENCE, || {
            let status = cluster.agent.status().ok()?;
            let frontend = status["frontends"]
                .as_array()?
                .iter()
                .find(|frontend| frontend["port"] == 80)?;
            let shown: Vec<&str> = frontend["backends"]
                .as_array()?
                .iter()
                .filter(|backend| backend["chosen"] == true)
                .filter_map(|backend| backend["address"].as_str())
                .collect();
            (shown == wanted).then_some(())
        })?;
        let tally = probe.connect_many(at(VIP4, 80), 20)?;
        ensure!(
            tally.failed() == 0 && tally.who().iter().all(|name| subset.contains(name)),
            "change {number} to {subset:?}: {tally}"
        );
    }
    Ok(())
}
