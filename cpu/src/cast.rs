//! Casts without scales, and what they did to the elements.

use std::ops::Range;

use crate::elements::{CodesMut, Elements};
use crate::quantize::{CodeWord, GROUP, MAGNITUDE};
use crate::simd::{Any, Convert, Encoder, EncoderOn, FixedRounding, Isa, Lane, Mode, Nearest, Put, Work};
use crate::stores::Stores;

/// What happened to elements that were cast.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CastCounts {
    /// Elements beyond the largest finite value.
    pub overflowed: u64,
    /// Elements that became zero without being it.
    pub flushed: u64,
    /// Elements that changed.
    pub inexact: u64,
    /// The largest |result − element| with a finite result.
    pub max_abs_error: f64,
}

/// Casts elements, each rounded once, and counts what happened. Groups with an infinity or NaN are left to `singly`, which
/// is given the elements' places and memory for their codes, and counts for itself.
///
/// # Panics
/// If there are not as many codes as elements.
pub fn cast(
    stores: &mut Stores,
    encoder: &Encoder,
    x: Elements<'_>,
    mut codes: CodesMut<'_>,
    singly: &mut dyn FnMut(Range<usize>, CodesMut<'_>),
) -> CastCounts {
    assert_eq!(x.len(), codes.len(), "a code for each element");
    if !stores.past_cache() {
        return part(stores.isa(), encoder, x, codes, singly);
    }
    // Lines that go past the cache one by one, between the loads, slow these down: a third more time for 64 MiB.
    let isa = stores.isa();
    let mut counts = CastCounts::default();
    for first in (0..x.len()).step_by(PIECE) {
        let piece = first..(first + PIECE).min(x.len());
        let (x, to) = (x.slice(piece.clone()), codes.slice(piece));
        let mut singly =
            |at: Range<usize>, codes: CodesMut<'_>| singly(first + at.start..first + at.end, codes);
        let mut cast = |codes: CodesMut<'_>| {
            let more = part(isa, encoder, x, codes, &mut singly);
            counts = CastCounts {
                overflowed: counts.overflowed + more.overflowed,
                flushed: counts.flushed + more.flushed,
                inexact: counts.inexact + more.inexact,
                max_abs_error: counts.max_abs_error.max(more.max_abs_error),
            };
        };
        match to {
            CodesMut::Bytes(to) => stores.write_piece(to, |codes| cast(CodesMut::Bytes(codes))),
            CodesMut::Words(to) => stores.write_piece(to, |codes| cast(CodesMut::Words(codes))),
        }
    }
    counts
}

/// Elements whose codes are put together in the first-level cache.
const PIECE: usize = 4096;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Bytes between an element and the one in the same place that is asked for from memory.
const AHEAD: usize = 4096;

/// The same through the cache.
fn part(
    isa: Isa,
    encoder: &Encoder,
    x: Elements<'_>,
    codes: CodesMut<'_>,
    singly: &mut dyn FnMut(Range<usize>, CodesMut<'_>),
) -> CastCounts {
    let to = To { encoder, singly };
    match (x, codes) {
        (Elements::F32(x), CodesMut::Bytes(codes)) => isa.run_without_vbmi(Groups { x, codes, to }),
        (Elements::Bf16(x), CodesMut::Bytes(codes)) => isa.run_without_vbmi(Groups { x, codes, to }),
        (Elements::F16(x), CodesMut::Bytes(codes)) => isa.run_without_vbmi(Groups { x, codes, to }),
        (Elements::F32(x), CodesMut::Words(codes)) => isa.run_without_vbmi(Groups { x, codes, to }),
        (Elements::Bf16(x), CodesMut::Words(codes)) => isa.run_without_vbmi(Groups { x, codes, to }),
        (Elements::F16(x), CodesMut::Words(codes)) => isa.run_without_vbmi(Groups { x, codes, to }),
    }
}

struct To<'a, 'b> {
    encoder: &'a Encoder,
    singly: &'a mut (dyn FnMut(Range<usize>, CodesMut<'_>) + 'b),
}

struct Groups<'a, 'b, T, C> {
    x: &'a [T],
    codes: &'a mut [C],
    to: To<'a, 'b>,
}

impl<T: Lane, C: CodeWord> Work for Groups<'_, '_, T, C> {
    type Output = CastCounts;

    #[inline(always)]
    fn run<S: Convert>(self, s: S) -> CastCounts {
        if self.to.encoder.rounding == FixedRounding::NearestEven {
            self.groups(s, Nearest::<false>)
        } else {
            self.groups(s, Any)
        }
    }
}

