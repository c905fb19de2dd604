//! Recipes and accumulations side by side on one Linear.

use std::num::NonZeroUsize;

use serde::{Serialize, Serializer};

use super::budget::Budget;
use super::pass::{ExactPass, Multiplied, OutputFormat, PassReport, Stages};
use super::sweep::{Sweep, sweep};
use super::tolerance::ToleranceCheck;
use crate::engine::Engine;
use crate::error::Result;
use crate::gemm::{Accumulation, Arithmetic, TensorCore};
use crate::linear::{Linear, Pass, Scheme};

/// What is compared, and what is measured beside the errors.
///
/// ```
/// use finegrain::accuracy::{Comparison, sample};
/// use finegrain::Engine;
/// let (schemes, arithmetics) = (["bf16".parse()?, "deepseek-v3".parse()?], ["f32".parse()?]);
/// let comparison = Comparison { schemes: &schemes, arithmetics: &arithmetics, ..Comparison::default() };
/// let layer = sample::one_signed_linear()?;
/// let compared = comparison.run(&layer, &Engine::cpu(), |_, _| ())?;
/// assert_eq!(compared.rows[0].scheme.to_string(), "bf16");
/// assert!(compared.rows[0].score() < compared.rows[1].score());
/// # Ok::<(), finegrain::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Comparison<'a> {
    /// Every one of these …
    pub schemes: &'a [Scheme],
    /// … with every one of these.
    pub arithmetics: &'a [Arithmetic],
    /// Where the error comes from, of results stored so.
    pub budgets: Option<OutputFormat>,
    /// Whether results are held against their tolerances and bounds.
    pub tolerances: bool,
    /// A sweep of Fprop.
    pub sweep: Option<SweepPlan>,
}

/// A [`sweep`] of the first scheme that its tensor core takes.
#[derive(Clone, Copy, Debug)]
pub struct SweepPlan {
    /// The tensor core.
    pub core: TensorCore,
    /// The promotion interval at which F is swept.
    pub interval: Option<NonZeroUsize>,
    /// The one scheme of the comparison's that may be swept; any if `None`.
    pub scheme: Option<Scheme>,
}

/// What came of a [`Comparison`].
#[derive(Debug)]
pub struct Compared {
    /// Best first, unsupported combinations last.
    pub rows: Vec<ComparisonRow>,
    /// The scheme that was swept and its sweep, or why the tensor core takes none; `None` if no sweep was asked for or
    /// there is no scheme.
    pub sweep: Option<Result<(Scheme, Sweep)>>,
}

/// One line of a comparison: a scheme, an arithmetic, and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct ComparisonRow {
    /// How the operands are represented.
    pub scheme: Scheme,
    /// The arithmetic as it ran in the first pass, such as `hopper/128`; as it was asked for where it did not.
    #[serde(serialize_with = "as_text")]
    pub accumulation: Arithmetic,
    /// The passes in the order Fprop, Dgrad, Wgrad, or why this combination does not exist.
    pub outcome: Outcome,
}

fn as_text<S: Serializer>(arithmetic: &Arithmetic, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(arithmetic)
}

/// What came of one combination.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Each pass.
    Measured(Vec<MeasuredPass>),
    /// The rule that forbids it.
    Unsupported(String),
}

/// One pass of one combination. Serialised as the pair of pass and report.
#[derive(Clone, Debug)]
pub struct MeasuredPass {
    /// Which pass.
    pub pass: Pass,
    /// The accumulation that ran.
    pub accumulation: Accumulation,
    /// How far from exact.
    pub report: PassReport,
    /// Where the error comes from, if it was asked for.
    pub budget: Option<Budget>,
    /// Tolerances and bounds, if they were asked for.
    pub tolerance: Option<ToleranceCheck>,
}

impl Serialize for MeasuredPass {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        (self.pass, &self.report).serialize(serializer)
    }
}

impl ComparisonRow {
    /// The passes, none for an unsupported combination.
    pub fn passes(&self) -> &[MeasuredPass] {
        match &self.outcome {
            Outcome::Measured(passes) => passes,
            Outcome::Unsupported(_) => &[],
        }
    }

    /// One pass.
    pub fn pass(&self, pass: Pass) -> Option<&MeasuredPass> {
        self.passes().iter().find(|p| p.pass == pass)
    }

