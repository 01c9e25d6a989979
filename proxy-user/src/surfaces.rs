//! What the agent shows over HTTP and in Events: puts together `health`, `metrics`, `events` and
//! `server`, and is told by the loop what happens. Nothing here can hold the loop up.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;
use tokio::{net::TcpListener, sync::mpsc};

use crate::{
    audit::Audited,
    cli::CliError,
    events::{self, Events, Notice},
    expiry::Filling,
    failover::Report,
    health::{
        Moment, ProxyHealth,
        listeners::{self, ProxyIsHealthy, Told},
    },
    keeper::Attached,
    maps::MapStore,
    metrics::{self, Metrics, Ours, Slis},
    model::{Event, Family},
    server::{self, Answer, Handler, JSON, PLAIN, Server, at_once},
    sync::{Outcome, Syncer},
    watch::kube::Connection,
};

/// Before a bind address is asked for again, as kube-proxy does.
const RETRY: Duration = Duration::from_secs(5);
/// What /proxyMode says. kube-proxy names how it translates; so do we.
const PROXY_MODE: &str = "ebpf";

/// Where the agent listens; empty for not at all.
#[derive(Clone, Debug)]
pub struct SurfacesConfig {
    pub healthz: Vec<SocketAddr>,
    pub metrics: Vec<SocketAddr>,
    /// An address that can't be had ends the agent; else it is asked for again (BEHAVIOUR P10).
    pub hard_fail: bool,
    /// An update that waits for this long makes the agent unhealthy.
    pub late: Duration,
    /// What /configz says.
    pub configz: String,
    /// Service ports that have metrics of their own.
    pub metrics_max_services: usize,
}

#[derive(Debug)]
pub(crate) struct Surfaces {
    health: Arc<Mutex<ProxyHealth>>,
    metrics: Arc<Metrics>,
    /// With an API server.
    events: Option<Events>,
    node_name: String,
    checks: mpsc::UnboundedSender<Told>,
    /// With an API server, a Node that isn't there is not eligible.
    needs_node: bool,
    /// It has been told what there is of a Node. Its addresses say where health checks listen.
    knows_node: bool,
    started: Timestamp,
    /// When the sync in progress began.
    began: Option<Instant>,
    /// Where health checks listen.
    addresses: Vec<IpAddr>,
    addresses_changed: bool,
}

impl Surfaces {
    /// Fails only with `hard_fail`. To be called on a runtime.
    pub(crate) fn start(
        config: &SurfacesConfig,
        node_name: &str,
        connection: Option<&Connection>,
        events: Option<Events>,
    ) -> Result<Self, CliError> {
        let needs_node = connection.is_some();
        let health = Arc::new(Mutex::new(ProxyHealth::new(config.late)));
        lock(&health).set_node_eligible(!needs_node);
        let metrics = Arc::new(Metrics::new(metrics::Asked {
            health: health.clone(),
            max_services: config.metrics_max_services,
            api_server: connection.map(|known| (known.contact(), known.requests())),
        }));

        let healthz = healthz_handler(health.clone(), metrics.clone());
        let healthz_flag = "--healthz-bind-address";
        keep_all(&config.healthz, healthz_flag, &healthz, config.hard_fail)?;
        let show = metrics_handler(metrics.clone(), config.configz.clone());
        let metrics_flag = "--metrics-bind-address";
        keep_all(&config.metrics, metrics_flag, &show, config.hard_fail)?;

        if let Some(events) = &events {
            events.tell(Notice::starting(node_name));
        }
        let (checks, told) = mpsc::unbounded_channel();
        let proxy_is_healthy: ProxyIsHealthy = {
            let health = health.clone();
            Arc::new(move || lock(&health).is_healthy(Moment::now()))
        };
        tokio::spawn(listeners::run(
            told,
            node_name.to_owned(),
            proxy_is_healthy,
            events.clone(),
        ));
        Ok(Self {
            health,
            metrics,
            events,
            node_name: node_name.to_owned(),
            checks,
            needs_node,
            knows_node: !needs_node,
            started: Timestamp::now(),
            began: None,
            addresses: Vec::new(),
            addresses_changed: true,
        })
    }

