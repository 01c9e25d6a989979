//! What the programs log, when they do (`--debug-programs`).

use std::thread;

use aya::Ebpf;
use aya_log::{EbpfLogger, Level};
use rustix::event::{PollFd, PollFlags, poll};

use super::LoadError;

/// The constant that switches it, and the ring buffer it goes through: both are aya-log's.
pub use aya_log::LEVEL;
pub(super) const MAP: &str = "AYA_LOGS";
/// Bytes of a ring buffer that nobody writes to: the least there are.
pub(super) const NO_ROOM: u32 = 4096;

/// What [`LEVEL`] is to be. At 0 the verifier takes out all that logs.
pub fn level(is_on: bool) -> u8 {
    if is_on { Level::Debug as u8 } else { 0 }
}

/// Writes to the log what the programs log from now on, until the process ends.
pub(super) fn follow(ebpf: &mut Ebpf) -> Result<(), LoadError> {
    let failed =
        |error: &dyn std::error::Error| LoadError::ProgramLog(super::attach::reason(error));
    let mut logger = EbpfLogger::init(ebpf).map_err(|error| failed(&error))?;
    let read = move || {
        loop {
            // An interruption is no reason to stop.
            let _ready = poll(&mut [PollFd::new(&logger, PollFlags::IN)], None);
            logger.flush();
        }
    };
    let started = thread::Builder::new()
        .name("program log".to_owned())
        .spawn(read);
    started.map(drop).map_err(|error| failed(&error))
}