impl<T: Lane, C: CodeWord> Groups<'_, '_, T, C> {
    #[inline(always)]
    fn groups<S: Convert, M: Mode>(self, s: S, mode: M) -> CastCounts {
        let Groups { x, codes, to: To { encoder, singly } } = self;
        // A copy: what stores may reach is loaded again after each.
        let encoder = &{ *encoder };
        let (zero, group) = (s.splat_u32(0), 4 * S::LANES);
        let on = On { s, encoder, on: encoder.on(s), mode };
        let mut seen = Seen { counts: CastCounts::default(), error: zero, saturated: zero };
        let put = Put::cached(s);
        for at in (0..x.len()).step_by(group) {
            let count = (x.len() - at).min(group);
            for line in (0..group).step_by(LINE / size_of::<T>()) {
                s.prefetch(&x[at..], AHEAD / size_of::<T>() + line);
            }
            let (mut padded, mut last) = ([T::default(); GROUP], [C::zeroed(); GROUP]);
            let whole = count == group;
            let elements = if whole {
                &x[at..at + group]
            } else {
                padded[..count].copy_from_slice(&x[at..]);
                &padded[..group]
            };
            let Some(joined) = on.group::<T, C>(elements, &mut seen) else {
                by_definition(singly, at..at + count, &mut codes[at..at + count]);
                continue;
            };
            if whole {
                C::put(put, joined, &mut codes[at..at + group]);
            } else {
                C::put(put, joined, &mut last);
                codes[at..].copy_from_slice(&last[..count]);
            }
        }
        let Seen { mut counts, error, saturated } = seen;
        let largest = |lanes| f64::from(f32::from_bits(s.largest(lanes)));
        counts.max_abs_error = largest(error);
        let beyond = largest(saturated);
        if beyond > 0.0 {
            counts.max_abs_error = counts.max_abs_error.max(beyond - encoder.largest());
        }
        counts
    }
}

#[cold]
#[inline(never)]
fn by_definition<C: CodeWord>(
    singly: &mut dyn FnMut(Range<usize>, CodesMut<'_>),
    elements: Range<usize>,
    codes: &mut [C],
) {
    singly(elements, C::typed(codes));
}

/// What happened, a lane each where that is cheaper.
struct Seen<S: Convert> {
    counts: CastCounts,
    /// The largest error within the range: exact in f32, since both numbers are multiples of the element's last place
    /// and lie less than 2^24 of those apart.
    error: S::U32,
    /// The largest magnitude that was saturated.
    saturated: S::U32,
}

/// What casts in registers.
struct On<'a, S: Convert, M> {
    s: S,
    encoder: &'a Encoder,
    on: EncoderOn<S>,
    mode: M,
}

impl<S: Convert, M: Mode> On<'_, S, M> {
    /// The joined codes of four registers; `None` if there is an infinity or NaN. Zeros behind the elements count nothing.
    #[inline(always)]
    fn group<T: Lane, C: CodeWord>(&self, elements: &[T], seen: &mut Seen<S>) -> Option<[S::U32; 2]> {
        let On { s, encoder, on, mode } = self;
        let s = *s;
        let (zero, mask) = (s.splat_u32(0), s.splat_u32(MAGNITUDE));
        let (mut x, mut magnitudes) = ([s.splat(0.0); 4], [zero; 4]);
        for i in 0..4 {
            x[i] = T::load(s, &elements[i * S::LANES..]);
            magnitudes[i] = s.and(s.bits(x[i]), mask);
        }
        let [a, b, c, d] = magnitudes;
        if s.count_above(s.max(s.max(a, b), s.max(c, d)), s.splat_u32(T::LARGEST)) > 0 {
            return None;
        }
        let mut encoded = [zero; 4];
        for i in 0..4 {
            let (bits, magnitude) = (s.bits(x[i]), magnitudes[i]);
            let rounded = on.round(s, x[i], *mode);
            encoded[i] = rounded.codes;
            let limits = encoder.lane_limits(s, bits);
            let error = s.and(s.bits(s.sub(s.float(magnitude), rounded.values)), mask);
            seen.counts.inexact += u64::from(s.count_above(error, zero));
            seen.error = s.max(seen.error, s.select_above(magnitude, limits, zero, error));
            let beyond = s.count_above(magnitude, limits);
            if beyond > 0 {
                seen.counts.overflowed += u64::from(beyond);
                let beyond = s.select_above(magnitude, limits, magnitude, zero);
                let kept = s.and(beyond, encoder.lane_saturates(s, bits));
                seen.saturated = s.max(seen.saturated, kept);
            }
        }
        let joined = C::in_row(s, encoded);
        let zeros = C::zeros(s, on, joined);
        if zeros > 0 {
            let mut nonzero = 0;
            for magnitude in magnitudes {
                nonzero += s.count_above(magnitude, zero);
            }
            seen.counts.flushed += u64::from(zeros + nonzero - 4 * S::LANES as u32);
        }
        Some(joined)
    }
}
