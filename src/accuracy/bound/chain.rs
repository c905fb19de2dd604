//! What the sum of one interval may lose, model by model. The proof stands at the head of the module above.

use std::ops::Range;

use super::operand::Row;
use crate::formats::{Format, FormatSpec};
use crate::gemm::{Addend, BlockScales, GemmProblem, Model, StepRounding, TensorCore};

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
fn binade(x: f64, spec: &FormatSpec) -> f64 {
    power_of_two_below(x).max(2f64.powi(spec.emin()))
}

/// Half a unit in the last place of a number of at most this magnitude; `None` where rounding it may overflow.
pub(super) fn half_ulp(magnitude: f64, format: Format) -> Option<f64> {
    let spec = format.spec();
    if magnitude == 0.0 {
        return Some(0.0);
    }
    let half_a_bit = 2f64.powi(-1 - spec.mantissa_bits as i32);
    (magnitude <= spec.max_finite()).then(|| half_a_bit * binade(magnitude, spec))
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
    fn at_least(&self, omega: f64) -> f64 {
        (self.value.abs() / UP - up(omega * self.magnitude + self.error)).max(0.0)
    }
}

/// How an interval is summed.
pub(super) struct Chain {
    model: Model,
    omega: f64,
    /// All products are multiples of this.
    quantum: f64,
    /// Fused steps: a term's last bit over its 2^exponent.
    last_bit: f64,
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
        let fraction = spec[0].mantissa_bits + spec[1].mantissa_bits + grid(a) + grid(b);
        let quantum = 2f64.powi(spec[0].quantum_floor() + spec[1].quantum_floor());
        Chain { model, omega, quantum, last_bit: 2f64.powi(-(fraction as i32)) }
    }

    /// The sum over `range` from `c`; `None` where it may overflow.
    pub(super) fn sum(&self, a: &Row, b: &Row, range: Range<usize>, c: Sum) -> Option<Sum> {
        match self.model {
            Model::F32 => self.rounded_each(a, b, range, c),
            Model::Exact => self.rounded_once(a, b, range, c),
            Model::TensorCore(core) => self.fused(core, a, b, range, c),
        }
    }

    fn rounded_each(&self, a: &Row, b: &Row, range: Range<usize>, c: Sum) -> Option<Sum> {
        let half_a_bit = 2f64.powi(-1 - F32.mantissa_bits as i32);
        // Below this the sum of products alone, a multiple of their quantum, is an f32.
        let products_alone = c.magnitude == 0.0 && self.quantum >= F32.min_subnormal();
        let exact_below = if products_alone { self.quantum / half_a_bit } else { 0.0 };
        let (mut sum, mut largest) = (c, 0.0f64);
        for (x, _) in a.terms(b, range) {
            sum.add(x);
            let magnitude = sum.at_most(self.omega);
            largest = largest.max(magnitude);
            let rounding = if magnitude < exact_below { 0.0 } else { half_a_bit * binade(magnitude, F32) };
            sum.error = up(sum.error + rounding);
        }
        (largest <= F32.max_finite()).then_some(sum)
    }

    fn rounded_once(&self, a: &Row, b: &Row, range: Range<usize>, c: Sum) -> Option<Sum> {
        let mut sum = c;
        a.terms(b, range).for_each(|(x, _)| sum.add(x));
        sum.error = half_ulp(sum.at_most(self.omega), Format::F32)?;
        Some(sum)
    }

    fn fused(&self, core: TensorCore, a: &Row, b: &Row, range: Range<usize>, c: Sum) -> Option<Sum> {
        let step = core.step().next_multiple_of(a.term_length());
        let mut sum = c;
        // An addend has the last bit of an f32, what a step gives that of its result.
        let mut last_bit = F32.mantissa_bits;
        for start in range.clone().step_by(step) {
            let terms = a.terms(b, start..(start + step).min(range.end));
            sum = match core.addend() {
                Addend::Early => self.early(core, terms, sum, last_bit)?,
                Addend::Late => self.late(core, terms, sum)?,
            };
            last_bit = core.result().mantissa_bits();
        }
        Some(sum)
    }

    fn early(
        &self,
        core: TensorCore,
        terms: impl Iterator<Item = (f64, f64)> + Clone,
        c: Sum,
        last_bit: u32,
    ) -> Option<Sum> {
        let c_most = c.at_most(self.omega);
        let e_products = largest_exponent(core, terms.clone());
        let e_most = if c_most > 0.0 { e_products.max(binade(c_most, F32)) } else { e_products };
        let unit = 2f64.powi(-(core.fraction_bits() as i32));
        let (unit_least, unit_most) = (unit * e_products, unit * e_most);
        let c_last_bit = 2f64.powi(-(last_bit as i32)) * binade(c.at_least(self.omega), F32);
        let mut lost = lost(core.term_rounding(), c_most, c_last_bit, unit_most);
        let mut sum = c;
        for (x, exponent) in terms {
            sum.add(x);
            lost += self::lost(core.term_rounding(), x.abs(), exponent * self.last_bit, unit_most);
        }
        sum.error = up(sum.error + sum_up(lost, core.step()));
        sum.error = up(sum.error + result_loss(core, sum.at_most(self.omega), unit_least)?);
        Some(sum)
    }

    fn late(&self, core: TensorCore, terms: impl Iterator<Item = (f64, f64)> + Clone, c: Sum) -> Option<Sum> {
        let unit = 2f64.powi(-(core.fraction_bits() as i32)) * largest_exponent(core, terms.clone());
        let (mut products, mut lost) = (Sum::ZERO, 0.0);
        for (x, exponent) in terms {
            products.add(x);
            lost += self::lost(core.term_rounding(), x.abs(), exponent * self.last_bit, unit);
        }
        products.error = sum_up(lost, core.step());
        products.error = up(products.error + result_loss(core, products.at_most(self.omega), unit)?);
        let mut sum = Sum {
            value: c.value + products.value,
            magnitude: c.magnitude + products.magnitude,
            error: up(c.error + products.error),
        };
        sum.error = up(sum.error + half_ulp(sum.at_most(self.omega), Format::F32)?);
        Some(sum)
    }
}

