//! What fell out of use, once every program that could still see it has ended.

use std::sync::Arc;

use proxy_common::abi::{ServiceAffinity, ServiceWord};

use super::{
    ids::{Epoch, never_busy},
    planner::{Plan, Planned, Planner},
    step::Step,
};

impl Planner {
    /// The epoch that a grace period beginning now ends; `None` if nothing waits for one.
    pub fn begin_grace(&mut self) -> Option<Epoch> {
        if !std::mem::take(&mut self.unfreed) {
            return None;
        }
        self.epoch += 1;
        Some(self.epoch - 1)
    }

    /// Every program that ran in `epoch` has ended. Returns the steps that reclaim what nobody can
    /// see any more; execute and report them as any other plan. `is_busy`: whether connections name the
    /// backend's id.
    pub fn passed(&mut self, epoch: Epoch, is_busy: impl Fn(u32) -> bool) -> Plan {
        self.service_ids.passed(epoch, never_busy);
        self.backend_ids.passed(epoch, is_busy);
        self.runs.passed(epoch);
        let mut plan = Plan::default();
        while let Some((at, key)) = self.disused.pop_first() {
            if at > epoch {
                self.disused.insert((at, key));
                break;
            }
            let Some(port) = self.ports.get(&key) else {
                continue;
            };
            let named = |address| {
                self.frontends.get(address).is_some_and(|frontend| {
                    frontend.service == port.id || frontend.outside_service == port.id
                })
            };
            // A frontend that could not be removed keeps what it names.
            let gone =
                port.disused.is_some_and(|at| at <= epoch) && !port.frontends.keys().any(named);
            let mut push = |step| {
                plan.steps.push(Planned {
                    port: Arc::clone(&key),
                    step,
                });
            };
            for backend in port.backends.values() {
                if gone || backend.disused.is_some_and(|at| at <= epoch) {
                    push(Step::ClearBackend { id: backend.id });
                }
            }
            if gone {
                for range in &port.source_ranges {
                    push(Step::RemoveSourceRange {
                        service: port.id,
                        range: *range,
                    });
                }
                push(Step::Switch {
                    service: port.id,
                    word: ServiceWord::default(),
                    affinity: ServiceAffinity::NONE,
                });
                push(Step::RemoveName { service: port.id });
            }
        }
        plan.steps.sort_by_key(|planned| planned.step.phase());
        plan
    }

    /// Ids of backends that are gone whose last connection has ended meanwhile are free again.
    pub fn look_again(&mut self, is_busy: impl Fn(u32) -> bool) {
        self.backend_ids.look_again(is_busy);
    }
}
