//! Casts without scales, in registers.

use super::code::CodeWord;
use super::granules::MAGNITUDE;
use crate::quant::cast::{CastStats, Caster};
use crate::simd::{Any, Convert, Encoder, EncoderOn, Lane, Mode, Nearest, Put, Stores, Work};

/// Elements whose codes are written at once.
const PIECE: usize = 4096;
/// The most elements of `4 · LANES`.
const GROUP: usize = 64;

/// Casts a slice.
pub(in crate::quant) struct CastTask<'a, T, C> {
    pub(in crate::quant) caster: &'a Caster,
    pub(in crate::quant) encoder: &'a Encoder,
    pub(in crate::quant) x: &'a [T],
    pub(in crate::quant) codes: &'a mut [C],
    pub(in crate::quant) past_cache: bool,
}

impl<T: Lane, C: CodeWord> Work for CastTask<'_, T, C> {
    type Output = CastStats;

    #[inline(always)]
    fn run<S: Convert>(self, s: S) -> CastStats {
        if self.encoder.rounding == crate::simd::FixedRounding::NearestEven {
            self.pieces(s, Nearest::<false>)
        } else {
            self.pieces(s, Any)
        }
    }
}

/// What happened, a lane each where that is cheaper.
struct Counts<S: Convert> {
    stats: CastStats,
    /// The largest error within the range: exact in f32, since both numbers are multiples of the element's last place
    /// and lie less than 2^24 of those apart.
    error: S::U32,
    /// The largest magnitude that was saturated.
    saturated: S::U32,
}

impl<T: Lane, C: CodeWord> CastTask<'_, T, C> {
    #[inline(always)]
    fn pieces<S: Convert, M: Mode>(self, s: S, mode: M) -> CastStats {
        let CastTask { caster, encoder, x: elements, codes, past_cache } = self;
        let on = encoder.on(s);
        let zero = s.splat_u32(0);
        let mut counts = Counts::<S> { stats: CastStats::default(), error: zero, saturated: zero };
        let stores = Stores::new(s, past_cache);
        let mut piece = [C::of(0); PIECE];
        let group = 4 * S::LANES;
        for (x, out) in elements.chunks(PIECE).zip(codes.chunks_mut(PIECE)) {
            let groups = x.chunks_exact(group);
            let rest = groups.remainder();
            for (x, codes) in groups.zip(piece.chunks_exact_mut(group)) {
                group_of(s, mode, (caster, encoder, &on), x, group, codes, &mut counts);
            }
            if !rest.is_empty() {
                let mut padded = [T::default(); GROUP];
                padded[..rest.len()].copy_from_slice(rest);
                let at = x.len() - rest.len();
                let codes = &mut piece[at..at + group];
                group_of(s, mode, (caster, encoder, &on), &padded[..group], rest.len(), codes, &mut counts);
            }
            stores.copy(&piece[..x.len()], out);
        }
        let Counts { mut stats, error, saturated } = counts;
        let largest = |lanes| f64::from(f32::from_bits(s.largest(lanes)));
        stats.max_abs_error = stats.max_abs_error.max(largest(error));
        let beyond = largest(saturated);
        if beyond > 0.0 {
            stats.max_abs_error = stats.max_abs_error.max(beyond - encoder.largest());
        }
        stats.elements = elements.len() as u64;
        stats
    }
}

/// Casts four registers, of which the first `valid` elements count; the others are zeros.
#[inline(always)]
fn group_of<S: Convert, M: Mode, T: Lane, C: CodeWord>(
    s: S,
    mode: M,
    (caster, encoder, on): (&Caster, &Encoder, &EncoderOn<S>),
    elements: &[T],
    valid: usize,
    codes: &mut [C],
    counts: &mut Counts<S>,
) {
    let (zero, mask) = (s.splat_u32(0), s.splat_u32(MAGNITUDE));
    let (mut x, mut magnitudes) = ([s.splat(0.0); 4], [zero; 4]);
    for i in 0..4 {
        x[i] = T::load(s, &elements[i * S::LANES..]);
        magnitudes[i] = s.and(s.bits(x[i]), mask);
    }
    let [a, b, c, d] = magnitudes;
    if s.count_above(s.max(s.max(a, b), s.max(c, d)), s.splat_u32(T::LARGEST)) > 0 {
        cast_singly(caster, &elements[..valid], codes, &mut counts.stats);
        return;
    }
    let stats = &mut counts.stats;
    let mut encoded = [zero; 4];
    for i in 0..4 {
        let (bits, magnitude) = (s.bits(x[i]), magnitudes[i]);
        let rounded = on.round(s, x[i], mode);
        encoded[i] = rounded.codes;
        let limits = encoder.lane_limits(s, bits);
        let error = s.and(s.bits(s.sub(s.float(magnitude), rounded.values)), mask);
        stats.inexact += u64::from(s.count_above(error, zero));
        counts.error = s.max(counts.error, s.select_above(magnitude, limits, zero, error));
        let beyond = s.count_above(magnitude, limits);
        if beyond > 0 {
            stats.overflowed += u64::from(beyond);
            let beyond = s.select_above(magnitude, limits, magnitude, zero);
            let kept = s.and(beyond, encoder.lane_saturates(s, bits));
            counts.saturated = s.max(counts.saturated, kept);
        }
    }
    let joined = C::in_row(s, encoded);
    let zeros = C::zeros(s, on, joined);
    if zeros > 0 {
        let mut nonzero = 0;
        for magnitude in magnitudes {
            nonzero += s.count_above(magnitude, zero);
        }
        stats.flushed += u64::from(zeros + nonzero - 4 * S::LANES as u32);
    }
    C::put(Put::cached(s), joined, codes);
}

/// The definition, for a group with an infinity or NaN.
#[cold]
#[inline(never)]
fn cast_singly<T: Lane, C: CodeWord>(caster: &Caster, x: &[T], codes: &mut [C], stats: &mut CastStats) {
    for (&v, code) in x.iter().zip(codes) {
        *code = C::of(caster.one(v.to_f32(), 0, stats));
    }
}