    /// The maps and programs are there, for /metrics to show.
    pub(crate) fn set_kernel(&self, ours: Ours) {
        self.metrics.set_kernel(Box::new(ours));
    }

    /// To be told what came of a pass over the devices.
    pub(crate) fn attached(&self) -> impl Fn(Attached) + use<> {
        let metrics = self.metrics.clone();
        move |attached| metrics.set_devices(attached)
    }

    /// To be told how full a map is.
    pub(crate) fn fillings(&self) -> impl Fn(Filling) + use<> {
        let metrics = self.metrics.clone();
        move |filling| metrics.set_map(filling)
    }

    /// To be told who is passed over.
    pub(crate) fn failover(&self) -> impl Fn(Report) + use<> {
        let metrics = self.metrics.clone();
        let (events, node) = (self.events.clone(), self.node_name.clone());
        move |report| {
            metrics.passed_over(&report);
            for news in &report.news {
                log::log!(news.level(), "{news}");
                if let (Some(events), Some(notice)) = (&events, Notice::failover(&node, news)) {
                    events.tell(notice);
                }
            }
        }
    }

    /// To be told by how many connections the counts of backends were wrong.
    pub(crate) fn corrections(&self) -> impl Fn(u64) + use<> {
        let metrics = self.metrics.clone();
        move |connections| metrics.corrected(connections)
    }

    /// An event is about to be applied.
    pub(crate) fn received(&mut self, event: &Event) {
        self.metrics.received(event);
        match event {
            Event::NodeChanged(node) => {
                let eligible = node.eligible.unwrap_or(!self.needs_node);
                lock(&self.health).set_node_eligible(eligible);
                self.knows_node = true;
                self.addresses_changed = true;
            }
            Event::LocalAddresses(_) => self.addresses_changed = true,
            Event::ListStarted(_)
            | Event::Listed(_)
            | Event::ServiceApplied(_)
            | Event::ServiceGone(_)
            | Event::SliceApplied(_)
            | Event::SliceGone(_)
            | Event::ServiceCidrApplied(..)
            | Event::ServiceCidrGone(_) => {}
        }
    }

    /// A sync is about to begin.
    pub(crate) fn before_sync<S: MapStore>(&mut self, syncer: &Syncer<S>) {
        let now = Moment::now();
        self.began = Some(now.at);
        if syncer.model().is_ready() && syncer.model().is_touched() {
            lock(&self.health).queued(now);
            self.metrics.queued(now.wall);
        }
    }

    /// What came of it. Costs what has changed, not what there is.
    pub(crate) fn after_sync<S: MapStore>(&mut self, outcome: &mut Outcome, syncer: &Syncer<S>) {
        let began = self.began.take();
        self.metrics
            .service_ids(std::mem::take(&mut outcome.id_changes));
        if !outcome.ran {
            return;
        }
        let now = Moment::now();
        // A Service that finds no room is a matter of its own and has a metric; it must not take the
        // node out of every load balancer. A map that can't be written is everybody's.
        let failed = |family: &Family| {
            let mut failed = outcome.report.failed.iter();
            failed.any(|failed| failed.key.family == *family && !failed.error.is_full())
        };
        {
            let mut health = lock(&self.health);
            for family in Family::BOTH.into_iter().filter(|family| !failed(family)) {
                health.updated(family, now);
            }
        }
        if let Some(began) = began {
            let whole = outcome.report.failed.is_empty();
            self.metrics.synced(now.wall, now.at - began, whole);
        }
        // Not of changes that happened before there was anybody to write them.
        for triggered in outcome.triggers.iter().filter(|at| **at >= self.started) {
            self.metrics.programmed(*triggered, now.wall);
        }
        self.metrics.set_without_local(outcome.without_local);
        self.metrics.set_not_programmed(syncer.waiting());
        for full in outcome.began_to_wait.iter().filter_map(|(_, t)| t.full) {
            self.metrics.refused(full);
        }
        if let Some(events) = &self.events {
            for notice in events::of_sync(&self.node_name, outcome) {
                events.tell(notice);
            }
        }
        self.metrics
            .set_maps(syncer.planner().used(), syncer.store().capacity());
        for (service, check) in outcome.health_checks.drain(..) {
            self.tell(Told::Service(service, check));
        }
        if self.knows_node && std::mem::take(&mut self.addresses_changed) {
            let addresses = syncer.model().health_check_addresses();
            if addresses != self.addresses {
                self.tell(Told::Addresses(addresses.clone()));
                self.addresses = addresses;
            }
        }
    }

