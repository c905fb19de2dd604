//! Codes of the transposed matrix, written tile by tile: the elements are never transposed themselves.

use std::marker::PhantomData;
use std::ops::Range;

use super::Plan;
use super::cast::{Join, flushed};
use super::code::CodeWord;
use super::granules::{Decided, Peaks, ScalesMut, decide};
use crate::matrix::MatRef;
use crate::quant::stats::QuantStats;
use crate::scaled::{DequantizeScratch, ScaledRef};
use crate::simd::{Convert, Lane, Nearest, Stores, Work};

/// Columns of a tile.
pub(super) const COLUMNS: usize = 128;
/// Rows of a tile, unless granules ask for a little fewer: with the columns, 64 KiB of f32 in the second-level cache.
/// Granules of more are decided beforehand.
pub(super) const ROWS: usize = 128;

/// How many rows ahead are asked for while they are copied.
const ROWS_AHEAD: usize = 12;
/// Bytes of a cache line.
const LINE: usize = 64;

/// Where tiles of elements come from.
pub(super) trait Source: Copy + Send + Sync {
    type Element: Lane;
    /// What making a tile takes.
    type Scratch: Default;

    fn shape(&self) -> (usize, usize);

    /// The matrix, where it lies in memory.
    fn whole(&self) -> Option<MatRef<'_, Self::Element>>;

    /// Some rows and columns, made in `made`.
    fn tile<'a, S: Convert>(
        &'a self,
        s: S,
        rows: Range<usize>,
        cols: Range<usize>,
        made: &'a mut Vec<Self::Element>,
        scratch: &mut Self::Scratch,
    ) -> MatRef<'a, Self::Element>;
}

impl<T: Lane> Source for MatRef<'_, T> {
    type Element = T;
    type Scratch = ();

    fn shape(&self) -> (usize, usize) {
        MatRef::shape(self)
    }

    fn whole(&self) -> Option<MatRef<'_, T>> {
        Some(*self)
    }

    #[inline(always)]
    fn tile<'a, S: Convert>(
        &'a self,
        s: S,
        rows: Range<usize>,
        cols: Range<usize>,
        made: &'a mut Vec<T>,
        (): &mut (),
    ) -> MatRef<'a, T> {
        gather(s, self.row_range(rows.start, rows.end).col_range(cols.start, cols.end), made)
    }
}

impl Source for ScaledRef<'_> {
    type Element = f32;
    type Scratch = DequantizeScratch;

    fn shape(&self) -> (usize, usize) {
        ScaledRef::shape(self)
    }

    fn whole(&self) -> Option<MatRef<'_, f32>> {
        None
    }

    #[inline(always)]
    fn tile<'a, S: Convert>(
        &'a self,
        s: S,
        rows: Range<usize>,
        cols: Range<usize>,
        made: &'a mut Vec<f32>,
        scratch: &mut DequantizeScratch,
    ) -> MatRef<'a, f32> {
        let (height, width) = (rows.len(), cols.len());
        made.resize(height * width, 0.0);
        self.dequantize_tile(s, rows, cols, made, scratch);
        MatRef::new(made, height, width).expect("one value each element")
    }
}

/// Where the scales of a task come from.
pub(super) enum Granules<'a> {
    /// It finds them, and stores them here: the rows of the result's grid that belong to its columns.
    Found(ScalesMut<'a>),
    /// They were decided before, all of the matrix'.
    Given(&'a [Decided]),
}

/// Quantises some columns of a matrix, at most [`COLUMNS`], into rows of the result. They begin with a granule.
pub(super) struct ColumnTask<'a, X, C> {
    pub(super) plan: &'a Plan<'a>,
    pub(super) x: &'a X,
    pub(super) columns: Range<usize>,
    pub(super) granules: Granules<'a>,
    pub(super) codes: &'a mut [C],
}

