//! A rigorous bound of each element's error, |D − E| ≤ bound, for one problem in one arithmetic.
//!
//! E = ta·tb·Σₖ a·sa·b·sb + c is the value of the operands as they are stored, in real numbers; D is what the
//! [contract](crate::gemm) computes. The bound follows the computation from operation to operation and adds up what
//! each may lose. It knows the operands, so it is far below the textbook's worst case wherever products cancel, and it
//! is reached (see `tests/accuracy/bounds.rs`) where they do not.
//!
//! # Proof
//!
//! Notation: ⌊x⌋₂ is the largest power of two that is at most |x|; u = 2⁻²⁴. P is an exact value on the way, p what was
//! computed for it, e a number with |p − P| ≤ e. At the start p = P, e = 0. Every step below says what it adds to e, and
//! the induction is the triangle inequality: if p' = v + δ, where v is the exact result of the operation on the computed
//! inputs, then |p' − P'| ≤ |v − P'| + |δ|, and |v| ≤ |P'| + |v − P'| =: N bounds the rounding error δ.
//!
//! **Rounding to f32, to nearest.** |δ| ≤ h(N) with h(N) = u·max(⌊N⌋₂, 2⁻¹²⁶): half a unit in the last place of a number
//! up to N, and half the smallest subnormal below 2⁻¹²⁶. h(0) = 0. To BF16 it is 2⁻⁹·max(⌊N⌋₂, 2⁻¹²⁶).
//!
//! **f32 chain**, p' = fl(p + x) with the exact product x = a·b (one rounding, contract clause 2):
//! e' = e + h(|P + x| + e). All products are multiples of the formats' smallest product g; a chain that starts at 0
//! adds nothing while N < 2²⁴·g, if g ≥ 2⁻¹⁴⁹: v is an f32 there. Unrolled, e ≤ Σₖ u·|Pₖ|·(1+u)ⁿ⁻ᵏ + n·2⁻¹⁵⁰, which is at most
//! γₙ·Σ|x| + n·2⁻¹⁵⁰·(1 + γₙ), γₙ = nu/(1 − nu): the textbook's bound (Higham, Accuracy and Stability of Numerical
//! Algorithms, 3.1).
//!
//! **Exact model**: e = h(|P|).
//!
//! **Fused step** of a tensor core: products x with exponents eₓ, the accumulator p. A term is a multiple of its last
//! bit, gₓ = 2^(eₓ − fraction bits), and so is p: of 2^−m·max(⌊p⌋₂, 2⁻¹²⁶) for m result bits (m = 23 for an addend).
//! The unit of the step is U = 2^(e_max − F). e_max is known for the products and at most ⌊|P| + e⌋₂ (or 2⁻¹²⁶) for
//! the accumulator, so U lies between a lower U₋ and an upper U₊, both powers of two. Then
//! - a term that is a multiple of U loses nothing; another loses, toward zero, at most U − gₓ (the remainder is a
//!   multiple of gₓ below U), to nearest at most U/2, and in both cases at most |x| itself. All three grow with U, so U₊
//!   takes its place. The same holds for p with a lower bound of its last bit from |P| − e;
//! - the sum of the terms, N with what they lost, is a multiple of U. Where its last place ρ = 2^−m·max(⌊N⌋₂, 2⁻¹²⁶)
//!   is above U₋ it loses, toward zero, at most ρ − U₋ (a multiple of U below ρ), to nearest at most ρ/2; else nothing;
//! - a late addend is left out of all this and then added with one rounding to the accumulator's format, h;
//! - products in two sets are two such sums, the first of which is the accumulator of the second;
//! - an f16 result has m = 10 and 2⁻¹⁴ for 2⁻¹²⁶, and the addend loses what its rounding to f16 takes;
//! - F32 operands lose what TF32 drops: every product |x − x'|, both known.
//!
//! With [`BlockScales::Fp4`](crate::gemm::BlockScales::Fp4) the terms are groups of 16 with their two scales.
//!
//! **CDNA3** ([`StepSum::Floored`](crate::gemm::StepSum)): products lose as above for the unit of their own set. Rounding
//! down to multiples of V loses less than V: the dot product 2^(e_max − 32) where the accumulator's exponent may be the
//! larger, one of two sets 2^(e_dot − F), the accumulator 2^(e_max − F) less its last bit, the sum 2⁻³¹·max(⌊N⌋₂, 2⁻¹²⁶);
//! then h(N). **CDNA2**: every addition h(N), and 2⁻¹²⁶ where its result may be subnormal; products and operands lose
//! what is set to zero, which is known. **CDNA1**: h(N) a step.
//!
//! **Promotion** of p with bound e into acc with bound E, for S = Σ sa·sb·P so far:
//! - scales first: ŝ = fl(sa·sb) is known, E' = E + |ŝ|·e + |ŝ − sa·sb|·|P| + h(N);
//! - partial first: E' = E + |sa·sb|·e + |sb|·h(|sa|·(|P| + e)) + h(N); unfused, fl(fl(p·sa)·sb) adds its h too;
//! - scales last: E' = E + e + h(N) for S = Σ P, and after the sum ŝ = fl(sa·sb): E' = |ŝ|·E + |ŝ − sa·sb|·|S| + h(N), or
//!   for scales of rows fl(acc·sb)·sa as fl(p·sa)·sb above.
//!
//! **Parts of K** are added up like partial sums without scales; what is promoted after their sum is promoted from S = 0.
//!
//! **Tensor scale** t̂ = fl(ta·tb): E' = |t̂|·E + |t̂ − ta·tb|·|S| + h(N). **Addend**: E' = E + h(N). **Store**: above.
//!
//! **Overflow.** Wherever N is above the largest finite number of the format rounded to, D may be infinite or NaN: the
//! bound is ∞ there. So it is where a row of A, a row of B, their scales or the addend are not finite; E is NaN then.
//!
//! **The bound's own arithmetic** is f64. Products of codes and sa·sb are exact. The sums P and S are off by at most
//! ω·Σ|terms|, ω = (K + T + 8)·2⁻⁵² for T intervals and further parts of K (twice the textbook's γ, which covers the rounding of Σ|terms|
//! too), and ω·Σ|terms| is part of N and of the result: it bounds |D − Ẽ| for the Ẽ that is returned. Everything else
//! is sums and products of non-negative numbers, at most 12 roundings between two multiplications by 1 + 2⁻⁴⁹, which
//! make up for 15. Nothing under- or overflows: the smallest factor is 2⁻⁸⁸⁶, the largest below 2⁷⁰⁰.
//!
//! ```
//! use finegrain::accuracy::{OutputFormat, bound};
//! use finegrain::gemm::{Accumulation, GemmProblem};
//! use finegrain::matrix::Matrix;
//! use finegrain::quant::{Quantizer, Recipe};
//! let x = Matrix::from_fn(4, 512, |t, c| ((t * 71 + c * 13) % 97) as f32 * 0.1 - 4.8);
//! let x = Quantizer::new(Recipe::DEEPSEEK_V3).activation(x.view())?;
//! let problem = GemmProblem::nt(x.view(), x.view())?.with_accumulation(Accumulation::HOPPER.promoted::<128>())?;
//! let bound = bound(&problem, OutputFormat::F32);
//! let check = bound.check(problem.run()?.view())?;
//! assert_eq!(check.violations, 0);
//! assert!(check.worst <= 1.0);
//! # Ok::<(), finegrain::Error>(())
//! ```

