//! Casts where nothing is to be asked of an element: the loops that most time is spent in.
//!
//! Each is a work of its own and calls nothing, since the compiler loads what it needs again and again where other code is
//! inlined around it.

use super::cast::{Factor, flushed};
use super::code::CodeWord;
use super::granules::Decided;
use crate::simd::{Convert, Encoder, EncoderOn, Lane, Put, Work};

/// Bytes of a cache line.
const LINE: usize = 64;

/// What the elements of a row are divided or multiplied by.
#[derive(Clone, Copy)]
pub(super) enum Factors<'a> {
    /// Those of granules of `width` columns, which are whole groups. The elements begin at column `first` of one.
    Granules { decided: &'a [Decided], first: usize, width: usize },
    /// One a column, and its inverse.
    Columns { values: &'a [f32], inverses: &'a [f32] },
}

impl Factors<'_> {
    /// Those of the elements from `at` on.
    pub(super) fn after(self, at: usize) -> Self {
        match self {
            Factors::Granules { decided, first, width } => {
                let first = first + at;
                Factors::Granules { decided: &decided[first / width..], first: first % width, width }
            }
            Factors::Columns { values, inverses } => {
                Factors::Columns { values: &values[at..], inverses: &inverses[at..] }
            }
        }
    }
}

/// Casts whole groups of a row and returns how many elements became zero.
pub(super) struct CastRow<'a, T, C> {
    pub(super) encoder: &'a Encoder,
    /// Whether payloads are quotients.
    pub(super) divides: bool,
    pub(super) x: &'a [T],
    pub(super) factors: Factors<'a>,
    /// How many columns ahead elements are asked for.
    pub(super) ahead: usize,
    pub(super) codes: &'a mut [C],
    pub(super) past_cache: bool,
}

impl<T: Lane, C: CodeWord> Work for CastRow<'_, T, C> {
    type Output = u64;

    #[inline(always)]
    fn run<S: Convert>(self, s: S) -> u64 {
        if self.divides { self.groups::<S, true>(s) } else { self.groups::<S, false>(s) }
    }
}

impl<T: Lane, C: CodeWord> CastRow<'_, T, C> {
    #[inline(always)]
    fn groups<S: Convert, const DIVIDES: bool>(self, s: S) -> u64 {
        let CastRow { encoder, x, factors, ahead, codes, past_cache, .. } = self;
        let on = On { s, encoder: encoder.on(s), put: Put::new(s, past_cache), ahead };
        let group = 4 * S::LANES;
        let mut flushed = 0;
        match factors {
            Factors::Granules { decided, first, width } => {
                let (mut at, mut end) = (0, width - first);
                for granule in decided {
                    let upto = end.min(x.len());
                    let factor = Factor { value: s.splat(granule.factor), inverse: s.splat(granule.inverse) };
                    let groups = x[at..upto].chunks_exact(group).zip(codes[at..upto].chunks_exact_mut(group));
                    for (x, codes) in groups {
                        flushed += on.group::<T, C, DIVIDES>(x, [factor; 4], codes);
                    }
                    (at, end) = (upto, end + width);
                }
            }
            Factors::Columns { values, inverses } => {
                let groups = x.chunks_exact(group).zip(codes.chunks_exact_mut(group));
                let factors = values.chunks_exact(group).zip(inverses.chunks_exact(group));
                for ((x, codes), (values, inverses)) in groups.zip(factors) {
                    let mut factors = [Factor { value: s.splat(1.0), inverse: s.splat(1.0) }; 4];
                    for i in 0..4 {
                        factors[i].value = s.load(&values[i * S::LANES..]);
                        factors[i].inverse = s.load(&inverses[i * S::LANES..]);
                    }
                    flushed += on.group::<T, C, DIVIDES>(x, factors, codes);
                }
            }
        }
        flushed
    }
}

/// What encodes and stores in registers.
#[derive(Clone, Copy)]
struct On<S: Convert> {
    s: S,
    encoder: EncoderOn<S>,
    put: Put<S>,
    ahead: usize,
}

impl<S: Convert> On<S> {
    #[inline(always)]
    fn group<T: Lane, C: CodeWord, const DIVIDES: bool>(
        &self,
        x: &[T],
        factors: [Factor<S>; 4],
        codes: &mut [C],
    ) -> u64 {
        let s = self.s;
        for at in (0..4 * S::LANES).step_by(LINE / size_of::<T>()) {
            s.prefetch(&x[at..], self.ahead);
        }
        let (mut values, mut payloads) = ([s.splat(0.0); 4], [s.splat(0.0); 4]);
        for i in 0..4 {
            let Factor { value, inverse } = factors[i];
            values[i] = T::load(s, &x[i * S::LANES..]);
            payloads[i] =
                if DIVIDES { s.quotient(values[i], value, inverse) } else { s.mul(values[i], value) };
        }
        let joined = C::round_row(s, &self.encoder, payloads);
        C::put(self.put, joined, codes);
        flushed::<S, C>(s, &self.encoder, values, joined)
    }
}
