//! When audits happen: at an interval, and when somebody asks.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval_at, sleep},
};

use crate::{
    audit::{Audit, Audited},
    control::Asker,
    maps::{MapStore, StoreError, bpf::BpfStore},
    plan::Step,
    sync::Syncer,
};

/// Parts that are looked at in one go: a fraction of a millisecond, in which no event is handled.
const PARTS: usize = 32;
/// Between two goes.
const REST: Duration = Duration::from_millis(2);

#[derive(Debug)]
pub(crate) struct Auditing {
    requests: mpsc::Receiver<Asker>,
    interval: Option<tokio::time::Interval>,
    /// To read the maps with, beside the loop.
    view: Arc<BpfStore>,
    running: Option<Running>,
    /// Who asked while one was running: it may have passed what they mean.
    waiting: Vec<Asker>,
    /// That the maps can't be listed.
    told: bool,
}

#[derive(Debug)]
struct Running {
    audit: Audit,
    reading: Option<JoinHandle<Result<Vec<Step>, StoreError>>>,
    askers: Vec<Asker>,
}

impl Auditing {
    /// Without an interval, only when it is asked for.
    pub(crate) fn new(
        requests: mpsc::Receiver<Asker>,
        interval: Option<Duration>,
        view: Arc<BpfStore>,
    ) -> Self {
        let interval = interval.map(|period| {
            let mut interval = interval_at(Instant::now() + period, period);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        });
        Self {
            requests,
            interval,
            view,
            running: None,
            waiting: Vec::new(),
            told: false,
        }
    }

    /// Returns when there is something to do for [`Self::go_on`]. May be dropped at any time.
    pub(crate) async fn is_due(&mut self) {
        if let Some(running) = &mut self.running {
            if running.audit.waits()
                && let Some(reading) = &mut running.reading
            {
                let entries = reading.await;
                running.reading = None;
                running.audit.set_entries(match entries {
                    Ok(Ok(entries)) => {
                        self.told = false;
                        entries
                    }
                    Ok(Err(error)) => {
                        if !std::mem::replace(&mut self.told, true) {
                            log::warn!(
                                "audit: the maps can't be listed: {error}; what is nobody's stays in them until they can"
                            );
                        }
                        Vec::new()
                    }
                    Err(_) => Vec::new(),
                });
            }
            sleep(REST).await;
            return;
        }
        tokio::select! {
            Some(asker) = self.requests.recv() => self.waiting.push(asker),
            () = tick(&mut self.interval) => {}
        }
    }

    /// Begins, or goes on; what was found, at the end of a pass.
    pub(crate) fn go_on(&mut self, syncer: &mut Syncer<BpfStore>) -> Option<Audited> {
        while let Ok(asker) = self.requests.try_recv() {
            self.waiting.push(asker);
        }
        let running = self.running.get_or_insert_with(|| {
            let view = Arc::clone(&self.view);
            Running {
                audit: Audit::of(syncer.planner()),
                reading: Some(tokio::task::spawn_blocking(move || view.removals())),
                askers: std::mem::take(&mut self.waiting),
            }
        });
        let audited = syncer.audit(&mut running.audit, PARTS)?;
        let askers = self.running.take().map(|running| running.askers);
        for asker in askers.into_iter().flatten() {
            // It may have gone.
            let _told = asker.send(audited.clone());
        }
        Some(audited)
    }
}

/// Never, without an interval.
async fn tick(interval: &mut Option<tokio::time::Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}
