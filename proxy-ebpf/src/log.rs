//! What the programs log when the agent runs with `--debug-programs`: every decision, also those that
//! are not worth telling. Else the level is a constant 0, and the verifier takes all of it out.

use aya_ebpf::EbpfContext;
use aya_log_ebpf::{
    debug,
    macro_support::{Level, level_enabled},
};
use proxy_common::abi::{MonitorEvent, SockAddr};

#[inline(always)]
pub(crate) fn is_on() -> bool {
    level_enabled(Level::Debug)
}

/// IPv4 in its mapped form.
#[inline(always)]
fn ip(at: &SockAddr) -> [u8; 16] {
    let mut bytes = [0; 16];
    let mut i = 0;
    while i < 4 {
        let word = at.addr.words[i].to_ne_bytes();
        (bytes[4 * i], bytes[4 * i + 1]) = (word[0], word[1]);
        (bytes[4 * i + 2], bytes[4 * i + 3]) = (word[2], word[3]);
        i += 1;
    }
    bytes
}

/// The numbers are those of `MonitorHook` and `Counter`.
#[inline(never)]
pub(crate) fn decided(ctx: &impl EbpfContext, event: &MonitorEvent) {
    debug!(
        ctx,
        "hook {} outcome {} protocol {} {:i} {} -> {:i} {} becomes {:i} {} -> {:i} {} service {} backend {} device {} pid {}",
        event.hook,
        event.outcome,
        event.protocol,
        ip(&event.src),
        u16::from_be(event.src.port_be),
        ip(&event.dst),
        u16::from_be(event.dst.port_be),
        ip(&event.new_src),
        u16::from_be(event.new_src.port_be),
        ip(&event.new_dst),
        u16::from_be(event.new_dst.port_be),
        event.service,
        event.backend_id,
        event.ifindex,
        event.tgid,
    );
}
