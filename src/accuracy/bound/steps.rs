//! What the steps of a tensor core may lose. The proof stands at the head of the module above.

use std::ops::Range;

use super::chain::{Chain, Sum, binade, half_ulp, up};
use super::operand::{Row, Term};
use crate::formats::{Format, FormatSpec};
use crate::gemm::{Addend, StepResult, StepRounding, StepSum, TensorCore};

const F32: &FormatSpec = Format::F32.spec();

/// CDNA3: fraction bits of the dot product where the accumulator joins it, and of their sum.
const JOINED_BITS: i32 = 32;
const SUM_BITS: i32 = 31;

impl Chain {
    /// The steps over `range` from `c`; `None` where they may overflow.
    pub(super) fn steps(
        &self,
        core: TensorCore,
        a: &Row,
        b: &Row,
        range: Range<usize>,
        c: Sum,
    ) -> Option<Sum> {
        let step = core.step().next_multiple_of(a.term_length());
        let mut sum = begun(core, c)?;
        // An addend has the last bit of an f32, or of the f16 that it becomes; what a step gives has that of its result.
        let mut last_bit = core.result().accumulator().spec().mantissa_bits;
        for start in range.clone().step_by(step) {
            let range = start..(start + step).min(range.end);
            let terms = a.terms(b, range.clone());
            sum = match core.sum() {
                StepSum::Fused | StepSum::FusedInTwo => self.fused(core, terms, sum, last_bit)?,
                StepSum::Floored | StepSum::FlooredInTwo => self.floored(core, terms, sum)?,
                StepSum::Exact => self.rounded_once(a, b, range, sum)?,
                StepSum::Pairwise => self.pairwise(core, terms, sum)?,
            };
            last_bit = core.result().mantissa_bits();
        }
        Some(sum)
    }

    /// A step of NVIDIA's: its products at once or in two sets.
    fn fused(
        &self,
        core: TensorCore,
        terms: impl Iterator<Item = Term> + Clone,
        c: Sum,
        last_bit: u32,
    ) -> Option<Sum> {
        let start = match core.addend() {
            Addend::Early => c,
            Addend::Late => Sum::ZERO,
        };
        let sum = if core.sum() == StepSum::FusedInTwo {
            let set =
                |i| terms.clone().enumerate().filter(move |(k, _)| k / 2 % 2 == i).map(|(_, term)| term);
            let first = self.set(core, set(0), start, last_bit)?;
            self.set(core, set(1), first, core.result().mantissa_bits())?
        } else {
            self.set(core, terms, start, last_bit)?
        };
        match core.addend() {
            Addend::Early => Some(sum),
            Addend::Late => self.added(c, sum, core.result().accumulator()),
        }
    }

    /// Terms that are aligned with c and summed.
    fn set(
        &self,
        core: TensorCore,
        terms: impl Iterator<Item = Term> + Clone,
        c: Sum,
        last_bit: u32,
    ) -> Option<Sum> {
        let emin = core.result().emin();
        let c_most = c.at_most(self.omega);
        let floor = 2f64.powi(core.zero_exponent());
        let e_products = largest_exponent(terms.clone()).max(floor);
        let e_most = if c_most > 0.0 { e_products.max(binade(c_most, emin)) } else { e_products };
        let unit = 2f64.powi(-(core.fraction_bits() as i32));
        let (unit_least, unit_most) = (unit * e_products, unit * e_most);
        let c_last_bit = 2f64.powi(-(last_bit as i32)) * binade(c.at_least(self.omega), emin);
        let mut lost = lost(core.term_rounding(), c_most, c_last_bit, unit_most);
        let mut sum = c;
        for term in terms {
            sum.add(term.value);
            lost += (term.value - term.read).abs();
            lost +=
                self::lost(core.term_rounding(), term.read.abs(), term.exponent * self.last_bit, unit_most);
        }
        sum.error = up(sum.error + sum_up(lost, 2 * core.step()));
        sum.error = up(sum.error + result_loss(core, sum.at_most(self.omega), unit_least)?);
        Some(sum)
    }

