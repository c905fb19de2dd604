//! Four registers of elements become codes, and what happens to them is counted.

use super::Plan;
use super::code::CodeWord;
use super::granules::{Decided, MAGNITUDE};
use crate::quant::reference::count;
use crate::quant::stats::QuantStats;
use crate::simd::{Convert, EncoderOn, Lane, Mode, Nearest};

/// Below this TileKernels' rounding to E5M6 is not nearest even.
const TILE_KERNELS_NORMAL: f32 = 1.0 / 16384.0;

/// What a loop of casts is compiled for.
pub(super) trait Kind {
    /// Whether payloads are quotients.
    const DIVIDES: bool;
    /// How it rounds. If plain, nothing is beyond the largest code and there is no rule but the rounding.
    type Mode: Mode;
    const MODE: Self::Mode;
}

/// The kind by its two facts.
pub(super) struct Of<const DIVIDES: bool, const PLAIN: bool>;

impl<const DIVIDES: bool, const PLAIN: bool> Kind for Of<DIVIDES, PLAIN> {
    const DIVIDES: bool = DIVIDES;
    type Mode = Nearest<PLAIN>;
    const MODE: Nearest<PLAIN> = Nearest;
}

/// What a register of elements is divided or multiplied by.
#[derive(Clone, Copy)]
pub(super) struct Factor<S: Convert> {
    pub(super) value: S::F32,
    /// fl(1 / value) where they are divided.
    pub(super) inverse: S::F32,
}

impl<S: Convert> Factor<S> {
    #[inline(always)]
    pub(super) fn one(s: S) -> Self {
        Factor { value: s.splat(1.0), inverse: s.splat(1.0) }
    }

    /// Where nothing asks for the inverse: in [`Join::Lanes`], where loading it takes longer than the division.
    #[inline(always)]
    pub(super) fn alone(value: S::F32) -> Self {
        Factor { value, inverse: value }
    }

    #[inline(always)]
    pub(super) fn of(s: S, granule: &Decided) -> Self {
        Factor { value: s.splat(granule.factor), inverse: s.splat(granule.inverse) }
    }

    #[inline(always)]
    pub(super) fn load(s: S, values: &[f32], inverses: &[f32]) -> Self {
        Factor { value: s.load(values), inverse: s.load(inverses) }
    }
}

/// How four registers of codes are joined.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Join {
    /// They follow each other in a row.
    Row,
    /// They are of four rows: those of a lane follow each other.
    Lanes,
}

impl Plan<'_> {
    /// Whether casts are plain where none clips.
    pub(super) fn is_plain(&self) -> bool {
        self.encoder.is_plain() && !self.positive_zero && !self.tile_kernels
    }

    /// The codes of `x` over or times `factors`; `None` if this takes the reference.
    ///
    /// Saturation is counted where `general` says that there may be some. Elements that became zero are counted where there
    /// are codes of zero at all.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    pub(super) fn cast<S: Convert, C: CodeWord, K: Kind>(
        &self,
        s: S,
        encoder: &EncoderOn<S>,
        x: [S::F32; 4],
        factors: [Factor<S>; 4],
        join: Join,
        general: bool,
        stats: &mut QuantStats,
    ) -> Option<[S::U32; 2]> {
        // Loops, not closures over arrays: those would not be compiled for the instruction set.
        let mask = s.splat_u32(MAGNITUDE);
        let mut payloads = x;
        for i in 0..4 {
            let Factor { value, inverse } = factors[i];
            payloads[i] = match (K::DIVIDES, K::Mode::PLAIN && join == Join::Row) {
                (true, true) => s.quotient(x[i], value, inverse),
                (true, false) => s.div(x[i], value),
                (false, _) => s.mul(x[i], value),
            };
            if !K::Mode::PLAIN && self.positive_zero {
                payloads[i] = s.add(payloads[i], s.splat(0.0));
            }
        }
        if !K::Mode::PLAIN && (general || self.tile_kernels) {
            let limit = s.splat_u32(self.encoder.limit());
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
        let joined = match join {
            Join::Row => C::round_row(s, encoder, payloads, K::MODE),
            Join::Lanes => C::in_lanes(s, encoder.round_all(s, payloads, K::MODE)),
        };
        let zeros = C::zeros(s, encoder, joined);
        if zeros > 0 {
            let mut nonzero = 0;
            for v in x {
                nonzero += s.count_above(s.and(s.bits(v), mask), s.splat_u32(0));
            }
            stats.flushed += u64::from(zeros + nonzero - 4 * S::LANES as u32);
        }
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
