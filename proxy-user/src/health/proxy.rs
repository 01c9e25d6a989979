//! Pure: whether the agent keeps up with the cluster, and what /healthz and /livez say of it.
//! `pkg/proxy/healthcheck/proxy_health.go`.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use hyper::StatusCode;
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use crate::{
    model::Family,
    server::{Answer, JSON},
};

/// Go's zero time: never.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// A point in time, on both clocks: one to measure with, one to show.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) at: Instant,
    pub(crate) wall: Timestamp,
}

impl Moment {
    pub(crate) fn now() -> Self {
        Self {
            at: Instant::now(),
            wall: Timestamp::now(),
        }
    }
}

#[derive(Debug)]
pub(crate) struct ProxyHealth {
    /// An update that waits for this long is late.
    late: Duration,
    families: BTreeMap<Family, FamilyHealth>,
    node_eligible: bool,
}

#[derive(Debug)]
struct FamilyHealth {
    /// The last successful sync.
    updated: Option<Timestamp>,
    /// Since when the oldest update waits that no successful sync has followed.
    waits_since: Option<Instant>,
}

impl FamilyHealth {
    fn is_late(&self, now: Instant, late: Duration) -> bool {
        self.waits_since
            .is_some_and(|since| now.saturating_duration_since(since) >= late)
    }
}

/// The body. The order of the fields is kube-proxy's.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    status: BTreeMap<&'static str, FamilyBody>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyBody {
    last_updated: String,
    healthy: bool,
}

impl ProxyHealth {
    pub(crate) fn new(late: Duration) -> Self {
        Self {
            late,
            families: BTreeMap::new(),
            node_eligible: false,
        }
    }

    /// Whether the node should get traffic.
    pub(crate) fn set_node_eligible(&mut self, eligible: bool) {
        self.node_eligible = eligible;
    }

    /// There is something to write.
    pub(crate) fn queued(&mut self, now: Moment) {
        for family in Family::BOTH {
            let health = self.families.entry(family).or_insert(FamilyHealth {
                updated: None,
                waits_since: None,
            });
            health.waits_since.get_or_insert(now.at);
        }
    }

    /// Everything of this family is written.
    pub(crate) fn updated(&mut self, family: Family, now: Moment) {
        self.families.insert(
            family,
            FamilyHealth {
                updated: Some(now.wall),
                waits_since: None,
            },
        );
    }

    /// Healthy is who keeps up, or has not begun.
    pub(crate) fn is_healthy(&self, now: Moment) -> bool {
        !self
            .families
            .values()
            .any(|health| health.updated.is_some() && health.is_late(now.at, self.late))
    }

    /// The same of /healthz: healthy, and the Node is to get traffic.
    pub(crate) fn is_good(&self, now: Moment) -> bool {
        self.is_healthy(now) && self.node_eligible
    }

    /// Whether load balancers should send traffic to this node.
    pub(crate) fn healthz(&self, now: Moment) -> Answer {
        self.answer(now, Some(self.node_eligible))
    }

    /// Whether this agent works.
    pub(crate) fn livez(&self, now: Moment) -> Answer {
        self.answer(now, None)
    }