#![forbid(unsafe_code)]

mod chain;
mod operand;
mod steps;

use std::ops::Range;

use serde::Serialize;

use self::chain::{Chain, Sum, half_ulp, up};
use self::operand::Row;
use super::pass::OutputFormat;
use crate::error::{Error, Result};
use crate::formats::Format;
use crate::gemm::{Folded, GemmProblem, Promotion, SumScaling};
use crate::matrix::{MatRef, Matrix};
use crate::parallel::{Watch, map};
use crate::scaled::{Granule, ScaledRef};

/// The exact values of a problem and how far its result may lie from them. See the [module](self) for what is promised.
#[derive(Clone, Debug, PartialEq)]
pub struct ErrorBound {
    /// E to f64; NaN where it is not finite. The bound allows for its rounding.
    pub exact: Matrix<f64>,
    /// |D − exact| is at most this; infinite where nothing is promised.
    pub bound: Matrix<f64>,
}

/// A result held against its bound.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BoundCheck {
    /// The largest |D − exact| / bound over the elements that have a bound; 0 / 0 is 0.
    pub worst: f64,
    /// Row and column where it is.
    pub at: (usize, usize),
    /// Elements beyond their bound, NaN included.
    pub violations: usize,
    /// Elements without a bound: the result may overflow, or an operand is not finite.
    pub unbounded: usize,
}

