//! Figures for people and for scripts.

use std::fmt::Write as _;

use serde::Serialize;

/// One comparison.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    /// What was measured.
    pub(super) case: String,
    /// Services present.
    pub(super) services: usize,
    /// What it was measured against.
    pub(super) baseline: String,
    /// Median of this case.
    pub(super) value: f64,
    pub(super) unit: &'static str,
    /// This case / baseline, median over blocks of one run.
    pub(super) ratio: f64,
    /// Lowest and highest ratio of a block.
    pub(super) spread: (f64, f64),
}

pub(super) fn json(rows: &[Row]) -> String {
    serde_json::to_string_pretty(rows).expect("numbers and text")
}

pub(super) fn table(rows: &[Row]) -> String {
    let mut out = format!(
        "{:<36} {:>8}  {:<24} {:>12}  {:<6} {:>6}  {}\n",
        "CASE", "SERVICES", "AGAINST", "MEDIAN", "UNIT", "RATIO", "OF BLOCKS"
    );
    for row in rows {
        writeln!(
            out,
            "{:<36} {:>8}  {:<24} {:>12.2}  {:<6} {:>6.3}  {:.3}..{:.3}",
            row.case,
            row.services,
            row.baseline,
            row.value,
            row.unit,
            row.ratio,
            row.spread.0,
            row.spread.1
        )
        .expect("a string takes everything");
    }
    out
}

/// Of a non-empty list.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    }
}

/// Lowest and highest.
pub(super) fn spread(values: &[f64]) -> (f64, f64) {
    values
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(*value), high.max(*value))
        })
}