    fn answer(&self, now: Moment, node_eligible: Option<bool>) -> Answer {
        let healthy = self.is_healthy(now);
        let good = healthy && node_eligible != Some(false);
        let newest = self
            .families
            .values()
            .filter_map(|health| health.updated)
            .max();
        // Of who is well it has always been told that the last look was just now.
        let last_updated = if good { Some(now.wall) } else { newest };
        let status = self.families.iter().filter_map(|(family, health)| {
            let name = match family {
                Family::V4 => "IPv4",
                Family::V6 => "IPv6",
            };
            let body = FamilyBody {
                last_updated: health.updated?.to_string(),
                healthy: !health.is_late(now.at, self.late),
            };
            Some((name, body))
        });
        let body = Body {
            last_updated: last_updated.map_or_else(|| NEVER.to_owned(), |time| time.to_string()),
            current_time: now.wall.to_string(),
            node_eligible,
            healthy,
            status: status.collect(),
        };
        Answer {
            status: if good {
                StatusCode::OK
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            },
            ..Answer::ok(JSON, serde_json::to_string(&body).unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clock of tests.
    struct Clock(Instant);

    impl Clock {
        fn at(&self, millis: u64) -> Moment {
            let start: Timestamp = "2026-05-01T12:00:00Z".parse().unwrap();
            Moment {
                at: self.0 + Duration::from_millis(millis),
                wall: start + Duration::from_millis(millis),
            }
        }
    }

    fn started() -> (ProxyHealth, Clock) {
        let clock = Clock(Instant::now());
        let mut health = ProxyHealth::new(Duration::from_secs(60));
        health.set_node_eligible(true);
        (health, clock)
    }

    fn synced(health: &mut ProxyHealth, now: Moment) {
        for family in Family::BOTH {
            health.updated(family, now);
        }
    }

    fn said(answer: Answer) -> (u16, String) {
        assert_eq!((answer.content_type, answer.more), (JSON, None));
        (answer.status.as_u16(), answer.body)
    }

    #[test]
    fn the_bodies_are_those_of_kube_proxy() {
        let (mut health, clock) = started();
        let now = clock.at(61_250);
        assert_eq!(
            said(health.healthz(now)),
            (
                200,
                r#"{"lastUpdated":"2026-05-01T12:01:01.25Z","currentTime":"2026-05-01T12:01:01.25Z","nodeEligible":true,"healthy":true}"#.into()
            )
        );
        synced(&mut health, clock.at(1_000));
        assert_eq!(
            said(health.healthz(now)),
            (
                200,
                concat!(
                    r#"{"lastUpdated":"2026-05-01T12:01:01.25Z","currentTime":"2026-05-01T12:01:01.25Z","nodeEligible":true,"healthy":true,"#,
                    r#""status":{"IPv4":{"lastUpdated":"2026-05-01T12:00:01Z","healthy":true},"IPv6":{"lastUpdated":"2026-05-01T12:00:01Z","healthy":true}}}"#
                )
                .into()
            )
        );
        assert_eq!(
            said(health.livez(now)),
            (
                200,
                concat!(
                    r#"{"lastUpdated":"2026-05-01T12:01:01.25Z","currentTime":"2026-05-01T12:01:01.25Z","healthy":true,"#,
                    r#""status":{"IPv4":{"lastUpdated":"2026-05-01T12:00:01Z","healthy":true},"IPv6":{"lastUpdated":"2026-05-01T12:00:01Z","healthy":true}}}"#
                )
                .into()
            )
        );
    }

    #[test]
    fn a_family_whose_oldest_update_waits_for_a_minute_is_late() {
        let (mut health, clock) = started();
        synced(&mut health, clock.at(0));
        health.queued(clock.at(1_000));
        // A later one does not start the wait anew.
        health.queued(clock.at(50_000));
        health.updated(Family::V6, clock.at(60_500));
        assert!(health.is_healthy(clock.at(60_999)));
        let late = clock.at(61_000);
        assert!(!health.is_healthy(late));
        let (status, body) = said(health.livez(late));
        assert_eq!(status, 503);
        assert_eq!(
            body,
            concat!(
                r#"{"lastUpdated":"2026-05-01T12:01:00.5Z","currentTime":"2026-05-01T12:01:01Z","healthy":false,"#,
                r#""status":{"IPv4":{"lastUpdated":"2026-05-01T12:00:00Z","healthy":false},"IPv6":{"lastUpdated":"2026-05-01T12:01:00.5Z","healthy":true}}}"#
            )
        );
        assert_eq!(said(health.healthz(late)).0, 503);
        health.updated(Family::V4, clock.at(70_000));
        assert_eq!(said(health.livez(clock.at(70_001))).0, 200);
    }

    #[test]
    fn who_has_not_synced_yet_is_not_late() {
        let (mut health, clock) = started();
        health.queued(clock.at(0));
        assert!(health.is_healthy(clock.at(600_000)));
        assert_eq!(said(health.livez(clock.at(600_000))).0, 200);
    }

    #[test]
    fn a_node_that_leaves_fails_healthz_alone() {
        let (mut health, clock) = started();
        synced(&mut health, clock.at(0));
        health.set_node_eligible(false);
        let (status, body) = said(health.healthz(clock.at(2_000)));
        assert_eq!(status, 503);
        // The agent itself is healthy, and nothing was updated just now.
        assert!(
            body.starts_with(
                r#"{"lastUpdated":"2026-05-01T12:00:00Z","currentTime":"2026-05-01T12:00:02Z","nodeEligible":false,"healthy":true,"#
            ),
            "{body}"
        );
        assert_eq!(said(health.livez(clock.at(2_000))).0, 200);
        assert!(health.is_healthy(clock.at(2_000)));
    }

    #[test]
    fn before_the_first_sync_nothing_was_ever_updated() {
        let (mut health, clock) = started();
        health.set_node_eligible(false);
        assert_eq!(
            said(health.healthz(clock.at(0))).1,
            r#"{"lastUpdated":"0001-01-01T00:00:00Z","currentTime":"2026-05-01T12:00:00Z","nodeEligible":false,"healthy":true}"#
        );
    }
}