/// An upper bound of a sum of at most n + 1 non-negative numbers from what f64 made of it.
fn sum_up(sum: f64, n: usize) -> f64 {
    sum * (1.0 + (n + 2) as f64 * f64::EPSILON)
}

/// 2^e_max over the products.
fn largest_exponent(core: TensorCore, terms: impl Iterator<Item = (f64, f64)>) -> f64 {
    terms.map(|(_, exponent)| exponent).fold(2f64.powi(core.zero_exponent()), f64::max)
}

/// What a term of this magnitude and last bit loses when it is rounded to multiples of `unit`.
fn lost(rounding: StepRounding, magnitude: f64, last_bit: f64, unit: f64) -> f64 {
    if last_bit >= unit {
        return 0.0;
    }
    match rounding {
        StepRounding::TowardZero => magnitude.min(unit - last_bit),
        StepRounding::NearestEven => magnitude.min(unit / 2.0),
    }
}

/// What a sum of at most this magnitude, a multiple of `unit`, loses when it is rounded to the result of a step; `None`
/// where that may overflow.
fn result_loss(core: TensorCore, magnitude: f64, unit: f64) -> Option<f64> {
    if magnitude > F32.max_finite() {
        return None;
    }
    let last_place = 2f64.powi(-(core.result().mantissa_bits() as i32)) * binade(magnitude, F32);
    Some(match core.result_rounding() {
        _ if last_place <= unit => 0.0,
        StepRounding::TowardZero => last_place - unit,
        StepRounding::NearestEven => last_place / 2.0,
    })
}
