//! Tells `kube-portal monitor` of decisions. While nobody listens this is one load and one comparison.

use aya_ebpf::EbpfContext;
use proxy_common::{
    abi::{Counter, MonitorEvent, MonitorFilter},
    datapath::lookup::Tables as _,
};

use crate::{context::tables::Kernel, log, maps};

/// Whether somebody listens, and wants to know of this outcome.
#[inline(always)]
pub(crate) fn is_asked_for(outcome: Counter) -> bool {
    if log::is_on() {
        return true;
    }
    match maps::MONITOR.get_ptr(0) {
        // SAFETY: the element is the map's only one; volatile makes it one load.
        Some(filter) => {
            let outcomes = unsafe { (&raw const (*filter).outcomes).read_volatile() };
            MonitorFilter::wants(outcomes, outcome)
        }
        None => false,
    }
}

/// Puts the event into the ring buffer, if the filter admits it.
#[inline(never)]
pub(crate) fn tell(ctx: &impl EbpfContext, event: &MonitorEvent) {
    if log::is_on() {
        log::decided(ctx, event);
    }
    let Some(filter) = maps::MONITOR.get(0) else {
        return;
    };
    if !filter.admits(event) {
        return;
    }
    match maps::EVENTS.reserve(0) {
        Some(mut record) => {
            record.write(*event);
            record.submit(0);
        }
        None => Kernel.count(Counter::MonitorLost),
    }
}
