//! Packets and what is to become of them, as rows of data: run on the host and in the kernel.
//!
//! Every packet, wanted ones included, is built by etherparse with checksums over all of its bytes;
//! none by the code under test.

pub mod damage;
pub mod kernel;
pub mod make;
pub mod rows;
pub mod scene;

pub use make::Make;
pub use rows::{Row, Step, rows};
pub use scene::Scene;
