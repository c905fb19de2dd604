//! What the sum of one interval may lose, model by model. The proof stands at the head of the module above.

use std::ops::Range;

use super::operand::Row;
use crate::formats::{Format, FormatSpec};
use crate::gemm::{BlockScales, GemmProblem, Model, TensorCore};

const F32: &FormatSpec = Format::F32.spec();

/// Makes up for at most 15 roundings of f64 between upper bounds.
const UP: f64 = 1.0 + 8.0 * f64::EPSILON;

/// An upper bound in spite of the rounding of the few operations that gave x.
pub(super) fn up(x: f64) -> f64 {
    x * UP
}

/// ⌊x⌋₂ for x ≥ 0; 0 below f64's normal numbers, where callers have a floor of their own.
fn power_of_two_below(x: f64) -> f64 {
    const EXPONENT: u64 = 0x7FF << 52;
    f64::from_bits(x.to_bits() & EXPONENT)
}

/// max(⌊x⌋₂, 2^emin): what the last place of a number of this magnitude follows from.
pub(super) fn binade(x: f64, emin: i32) -> f64 {
    power_of_two_below(x).max(2f64.powi(emin))
}

/// Half a unit in the last place of a number of at most this magnitude; `None` where rounding it may overflow.
pub(super) fn half_ulp(magnitude: f64, format: Format) -> Option<f64> {
    let spec = format.spec();
    if magnitude == 0.0 {
        return Some(0.0);
    }
    let half_a_bit = 2f64.powi(-1 - spec.mantissa_bits as i32);
    (magnitude <= spec.max_finite()).then(|| half_a_bit * binade(magnitude, spec.emin()))
}

/// A sum on the way: the exact value in f64, the sum of magnitudes that bounds the rounding of that, and how far the
/// computed one may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sum {
    pub(super) value: f64,
    pub(super) magnitude: f64,
    pub(super) error: f64,
}

impl Sum {
    pub(super) const ZERO: Sum = Sum { value: 0.0, magnitude: 0.0, error: 0.0 };

    /// A number that is known.
    pub(super) fn of(x: f32) -> Sum {
        Sum { value: f64::from(x), magnitude: f64::from(x).abs(), error: 0.0 }
    }

    pub(super) fn add(&mut self, x: f64) {
        self.value += x;
        self.magnitude += x.abs();
    }

    /// The computed sum is at most this.
    pub(super) fn at_most(&self, omega: f64) -> f64 {
        up(self.value.abs() + omega * self.magnitude + self.error)
    }

    /// The computed sum is at least this.
    pub(super) fn at_least(&self, omega: f64) -> f64 {
        (self.value.abs() / UP - up(omega * self.magnitude + self.error)).max(0.0)
    }
}

/// How an interval is summed.
pub(super) struct Chain {
    model: Model,
    pub(super) omega: f64,
    /// All products are multiples of this.
    quantum: f64,
    /// Fused steps: a term's last bit over its 2^exponent.
    pub(super) last_bit: f64,
}

impl Chain {
    pub(super) fn new(problem: &GemmProblem<'_>, omega: f64) -> Self {
        let (a, b, model) = (problem.a(), problem.b(), problem.accumulation().model());
        let grid = |x: &crate::scaled::ScaledRef<'_>| match (model, x.scales()) {
            (Model::TensorCore(core), Some(s)) if core.scales() == BlockScales::Fp4 => {
                s.grid.format().spec().mantissa_bits
            }
            _ => 0,
        };
        let spec = [a.format().spec(), b.format().spec()];
        let bits = |x: &crate::scaled::ScaledRef<'_>| TensorCore::mantissa_bits(x.format()) + grid(x);
        let fraction = bits(a) + bits(b);
        let quantum = 2f64.powi(spec[0].quantum_floor() + spec[1].quantum_floor());
        Chain { model, omega, quantum, last_bit: 2f64.powi(-(fraction as i32)) }
    }

    /// The sum over `range` from `c`; `None` where it may overflow.
    pub(super) fn sum(&self, a: &Row, b: &Row, range: Range<usize>, c: Sum) -> Option<Sum> {
        match self.model {
            Model::F32 => self.rounded_each(a, b, range, c),
            Model::Exact => self.rounded_once(a, b, range, c),
            Model::TensorCore(core) => self.steps(core, a, b, range, c),
        }
    }

    fn rounded_each(&self, a: &Row, b: &Row, range: Range<usize>, c: Sum) -> Option<Sum> {
        let half_a_bit = 2f64.powi(-1 - F32.mantissa_bits as i32);
        // Below this the sum of products alone, a multiple of their quantum, is an f32.
        let products_alone = c.magnitude == 0.0 && self.quantum >= F32.min_subnormal();
        let exact_below = if products_alone { self.quantum / half_a_bit } else { 0.0 };
        let (mut sum, mut largest) = (c, 0.0f64);
        for term in a.terms(b, range) {
            sum.add(term.value);
            let magnitude = sum.at_most(self.omega);
            largest = largest.max(magnitude);
            let rounding =
                if magnitude < exact_below { 0.0 } else { half_a_bit * binade(magnitude, F32.emin()) };
            sum.error = up(sum.error + rounding);
        }
        (largest <= F32.max_finite()).then_some(sum)
    }

    pub(super) fn rounded_once(&self, a: &Row, b: &Row, range: Range<usize>, c: Sum) -> Option<Sum> {
        let mut sum = c;
        a.terms(b, range).for_each(|term| sum.add(term.value));
        sum.error = up(sum.error + half_ulp(sum.at_most(self.omega), Format::F32)?);
        Some(sum)
    }
}
