//! Casts of tiles whose codes are transposed.
//!
//! The codes of four rows are put together in a lane, four bytes or twice two words; then dwords are transposed. Elements
//! are never transposed themselves.

use std::marker::PhantomData;
use std::ops::Range;

use super::code_word::{CodeWord, flushed};
use super::{CastRule, Counts};
use crate::elements::Elements;
use crate::simd::{Convert, Isa, Lane, Nearest, Work};

/// Columns of a tile.
pub const TILE_COLUMNS: usize = 128;
/// Rows that a tile has a multiple of.
const TILE_ROWS: usize = 64;

/// How many rows ahead are asked for while they are copied.
const ROWS_AHEAD: usize = 12;
/// Bytes of a cache line.
const LINE: usize = 64;

/// Rows of [`TILE_COLUMNS`] elements, a multiple of 64.
#[derive(Clone, Copy, Debug)]
pub struct Tile<'a> {
    /// How they are cast.
    pub rule: &'a CastRule,
    /// The elements, row after row.
    pub x: Elements<'a>,
    /// Their factors.
    pub factors: TileFactors<'a>,
    /// Whether nothing is to be asked of an element: [`CastRule::is_plain`], and none clips.
    pub plain: bool,
    /// Whether some payload may be beyond the largest code.
    pub clips: bool,
}

/// The factors of a tile's elements.
#[derive(Clone, Copy, Debug)]
pub struct TileFactors<'a> {
    /// A row of [`TILE_COLUMNS`] for each row of granules.
    pub values: &'a [f32],
    /// Rows of a granule.
    pub height: usize,
    /// Rows of the first granule above the tile.
    pub above: usize,
    /// Rows of the tile that are no padding; padding has the factors of the last.
    pub rows: usize,
}

impl<'a> TileFactors<'a> {
    /// Those of row `i`.
    #[inline(always)]
    fn row(&self, i: usize) -> &'a [f32] {
        let row = (self.above + i.min(self.rows - 1)) / self.height;
        &self.values[row * TILE_COLUMNS..][..TILE_COLUMNS]
    }
}

/// Casts elements one by one and counts what happened: given the first of the rows whose codes share dwords, four, the
/// columns, and rows of [`TILE_COLUMNS`] of those dwords.
pub type CastSingly<'a> = dyn FnMut(usize, Range<usize>, &mut [u32]) + 'a;

/// Casts a tile of finite elements to dwords of a column's successive codes, [`TILE_COLUMNS`] a row, and counts what
/// happened. What registers do not cast is left to `singly`.
///
/// # Panics
/// If there are not as many codes in `dwords` as elements.
pub fn cast_tile(isa: Isa, tile: &Tile<'_>, dwords: &mut [u32], singly: &mut CastSingly<'_>) -> Counts {
    match tile.x {
        Elements::F32(x) => typed(isa, tile, x, dwords, singly),
        Elements::Bf16(x) => typed(isa, tile, x, dwords, singly),
        Elements::F16(x) => typed(isa, tile, x, dwords, singly),
    }
}

fn typed<T: Lane>(
    isa: Isa,
    tile: &Tile<'_>,
    x: &[T],
    dwords: &mut [u32],
    singly: &mut CastSingly<'_>,
) -> Counts {
    let bytes = 4 * dwords.len() / x.len();
    assert!(x.len() * bytes == 4 * dwords.len() && x.len().is_multiple_of(TILE_ROWS * TILE_COLUMNS));
    match (bytes, tile.plain) {
        (1, true) => isa.run_without_vbmi(Plain { tile, x, dwords, code: PhantomData::<u8> }),
        (1, false) => isa.run_without_vbmi(ByAllRules { tile, x, dwords, code: PhantomData::<u8>, singly }),
        (2, true) => isa.run_without_vbmi(Plain { tile, x, dwords, code: PhantomData::<u16> }),
        (2, false) => isa.run_without_vbmi(ByAllRules { tile, x, dwords, code: PhantomData::<u16>, singly }),
        _ => panic!("codes of {bytes} bytes"),
    }
}

/// Four rows of [`TILE_COLUMNS`] from `top` on, with their factors.
#[inline(always)]
fn four_rows<'a, T>(x: &'a [T], factors: &TileFactors<'a>, top: usize) -> [(&'a [T], &'a [f32]); 4] {
    let row = |i| (&x[i * TILE_COLUMNS..][..TILE_COLUMNS], factors.row(i));
    [row(top), row(top + 1), row(top + 2), row(top + 3)]
}

/// Loads columns from `j` on of four rows, and their factors.
#[inline(always)]
fn load_rows<S: Convert, T: Lane>(s: S, rows: [(&[T], &[f32]); 4], j: usize) -> [[S::F32; 4]; 2] {
    let (mut x, mut factors) = ([s.splat(0.0); 4], [s.splat(1.0); 4]);
    for r in 0..4 {
        let (row, row_factors) = rows[r];
        x[r] = T::load(s, &row[j..]);
        factors[r] = s.load(&row_factors[j..]);
    }
    [x, factors]
}

/// Where nothing is to be asked of an element: by itself, as in [`super::plain`].
struct Plain<'a, T, C> {
    tile: &'a Tile<'a>,
    x: &'a [T],
    dwords: &'a mut [u32],
    code: PhantomData<C>,
}

