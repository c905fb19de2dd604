//! The exact sum of an interval, in fixed point, rounded once to f32.

use std::ops::Range;

use rayon::prelude::*;

use super::operand::{self, NumberRow};
use super::reference::Chain;
use crate::formats::{Format, Overflow, Rounding, Unpacked};
use crate::scaled::ScaledRef;

/// A fixed-point number of 18 limbs of 32 bits: Σ limb[i] · 2^(32 i + LOWEST).
///
/// It holds any sum of fewer than 2^40 products of two numbers of any formats of at most 16 bits: the smallest product
/// is BF16's 2^-133 · 2^-133, the largest below 2^256, so 266 + 256 + 40 bits and a sign are enough. Limbs are signed
/// and wider than they need be, so that adding does not carry; [`Wide::carry`] does, at least once in 2^30 additions.
struct Wide {
    limbs: [i64; Wide::LIMBS],
}

impl Wide {
    const LIMBS: usize = 18;
    const LIMB_BITS: u32 = 32;
    const LIMB_MASK: i64 = (1 << Wide::LIMB_BITS) - 1;
    /// Exponent of the lowest bit: BF16's smallest subnormal, squared.
    const LOWEST: i32 = 2 * Format::Bf16.spec().quantum_floor();
    /// Each addition puts less than 2^32 into a limb.
    const ADDITIONS_BETWEEN_CARRIES: usize = 1 << 30;

    const ZERO: Wide = Wide { limbs: [0; Wide::LIMBS] };

    /// Adds significand · 2^exponent; |significand| < 2^31.
    #[inline]
    fn add(&mut self, significand: i64, exponent: i32) {
        if significand == 0 {
            return;
        }
        let place = (exponent - Wide::LOWEST) as u32;
        let limb = (place / Wide::LIMB_BITS) as usize;
        let shifted = significand << (place % Wide::LIMB_BITS);
        self.limbs[limb] += shifted & Wide::LIMB_MASK;
        self.limbs[limb + 1] += shifted >> Wide::LIMB_BITS;
    }

    /// Brings every limb but the highest, which has the sign, into 0 … 2^32 − 1.
    fn carry(&mut self) {
        for i in 0..Wide::LIMBS - 1 {
            self.limbs[i + 1] += self.limbs[i] >> Wide::LIMB_BITS;
            self.limbs[i] &= Wide::LIMB_MASK;
        }
    }

    /// The nearest f32, ties to even; an exact zero is +0.
    fn round(mut self) -> f32 {
        self.carry();
        let negative = self.limbs[Wide::LIMBS - 1] < 0;
        if negative {
            self.limbs.iter_mut().for_each(|l| *l = -*l);
            self.carry();
        }
        let Some(top) = self.limbs.iter().rposition(|&l| l != 0) else {
            return 0.0;
        };
        // The three highest limbs hold at least 65 bits: 64 for the significand, the others and all below are sticky.
        let limb = |back: usize| top.checked_sub(back).map_or(0, |i| self.limbs[i] as u128);
        let high = limb(0) << 64 | limb(1) << 32 | limb(2);
        let shift = 64 - high.leading_zeros();
        let lost =
            high & ((1 << shift) - 1) != 0 || self.limbs[..top.saturating_sub(2)].iter().any(|&l| l != 0);
        let significand = (high >> shift) as u64 | u64::from(lost);
        let exponent = Wide::LOWEST + (top as i32 - 2) * Wide::LIMB_BITS as i32 + shift as i32;
        let value = Unpacked::Finite { negative, significand, exponent };
        Format::F32.spec().round(value, Rounding::NearestEven, Overflow::NonSaturating).value.to_f32()
    }
}

/// The exact sum over one promotion interval, with its addend.
pub(super) struct ExactChain {
    /// Fraction bits of a product.
    fraction: i32,
}

impl ExactChain {
    pub(super) fn new(a: &ScaledRef<'_>, b: &ScaledRef<'_>) -> Self {
        ExactChain { fraction: [a, b].iter().map(|x| x.format().spec().mantissa_bits as i32).sum() }
    }
}

impl Chain for ExactChain {
    type Row = NumberRow;

    const NAN: f32 = super::reference::NAN;

    fn rows(&self, x: &ScaledRef<'_>) -> Vec<NumberRow> {
        let table = operand::table(x.format());
        (0..x.shape().0).into_par_iter().map(|i| NumberRow::new(x, i, &table)).collect()
    }

    fn sum(&self, a: &NumberRow, b: &NumberRow, range: Range<usize>, c: f32) -> f32 {
        sum(a, b, range, c, self.fraction)
    }
}

/// c + Σ a·b over `range`, exact and then rounded to f32, to nearest even; products have `fraction` fraction bits.
pub(super) fn sum(a: &NumberRow, b: &NumberRow, range: Range<usize>, c: f32, fraction: i32) -> f32 {
    if let Some(sum) = operand::non_finite_sum(a, b, range.clone(), c) {
        return sum;
    }
    if range.is_empty() {
        return c;
    }
    let mut sum = Wide::ZERO;
    if let Unpacked::Finite { negative, significand, exponent } = Unpacked::from_f32(c) {
        sum.add(if negative { -(significand as i64) } else { significand as i64 }, exponent);
    }
    for start in range.clone().step_by(Wide::ADDITIONS_BETWEEN_CARRIES) {
        let part = start..range.end.min(start.saturating_add(Wide::ADDITIONS_BETWEEN_CARRIES));
        for (x, y) in a.numbers[part.clone()].iter().zip(&b.numbers[part]) {
            let significand = i32::from(x.significand) * i32::from(y.significand);
            let exponent = i32::from(x.exponent) + i32::from(y.exponent);
            sum.add(i64::from(significand), exponent - fraction);
        }
        sum.carry();
    }
    sum.round()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(terms: &[(i64, i32)]) -> f32 {
        let mut wide = Wide::ZERO;
        terms.iter().for_each(|&(s, e)| wide.add(s, e));
        wide.round()
    }

    #[test]
    fn every_binade_survives() {
        for e in Wide::LOWEST..=255 {
            let expected = 2f64.powi(e) as f32;
            assert_eq!(sum(&[(1, e)]), expected, "2^{e}");
            assert_eq!(sum(&[(-3, e)]), (-3.0 * 2f64.powi(e)) as f32, "-3·2^{e}");
        }
    }

    #[test]
    fn one_bit_far_below_breaks_a_tie() {
        let tie = [(1, 24), (1, 0)]; // halfway between 2^24 and 2^24 + 2
        assert_eq!(sum(&tie), 16_777_216.0);
        for tiny in Wide::LOWEST..0 {
            assert_eq!(sum(&[tie[0], tie[1], (1, tiny)]), 16_777_218.0, "2^{tiny}");
            assert_eq!(sum(&[tie[0], tie[1], (-1, tiny)]), 16_777_216.0, "-2^{tiny}");
        }
    }

    #[test]
    fn cancellation_is_exact_and_zero_is_positive() {
        assert_eq!(sum(&[(65_535, 240), (1, -266), (-65_535, 240)]), 0.0); // 2^-266 rounds to zero
        assert_eq!(sum(&[(65_535, 240), (1, -140), (-65_535, 240)]), f32::from_bits(1 << 9)); // 2^-140
        assert_eq!(sum(&[(-5, 7), (5, 7)]).to_bits(), 0);
        assert_eq!(sum(&[(-1, -266)]).to_bits(), f32::to_bits(-0.0));
        assert_eq!(sum(&[(1, 128)]), f32::INFINITY);
    }
}
