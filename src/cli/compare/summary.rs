//! One line for each combination, over all layers.

use crate::accuracy::{ComparisonRow, PassReport};
use crate::gemm::Arithmetic;
use crate::linear::Scheme;
use serde::Serialize;

use super::Layer;

/// The largest of a quantity over a row's passes, by magnitude.
pub(super) fn largest(row: &ComparisonRow, of: impl Fn(&PassReport) -> f64) -> f64 {
    row.passes().iter().map(|p| of(&p.report)).fold(0.0, |a, b| if b.abs() > a.abs() { b } else { a })
}

/// One combination over all layers.
#[derive(Serialize)]
pub(super) struct SummaryRow {
    pub(super) recipe: Scheme,
    #[serde(rename = "accumulation", serialize_with = "super::as_text")]
    pub(super) arithmetic: Arithmetic,
    /// Geometric mean over layers and passes, in percent.
    pub(super) error: f64,
    /// Largest over layers and passes, in percent.
    pub(super) worst_row: f64,
    #[serde(rename = "accumulation_error")]
    pub(super) accumulation: f64,
    pub(super) bias: f64,
    pub(super) flushed: f64,
}

/// The combinations that every layer has, best first.
pub(super) fn summary(layers: &[Layer]) -> Vec<SummaryRow> {
    let Some((first, rest)) = layers.split_first() else { return Vec::new() };
    let mut rows = Vec::new();
    for row in &first.rows {
        let same = |r: &&ComparisonRow| r.scheme == row.scheme && r.accumulation == row.accumulation;
        let others: Option<Vec<&ComparisonRow>> = rest.iter().map(|l| l.rows.iter().find(same)).collect();
        let Some(mut all) = others else { continue };
        all.push(row);
        if all.iter().any(|r| r.passes().is_empty()) {
            continue;
        }
        let extreme = |of: &dyn Fn(&PassReport) -> f64| {
            let each = all.iter().map(|r| largest(r, of));
            100.0 * each.fold(0.0, |a: f64, b| if b.abs() > a.abs() { b } else { a })
        };
        let mean = all.iter().map(|r| r.score().ln()).sum::<f64>() / all.len() as f64;
        rows.push(SummaryRow {
            recipe: row.scheme,
            arithmetic: row.accumulation,
            error: 100.0 * mean.exp(),
            worst_row: extreme(&|r| r.total.worst_row),
            accumulation: extreme(&|r| r.accumulation.relative_frobenius),
            bias: extreme(&|r| r.total.bias),
            flushed: extreme(&|r| r.stats.percent_of_elements(r.stats.flushed) / 100.0),
        });
    }
    rows.sort_by(|a, b| a.error.total_cmp(&b.error));
    rows
}
