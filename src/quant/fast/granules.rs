//! From elements to what a granule decides.

use super::Plan;
use crate::matrix::MatRef;
use crate::quant::derive::{Payload, StoredScale};
use crate::quant::recipe::Recipe;
use crate::quant::stats::QuantStats;
use crate::scaled::Granule;
use crate::simd::{Convert, DIVISORS, Lane, Work};

/// The most lanes of a register.
pub(super) const MAX_LANES: usize = 16;
/// All but the sign of an f32.
pub(super) const MAGNITUDE: u32 = 0x7FFF_FFFF;

/// What is known of a granule before its elements are cast.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decided {
    /// What elements are divided or multiplied by.
    pub(super) factor: f32,
    /// fl(1 / factor) where they are divided.
    pub(super) inverse: f32,
    divides: bool,
    /// Whether registers may do it: elements and factor are finite, so that no payload is NaN.
    pub(super) plain: bool,
    /// Whether it takes the general loop: some payload lies beyond the largest code, or the factor is a divisor near the
    /// ends of f32.
    pub(super) general: bool,
}

impl Decided {
    /// Of a granule of which nothing special is to be said.
    pub(super) fn plain(plan: &Plan<'_>, factor: f32, inverse: f32) -> Decided {
        Decided { factor, inverse, divides: plan.divides, plain: true, general: false }
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
    let general = clips || divides && !(DIVISORS[0]..=DIVISORS[1]).contains(&factor);
    let quotients = !divides || factor != 0.0;
    let plain = finite && divides == plan.divides && quotients && factor.is_finite();
    (scale.stored, Decided { factor, inverse: 1.0 / factor, divides, plain, general })
}

/// amax, NaN elements looked at.
#[cold]
#[inline(never)]
pub(super) fn amax_of<T: Lane>(recipe: &Recipe, elements: MatRef<'_, T>) -> f32 {
    recipe.amax(elements.iter_rows().flatten().map(|v| v.to_f32()))
}

/// Finds the bits of the largest magnitude in each granule of `width` columns over all rows of `x`.
pub(super) struct Peaks<'a, 'b, T> {
    pub(super) x: MatRef<'a, T>,
    pub(super) width: usize,
    /// Scratch.
    pub(super) lanes: &'b mut Vec<u32>,
    pub(super) peaks: &'b mut Vec<u32>,
}

impl<T: Lane> Work for Peaks<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Convert>(self, s: S) {
        let Peaks { x, width, lanes, peaks } = self;
        peaks.clear();
        lanes.clear();
        if width < S::LANES {
            // One maximum a column.
            lanes.resize(x.cols(), 0);
            for row in x.iter_rows() {
                let (mut registers, mut columns) =
                    (row.chunks_exact(S::LANES), lanes.chunks_exact_mut(S::LANES));
                for (v, peak) in registers.by_ref().zip(columns.by_ref()) {
                    let larger = raise(s, v, s.load_u32(peak));
                    s.store_u32(larger, peak);
                }
                let rest = registers.remainder().iter().map(|&v| magnitude(v));
                columns.into_remainder().iter_mut().zip(rest).for_each(|(peak, v)| *peak = v.max(*peak));
            }
            peaks.extend(lanes.chunks(width).map(|part| part.iter().copied().fold(0, u32::max)));
            return;
        }
        peaks.resize(x.cols().div_ceil(width), 0);
        if x.rows() == 1 {
            let mut parts = x.row(0).chunks(width);
            for peaks in peaks.chunks_mut(S::LANES) {
                let mut maxima = [s.splat_u32(0); MAX_LANES];
                for (part, maximum) in parts.by_ref().take(S::LANES).zip(&mut maxima) {
                    *maximum = raise(s, part, *maximum);
                }
                let maxima = s.largest_of_each(&maxima);
                if peaks.len() == S::LANES {
                    s.store_u32(maxima, peaks);
                } else {
                    let mut found = [0; MAX_LANES];
                    s.store_u32(maxima, &mut found);
                    peaks.copy_from_slice(&found[..peaks.len()]);
                }
            }
            return;
        }
        // One register of maxima a granule.
        lanes.resize(peaks.len() * S::LANES, 0);
        for row in x.iter_rows() {
            for (part, lanes) in row.chunks(width).zip(lanes.chunks_exact_mut(S::LANES)) {
                let larger = raise(s, part, s.load_u32(lanes));
                s.store_u32(larger, lanes);
            }
        }
        for (peak, lanes) in peaks.iter_mut().zip(lanes.chunks_exact(S::LANES)) {
            *peak = s.largest(s.load_u32(lanes));
        }
    }
}

/// The larger of `peak` and the magnitudes of `x`.
#[inline(always)]
fn raise<S: Convert, T: Lane>(s: S, x: &[T], mut peak: S::U32) -> S::U32 {
    let mask = s.splat_u32(MAGNITUDE);
    if x.len() == 8 * S::LANES {
        // Most often on AVX-512, without the loop's questions.
        for i in 0..8 {
            peak = s.max(peak, s.and(s.bits(T::load(s, &x[i * S::LANES..])), mask));
        }
        return peak;
    }
    let registers = x.chunks_exact(S::LANES);
    let rest = registers.remainder();
    for v in registers {
        peak = s.max(peak, s.and(s.bits(T::load(s, v)), mask));
    }
    if rest.is_empty() {
        return peak;
    }
    s.max(peak, s.splat_u32(rest.iter().map(|&v| magnitude(v)).fold(0, u32::max)))
}

fn magnitude<T: Lane>(v: T) -> u32 {
    v.to_f32().to_bits() & MAGNITUDE
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
