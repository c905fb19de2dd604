//! The sum of a step of NVIDIA's tensor cores: terms aligned, cut, added in integers, rounded.

use super::{StepResult, StepRounding, TensorCore};
use crate::formats::{Format, FormatSpec};

pub(super) const F32: &FormatSpec = Format::F32.spec();

/// ± significand · 2^(exponent − fraction bits), the fraction bits being those of all terms of its kind.
#[derive(Clone, Copy)]
pub(super) struct Term {
    pub(super) significand: i64,
    pub(super) exponent: i32,
}

impl Term {
    /// The accumulator, which is finite, as a term with the fraction bits of an f32: its exponent is no less than `emin`,
    /// that of the smallest normal number of its format, and `zero_exponent` for zero.
    #[inline]
    pub(super) fn of_accumulator(c: f32, emin: i32, zero_exponent: i32) -> Term {
        let bits = c.to_bits();
        let field = (bits >> F32.mantissa_bits & 0xFF) as i32;
        let fraction = i64::from(bits & ((1 << F32.mantissa_bits) - 1));
        let exponent = field.max(1) - F32.bias;
        // No bit is lost: below emin its format has few, and zero none.
        let shift = (emin - exponent).clamp(0, 63);
        let magnitude = (fraction | i64::from(field != 0) << F32.mantissa_bits) >> shift;
        Term {
            significand: if c.is_sign_negative() { -magnitude } else { magnitude },
            exponent: if magnitude == 0 { zero_exponent } else { exponent + shift },
        }
    }

    /// The term in units of 2^(e_max − f), truncated toward zero.
    #[inline]
    pub(super) fn truncated(self, term_fraction: u32, e_max: i32, f: u32) -> i64 {
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
pub(super) fn nearest_even(x: u64, shift: u32) -> u64 {
    if shift > 62 {
        return 0; // less than a half
    }
    let (floor, rest) = (x >> shift, x & ((1 << shift) - 1));
    let half = 1 << shift >> 1;
    floor + u64::from(shift > 0 && (rest > half || (rest == half && floor & 1 == 1)))
}

/// Steps 3 to 6 over the products and the accumulator, which is finite.
#[inline]
pub(super) fn fused_sum(
    core: TensorCore,
    terms: impl Iterator<Item = Term> + Clone,
    fraction: u32,
    c: f32,
) -> f32 {
    let f = core.fraction_bits();
    // The zero exponent as the floor of e_max is step 2: an accumulator is either zero or of the smallest normal exponent
    // and more.
    let c = Term::of_accumulator(c, core.result().emin(), core.zero_exponent());
    let floor = c.exponent.max(core.zero_exponent());
    let e_max = terms.clone().map(|t| t.exponent).fold(floor, i32::max);
    let products: i64;
    let addend: i64;
    match core.term_rounding() {
        StepRounding::TowardZero => {
            products = terms.map(|t| t.truncated(fraction, e_max, f)).sum();
            addend = c.truncated(F32.mantissa_bits, e_max, f);
        }
        StepRounding::NearestEven => {
            products = terms.map(|t| t.nearest(fraction, e_max, f)).sum();
            addend = c.nearest(F32.mantissa_bits, e_max, f);
        }
    }
    round(products + addend, e_max - f as i32, core.result(), core.result_rounding())
}

/// sum · 2^exponent in the result format.
///
/// The same as [`FormatSpec::round`] but for overflow, which is infinite here from 2^(emax + 1) on, and −0; in place
/// because every step ends with it.
#[inline]
pub(super) fn round(sum: i64, exponent: i32, result: StepResult, rounding: StepRounding) -> f32 {
    if sum == 0 {
        return 0.0;
    }
    let (magnitude, mantissa_bits) = (sum.unsigned_abs(), result.mantissa_bits());
    let e = exponent + magnitude.ilog2() as i32;
    let sign = if sum < 0 { -1.0 } else { 1.0 };
    if e > result.emax() {
        return f32::INFINITY * sign;
    }
    let e = e.max(result.emin());
    // The last bit that is kept has the exponent e − mantissa bits. Short sums move up to it, by 23 bits at most.
    let shift = e - mantissa_bits as i32 - exponent;
    let kept = match rounding {
        _ if shift < 0 => magnitude << -shift,
        StepRounding::TowardZero => magnitude >> shift.min(63),
        StepRounding::NearestEven => nearest_even(magnitude, shift as u32),
    } as u32;
    let rounded = if result.emin() == F32.emin() {
        // The hidden bit, where there is one, adds 1 to the exponent field; one more binade, where rounding carries, does
        // so too, and past the last one the field is that of infinity.
        let bits = ((e - F32.emin()) as u32) << F32.mantissa_bits;
        f32::from_bits(bits + (kept << (F32.mantissa_bits - mantissa_bits)))
    } else {
        let quantum = f32::from_bits(((e - mantissa_bits as i32 + F32.bias) as u32) << F32.mantissa_bits);
        let rounded = kept as f32 * quantum;
        if rounded >= 2f32.powi(result.emax() + 1) { f32::INFINITY } else { rounded }
    };
    if rounded == 0.0 { 0.0 } else { rounded * sign }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::Unpacked;

    fn sum(core: TensorCore, products: &[f32], c: f32) -> f32 {
        let terms = products.iter().map(|&p| Term::of_accumulator(p, F32.emin(), core.zero_exponent()));
        fused_sum(core, terms, 23, c)
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
        let f16 = (StepResult::F16, Format::F16);
        let bf16 = (StepResult::e8(7).unwrap(), Format::Bf16);
        let roundings = [
            (StepRounding::TowardZero, Rounding::TowardZero, Overflow::Saturate),
            (StepRounding::NearestEven, Rounding::NearestEven, Overflow::NonSaturating),
        ];
        for ((result, format), (step_rounding, rounding, overflow)) in
            formats.into_iter().chain([bf16, f16]).flat_map(|f| roundings.map(|r| (f, r)))
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
                        Some(e) if e > result.emax() => f64::INFINITY.copysign(sum as f64),
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
