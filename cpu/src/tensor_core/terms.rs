//! Sums of truncated terms: aligned at the largest exponent, in f32 or in f64.
//!
//! Exponents are fields of an f32, biased by 127. A unit is 2^(e_max − F).

use super::Core;
use crate::simd::Fused;

/// How the terms of a step are summed, in one register of lanes for each of the tile's.
pub(super) trait Terms: Copy {
    /// A packed value.
    type Value: bytemuck::Pod;
    /// `LANES` values.
    type Lanes<S: Fused>: Copy;
    /// What a step carries besides its sum.
    type Open<S: Fused>: Copy;

    /// An open step of no meaning, and a sum of zero: what registers hold before.
    fn nothing<S: Fused>(s: S) -> (Self::Open<S>, Self::Lanes<S>);
    /// `x` in every lane.
    fn splat<S: Fused>(s: S, x: Self::Value) -> Self::Lanes<S>;
    /// The first `LANES` values.
    fn load<S: Fused>(s: S, x: &[Self::Value]) -> Self::Lanes<S>;

    /// Begins a step: `largest` is the largest exponent of its products, 0 or less without products, `negative` the number
    /// of its negative products, `c` the accumulator, never −0; it takes part unless it is late. Products may lie below the
    /// exponents of f32 where they are `OFFSET`.
    fn open<S: Fused, const LATE: bool, const OFFSET: bool>(
        self,
        s: S,
        largest: S::U32,
        negative: S::U32,
        c: S::F32,
    ) -> (Self::Open<S>, Self::Lanes<S>);
    /// Adds the product of a and b, truncated.
    fn add<S: Fused>(
        s: S,
        open: Self::Open<S>,
        sum: Self::Lanes<S>,
        a: Self::Lanes<S>,
        b: Self::Lanes<S>,
    ) -> Self::Lanes<S>;
    /// Ends a step: the next accumulator. `negative` is the number of negative terms that `open` was not told of.
    fn close<S: Fused, const LATE: bool>(
        self,
        s: S,
        open: Self::Open<S>,
        negative: S::U32,
        sum: Self::Lanes<S>,
        c: S::F32,
    ) -> S::F32;
}

/// The field of an f32's exponent.
#[inline(always)]
fn exponent_field<S: Fused>(s: S, x: S::F32) -> S::U32 {
    s.and(s.shr(s.bits(x), 23), s.splat_u32(0xFF))
}

/// `count` and one more where c is negative.
#[inline(always)]
fn with_sign<S: Fused>(s: S, count: S::U32, c: S::F32) -> S::U32 {
    s.sub_u32(count, s.sar(s.bits(c), 31))
}

/// The bits of x that `mask` keeps; +0 for zero.
#[inline(always)]
fn masked<S: Fused>(s: S, x: S::F32, mask: u32) -> S::F32 {
    let kept = s.float(s.and(s.bits(x), s.splat_u32(mask)));
    s.add(kept, s.splat(0.0))
}

/// `a` where x ≥ bound, unsigned, else `b`.
#[inline(always)]
fn select<S: Fused>(s: S, x: S::U32, bound: u32, a: S::F32, b: S::F32) -> S::F32 {
    s.float(s.select_at_least(x, bound, s.bits(a), s.bits(b)))
}

/// The f32 field of the exponent of the smallest normal f16, and bits of the least f32 that is too large for one.
const HALF_EMIN: u32 = 113;
const HALF_BEYOND: u32 = (127 + 16) << 23;
/// Fraction bits of f16.
const HALF_BITS: u32 = 10;

/// The f32 nearest to x, a sum to be f16, that is one; ties to even, infinite from 65520 on, +0 for zero. Adding a number
/// whose last bit is that of the f16 rounds to it.
#[inline(always)]
fn half<S: Fused>(s: S, x: S::F32) -> S::F32 {
    let quantum = s.max_i32(exponent_field(s, x), s.splat_u32(HALF_EMIN));
    let large = s.add_u32(s.shl(quantum, 23), s.splat_u32((23 - HALF_BITS) << 23 | 1 << 22));
    let large = s.float(large);
    infinite_beyond_half(s, s.sub(s.add(x, large), large))
}

