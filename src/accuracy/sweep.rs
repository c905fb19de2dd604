//! What an accumulator of other dimensions would do: error against the bits it keeps and against the interval at which
//! partial sums are promoted.

use std::num::NonZeroUsize;

use serde::Serialize;

use super::pass::QuantizedPass;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::gemm::{Accumulation, Model, StepResult, StepRounding, TensorCore};

/// One accumulation of a sweep.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// F, or elements of K between promotions; for no promotion K.
    pub x: usize,
    /// The accumulation.
    pub accumulation: String,
    /// ‖D − E‖ / ‖E‖ against the exact product of the quantised operands: what the sums alone cost.
    pub error: f64,
    /// Σ (D − E) sign E / Σ |E|.
    pub bias: f64,
    /// ‖D − D₀‖ / ‖D₀‖ against the exact product of the originals: with what quantisation costs.
    pub total: f64,
}

/// Accumulations that differ in one number.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Series {
    /// What they have in common.
    pub name: String,
    /// In ascending x.
    pub points: Vec<Point>,
}

/// Errors of a tensor core and of its variants.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sweep {
    /// The tensor core.
    pub core: String,
    /// Against F: the tensor core as it is, with an f32 result, and rounding to nearest even.
    pub fraction_bits: Vec<Series>,
    /// Against the promotion interval: the tensor core, and sums in f32.
    pub intervals: Vec<Series>,
}

/// F from where nothing is left of E4M3's four bits to where f32 ends.
const FRACTION_BITS: [u32; 12] = [4, 6, 8, 10, 12, 13, 14, 16, 18, 20, 22, 24];

/// Powers of two from the shortest step of an FP8 tensor core.
const SHORTEST_INTERVAL: usize = 16;

/// Sweeps F at this promotion interval (`None` for one chain), and the interval from 16 to K. Intervals that the operands'
/// scales forbid are left out.
///
/// ```
/// use finegrain::accuracy::{ExactPass, sample, sweep};
/// use finegrain::Engine;
/// use finegrain::gemm::TensorCore;
/// use finegrain::linear::Pass;
/// let layer = sample::one_signed_linear()?;
/// let exact = ExactPass::new(&layer, Pass::Fprop)?;
/// let quantized = exact.quantized(&"te-current".parse()?)?;
/// let sweep = sweep(&quantized, TensorCore::HOPPER, None, &Engine::cpu())?;
/// // Truncation is a bias that grows with the length of the chain.
/// let hopper = &sweep.intervals[0].points;
/// assert!(hopper.last().unwrap().error > 50.0 * hopper[0].error);
/// # Ok::<(), finegrain::Error>(())
/// ```
///
/// # Errors
/// [`Error::Unsupported`] if the tensor core does not take the operands at all.
pub fn sweep(
    quantized: &QuantizedPass<'_>,
    core: TensorCore,
    interval: Option<NonZeroUsize>,
    engine: &Engine<'_>,
) -> Result<Sweep> {
    let k = quantized.problem()?.k();
    let promoted = |model: Model, interval| Accumulation::new(model).with_interval(interval);
    let widths = {
        let mut widths = FRACTION_BITS.to_vec();
        widths.push(core.fraction_bits());
        widths.sort_unstable();
        widths.dedup();
        widths
    };
    let mut variants = vec![(core.to_string(), core)];
    if core.result() != StepResult::F32 {
        let wide = core.customized(core.step(), core.fraction_bits(), StepResult::F32)?;
        variants.push(("result in f32".to_owned(), wide));
    }
    if core.truncates() {
        let terms = core.with_term_rounding(StepRounding::NearestEven);
        let nearest = terms.with_result_rounding(StepRounding::NearestEven);
        variants.push(("rounded to nearest".to_owned(), nearest));
    }
    let mut plan: Vec<(String, Vec<(usize, Accumulation)>)> = Vec::new();
    for (name, variant) in variants {
        let of = |&f: &u32| {
            let core = variant.customized(variant.step(), f, variant.result())?;
            Ok((f as usize, promoted(Model::TensorCore(core), interval)))
        };
        plan.push((name, widths.iter().map(of).collect::<Result<_>>()?));
    }
    let by_width = plan.len();
    let intervals =
        std::iter::successors(Some(SHORTEST_INTERVAL), |n| n.checked_mul(2)).take_while(|&n| n < k);
    let intervals: Vec<Option<NonZeroUsize>> = intervals.map(NonZeroUsize::new).chain([None]).collect();
    for model in [Model::TensorCore(core), Model::F32] {
        let of = |n: &Option<NonZeroUsize>| (n.map_or(k, NonZeroUsize::get), promoted(model, *n));
        plan.push((model.to_string(), intervals.iter().map(of).collect()));
    }

    let mut refused = None;
    let mut series = Vec::new();
    for (name, points) in plan {
        let mut measured = Vec::new();
        for (x, accumulation) in points {
            match quantized.multiply(&accumulation.into(), engine) {
                Ok(result) => measured.push(Point {
                    x,
                    accumulation: result.accumulation().to_string(),
                    error: result.report().accumulation.relative_frobenius,
                    bias: result.report().accumulation.bias,
                    total: result.report().total.relative_frobenius,
                }),
                Err(Error::Unsupported(reason)) => refused = Some(reason),
                Err(other) => return Err(other),
            }
        }
        series.push(Series { name, points: measured });
    }
    match refused {
        Some(reason) if series[..by_width].iter().all(|s| s.points.is_empty()) => {
            Err(Error::Unsupported(reason))
        }
        _ => {
            let intervals = series.split_off(by_width);
            Ok(Sweep { core: core.to_string(), fraction_bits: series, intervals })
        }
    }
}
