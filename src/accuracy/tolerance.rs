//! Tolerances for kernel tests, from shape, recipe and arithmetic alone.
//!
//! A kernel test draws operands, computes a reference R in f64 and asks |D − R| ≤ atol + rtol·|R| of every element.
//! [`tolerance`] says which atol and rtol. Their meaning: with operands whose elements are independent, of mean 0 and
//! root mean square 1 and no heavier tails than a normal distribution, a kernel with this arithmetic fails the test on
//! any of the M·N elements with a probability of at most [`FAILURE`], by the estimate below. For other operands multiply
//! atol by [`product_rms`], which is the product of the root mean squares for such data, and allows for outliers and
//! loud rows where there are any. There are two references: the exact product of the **quantised** operands,
//! which tests the kernel, and that of the **originals**, which tests kernel and quantisation together.
//!
//! No data-free tolerance is a theorem: for one problem [`bound`](fn@super::bound) is. Data whose products have mostly
//! one sign, where sums grow faster and truncation drifts, needs that.
//!
//! # The estimate
//!
//! Rounding errors are taken as independent of one another and uniform over their range, to nearest over ±½ unit, toward
//! zero over one unit; so a unit U has a second moment of U²/12 or U²/3. Partial sums of k products have a second moment
//! of k. Per interval of n elements in s steps of L products, T intervals, u = 2⁻²⁴:
//!
//! | what | second moment |
//! |---|---|
//! | codes of an operand, m fraction bits | K·(ε² + q²)/3, ε = 2^−(m+1), or what clipping costs; q half the smallest subnormal times the scale |
//! | f32 chain | u²·n(n + 1)/6 |
//! | exact sum | u²·n/3 |
//! | terms of a fused step σ | L·r·U², U² = 4^−F·σL, r = 1/3 or 1/12 |
//! | accumulator and result of the steps, to nearest | Σ r·(U² + ρ²), ρ² = 4^−m·σL for m result bits |
//! | the same toward zero, which shrinks step after step | (Σ √r·(U + ρ))² |
//! | two sets of products | two such steps of L/2 from 0, and u²·k/3 for the accumulator's addition |
//! | F32 operands read as TF32 | K·4·4⁻¹⁰/3 |
//! | CDNA1 | u²·k/3 a step; CDNA2 the same, and for each level of additions of products u²·L/3 |
//! | CDNA3 | (L + 2)·4⁻²⁴·L/3 and u²·k/3 a step; its accumulator, always rounded down, (Σ 2⁻²⁴·√(k/3))² |
//! | promotion, and scales that come last | u²·n·(T(T + 1)/2 + 2T)/3 |
//! | a part of K, added to those before | the same with its own T, and u²·k/3 for k products in all |
//!
//! The largest of L products is at most the root of their squares' sum, which is where U comes from; intervals add up
//! independently. Then atol = λ(1 + λ/√K)·√(second moment), λ² = 2·ln(2MN/[`FAILURE`]): the tail of a sum of bounded
//! errors (Hoeffding), with Bernstein's term for their factors, which are products of two normal numbers. A result
//! stored in BF16 has rtol 2⁻⁹, in f32 2⁻²⁴.

use serde::Serialize;

use super::bound::{BoundCheck, bound};
use super::pass::{Multiplied, OutputFormat, QuantizedPass};
use super::product::exact_product;
use crate::engine::Engine;
use crate::error::Result;
use crate::formats::{Format, FormatSpec};
use crate::gemm::{Accumulation, Addend, Model, StepRounding, StepSum, TensorCore};
use crate::linear::{Pass, Scheme};
use crate::matrix::MatRef;
use crate::quant::{MxRule, Recipe, ScaleFormat, Scaling};
use crate::scaled::Granule;

/// The probability with which a right kernel may fail one test of a whole matrix.
pub const FAILURE: f64 = 1e-9;

/// |D − R| ≤ atol + rtol·|R|.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Tolerance {
    /// Absolute, for operands with a root mean square of 1.
    pub atol: f64,
    /// Relative to the reference.
    pub rtol: f64,
}

impl Tolerance {
    /// The same for operands with this [`product_rms`].
    pub fn scaled(self, product_rms: f64) -> Tolerance {
        Tolerance { atol: self.atol * product_rms, ..self }
    }

