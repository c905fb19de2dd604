//! Four registers of elements become codes, and what happens to them is counted.

use super::Plan;
use super::code::CodeWord;
use super::granules::{Decided, MAGNITUDE};
use crate::quant::reference::count;
use crate::quant::stats::QuantStats;
use crate::simd::{Convert, EncoderOn, Lane, Nearest};

/// Below this TileKernels' rounding to E5M6 is not nearest even.
const TILE_KERNELS_NORMAL: f32 = 1.0 / 16384.0;

/// What a register of elements is divided or multiplied by.
#[derive(Clone, Copy)]
pub(super) struct Factor<S: Convert> {
    pub(super) value: S::F32,
    /// fl(1 / value) where they are divided.
    pub(super) inverse: S::F32,
}

/// How four registers of codes are joined.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Join {
    /// They follow each other in a row.
    Row,
    /// They are of four rows: those of a lane follow each other.
    Lanes,
}

/// How many of the elements `x` became zero without being it, by their joined codes.
#[inline(always)]
pub(super) fn flushed<S: Convert, C: CodeWord>(
    s: S,
    encoder: &EncoderOn<S>,
    x: [S::F32; 4],
    joined: [S::U32; 2],
) -> u64 {
    let zeros = C::zeros(s, encoder, joined);
    if zeros == 0 {
        return 0;
    }
    let mut nonzero = 0;
    for v in x {
        nonzero += s.count_above(s.and(s.bits(v), s.splat_u32(MAGNITUDE)), s.splat_u32(0));
    }
    u64::from(zeros + nonzero - 4 * S::LANES as u32)
}

impl Plan<'_> {
    /// Whether casts are plain where none clips: nothing is beyond the largest code and there is no rule but the rounding.
    pub(super) fn is_plain(&self) -> bool {
        self.encoder.is_plain() && !self.positive_zero && !self.tile_kernels
    }

    /// The codes of `x` over or times `factors` by all rules; `None` if this takes the reference. Saturation is counted
    /// where `general` says that there may be some.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    pub(super) fn cast<S: Convert, C: CodeWord>(
        &self,
        s: S,
        encoder: &EncoderOn<S>,
        x: [S::F32; 4],
        factors: [S::F32; 4],
        join: Join,
        general: bool,
        stats: &mut QuantStats,
    ) -> Option<[S::U32; 2]> {
        // Loops, not closures over arrays: those would not be compiled for the instruction set.
        let mut payloads = x;
        for i in 0..4 {
            payloads[i] = if self.divides { s.div(x[i], factors[i]) } else { s.mul(x[i], factors[i]) };
            if self.positive_zero {
                payloads[i] = s.add(payloads[i], s.splat(0.0));
            }
        }
        if general || self.tile_kernels {
            let (mask, limit) = (s.splat_u32(MAGNITUDE), s.splat_u32(self.encoder.limit()));
            let mut beyond = 0;
            for payload in payloads {
                beyond += s.count_above(s.and(s.bits(payload), mask), limit);
            }
            if self.tile_kernels && (beyond > 0 || self.has_subnormals(s, payloads)) {
                return None;
            }
            stats.saturated += u64::from(beyond);
            stats.lost += if self.encoder.loses() { u64::from(beyond) } else { 0 };
        }
        let codes = encoder.round_all(s, payloads, Nearest::<false>);
        let joined = match join {
            Join::Row => C::in_row(s, codes),
            Join::Lanes => C::in_lanes(s, codes),
        };
        stats.flushed += flushed::<S, C>(s, encoder, x, joined);
        Some(joined)
    }

    /// Whether a payload other than zero lies below E5M6's normal numbers.
    #[inline(always)]
    fn has_subnormals<S: Convert>(&self, s: S, payloads: [S::F32; 4]) -> bool {
        let bound = s.splat_u32(TILE_KERNELS_NORMAL.to_bits());
        let mut found = false;
        for payload in payloads {
            let magnitude = s.and(s.bits(payload), s.splat_u32(MAGNITUDE));
            let nonzero = s.count_above(magnitude, s.splat_u32(0));
            found |= s.count_above(bound, magnitude) + nonzero > S::LANES as u32;
        }
        found
    }

    /// The code of one element, as the reference casts and counts it.
    pub(super) fn cast_one<T: Lane>(&self, v: T, decided: &Decided, stats: &mut QuantStats) -> u64 {
        let v = v.to_f32();
        let cast = self.recipe.encode(decided.payload().of(v));
        count(stats, self.recipe.element, v, cast.code, cast.events);
        cast.code
    }
}