impl<T: Lane, C: CodeWord> Work for Plain<'_, T, C> {
    type Output = Counts;

    #[inline(always)]
    fn run<S: Convert>(self, s: S) -> Counts {
        let Plain { tile, x, dwords, code: _ } = self;
        let (encoder, divides) = (tile.rule.encoder.on(s), tile.rule.divides);
        let mut count = 0;
        for (group, out) in dwords.chunks_exact_mut(C::REGISTERS * TILE_COLUMNS).enumerate() {
            let rows = four_rows(x, &tile.factors, 4 * group);
            for j in (0..TILE_COLUMNS).step_by(S::LANES) {
                let [x, factors] = load_rows(s, rows, j);
                let mut payloads = x;
                for r in 0..4 {
                    // To load inverses would take longer than the division.
                    payloads[r] = if divides { s.div(x[r], factors[r]) } else { s.mul(x[r], factors[r]) };
                }
                let joined = C::in_lanes(s, encoder.round_all(s, payloads, Nearest::<true>));
                for (row, register) in out.chunks_exact_mut(TILE_COLUMNS).zip(joined) {
                    s.store_u32(register, &mut row[j..]);
                }
                count += flushed::<S, C>(s, &encoder, x, joined);
            }
        }
        Counts { flushed: count, ..Counts::default() }
    }
}

struct ByAllRules<'a, 'b, T, C> {
    tile: &'a Tile<'a>,
    x: &'a [T],
    dwords: &'a mut [u32],
    code: PhantomData<C>,
    singly: &'a mut CastSingly<'b>,
}

impl<T: Lane, C: CodeWord> Work for ByAllRules<'_, '_, T, C> {
    type Output = Counts;

    #[inline(always)]
    fn run<S: Convert>(self, s: S) -> Counts {
        let ByAllRules { tile, x, dwords, code: _, singly } = self;
        let encoder = tile.rule.encoder.on(s);
        let mut counts = Counts::default();
        for (group, out) in dwords.chunks_exact_mut(C::REGISTERS * TILE_COLUMNS).enumerate() {
            let rows = four_rows(x, &tile.factors, 4 * group);
            for j in (0..TILE_COLUMNS).step_by(S::LANES) {
                let [x, factors] = load_rows(s, rows, j);
                match tile.rule.cast(s, &encoder, [x, factors], tile.clips, &mut counts) {
                    Some(codes) => {
                        let joined = C::in_lanes(s, codes);
                        counts.flushed += flushed::<S, C>(s, &encoder, x, joined);
                        for (row, register) in out.chunks_exact_mut(TILE_COLUMNS).zip(joined) {
                            s.store_u32(register, &mut row[j..]);
                        }
                    }
                    None => by_definition(singly, 4 * group, j..j + S::LANES, out),
                }
            }
        }
        counts
    }
}

#[cold]
#[inline(never)]
fn by_definition(singly: &mut CastSingly<'_>, top: usize, columns: Range<usize>, dwords: &mut [u32]) {
    singly(top, columns, dwords);
}

/// Transposes rows of [`TILE_COLUMNS`] dwords into `out`, column after column.
///
/// # Panics
/// If `out` does not have their size, or there is no multiple of 16 rows.
pub fn transpose(isa: Isa, dwords: &[u32], out: &mut [u8]) {
    assert!(4 * dwords.len() == out.len() && dwords.len().is_multiple_of(16 * TILE_COLUMNS));
    isa.run_without_vbmi(Transpose { dwords, out });
}

struct Transpose<'a> {
    dwords: &'a [u32],
    out: &'a mut [u8],
}

impl Work for Transpose<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Convert>(self, s: S) {
        let rows = self.dwords.len() / TILE_COLUMNS;
        let mut registers = [s.splat_u32(0); 16];
        for left in (0..TILE_COLUMNS).step_by(S::LANES) {
            for top in (0..rows).step_by(S::LANES) {
                let from = bytemuck::cast_slice(&self.dwords[top * TILE_COLUMNS + left..]);
                s.load_transposed(from, 4 * TILE_COLUMNS, &mut registers);
                for (j, &register) in registers[..S::LANES].iter().enumerate() {
                    s.store_bytes(register, &mut self.out[4 * ((left + j) * rows + top)..]);
                }
            }
        }
    }
}

/// Copies `rows` of `width` bytes, `stride` apart, to where rows of `out_stride` bytes follow each other. Rows a power of
/// two apart share few places of a cache, which would not keep them for a second reading.
///
/// # Panics
/// If one of them lies beyond its slice.
pub fn gather(isa: Isa, x: &[u8], [rows, width, stride]: [usize; 3], out: &mut [u8], out_stride: usize) {
    isa.run_without_vbmi(Gather { x, rows, width, stride, out, out_stride });
}

struct Gather<'a> {
    x: &'a [u8],
    rows: usize,
    width: usize,
    stride: usize,
    out: &'a mut [u8],
    out_stride: usize,
}

impl Work for Gather<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Convert>(self, s: S) {
        let Gather { x, rows, width, stride, out, out_stride } = self;
        for i in 0..rows {
            let row = &x[i * stride..][..width];
            for at in (0..width).step_by(LINE) {
                s.prefetch(&row[at..], ROWS_AHEAD * stride);
            }
            out[i * out_stride..][..width].copy_from_slice(row);
        }
    }
}