/// The same of a sum in f64 that has been cut to f32.
#[inline(always)]
fn half_of_wide<S: Fused>(s: S, sum: S::F64, cut: S::F32) -> S::F32 {
    let quantum = s.max_i32(exponent_field(s, cut), s.splat_u32(HALF_EMIN));
    let large = s.add_u32(s.shl(quantum, 20), s.splat_u32((1023 - 127 + 52 - HALF_BITS) << 20 | 1 << 19));
    let zero = s.splat_u32(0);
    let minus = s.join_halves(s.or(large, s.splat_u32(1 << 31)), zero);
    let rounded = s.sub_f64(s.sub_f64(sum, minus), s.join_halves(large, zero));
    infinite_beyond_half(s, s.narrow(rounded))
}

#[inline(always)]
fn infinite_beyond_half<S: Fused>(s: S, x: S::F32) -> S::F32 {
    let (bits, sign) = (s.bits(x), s.splat_u32(1 << 31));
    let infinite = s.or(s.and(bits, sign), s.splat_u32(0xFF << 23));
    s.float(s.select_at_least(s.shl(bits, 1), HALF_BEYOND << 1, infinite, bits))
}

/// The exponent of an accumulator in f16, given that of an f32: it is no less than that of the smallest normal number,
/// and zero has none above `floor`.
#[inline(always)]
fn addend_exponent_of_half<S: Fused>(s: S, field: S::U32, c: S::F32, floor: S::U32) -> S::U32 {
    let field = s.max_i32(field, s.splat_u32(HALF_EMIN));
    s.select_at_least(s.shl(s.bits(c), 1), 1, field, floor)
}

/// The late accumulator with a step's result.
#[inline(always)]
pub(super) fn with_late<S: Fused, const HALF: bool>(s: S, c: S::F32, result: S::F32) -> S::F32 {
    let sum = s.add(c, result);
    if !HALF {
        return sum;
    }
    // What is not finite stays so.
    select(s, exponent_field(s, sum), 0xFF, sum, half(s, sum))
}

/// In f32, for sums below 2^22 units.
///
/// Packed values are scaled by 2^−16 each, so that 1.5·2^23 units are a finite f32 at every exponent of c. Below the
/// exponent [`Narrow::LOWEST`] there are no products, and c is the result; so it is where c is not finite.
#[derive(Clone, Copy)]
pub(super) struct Narrow {
    pub(super) core: Core,
}

impl Narrow {
    /// Exponents of both operands' scaling.
    const SCALING: u32 = 32;
    /// Below the exponents of all products of FP8, as a field (127 − 28), and high enough for every field in use.
    const LOWEST: u32 = 64;
    /// Multiplies every packed value: the scaling, and what makes it a little larger in magnitude, 1 + 2^−23.
    pub(super) const FACTOR: f32 = (1.0 + f32::EPSILON) / (1u32 << (Narrow::SCALING / 2)) as f32;
}

/// See [`Narrow`].
#[derive(Clone, Copy)]
pub(super) struct NarrowOpen<S: Fused> {
    /// Biased: 1.5·2^23 units. Plain: 1 / unit. In both, e_max, no less than [`Narrow::LOWEST`].
    unit: S::F32,
}

impl Terms for Narrow {
    type Value = f32;
    type Lanes<S: Fused> = S::F32;
    type Open<S: Fused> = NarrowOpen<S>;

    #[inline(always)]
    fn nothing<S: Fused>(s: S) -> (NarrowOpen<S>, S::F32) {
        (NarrowOpen { unit: s.splat(0.0) }, s.splat(0.0))
    }

    #[inline(always)]
    fn splat<S: Fused>(s: S, x: f32) -> S::F32 {
        s.splat(x)
    }

    #[inline(always)]
    fn load<S: Fused>(s: S, x: &[f32]) -> S::F32 {
        s.load(x)
    }

