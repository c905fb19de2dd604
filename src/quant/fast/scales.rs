//! The scales of many granules at once: [`Recipe::granule_scale`] in registers, where amax is ordinary.
//!
//! Recipes differ in their quotients and products, but mostly in what zero, infinity, NaN and amounts near the ends of
//! f32 give. Between [`ORDINARY`]'s bounds nothing of that happens. What is outside is left to the definition.

use super::Plan;
use super::granules::{Decided, MAGNITUDE, MAX_LANES, ScalesMut, decide};
use crate::matrix::MatRef;
use crate::quant::recipe::{MultiplierForm, PayloadForm, PowerOfTwo, ScaleForm, Scaling};
use crate::quant::stats::QuantStats;
use crate::simd::{Convert, Lane, Work};

/// 2^−60 and 2^60: amounts whose scales, factors and payloads are normal numbers.
const ORDINARY: [f32; 2] = [f32::from_bits(67 << 23), f32::from_bits(187 << 23)];
const EXPONENT: u32 = 0x7F80_0000;
const FRACTION: u32 = 0x007F_FFFF;
/// Fractions from here on are not absorbed when a logarithm is rounded to f32: for exponents up to 127 those are less
/// than 2^−18 · ln 2, some 22 steps.
const NOT_ABSORBED: u32 = 32;

/// Decides over the granules of `width` columns of one row of them in `x`, from the bits of their largest magnitudes,
/// and stores the scales from `at` on.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) fn decide_row<S: Convert, T: Lane>(
    s: S,
    plan: &Plan<'_>,
    x: MatRef<'_, T>,
    width: usize,
    peaks: &[u32],
    scales: &mut ScalesMut<'_>,
    at: usize,
    decided: &mut Vec<Decided>,
    stats: &mut QuantStats,
) {
    decided.clear();
    for (i, peaks) in peaks.chunks(S::LANES).enumerate() {
        let (first, count) = (i * S::LANES, peaks.len());
        let mut found = None;
        if matches!(scales, ScalesMut::F32(_)) {
            let mut amax = [peaks[0]; MAX_LANES];
            amax[..count].copy_from_slice(peaks);
            found = s.vectorize(Ordinary { plan, amax: &amax, largest: T::LARGEST });
        }
        if let (ScalesMut::F32(grid), Some([stored, factors, inverses])) = (&mut *scales, found) {
            match grid[at + first..].first_chunk_mut() {
                Some(grid) if count == MAX_LANES => *grid = stored,
                _ => grid[at + first..at + first + count].copy_from_slice(&stored[..count]),
            }
            let factors = factors.iter().zip(&inverses).take(count);
            decided.extend(factors.map(|(&factor, &inverse)| Decided::plain(plan, factor, inverse)));
            stats.granules += count as u64;
            continue;
        }
        for (g, &peak) in peaks.iter().enumerate() {
            let (scale, one) = decide(plan, x, (width, first + g), peak, stats);
            scales.set(at + first + g, scale);
            decided.push(one);
        }
    }
}

/// Scales, factors and their inverses of a register of amax by its bits; `None` where this takes the definition, or where a
/// payload lies beyond the largest code.
struct Ordinary<'a> {
    plan: &'a Plan<'a>,
    amax: &'a [u32; MAX_LANES],
    /// The bits of the largest finite element.
    largest: u32,
}

impl Work for Ordinary<'_> {
    type Output = Option<[[f32; MAX_LANES]; 3]>;

    #[inline(always)]
    fn run<S: Convert>(self, s: S) -> Self::Output {
        let (scale, factor) = ordinary(s, self.plan, s.load_u32(self.amax), self.largest)?;
        let mut found = [[0.0; MAX_LANES]; 3];
        s.store(scale, &mut found[0]);
        s.store(factor, &mut found[1]);
        s.store(s.div(s.splat(1.0), factor), &mut found[2]);
        Some(found)
    }
}

#[inline(always)]
fn ordinary<S: Convert>(s: S, plan: &Plan<'_>, amax: S::U32, largest: u32) -> Option<(S::F32, S::F32)> {
    let recipe = plan.recipe;
    // Infinities of narrow floats are loaded as numbers beyond the largest.
    let low = s.splat_u32(ORDINARY[0].max(recipe.amax.floor).to_bits());
    let high = s.splat_u32(ORDINARY[1].to_bits().min(largest));
    if s.count_above(low, amax) + s.count_above(amax, high) > 0 {
        return None;
    }
    let (a, max, one) = (s.float(amax), s.splat(recipe.max()), s.splat(1.0));
    let exponent = s.splat_u32(EXPONENT);
    let (scale, factor) = match recipe.scaling {
        Scaling::Scale { form, power_of_two, payload, .. } => {
            let exact = match form {
                ScaleForm::Quotient => s.div(a, max),
                ScaleForm::Reciprocal => s.mul(a, s.splat(1.0 / recipe.max())),
            };
            let fraction = s.and(s.bits(exact), s.splat_u32(FRACTION));
            let scale = match power_of_two {
                PowerOfTwo::No => exact,
                PowerOfTwo::CeilLog2F32 if s.count_above(s.splat_u32(NOT_ABSORBED), fraction) > 0 => {
                    return None;
                }
                _ => s.float(s.and(s.add_u32(s.bits(exact), s.splat_u32(FRACTION)), exponent)),
            };
            let factor = match payload {
                PayloadForm::Quotient => scale,
                PayloadForm::Inverse => s.div(one, scale),
                PayloadForm::MaxOverAmax => s.div(max, a),
                PayloadForm::MaxTimesReciprocal => s.mul(s.div(one, a), max),
                PayloadForm::NegatedExponent => {
                    s.float(s.sub_u32(s.splat_u32(254 << 23), s.and(s.bits(scale), exponent)))
                }
            };
            (scale, factor)
        }
        Scaling::Multiplier { form, power_of_two, .. } => {
            let quotient = match form {
                MultiplierForm::Quotient => s.div(max, a),
                MultiplierForm::Reciprocal => s.mul(s.div(one, a), max),
                MultiplierForm::Reciprocal64 => return None,
            };
            let m = if power_of_two { s.float(s.and(s.bits(quotient), exponent)) } else { quotient };
            (s.div(one, m), m)
        }
        Scaling::Mx(_) | Scaling::Nvfp4(_) => return None,
    };
    let payload = if plan.divides { s.div(a, factor) } else { s.mul(a, factor) };
    let beyond = s.and(s.bits(payload), s.splat_u32(MAGNITUDE));
    (s.count_above(beyond, s.splat_u32(plan.encoder.limit())) == 0).then_some((scale, factor))
}
