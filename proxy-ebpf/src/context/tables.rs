//! What every hook reads.

use core::{arch::asm, ffi::c_void, ptr};

use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns,
};
use proxy_common::{
    abi::{
        AffinityEntry, AffinityKey, AttemptFailure, Backend, BackendStats, Counter, Frontend,
        FrontendKey, Service, ServiceAffinity, ServiceStats, ServiceWord,
    },
    datapath::{
        lookup::Tables,
        schedule::{self, Draw},
    },
};

use crate::maps;

/// `BPF_ANY`.
pub(super) const ANY: u64 = 0;
/// `BPF_NOEXIST`.
pub(super) const NOEXIST: u64 = 1;

/// The maps in the kernel.
#[derive(Clone, Copy)]
pub(crate) struct Kernel;

impl Tables for Kernel {
    #[inline(always)]
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        // SAFETY: an element may be replaced while it is read, but then by one for the same
        // frontend; it stays allocated until this program ends.
        unsafe { maps::FRONTENDS.get(key) }.copied()
    }

    #[inline(always)]
    fn service(&self, id: u32) -> Option<Service> {
        let service = maps::SERVICES.get_ptr(id)?.cast::<u64>();
        // SAFETY: both words are in the array; volatile makes each one load.
        unsafe {
            Some(Service {
                word: ServiceWord(service.read_volatile()),
                affinity: ServiceAffinity(service.add(1).read_volatile()),
            })
        }
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<u32> {
        maps::SLOTS.get(index).copied()
    }

    #[inline(always)]
    fn backend(&self, id: u32) -> Option<Backend> {
        let backend = maps::BACKENDS.get_ptr(id)?;
        // SAFETY: the pointer is in the array. The service is read first: the agent writes it last,
        // and nothing else of an element while any program may still hold its id.
        unsafe {
            let service = (&raw const (*backend).service).read_volatile();
            Some(Backend {
                addr: (&raw const (*backend).addr).read_volatile(),
                port_be: (&raw const (*backend).port_be).read_volatile(),
                protocol: 0,
                flags: (&raw const (*backend).flags).read_volatile(),
                // Not volatile, nor is the twin: most calls don't ask for them.
                weight: (*backend).weight,
                zero: 0,
                twin: (*backend).twin,
                service,
            })
        }
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<AffinityEntry> {
        // SAFETY: it stays allocated until this program ends. It may be given to another client while it
        // is copied; whatever is read is compared with the backend before it counts.
        unsafe { maps::AFFINITY.get(key) }.copied()
    }

    #[inline(always)]
    fn set_affinity(&self, key: &AffinityKey, entry: &AffinityEntry) -> bool {
        maps::AFFINITY.insert(key, entry, ANY).is_ok()
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: plain helper call.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        // SAFETY: plain helper calls.
        unsafe {
            if maps::HAS_COARSE_CLOCK.load() != 0 {
                bpf_ktime_get_coarse_ns()
            } else {
                bpf_ktime_get_ns()
            }
        }
    }

    #[inline(always)]
    fn service_stats(&self, id: u32) -> Option<ServiceStats> {
        let stats = maps::SERVICE_STATS.get_ptr(id)?;
        // SAFETY: an element of the array; volatile makes each word one load.
        unsafe {
            Some(ServiceStats {
                connections: (&raw const (*stats).connections).read_volatile(),
                failures: 0,
            })
        }
    }

    #[inline(always)]
    fn backend_stats(&self, id: u32) -> Option<BackendStats> {
        let stats = maps::BACKEND_STATS.get_ptr(id)?;
        // SAFETY: an element of the array. What isn't asked for isn't loaded.
        unsafe {
            Some(BackendStats {
                connections: 0,
                active: (*stats).active,
                passed_over_until_ns: (*stats).passed_over_until_ns,
                failures: (*stats).failures,
                zero: 0,
            })
        }
    }

    #[inline(always)]
    fn add_active(&self, backend_id: u32, change: i64) {
        if let Some(stats) = maps::BACKEND_STATS.get_ptr_mut(backend_id) {
            // SAFETY: an element of the array; programs only add to it.
            add(unsafe { &raw mut (*stats).active }.cast(), change as u64);
        }
    }

    #[inline(always)]
    fn note_answer(&self, backend_id: u32) {
        if let Some(stats) = maps::BACKEND_STATS.get_ptr_mut(backend_id) {
            // SAFETY: an element of the array. A failure at the same time may be lost: it was answered.
            unsafe { (&raw mut (*stats).failures).write_volatile(0) };
        }
    }

    #[inline(always)]
    fn note_failure(&self, failure: &AttemptFailure) {
        if let Some(stats) = maps::BACKEND_STATS.get_ptr_mut(failure.backend_id) {
            // SAFETY: an element of the array.
            unsafe {
                let failures = &raw mut (*stats).failures;
                // Two at a time may count as one.
                failures.write_volatile(failures.read_volatile().saturating_add(1));
            }
        }
        // Without room the next one tells it.
        if let Some(mut record) = maps::FAILURES.reserve(0) {
            record.write(*failure);
            record.submit(0);
        }
    }

    #[inline(always)]
    fn pick(&self, draw: &Draw) -> u32 {
        kp_pick(
            draw.service,
            draw.word.0,
            draw.client,
            draw.destination,
            draw.avoid,
        )
    }

    #[inline(always)]
    fn burden(&self, draw: &Draw, id: u32) -> u64 {
        kp_burden(draw.word.0, id, draw.avoid)
    }

    #[inline(always)]
    fn count(&self, counter: Counter) {
        if let Some(value) = maps::COUNTERS.get_ptr_mut(counter.index()) {
            // SAFETY: this CPU's own element; programs of one hook don't interrupt one another.
            unsafe { *value += 1 };
        }
    }

    #[inline(always)]
    fn count_connection(&self, service: u32, backend_id: u32) {
        if let Some(stats) = maps::SERVICE_STATS.get_ptr_mut(service) {
            // SAFETY: an element of the array; it is only added to.
            add(unsafe { &raw mut (*stats).connections }, 1);
        }
        if let Some(stats) = maps::BACKEND_STATS.get_ptr_mut(backend_id) {
            // SAFETY: as above.
            add(unsafe { &raw mut (*stats).connections }, 1);
        }
    }

    #[inline(always)]
    fn count_failure(&self, service: u32) {
        if let Some(stats) = maps::SERVICE_STATS.get_ptr_mut(service) {
            // SAFETY: as above.
            add(unsafe { &raw mut (*stats).failures }, 1);
        }
    }
}

/// [`schedule::pick`], which the verifier goes through once and by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn kp_pick(service: u32, word: u64, client: u64, destination: u64, avoid: u32) -> u32 {
    let draw = Draw {
        service,
        word: ServiceWord(word),
        client,
        destination,
        avoid,
    };
    schedule::pick(&Kernel, &draw)
}