    #[inline(always)]
    fn open<S: Fused, const LATE: bool, const OFFSET: bool>(
        self,
        s: S,
        largest: S::U32,
        negative: S::U32,
        c: S::F32,
    ) -> (NarrowOpen<S>, S::F32) {
        let f = self.core.fraction_bits;
        let lowest = s.splat_u32(Narrow::LOWEST);
        let e_max = if LATE { largest } else { s.max_i32(largest, exponent_field(s, c)) };
        let field = s.shl(s.max_i32(e_max, lowest), 23);
        let negative = if LATE { negative } else { with_sign(s, negative, c) };
        let (unit, sum);
        if S::BIASED {
            let start = s.add_u32(field, s.splat_u32(bias(f)));
            (unit, sum) = (s.float(start), s.float(s.add_u32(start, negative)));
        } else {
            (unit, sum) = (s.float(s.sub_u32(s.splat_u32(sum_with_reciprocal(f)), field)), s.splat(0.0));
        }
        let open = NarrowOpen { unit };
        if LATE {
            return (open, sum);
        }
        // What lies below F bits is truncated before c is made larger, by its last bit; a negative c is not zero then.
        let truncated = s.and(s.bits(c), s.splat_u32(u32::MAX << (23 - f)));
        let c = s.float(s.or(truncated, s.splat_u32(1)));
        let one = s.splat(1.0 / (1u64 << Narrow::SCALING) as f32);
        (open, s.add_truncated(sum, c, one, unit))
    }

    #[inline(always)]
    fn add<S: Fused>(s: S, open: NarrowOpen<S>, sum: S::F32, a: S::F32, b: S::F32) -> S::F32 {
        s.add_truncated(sum, a, b, open.unit)
    }

    #[inline(always)]
    fn close<S: Fused, const LATE: bool>(
        self,
        s: S,
        open: NarrowOpen<S>,
        _: S::U32,
        sum: S::F32,
        c: S::F32,
    ) -> S::F32 {
        let f = self.core.fraction_bits;
        let (field, value);
        if S::BIASED {
            field = s.sub_u32(s.bits(open.unit), s.splat_u32(bias(f)));
            value = s.mul(s.sub(sum, open.unit), s.splat((1u64 << Narrow::SCALING) as f32));
        } else {
            field = s.sub_u32(s.splat_u32(sum_with_reciprocal(f)), s.bits(open.unit));
            value = s.mul(sum, s.float(s.sub_u32(field, s.splat_u32(f << 23))));
        }
        let result = masked(s, value, self.core.result_mask);
        if LATE {
            return s.add(c, result);
        }
        // Without products, and where c is not finite: below LOWEST + 1, or 255.
        let above = s.sub_u32(field, s.splat_u32((Narrow::LOWEST + 1) << 23));
        let kept = masked(s, c, self.core.result_mask);
        select(s, above, (0xFF - Narrow::LOWEST - 1) << 23, kept, result)
    }
}

/// What makes the field of e_max, in place, 1.5·2^23 units of scaled products.
const fn bias(fraction_bits: u32) -> u32 {
    23u32.wrapping_sub(fraction_bits + Narrow::SCALING) << 23 | 1 << 22
}

/// The fields, in place, of e_max and of the factor from scaled products to units, together.
const fn sum_with_reciprocal(fraction_bits: u32) -> u32 {
    (2 * 127 + Narrow::SCALING + fraction_bits) << 23
}

/// In f64, for sums below 2^51 units; accumulators and results are f16 where they are `HALF`.
#[derive(Clone, Copy)]
pub(super) struct Wide<const HALF: bool> {
    pub(super) core: Core,
}

/// See [`Wide`].
#[derive(Clone, Copy)]
pub(super) struct WideOpen<S: Fused> {
    /// The upper half of 1.5·2^52 units, or of 1 / unit.
    high: S::U32,
    per_unit: S::F64,
    /// The exponent of c.
    addend: S::U32,
}

