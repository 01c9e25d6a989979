//! The agent's side of failover: it is told of attempts that failed, as the programs tell it, and has a
//! backend passed over. What fails, and who is passed over, is written by the test.

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData};
use proxy_common::abi::{AttemptFailure, Backend, BackendStats, Counter, map};
use proxy_user::{
    expiry::monotonic_ns,
    loader::Pins,
    maps::{MapStore as _, bpf::BpfStore},
    plan::Step,
};
use tests::{
    bpf, http,
    stage::{BACKENDS, PATIENCE, Stage, VIP4, at, eventually},
};

/// The maps of a stage's agent.
struct Maps {
    store: BpfStore,
    stats: Array<MapData, [u8; BackendStats::SIZE]>,
    failures: MapData,
}

impl Maps {
    fn of(stage: &Stage) -> Result<Self> {
        let directory = stage.agent.pins();
        let root = directory.ancestors().nth(2).context("a bpffs")?;
        let open = |name| MapData::from_pin(directory.join(name));
        Ok(Self {
            store: Pins::new(root).open_store()?,
            stats: Array::try_from(Map::Array(open(map::BACKEND_STATS)?))?,
            failures: open(map::FAILURES)?,
        })
    }

    /// The service behind the frontend, and the chosen backends.
    fn service(&self, stage: &Stage) -> Result<(u32, Vec<u32>)> {
        let frontend = stage.frontend(VIP4, 80)?.context("no frontend")?;
        let service = u32::try_from(frontend["service_id"].as_u64().context("an id")?)?;
        let backends = self.store.observe()?.backends;
        let chosen =
            |backend: &Backend| backend.service == service && backend.flags & Backend::CHOSEN != 0;
        let mut ids: Vec<u32> = (backends.iter())
            .filter(|(_, backend)| chosen(backend))
            .map(|(id, _)| *id)
            .collect();
        ids.sort_unstable();
        Ok((service, ids))
    }

    fn switch(&mut self, service: u32, fails_over: bool) -> Result<()> {
        let there = self.store.service(service)?;
        let (scheduler, is_weighted) = (there.word.scheduler(), there.word.is_weighted());
        Ok(self.store.execute(&Step::Switch {
            service,
            word: there.word.scheduled(scheduler, fails_over, is_weighted),
            affinity: there.affinity,
        })?)
    }

    fn stats(&self, id: u32) -> Result<BackendStats> {
        Ok(self.store.stats_of_backend(id)?)
    }

    fn set_failures(&mut self, id: u32, failures: u32) -> Result<()> {
        let stats = BackendStats {
            failures,
            ..self.stats(id)?
        };
        Ok(self.stats.set(id, stats.to_bytes(), 0)?)
    }

    /// As if one more attempt had failed, so many in a row.
    fn fails(&mut self, service: u32, id: u32, in_a_row: u32) -> Result<()> {
        self.set_failures(id, in_a_row)?;
        let failure = AttemptFailure {
            at_ns: monotonic_ns(),
            service,
            backend_id: id,
            outcome: Counter::AttemptRefused.index(),
            zero: 0,
        };
        bpf::tell(self.failures.fd(), &failure.to_bytes())
    }
}

fn passed_over(maps: &Maps, ids: &[u32]) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for id in ids {
        if maps.stats(*id)?.passed_over_until_ns != 0 {
            found.push(*id);
        }
    }
    Ok(found)
}

fn metric(stage: &Stage, name: &str) -> Result<u64> {
    let netns = stage.world.node("node-a").netns();
    let page = http::get(netns, at("127.0.0.1", 10249), "/metrics")?.body;
    let line = page
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(line.with_context(|| format!("no {name}"))?.parse()?)
}

