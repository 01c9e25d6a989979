//! What tests look at, and how.

use super::Filter;
use crate::cli::output::Row;
pub(super) use crate::maps::fixture::*;

pub(super) const NOW_NS: u64 = 100_000 * 1_000_000_000;

pub(super) fn filter(
    namespace: Option<&str>,
    service: Option<&str>,
    address: Option<&str>,
) -> Filter {
    Filter::parse(namespace, service, address).unwrap()
}

/// Their cells, with a space between.
pub(super) fn text(rows: &[impl Row]) -> Vec<String> {
    let lines = rows.iter().map(Row::cells);
    lines
        .map(|cells| {
            assert!(cells.iter().all(|cell| !cell.is_empty()), "{cells:?}");
            cells.join(" ")
        })
        .collect()
}
