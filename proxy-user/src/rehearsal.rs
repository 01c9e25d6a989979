//! The agent's first sync on maps that are only supposed: what would it write if it ran now?
//!
//! The source is the agent's, and so are model, planner and loop. It takes no lock, binds no port, makes no pin
//! and tells nobody.

use std::{net::IpAddr, sync::Arc, time::Duration};

use tokio::sync::{Notify, mpsc, watch as latest};

use crate::{
    app::{self, Source},
    cli::CliError,
    devices::Facts,
    maps::{Capacity, Observed, dry::DryStore},
    model::{BalancingDefaults, Event, Kind, Model, Node, NodePortScope},
    plan::{Planner, Step},
    sync::Syncer,
    waiting::NotProgrammed,
    watch::{self, kube::Connection},
};

/// What is rehearsed.
#[derive(Clone, Debug)]
pub struct Scene {
    pub source: Source,
    pub node_name: String,
    pub node_ports: NodePortScope,
    /// In place of the Node object's of its family.
    pub primary_ip: Option<IpAddr>,
    /// Of Services that don't say it.
    pub balancing: BalancingDefaults,
    /// What the maps hold now, and how much they can.
    pub found: Observed,
    pub capacity: Capacity,
}

/// What came of it.
#[derive(Debug)]
pub struct Rehearsed {
    /// What the maps would hold.
    pub after: Observed,
    /// The writes that lead there.
    pub steps: Vec<Step>,
    /// Services that would find no room.
    pub not_programmed: Vec<NotProgrammed>,
}

/// Lists once, and plans. To be called on a runtime.
///
/// # Errors
/// The source can't be had, or has not told all within `patience`.
pub async fn rehearse(scene: &Scene, patience: Duration) -> Result<Rehearsed, CliError> {
    let node = Node {
        name: scene.node_name.as_str().into(),
        ..Node::default()
    };
    let model = Model::new(node, scene.node_ports.clone())
        .with_primary_ip(scene.primary_ip)
        .with_balancing(scene.balancing)
        .that_waits_for_its_node();
    let planner = Planner::adopt(scene.capacity, &scene.found);
    let store = DryStore::new(scene.capacity, scene.found.clone());
    let mut syncer = Syncer::new(model, planner, store);
    listen(scene, &mut syncer, patience).await?;
    syncer.sync();
    // What falls out of use goes when nobody can be at it any more: at once, as nobody is.
    while let Some(epoch) = syncer.begin_grace() {
        syncer.passed(epoch);
    }
    let not_programmed = syncer.not_programmed();
    let (after, steps) = syncer.into_store().into_outcome();
    Ok(Rehearsed {
        after,
        steps,
        not_programmed,
    })
}

/// Until all has been listed that the agent acts on.
async fn listen(
    scene: &Scene,
    syncer: &mut Syncer<DryStore>,
    patience: Duration,
) -> Result<(), CliError> {
    let (events, mut received) = mpsc::channel(app::EVENT_QUEUE);
    let (facts, _unseen) = latest::channel(Facts::default());
    tokio::spawn(watch::node_net::run(watch::node_net::Listeners {
        events: events.clone(),
        facts,
        filters: Arc::new(Notify::new()),
    }));
    let (mut source, connection, _nobody) =
        app::start_source(&scene.source, &scene.node_name, events, false).await?;
    if let Some(connection) = &connection {
        connection.remember(&scene.found.backends_of(app::API_SERVERS));
    }
    let listed = async {
        let mut knows_cidrs = false;
        while !(knows_cidrs && syncer.model().is_ready()) {
            let event = tokio::select! {
                Some(event) = received.recv() => event,
                ended = &mut source => return ended.unwrap_or_else(|error| {
                    Err(CliError::Io { what: "the source", source: error.into() })
                }),
            };
            knows_cidrs |= matches!(event, Event::Listed(Kind::ServiceCidr));
            syncer.apply(event);
        }
        Ok(())
    };
    let listed = tokio::time::timeout(patience, listed).await;
    listed.unwrap_or_else(|_| {
        Err(CliError::NotListed {
            secs: patience.as_secs(),
            why: connection.as_ref().map_or_else(String::new, why),
        })
    })
}

fn why(connection: &Connection) -> String {
    let freshness = connection.contact().freshness();
    let reason = freshness.reason.filter(|reason| !reason.is_empty());
    let reason = reason.map_or_else(String::new, |reason| format!(": {reason}"));
    format!(" by the API server {}{reason}", freshness.server)
}
