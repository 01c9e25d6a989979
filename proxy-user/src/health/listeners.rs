//! The servers of healthCheckNodePorts: one for each Service and address. Changes are pushed, one
//! Service at a time; a port that can't be had is asked for again.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::sync::mpsc;

use super::service;
use crate::{
    events::{Events, Notice},
    model::{Family, HealthCheck, ObjectName},
    server::{self, Server, at_once},
};

/// Before a port is asked for again.
const RETRY: Duration = Duration::from_secs(5);

/// What the servers are told.
#[derive(Debug)]
pub(crate) enum Told {
    /// The Service's health check, or that it has none any more.
    Service(ObjectName, Option<HealthCheck>),
    /// Where to listen.
    Addresses(Vec<IpAddr>),
}

/// Whether the agent itself is healthy, now.
pub(crate) type ProxyIsHealthy = Arc<dyn Fn() -> bool + Send + Sync>;

/// Runs until the sender is gone.
pub(crate) async fn run(
    mut told: mpsc::UnboundedReceiver<Told>,
    node_name: String,
    proxy_is_healthy: ProxyIsHealthy,
    events: Option<Events>,
) {
    let mut listeners = Listeners {
        node_name,
        proxy_is_healthy,
        events,
        addresses: Vec::new(),
        services: BTreeMap::new(),
        changed: BTreeSet::new(),
        failed: BTreeSet::new(),
    };
    loop {
        tokio::select! {
            next = told.recv() => {
                let Some(next) = next else {
                    return;
                };
                listeners.hear(next);
                while let Ok(next) = told.try_recv() {
                    listeners.hear(next);
                }
                listeners.settle().await;
            }
            () = tokio::time::sleep(RETRY), if !listeners.failed.is_empty() => {
                listeners.settle().await;
            }
        }
    }
}

struct Listeners {
    node_name: String,
    proxy_is_healthy: ProxyIsHealthy,
    events: Option<Events>,
    addresses: Vec<IpAddr>,
    services: BTreeMap<ObjectName, Service>,
    /// Those whose listeners may not be the right ones.
    changed: BTreeSet<ObjectName>,
    /// What could not be bound, and has been told.
    failed: BTreeSet<(ObjectName, SocketAddr)>,
}

#[derive(Default)]
struct Service {
    /// Shared with the servers; `None` when there should be none.
    check: Arc<RwLock<Option<HealthCheck>>>,
    /// `None` where the node has no such family.
    open: BTreeMap<SocketAddr, Option<Server>>,
}

impl Service {
    fn check(&self) -> Option<HealthCheck> {
        read(&self.check)
    }

    fn wanted(&self, addresses: &[IpAddr]) -> BTreeSet<SocketAddr> {
        self.check()
            .map(|check| {
                let port = check.port.get();
                addresses
                    .iter()
                    .map(|ip| SocketAddr::new(*ip, port))
                    .collect()
            })
            .unwrap_or_default()
    }
}

fn read(check: &RwLock<Option<HealthCheck>>) -> Option<HealthCheck> {
    check.read().unwrap_or_else(PoisonError::into_inner).clone()
}

impl Listeners {
    fn hear(&mut self, told: Told) {
        match told {
            Told::Addresses(addresses) => {
                self.addresses = addresses;
                self.changed.extend(self.services.keys().cloned());
            }
            Told::Service(name, check) => {
                let service = self.services.entry(name.clone()).or_default();
                let mut known = service
                    .check
                    .write()
                    .unwrap_or_else(PoisonError::into_inner);
                let same_port = known.as_ref().map(|known| known.port)
                    == check.as_ref().map(|check| check.port);
                *known = check;
                if !same_port {
                    self.changed.insert(name);
                }
            }
        }
    }

    /// Closes what is not wanted, of all Services before anything is opened: a port may have passed
    /// from one to another.
    async fn settle(&mut self) {
        let mut changed = std::mem::take(&mut self.changed);
        for name in &changed {
            let Some(service) = self.services.get_mut(name) else {
                continue;
            };
            let wanted = service.wanted(&self.addresses);
            self.failed
                .retain(|(failed, at)| failed != name || wanted.contains(at));
            let unwanted: Vec<SocketAddr> = service
                .open
                .keys()
                .filter(|at| !wanted.contains(at))
                .copied()
                .collect();
            for at in unwanted {
                if let Some(Some(server)) = service.open.remove(&at) {
                    server.stop().await;
                    log::debug!("Service {name}: its health check on {at} is closed");
                }
            }
            if service.check().is_none() {
                self.services.remove(name);
            }
        }
        changed.extend(self.failed.iter().map(|(name, _)| name.clone()));
        for name in &changed {
            self.open(name);
        }
    }

    fn open(&mut self, name: &ObjectName) {
        let Some(service) = self.services.get_mut(name) else {
            return;
        };
        let mut refused = Vec::new();
        for at in service.wanted(&self.addresses) {
            if service.open.contains_key(&at) {
                continue;
            }
            match server::listen(at) {
                Ok(listener) => {
                    let handler = at_once({
                        let (name, check) = (name.clone(), service.check.clone());
                        let proxy_is_healthy = self.proxy_is_healthy.clone();
                        move |asked| {
                            let family = Family::of(&asked.at);
                            let local =
                                read(&check).map_or(0, |check| check.local_endpoints(family));
                            service::answer(&name, local, proxy_is_healthy())
                        }
                    });
                    let server = listener.map(|listener| Server::start(listener, handler));
                    service.open.insert(at, server);
                    if self.failed.remove(&(name.clone(), at)) {
                        log::info!("Service {name}: its health check listens on {at} now");
                    }
                }
                Err(error) => {
                    if self.failed.insert((name.clone(), at)) {
                        refused.push(format!("{at}: {error}"));
                    }
                }
            }
        }
        if let (false, Some(check)) = (refused.is_empty(), service.check()) {
            let reasons = refused.join(", ");
            log::warn!(
                "Service {name}: its health check can't listen on {reasons}; free the port, it is tried again"
            );
            if let Some(events) = &self.events {
                let node = &self.node_name;
                events.tell(Notice::no_health_check(node, name, &check, &reasons));
            }
        }
    }
}
