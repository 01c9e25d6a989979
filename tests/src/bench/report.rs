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

/// One absolute figure, for what has a target of its own.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figure {
    /// What was measured.
    pub(super) case: String,
    /// Services present, and endpoints of each.
    pub(super) services: usize,
    pub(super) endpoints: usize,
    pub(super) value: f64,
    pub(super) unit: &'static str,
    /// What the value must stay below, if anything.
    pub(super) below: Option<f64>,
}

/// What a benchmark yields.
#[derive(Clone, Debug)]
pub(super) enum Report {
    Rows(Vec<Row>),
    Figures(Vec<Figure>),
}

impl Report {
    pub(super) fn json(&self) -> String {
        match self {
            Self::Rows(rows) => serde_json::to_string_pretty(rows),
            Self::Figures(figures) => serde_json::to_string_pretty(figures),
        }
        .expect("numbers and text")
    }

    pub(super) fn table(&self) -> String {
        match self {
            Self::Rows(rows) => table(rows),
            Self::Figures(figures) => figure_table(figures),
        }
    }
}

fn figure_table(figures: &[Figure]) -> String {
    let mut out = format!(
        "{:<52} {:>8} {:>6} {:>12}  {:<6} {:>8}\n",
        "CASE", "SERVICES", "EACH", "VALUE", "UNIT", "BELOW"
    );
    for figure in figures {
        let below = figure.below.map_or_else(String::new, |below| {
            let verdict = if figure.value < below { "" } else { " MISSED" };
            format!("{below}{verdict}")
        });
        writeln!(
            out,
            "{:<52} {:>8} {:>6} {:>12.3}  {:<6} {:>8}",
            figure.case, figure.services, figure.endpoints, figure.value, figure.unit, below
        )
        .expect("a string takes everything");
    }
    out
}

fn table(rows: &[Row]) -> String {
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

/// The value that this share of a non-empty list is not above.
pub(super) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "an index into a short list"
    )]
    let at = (sorted.len() as f64 * share).ceil() as usize;
    sorted[at.clamp(1, sorted.len()) - 1]
}

/// Lowest and highest.
pub(super) fn spread(values: &[f64]) -> (f64, f64) {
    values
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(*value), high.max(*value))
        })
}
