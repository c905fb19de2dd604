//! Recipes and accumulations side by side on one Linear.

use serde::Serialize;

use super::linear::{Linear, Pass, PassReport, Scheme};
use crate::error::Result;
use crate::gemm::{Arithmetic, Execution};

/// One line of a comparison: a scheme, an arithmetic, and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct ComparisonRow {
    /// `bf16` or a recipe's name.
    pub scheme: String,
    /// The arithmetic as it was asked for.
    #[serde(skip)]
    pub arithmetic: Arithmetic,
    /// The arithmetic as it ran in the first pass, such as `hopper/128`; as it was asked for where it did not.
    pub accumulation: String,
    /// The passes in the order Fprop, Dgrad, Wgrad, or why this combination does not exist.
    pub outcome: Outcome,
}

/// What came of one combination.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Each pass and its report.
    Measured(Vec<(Pass, PassReport)>),
    /// The rule that forbids it.
    Unsupported(String),
}

impl ComparisonRow {
    /// The reports, none for an unsupported combination.
    pub fn passes(&self) -> &[(Pass, PassReport)] {
        match &self.outcome {
            Outcome::Measured(passes) => passes,
            Outcome::Unsupported(_) => &[],
        }
    }

    /// The report of one pass.
    pub fn pass(&self, pass: Pass) -> Option<&PassReport> {
        self.passes().iter().find(|(p, _)| *p == pass).map(|(_, report)| report)
    }

    /// What rows are ranked by: the geometric mean of the passes' relative Frobenius errors; infinite for unsupported
    /// combinations and for results that are not finite.
    pub fn score(&self) -> f64 {
        let passes = self.passes();
        if passes.is_empty() || passes.iter().any(|(_, r)| r.total.nonfinite > 0) {
            return f64::INFINITY;
        }
        let logs = passes.iter().map(|(_, r)| r.total.relative_frobenius.ln());
        (logs.sum::<f64>() / passes.len() as f64).exp()
    }
}

/// Runs every scheme with every arithmetic on every pass that `layer` allows. `finished` is called with the number of
/// GEMMs done and the number in all. Rows come best first, unsupported combinations last.
///
/// # Errors
/// Only what the operands themselves are refused for; combinations that the contract forbids become
/// [`Outcome::Unsupported`].
pub fn compare(
    layer: &Linear,
    schemes: &[Scheme],
    arithmetics: &[Arithmetic],
    execution: &Execution<'_>,
    mut finished: impl FnMut(usize, usize),
) -> Result<Vec<ComparisonRow>> {
    let all = schemes.len() * arithmetics.len() * layer.passes().len();
    let mut done = 0;
    let row = |scheme: &Scheme, arithmetic: &Arithmetic| ComparisonRow {
        scheme: scheme.name().to_owned(),
        arithmetic: *arithmetic,
        accumulation: arithmetic.to_string(),
        outcome: Outcome::Measured(Vec::new()),
    };
    let mut rows: Vec<ComparisonRow> =
        schemes.iter().flat_map(|s| arithmetics.iter().map(move |a| row(s, a))).collect();
    for &pass in layer.passes() {
        let exact = layer.exact(pass)?;
        for (scheme, rows) in schemes.iter().zip(rows.chunks_mut(arithmetics.len().max(1))) {
            let quantized = layer.quantized(pass, scheme, &exact)?;
            for (arithmetic, row) in arithmetics.iter().zip(rows) {
                match (&mut row.outcome, quantized.accumulate(arithmetic, execution)) {
                    (Outcome::Unsupported(_), _) => {}
                    (Outcome::Measured(passes), Ok((accumulation, report))) => {
                        if passes.is_empty() {
                            row.accumulation = accumulation.to_string();
                        }
                        passes.push((pass, report));
                    }
                    (outcome, Err(reason)) => *outcome = Outcome::Unsupported(reason.to_string()),
                }
                done += 1;
                finished(done, all);
            }
        }
    }
    rows.sort_by(|a, b| a.score().total_cmp(&b.score()));
    Ok(rows)
}
