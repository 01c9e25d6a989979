//! Pure: which writes, in which order. `desired - applied`, ids, and when something is free again.

mod addresses;
mod adopt;
mod affinity;
mod audit;
mod backend_ids;
mod backends;
mod execute;
mod ids;
mod maglev;
mod planner;
mod ports;
mod reclaim;
mod record;
mod run;
mod sorted;
mod step;
pub mod text;

pub use audit::Part;
pub use execute::{Done, Failed, Report, carry_out, execute};
pub use ids::{Epoch, Full, remedy};
pub use planner::{Change, IdChange, Plan, Planned, Planner, Refused, Smaller, Used};
pub use step::{Phase, Step, address_entry, address_of, protocol_name};

#[cfg(test)]
mod tests;
