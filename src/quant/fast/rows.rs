//! Codes in the order of the elements.

use std::ops::Range;

use super::Plan;
use super::cast::Join;
use super::code::CodeWord;
use super::granules::{Decided, ScalesMut, decide, peaks};
use crate::matrix::MatRef;
use crate::quant::stats::QuantStats;
use crate::scaled::Granule;
use crate::simd::{Convert, Lane, Stores, Work};

/// Elements that are looked at before they are cast: 256 KiB of f32, a part of the second-level cache, where granules
/// have several rows.
const BLOCK: usize = 1 << 16;
/// Columns that are looked at or cast at once: with their factors and codes they stay in the first-level cache.
const COLUMNS: usize = 2048;
/// The most elements of `4 · LANES`.
const GROUP: usize = 64;

/// Where the scales of a task come from.
pub(super) enum Granules<'a> {
    /// It finds them, and stores them here.
    Found(ScalesMut<'a>),
    /// They were decided before, over rows beyond those of the task.
    Given(&'a [Decided]),
}

/// Quantises rows of a matrix: whole rows of granules, or rows of one row of granules that was decided before.
pub(super) struct RowTask<'a, T, C> {
    pub(super) plan: &'a Plan<'a>,
    pub(super) x: MatRef<'a, T>,
    pub(super) granules: Granules<'a>,
    pub(super) codes: &'a mut [C],
}

/// Memory that a task works in.
struct Scratch<C> {
    lanes: Vec<u32>,
    peaks: Vec<u32>,
    decided: Vec<Decided>,
    factors: Vec<f32>,
    /// Whether a group of elements has a granule that is not plain.
    rough: Vec<bool>,
    codes: Vec<C>,
}

impl<T: Lane, C: CodeWord> Work for RowTask<'_, T, C> {
    type Output = QuantStats;

    #[inline(always)]
    fn run<S: Convert>(self, s: S) -> QuantStats {
        if self.plan.divides { self.blocks::<S, true>(s) } else { self.blocks::<S, false>(s) }
    }
}