/// The lower half of a sum that holds nothing yet, so that counts can be taken from it.
const LOW: u32 = 1 << 16;
/// Makes every packed value a little larger in magnitude, 1 + 2^−50.
const UP: f64 = 1.0 + 4.0 * f64::EPSILON;
/// The lower half of it, and of all its products with powers of two.
pub(super) const UP_LOW: u32 = 4;

impl<const HALF: bool> Terms for Wide<HALF> {
    type Value = f64;
    type Lanes<S: Fused> = S::F64;
    type Open<S: Fused> = WideOpen<S>;

    #[inline(always)]
    fn nothing<S: Fused>(s: S) -> (WideOpen<S>, S::F64) {
        let (none, zero) = (s.splat_u32(0), s.splat_f64(0.0));
        (WideOpen { high: none, per_unit: zero, addend: none }, zero)
    }

    #[inline(always)]
    fn splat<S: Fused>(s: S, x: f64) -> S::F64 {
        s.splat_f64(x)
    }

    #[inline(always)]
    fn load<S: Fused>(s: S, x: &[f64]) -> S::F64 {
        s.load_f64(x)
    }

    #[inline(always)]
    fn open<S: Fused, const LATE: bool, const OFFSET: bool>(
        self,
        s: S,
        largest: S::U32,
        negative: S::U32,
        c: S::F32,
    ) -> (WideOpen<S>, S::F64) {
        let f = self.core.fraction_bits;
        let addend = exponent_field(s, c);
        let mut e_max = largest;
        if OFFSET || HALF {
            // The exponent of zero: products may lie below it.
            e_max = s.max_i32(e_max, s.splat_u32(self.core.zero.cast_unsigned()));
        }
        if !LATE {
            let normal = s.max_i32(addend, s.splat_u32(1));
            let e = if OFFSET { s.select_at_least(s.shl(s.bits(c), 1), 1, normal, e_max) } else { normal };
            e_max = s.max_i32(e_max, if HALF { addend_exponent_of_half(s, e, c, e_max) } else { e });
        }
        let field = s.shl(e_max, 20);
        let (zero, low) = (s.splat_u32(0), s.splat_u32(LOW));
        let (high, per_unit, sum);
        if S::BIASED {
            let half = 1 << 19;
            high = s.add_u32(field, s.splat_u32((1023 - 127 + 52 - f) << 20 | half));
            per_unit = s.splat_f64(0.0);
            let negative = if LATE { negative } else { with_sign(s, negative, c) };
            sum = s.join_halves(high, s.add_u32(low, negative));
        } else {
            high = s.sub_u32(s.splat_u32((1023 + 127 + f) << 20), field);
            per_unit = s.join_halves(high, zero);
            sum = s.splat_f64(0.0);
        }
        let open = WideOpen { high, per_unit, addend };
        if LATE {
            return (open, sum);
        }
        let one = s.splat_f64(UP);
        (open, s.add_truncated_f64(sum, s.widen(c), one, per_unit))
    }

    #[inline(always)]
    fn add<S: Fused>(s: S, open: WideOpen<S>, sum: S::F64, a: S::F64, b: S::F64) -> S::F64 {
        s.add_truncated_f64(sum, a, b, open.per_unit)
    }

    #[inline(always)]
    fn close<S: Fused, const LATE: bool>(
        self,
        s: S,
        open: WideOpen<S>,
        negative: S::U32,
        sum: S::F64,
        c: S::F32,
    ) -> S::F32 {
        let sum = if S::BIASED {
            s.sub_f64(sum, s.join_halves(open.high, s.sub_u32(s.splat_u32(LOW), negative)))
        } else {
            let unit = s.sub_u32(s.splat_u32(2046 << 20), open.high);
            s.mul_f64(sum, s.join_halves(unit, s.splat_u32(0)))
        };
        let cut = s.narrow(sum);
        let result = if HALF { half_of_wide(s, sum, cut) } else { masked(s, cut, self.core.result_mask) };
        if LATE {
            return with_late::<S, HALF>(s, c, result);
        }
        select(s, open.addend, 0xFF, c, result)
    }
}