/// A tile, padded with zeros to whole registers, and its granules.
struct Tile<'a, T> {
    x: MatRef<'a, T>,
    /// Rows and columns that are not padding.
    shape: (usize, usize),
    /// Row and column in the grid that `granules` holds.
    origin: (usize, usize),
    granule: (usize, usize),
    granules: &'a [Decided],
    grid_cols: usize,
    /// A row of [`COLUMNS`] for each row of granules.
    factors: &'a [f32],
    plain: bool,
    general: bool,
}

impl<T> Tile<'_, T> {
    fn granule_row(&self, i: usize) -> usize {
        (self.origin.0 + i) / self.granule.0
    }

    fn decided(&self, i: usize, j: usize) -> &Decided {
        &self.granules[self.granule_row(i) * self.grid_cols + (self.origin.1 + j) / self.granule.1]
    }

    /// The factors of row `i`.
    #[inline(always)]
    fn factors(&self, i: usize) -> &[f32] {
        let row = self.granule_row(i.min(self.shape.0 - 1)) - self.granule_row(0);
        &self.factors[row * COLUMNS..][..COLUMNS]
    }
}

impl<X: Source, C: CodeWord> Work for ColumnTask<'_, X, C> {
    type Output = QuantStats;

    #[inline(always)]
    fn run<S: Convert>(self, s: S) -> QuantStats {
        self.tiles(s)
    }
}

impl<X: Source, C: CodeWord> ColumnTask<'_, X, C> {
    #[inline(always)]
    fn tiles<S: Convert>(mut self, s: S) -> QuantStats {
        let (plan, columns) = (self.plan, self.columns.clone());
        let (rows, cols) = self.x.shape();
        let granule = (plan.granule.rows().min(rows), plan.granule.cols().min(cols));
        let (grid_rows, grid_cols) = plan.granule.grid(rows, cols);
        let height = match self.granules {
            Granules::Found(_) => ROWS / granule.0 * granule.0,
            Granules::Given(_) => ROWS,
        };
        let padded_height = height.next_multiple_of(4 * S::LANES);
        let stores = Stores::new(s, plan.past_cache);
        let mut stats = QuantStats::default();
        let (mut lanes, mut found) = (Vec::new(), Vec::new());
        let (mut decided, mut factors) = (Vec::new(), Vec::new());
        let mut scratch = X::Scratch::default();
        let mut made = Vec::with_capacity(height * COLUMNS);
        let mut padded = vec![X::Element::default(); padded_height * COLUMNS];
        let mut dwords = vec![0u32; padded_height * COLUMNS * size_of::<C>() / 4];
        let mut finished = vec![C::of(0); padded_height * COLUMNS];
        for top in (0..rows).step_by(height) {
            let span = top..(top + height).min(rows);
            let x = self.x.tile(s, span.clone(), columns.clone(), &mut made, &mut scratch);
            let shape = x.shape();
            let (granules, origin, grid_cols) = match &mut self.granules {
                Granules::Found(scales) => {
                    decided.clear();
                    for first in (0..shape.0).step_by(granule.0) {
                        let part = x.row_range(first, (first + granule.0).min(shape.0));
                        let (lanes, peaks) = (&mut lanes, &mut found);
                        s.vectorize(Peaks { x: part, width: granule.1, lanes, peaks });
                        for (g, &peak) in found.iter().enumerate() {
                            let (scale, one) = decide(plan, part, (granule.1, g), peak, &mut stats);
                            scales.set(g * grid_rows + (top + first) / granule.0, scale);
                            decided.push(one);
                        }
                    }
                    (&decided[..], (0, 0), found.len())
                }
                Granules::Given(all) => (*all, (top, columns.start), grid_cols),
            };
            let x = if shape == (padded_height, COLUMNS) { x } else { pad(x, &mut padded) };
            let mut tile = Tile {
                x,
                shape,
                origin,
                granule,
                granules,
                grid_cols,
                factors: &[],
                plain: true,
                general: false,
            };
            factors.clear();
            for row in tile.granule_row(0)..=tile.granule_row(shape.0 - 1) {
                let i = (row * granule.0).saturating_sub(origin.0);
                for j in 0..shape.1 {
                    let one = tile.decided(i, j);
                    factors.push(one.factor);
                    (tile.plain, tile.general) = (tile.plain & one.plain, tile.general | one.general);
                }
                factors.resize(factors.len().next_multiple_of(COLUMNS), 1.0);
            }
            let tile = Tile { factors: &factors, ..tile };
            if tile.plain && plan.is_plain() && !tile.general {
                let to = (&mut dwords[..], PhantomData);
                stats.flushed += s.vectorize(FillPlain::<_, C> { plan, tile: &tile, to });
            } else if tile.plain {
                fill::<S, _, C>(s, plan, &tile, &mut dwords, &mut stats);
            } else {
                fill_singly::<_, C>(plan, &tile, &mut dwords, &mut stats);
            }
            s.vectorize(Transpose { dwords: &dwords, out: bytemuck::cast_slice_mut(&mut finished) });
            let columns = finished.chunks_exact(padded_height).zip(self.codes.chunks_exact_mut(rows));
            for (from, to) in columns {
                stores.copy(&from[..span.len()], &mut to[span.clone()]);
            }
        }
        stats.elements = (rows * columns.len()) as u64;
        stats
    }
}