/// [`schedule::burden`], likewise.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn kp_burden(word: u64, id: u32, avoid: u32) -> u64 {
    let draw = Draw {
        service: 0,
        word: ServiceWord(word),
        client: 0,
        destination: 0,
        avoid,
    };
    schedule::burden(&Kernel, &draw, id)
}

/// Not by CPU: that would be as many times as large, and a connection is dear enough. `value`: a word of a
/// map's element.
#[inline(always)]
fn add(value: *mut u64, change: u64) {
    // The atomics of `core` are missing on this target, as some of them are in the kernel: before Linux 5.12
    // an addition returns nothing.
    // SAFETY: the word is aligned, and programs only add to it.
    unsafe {
        asm!(
            "lock *(u64 *)({value} + 0) += {change}",
            value = in(reg) value,
            change = in(reg) change,
            options(nostack),
        );
    }
}

/// Makes a hook's context read the maps in the kernel.
macro_rules! reads_the_maps {
    ($hook:ty) => {
        impl proxy_common::datapath::lookup::Tables for $hook {
            #[inline(always)]
            fn frontend(
                &self,
                key: &proxy_common::abi::FrontendKey,
            ) -> Option<proxy_common::abi::Frontend> {
                proxy_common::datapath::lookup::Tables::frontend(
                    &$crate::context::tables::Kernel,
                    key,
                )
            }

            #[inline(always)]
            fn service(&self, id: u32) -> Option<proxy_common::abi::Service> {
                proxy_common::datapath::lookup::Tables::service(
                    &$crate::context::tables::Kernel,
                    id,
                )
            }

            #[inline(always)]
            fn slot(&self, index: u32) -> Option<u32> {
                proxy_common::datapath::lookup::Tables::slot(
                    &$crate::context::tables::Kernel,
                    index,
                )
            }

            #[inline(always)]
            fn backend(&self, id: u32) -> Option<proxy_common::abi::Backend> {
                proxy_common::datapath::lookup::Tables::backend(
                    &$crate::context::tables::Kernel,
                    id,
                )
            }

            #[inline(always)]
            fn affinity(
                &self,
                key: &proxy_common::abi::AffinityKey,
            ) -> Option<proxy_common::abi::AffinityEntry> {
                proxy_common::datapath::lookup::Tables::affinity(
                    &$crate::context::tables::Kernel,
                    key,
                )
            }

            #[inline(always)]
            fn set_affinity(
                &self,
                key: &proxy_common::abi::AffinityKey,
                entry: &proxy_common::abi::AffinityEntry,
            ) -> bool {
                proxy_common::datapath::lookup::Tables::set_affinity(
                    &$crate::context::tables::Kernel,
                    key,
                    entry,
                )
            }

            #[inline(always)]
            fn random(&self) -> u32 {
                proxy_common::datapath::lookup::Tables::random(&$crate::context::tables::Kernel)
            }

            #[inline(always)]
            fn now_ns(&self) -> u64 {
                proxy_common::datapath::lookup::Tables::now_ns(&$crate::context::tables::Kernel)
            }

            #[inline(always)]
            fn service_stats(&self, id: u32) -> Option<proxy_common::abi::ServiceStats> {
                proxy_common::datapath::lookup::Tables::service_stats(
                    &$crate::context::tables::Kernel,
                    id,
                )
            }

            #[inline(always)]
            fn backend_stats(&self, id: u32) -> Option<proxy_common::abi::BackendStats> {
                proxy_common::datapath::lookup::Tables::backend_stats(
                    &$crate::context::tables::Kernel,
                    id,
                )
            }

            #[inline(always)]
            fn add_active(&self, backend_id: u32, change: i64) {
                proxy_common::datapath::lookup::Tables::add_active(
                    &$crate::context::tables::Kernel,
                    backend_id,
                    change,
                );
            }

            #[inline(always)]
            fn note_answer(&self, backend_id: u32) {
                proxy_common::datapath::lookup::Tables::note_answer(
                    &$crate::context::tables::Kernel,
                    backend_id,
                );
            }

            #[inline(always)]
            fn note_failure(&self, failure: &proxy_common::abi::AttemptFailure) {
                proxy_common::datapath::lookup::Tables::note_failure(
                    &$crate::context::tables::Kernel,
                    failure,
                );
            }

            #[inline(always)]
            fn pick(&self, draw: &proxy_common::datapath::schedule::Draw) -> u32 {
                proxy_common::datapath::lookup::Tables::pick(&$crate::context::tables::Kernel, draw)
            }

            #[inline(always)]
            fn burden(&self, draw: &proxy_common::datapath::schedule::Draw, id: u32) -> u64 {
                proxy_common::datapath::lookup::Tables::burden(
                    &$crate::context::tables::Kernel,
                    draw,
                    id,
                )
            }

            #[inline(always)]
            fn count(&self, counter: proxy_common::abi::Counter) {
                proxy_common::datapath::lookup::Tables::count(
                    &$crate::context::tables::Kernel,
                    counter,
                );
            }

            #[inline(always)]
            fn count_connection(&self, service: u32, backend_id: u32) {
                proxy_common::datapath::lookup::Tables::count_connection(
                    &$crate::context::tables::Kernel,
                    service,
                    backend_id,
                );
            }

            #[inline(always)]
            fn count_failure(&self, service: u32) {
                proxy_common::datapath::lookup::Tables::count_failure(
                    &$crate::context::tables::Kernel,
                    service,
                );
            }
        }
    };
}

pub(crate) use reads_the_maps;

/// Whether a hook's socket is in the node's own network namespace. `ctx`: the hook's context.
#[inline(always)]
pub(crate) fn is_of_node(ctx: *mut c_void) -> bool {
    // SAFETY: the helper takes the context, or null for the initial namespace.
    unsafe {
        let node = match maps::NODE_NETNS.load() {
            0 => bpf_get_netns_cookie(ptr::null_mut()),
            cookie => cookie,
        };
        bpf_get_netns_cookie(ctx) == node
    }
}