    /// The largest |D − R| / (atol + rtol·|R|): at most 1 in a test that passes; NaN counts as infinite.
    pub fn used(&self, computed: &[f32], reference: &[f64]) -> f64 {
        let allowed = |r: f64| self.atol + self.rtol * r.abs();
        let shares = computed.iter().zip(reference).map(|(&d, &r)| (f64::from(d) - r).abs() / allowed(r));
        let finite = |share: f64| if share.is_nan() { f64::INFINITY } else { share };
        shares.map(finite).fold(0.0, f64::max)
    }
}

/// The tolerances of one test, against each reference.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Tolerances {
    /// Against the exact product of the quantised operands.
    #[serde(rename = "quantised")]
    pub quantized: Tolerance,
    /// Against the exact product of the originals.
    pub original: Tolerance,
}

/// A result held against its tolerances and its rigorous bound. `atol` is for its operands as they are: multiplied by
/// their [`product_rms`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ToleranceCheck {
    /// (M, N, K).
    pub shape: (usize, usize, usize),
    /// Against the exact product of the quantised operands.
    #[serde(rename = "quantised")]
    pub quantized: Tolerance,
    /// The largest error over its tolerance.
    #[serde(rename = "quantised_used")]
    pub quantized_used: f64,
    /// Against the exact product of the originals.
    pub original: Tolerance,
    /// The largest error over its tolerance.
    pub original_used: f64,
    /// The rigorous bound, and the largest error over it.
    pub bound: BoundCheck,
    /// The largest bound that there is; `None` if there is none.
    pub largest_bound: Option<f64>,
}

impl ToleranceCheck {
    /// Checks an f32 result whose operands have this [`product_rms`](QuantizedPass::product_rms).
    pub(super) fn of(
        result: &Multiplied<'_>,
        product_rms: f64,
        engine: &Engine<'_>,
    ) -> Result<ToleranceCheck> {
        let (problem, quantized, d) = (result.problem(), result.quantized(), result.values());
        let (exact, shape) = (quantized.exact(), (problem.m(), problem.n(), problem.k()));
        let tolerances =
            tolerance(shape, quantized.scheme(), exact.pass(), result.accumulation(), OutputFormat::F32);
        let for_quantized = tolerances.quantized.scaled(product_rms);
        let for_original = tolerances.original.scaled(product_rms);
        let bound = engine.install(|| bound(problem, OutputFormat::F32));
        let finite = bound.bound.as_slice().iter().copied().filter(|b| b.is_finite());
        Ok(ToleranceCheck {
            shape,
            quantized: for_quantized,
            quantized_used: for_quantized.used(d.as_slice(), quantized.product().as_slice()),
            original: for_original,
            original_used: for_original.used(d.as_slice(), exact.product().as_slice()),
            bound: bound.check(d.view())?,
            largest_bound: finite.reduce(f64::max),
        })
    }
}

impl QuantizedPass<'_> {
    /// The [`product_rms`] of the quantised operands.
    pub fn product_rms(&self) -> f64 {
        product_rms(self.operands().a.view().to_f64().view(), self.operands().b.view().to_f64().view())
    }
}

/// Recommended tolerances for one GEMM of a Linear: D [M, N] over K, for `shape` (M, N, K).
///
/// ```
/// use finegrain::accuracy::{OutputFormat, tolerance};
/// use finegrain::gemm::Accumulation;
/// use finegrain::linear::Pass;
/// let v3 = "deepseek-v3".parse()?;
/// let hopper = Accumulation::HOPPER.promoted::<128>();
/// let test = tolerance((128, 4096, 7168), &v3, Pass::Fprop, hopper, OutputFormat::F32);
/// // |D − R| ≤ 0.6 against the quantised operands; elements of R are around √7168 = 85.
/// assert!((0.59..0.6).contains(&test.quantized.atol), "{test:?}");
/// assert!(test.original.atol > 10.0 * test.quantized.atol);
/// # Ok::<(), finegrain::Error>(())
/// ```
pub fn tolerance(
    shape: (usize, usize, usize),
    scheme: &Scheme,
    pass: Pass,
    accumulation: Accumulation,
    output: OutputFormat,
) -> Tolerances {
    let (m, n, k) = (shape.0 as f64, shape.1 as f64, shape.2 as f64);
    let lambda = (2.0 * (2.0 * m * n / FAILURE).max(2.0).ln()).sqrt();
    let factor = lambda * (1.0 + lambda / k.max(1.0).sqrt());
    let rtol = half_a_bit(output.format());
    let of = |moment: f64| Tolerance { atol: factor * moment.sqrt() * (1.0 + rtol), rtol };
    let sums = accumulated(shape.2, accumulation);
    Tolerances { quantized: of(sums), original: of(sums + k * quantized(scheme, pass)) }
}