/// Copies a tile to where its rows follow each other. Rows a power of two apart share few places of a
/// cache, which would not keep the block for its second reading.
#[inline(always)]
fn gather<'a, S: Convert, T: Lane>(s: S, x: MatRef<'_, T>, packed: &'a mut Vec<T>) -> MatRef<'a, T> {
    let (rows, cols) = x.shape();
    packed.clear();
    for row in x.iter_rows() {
        for at in (0..cols).step_by(LINE / size_of::<T>()) {
            s.prefetch(&row[at..], ROWS_AHEAD * x.stride());
        }
        packed.extend_from_slice(row);
    }
    MatRef::new(packed, rows, cols).expect("whole rows were copied")
}

/// Four rows of a tile from `top` on, with their factors.
#[inline(always)]
fn four_rows<'a, T: Lane>(tile: &'a Tile<'_, T>, top: usize) -> [(&'a [T], &'a [f32]); 4] {
    let row = |i| (tile.x.row(i), tile.factors(i));
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

/// Fills a tile where nothing is to be asked of an element: a work of its own, as in [`super::plain`]. Returns how many
/// elements became zero.
struct FillPlain<'a, T, C> {
    plan: &'a Plan<'a>,
    tile: &'a Tile<'a, T>,
    /// [`COLUMNS`] dwords a row, each of a column's successive codes.
    to: (&'a mut [u32], PhantomData<C>),
}

impl<T: Lane, C: CodeWord> Work for FillPlain<'_, T, C> {
    type Output = u64;

    #[inline(always)]
    fn run<S: Convert>(self, s: S) -> u64 {
        let FillPlain { plan, tile, to: (dwords, _) } = self;
        let (encoder, divides) = (plan.encoder.on(s), plan.divides);
        let mut count = 0;
        for (group, out) in dwords.chunks_exact_mut(C::REGISTERS * COLUMNS).enumerate() {
            let rows = four_rows(tile, 4 * group);
            for j in (0..COLUMNS).step_by(S::LANES) {
                let [x, factors] = load_rows(s, rows, j);
                let mut payloads = x;
                for r in 0..4 {
                    // To load inverses would take longer than the division.
                    payloads[r] = if divides { s.div(x[r], factors[r]) } else { s.mul(x[r], factors[r]) };
                }
                let joined = C::in_lanes(s, encoder.round_all(s, payloads, Nearest::<true>));
                for (row, register) in out.chunks_exact_mut(COLUMNS).zip(joined) {
                    s.store_u32(register, &mut row[j..]);
                }
                count += flushed::<S, C>(s, &encoder, x, joined);
            }
        }
        count
    }
}