    /// A step of CDNA3.
    fn floored(&self, core: TensorCore, terms: impl Iterator<Item = Term> + Clone, c: Sum) -> Option<Sum> {
        let sets = if core.sum() == StepSum::FlooredInTwo { 2 } else { 1 };
        let set = |i| terms.clone().enumerate().filter(move |(k, _)| k % sets == i).map(|(_, term)| term);
        let unit = 2f64.powi(-(core.fraction_bits() as i32));
        let e_dot = largest_exponent(terms.clone());
        let (mut sum, mut lost) = (c, 0.0);
        for i in 0..sets {
            let e_set = largest_exponent(set(i));
            for term in set(i) {
                if term.read.abs() > F32.max_finite() {
                    return None;
                }
                sum.add(term.value);
                lost += (term.value - term.read).abs();
                lost += self::lost(
                    StepRounding::TowardZero,
                    term.read.abs(),
                    term.exponent * self.last_bit,
                    unit * e_set,
                );
            }
            // Of two sets that with the smaller exponents is rounded down to the units of the other.
            lost += if 0.0 < e_set && e_set < e_dot { unit * e_dot } else { 0.0 };
        }
        let c_most = c.at_most(self.omega);
        let e_c = binade(c_most, F32.emin());
        let e_max = e_dot.max(e_c);
        lost += if e_c > e_dot { 2f64.powi(-JOINED_BITS) * e_max } else { 0.0 };
        let c_last_bit = 2f64.powi(-(F32.mantissa_bits as i32)) * binade(c.at_least(self.omega), F32.emin());
        // An accumulator that is left out is less than half of this.
        lost += if c_most > 0.0 { (unit * e_max - c_last_bit).max(0.0) } else { 0.0 };
        sum.error = up(sum.error + sum_up(lost, 2 * core.step() + 4));
        let floor = 2f64.powi(-SUM_BITS) * binade(sum.at_most(self.omega), F32.emin());
        sum.error = up(sum.error + floor);
        sum.error = up(sum.error + half_ulp(sum.at_most(self.omega), Format::F32)?);
        Some(sum)
    }

    /// A step of CDNA2.
    fn pairwise(&self, core: TensorCore, terms: impl Iterator<Item = Term>, c: Sum) -> Option<Sum> {
        let mut products = Vec::with_capacity(core.step());
        for Term { value, read, .. } in terms {
            if read.abs() > F32.max_finite() {
                return None;
            }
            let flushed = if read.abs() < F32.min_normal() { 0.0 } else { read };
            products.push(Sum { value, magnitude: value.abs(), error: up((value - flushed).abs()) });
        }
        products.resize(core.step(), Sum::ZERO);
        while products.len() > 1 {
            let pairs = products.chunks(2).map(|pair| self.flushed_sum(pair[0], pair[1]));
            products = pairs.collect::<Option<_>>()?;
        }
        self.flushed_sum(c, products[0])
    }

    /// One addition in f32 whose result is zero where it is subnormal.
    fn flushed_sum(&self, x: Sum, y: Sum) -> Option<Sum> {
        let mut sum = self.added(x, y, Format::F32)?;
        if sum.at_most(self.omega) > 0.0 && sum.at_least(self.omega) < F32.min_normal() {
            sum.error = up(sum.error + F32.min_normal());
        }
        Some(sum)
    }

    /// One addition, rounded to nearest.
    fn added(&self, x: Sum, y: Sum, format: Format) -> Option<Sum> {
        let mut sum = Sum {
            value: x.value + y.value,
            magnitude: x.magnitude + y.magnitude,
            error: up(x.error + y.error),
        };
        sum.error = up(sum.error + half_ulp(sum.at_most(self.omega), format)?);
        Some(sum)
    }
}

/// The addend as the chain begins with it.
fn begun(core: TensorCore, mut c: Sum) -> Option<Sum> {
    match (core.sum(), core.result()) {
        (StepSum::Pairwise, _) if c.value.abs() < F32.min_normal() => c.error = c.value.abs(),
        (_, StepResult::F16) => {
            let rounded = half::f16::from_f32(c.value as f32).to_f64();
            c.error = up((rounded - c.value).abs());
        }
        _ => {}
    }
    c.error.is_finite().then_some(c)
}

/// An upper bound of a sum of at most n + 1 non-negative numbers from what f64 made of it.
fn sum_up(sum: f64, n: usize) -> f64 {
    sum * (1.0 + (n + 2) as f64 * f64::EPSILON)
}

/// 2^e_max over the products; 0 if all are zero.
fn largest_exponent(terms: impl Iterator<Item = Term>) -> f64 {
    terms.map(|term| term.exponent).fold(0.0, f64::max)
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
    let result = core.result();
    let last_bit = 2f64.powi(-(result.mantissa_bits() as i32));
    let largest = match core.result_rounding() {
        // All below the power of two beyond the largest number is cut to it.
        StepRounding::TowardZero if result != StepResult::F16 => F32.max_finite(),
        StepRounding::TowardZero | StepRounding::NearestEven => (2.0 - last_bit) * 2f64.powi(result.emax()),
    };
    if magnitude > largest {
        return None;
    }
    let last_place = last_bit * binade(magnitude, result.emin());
    Some(match core.result_rounding() {
        _ if last_place <= unit => 0.0,
        StepRounding::TowardZero => last_place - unit,
        StepRounding::NearestEven => last_place / 2.0,
    })
}