/// √ max over i, j of (1/K)·Σₖ a²·b²: the root mean square of the products of the element where it is largest.
///
/// # Panics
/// If the numbers of columns differ.
pub fn product_rms(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> f64 {
    let squares = |m: MatRef<'_, f64>| m.map(|v| v * v);
    let sums = exact_product(squares(a).view(), squares(b).view());
    let largest = sums.as_slice().iter().copied().fold(0.0, f64::max);
    (largest / a.cols().max(1) as f64).sqrt()
}

/// 2^−(m+1): the largest relative error of one rounding to nearest.
fn half_a_bit(format: Format) -> f64 {
    2f64.powi(-1 - format.spec().mantissa_bits as i32)
}

/// The second moment that the codes of both operands add to one product.
fn quantized(scheme: &Scheme, pass: Pass) -> f64 {
    let Scheme::Recipe(recipe) = scheme else { return 2.0 * half_a_bit(Format::Bf16).powi(2) / 3.0 };
    let a = match pass {
        Pass::Fprop => recipe.element,
        Pass::Dgrad | Pass::Wgrad => recipe.gradient,
    };
    let granule_b = match pass {
        Pass::Fprop | Pass::Dgrad => recipe.weight,
        Pass::Wgrad => recipe.activation,
    };
    codes(recipe, a, recipe.activation) + codes(recipe, recipe.element, granule_b)
}

fn codes(recipe: &Recipe, element: Format, granule: Granule) -> f64 {
    let spec = element.spec();
    let clipped = if clips(recipe) { clipped(spec) } else { 0.0 };
    let relative = half_a_bit(element).max(clipped);
    // The largest of that many normal numbers, over the largest code; one binade more where scales are rounded up.
    let elements = granule.rows().min(LARGEST_GRANULE) as f64 * granule.cols().min(LARGEST_GRANULE) as f64;
    let amax = (2.0 * (2.0 * elements).ln()).sqrt();
    let rounded_up = if recipe.scale_format() == ScaleFormat::F32 { 1.0 } else { 2.0 };
    let flushed = spec.min_subnormal() / 2.0 * rounded_up * amax / spec.max_finite();
    (relative * relative + flushed * flushed) / 3.0
}

/// Whether scales may be too small for the largest element by more than a code's half step.
fn clips(recipe: &Recipe) -> bool {
    matches!(recipe.scaling, Scaling::Mx(MxRule::Floor | MxRule::FloorTorchao))
}

/// What the largest element loses where its power of two is the format's last and it lies beyond the last code.
fn clipped(spec: &FormatSpec) -> f64 {
    1.0 - spec.max_finite() / 2f64.powi(spec.emax() + 1)
}

/// Fraction bits of TF32.
const TF32_BITS: u32 = TensorCore::mantissa_bits(Format::F32);

/// What "the whole matrix" counts as along one side where only its logarithm matters.
const LARGEST_GRANULE: usize = 1 << 16;

/// The second moment that summing adds; parts that K does not have count as one.
fn accumulated(k: usize, accumulation: Accumulation) -> f64 {
    let u2 = half_a_bit(Format::F32).powi(2);
    let whole = std::iter::once(0..k).collect();
    let parts = accumulation.split_k().ranges(k, accumulation.split_unit()).unwrap_or(whole);
    let of_parts: f64 = parts.iter().map(|part| accumulated_in_part(part.len(), accumulation, u2)).sum();
    // Adding a part rounds a sum of all products so far.
    of_parts + parts[1..].iter().map(|part| u2 * part.end as f64 / 3.0).sum::<f64>()
}

fn accumulated_in_part(k: usize, accumulation: Accumulation, u2: f64) -> f64 {
    let n = accumulation.interval().map_or(k, |n| n.get().min(k)).max(1);
    let intervals = k.div_ceil(n) as f64;
    let products = n as f64;
    let chain = match accumulation.model() {
        Model::F32 => u2 * products * (products + 1.0) / 6.0,
        Model::Exact => u2 * products / 3.0,
        Model::TensorCore(core) => steps(core, n),
    };
    let promotion = u2 * products * (intervals * (intervals + 1.0) / 2.0 + 2.0 * intervals) / 3.0;
    intervals * chain + promotion
}

fn steps(core: TensorCore, n: usize) -> f64 {
    let u2 = half_a_bit(core.result().accumulator()).powi(2);
    let length = core.step().min(n) as f64;
    let of = |step: usize| Step { products: length, all: step as f64 * length };
    let steps = (1..n.div_ceil(core.step()) + 1).map(of);
    // Both operands may lose a unit of their last bit.
    let tf32 = core.operands() == [Format::F32];
    let read = if tf32 { n as f64 * 4.0 * 4f64.powi(-(TF32_BITS as i32)) / 3.0 } else { 0.0 };
    read + match core.sum() {
        StepSum::Fused => fused(core, steps, u2),
        StepSum::FusedInTwo => {
            let half = length / 2.0;
            let sets = |count| (1..=count).map(move |i| Step { products: half, all: i as f64 * half });
            let early = core.with_addend(Addend::Early);
            match core.addend() {
                Addend::Early => fused(early, sets(2 * steps.len()), u2),
                Addend::Late => steps.map(|step| fused(early, sets(2), u2) + u2 * step.all / 3.0).sum(),
            }
        }
        StepSum::Floored | StepSum::FlooredInTwo => {
            let (mut independent, mut drift) = (0.0, 0.0);
            let unit2 = 4f64.powi(-(core.fraction_bits() as i32));
            for Step { products, all } in steps {
                // Products, two sums joined, the accumulator, which is always rounded down, and the result.
                independent += (products + 2.0) * unit2 * products / 3.0 + u2 * all / 3.0;
                drift += (unit2 * all / 3.0).sqrt();
            }
            independent + drift * drift
        }
        StepSum::Exact => steps.map(|step| u2 * step.all / 3.0).sum(),
        // Each level of additions is of all products; then comes the accumulator.
        StepSum::Pairwise => {
            let levels = f64::from(core.step().ilog2());
            let within = levels * u2 * length / 3.0;
            steps.map(|step| within + u2 * step.all / 3.0).sum()
        }
    }
}

/// Products of one step, and of all so far.
#[derive(Clone, Copy)]
struct Step {
    products: f64,
    all: f64,
}

fn fused(core: TensorCore, steps: impl Iterator<Item = Step>, u2: f64) -> f64 {
    let moment = |rounding: StepRounding| match rounding {
        StepRounding::TowardZero => 1.0 / 3.0,
        StepRounding::NearestEven => 1.0 / 12.0,
    };
    let (terms, result) = (moment(core.term_rounding()), moment(core.result_rounding()));
    let unit2 = 4f64.powi(-(core.fraction_bits() as i32));
    let place2 = 4f64.powi(-(core.result().mantissa_bits() as i32));
    let (mut independent, mut drift) = (0.0, 0.0);
    for Step { products: these, all } in steps {
        let (aligned, rounded) = match core.addend() {
            Addend::Early => (all, all),
            Addend::Late => (these, these),
        };
        let (unit2, place2) = (unit2 * aligned, place2 * rounded);
        independent += these * terms * unit2;
        let accumulator2 = if core.addend() == Addend::Early { terms * unit2 } else { 0.0 };
        match core.term_rounding() {
            StepRounding::TowardZero => drift += accumulator2.sqrt(),
            StepRounding::NearestEven => independent += accumulator2,
        }
        match (core.result_rounding(), core.addend()) {
            (StepRounding::TowardZero, Addend::Early) => drift += (result * place2).sqrt(),
            // Of the products alone, whose signs are as good as independent.
            _ => independent += result * place2,
        }
        if core.addend() == Addend::Late {
            independent += u2 * all / 3.0;
        }
    }
    independent + drift * drift
}
