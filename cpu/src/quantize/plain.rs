//! Casts where nothing is to be asked of an element: the loops that most time is spent in.
//!
//! Each calls nothing, since the compiler loads what it needs again and again where other code is inlined around it.

use super::code_word::{CodeWord, GROUP, flushed};
use crate::elements::{CodesMut, Elements, Panel};
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
    fn after(&self, at: usize) -> Self {
        match *self {
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

/// Rows of elements to be cast, none of which is infinite or NaN or has a payload beyond the largest code.
#[derive(Clone, Copy, Debug)]
pub struct PlainRows<'a> {
    /// From payloads to codes; [`Encoder::is_plain`].
    pub encoder: &'a Encoder,
    /// Whether payloads are quotients; factors then lie within [`DIVISORS`](crate::simd::DIVISORS).
    pub divides: bool,
    /// The elements.
    pub x: &'a Panel<'a>,
    /// The factors of every row.
    pub factors: &'a Factors<'a>,
    /// How many columns ahead elements are asked for.
    pub ahead: usize,
}

/// Casts rows, into rows of `codes` that begin `stride` apart, and returns how many elements became zero without being it.
///
/// code = encoder(x / factor) or encoder(x · factor).
///
/// # Panics
/// If a row lies beyond its slice, or there are fewer factors than columns.
pub fn cast_plain(stores: &mut Stores, rows: &PlainRows<'_>, codes: CodesMut<'_>, stride: usize) -> u64 {
    match rows.x.data {
        Elements::F32(x) => typed(stores, rows, x, codes, stride),
        Elements::Bf16(x) => typed(stores, rows, x, codes, stride),
        Elements::F16(x) => typed(stores, rows, x, codes, stride),
    }
}

fn typed<T: Lane>(
    stores: &mut Stores,
    rows: &PlainRows<'_>,
    x: &[T],
    codes: CodesMut<'_>,
    stride: usize,
) -> u64 {
    match codes {
        CodesMut::Bytes(codes) => coded(stores, rows, x, codes, stride),
        CodesMut::Words(codes) => coded(stores, rows, x, codes, stride),
    }
}

fn coded<T: Lane, C: CodeWord>(
    stores: &mut Stores,
    rows: &PlainRows<'_>,
    x: &[T],
    codes: &mut [C],
    stride: usize,
) -> u64 {
    let (isa, past_cache) = (stores.isa(), stores.past_cache());
    let &PlainRows { encoder, divides, x: &Panel { rows, cols, stride: x_stride, .. }, factors, ahead } =
        rows;
    let whole = cols / GROUP * GROUP;
    let one = Groups::<T, C> {
        encoder,
        factors,
        ahead,
        rows: 1,
        cols: whole,
        x,
        x_stride,
        codes: &mut [],
        stride,
        past_cache: false,
    };
    let mut flushed = 0;
    if stores.writes_directly(codes, stride) {
        flushed += Groups { rows, codes, past_cache, ..one }.cast(isa, divides);
    } else {
        for (i, codes) in codes.chunks_mut(stride).take(rows).enumerate() {
            let x = &x[i * x_stride..];
            stores.write_piece(&mut codes[..whole], |codes| {
                flushed += Groups { x, codes, ..one }.cast(isa, divides);
            });
        }
    }
    let rest = cols - whole;
    if rest > 0 {
        let factors = factors.after(whole);
        let one = Groups { factors: &factors, cols: GROUP, ..one };
        for (i, codes) in codes.chunks_mut(stride).take(rows).enumerate() {
            let (mut padded, mut last) = ([T::default(); GROUP], [C::zeroed(); GROUP]);
            padded[..rest].copy_from_slice(&x[i * x_stride + whole..][..rest]);
            flushed += Groups { x: &padded, codes: &mut last, ..one }.cast(isa, divides);
            codes[whole..cols].copy_from_slice(&last[..rest]);
        }
    }
    flushed
}

/// Whole groups of rows.
struct Groups<'a, T, C> {
    encoder: &'a Encoder,
    factors: &'a Factors<'a>,
    ahead: usize,
    rows: usize,
    cols: usize,
    x: &'a [T],
    x_stride: usize,
    codes: &'a mut [C],
    stride: usize,
    past_cache: bool,
}

impl<T: Lane, C: CodeWord> Groups<'_, T, C> {
    fn cast(self, isa: Isa, divides: bool) -> u64 {
        // By reference: a work that is copied from place to place is read before it has reached memory.
        let groups = &mut { self };
        if divides { Cast::<T, C, true>(groups).run_on(isa) } else { Cast::<T, C, false>(groups).run_on(isa) }
    }
}

struct Cast<'a, 'b, T, C, const DIVIDES: bool>(&'a mut Groups<'b, T, C>);

impl<T: Lane, C: CodeWord, const DIVIDES: bool> Cast<'_, '_, T, C, DIVIDES> {
    /// Bytes gain by VBMI, which gathers their signs; words do not.
    fn run_on(self, isa: Isa) -> u64 {
        if C::REGISTERS == 1 { isa.run(self) } else { isa.run_without_vbmi(self) }
    }
}

impl<T: Lane, C: CodeWord, const DIVIDES: bool> Work for Cast<'_, '_, T, C, DIVIDES> {
    type Output = u64;

    #[inline(always)]
    fn run<S: Convert>(self, s: S) -> u64 {
        let &mut Groups {
            encoder,
            factors,
            ahead,
            rows,
            cols,
            x,
            x_stride,
            ref mut codes,
            stride,
            past_cache,
        } = self.0;
        let on = On { s, encoder: encoder.on(s), put: Put::new(s, past_cache), ahead };
        let group = 4 * S::LANES;
        let mut flushed = 0;
        for i in 0..rows {
            let (x, codes) = (&x[i * x_stride..][..cols], &mut codes[i * stride..][..cols]);
            match *factors {
                Factors::Granules { values, inverses, first, width } => {
                    let (mut at, mut end) = (0, width - first);
                    for (&value, &inverse) in values.iter().zip(inverses) {
                        let upto = end.min(cols);
                        let factor = Factor { value: s.splat(value), inverse: s.splat(inverse) };
                        let groups =
                            x[at..upto].chunks_exact(group).zip(codes[at..upto].chunks_exact_mut(group));
                        for (x, codes) in groups {
                            flushed += on.group::<T, C, DIVIDES>(x, [factor; 4], codes);
                        }
                        if end >= cols {
                            break;
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