impl ErrorBound {
    /// Holds a computed D against the bound.
    ///
    /// # Errors
    /// [`Error::Shape`] if D has another shape.
    pub fn check<D: Copy + Into<f64>>(&self, computed: MatRef<'_, D>) -> Result<BoundCheck> {
        if computed.shape() != self.exact.shape() {
            let ((a, b), (c, d)) = (computed.shape(), self.exact.shape());
            return Err(Error::Shape(format!("computed matrix is {a}×{b}, the bound {c}×{d}")));
        }
        let mut check = BoundCheck { worst: 0.0, at: (0, 0), violations: 0, unbounded: 0 };
        for i in 0..computed.rows() {
            let line = computed.row(i).iter().zip(self.exact.row(i)).zip(self.bound.row(i));
            for (j, ((&d, exact), &bound)) in line.enumerate() {
                if bound == f64::INFINITY {
                    check.unbounded += 1;
                    continue;
                }
                let error = (d.into() - exact).abs();
                check.violations += usize::from(error.is_nan() || error > bound);
                let ratio = if error == 0.0 { 0.0 } else { error / bound };
                if ratio > check.worst {
                    (check.worst, check.at) = (ratio, (i, j));
                }
            }
        }
        Ok(check)
    }
}

/// The bound for a problem whose result is stored so. It costs two to four times what the reference costs, in the f32
/// model sixteen times.
pub fn bound(problem: &GemmProblem<'_>, output: OutputFormat) -> ErrorBound {
    if problem.folds() {
        // Folding is exact.
        let folded = Folded::of(problem);
        return bound(&folded.problem(problem), output);
    }
    let (m, n) = problem.output_shape();
    let rows = |x: &ScaledRef<'_>| each(x.shape().0, &|i| Row::new(problem, x, i));
    let (a, b) = (rows(problem.a()), rows(problem.b()));
    let walk = Walk::new(problem, output);
    let element = |i: usize, j: usize| walk.element(&a[i], &b[j], problem.addend().map(|c| c.at(i, j)));
    let elements = each(m, &|i| (0..n).map(|j| element(i, j)).collect::<Vec<_>>());
    let part = |of: fn(&(f64, f64)) -> f64| {
        Matrix::from_vec(m, n, elements.iter().flatten().map(of).collect()).expect("one value each element")
    };
    ErrorBound { exact: part(|e| e.0), bound: part(|e| e.1) }
}

/// What `task` gives for each of `0..count`, on all threads.
fn each<R: Send>(count: usize, task: &(dyn Fn(usize) -> R + Sync)) -> Vec<R> {
    map(&Watch::NONE, count, task).expect("nobody cancels")
}

/// The way from the codes to one stored element.
struct Walk<'a> {
    problem: &'a GemmProblem<'a>,
    chain: Chain,
    output: OutputFormat,
    /// The parts of K.
    parts: Vec<Range<usize>>,
    /// The relative error of sums in f64.
    omega: f64,
}

impl<'a> Walk<'a> {
    fn new(problem: &'a GemmProblem<'a>, output: OutputFormat) -> Self {
        let (intervals, parts) = (problem.k().div_ceil(problem.interval()), problem.k_parts());
        let omega = (problem.k() + intervals + parts.len() - 1 + 8) as f64 * f64::EPSILON;
        Walk { problem, chain: Chain::new(problem, omega), output, parts, omega }
    }

    /// (E, bound).
    fn element(&self, a: &Row, b: &Row, addend: Option<f32>) -> (f64, f64) {
        let finite = a.finite && b.finite && addend.is_none_or(f32::is_finite);
        let stored = if finite { self.sum(a, b, addend).and_then(|sum| self.stored(sum)) } else { None };
        match stored {
            Some(sum) => (sum.value, up(sum.error + self.omega * sum.magnitude)),
            None if finite => (self.exact(a, b, addend), f64::INFINITY),
            None => (f64::NAN, f64::INFINITY),
        }
    }

    /// D before it is stored; `None` where it may overflow.
    fn sum(&self, a: &Row, b: &Row, addend: Option<f32>) -> Option<Sum> {
        if self.problem.is_bare_chain() {
            return self.chain.sum(a, b, 0..self.problem.k(), Sum::of(addend.unwrap_or(0.0)));
        }
        let mut sum = self.sum_of_parts(a, b)?;
        if let Some(rounded) = self.problem.tensor_scale() {
            let exact =
                f64::from(self.problem.a().tensor_scale()) * f64::from(self.problem.b().tensor_scale());
            sum = self.rescaled(sum, f64::from(rounded), exact);
            sum.error = up(sum.error + self.half_ulp(&sum)?);
        }
        if let Some(c) = addend {
            sum.add(f64::from(c));
            sum.error = up(sum.error + self.half_ulp(&sum)?);
        }
        Some(sum)
    }