/// The codes of a tile by all rules.
#[inline(always)]
fn fill<S: Convert, T: Lane, C: CodeWord>(
    s: S,
    plan: &Plan<'_>,
    tile: &Tile<'_, T>,
    dwords: &mut [u32],
    stats: &mut QuantStats,
) {
    let encoder = plan.encoder.on(s);
    for (group, out) in dwords.chunks_exact_mut(C::REGISTERS * COLUMNS).enumerate() {
        let rows = four_rows(tile, 4 * group);
        for j in (0..COLUMNS).step_by(S::LANES) {
            let [x, factors] = load_rows(s, rows, j);
            match plan.cast::<S, C>(s, &encoder, x, factors, Join::Lanes, tile.general, stats) {
                Some(joined) => {
                    for (row, register) in out.chunks_exact_mut(COLUMNS).zip(joined) {
                        s.store_u32(register, &mut row[j..]);
                    }
                }
                None => cast_singly::<T, C>(plan, tile, 4 * group, j..j + S::LANES, out, stats),
            }
        }
    }
}

/// The same without registers, for a tile with an infinity or NaN.
#[cold]
#[inline(never)]
fn fill_singly<T: Lane, C: CodeWord>(
    plan: &Plan<'_>,
    tile: &Tile<'_, T>,
    dwords: &mut [u32],
    stats: &mut QuantStats,
) {
    for (group, out) in dwords.chunks_exact_mut(C::REGISTERS * COLUMNS).enumerate() {
        cast_singly::<T, C>(plan, tile, 4 * group, 0..COLUMNS, out, stats);
    }
}

/// Casts four rows of some columns as the reference does. Padding becomes 0.
#[cold]
#[inline(never)]
fn cast_singly<T: Lane, C: CodeWord>(
    plan: &Plan<'_>,
    tile: &Tile<'_, T>,
    top: usize,
    columns: Range<usize>,
    out: &mut [u32],
    stats: &mut QuantStats,
) {
    let codes_a_dword = 4 / C::REGISTERS;
    for j in columns {
        for (register, row) in out.chunks_exact_mut(COLUMNS).enumerate() {
            row[j] = (0..codes_a_dword).fold(0, |dword, place| {
                let i = top + register * codes_a_dword + place;
                if i >= tile.shape.0 || j >= tile.shape.1 {
                    return dword;
                }
                let code = plan.cast_one(tile.x.at(i, j), tile.decided(i, j), stats);
                dword | (code as u32) << (32 / codes_a_dword * place)
            });
        }
    }
}

/// A copy of a tile with zeros to the right and below.
fn pad<'a, T: Lane>(x: MatRef<'_, T>, padded: &'a mut [T]) -> MatRef<'a, T> {
    padded.fill(T::default());
    for (from, to) in x.iter_rows().zip(padded.chunks_exact_mut(COLUMNS)) {
        to[..from.len()].copy_from_slice(from);
    }
    let rows = padded.len() / COLUMNS;
    MatRef::new(padded, rows, COLUMNS).expect("a padded tile has whole rows")
}

/// Transposes rows of [`COLUMNS`] dwords.
struct Transpose<'a> {
    dwords: &'a [u32],
    out: &'a mut [u8],
}

impl Work for Transpose<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Convert>(self, s: S) {
        let rows = self.dwords.len() / COLUMNS;
        let mut registers = [s.splat_u32(0); 16];
        for left in (0..COLUMNS).step_by(S::LANES) {
            for top in (0..rows).step_by(S::LANES) {
                let from = bytemuck::cast_slice(&self.dwords[top * COLUMNS + left..]);
                s.load_transposed(from, 4 * COLUMNS, &mut registers);
                for (j, &register) in registers[..S::LANES].iter().enumerate() {
                    s.store_bytes(register, &mut self.out[4 * ((left + j) * rows + top)..]);
                }
            }
        }
    }
}
