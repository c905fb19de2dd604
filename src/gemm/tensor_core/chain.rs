//! The step of a tensor core: a truncated fused dot product, in integers.
//!
//! With F, L, result and zero exponent from [`TensorCore`], for one step of at most L products and the accumulator c:
//!
//! 1. Each operand is significand · 2^exponent; subnormals keep their format's smallest exponent, unnormalised.
//! 2. A product is the exact product of significands, in [0, 4), with the sum of the exponents. It is not normalised.
//!    A zero term has the zero exponent, and so has a product that is missing in a ragged last step.
//! 3. e_max is the largest exponent over all terms.
//! 4. Every term is rounded to a multiple of 2^(e_max − F): toward zero, or in custom tensor cores to nearest even.
//! 5. They are summed exactly.
//! 6. The sum is rounded to the result format, likewise; from 2^128 on it is infinite. NaN, ∞·0 and ∞ − ∞ give
//!    7FFFFFFF. Zero is +0, whatever the signs of what was summed.
//! 7. The next step takes the result as its c.
//!
//! MX scales are powers of two and enter as exponents of the operands. FP4 tensor cores do not align products but
//! groups of 16: term = Σ products · significands of the two scales, exact, with the sum of the scales' exponents.

use std::ops::Range;

use rayon::prelude::*;

use super::super::operand::{self, Number, NumberRow};
use super::super::reference::Chain;
use super::{Addend, BlockScales, StepResult, StepRounding, TensorCore};
use crate::formats::{Format, FormatSpec, Unpacked};
use crate::scaled::{ScaleGridRef, ScaledRef, ScalesRef};

const F32: &FormatSpec = Format::F32.spec();

/// What a tensor core answers where there is no number.
pub(crate) const NAN: f32 = f32::from_bits(0x7FFF_FFFF);

/// ± significand · 2^(exponent − fraction bits), the fraction bits being those of all terms of its kind.
#[derive(Clone, Copy)]
struct Term {
    significand: i64,
    exponent: i32,
}

impl Term {
    /// The accumulator, which is finite, as a term.
    #[inline]
    fn of_f32(c: f32, zero_exponent: i32) -> Term {
        let bits = c.to_bits();
        let field = (bits >> F32.mantissa_bits & 0xFF) as i32;
        let fraction = i64::from(bits & ((1 << F32.mantissa_bits) - 1));
        let magnitude = fraction | i64::from(field != 0) << F32.mantissa_bits;
        Term {
            significand: if c.is_sign_negative() { -magnitude } else { magnitude },
            exponent: if magnitude == 0 { zero_exponent } else { field.max(1) - F32.bias },
        }
    }

    /// The term in units of 2^(e_max − f), truncated toward zero.
    #[inline]
    fn truncated(self, term_fraction: u32, e_max: i32, f: u32) -> i64 {
        // At most 24 + 38 bits (`TensorCore::MAX_FRACTION_BITS`); a shift of 63 leaves nothing of them.
        let fine = self.significand.unsigned_abs() << f;
        let cut = (fine >> (e_max - self.exponent + term_fraction as i32).min(63)) as i64;
        // A product and no branch: signs are as good as random, and a misprediction costs more than all the rest.
        cut * self.significand.signum()
    }

    /// The same to the nearest, ties to the even one.
    #[inline]
    fn nearest(self, term_fraction: u32, e_max: i32, f: u32) -> i64 {
        let fine = self.significand.unsigned_abs() << f;
        let shift = (e_max - self.exponent + term_fraction as i32) as u32;
        nearest_even(fine, shift) as i64 * self.significand.signum()
    }
}

/// x / 2^shift to the nearest integer, ties to the even one; x below 2^62.
#[inline]
fn nearest_even(x: u64, shift: u32) -> u64 {
    if shift > 62 {
        return 0; // less than a half
    }
    let (floor, rest) = (x >> shift, x & ((1 << shift) - 1));
    let half = 1 << shift >> 1;
    floor + u64::from(shift > 0 && (rest > half || (rest == half && floor & 1 == 1)))
}