    /// A pass over the maps has ended. What was found is somebody's doing, and is told.
    pub(crate) fn audited(&self, audited: &Audited) {
        self.metrics.audited(Timestamp::now(), audited);
        log::debug!("audit: {} entries looked at", audited.checked);
        for line in audited.lines() {
            log::warn!("the maps were changed by somebody else: {line}");
        }
        if let (Some(events), true) = (&self.events, audited.drifted > 0) {
            events.tell(Notice::maps_repaired(&self.node_name, audited));
        }
    }

    fn tell(&self, told: Told) {
        // Its receiver ends with the runtime only.
        let _sent = self.checks.send(told);
    }
}

fn lock(health: &Mutex<ProxyHealth>) -> std::sync::MutexGuard<'_, ProxyHealth> {
    health.lock().unwrap_or_else(PoisonError::into_inner)
}

fn healthz_handler(health: Arc<Mutex<ProxyHealth>>, metrics: Arc<Metrics>) -> Handler {
    at_once(move |asked| match asked.path.as_str() {
        "/healthz" => {
            let answer = lock(&health).healthz(Moment::now());
            metrics.asked_healthz(answer.status);
            answer
        }
        "/livez" => {
            let answer = lock(&health).livez(Moment::now());
            metrics.asked_livez(answer.status);
            answer
        }
        _ => Answer::not_found(),
    })
}

fn metrics_handler(metrics: Arc<Metrics>, configz: String) -> Handler {
    let slis = Arc::new(Slis::new());
    Arc::new(move |asked| {
        let (metrics, slis, configz) = (metrics.clone(), slis.clone(), configz.clone());
        Box::pin(async move {
            match asked.path.as_str() {
                // Reads maps: many system calls, which others need not wait for.
                "/metrics" => tokio::task::spawn_blocking(move || metrics.answer(&asked.accept))
                    .await
                    .unwrap_or_else(|_| Answer::not_found()),
                "/metrics/slis" => slis.answer(&asked.accept),
                "/healthz" => {
                    slis.pinged();
                    Answer::ok(PLAIN, "ok".into())
                }
                "/configz" => Answer::ok(JSON, configz),
                "/proxyMode" => Answer::ok(PLAIN, PROXY_MODE.into()),
                _ => Answer::not_found(),
            }
        })
    })
}

/// Serves on each address for as long as the agent lives.
fn keep_all(
    addresses: &[SocketAddr],
    flag: &'static str,
    handler: &Handler,
    hard_fail: bool,
) -> Result<(), CliError> {
    for &at in addresses {
        let first = server::listen(at);
        match &first {
            Err(source) if hard_fail => {
                return Err(CliError::Listen(format!(
                    "{flag}: {at}: {source}; free the port, give another address, or leave out --bind-address-hard-fail"
                )));
            }
            Err(error) => log::warn!(
                "{flag}: {at}: {error}; free the port or give another address, it is tried again"
            ),
            Ok(_) => {}
        }
        tokio::spawn(keep(at, flag, first.ok(), handler.clone()));
    }
    Ok(())
}

/// `first` is `None` if it could not be bound, and holds `None` on a node without its family.
async fn keep(
    at: SocketAddr,
    flag: &'static str,
    first: Option<Option<TcpListener>>,
    handler: Handler,
) {
    let listener = match first {
        Some(listener) => listener,
        None => loop {
            tokio::time::sleep(RETRY).await;
            match server::listen(at) {
                Ok(listener) => {
                    log::info!("{flag}: it listens on {at} now");
                    break listener;
                }
                Err(error) => log::debug!("{flag}: {at}: {error}"),
            }
        },
    };
    if let Some(listener) = listener {
        let _server = Server::start(listener, handler);
        std::future::pending().await
    }
}