    /// The sum of the parts of K with the scales that follow it.
    fn sum_of_parts(&self, a: &Row, b: &Row) -> Option<Sum> {
        let promoted = self.problem.accumulation().interval().is_some();
        let mut sum = None;
        for k in &self.parts {
            let part = match promoted {
                true => self.promoted_part(a, b, k)?,
                false => self.chain.sum(a, b, k.clone(), Sum::ZERO)?,
            };
            sum = Some(match sum {
                None => part,
                Some(before) => self.added(before, part)?,
            });
        }
        let (sum, sa, sb) = (sum?, a.scales.first(), b.scales.first());
        let (Some(scaling), Some(&sa), Some(&sb)) = (self.problem.sum_scaling(), sa, sb) else {
            return Some(sum);
        };
        let mut scaled = match scaling {
            SumScaling::Promoted(_) => return self.promoted(Sum::ZERO, sum, sa, sb),
            SumScaling::ByProduct => self.scaled_at_once(sum, sa, sb)?,
            SumScaling::InTurn => self.scaled_in_turn(sum, sb, sa)?,
        };
        scaled.error = up(scaled.error + self.half_ulp(&scaled)?);
        Some(scaled)
    }

    /// The accumulator after the intervals of a part of K.
    fn promoted_part(&self, a: &Row, b: &Row, k: &Range<usize>) -> Option<Sum> {
        let (mut sum, length) = (Sum::ZERO, self.problem.interval());
        for start in k.clone().step_by(length) {
            let interval = start..k.end.min(start.saturating_add(length));
            let (sa, sb) = (a.scales[start / length], b.scales[start / length]);
            sum = self.promoted(sum, self.chain.sum(a, b, interval, Sum::ZERO)?, sa, sb)?;
        }
        Some(sum)
    }

    /// The value and error of rounded·x for exact·x, before the product is rounded.
    fn rescaled(&self, x: Sum, rounded: f64, exact: f64) -> Sum {
        let lost = (rounded - exact).abs() * (x.value.abs() + self.omega * x.magnitude);
        Sum {
            value: exact * x.value,
            magnitude: exact.abs() * x.magnitude,
            error: up(rounded.abs() * x.error + lost),
        }
    }

    fn promoted(&self, acc: Sum, partial: Sum, sa: f32, sb: f32) -> Option<Sum> {
        let scaled = match self.problem.accumulation().promotion() {
            Promotion::ScalesFirst => self.scaled_at_once(partial, sa, sb)?,
            Promotion::ScalesLast => partial,
            Promotion::PartialFirst => self.scaled_in_turn(partial, sa, sb)?,
            Promotion::Unfused => {
                let mut product = self.scaled_in_turn(partial, sa, sb)?;
                product.error = up(product.error + self.half_ulp(&product)?);
                product
            }
        };
        self.added(acc, scaled)
    }

    /// fl(x + y).
    fn added(&self, x: Sum, y: Sum) -> Option<Sum> {
        let mut sum = Sum {
            value: x.value + y.value,
            magnitude: x.magnitude + y.magnitude,
            error: up(x.error + y.error),
        };
        sum.error = up(sum.error + self.half_ulp(&sum)?);
        Some(sum)
    }

    /// fl(sa·sb)·p, the second product not rounded.
    fn scaled_at_once(&self, partial: Sum, sa: f32, sb: f32) -> Option<Sum> {
        let (rounded, exact) = (sa * sb, f64::from(sa) * f64::from(sb));
        rounded.is_finite().then(|| self.rescaled(partial, f64::from(rounded), exact))
    }

    /// fl(p·first)·second, the second product not rounded.
    fn scaled_in_turn(&self, partial: Sum, first: f32, second: f32) -> Option<Sum> {
        let (first, second) = (f64::from(first), f64::from(second));
        let mut once = self.rescaled(partial, first, first);
        once.error = up(once.error + self.half_ulp(&once)?);
        Some(self.rescaled(once, second, second))
    }

    /// Half a unit in the last place of the f32 that this is rounded to; `None` where that may overflow.
    fn half_ulp(&self, sum: &Sum) -> Option<f64> {
        half_ulp(sum.at_most(self.omega), Format::F32)
    }

    fn stored(&self, mut sum: Sum) -> Option<Sum> {
        match self.output {
            OutputFormat::F32 => {}
            OutputFormat::Bf16 | OutputFormat::F16 => {
                sum.error = up(sum.error + half_ulp(sum.at_most(self.omega), self.output.format())?);
            }
        }
        Some(sum)
    }

    /// E where there is no bound to go with it.
    fn exact(&self, a: &Row, b: &Row, addend: Option<f32>) -> f64 {
        let k = self.problem.k();
        let interval = |t: usize| {
            let range = Granule::span(k, self.problem.interval(), t);
            let sum: f64 = a.terms(b, range).map(|term| term.value).sum();
            f64::from(a.scales[t]) * f64::from(b.scales[t]) * sum
        };
        let tensor = f64::from(self.problem.a().tensor_scale()) * f64::from(self.problem.b().tensor_scale());
        tensor * (0..a.scales.len()).map(interval).sum::<f64>() + addend.map_or(0.0, f64::from)
    }
}
