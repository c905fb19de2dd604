//! The scales of many granules at once, where amax is ordinary.
//!
//! Recipes differ in their quotients and products, but mostly in what zero, infinity, NaN and amounts near the ends of
//! f32 give. Between [`ORDINARY`]'s bounds nothing of that happens. What is outside is left to the definition.

use super::MAX_LANES;
use super::code_word::MAGNITUDE;
use crate::simd::{Convert, Isa, Work};

/// 2^−60 and 2^60: amounts whose scales, factors and payloads are normal numbers.
const ORDINARY: [f32; 2] = [f32::from_bits(67 << 23), f32::from_bits(187 << 23)];
const EXPONENT: u32 = 0x7F80_0000;
const FRACTION: u32 = 0x007F_FFFF;
/// Fractions from here on are not absorbed when a logarithm is rounded to f32: for exponents up to 127 those are less
/// than 2^−18 · ln 2, some 22 steps.
const NOT_ABSORBED: u32 = 32;

/// How scale and factor follow from amax a, where it is ordinary. MAX is the largest finite element, fl() one f32
/// rounding.
#[derive(Clone, Copy, Debug)]
pub struct ScaleRule {
    /// MAX.
    pub max: f32,
    /// An amax up to this is not ordinary.
    pub floor: f32,
    /// Bits of the largest amax of a granule whose elements are finite.
    pub largest: u32,
    /// Bits of the largest magnitude of a payload that is not saturated.
    pub limit: u32,
    /// Whether elements are divided by the factor; else they are multiplied.
    pub divides: bool,
    /// The arithmetic.
    pub arithmetic: Arithmetic,
}

/// The arithmetic of a [`ScaleRule`].
#[derive(Clone, Copy, Debug)]
pub enum Arithmetic {
    /// The scale s is computed, the factor from s or a.
    Scale {
        /// s before it becomes a power of two.
        quotient: ScaleQuotient,
        /// How it becomes one.
        power_of_two: PowerOfTwo,
        /// The factor.
        factor: FactorForm,
    },
    /// The factor m is computed; s = fl(1/m).
    Multiplier {
        /// m before it becomes a power of two.
        quotient: MultiplierQuotient,
        /// Whether its fraction bits are cleared.
        power_of_two: bool,
    },
}

/// s from a.
#[derive(Clone, Copy, Debug)]
pub enum ScaleQuotient {
    /// fl(a / MAX).
    OverMax,
    /// fl(a · fl(1/MAX)).
    TimesReciprocal,
}

/// How a scale becomes a power of two.
#[derive(Clone, Copy, Debug)]
pub enum PowerOfTwo {
    /// It does not.
    No,
    /// It is rounded up.
    Up,
    /// It is rounded up; where it is so little above a power of two that the rounding of a logarithm may absorb that, the
    /// definition decides.
    UpFromLogarithm,
}

/// The factor from s and a.
#[derive(Clone, Copy, Debug)]
pub enum FactorForm {
    /// s.
    Scale,
    /// fl(1/s).
    Inverse,
    /// fl(MAX / a).
    MaxOverAmax,
    /// fl(fl(1/a) · MAX).
    MaxTimesReciprocal,
    /// 2^−e for s = 2^e.
    NegatedExponent,
}

/// m from a.
#[derive(Clone, Copy, Debug)]
pub enum MultiplierQuotient {
    /// fl(MAX / a).
    MaxOverAmax,
    /// fl(fl(1/a) · MAX).
    MaxTimesReciprocal,
}

/// What granules decide: scales, the factors of their elements, and fl(1 / factor).
#[derive(Debug)]
pub struct ScalesOut<'a> {
    /// The scales that dequantise.
    pub scales: &'a mut [f32],
    /// What elements are divided or multiplied by.
    pub factors: &'a mut [f32],
    /// fl(1 / factor).
    pub inverses: &'a mut [f32],
}

/// Scales and factors of granules by the bits of their `amax`, and how many they are: the first is followed by one of at
/// most [`MAX_LANES`] that the definition must decide, or where a payload is saturated.
pub fn ordinary_scales(isa: Isa, rule: &ScaleRule, amax: &[u32], out: &mut ScalesOut<'_>) -> usize {
    isa.run_without_vbmi(Ordinary { rule, amax, out })
}