/// Steps 3 to 6 over the products and, if it takes part, the accumulator.
#[inline]
fn fused_sum(
    core: TensorCore,
    terms: impl Iterator<Item = Term> + Clone,
    fraction: u32,
    c: Option<f32>,
) -> f32 {
    let f = core.fraction_bits();
    let c = c.map(|c| Term::of_f32(c, core.zero_exponent()));
    // The zero exponent as the floor of e_max is step 2: an addend is either zero or of exponent −126 and more.
    let floor = c.map_or(core.zero_exponent(), |c| c.exponent.max(core.zero_exponent()));
    let e_max = terms.clone().map(|t| t.exponent).fold(floor, i32::max);
    let products: i64;
    let addend: i64;
    match core.term_rounding() {
        StepRounding::TowardZero => {
            products = terms.map(|t| t.truncated(fraction, e_max, f)).sum();
            addend = c.map_or(0, |c| c.truncated(F32.mantissa_bits, e_max, f));
        }
        StepRounding::NearestEven => {
            products = terms.map(|t| t.nearest(fraction, e_max, f)).sum();
            addend = c.map_or(0, |c| c.nearest(F32.mantissa_bits, e_max, f));
        }
    }
    round(products + addend, e_max - f as i32, core.result(), core.result_rounding())
}

/// sum · 2^exponent in the result format, which has the exponents of f32.
///
/// The same as [`FormatSpec::round`] but for overflow, which is infinite here from 2^128 on, and −0; in place because
/// every step ends with it.
#[inline]
fn round(sum: i64, exponent: i32, result: StepResult, rounding: StepRounding) -> f32 {
    if sum == 0 {
        return 0.0;
    }
    let (magnitude, mantissa_bits) = (sum.unsigned_abs(), result.mantissa_bits());
    let e = exponent + magnitude.ilog2() as i32;
    let sign = if sum < 0 { -1.0 } else { 1.0 };
    if e > F32.emax() {
        return f32::INFINITY * sign;
    }
    let e = e.max(F32.emin());
    // The last bit that is kept has the exponent e − mantissa bits. Short sums move up to it, by 23 bits at most.
    let shift = e - mantissa_bits as i32 - exponent;
    let kept = match rounding {
        _ if shift < 0 => magnitude << -shift,
        StepRounding::TowardZero => magnitude >> shift.min(63),
        StepRounding::NearestEven => nearest_even(magnitude, shift as u32),
    } as u32;
    // The hidden bit, where there is one, adds 1 to the exponent field; one more binade, where rounding carries, does
    // so too, and past the last one the field is that of infinity.
    let bits = ((e - F32.emin()) as u32) << F32.mantissa_bits;
    let rounded = f32::from_bits(bits + (kept << (F32.mantissa_bits - mantissa_bits)));
    if rounded == 0.0 { 0.0 } else { rounded * sign }
}

/// The chain of steps over one promotion interval.
pub(in super::super) struct FusedChain {
    core: TensorCore,
    /// Fraction bits of a term: those of A's and B's elements, and of their scales where the core multiplies by them.
    fraction: u32,
}

/// One row of an operand as the tensor core sees it.
pub(in super::super) struct FusedRow {
    elements: NumberRow,
    /// [`BlockScales::Fp4`]: the scale of each group of 16.
    group_scales: Vec<Number>,
}

impl FusedChain {
    pub(in super::super) fn new(core: TensorCore, a: &ScaledRef<'_>, b: &ScaledRef<'_>) -> Self {
        let element_bits = |x: &ScaledRef<'_>| x.format().spec().mantissa_bits;
        let scale_bits = |x: &ScaledRef<'_>| match (core.scales(), x.scales()) {
            (BlockScales::Fp4, Some(s)) => s.grid.format().spec().mantissa_bits,
            _ => 0,
        };
        let fraction = [a, b].map(|x| element_bits(x) + scale_bits(x)).iter().sum();
        FusedChain { core, fraction }
    }

    fn products<'a>(
        a: &'a FusedRow,
        b: &'a FusedRow,
        range: Range<usize>,
    ) -> impl Iterator<Item = Term> + Clone + 'a {
        let (a, b) = (&a.elements.numbers[range.clone()], &b.elements.numbers[range]);
        a.iter().zip(b).map(|(x, y)| Term {
            significand: i64::from(i32::from(x.significand) * i32::from(y.significand)),
            exponent: i32::from(x.exponent) + i32::from(y.exponent),
        })
    }

    /// The groups of 16 that `range`, which starts with one, holds.
    fn groups<'a>(
        &self,
        a: &'a FusedRow,
        b: &'a FusedRow,
        range: Range<usize>,
    ) -> impl Iterator<Item = Term> + Clone + 'a {
        let zero_exponent = self.core.zero_exponent();
        range.clone().step_by(TensorCore::FP4_GROUP).map(move |start| {
            let end = (start + TensorCore::FP4_GROUP).min(range.end);
            let (sa, sb) = (
                a.group_scales[start / TensorCore::FP4_GROUP],
                b.group_scales[start / TensorCore::FP4_GROUP],
            );
            let scale = i64::from(sa.significand) * i64::from(sb.significand);
            let mut products = Self::products(a, b, start..end).filter(|p| p.significand != 0).peekable();
            if scale == 0 || products.peek().is_none() {
                return Term { significand: 0, exponent: zero_exponent };
            }
            // E2M1 has no exponent below 0, so every product is an integer in units of the common last bit. Products
            // that cancel leave a zero with the exponent of the scales.
            let sum: i64 = products.map(|p| p.significand << p.exponent).sum();
            Term { significand: sum * scale, exponent: i32::from(sa.exponent) + i32::from(sb.exponent) }
        })
    }

    fn step(&self, a: &FusedRow, b: &FusedRow, range: Range<usize>, c: f32) -> f32 {
        let (early, late) = match self.core.addend() {
            Addend::Early => (Some(c), None),
            Addend::Late => (None, Some(c)),
        };
        let non_finite =
            operand::non_finite_sum(&a.elements, &b.elements, range.clone(), early.unwrap_or(0.0));
        let sum = match (non_finite, self.core.scales()) {
            (Some(sum), _) => sum,
            (None, BlockScales::Fp4) => fused_sum(self.core, self.groups(a, b, range), self.fraction, early),
            (None, _) => fused_sum(self.core, Self::products(a, b, range), self.fraction, early),
        };
        let d = late.map_or(sum, |c| sum + c);
        if d.is_nan() { NAN } else { d }
    }
}

