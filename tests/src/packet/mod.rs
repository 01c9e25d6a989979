//! Packets and what is to become of them, as rows of data: run on the host and in the kernel.
//!
//! Every packet, wanted ones included, is built by etherparse with checksums over all of its bytes;
//! none by the code under test.

pub mod cpus;
pub mod damage;
pub mod kernel;
pub mod make;
pub mod rows;
pub mod scene;

use proxy_common::{
    datapath::{
        answer::{self, Cause},
        fake::Maps,
        path::{self, Hook, Verdict, Work},
    },
    wire::{bytes::Bytes, link::Link},
};

/// A packet at a hook on the host: what is said of it, and whether it became an answer to its sender.
pub fn play(
    hook: Hook,
    link: Link,
    packet: &mut Bytes,
    maps: &Maps,
    work: &mut Work,
) -> (Verdict, bool) {
    let verdict = path::run(hook, link, packet, maps, work);
    let answered =
        Cause::of(verdict).is_some_and(|cause| answer::answer(cause, packet, maps, work));
    (verdict, answered)
}

pub use make::Make;
pub use rows::{Row, Step, rows};
pub use scene::Scene;