impl<T: Lane, C: CodeWord> RowTask<'_, T, C> {
    #[inline(always)]
    fn blocks<S: Convert, const DIVIDES: bool>(mut self, s: S) -> QuantStats {
        let (rows, cols) = self.x.shape();
        let granule = self.plan.granule;
        let (height, width) = (granule.rows().min(rows), granule.cols().min(cols));
        let block = match self.granules {
            Granules::Found(_) if height > 1 => (BLOCK / height).max(1),
            _ => COLUMNS,
        };
        let block = (block / width).max(1) * width;
        let stores = Stores::new(s, self.plan.past_cache);
        let mut stats = QuantStats::default();
        let mut scratch = Scratch {
            lanes: Vec::new(),
            peaks: Vec::new(),
            decided: Vec::new(),
            factors: Vec::new(),
            rough: Vec::new(),
            codes: vec![C::of(0); COLUMNS + GROUP],
        };
        let (_, grid_cols) = granule.grid(rows, cols);
        for (grid_row, top) in (0..rows).step_by(height).enumerate() {
            let stripe = top..(top + height).min(rows);
            for left in (0..cols).step_by(block) {
                let part = left..(left + block).min(cols);
                let x = self.x.row_range(stripe.start, stripe.end).col_range(part.start, part.end);
                let first = left / width;
                match &mut self.granules {
                    Granules::Found(scales) => {
                        peaks(s, x, width, &mut scratch.lanes, &mut scratch.peaks);
                        scratch.decided.clear();
                        for (g, &peak) in scratch.peaks.iter().enumerate() {
                            let span = Granule::span(x.cols(), width, g);
                            let elements = x.col_range(span.start, span.end);
                            let decided = decide(self.plan, elements, peak, &mut stats);
                            scales.set(grid_row * grid_cols + first + g, decided.scale.stored);
                            scratch.decided.push(decided);
                        }
                    }
                    Granules::Given(decided) => {
                        let count = part.len().div_ceil(width);
                        scratch.decided.clear();
                        scratch.decided.extend_from_slice(&decided[first..first + count]);
                    }
                }
                for left in (0..x.cols()).step_by(COLUMNS) {
                    let columns = left..(left + COLUMNS).min(x.cols());
                    scratch.spread(columns.clone(), width, 4 * S::LANES);
                    for (i, row) in x.iter_rows().enumerate() {
                        let row = &row[columns.clone()];
                        self.row::<S, DIVIDES>(s, row, columns.start, width, &mut scratch, &mut stats);
                        let at = (stripe.start + i) * cols + part.start + columns.start;
                        stores.copy(&scratch.codes[..row.len()], &mut self.codes[at..at + row.len()]);
                    }
                }
            }
        }
        stats.elements = (rows * cols) as u64;
        stats
    }

    /// Casts a row of as many columns as factors were spread over, into the scratch.
    #[inline(always)]
    fn row<S: Convert, const DIVIDES: bool>(
        &self,
        s: S,
        x: &[T],
        first: usize,
        width: usize,
        scratch: &mut Scratch<C>,
        stats: &mut QuantStats,
    ) {
        let group = 4 * S::LANES;
        let Scratch { decided, factors, rough, codes, .. } = scratch;
        let clips = decided.iter().any(|d| d.clips);
        for (g, &rough) in rough.iter().enumerate() {
            let at = g * group;
            let mut padded = [T::default(); GROUP];
            let elements = match x.get(at..at + group) {
                Some(elements) => elements,
                None => {
                    padded[..x.len() - at].copy_from_slice(&x[at..]);
                    &padded[..group]
                }
            };
            let (factors, codes) = (&factors[at..at + group], &mut codes[at..at + group]);
            let (mut values, mut spread) = ([s.splat(0.0); 4], [s.splat(1.0); 4]);
            for i in 0..4 {
                values[i] = T::load(s, &elements[i * S::LANES..]);
                spread[i] = s.load(&factors[i * S::LANES..]);
            }
            let joined = if rough {
                None
            } else {
                self.plan.cast::<S, C, DIVIDES>(s, values, spread, Join::Row, clips, stats)
            };
            match joined {
                Some(joined) => C::store(s, joined, codes),
                None => {
                    let elements = &elements[..group.min(x.len() - at)];
                    cast_singly(self.plan, elements, first + at, width, decided, codes, stats);
                }
            }
        }
    }
}

impl<C> Scratch<C> {
    /// Writes the factor of every column, padded to whole groups.
    #[inline(always)]
    fn spread(&mut self, columns: Range<usize>, width: usize, group: usize) {
        let groups = columns.len().div_ceil(group);
        self.factors.clear();
        self.factors.resize(groups * group, 1.0);
        self.rough.clear();
        self.rough.resize(groups, false);
        let mut column = columns.start;
        while column < columns.end {
            let decided = &self.decided[column / width];
            let end = (column / width + 1).saturating_mul(width).min(columns.end);
            let span = column - columns.start..end - columns.start;
            self.factors[span.clone()].fill(decided.factor);
            if !decided.plain {
                self.rough[span.start / group..=(span.end - 1) / group].fill(true);
            }
            column = end;
        }
    }
}

/// Casts a group that registers cannot: something in it is infinite or NaN.
#[cold]
#[inline(never)]
fn cast_singly<T: Lane, C: CodeWord>(
    plan: &Plan<'_>,
    elements: &[T],
    first: usize,
    width: usize,
    decided: &[Decided],
    codes: &mut [C],
    stats: &mut QuantStats,
) {
    for (j, (&v, code)) in elements.iter().zip(codes).enumerate() {
        *code = C::of(plan.cast_one(v, &decided[(first + j) / width], stats));
    }
}