impl Chain for FusedChain {
    type Row = FusedRow;

    const NAN: f32 = NAN;

    fn rows(&self, x: &ScaledRef<'_>) -> Vec<FusedRow> {
        let table = operand::table(x.format());
        let row = |i| {
            let mut row = FusedRow { elements: NumberRow::new(x, i, &table), group_scales: Vec::new() };
            match (self.core.scales(), x.scales()) {
                (BlockScales::None, _) | (_, None) => {}
                (BlockScales::Mx, Some(scales)) => {
                    for (block, scale) in block_scales(&scales, i, x.shape().1) {
                        row.elements.scale(block, scale.exponent());
                    }
                }
                (BlockScales::Fp4, Some(scales)) => {
                    let fraction = scales.grid.format().spec().mantissa_bits;
                    for (block, scale) in block_scales(&scales, i, x.shape().1) {
                        if matches!(scale, Unpacked::Nan { .. }) {
                            row.elements.scale(block.clone(), None);
                        }
                        let groups = block.len().div_ceil(TensorCore::FP4_GROUP);
                        row.group_scales.extend(vec![Number::of(scale, fraction); groups]);
                    }
                }
            }
            row
        };
        (0..x.shape().0).into_par_iter().map(row).collect()
    }

    fn sum(&self, a: &FusedRow, b: &FusedRow, range: Range<usize>, c: f32) -> f32 {
        let step = self.core.step();
        let mut c = c;
        for start in range.clone().step_by(step) {
            c = self.step(a, b, start..(start + step).min(range.end), c);
        }
        c
    }
}

