//! Casts where nothing is to be asked of an element: the loops that most time is spent in.
//!
//! Each calls nothing, since the compiler loads what it needs again and again where other code is inlined around it.

use super::code_word::{CodeWord, GROUP, flushed};
use crate::elements::{CodesMut, Elements};
use crate::simd::{Convert, Encoder, EncoderOn, Isa, Lane, Put, Work};
use crate::stores::Stores;

/// Bytes of a cache line.
const LINE: usize = 64;

/// What the elements of a row are divided or multiplied by, and fl(1 / factor) where they are divided.
#[derive(Clone, Copy, Debug)]
pub enum Factors<'a> {
    /// Those of granules of `width` columns, a multiple of 64. The elements begin at column `first` of one.
    Granules {
        /// One a granule.
        values: &'a [f32],
        /// Their inverses.
        inverses: &'a [f32],
        /// Columns of the first granule before the elements.
        first: usize,
        /// Columns of a granule.
        width: usize,
    },
    /// One a column, padded to a multiple of 64.
    Columns {
        /// The factors.
        values: &'a [f32],
        /// Their inverses.
        inverses: &'a [f32],
    },
}

impl Factors<'_> {
    /// Those of the elements from `at` on.
    fn after(self, at: usize) -> Self {
        match self {
            Factors::Granules { values, inverses, first, width } => {
                let (granule, first) = ((first + at) / width, (first + at) % width);
                Factors::Granules { values: &values[granule..], inverses: &inverses[granule..], first, width }
            }
            Factors::Columns { values, inverses } => {
                Factors::Columns { values: &values[at..], inverses: &inverses[at..] }
            }
        }
    }
}

/// A row of elements to be cast, none of which is infinite or NaN or has a payload beyond the largest code.
#[derive(Clone, Copy, Debug)]
pub struct PlainRow<'a> {
    /// From payloads to codes; [`Encoder::is_plain`].
    pub encoder: &'a Encoder,
    /// Whether payloads are quotients; factors then lie within [`DIVISORS`](crate::simd::DIVISORS).
    pub divides: bool,
    /// The elements.
    pub x: Elements<'a>,
    /// Their factors.
    pub factors: Factors<'a>,
    /// How many columns ahead elements are asked for.
    pub ahead: usize,
}

/// Casts a row and returns how many elements became zero without being it.
///
/// code = encoder(x / factor) or encoder(x · factor).
///
/// # Panics
/// If there are not as many codes or factors as elements.
pub fn cast_plain(stores: &mut Stores, row: &PlainRow<'_>, codes: CodesMut<'_>) -> u64 {
    assert_eq!(row.x.len(), codes.len(), "a code for each element");
    match row.x {
        Elements::F32(x) => typed(stores, row, x, codes),
        Elements::Bf16(x) => typed(stores, row, x, codes),
        Elements::F16(x) => typed(stores, row, x, codes),
    }
}

fn typed<T: Lane>(stores: &mut Stores, row: &PlainRow<'_>, x: &[T], codes: CodesMut<'_>) -> u64 {
    match codes {
        CodesMut::Bytes(codes) => coded(stores, row, x, codes),
        CodesMut::Words(codes) => coded(stores, row, x, codes),
    }
}

fn coded<T: Lane, C: CodeWord>(stores: &mut Stores, row: &PlainRow<'_>, x: &[T], codes: &mut [C]) -> u64 {
    let isa = stores.isa();
    let &PlainRow { encoder, divides, factors, ahead, .. } = row;
    let groups = |x: &[T], factors: Factors<'_>, codes: &mut [C], past_cache: bool| {
        if divides {
            run(isa, Groups::<T, C, true> { encoder, x, factors, ahead, codes, past_cache })
        } else {
            run(isa, Groups::<T, C, false> { encoder, x, factors, ahead, codes, past_cache })
        }
    };
    stores.write(bytemuck::cast_slice_mut(codes), |codes, past_cache| {
        let codes: &mut [C] = bytemuck::cast_slice_mut(codes);
        let whole = x.len() / GROUP * GROUP;
        let mut flushed = groups(&x[..whole], factors, &mut codes[..whole], past_cache);
        let rest = x.len() - whole;
        if rest > 0 {
            let (mut padded, mut last) = ([T::default(); GROUP], [C::zeroed(); GROUP]);
            padded[..rest].copy_from_slice(&x[whole..]);
            flushed += groups(&padded, factors.after(whole), &mut last, false);
            codes[whole..].copy_from_slice(&last[..rest]);
        }
        flushed
    })
}

/// Bytes gain by VBMI, which gathers their signs; words do not.
fn run<T: Lane, C: CodeWord, const DIVIDES: bool>(isa: Isa, groups: Groups<'_, T, C, DIVIDES>) -> u64 {
    if C::REGISTERS == 1 { isa.run(groups) } else { isa.run_without_vbmi(groups) }
}

/// Whole groups of a row.
struct Groups<'a, T, C, const DIVIDES: bool> {
    encoder: &'a Encoder,
    x: &'a [T],
    factors: Factors<'a>,
    ahead: usize,
    codes: &'a mut [C],
    past_cache: bool,
}

impl<T: Lane, C: CodeWord, const DIVIDES: bool> Work for Groups<'_, T, C, DIVIDES> {
    type Output = u64;

    #[inline(always)]
    fn run<S: Convert>(self, s: S) -> u64 {
        let Groups { encoder, x, factors, ahead, codes, past_cache } = self;
        let on = On { s, encoder: encoder.on(s), put: Put::new(s, past_cache), ahead };
        let group = 4 * S::LANES;
        let mut flushed = 0;
        match factors {
            Factors::Granules { values, inverses, first, width } => {
                let (mut at, mut end) = (0, width - first);
                for (&value, &inverse) in values.iter().zip(inverses) {
                    let upto = end.min(x.len());
                    let factor = Factor { value: s.splat(value), inverse: s.splat(inverse) };
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

/// What a register of elements is divided or multiplied by.
#[derive(Clone, Copy)]
struct Factor<S: Convert> {
    value: S::F32,
    /// fl(1 / value) where they are divided.
    inverse: S::F32,
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