struct Ordinary<'a, 'b> {
    rule: &'a ScaleRule,
    amax: &'a [u32],
    out: &'a mut ScalesOut<'b>,
}

impl Work for Ordinary<'_, '_> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Convert>(self, s: S) -> usize {
        let Ordinary { rule, amax, out: ScalesOut { scales, factors, inverses } } = self;
        let count = amax.len();
        for at in (0..count).step_by(S::LANES) {
            let end = (at + S::LANES).min(count);
            let whole = end - at == S::LANES;
            let register = if whole {
                s.load_u32(&amax[at..])
            } else {
                let mut padded = [amax[at]; MAX_LANES];
                padded[..end - at].copy_from_slice(&amax[at..end]);
                s.load_u32(&padded)
            };
            let Some((scale, factor)) = ordinary(s, rule, register) else { return at };
            let inverse = s.div(s.splat(1.0), factor);
            if whole {
                s.store(scale, &mut scales[at..end]);
                s.store(factor, &mut factors[at..end]);
                s.store(inverse, &mut inverses[at..end]);
            } else {
                for (register, out) in
                    [(scale, &mut *scales), (factor, &mut *factors), (inverse, &mut *inverses)]
                {
                    let mut last = [0.0; MAX_LANES];
                    s.store(register, &mut last);
                    out[at..end].copy_from_slice(&last[..end - at]);
                }
            }
        }
        count
    }
}

/// A register of scales and factors; `None` where some lane takes the definition.
#[inline(always)]
fn ordinary<S: Convert>(s: S, rule: &ScaleRule, amax: S::U32) -> Option<(S::F32, S::F32)> {
    // Infinities of narrow floats are loaded as numbers beyond the largest.
    let low = s.splat_u32(ORDINARY[0].max(rule.floor).to_bits());
    let high = s.splat_u32(ORDINARY[1].to_bits().min(rule.largest));
    if s.count_above(low, amax) + s.count_above(amax, high) > 0 {
        return None;
    }
    let (a, max, one) = (s.float(amax), s.splat(rule.max), s.splat(1.0));
    let exponent = s.splat_u32(EXPONENT);
    let (scale, factor) = match rule.arithmetic {
        Arithmetic::Scale { quotient, power_of_two, factor } => {
            let exact = match quotient {
                ScaleQuotient::OverMax => s.div(a, max),
                ScaleQuotient::TimesReciprocal => s.mul(a, s.splat(1.0 / rule.max)),
            };
            let fraction = s.and(s.bits(exact), s.splat_u32(FRACTION));
            let scale = match power_of_two {
                PowerOfTwo::No => exact,
                PowerOfTwo::UpFromLogarithm if s.count_above(s.splat_u32(NOT_ABSORBED), fraction) > 0 => {
                    return None;
                }
                PowerOfTwo::Up | PowerOfTwo::UpFromLogarithm => {
                    s.float(s.and(s.add_u32(s.bits(exact), s.splat_u32(FRACTION)), exponent))
                }
            };
            let factor = match factor {
                FactorForm::Scale => scale,
                FactorForm::Inverse => s.div(one, scale),
                FactorForm::MaxOverAmax => s.div(max, a),
                FactorForm::MaxTimesReciprocal => s.mul(s.div(one, a), max),
                FactorForm::NegatedExponent => {
                    s.float(s.sub_u32(s.splat_u32(254 << 23), s.and(s.bits(scale), exponent)))
                }
            };
            (scale, factor)
        }
        Arithmetic::Multiplier { quotient, power_of_two } => {
            let quotient = match quotient {
                MultiplierQuotient::MaxOverAmax => s.div(max, a),
                MultiplierQuotient::MaxTimesReciprocal => s.mul(s.div(one, a), max),
            };
            let m = if power_of_two { s.float(s.and(s.bits(quotient), exponent)) } else { quotient };
            (s.div(one, m), m)
        }
    };
    let payload = if rule.divides { s.div(a, factor) } else { s.mul(a, factor) };
    let beyond = s.and(s.bits(payload), s.splat_u32(MAGNITUDE));
    (s.count_above(beyond, s.splat_u32(rule.limit)) == 0).then_some((scale, factor))
}
