//! Where the packet path belongs: pure answers from what netlink says of this node.

mod addresses;
mod choose;
mod facts;
mod pattern;

pub use addresses::{Source, entries};
pub use choose::{Choice, Chosen, Role, Why, choose};
pub use facts::{Address, Facts, Header, Link};
pub use pattern::{Pattern, PatternError};
