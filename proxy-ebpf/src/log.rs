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

/// The numbers are those of `MonitorHook` and `Counter`. Several lines, because one would need more stack
/// than there is.
#[inline(always)]
pub(crate) fn decided(ctx: &impl EbpfContext, event: &MonitorEvent) {
    outcome(ctx, event);
    from(ctx, &event.src);
    to(ctx, &event.dst);
    becomes_from(ctx, &event.new_src);
    becomes_to(ctx, &event.new_dst);
}

#[inline(never)]
fn outcome(ctx: &impl EbpfContext, event: &MonitorEvent) {
    debug!(
        ctx,
        "hook {} outcome {} protocol {} service {} backend {} device {} pid {}",
        event.hook,
        event.outcome,
        event.protocol,
        event.service,
        event.backend_id,
        event.ifindex,
        event.tgid,
    );
}

/// A function each: it takes less stack than one that is told what to say.
macro_rules! addresses {
    ($($name:ident: $text:literal,)*) => {$(
        #[inline(never)]
        fn $name(ctx: &impl EbpfContext, at: &SockAddr) {
            debug!(ctx, $text, ip(at), u16::from_be(at.port_be));
        }
    )*};
}

addresses! {
    from: "  from {:i} {}",
    to: "  to {:i} {}",
    becomes_from: "  becomes from {:i} {}",
    becomes_to: "  becomes to {:i} {}",
}
