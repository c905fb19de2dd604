//! From elements to what a granule decides.

use super::Plan;
use crate::matrix::MatRef;
use crate::quant::derive::{Payload, StoredScale};
use crate::quant::recipe::Recipe;
use crate::quant::stats::QuantStats;
use crate::scaled::Granule;
use crate::simd::{Convert, Lane};

/// All but the sign of an f32.
pub(super) const MAGNITUDE: u32 = 0x7FFF_FFFF;

/// What is known of a granule before its elements are cast.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decided {
    /// What elements are divided or multiplied by.
    pub(super) factor: f32,
    divides: bool,
    /// Whether registers may do it: elements and factor are finite, so that no payload is NaN.
    pub(super) plain: bool,
    /// Whether some payload lies beyond the largest code.
    pub(super) clips: bool,
}

impl Decided {
    /// Of a granule of which nothing special is to be said.
    #[inline(always)]
    pub(super) fn plain(plan: &Plan<'_>, factor: f32) -> Decided {
        Decided { factor, divides: plan.divides, plain: true, clips: false }
    }

    /// How elements become payloads.
    pub(super) fn payload(&self) -> Payload {
        if self.divides { Payload::Divide(self.factor) } else { Payload::Multiply(self.factor) }
    }
}

/// Decides over granule `index` of a row of them in `x`, from `peak`, the bits of its largest magnitude.
#[inline(always)]
pub(super) fn decide<T: Lane>(
    plan: &Plan<'_>,
    x: MatRef<'_, T>,
    (width, index): (usize, usize),
    peak: u32,
    stats: &mut QuantStats,
) -> (StoredScale, Decided) {
    let recipe = plan.recipe;
    let finite = peak <= T::LARGEST;
    // A maximum of bits cannot tell what NaN does to amax.
    let amax = if finite {
        f32::from_bits(peak)
    } else {
        let span = Granule::span(x.cols(), width, index);
        amax_of(recipe, x.col_range(span.start, span.end))
    };
    stats.granules += 1;
    stats.zero_granules += u64::from(peak == 0);
    stats.floored_granules += u64::from(amax > 0.0 && amax < recipe.amax.floor);
    stats.nonfinite_granules += u64::from(!finite);

    let scale = recipe.granule_scale(amax, plan.tensor);
    let (factor, divides) = match scale.payload {
        Payload::Divide(s) => (s, true),
        Payload::Multiply(m) => (m, false),
    };
    // Payloads grow with magnitudes, so the largest tells for all.
    let clips = scale.payload.of(amax).abs().to_bits() > plan.encoder.limit();
    let quotients = !divides || factor != 0.0;
    let plain = finite && divides == plan.divides && quotients && factor.is_finite();
    (scale.stored, Decided { factor, divides, plain, clips })
}

/// amax, NaN elements looked at.
#[cold]
#[inline(never)]
pub(super) fn amax_of<T: Lane>(recipe: &Recipe, elements: MatRef<'_, T>) -> f32 {
    recipe.amax(elements.iter_rows().flatten().map(|v| v.to_f32()))
}

/// The bits of the largest magnitude in each granule of `width` columns over all rows of `x`. `lanes` is scratch.
#[inline(always)]
pub(super) fn peaks<S: Convert, T: Lane>(
    s: S,
    x: MatRef<'_, T>,
    width: usize,
    lanes: &mut Vec<u32>,
    peaks: &mut Vec<u32>,
) {
    let magnitude = s.splat_u32(MAGNITUDE);
    let scalar = |v: &T| v.to_f32().to_bits() & MAGNITUDE;
    peaks.clear();
    lanes.clear();
    if width >= S::LANES {
        // One register of maxima a granule.
        lanes.resize(x.cols().div_ceil(width) * S::LANES, 0);
        for row in x.iter_rows() {
            for (part, lanes) in row.chunks(width).zip(lanes.chunks_exact_mut(S::LANES)) {
                let mut peak = s.load_u32(lanes);
                let registers = part.chunks_exact(S::LANES);
                let rest = registers.remainder();
                for v in registers {
                    peak = s.max(peak, s.and(s.bits(T::load(s, v)), magnitude));
                }
                s.store_u32(peak, lanes);
                if !rest.is_empty() {
                    lanes[0] = rest.iter().map(scalar).fold(lanes[0], u32::max);
                }
            }
        }
        peaks.resize(lanes.len() / S::LANES, 0);
        for (peak, lanes) in peaks.iter_mut().zip(lanes.chunks_exact(S::LANES)) {
            *peak = s.largest(s.load_u32(lanes));
        }
    } else {
        // One maximum a column.
        lanes.resize(x.cols(), 0);
        for row in x.iter_rows() {
            let (mut registers, mut columns) = (row.chunks_exact(S::LANES), lanes.chunks_exact_mut(S::LANES));
            for (v, peak) in registers.by_ref().zip(columns.by_ref()) {
                s.store_u32(s.max(s.load_u32(peak), s.and(s.bits(T::load(s, v)), magnitude)), peak);
            }
            let rest = registers.remainder().iter().map(scalar);
            columns.into_remainder().iter_mut().zip(rest).for_each(|(peak, v)| *peak = v.max(*peak));
        }
        if width == 1 {
            peaks.extend_from_slice(lanes);
        } else {
            peaks.extend(lanes.chunks(width).map(|part| part.iter().copied().fold(0, u32::max)));
        }
    }
}

/// A grid of scales that is being written.
pub(super) enum ScalesMut<'a> {
    F32(&'a mut [f32]),
    Bytes(&'a mut [u8]),
}

impl<'a> ScalesMut<'a> {
    /// Stores a scale.
    pub(super) fn set(&mut self, at: usize, scale: StoredScale) {
        match (self, scale) {
            (ScalesMut::F32(grid), StoredScale::F32(s)) => grid[at] = s,
            (ScalesMut::Bytes(grid), StoredScale::Byte(s)) => grid[at] = s,
            _ => unreachable!("the grid has the format of the recipe's scales"),
        }
    }

    /// Cuts the grid into parts of `len` scales.
    pub(super) fn chunks(self, len: usize) -> Vec<ScalesMut<'a>> {
        match self {
            ScalesMut::F32(grid) => grid.chunks_mut(len).map(ScalesMut::F32).collect(),
            ScalesMut::Bytes(grid) => grid.chunks_mut(len).map(ScalesMut::Bytes).collect(),
        }
    }
}