    /// What rows are ranked by: the geometric mean of the passes' relative Frobenius errors; infinite for unsupported
    /// combinations and for results that are not finite.
    pub fn score(&self) -> f64 {
        let passes = self.passes();
        if passes.is_empty() || passes.iter().any(|p| p.report.total.nonfinite > 0) {
            return f64::INFINITY;
        }
        let logs = passes.iter().map(|p| p.report.total.relative_frobenius.ln());
        (logs.sum::<f64>() / passes.len() as f64).exp()
    }

    fn add(&mut self, measured: MeasuredPass) {
        if let Outcome::Measured(passes) = &mut self.outcome {
            if passes.is_empty() {
                self.accumulation = measured.accumulation.into();
            }
            passes.push(measured);
        }
    }
}

/// What all arithmetics of one pass and scheme share, computed when the first of them is measured.
#[derive(Default)]
struct Shared<'q> {
    stages: Option<Stages<'q>>,
    product_rms: Option<f64>,
}

impl Comparison<'_> {
    /// Runs every scheme with every arithmetic on every pass that `layer` allows. Operands are quantised once for each
    /// pass and scheme, and each exact product is computed once. `finished` is called with the number of GEMMs done and
    /// the number in all, those of the sweep left out.
    ///
    /// # Errors
    /// Only what the operands themselves are refused for; combinations that the contract forbids become
    /// [`Outcome::Unsupported`].
    pub fn run(
        &self,
        layer: &Linear,
        engine: &Engine<'_>,
        mut finished: impl FnMut(usize, usize),
    ) -> Result<Compared> {
        let Comparison { schemes, arithmetics, .. } = *self;
        let all = schemes.len() * arithmetics.len() * layer.passes().len();
        let mut done = 0;
        let row = |scheme: Scheme, accumulation: Arithmetic| ComparisonRow {
            scheme,
            accumulation,
            outcome: Outcome::Measured(Vec::new()),
        };
        let mut rows: Vec<ComparisonRow> =
            schemes.iter().flat_map(|s| arithmetics.iter().map(move |a| row(*s, *a))).collect();
        let mut swept = None;
        for &pass in layer.passes() {
            let exact = ExactPass::new(layer, pass)?;
            for (scheme, rows) in schemes.iter().zip(rows.chunks_mut(arithmetics.len().max(1))) {
                let quantized = exact.quantized(scheme)?;
                let mut shared = Shared::default();
                for (arithmetic, row) in arithmetics.iter().zip(rows) {
                    // A combination that one pass refuses is measured no further, and the first reason stands.
                    if matches!(row.outcome, Outcome::Measured(_)) {
                        match quantized.multiply(arithmetic, engine) {
                            Ok(result) => row.add(self.measure(&result, &mut shared, engine)?),
                            Err(reason) => row.outcome = Outcome::Unsupported(reason.to_string()),
                        }
                    }
                    done += 1;
                    finished(done, all);
                }
                if let Some(plan) = &self.sweep
                    && pass == Pass::Fprop
                    && !matches!(swept, Some(Ok(_)))
                    && plan.scheme.is_none_or(|only| only == *scheme)
                {
                    let sweep = sweep(&quantized, plan.core, plan.interval, engine);
                    swept = Some(sweep.map(|sweep| (*scheme, sweep)));
                }
            }
        }
        rows.sort_by(|a, b| a.score().total_cmp(&b.score()));
        Ok(Compared { rows, sweep: swept })
    }

    fn measure<'q>(
        &self,
        result: &Multiplied<'q>,
        shared: &mut Shared<'q>,
        engine: &Engine<'_>,
    ) -> Result<MeasuredPass> {
        let quantized = result.quantized();
        if self.budgets.is_some() && shared.stages.is_none() {
            shared.stages = Some(quantized.stages()?);
        }
        if self.tolerances && shared.product_rms.is_none() {
            shared.product_rms = Some(quantized.product_rms());
        }
        let check = |rms| ToleranceCheck::of(result, rms, engine);
        Ok(MeasuredPass {
            pass: quantized.exact().pass(),
            accumulation: result.accumulation(),
            report: *result.report(),
            budget: self.budgets.and_then(|output| Some(shared.stages.as_ref()?.budget(result, output))),
            tolerance: shared.product_rms.map(check).transpose()?,
        })
    }
}