/// The blocks of row `i` with their scales; granules of one row, as every model that takes scales has them.
fn block_scales<'a>(
    scales: &ScalesRef<'a>,
    i: usize,
    k: usize,
) -> impl Iterator<Item = (Range<usize>, Unpacked)> + 'a {
    let (grid, cols) = (scales.grid, scales.granule.cols());
    (0..k.div_ceil(cols)).map(move |block| {
        let scale = match grid {
            ScaleGridRef::E8M0(m) => Format::E8M0.spec().decode(u64::from(m.at(i, block))),
            // UE4M3: the sign bit does not count.
            ScaleGridRef::E4M3(m) => Format::E4M3.spec().decode(u64::from(m.at(i, block) & 0x7F)),
            ScaleGridRef::F32(_) => unreachable!("no tensor core takes f32 scales: GemmProblem refuses them"),
        };
        (block * cols..k.min((block + 1) * cols), scale)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(core: TensorCore, products: &[f32], c: f32) -> f32 {
        let terms = products.iter().map(|&p| Term::of_f32(p, core.zero_exponent()));
        fused_sum(core, terms, 23, Some(c))
    }

    /// numerics.md 4.3: c = 2^23 with products −2^23, −0.5, −0.25, −0.125.
    #[test]
    fn check_vector_tells_the_generations_apart() {
        let products = [-8_388_608.0, -0.5, -0.25, -0.125];
        for (core, expected) in [
            (TensorCore::VOLTA, 0.0),
            (TensorCore::AMPERE, -0.5),
            (TensorCore::TURING, -0.5),
            (TensorCore::HOPPER_F16, -0.75),
            (TensorCore::BLACKWELL, -0.75),
            (TensorCore::ADA, 0.0),
            (TensorCore::HOPPER, 0.0),
            (TensorCore::BLACKWELL_FP4, -0.875),
        ] {
            let d = sum(core, &products, 8_388_608.0);
            assert_eq!(d.to_bits(), f32::to_bits(expected), "{}", core.name());
        }
    }

    #[test]
    fn rounding_is_that_of_the_formats() {
        use crate::formats::{Overflow, Rounding};
        let formats = [(StepResult::E8M13, Format::E8M13), (StepResult::F32, Format::F32)];
        let bf16 = (StepResult::e8(7).unwrap(), Format::Bf16);
        let roundings = [
            (StepRounding::TowardZero, Rounding::TowardZero, Overflow::Saturate),
            (StepRounding::NearestEven, Rounding::NearestEven, Overflow::NonSaturating),
        ];
        for ((result, format), (step_rounding, rounding, overflow)) in
            formats.into_iter().chain([bf16]).flat_map(|f| roundings.map(|r| (f, r)))
        {
            for exponent in -200..130 {
                for sum in [
                    1i64,
                    3,
                    -5,
                    0x1FFF,
                    0x3FFF,
                    -0x7FFF,
                    0xFF_FFFF,
                    0x1FF_FFFF,
                    0x1FF_FFFD,
                    -0x12_3456_789A,
                    (1 << 57) + (1 << 33),
                    3 << 56,
                ] {
                    let value =
                        Unpacked::Finite { negative: sum < 0, significand: sum.unsigned_abs(), exponent };
                    let want = match value.exponent() {
                        Some(128..) => f64::INFINITY.copysign(sum as f64),
                        _ => format.spec().round(value, rounding, overflow).value.to_f64(),
                    };
                    let got = round(sum, exponent, result, step_rounding);
                    let what = format!("{sum} · 2^{exponent} in {result}, {step_rounding:?}");
                    assert_eq!(f64::from(got).to_bits(), (want + 0.0).to_bits(), "{what}");
                }
            }
        }
    }

    /// Ties go to the even multiple, and every place of the half is met.
    #[test]
    fn terms_are_rounded_to_nearest_even_where_asked_for() {
        for shift in 0..64u32 {
            for x in [0u64, 1, 2, 3, 5, 6, 7, 10, 0x5555_5555, (1 << 61) + 1, 3 << 60, (1 << 62) - 1] {
                let near = u128::from(nearest_even(x, shift));
                let (twice_error, ulp) = ((near << shift).abs_diff(u128::from(x)) << 1, 1u128 << shift);
                assert!(twice_error <= ulp, "{x} / 2^{shift}: {near}");
                assert!(twice_error < ulp || near % 2 == 0, "{x} / 2^{shift}: {near} is odd");
            }
        }
        let nearest = TensorCore::HOPPER.with_term_rounding(StepRounding::NearestEven);
        let (one, unit) = (1.0, 2f32.powi(-13));
        for (small, cut, rounded) in [(0.5, 0.0, 0.0), (0.75, 0.0, 1.0), (1.5, 1.0, 2.0), (-1.25, -1.0, -1.0)]
        {
            assert_eq!(sum(TensorCore::HOPPER, &[one, small * unit], 0.0), one + cut * unit, "{small}");
            assert_eq!(sum(nearest, &[one, small * unit], 0.0), one + rounded * unit, "{small}");
        }
        // The sum 2 + 2^-13 does not fit 13 fraction bits; neither does 2 + 3 · 2^-13.
        let round = TensorCore::HOPPER.with_result_rounding(StepRounding::NearestEven);
        assert_eq!(sum(round, &[one, one + unit], 0.0), 2.0);
        assert_eq!(sum(round, &[one, one + 3.0 * unit], 0.0), 2.0 + 4.0 * unit);
        assert_eq!(sum(TensorCore::HOPPER, &[one, one + 3.0 * unit], 0.0), 2.0 + 2.0 * unit);
    }

    #[test]
    fn results_are_truncated_and_overflow_to_infinity() {
        // 1 + 2^-14 does not fit 13 fraction bits; terms are cut before they are summed.
        assert_eq!(sum(TensorCore::HOPPER, &[1.0, 2f32.powi(-14), 2f32.powi(-14)], 0.0), 1.0);
        assert_eq!(sum(TensorCore::HOPPER, &[1.0, 2f32.powi(-13)], 0.0), 1.0 + 2f32.powi(-13));
        let huge = 2f32.powi(127);
        assert_eq!(sum(TensorCore::HOPPER, &[-huge, -huge], 0.0), f32::NEG_INFINITY);
        assert_eq!(sum(TensorCore::BLACKWELL, &[huge, huge.next_down()], 0.0), f32::MAX);
        assert_eq!(sum(TensorCore::BLACKWELL, &[-0.0, -0.0], -0.0).to_bits(), 0);
    }
}
