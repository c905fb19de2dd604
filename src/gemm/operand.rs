//! Operands taken apart once, before the k loops: integer significands and exponents.

use std::ops::Range;

use super::tensor_core::TensorCore;
use crate::formats::{Format, Unpacked};
use crate::scaled::ScaledRef;

/// One element: ± significand · 2^(exponent − fraction bits of its format).
///
/// The significand is as the code has it: subnormals keep the exponent of the smallest normal number and are not
/// normalised. Zero has the exponent [`Number::ZERO_EXPONENT`], so that a product with it never decides the largest
/// exponent of a sum. Infinities and NaN have the exponent [`Number::NON_FINITE`]; NaN is the one with significand 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Number {
    pub(crate) significand: i16,
    pub(crate) exponent: i16,
}

impl Number {
    /// Above every exponent of the operand formats, an MX scale's 127 added.
    const NON_FINITE: i16 = i16::MAX;
    /// So low that the sum with any other exponent, MX scales added, lies below every tensor core's zero exponent.
    const ZERO_EXPONENT: i16 = -10_000;
    const NAN: Number = Number { significand: 0, exponent: Number::NON_FINITE };

    pub(crate) fn of(value: Unpacked, fraction_bits: u32) -> Number {
        let sign = if value.is_negative() { -1 } else { 1 };
        match value {
            Unpacked::Zero { .. } => Number { significand: 0, exponent: Number::ZERO_EXPONENT },
            // Formats of at most 16 bits with a sign and an exponent, and TF32: at most 11 bits of significand.
            Unpacked::Finite { significand, exponent, .. } => Number {
                significand: sign * significand as i16,
                exponent: (exponent + fraction_bits as i32) as i16,
            },
            Unpacked::Infinite { .. } => Number { significand: sign, exponent: Number::NON_FINITE },
            Unpacked::Nan { .. } => Number::NAN,
        }
    }

    #[inline]
    const fn is_finite(self) -> bool {
        self.exponent != Number::NON_FINITE
    }

    /// A float with the sign of this number that is zero, finite, infinite or NaN as this number is: what decides the
    /// class of products and sums.
    pub(super) fn class(self) -> f64 {
        match self {
            Number::NAN => f64::NAN,
            Number { significand, exponent: Number::NON_FINITE } => f64::from(significand) * f64::INFINITY,
            Number { significand, .. } => f64::from(significand),
        }
    }
}

/// One row of an operand.
#[derive(Clone, Debug)]
pub(crate) struct NumberRow {
    pub(crate) numbers: Vec<Number>,
    finite: bool,
}

impl NumberRow {
    /// Takes row `i` of `x` apart, F32 as TF32; `table` is [`table`] of its format.
    pub(crate) fn new(x: &ScaledRef<'_>, i: usize, table: &[Number]) -> NumberRow {
        let codes = x.codes();
        let number = |code: u32| match x.format() {
            Format::F32 => tf32(code),
            _ => table[code as usize],
        };
        let numbers: Vec<Number> = (0..x.shape().1).map(|k| number(codes.at(i, k))).collect();
        let finite = numbers.iter().all(|n| n.is_finite());
        NumberRow { numbers, finite }
    }

    /// Adds `exponent` to every element of `range`: a power of two as scale; `None`, a NaN scale, makes them NaN.
    pub(crate) fn scale(&mut self, range: Range<usize>, exponent: Option<i32>) {
        for number in &mut self.numbers[range] {
            match exponent {
                // 0 and ±∞ times a power of two stay what they are.
                Some(e) if number.is_finite() => number.exponent += e as i16,
                Some(_) => {}
                None => *number = Number::NAN,
            }
        }
        self.finite &= exponent.is_some();
    }
}

/// An F32 without the fraction bits that TF32 lacks: a NaN of those alone becomes an infinity.
fn tf32(code: u32) -> Number {
    let spec = Format::F32.spec();
    let fraction = TensorCore::mantissa_bits(Format::F32);
    let dropped = spec.mantissa_bits - fraction;
    let value = match spec.decode(u64::from(code >> dropped << dropped)) {
        Unpacked::Finite { negative, significand, exponent } => Unpacked::Finite {
            negative,
            significand: significand >> dropped,
            exponent: exponent + dropped as i32,
        },
        other => other,
    };
    Number::of(value, fraction)
}

/// Every code of a format of at most 16 bits, taken apart; none of F32.
pub(crate) fn table(format: Format) -> Vec<Number> {
    let spec = format.spec();
    if format == Format::F32 {
        return Vec::new();
    }
    (0..=spec.code_mask()).map(|code| Number::of(spec.decode(code), spec.mantissa_bits)).collect()
}

/// The sum c + Σ a·b over `range`, if it is not finite whatever the rounding: ±∞, or NaN from a NaN, ∞·0 or ∞ − ∞.
#[inline]
pub(crate) fn non_finite_sum(a: &NumberRow, b: &NumberRow, range: Range<usize>, c: f32) -> Option<f32> {
    if a.finite && b.finite && c.is_finite() {
        return None;
    }
    let products = a.numbers[range.clone()].iter().zip(&b.numbers[range]);
    // Finite products are at most 2^30 here, so they cannot overflow and only classes matter.
    let sum = products.fold(f64::from(c), |sum, (x, y)| sum + x.class() * y.class());
    (!sum.is_finite()).then_some(sum as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_codes_taken_apart() {
        let e4m3 = table(Format::E4M3);
        assert_eq!(e4m3[0x01], Number { significand: 1, exponent: -6 }); // 2^-9, subnormal
        assert_eq!(e4m3[0xB8], Number { significand: -8, exponent: 0 }); // −1
        assert_eq!(e4m3[0x80], Number { significand: 0, exponent: Number::ZERO_EXPONENT }); // −0
        assert_eq!(e4m3[0x7F], Number::NAN);
        assert_eq!(table(Format::E5M2)[0xFC].class(), f64::NEG_INFINITY);
        for format in [Format::E4M3, Format::E5M2, Format::E2M1, Format::F16, Format::Bf16, Format::E5M6] {
            let fraction = format.spec().mantissa_bits as i32;
            for (code, n) in table(format).into_iter().enumerate() {
                let value = format.decode_f32(code as u16);
                if n.is_finite() {
                    let back = f64::from(n.significand) * 2f64.powi(i32::from(n.exponent) - fraction);
                    assert_eq!(back, f64::from(value), "{format} {code:#x}");
                } else {
                    assert_eq!(n.class().to_string(), f64::from(value).to_string(), "{format} {code:#x}");
                }
            }
        }
    }
}