#[test]
fn a_backend_that_failed_three_times_is_passed_over_and_told() -> Result<()> {
    let stage = Stage::usual()?;
    let mut maps = Maps::of(&stage)?;
    let (service, ids) = maps.service(&stage)?;
    ensure!(ids.len() == BACKENDS.len(), "{ids:?}");
    maps.switch(service, true)?;
    let before = monotonic_ns();
    maps.fails(service, ids[0], 2)?;
    maps.fails(service, ids[0], 3)?;
    let line = stage.agent.wait_line(
        &["default/web:http", "gets no new connections for 10 s"],
        PATIENCE,
    )?;
    ensure!(
        line.contains("3 attempts to connect to it failed in a row, the last was refused"),
        "{line}"
    );
    let until_ns = maps.stats(ids[0])?.passed_over_until_ns;
    ensure!(until_ns >= before + 10_000_000_000, "{until_ns}");
    eventually("the metric", || {
        ensure!(metric(&stage, "kube_portal_backend_ejections_total")? == 1);
        Ok(())
    })?;

    // It answers: it is as good as the others when its time is over.
    maps.set_failures(ids[0], 0)?;
    stage
        .agent
        .wait_line(&["default/web:http", "answers, and gets"], PATIENCE)?;
    ensure!(maps.stats(ids[0])?.passed_over_until_ns == 0);
    eventually("the metric", || {
        ensure!(metric(&stage, "kube_portal_backends_passed_over")? == 0);
        Ok(())
    })
}

#[test]
fn of_three_that_fail_one_is_passed_over_and_none_where_it_is_switched_off() -> Result<()> {
    let stage = Stage::usual()?;
    let mut maps = Maps::of(&stage)?;
    let (service, ids) = maps.service(&stage)?;
    maps.switch(service, true)?;
    for id in &ids {
        maps.fails(service, *id, 3)?;
    }
    stage
        .agent
        .wait_line(&["of 3 backends no more than 1 are passed over"], PATIENCE)?;
    let now_ns = monotonic_ns();
    let mut out = 0;
    for id in &ids {
        out += usize::from(maps.stats(*id)?.passed_over_until_ns > now_ns);
    }
    ensure!(out <= 1, "{out} of {ids:?}");

    maps.switch(service, false)?;
    eventually("all are back", || {
        let out = passed_over(&maps, &ids)?;
        ensure!(out.is_empty(), "{out:?}");
        Ok(())
    })
}

#[test]
fn without_an_agent_it_is_seen_and_an_id_that_goes_takes_it_along() -> Result<()> {
    let mut stage = Stage::usual()?;
    let mut maps = Maps::of(&stage)?;
    let (service, ids) = maps.service(&stage)?;
    let id = ids[0];
    stage.agent.stop()?;
    maps.switch(service, true)?;
    maps.set_failures(id, 4)?;
    maps.store.pass_over(id, monotonic_ns() + 280_000_000_000)?;
    let status = stage.agent.status()?;
    let shown = status["passed_over"].as_array().context("an array")?;
    ensure!(
        shown.len() == 1 && shown[0]["id"] == id && shown[0]["failures"] == 4,
        "{shown:?}"
    );
    let text = stage.agent.call(&["status"])?;
    ensure!(text.contains("PASSED OVER (1 backends):"), "{text}");
    let rows = stage.agent.call(&["inspect", "backends", "--json"])?;
    let rows: serde_json::Value = serde_json::from_str(&rows)?;
    let rows = rows.as_array().context("an array")?;
    let row = rows.iter().find(|row| row["id"] == id).context("a row")?;
    ensure!(
        row["failures"] == 4 && row["passed_over_secs"].as_u64() > Some(0),
        "{row}"
    );

    stage.agent.restart()?;
    stage.agent.wait_ready(PATIENCE)?;
    let gone = maps.store.backend(id).context("a backend")?.addr.ip();
    let left: Vec<&str> = (BACKENDS.into_iter())
        .filter(|name| stage.world.pod(name).ip4() != gone)
        .collect();
    ensure!(left.len() == 2, "{left:?}");
    stage.set_backends(&left)?;
    eventually("the id to be free", || {
        let stats = maps.stats(id)?;
        ensure!(
            maps.store
                .backend(id)
                .is_some_and(|backend| backend.service == 0)
        );
        ensure!(
            (stats.failures, stats.passed_over_until_ns) == (0, 0),
            "{stats:?}"
        );
        Ok(())
    })
}
